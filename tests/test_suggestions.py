"""Optuna's suggestions, as functions of what the sweep's files say."""

import dataclasses
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sweeps.folders import create_sweep, load_sweep
from sweeps.halving import Group
from sweeps.jobs import Job, new_job, schedule_of
from sweeps.parameters import parse_parameters
from sweeps.run import main, parse
from sweeps.suggestions import suggest
from tests.sweep_folders import write_grid
from tests.test_schedule import RESCALE, carry_out

PARAMETERS = parse_parameters(
    {
        "method": ["a", "b"],
        "x": {"distribution": "uniform", "min": 0.0, "max": 1.0},
        "only_b": {"when": {"method": "b"}, "distribution": "int_uniform", "min": 1, "max": 9},
    },
    "here",
)


def quality(labels: dict[str, str]) -> float:
    """Best at x = 0.3 with method b."""
    return -abs(float(labels["x"]) - 0.3) + (0.5 if labels["method"] == "b" else 0.0)


def search(number: int, seed: int = 0) -> list[dict[str, str]]:
    """So many settings, each told of those before."""
    history: list[tuple[dict[str, str], Group, int]] = []
    for _ in range(number):
        setting = suggest(PARAMETERS, history, mode="max", seed=seed)
        assert setting
        labels = {key: choice.label for key, choice in setting.items()}
        history.append((labels, Group(scores={10: quality(labels)}, steps=10), 10))
    return [labels for labels, _, _ in history]


def test_suggestions_are_replayed_and_come_near_to_the_best():
    first = search(40)
    assert search(25) == first[:25]
    assert search(3, seed=1) != first[:3]
    late = [quality(labels) for labels in first[20:]]
    assert sum(late) / len(late) > sum(map(quality, first[:10])) / 10 + 0.1
    assert all(("only_b" in labels) == (labels["method"] == "b") for labels in first)


def test_a_setting_is_never_suggested_twice_and_the_search_ends_when_all_were():
    parameters = parse_parameters({"x": [1, 2, 3]}, "here")
    history: list[tuple[dict[str, str], Group, int]] = []
    while setting := suggest(parameters, history, mode="min", seed=0):
        history.append(({"x": setting["x"].label}, Group(scores={}), 10))
    assert sorted(labels["x"] for labels, _, _ in history) == ["1", "2", "3"]


@pytest.mark.parametrize(
    "group",
    [
        Group(scores={2: 0.5, 5: 0.6}, steps=5),
        Group(scores={}, has_failed=True),
        Group(scores={10: math.nan}, steps=10),
        Group(scores={}),
    ],
)
def test_settings_that_were_stopped_have_failed_or_are_running_are_told_too(group: Group):
    history = [({"method": "b", "x": f"0.{i}", "only_b": "3"}, group, 10) for i in range(1, 9)] * 2
    setting = suggest(PARAMETERS, history, mode="max", seed=0)
    assert setting
    assert setting.keys() >= {"method", "x"}


def optuna_job(tmp_path: Path, prior: Path, *words: str) -> Job:
    parameters = {RESCALE: {"distribution": "uniform", "min": 0, "max": 1.0}}
    grid = write_grid(tmp_path, prior, parameters=parameters, search="optuna", num_samples=3, seeds=[0, 1])
    plain = OmegaConf.to_container(OmegaConf.load(grid))
    assert isinstance(plain, dict)
    plain["overrides"] |= {"max_steps": 40}
    grid.write_text(OmegaConf.to_yaml(plain))
    return new_job(parse(["--grid", str(grid), "--storage", str(tmp_path / "runs"), "--name", "found", *words]))


def rest_of(job: Job) -> Job:
    """As another process finds it."""
    sweep = load_sweep(job.folder)
    schedule = schedule_of(dataclasses.replace(job, sweep=sweep, unfinished=sweep.trials))
    states = {standing.trial.name: standing.state for standing in schedule.standings}
    unfinished = tuple(trial for trial in sweep.trials if states[trial.name] != "finished")
    return dataclasses.replace(job, sweep=sweep, unfinished=unfinished)


def test_each_suggested_setting_becomes_ordinary_trials_of_the_sweep(tmp_path: Path, tiny_prior_file: Path):
    job = optuna_job(tmp_path, tiny_prior_file)
    assert len(job.sweep.trials) == 2, "the first setting, with both seeds"
    assert job.sweep.trials_to_come == 4
    create_sweep(job.folder, job.sweep)
    schedule = schedule_of(job)
    assert schedule.steps_left() == [40] * 6
    while assignment := schedule.next():
        carry_out(schedule, job.folder, assignment)
    assert schedule.is_over
    sweep = load_sweep(job.folder)
    assert len(sweep.trials) == 6
    assert len({trial.identity for trial in sweep.trials}) == 6
    assert sweep.trials_to_come == 0
    for trial in sweep.trials:
        assert trial.config["guidance"]["guidance_rescale"] == float(trial.labels[RESCALE])


@pytest.mark.parametrize("killed_after", [1, 2, 3, 5])
def test_a_resumed_search_counts_what_is_finished_and_suggests_the_same(
    killed_after: int, tmp_path: Path, tiny_prior_file: Path
):
    job = optuna_job(tmp_path, tiny_prior_file)
    create_sweep(job.folder, job.sweep)
    schedule = schedule_of(job)
    for _ in range(killed_after):
        assignment = schedule.next()
        assert assignment
        carry_out(schedule, job.folder, assignment)
    schedule = schedule_of(rest_of(job))
    while assignment := schedule.next():
        carry_out(schedule, job.folder, assignment)
    undisturbed = optuna_job(tmp_path, tiny_prior_file, "--storage", str(tmp_path / "undisturbed"))
    create_sweep(undisturbed.folder, undisturbed.sweep)
    schedule = schedule_of(undisturbed)
    while assignment := schedule.next():
        carry_out(schedule, undisturbed.folder, assignment)
    assert load_sweep(job.folder).trials == load_sweep(undisturbed.folder).trials


def test_without_optuna_the_search_is_refused_with_the_line_that_installs_it(
    tmp_path: Path, tiny_prior_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(package: str) -> None:
        raise ImportError(f"No module named {package!r}")

    monkeypatch.setattr("corrdream.backends.import_module", fail)
    grid = write_grid(tmp_path, tiny_prior_file, parameters={RESCALE: [0, 0.5, 1]})
    status = main(
        ["--grid", str(grid), "--storage", str(tmp_path / "runs"), "--search", "optuna", "--num-samples", "2"]
    )
    error = capsys.readouterr().err
    assert status == 2
    assert "--search optuna needs the package optuna (pip install 'corrdream[search]')" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
