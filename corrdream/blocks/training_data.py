"""What the built-in prior is trained on: objects seen by pairs of view sets, drawn anew for every step.

Every object is seen by a base set of views, 90 degrees apart as MVDream's, and by its twin, turned by 10 to 30 degrees
to either side with the same elevation, distance, field of view, light offset, shading and background: what a
correspondence step of the method looks at. All randomness of a step follows from (seed, rank, step).

Symbols: O objects of a step, V views a set. Images are ordered by object, then set (base, twin), then view.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from corrdream.blocks.grammar import Split, sample_caption
from corrdream.blocks.render import box_average, light_term, render_geometry, supersampled
from corrdream.blocks.shapes import PackedShapes, build_shape, pack_shapes
from corrdream.cameras import intrinsics_from_fovy, look_at, spherical_position
from corrdream.structures import CameraBatch

NUM_SETS = 2  # base and twin
ELEVATION_RANGE = (0.0, 30.0)  # degrees, as MVDream's renders
FOVY_RANGE = (15.0, 60.0)  # degrees
DISTANCE_SHARE = (
    0.9  # over tan(fovy / 2); MVDream draws it from 0.8..1, unseen by its network, which leaves the size free
)
TWIN_RANGE = (10.0, 30.0)  # degrees of azimuth, to either side
LIGHT_DISTANCE_RANGE = (0.8, 1.5)  # threestudio's, as distillation lights its renders
AMBIENT_RANGE = (0.2, 1.0)
ALBEDO_SHARE = 0.25  # of objects shown without shading


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """O captions and what they describe, on the CPU."""

    captions: tuple[str, ...]
    shapes: PackedShapes


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSets:
    """Rendered objects: B = O * 2 * V images, and what a trainer of features needs of their geometry."""

    images: Float[Tensor, "B H W 3"]
    mask: Bool[Tensor, "B H W"]  # of the pixels' centers
    position: Float[Tensor, "B H W 3"]  # world, of what a pixel's center sees; where the mask is set
    cameras: CameraBatch


class ObjectStream(Dataset[Objects]):
    """The objects of each step, by its number; building them is the work of the loader's processes."""

    def __init__(self, *, num_objects: int, num_steps: int, seed: int, rank: int, split: Split) -> None:
        self.num_objects = num_objects
        self.num_steps = num_steps
        self.seed = seed
        self.rank = rank
        self.split = split

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Objects:
        """The objects of one step."""
        random = np.random.default_rng((self.seed, self.rank, step))
        captions = tuple(sample_caption(random, self.split) for _ in range(self.num_objects))
        return Objects(captions=captions, shapes=pack_shapes([build_shape(caption, random) for caption in captions]))


def object_loader(stream: ObjectStream, *, first_step: int, num_workers: int) -> Iterator[Objects]:
    """The stream from `first_step` on, made ahead by `num_workers` processes (0: by this one)."""
    loader = DataLoader(
        stream,
        batch_size=None,
        sampler=range(first_step, len(stream)),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
    )
    return iter(loader)


def step_generator(seed: int, rank: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of all that a step draws besides its objects."""
    mixed = np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> np.uint64(1)))


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> Float[Tensor, " N"]:
    """Uniform numbers on the generator's device."""
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def draw_cameras(
    generator: torch.Generator,
    num_objects: int,
    num_views: int,
    size: int,
    twin_range: tuple[float, float] = TWIN_RANGE,
) -> CameraBatch:
    """Cameras of every object's base set and of its twin."""
    start = uniform(generator, num_objects, 0.0, 2 * math.pi)
    side = torch.where(uniform(generator, num_objects, -1.0, 1.0) < 0, -1.0, 1.0)
    turn = side * uniform(generator, num_objects, *_radians(twin_range))
    views = torch.arange(num_views, device=generator.device) * (2 * math.pi / num_views)
    azimuth = (torch.stack([start, start + turn], dim=1)[:, :, None] + views).flatten()
    fovy = uniform(generator, num_objects, *_radians(FOVY_RANGE))
    distance = DISTANCE_SHARE / torch.tan(fovy / 2)
    elevation = uniform(generator, num_objects, *_radians(ELEVATION_RANGE))
    fovy, distance, elevation = (_every_view(value, num_views) for value in (fovy, distance, elevation))
    position = spherical_position(azimuth, elevation, distance)
    up = position.new_tensor([0.0, 0.0, 1.0]).expand_as(position)
    return CameraBatch(
        c2w=look_at(position, torch.zeros_like(position), up),
        intrinsics=intrinsics_from_fovy(fovy, size, size),
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        height=size,
        width=size,
    )


def render_view_sets(
    shapes: PackedShapes,
    generator: torch.Generator,
    *,
    num_views: int,
    size: int,
    supersample: int,
    twin_range: tuple[float, float] = TWIN_RANGE,
) -> ViewSets:
    """Base and twin sets of the objects, each object with a shading and a background of its own."""
    num_objects = len(shapes)
    cameras = draw_cameras(generator, num_objects, num_views, size, twin_range)
    buffer = render_geometry(shapes, supersampled(cameras, supersample))
    surface = buffer if supersample == 1 else render_geometry(shapes, cameras)
    ambient = uniform(generator, num_objects, *AMBIENT_RANGE)
    is_albedo = uniform(generator, num_objects, 0.0, 1.0) < ALBEDO_SHARE
    ambient = torch.where(is_albedo, 1.0, ambient)
    offset = torch.randn(num_objects, 3, generator=generator, device=generator.device)
    light_distance = uniform(generator, num_objects, *LIGHT_DISTANCE_RANGE)
    towards_light = F.normalize(cameras.c2w[:, :3, 3] + _every_view(offset, num_views), dim=-1)
    background = torch.rand(num_objects, 3, generator=generator, device=generator.device)
    light = light_term(
        buffer,
        _every_view(light_distance, num_views)[:, None] * towards_light,
        ambient=_every_view(ambient, num_views)[:, None].expand(-1, 3),
        diffuse=_every_view(1 - ambient, num_views)[:, None].expand(-1, 3),
    )
    colors = torch.where(
        buffer.mask[..., None], buffer.albedo * light, _every_view(background, num_views)[:, None, None]
    )
    return ViewSets(
        images=box_average(colors, supersample),
        mask=surface.mask,
        position=surface.position,
        cameras=cameras,
    )


def _every_view(value: Tensor, num_views: int) -> Tensor:
    """A number an object, as one a view."""
    return value.repeat_interleave(NUM_SETS * num_views, dim=0)


def _radians(degrees: tuple[float, float]) -> tuple[float, float]:
    return math.radians(degrees[0]), math.radians(degrees[1])
