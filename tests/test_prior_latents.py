"""Pixels as latents."""

import torch

from corrdream.prior.latents import images_to_latents, latents_to_images, resize_images


def test_a_block_of_sixteen_pixels_becomes_the_channels_of_one_place() -> None:
    image = torch.zeros(1, 8, 8, 3)
    image[0, 0, 1, 2] = 1.0  # row 0, column 1, blue
    latents = images_to_latents(image)
    assert latents.shape == (1, 48, 2, 2)
    expected = -torch.ones(48)
    expected[2 * 16 + 1] = 1.0  # colors outermost, then row and column within the block
    torch.testing.assert_close(latents[0, :, 0, 0], expected)
    assert (latents[0, :, 1:, :] == -1).all()


def test_images_survive_the_way_there_and_back() -> None:
    images = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(latents_to_images(images_to_latents(images)), images)


def test_decoding_cuts_what_no_image_holds() -> None:
    latents = torch.full((1, 48, 2, 2), 1.5)
    assert (latents_to_images(latents) == 1).all()
    assert (latents_to_images(-latents) == 0).all()


def test_resizing_samples_at_pixel_centers() -> None:
    ramp = (torch.arange(4.0) + 0.5)[None, None, :, None].expand(1, 4, 4, 3)  # each pixel holds its center's x
    smaller = resize_images(ramp, 2)
    torch.testing.assert_close(smaller[0, 0, :, 0], torch.tensor([1.0, 3.0]))
    larger = resize_images(ramp, 8)
    torch.testing.assert_close(larger[0, 0, 1:-1, 0], (torch.arange(8.0) + 0.5)[1:-1] / 2)
    assert resize_images(ramp, 4) is ramp


def test_gradient_of_the_latents() -> None:
    images = torch.rand(1, 6, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: images_to_latents(resize_images(x, 4)), (images,))
