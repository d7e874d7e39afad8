"""A real sweep under Ray, killed in every way; joining a Ray that runs."""

import csv
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import corrdream
from sweeps.folders import SweepFolder, load_sweep, read_status
from sweeps.run import main
from tests.sweep_folders import RESCALE, STEPS, WINDOW, write_grid

pytestmark = pytest.mark.timeout(600)  # the whole sweep with its kills: 170 s on two quiet cores

ROOT = Path(__file__).parent.parent
WARNINGS = "default,ignore::ResourceWarning"  # W&B leaves temporary folders to the end of the interpreter
KILL_WORKER_AT, KILL_DRIVER_AT = 65, 90


@dataclass
class Story:
    """What happened to one sweep, for the tests below to make claims about."""

    folder: SweepFolder
    outputs: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    killed_at: dict[str, int] = field(default_factory=dict)
    seconds_to_stop: float = 0.0
    finished_at: float = 0.0  # when the other trial finished

    def trial(self, label: str) -> Path:
        """The folder of the trial with that rescale factor, once it has a status."""
        return next(self.folder.path.glob(f"trials/guidance-rescale={label}_*/status.json")).parent

    def status(self, label: str) -> dict[str, Any]:
        """Its status, or an empty one."""
        try:
            return dict(json.loads((self.trial(label) / "status.json").read_text()))
        except StopIteration:
            return {"state": "pending", "step": 0, "attempts": 0}

    def reaches(self, step: int, attempts: int) -> bool:
        """Whether the trial that is killed has taken so many steps in that attempt."""
        return bool(self.status("0")["attempts"] >= attempts and steps_done(self.trial("0")) >= step)


@contextmanager
def running_driver(words: list[str], cwd: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver in a session of its own, ended when the test is."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONWARNINGS": WARNINGS}
    with output.open("wb") as file:
        process = subprocess.Popen(
            words, cwd=cwd, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], output: Path, seconds: float = 300
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the driver ended early:\n{output.read_text()}"
        assert time.monotonic() < deadline, f"waited in vain:\n{output.read_text()}"
        time.sleep(0.02)


def steps_done(trial: Path) -> int:
    try:
        return (trial / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def is_alive(process: int) -> bool:
    """Whether it runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def process_of(trial: Path) -> int:
    match = re.search(r"process (\d+)", (trial / "trial.lock").read_text())
    assert match
    return int(match[1])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_prior_file: Path) -> Story:
    """A worker is killed, then the driver; the resumed sweep is interrupted, and what it prints finishes it."""
    place = tmp_path_factory.mktemp("story")
    grid = write_grid(place, tiny_prior_file)
    story = Story(folder=SweepFolder(place / "runs" / "small-1"))
    start = [sys.executable, str(ROOT / "sweeps" / "run.py")]
    output = place / "first.txt"
    with running_driver([*start, "--grid", str(grid), "--name", "small-1"], place, output) as driver:
        wait_until(lambda: story.reaches(KILL_WORKER_AT, 1), driver, output)
        os.kill(process_of(story.trial("0")), signal.SIGKILL)
        story.killed_at["worker"] = steps_done(story.trial("0"))
        wait_until(lambda: story.status("0.5")["state"] == "finished", driver, output)
        wait_until(lambda: story.reaches(KILL_DRIVER_AT, 2), driver, output)
        worker = process_of(story.trial("0"))
        driver.kill()
        story.exit_codes.append(driver.wait())
        while is_alive(worker):  # Ray's processes outlive their driver by some seconds, and this one goes on training
            time.sleep(0.05)
        story.killed_at["driver"] = steps_done(story.trial("0"))
    story.outputs.append(output.read_text())
    story.finished_at = (story.trial("0.5") / "status.json").stat().st_mtime

    output = place / "second.txt"
    with running_driver([*start, "--resume", "small-1"], place, output) as driver:
        wait_until(lambda: story.reaches(story.killed_at["driver"] + 15, 3), driver, output)
        begun = time.monotonic()
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        story.exit_codes.append(driver.wait(timeout=60))
        story.seconds_to_stop = time.monotonic() - begun
    story.killed_at["interrupt"] = story.status("0")["step"]
    story.outputs.append(output.read_text())

    output = place / "third.txt"
    line = re.search(r"^resume with +(.*)$", story.outputs[-1], re.MULTILINE)
    assert line, story.outputs[-1]
    words = shlex.split(line[1])
    assert words[0] == "python"
    with running_driver([sys.executable, *words[1:]], place, output) as driver:
        story.exit_codes.append(driver.wait(timeout=200))
    story.outputs.append(output.read_text())
    return story


def test_the_sweep_finishes_after_all_that(story: Story):
    assert story.exit_codes == [-signal.SIGKILL, 130, 0], story.outputs[-1]
    sweep = load_sweep(story.folder)
    for trial in sweep.trials:
        status = read_status(story.folder.trial(trial.name), trial.identity)
        steps = STEPS[trial.labels[RESCALE]]
        assert (status.state, status.step, status.error) == ("finished", steps, "")


def test_the_kills_came_inside_the_window_of_correspondence_steps(story: Story):
    assert WINDOW[0] < story.killed_at["worker"] < story.killed_at["driver"] < story.killed_at["interrupt"] < WINDOW[1]


def test_the_killed_trial_took_every_step_once_and_went_on_from_its_checkpoints(story: Story):
    killed = story.trial("0")
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS["0"] + 1))
    resumed = [int(step) for step in re.findall(r"from step (\d+)", (killed / "log.txt").read_text())]
    # Tune may open a trial once more, when a process that has the prior comes free.
    after_worker, after_driver, after_interrupt = dict.fromkeys(resumed)
    assert story.killed_at["worker"] - after_worker < 20
    assert story.killed_at["driver"] - after_driver < 20
    assert after_interrupt == story.killed_at["interrupt"], "nothing is lost by Ctrl-C"
    for output, step in zip(story.outputs[1:], (after_driver, after_interrupt), strict=True):
        assert f"continued  {killed.name} from step {step}\n" in output


def test_the_result_equals_that_of_an_undisturbed_run_bit_for_bit(story: Story, tmp_path: Path):
    trial = next(trial for trial in load_sweep(story.folder).trials if trial.labels[RESCALE] == "0")
    config = corrdream.load_config((), trial.config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer, run = corrdream.open_run(tmp_path / "undisturbed", config)
        trainer.fit(run)
    finally:
        torch.set_num_threads(threads)
    name = f"checkpoints/step-{STEPS['0']:06d}.safetensors"
    disturbed, undisturbed = (load_file(path / name) for path in (story.folder.trial(trial.name), run.path))
    assert disturbed.keys() == undisturbed.keys()
    for key in disturbed:
        assert torch.equal(disturbed[key], undisturbed[key]), key


def test_a_finished_trial_is_not_run_again(story: Story):
    assert story.status("0.5")["attempts"] == 1
    assert (story.trial("0.5") / "status.json").stat().st_mtime == story.finished_at
    assert "1 finished, 1 to run" in story.outputs[1]


def test_an_interrupted_sweep_saves_says_how_to_resume_and_exits_130_within_20_seconds(story: Story):
    assert story.exit_codes[1] == 130
    assert story.seconds_to_stop < 20
    assert re.search(r"resume with +python .*run\.py --resume small-1", story.outputs[1])


def test_the_plan_is_printed_before_ray_starts(story: Story):
    plan = story.outputs[0]
    assert "2 = 2 settings x 1 prompts x 1 seeds" in plan
    assert "400 in all, up to 320 a trial" in plan
    assert re.search(r"time +about \d+ (s|min).*measured: 0\.\d+ s a step", plan)
    assert "1 thread(s), 0 GPU(s) a trial" in plan
    assert str(story.folder.path) in plan


def test_a_lost_process_and_progress_are_reported(story: Story):
    assert "lost its process; another one continues from the newest checkpoint" in story.outputs[0]
    assert re.search(r"\d\d:\d\d +finished \S+ in \d+ s", "".join(story.outputs))


def test_nothing_of_ray_clutters_the_output(story: Story):
    for text in story.outputs:
        for noise in ("Traceback", "Warning", "(raylet)", "ray::", "Configuration for experiment"):
            assert noise not in text


def test_it_ends_with_table_results_and_report(story: Story):
    text = story.outputs[-1]
    assert re.search(r"^guidance_rescale +n +vIoU +silhouette IoU +dent error", text, re.MULTILINE)
    assert str(story.folder.report) in text
    assert story.folder.report.read_text().startswith("<!doctype html>")
    with story.folder.results.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["status"], row["steps"], row[RESCALE]) for row in rows] == [
        ("finished", "320", "0"),
        ("finished", "80", "0.5"),
    ]
    assert all(row[key] for row in rows for key in ("viou_solid", "dent_error", "seconds"))
    assert float(rows[0]["match_residual"]) > 0


def test_every_trial_has_one_wandb_run_tensorboard_and_pictures(story: Story):
    for trial in load_sweep(story.folder).trials:
        folder = story.folder.trial(trial.name)
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1
        assert list(folder.glob("tensorboard/events.*"))
        for name in ("turntable.png", "normals.png", "grade.json"):
            assert (folder / name).stat().st_size > 0


def test_resuming_a_finished_sweep_only_reports(story: Story, capsys: pytest.CaptureFixture[str]):
    storage = str(story.folder.path.parent)
    assert main(["--resume", "small-1", "--storage", storage]) == 0
    assert "guidance_rescale" in capsys.readouterr().out


@contextmanager
def ray_cluster(*words: str) -> Iterator[str]:
    """The address of a Ray that another process has started."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    script = Path(__file__).parent / "other_ray.py"
    with subprocess.Popen(
        [sys.executable, script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def run_beside(address: str, grid: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    command = [sys.executable, ROOT / "sweeps" / "run.py", "--grid", grid, "--address", address, *words]
    return subprocess.run(command, cwd=grid.parent, env=environment, capture_output=True, text=True, check=False)


def test_a_ray_of_another_version_is_refused_with_both_versions_and_the_cure(tmp_path: Path, tiny_prior_file: Path):
    grid = write_grid(tmp_path, tiny_prior_file)
    with ray_cluster("1.0.0") as address:
        ended = run_beside(address, grid, "--name", "never")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "Ray: 1.0.0" in ended.stderr
    assert "Use the same versions on all machines" in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_a_sweep_joins_a_ray_that_runs_and_leaves_it_running(tmp_path: Path, tiny_prior_file: Path):
    grid = write_grid(tmp_path, tiny_prior_file, prompts=["snowman red"], parameters={RESCALE: [0.5]})
    with ray_cluster() as address:
        ended = run_beside(address, grid, "--max-steps", "3")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert f"Ray at {address}" in ended.stdout
        assert "The cluster's 1 GPU(s) stay idle" in ended.stdout
        assert not list((tmp_path / "runs").glob(".nodes-*")), "the question to the nodes leaves nothing"
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
