"""Ground-truth pictures: sphere tracing of signed distances, and the training renderer's shading.

The torch tracer is the reference and runs anywhere; on CUDA a Triton kernel does the same (render_triton.py).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.blocks.distance import PackedShapes, outward_normal, signed_distance, surface_attributes
from corrdream.cameras import camera_rays
from corrdream.structures import Appearance, CameraBatch, LightBatch

Backend = Literal["auto", "torch", "triton"]
BOUND = 0.88  # radius of a sphere that holds every shape (shapes.LARGEST_NORM) with room for its normals
MAX_STEPS = 96
SURFACE = 2e-4  # a ray that is nearer than this has hit
RAYS_AT_ONCE = 1 << 16  # limits the reference tracer's memory


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryBuffer:
    """What each pixel's ray hits; zero where it misses (part: -1). World coordinates are the shape's."""

    mask: Bool[Tensor, "B H W"]
    distance: Float[Tensor, "B H W"]  # along the unit ray
    depth: Float[Tensor, "B H W"]  # planar z in the camera
    position: Float[Tensor, "B H W 3"]
    normal: Float[Tensor, "B H W 3"]  # outward, unit
    albedo: Float[Tensor, "B H W 3"]
    part: Int[Tensor, "B H W"]


def render_geometry(packed: PackedShapes, cameras: CameraBatch, backend: Backend = "auto") -> GeometryBuffer:
    """First hits of one ray a pixel, through its centre; shape k is seen by the k-th group of consecutive cameras.

    Raises ValueError if the cameras cannot be shared out evenly among the shapes.
    """
    num_images = cameras.c2w.shape[0]
    if num_images % len(packed):
        raise ValueError(f"{num_images} cameras cannot be shared out among {len(packed)} shapes.")
    if backend == "auto":
        backend = "triton" if cameras.c2w.is_cuda else "torch"
    if backend == "triton":
        from corrdream.blocks.render_triton import trace_triton

        distance, normal, albedo, part = trace_triton(packed, cameras)
    else:
        distance, normal, albedo, part = _trace_torch(packed, cameras)
    shape = (num_images, cameras.height, cameras.width)
    return _buffer(cameras, distance.view(shape), normal.view(*shape, 3), albedo.view(*shape, 3), part.view(shape))


def shade(buffer: GeometryBuffer, lights: LightBatch, appearance: Appearance) -> Float[Tensor, "B H W 3"]:
    """The buffer's image under one appearance: light = ambient + diffuse * max(normal . direction to the light, 0).

    Modes: albedo; textureless (the light alone); diffuse (albedo times light). Raises ValueError without a background.
    """
    if appearance.background is None:
        raise ValueError("ground truth has no background of its own: appearance.background must be a color a view.")
    light = light_term(
        buffer,
        lights.position,
        ambient=buffer.albedo.new_tensor(appearance.ambient).expand(lights.position.shape[0], 3),
        diffuse=buffer.albedo.new_tensor(appearance.diffuse).expand(lights.position.shape[0], 3),
    )
    match appearance.mode:
        case "albedo":
            color = buffer.albedo
        case "textureless":
            color = light
        case "diffuse":
            color = buffer.albedo * light
    return torch.where(buffer.mask[..., None], color, appearance.background[:, None, None])


def light_term(
    buffer: GeometryBuffer,
    light_position: Float[Tensor, "B 3"],
    *,
    ambient: Float[Tensor, "B 3"],
    diffuse: Float[Tensor, "B 3"],
) -> Float[Tensor, "B H W 3"]:
    """ambient + diffuse * lambert, with colors a view, as the training renderer has it."""
    toward_light = torch.nn.functional.normalize(light_position[:, None, None] - buffer.position, dim=-1)
    lambert = (buffer.normal * toward_light).sum(-1, keepdim=True).clamp_min(0.0)
    return ambient[:, None, None] + diffuse[:, None, None] * lambert


def render_images(
    packed: PackedShapes,
    cameras: CameraBatch,
    lights: LightBatch,
    appearance: Appearance,
    *,
    supersample: int = 1,
    backend: Backend = "auto",
) -> Float[Tensor, "B H W 3"]:
    """Shaded images; with supersample s each pixel is the mean of s x s rays."""
    buffer = render_geometry(packed, supersampled(cameras, supersample), backend)
    return box_average(shade(buffer, lights, appearance), supersample)


def supersampled(cameras: CameraBatch, factor: int) -> CameraBatch:
    """The same cameras with pixels `factor` times smaller."""
    scale = cameras.intrinsics.new_tensor([factor, factor, 1.0])[:, None]
    return replace(
        cameras, intrinsics=cameras.intrinsics * scale, height=cameras.height * factor, width=cameras.width * factor
    )


def box_average(images: Float[Tensor, "B Hs Ws 3"], factor: int) -> Float[Tensor, "B H W 3"]:
    """Means over factor x factor pixels."""
    if factor == 1:
        return images
    batch, height, width, channels = images.shape
    blocks = images.view(batch, height // factor, factor, width // factor, factor, channels)
    return blocks.mean(dim=(2, 4))


def _buffer(
    cameras: CameraBatch,
    distance: Float[Tensor, "B H W"],
    normal: Float[Tensor, "B H W 3"],
    albedo: Float[Tensor, "B H W 3"],
    part: Int[Tensor, "B H W"],
) -> GeometryBuffer:
    rays = camera_rays(cameras)
    mask = part >= 0
    position = (rays.origins + distance.reshape(-1, 1) * rays.directions).view(*distance.shape, 3)
    position = position * mask[..., None]
    forward = -cameras.c2w[:, :3, 2]
    cosine = (rays.directions.view(*distance.shape, 3) * forward[:, None, None]).sum(-1)
    return GeometryBuffer(
        mask=mask,
        distance=distance,
        depth=distance * cosine,
        position=position,
        normal=normal,
        albedo=albedo,
        part=part,
    )


def _trace_torch(
    packed: PackedShapes, cameras: CameraBatch
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"], Float[Tensor, "N 3"], Int[Tensor, " N"]]:
    """Distance, normal, albedo and part a ray, shape by shape; misses are zero and part -1."""
    rays = camera_rays(cameras)
    distance = torch.zeros_like(rays.origins[:, 0])
    normal, albedo = torch.zeros_like(rays.origins), torch.zeros_like(rays.origins)
    part = torch.full_like(distance, -1, dtype=torch.int64)
    rays_a_shape = len(distance) // len(packed)
    for index in range(len(packed)):
        shape = packed.select(index)
        for start in range(index * rays_a_shape, (index + 1) * rays_a_shape, RAYS_AT_ONCE):
            chunk = slice(start, min(start + RAYS_AT_ONCE, (index + 1) * rays_a_shape))
            hit, hit_distance = _march(shape, rays.origins[chunk], rays.directions[chunk])
            if not len(hit):
                continue
            ray = start + hit
            points = (rays.origins[ray] + hit_distance[:, None] * rays.directions[ray])[None]
            distance[ray] = hit_distance
            normal[ray] = outward_normal(shape, points)[0]
            color, nearest = surface_attributes(shape, points)
            albedo[ray], part[ray] = color[0], nearest[0]
    return distance, normal, albedo, part


def _march(
    shape: PackedShapes, origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """Indices of the rays that hit the shape, and their distances; rays leave the work as they hit or pass."""
    along = -(origins * directions).sum(-1)
    squared = BOUND**2 - origins.square().sum(-1) + along**2
    active = torch.nonzero(squared > 0.0)[:, 0]
    reach = squared[active].sqrt()
    distance, end = (along[active] - reach).clamp_min(0.0), along[active] + reach
    hits, distances = [active[:0]], [distance[:0]]
    for _ in range(MAX_STEPS):
        points = origins[active] + distance[:, None] * directions[active]
        step = signed_distance(shape, points[None])[0]
        is_hit = step < SURFACE
        hits.append(active[is_hit])
        distances.append(distance[is_hit])
        distance = distance + step
        going = ~is_hit & (distance < end)
        active, distance, end = active[going], distance[going], end[going]
        if not len(active):
            break
    return torch.cat(hits), torch.cat(distances)
