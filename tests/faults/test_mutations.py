"""Mutated checkpoints end in a one-line error: no traceback, no endless work, not much memory."""

import itertools
import random
import resource
import time

import pytest

from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import CheckpointError, CnsnError
from cnsn_cli.files.checkpoint import load, read_tensors
from cnsn_cli.files.tensor_file import TensorFile, read_header
from cnsn_cli.training.resume_state import read_state
from tests.conftest import rewrite
from tests.faults.forked import run
from tests.faults.mutations import Mutator

MEMORY = 200 * 2**20  # bytes
SECONDS = 10  # of the processor; a file that takes longer hangs


def many(short: int, long: int) -> pytest.MarkDecorator:
    """A decorator: a short version of a test for `make test`, a long version for `make faults`."""
    counts = [short, pytest.param(long, marks=pytest.mark.faults)]
    return pytest.mark.parametrize("count", counts)


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@many(1_500, 1_000_000)
def test_through_the_loader(tiny, tmp_path, figures, count):
    path, readers = tmp_path / "broken.safetensors", {"state": read_state}
    mutators = {kind: Mutator(file.read_bytes(), 1) for kind, file in tiny.items()}
    for kind, file in tiny.items():
        readers.setdefault(kind, load)(file)
    before, slowest, refused = peak_memory(), 0.0, 0
    kinds = itertools.cycle(("network", "widths", "detached", "folded", "state"))
    for kind in itertools.islice(kinds, count):
        path.write_bytes(mutators[kind]())
        start = time.process_time()
        try:
            readers[kind](path)
        except CnsnError:
            refused += 1
        except Exception:
            path.rename("broken.safetensors")
            raise
        slowest = max(slowest, time.process_time() - start)
    more = peak_memory() - before
    figures(f"{count:,} files, {refused:,} refused, slowest {slowest:.2f} s, memory +{more / 2**20:.0f} MiB")
    assert refused > 0.7 * count
    assert slowest < SECONDS
    assert more < MEMORY


@many(12, 1_000)
def test_through_the_commands(tiny, tmp_path, figures, count):
    path, small = tmp_path / "broken.safetensors", tmp_path / "small.safetensors"
    mutators = [Mutator(tiny[kind].read_bytes(), 2) for kind in ("network", "widths", "detached", "folded")]
    commands = [
        ["eval", path, "--device", "cpu"],
        ["detach", path, "--submodel", 0, "-o", small, "--force"],
        ["detach", path, "--submodel", 1, "-o", small, "--force"],
        ["detach", path, "--submodel", 0, "-o", small, "--force", "--fold-bn"],
        ["mac", path, "--layers"],
    ]
    most, slowest, codes = 0, 0.0, [0, 0]
    for number in range(count):
        path.write_bytes(mutators[number % 4]())
        for command in commands:
            ended = run(command)
            codes[ended.code] += 1
            assert ended.code == 0 or ended.err.startswith("cnsn: "), ended
            assert ended.err.count("\n") == ended.code, ended
            most, slowest = max(most, ended.memory), max(slowest, ended.seconds)
    figures(
        f"{count:,} files x {len(commands)} commands, {codes[1]:,} refused, slowest {slowest:.2f} s, "
        f"memory +{most / 2**20:.0f} MiB"
    )
    assert slowest < SECONDS
    assert most < MEMORY


@many(150, 10_000)
def test_single_bit_flips_in_tensors(tiny, tmp_path, figures, count):
    """The loader finds every flip; detach finds it if it keeps the tensor."""
    path, small = tmp_path / "flipped.safetensors", tmp_path / "small.safetensors"
    draw, kinds = random.Random(3), ("network", "widths")
    files = [(tiny[kind].read_bytes(), read_header(tiny[kind])) for kind in kinds]
    for number in range(count):
        data, header = files[number % 2]
        place = draw.randrange(header.data_start, len(data))
        flipped = bytes([data[place] ^ 1 << draw.randrange(8)])
        path.write_bytes(data[:place] + flipped + data[place + 1 :])
        with pytest.raises(CheckpointError, match="is damaged: tensor"):
            load(path)
        with pytest.raises(CheckpointError, match="is damaged: tensor"):
            detach(path, _owner(header, place), small)
        assert not small.exists()
    figures(f"{count:,} of {count:,} bit flips found by load and by detach")


def _owner(header, place: int) -> str:
    """A model that keeps the tensor whose bytes are at `place`."""
    (name,) = (
        name for name, entry in header.entries.items() if entry.start <= place - header.data_start < entry.end
    )
    return name.split(".")[1] if name.startswith("submodels.") else "base"


@many(100, 5_000)
def test_single_bit_flips_in_blocks(tiny, tmp_path, figures, count):
    """A narrow model can be detached if, and only if, its own blocks are as they were saved."""
    path, small = tmp_path / "flipped.safetensors", tmp_path / "small.safetensors"
    data, header, draw = tiny["widths"].read_bytes(), read_header(tiny["widths"]), random.Random(5)
    detach(tiny["widths"], "1", small)
    expected, found = small.read_bytes(), 0
    weight = header.entries["units.1.0.weight"]  # 2 x 2 x 3 x 3; its block is 1 x 1 x 3 x 3
    for _ in range(count):
        place = draw.randrange(weight.start, weight.end)
        data_flipped = bytearray(data)
        data_flipped[header.data_start + place] ^= 1 << draw.randrange(8)
        path.write_bytes(data_flipped)
        if place - weight.start < 9 * 4:
            found += 1
            with pytest.raises(CheckpointError, match=r"tensor 'units\.1\.0\.weight' is not as it was saved"):
                detach(path, "1", small, force=True)
        else:
            detach(path, "1", small, force=True)
            narrow, kept = read_header(small), small.read_bytes()[read_header(small).data_start :]
            assert kept == expected[narrow.data_start :]
    figures(f"{found:,} flips in the block found, {count - found:,} outside of it harmless")
    assert 0 < found < count


def read_state_tensors(path):
    with TensorFile(path) as file:
        return read_tensors(file, read_state(path).sha256)


@many(100, 2_000)
def test_single_bit_flips_in_the_state_of_a_run(tiny, tmp_path, figures, count):
    path, draw, data = tmp_path / "flipped.safetensors", random.Random(4), tiny["state"].read_bytes()
    for _ in range(count):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :])
        with pytest.raises(CheckpointError):
            read_state_tensors(path)
    figures(f"{count:,} of {count:,} bit flips found, in tensors and header")


@pytest.mark.parametrize("command", ["eval", "mac"])
def test_a_file_that_claims_the_largest_images(tiny, tmp_path, command):
    path = tmp_path / "large.safetensors"
    usual = run([command, tiny["detached"]])
    path.write_bytes(tiny["detached"].read_bytes())
    rewrite(path, lambda content, metadata: metadata["task"].update(image_size=1024))
    ended = run([command, path])
    assert (usual.code, ended.code) == (0, 0), ended
    assert ended.memory - usual.memory < MEMORY
