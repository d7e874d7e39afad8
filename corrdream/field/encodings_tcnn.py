"""The hash grid and the spherical harmonics of tiny-cuda-nn (package tinycudann), on NVIDIA GPUs.

Parameters, their initial values and their place in a checkpoint are those of `encodings.HashGrid`: either of the two
reads what the other has written.
"""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from corrdream.backends import require
from corrdream.field.encodings import HashGrid

WIDTHS = (1, 2, 4, 8)  # features a level that the kernels exist for


def load_tinycudann(key: str) -> ModuleType:
    """The package; MissingBackendError if it is missing, or was built for another GPU or another torch."""
    return require("tinycudann", key)


class TcnnHashGrid(nn.Module):
    """Multi-resolution hash grid (arXiv:2201.05989) by fused kernels.

    With `dtype` float16 the kernels read the table, kept in float32, in half precision and sum its gradient in it.
    """

    def __init__(
        self,
        *,
        num_levels: int = 16,
        features_per_level: int = 2,
        log2_table_size: int = 19,
        base_resolution: int = 16,
        growth: float = 1.4472692012786865,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if features_per_level not in WIDTHS:
            raise ValueError(
                f"field.hash_grid.features_per_level must be one of {WIDTHS} for field.backend=tinycudann, "
                f"got {features_per_level}; take another or field.backend=torch."
            )
        twin = HashGrid(
            num_levels=num_levels,
            features_per_level=features_per_level,
            log2_table_size=log2_table_size,
            base_resolution=base_resolution,
            growth=growth,
            generator=generator,
        )
        self.output_dim = twin.output_dim
        self.table = twin.table
        self._kernels = _Kernels(
            {
                "otype": "HashGrid",
                "n_levels": num_levels,
                "n_features_per_level": features_per_level,
                "log2_hashmap_size": log2_table_size,
                "base_resolution": base_resolution,
                "per_level_scale": growth,
            },
            dtype,
        )
        assert self._kernels.num_parameters == self.table.numel(), "the library's table has the layout of ours"

    def forward(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P LF"]:
        """Features of all levels, coarsest first; differentiable in the table and, twice, in the points."""
        return self._kernels(points, self.table.flatten()).to(points.dtype)


class TcnnSphericalHarmonics(nn.Module):
    """Real spherical harmonics of the direction 2 u - 1, orders 0 .. degree - 1; differentiable once."""

    def __init__(self, *, degree: int) -> None:
        super().__init__()
        self.output_dim = degree**2
        self._kernels = _Kernels({"otype": "SphericalHarmonics", "degree": degree}, torch.float32)

    def forward(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P C"]:
        """The values that `encodings.SphericalHarmonics` has."""
        return self._kernels(points, points.new_empty(0)).to(points.dtype)


class _Kernels:
    """A library encoding without parameters of its own: no torch module, so that no state dict sees it."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype) -> None:
        library = load_tinycudann("field.backend=tinycudann")
        self._module: nn.Module = library.Encoding(3, config, dtype=dtype)
        self.num_parameters = self._module.params.numel()
        self._module.params.data = self._module.params.data.new_empty(0)

    def __call__(self, points: Tensor, parameters: Tensor) -> Tensor:
        # On nothing no kernel runs and gradients stay unwritten: no points are one point whose features are dropped.
        padded = F.pad(points, (0, 0, 0, 1)) if len(points) == 0 else points
        inputs = _ContiguousGradients.apply(padded.float())  # type: ignore[no-untyped-call]
        features: Tensor = functional_call(self._module, {"params": parameters}, (inputs,))
        return features[: len(points)]


class _ContiguousGradients(torch.autograd.Function):
    """The identity, whose gradients of every order are contiguous, which the library takes for granted."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        result: Tensor = _ContiguousGradients.apply(grads[0].contiguous())  # type: ignore[no-untyped-call]
        return result
