"""Imports point one way, and heavy ones wait until they are needed."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import cnsn_cli

ROOT = Path(__file__).parents[1]
LIGHT = (
    "__init__",
    "__main__",
    "main",
    "errors",
    "distributed",
    "backbones/plugins",
    "backbones/registry",
    "task",
    "training/recipe",
    "files/tensor_file",
    "files/writer",
)
LIGHT += (
    "files/metadata",
    "detaching",
    "device",
    "training/arguments",
    "training/metrics",
    "training/run_folder",
    "training/plot",
    "evaluation/latency",
    "budget",
    "card",
)
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "fvcore",
    "sklearn",
    "numpy",
    "PIL",
    "onnx",
    "onnxruntime",
    "matplotlib",
}
ONLY_IN = {
    "typer": {"main", "commands"},
    "rich": {"main", "commands"},
    "fvcore": {"evaluation"},
    "safetensors": {"files"},
    "onnx": {"deploy"},
    "onnxruntime": {"files", "deploy"},
    "matplotlib": {"training"},
    "yaml": {"deploy"},
}

ORDER = [
    "errors", "version", "choices", "distributed", "task", "device", "backbones", "data", "network",
    "files", "evaluation", "training", "deploy", "commands", "main",
]  # fmt: skip


@cache
def sources() -> dict[str, ast.Module]:
    files = sorted((ROOT / "cnsn_cli").rglob("*.py"))
    return {str(f.relative_to(ROOT / "cnsn_cli").with_suffix("")): ast.parse(f.read_text()) for f in files}


def imported(nodes: list[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
    return names


@pytest.mark.parametrize("module", sources())
def test_libraries_stay_in_their_rooms(module):
    names = {name.split(".")[0] for name in imported(list(ast.walk(sources()[module])))}
    room = module.split("/")[0]
    for library, rooms in ONLY_IN.items():
        assert library not in names or room in rooms, f"{module} imports {library}"
    if room == "commands" or module in LIGHT:
        top = {name.split(".")[0] for name in imported(sources()[module].body)}
        assert not top & HEAVY, f"{module} imports {top & HEAVY} at module level"


@pytest.mark.parametrize("module", [name for name in sources() if not name.startswith("__")])
def test_imports_point_one_way(module):
    room = module.split("/")[0]
    for name in imported(list(ast.walk(sources()[module]))):
        if name.startswith("cnsn_cli."):
            other = name.split(".")[1]
            allowed = ORDER[: ORDER.index(room) + 1]
            assert other in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "architectures").glob("*.py")), ids=lambda path: path.stem)
def test_architectures_know_the_contract_only(path):
    names = imported(list(ast.walk(ast.parse(path.read_text()))))
    libraries = {"torchvision", "timm", "difflib", "typing"} if path.stem == "libraries" else set()
    assert names <= {"cnsn_cli.backbones.backbone", "layers", "torch", "torch.nn.functional"} | libraries


def test_public_names():
    assert cnsn_cli.__all__ == [
        "Backbone", "Cnsn", "CnsnError", "DetachPoint", "Model", "Recipe", "Task", "__version__",
        "count_macs", "detach", "detach_points", "evaluate", "export", "load", "load_dataset",
        "load_recipe", "load_test", "multi_model_loss", "resume", "train", "use_plugin",
    ]  # fmt: skip
    assert all(getattr(cnsn_cli, name) is not None for name in cnsn_cli.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cnsn_cli.nothing  # noqa: B018


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
