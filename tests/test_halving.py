"""ASHA's decisions, as functions of what is measured."""

import math
import random

import pytest

from sweeps.halving import Group, expected_lengths, promote

RUNGS = (10, 30, 90)


def group(*scores: float, **changes: object) -> Group:
    """That has these scores at the first rungs."""
    measured = dict(zip(RUNGS, scores, strict=False))
    return Group(**{"scores": measured, "steps": max(measured, default=0), **changes})  # type: ignore[arg-type]


def goals(groups: list[Group], mode: str = "max", is_complete: bool = True) -> list[int]:
    return promote(groups, RUNGS, factor=3, mode=mode, is_complete=is_complete)


def test_at_first_all_go_to_the_first_rung():
    assert goals([group()] * 5) == [10] * 5


def test_one_in_three_of_those_that_arrived_goes_on():
    assert goals([group(0.1), group(0.3), group(0.2), group()]) == [10, 30, 10, 10]
    assert goals([group(0.1), group(0.3), group(0.2), group()], mode="min") == [30, 10, 10, 10]
    assert goals([group(0.1), group(0.3), group(), group()]) == [10] * 4, "two are too few to tell"


def test_of_few_settings_the_best_goes_on_when_all_have_arrived():
    assert goals([group(0.1), group(0.3)]) == [10, 30]
    assert goals([group(0.1), group(0.3, 0.4)]) == [10, 90]
    assert goals([group(0.1), group(0.3)], is_complete=False) == [10, 10]


def test_who_has_gone_on_stays_though_better_ones_arrive_later():
    early = group(0.3, steps=12)
    assert goals([group(0.1), early, group(0.2), group(0.5), group(0.4)]) == [10, 30, 10, 30, 10]


def test_a_setting_with_a_failed_trial_or_without_the_metric_never_goes_on_before_others():
    failed, unmeasured = group(0.9, has_failed=True), group(math.nan)
    assert goals([failed, group(0.1), unmeasured]) == [10, 30, 10]
    assert goals([failed, failed]) == [10, 10], "it is over"


def test_a_setting_that_was_stopped_for_good_is_not_started_again():
    assert goals([group(0.9, is_closed=True), group(0.1), group(0.2)]) == [10, 10, 10]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_order_one_setting_finishes_and_the_best_at_the_first_rung_goes_on(seed: int):
    """Plays a whole search with settings whose order never changes."""
    order = random.Random(seed)
    qualities = [order.random() for _ in range(order.randint(1, 14))]
    groups, taken = [group() for _ in qualities], 0
    while True:
        allowed = goals(groups)
        waiting = [i for i, (goal, each) in enumerate(zip(allowed, groups, strict=True)) if goal not in each.scores]
        if not waiting:
            break
        chosen = order.choice(waiting)
        taken += allowed[chosen] - groups[chosen].steps
        scores = {**groups[chosen].scores, allowed[chosen]: qualities[chosen]}
        groups[chosen] = Group(scores=scores, steps=allowed[chosen])
    finished = [i for i, each in enumerate(groups) if RUNGS[-1] in each.scores]
    assert qualities.index(max(qualities)) in finished
    assert taken < 0.75 * len(qualities) * RUNGS[-1] or len(qualities) <= 2


def test_expected_lengths_are_those_of_successive_halving():
    assert expected_lengths(9, RUNGS, 3) == [90, 30, 30, 10, 10, 10, 10, 10, 10]
    assert expected_lengths(1, RUNGS, 3) == [90]
    assert expected_lengths(2, RUNGS, 3) == [90, 10]
