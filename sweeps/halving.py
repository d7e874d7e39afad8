"""Asynchronous successive halving (ASHA, arXiv:1810.05934) of settings, as functions of what is measured so far.

What is compared is the setting, by its mean over all prompts and seeds, and all of its trials go on or none. Prompts
differ far more than settings do, so trials that were compared one by one would be stopped for their prompt; trials that
were compared within a prompt would leave settings that ran with different prompts, whose means cannot be compared any
more. As it is, a rung compares like with like, and whatever reaches the end has a full row for the paired statistics.

Nothing is stopped while it runs: a trial pauses at a rung, with its checkpoint, and goes on if its setting is among the
best there. Where all settings are known, lower rungs come first, so that a place is never idle and yet a decision knows
as much as it can. Decisions are functions of files, so another process takes the same ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Group:
    """The trials of one setting."""

    scores: Mapping[int, float]  # means of the metric at those steps that all of them have reached; NaN without one
    steps: int = 0  # of the trial that has taken most
    has_failed: bool = False  # one of them has
    is_closed: bool = False  # stopped early, for good


def promote(groups: Sequence[Group], rungs: Sequence[int], *, factor: int, mode: str, is_complete: bool) -> list[int]:
    """How many steps each group may take by now; `is_complete` says that no more groups will come.

    Of those that arrived at a rung the best 1 / `factor` go on, and at least one when no other can arrive there any
    more. Who has gone on already stays, even if better ones come later.
    """
    goals = [rungs[0]] * len(groups)
    members = list(range(len(groups)))
    is_settled = is_complete
    for rung, following in pairwise(rungs):
        arrived = [i for i in members if rung in groups[i].scores or groups[i].has_failed or groups[i].is_closed]
        is_settled = is_settled and len(arrived) == len(members)
        quota = max(len(arrived) // factor, 1 if is_settled else 0)
        ranked = sorted(arrived, key=lambda i: (*_rank(groups[i], rung, mode), i))
        best = {i for i in ranked[:quota] if not groups[i].has_failed and not groups[i].is_closed}
        members = [i for i in arrived if i in best or groups[i].steps > rung]
        for i in members:
            goals[i] = following
    return goals


def _rank(group: Group, rung: int, mode: str) -> tuple[bool, bool, float]:
    """Best first; those without the metric after all others, and those with a failed trial last."""
    score = group.scores.get(rung, math.nan)
    return group.has_failed, math.isnan(score), 0.0 if math.isnan(score) else (-score if mode == "max" else score)


def expected_lengths(num_groups: int, rungs: Sequence[int], factor: int) -> list[int]:
    """Steps that each of so many groups will take if no decision is taken early, longest first."""
    lengths: list[int] = []
    counts = [max(num_groups // factor**level, 1) for level in range(len(rungs))]
    for rung, count in zip(reversed(rungs), reversed(counts), strict=True):
        lengths += [rung] * (min(count, num_groups) - len(lengths))
    return lengths
