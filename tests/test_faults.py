"""Every fault, injected into trials under a real Ray: what is lost, what is said, what is counted.

A GPU's memory is not filled: there is none. A worker's renderer refuses more rays than a pretended GPU holds, with the
error that torch raises.
"""

import dataclasses
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import corrdream
from corrdream.artifacts import RunFolder
from sweeps.faults import FaultPolicy, describe_faults, preemption_notice
from sweeps.folders import PlannedTrial, Status, SweepFolder, create_sweep, read_status
from sweeps.locks import SweepError
from sweeps.progress import Progress
from sweeps.report import write_report
from sweeps.results import count_faults, read_results, write_csv
from sweeps.run import ENVIRONMENT, main
from sweeps.schedule import Assignment, Schedule
from sweeps.summary import tracking_of
from tests.faults import fill_disk, kill_with, newest_checkpoint, plant_bomb, steps_done, tear, wait_until, worker_of
from tests.sweep_folders import plan_sweep, tiny_overrides

pytestmark = pytest.mark.slow

GPU_HOLDS = 1100  # rays: those of 16 px a side fit, those of 24 px do in quarters, those of 80 px do not
UNGRADED = "snowman red"
STEPS = {"hurt": 300, "memory": 12, "no_memory": 12, "diverging": 12, "full": 20000}
CHANGES: dict[str, dict[str, Any]] = {
    "hurt": {},
    "memory": {"cameras.resolution": 24},
    "no_memory": {"cameras.resolution": 80},
    "diverging": {"guidance.guidance_scale": {"steps": [0, 7], "values": [7.5, 1e300], "interpolate": "hold"}},
    "full": {},
}


@dataclass
class Story:
    """A sweep after all its faults."""

    folder: SweepFolder
    sweep: Any
    said: list[str]
    told_at: int  # steps that had been taken when the notice came

    def status(self, name: str) -> Status:
        trial = next(trial for trial in self.sweep.trials if trial.name == name)
        return read_status(self.folder.trial(name), trial.identity)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        path = newest_checkpoint(self.folder.trial(name))
        assert path is not None
        return load_file(path)


def pretend_gpu() -> Callable[[], None]:
    """What every worker does first: it makes its renderer refuse more rays than fit."""
    limit = GPU_HOLDS

    def setup() -> None:
        import torch

        from corrdream.rendering import renderer

        whole = renderer.render_rays

        def render_rays(rays: Any, *args: Any, **named: Any) -> Any:
            if torch.is_grad_enabled() and len(rays.origins) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
            return whole(rays, *args, **named)

        renderer.render_rays = render_rays

    return setup


def hurt(folder: SweepFolder, steps: list[int]) -> None:
    """A preemption notice, a torn checkpoint and a bomb, each at a worker of one trial; notes its steps."""
    trial = folder.trial("hurt")
    last = 0
    for injure in (
        lambda process: os.kill(process, signal.SIGTERM),
        lambda process: kill_with(trial, process, tear),
        lambda process: kill_with(trial, process, plant_bomb),
    ):
        wait_until(lambda last=last: steps_done(trial) >= last + 40 and worker_of(trial))
        process = worker_of(trial)
        assert process is not None
        last = steps_done(trial)
        steps.append(last)
        injure(process)
        wait_until(lambda process=process: worker_of(trial) != process)
    full = folder.trial("full")
    fill_disk(wait_until(lambda: steps_done(full) >= 12 and worker_of(full)))


@pytest.fixture(scope="module")
def configs(tiny_prior_file: Path) -> dict[str, corrdream.Config]:
    made = {}
    for name, changes in CHANGES.items():
        overrides = tiny_overrides(tiny_prior_file, prompt=UNGRADED, max_steps=STEPS[name], device="cpu")
        overrides |= {"output.checkpoint_every": 5, "output.mesh": False, "seed": len(made)} | changes
        made[name] = corrdream.load_config((), overrides)
    return made


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, configs: dict[str, corrdream.Config]) -> Iterator[Story]:
    import ray

    patch = pytest.MonkeyPatch()
    for key, value in ENVIRONMENT.items():
        patch.setenv(key, value)
    from sweeps.launch import OBJECT_STORE_BYTES, run_trials
    from sweeps.trainable import Spec

    folder = SweepFolder(tmp_path_factory.mktemp("faults") / "small-1")
    trials = tuple(
        PlannedTrial(
            name=name,
            labels={"fault": name},
            prompt=config.prompt,
            seed=config.seed,
            identity=corrdream.identity(config),
            config=corrdream.config_to_dict(config),
        )
        for name, config in configs.items()
    )
    sweep = dataclasses.replace(plan_sweep("small-1", prompts=(UNGRADED,), seeds=(0,)), trials=trials, default=None)
    create_sweep(folder, sweep)
    policy = FaultPolicy(lost=2)  # as many as `hurt` loses, if the notice does not count

    def to_spec(assignment: Assignment) -> Spec:
        trial = assignment.trial
        return Spec(
            sweep_folder=str(folder.path),
            trial=trial.name,
            identity=trial.identity,
            config=trial.config,
            cpus=1,
            gpus=0.0,
            report_seconds=0.2,
            tracking=tracking_of(sweep, trial, "disabled"),
            until=assignment.until,
            session="1",
            policy=dataclasses.asdict(policy),
        )

    said: list[str] = []
    progress = Progress(sweep, folder, steps=STEPS, seconds_per_step=None, concurrent=2, write=said.append)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"worker_process_setup_hook": pretend_gpu()},
    )
    steps: list[int] = []
    injuries = threading.Thread(target=hurt, args=(folder, steps), daemon=True)
    injuries.start()
    try:
        schedule = Schedule(sweep, folder, names=list(configs))
        run_trials(schedule, to_spec, folder, progress, cpus=1, gpus=0.0, max_concurrent=2, max_failures=policy.lost)
    finally:
        ray.shutdown()
        patch.undo()
    injuries.join(timeout=10)
    assert not injuries.is_alive()
    yield Story(folder=folder, sweep=sweep, said=said, told_at=steps[0])
    shutil.rmtree(folder.path)


@pytest.fixture(scope="module")
def undisturbed(configs: dict[str, corrdream.Config], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tensors at the end of a run that no sweep knows of."""

    def train(name: str) -> dict[str, torch.Tensor]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            trainer, run = corrdream.open_run(tmp_path_factory.mktemp("alone") / name, configs[name])
            trainer.fit(run)
        finally:
            torch.set_num_threads(threads)
        path = newest_checkpoint(run.path)
        assert path is not None
        return load_file(path)

    return train


def test_a_trial_survives_preemption_torn_and_dangerous_checkpoints_bit_for_bit(
    story: Story, undisturbed: Callable[[str], Any]
):
    status = story.status("hurt")
    assert (status.state, status.step) == ("finished", STEPS["hurt"])
    assert status.faults == {"preempted": 1, "worker_lost": 2, "checkpoint_torn": 1, "checkpoint_refused": 1}
    assert status.attempts >= 4  # Tune may open a trial once more, where a process that has the prior comes free
    assert not list(story.folder.path.rglob("executed"))
    disturbed, alone = story.tensors("hurt"), undisturbed("hurt")
    assert disturbed.keys() == alone.keys()
    assert all(torch.equal(disturbed[key], alone[key]) for key in alone)
    assert "told to leave (SIGTERM); a checkpoint was saved" in "\n".join(story.said)
    # The progress shows the last thing that a trial says; its log has all of them.
    log = (story.folder.trial("hurt") / "log.txt").read_text()
    assert "is torn or not a safetensors file" in log
    assert "is refused: it is a pickle" in log
    assert log.count("Using the one before it.") == 2


def test_nothing_is_lost_by_a_preemption_notice(story: Story):
    log = (story.folder.trial("hurt") / "log.txt").read_text()
    resumed = int(log.partition("from step ")[2].partition(".")[0])
    assert resumed >= story.told_at
    assert steps_done(story.folder.trial("hurt")) == STEPS["hurt"]


def test_out_of_memory_is_retried_once_with_fewer_rays_and_the_same_result(
    story: Story, configs: dict[str, corrdream.Config], tmp_path: Path
):
    status = story.status("memory")
    assert (status.state, status.faults) == ("finished", {"out_of_memory": 1})
    assert status.attempts >= 2
    assert status.ray_chunk == 4 * 24 * 24 // 4
    trainer, run = corrdream.open_run(tmp_path / "alone", configs["memory"])
    trainer.fit(run)
    rows = RunFolder(story.folder.trial("memory")).read_metrics()
    assert len(rows) == STEPS["memory"]
    # Gradients are summed in another order, and AdamW turns rounding into signs where a gradient is almost zero.
    for ours, alone in zip(rows, run.read_metrics(), strict=True):
        assert ours["loss/total"] == pytest.approx(alone["loss/total"], rel=1e-2)
        assert ours["samples"] == pytest.approx(alone["samples"], rel=1e-2)


def test_out_of_memory_again_fails_the_trial_with_its_figures(story: Story):
    status = story.status("no_memory")
    assert (status.state, status.faults) == ("failed", {"out_of_memory": 2})
    assert status.error == "OutOfMemoryError: out of memory at step 0 with 6400 rays at a time."


def test_a_gradient_that_is_not_finite_stops_the_trial_and_keeps_its_last_good_checkpoint(story: Story):
    status = story.status("diverging")
    assert (status.state, status.attempts, status.faults) == ("failed", 1, {"not_finite": 1})
    assert "step 7: the gradient is not finite" in status.error
    assert all(bool(torch.isfinite(value.float()).all()) for value in story.tensors("diverging").values())


def test_a_full_disk_fails_the_trial_and_keeps_what_was_saved(story: Story):
    status = story.status("full")
    assert (status.state, status.faults) == ("failed", {"disk_full": 1})
    assert "File too large" in status.error
    assert story.tensors("full")


def test_the_counts_stand_in_table_and_report(story: Story, tmp_path: Path):
    results = read_results(story.sweep, story.folder)
    counts = count_faults(results)
    assert {"preempted": 1, "worker_lost": 2, "out_of_memory": 3, "not_finite": 1}.items() <= counts.items()
    write_report(tmp_path / "report.html", story.sweep, results)
    assert describe_faults(counts) in (tmp_path / "report.html").read_text()
    write_csv(tmp_path / "results.csv", results)
    assert "checkpoint_refused=1 checkpoint_torn=1 preempted=1 worker_lost=2" in (tmp_path / "results.csv").read_text()


def test_policies_are_read_and_given_back():
    policy = FaultPolicy.parse(["lost=5", "out_of_memory=fail"])
    assert policy == FaultPolicy(lost=5, out_of_memory="fail")
    assert FaultPolicy.parse(policy.words()) == policy
    assert FaultPolicy().words() == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("oom=fail", "unknown fault 'oom'; known are lost, out_of_memory, disk_full"),
        ("lost=many", "lost must be a whole number from 0, got 'many'"),
        ("disk_full=wait", "disk_full must be one of fail, retry, got 'wait'"),
    ],
)
def test_a_policy_that_is_not_known_is_one_line(word: str, said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SweepError, match=said):
        FaultPolicy.parse([word])
    assert main(["--grid", "rescale", "--dry-run", "--on-fault", word]) == 2
    assert said in capsys.readouterr().err


def test_sigterm_is_a_notice_inside_and_what_it_was_outside():
    before = signal.getsignal(signal.SIGTERM)
    with preemption_notice() as notice:
        assert not notice
        timer_threads = threading.active_count()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice
        assert threading.active_count() == timer_threads + 1
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.cancel()  # or this process leaves when the grace is over
    assert signal.getsignal(signal.SIGTERM) == before
