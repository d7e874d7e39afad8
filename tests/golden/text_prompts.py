"""text_prompts.npz: open_clip's tokens and hidden states of ten prompts, two of them over-long."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from corrdream.prior.text_clip import ClipText, TextShape, published_text_weights
from corrdream.prior.tokenizer import tokenize
from tests.golden.helpers import assert_absolute, group, tensor

FILE = "text_prompts.npz"
TOLERANCE = 2e-5
SKIPPED = {"last": 0, "penultimate": 1}


def prompts_of(data: Mapping[str, np.ndarray]) -> list[str]:
    return [str(prompt) for prompt in data["in/prompts"]]


def shape_of(data: Mapping[str, np.ndarray]) -> TextShape:
    length, width = data["weights/model.positional_embedding"].shape
    return TextShape(
        family="open_clip",
        width=width,
        heads=int(data["cfg/heads"]),
        num_layers=int(data["cfg/layers"]),
        num_tokens=int(data["cfg/num_tokens"]),
        max_tokens=length,
    )


def tokens_of(data: Mapping[str, np.ndarray]) -> Tensor:
    shape = shape_of(data)
    return tokenize(prompts_of(data), length=shape.max_tokens, padding=shape.padding)


def compare_tokens(data: Mapping[str, np.ndarray]) -> None:
    expected = data["out/tokens"]
    for prompt, ours, theirs in zip(prompts_of(data), tokens_of(data), expected, strict=True):
        assert ours.tolist() == theirs.tolist(), prompt
    assert (expected[:, -1] != 0).sum() == 2, "over-long prompts are among them"


def compare_hidden(data: Mapping[str, np.ndarray], name: str) -> None:
    shape, skipped = shape_of(data), SKIPPED[name]
    weights = {key: tensor(array).float() for key, array in group(data, "weights").items()}
    rows = torch.full((shape.num_tokens, shape.width), torch.nan)  # of tokens that no prompt has
    rows[tensor(data["embedding/tokens"]).long()] = tensor(data["embedding/rows"]).float()
    weights["model.token_embedding.weight"] = rows
    tower = ClipText(shape, num_skipped=skipped)
    tower.load_state_dict(published_text_weights(shape, weights, num_skipped=skipped))
    with torch.no_grad():
        assert_absolute(tower.eval()(tokens_of(data)), data[f"out/{name}"], TOLERANCE, name)


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "tokens", lambda: compare_tokens(data)
    for name in SKIPPED:
        yield name, lambda name=name: compare_hidden(data, name)
