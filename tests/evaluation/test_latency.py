"""`cnsn bench`, on a clock that the tests set."""

import itertools
import json

import pytest
import torch

import cnsn_cli
from cnsn_cli.deploy.export import export
from cnsn_cli.errors import ArgumentError
from cnsn_cli.evaluation.latency import bench, interleave
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import read_header
from tests.commands.test_cli import one_line


@pytest.fixture
def clock(monkeypatch):
    """A clock on which the n-th call that is timed takes n seconds."""
    ticks = itertools.chain.from_iterable((1000 * n, 1000 * n + n) for n in itertools.count(1))
    monkeypatch.setattr("cnsn_cli.evaluation.latency.time.perf_counter", lambda: next(ticks))


def test_variants_take_turns_and_warm_up(clock):
    called = []
    times = interleave({name: lambda name=name: called.append(name) for name in "abc"}, rounds=2)
    assert "".join(called) == "abcabcabc"
    assert times == {"a": [4, 7], "b": [5, 8], "c": [6, 9]}


def test_figures_by_hand(clock, checkpoint):
    speeds = bench([checkpoint], (2,), (1,), rounds=10)
    # After the warm-up, model 0 of 3 takes 4, 7, ..., 31 s: the median is 17.5 s, the longest is 31 s.
    assert [(s.p50, s.p95) for s in speeds] == [(17.5, 31), (18.5, 32), (19.5, 33)]
    assert speeds[0].images_per_second == 2 / 17.5


def test_every_model_batch_size_and_thread_count(cnsn, checkpoint, tmp_path):
    exported = tmp_path / "small.onnx"
    export(checkpoint, "onnx", exported, "1", with_preprocess=True)
    threads = torch.get_num_threads()
    words = ("--batch-sizes", "1,3", "--threads", "1,2", "--rounds", 2)
    content = json.loads(cnsn("bench", checkpoint, exported, *words, "--json").out)
    assert torch.get_num_threads() == threads
    found = [(s["batch"], s["threads"], s["runtime"], s["name"]) for s in content["speeds"]]
    pytorch = [("PyTorch", name) for name in ("base", "submodel0", "submodel1")]
    runtimes = [*pytorch, ("ONNX Runtime", "submodel1")]
    assert found == [(b, t, *model) for b in (1, 3) for t in (1, 2) for model in runtimes]
    recorded = read_metadata(checkpoint, read_header(checkpoint)).models
    facts = [(s["macs"], s["accuracy"]) for s in content["speeds"][:4]]
    assert facts == [(m.macs, m.accuracy) for m in (*recorded, recorded[2])]
    assert all(0 < s["p50"] <= s["p95"] for s in content["speeds"])


def test_the_table(cnsn, checkpoint):
    out = cnsn("bench", checkpoint, "--rounds", 1).out
    assert "timed in turns" in out
    assert "submodel1" in out
    assert "best.safetensors" not in out  # the table names files only if there are several


def test_results_name_the_device_that_auto_chose(cnsn, checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    words = ("bench", checkpoint, "--rounds", 1, "--device", "auto")
    assert json.loads(cnsn(*words, "--json").out)["device"] == "cpu"
    assert "timed in turns on cpu, rounds: 1" in cnsn(*words).out


def test_bad_input_for_bench(cnsn, tmp_path):
    assert "cannot read" in one_line(cnsn("bench", tmp_path / "gone.onnx"))
    assert "no device 'tpu' here: choose auto, " in one_line(cnsn("bench", "x.onnx", "--device", "tpu"))
    assert cnsn("bench", "x.safetensors", "--threads", "0").code == 2
    assert cnsn("bench", "x.safetensors", "--batch-sizes", "").code == 2


def test_exported_models_are_timed_on_the_cpu_only(cnsn, tmp_path, monkeypatch):
    for module in ("device", "evaluation.latency"):
        monkeypatch.setattr(f"cnsn_cli.{module}.choose_device", lambda name: torch.device("cuda"))
    message = one_line(cnsn("bench", tmp_path / "a.onnx", "--device", "cuda"))
    assert message == f"{tmp_path / 'a.onnx'} is exported and runs on the CPU here: give --device cpu"


def test_python_users_time_one_file_or_several(checkpoint):
    text, path, several = (
        cnsn_cli.bench(f, rounds=1) for f in (str(checkpoint), checkpoint, [str(checkpoint)] * 2)
    )
    shown = [[(s.file, s.name, s.batch, s.threads) for s in speeds] for speeds in (text, path, several)]
    names = ("base", "submodel0", "submodel1")
    assert shown[0] == shown[1] == [(checkpoint, name, 1, 1) for name in names]
    assert shown[2] == shown[0] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"batch_sizes": (8, 2.5)}, "batch_sizes is 8, 2.5"),
        ({"threads": (1, 0)}, "threads is 1, 0"),
    ],
)
def test_numbers_below_one_are_refused_before_a_file_is_opened(arguments, said):
    with pytest.raises(ArgumentError, match=f"^{said}: give whole numbers of at least 1$"):
        cnsn_cli.bench("never.safetensors", **arguments)


def test_no_file_is_an_error():
    for files in ([], "", ["a.onnx", ""]):
        with pytest.raises(ArgumentError, match=r"^files is empty or has an empty path: give at least one"):
            cnsn_cli.bench(files)
