"""A hash grid of tiny-cuda-nn on a GPU: values, gradients and double backward."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from corrdream.field.encodings import HashGrid
from tests.golden.helpers import assert_norm, tensor

FILE = "tcnn_small.npz"
TOLERANCE = 1e-6  # relative norm


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "grid", lambda: compare(data)


def compare(data: Mapping[str, np.ndarray], hash_grid: Callable[..., Any] = HashGrid) -> None:
    config = json.loads(str(data["config"]))
    grid = hash_grid(
        num_levels=config["n_levels"],
        features_per_level=config["n_features_per_level"],
        log2_table_size=config["log2_hashmap_size"],
        base_resolution=config["base_resolution"],
        growth=config["per_level_scale"],
    ).to(torch.get_default_device())
    assert grid.output_dim == int(data["n_output_dims"])
    grid.table.data.copy_(tensor(data["params"]).view_as(grid.table))
    points = tensor(data["inputs"]).requires_grad_()
    w, v = tensor(data["w"]).requires_grad_(), tensor(data["v"])
    outputs = grid(points)
    assert_norm(outputs, data["outputs"], TOLERANCE, "outputs")
    to_table, to_points = torch.autograd.grad((outputs * w).sum(), (grid.table, points), create_graph=True)
    assert_norm(to_table.flatten(), data["grad_params"], TOLERANCE, "grad_params")
    assert_norm(to_points, data["grad_inputs"], TOLERANCE, "grad_inputs")
    second = torch.autograd.grad((v * to_points).sum(), (grid.table, points, w))
    assert_norm(second[0].flatten(), data["gg_params"], TOLERANCE, "gg_params")
    assert_norm(second[1], data["gg_inputs"], TOLERANCE, "gg_inputs")
    assert_norm(second[2], data["gg_w"], TOLERANCE, "gg_w")
