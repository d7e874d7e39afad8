"""The camera condition of the multi-view prior against MVDream's."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from corrdream.cameras import normalize_camera, preview_poses, y_up_to_z_up
from tests.golden.helpers import assert_absolute, group, group_names, tensor

FILE = "camera_conditioning.npz"
TOLERANCE = 2e-6  # absolute


def cases(data: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        case = group(data, name)
        if "in_c2w" in case:
            yield name, partial(check_normalize, case)
        elif "in/num_frames" in case:
            yield name, partial(check_preview_poses, case)
        else:
            yield name, partial(check_change_of_world, case)


def check_normalize(case: Mapping[str, np.ndarray]) -> None:
    c2w = tensor(case["in_c2w"])
    assert_absolute(normalize_camera(c2w), case["out"], TOLERANCE, "normalized camera")
    # The published one writes into its argument; ours must not.
    assert_absolute(c2w, case["in_c2w"], 0.0, "argument after the call")


def check_preview_poses(case: Mapping[str, np.ndarray]) -> None:
    poses = preview_poses(
        int(case["in/num_frames"]),
        elevation_deg=float(case["in/elevation"]),
        azimuth_start_deg=float(case["in/azimuth_start"]),
        azimuth_span_deg=float(case["in/azimuth_span"]),
        z_up=bool(case["in/blender_coord"]),
    )
    assert_absolute(poses.flatten(1), case["out"], TOLERANCE, "poses")


def check_change_of_world(case: Mapping[str, np.ndarray]) -> None:
    assert_absolute(y_up_to_z_up(tensor(case["in"])), case["out"], TOLERANCE, "poses")
