"""What the comparisons share: grouping of arrays by case, and the tolerances as the data's README states them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from corrdream.structures import RaySamples


def group(data: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below `prefix/`, named without it."""
    return {name[len(prefix) + 1 :]: array for name, array in data.items() if name.startswith(f"{prefix}/")}


def group_names(data: Mapping[str, np.ndarray]) -> list[str]:
    """The first path components, sorted."""
    return sorted({name.split("/")[0] for name in data if "/" in name})


def tensor(array: np.ndarray) -> Tensor:
    """A tensor of the same kind of numbers, on the device that the comparison runs on."""
    return torch.from_numpy(np.array(array)).to(torch.get_default_device())


def assert_absolute(actual: Tensor, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Largest difference at most `tolerance`."""
    reference = tensor(expected).cpu()
    assert actual.shape == reference.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    worst = (actual.detach().cpu().double() - reference.double()).abs().max().item() if reference.numel() else 0.0
    assert worst <= tolerance, f"{name}: off by {worst:.3g}, tolerance {tolerance:.3g}"


def assert_relative(actual: Tensor, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Largest difference at most `tolerance` times the largest magnitude of the reference."""
    scale = float(np.abs(expected).max()) if expected.size else 0.0
    assert_absolute(actual, expected, tolerance * max(scale, float(np.finfo(np.float32).tiny)), name)


def assert_norm(actual: Tensor, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Norm of the difference at most `tolerance` times the norm of the reference."""
    reference = tensor(expected).cpu().double()
    assert actual.shape == reference.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    off = ((actual.detach().cpu().double() - reference).norm() / reference.norm()).item()
    assert off <= tolerance, f"{name}: off by {off:.3g} of its norm, tolerance {tolerance:.3g}"


def match_samples(samples: RaySamples, expected: Mapping[str, np.ndarray], tolerance: float) -> int:
    """How many samples only one side has; a sample is the same on the same ray with both ends within `tolerance`."""
    unmatched: dict[int, list[tuple[float, float]]] = {}
    for ray, start, end in zip(
        expected["ray_indices"].tolist(), expected["t_starts"].tolist(), expected["t_ends"].tolist(), strict=True
    ):
        unmatched.setdefault(ray, []).append((start, end))
    missing = 0
    for ray, start, end in zip(
        samples.ray_indices.tolist(), samples.t_starts.tolist(), samples.t_ends.tolist(), strict=True
    ):
        candidates = unmatched.get(ray, [])
        near = [pair for pair in candidates if abs(pair[0] - start) <= tolerance and abs(pair[1] - end) <= tolerance]
        if near:
            candidates.remove(near[0])
        else:
            missing += 1
    return missing + sum(len(pairs) for pairs in unmatched.values())
