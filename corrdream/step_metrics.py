"""What a step logs, read from the device when it is asked for: until then a GPU works and the host goes on."""

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from corrdream.artifacts import RunFolder
from corrdream.transfer import HostCopy


class StepMetrics(Mapping[str, float]):
    """A step's figures under stable names; the first that is asked for waits until the step is done."""

    def __init__(self, tensors: Mapping[str, Tensor], known: Mapping[str, float]) -> None:
        """Scalars on the device, and what the host knows anyway."""
        self._names = (*tensors, *known)
        self._known = tuple(known.values())
        self._copy = HostCopy(torch.stack([value.detach().double() for value in tensors.values()]))

    @property
    def are_there(self) -> bool:
        """Whether reading them would not wait."""
        return self._copy.is_there

    @cached_property
    def _values(self) -> dict[str, float]:
        return dict(zip(self._names, (*self._copy.read().tolist(), *self._known), strict=True))

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class MetricsLog:
    """Writes a run's rows in their order, each when its figures have come or the next one is there."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.last: dict[str, float] = {}
        self._waiting: tuple[int, float, StepMetrics] | None = None

    def add(self, step: int, seconds: float, metrics: StepMetrics) -> None:
        """The figures of the step that was taken last."""
        self.flush()
        self._waiting = step, seconds, metrics
        if metrics.are_there:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        if self._waiting is not None:
            step, seconds, metrics = self._waiting
            self._waiting = None
            self.last = {"step": float(step), "seconds": seconds, **metrics}
            self.run.append_metrics(self.last)
