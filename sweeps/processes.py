"""Names of processes by which another process, also on another node, can tell whether they have died."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of some node. `place` is the node's boot and namespace: where a number means the same."""

    node: str
    place: str
    number: str
    started: str  # as the kernel counts, since numbers are used again

    @classmethod
    def this(cls) -> "Process":
        """The one that runs this."""
        number = str(os.getpid())
        return cls(os.uname().nodename, _place(), number, _started(number))

    @classmethod
    def of(cls, text: str) -> "Process":
        """What `to_text` gave."""
        return cls(*text.rsplit("_", 3))

    def to_text(self) -> str:
        """Fit for a part of a file's name."""
        return f"{self.node}_{self.place}_{self.number}_{self.started}"

    def to_words(self) -> str:
        """For people."""
        return f"process {self.number} on {self.node}"

    def is_dead_here(self) -> bool:
        """Whether it ran on this node and does not any more."""
        return (self.node, self.place) == (os.uname().nodename, _place()) and _started(self.number) != self.started


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:8]
    return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"


def _started(number: str) -> str:
    """0 if there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "0"
    return "0" if fields[0] in "ZX" else fields[19]
