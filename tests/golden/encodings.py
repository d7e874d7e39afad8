"""Hash grid and spherical harmonics."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from corrdream.field.encodings import HashGrid, SphericalHarmonics
from corrdream.interfaces import Encoding
from tests.golden.helpers import assert_absolute, assert_relative, group, group_names, tensor

FILE = "encodings.npz"
PUBLISHED_TOLERANCE = 1e-3  # fine levels carry the position's float32 rounding
SMALL_TOLERANCE = 1e-4
JACOBIAN_TOLERANCE = 1e-3
SCALE_TOLERANCE = 1e-6  # relative


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        arrays = group(data, name)
        yield name, partial(compare_hash_grid if "level_offsets" in arrays else compare_harmonics, arrays)


def compare_hash_grid(
    arrays: Mapping[str, np.ndarray], *, accelerate: Callable[[HashGrid], Encoding] = lambda grid: grid
) -> None:
    """`accelerate` makes another implementation of the grid, on its own device."""
    settings = {
        "num_levels": int(arrays["cfg/n_levels"]),
        "features_per_level": int(arrays["cfg/n_features_per_level"]),
        "log2_table_size": int(arrays["cfg/log2_hashmap_size"]),
        "base_resolution": int(arrays["cfg/base_resolution"]),
        "growth": float(arrays["cfg/per_level_scale"]),
    }
    compare_scales(HashGrid(**settings), arrays)
    # On the recorded scales, whose last bit decides in which cell a point at its border lies.
    grid = HashGrid(**settings, level_scales=arrays["level_scale"].tolist())
    assert grid.offsets == arrays["level_offsets"].tolist()
    assert grid.resolutions == arrays["level_resolution"].tolist()
    assert grid.table.numel() == int(arrays["n_params"])
    stored = "in/params" in arrays
    params = tensor(arrays["in/params"]) if stored else published_table(grid.table.numel())
    grid.table.data.copy_(params.view_as(grid.table))
    encoding = accelerate(grid)
    points = tensor(arrays["in/points"]).to(grid.table.device).requires_grad_()
    features = encoding(points)
    assert_absolute(features, arrays["out/features"], SMALL_TOLERANCE if stored else PUBLISHED_TOLERANCE, "features")
    columns = [torch.autograd.grad(column.sum(), points, retain_graph=True)[0] for column in features.unbind(1)]
    assert_relative(torch.stack(columns, dim=1), arrays["out/jacobian"], JACOBIAN_TOLERANCE, "jacobian")
    if "out/grad_params" in arrays:
        (gradient,) = torch.autograd.grad((features * tensor(arrays["in/cotangent"]).to(features)).sum(), grid.table)
        assert_relative(gradient.flatten(), arrays["out/grad_params"], SMALL_TOLERANCE, "grad_params")


def compare_scales(grid: HashGrid, arrays: Mapping[str, np.ndarray]) -> None:
    """Each level's scale, and its resolution unless the last bit of a whole number decides about it."""
    for level, (scale, recorded) in enumerate(zip(grid.scales, arrays["level_scale"].tolist(), strict=True)):
        assert abs(scale - recorded) <= SCALE_TOLERANCE * recorded, f"scale of level {level}"
        if abs(recorded - round(recorded)) > SCALE_TOLERANCE * recorded:
            assert grid.resolutions[level] == arrays["level_resolution"][level], f"resolution of level {level}"


def published_table(count: int) -> torch.Tensor:
    """Entry k = 2 ((2654435761 k + 12345) mod 2^32) / 2^32 - 1, in float32."""
    mixed = (2654435761 * torch.arange(count) + 12345) % 2**32
    return (2 * mixed.double() / 2**32 - 1).float()


def compare_harmonics(arrays: Mapping[str, np.ndarray]) -> None:
    for name, expected in group(arrays, "out").items():
        encoding = SphericalHarmonics(degree=int(name.removeprefix("degree_")))
        assert_absolute(encoding(tensor(arrays["in/unit_cube"])), expected, 1e-6, name)
