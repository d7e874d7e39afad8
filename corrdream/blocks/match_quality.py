"""How well the prior's features match two views of one surface, against the true reprojection.

For view pairs a fixed turn apart: the share of source pixels whose best target lies within 1, 2 and 4 pixels of where
their surface point is seen; first the plain best cosine, then what our own mutual matching, box filter and epipolar
filter keep. Only surface points that the other view sees are counted. Two baselines: 7 x 7 patches of colors in place
of features, and no motion at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from corrdream.blocks.shapes import Shape, pack_shapes
from corrdream.blocks.training_data import NUM_SETS, ViewSets, render_view_sets
from corrdream.cameras import project
from corrdream.correspondence import (
    CorrespondenceSettings,
    StreamedMatching,
    find_matches,
    opaque_pixels,
)
from corrdream.correspondence.matching import unit_features
from corrdream.diffusion import add_noise
from corrdream.interfaces import MultiviewPrior
from corrdream.structures import CameraBatch

RADII = (1.0, 2.0, 4.0)  # pixels
PATCH = 7  # side of the color patches
VISIBLE_WITHIN = 0.05  # world units between a surface point and what is seen at its reprojection
SETTINGS = CorrespondenceSettings(
    edge_kernel=3,
    opacity_threshold=0.99,
    epipolar_threshold=2.0,
    epipolar_threshold_unit="scaled_pixels",
    epipolar_projection="normal_form",
    max_matches=60000,
    confidence="raw",
    huber_delta=1.0,
    depth_convention="z_depth",
    depth_normalization="opacity",
    direction="forward",
    reduction="mean",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPairs:
    """B source views, the same views turned, and where each source pixel's surface point is truly seen."""

    source: CameraBatch
    target: CameraBatch
    source_mask: Bool[Tensor, "B S S"]
    target_mask: Bool[Tensor, "B S S"]
    true_xy: Float[Tensor, "B S S 2"]
    visible: Bool[Tensor, "B S S"]  # on the object, and seen by the target


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchQuality:
    """Counts, of which shares are made; `within` is one number a radius."""

    pixels: int
    raw_within: tuple[int, ...]
    kept: int
    kept_within: tuple[int, ...]

    def __add__(self, other: "MatchQuality") -> "MatchQuality":
        return MatchQuality(
            pixels=self.pixels + other.pixels,
            raw_within=tuple(a + b for a, b in zip(self.raw_within, other.raw_within, strict=True)),
            kept=self.kept + other.kept,
            kept_within=tuple(a + b for a, b in zip(self.kept_within, other.kept_within, strict=True)),
        )

    def shares(self) -> dict[str, float]:
        """Shares of the pixels, and of the matches that are kept."""
        named = {"pixels": float(self.pixels), "kept": self.kept / max(self.pixels, 1)}
        for radius, raw, kept in zip(RADII, self.raw_within, self.kept_within, strict=True):
            named[f"raw_{radius:.0f}px"] = raw / max(self.pixels, 1)
            named[f"kept_{radius:.0f}px"] = kept / max(self.kept, 1)
        return {name: round(value, 4) for name, value in named.items()}


def measure_matches(
    prior: MultiviewPrior,
    shapes: Sequence[Shape],
    *,
    turn_deg: float,
    timesteps: Sequence[int],
    block_sets: Sequence[tuple[int, ...]],
    generator: torch.Generator,
) -> dict[tuple[str, int], MatchQuality]:
    """Quality by features ("1,3": blocks matched together; "colors"; "no motion") and timestep, over all shapes."""
    views = render_view_sets(
        pack_shapes(shapes).to(generator.device),
        generator,
        num_views=prior.num_views,
        size=prior.image_size,
        supersample=2,
        twin_range=(turn_deg, turn_deg),
    )
    pairs = make_pairs(views, prior.num_views)
    found = {("no motion", 0): no_motion(pairs)}
    found["colors", 0] = match_quality([color_patches(views.images)], pairs, prior.num_views)
    blocks = sorted({block for blocks in block_sets for block in blocks})
    for timestep in timesteps:
        features = noisy_features(prior, views, [shape.caption for shape in shapes], timestep, blocks, generator)
        for block_set in block_sets:
            chosen = [features[blocks.index(block)] for block in block_set]
            name = ",".join(map(str, block_set))
            found[name, timestep] = match_quality(chosen, pairs, prior.num_views)
    return found


def noisy_features(
    prior: MultiviewPrior,
    views: ViewSets,
    captions: Sequence[str],
    timestep: int,
    blocks: Sequence[int],
    generator: torch.Generator,
) -> tuple[Tensor, ...]:
    """Features of the views with the captions' text, both sets under the same noise, as a correspondence step's."""
    latents = prior.encode_images(views.images)
    per_object = NUM_SETS * prior.num_views
    noise_shape = (len(captions), 1, prior.num_views, *latents.shape[1:])
    noise = torch.randn(noise_shape, generator=generator, device=generator.device)
    noise = noise.expand(-1, NUM_SETS, -1, -1, -1, -1).flatten(0, 2).to(latents)
    noisy = add_noise(latents, noise, prior.alphas_cumprod[timestep])
    timesteps = torch.full((len(latents),), timestep, device=prior.device)
    text = prior.encode_text(captions).repeat_interleave(per_object, dim=0)
    return prior.features(noisy, timesteps, text=text, c2w=views.cameras.c2w, blocks=blocks)


def make_pairs(views: ViewSets, num_views: int) -> ViewPairs:
    """Base views with their twins, and the true reprojection of every source pixel."""
    source_index, target_index = pair_indices(len(views.mask), num_views, views.mask.device)
    source, target = views.cameras.select(source_index), views.cameras.select(target_index)
    size = views.mask.shape[-1]
    points = views.position[source_index].flatten(0, 2)
    each = torch.arange(len(source_index), device=points.device).repeat_interleave(size * size)
    xy, _ = project(points, target.c2w[each], target.intrinsics[each])
    column, row = xy.long().clamp(0, size - 1).unbind(-1)
    seen = views.position[target_index][each, row, column]
    target_mask = views.mask[target_index]
    visible = ((seen - points).norm(dim=-1) < VISIBLE_WITHIN) & target_mask[each, row, column]
    shape = (len(source_index), size, size)
    source_mask = views.mask[source_index]
    return ViewPairs(
        source=source,
        target=target,
        source_mask=source_mask,
        target_mask=target_mask,
        true_xy=xy.reshape(*shape, 2),
        visible=visible.reshape(shape) & source_mask,
    )


def match_quality(features: Sequence[Tensor], pairs: ViewPairs, num_views: int) -> MatchQuality:
    """Quality of features [B, C_k, h_k, w_k] of all views: of one layer's best cosine, and of the method's matches.

    With several layers the plain best is that of their mean cosine.
    """
    total = MatchQuality(pixels=0, raw_within=(0,) * len(RADII), kept=0, kept_within=(0,) * len(RADII))
    source_index, target_index = pair_indices(len(features[0]), num_views, features[0].device)
    for first in range(0, len(source_index), num_views):
        chunk = slice(first, first + num_views)
        source = [feature[source_index[chunk]].float() for feature in features]
        target = [feature[target_index[chunk]].float() for feature in features]
        total = total + _match_chunk(source, target, select_pairs(pairs, chunk))
    return total


def _match_chunk(source: Sequence[Tensor], target: Sequence[Tensor], pairs: ViewPairs) -> MatchQuality:
    size = pairs.visible.shape[-1]
    view, row, column = pairs.visible.nonzero().unbind(-1)
    best = _best_cosine(source, target, size)[view, row * size + column]
    raw_xy = torch.stack([best % size, best // size], dim=-1) + 0.5
    similarity = StreamedMatching().similarity(source, target, size=size)
    generator = torch.Generator(view.device).manual_seed(0)
    source_pixels, target_pixels = opaque_pixels(
        pairs.source_mask.float(), pairs.target_mask.float(), settings=SETTINGS, generator=generator
    )
    matches = find_matches(
        similarity, source_pixels, target_pixels, pairs.source, pairs.target, settings=SETTINGS
    ).kept()
    where = (matches.view, matches.source_xy[:, 1], matches.source_xy[:, 0])
    counted = pairs.visible[where]
    return MatchQuality(
        pixels=len(view),
        raw_within=_count_within(raw_xy, pairs.true_xy[view, row, column]),
        kept=int(counted.sum()),
        kept_within=_count_within(matches.target_xy[counted], pairs.true_xy[where][counted]),
    )


def _best_cosine(source: Sequence[Tensor], target: Sequence[Tensor], size: int) -> Int[Tensor, "B n"]:
    volume = torch.zeros(len(source[0]), size * size, size * size, device=source[0].device)
    for one, other in zip(source, target, strict=True):
        volume.baddbmm_(unit_features(one, size).flatten(2).transpose(1, 2), unit_features(other, size).flatten(2))
    return volume.argmax(-1)


def no_motion(pairs: ViewPairs) -> MatchQuality:
    """The quality of matching every pixel with itself; nothing is kept or lost."""
    view, row, column = pairs.visible.nonzero().unbind(-1)
    here = torch.stack([column, row], dim=-1) + 0.5
    within = _count_within(here, pairs.true_xy[view, row, column])
    return MatchQuality(pixels=len(view), raw_within=within, kept=len(view), kept_within=within)


def color_patches(images: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B C H W"]:
    """The colors of the 7 x 7 pixels around each pixel, as its feature."""
    signed = 2 * images.permute(0, 3, 1, 2) - 1
    return F.unfold(signed, PATCH, padding=PATCH // 2).reshape(len(images), -1, *images.shape[1:3])


def pair_indices(num_images: int, num_views: int, device: torch.device) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Images of the base sets, and of their twins, in the order of `ViewSets`."""
    index = torch.arange(num_images, device=device).reshape(-1, NUM_SETS, num_views)
    return index[:, 0].flatten(), index[:, 1].flatten()


def select_pairs(pairs: ViewPairs, chunk: slice) -> ViewPairs:
    """Some of the pairs."""
    return ViewPairs(
        source=pairs.source.select(chunk),
        target=pairs.target.select(chunk),
        source_mask=pairs.source_mask[chunk],
        target_mask=pairs.target_mask[chunk],
        true_xy=pairs.true_xy[chunk],
        visible=pairs.visible[chunk],
    )


def _count_within(xy: Float[Tensor, "M 2"], true_xy: Float[Tensor, "M 2"]) -> tuple[int, ...]:
    gaps = (xy - true_xy).norm(dim=-1)
    return tuple(int((gaps <= radius).sum()) for radius in RADII)
