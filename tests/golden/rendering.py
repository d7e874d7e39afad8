"""Volume rendering with prescribed samples, densities, features and normals."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from corrdream.rendering.renderer import render_rays
from corrdream.rendering.volume import render_weights
from corrdream.structures import (
    Appearance,
    FieldOutput,
    LightBatch,
    RayBundle,
    RaySamples,
    RenderOutput,
)
from tests.golden.helpers import assert_absolute, assert_relative, group, group_names, tensor

FILE = "rendering.npz"
IMAGE_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 2e-5  # of the largest entry
EVALUATION = Appearance(mode="diffuse", ambient=(0.1,) * 3, diffuse=(0.9,) * 3, background=None)


class Prescribed:
    """Marching, field and background that give what the file says."""

    def __init__(self, inputs: Mapping[str, np.ndarray]) -> None:
        self.samples = RaySamples(
            ray_indices=tensor(inputs["ray_indices"]).long(),
            t_starts=tensor(inputs["t_starts"]),
            t_ends=tensor(inputs["t_ends"]),
        )
        self.density_values = tensor(inputs["density"]).squeeze(1).requires_grad_()
        self.features = tensor(inputs["features"]).requires_grad_()
        self.normal = tensor(inputs["normal"])
        self.background_image = tensor(inputs["background"]).requires_grad_()
        self.background_per_pixel: Tensor | None = None
        self.points: Tensor | None = None

    def sample(self, rays: RayBundle, *, density: object, jitter: Tensor | None) -> RaySamples:
        return self.samples

    def density(self, points: Tensor) -> Tensor:
        return self.density_values

    def __call__(self, points: Tensor, *, with_normal: bool) -> FieldOutput:
        assert with_normal
        self.points = points
        return FieldOutput(density=self.density_values, albedo=torch.sigmoid(self.features), normal=self.normal)

    def background(self, directions: Tensor) -> Tensor:
        given = self.background_per_pixel
        return (self.background_image if given is None else given).view(-1, 3)


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        arrays = group(data, name)
        yield name, partial(compare if "in/density" in arrays else compare_empty, arrays)


def rendered(scene: Prescribed, inputs: Mapping[str, np.ndarray], appearance: Appearance) -> RenderOutput:
    origins = tensor(inputs["rays_o"])
    light = tensor(inputs["light_positions"])
    return render_rays(
        RayBundle(origins=origins.view(-1, 3), directions=tensor(inputs["rays_d"]).view(-1, 3)),
        tuple(origins.shape[:3]),
        LightBatch(position=light, offset=torch.zeros_like(light), distance=light.norm(dim=-1)),
        appearance,
        field=scene,
        background=scene.background,
        marching=scene,
        jitter=None,
        with_normals=True,
    )


def prepare(inputs: Mapping[str, np.ndarray]) -> tuple[Prescribed, Appearance]:
    """The scene, and the appearance; a color a pixel takes the place of the background's."""
    scene = Prescribed(inputs)
    if not bool(inputs["training"]):
        return scene, EVALUATION
    ratio, color = float(inputs["ambient_ratio"]), inputs.get("bg_color")
    if color is not None and color.ndim == 4:
        scene.background_per_pixel = tensor(color)
    return scene, Appearance(
        mode=str(inputs["shading"]),
        ambient=(ratio,) * 3,
        diffuse=(1 - ratio,) * 3,
        background=tensor(color) if color is not None and color.ndim == 2 else None,
    )


def compare(arrays: Mapping[str, np.ndarray]) -> None:
    inputs, out = group(arrays, "in"), group(arrays, "out")
    scene, appearance = prepare(inputs)
    render = rendered(scene, inputs, appearance)
    compare_images(render, scene, inputs, out)
    if "weights" in out:
        compare_samples(render, scene, out)
    for key, expected in out.items():
        if key.startswith("grad_"):
            compare_gradient(key, expected, render, scene, inputs)


def compare_images(
    render: RenderOutput, scene: Prescribed, inputs: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]
) -> None:
    assert_absolute(render.rgb, out["comp_rgb"], IMAGE_TOLERANCE, "comp_rgb")
    assert_absolute(render.opacity[..., None], out["opacity"], IMAGE_TOLERANCE, "opacity")
    assert_absolute(render.distance[..., None], out["depth"], IMAGE_TOLERANCE, "depth")
    assert_absolute(render.z_variance()[..., None], out["z_variance"], IMAGE_TOLERANCE, "z_variance")
    normal = render.normal()
    assert normal is not None
    colored_normal = (normal + render.opacity[..., None]) / 2
    assert_absolute(colored_normal, out["comp_normal"], IMAGE_TOLERANCE, "comp_normal")
    foreground = rendered(scene, inputs, on_black(inputs)).rgb
    assert_absolute(foreground, out["comp_rgb_fg"], IMAGE_TOLERANCE, "comp_rgb_fg")
    # The published renderer reports its network's background, even where a given color takes its place.
    assert_absolute(scene.background_image, out["comp_rgb_bg"], IMAGE_TOLERANCE, "comp_rgb_bg")


def on_black(inputs: Mapping[str, np.ndarray]) -> Appearance:
    _, appearance = prepare(inputs)
    return Appearance(
        mode=appearance.mode,
        ambient=appearance.ambient,
        diffuse=appearance.diffuse,
        background=torch.zeros(inputs["rays_o"].shape[0], 3),
    )


def compare_samples(render: RenderOutput, scene: Prescribed, out: Mapping[str, np.ndarray]) -> None:
    samples = render.samples
    assert_absolute(render.weights[:, None], out["weights"], WEIGHT_TOLERANCE, "weights")
    assert_absolute(((samples.t_starts + samples.t_ends) / 2)[:, None], out["t_points"], IMAGE_TOLERANCE, "t_points")
    lengths = (samples.t_ends - samples.t_starts)[:, None]
    assert_absolute(lengths, out["t_intervals"], IMAGE_TOLERANCE, "t_intervals")
    assert scene.points is not None
    assert_absolute(scene.points, out["points"], IMAGE_TOLERANCE, "points")
    exact = RaySamples(
        ray_indices=samples.ray_indices, t_starts=samples.t_starts.double(), t_ends=samples.t_ends.double()
    )
    num_rays = render.opacity.numel()
    for density in (scene.density_values, scene.density_values.double()):
        weights, _, _ = render_weights(density, exact if density.dtype == torch.float64 else samples, num_rays)
        assert_absolute(weights, out["weights_float64"], WEIGHT_TOLERANCE, "weights_float64")


def compare_gradient(
    key: str, expected: np.ndarray, render: RenderOutput, scene: Prescribed, inputs: Mapping[str, np.ndarray]
) -> None:
    quantity, variable = key.removeprefix("grad_").split("_wrt_")
    image = {
        "comp_rgb": render.rgb,
        "opacity": render.opacity[..., None],
        "depth": render.distance[..., None],
        "z_variance": render.z_variance()[..., None],
    }[quantity]
    leaf = {"density": scene.density_values, "features": scene.features, "background": scene.background_image}[variable]
    total = (image * tensor(inputs[f"cotangent_{quantity}"])).sum()
    gradient = None
    if leaf.requires_grad:
        (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)
    actual = torch.zeros_like(leaf) if gradient is None else gradient
    assert_relative(actual.view(expected.shape), expected, GRADIENT_TOLERANCE, key)


def compare_empty(arrays: Mapping[str, np.ndarray]) -> None:
    background = arrays["in/background"]
    nothing = np.zeros((0, 3), np.float32)
    inputs = {
        "ray_indices": np.zeros(0, np.int64),
        "t_starts": nothing[:, 0],
        "t_ends": nothing[:, 0],
        "density": nothing[:, :1],
        "features": nothing,
        "normal": nothing,
        "background": background,
        "rays_o": np.zeros_like(background),
        "rays_d": np.zeros_like(background),
        "light_positions": np.ones((background.shape[0], 3), np.float32),
    }
    render = rendered(Prescribed(inputs), inputs, EVALUATION)
    assert_absolute(render.rgb, arrays["out/comp_rgb"], IMAGE_TOLERANCE, "comp_rgb")
    assert_absolute(render.opacity[..., None], arrays["out/opacity"], IMAGE_TOLERANCE, "opacity")
    assert_absolute(render.distance[..., None], arrays["out/depth"], IMAGE_TOLERANCE, "depth")
    assert_absolute(render.z_variance()[..., None], arrays["out/z_variance"], IMAGE_TOLERANCE, "z_variance")
    assert render.weights.numel() == 0, "the published renderer invents one sample of weight zero here"
    assert not arrays["out/weights"].any()
