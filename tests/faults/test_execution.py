"""No command executes code from a file, whether the file is given as weights, state, recipe or image."""

import io
import itertools
import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cnsn_cli.training.resume_state import read_state
from tests.conftest import rewrite, write_unchecked
from tests.faults.forked import run
from tests.faults.test_mutations import many


class Evil:
    """Runs a command of the shell when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.canary}",)


def payloads(canary: Path) -> list[str]:
    call = f"__import__('os').system('touch {canary}')"
    return [
        call, f"vgg11:width={call}", f"tiny:width={call}", f"$(touch {canary})", f"; touch {canary} #",
        "os:system", f"subprocess:run:['touch','{canary}']", "tests.faults.test_execution:Evil",
        f"!!python/object/apply:{call}", "http://127.0.0.1:9/x", "file:///etc/passwd", "../../../etc/passwd",
        f"|touch {canary}", "{0.__class__}",
    ]  # fmt: skip


def other_files(canary: Path) -> dict[str, bytes]:
    """Files that would make other programs execute code."""
    evil, call = Evil(canary), payloads(canary)[0]
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n({canary}) (w) file\n"
    stream, legacy, array, arrays, archive = (io.BytesIO() for _ in range(5))
    torch.save(evil, stream)
    torch.save(evil, legacy, _use_new_zipfile_serialization=False)
    np.save(array, np.array([evil], dtype=object), allow_pickle=True)
    np.savez(arrays, x=np.array([evil], dtype=object))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", call)
    return {
        **{f"pickle {protocol}": pickle.dumps(evil, protocol) for protocol in range(6)},
        "torch": stream.getvalue(), "legacy torch": legacy.getvalue(), "numpy": array.getvalue(),
        "arrays": arrays.getvalue(), "zip": archive.getvalue(), "python": call.encode(),
        "shell": f"#!/bin/sh\ntouch {canary}\n".encode(),
        "yaml": f"!!python/object/apply:os.system ['touch {canary}']\n".encode(),
        "toml": f'extends = "{call}"\n'.encode(),
        "postscript": postscript.encode(),
        "svg": f'<svg><script>{call}</script><image href="file://{canary}"/></svg>'.encode(),
        "graphics": f"push graphic-context\nfill 'url(https://x\"|touch {canary}\")'\n".encode(),
    }  # fmt: skip


def checkpoints(sound: Path, canary: Path, folder: Path) -> list[Path]:
    """Correct weights, in whose metadata each text is replaced by each payload."""
    fields = (
        lambda c, m, text: m.update(arch=text),
        lambda c, m, text: m.update(data=text),
        lambda c, m, text: m.update(provider=text, versions={text: text}, recipe={text: text}),
        lambda c, m, text: m["models"][1].update(name=text),
        lambda c, m, text: m["task"].update(class_names=[text, "b"]),
        lambda c, m, text: c.update({text: c.pop("head.3.bias")}),
        lambda c, m, text: c["__metadata__"].update({text: text}),
    )
    paths = []
    for number, (change, text) in enumerate(itertools.product(fields, payloads(canary))):
        paths.append(folder / f"{number}.safetensors")
        paths[-1].write_bytes(sound.read_bytes())
        rewrite(paths[-1], lambda c, m, change=change, text=text: change(c, m, text))
    return paths


def states(sound: Path, canary: Path, folder: Path) -> list[Path]:
    """States of runs, in whose request each text is replaced by each payload; their digests are right."""
    state, tensors = read_state(sound), load_file(sound)
    lines = json.loads(state.metrics)
    runs = []
    for number, text in enumerate(payloads(canary)):
        for field in ("arch", "data", "data_dir", "metrics", "environment"):
            request = replace(
                state.request, **({field: text} if field in ("arch", "data", "data_dir") else {})
            )
            changes = {"request": request}
            if field == "metrics":
                changes["metrics"] = json.dumps({**lines, "selection": text}) + "\n"
            if field == "environment":
                changes["environment"] = {text: text}
            runs.append(folder / f"run{number}{field}")
            runs[-1].mkdir()
            write_unchecked(runs[-1] / "state.safetensors", tensors, state.model_copy(update=changes))
    return runs


def commands_on(path: Path, data: Path, out: Path) -> list[list[object]]:
    """Every command and option that takes a file, each with files of the right kind and of wrong kinds."""
    train = ["train", "--arch", "tiny", "--exits", "1", "--out", out / "run", "--force", "--epochs", "1"]
    run_folder, images = out / "resumed", out / "images"
    shutil.copytree(data, images, dirs_exist_ok=True)
    run_folder.mkdir(exist_ok=True)
    shutil.copy(path, run_folder / "state.safetensors")
    shutil.copy(path, images / "train" / "a" / "x.png")
    shutil.copy(path, out / "x.onnx")
    return [
        ["info", out / "x.onnx"],
        ["predict", out / "x.onnx", data],
        ["predict", path, data],
        ["predict", path, path],
        ["card", path, "--force", "-o", out / "card"],
        ["plot", path, "-o", out / "plot.png"],
        ["info", path],
        ["eval", path, "--per-class"],
        ["mac", path],
        ["detach", path, "--all", "--force", "-o", out / "all"],
        ["detach", path, "--submodel", "0", "--force", "--fold-bn", "-o", out / "small.safetensors"],
        ["archs", path],
        ["train", "--resume", run_folder],
        [*train, "--recipe", path, "--data", data],
        [*train, "--recipe", "quick", "--data", path],
        [*train, "--recipe", "quick", "--batch-size", "4", "--data", images],
        [*train, "--recipe", "quick", "--batch-size", "4", "--data", images, "--skip-bad"],
    ]


@pytest.fixture
def warm(tiny: dict[str, Path]) -> dict[str, Path]:
    """Import all libraries before the hook is installed, because imports execute code."""
    import matplotlib.font_manager  # noqa: F401
    import onnxruntime  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torchvision.datasets  # noqa: F401

    return tiny


@many(40, 1)
def test_hostile_files_and_commands(warm, tmp_path, figures, count):
    """Runs one of `count` pairs of a file and a command."""
    canary, folder, out = tmp_path / "canary", tmp_path / "hostile", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    files = checkpoints(warm["network"], canary, folder)
    for name, content in other_files(canary).items():
        files.append(folder / f"{name}.safetensors")
        files[-1].write_bytes(content)
    runs = states(warm["state"], canary, folder)
    data = warm["network"].parents[1] / "data"
    pairs = 0
    for path in files:
        for command in commands_on(path, data, out):
            if pairs % count == 0:
                check(command, canary)
            pairs += 1
    for run_folder in runs[::count]:
        check(["train", "--resume", run_folder], canary)
        check(["train", "--resume", run_folder, "--override"], canary)
    checked = len(range(0, pairs, count)) + 2 * len(runs[::count])
    figures(f"{len(files) + len(runs)} files, {checked:,} commands on them, 0 ran code")


def check(command: list[object], canary: Path) -> None:
    ended = run(command)
    assert "EXECUTED" not in ended.err, (command, ended)
    assert "Traceback" not in ended.err, (command, ended)
    assert ended.code in (0, 1, 2), (command, ended)
    assert not canary.exists(), command


def test_the_hook_sees_code_that_is_run(tmp_path, monkeypatch):
    """The other tests rely on the hook: it must report code that is executed."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "canary")))
    monkeypatch.setattr("cnsn_cli.files.model_file.read_info", lambda path: pickle.loads(path.read_bytes()))
    ended = run(["info", path])
    assert "EXECUTED pickle.find_class" in ended.err
    assert "EXECUTED os.system" in ended.err
    assert (tmp_path / "canary").exists()
