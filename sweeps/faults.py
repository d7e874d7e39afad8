"""What a sweep does about each fault, and how it counts them.

A fault is known by one of KINDS; a trial's status counts how often it met each. A trial that can go on is tried again
without counting against anyone when that is not its fault (the machine is taken away) or helps for sure (once, after
the memory ran out, with fewer rays at a time); `FaultPolicy.lost` limits how often a process may simply die.
"""

import dataclasses
import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from sweeps.locks import SweepError

KINDS = {
    "worker_lost": "worker processes that died",
    "driver_lost": "drivers that died, with the trials they ran",
    "preempted": "preemption notices",
    "out_of_memory": "GPU memory full",
    "not_finite": "gradients not finite",
    "disk_full": "disk full or read-only",
    "checkpoint_torn": "torn checkpoints, the one before was used",
    "checkpoint_refused": "checkpoints that could execute code, refused",
}
GRACE_SECONDS = 15.0  # after a preemption notice, then the process leaves; what was saved until then is kept

# By their texts: not every library keeps the number.
DISK_ERRORS = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)))

POLICIES = {"out_of_memory": ("smaller_chunk", "fail"), "disk_full": ("fail", "retry")}
POLICY_KEYS = ("lost", *POLICIES)


@dataclass(frozen=True, kw_only=True)
class FaultPolicy:
    """One field for each fault that leaves a choice."""

    lost: int = 2  # how often a trial is tried again after its process or its node was lost
    out_of_memory: Literal["smaller_chunk", "fail"] = "smaller_chunk"  # once; the same result to rounding
    disk_full: Literal["fail", "retry"] = "fail"  # retry counts as lost

    @classmethod
    def parse(cls, words: Sequence[str]) -> "FaultPolicy":
        """From `lost=5 out_of_memory=fail`; SweepError names what is not known."""
        changes: dict[str, Any] = {}
        for word in words:
            key, _, value = word.partition("=")
            if key not in POLICY_KEYS:
                raise SweepError(f"--on-fault {word}: unknown fault {key!r}; known are {', '.join(POLICY_KEYS)}.")
            if key == "lost":
                if not value.isdecimal():
                    raise SweepError(f"--on-fault {word}: lost must be a whole number from 0, got {value!r}.")
                changes[key] = int(value)
            elif value not in POLICIES[key]:
                raise SweepError(f"--on-fault {word}: {key} must be one of {', '.join(POLICIES[key])}, got {value!r}.")
            else:
                changes[key] = value
        return cls(**changes)

    def words(self) -> list[str]:
        """What `parse` reads, for what differs from the default."""
        plain = dataclasses.asdict(self)
        return [f"{key}={value}" for key, value in plain.items() if value != getattr(FaultPolicy(), key)]


def is_disk_error(error: Exception) -> bool:
    """Whether nothing can be written any more."""
    return any(text in str(error) for text in DISK_ERRORS)


def add(counts: Mapping[str, int], kinds: Iterable[str]) -> dict[str, int]:
    """The counts with one more of each."""
    return dict(Counter(counts) + Counter(kinds))


def describe_faults(counts: Mapping[str, int]) -> str:
    """`worker processes that died 2, preemption notices 1`; empty without any."""
    return ", ".join(f"{KINDS.get(kind, kind)} {count}" for kind, count in sorted(counts.items()))


class Notice:
    """Whether this process was told to leave."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def __bool__(self) -> bool:
        return self._told.is_set()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Asks the trial to save and leave; leaves anyway when the grace is over."""
        self._told.set()
        timer = threading.Timer(GRACE_SECONDS, os._exit, (128 + signal.SIGTERM,))
        timer.daemon = True
        timer.start()


@contextmanager
def preemption_notice() -> Iterator[Notice]:
    """Turns SIGTERM, which a machine that is taken away sends, into a notice while inside."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():  # signals only come to that one
        yield notice
        return
    previous = signal.signal(signal.SIGTERM, notice.on_signal)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, previous)
