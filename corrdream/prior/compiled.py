"""A frozen network's calls made fast where their shapes repeat: compiled, and replayed as CUDA graphs.

The first call of each shape prepares it, which takes seconds (full) or less (graph) and is logged. What cannot be
compiled or captured does without, with a warning. Compiled code is kept in CORRDREAM_CACHE, or where
TORCHINDUCTOR_CACHE_DIR says; processes that share the directory share the work.
"""

import logging
import os
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

from corrdream.prior.text_cache import default_cache

Compilation = Literal["full", "graph", "eager"]
TensorFunction = Callable[..., tuple[Tensor, ...]]

log = logging.getLogger(__name__)


class PreparedFunction:
    """A function of tensors; for each shape of its arguments a version that is prepared at the first call.

    full: compiled, and on a GPU also captured; graph: captured only; eager: the function itself.
    """

    def __init__(self, function: TensorFunction, name: str, compilation: Compilation) -> None:
        self.function = function
        self.name = name
        self.compilation: Compilation = compilation
        self.seconds: dict[str, float] = {}  # spent on each shape
        self._versions: dict[Hashable, TensorFunction] = {}
        self.failed: set[str] = set()  # ways to improve it that do not work here

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """What the function returns, in tensors of the caller's own."""
        if self.compilation == "eager":
            return self.function(*arguments)
        key = _key(arguments)
        if key not in self._versions:
            start = time.monotonic()
            self._versions[key] = self._prepare(arguments)
            torch.cuda.empty_cache()  # of what preparing needed and a call does not
            shape = "x".join(map(str, arguments[0].shape))
            self.seconds[shape] = time.monotonic() - start
            log.info("Prepared %s for %s (%s) in %.1f s.", self.name, shape, self.compilation, self.seconds[shape])
        return self._versions[key](*arguments)

    def _prepare(self, arguments: tuple[Tensor, ...]) -> TensorFunction:
        """The function, compiled and captured as far as that goes."""
        version = self.function
        if self.compilation == "full":
            version = self._improve(version, "compiled", lambda plain: _compile(plain, arguments))
        if arguments[0].device.type == "cuda":
            capture = CapturedGradient if _needs_gradient(arguments) else CapturedCall
            version = self._improve(version, "captured", lambda plain: capture(plain, arguments))
        return version

    def _improve(
        self, version: TensorFunction, how: str, improve: Callable[[TensorFunction], TensorFunction]
    ) -> TensorFunction:
        """The improved version; the given one, with a warning, where that fails."""
        if how in self.failed:
            return version
        try:
            return improve(version)
        except RuntimeError as error:  # compilers and capture raise many kinds, all of them this one's children
            self.failed.add(how)
            log.warning(
                "%s cannot be %s, so it is slower; prior.compile=eager says nothing of it. The cause: %s",
                self.name,
                how,
                str(error).strip().split("\n")[0],
            )
            return version


def _compile(function: TensorFunction, arguments: tuple[Tensor, ...]) -> TensorFunction:
    """The compiled function, called once: that is when it is compiled."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # seconds, which a CPU never needs

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):  # torch fills in its own
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(default_cache() / "compiled")
    # Channels last throughout: left to itself, the compiler keeps a graph with a gradient as it finds it.
    version = torch.compile(function, dynamic=False, options={"force_layout_optimization": True})
    detached = [argument.detach().requires_grad_(argument.requires_grad) for argument in arguments]
    outputs = version(*detached)
    if _needs_gradient(arguments):
        # The backward pass is compiled when it is first needed: here, where a failure can be caught.
        variables = [argument for argument in detached if argument.requires_grad]
        torch.autograd.grad(outputs, variables, [torch.ones_like(output) for output in outputs])
    return version


def _needs_gradient(arguments: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments)


def _key(arguments: tuple[Tensor, ...]) -> Hashable:
    """What a version depends on."""
    device = arguments[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return autocast, _needs_gradient(arguments), *((tuple(argument.shape), argument.dtype) for argument in arguments)


class CapturedCall:
    """One call as a CUDA graph: copies its arguments in, replays, and copies the results out."""

    def __init__(self, function: TensorFunction, arguments: tuple[Tensor, ...]) -> None:
        self._arguments = tuple(argument.detach().clone() for argument in arguments)
        self._graph = torch.cuda.CUDAGraph()
        self._warm_up(function)
        # Results are copied out before another graph runs, so all graphs may work in the same memory.
        pool = _memory_pool().id
        try:
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._results = function(*self._arguments)
        except RuntimeError:
            _memory_pool.cache_clear()  # a pool of which a capture failed takes no other
            with suppress(RuntimeError):  # and stays in use, which would abort the process at its end
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise

    def _warm_up(self, function: TensorFunction) -> None:
        """What happens at first calls and cannot be captured: kernels are loaded and chosen, workspaces made."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self._arguments)
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The results of these arguments."""
        for place, argument in zip(self._arguments, arguments, strict=True):
            place.copy_(argument)
        self._graph.replay()
        return tuple(result.clone() for result in self._results)


class CapturedGradient:
    """One call and its backward pass as two CUDA graphs, in memory of their own: others run between the two."""

    def __init__(self, function: TensorFunction, arguments: tuple[Tensor, ...]) -> None:
        samples = tuple(argument.detach().clone().requires_grad_(argument.requires_grad) for argument in arguments)
        self._call = cast(TensorFunction, torch.cuda.make_graphed_callables(function, samples))
        self._calls = 0

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The results of these arguments, to be differentiated before the next call: RuntimeError if after it."""
        results = self._call(*arguments)
        self._calls += 1
        this = self._calls

        def check(_: Tensor) -> None:
            if self._calls != this:
                raise RuntimeError(
                    "a captured call cannot be differentiated after the next one; prior.compile=eager can"
                )

        for result in results:
            if result.requires_grad:
                result.register_hook(check)
        return tuple(result.clone() for result in results)


@cache
def _memory_pool() -> Any:
    """The one that all graphs of this process share; it outlives each of them, which a bare handle would not."""
    return torch.cuda.MemPool()
