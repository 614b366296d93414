"""Records the operators that a function of tensors runs, and runs them again, as a captured CUDA graph does.

Tensors that existed before are read and changed where they are; all other tensors are made again. Python
code does not run again: a number that it computed is frozen.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

QUESTIONS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Recording(TorchDispatchMode):
    """The operators of what runs in this context. `questions` are those whose values Python code can see."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    @property
    def questions(self) -> set[str]:
        return {operator._schema.name for operator, *_ in self.calls} & QUESTIONS

    @torch.no_grad()
    def replay(self) -> None:
        made: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, Tensor) else value

        for operator, args, kwargs, before in self.calls:
            again = operator(*tree_map(now, args), **tree_map(now, kwargs))
            for old, new in zip(tree_flatten(before)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor):
                    made[id(old)] = new
