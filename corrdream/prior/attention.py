"""Which kernel computes the UNet's attention: torch's own, or that of xformers."""

from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from corrdream.backends import MissingBackendError, require
from corrdream.prior.network import Attend

AttentionKind = Literal["auto", "sdpa", "xformers"]
KEY = "prior.attention=xformers"


def build_attention(kind: AttentionKind, device: torch.device, dtype: torch.dtype) -> Attend:
    """The attention function; MissingBackendError if xformers is missing or has no operator for this device.

    auto is torch's own, which picks a fused kernel itself and depends on no other package's build.
    """
    match kind:
        case "auto" | "sdpa":
            return F.scaled_dot_product_attention
        case "xformers":
            return _xformers(device, dtype)
        case _:
            assert_never(kind)


def _xformers(device: torch.device, dtype: torch.dtype) -> Attend:
    require("xformers", KEY)
    operators = require("xformers.ops", KEY)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of [B heads T C]; xformers wants tokens before heads."""
        swapped = (part.transpose(1, 2) for part in (query, key, value))
        attended: Tensor = operators.memory_efficient_attention(*swapped)
        return attended.transpose(1, 2)

    try:
        attend(*(torch.zeros(1, 1, 8, 64, device=device, dtype=dtype) for _ in range(3)))
    except NotImplementedError as error:  # how xformers says that no operator was built for this torch and device
        raise MissingBackendError(
            f"{KEY}: the installed xformers has no attention operator for {dtype} on {device.type} with torch "
            f"{torch.__version__}; install the xformers that was built for this torch, or use prior.attention=sdpa. "
            f"It says: {error}"
        ) from error
    return attend
