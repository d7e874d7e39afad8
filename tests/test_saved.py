"""What interrupted trials have saved, in the plan that goes on and at the end of what was interrupted."""

import dataclasses
from pathlib import Path

import pytest

from corrdream.checkpoint import checkpoint_path
from sweeps.folders import Status, Sweep, SweepFolder, create_sweep, read_status, write_status
from sweeps.jobs import resumed_job
from sweeps.options import parse
from sweeps.plan import format_plan
from sweeps.run import conclude, mark
from sweeps.saved import describe_saved, list_continued, saved_steps
from tests.sweep_folders import finish_trial, plan_sweep


@pytest.fixture
def interrupted(tmp_path: Path) -> tuple[SweepFolder, Sweep]:
    """Two trials of four were interrupted."""
    folder, sweep = SweepFolder(tmp_path / "one"), plan_sweep("one", prompts=("a snowman",), seeds=(0,))
    create_sweep(folder, sweep)
    for trial, steps in zip(sweep.trials, ((4, 5), (8, 9)), strict=False):
        place = folder.trial(trial.name)
        write_status(place, Status(identity=trial.identity, state="stopped", step=steps[-1]))
        for step in steps:
            path = checkpoint_path(place / "checkpoints", step)
            path.parent.mkdir(exist_ok=True)
            path.touch()
            path.with_name(f".{path.name}.1").touch()  # one that was being written
    return folder, sweep


def test_trials_go_on_from_their_newest_checkpoints(interrupted: tuple[SweepFolder, Sweep]):
    folder, sweep = interrupted
    names = [trial.name for trial in sweep.trials]
    saved = saved_steps(folder, sweep.trials)
    assert saved == dict(zip(names, (5, 9, 0, 0), strict=True))
    assert list_continued(saved) == f"{names[0]} from step 5\n{names[1]} from step 9"
    assert describe_saved(saved) == "2 interrupted trials, at steps 5, 9; 2 are still to begin"
    assert describe_saved({"a": 0}) == "no step yet of 1 trials"


def test_a_trial_that_was_still_starting_is_marked_as_stopped_and_not_taken_for_lost(
    interrupted: tuple[SweepFolder, Sweep],
):
    folder, sweep = interrupted
    trial = sweep.trials[3]
    begun = Status(identity=trial.identity, state="running", attempts=1)
    write_status(folder.trial(trial.name), begun)
    mark(folder, trial, "stopped")
    assert read_status(folder.trial(trial.name), trial.identity) == dataclasses.replace(begun, state="stopped")


def test_a_plan_lists_a_few_of_them_below_each_other():
    text = format_plan({"continued": list_continued({f"t{step}": step for step in range(1, 11)}), "steps": "7"})
    assert text.splitlines()[:2] == ["continued  t1 from step 1", "           t2 from step 2"]
    assert text.splitlines()[-2:] == ["           and 2 more", "steps      7"]


def test_without_a_finished_trial_the_end_says_what_is_saved_and_shows_no_table(
    interrupted: tuple[SweepFolder, Sweep], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder, sweep = interrupted
    monkeypatch.setattr("sweeps.jobs.refuse_other_fingerprints", lambda sweep, now: None)
    arguments = parse(["--resume", "one", "--storage", str(folder.path.parent), "--wandb", "disabled"])
    assert conclude(resumed_job(folder, arguments), {}, arguments) == 1
    said = capsys.readouterr().out
    assert "No trial finished.\n\nsaved        2 interrupted trials, at steps 5, 9; 2 are still to begin\n" in said
    assert "guidance_rescale" not in said
    finish_trial(folder, sweep.trials[0], viou=0.5)
    assert conclude(resumed_job(folder, arguments), {}, arguments) == 1
    said = capsys.readouterr().out
    assert "saved        1 interrupted trials, at steps 9; 2 are still to begin\n" in said
    assert "guidance_rescale" in said
