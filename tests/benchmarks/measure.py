"""Timing, what the GPU did meanwhile, and the table of it all."""

import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One line of the table; what a CPU has not is None."""

    name: str
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    repeats: int
    busy_ms: float | None = None  # sum of kernels and copies of one run
    kernels: int | None = None
    allocated_mib: float | None = None  # peaks
    reserved_mib: float | None = None
    limit_ms: float | None = None  # products of the networks alone at the rate that was given
    samples: float | None = None  # of the field, median

    @property
    def times_limit(self) -> float | None:
        """Ratio of the median to the limit."""
        return None if self.limit_ms is None else self.median_ms / self.limit_ms


class Stopwatch:
    """Times stretches that begin where the last one ended, on the device's own clock; a warm-up is not kept."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> Any:
        """A point in time."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """From one point to another."""
        if self.device.type != "cuda":
            return 1e3 * (end - start)
        end.synchronize()
        return float(start.elapsed_time(end))


def summary(name: str, milliseconds: Sequence[float], **more: Any) -> Measurement:
    """A line from single times."""
    return Measurement(
        name=name,
        median_ms=statistics.median(milliseconds),
        fastest_ms=min(milliseconds),
        slowest_ms=max(milliseconds),
        repeats=len(milliseconds),
        **more,
    )


def measure(
    name: str, function: Callable[[], object], device: torch.device, *, repeats: int = 20, warmup: int = 3, **more: Any
) -> Measurement:
    """A line from repeated calls."""
    for _ in range(warmup):
        function()
    peaks = reset_peaks(device)
    watch, milliseconds = Stopwatch(device), []
    for _ in range(repeats):
        start = watch.now()
        function()
        milliseconds.append(watch.milliseconds(start, watch.now()))
    memory = peaks()
    return summary(name, milliseconds, **memory, **gpu_work(function, device), **more)


def reset_peaks(device: torch.device) -> Callable[[], dict[str, float]]:
    """Begins to watch memory; the result says the peaks since."""
    if device.type != "cuda":
        return dict
    torch.cuda.reset_peak_memory_stats()
    return lambda: {
        "allocated_mib": torch.cuda.max_memory_allocated() / MIB,
        "reserved_mib": torch.cuda.max_memory_reserved() / MIB,
    }


def gpu_work(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """How long the GPU is busy during one call, and with how many kernels."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    work = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in work if not event.name.startswith(("Memcpy", "Memset"))]
    return {"busy_ms": sum(event.time_range.elapsed_us() for event in work) / 1e3, "kernels": len(kernels)}


def top_kernels(function: Callable[[], object], count: int = 12) -> list[tuple[str, float, int]]:
    """Name, milliseconds and calls of the kernels that take longest in one call."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    rows = [(row.key, row.device_time_total / 1e3, row.count) for row in profiler.key_averages()]
    return sorted(rows, key=lambda row: -row[1])[:count]


def current_commit() -> str:
    """The working tree's commit, and whether it was changed; empty where there is no repository."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def environment(device: torch.device, commit: str = "") -> dict[str, str]:
    """Device, versions, commit."""
    on_gpu = device.type == "cuda"
    facts = {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or current_commit() or "unknown",
    }
    if on_gpu:
        import triton

        facts |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        facts["triton"] = triton.__version__
    return facts


COLUMNS: Mapping[str, Callable[[Measurement], object]] = {
    "ms": lambda m: m.median_ms,
    "fastest": lambda m: m.fastest_ms,
    "slowest": lambda m: m.slowest_ms,
    "busy": lambda m: m.busy_ms,
    "kernels": lambda m: m.kernels,
    "alloc MiB": lambda m: m.allocated_mib,
    "resv MiB": lambda m: m.reserved_mib,
    "limit ms": lambda m: m.limit_ms,
    "x limit": lambda m: m.times_limit,
    "samples": lambda m: m.samples,
}


def table(measurements: Sequence[Measurement]) -> str:
    """The lines under each other; columns that nothing fills are left out."""
    used = {key: read for key, read in COLUMNS.items() if any(read(m) is not None for m in measurements)}
    rows = [["", *used], *([m.name, *(_show(read(m)) for read in used.values())] for m in measurements)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in cells)
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    )


def _show(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def as_json(measurements: Sequence[Measurement], facts: Mapping[str, str]) -> dict[str, Any]:
    """All of it, to be kept."""
    return {"environment": dict(facts), "measurements": [asdict(m) for m in measurements]}
