"""Sweeps that grow: what was there stays, only what is new is run."""

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.extension import extend
from sweeps.folders import Status, SweepFolder, create_sweep, load_sweep, read_status, write_status
from sweeps.jobs import Job, extended_job, find_sweep, new_job
from sweeps.locks import SweepError
from sweeps.results import compare_settings, read_results
from sweeps.run import main, parse
from sweeps.table import format_table
from tests.sweep_folders import RESCALE, finish_trial, plan_sweep, write_grid

UNGRADED = "snowman red"  # known words, but no caption: saves the time to grade
PARAMETERS = {RESCALE: [0.3, 0.5]}


@pytest.fixture
def grid(tmp_path: Path, tiny_prior_file: Path) -> Path:
    return write_grid(tmp_path, tiny_prior_file, parameters=PARAMETERS, prompts=[UNGRADED])


@pytest.fixture
def plan(tmp_path: Path, grid: Path) -> Callable[..., Job]:
    """Plans a command line; a new sweep is also written, one of its trials finished and one begun."""

    def plan(*words: str) -> Job:
        arguments = parse([*words, "--storage", str(tmp_path / "runs")])
        if "--extend" in words:
            return extended_job(find_sweep(arguments), arguments)
        job = new_job(arguments)
        create_sweep(job.folder, job.sweep)
        first, second = job.sweep.trials[:2]
        steps = int(first.config["max_steps"])
        write_status(job.folder.trial(first.name), Status(identity=first.identity, state="finished", step=steps))
        write_status(job.folder.trial(second.name), Status(identity=second.identity, state="stopped", step=1))
        return job

    return plan


def test_an_extension_by_seeds_adds_their_trials_and_leaves_the_old_ones(plan: Callable[..., Job], grid: Path):
    old = plan("--grid", str(grid), "--name", "mine").sweep
    job = plan("--extend", "mine", "--seeds", "0", "1")
    assert job.sweep.trials[:2] == load_sweep(job.folder).trials == old.trials
    assert [(trial.labels[RESCALE], trial.seed) for trial in job.sweep.trials[2:]] == [("0.3", 1), ("0.5", 1)]
    assert [trial.name for trial in job.unfinished] == [trial.name for trial in job.sweep.trials[1:]]
    steps = int(old.trials[0].config["max_steps"])
    assert list(job.steps_left.values()) == [steps - 1, steps, steps]


def test_without_options_it_adds_what_the_grid_file_has_now(
    plan: Callable[..., Job], grid: Path, tmp_path: Path, tiny_prior_file: Path, monkeypatch: pytest.MonkeyPatch
):
    plan("--grid", str(grid), "--name", "mine", "--max-steps", "7")
    write_grid(tmp_path, tiny_prior_file, parameters={RESCALE: [0.3, 0.4, 0.5]}, prompts=[UNGRADED, "a snowman"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    added = plan("--extend", "mine").sweep.trials[2:]
    assert [(trial.labels[RESCALE], trial.prompt) for trial in added] == [
        ("0.4", UNGRADED),
        ("0.3", "a snowman"),
        ("0.4", "a snowman"),
        ("0.5", "a snowman"),
    ]
    assert {trial.config["max_steps"] for trial in added} == {7}, "the sweep's own options stay"


def test_prompts_and_seeds_that_were_given_stay_those_of_a_later_extension(plan: Callable[..., Job], grid: Path):
    plan("--grid", str(grid), "--name", "mine", "--prompts", "a snowman")
    job = plan("--extend", "mine", "--seeds", "1")
    assert {trial.prompt for trial in job.sweep.trials} == {"a snowman"}
    create_sweep(SweepFolder(job.folder.path.with_name("later")), job.sweep)
    later = plan("--extend", "later", "--prompts", "a snowman", "a red cone").sweep
    assert {(trial.prompt, trial.seed) for trial in later.trials[4:]} == {("a red cone", 0), ("a red cone", 1)}


def test_a_sweep_keeps_the_prompts_and_needs_their_library_no_more(
    plan: Callable[..., Job], grid: Path, tmp_path: Path
):
    library = tmp_path / "library.txt"
    library.write_text("a red cone\na snowman\n")
    old = plan("--grid", str(grid), "--name", "mine", "--prompts", "lib:snow", f"prompt_library={library}").sweep
    assert old.options["prompts"] == ["a snowman"]
    library.unlink()
    job = plan("--extend", "mine", "--seeds", "1")
    assert {(trial.prompt, trial.seed) for trial in job.sweep.trials} == {("a snowman", 0), ("a snowman", 1)}


def test_another_grid_adds_its_settings_and_the_table_has_a_column_for_each_parameter(
    plan: Callable[..., Job], grid: Path, tmp_path: Path
):
    plan("--grid", str(grid), "--name", "mine")
    other = tmp_path / "other.yaml"
    other.write_text(grid.read_text().replace(RESCALE, "guidance.guidance_scale"))
    sweep = plan("--extend", "mine", "--grid", str(other)).sweep
    folder = SweepFolder(tmp_path / "filled")
    for trial in sweep.trials:
        finish_trial(folder, trial, viou=0.5)
    lines = format_table(compare_settings(sweep, read_results(sweep, folder))).splitlines()
    assert lines[0].split()[:3] == ["guidance_rescale", "guidance_scale", "n"]
    cells = [line.replace(" *", "").split()[:2] for line in lines[2:]]
    assert cells == [["0.3", "-"], ["0.5", "-"], ["-", "0.3"], ["-", "0.5"]]


CONFLICTS = {
    "other base": (["--max-steps", "9"], "was started with max_steps=400 (here 9)"),
    "other base by override": (["field.radius=1.5"], "field.radius=1.0 (here 1.5)"),
    "nothing new": (["--seeds", "0"], "has all 2 trials of that already"),
    "a name": (["--name", "other"], "leave out --name"),
    "an unknown word": (["--prompts", "a red xylophone"], "xylophone"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(
    case: str, plan: Callable[..., Job], grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    grid.write_text(grid.read_text().replace("overrides:", "overrides:\n  max_steps: 400"))
    folder = plan("--grid", str(grid), "--name", "mine").folder
    before = folder.sweep_file.read_bytes()
    words, message = CONFLICTS[case]
    assert main(["--extend", "mine", "--storage", str(tmp_path / "runs"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert folder.sweep_file.read_bytes() == before


def test_other_sources_are_named(plan: Callable[..., Job], grid: Path, tmp_path: Path):
    sweep = plan("--grid", str(grid), "--name", "mine").sweep
    older = dataclasses.replace(sweep, fingerprints=sweep.fingerprints | {"sources": "0" * 16})
    with pytest.raises(
        SweepError, match=f"other sources of corrdream .0000000000000000; here is {sweep.fingerprints['sources']}"
    ):
        extend(older, sweep)


def test_a_label_that_has_come_to_mean_something_else_is_refused():
    old = plan_sweep("mine", prompts=("a snowman",), seeds=(0,), labels=("0.3",))
    (trial,) = old.trials
    guidance = trial.config["guidance"] | {"guidance_scale": 3.0}
    changed = dataclasses.replace(trial, identity="other", config=trial.config | {"guidance": guidance})
    with pytest.raises(SweepError, match=r"ran guidance_rescale=0.3 with guidance.guidance_scale=\S+ \(here 3.0\)"):
        extend(old, dataclasses.replace(old, trials=(changed,)))


def test_a_dry_run_says_what_is_left_and_writes_nothing(
    plan: Callable[..., Job], grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = plan("--grid", str(grid), "--name", "mine").folder
    before = folder.sweep_file.read_bytes()
    assert main(["--extend", "mine", "--seeds", "0", "1", "--dry-run", "--storage", str(tmp_path / "runs")]) == 0
    assert "4 = 2 settings x 1 prompts x 2 seeds; 1 finished, 3 to run" in capsys.readouterr().out
    assert folder.sweep_file.read_bytes() == before


def test_a_finished_sweep_is_extended_by_running_the_new_trials_alone(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--storage", str(tmp_path / "runs"), "--wandb", "disabled"]
    assert main(["--grid", str(grid), "--name", "mine", "--max-steps", "3", *words]) == 0
    folder = SweepFolder(tmp_path / "runs" / "mine")
    old = load_sweep(folder).trials
    written = {trial.name: (folder.trial(trial.name) / "status.json").stat().st_mtime_ns for trial in old}
    assert main(["--extend", "mine", "--seeds", "1", *words]) == 0
    assert "2 finished, 2 to run" in capsys.readouterr().out
    sweep = load_sweep(folder)
    assert sweep.trials[:2] == old
    assert [read_status(folder.trial(t.name), t.identity).state for t in sweep.trials] == ["finished"] * 4
    assert written == {t.name: (folder.trial(t.name) / "status.json").stat().st_mtime_ns for t in old}
    with folder.results.open() as file:
        assert [(row["seed"], row["status"], row["attempts"]) for row in csv.DictReader(file)] == [
            (seed, "finished", "1") for seed in "0011"
        ]
    report = folder.report.read_text()
    assert "4 = 2 settings &times; 1 prompts &times; 2 seeds" in report
    assert "--extend mine --seeds 1" in report
