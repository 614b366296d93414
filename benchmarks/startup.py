"""Start-up time of commands: whole processes, from start to exit.

`bare` is a Typer app with the commands and options of cnsn, whose commands do nothing. `copy` copies the
bytes that `detach` keeps, with fsync.
"""

import argparse
import inspect
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import interleave, markdown, report

IMPORTS = "import numpy, safetensors, typer, rich"
BARE = """
import typer
from typing import Annotated, Optional

app = typer.Typer(name="bare", no_args_is_help=True, pretty_exceptions_enable=False)

{commands}

@app.callback()
def bare(
    traceback: Annotated[bool, typer.Option("--traceback")] = False,
    version: Annotated[bool, typer.Option("--version")] = False,
) -> None:
    "Nothing."

app(prog_name="bare")
"""


def bare_app() -> str:
    """The source of an app with the commands and options of cnsn that does not import cnsn."""
    from cnsn_cli.main import app

    return BARE.format(
        commands="\n\n".join(bare_command(info.name, info.callback) for info in app.registered_commands)
    )


def bare_command(name: str, function) -> str:
    lines = [f"@app.command({name!r})", f"def {name}_("]
    for parameter in inspect.signature(function).parameters.values():
        if not hasattr(parameter.annotation, "__metadata__"):  # the context of the command
            continue
        option = parameter.annotation.__metadata__[0]
        names = "".join(f"{word!r}, " for word in option.param_decls or ())
        kind = f"typer.{type(option).__name__.removesuffix('Info')}({names}help={option.help!r})"
        type_ = "bool" if parameter.default is False else "Optional[str]"
        lines.append(
            f"    {parameter.name}: Annotated[{type_}, {kind}] = {parameter.default is False or None},"
        )
    return "\n".join([*lines, "):", f"    {function.__doc__!r}"]).replace("= True,", "= False,")


def network_file(folder: Path) -> Path:
    """VGG-16 with exits 2,7 as `cnsn train` writes it, with random weights."""
    import torch

    from cnsn_cli.backbones.registry import find
    from cnsn_cli.files.checkpoint import save
    from cnsn_cli.task import Task
    from cnsn_cli.training.building import build_network
    from cnsn_cli.training.description import describe
    from cnsn_cli.training.recipe import load_recipe

    recipe = load_recipe("paper")
    arch = find("vgg16")
    network = build_network(arch, (2, 7), Task.plain(), recipe)
    network(torch.randn(2, 3, 32, 32))
    save(folder / "whole.safetensors", network, describe(network, arch, "cifar10", recipe))
    return folder / "whole.safetensors"


def copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 2**20)
        writer.flush()
        os.fsync(writer.fileno())


def peak_of_detach(words: list[str]) -> float:
    """The peak memory of `cnsn detach` in MiB, read before anything else is imported."""
    code = (
        f"import sys; sys.argv = {words!r}\n"
        "from cnsn_cli.main import app\n"
        "app(prog_name='cnsn', standalone_mode=False)\n"
        "print(open('/proc/self/status').read())"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(out.split("VmHWM:")[1].split()[0]) / 1024


def measure(folder: Path, rounds: int) -> str:
    whole, small, bare = network_file(folder), folder / "small.safetensors", folder / "bare.py"
    bare.write_text(bare_app())
    cnsn = [str(Path(sys.executable).with_name("cnsn"))]
    detach = ["detach", str(whole), "--submodel", "1", "-o", str(small), "--force"]
    commands = {
        "bare --help": [sys.executable, str(bare), "--help"],
        "cnsn --help": [*cnsn, "--help"],
        "cnsn archs": [*cnsn, "archs"],
        "bare detach": [sys.executable, str(bare), *detach],
        "cnsn detach": [*cnsn, *detach],
        "cnsn mac --arch vgg16": [*cnsn, "mac", "--arch", "vgg16"],
        "import typer, rich": [sys.executable, "-c", "import typer, rich"],
        IMPORTS: [sys.executable, "-c", IMPORTS],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    runs = {
        name: lambda words=words: subprocess.run(words, check=True, capture_output=True)
        for name, words in commands.items()
    }
    subprocess.run(commands["cnsn detach"], check=True, capture_output=True)
    kept = folder / "kept.safetensors"
    shutil.copy(small, kept)
    times = interleave({**runs, "copy": lambda: copy(kept, folder / "copy")}, rounds)
    rows = [
        [name, f"{statistics.median(seconds) * 1e3:.0f}", f"{min(seconds) * 1e3:.0f}"]
        for name, seconds in times.items()
    ]
    peak = peak_of_detach(["cnsn", *detach])
    size = whole.stat().st_size / 2**20
    return f"{rounds} rounds\n\n{markdown(['process', 'median ms', 'minimum ms'], rows)}\n\n" + (
        f"{facts(times)} At most it has {peak:.0f} MiB in memory, for a file of {size:.0f} MiB."
    )


def facts(times: dict[str, list[float]]) -> str:
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    taken, twice = median["cnsn detach"], 2 * median["copy"]
    allowed, typer_alone = median[IMPORTS] + twice, median["bare detach"] + twice
    return (
        f"`cnsn --help` takes {median['cnsn --help'] / median['bare --help']:.2f} x `bare --help`.\n"
        f"`cnsn detach` (k=7 of VGG-16) takes {taken * 1e3:.0f} ms; its imports and twice the copy take "
        f"{allowed * 1e3:.0f} ms ({taken / allowed:.2f} x), `bare detach` and twice the copy "
        f"{typer_alone * 1e3:.0f} ms ({taken / typer_alone:.2f} x)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        report("startup", measure(Path(folder), given.rounds), given.write)


if __name__ == "__main__":
    main()
