"""From the host to a device without waiting: what the generator draws on the CPU must not stop a GPU that is busy."""

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
    """Tensors of one dtype on `device`, in a single copy."""
    packed = to_device(torch.cat([tensor.flatten() for tensor in tensors]), device)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
