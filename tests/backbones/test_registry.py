import pytest

from cnsn_cli.backbones import arch_string, plugins, registry
from cnsn_cli.errors import ArchitectureError
from tests.backbones.test_architecture import PLUGIN
from tests.conftest import TINY

BUILT_IN = (
    [f"vgg{n}" for n in (11, 13, 16, 19)]
    + [f"resnet{n}" for n in (20, 32, 44, 56, 110)]
    + [f"resnet{n}" for n in (18, 34, 50, 101, 152)]
)


def test_the_built_in_architectures_come_through_entry_points():
    known = registry.architectures()
    assert set(BUILT_IN) <= set(known)
    assert known["vgg16"].provider.startswith("cnsn-cli ")


def test_an_architecture_knows_what_its_string_says():
    arch = registry.find("torchvision:resnet18:progress=False")
    assert (arch.text, arch.name) == ("torchvision:resnet18:progress=False", "torchvision")
    assert (arch.variant, arch.options) == ("resnet18", {"progress": False})
    assert arch.provider.startswith("cnsn-cli ")
    assert registry.find(arch) is arch


def test_a_function_that_the_user_typed(distribution, monkeypatch):
    """Only a string that the user typed can name a new function; no other string makes code run."""
    monkeypatch.setattr(plugins, "_named", set())
    distribution("other", {"other": PLUGIN}, {})
    with pytest.raises(ArchitectureError, match="give --plugin other:small, or --plugin with its file"):
        registry.find("other:small")
    arch = registry.find_typed("other:small:depth=3")
    assert (arch.name, arch.variant, arch.options) == ("other:small", None, {"depth": 3})
    assert arch.provider == "module other"
    assert registry.find("other:small:depth=3") == arch


def test_two_plugins_of_one_name(distribution):
    distribution("one", {"one": PLUGIN}, {"same": "one:small"})
    distribution("two", {"two": PLUGIN}, {"same": "two:small"})
    with pytest.raises(ArchitectureError) as caught:
        registry.architectures()
    assert "two plug-ins are called 'same'" in str(caught.value)
    assert "one 1.0" in str(caught.value)
    assert "two 1.0" in str(caught.value)


@pytest.fixture
def counts(monkeypatch):
    """Counts how often an architecture string is parsed, and how often the entry points are scanned."""
    found = {"parsed": 0, "scanned": 0}

    def count(module, function, key):
        original = getattr(module, function)

        def counted(*arguments, **options):
            found[key] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, function, counted)

    count(arch_string, "parse", "parsed")
    count(registry, "entry_points", "scanned")
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--exits", "1,4", "--recipe", "quick", "--epochs", 1, "--batch-size", 8),
        ("mac", "--exits", "1,4"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_looks_its_architecture_up_once(cnsn, counts, words, image_folder, tmp_path):
    command, *rest = words
    if command == "train":
        rest += ["--data", image_folder, "--out", tmp_path / "run"]
    result = cnsn(command, "--arch", TINY, *rest)
    assert result.code == 0, result.err
    assert counts == {"parsed": 1, "scanned": 1}


def test_archs_looks_its_architecture_up_once(cnsn, counts):
    assert cnsn("archs", TINY, "--why").code == 0
    assert counts == {"parsed": 1, "scanned": 1}
