"""Compositing, shading, and whole images."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdream.cameras import orbit_cameras
from corrdream.field import DenseGrid, HashGrid, RadianceField, SolidBackground
from corrdream.rendering.marching import TorchMarching, sampling_step
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.rendering.renderer import render
from corrdream.rendering.shading import shade
from corrdream.rendering.volume import accumulate, render_weights
from corrdream.structures import Appearance, CameraBatch, FieldOutput, LightBatch, RaySamples, RenderOutput

WHITE = Appearance(mode="albedo", ambient=(1.0,) * 3, diffuse=(0.0,) * 3, background=None)
LIT = Appearance(mode="diffuse", ambient=(0.25,) * 3, diffuse=(0.75,) * 3, background=None)
GRAY = SolidBackground(color=(0.5, 0.5, 0.5))


class Ball:
    """A field: an opaque red ball."""

    def __init__(self, radius: float = 0.6, density: float = 400.0) -> None:
        self.radius, self.strength = radius, density

    def density(self, points: Tensor) -> Tensor:
        return self.strength * (points.norm(dim=-1) < self.radius).to(points)

    def __call__(self, points: Tensor, *, with_normal: bool) -> FieldOutput:
        return FieldOutput(
            density=self.density(points),
            albedo=torch.tensor([1.0, 0.0, 0.0]).expand(len(points), 3),
            normal=F.normalize(points, dim=-1) if with_normal else None,
        )


def views(count: int = 2, side: int = 24) -> tuple[CameraBatch, LightBatch]:
    cameras = orbit_cameras(
        count, elevation_deg=15.0, distance=3.0, fovy_deg=40.0, height=side, width=side, device=torch.device("cpu")
    )
    return cameras, headlight(cameras)


def headlight(cameras: CameraBatch) -> LightBatch:
    position = cameras.c2w[:, :3, 3]
    return LightBatch(position=position, offset=torch.zeros_like(position), distance=position.norm(dim=-1))


def marching(prune: bool = True, step_size: float = 0.02) -> TorchMarching:
    occupancy = OccupancyGrid(step_size=step_size)
    occupancy.occs.fill_(1.0)
    return TorchMarching(occupancy=occupancy, prune=prune)


def picture(field: object, appearance: Appearance = WHITE, **changes: object) -> RenderOutput:
    cameras, lights = views()
    parts = {"field": field, "background": GRAY, "marching": marching(), "jitter": None, "with_normals": False}
    return render(cameras, lights, appearance, **(parts | changes))


def random_samples(num_rays: int, count: int, seed: int = 0) -> tuple[RaySamples, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ray = torch.randint(num_rays, (count,), generator=generator).sort().values
    starts = torch.rand(count, generator=generator, dtype=torch.float64)
    lengths = torch.rand(count, generator=generator, dtype=torch.float64) * 0.1
    density = torch.rand(count, generator=generator, dtype=torch.float64) * 10
    return RaySamples(ray_indices=ray, t_starts=starts, t_ends=starts + lengths), density


def slow_weights(density: Tensor, samples: RaySamples) -> list[float]:
    """Eq. 3 of arXiv:2003.08934, one sample after the other."""
    weights, depth_of_ray = [], {}
    lengths = samples.t_ends - samples.t_starts
    for ray, sigma, length in zip(samples.ray_indices.tolist(), density.tolist(), lengths.tolist(), strict=True):
        before = depth_of_ray.get(ray, 0.0)
        weights.append(math.exp(-before) * (1 - math.exp(-sigma * length)))
        depth_of_ray[ray] = before + sigma * length
    return weights


def test_weights_are_those_of_the_formula() -> None:
    samples, density = random_samples(10, 200)
    weights, _, _ = render_weights(density, samples, 10)
    torch.testing.assert_close(weights, torch.tensor(slow_weights(density, samples), dtype=torch.float64))


def test_weights_of_a_ray_sum_to_the_light_that_it_loses() -> None:
    samples, density = random_samples(10, 200)
    weights, _, _ = render_weights(density, samples, 10)
    opacity = accumulate(weights[:, None], samples.ray_indices, 10)[:, 0]
    lost = accumulate((density * (samples.t_ends - samples.t_starts))[:, None], samples.ray_indices, 10)[:, 0]
    torch.testing.assert_close(opacity, 1 - torch.exp(-lost))


def test_single_precision_keeps_its_digits_over_many_opaque_rays() -> None:
    samples, density = random_samples(2000, 40000)
    single = RaySamples(
        ray_indices=samples.ray_indices, t_starts=samples.t_starts.float(), t_ends=samples.t_ends.float()
    )
    lengths = (single.t_ends - single.t_starts).double()
    same = RaySamples(ray_indices=samples.ray_indices, t_starts=torch.zeros_like(lengths), t_ends=lengths)
    density = (density * 1000).float()
    weights, _, _ = render_weights(density, single, 2000)
    assert weights.dtype == torch.float32
    exact = torch.tensor(slow_weights(density.double(), same), dtype=torch.float64)
    torch.testing.assert_close(weights.double(), exact, atol=1e-6, rtol=0)


def test_infinite_density_stops_its_ray_alone() -> None:
    samples = RaySamples(
        ray_indices=torch.tensor([0, 0, 1]),
        t_starts=torch.tensor([0.0, 1.0, 0.0]),
        t_ends=torch.tensor([1.0, 2.0, 1.0]),
    )
    weights, _, _ = render_weights(torch.tensor([math.inf, 1.0, 1.0]), samples, 2)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 1 - math.exp(-1)]))


def test_weights_have_the_right_gradient() -> None:
    samples, density = random_samples(3, 12)
    density.requires_grad_()
    assert torch.autograd.gradcheck(lambda d: render_weights(d, samples, 3)[0], (density,))


def test_light_on_a_surface() -> None:
    normal, points = torch.tensor([[0.0, 0.0, 1.0]] * 3), torch.zeros(3, 3)
    light = torch.tensor([[0.0, 0.0, 2.0], [0.0, 3.0, 3.0], [0.0, 0.0, -2.0]])
    colors = shade(torch.full((3, 3), 0.5), normal, points=points, light_position=light, appearance=LIT)
    torch.testing.assert_close(colors[:, 0], 0.5 * torch.tensor([1.0, 0.25 + 0.75 / math.sqrt(2), 0.25]))


def test_shading_without_normals_names_the_setting() -> None:
    nothing = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"diffuse needs normals; field.normal must not be none"):
        shade(nothing, None, points=nothing, light_position=nothing, appearance=LIT)


def test_ball_looks_like_a_disc() -> None:
    output = picture(Ball())
    center = output.rgb[0, 12, 12]
    torch.testing.assert_close(center, torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.rgb[0, 0, 0], torch.full((3,), 0.5))
    # silhouette of a ball of radius r at distance d: tangent of its half angle is r / sqrt(d^2 - r^2)
    side = 24 * (0.6 / math.sqrt(9 - 0.36)) / math.tan(math.radians(20))
    assert output.opacity[0].sum().item() == pytest.approx(math.pi / 4 * side**2, rel=0.05)


def test_distance_is_along_the_ray_up_to_the_surface() -> None:
    output = picture(Ball())
    assert output.distance[0, 12, 12].item() == pytest.approx(2.4, abs=0.03)
    assert output.z_variance()[0, 12, 12].item() < 1e-3


def test_normals_are_computed_only_where_needed() -> None:
    assert picture(Ball()).normal() is None
    assert picture(Ball(), LIT).normal() is not None
    normal = picture(Ball(), with_normals=True).normal()
    assert normal is not None
    # the ball's middle faces the camera, away from the ray
    facing = -(normal[0, 12, 12] * views()[0].c2w[0, :3, 2]).sum()
    assert facing.item() == pytest.approx(-1.0, abs=0.01)


def test_empty_scene_shows_the_background() -> None:
    output = picture(Ball(radius=0.0))
    assert torch.equal(output.rgb, torch.full_like(output.rgb, 0.5))
    assert not output.opacity.any()
    assert not output.distance.any()


def test_given_colors_replace_the_background_a_view() -> None:
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    appearance = Appearance(mode="albedo", ambient=(1.0,) * 3, diffuse=(0.0,) * 3, background=colors)
    torch.testing.assert_close(picture(Ball(), appearance).rgb[:, 0, 0], colors)


def test_pruning_changes_the_image_little() -> None:
    output, whole = picture(Ball()), picture(Ball(), marching=marching(prune=False))
    assert len(output.weights) < 0.2 * len(whole.weights)
    torch.testing.assert_close(output.rgb, whole.rgb, atol=2e-3, rtol=0)


def test_chunks_make_the_same_image() -> None:
    cameras, lights = views()
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    lit = Appearance(mode="diffuse", ambient=(0.2,) * 3, diffuse=(0.8,) * 3, background=colors)
    parts = {"field": Ball(), "background": GRAY, "marching": marching(), "with_normals": True}
    whole = render(cameras, lights, lit, jitter=None, **parts)
    chunked = render(cameras, lights, lit, jitter=None, chunk=100, **parts)
    for name in ("rgb", "opacity", "distance", "weights", "sample_normal", "sample_direction"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name))
    torch.testing.assert_close(chunked.z_variance(), whole.z_variance())
    torch.testing.assert_close(chunked.normal(), whole.normal())
    assert torch.equal(chunked.samples.ray_indices, whole.samples.ray_indices)


@pytest.mark.parametrize("kind", ["dense", "hash"])
@pytest.mark.parametrize("appearance", [WHITE, LIT])
def test_chunks_give_the_same_gradients(kind: str, appearance: Appearance) -> None:
    generator = torch.Generator().manual_seed(0)
    encoding = (
        DenseGrid(resolutions=(4, 8))
        if kind == "dense"
        else HashGrid(num_levels=2, log2_table_size=8, base_resolution=4, generator=generator)
    )
    normal = "grid_difference" if kind == "dense" else "analytic"
    field = RadianceField(encoding=encoding, normal=normal, generator=generator)
    cameras, lights = views(2, 12)
    jitter = torch.rand(288, generator=generator)
    found = []
    for chunk in (None, 100):
        field.zero_grad(set_to_none=True)
        output = render(
            cameras,
            lights,
            appearance,
            field=field,
            background=GRAY,
            marching=marching(step_size=0.1),
            jitter=jitter,
            with_normals=True,
            chunk=chunk,
        )
        normal = output.normal()
        assert normal is not None
        (output.rgb.square().sum() + normal[..., 2].sum() + output.z_variance().sum()).backward()
        gradients = [parameter.grad for parameter in field.parameters()]
        found.append((output.rgb.detach(), [g.clone() for g in gradients if g is not None]))
    (image, whole), (chunked_image, chunked) = found
    assert whole
    torch.testing.assert_close(chunked_image, image, atol=1e-6, rtol=0)
    for first, second in zip(whole, chunked, strict=True):
        torch.testing.assert_close(second, first, atol=1e-5 * float(first.abs().max()), rtol=1e-5)


def test_chunks_keep_nothing_for_backward_but_their_results() -> None:
    field = RadianceField(encoding=DenseGrid(resolutions=(4, 8)), normal="grid_difference")
    cameras, lights = views(2, 24)
    parts = {"field": field, "background": GRAY, "marching": marching(), "with_normals": True}
    kept = {}
    for chunk in (None, 144):
        bytes_kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal bytes_kept
            bytes_kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            render(cameras, lights, WHITE, jitter=None, chunk=chunk, **parts)
        kept[chunk] = bytes_kept
    assert kept[144] < 0.2 * kept[None]


@pytest.mark.parametrize("kind", ["dense", "hash"])
def test_training_render_reaches_every_part(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    encoding = (
        DenseGrid(resolutions=(4, 8))
        if kind == "dense"
        else HashGrid(num_levels=2, log2_table_size=8, base_resolution=4, generator=generator)
    )
    field = RadianceField(
        encoding=encoding, normal="grid_difference" if kind == "dense" else "analytic", generator=generator
    )
    occupancy = OccupancyGrid(step_size=sampling_step(1.0, 32))
    occupancy.update(field.density, 0, generator)
    output = picture(field, LIT, marching=TorchMarching(occupancy=occupancy))
    (output.rgb.square().mean() + output.z_variance().mean()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_jitter_moves_samples_by_less_than_a_step() -> None:
    jitter = torch.full((2 * 24 * 24,), 0.5)
    still, moved = picture(Ball(), jitter=None), picture(Ball(), jitter=jitter)
    offset = (moved.distance - still.distance)[:, 12, 12]
    assert bool((offset.abs() <= 0.02).all())
    assert bool((offset != 0).all())


def test_density_gradient_pulls_towards_a_brighter_image() -> None:
    field = RadianceField(encoding=DenseGrid(resolutions=(4, 8)), density_blob_scale=1.0, normal="none")
    field.encoding.grids[1].data[..., 1:] = 5.0  # white
    black = SolidBackground(color=(0.0, 0.0, 0.0))
    picture(field, background=black).rgb.mean().backward()
    inside = field.encoding.grids[0].grad[2, 2, 2, 0]
    assert inside > 0
