"""The multi-view UNet: diffusers' `UNet2DConditionModel`, whose self-attention sees all views of an object at once.

A camera is 16 numbers (row-major camera-to-world, unit translation); its embedding is added to the timestep's. With the
views' tokens joined in self-attention only, this is the network of MVDream (arXiv:2308.16512), and the published
weights fit after renaming. Output block k, in forward order, is one residual block of the up path with its attention,
and with the upsampling where it ends a level: the activations after it are the features that matching uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from corrdream.prior.compiled import Compilation, PreparedFunction

CAMERA_NUMBERS = 16

# (query, key, value), each [B heads T C], to the attended values, alike
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkShape:
    """Sizes of a multi-view UNet; one entry of `channels`, `heads` and `attention` a level, finest first."""

    latent_channels: int
    latent_size: int
    num_views: int
    channels: tuple[int, ...]
    heads: tuple[int, ...]  # attention heads of each level
    attention: tuple[bool, ...]  # whether a level has transformer blocks; the middle always has one
    layers_per_block: int  # residual blocks a level on the way down; one more on the way up
    text_width: int
    norm_groups: int = 32
    linear_projection: bool = True  # around the transformer blocks; False: 1 x 1 convolutions, of the older networks


class JoinedViewsAttention:
    """Scaled dot-product attention; without a text it runs over the tokens of `num_views` consecutive images."""

    def __init__(self, num_views: int, attend: Attend = F.scaled_dot_product_attention) -> None:
        self.num_views = num_views
        self.attend = attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "B T C"],
        encoder_hidden_states: Float[Tensor, "B L D"] | None = None,
        attention_mask: None = None,  # noqa: ARG002 - diffusers passes both by name
        temb: None = None,  # noqa: ARG002
    ) -> Float[Tensor, "B T C"]:
        """The attention layer's output, image by image again."""
        shape = hidden_states.shape
        if encoder_hidden_states is None:
            hidden_states = hidden_states.reshape(-1, self.num_views * shape[1], shape[2])
            encoder_hidden_states = hidden_states
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        attended = self.attend(query, key, value)
        output: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return output.reshape(shape)


class MultiviewUNet(nn.Module):
    """A UNet over the latents of `num_views` consecutive views an object."""

    def __init__(self, shape: NetworkShape, attend: Attend = F.scaled_dot_product_attention) -> None:
        super().__init__()
        self.shape = shape
        down = ["CrossAttnDownBlock2D" if has_attention else "DownBlock2D" for has_attention in shape.attention]
        up = ["CrossAttnUpBlock2D" if has_attention else "UpBlock2D" for has_attention in reversed(shape.attention)]
        self.unet = UNet2DConditionModel(
            sample_size=shape.latent_size,
            in_channels=shape.latent_channels,
            out_channels=shape.latent_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=shape.channels,
            layers_per_block=shape.layers_per_block,
            cross_attention_dim=shape.text_width,
            norm_num_groups=shape.norm_groups,
            # diffusers keeps this name for the number of heads
            attention_head_dim=shape.heads,
            use_linear_projection=shape.linear_projection,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=CAMERA_NUMBERS,
        )
        self.unet.set_attn_processor(JoinedViewsAttention(shape.num_views, attend))

    @property
    def num_output_blocks(self) -> int:
        """Residual blocks on the way up, each of which is a feature block."""
        return len(self.shape.channels) * (self.shape.layers_per_block + 1)

    def forward(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        text: Float[Tensor, "B L D"],
        camera: Float[Tensor, "B 16"] | None,
        feature_blocks: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "B C h w"], tuple[Tensor, ...]]:
        """The network's output, and the activations after the output blocks that are asked for, in the order asked."""
        hidden, kept = self._output_blocks(latents, timesteps, text, camera, feature_blocks, self.num_output_blocks)
        hidden = self.unet.conv_act(self.unet.conv_norm_out(hidden))
        return self.unet.conv_out(hidden), kept

    def features(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        text: Float[Tensor, "B L D"],
        camera: Float[Tensor, "B 16"] | None,
        blocks: Sequence[int],
    ) -> tuple[Tensor, ...]:
        """The same activations as `forward`, with nothing computed after the last block that is asked for."""
        return self._output_blocks(latents, timesteps, text, camera, blocks, max(blocks, default=-1) + 1)[1]

    def _output_blocks(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        camera: Tensor | None,
        feature_blocks: Sequence[int],
        num_blocks: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Activations after the first `num_blocks` output blocks, and after each of `feature_blocks`."""
        self.check(latents, feature_blocks)
        embedding = self.unet.time_embedding(self.unet.time_proj(timesteps).to(latents.dtype))
        if camera is not None:
            embedding = embedding + self.unet.class_embedding(camera.to(latents.dtype))
        hidden = self.unet.conv_in(latents)
        skips = [hidden]
        for level, has_attention in zip(self.unet.down_blocks, self.shape.attention, strict=True):
            context = {"encoder_hidden_states": text} if has_attention else {}
            hidden, outputs = level(hidden, embedding, **context)
            skips.extend(outputs)
        hidden = self.unet.mid_block(hidden, embedding, encoder_hidden_states=text)
        kept: dict[int, Tensor] = {}
        for block in range(num_blocks):
            hidden = self._output_block(block, torch.cat([hidden, skips.pop()], dim=1), embedding, text)
            if block in feature_blocks:
                kept[block] = hidden
        return hidden, tuple(kept[block] for block in feature_blocks)

    def _output_block(self, block: int, hidden: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        per_level = self.shape.layers_per_block + 1
        level, layer = self.unet.up_blocks[block // per_level], block % per_level
        hidden = level.resnets[layer](hidden, embedding)
        if self.shape.attention[-1 - block // per_level]:
            hidden = level.attentions[layer](hidden, encoder_hidden_states=text, return_dict=False)[0]
        if layer == per_level - 1 and level.upsamplers is not None:
            hidden = level.upsamplers[0](hidden)
        return hidden

    def check(self, latents: Tensor, feature_blocks: Sequence[int]) -> None:
        """ValueError for an incomplete set of views, or a block that does not exist."""
        if len(latents) % self.shape.num_views:
            raise ValueError(f"The prior sees {self.shape.num_views} views an object; got {len(latents)} latents.")
        for block in feature_blocks:
            if not 0 <= block < self.num_output_blocks:
                raise ValueError(
                    f"Feature blocks count from 0 to {self.num_output_blocks - 1} in forward order, got {block}."
                )


class PreparedUNet:
    """A frozen network whose calls are prepared: its output with and without features, and the features alone."""

    def __init__(self, network: MultiviewUNet, compilation: Compilation) -> None:
        self.network = network
        self._compilation: Compilation = compilation
        self._predictions: dict[tuple[int, ...], PreparedFunction] = {}
        self._features: dict[tuple[int, ...], PreparedFunction] = {}

    def predict(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        text: Float[Tensor, "B L D"],
        camera: Float[Tensor, "B 16"],
        feature_blocks: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "B C h w"], tuple[Tensor, ...]]:
        """The network's output, and the activations that are asked for."""
        self.network.check(latents, feature_blocks)
        blocks = tuple(feature_blocks)
        if blocks not in self._predictions:
            self._predictions[blocks] = PreparedFunction(
                lambda *inputs: _flat(*self.network(*inputs, blocks)), "the UNet", self._compilation
            )
        output, *kept = self._predictions[blocks](latents, timesteps, text, camera)
        return output, tuple(kept)

    def features(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        text: Float[Tensor, "B L D"],
        camera: Float[Tensor, "B 16"],
        blocks: Sequence[int],
    ) -> tuple[Tensor, ...]:
        """The same activations, with nothing computed after the last block that is asked for."""
        self.network.check(latents, blocks)
        wanted = tuple(blocks)
        if wanted not in self._features:
            self._features[wanted] = PreparedFunction(
                lambda latents, timesteps, text, camera: self.network.features(
                    latents, timesteps, text, camera, wanted
                ),
                "the UNet's features",
                self._compilation,
            )
        return self._features[wanted](latents, timesteps, text, camera)


def _flat(output: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return output, *kept


def published_unet_weights(
    network: MultiviewUNet, weights: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, Float[Tensor, "..."]]:
    """The network's state dict from the published layout (`input_blocks.0.0.weight`, `camera_embed.0.weight`, ...)."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix = "model.diffusion_model."
    renamed = {
        prefix + name.replace("camera_embed.", "label_emb.0."): weight.float() for name, weight in weights.items()
    }
    converted = convert_ldm_unet_checkpoint(renamed, config=dict(network.unet.config))
    return {f"unet.{name}": weight for name, weight in converted.items()}
