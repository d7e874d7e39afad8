"""Random multi-view cameras, azimuth-shifted copies and orbits against the published data module."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corrdream.camera_sampling import CameraDraws, CameraSettings, place_cameras
from corrdream.cameras import (
    camera_rays,
    clip_from_world,
    lights_at_cameras,
    orbit_cameras,
    pixel_directions,
    shift_azimuth,
)
from corrdream.structures import CameraBatch, LightBatch
from tests.golden.helpers import assert_relative, group, group_names, tensor

FILE = "cameras.npz"
TOLERANCE = 3e-6  # of the largest magnitude
NEAR, FAR = 0.1, 1000.0


def cases(data: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        case = group(data, name)
        if "cfg/n_views" in case:
            yield name, partial(check_orbit, case)
            continue
        yield name, partial(check_training_batch, case)
        if group(case, "perturb"):
            yield f"{name}-perturb", partial(check_shifted_copies, case)


def placed(case: Mapping[str, np.ndarray]) -> tuple[CameraBatch, LightBatch]:
    def pair(name: str) -> tuple[float, float]:
        low, high = case[f"cfg/{name}"].tolist()
        return low, high

    def number(name: str) -> float:
        return float(case[f"cfg/{name}"])

    num_views, height, width = int(number("n_view")), int(number("height")), int(number("width"))
    settings = CameraSettings(
        num_views=num_views,
        batch_size=num_views * len(case["in/u_azimuth"]),
        resolution=height,
        aspect=width / height,
        elevation_range=pair("elevation_range"),
        azimuth_range=pair("azimuth_range"),
        fovy_range=pair("fovy_range"),
        distance_range=pair("camera_distance_range"),
        relative_distance=bool(case["cfg/relative_radius"]),
        zoom_range=pair("zoom_range"),
        camera_perturb=number("camera_perturb"),
        center_perturb=number("center_perturb"),
        up_perturb=number("up_perturb"),
        light_distance_range=pair("light_distance_range"),
        light_perturb=number("light_position_perturb"),
        elevation_sampling="released",
    )
    draws = CameraDraws(
        elevation_rule=float(case["in/u_branch"]),
        elevation=tensor(case["in/u_elevation"]),
        azimuth=tensor(case["in/u_azimuth"]),
        fovy=tensor(case["in/u_fovy"]),
        distance=tensor(case["in/u_distance"]),
        zoom=tensor(case["in/u_zoom"]),
        light_distance=tensor(case["in/u_light_distance"]),
        camera_perturb=tensor(case["in/u_camera_perturb"]),
        center_perturb=tensor(case["in/n_center_perturb"]),
        up_perturb=tensor(case["in/n_up_perturb"]),
        light=tensor(case["in/n_light"]),
    )
    return place_cameras(settings, draws)


def check_training_batch(case: Mapping[str, np.ndarray]) -> None:
    cameras, lights = placed(case)
    directions = pixel_directions(cameras.intrinsics, cameras.height, cameras.width)
    actual = _poses(cameras, lights) | {
        "fovy": torch.rad2deg(2 * torch.atan(cameras.height / (2 * cameras.intrinsics[:, 1, 1]))),
        "camera_distances": cameras.distance,
        "light_distances": lights.distance,
        "light_random": lights.offset,
        "focal_length": cameras.intrinsics[:, 1, 1],
        "mvp_mtx": clip_from_world(cameras, NEAR, FAR),
        "ray_directions": directions,
    }
    _check(actual, group(case, "out"))
    assert_relative(cameras.intrinsics[:, 0, 0], case["out/focal_length"], TOLERANCE, "horizontal focal length")


def check_shifted_copies(case: Mapping[str, np.ndarray]) -> None:
    cameras, lights = placed(case)
    expected = group(case, "perturb")
    shifts = torch.deg2rad(tensor(expected.pop("degrees")).to(cameras.azimuth))
    copies = [_poses(*shift_azimuth(cameras, lights, shift.expand_as(cameras.azimuth))) for shift in shifts]
    _check({name: torch.stack([copy[name] for copy in copies]) for name in expected}, expected)


def check_orbit(case: Mapping[str, np.ndarray]) -> None:
    cameras = orbit_cameras(
        int(case["cfg/n_views"]),
        elevation_deg=float(case["cfg/elevation_deg"]),
        distance=float(case["cfg/camera_distance"]),
        fovy_deg=float(case["cfg/fovy_deg"]),
        height=int(case["cfg/height"]),
        width=int(case["cfg/width"]),
        include_end=bool(case["cfg/split_is_test"]),
    )
    actual = _poses(cameras, lights_at_cameras(cameras)) | {
        "camera_distances": cameras.distance,
        "mvp_mtx": clip_from_world(cameras, NEAR, FAR),
    }
    _check(actual, group(case, "out"))


def _poses(cameras: CameraBatch, lights: LightBatch) -> dict[str, Tensor]:
    """What every kind of group records, under its names there."""
    rays = camera_rays(cameras)
    shape = (len(cameras.c2w), cameras.height, cameras.width, 3)
    return {
        "c2w": cameras.c2w,
        "camera_positions": cameras.c2w[:, :3, 3],
        "light_positions": lights.position,
        "azimuth": torch.rad2deg(cameras.azimuth),
        "elevation": torch.rad2deg(cameras.elevation),
        "rays_o": rays.origins.reshape(shape),
        "rays_d": rays.directions.reshape(shape),
    }


def _check(actual: Mapping[str, Tensor], expected: Mapping[str, np.ndarray]) -> None:
    """Everything recorded is compared; a name that we do not compute is a KeyError."""
    for name, array in expected.items():
        assert_relative(actual[name], array, TOLERANCE, name)
