"""Dense feature matching, the reference: soft mutual matching over the whole volume of all pixel pairs.

Symbols: B image pairs, S their side, n = S * S pixels numbered row-major, C channels, h w the side of a feature map.
The similarity of source pixel i and target pixel j is the mean over layers of box(mutual(raw)), where raw is the cosine
of the features upsampled to S x S. `matching_streamed` computes the same without the volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

MUTUAL_EPS = 1e-5  # as released, added to the signed maxima
NEIGHBOURHOOD = 81  # 3^4 entries of the box filter, counted also where they lie outside


def in_full_precision(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """The features without gradient, in at least 32 bits."""
    detached = features.detach()
    return detached if detached.dtype == torch.float64 else detached.float()


def unit_features(features: Float[Tensor, "B C h w"], size: int) -> Float[Tensor, "B C S S"]:
    """Features upsampled bicubically to `size` x `size` pixels, of unit length at every pixel (zero where none)."""
    if features.is_cuda:
        features = features.contiguous()  # bicubic upsampling takes several times longer of channels last
    if features.shape[-2:] != (size, size):
        features = F.interpolate(features, size=(size, size), mode="bicubic", align_corners=False)
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / length.clamp_min(torch.finfo(length.dtype).tiny)


def correlation(source: Float[Tensor, "B C S S"], target: Float[Tensor, "B C S S"]) -> Float[Tensor, "B n n"]:
    """Inner products of every source pixel with every target pixel."""
    return torch.bmm(source.flatten(2).transpose(1, 2), target.flatten(2))


def mutual_matching(raw: Float[Tensor, "B n n"]) -> Float[Tensor, "B n n"]:
    """Correlation times its ratios to the best of its row and of its column (soft mutual neighbours of 1810.10510).

    As released, the maxima are signed.
    """
    row_max = raw.amax(dim=2, keepdim=True)
    column_max = raw.amax(dim=1, keepdim=True)
    return raw * (raw / (row_max + MUTUAL_EPS)) * (raw / (column_max + MUTUAL_EPS))


def box_filter(mutual: Float[Tensor, "B n n"], size: int) -> Float[Tensor, "B n n"]:
    """Mean over 3 x 3 source and 3 x 3 target neighbours, zeros outside: two average pools, one after the other."""
    batch, num_pixels, _ = mutual.shape
    over_target = F.avg_pool2d(mutual.reshape(-1, 1, size, size), 3, stride=1, padding=1)
    target_first = over_target.reshape(batch, num_pixels, num_pixels).transpose(1, 2)
    over_both = F.avg_pool2d(target_first.reshape(-1, 1, size, size), 3, stride=1, padding=1)
    return over_both.reshape(batch, num_pixels, num_pixels).transpose(1, 2)


def count_before_rows(pixels: Int[Tensor, " M"], num_views: int, size: int) -> list[int]:
    """How many of the pixels (sorted, numbered over all pairs) come before each image row, and all of them."""
    row_starts = torch.arange(0, num_views * size + 1, device=pixels.device) * size
    counts: list[int] = torch.searchsorted(pixels, row_starts).tolist()  # sync
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSimilarity:
    """The similarity of all pixel pairs, held in memory (a `Similarity`)."""

    volume: Float[Tensor, "B n n"]

    def best_target(
        self,
        view: Int[Tensor, " M"],
        source: Int[Tensor, " M"],
        before_row: Sequence[int] | None = None,  # noqa: ARG002  # everything is there
    ) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
        """The most similar target pixel of each source pixel, and how similar it is."""
        best = self.volume[view, source].max(dim=1)
        return best.indices, best.values

    def at(self, view: Int[Tensor, " M"], source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """The similarity of given pixel pairs."""
        return self.volume[view, source, target]

    def transposed(self) -> "VolumeSimilarity":
        """The same with source and target exchanged."""
        return VolumeSimilarity(volume=self.volume.transpose(1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMatching:
    """Matching by the formula as it is written; memory grows like B S^4 (a `Matching`)."""

    def similarity(
        self, source_features: Sequence[Tensor], target_features: Sequence[Tensor], *, size: int
    ) -> VolumeSimilarity:
        """Similarity at `size` x `size` pixels from features [B, C_k, h_k, w_k]; carries no gradient."""
        layers = []
        with torch.autocast(source_features[0].device.type, enabled=False):
            for source, target in zip(source_features, target_features, strict=True):
                source_unit = unit_features(in_full_precision(source), size)
                target_unit = unit_features(in_full_precision(target), size)
                layers.append(box_filter(mutual_matching(correlation(source_unit, target_unit)), size))
            return VolumeSimilarity(volume=torch.stack(layers).mean(dim=0))
