"""What a trial's process says: all of it in TRIAL/log.txt, warnings also to whoever watches the sweep."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOGGERS = ("corrdream", "sweeps")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Warnings(logging.Handler):
    """Keeps warnings until they are taken, and the faults that they name."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the text, and the fault of `logger.warning(..., extra={"fault": ...})`."""
        self._texts.append(record.getMessage())
        if fault := getattr(record, "fault", None):
            self.faults.append(fault)

    def take(self) -> list[str]:
        """Those since the last time."""
        taken, self._texts = self._texts, []
        return taken


@contextmanager
def trial_log(folder: Path) -> Iterator[Warnings]:
    """Logs into the folder while inside."""
    folder.mkdir(parents=True, exist_ok=True)
    file, warnings = logging.FileHandler(folder / "log.txt", encoding="utf-8"), Warnings()
    file.setFormatter(logging.Formatter(FORMAT))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(file)
        logger.addHandler(warnings)
    try:
        yield warnings
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(file)
            logging.getLogger(name).removeHandler(warnings)
        with suppress(OSError):  # what a full disk did not take
            file.close()
