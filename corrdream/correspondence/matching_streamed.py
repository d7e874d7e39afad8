"""The reference's similarity without its volume: tiles of source rows against all target pixels.

Symbols: B image pairs, S their side, n = S * S pixels numbered row-major, C channels, h w the side of a feature map;
a tile holds V pairs and P = T * S source pixels of T image rows.

One pass over all tiles finds the row and column maxima that mutual matching needs. A second pass, over the rows that
hold requested source pixels, forms the similarity tile by tile, each with one row above and below for the filter.
Three things are cheaper than in the reference, none changes the result beyond rounding:
* Upsampling is linear, so products are taken at the feature map's own size and upsampled afterwards.
* The filter is linear too: one filter for the mean of the layers, and over the target only where a source is requested.
* Single pairs are looked up by the 81 products that contribute to them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.correspondence.matching import MUTUAL_EPS, NEIGHBOURHOOD, in_full_precision

TILE_BYTES_CPU = 2 * 2**20  # a few tiles live at once and should stay in the cache
TILE_BYTES_GPU = 256 * 2**20  # launches cost more than memory
MIN_TILE_ROWS = 8  # each tile of the second pass is computed with two more


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """One layer's features of one view set, as given and at render size."""

    coarse: Float[Tensor, "B C h w"]
    unit: Float[Tensor, "B n C"]  # upsampled and normalized
    inverse_length: Float[Tensor, "B n"]  # of the upsampled features
    row_weights: Float[Tensor, "S h"]  # bicubic upsampling along y
    column_weights: Float[Tensor, "S w"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer's features of both view sets, and the best correlation of each pixel with the other set."""

    source: FeatureMap
    target: FeatureMap
    source_best: Float[Tensor, "B n"]
    target_best: Float[Tensor, "B n"]

    def transposed(self) -> "Layer":
        """The same with source and target exchanged."""
        return Layer(source=self.target, target=self.source, source_best=self.target_best, target_best=self.source_best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Image pairs and source rows that are worked on together: several pairs only where each has all its rows."""

    views: slice
    rows: slice

    def pixels(self, size: int) -> slice:
        """The source pixels of its rows, in one image."""
        return slice(self.rows.start * size, self.rows.stop * size)


def bicubic_weights(length: int, size: int, like: Tensor) -> Float[Tensor, "S h"]:
    """The matrix that upsamples a signal of `length` entries to `size`, as torch's bicubic interpolation does."""
    impulses = torch.eye(length, dtype=like.dtype, device=like.device)[None, :, :, None]
    upsampled = F.interpolate(impulses, size=(size, 1), mode="bicubic", align_corners=False)
    return upsampled[0, :, :, 0].T.contiguous()


def feature_map(features: Float[Tensor, "B C h w"], size: int) -> FeatureMap:
    """The features prepared for products at `size` x `size` pixels."""
    _, _, height, width = features.shape
    row_weights = bicubic_weights(height, size, features)
    column_weights = bicubic_weights(width, size, features)
    pixels = features.permute(0, 2, 3, 1).contiguous()  # B h w C
    if (height, width) != (size, size):
        rows = row_weights @ pixels.flatten(2)  # B S (w C)
        pixels = column_weights @ rows.unflatten(2, (width, -1))  # B S S C
    pixels = pixels.flatten(1, 2)
    length = torch.linalg.vector_norm(pixels, dim=2).clamp_min(torch.finfo(pixels.dtype).tiny)
    inverse_length = 1 / length
    return FeatureMap(
        coarse=features,
        unit=pixels * inverse_length[:, :, None],
        inverse_length=inverse_length,
        row_weights=row_weights,
        column_weights=column_weights,
    )


def correlation_tile(source: FeatureMap, target: FeatureMap, tile: Tile) -> Float[Tensor, "V P n"]:
    """Correlation of the tile's source pixels with all target pixels."""
    size, height = target.row_weights.shape
    width = target.column_weights.shape[1]
    pixels = source.unit[tile.views, tile.pixels(size)]
    if height * width >= size * size:
        return pixels @ target.unit[tile.views].transpose(1, 2)
    products = (pixels @ target.coarse[tile.views].flatten(2)).unflatten(2, (height, width))
    upsampled: Tensor = target.row_weights @ (products @ target.column_weights.T)
    return upsampled.flatten(2).mul_(target.inverse_length[tile.views, None])


def tiles(num_views: int, size: int, rows_per_tile: int) -> Iterator[Tile]:
    """All pairs and rows in order, in tiles of at most `rows_per_tile` image rows or of whole images."""
    views_per_tile = max(1, rows_per_tile // size)
    for view in range(0, num_views, views_per_tile):
        for row in range(0, size, rows_per_tile):
            yield Tile(
                views=slice(view, min(view + views_per_tile, num_views)),
                rows=slice(row, min(row + rows_per_tile, size)),
            )


def requested_tiles(
    pixels: Int[Tensor, " M"], num_views: int, size: int, rows_per_tile: int
) -> Iterator[tuple[Tile, slice]]:
    """Tiles cut down to the rows that hold requested pixels (sorted, numbered over all pairs), with their span."""
    row_starts = torch.arange(0, num_views * size + 1, device=pixels.device) * size
    bounds: list[int] = torch.searchsorted(pixels, row_starts).tolist()  # sync
    for tile in tiles(num_views, size, rows_per_tile):
        first_rows = range(tile.views.start * size, tile.views.stop * size, size)
        rows = [
            row
            for row in range(tile.rows.start, tile.rows.stop)
            if any(bounds[first + row] < bounds[first + row + 1] for first in first_rows)
        ]
        if rows:
            span = slice(bounds[first_rows[0] + rows[0]], bounds[first_rows[-1] + rows[-1] + 1])
            yield Tile(views=tile.views, rows=slice(rows[0], rows[-1] + 1)), span


def match_layer(source: FeatureMap, target: FeatureMap, rows_per_tile: int) -> Layer:
    """The layer with its maxima over rows and columns: the first pass."""
    size = len(source.row_weights)
    source_best = torch.empty_like(source.inverse_length)
    target_best = torch.full_like(target.inverse_length, -torch.inf)
    for tile in tiles(len(source.unit), size, rows_per_tile):
        raw = correlation_tile(source, target, tile)
        source_best[tile.views, tile.pixels(size)] = raw.amax(dim=2)
        target_best[tile.views] = torch.maximum(target_best[tile.views], raw.amax(dim=1))
    return Layer(source=source, target=target, source_best=source_best, target_best=target_best)


def mutual_tile(layers: Sequence[Layer], tile: Tile) -> Float[Tensor, "V P n"]:
    """Mutual correlation summed over layers: the cube of the correlation over both maxima."""
    size = len(layers[0].source.row_weights)
    total: Tensor | None = None
    for layer in layers:
        raw = correlation_tile(layer.source, layer.target, tile)
        by_source = 1 / (layer.source_best[tile.views, tile.pixels(size), None] + MUTUAL_EPS)
        by_target = 1 / (layer.target_best[tile.views, None] + MUTUAL_EPS)
        cube_by_target = raw.pow_(3).mul_(by_target)
        total = cube_by_target.mul_(by_source) if total is None else total.addcmul_(cube_by_target, by_source)
    assert total is not None, "there is at least one layer"
    return total


def sum_of_three(values: Tensor, dim: int) -> Tensor:
    """Each entry plus its two neighbours along `dim`, zeros outside."""
    total = values.clone()
    inner = values.shape[dim] - 1
    total.narrow(dim, 1, inner).add_(values.narrow(dim, 0, inner))
    total.narrow(dim, 0, inner).add_(values.narrow(dim, 1, inner))
    return total


def similarity_rows(layers: Sequence[Layer], tile: Tile, pixels: Int[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """Similarity of requested source pixels, all inside the tile, with all target pixels."""
    size = len(layers[0].source.row_weights)
    halo = slice(max(tile.rows.start - 1, 0), min(tile.rows.stop + 1, size))
    mutual = mutual_tile(layers, Tile(views=tile.views, rows=halo)).unflatten(1, (-1, size))
    over_rows = sum_of_three(mutual, 1)[:, tile.rows.start - halo.start : tile.rows.stop - halo.start]
    view = pixels // size**2 - tile.views.start
    pixel_in_rows = pixels % size**2 - tile.rows.start * size
    over_source = sum_of_three(over_rows, 2).flatten(1, 2)[view, pixel_in_rows]
    over_target = sum_of_three(sum_of_three(over_source.unflatten(1, (size, size)), 1), 2)
    return over_target.flatten(1).div_(NEIGHBOURHOOD * len(layers))


def neighbours(pixels: Int[Tensor, " m"], size: int) -> tuple[Int[Tensor, "m 9"], Bool[Tensor, "m 9"]]:
    """The 3 x 3 pixels around each pixel, and which of them lie inside; those outside are numbered 0."""
    offsets = torch.arange(-1, 2, device=pixels.device)
    y = (pixels // size)[:, None, None] + offsets[:, None]
    x = (pixels % size)[:, None, None] + offsets
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    return torch.where(inside, y * size + x, 0).flatten(1), inside.flatten(1)


def similarity_of_pairs(
    layers: Sequence[Layer], view: Int[Tensor, " m"], source: Int[Tensor, " m"], target: Int[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """Similarity of single pixel pairs, from the 81 mutual correlations of their neighbours."""
    size = len(layers[0].source.row_weights)
    near_source, source_inside = neighbours(source, size)
    near_target, target_inside = neighbours(target, size)
    total = source_inside.new_zeros(source.shape, dtype=layers[0].source.unit.dtype)
    for layer in layers:
        pixels = layer.source.unit[view[:, None], near_source]
        raw = pixels @ layer.target.unit[view[:, None], near_target].transpose(1, 2)  # m 9 9
        by_source = source_inside / (layer.source_best[view[:, None], near_source] + MUTUAL_EPS)
        by_target = target_inside / (layer.target_best[view[:, None], near_target] + MUTUAL_EPS)
        total += (raw.pow_(3) * by_source[:, :, None] * by_target[:, None, :]).sum(dim=(1, 2))
    return total.div_(NEIGHBOURHOOD * len(layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedSimilarity:
    """What the similarity of any pixel pair can be computed from (a `Similarity`)."""

    layers: tuple[Layer, ...]
    rows_per_tile: int

    def best_target(
        self, view: Int[Tensor, " M"], source: Int[Tensor, " M"]
    ) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
        """The most similar target pixel of each source pixel, and how similar it is: the second pass."""
        features = self.layers[0].source
        num_views, size = len(features.unit), len(features.row_weights)
        pixels, order = (view * size**2 + source).sort()
        target, best = torch.empty_like(source), features.unit.new_empty(len(source))
        with torch.autocast(source.device.type, enabled=False):
            for tile, span in requested_tiles(pixels, num_views, size, self.rows_per_tile):
                highest = similarity_rows(self.layers, tile, pixels[span]).max(dim=1)
                target[order[span]], best[order[span]] = highest.indices, highest.values
        return target, best

    def at(self, view: Int[Tensor, " M"], source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """The similarity of given pixel pairs; never more numbers at once than a tile has."""
        size = len(self.layers[0].source.row_weights)
        numbers_per_pair = 2 * 9 * max(layer.source.unit.shape[2] for layer in self.layers)
        chunk = max(1, self.rows_per_tile * size**3 // numbers_per_pair)
        with torch.autocast(source.device.type, enabled=False):
            pairs = zip(view.split(chunk), source.split(chunk), target.split(chunk), strict=True)
            return torch.cat([similarity_of_pairs(self.layers, *pair) for pair in pairs])

    def transposed(self) -> "StreamedSimilarity":
        """The same with source and target exchanged; the first pass serves both."""
        return dataclasses.replace(self, layers=tuple(layer.transposed() for layer in self.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedMatching:
    """Matching in tiles: memory grows like S^2 times the rows of a tile, not S^4 (a `Matching`)."""

    tile_bytes: int | None = None  # of correlation; None suits the device

    def similarity(
        self, source_features: Sequence[Tensor], target_features: Sequence[Tensor], *, size: int
    ) -> StreamedSimilarity:
        """Similarity at `size` x `size` pixels from features [B, C_k, h_k, w_k]; carries no gradient."""
        pairs = [
            (in_full_precision(source), in_full_precision(target))
            for source, target in zip(source_features, target_features, strict=True)
        ]
        example = pairs[0][0]
        default_bytes = TILE_BYTES_CPU if example.device.type == "cpu" else TILE_BYTES_GPU
        row_bytes = size**3 * example.element_size()
        rows_per_tile = max(MIN_TILE_ROWS, (self.tile_bytes or default_bytes) // row_bytes)
        with torch.autocast(example.device.type, enabled=False):
            layers = tuple(
                match_layer(feature_map(source, size), feature_map(target, size), rows_per_tile)
                for source, target in pairs
            )
        return StreamedSimilarity(layers=layers, rows_per_tile=rows_per_tile)
