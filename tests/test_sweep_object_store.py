"""A real sweep under Ray whose storage is an S3 server: killed, resumed elsewhere, extended from its cache."""

import csv
import io
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

import corrdream
from sweeps.folders import Status, Sweep, SweepFolder, load_sweep, read_statuses
from sweeps.object_store import ObjectStorage
from tests.object_server import object_server
from tests.sweep_folders import RESCALE, STEPS, write_grid
from tests.test_sweep import ROOT, is_alive, running_driver, wait_until

pytestmark = pytest.mark.slow

KILL_DRIVER_AT = 60
AWAY_SECONDS = 6.0


@dataclass
class Story:
    """What happened to one sweep."""

    folder: SweepFolder  # as somebody sees it who has only the URI
    uri: str
    grid: Path
    outputs: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    killed_at: int = 0

    def statuses(self) -> dict[str, Status]:
        """By rescale factor."""
        time.sleep(0.2)  # it is asked in a loop, and the server shares this machine
        if not self.folder.storage.exists(self.folder.sweep_file):
            return {}
        sweep = load_sweep(self.folder)
        statuses = read_statuses(self.folder, sweep.trials)
        return {trial.labels[RESCALE]: statuses[trial.name] for trial in sweep.trials}

    def step(self) -> int:
        """Of the trial that is killed."""
        statuses = self.statuses()
        return statuses["0"].step if statuses else 0


def workers_of(folder: SweepFolder) -> list[int]:
    """Processes that claim a trial."""
    names = [path.name for path in folder.storage.files(folder.path) if path.parent.name == "trial.lock"]
    return [int(name.rsplit("_", 3)[1]) for name in names]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_prior_file: Path) -> Iterator[Story]:
    """The driver is killed while it trains, and the server is away for a while; another directory finishes it."""
    place, elsewhere = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    with object_server() as server:
        storage = ObjectStorage(server.uri("sweeps"))
        folder = SweepFolder(storage.root / "small-1", storage)
        story = Story(folder=folder, uri=server.uri("sweeps"), grid=write_grid(place, tiny_prior_file))
        start = [sys.executable, str(ROOT / "sweeps" / "run.py"), "--storage", story.uri]
        output = place / "first.txt"
        with running_driver([*start, "--grid", str(story.grid), "--name", "small-1"], place, output) as driver:
            wait_until(lambda: story.step() >= KILL_DRIVER_AT, driver, output)
            workers = workers_of(story.folder)
            driver.kill()
            story.exit_codes.append(driver.wait())
            while any(map(is_alive, workers)):  # Ray's processes outlive their driver by some seconds
                time.sleep(0.05)
        story.killed_at = story.step()
        story.outputs.append(output.read_text())
        output = elsewhere / "second.txt"
        with running_driver([*start, "--resume", "small-1"], elsewhere, output) as driver:
            wait_until(lambda: story.step() > story.killed_at, driver, output)
            server.stop()
            time.sleep(AWAY_SECONDS)
            server.start()
            story.exit_codes.append(driver.wait(timeout=240))
        story.outputs.append(output.read_text())
        yield story


def test_the_sweep_is_finished_from_another_directory(story: Story):
    assert story.exit_codes == [-signal.SIGKILL, 0], story.outputs[-1]
    assert KILL_DRIVER_AT <= story.killed_at < STEPS["0"]
    assert {label: (s.state, s.step) for label, s in story.statuses().items()} == {
        label: ("finished", steps) for label, steps in STEPS.items()
    }
    for text in story.outputs:
        assert "Traceback" not in text


def test_the_killed_trial_went_on_from_a_checkpoint_in_the_store_and_took_every_step_once(story: Story):
    folder, sweep = story.folder, load_sweep(story.folder)
    trial = folder.trial(next(trial.name for trial in sweep.trials if trial.labels[RESCALE] == "0"))
    folder.storage.pull([trial / "log.txt", trial / "metrics.jsonl"])
    resumed = [int(step) for step in re.findall(r"from step (\d+)", (trial / "log.txt").read_text())]
    assert resumed
    assert 0 < resumed[-1] <= STEPS["0"]
    assert (trial / "metrics.jsonl").read_text().count("\n") == STEPS["0"]


def test_the_result_equals_that_of_an_undisturbed_run_bit_for_bit(story: Story, tmp_path: Path):
    folder, sweep = story.folder, load_sweep(story.folder)
    trial = next(trial for trial in sweep.trials if trial.labels[RESCALE] == "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer, run = corrdream.open_run(tmp_path / "undisturbed", corrdream.load_config((), trial.config))
        trainer.fit(run)
    finally:
        torch.set_num_threads(threads)
    name = f"checkpoints/step-{STEPS['0']:06d}.safetensors"
    folder.storage.pull([folder.trial(trial.name) / name])
    disturbed, undisturbed = (load((path / name).read_bytes()) for path in (folder.trial(trial.name), run.path))
    assert disturbed.keys() == undisturbed.keys()
    for key in disturbed:
        assert torch.equal(disturbed[key], undisturbed[key]), key


def test_results_report_pictures_and_tracking_lie_in_the_store(story: Story):
    folder, sweep = story.folder, load_sweep(story.folder)
    folder.storage.pull([folder.results, folder.report])
    rows = list(csv.DictReader(io.StringIO(folder.results.read_text())))
    assert [(row["status"], row["steps"]) for row in rows] == [("finished", str(steps)) for steps in STEPS.values()]
    assert "data:image/jpeg" in folder.report.read_text()
    for trial in sweep.trials:
        path = folder.trial(trial.name)
        names = {str(found.relative_to(path)) for found in folder.storage.files(path)}
        assert names >= {"config.yaml", "run.json", "metrics.jsonl", "grade.json", "turntable.png", "normals.png"}
        assert any(name.startswith("tensorboard/events.") for name in names)
        assert any(name.startswith("wandb/offline-run-") for name in names)
        assert not any(name.startswith("trial.lock/") for name in names), "locks are let go"
    assert f"results      {folder.storage.uri(folder.results)}" in story.outputs[-1]


def test_a_second_sweep_takes_the_finished_trials_from_the_store(story: Story, tmp_path: Path):
    output = tmp_path / "third.txt"
    words = [sys.executable, str(ROOT / "sweeps" / "run.py"), "--storage", story.uri, "--grid", str(story.grid)]
    with running_driver([*words, "--name", "small-2"], tmp_path, output) as driver:
        assert driver.wait(timeout=240) == 0, output.read_text()
    assert "2 cached, 0 to run" in output.read_text()
    second = SweepFolder(story.folder.path.with_name("small-2"), story.folder.storage)
    sweep: Sweep = load_sweep(second)
    assert {status.source for status in read_statuses(second, sweep.trials).values()} == {"small-1"}


def test_a_name_that_is_taken_in_the_store_is_refused(story: Story, tmp_path: Path):
    output = tmp_path / "fourth.txt"
    words = [sys.executable, str(ROOT / "sweeps" / "run.py"), "--storage", story.uri, "--grid", str(story.grid)]
    with running_driver([*words, "--name", "small-1"], tmp_path, output) as driver:
        assert driver.wait(timeout=240) == 2
    assert "small-1" in output.read_text()
    assert "exists; choose another --name, or continue it with --resume small-1." in output.read_text()
