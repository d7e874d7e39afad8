"""CLIP's tokenizer against recorded token numbers, and its two text towers against other implementations."""

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from corrdream.prior.text_clip import ClipText, Family, TextShape, published_text_weights
from corrdream.prior.tokenizer import END, START, byte_letters, tokenize

# What the tokenizer of open_clip 2.7.0 (with ftfy 6.3.1) gives, padding left out.
RECORDED: list[tuple[str, list[int]]] = [
    ("", [49406, 49407]),
    ("a red cone on a blue cube", [49406, 320, 736, 10266, 525, 320, 1746, 11353, 49407]),
    ("An astronaut riding a horse, 3D asset", [49406, 550, 18376, 6765, 320, 4558, 267, 274, 323, 13039, 49407]),
    ("a DSLR photo of  a\t corgi\n", [49406, 320, 33740, 1125, 539, 320, 31320, 49407]),
    ("the hippo's 3 cats can't swim", [49406, 518, 36729, 568, 274, 3989, 753, 713, 7681, 49407]),
    ("caf\xe9 na\xefve \xfcber stra\xdfe", [49406, 15304, 1097, 35689, 563, 6522, 1516, 1894, 127, 253, 324, 49407]),
    (
        "\u9ed2\u3044\u732b \u2764\ufe0f \U0001f98a",
        [49406, 165, 119, 240, 33523, 163, 234, 360, 1752, 6040, 488, 49407],
    ),
    (
        "a &lt;b&gt; &amp;amp; c -- [x] (1999) 50%!?",
        [
            49406,
            320,
            283,
            321,
            285,
            261,
            322,
            2432,
            314,
            343,
            316,
            263,
            272,
            280,
            280,
            280,
            264,
            276,
            271,
            4,
            6004,
            49407,
        ],
    ),
    (
        "Zbrush_model ofmysupercalifragilistic robot\u2019s \u201carm\u201d",
        [49406, 89, 8594, 318, 2863, 684, 1152, 1642, 2857, 13093, 2076, 1561, 8797, 568, 257, 4793, 257, 49407],
    ),
    (
        " ".join(["a very long and winding prompt about many things"] * 12),
        [49406, *([320, 1070, 1538, 537, 22390, 20198, 781, 1346, 1739] * 9)[:75], 49407],
    ),
]


@pytest.mark.parametrize(("prompt", "expected"), RECORDED)
def test_tokens_are_those_of_open_clip(prompt: str, expected: list[int]) -> None:
    (tokens,) = tokenize([prompt], length=77, padding=0)
    assert tokens.tolist() == expected + [0] * (77 - len(expected))


def test_padding_is_the_family_s() -> None:
    shapes = {family: TextShape(family=family, width=8, heads=1, num_layers=1) for family in FAMILIES}
    assert shapes["open_clip"].padding == 0
    assert shapes["clip"].padding == END
    assert tokenize(["cat"], length=5, padding=END)[0].tolist()[2:] == [END] * 3


def test_over_long_prompt_keeps_its_end_token_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = tokenize(["cat " * 6, "cat"], length=7, padding=0)
    assert tokens[0].tolist() == [START, *[tokens[0, 1].item()] * 5, END]
    assert [record.getMessage() for record in caplog.records] == [
        "'cat cat cat cat cat cat ' has 6 tokens; the prior reads the first 5."
    ]


def test_every_byte_has_a_letter_of_its_own() -> None:
    letters = byte_letters()
    assert len(set(letters)) == 256
    assert not any(letter.isspace() for letter in letters)


FAMILIES: tuple[Family, ...] = ("open_clip", "clip")
SHAPE = {
    family: TextShape(family=family, width=32, heads=4, num_layers=3, num_tokens=50, max_tokens=9)
    for family in FAMILIES
}


def random_like(sizes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(size, generator=generator) for name, size in sizes.items()}


def tower(family: Family, weights: dict[str, Tensor]) -> ClipText:
    built = ClipText(SHAPE[family])
    built.load_state_dict(published_text_weights(SHAPE[family], weights))
    return built.eval()


def test_clip_tower_equals_the_model_of_transformers() -> None:
    shape = SHAPE["clip"]
    config = CLIPTextConfig(
        vocab_size=shape.num_tokens,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.max_tokens,
        hidden_act="quick_gelu",
    )
    reference = CLIPTextModel(config).eval()
    reference.load_state_dict(random_like({name: weight.shape for name, weight in reference.state_dict().items()}))
    prefix = "transformer.text_model."
    weights = {prefix + name.removeprefix("text_model."): weight for name, weight in reference.state_dict().items()}
    tokens = torch.randint(0, shape.num_tokens, (2, shape.max_tokens), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(tokens).last_hidden_state
        torch.testing.assert_close(tower("clip", weights)(tokens), expected, rtol=0, atol=2e-5)


def open_clip_weights() -> dict[str, Tensor]:
    shape = SHAPE["open_clip"]
    width = shape.width
    sizes: dict[str, tuple[int, ...]] = {
        "model.token_embedding.weight": (shape.num_tokens, width),
        "model.positional_embedding": (shape.max_tokens, width),
        "model.ln_final.weight": (width,),
        "model.ln_final.bias": (width,),
    }
    for layer in range(shape.num_layers):
        name = f"model.transformer.resblocks.{layer}"
        for part, size in {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }.items():
            sizes[f"{name}.{part}"] = size
    return random_like(sizes)


def test_open_clip_tower_equals_torch_s_attention_layer_written_out() -> None:
    shape, weights = SHAPE["open_clip"], open_clip_weights()
    tokens = torch.randint(0, shape.num_tokens, (2, shape.max_tokens), generator=torch.Generator().manual_seed(1))
    hidden = weights["model.token_embedding.weight"][tokens] + weights["model.positional_embedding"]
    future = torch.full((shape.max_tokens, shape.max_tokens), float("-inf")).triu(1)
    for layer in range(shape.num_layers - 1):  # penultimate: the last one is not read
        part = {
            name.split(f"resblocks.{layer}.")[1]: weight
            for name, weight in weights.items()
            if f"resblocks.{layer}." in name
        }
        attention = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        attention.load_state_dict({name[5:]: weight for name, weight in part.items() if name.startswith("attn.")})
        normalized = F.layer_norm(hidden, (shape.width,), part["ln_1.weight"], part["ln_1.bias"])
        hidden = hidden + attention(normalized, normalized, normalized, attn_mask=future, need_weights=False)[0]
        normalized = F.layer_norm(hidden, (shape.width,), part["ln_2.weight"], part["ln_2.bias"])
        inner = F.gelu(normalized @ part["mlp.c_fc.weight"].T + part["mlp.c_fc.bias"])
        hidden = hidden + inner @ part["mlp.c_proj.weight"].T + part["mlp.c_proj.bias"]
    final = weights["model.ln_final.weight"], weights["model.ln_final.bias"]
    expected = F.layer_norm(hidden, (shape.width,), *final)
    torch.testing.assert_close(tower("open_clip", weights)(tokens), expected, rtol=0, atol=2e-5)


def test_later_tokens_do_not_change_earlier_embeddings() -> None:
    network = tower("open_clip", open_clip_weights())
    tokens = torch.arange(SHAPE["open_clip"].max_tokens)[None]
    changed = tokens.clone()
    changed[0, 5:] = 40
    before, after = network(tokens)[0], network(changed)[0]
    torch.testing.assert_close(before[:5], after[:5])
    assert not torch.allclose(before[5:], after[5:])


def test_missing_weight_is_an_error() -> None:
    weights = open_clip_weights()
    del weights["model.transformer.resblocks.1.ln_2.bias"]
    with pytest.raises(KeyError, match="ln_2"):
        published_text_weights(SHAPE["open_clip"], weights)
