"""What every implementation of `Matching` must do."""

import pytest
import torch
from torch import Tensor

from corrdream.correspondence.matching import count_before_rows
from corrdream.interfaces import Matching, Similarity

SIZE = 12
CHANNELS = (24, 16)


def features(num_views: int, side: int, num_channels: int, seed: int) -> Tensor:
    return torch.randn(num_views, num_channels, side, side, generator=torch.Generator().manual_seed(seed))


def two_layers(num_views: int, seed: int) -> list[Tensor]:
    """One layer at render size, one coarser."""
    return [features(num_views, SIZE, CHANNELS[0], seed), features(num_views, SIZE // 2, CHANNELS[1], seed + 1)]


def all_pixels(num_views: int) -> tuple[Tensor, Tensor]:
    view = torch.arange(num_views).repeat_interleave(SIZE**2)
    return view, torch.arange(SIZE**2).repeat(num_views)


def is_inside(pixel: Tensor) -> Tensor:
    """Not at the image's border, where the filter's zeros count."""
    row, column = pixel // SIZE, pixel % SIZE
    return (row > 0) & (row < SIZE - 1) & (column > 0) & (column < SIZE - 1)


def slow_similarity(source: list[Tensor], target: list[Tensor], size: int) -> Tensor:
    """The formula entry by entry in float64, for one pair: [y_source x_source y_target x_target]."""
    mean = torch.zeros(size, size, size, size, dtype=torch.float64)
    for source_layer, target_layer in zip(source, target, strict=True):
        units = []
        for layer in (source_layer, target_layer):
            up = torch.nn.functional.interpolate(layer.double(), size=(size, size), mode="bicubic")[0]
            units.append(up / up.square().sum(dim=0).sqrt())
        raw = torch.einsum("cij,ckl->ijkl", *units)
        by_source = raw / (raw.amax(dim=(2, 3), keepdim=True) + 1e-5)
        by_target = raw / (raw.amax(dim=(0, 1), keepdim=True) + 1e-5)
        padded = torch.nn.functional.pad(raw * by_source * by_target, (1,) * 8)
        for shift in torch.cartesian_prod(*[torch.arange(3)] * 4).tolist():
            i, j, k, m = shift
            mean += padded[i : i + size, j : j + size, k : k + size, m : m + size] / 81 / len(source)
    return mean


class MatchingContract:
    """Derive, and give the implementation as `matching`."""

    @pytest.fixture
    def matching(self) -> Matching:
        raise NotImplementedError

    @pytest.fixture
    def similarity(self, matching: Matching) -> Similarity:
        return matching.similarity(two_layers(2, seed=0), two_layers(2, seed=10), size=SIZE)

    def test_is_a_matching(self, matching: Matching, similarity: Similarity) -> None:
        assert isinstance(matching, Matching)
        assert isinstance(similarity, Similarity)

    def test_image_matches_itself(self, matching: Matching) -> None:
        layers = two_layers(2, seed=0)
        view, pixel = all_pixels(2)
        best, _ = matching.similarity(layers, layers, size=SIZE).best_target(view, pixel)
        inside = is_inside(pixel)
        assert torch.equal(best[inside], pixel[inside])

    def test_shifted_image_matches_at_the_shift(self, matching: Matching) -> None:
        source = features(1, SIZE, CHANNELS[0], seed=0)
        target = source.roll(shifts=(2, 3), dims=(2, 3))
        rows, columns = torch.meshgrid(torch.arange(1, SIZE - 3), torch.arange(1, SIZE - 4), indexing="ij")
        pixel = (rows * SIZE + columns).flatten()
        best, _ = matching.similarity([source], [target], size=SIZE).best_target(torch.zeros_like(pixel), pixel)
        assert torch.equal(best, pixel + 2 * SIZE + 3)

    def test_equals_the_formula_written_slowly(self, matching: Matching) -> None:
        source = [features(1, 6, 5, seed=1), features(1, 4, 3, seed=2)]
        target = [features(1, 6, 5, seed=3), features(1, 4, 3, seed=4)]
        expected = slow_similarity(source, target, size=6).reshape(36, 36)
        similarity = matching.similarity(source, target, size=6)
        source_pixel, target_pixel = torch.cartesian_prod(torch.arange(36), torch.arange(36)).unbind(1)
        actual = similarity.at(torch.zeros_like(source_pixel), source_pixel, target_pixel).reshape(36, 36)
        # Ratios of nearly vanishing maxima magnify rounding; worst 2e-6.
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)
        _, best = similarity.best_target(torch.zeros(36, dtype=torch.long), torch.arange(36))
        torch.testing.assert_close(best.double(), expected.amax(dim=1), rtol=1e-4, atol=1e-5)

    def test_best_target_is_at_least_as_similar_as_any_other(self, similarity: Similarity) -> None:
        view, pixel = all_pixels(2)
        best, value = similarity.best_target(view, pixel)
        torch.testing.assert_close(similarity.at(view, pixel, best), value, rtol=1e-4, atol=1e-6)
        for other in (torch.zeros_like(pixel), pixel, pixel.flip(0)):
            assert bool((similarity.at(view, pixel, other) <= value + 1e-6).all())

    def test_transposed_exchanges_source_and_target(self, similarity: Similarity) -> None:
        view, pixel = all_pixels(2)
        other = pixel.flip(0)
        swapped = similarity.transposed()
        torch.testing.assert_close(swapped.at(view, other, pixel), similarity.at(view, pixel, other))
        best, value = swapped.best_target(view, pixel)
        torch.testing.assert_close(similarity.at(view, best, pixel), value, rtol=1e-4, atol=1e-6)
        assert torch.equal(swapped.transposed().best_target(view, pixel)[0], similarity.best_target(view, pixel)[0])

    def test_rows_that_are_counted_beforehand_change_nothing(self, similarity: Similarity) -> None:
        view, pixel = (part[::3] for part in all_pixels(2))
        before_row = count_before_rows(view * SIZE**2 + pixel, 2, SIZE)
        for counted, asked in zip(
            similarity.best_target(view, pixel, before_row), similarity.best_target(view, pixel), strict=True
        ):
            assert torch.equal(counted, asked)

    def test_answers_follow_the_order_of_the_questions(self, similarity: Similarity) -> None:
        view, pixel = all_pixels(2)
        best, value = similarity.best_target(view, pixel)
        asked = torch.randperm(len(pixel), generator=torch.Generator().manual_seed(0))[:100]
        few_best, few_value = similarity.best_target(view[asked], pixel[asked])
        assert torch.equal(few_best, best[asked])
        torch.testing.assert_close(few_value, value[asked])

    def test_pairs_do_not_see_each_other(self, matching: Matching) -> None:
        source, target = two_layers(2, seed=0), two_layers(2, seed=10)
        view, pixel = all_pixels(2)
        best, value = matching.similarity(source, target, size=SIZE).best_target(view, pixel)
        alone = matching.similarity([x[1:] for x in source], [x[1:] for x in target], size=SIZE)
        alone_best, alone_value = alone.best_target(*all_pixels(1))
        assert torch.equal(alone_best, best[view == 1])
        torch.testing.assert_close(alone_value, value[view == 1])

    def test_length_of_the_features_does_not_matter(self, matching: Matching, similarity: Similarity) -> None:
        scaled = matching.similarity([3 * x for x in two_layers(2, seed=0)], two_layers(2, seed=10), size=SIZE)
        view, pixel = all_pixels(2)
        torch.testing.assert_close(scaled.at(view, pixel, pixel), similarity.at(view, pixel, pixel))

    def test_vanishing_features_are_similar_to_nothing(self, matching: Matching) -> None:
        nothing = torch.zeros(1, 4, SIZE, SIZE)
        similarity = matching.similarity([nothing], [nothing], size=SIZE)
        view, pixel = all_pixels(1)
        assert bool((similarity.at(view, pixel, pixel) == 0).all())
        assert bool((similarity.best_target(view, pixel)[1] == 0).all())

    def test_nothing_asked_nothing_answered(self, similarity: Similarity) -> None:
        none = torch.zeros(0, dtype=torch.long)
        best, value = similarity.best_target(none, none)
        assert best.shape == value.shape == similarity.at(none, none, none).shape == (0,)

    def test_carries_no_gradient(self, matching: Matching) -> None:
        layers = [x.requires_grad_() for x in two_layers(1, seed=0)]
        similarity = matching.similarity(layers, layers, size=SIZE)
        view, pixel = all_pixels(1)
        assert not similarity.at(view, pixel, pixel).requires_grad
        assert not similarity.best_target(view, pixel)[1].requires_grad

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_features_are_left_as_they_are(self, matching: Matching, layout: torch.memory_format) -> None:
        source, target = ([x.to(memory_format=layout) for x in two_layers(1, seed=seed)] for seed in (0, 10))
        before = [x.clone() for x in source + target]
        similarity = matching.similarity(source, target, size=SIZE)
        view, pixel = all_pixels(1)
        similarity.at(view, pixel, similarity.best_target(view, pixel)[0])
        similarity.transposed().best_target(view, pixel)
        assert all(torch.equal(x, y) for x, y in zip(source + target, before, strict=True))

    def test_half_precision_is_in_the_features_only(self, matching: Matching) -> None:
        source = [x.bfloat16() for x in two_layers(1, seed=0)]
        target = [x.bfloat16() for x in two_layers(1, seed=10)]
        view, pixel = all_pixels(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            similarity = matching.similarity(source, target, size=SIZE)
            best, value = similarity.best_target(view, pixel)
            looked_up = similarity.at(view, pixel, best)
        wide = matching.similarity([x.float() for x in source], [x.float() for x in target], size=SIZE)
        wide_best, wide_value = wide.best_target(view, pixel)
        assert torch.equal(best, wide_best)
        assert torch.equal(value, wide_value)
        assert torch.equal(looked_up, wide.at(view, pixel, best))

    def test_layers_must_pair_up(self, matching: Matching) -> None:
        with pytest.raises(ValueError, match="argument"):
            matching.similarity(two_layers(1, seed=0), two_layers(1, seed=1)[:1], size=SIZE)
