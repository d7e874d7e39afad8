"""CLIP's text towers out of a published multi-view checkpoint: pre-norm transformer layers, causal, learned positions.

The two families differ in the names of their weights, the activation, the layer that is read, and the padding:
`open_clip` (ViT-H/14, exact GELU, all but the last layer, padded with 0) and `clip` (ViT-L/14, sigmoid GELU, all
layers, padded with the end token). Both end in the final layer norm; nothing is pooled or projected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from corrdream.prior.tokenizer import END

Family = Literal["open_clip", "clip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """Sizes of a text tower, as its checkpoint holds it."""

    family: Family
    width: int
    heads: int
    num_layers: int
    num_tokens: int = 49408
    max_tokens: int = 77

    @property
    def num_skipped(self) -> int:
        """How many of the last layers are not read."""
        return 1 if self.family == "open_clip" else 0

    @property
    def padding(self) -> int:
        """The token after the end token."""
        return 0 if self.family == "open_clip" else END


class ClipText(nn.Module):
    """The layers that are read of a text tower, then the final layer norm."""

    def __init__(self, shape: TextShape, *, num_skipped: int | None = None) -> None:
        super().__init__()
        skipped = shape.num_skipped if num_skipped is None else num_skipped
        self.token_embedding = nn.Embedding(shape.num_tokens, shape.width)
        self.positional_embedding = nn.Parameter(torch.empty(shape.max_tokens, shape.width))
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers - skipped))
        self.ln_final = nn.LayerNorm(shape.width)

    def forward(self, tokens: Int[Tensor, "P L"]) -> Float[Tensor, "P L D"]:
        """One embedding a token."""
        hidden: Tensor = self.token_embedding(tokens) + self.positional_embedding
        for layer in self.layers:
            hidden = layer(hidden)
        normalized: Tensor = self.ln_final(hidden)
        return normalized


class _Layer(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.family = shape.family
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn_in = nn.Linear(shape.width, 3 * shape.width)
        self.attn_out = nn.Linear(shape.width, shape.width)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp_in = nn.Linear(shape.width, 4 * shape.width)
        self.mlp_out = nn.Linear(4 * shape.width, shape.width)

    def forward(self, hidden: Float[Tensor, "P L D"]) -> Float[Tensor, "P L D"]:
        projected = self.attn_in(self.ln_1(hidden)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attn_out(attended.transpose(1, 2).flatten(2))
        inner: Tensor = self.mlp_in(self.ln_2(hidden))
        # CLIP by OpenAI approximates the GELU by x sigmoid(1.702 x).
        active = F.gelu(inner) if self.family == "open_clip" else inner * torch.sigmoid(1.702 * inner)
        output: Tensor = hidden + self.mlp_out(active)
        return output


def published_text_weights(
    shape: TextShape, weights: Mapping[str, Float[Tensor, "..."]], *, num_skipped: int | None = None
) -> dict[str, Float[Tensor, "..."]]:
    """State dict of `ClipText` from the published names (those after `cond_stage_model.`)."""
    skipped = shape.num_skipped if num_skipped is None else num_skipped
    match shape.family:
        case "open_clip":
            outer, layer_prefix, inner = _OPEN_CLIP, "model.transformer.resblocks", _OPEN_CLIP_LAYER
        case "clip":
            outer, layer_prefix, inner = _CLIP, "transformer.text_model.encoder.layers", _CLIP_LAYER
        case _:
            assert_never(shape.family)
    renamed = {ours: weights[published] for ours, published in outer.items()}
    for layer in range(shape.num_layers - skipped):
        for ours, published in inner.items():
            parts = [weights[f"{layer_prefix}.{layer}.{name}"] for name in published]
            renamed[f"layers.{layer}.{ours}"] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return renamed


def _weight_and_bias(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in published)
        for ours, published in names.items()
        for kind in ("weight", "bias")
    }


_OPEN_CLIP = {
    "token_embedding.weight": "model.token_embedding.weight",
    "positional_embedding": "model.positional_embedding",
    "ln_final.weight": "model.ln_final.weight",
    "ln_final.bias": "model.ln_final.bias",
}
_OPEN_CLIP_LAYER = _weight_and_bias(
    {
        "ln_1": ("ln_1",),
        "attn_out": ("attn.out_proj",),
        "ln_2": ("ln_2",),
        "mlp_in": ("mlp.c_fc",),
        "mlp_out": ("mlp.c_proj",),
    }
) | {"attn_in.weight": ("attn.in_proj_weight",), "attn_in.bias": ("attn.in_proj_bias",)}
_CLIP = {
    "token_embedding.weight": "transformer.text_model.embeddings.token_embedding.weight",
    "positional_embedding": "transformer.text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "transformer.text_model.final_layer_norm.weight",
    "ln_final.bias": "transformer.text_model.final_layer_norm.bias",
}
_CLIP_LAYER = _weight_and_bias(
    {
        "ln_1": ("layer_norm1",),
        "attn_in": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn_out": ("self_attn.out_proj",),
        "ln_2": ("layer_norm2",),
        "mlp_in": ("mlp.fc1",),
        "mlp_out": ("mlp.fc2",),
    }
)
