"""Errors, and locks of the operating system's, which end with the process that held them, however that ended."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SweepError(ValueError):
    """A sweep that cannot be started or continued: one line that names the thing and the cure."""


class NameTakenError(SweepError):
    """A sweep of that name exists."""


class LockedError(SweepError):
    """Another process holds the lock."""


@contextmanager
def hold_lock(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock while inside; LockedError, naming the holder, if it is not free within `wait_seconds`."""
    deadline = time.monotonic() + wait_seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise LockedError(f"{path.parent} is in use by {holder}; wait for it, or end it.") from error
                time.sleep(0.2)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
