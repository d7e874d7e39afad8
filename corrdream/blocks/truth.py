"""The true shape of a caption as a grade compares with it: distances, surface points, views, an unrolled surface."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

from corrdream.blocks.image_measures import nearest_colors
from corrdream.blocks.measures import sample_surface, surface_mesh, visible_from, voxel_centers
from corrdream.blocks.observe import (
    POINTS_PER_CHUNK,
    RESOLUTION,
    held_out_cameras,
    surrounding_positions,
    training_positions,
    unrolled_surface,
)
from corrdream.blocks.render import GeometryBuffer, render_geometry
from corrdream.blocks.shapes import (
    PackedShapes,
    Shape,
    build_shape,
    outward_normal,
    pack_shapes,
    signed_distance,
    surface_attributes,
)
from corrdream.blocks.vocabulary import CLAY, COLORS, NOUNS

NUM_POINTS = 30_000
THINNING = 4
PALETTE = {**COLORS, "clay": CLAY}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A caption's canonical shape, in the arrays of a grade."""

    shape: Shape
    signed_distance: Float[np.ndarray, "N N N"]  # at voxel centres
    diagonal: float  # of the bounding box, world units
    outer_points: Float[np.ndarray, "P 3"]  # area-uniform, seen by some camera all around
    trained_points: Float[np.ndarray, "Q 3"]  # area-uniform, seen by some training camera
    trained_normals: Float[np.ndarray, "Q 3"]
    views: GeometryBuffer  # from the held-out cameras, on the CPU
    unrolled: Int[np.ndarray, "A Z"]  # palette index of the first surface by azimuth and height, -1 where none


@lru_cache(maxsize=4)
def true_shape(caption: str) -> Truth:
    """The truth for a caption; CaptionError if it cannot be read. Runs of one prompt in one process share it."""
    shape = build_shape(caption)
    packed = pack_shapes([shape])
    distances = _distance_volume(packed)
    occupied = distances < 0
    vertices, triangles = surface_mesh(-distances, 0.0)
    points, _ = sample_surface(vertices, triangles, NUM_POINTS, np.random.default_rng(0))
    normals = outward_normal(packed, torch.from_numpy(points)[None])[0].numpy()
    trained = visible_from(points, normals, occupied, training_positions())
    extent = vertices.max(axis=0) - vertices.min(axis=0)
    return Truth(
        shape=shape,
        signed_distance=distances,
        diagonal=float(np.linalg.norm(extent)),
        outer_points=points[visible_from(points, normals, occupied, surrounding_positions())],
        trained_points=points[trained],
        trained_normals=normals[trained],
        views=render_geometry(packed, held_out_cameras(torch.device("cpu"))),
        unrolled=_unrolled_colors(packed, occupied.astype(np.float32)),
    )


@lru_cache(maxsize=1)
def noun_volumes() -> Bool[np.ndarray, "K M M M"]:
    """Which of every `THINNING`-th voxel each noun of the world occupies, for telling shapes apart."""
    side = RESOLUTION // THINNING
    points = torch.from_numpy(thinned(voxel_centers(RESOLUTION).reshape(*(RESOLUTION,) * 3, 3)).reshape(-1, 3))
    volumes = [signed_distance(pack_shapes([build_shape(f"a clay model of a {noun}")]), points[None]) for noun in NOUNS]
    occupied: Array = torch.stack(volumes).reshape(len(NOUNS), side, side, side).numpy() < 0
    return occupied


def thinned(volume: Shaped[np.ndarray, "N N N ..."]) -> Shaped[np.ndarray, "M M M ..."]:
    """Every `THINNING`-th voxel along each axis, half of that from the border."""
    kept = slice(THINNING // 2, None, THINNING)
    return volume[kept, kept, kept]


def _distance_volume(packed: PackedShapes) -> Float[np.ndarray, "N N N"]:
    chunks = torch.from_numpy(voxel_centers(RESOLUTION)).split(POINTS_PER_CHUNK)
    distances = torch.cat([signed_distance(packed, chunk[None])[0] for chunk in chunks])
    volume: Array = distances.reshape((RESOLUTION,) * 3).numpy()
    return volume


def _unrolled_colors(packed: PackedShapes, occupied: Float[np.ndarray, "N N N"]) -> Int[np.ndarray, "A Z"]:
    points, met = unrolled_surface(occupied)
    albedo, _ = surface_attributes(packed, torch.from_numpy(points[met])[None])
    return unrolled_entries(albedo[0].numpy(), met)


def unrolled_entries(albedo: Float[np.ndarray, "P 3"], met: Array) -> Int[np.ndarray, "A Z"]:
    """Palette indices of the colors at the `met` places of an unrolled surface, -1 elsewhere."""
    entries = np.full(met.shape, -1, np.int64)
    entries[met] = nearest_colors(albedo, PALETTE)
    return entries
