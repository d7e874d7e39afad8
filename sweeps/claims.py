"""Locks in an object store, which has none: a holder puts an object of its own, then looks for those of others.

Every claim has its own name, so that none overwrites another, and a listing shows every object whose writing has
returned. Of two that claim at once the later one therefore sees the earlier: at most one finds itself alone, and the
others withdraw. A holder writes its claim anew every BEAT seconds; one that is older than EXPIRY, by the store's clock,
or whose process is seen to be dead on this node, does not count.

What this does not promise: a holder that was stopped, or cut off from the store, for longer than EXPIRY may have lost
the lock. It looks before every write (`check`); only one that is stopped between that look and the write can still
write once beside the new holder.
"""

import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sweeps.locks import LockedError
from sweeps.object_files import ObjectFiles
from sweeps.processes import Process

BEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
PAUSE_SECONDS = (0.5, 1.5)  # between attempts, at random, so that two that try at once part


class Claim:
    """A lock that is held as long as its holder can tell the store."""

    def __init__(self, files: ObjectFiles, folder: str) -> None:
        """Puts the claim, which is not yet the lock."""
        self._files = files
        self._folder = folder
        self._name = f"{folder}/{Process.this().to_text()}_{uuid.uuid4().hex}"
        self._lost = False
        self._ended = threading.Event()
        self._write_lock = threading.Lock()
        self._written = time.monotonic()
        files.write(self._name, b"held")

    def rivals(self) -> list[str]:
        """Who else claims the lock, in words; claims that do not count are removed."""
        times, rivals = self._files.times(self._folder), []
        now = times.get(self._name)
        if now is None:
            raise OSError(f"{self._files.uri} does not list what was written before; it cannot hold locks")
        for name, written in times.items():
            holder = Process.of(name.rpartition("/")[2].rpartition("_")[0])
            if holder.is_dead_here() or (now - written).total_seconds() > EXPIRY_SECONDS:
                self._files.delete(name)
            elif name != self._name:
                rivals.append(holder.to_words())
        return rivals

    def check(self) -> None:
        """LockedError if it was lost."""
        if self._is_in_doubt():
            self._files.patiently(self._renew)
        if self._lost:
            raise LockedError(f"{self._folder} was taken over by another process while this one was cut off.")

    def beat(self) -> None:
        """Writes the claim anew until it is withdrawn; in a thread of its own."""
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._renew()
            except OSError:  # the store is away: next time
                continue

    def withdraw(self) -> None:
        """Lets the lock go."""
        self._ended.set()
        with self._write_lock:
            self._files.delete(self._name)

    def _renew(self) -> None:
        with self._write_lock:
            if self._ended.is_set() or self._lost:
                return
            was_in_doubt, begun = self._is_in_doubt(), time.monotonic()
            self._files.write_once(self._name, b"held")
            if was_in_doubt and self.rivals():
                self._lost = True
                self._files.delete(self._name)
            self._written = begun

    def _is_in_doubt(self) -> bool:
        """Whether it is so old that others may soon not count it; half the time is for clocks and slow writes."""
        return time.monotonic() - self._written > EXPIRY_SECONDS / 2


@contextmanager
def hold_claim(files: ObjectFiles, folder: str, *, wait_seconds: float) -> Iterator[Claim]:
    """Holds the lock while inside; LockedError, naming the holder, if it is not free within `wait_seconds`."""
    deadline = time.monotonic() + wait_seconds
    while rivals := (claim := Claim(files, folder)).rivals():
        claim.withdraw()
        if time.monotonic() >= deadline:
            where = folder.rpartition("/")[0]
            raise LockedError(f"{where} is in use by {rivals[0]}; wait for it, or end it.")
        time.sleep(random.uniform(*PAUSE_SECONDS))
    beating = threading.Thread(target=claim.beat, daemon=True)
    beating.start()
    try:
        yield claim
    finally:
        claim.withdraw()


def create_folder(files: ObjectFiles, folder: str) -> None:
    """Puts the first object into the folder; FileExistsError if there is one, or somebody else is faster."""
    name = f"{folder}/.created-{uuid.uuid4().hex}"
    for _ in range(5):
        if files.times(folder):
            raise FileExistsError(folder)
        files.write(name, b"created")
        if len(files.times(folder)) == 1:
            return
        files.delete(name)
        time.sleep(random.uniform(*PAUSE_SECONDS))
    raise FileExistsError(folder)
