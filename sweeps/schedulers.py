"""How a sweep spends its steps: every trial to its end, ASHA, or population-based training. As a grid file says it.

scheduler:
  kind: asha                # early stopping of settings
  budget: 200               # steps of a trial that is never stopped: max_steps of all
  grace_period: 22          # steps at which settings are compared first
  reduction_factor: 3       # one in three goes on; the next comparison is after three times as many steps

scheduler:
  kind: pbt
  budget: 200
  perturbation_interval: 50
  quantile: 0.25            # that share of the settings goes on from a copy of one of the best
  resample: 0.25            # probability of a new value instead of one that is 0.8 or 1.2 times the copied
  ranges:
    guidance.guidance_scale: {min: 2, max: 20}
  seed: 0
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import corrdream
from sweeps.parameters import Distribution, GridError, parse_distribution

KINDS = ("fifo", "asha", "pbt")


@dataclass(frozen=True, kw_only=True)
class Fifo:
    """Every trial runs to its end, in the order of the plan."""

    budget: None = None


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving (arXiv:1810.05934) of settings."""

    budget: int
    grace_period: int = 1
    reduction_factor: int = 3

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which settings are compared, and the budget; the last stretch is the longest."""
        steps, rungs = self.grace_period, []
        while steps * self.reduction_factor <= self.budget:
            rungs.append(steps)
            steps *= self.reduction_factor
        return *rungs, self.budget


@dataclass(frozen=True, kw_only=True)
class Pbt:
    """Population-based training (arXiv:1711.09846) of settings."""

    budget: int
    perturbation_interval: int
    ranges: Mapping[str, Distribution] = field(default_factory=dict)
    quantile: float = 0.25
    resample: float = 0.25
    seed: int = 0

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which settings are copied and changed, and the budget."""
        return *range(self.perturbation_interval, self.budget, self.perturbation_interval), self.budget


Scheduler = Fifo | Asha | Pbt
KEYS = {
    "fifo": ("kind",),
    "asha": ("kind", "budget", "grace_period", "reduction_factor"),
    "pbt": ("kind", "budget", "perturbation_interval", "ranges", "quantile", "resample", "seed"),
}


def parse_scheduler(plain: Any, where: str, *, kind: str | None = None, budget: int | None = None) -> Scheduler:
    """What the section says; `kind` and `budget` of the command line come before it."""
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        raise GridError(f"{where} must map kind, budget and so on to values, got {corrdream.shown(plain)}.")
    own = plain.get("kind", "fifo")
    if own not in KINDS:
        raise GridError(f"{where}.kind must be one of {', '.join(KINDS)}, got {corrdream.shown(own)}.")
    chosen = kind or own
    for key in plain:
        if key not in KEYS[own]:
            raise GridError(f"{where}: {corrdream.explain_unknown(str(key), plain[key], KEYS[own], own)}")
    if chosen == "fifo":
        return Fifo()
    if chosen != own:
        plain = {"kind": chosen, **{key: plain[key] for key in KEYS[chosen] if key in plain and key != "kind"}}
    steps = budget if budget is not None else plain.get("budget")
    if steps is None:
        raise GridError(f"{where}: {chosen} needs a budget in steps; write budget: 200, or give --max-steps.")
    return _parse_asha(plain, steps, where) if chosen == "asha" else _parse_pbt(plain, steps, where)


def scheduler_to_plain(scheduler: Scheduler) -> dict[str, Any]:
    """What `parse_scheduler` reads."""
    match scheduler:
        case Fifo():
            return {"kind": "fifo"}
        case Asha():
            return {"kind": "asha", **vars(scheduler)}
        case Pbt():
            ranges = {key: distribution.to_plain() for key, distribution in scheduler.ranges.items()}
            return {"kind": "pbt", **vars(scheduler), "ranges": ranges}
        case _:
            assert_never(scheduler)


def _parse_asha(plain: Mapping[str, Any], budget: Any, where: str) -> Asha:
    asha = Asha(
        budget=_whole(budget, 2, f"{where}.budget"),
        grace_period=_whole(plain.get("grace_period", 1), 1, f"{where}.grace_period"),
        reduction_factor=_whole(plain.get("reduction_factor", 3), 2, f"{where}.reduction_factor"),
    )
    if asha.grace_period * asha.reduction_factor > asha.budget:
        raise GridError(
            f"{where}: grace_period x reduction_factor must not exceed the budget of {asha.budget} steps, got"
            f" {asha.grace_period} x {asha.reduction_factor}."
        )
    return asha


def _parse_pbt(plain: Mapping[str, Any], budget: Any, where: str) -> Pbt:
    ranges = plain.get("ranges")
    if not isinstance(ranges, dict) or not ranges:
        raise GridError(
            f"{where}.ranges must map configuration keys to distributions, as guidance.guidance_scale:"
            f" {{min: 2, max: 20}}, got {corrdream.shown(ranges)}."
        )
    pbt = Pbt(
        budget=_whole(budget, 2, f"{where}.budget"),
        perturbation_interval=_whole(plain.get("perturbation_interval"), 1, f"{where}.perturbation_interval"),
        ranges={str(key): _parse_range(value, f"{where}.ranges.{key}") for key, value in ranges.items()},
        quantile=_share(plain.get("quantile", 0.25), 0.5, f"{where}.quantile"),
        resample=_share(plain.get("resample", 0.25), 1.0, f"{where}.resample"),
        seed=_whole(plain.get("seed", 0), 0, f"{where}.seed"),
    )
    if pbt.perturbation_interval >= pbt.budget:
        raise GridError(
            f"{where}.perturbation_interval must be below the budget of {pbt.budget} steps,"
            f" got {pbt.perturbation_interval}."
        )
    return pbt


def _parse_range(plain: Any, where: str) -> Distribution:
    if not isinstance(plain, dict):
        raise GridError(f"{where} must be a distribution such as {{min: 2, max: 20}}, got {corrdream.shown(plain)}.")
    if "distribution" not in plain:  # whole bounds of a real number are not meant to make it whole
        plain = {"distribution": "uniform", **plain}
    return parse_distribution(plain, where)


def _whole(value: Any, low: int, where: str) -> int:
    if type(value) is not int or value < low:
        raise GridError(f"{where} must be a whole number from {low}, got {corrdream.shown(value)}.")
    return value


def _share(value: Any, high: float, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= high:
        raise GridError(f"{where} must be above 0 and at most {high:g}, got {corrdream.shown(value)}.")
    return float(value)
