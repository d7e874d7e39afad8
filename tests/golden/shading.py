"""Material, background and regularizers."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from corrdream.field.activations import activate_albedo
from corrdream.field.background import NetworkBackground, SolidBackground
from corrdream.field.encodings import FrequencyEncoding
from corrdream.losses import opaque_loss, orientation_loss, sparsity_loss, z_variance_loss
from corrdream.rendering.appearance import (
    AppearanceSettings,
    choose_background,
    choose_shading,
    evaluation_appearance,
)
from corrdream.rendering.shading import shade
from corrdream.structures import Appearance, RaySamples, RenderOutput
from corrdream.trainer import weighted_sum
from tests.golden.helpers import assert_absolute, assert_relative, group, group_names, tensor
from tests.golden.schedules import annealed_value

FILE = "shading.npz"
TOLERANCE = 2e-6
SYSTEM_TOLERANCE = 1e-6  # relative
MODES = ("albedo", "textureless", "diffuse")


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    known = {"in/features": material_cases, "in/dirs": background_cases, "in/opacity": loss_cases}
    for name in group_names(data):
        arrays = group(data, name)
        (kind,) = (cases_of for array, cases_of in known.items() if array in arrays)
        for case, comparison in kind(arrays):
            yield f"{name}-{case}", comparison


def material_cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    inputs = group(data, "in")
    yield "fixed", partial(compare_fixed, inputs, group(data, "fixed"))
    yield "train", partial(compare_train, inputs, group(data, "train"))
    for name in group_names(group(data, "eval")):
        yield f"eval-{name}", partial(compare_eval, inputs, group(data, f"eval/{name}"))


def shaded(inputs: Mapping[str, np.ndarray], appearance: Appearance, activation: str = "sigmoid") -> torch.Tensor:
    return shade(
        activate_albedo(tensor(inputs["features"])[:, :3], activation),
        tensor(inputs["shading_normal"]),
        points=tensor(inputs["positions"]),
        light_position=tensor(inputs["light_positions"]),
        appearance=appearance,
    )


def compare_fixed(inputs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
    for index, ratio in enumerate(arrays["ambient_ratio"].tolist()):
        for mode in MODES:
            appearance = Appearance(mode=mode, ambient=(ratio,) * 3, diffuse=(1 - ratio,) * 3, background=None)
            assert_absolute(shaded(inputs, appearance), arrays[mode][index], TOLERANCE, f"{mode} at {ratio}")


def settings(ambient: np.ndarray, diffuse: np.ndarray, **changes: object) -> AppearanceSettings:
    values = {
        "ambient_only": False,
        "soft": False,
        "ambient_color": tuple(ambient.tolist()),
        "diffuse_color": tuple(diffuse.tolist()),
        "diffuse_prob": 0.75,
        "textureless_prob": 0.5,
        "random_prob": 0.5,
        "random_shared": True,
    }
    return AppearanceSettings(**(values | changes))


def compare_eval(inputs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
    activation = str(arrays["albedo_activation"])
    for name, ambient_only in (("ambient_only", True), ("shaded", False)):
        appearance = evaluation_appearance(
            settings(arrays["ambient_light_color"], arrays["diffuse_light_color"], ambient_only=ambient_only)
        )
        assert_absolute(shaded(inputs, appearance, activation), arrays[name], TOLERANCE, name)
    albedo = activate_albedo(tensor(inputs["features"])[:, :3], activation)
    assert_absolute(albedo.clamp(0, 1), arrays["export_albedo"], TOLERANCE, "export_albedo")


def compare_train(inputs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
    for index, draws in enumerate(arrays["draws"].tolist()):
        uniform = iter(draws)
        mode, ambient, diffuse = choose_shading(
            settings(
                arrays["cfg_ambient_light_color"],
                arrays["cfg_diffuse_light_color"],
                ambient_only=bool(arrays["ambient_only"][index]),
                soft=bool(arrays["soft_shading"][index]),
                diffuse_prob=float(arrays["cfg_diffuse_prob"]),
                textureless_prob=float(arrays["cfg_textureless_prob"]),
            ),
            uniform,
        )
        assert mode == str(arrays["mode"][index])
        assert len(draws) - len(list(uniform)) == int(arrays["n_draws_used"][index])
        appearance = Appearance(mode=mode, ambient=ambient, diffuse=diffuse, background=None)
        assert_absolute(shaded(inputs, appearance), arrays["out"][index], TOLERANCE, f"row {index}")


def background_cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "network", partial(compare_network_background, data)
    yield "solid", partial(compare_solid_background, data)
    for name in group_names(group(data, "aug")):
        yield name, partial(compare_augmentation, data, group(data, f"aug/{name}"), name)


def compare_network_background(data: Mapping[str, np.ndarray]) -> None:
    weights = group(data, "weights")
    hidden = len(weights) - 1
    first = next(array for key, array in weights.items() if key.endswith("layers.0.weight"))
    background = NetworkBackground(
        encoding=FrequencyEncoding(num_frequencies=int(data["cfg/n_frequencies"])),
        hidden_width=first.shape[0],
        num_hidden_layers=hidden,
    ).to(torch.get_default_device())
    parameters = dict(background.network.named_parameters())
    for key, array in weights.items():
        parameters.pop(key.removeprefix("network.layers.")).data.copy_(tensor(array))
    assert not parameters
    directions = tensor(data["in/dirs"])
    color = background(directions.flatten(0, -2)).view_as(directions)
    assert_absolute(color, data["out/network_color"], TOLERANCE, "network_color")


def compare_solid_background(data: Mapping[str, np.ndarray]) -> None:
    directions = tensor(data["in/dirs"])
    background = SolidBackground(color=data["solid/color"].tolist())
    color = background(directions.flatten(0, -2)).view_as(directions)
    assert_absolute(color, data["solid/out"], TOLERANCE, "solid")


def compare_augmentation(data: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], name: str) -> None:
    colors, num_images = tensor(arrays["u"])[:, 0, 0], data["in/dirs"].shape[0]
    shared = len(colors) < num_images
    # Where one color is shared the others that were drawn must not show.
    drawn = torch.cat([colors, (1 - colors[:1]).expand(num_images - len(colors), 3)])
    chosen = choose_background(settings(np.ones(3), np.zeros(3), random_shared=shared), 0.0, drawn)
    assert chosen is not None
    image = chosen[:, None, None, :].expand(data["in/dirs"].shape)
    assert_absolute(image, arrays["out"], TOLERANCE, name)


def loss_cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "terms", partial(compare_losses, data)
    yield "system", partial(compare_system, data)


def render_of(inputs: Mapping[str, np.ndarray]) -> RenderOutput:
    opacity = image_of(inputs, "opacity")
    weights = tensor(inputs["weights"]).squeeze(1).requires_grad_()
    nothing = torch.zeros_like(weights)
    return RenderOutput(
        rgb=opacity[..., None].expand(*opacity.shape, 3),
        opacity=opacity,
        distance=opacity,
        samples=RaySamples(ray_indices=nothing.long(), t_starts=nothing, t_ends=nothing),
        weights=weights,
        sample_normal=tensor(inputs["normal"]).requires_grad_(),
        sample_direction=tensor(inputs["t_dirs"]),
    )


def image_of(inputs: Mapping[str, np.ndarray], name: str) -> torch.Tensor:
    return tensor(inputs[name]).squeeze(-1).requires_grad_()


def losses_of(render: RenderOutput, z_variance: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "orient": orientation_loss(render),
        "sparsity": sparsity_loss(render.opacity),
        "opaque": opaque_loss(render.opacity),
        "z_variance": z_variance_loss(z_variance, render.opacity),
    }


def compare_losses(data: Mapping[str, np.ndarray]) -> None:
    inputs, out = group(data, "in"), group(data, "out")
    render, z_variance = render_of(inputs), image_of(inputs, "z_variance")
    variables = {
        "normal": render.sample_normal,
        "opacity": render.opacity,
        "z_variance": z_variance,
    }
    for name, loss in losses_of(render, z_variance).items():
        assert_absolute(loss, out[name], TOLERANCE, name)
    for key, expected in out.items():
        name, found, variable = key.partition("_grad_")
        if found:
            (gradient,) = torch.autograd.grad(losses_of(render, z_variance)[name], variables[variable])
            assert_absolute(gradient.view(expected.shape), expected, TOLERANCE, key)
    (to_weights,) = torch.autograd.grad(orientation_loss(render), render.weights, allow_unused=True)
    assert to_weights is None, "the weights of the orientation loss are constant"


def annealed(weight: np.ndarray, step: int) -> float:
    """A constant, or [start, first, last, end] in optimizer steps."""
    spec = weight.tolist() if weight.ndim == 0 else [*weight.tolist()[:-1], int(weight[-1])]
    return annealed_value(spec, global_step=step, epoch=0)


def compare_system(data: Mapping[str, np.ndarray]) -> None:
    system = group(data, "system")
    step = int(system["global_step"])
    inputs = group(data, "in")
    losses = losses_of(render_of(inputs), image_of(inputs, "z_variance")) | {
        "sds": torch.tensor(float(data["in/loss_sds"]))
    }
    weights = {
        name.removeprefix("lambda_"): annealed(weight, step)
        for name, weight in system.items()
        if name.startswith("lambda_")
    }
    # The correspondence system never reads the weights of the other terms.
    for terms, name in (
        (weights.keys(), "loss_plain_system"),
        (("sds", "orient"), "loss_correspondence_system"),
    ):
        total = weighted_sum({term: losses[term] for term in terms}, weights)
        assert_relative(total, system[name], SYSTEM_TOLERANCE, name)
