"""What Ray adds to a sweep, measured through the product's own launch code: `python tests/benchmarks/overhead.py`.

Not part of `make check`: it takes minutes, and a loaded machine falsifies it. Prints one line a figure.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf

from sweeps.folders import Status, create_sweep
from sweeps.jobs import Job, new_job, schedule_of
from sweeps.locks import hold_lock
from sweeps.progress import Progress
from sweeps.run import ENVIRONMENT, REPORT_SECONDS, parse

ROOT = Path(__file__).parent.parent.parent
SEEDS_A_SETTING = 100


def main() -> None:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000, help="of the large grid, a multiple of 100")
    parser.add_argument("--few", type=int, default=16, help="trials with which reuse of actors is compared")
    parser.add_argument("--reports", type=int, default=300, help="of one trial whose reports are timed")
    parser.add_argument("--skip-sweep", action="store_true", help="without the real sweep of two trials")
    arguments = parser.parse_args()
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    say("machine", f"{cores} cores, load {load:.1f} before, Python {platform.python_version()}, Ray {version('ray')}")
    with tempfile.TemporaryDirectory() as place:
        if not arguments.skip_sweep:
            measure_sweep(Path(place))
        measure_trials(Path(place), arguments.few, arguments.reports)
        measure_large(Path(place), arguments.trials)
    say("load", f"{os.getloadavg()[0]:.1f} after")


def say(what: str, text: str) -> None:
    """One line."""
    print(f"{what:<34}{text}", flush=True)


def measure_sweep(place: Path) -> None:
    """A real sweep of the built-in world: from the command to the first step, and what is not steps after it."""
    command = [sys.executable, str(ROOT / "sweeps" / "run.py"), "--grid", "rescale", "--prompts", "a snowman"]
    command += ["--max-steps", "60", "--max-concurrent", "1", "--storage", str(place), "--name", "real"]
    begun = time.time()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=place) as process:
        first = None
        while first is None:
            assert process.poll() is None, "the sweep ended without a step"
            first = next(iter(place.glob("real/trials/*/metrics.jsonl")), None)
            time.sleep(0.05)
        say("command to first step", f"{time.time() - begun:.1f} s")
        process.wait()
    statuses = [json.loads(path.read_text()) for path in place.glob("real/trials/*/status.json")]
    assert [status["state"] for status in statuses] == ["finished"] * 4, statuses
    for path in sorted(place.glob("real/trials/*/metrics.jsonl"))[:1]:
        steps = [json.loads(line)["seconds"] for line in path.read_text().splitlines()]
        say("one step", f"median {statistics.median(steps):.3f} s")
    say("the whole sweep", f"{time.time() - begun:.1f} s for 4 trials of 60 steps, one after the other")


def measure_trials(place: Path, few: int, reports: int) -> None:
    """Trials and reports of a trainable that does nothing."""
    for reuse in (True, False):
        job = make_job(place / f"reuse-{reuse}", settings=1, seeds=few)
        seconds, _ = run_trivial(job, reports=1, reuse_actors=reuse)
        say(f"overhead a trial, reuse {'on' if reuse else 'off'}", f"{1000 * seconds / few:.0f} ms ({few} trials)")
    for reuse in (True, False):
        job = make_job(place / f"reports-{reuse}", settings=1, seeds=1)
        _, gaps = run_trivial(job, reports=reports, reuse_actors=reuse)
        median, high = statistics.median(gaps), statistics.quantiles(gaps, n=20)[-1]
        say(
            f"a report, reuse {'on' if reuse else 'off'}",
            f"median {1000 * median:.1f} ms, 95% {1000 * high:.1f} ms between two steps: "
            f"{median / REPORT_SECONDS:.2%} of the {REPORT_SECONDS} s of steps that each stands for",
        )


def measure_large(place: Path, trials: int) -> None:
    """A large grid: does the driver grow?"""
    begun = time.monotonic()
    job = make_job(place / "large", settings=max(1, trials // SEEDS_A_SETTING), seeds=min(trials, SEEDS_A_SETTING))
    say("planning the large grid", f"{time.monotonic() - begun:.1f} s for {len(job.sweep.trials)} trials")
    samples: list[tuple[float, int]] = []
    with sampled_memory(samples):
        seconds, gaps = run_trivial(job, reports=2)
    say("the large grid", f"{seconds:.1f} s, {1000 * seconds / len(job.sweep.trials):.0f} ms a trial")
    tenth = max(1, len(gaps) // 10)
    early, late = statistics.median(gaps[tenth : 2 * tenth]), statistics.median(gaps[-tenth:])
    say("latency of a report", f"median {1000 * early:.1f} ms in the second tenth, {1000 * late:.1f} ms in the last")
    part = max(1, len(samples) // 10)
    first, last = (
        statistics.median(size for _, size in part_) for part_ in (samples[part : 2 * part], samples[-part:])
    )
    say("memory of the driver", f"{first / 1e6:.0f} MB in the second tenth, {last / 1e6:.0f} MB in the last")


def make_job(folder: Path, *, settings: int, seeds: int) -> Job:
    """A planned sweep of the built-in world that nothing will train."""
    folder.mkdir(parents=True)
    grid = folder / "grid.yaml"
    scales = [round(2 + 0.1 * i, 1) for i in range(settings)]
    plain: dict[str, Any] = {"parameters": {"guidance.guidance_scale": scales}, "prompts": ["a snowman"]}
    grid.write_text(OmegaConf.to_yaml(plain | {"seeds": list(range(seeds))}))
    return new_job(parse(["--grid", str(grid), "--storage", str(folder), "--name", "sweep"]))


def run_trivial(job: Job, *, reports: int, reuse_actors: bool = True) -> tuple[float, Sequence[float]]:
    """Seconds that Tune takes once Ray runs, and the times between reporting and the next step, in their order."""
    from sweeps.launch import ray_session, run_trials
    from sweeps.trainable import Spec

    create_sweep(job.folder, job.sweep)
    steps = {trial.name: 1 for trial in job.sweep.trials}
    progress = Progress(
        job.sweep, job.folder, steps=steps, seconds_per_step=None, concurrent=1, write=lambda line: None
    )
    gaps: list[float] = []
    report = progress.report

    def hear(name: str, status: dict[str, Any]) -> None:
        gaps.extend(status["gaps"])
        report(name, status)

    progress.report = hear  # type: ignore[method-assign]  # to listen, not to change
    cpus = len(os.sched_getaffinity(0))
    with hold_lock(job.folder.driver_lock), ray_session(None, num_cpus=cpus, num_gpus=0):
        begun = time.monotonic()
        run_trials(
            schedule_of(job),
            lambda assignment: Spec(
                sweep_folder=str(job.folder.path),
                trial=assignment.trial.name,
                identity=assignment.trial.identity,
                config=assignment.trial.config,
                cpus=reports,  # all that Trivial looks at
                gpus=0.0,
                report_seconds=REPORT_SECONDS,
                until=assignment.until,
            ),
            job.folder,
            progress,
            cpus=1,
            gpus=0.0,
            max_concurrent=cpus,
            trainable=trivial_trainable(),
            reuse_actors=reuse_actors,
        )
        seconds = time.monotonic() - begun
    assert len(progress.ended) == len(job.sweep.trials), f"{len(progress.ended)} trials ended"
    assert not progress.errors, progress.errors
    return seconds, gaps


def trivial_trainable() -> Any:
    """A trainable that does nothing; made here, so that workers get it by value and Ray is imported late."""
    from ray import tune

    class Trivial(tune.Trainable):
        """Does nothing but report; each report says how long the one before it kept this step waiting."""

        def setup(self, config: dict[str, Any]) -> None:
            """Reads the number of reports, which stands where the threads of a trial do."""
            spec = json.loads(config["spec"])
            self._left = spec["cpus"]
            self._status = Status(identity=spec["identity"], state="running", max_steps=1)
            self._reported: float | None = None

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Starts another trial."""
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            """One report."""
            now = time.monotonic()
            gaps = [] if self._reported is None else [now - self._reported]
            self._left -= 1
            is_done = self._left == 0
            if is_done:
                self._status = dataclasses.replace(self._status, state="finished", step=1)
            self._reported = time.monotonic()
            report = {"done": is_done, "warnings": [], "measured": {}, "gaps": gaps}
            return dataclasses.asdict(self._status) | report

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing to save."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing to load."""

    return Trivial


@contextmanager
def sampled_memory(samples: list[tuple[float, int]], every: float = 0.5) -> Iterator[None]:
    """Appends (time, bytes of this process) while inside."""
    process, over = psutil.Process(), threading.Event()

    def sample() -> None:
        while not over.wait(every):
            samples.append((time.monotonic(), process.memory_info().rss))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
