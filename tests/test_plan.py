"""Estimates before the sweep, and the line that is shown while it runs."""

from pathlib import Path

import pytest

import corrdream
from sweeps.folders import SweepFolder
from sweeps.locks import SweepError
from sweeps.plan import (
    Machine,
    Measurement,
    check_disk,
    concurrency,
    describe_time,
    estimate_seconds,
    measure,
    this_machine,
    visible_gpus,
)
from sweeps.progress import GRADE_SECONDS, Progress, format_seconds
from tests.sweep_folders import finish_trial, plan_sweep, tiny_overrides

MEASURED = Measurement(seconds_per_step=0.5, start_seconds=4.0, memory_bytes=1e9, checkpoint_bytes=10e6)
MACHINE = Machine(cpus=8, memory_bytes=16_000_000_000, gpus=2)


def fit(machine: Machine = MACHINE, **changes: object) -> int:
    arguments = {"trials": 100, "cpus": 1, "gpus": 0.0, "limit": None, "measured": MEASURED} | changes
    return concurrency(machine, **arguments)  # type: ignore[arg-type]


def test_as_many_trials_at_once_as_cores_and_never_more_than_trials_or_the_limit():
    assert fit() == 8
    assert fit(cpus=3) == 2
    assert fit(trials=5) == 5
    assert fit(limit=3) == 3


def test_memory_and_gpus_bound_what_runs_at_once():
    assert fit(Machine(cpus=64, memory_bytes=8_000_000_000, gpus=0)) == 6  # 85% of 8 GB
    assert fit(Machine(cpus=64, memory_bytes=100_000_000, gpus=0)) == 1, "one is always tried"
    assert fit(gpus=1.0) == 2
    assert fit(gpus=0.25) == 8


def test_a_trial_that_no_machine_part_can_hold_is_refused():
    with pytest.raises(SweepError, match="more than this machine's 8 cores"):
        fit(cpus=9)
    with pytest.raises(SweepError, match="more than this machine's 2 GPUs"):
        fit(gpus=4.0)


def test_time_is_steps_over_places_but_at_least_the_rounds_of_the_longest_trial():
    fixed = estimate_seconds(MEASURED, [], 1)
    expected = 8 / 2 * (100 * 0.5 + GRADE_SECONDS)
    assert estimate_seconds(MEASURED, [100] * 8, 2) - fixed == pytest.approx(expected, rel=0.1)
    assert estimate_seconds(MEASURED, [100] * 3, 2) > estimate_seconds(MEASURED, [100] * 2, 2)
    assert estimate_seconds(MEASURED, [1000, 1, 1], 3) >= 500
    assert "0.50 s a step" in describe_time(MEASURED, [100], 1)
    assert "unknown" in describe_time(None, [100], 1)


def test_disk_is_checked_for_checkpoints_of_all_trials(tmp_path: Path):
    check_disk(tmp_path / "not" / "yet", trials=1, keep=1, measured=MEASURED)
    with pytest.raises(SweepError, match="MB free, the sweep needs"):
        check_disk(tmp_path, trials=10**9, keep=2, measured=MEASURED)


@pytest.mark.parametrize(
    ("visible_devices", "expected"),
    [(None, 4), ("", 0), ("-1", 0), ("2", 1), ("0,1", 2), ("1, -1, 2", 1), ("0,1,2,3,4,5", 4), ("GPU-8932f937", 1)],
)
def test_hidden_gpus_do_not_count(visible_devices: str | None, expected: int) -> None:
    assert visible_gpus(4, visible_devices) == expected


def test_this_machine_has_a_core_and_memory():
    machine = this_machine()
    assert machine.cpus >= 1
    assert machine.memory_bytes > 0


def test_a_step_is_measured_on_a_miniature_of_the_run(tiny_prior_file: Path):
    config = corrdream.load_config((), tiny_overrides(tiny_prior_file, max_steps=10**6))
    measured = measure(config, cpus=1, gpus=0.0)
    assert measured is not None
    assert 0 < measured.seconds_per_step < 5
    assert measured.memory_bytes > 50e6
    assert measured.checkpoint_bytes > 1e4


def test_what_cannot_be_measured_leaves_the_plan_without_an_estimate(tiny_prior_file: Path):
    overrides = tiny_overrides(tiny_prior_file, **{"optimizer.encoding_lr": 1e30})
    assert measure(corrdream.load_config((), overrides), cpus=1, gpus=0.0) is None


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (300, "5 min"), (12000, "3 h 20 min")])
def test_times_are_written_for_people(seconds: float, text: str):
    assert format_seconds(seconds) == text


# ---- progress ----


def make_progress(folder: Path, lines: list[str]) -> tuple[Progress, list[str]]:
    """Four trials of 40 steps, two at once."""
    sweep = plan_sweep("rescale-1", prompts=("a snowman",), seeds=(0,))
    names = [trial.name for trial in sweep.trials]
    steps = dict.fromkeys(names, 40)
    progress = Progress(sweep, SweepFolder(folder), steps=steps, seconds_per_step=0.5, concurrent=2, write=lines.append)
    return progress, names


def status(step: int, seconds: float, state: str = "running", **more: object) -> dict[str, object]:
    return {"step": step, "seconds": seconds, "state": state, "error": "", "warnings": []} | more


def test_time_left_follows_the_plan_then_what_was_measured(tmp_path: Path):
    progress, names = make_progress(tmp_path, [])
    progress.start(names[0])
    assert "0 of 4 trials done, 1 running (starting)" in progress.line()
    assert "about 80 s left" in progress.line()  # 4 x 40 steps of 0.5 s and 4 grades of 20 s, two at once
    progress.report(names[0], status(10, 10.0))
    progress.report(names[0], status(20, 20.0))
    assert "step 20/40" in progress.line()
    assert "1.0 steps/s each, about 2 min left" in progress.line()


def test_a_trial_that_is_graded_is_shown_so_and_later_ones_are_expected_to_take_as_long(tmp_path: Path):
    progress, names = make_progress(tmp_path, [])
    assert "0 of 4 trials done, processes are starting" in progress.line()
    progress.start(names[0])
    progress.report(names[0], status(20, 10.0))
    progress.report(names[0], status(40, 20.0))
    assert "1 running (grading)" in progress.line()
    assert "2.0 steps/s each, about 70 s left" in progress.line()  # 3 x 20 s and 4 grades of 20 s, two at once
    progress._grading_since[names[0]] -= 10.0
    assert "about 65 s left" in progress.line(), "it shrinks while a trial is graded"
    progress.report(names[0], status(40, 28.0, "finished"))
    assert "2.0 steps/s each, about 42 s left" in progress.line()  # 3 x 20 s and 3 grades of 8 s


def test_a_continued_trial_does_not_count_what_earlier_attempts_spent(tmp_path: Path):
    progress, names = make_progress(tmp_path, [])
    progress.start(names[0])
    progress.report(names[0], status(30, 300.0))
    progress.report(names[0], status(35, 305.0))
    assert "1.0 steps/s each" in progress.line()


def test_ends_failures_and_warnings_are_said_when_they_happen(tmp_path: Path):
    lines: list[str] = []
    progress, names = make_progress(tmp_path, lines)
    for name in names[:3]:
        progress.start(name)
    progress.report(names[0], status(40, 30.0, "finished"))
    progress.report(names[1], status(3, 2.0, "failed", error="diverged"))
    progress.report(names[2], status(3, 2.0, warnings=["step-000002 is torn"]))
    progress.retry(names[2])
    assert progress.errors == {names[1]: "diverged"}
    assert progress.running == set()
    text = "\n".join(lines)
    for part in (f"finished {names[0]} in 30 s", f"failed {names[1]}: diverged", "is torn", "lost its process"):
        assert part in text
    assert "2 of 4 trials done, 0 running" in progress.line()


def test_the_best_so_far_is_named(tmp_path: Path):
    lines: list[str] = []
    progress, _ = make_progress(tmp_path, lines)
    sweep = plan_sweep("rescale-1", prompts=("a snowman",), seeds=(0,))
    for trial, viou in zip(sweep.trials, (0.5, 0.7), strict=False):
        finish_trial(SweepFolder(tmp_path), trial, viou=viou)
        progress.start(trial.name)
        progress.report(trial.name, status(40, 30.0, "finished"))
    assert "best viou_solid 0.700 (guidance_rescale=0.3, a snowman)" in progress.line()


def test_the_line_is_shown_only_every_few_seconds(tmp_path: Path):
    lines: list[str] = []
    progress, _ = make_progress(tmp_path, lines)
    progress.show(every=0.0)
    progress.show()
    assert len(lines) == 1
