"""Imports point one way, heavy libraries wait until they are needed, and public names are listed alike."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import cnsn_cli

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cnsn_cli"

# A room is a package or a ground module. It imports from itself and from the floors listed before its own;
# rooms on the same floor do not import each other.
FLOORS = [
    {"version", "errors", "choices", "stages", "phases", "memory"},
    {"exits", "task", "device", "distributed"},
    {"backbones", "data"},
    {"network"},
    {"files"},
    {"evaluation"},
    {"training", "deploy"},
    {"searching"},
    {"commands"},
    {"main"},
    {"__main__"},
]
FACE = "__init__"  # imports from any room, when a public name is used

# Modules that commands without torch import: no heavy library at module level.
LIGHT = {"backbones/arch_string", "backbones/architecture", "backbones/plugins", "backbones/registry"}
LIGHT |= {"files/tensor_file", "files/temporary", "files/writer", "files/metadata", "files/model_file"}
LIGHT |= {"files/onnx_texts", "files/hub", "files/paths"}
LIGHT |= {
    "training/arguments",
    "training/metrics",
    "training/recipe",
    "training/recipe_files",
    "training/run_folder",
    "training/plot",
}
TRACKERS = ("tracking", "installed", "tensorboard", "mlflow", "wandb", "trackio")
LIGHT |= {f"training/trackers/{name}" for name in TRACKERS}
LIGHT |= {"data/columns", "data/origin", "data/table"}
LIGHT |= {"deploy/budget", "deploy/card", "deploy/copying", "deploy/detach"}
HEAVY = {
    "torch", "torchvision", "timm", "fvcore", "sklearn", "numpy", "PIL", "onnx", "onnxruntime", "matplotlib",
    "huggingface_hub", "datasets", "tensorboard", "mlflow", "wandb", "trackio",
}  # fmt: skip
ONLY_IN = {
    "typer": {"main", "commands"},
    "rich": {"main", "commands"},
    "fvcore": {"evaluation"},
    "safetensors": {"files"},
    "onnx": {"files", "deploy"},
    "onnxruntime": {"files", "deploy"},
    "matplotlib": {"training", "evaluation", "searching"},
    "yaml": {"deploy"},
    "huggingface_hub": {"files", "deploy"},
    "tensorboard": {"training"},
    "mlflow": {"training"},
    "wandb": {"training"},
    "trackio": {"training"},
    "datasets": {"data"},
}


@cache
def sources() -> dict[str, ast.Module]:
    """Every file of the package by its path without suffix, such as `files/writer`."""
    return {
        str(file.relative_to(PACKAGE).with_suffix("")): ast.parse(file.read_text())
        for file in sorted(PACKAGE.rglob("*.py"))
        if "architectures" not in file.parts  # a symbolic link in some checkouts
    }


def imported(nodes: list[ast.AST]) -> set[str]:
    """Dotted names; `from cnsn_cli import errors` counts as cnsn_cli.errors."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            own = node.module == "cnsn_cli"
            names |= {f"cnsn_cli.{alias.name}" for alias in node.names} if own else {str(node.module)}
    return names


def floor(room: str) -> int:
    (number,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    return number


@pytest.mark.parametrize("module", [name for name in sources() if name != FACE])
def test_imports_point_one_way(module):
    room = module.split("/")[0]
    for name in imported(list(ast.walk(sources()[module]))):
        if name.startswith("cnsn_cli."):
            other = name.split(".")[1]
            assert other == room or floor(other) < floor(room), f"{module} imports {name}"


@pytest.mark.parametrize("module", sources())
def test_libraries_stay_in_their_rooms(module):
    names = {name.split(".")[0] for name in imported(list(ast.walk(sources()[module])))}
    room = module.split("/")[0]
    for library, rooms in ONLY_IN.items():
        assert library not in names or room in rooms, f"{module} imports {library}"
    ground = "/" not in module
    if ground or room == "commands" or module.endswith("__init__") or module in LIGHT:
        top = {name.split(".")[0] for name in imported(sources()[module].body)}
        assert not top & HEAVY, f"{module} imports {top & HEAVY} at module level"


def test_every_light_module_is_there():
    assert set(sources()) >= LIGHT


@pytest.mark.parametrize("path", sorted((ROOT / "architectures").glob("*.py")), ids=lambda path: path.stem)
def test_architectures_import_what_users_import(path):
    names = imported(list(ast.walk(ast.parse(path.read_text()))))
    libraries = {"torchvision", "timm"} if path.stem == "libraries" else set()
    libraries |= {"collections.abc", "difflib", "typing"}
    assert (
        names
        <= {"cnsn_cli.Backbone", "cnsn_cli.CnsnError", "layers", "torch", "torch.nn.functional"} | libraries
    )


def test_public_names():
    assert cnsn_cli.__all__ == [
        "Backbone", "Cnsn", "CnsnError", "DetachPoint", "Epoch", "Model", "Recipe", "Started", "Step", "Task",
        "__version__", "bench", "card", "count_macs", "detach", "detach_points", "dry_run", "evaluate",
        "export", "load", "load_dataset", "load_recipe", "load_test", "multi_model_loss", "plot", "predict",
        "push", "resume", "search", "train", "use_plugin",
    ]  # fmt: skip
    assert all(getattr(cnsn_cli, name) is not None for name in cnsn_cli.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cnsn_cli.nothing  # noqa: B018


def test_the_three_lists_of_public_names_agree():
    """The lists are `__all__`, the table `_HOMES`, and the imports that type checkers read."""
    (block,) = (node for node in sources()[FACE].body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"cnsn_cli.{home}" for name, home in cnsn_cli._HOMES.items()}
    assert typed == homes
    assert sorted([*homes, "__version__"]) == sorted(cnsn_cli.__all__)
    for name, home in homes.items():
        assert getattr(import_module(home), name) is getattr(cnsn_cli, name)


def test_the_api_reference_has_every_public_name():
    """CnsnError and its subclasses are there as members of cnsn_cli.errors."""
    shown = re.findall(r"^::: cnsn_cli\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted([*shown, "CnsnError", "__version__"]) == sorted([*cnsn_cli.__all__, "errors"])


def test_every_package_is_installed():
    """pyproject.toml lists packages one by one, because architectures/ is outside of cnsn_cli/."""
    listed = set(re.findall(r'^    "(cnsn_cli[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.M))
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("*.py")}
    assert listed == found | {"cnsn_cli.architectures"}


def test_git_sees_every_source_file():
    """A line such as `data/` in .gitignore, without a leading slash, would hide the package of that name."""
    files = [str(file) for folder in ("cnsn_cli", "tests") for file in (ROOT / folder).rglob("*.py")]
    files = [file for file in files if "cnsn_cli/architectures" not in file]
    words = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *files]
    assert subprocess.run(words, capture_output=True, text=True).stdout == ""


def test_importing_the_package_is_light():
    code = "import sys, cnsn_cli; assert not {'torch', 'typer', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_starts_without_recipes():
    """Building their pydantic models takes a tenth of a second."""
    code = "import sys, cnsn_cli.main; assert not {'torch', 'cnsn_cli.training.recipe'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_architectures_is_no_top_level_package_of_an_installation(tmp_path):
    code = "import importlib.util as u; assert u.find_spec('architectures') is None"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


LIST = """
import sys
from cnsn_cli.main import main

sys.argv = ["cnsn", "archs", "--json"]
try:
    main()
finally:
    assert not {"torch", "cnsn_cli.architectures"} & set(sys.modules)
"""


def test_architectures_are_listed_without_torch():
    assert '"vgg16"' in subprocess.check_output([sys.executable, "-c", LIST], text=True)


COMPILER = """
import json, sys
from cnsn_cli.main import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["cnsn", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
    assert not {"torch._dynamo", "sympy"} & set(sys.modules), f"{words} takes as long as importing torch"
"""


def test_commands_on_small_images_do_not_import_the_compiler_of_torch(checkpoint):
    """The first operator on the meta device imports parts of it, and so may a dispatch mode."""
    commands = [
        ["archs", "resnet20"],
        ["mac", str(checkpoint)],
        ["mac", "--arch", "vgg11", "--exits", "4"],
        ["eval", str(checkpoint)],
    ]
    words = [sys.executable, "-c", COMPILER, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout  # of the last command
