"""Wheels for a machine with a GPU and without a network: `make gpu-wheels`; benchmarks/gpu.sh installs them.

That machine has Python 3.12, torch, torchvision and pytest. The folder gets this project and, in the versions
that are installed here, everything else that it needs there.
"""

import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "gpu-wheels"
LIMIT = 64  # MiB
PYTHON = "3.12"
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
THERE = {"torch", "torchvision", "numpy", "pillow"}  # the last two come with torchvision
LEFT_OUT = {"scikit-learn"}  # with scipy it is too large; digits, --val-split and --per-class need it
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def needed(name: str, extra: str = "") -> set[str]:
    """The names of all distributions that `name` needs there, itself included."""
    found, waiting = {name}, [(name, extra)]
    while waiting:
        one, extra = waiting.pop()
        for text in requires(one) or ():
            requirement = Requirement(text)
            marker, other = requirement.marker, canonicalize_name(requirement.name)
            there = {"extra": extra, "python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
            if (marker is None or marker.evaluate(there)) and other not in found | THERE | LEFT_OUT:
                found.add(other)
                waiting += [(other, own) for own in ("", *requirement.extras)]
    return found


def fetch(name: str) -> None:
    """The wheel of the version that is installed here; if there is none, one is built from its source."""
    wanted = f"{name}=={version(name)}"
    platforms = [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    where = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms]
    done = subprocess.run(
        [*PIP, "download", "--no-deps", *where, "--dest", FOLDER, wanted], capture_output=True
    )
    if done.returncode:
        subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", FOLDER, wanted], check=True)


def main() -> None:
    for folder in (FOLDER, ROOT / "build"):  # setuptools would take modules that are gone from the latter
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", FOLDER, ROOT], check=True)
    for name in sorted(needed("cnsn-cli", "timm") - {"cnsn-cli"}):
        fetch(name)
    wheels = sorted(FOLDER.iterdir())
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(*(wheel.name for wheel in wheels), sep="\n")
    print(f"{len(wheels)} wheels, {size:.1f} MiB, in {FOLDER.name}; left out: {', '.join(LEFT_OUT)}")
    built = [wheel.name for wheel in wheels if not wheel.name.endswith(("none-any.whl", "x86_64.whl"))]
    if built or size > LIMIT:
        sys.exit(f"{', '.join(built)}: of another machine" if built else f"more than {LIMIT} MiB")


if __name__ == "__main__":
    main()
