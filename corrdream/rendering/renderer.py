"""Images of a radiance field: march, evaluate, shade, composite. Knows no loss.

Symbols: B views of H x W pixels, N = B H W rays row-major, S samples sorted by ray, t the distance along the unit ray.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from corrdream.cameras import camera_rays
from corrdream.interfaces import Background, Field, Marching
from corrdream.rendering.shading import shade
from corrdream.rendering.volume import accumulate, render_weights
from corrdream.structures import Appearance, CameraBatch, LightBatch, RayBundle, RaySamples, RenderOutput


def render(
    cameras: CameraBatch,
    lights: LightBatch,
    appearance: Appearance,
    *,
    field: Field,
    background: Background,
    marching: Marching,
    jitter: Float[Tensor, " N"] | None,
    with_normals: bool,
    chunk: int | None = None,
) -> RenderOutput:
    """All views, differentiable in field and background; normals if asked for or if the shading needs them.

    With `chunk`, at most so many rays at a time, each time forgetting what backward needs and computing it again then:
    less memory for more time, images and gradients the same to rounding.
    """
    rays, rays_per_view = camera_rays(cameras), cameras.height * cameras.width
    shape = (len(cameras.c2w), cameras.height, cameras.width)
    parts: dict[str, Any] = {
        "field": field,
        "background": background,
        "marching": marching,
        "with_normals": with_normals,
    }
    if chunk is None or len(rays.origins) <= chunk:
        return render_rays(rays, shape, lights, appearance, jitter=jitter, **parts)
    pieces = []
    for start in range(0, len(rays.origins), chunk):
        view = torch.arange(start, min(start + chunk, len(rays.origins)), device=rays.origins.device) // rays_per_view
        piece = partial(
            render_rays,
            RayBundle(origins=rays.origins[start:][:chunk], directions=rays.directions[start:][:chunk]),
            (len(view), 1, 1),
            _of_views(lights, view),
            _behind_views(appearance, view),
            jitter=None if jitter is None else jitter[start:][:chunk],
            **parts,
        )
        pieces.append(checkpoint(piece, use_reentrant=False) if torch.is_grad_enabled() else piece())
    return _join(pieces, shape, chunk)


def render_rays(
    rays: RayBundle,
    shape: tuple[int, int, int],
    lights: LightBatch,
    appearance: Appearance,
    *,
    field: Field,
    background: Background,
    marching: Marching,
    jitter: Float[Tensor, " N"] | None,
    with_normals: bool,
) -> RenderOutput:
    """The same from rays of B x H x W pixels; a scene without any sample shows the background."""
    num_views, height, width = shape
    # Before the samples, whose number the host waits for: by then a GPU has done it.
    behind = _behind(appearance, background, rays, height * width)
    samples = marching.sample(rays, density=field.density, jitter=jitter)
    ray = samples.ray_indices
    middle = (samples.t_starts + samples.t_ends) / 2
    direction = rays.directions.index_select(0, ray)
    points = torch.addcmul(rays.origins.index_select(0, ray), direction, middle[:, None])
    scene = field(points, with_normal=with_normals or appearance.mode != "albedo")
    color = shade(
        scene.albedo,
        scene.normal,
        points=points,
        light_position=lights.position.index_select(0, ray // (height * width)),
        appearance=appearance,
    )
    weights, _, _ = render_weights(scene.density, samples, num_views * height * width)
    columns = torch.cat([torch.ones_like(middle)[:, None], middle[:, None], color], dim=1)
    sums = accumulate(weights[:, None] * columns, ray, num_views * height * width)
    opacity, distance, foreground = sums[:, :1], sums[:, 1:2], sums[:, 2:]
    return RenderOutput(
        rgb=(foreground + behind * (1 - opacity)).unflatten(0, shape),
        opacity=opacity.squeeze(1).unflatten(0, shape),
        distance=distance.squeeze(1).unflatten(0, shape),
        samples=samples,
        weights=weights,
        sample_normal=scene.normal,
        sample_direction=direction,
    )


def _of_views(lights: LightBatch, view: Int[Tensor, " N"]) -> LightBatch:
    return LightBatch(position=lights.position[view], offset=lights.offset[view], distance=lights.distance[view])


def _behind_views(appearance: Appearance, view: Int[Tensor, " N"]) -> Appearance:
    return appearance if appearance.background is None else replace(appearance, background=appearance.background[view])


def _join(parts: Sequence[RenderOutput], shape: tuple[int, int, int], chunk: int) -> RenderOutput:
    """One output of the outputs of consecutive `chunk` rays, each of which was rendered as a view of one pixel."""
    image = partial(_join_images, shape)
    shaded = parts[0].sample_normal is not None
    return RenderOutput(
        rgb=image([part.rgb for part in parts]),
        opacity=image([part.opacity for part in parts]),
        distance=image([part.distance for part in parts]),
        samples=RaySamples(
            ray_indices=torch.cat([part.samples.ray_indices + index * chunk for index, part in enumerate(parts)]),
            t_starts=torch.cat([part.samples.t_starts for part in parts]),
            t_ends=torch.cat([part.samples.t_ends for part in parts]),
        ),
        weights=torch.cat([part.weights for part in parts]),
        sample_normal=torch.cat([n for part in parts if (n := part.sample_normal) is not None]) if shaded else None,
        sample_direction=torch.cat([part.sample_direction for part in parts]),
    )


def _join_images(shape: tuple[int, int, int], values: Sequence[Tensor]) -> Tensor:
    joined = torch.cat([value.flatten(0, 2) for value in values])
    return joined.view(*shape, *joined.shape[1:])


def _behind(
    appearance: Appearance, background: Background, rays: RayBundle, rays_per_view: int
) -> Float[Tensor, "N 3"]:
    """Color behind each ray."""
    if appearance.background is None:
        return background(rays.directions)
    return appearance.background.to(rays.directions).repeat_interleave(rays_per_view, dim=0)
