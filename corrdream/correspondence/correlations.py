"""Correlations of all pixel pairs of one layer, from which `matching_streamed` takes tiles and single pairs.

Symbols as there: B image pairs, S their side, n = S * S pixels, h w the side of a feature map, V pairs and P = T * S
source pixels in a tile. Where features are coarse, products are taken between their own pixels, once, and upsampled on
both sides, which is linear; what is upsampled is never kept.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.correspondence.matching import unit_features

WINDOW = 6  # coarse pixels that bicubic upsampling reads for three pixels in a row
# Rows of upsampled features, when their lengths are taken: in the cache of a CPU, in few launches on a GPU.
ROWS_AT_ONCE_CPU = 8
ROWS_AT_ONCE_GPU = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Image pairs and source rows that are worked on together: several pairs only where each has all its rows."""

    views: slice
    rows: slice

    def pixels(self, size: int) -> slice:
        """The source pixels of its rows, in one image."""
        return slice(self.rows.start * size, self.rows.stop * size)


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Pixels, the 3 x 3 around each, and which of those lie inside; those outside are numbered 0."""

    center: Int[Tensor, " m"]
    near: Int[Tensor, "m 9"]
    inside: Bool[Tensor, "m 9"]


@runtime_checkable
class Correlations(Protocol):
    """Inner products of unit features, of every source pixel with every target pixel."""

    @property
    def size(self) -> int:
        """Side of the render, pixels."""
        ...

    def tile(self, tile: Tile) -> Float[Tensor, "V P n"]:
        """Those of the tile's source pixels; the caller may write into it."""
        ...

    def around(self, view: Int[Tensor, " m"], source: Neighbourhood, target: Neighbourhood) -> Float[Tensor, "m 9 9"]:
        """Those of the neighbours of a source and of a target pixel; anything where one is outside."""
        ...

    def transposed(self) -> "Correlations":
        """The same with source and target exchanged."""
        ...


def correlations(source: Float[Tensor, "B C h w"], target: Float[Tensor, "B C h w"], size: int) -> Correlations:
    """The correlations at `size` x `size` pixels, in whichever form takes less work."""
    _, _, height, width = source.shape
    if 4 * height * width > size * size:
        units = (unit_features(features, size).flatten(2).transpose(1, 2).contiguous() for features in (source, target))
        return FineCorrelations(size, *units)
    products = source.flatten(2).transpose(1, 2) @ target.flatten(2)
    return CoarseCorrelations(size, products, upsampling(source, size), upsampling(target, size))


@dataclass(frozen=True, slots=True)
class FineCorrelations:
    """Of features about as fine as the render, which are kept at its size."""

    size: int
    source: Float[Tensor, "B n C"]
    target: Float[Tensor, "B n C"]

    def tile(self, tile: Tile) -> Float[Tensor, "V P n"]:
        """Products of the tile's pixels."""
        return self.source[tile.views, tile.pixels(self.size)] @ self.target[tile.views].transpose(1, 2)

    def around(self, view: Int[Tensor, " m"], source: Neighbourhood, target: Neighbourhood) -> Float[Tensor, "m 9 9"]:
        """Products of 9 features with 9."""
        of_source = self.source[view[:, None], source.near]
        of_target = self.target[view[:, None], target.near]
        return torch.bmm(of_source, of_target.transpose(1, 2))

    def transposed(self) -> "FineCorrelations":
        """The same with source and target exchanged."""
        return FineCorrelations(self.size, self.target, self.source)


@dataclass(frozen=True, slots=True)
class Interpolation:
    """How a signal of h entries is upsampled to S places, and what lies below each place and its two neighbours."""

    weights: Float[Tensor, "S h"]
    entries: Int[Tensor, "S K"]  # consecutive, those that the three places read among them
    near_weights: Float[Tensor, "S 3 K"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsampling:
    """How the pixels of one view set come from those of its feature map, and the lengths that they then have."""

    rows: Interpolation  # along y
    columns: Interpolation
    inverse_length: Float[Tensor, "B n"]


@dataclass(frozen=True, slots=True)
class CoarseCorrelations:
    """Of features much coarser than the render: their own products, and how to upsample them."""

    size: int
    products: Float[Tensor, "B hw kl"]
    source: Upsampling
    target: Upsampling

    def tile(self, tile: Tile) -> Float[Tensor, "V P n"]:
        """Products upsampled over the tile's source pixels, then over all target pixels."""
        source, target = self.source, self.target
        shape = source.rows.weights.shape[1], source.columns.weights.shape[1]
        products = self.products[tile.views].unflatten(1, shape)  # V h w (k l)
        by_row = source.rows.weights[tile.rows] @ products.flatten(2)  # V T (w k l)
        by_pixel = (source.columns.weights @ by_row.unflatten(2, (shape[1], -1))).flatten(1, 2)  # V P (k l)
        by_pixel *= source.inverse_length[tile.views, tile.pixels(self.size), None]
        coarse = by_pixel.unflatten(2, (target.rows.weights.shape[1], target.columns.weights.shape[1]))
        upsampled = target.rows.weights @ (coarse @ target.columns.weights.T)
        scaled: Tensor = upsampled.flatten(2).mul_(target.inverse_length[tile.views, None])
        return scaled

    def around(self, view: Int[Tensor, " m"], source: Neighbourhood, target: Neighbourhood) -> Float[Tensor, "m 9 9"]:
        """The few products below both neighbourhoods, upsampled on either side."""
        source_pixels, source_weights = neighbourhood_weights(self.source, source.center, self.size)
        target_pixels, target_weights = neighbourhood_weights(self.target, target.center, self.size)
        below = self.products[view[:, None, None], source_pixels[:, :, None], target_pixels[:, None, :]]
        raw = source_weights @ below @ target_weights.transpose(1, 2)
        raw *= self.source.inverse_length[view[:, None], source.near, None]
        raw *= self.target.inverse_length[view[:, None], target.near][:, None, :]
        return raw

    def transposed(self) -> "CoarseCorrelations":
        """The same with source and target exchanged."""
        return CoarseCorrelations(self.size, self.products.transpose(1, 2), self.target, self.source)


@lru_cache(maxsize=32)
def bicubic_interpolation(length: int, size: int, dtype: torch.dtype, device: torch.device) -> Interpolation:
    """From `length` entries to `size` places as torch's bicubic interpolation does it; kept, as it never changes."""
    impulses = torch.eye(length, dtype=dtype, device=device)[None, :, :, None]
    upsampled = F.interpolate(impulses, size=(size, 1), mode="bicubic", align_corners=False)
    weights = upsampled[0, :, :, 0].T.contiguous()
    place, width = torch.arange(size, device=device), min(WINDOW, length)
    first = torch.floor((place - 0.5) * (length / size) - 0.5).long() - 1  # of the four that the left neighbour reads
    entries = first.clamp(0, length - width)[:, None] + torch.arange(width, device=device)
    three = (place[:, None] + torch.arange(-1, 2, device=device)).clamp(0, size - 1)
    return Interpolation(weights, entries, weights[three[:, :, None], entries[:, None, :]])


def upsampling(features: Float[Tensor, "B C h w"], size: int) -> Upsampling:
    """Weights and lengths; the upsampled features exist a few rows at a time."""
    rows, columns = (
        bicubic_interpolation(length, size, features.dtype, features.device) for length in features.shape[2:]
    )
    pixels = features.permute(0, 2, 3, 1).contiguous()  # B h w C
    lengths = []
    for part in rows.weights.split(ROWS_AT_ONCE_GPU if features.is_cuda else ROWS_AT_ONCE_CPU):
        by_row = (part @ pixels.flatten(2)).unflatten(2, (features.shape[3], -1))  # B T w C
        lengths.append(torch.linalg.vector_norm(columns.weights @ by_row, dim=3))
    length = torch.cat(lengths, dim=1).flatten(1)
    inverse_length = 1 / length.clamp_min(torch.finfo(length.dtype).tiny)
    return Upsampling(rows=rows, columns=columns, inverse_length=inverse_length)


@lru_cache(maxsize=8)
def all_neighbours(size: int, device: torch.device) -> tuple[Int[Tensor, "n 9"], Bool[Tensor, "n 9"]]:
    """The 3 x 3 pixels around every pixel, and which of them lie inside; those outside are numbered 0."""
    offsets, place = torch.arange(-1, 2, device=device), torch.arange(size, device=device)[:, None]
    three = place + offsets
    fits = (three >= 0) & (three < size)
    near = three[:, None, :, None] * size + three[None, :, None, :]
    inside = fits[:, None, :, None] & fits[None, :, None, :]
    return torch.where(inside, near, 0).reshape(-1, 9), inside.reshape(-1, 9)


def neighbourhood(pixels: Int[Tensor, " m"], size: int) -> Neighbourhood:
    """The neighbourhood of each pixel."""
    near, inside = all_neighbours(size, pixels.device)
    return Neighbourhood(pixels, near[pixels], inside[pixels])


def neighbourhood_weights(
    side: Upsampling, pixels: Int[Tensor, " m"], size: int
) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m 9 k"]]:
    """The coarse pixels below the 3 x 3 neighbours of each pixel, and the weights that each neighbour gives them."""
    row, column = pixels // size, pixels % size
    coarse = side.rows.entries[row][:, :, None] * side.columns.weights.shape[1] + side.columns.entries[column][:, None]
    of_rows, of_columns = side.rows.near_weights[row], side.columns.near_weights[column]
    weights = of_rows[:, :, None, :, None] * of_columns[:, None, :, None, :]
    return coarse.flatten(1), weights.flatten(3).flatten(1, 2)
