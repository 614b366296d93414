"""Choosing a model by limits: MACs, bytes and latency that a device allows, accuracy that a use needs.

`deploy.detach` and `cnsn mac` call it. It sees figures only, and does not know files or networks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from cnsn_cli.errors import BudgetError

Quantity = Literal["macs", "bytes", "latency", "accuracy"]
Budget = Mapping[Quantity, float]
WORDS: dict[Quantity, Callable[[float], str]] = {
    "macs": lambda macs: f"{macs:,.0f} MACs",
    "bytes": lambda size: f"{size:,.0f} bytes",
    "latency": lambda seconds: f"{seconds * 1e3:,.3g} ms",
    "accuracy": lambda share: f"{share:.2%} accuracy",
}


class Candidate(NamedTuple):
    """A model and its figures. A figure is None if it is unknown or was not asked for.

    `macs` are for one image, `bytes` those of the tensors. `accuracy` is 0..1, `latency` in seconds.
    """

    name: str
    macs: int
    bytes: int
    accuracy: float | None = None
    latency: float | None = None


class Choice(NamedTuple):
    """The name of the chosen model, and the reason in one sentence."""

    name: str
    reason: str


def choose(candidates: Sequence[Candidate], budget: Budget) -> Choice:
    """The most accurate candidate within the budget.

    In a budget, accuracy has a lower limit, every other quantity an upper limit. If only accuracy is limited,
    the choice is the candidate with fewest MACs; if an accuracy is unknown, the one with most MACs. Raises
    BudgetError if no candidate fits; the message names the one that comes nearest.
    """
    fitting = [candidate for candidate in candidates if _excess(candidate, budget) <= 1]
    limits = " and ".join(
        f"{_bound(quantity)} {WORDS[quantity](limit)}" for quantity, limit in budget.items()
    )
    if not fitting:
        nearest = min(candidates, key=lambda candidate: _excess(candidate, budget))
        raise BudgetError(
            f"no model has {limits}: {nearest.name} comes nearest, with {_figures(nearest, budget)}"
        )
    best, merit = _best(fitting, budget)
    among = f"the {merit} of the {len(fitting)} models" if fitting[1:] else "the only model"
    return Choice(best.name, f"{best.name} is {among} with {limits}: it has {_figures(best, budget)}")


def _best(fitting: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str]:
    if set(budget) == {"accuracy"}:
        return min(fitting, key=lambda candidate: candidate.macs), "smallest"
    if any(candidate.accuracy is None for candidate in fitting):
        return max(fitting, key=lambda candidate: candidate.macs), "largest"
    return max(fitting, key=lambda candidate: (candidate.accuracy or 0.0, -candidate.macs)), "most accurate"


def _excess(candidate: Candidate, budget: Budget) -> float:
    """The largest factor by which a candidate exceeds a limit; at most 1 if it keeps all limits."""
    return max(_factor(quantity, getattr(candidate, quantity), limit) for quantity, limit in budget.items())


def _factor(quantity: Quantity, value: float | None, limit: float) -> float:
    if value is None:
        return math.inf
    high, low = (limit, value) if quantity == "accuracy" else (value, limit)
    return high / low if low else math.inf if high else 1.0


def _bound(quantity: Quantity) -> str:
    return "at least" if quantity == "accuracy" else "at most"


def _figures(candidate: Candidate, budget: Budget) -> str:
    """The limited quantities of a candidate as text, and its accuracy if it is known."""
    quantities: dict[Quantity, None] = dict.fromkeys((*budget, "accuracy"))
    values = {quantity: getattr(candidate, quantity) for quantity in quantities}
    return ", ".join(
        f"unknown {quantity}" if value is None else WORDS[quantity](value)
        for quantity, value in values.items()
        if value is not None or quantity in budget
    )
