"""The implicit volume: density, albedo, normals, their weight gradients, and the contraction."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from corrdream.field.activations import activate_density, density_bias, unit_coordinates
from corrdream.field.encodings import FrequencyEncoding
from corrdream.field.radiance_field import RadianceField
from tests.golden.helpers import assert_absolute, assert_relative, group, group_names, tensor

FILE = "field.npz"
VALUE_TOLERANCE = 5e-5
ANALYTIC_TOLERANCE = 1e-5  # where the density exceeds ANALYTIC_MIN_DENSITY
ANALYTIC_MIN_DENSITY = 1e-3
DIFFERENCE_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-4
ISO_THRESHOLD = 25

BLOBS = {"blob_magic3d": "magic3d", "blob_dreamfusion": "dreamfusion"}  # a number: constant
NORMALS = {"pred": "predicted", "finite_difference": "finite_difference_released"}  # others keep their name
NETWORKS = {"density_network": "density", "feature_network": "albedo", "normal_network": "normal"}


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        arrays = group(data, name)
        if "in/radii" in arrays:
            yield name, partial(compare_contraction, arrays)
        elif "in/network" in arrays:
            for case in sorted({key.split("/")[0] for key in arrays} - {"in"}):
                yield f"{name}-{case}", partial(compare_activation, group(arrays, "in"), group(arrays, case))
        else:
            yield name, partial(compare_field, arrays)


def compare_contraction(arrays: Mapping[str, np.ndarray]) -> None:
    points = tensor(arrays["in/points"])
    for kind in ("bounded", "unbounded"):
        mapped = [
            unit_coordinates(points, float(radius), unbounded=kind == "unbounded") for radius in arrays["in/radii"]
        ]
        assert_absolute(torch.stack(mapped), arrays[f"out/{kind}"], VALUE_TOLERANCE, kind)


def compare_activation(inputs: Mapping[str, np.ndarray], case: Mapping[str, np.ndarray]) -> None:
    blob, blob_scale = blob_of(str(case["bias"]), float(case["scale"]))
    bias = density_bias(tensor(inputs["points"]), blob, blob_scale, float(case["std"]))
    raw = tensor(inputs["network"]).squeeze(1) + bias
    assert_absolute(raw, case["raw"].squeeze(1), VALUE_TOLERANCE, "raw")
    density = activate_density(raw, str(case["activation"]))
    assert_density(density, case["density"].squeeze(1), str(case["activation"]), "density")


def assert_density(density: torch.Tensor, expected: np.ndarray, activation: str, name: str) -> None:
    """Within the tolerance of the raw value, whose error is a relative one of its exponential."""
    slope = np.maximum(1, expected) if "exp" in activation else np.ones_like(expected)
    assert_absolute(density / tensor(slope), expected / slope, VALUE_TOLERANCE, name)


def blob_of(bias: str, scale: float) -> tuple[str, float]:
    """Our name of the density bias, and its scale."""
    return (BLOBS[bias], scale) if bias in BLOBS else ("constant", float(bias))


def build(cfg: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> RadianceField:
    blob, scale = blob_of(str(cfg["density_bias"]), float(cfg["density_blob_scale"]))
    layers = [key for key in weights if key.startswith("density_network.")]
    field = RadianceField(
        encoding=FrequencyEncoding(num_frequencies=int(cfg["n_frequencies"]), include_input=bool(cfg["include_xyz"])),
        radius=float(cfg["radius"]),
        hidden_width=weights[layers[0]].shape[0],
        num_hidden_layers=len(layers) - 1,
        density_activation=str(cfg["density_activation"]),
        density_blob=blob,
        density_blob_scale=scale,
        density_blob_std=float(cfg["density_blob_std"]),
        normal=NORMALS.get(str(cfg["normal_type"]), str(cfg["normal_type"])),
        finite_difference_eps=float(cfg["finite_difference_normal_eps"]),
    ).to(torch.get_default_device())
    for key, parameter in parameters_of(field, weights).items():
        parameter.data.copy_(tensor(weights[key]))
    return field


def parameters_of(field: RadianceField, weights: Mapping[str, np.ndarray]) -> dict[str, torch.nn.Parameter]:
    """Our parameter for each published weight `network.layers.2.weight`."""
    named = dict(field.networks.named_parameters())
    found = {}
    for key in weights:
        network, _, rest = key.partition(".")
        if network in NETWORKS:
            found[key] = named.pop(f"{NETWORKS[network]}.{rest.removeprefix('layers.')}")
    assert not named, f"not in the reference: {sorted(named)}"
    return found


def compare_field(arrays: Mapping[str, np.ndarray]) -> None:
    cfg, weights, out = (group(arrays, part) for part in ("cfg", "weights", "out"))
    field, points = build(cfg, weights), tensor(arrays["in/points"])
    unit = unit_coordinates(points, field.radius)
    assert_absolute(unit, out["points_unit"], VALUE_TOLERANCE, "points_unit")
    assert_absolute(field.encoding(unit), out["encoding"], VALUE_TOLERANCE, "encoding")
    network = field.networks["density"](field.encoding(unit))
    assert_absolute(network, out["density_network"], VALUE_TOLERANCE, "density_network")
    bias = density_bias(points, field.density_blob, field.density_blob_scale, field.density_blob_std)
    assert_absolute(network + bias[:, None], out["density_raw"], VALUE_TOLERANCE, "density_raw")
    result = field(points, with_normal=True)
    for density in (result.density, field.density(points)):
        for name in ("density", "density_activated"):
            assert_density(density, out[name].squeeze(1), field.density_activation, name)
    # The level set's function is the density turned around, so that its error is the density's.
    level = ISO_THRESHOLD - out["forward_level_25"].squeeze(1)
    assert_density(result.density, level, field.density_activation, "forward_level_25")
    features = field.networks["albedo"](field.encoding(unit))
    assert_absolute(features, out["features"], VALUE_TOLERANCE, "features")
    assert_absolute(result.albedo, sigmoid(out["features"]), VALUE_TOLERANCE, "albedo")
    compare_normal(str(cfg["normal_type"]), result.normal, out)
    compare_gradients(field, points, arrays)


def sigmoid(features: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-features))


def compare_normal(kind: str, normal: torch.Tensor, out: Mapping[str, np.ndarray]) -> None:
    if kind == "analytic":
        solid = out["density"].squeeze(1) > ANALYTIC_MIN_DENSITY
        assert_absolute(normal[tensor(solid)], out["normal"][solid], ANALYTIC_TOLERANCE, "normal")
    else:
        tolerance = DIFFERENCE_TOLERANCE if kind.startswith("finite_difference") else VALUE_TOLERANCE
        assert_absolute(normal, out["normal"], tolerance, "normal")


def compare_gradients(field: RadianceField, points: torch.Tensor, arrays: Mapping[str, np.ndarray]) -> None:
    result = field(points, with_normal=True)
    raw_albedo = torch.logit(result.albedo.double())
    cotangent1, cotangent3 = tensor(arrays["in/cotangent1"]).squeeze(1), tensor(arrays["in/cotangent3"])
    totals = {
        "density": (result.density * cotangent1).sum(),
        "features": (raw_albedo * cotangent3).sum(),
        "normal": (result.normal * cotangent3).sum(),
    }
    parameters = parameters_of(field, group(arrays, "weights"))
    for name, total in totals.items():
        expected = group(arrays, f"out/grad_{name}")
        assert expected.keys() == parameters.keys()
        gradients = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
        for key, gradient in zip(parameters, gradients, strict=True):
            actual = torch.zeros_like(parameters[key]) if gradient is None else gradient
            assert_relative(actual, expected[key], GRADIENT_TOLERANCE, f"grad_{name}/{key}")
