"""What runs next, from folders as trials leave them."""

import dataclasses
import json
from pathlib import Path

import pytest

from sweeps.folders import PlannedTrial, Status, Sweep, SweepFolder, create_sweep, read_status, write_rung, write_status
from sweeps.schedule import Assignment, Schedule, describe_search
from tests.sweep_folders import LABELS, RESCALE, finish_trial, plan_sweep

PROMPTS = ("a snowman", "a yellow duck")
ASHA = {"kind": "asha", "budget": 40, "grace_period": 5, "reduction_factor": 2}


def viou(rescale: float) -> float:
    """Best at 0.41: of the four settings 0.5, 0.3, 0.7, 0 is the order."""
    return 0.5 - abs(rescale - 0.41)


def make_sweep(path: Path, **scheduler: object) -> tuple[Sweep, SweepFolder]:
    """Four settings, two prompts."""
    folder = SweepFolder(path)
    sweep = plan_sweep(path.name, prompts=PROMPTS, seeds=(0,))
    sweep = dataclasses.replace(sweep, search={"search": "grid", "scheduler": scheduler or None})
    create_sweep(folder, sweep)
    return sweep, folder


def schedule_of(sweep: Sweep, folder: SweepFolder) -> Schedule:
    """Of all trials that are not done."""
    states = {trial.name: read_status(folder.trial(trial.name), trial.identity).state for trial in sweep.trials}
    names = [name for name, state in states.items() if state not in ("finished", "stopped early")]
    return Schedule(sweep, folder, names=names)


def carry_out(schedule: Schedule, folder: SweepFolder, assignment: Assignment) -> None:
    """What a trial's process would do; the score of a setting grows with its steps, and differs between prompts."""
    trial, step = assignment.trial, assignment.until
    score = viou(float(trial.labels[RESCALE])) * step / 40 + (0.5 if trial.prompt == PROMPTS[1] else 0.0)
    path = folder.trial(trial.name)
    if step == 40:
        finish_trial(folder, trial, viou=score)
        schedule.end(trial.name, "finished", step, score)
        return
    write_rung(path, step, {"viou_solid": score})
    write_status(path, Status(identity=trial.identity, state="paused", step=step, max_steps=40, attempts=1))
    schedule.end(trial.name, "paused", step, score)


def run_all(
    schedule: Schedule, folder: SweepFolder, *, at_once: int = 2, stop_after: int = 10**6
) -> list[tuple[str, str, int]]:
    """(label, prompt, until) in the order in which they were handed out."""
    handed, running = [], []
    while len(handed) < stop_after:
        while len(running) < at_once and (assignment := schedule.next()):
            running.append(assignment)
            handed.append((assignment.trial.labels[RESCALE], assignment.trial.prompt, assignment.until))
        if not running:
            break
        carry_out(schedule, folder, running.pop(0))
    return handed


def test_without_a_scheduler_trials_run_to_their_end_in_the_order_of_the_plan(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep")
    schedule = schedule_of(sweep, folder)
    assert run_all(schedule, folder) == [(trial.labels[RESCALE], trial.prompt, 40) for trial in sweep.trials]
    assert schedule.is_over


def test_a_grid_is_over_once_everything_is_handed_out_so_that_places_are_freed(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep")
    schedule = schedule_of(sweep, folder)
    while schedule.next():
        assert schedule.is_over == all(standing.is_running for standing in schedule.standings)
    assert schedule.is_over


def test_asha_compares_whole_settings_and_lets_the_best_go_on(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep", **ASHA)
    schedule = schedule_of(sweep, folder)
    handed = run_all(schedule, folder)
    assert handed[:8] == [(label, prompt, 5) for prompt in PROMPTS for label in LABELS]
    assert {(label, until) for label, _, until in handed[8:]} == {("0.5", 10), ("0.3", 10), ("0.5", 20), ("0.5", 40)}
    assert len(handed) == 8 + 2 * 4, "both prompts of a setting go on"
    assert {(trial.labels[RESCALE], trial.prompt) for trial in schedule.stopped_early()} == {
        (label, prompt) for label in ("0", "0.3", "0.7") for prompt in PROMPTS
    }


def test_a_decision_waits_for_the_last_trial_of_the_setting(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep", **ASHA)
    schedule = schedule_of(sweep, folder)
    assignments = [schedule.next() for _ in sweep.trials]
    assert schedule.next() is None
    assert not schedule.is_over, "results may still change it"
    for assignment in assignments[:-1]:
        assert assignment
        carry_out(schedule, folder, assignment)
    following = schedule.next()
    assert following
    assert following.trial.labels[RESCALE] == "0.5", "three settings are there, and one in two goes on"
    assert schedule.stopped_early() == []


@pytest.mark.parametrize("stop_after", [3, 8, 9, 11, 14])
def test_another_process_takes_the_same_decisions_from_the_folders(stop_after: int, tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "undisturbed", **ASHA)
    expected = run_all(schedule_of(sweep, folder), folder, at_once=1)
    sweep, folder = make_sweep(tmp_path / "killed", **ASHA)
    first = run_all(schedule_of(sweep, folder), folder, at_once=1, stop_after=stop_after)
    assert first + run_all(schedule_of(sweep, folder), folder, at_once=1) == expected


def test_what_was_stopped_early_is_not_restarted(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep", **ASHA)
    schedule = schedule_of(sweep, folder)
    run_all(schedule, folder)
    for trial in schedule.stopped_early():
        status = read_status(folder.trial(trial.name), trial.identity)
        write_status(folder.trial(trial.name), dataclasses.replace(status, state="stopped early"))
    again = schedule_of(sweep, folder)
    assert again.next() is None
    assert again.is_over


def test_a_failed_trial_is_tried_again_and_its_setting_then_competes(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep", **ASHA)
    schedule = schedule_of(sweep, folder)
    best = next(trial for trial in sweep.trials if trial.labels[RESCALE] == "0.5")
    first = schedule.next()
    while first and first.trial.name != best.name:
        carry_out(schedule, folder, first)
        first = schedule.next()
    write_status(folder.trial(best.name), Status(identity=best.identity, state="failed", max_steps=40))
    schedule.end(best.name, "failed")
    handed = run_all(schedule, folder)
    assert ("0.5", PROMPTS[0], 10) not in handed
    assert ("0.3", PROMPTS[0], 40) in handed
    handed = run_all(schedule_of(sweep, folder), folder)
    assert handed[0] == ("0.5", PROMPTS[0], 5)
    assert ("0.5", PROMPTS[1], 40) in handed


def test_nothing_is_handed_out_while_the_sweep_is_being_stopped(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep", **ASHA)
    schedule = schedule_of(sweep, folder)
    run_all(schedule, folder, stop_after=4)
    folder.stop_file.touch()
    assert schedule.next() is None
    assert schedule.is_over
    assert schedule.stopped_early() == [], "they only wait"


def test_a_status_of_another_configuration_counts_for_nothing(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep", **ASHA)
    trial: PlannedTrial = sweep.trials[0]
    write_rung(folder.trial(trial.name), 5, {"viou_solid": 1.0})
    write_status(folder.trial(trial.name), Status(identity="another", state="paused", step=5))
    assert schedule_of(sweep, folder).standings[0].measured == {}


def test_the_steps_that_are_left_are_those_of_the_settings_that_will_go_on(tmp_path: Path):
    sweep, folder = make_sweep(tmp_path / "sweep", **ASHA)
    schedule = schedule_of(sweep, folder)
    assert sum(schedule.steps_left()) == 2 * (5 + 5 + 10 + 40)
    running, waiting = (standing.trial.name for standing in schedule.standings[:2])
    begun = schedule.next()
    assert begun
    assert begun.trial.name == running
    assert sum(schedule.steps_left({running: 3, waiting: 3})) == 2 * (5 + 5 + 10 + 40) - 3
    schedule.end(running)
    spent = sum(
        read_status(folder.trial(trial.name), trial.identity).step
        for trial in sweep.trials
        if run_all(schedule, folder) is not None
    )
    assert spent == 2 * (5 + 5 + 10 + 40)
    assert sum(schedule.steps_left()) == 0


def test_the_search_is_described_in_one_line(tmp_path: Path):
    assert describe_search(make_sweep(tmp_path / "grid")[0]) == "grid; every trial to its end"
    assert "viou_solid after 5, 10, 20 of 40 steps, 1 in 2 goes on" in describe_search(
        make_sweep(tmp_path / "asha", **ASHA)[0]
    )


def test_rungs_are_kept_by_step(tmp_path: Path):
    write_rung(tmp_path, 20, {"viou_solid": 0.5})
    write_rung(tmp_path, 5, {"viou_solid": 0.25})
    assert json.loads((tmp_path / "rungs.json").read_text()) == {"5": {"viou_solid": 0.25}, "20": {"viou_solid": 0.5}}
