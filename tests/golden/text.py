"""text_tiny.npz: the text tower from published weights, all layers and all but the last."""

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from corrdream.prior.text_clip import ClipText, TextShape, published_text_weights
from tests.golden.helpers import assert_absolute, group, tensor

FILE = "text_tiny.npz"
TOLERANCE = 2e-5
SKIPPED = {"last": 0, "penultimate": 1}


def compare(data: Mapping[str, np.ndarray], name: str) -> None:
    config = json.loads(str(data["config_json"]))
    shape = TextShape(
        family="open_clip",
        width=config["width"],
        heads=config["heads"],
        num_layers=config["layers"],
        num_tokens=config["vocab_size"],
        max_tokens=config["context_length"],
    )
    assert shape.num_skipped == SKIPPED["penultimate"]
    weights = {key: tensor(array).float() for key, array in group(data, "weights").items()}
    tower = ClipText(shape, num_skipped=SKIPPED[name])
    tower.load_state_dict(published_text_weights(shape, weights, num_skipped=SKIPPED[name]))
    with torch.no_grad():
        embeddings = tower.eval()(tensor(data["in/tokens"]))
    assert_absolute(embeddings, data[f"out/{name}"], TOLERANCE, name)


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group(data, "out"):
        yield name, lambda name=name: compare(data, name)
