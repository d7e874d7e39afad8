"""Every weight of a published multi-view checkpoint, by name and shape, and which of them nothing here reads.

The names are those of latent diffusion: `model.diffusion_model.` is the UNet, `first_stage_model.` the autoencoder,
`cond_stage_model.` the text tower; the noise schedule's buffers have no prefix.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from corrdream.diffusion import NUM_TIMESTEPS
from corrdream.prior.autoencoder import LATENT_CHANNELS, AutoencoderShape
from corrdream.prior.network import CAMERA_NUMBERS, NetworkShape
from corrdream.prior.text_clip import TextShape

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXT = "cond_stage_model."
# The schedule follows from the method; the file's copy of it is not read.
SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
# 0 .. L - 1, which some versions of the text library save.
POSITION_IDS = f"{TEXT}transformer.text_model.embeddings.position_ids"

Shape = tuple[int, ...]
Layout = Iterator[tuple[str, Shape]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MvdreamShape:
    """Sizes of a published model's three networks."""

    network: NetworkShape
    autoencoder: AutoencoderShape
    text: TextShape

    @property
    def image_size(self) -> int:
        """Side of the images that it encodes, pixels."""
        return self.network.latent_size * self.autoencoder.downsampling

    def to_text(self) -> str:
        """JSON, as a file of another size than the published ones records it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "MvdreamShape":
        """What `to_text` gave."""

        def part(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

        sizes = json.loads(text)
        return cls(
            network=NetworkShape(**part(sizes["network"])),
            autoencoder=AutoencoderShape(**part(sizes["autoencoder"])),
            text=TextShape(**part(sizes["text"])),
        )


def published_shape(*, text: TextShape, heads: tuple[int, ...], linear_projection: bool) -> MvdreamShape:
    """Sizes of a model that starts from Stable Diffusion, for four views of 256 pixels."""
    return MvdreamShape(
        network=NetworkShape(
            latent_channels=LATENT_CHANNELS,
            latent_size=32,
            num_views=4,
            channels=(320, 640, 1280, 1280),
            heads=heads,
            attention=(True, True, True, False),
            layers_per_block=2,
            text_width=text.width,
            linear_projection=linear_projection,
        ),
        autoencoder=AutoencoderShape(),
        text=text,
    )


MODELS = {
    "sd-v2.1-base-4view": published_shape(
        text=TextShape(family="open_clip", width=1024, heads=16, num_layers=24),
        heads=(5, 10, 20, 20),
        linear_projection=True,
    ),
    "sd-v1.5-4view": published_shape(
        text=TextShape(family="clip", width=768, heads=12, num_layers=12), heads=(8, 8, 8, 8), linear_projection=False
    ),
}


def checkpoint_layout(shape: MvdreamShape) -> dict[str, Shape]:
    """Name and shape of everything in a model's checkpoint."""
    layout: dict[str, Shape] = dict.fromkeys(SCHEDULE_BUFFERS, (NUM_TIMESTEPS,))
    layout |= {UNET + name: size for name, size in _unet(shape.network)}
    layout |= {AUTOENCODER + name: size for name, size in _autoencoder(shape.autoencoder)}
    layout |= {TEXT + name: size for name, size in _text(shape.text)}
    if shape.text.family == "clip":
        layout[POSITION_IDS] = (1, shape.text.max_tokens)
    return layout


def is_ignored(name: str, shape: MvdreamShape) -> bool:
    """Whether a weight of the layout is read by nothing here."""
    unread = shape.text.num_layers - shape.text.num_skipped
    skipped_layer = f"{TEXT}model.transformer.resblocks.{unread}."
    unused = (*SCHEDULE_BUFFERS, POSITION_IDS, f"{TEXT}model.text_projection", f"{TEXT}model.logit_scale")
    return name in unused or (shape.text.num_skipped > 0 and name.startswith(skipped_layer))


def check_layout(shapes: Mapping[str, Sequence[int]], shape: MvdreamShape, origin: str) -> None:
    """ValueError that names what `shapes` (of a file's weights) lacks, has too many of, or has in another shape."""
    expected = checkpoint_layout(shape)
    missing = [name for name in expected if name not in shapes and name != POSITION_IDS]
    extra = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} {list(shapes[name])} instead of {list(size)}"
        for name, size in expected.items()
        if name in shapes and tuple(shapes[name]) != size
    ]
    faults = (("missing", missing), ("unknown", extra), ("of another shape", wrong))
    found = [f"{len(names)} {what}: {_first(names)}" for what, names in faults if names]
    if found:
        raise ValueError(f"{origin} is not a checkpoint of prior.model; weights {'; '.join(found)}.")


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _affine(name: str, *sizes: int) -> Layout:
    """Weight of the given shape, and bias of its first size."""
    yield f"{name}.weight", sizes
    yield f"{name}.bias", sizes[:1]


def _unet(shape: NetworkShape) -> Layout:
    embedding = 4 * shape.channels[0]
    yield from _affine("time_embed.0", embedding, shape.channels[0])
    yield from _affine("time_embed.2", embedding, embedding)
    yield from _affine("camera_embed.0", embedding, CAMERA_NUMBERS)
    yield from _affine("camera_embed.2", embedding, embedding)
    yield from _affine("input_blocks.0.0", shape.channels[0], shape.latent_channels, 3, 3)
    width, skips, block = shape.channels[0], [shape.channels[0]], 1
    for level, channels in enumerate(shape.channels):
        for _ in range(shape.layers_per_block):
            yield from _unet_block(f"input_blocks.{block}", width, channels, shape, level)
            width, block = channels, block + 1
            skips.append(width)
        if level < len(shape.channels) - 1:
            yield from _affine(f"input_blocks.{block}.0.op", width, width, 3, 3)
            skips.append(width)
            block += 1
    yield from _unet_resnet("middle_block.0", width, width, embedding)
    yield from _transformer("middle_block.1", width, shape)
    yield from _unet_resnet("middle_block.2", width, width, embedding)
    block = 0
    for level, channels in reversed(list(enumerate(shape.channels))):
        for layer in range(shape.layers_per_block + 1):
            yield from _unet_block(f"output_blocks.{block}", width + skips.pop(), channels, shape, level)
            if level > 0 and layer == shape.layers_per_block:
                part = 2 if shape.attention[level] else 1
                yield from _affine(f"output_blocks.{block}.{part}.conv", channels, channels, 3, 3)
            width, block = channels, block + 1
    yield from _affine("out.0", width)
    yield from _affine("out.2", shape.latent_channels, width, 3, 3)


def _unet_block(name: str, inputs: int, outputs: int, shape: NetworkShape, level: int) -> Layout:
    yield from _unet_resnet(f"{name}.0", inputs, outputs, 4 * shape.channels[0])
    if shape.attention[level]:
        yield from _transformer(f"{name}.1", outputs, shape)


def _unet_resnet(name: str, inputs: int, outputs: int, embedding: int) -> Layout:
    yield from _affine(f"{name}.in_layers.0", inputs)
    yield from _affine(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    yield from _affine(f"{name}.emb_layers.1", outputs, embedding)
    yield from _affine(f"{name}.out_layers.0", outputs)
    yield from _affine(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from _affine(f"{name}.skip_connection", outputs, inputs, 1, 1)


def _transformer(name: str, width: int, shape: NetworkShape) -> Layout:
    kernel = () if shape.linear_projection else (1, 1)
    yield from _affine(f"{name}.norm", width)
    yield from _affine(f"{name}.proj_in", width, width, *kernel)
    block = f"{name}.transformer_blocks.0"
    for attention, context in (("attn1", width), ("attn2", shape.text_width)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, context)
        yield f"{block}.{attention}.to_v.weight", (width, context)
        yield from _affine(f"{block}.{attention}.to_out.0", width, width)
    yield from _affine(f"{block}.ff.net.0.proj", 8 * width, width)  # a gate beside each of 4 width values
    yield from _affine(f"{block}.ff.net.2", width, 4 * width)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _affine(f"{block}.{norm}", width)
    yield from _affine(f"{name}.proj_out", width, width, *kernel)


def _autoencoder(shape: AutoencoderShape) -> Layout:
    finest, coarsest = shape.channels[0], shape.channels[-1]
    yield from _affine("encoder.conv_in", finest, 3, 3, 3)
    width = finest
    for level, channels in enumerate(shape.channels):
        for layer in range(shape.layers_per_block):
            yield from _plain_resnet(f"encoder.down.{level}.block.{layer}", width, channels)
            width = channels
        if level < len(shape.channels) - 1:
            yield from _affine(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _middle("encoder.mid", coarsest)
    yield from _affine("encoder.norm_out", coarsest)
    yield from _affine("encoder.conv_out", 2 * LATENT_CHANNELS, coarsest, 3, 3)
    yield from _affine("decoder.conv_in", coarsest, LATENT_CHANNELS, 3, 3)
    yield from _middle("decoder.mid", coarsest)
    width = coarsest
    for level, channels in reversed(list(enumerate(shape.channels))):
        for layer in range(shape.layers_per_block + 1):
            yield from _plain_resnet(f"decoder.up.{level}.block.{layer}", width, channels)
            width = channels
        if level > 0:
            yield from _affine(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _affine("decoder.norm_out", finest)
    yield from _affine("decoder.conv_out", 3, finest, 3, 3)
    yield from _affine("quant_conv", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, 1)
    yield from _affine("post_quant_conv", LATENT_CHANNELS, LATENT_CHANNELS, 1, 1)


def _plain_resnet(name: str, inputs: int, outputs: int) -> Layout:
    yield from _affine(f"{name}.norm1", inputs)
    yield from _affine(f"{name}.conv1", outputs, inputs, 3, 3)
    yield from _affine(f"{name}.norm2", outputs)
    yield from _affine(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from _affine(f"{name}.nin_shortcut", outputs, inputs, 1, 1)


def _middle(name: str, width: int) -> Layout:
    yield from _plain_resnet(f"{name}.block_1", width, width)
    yield from _affine(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _affine(f"{name}.attn_1.{part}", width, width, 1, 1)
    yield from _plain_resnet(f"{name}.block_2", width, width)


def _text(shape: TextShape) -> Layout:
    width = shape.width
    if shape.family == "open_clip":
        yield "model.positional_embedding", (shape.max_tokens, width)
        yield "model.text_projection", (width, width)
        yield "model.logit_scale", ()
        yield "model.token_embedding.weight", (shape.num_tokens, width)
        yield from _affine("model.ln_final", width)
        layers, norms, mlp = "model.transformer.resblocks", ("ln_1", "ln_2"), ("mlp.c_fc", "mlp.c_proj")
    else:
        yield "transformer.text_model.embeddings.token_embedding.weight", (shape.num_tokens, width)
        yield "transformer.text_model.embeddings.position_embedding.weight", (shape.max_tokens, width)
        yield from _affine("transformer.text_model.final_layer_norm", width)
        layers, norms = "transformer.text_model.encoder.layers", ("layer_norm1", "layer_norm2")
        mlp = ("mlp.fc1", "mlp.fc2")
    for name in (f"{layers}.{layer}" for layer in range(shape.num_layers)):
        for norm in norms:
            yield from _affine(f"{name}.{norm}", width)
        yield from _affine(f"{name}.{mlp[0]}", 4 * width, width)
        yield from _affine(f"{name}.{mlp[1]}", width, 4 * width)
        if shape.family == "open_clip":
            yield f"{name}.attn.in_proj_weight", (3 * width, width)
            yield f"{name}.attn.in_proj_bias", (3 * width,)
            yield from _affine(f"{name}.attn.out_proj", width, width)
        else:
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from _affine(f"{name}.self_attn.{part}", width, width)
