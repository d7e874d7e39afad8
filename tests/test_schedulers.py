"""The scheduler section of a grid file."""

from typing import Any

import pytest

from sweeps.parameters import Distribution, GridError
from sweeps.schedulers import Asha, Fifo, Pbt, parse_scheduler, scheduler_to_plain

ASHA = {"kind": "asha", "budget": 200, "grace_period": 22, "reduction_factor": 3}
PBT = {"kind": "pbt", "budget": 200, "perturbation_interval": 60, "ranges": {"a.b": {"min": 2, "max": 20}}}


def test_rungs_grow_by_the_reduction_factor_and_end_at_the_budget():
    assert Asha(budget=200, grace_period=22, reduction_factor=3).rungs == (22, 66, 200), "not 198, just before the end"
    assert Asha(budget=200, grace_period=25, reduction_factor=2).rungs == (25, 50, 100, 200)
    assert Asha(budget=18, grace_period=2, reduction_factor=3).rungs == (2, 6, 18)


def test_perturbations_are_evenly_spaced_and_the_last_stretch_may_be_short():
    pbt = parse_scheduler(PBT, "here")
    assert isinstance(pbt, Pbt)
    assert pbt.rungs == (60, 120, 180, 200)


def test_ranges_hold_real_numbers_unless_they_say_otherwise():
    pbt = parse_scheduler(PBT, "here")
    assert isinstance(pbt, Pbt)
    assert pbt.ranges == {"a.b": Distribution(kind="uniform", low=2, high=20)}


@pytest.mark.parametrize("plain", [None, {}, {"kind": "fifo"}, ASHA, PBT])
def test_what_is_written_is_read_back(plain: Any):
    scheduler = parse_scheduler(plain, "here")
    assert parse_scheduler(scheduler_to_plain(scheduler), "here") == scheduler


def test_the_command_line_comes_before_the_section():
    assert parse_scheduler(ASHA, "here", kind="fifo") == Fifo()
    assert parse_scheduler(ASHA, "here", budget=90) == Asha(budget=90, grace_period=22, reduction_factor=3)
    assert parse_scheduler(None, "here", kind="asha", budget=90) == Asha(budget=90)
    assert parse_scheduler(PBT, "here", kind="asha") == Asha(budget=200)


BAD = {
    "unknown kind": ({"kind": "hyperband"}, "here.kind must be one of fifo, asha, pbt, got 'hyperband'"),
    "no map": (["asha"], "here must map"),
    "unknown key": (ASHA | {"eta": 2}, "eta=2: there is no such key; asha has kind, budget"),
    "no budget": ({"kind": "asha"}, "asha needs a budget in steps"),
    "budget that is no number": (ASHA | {"budget": "long"}, "here.budget must be a whole number from 2, got 'long'"),
    "a rung beyond the budget": (ASHA | {"grace_period": 67}, "must not exceed the budget of 200 steps, got 67 x 3"),
    "no reduction": (ASHA | {"reduction_factor": 1}, "reduction_factor must be a whole number from 2"),
    "no interval": ({**PBT, "perturbation_interval": None}, "perturbation_interval must be a whole number from 1"),
    "no ranges": ({**PBT, "ranges": {}}, "here.ranges must map"),
    "range that is a list": ({**PBT, "ranges": {"a.b": [1, 2]}}, "here.ranges.a.b must be a distribution"),
    "more than half": ({**PBT, "quantile": 0.6}, "quantile must be above 0 and at most 0.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_section_is_refused_in_one_line(case: str):
    plain, message = BAD[case]
    with pytest.raises(GridError) as caught:
        parse_scheduler(plain, "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
