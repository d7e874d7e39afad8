"""What a sweep will take, before it takes it: time from measured steps, memory and disk from the same measurement."""

import dataclasses
import math
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from corrdream import Config
from sweeps.locks import SweepError
from sweeps.progress import GRADE_SECONDS, format_seconds

MINIATURE_STEPS = 6
MEASURE_SECONDS = 20.0
RAY_SECONDS = 10.0  # to start and to end Ray, as seen on two cores
PICTURE_BYTES = 2_000_000  # previews, turntable, event files of a trial
SPARE_BYTES = 300_000_000  # left free on the disk; a run refuses to start with less than 200 MB
MEMORY_SHARE = 0.85  # of what is free


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of a miniature run with one trial's resources."""

    seconds_per_step: float
    start_seconds: float  # imports and loading the prior
    memory_bytes: float  # peak of the process
    checkpoint_bytes: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine has free."""

    cpus: int
    memory_bytes: int
    gpus: int


def measure(config: Config, *, cpus: int, gpus: float) -> Measurement | None:
    """A run of few steps whose `progress` passes through every phase of the real one; None if it cannot be run here.

    It runs in a process of its own, so that its memory is free again before the trials start; Ctrl-C is not for it.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process inherits it as it starts
            try:
                measured = pool.submit(_measure_here, config, cpus, gpus)
            finally:
                signal.signal(signal.SIGINT, before)
            return measured.result()
    except (RuntimeError, BrokenProcessPool):  # no memory, no GPU: the estimate is missing, the sweep may still run
        return None


def _measure_here(config: Config, cpus: int, gpus: float) -> Measurement:
    begun = time.monotonic()
    import torch

    from corrdream import build

    torch.set_num_threads(cpus)
    miniature = dataclasses.replace(config, max_steps=MINIATURE_STEPS, schedule_steps=MINIATURE_STEPS)
    trainer = build(miniature, device=None if gpus else torch.device("cpu"))
    dict(trainer.train_step())  # the first one allocates and tunes; to read its figures is to wait for its end
    trainer = build(miniature, prior=trainer.prior, device=trainer.device)
    started = time.monotonic()
    while not trainer.finished and time.monotonic() - started < MEASURE_SECONDS:
        metrics = trainer.train_step()
    dict(metrics)
    ended = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.safetensors"
        trainer.save(path)
        size = path.stat().st_size
    return Measurement(
        seconds_per_step=(ended - started) / trainer.step,
        start_seconds=started - begun,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        checkpoint_bytes=size,
    )


def this_machine() -> Machine:
    """Cores that this process may use, memory that is free to it, and GPUs, containers' limits included."""
    cpus = len(os.sched_getaffinity(0))
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cpus = max(1, min(cpus, int(quota) // int(period)))
    memory = int(_meminfo()["MemAvailable"])
    limit, used = (_first_line(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        memory = min(memory, int(limit) - int(used))
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return Machine(cpus=cpus, memory_bytes=memory, gpus=visible_gpus(present, os.environ.get("CUDA_VISIBLE_DEVICES")))


def visible_gpus(present: int, visible_devices: str | None) -> int:
    """How many of the GPUs CUDA_VISIBLE_DEVICES leaves; as CUDA does, its list ends at the first -1 or empty name."""
    if visible_devices is None:
        return present
    named = takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in visible_devices.split(",")))
    return min(present, len(list(named)))


def _first_line(path: str) -> str:
    try:
        return (Path(path).read_text(encoding="utf-8").splitlines() or [""])[0]
    except OSError:
        return ""


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}


def concurrency(
    machine: Machine, *, trials: int, cpus: int, gpus: float, limit: int | None, measured: Measurement | None
) -> int:
    """How many trials this machine runs at once; SweepError if not even one fits."""
    if cpus > machine.cpus:
        raise SweepError(f"--cpus-per-trial {cpus} is more than this machine's {machine.cpus} cores.")
    if gpus > machine.gpus:
        raise SweepError(f"--gpus-per-trial {gpus:g} is more than this machine's {machine.gpus} GPUs.")
    bounds = [machine.cpus // cpus, trials]
    if gpus:
        bounds.append(math.floor(machine.gpus / gpus + 1e-9))
    if limit:
        bounds.append(limit)
    if measured:
        bounds.append(max(1, int(machine.memory_bytes * MEMORY_SHARE / measured.memory_bytes)))
    return max(1, min(bounds))


def estimate_seconds(measured: Measurement, steps_left: list[int], concurrent: int) -> float:
    """Wall time: the trials share `concurrent` places, and the longest one cannot be split."""
    rounds = math.ceil(len(steps_left) / concurrent)
    steps = max(max(steps_left, default=0) * rounds, sum(steps_left) / concurrent)
    fixed = RAY_SECONDS + measured.start_seconds + GRADE_SECONDS * rounds
    return fixed + measured.seconds_per_step * steps


def check_disk(folder: Path, *, trials: int, keep: int, measured: Measurement | None) -> None:
    """SweepError if the trials' checkpoints and pictures will not fit."""
    size = measured.checkpoint_bytes if measured else 0
    needed = trials * ((keep + 1) * size + PICTURE_BYTES) + SPARE_BYTES
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SweepError(
            f"{existing} has {free / 1e6:.0f} MB free, the sweep needs {needed / 1e6:.0f} MB;"
            " make room, or choose another place with --storage."
        )


def format_plan(plan: dict[str, Any]) -> str:
    """Aligned `what: value` lines; a value may have several."""
    width = max(len(key) for key in plan) + 2
    return "\n".join(f"{key:<{width}}{value}".replace("\n", "\n" + " " * width) for key, value in plan.items())


def describe_time(measured: Measurement | None, steps_left: list[int], concurrent: int) -> str:
    """`about 6 min (measured: 0.41 s a step)`."""
    if measured is None:
        return "unknown until the first steps are done (no step could be measured here)"
    seconds = estimate_seconds(measured, steps_left, concurrent)
    return f"about {format_seconds(seconds)} (measured: {measured.seconds_per_step:.2f} s a step of one trial alone)"
