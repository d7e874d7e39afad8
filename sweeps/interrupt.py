"""Ctrl-C (and SIGTERM) ask every running trial to save and stop, through a file that all of them see."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from sweeps.folders import SweepFolder

GRACE_SECONDS = 15.0  # then the program leaves; what was saved until then is kept


class Interruption:
    """Turns the first signal into the stop file, and the second, or the end of the grace, into an exit."""

    def __init__(self, folder: SweepFolder, say: Callable[[str], None], last_words: str) -> None:
        self._storage, self._stop_file = folder.storage, folder.stop_file
        self._say = say
        self._last_words = last_words
        self.exit_code: int | None = None  # set by a signal: 130 for Ctrl-C, 143 for SIGTERM

    def install(self) -> None:
        """Forgets an earlier interruption and takes over both signals; after Ray's start, which takes SIGTERM."""
        self._storage.delete(self._stop_file)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.exit_code is not None:
            self._leave()
        self.exit_code = 128 + number
        self._stop_file.touch()
        threading.Thread(target=self._storage.push, args=([self._stop_file],), daemon=True).start()
        self._say("Stopping: every running trial saves a checkpoint first (again to leave at once).")
        timer = threading.Timer(GRACE_SECONDS, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        self._say(self._last_words)
        os._exit(self.exit_code or 1)
