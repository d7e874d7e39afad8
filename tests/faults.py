"""Ways to hurt a trial that runs, used by the tests of faults and by the chaos run."""

import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def worker_of(trial: Path) -> int | None:
    """The process that works on the trial, if there is one."""
    try:
        found = re.search(r"process (\d+)", (trial / "trial.lock").read_text())
    except FileNotFoundError:
        return None
    return int(found[1]) if found and is_alive(int(found[1])) else None


def is_alive(process: int) -> bool:
    """Whether it runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def steps_done(trial: Path) -> int:
    """Rows of metrics.jsonl."""
    try:
        return (trial / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def wait_until(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def newest_checkpoint(trial: Path) -> Path | None:
    """The file that the next attempt would start from."""
    return max(trial.glob("checkpoints/step-*.safetensors"), default=None)


def kill(process: int) -> None:
    """As a machine that loses its power does."""
    os.kill(process, signal.SIGKILL)


def kill_with(trial: Path, process: int, spoil: Callable[[Path], None]) -> Path | None:
    """Kills the worker and spoils its newest checkpoint; it is stopped first, so that it writes no newer one."""
    os.kill(process, signal.SIGSTOP)
    time.sleep(0.1)
    path = newest_checkpoint(trial)
    if path is not None:
        spoil(path)
    os.kill(process, signal.SIGKILL)
    return path


def tear(path: Path) -> None:
    """Leaves the first half of the file."""
    os.truncate(path, path.stat().st_size // 2)


class Bomb:
    """Whoever unpickles it creates a file."""

    def __init__(self, victim: Path) -> None:
        self._victim = victim

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, (f"open({str(self._victim)!r}, 'w')",))


def plant_bomb(path: Path) -> None:
    """Replaces the file by a pickle that executes code."""
    torch.save(Bomb(path.with_name("executed")), path)


def fill_disk(process: int) -> Callable[[], None]:
    """No file of the process may grow any more; returns what takes that back."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (1000, before[1]))

    def undo() -> None:
        if is_alive(process):
            resource.prlimit(process, resource.RLIMIT_FSIZE, before)

    return undo
