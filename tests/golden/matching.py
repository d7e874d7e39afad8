"""Dense matching against the recorded volumes: the reference stage by stage, and what both implementations answer."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corrdream.correspondence.correlations import Tile, correlations, upsampling
from corrdream.correspondence.matching import VolumeMatching, box_filter, correlation, mutual_matching, unit_features
from corrdream.correspondence.matching_streamed import StreamedMatching
from corrdream.interfaces import Matching
from tests.golden.helpers import assert_absolute, group, group_names, tensor

FILE = "matching.npz"
RAW_TOLERANCE = 2e-5
SIMILARITY_TOLERANCE = 1e-4
CLEAR_MARGIN = 1e-5  # below it the best and the second best may change places

IMPLEMENTATIONS: dict[str, Matching] = {
    "reference": VolumeMatching(),
    "streamed": StreamedMatching(tile_bytes=1),  # the smallest tiles
    "streamed-whole": StreamedMatching(tile_bytes=2**30),
}


def cases(data: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        case = group(data, name)
        for layer in range(len(_features(case, "src"))):
            yield f"{name}-layer{layer}", partial(check_stages, case, layer)
        for kind, matching in IMPLEMENTATIONS.items():
            yield f"{name}-{kind}", partial(check_answers, case, matching)


def check_stages(case: Mapping[str, np.ndarray], layer: int) -> None:
    size, rows = int(case["in/image_size"]), tensor(case["rows"])
    source, target = _features(case, "src")[layer], _features(case, "trg")[layer]
    unit = {"src": unit_features(source, size), "trg": unit_features(target, size)}
    for side, features in (("src", source), ("trg", target)):
        prepared = upsampling(features, size)
        upsampled = prepared.rows.weights @ features @ prepared.columns.weights.T
        streamed = upsampled * prepared.inverse_length.reshape(1, 1, size, size)
        _check(case, f"unit_{side}_{layer}", unit[side][0], RAW_TOLERANCE)
        _check(case, f"unit_{side}_{layer}", streamed[0], RAW_TOLERANCE)
        _check(case, f"up_{side}_{layer}", upsampled[0], RAW_TOLERANCE)
    raw = correlation(unit["src"], unit["trg"])
    whole = correlations(source, target, size).tile(Tile(views=slice(0, 1), rows=slice(0, size)))
    _check(case, f"raw_{layer}", whole[0, rows], RAW_TOLERANCE)
    mutual = mutual_matching(raw)
    filtered = box_filter(mutual, size)
    _check(case, f"raw_{layer}", raw[0, rows], RAW_TOLERANCE)
    _check(case, f"raw_rowmax_{layer}", raw[0].amax(dim=1), RAW_TOLERANCE)
    _check(case, f"raw_colmax_{layer}", raw[0].amax(dim=0), RAW_TOLERANCE)
    _check(case, f"mutual_{layer}", mutual[0, rows], SIMILARITY_TOLERANCE)
    _check(case, f"filtered_{layer}", filtered[0, rows], SIMILARITY_TOLERANCE)
    # A tolerance on every entry is one on their mean.
    for name, values in (("mutual", mutual), ("filtered", filtered)):
        mean = case[f"out/{name}_sum_{layer}"] / values.numel()
        assert_absolute(values.double().mean(), mean, SIMILARITY_TOLERANCE, f"mean of {name}_{layer}")


def check_answers(case: Mapping[str, np.ndarray], matching: Matching) -> None:
    size, rows = int(case["in/image_size"]), tensor(case["rows"])
    num_pixels = size**2
    similarity = matching.similarity(_features(case, "src"), _features(case, "trg"), size=size)
    pixels = torch.arange(num_pixels)
    best_target, best = similarity.best_target(torch.zeros_like(pixels), pixels)
    assert_absolute(best, case["out/max"], SIMILARITY_TOLERANCE, "max")
    clear = tensor(case["out/margin"]) > CLEAR_MARGIN
    assert torch.equal(best_target[clear], tensor(case["out/argmax"])[clear].long()), "argmax differs beyond ties"
    source, target = rows.repeat_interleave(num_pixels), pixels.repeat(len(rows))
    mean = similarity.at(torch.zeros_like(source), source, target).reshape(len(rows), num_pixels)
    assert_absolute(mean, case["out/mean"], SIMILARITY_TOLERANCE, "mean")


def _features(case: Mapping[str, np.ndarray], side: str) -> list[Tensor]:
    names = sorted(name for name in case if name.startswith(f"in/feat_{side}_"))
    return [tensor(case[name])[None] for name in names]


def _check(case: Mapping[str, np.ndarray], name: str, actual: Tensor, tolerance: float) -> None:
    """Compares what is recorded: the larger cases leave some arrays out."""
    if f"out/{name}" in case:
        assert_absolute(actual, case[f"out/{name}"], tolerance, name)
