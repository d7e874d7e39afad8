"""The autoencoder: what it scales, draws and cuts, and its gradient to the images."""

import pytest
import torch
from torch import Tensor

from corrdream.prior.autoencoder import SCALE, Autoencoder, AutoencoderShape, draw
from tests.contracts.multiview_prior import draw as normal

SIZE = 32


SHAPE = AutoencoderShape(channels=(16, 16, 32, 32), layers_per_block=1, norm_groups=8)


def build(shape: AutoencoderShape) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = Autoencoder(shape)
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return build(SHAPE)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))


def test_full_size_is_stable_diffusion_s() -> None:
    shape = AutoencoderShape()
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Autoencoder(shape).parameters())
    assert parameters == 83_653_863
    assert shape.downsampling == 8


def test_latents_are_scaled_draws_from_the_posterior_of_pixels_about_zero(
    autoencoder: Autoencoder, images: Tensor
) -> None:
    noise = normal(2, 4, 4, 4)
    posterior = autoencoder.posterior(2 * images.permute(0, 3, 1, 2) - 1)
    expected = 0.18215 * (posterior.mean + (posterior.logvar / 2).exp() * noise)
    torch.testing.assert_close(autoencoder.encode(images, SIZE, noise), expected)
    torch.testing.assert_close(autoencoder.encode(images, SIZE), SCALE * posterior.mean)


def test_images_of_another_side_are_resized_bilinearly(autoencoder: Autoencoder, images: Tensor) -> None:
    # Nearest doubling, then halving by a bilinear filter between pixel centers, is the identity.
    doubled = images.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(autoencoder.encode(doubled, SIZE), autoencoder.encode(images, SIZE))


def test_decoded_images_are_the_decoder_s_pixels_moved_and_cut(autoencoder: Autoencoder) -> None:
    latents = 20 * normal(1, 4, 4, 4)
    pixels = autoencoder.pixels(latents).permute(0, 2, 3, 1)
    images = autoencoder.decode(latents)
    assert pixels.abs().max() > 1
    torch.testing.assert_close(images, (0.5 * (pixels + 1)).clamp(0, 1))


def test_gradient_to_the_images_is_that_of_finite_differences(autoencoder: Autoencoder, images: Tensor) -> None:
    network = build(AutoencoderShape(channels=(8, 8), layers_per_block=1, norm_groups=4)).double()
    pictures = images[:1, :4, :4].double().requires_grad_()
    noise = normal(1, 4, 2, 2).double()
    assert torch.autograd.gradcheck(lambda values: network.encode(values, 4, noise), (pictures,))


def test_draw_is_float32_where_the_encoder_is_not(autoencoder: Autoencoder, images: Tensor) -> None:
    posterior = autoencoder.posterior(2 * images.permute(0, 3, 1, 2) - 1)
    expected = draw(posterior, None)
    actual = draw(build(SHAPE).bfloat16().posterior(2 * images.permute(0, 3, 1, 2) - 1), None)
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 0.05 * expected.norm()
