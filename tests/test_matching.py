"""Both implementations keep the contract, and the streamed one is the reference without its memory."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from corrdream.correspondence import StreamedMatching, VolumeMatching
from corrdream.correspondence.correlations import bicubic_interpolation
from corrdream.correspondence.matching import box_filter, count_before_rows, mutual_matching
from corrdream.correspondence.matching_streamed import MIN_TILE_ROWS, requested_tiles, tiles
from corrdream.interfaces import Matching
from tests.contracts.matching import MatchingContract

SMALLEST_TILES = 1  # bytes: as few rows as are ever taken
WHOLE = 2**30


class TestVolumeMatching(MatchingContract):
    @pytest.fixture
    def matching(self) -> Matching:
        return VolumeMatching()


class TestStreamedMatching(MatchingContract):
    @pytest.fixture(params=[None, SMALLEST_TILES, WHOLE])
    def matching(self, request: pytest.FixtureRequest) -> Matching:
        return StreamedMatching(tile_bytes=request.param)


def random_layers(shapes: list[tuple[int, int, int]], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *shape, generator=generator).to(dtype) for shape in shapes]


class LargestTensor(TorchDispatchMode):
    """Records how many entries the largest tensor has that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
        ]
        self.entries = max([self.entries, *sizes])
        return result


class PeakBytes(TorchDispatchMode):
    """Records the most bytes that tensors made inside hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # tensors on each storage
        self.held = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.keep(leaf)
        return result

    def keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self.held += 0 if address in self.alive else size
        self.peak = max(self.peak, self.held)
        self.alive[address] = self.alive.get(address, 0) + 1
        weakref.finalize(tensor, self.release, address, size)

    def release(self, address: int, size: int) -> None:
        self.alive[address] -= 1
        if not self.alive[address]:
            del self.alive[address]
            self.held -= size


def test_mutual_matching_of_two_pixels() -> None:
    raw = torch.tensor([[[0.5, 1.0], [0.25, -0.5]]])
    expected = torch.tensor([[[0.5 * 0.5 * 1, 1.0], [0.25 * 1 * 0.5, -0.5 * -2 * -0.5]]])
    torch.testing.assert_close(mutual_matching(raw), expected, rtol=0, atol=1e-4)


def test_box_filter_spreads_one_entry_over_its_neighbours() -> None:
    mutual = torch.zeros(1, 9, 9)
    mutual[0, 0, 4] = 81.0
    filtered = box_filter(mutual, 3).reshape(3, 3, 3, 3)
    expected = torch.zeros(3, 3, 3, 3)
    expected[:2, :2] = 1.0
    torch.testing.assert_close(filtered, expected)


@pytest.mark.parametrize(("length", "size"), [(4, 16), (8, 8), (5, 12), (16, 8)])
def test_bicubic_weights_interpolate_as_torch_does(length: int, size: int) -> None:
    image = torch.randn(1, 1, length, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = bicubic_interpolation(length, size, image.dtype, image.device).weights
    expected = F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False)
    torch.testing.assert_close(weights @ image[0, 0] @ weights.T, expected[0, 0])


def test_tiles_cover_every_row_of_every_pair_once() -> None:
    for rows_per_tile in (1, 3, 8, 16, 40):
        covered = torch.zeros(5, 8, dtype=torch.long)
        for tile in tiles(5, 8, rows_per_tile):
            covered[tile.views, tile.rows] += 1
        assert bool((covered == 1).all())


def test_requested_tiles_leave_out_rows_without_pixels() -> None:
    size = 8
    pixels = torch.tensor([2 * size + 1, 3 * size + 4, 64 + 7 * size])
    before_row = count_before_rows(pixels, 2, size)
    assert [index for index in range(16) if before_row[index] < before_row[index + 1]] == [2, 3, 15]
    found = [(tile.views, tile.rows, span) for tile, span in requested_tiles(before_row, size, rows_per_tile=6)]
    assert found == [(slice(0, 1), slice(2, 4), slice(0, 2)), (slice(1, 2), slice(7, 8), slice(2, 3))]


@pytest.mark.parametrize("tile_bytes", [None, SMALLEST_TILES])
@pytest.mark.parametrize(
    ("size", "shapes"),
    [
        (16, [(12, 16, 16), (20, 8, 8)]),
        (16, [(6, 32, 32), (10, 16, 16)]),
        (16, [(7, 5, 11)]),
        (32, [(16, 32, 32), (24, 16, 16)]),
        (32, [(9, 12, 20), (5, 31, 3), (8, 6, 6)]),
        (48, [(16, 32, 32), (24, 12, 12)]),
    ],
)
def test_streamed_equals_reference(size: int, shapes: list[tuple[int, int, int]], tile_bytes: int | None) -> None:
    source, target = random_layers(shapes, seed=0), random_layers(shapes, seed=1)
    streamed = StreamedMatching(tile_bytes=tile_bytes).similarity(source, target, size=size)
    reference = VolumeMatching().similarity(source, target, size=size)
    volume = reference.volume
    generator = torch.Generator().manual_seed(2)
    for ours, theirs, rows in (
        (streamed, reference, volume),
        (streamed.transposed(), reference.transposed(), volume.mT),
    ):
        view, source_pixel = (torch.rand(2, size**2, generator=generator) < 0.3).nonzero().unbind(1)
        best, value = ours.best_target(view, source_pixel)
        expected_best, expected_value = theirs.best_target(view, source_pixel)
        torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=1e-6)
        second = rows[view, source_pixel].topk(2, dim=1).values[:, 1]
        clear = expected_value - second > 1e-6
        assert clear.float().mean() > 0.99
        assert torch.equal(best[clear], expected_best[clear])
        other = torch.randint(size**2, view.shape, generator=generator)
        expected = theirs.at(view, source_pixel, other)
        torch.testing.assert_close(ours.at(view, source_pixel, other), expected, rtol=1e-4, atol=1e-6)


def test_streamed_equals_reference_in_double_precision() -> None:
    shapes = [(6, 16, 16), (8, 4, 4)]
    source, target = (random_layers(shapes, seed=seed, dtype=torch.float64) for seed in (0, 1))
    view, pixel = torch.zeros(256, dtype=torch.long), torch.arange(256)
    streamed = StreamedMatching().similarity(source, target, size=16)
    best, value = streamed.best_target(view, pixel)
    expected_best, expected_value = VolumeMatching().similarity(source, target, size=16).best_target(view, pixel)
    assert value.dtype == torch.float64
    assert torch.equal(best, expected_best)
    torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [32, 64])
def test_streamed_never_holds_more_than_a_tile(size: int) -> None:
    shapes = [(8, 32, 32), (8, 16, 16)]
    source, target = random_layers(shapes, seed=0), random_layers(shapes, seed=1)
    view, pixel = torch.zeros(size**2, dtype=torch.long), torch.arange(size**2)
    with LargestTensor() as largest:
        similarity = StreamedMatching(tile_bytes=SMALLEST_TILES).similarity(source, target, size=size)
        best, _ = similarity.best_target(view, pixel)
        similarity.at(view, pixel, best)
        similarity.transposed().best_target(view, pixel)
    assert largest.entries <= (MIN_TILE_ROWS + 2) * size**3


def test_streamed_holds_few_tiles_at_once() -> None:
    size, shapes = 64, [(8, 16, 16), (8, 8, 8)]
    source, target = random_layers(shapes, seed=0), random_layers(shapes, seed=1)
    view, pixel = torch.zeros(size**2, dtype=torch.long), torch.arange(size**2)
    with PeakBytes() as peak:
        similarity = StreamedMatching(tile_bytes=SMALLEST_TILES).similarity(source, target, size=size)
        best, _ = similarity.best_target(view, pixel)
        similarity.at(view, pixel, best)
    tile = 4 * (MIN_TILE_ROWS + 2) * size**3
    assert 2 * tile < peak.peak < 6 * tile


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "limit"), [(128, 2**30), (256, 2**32)])
def test_streamed_holds_less_than_the_volume_on_the_gpu(size: int, limit: int) -> None:
    source, target = (
        [torch.randn(4, channels, side, side, device="cuda").half() for channels, side in ((640, 32), (1280, 16))]
        for _ in range(2)
    )
    view, pixel = torch.arange(4, device="cuda").repeat_interleave(500), torch.arange(2000, device="cuda") * 7
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    similarity = StreamedMatching().similarity(source, target, size=size)
    best, value = similarity.best_target(view, pixel)
    torch.testing.assert_close(similarity.at(view, pixel, best), value, rtol=1e-3, atol=1e-5)
    assert torch.cuda.max_memory_allocated() - before < limit


@pytest.mark.gpu
@pytest.mark.parametrize("tile_bytes", [None, SMALLEST_TILES])
def test_streamed_on_the_gpu_equals_the_reference_on_the_cpu(tile_bytes: int | None) -> None:
    shapes = [(16, 32, 32), (24, 16, 16)]
    source, target = random_layers(shapes, seed=0), random_layers(shapes, seed=1)
    reference = VolumeMatching().similarity(source, target, size=32)
    on_gpu = [[layer.cuda() for layer in layers] for layers in (source, target)]
    streamed = StreamedMatching(tile_bytes=tile_bytes).similarity(*on_gpu, size=32)
    view, pixel = torch.arange(2).repeat_interleave(32**2), torch.arange(32**2).repeat(2)
    for ours, theirs in ((streamed, reference), (streamed.transposed(), reference.transposed())):
        best, value = ours.best_target(view.cuda(), pixel.cuda())
        expected_best, expected_value = theirs.best_target(view, pixel)
        torch.testing.assert_close(value.cpu(), expected_value, rtol=1e-4, atol=1e-5)
        assert (best.cpu() == expected_best).float().mean() > 0.99  # near ties may fall either way
        looked_up = ours.at(view.cuda(), pixel.cuda(), pixel.cuda())
        torch.testing.assert_close(looked_up.cpu(), theirs.at(view, pixel, pixel), rtol=1e-4, atol=1e-5)
