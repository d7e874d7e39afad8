"""Scales, resolutions and table sizes of hash-grid levels, as tiny-cuda-nn has them on a GPU."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from corrdream.field.encodings import HashGrid

FILE = "tcnn_scales.json"
TOLERANCE = 3e-7  # the device's exponential is off by two units in the last place at most


def cases(data: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name, levels in data.items():
        if isinstance(levels, list):
            yield name, partial(compare, levels)


def compare(levels: list[dict[str, Any]]) -> None:
    first, last = levels[0]["scale"] + 1, levels[-1]["scale"] + 1
    growth = (last / first) ** (1 / (len(levels) - 1))
    largest = max(level["entries"] for level in levels)
    settings = {
        "num_levels": len(levels),
        "log2_table_size": math.ceil(math.log2(largest)),
        "base_resolution": round(first),
        "growth": growth,
    }
    for grid in (HashGrid(**settings), HashGrid(**settings, level_scales=[level["scale"] for level in levels])):
        assert [scale + 1 for scale in grid.scales] == pytest.approx(
            [level["scale"] + 1 for level in levels], rel=TOLERANCE
        )
        assert grid.resolutions == [level["resolution"] for level in levels]
        assert grid.sizes == [level["entries"] for level in levels]
        hashed = [resolution**3 > size for resolution, size in zip(grid.resolutions, grid.sizes, strict=True)]
        assert hashed == [level["hashed"] for level in levels]
