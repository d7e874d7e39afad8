"""Correlations of all pixel pairs of one layer, from which `matching_streamed` takes tiles and single pairs.

Symbols as there: B image pairs, S their side, n = S * S pixels, h w the side of a feature map, V pairs and P = T * S
source pixels in a tile. Where features are coarse, products are taken between their own pixels, once, and upsampled on
both sides, which is linear; what is upsampled is never kept.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.correspondence.matching import unit_features

WINDOW = 6  # coarse pixels that bicubic upsampling reads for three pixels in a row
ROWS_AT_ONCE = 8  # of upsampled features, when their lengths are taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Image pairs and source rows that are worked on together: several pairs only where each has all its rows."""

    views: slice
    rows: slice

    def pixels(self, size: int) -> slice:
        """The source pixels of its rows, in one image."""
        return slice(self.rows.start * size, self.rows.stop * size)


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

    def around(self, view: Int[Tensor, " m"], source: Int[Tensor, " m"], target: Int[Tensor, " m"]) -> Tensor:
        """[m 9 9] those of the 3 x 3 neighbours of a source and of a target pixel; anything where one is outside."""
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

    def around(self, view: Int[Tensor, " m"], source: Int[Tensor, " m"], target: Int[Tensor, " m"]) -> Tensor:
        """Products of 9 features with 9."""
        of_source = self.source[view[:, None], neighbours(source, self.size)[0]]
        of_target = self.target[view[:, None], neighbours(target, self.size)[0]]
        return torch.bmm(of_source, of_target.transpose(1, 2))

    def transposed(self) -> "FineCorrelations":
        """The same with source and target exchanged."""
        return FineCorrelations(self.size, self.target, self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsampling:
    """How the pixels of one view set come from those of its feature map, and the lengths that they then have."""

    rows: Float[Tensor, "S h"]  # bicubic weights along y
    columns: Float[Tensor, "S w"]
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
        shape = source.rows.shape[1], source.columns.shape[1]
        by_row = source.rows[tile.rows] @ self.products[tile.views].unflatten(1, shape).flatten(2)  # V T (w k l)
        by_pixel = (source.columns @ by_row.unflatten(2, (shape[1], -1))).flatten(1, 2)  # V P (k l)
        by_pixel *= source.inverse_length[tile.views, tile.pixels(self.size), None]
        coarse = by_pixel.unflatten(2, (target.rows.shape[1], target.columns.shape[1]))
        upsampled = target.rows @ (coarse @ target.columns.T)
        scaled: Tensor = upsampled.flatten(2).mul_(target.inverse_length[tile.views, None])
        return scaled

    def around(self, view: Int[Tensor, " m"], source: Int[Tensor, " m"], target: Int[Tensor, " m"]) -> Tensor:
        """The few products below both neighbourhoods, upsampled on either side."""
        source_pixels, source_weights = neighbourhood_weights(self.source, source, self.size)
        target_pixels, target_weights = neighbourhood_weights(self.target, target, self.size)
        below = self.products[view[:, None, None], source_pixels[:, :, None], target_pixels[:, None, :]]
        raw = source_weights @ below @ target_weights.transpose(1, 2)
        raw *= self.source.inverse_length[view[:, None], neighbours(source, self.size)[0], None]
        raw *= self.target.inverse_length[view[:, None], neighbours(target, self.size)[0]][:, None, :]
        return raw

    def transposed(self) -> "CoarseCorrelations":
        """The same with source and target exchanged."""
        return CoarseCorrelations(self.size, self.products.transpose(1, 2), self.target, self.source)


def bicubic_weights(length: int, size: int, like: Tensor) -> Float[Tensor, "S h"]:
    """The matrix that upsamples a signal of `length` entries to `size`, as torch's bicubic interpolation does."""
    impulses = torch.eye(length, dtype=like.dtype, device=like.device)[None, :, :, None]
    upsampled = F.interpolate(impulses, size=(size, 1), mode="bicubic", align_corners=False)
    return upsampled[0, :, :, 0].T.contiguous()


def upsampling(features: Float[Tensor, "B C h w"], size: int) -> Upsampling:
    """Weights and lengths; the upsampled features exist a few rows at a time."""
    rows = bicubic_weights(features.shape[2], size, features)
    columns = bicubic_weights(features.shape[3], size, features)
    pixels = features.permute(0, 2, 3, 1).contiguous()  # B h w C
    lengths = []
    for part in rows.split(ROWS_AT_ONCE):
        by_row = (part @ pixels.flatten(2)).unflatten(2, (features.shape[3], -1))  # B T w C
        lengths.append(torch.linalg.vector_norm(columns @ by_row, dim=3))
    length = torch.cat(lengths, dim=1).flatten(1)
    inverse_length = 1 / length.clamp_min(torch.finfo(length.dtype).tiny)
    return Upsampling(rows=rows, columns=columns, inverse_length=inverse_length)


def neighbours(pixels: Int[Tensor, " m"], size: int) -> tuple[Int[Tensor, "m 9"], Bool[Tensor, "m 9"]]:
    """The 3 x 3 pixels around each pixel, and which of them lie inside; those outside are numbered 0."""
    offsets = torch.arange(-1, 2, device=pixels.device)
    y = (pixels // size)[:, None, None] + offsets[:, None]
    x = (pixels % size)[:, None, None] + offsets
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    return torch.where(inside, y * size + x, 0).flatten(1), inside.flatten(1)


def neighbourhood_weights(
    side: Upsampling, pixels: Int[Tensor, " m"], size: int
) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m 9 k"]]:
    """The coarse pixels below the 3 x 3 neighbours of each pixel, and the weights that each neighbour gives them."""
    rows, row_weights = window(side.rows, pixels // size)
    columns, column_weights = window(side.columns, pixels % size)
    coarse = rows[:, :, None] * side.columns.shape[1] + columns[:, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    return coarse.flatten(1), weights.flatten(3).flatten(1, 2)


def window(
    weights: Float[Tensor, "S h"], place: Int[Tensor, " m"]
) -> tuple[Int[Tensor, "m K"], Float[Tensor, "m 3 K"]]:
    """Along one axis: the coarse entries below a place and its two neighbours, and the weights of the three."""
    size, length = weights.shape
    width = min(WINDOW, length)
    first = torch.floor((place - 0.5) * (length / size) - 0.5).long() - 1  # of the four that the left neighbour reads
    entries = first.clamp(0, length - width)[:, None] + torch.arange(width, device=place.device)
    three = (place[:, None] + torch.arange(-1, 2, device=place.device)).clamp(0, size - 1)
    return entries, weights[three[:, :, None], entries[:, None, :]]
