"""The multi-view UNet: attention over joined views, output blocks, and what is computed for them."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from corrdream.prior.network import JoinedViewsAttention, MultiviewUNet, NetworkShape
from tests.contracts.multiview_prior import draw

SHAPE = NetworkShape(
    latent_channels=4,
    latent_size=8,
    num_views=2,
    channels=(32, 64),
    heads=(1, 2),
    attention=(True, False),
    layers_per_block=2,
    text_width=16,
)


@pytest.fixture(scope="module")
def network() -> MultiviewUNet:
    torch.manual_seed(0)
    return MultiviewUNet(SHAPE).eval().requires_grad_(False)


def arguments(num_images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(num_images, 4, 8, 8), torch.arange(num_images) * 100, draw(num_images, 5, 16), draw(num_images, 16)


def slow_attention(attn: Attention, tokens: Tensor, context: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head."""
    heads = []
    for query, key, value in zip(
        *(part.chunk(attn.heads, dim=-1) for part in (attn.to_q(tokens), attn.to_k(context), attn.to_v(context))),
        strict=True,
    ):
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        heads.append(scores.softmax(dim=-1) @ value)
    return attn.to_out[0](torch.cat(heads, dim=-1))


def test_output_blocks_count_levels_times_residual_blocks(network: MultiviewUNet) -> None:
    assert network.num_output_blocks == 6
    _, features = network(*arguments(2), feature_blocks=range(6))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (64, 4, 4),
        (64, 4, 4),
        (64, 8, 8),  # after the upsampling that ends the level
        (32, 8, 8),
        (32, 8, 8),
        (32, 8, 8),
    ]


def test_self_attention_runs_over_the_tokens_of_all_views() -> None:
    torch.manual_seed(0)
    attn = Attention(query_dim=8, heads=2, dim_head=4).requires_grad_(False)
    tokens = draw(4, 3, 8)
    joined = tokens.reshape(2, 6, 8)
    actual = JoinedViewsAttention(num_views=2)(attn, tokens)
    torch.testing.assert_close(actual, slow_attention(attn, joined, joined).reshape(4, 3, 8))


def test_cross_attention_stays_with_its_own_view() -> None:
    torch.manual_seed(0)
    attn = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4).requires_grad_(False)
    tokens, text = draw(4, 3, 8), draw(4, 5, 6, seed=1)
    actual = JoinedViewsAttention(num_views=2)(attn, tokens, text)
    torch.testing.assert_close(actual, slow_attention(attn, tokens, text))


def test_camera_is_added_as_an_embedding(network: MultiviewUNet) -> None:
    latents, timesteps, text, camera = arguments(2)
    with_camera, _ = network(latents, timesteps, text, camera)
    without, _ = network(latents, timesteps, text, None)
    assert (with_camera - without).abs().max() > 1e-3


def test_features_compute_nothing_after_the_last_block_asked_for(network: MultiviewUNet) -> None:
    calls = []
    resnets = [resnet for level in network.unet.up_blocks for resnet in level.resnets]
    handles = [
        module.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, module in enumerate([*resnets, network.unet.conv_out])
    ]
    network.features(*arguments(2), blocks=(3, 1))
    assert calls == [0, 1, 2, 3]
    for handle in handles:
        handle.remove()


def test_blocks_count_from_zero(network: MultiviewUNet) -> None:
    with pytest.raises(ValueError, match="0 to 5 in forward order, got -4"):
        network.features(*arguments(2), blocks=(-4,))
