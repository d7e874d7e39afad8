"""Means over prompts and seeds, with bootstrap intervals that respect how the runs are paired.

A metric of one setting is a table, prompts x seeds, with NaN where a run is missing. Prompts differ far more than
seeds, and every setting ran with the same prompts and seeds, so one bootstrap draw takes prompts with replacement, then
seeds within each, and takes the same ones for every setting.

Of many settings some differ from the default by chance: one interval in twenty leaves out zero where nothing differs. A
difference is clear if a wider interval does, too: one at 1 - 0.05 / k where k settings are compared (Bonferroni), of
each metric by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]  # [settings, prompts, seeds]

MIN_PAIRS = 5  # prompt-seed pairs below which an interval would pretend to know more than it does
NUM_DRAWS = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `count` prompt-seed pairs, and its interval where there are enough of them.

    Of a difference: whether it is clear although others were looked at.
    """

    count: int
    mean: float
    low: float | None = None
    high: float | None = None
    is_clear: bool = False


def estimate_means(table: Table, *, seed: int = 0) -> list[Estimate]:
    """The mean of every setting over its own pairs."""
    return [_estimate(values, _draws(table, seed)) for values in table]


def estimate_differences(table: Table, baseline: int, *, seed: int = 0) -> list[Estimate]:
    """How every setting differs from setting `baseline`, over the pairs that both have."""
    draws, compared = _draws(table, seed), max(len(table) - 1, 1)
    return [_estimate(values - table[baseline], draws, compared) for values in table]


def best_setting(estimates: Sequence[Estimate], mode: str) -> int | None:
    """Index of the setting with the best mean; None if none has one."""
    known = [index for index, estimate in enumerate(estimates) if estimate.count]
    sign = 1 if mode == "max" else -1
    return max(known, key=lambda index: sign * estimates[index].mean, default=None)


def _draws(table: Table, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompt [D P 1] and seed [D P S] indices of every bootstrap draw."""
    _, num_prompts, num_seeds = table.shape
    generator = np.random.default_rng(seed)
    prompts = generator.integers(num_prompts, size=(NUM_DRAWS, num_prompts, 1))
    seeds = generator.integers(num_seeds, size=(NUM_DRAWS, num_prompts, num_seeds))
    return prompts, seeds


def _estimate(
    values: NDArray[np.float64], draws: tuple[NDArray[np.int64], NDArray[np.int64]], compared: int = 0
) -> Estimate:
    known = np.isfinite(values)
    count = int(known.sum())
    if not count:
        return Estimate(0, float("nan"))
    mean = float(values[known].mean())
    if count < MIN_PAIRS:
        return Estimate(count, mean)
    drawn, present = np.where(known, values, 0.0)[draws], known[draws]
    totals = present.sum(axis=(1, 2))
    means = drawn.sum(axis=(1, 2))[totals > 0] / totals[totals > 0]
    low, high = _interval(means, 1 - LEVEL)
    is_clear = False
    if compared:
        lowest, highest = _interval(means, (1 - LEVEL) / compared)
        is_clear = lowest > 0 or highest < 0
    return Estimate(count, mean, low, high, is_clear)


def _interval(means: NDArray[np.float64], error: float) -> tuple[float, float]:
    """The range that leaves out that share of the draws."""
    low, high = np.quantile(means, [error / 2, 1 - error / 2])
    return float(low), float(high)
