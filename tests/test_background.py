"""What is seen where the object is not."""

import torch
import torch.nn.functional as F

from corrdream.field.background import NetworkBackground, SolidBackground
from corrdream.field.encodings import FrequencyEncoding, SphericalHarmonics


def directions(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


def network(seed: int = 0) -> NetworkBackground:
    return NetworkBackground(encoding=SphericalHarmonics(degree=3), generator=torch.Generator().manual_seed(seed))


def test_solid_background_is_its_color_everywhere() -> None:
    color = SolidBackground(color=(0.1, 0.5, 0.9))(directions(4))
    torch.testing.assert_close(color, torch.tensor([0.1, 0.5, 0.9]).expand(4, 3))


def test_solid_background_has_nothing_to_train_or_to_save() -> None:
    background = SolidBackground(color=(1.0, 1.0, 1.0))
    assert not list(background.parameters())
    assert not background.state_dict()


def test_network_background_is_a_color() -> None:
    color = network()(directions(100))
    assert color.shape == (100, 3)
    assert bool(((color > 0) & (color < 1)).all())


def test_network_background_varies_with_the_direction() -> None:
    assert network()(directions(100)).std(dim=0).min() > 1e-3


def test_network_background_is_the_same_for_the_same_generator() -> None:
    assert torch.equal(network(3)(directions(5)), network(3)(directions(5)))
    assert not torch.equal(network(3)(directions(5)), network(4)(directions(5)))


def test_no_directions_have_no_colors() -> None:
    for background in (network(), SolidBackground(color=(0.0, 0.0, 0.0))):
        assert background(torch.zeros(0, 3)).shape == (0, 3)


def test_network_background_is_computed_in_32_bits_under_autocast() -> None:
    background = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = background(directions(5))
    torch.testing.assert_close(halved, background(directions(5)), atol=0, rtol=0)


def test_every_weight_gets_a_gradient() -> None:
    background = NetworkBackground(
        encoding=FrequencyEncoding(num_frequencies=3), generator=torch.Generator().manual_seed(0)
    )
    background(directions(50)).square().sum().backward()
    for parameter in background.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
