"""The reference's similarity without its volume: tiles of source rows against all target pixels.

Symbols: B image pairs, S their side, n = S * S pixels numbered row-major, C channels, h w the side of a feature map;
a tile holds V pairs and P = T * S source pixels of T image rows.

One pass over all tiles finds the row and column maxima that mutual matching needs. A second pass, over the rows that
hold requested source pixels, forms the similarity tile by tile, each with one row above and below for the filter.
Three things are cheaper than in the reference, none changes the result beyond rounding:
* Upsampling is linear, so products are taken at the feature map's own size and upsampled afterwards (`correlations`).
* The filter is linear too: one filter for the mean of the layers, and over the target only where a source is requested.
* Single pairs are looked up by the 81 products that contribute to them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrdream.correspondence.correlations import Correlations, Tile, correlations, neighbourhood
from corrdream.correspondence.matching import (
    MUTUAL_EPS,
    NEIGHBOURHOOD,
    count_before_rows,
    in_full_precision,
)

# Of the tiles of both passes. On a CPU a few live at once and should stay in the cache. On a GPU launches cost more
# than memory, of which the first pass needs a tile and a half, the second about six.
TILE_BYTES_CPU = 2 * 2**20, 2 * 2**20
TILE_BYTES_GPU = 512 * 2**20, 128 * 2**20
MIN_TILE_ROWS = 8  # each tile of the second pass is computed with two more
NUMBERS_A_PAIR = 4096  # what looking up a single pair holds, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer's correlations, and one over the best of each pixel with the other set."""

    raw: Correlations
    by_source: Float[Tensor, "B n"]
    by_target: Float[Tensor, "B n"]

    def transposed(self) -> "Layer":
        """The same with source and target exchanged."""
        return Layer(raw=self.raw.transposed(), by_source=self.by_target, by_target=self.by_source)


def tiles(num_views: int, size: int, rows_per_tile: int) -> Iterator[Tile]:
    """All pairs and rows in order, in tiles of at most `rows_per_tile` image rows or of whole images."""
    views_per_tile = max(1, rows_per_tile // size)
    for view in range(0, num_views, views_per_tile):
        for row in range(0, size, rows_per_tile):
            yield Tile(
                views=slice(view, min(view + views_per_tile, num_views)),
                rows=slice(row, min(row + rows_per_tile, size)),
            )


def requested_tiles(before_row: Sequence[int], size: int, rows_per_tile: int) -> Iterator[tuple[Tile, slice]]:
    """Tiles cut down to the rows that hold requested pixels, of which `count_before_rows` tells, with their span."""
    for tile in tiles((len(before_row) - 1) // size, size, rows_per_tile):
        first_rows = range(tile.views.start * size, tile.views.stop * size, size)
        rows = [
            row
            for row in range(tile.rows.start, tile.rows.stop)
            if any(before_row[first + row] < before_row[first + row + 1] for first in first_rows)
        ]
        if rows:
            span = slice(before_row[first_rows[0] + rows[0]], before_row[first_rows[-1] + rows[-1] + 1])
            yield Tile(views=tile.views, rows=slice(rows[0], rows[-1] + 1)), span


def match_layer(
    source: Float[Tensor, "B C h w"], target: Float[Tensor, "B C h w"], *, size: int, rows_per_tile: int
) -> Layer:
    """The layer with its maxima over rows and columns: the first pass."""
    layer = correlations(source, target, size)
    source_best = source.new_empty(len(source), size**2)
    target_best = torch.full_like(source_best, -torch.inf)
    for tile in tiles(len(source), size, rows_per_tile):
        raw = layer.tile(tile)
        source_best[tile.views, tile.pixels(size)] = raw.amax(dim=2)
        target_best[tile.views] = torch.maximum(target_best[tile.views], raw.amax(dim=1))
        del raw  # before the next is made
    return Layer(raw=layer, by_source=1 / (source_best + MUTUAL_EPS), by_target=1 / (target_best + MUTUAL_EPS))


def mutual_tile(layers: Sequence[Layer], tile: Tile) -> Float[Tensor, "V P n"]:
    """Mutual correlation summed over layers: the cube of the correlation over both maxima."""
    total: Tensor | None = None
    for layer in layers:
        raw = layer.raw.tile(tile)
        by_source = layer.by_source[tile.views, tile.pixels(layer.raw.size), None]
        cube_by_target = raw.pow_(3).mul_(layer.by_target[tile.views, None])
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
    size = layers[0].raw.size
    halo = slice(max(tile.rows.start - 1, 0), min(tile.rows.stop + 1, size))
    mutual = mutual_tile(layers, Tile(views=tile.views, rows=halo)).unflatten(1, (-1, size))
    over_rows = sum_of_three(mutual, 1)[:, tile.rows.start - halo.start : tile.rows.stop - halo.start]
    view = pixels // size**2 - tile.views.start
    pixel_in_rows = pixels % size**2 - tile.rows.start * size
    over_source = sum_of_three(over_rows, 2).flatten(1, 2)[view, pixel_in_rows]
    over_target = sum_of_three(sum_of_three(over_source.unflatten(1, (size, size)), 1), 2)
    return over_target.flatten(1).div_(NEIGHBOURHOOD * len(layers))


def similarity_of_pairs(
    layers: Sequence[Layer], view: Int[Tensor, " m"], source: Int[Tensor, " m"], target: Int[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """Similarity of single pixel pairs, from the 81 mutual correlations of their neighbours."""
    size = layers[0].raw.size
    around_source, around_target = neighbourhood(source, size), neighbourhood(target, size)
    total = layers[0].by_source.new_zeros(source.shape)
    for layer in layers:
        raw = layer.raw.around(view, around_source, around_target)
        by_source = around_source.inside * layer.by_source[view[:, None], around_source.near]
        by_target = around_target.inside * layer.by_target[view[:, None], around_target.near]
        total += (raw.pow_(3) * by_source[:, :, None] * by_target[:, None, :]).sum(dim=(1, 2))
    return total.div_(NEIGHBOURHOOD * len(layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedSimilarity:
    """What the similarity of any pixel pair can be computed from (a `Similarity`)."""

    layers: tuple[Layer, ...]
    rows_per_tile: int

    def best_target(
        self, view: Int[Tensor, " M"], source: Int[Tensor, " M"], before_row: Sequence[int] | None = None
    ) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
        """The most similar target pixel of each source pixel, and how similar it is: the second pass."""
        num_views, size = len(self.layers[0].by_source), self.layers[0].raw.size
        pixels, order = (view * size**2 + source).sort()
        if before_row is None:
            before_row = count_before_rows(pixels, num_views, size)
        assert len(before_row) == num_views * size + 1, "one row after the other of all pairs"
        assert before_row[-1] == len(source), "of these very pixels"
        target, best = torch.empty_like(source), self.layers[0].by_source.new_empty(len(source))
        with torch.autocast(source.device.type, enabled=False):
            for tile, span in requested_tiles(before_row, size, self.rows_per_tile):
                highest = similarity_rows(self.layers, tile, pixels[span]).max(dim=1)
                target[order[span]], best[order[span]] = highest.indices, highest.values
        return target, best

    def at(self, view: Int[Tensor, " M"], source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """The similarity of given pixel pairs; never more numbers at once than a tile has."""
        chunk = max(1, self.rows_per_tile * self.layers[0].raw.size ** 3 // NUMBERS_A_PAIR)
        with torch.autocast(source.device.type, enabled=False):
            pairs = zip(view.split(chunk), source.split(chunk), target.split(chunk), strict=True)
            return torch.cat([similarity_of_pairs(self.layers, *pair) for pair in pairs])

    def transposed(self) -> "StreamedSimilarity":
        """The same with source and target exchanged; the first pass serves both."""
        return dataclasses.replace(self, layers=tuple(layer.transposed() for layer in self.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedMatching:
    """Matching in tiles: memory grows like S^2 times the rows of a tile, not S^4 (a `Matching`)."""

    tile_bytes: int | None = None  # of correlation, in both passes; None suits the device

    def similarity(
        self, source_features: Sequence[Tensor], target_features: Sequence[Tensor], *, size: int
    ) -> StreamedSimilarity:
        """Similarity at `size` x `size` pixels from features [B, C_k, h_k, w_k]; carries no gradient."""
        pairs = [
            (in_full_precision(source), in_full_precision(target))
            for source, target in zip(source_features, target_features, strict=True)
        ]
        example = pairs[0][0]
        suited = TILE_BYTES_CPU if example.device.type == "cpu" else TILE_BYTES_GPU
        row_bytes = size**3 * example.element_size()
        first, second = (max(MIN_TILE_ROWS, (self.tile_bytes or tile_bytes) // row_bytes) for tile_bytes in suited)
        with torch.autocast(example.device.type, enabled=False):
            layers = tuple(match_layer(source, target, size=size, rows_per_tile=first) for source, target in pairs)
        return StreamedSimilarity(layers=layers, rows_per_tile=second)
