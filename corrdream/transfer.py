"""Between host and device without waiting: neither what is drawn on the CPU nor what is logged may stop a busy GPU."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def to_device(tensor: Shaped[Tensor, "*N"], device: torch.device | str) -> Shaped[Tensor, "*N"]:
    """The tensor on `device`; on a GPU the copy is queued behind the work that is under way."""
    target = torch.device(device)
    if target.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(target)
    return tensor.pin_memory().to(target, non_blocking=True)


def all_to_device(tensors: Sequence[Shaped[Tensor, "..."]], device: torch.device | str) -> list[Shaped[Tensor, "..."]]:
    """Tensors of one dtype on `device`, in a single copy; themselves if they are there."""
    target = torch.device(device)
    if all(tensor.device.type == target.type and target.index in (None, tensor.device.index) for tensor in tensors):
        return list(tensors)
    packed = to_device(torch.cat([tensor.flatten() for tensor in tensors]), device)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class HostCopy:
    """A device's values on their way to the host."""

    def __init__(self, values: Shaped[Tensor, "..."]) -> None:
        self._values, self._arrival = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    @property
    def is_there(self) -> bool:
        """Whether they have arrived."""
        return self._arrival is None or bool(self._arrival.query())

    def read(self) -> Shaped[Tensor, "..."]:
        """The values; waits for what they need and for nothing that the device was given since."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._values
