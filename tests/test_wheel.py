"""What is installed: a wheel that was built from the sdist, outside of the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def build(kind: str, source: Path, folder: Path) -> Path:
    """The one file that setuptools builds: `build_sdist` or `build_wheel`."""
    folder.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, kind, folder], cwd=source, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in tracked.splitlines():  # a checkout without what was built in it
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "checkout" / name)
    with tarfile.open(build("build_sdist", folder / "checkout", folder / "sdist")) as sdist:
        sdist.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(build("build_wheel", source, folder / "wheel")) as wheel:
        wheel.extractall(packages)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env" / "bin" / "python"


@pytest.mark.long
def test_a_wheel_trains_evaluates_detaches_and_exports(installed, tmp_path):
    """Beside a folder of the user's own that is called like one of the repository."""
    for name in ("architectures", "data", "network"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not the one of the user')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def cnsn(*words: object) -> str:
        command = [str(word) for word in (installed, "-m", "cnsn_cli", *words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import cnsn_cli, cnsn_cli.architectures as a; print(cnsn_cli.__file__, a.__file__)"
    found = subprocess.run(
        [installed, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert all(str(installed.parents[1]) in place for place in found.stdout.split()), found
    words = ("--exits", "1,4", "--data", "digits", "--recipe", "quick", "--epochs", 1, "--out", "run")
    cnsn("train", "--arch", "vgg11:width=0.0625", *words)
    whole = json.loads(cnsn("eval", "run/best.safetensors", "--json"))["models"]
    cnsn("detach", "run/best.safetensors", "--submodel", 1, "-o", "small.safetensors")
    (small,) = json.loads(cnsn("eval", "small.safetensors", "--json"))["models"]
    assert (small["accuracy"], small["loss"]) == (whole[2]["accuracy"], whole[2]["loss"])
    cnsn("export", "small.safetensors", "--to", "onnx", "-o", "small.onnx")
    (exported,) = json.loads(cnsn("eval", "small.onnx", "--json"))["models"]
    assert exported["accuracy"] == small["accuracy"]


def test_a_folder_of_the_user_that_is_called_architectures_does_no_harm(tmp_path):
    (tmp_path / "architectures").mkdir()
    (tmp_path / "architectures" / "__init__.py").write_text("raise RuntimeError('of the user')")
    words = ["-m", "cnsn_cli", "mac", "--arch", "vgg11:width=0.0625", "--exits", "1"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
