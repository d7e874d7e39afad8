"""A frozen network's calls made fast where their shapes repeat: compiled, and replayed as CUDA graphs.

The first call of each shape prepares it, which takes seconds (full) or less (graph) and is logged. What cannot be
compiled runs as it is, with a warning. Compiled code is kept in CORRDREAM_CACHE, or where TORCHINDUCTOR_CACHE_DIR says;
processes that share the directory share the work.
"""

import logging
import os
import time
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from corrdream.prior.text_cache import default_cache

Compilation = Literal["full", "graph", "off"]
TensorFunction = Callable[..., tuple[Tensor, ...]]

log = logging.getLogger(__name__)


class PreparedFunction:
    """A function of tensors; for each shape of its arguments a version that is prepared at the first call.

    full: compiled, and without gradient on a GPU also captured; graph: captured only; off: the function itself.
    """

    def __init__(self, function: TensorFunction, name: str, compilation: Compilation) -> None:
        self.function = function
        self.name = name
        self.compilation: Compilation = compilation
        self.seconds: dict[str, float] = {}  # spent on each shape
        self._versions: dict[Hashable, TensorFunction] = {}

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """What the function returns, in tensors of the caller's own."""
        if self.compilation == "off":
            return self.function(*arguments)
        key = _key(arguments)
        if key not in self._versions:
            self._versions[key] = self._prepare(arguments)
        return self._versions[key](*arguments)

    def _prepare(self, arguments: tuple[Tensor, ...]) -> TensorFunction:
        start = time.monotonic()
        try:
            version = self._version(arguments)
        except RuntimeError as error:  # compilers and capture raise many kinds, all of them this one's children
            log.warning(
                "%s cannot be prepared and runs as it is, which is slower; prior.compile=off says nothing of it. "
                "The cause: %s",
                self.name,
                str(error).strip().split("\n")[0],
            )
            self.compilation = "off"
            return self.function
        shape = "x".join(map(str, arguments[0].shape))
        self.seconds[shape] = time.monotonic() - start
        log.info("Prepared %s for %s (%s) in %.1f s.", self.name, shape, self.compilation, self.seconds[shape])
        return version

    def _version(self, arguments: tuple[Tensor, ...]) -> TensorFunction:
        version = self.function
        if self.compilation == "full":
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache() / "compiled"))
            version = torch.compile(self.function, dynamic=False)
        with_gradient = torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments)
        detached = [argument.detach().requires_grad_(argument.requires_grad) for argument in arguments]
        outputs = version(*detached)
        if with_gradient:
            # The backward pass is compiled when it is first needed: here, where a failure can be caught.
            variables = [argument for argument in detached if argument.requires_grad]
            torch.autograd.grad(outputs, variables, [torch.ones_like(output) for output in outputs])
            return version
        return CapturedCall(version, arguments) if arguments[0].device.type == "cuda" else version


def _key(arguments: tuple[Tensor, ...]) -> Hashable:
    """What a version depends on."""
    device = arguments[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with_gradient = torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments)
    return autocast, with_gradient, *((tuple(argument.shape), argument.dtype) for argument in arguments)


class CapturedCall:
    """One call as a CUDA graph: copies its arguments in, replays, and copies the results out."""

    def __init__(self, function: TensorFunction, arguments: tuple[Tensor, ...]) -> None:
        self._arguments = tuple(argument.detach().clone() for argument in arguments)
        self._graph = torch.cuda.CUDAGraph()
        # Results are copied out before another graph runs, so all graphs may work in the same memory.
        with torch.cuda.graph(self._graph, pool=_memory_pool(), capture_error_mode="thread_local"):
            self._results = function(*self._arguments)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The results of these arguments."""
        for place, argument in zip(self._arguments, arguments, strict=True):
            place.copy_(argument)
        self._graph.replay()
        return tuple(result.clone() for result in self._results)


@cache
def _memory_pool() -> Any:
    """The one that all graphs of this process share."""
    return torch.cuda.graph_pool_handle()
