"""Millions of broken checkpoints: bytes and JSON of a correct checkpoint, changed at random."""

import copy
import json
import random
import struct
from typing import Any

from cnsn_cli.training.resume_state import text_digest

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 64, 1024, 10**9, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**400,
    0.5, 1e308, float("nan"), float("inf"), "", "x" * 5000, "\x1b[31m", "[red]", "\ud800", "\u202e", "名",
    [], {}, [[]], [0], [None], [2**40] * 4, {"": {}}, [0] * 3000, json.loads("[" * 200 + "]" * 200),
    "F32", "F16", "I64", "BOOL", "base", "submodel0", "submodel1", "network", "detached", "private", "shared",
    "units.0.0.weight", "narrow", "blocks", "0.5", "__metadata__", "cnsn", "tiny:width=1e9",
    "tiny:width=2**40", "tiny:depth=0", "tiny:width=1000000000", "tiny:width=[[[[", "vgg11:width=1e9",
    "os:system",
)  # fmt: skip


class Mutator:
    """Makes broken versions of the checkpoint `original`; the same `seed` gives the same versions."""

    def __init__(self, original: bytes, seed: int) -> None:
        (length,) = struct.unpack("<Q", original[:8])
        self.original = original
        self.header, self.tensors = original[8 : 8 + length], original[8 + length :]
        self.random = random.Random(seed)

    def __call__(self) -> bytes:
        kinds = (self._any_bytes, self._header_bytes, self._length, self._header_json, self._metadata_json)
        return self.random.choices(kinds, (2, 2, 1, 3, 3))[0]()

    def _any_bytes(self) -> bytes:
        return self._changed(self.original)

    def _header_bytes(self) -> bytes:
        return _file(self._changed(self.header), self.tensors)

    def _length(self) -> bytes:
        odd = (
            0,
            1,
            2,
            8,
            len(self.header) - 1,
            len(self.header) + 1,
            len(self.original),
            10**8,
            2**63,
            2**64 - 1,
        )
        return struct.pack("<Q", self.random.choice(odd)) + self.original[8:]

    def _header_json(self) -> bytes:
        content = json.loads(self.header)
        for _ in range(self.random.randint(1, 2)):
            self._change(content)
        return _file(json.dumps(content).encode(), self.tensors)

    def _metadata_json(self) -> bytes:
        content = json.loads(self.header)
        key = next(iter(content["__metadata__"]))
        seal, brace, text = content["__metadata__"][key].partition("{")  # a digest, for the state of a run
        metadata = json.loads(brace + text)
        for _ in range(self.random.randint(1, 2)):
            self._change(metadata)
        text = json.dumps(metadata)
        content["__metadata__"][key] = f"{text_digest(text)} {text}" if seal else text
        return _file(json.dumps(content).encode(), self.tensors)

    def _changed(self, data: bytes) -> bytes:
        """`data` with a change: a bit flipped, a piece replaced, removed or repeated, the end cut off."""
        draw = self.random
        place, size = draw.randrange(len(data)), draw.choice((1, 1, 2, 8, 100))
        before, piece, after = data[:place], data[place : place + size], data[place + size :]
        new = draw.choice((
            bytes([piece[0] ^ 1 << draw.randrange(8)]) + piece[1:], draw.randbytes(len(piece)), b"",
            piece * 2, b"[" * 500, b"\xff" * len(piece), b"9" * 30, b'"', b",", b"\\ud800",
        ))  # fmt: skip
        return before + new + (b"" if draw.random() < 0.1 else after)

    def _change(self, content: Any) -> None:
        """Replace, remove, rename or copy something in a tree of JSON."""
        draw = self.random
        while isinstance(content, dict | list) and content:
            key = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
            inner = content[key]
            if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
                content = inner
                continue
            self._change_item(content, key)
            return

    def _change_item(self, content: Any, key: Any) -> None:
        draw = self.random
        action = draw.randrange(10)
        if action == 0:
            del content[key]
        elif action == 1 and isinstance(content, dict):
            name = draw.choice([odd for odd in ODD if isinstance(odd, str)])
            content[name] = content.pop(key)
        elif action == 2:
            other = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
            content[key] = copy.deepcopy(content[other])
        elif action == 3 and type(content[key]) is int:
            content[key] += draw.choice((-1, 1, 4))
        else:
            content[key] = copy.deepcopy(draw.choice(ODD))


def _file(header: bytes, tensors: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + tensors
