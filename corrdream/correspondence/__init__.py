"""Cross-view correspondences from the prior's features, and the loss that holds rendered depths to them."""

from corrdream.correspondence.loss import (
    CorrespondenceSettings,
    correspondence_loss,
    find_matches,
    opaque_pixels,
)
from corrdream.correspondence.matching import VolumeMatching
from corrdream.correspondence.matching_streamed import StreamedMatching

__all__ = [
    "CorrespondenceSettings",
    "StreamedMatching",
    "VolumeMatching",
    "correspondence_loss",
    "find_matches",
    "opaque_pixels",
]
