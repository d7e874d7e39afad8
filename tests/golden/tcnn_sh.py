"""Spherical harmonics of tiny-cuda-nn on a GPU, with the gradient in their input."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from corrdream.field.encodings import SphericalHarmonics
from tests.golden.helpers import assert_norm, tensor

FILE = "tcnn_sh.npz"
TOLERANCE = 1e-6  # relative norm


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "harmonics", lambda: compare(data)


def compare(data: Mapping[str, np.ndarray], harmonics: Callable[..., Any] = SphericalHarmonics) -> None:
    encoding = harmonics(degree=json.loads(str(data["config"]))["degree"])
    inputs = tensor(data["inputs"]).requires_grad_()
    outputs = encoding(inputs)
    assert_norm(outputs, data["outputs"], TOLERANCE, "outputs")
    (gradient,) = torch.autograd.grad((outputs * tensor(data["w"])).sum(), inputs)
    assert_norm(gradient, data["grad_inputs"], TOLERANCE, "grad_inputs")
