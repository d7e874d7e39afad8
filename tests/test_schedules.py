"""Schedules as functions of the step, and what is refused."""

import pytest

from corrdream.schedules import Piecewise, Schedule, ScheduleError, Window, value_at

RAMP = Piecewise(steps=[100, 300], values=[10.0, 50.0])
STAIRS = Piecewise(steps=[0, 7000, 12000], values=[50.0, 10.0, 50.0], interpolate="hold")


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (7, 0, 7.0),
        (0.5, 10**9, 0.5),
        (RAMP, 0, 10.0),
        (RAMP, 100, 10.0),
        (RAMP, 150, 20.0),
        (RAMP, 300, 50.0),
        (RAMP, 10**6, 50.0),
        (STAIRS, 0, 50.0),
        (STAIRS, 6999, 50.0),
        (STAIRS, 7000, 10.0),
        (STAIRS, 11999, 10.0),
        (STAIRS, 12000, 50.0),
        (Piecewise(steps=[5], values=[3.0]), 0, 3.0),
        (Piecewise(steps=[5], values=[3.0]), 9, 3.0),
    ],
)
def test_value_at_a_step(schedule: Schedule, step: int, expected: float) -> None:
    value = value_at(schedule, step, horizon=20_000)
    assert value == expected
    assert isinstance(value, float)


def test_progress_counts_in_fractions_of_the_horizon() -> None:
    schedule = Piecewise(progress=[0.0, 0.5], values=[1.0, 0.0])
    for horizon in (20, 1000):
        assert value_at(schedule, 0, horizon) == 1.0
        assert value_at(schedule, horizon // 4, horizon) == 0.5
        assert value_at(schedule, horizon // 2, horizon) == 0.0
        assert value_at(schedule, horizon, horizon) == 0.0


def test_steps_ignore_the_horizon() -> None:
    assert value_at(RAMP, 150, horizon=1) == value_at(RAMP, 150, horizon=10**6)


def test_ramp_stays_between_its_values_and_never_turns_back() -> None:
    values = [value_at(RAMP, step, horizon=1) for step in range(400)]
    assert values == sorted(values)
    assert min(values) == 10.0
    assert max(values) == 50.0


def test_ramp_equals_the_published_annealing_formula() -> None:
    """v0 + (v1 - v0) clamp((step - s0) / (s1 - s0), 0, 1), as threestudio's C() does for [s0, v0, v1, s1]."""
    for step in range(400):
        expected = 10.0 + 40.0 * min(max((step - 100) / 200, 0.0), 1.0)
        assert value_at(RAMP, step, horizon=1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        (Window(steps=(3000, 7000)), [3000, 6999], [2999, 7000]),
        (Window(progress=(0.25, 0.5)), [50, 99], [49, 100]),
        (Window(steps=(5, 5)), [], [4, 5, 6]),
        (Window(progress=(0.0, 1.0)), [0, 199], [200]),
    ],
)
def test_window_holds_its_start_and_not_its_end(window: Window, inside: list[int], outside: list[int]) -> None:
    window.check("key")
    assert all(window.contains(step, horizon=200) for step in inside)
    assert not any(window.contains(step, horizon=200) for step in outside)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Piecewise(values=[1.0]), "exactly one of steps and progress"),
        (Piecewise(values=[1.0], steps=[0], progress=[0.0]), "exactly one of steps and progress"),
        (Piecewise(values=[1.0, 2.0], steps=[0]), "as many values as knots"),
        (Piecewise(values=[], steps=[]), "at least one"),
        (Piecewise(values=[1.0, 2.0], steps=[5, 5]), "increasing knots"),
        (Piecewise(values=[1.0, 2.0], progress=[0.6, 0.5]), "increasing knots"),
        (Piecewise(values=[1.0, 2.0], progress=[0.0, 1.5]), r"progress must lie in \[0, 1\]"),
        (Window(), "exactly one of steps and progress"),
        (Window(steps=(0, 5), progress=(0.0, 0.5)), "exactly one of steps and progress"),
        (Window(steps=(6, 5)), "0 <= start <= end"),
        (Window(progress=(-0.1, 0.5)), "0 <= start <= end"),
        (Window(progress=(0.0, 2.0)), r"progress must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_function_of_the_step_is_refused_by_its_key(schedule: Piecewise | Window, message: str) -> None:
    with pytest.raises(ScheduleError, match=rf"section\.name.*{message}"):
        schedule.check("section.name")


@pytest.mark.parametrize("schedule", [RAMP, STAIRS, Piecewise(progress=[0.0, 1.0], values=[1.0, 2.0])])
def test_well_formed_schedules_pass(schedule: Piecewise) -> None:
    schedule.check("section.name")
