"""Shading modes, light colors and backgrounds, from uniform draws."""

import pytest
import torch

from corrdream.rendering.appearance import (
    AppearanceSettings,
    choose_background,
    choose_shading,
    draw_appearance,
    evaluation_appearance,
)
from corrdream.structures import Appearance

AMBIENT, DIFFUSE = (0.2, 0.3, 0.4), (0.7, 0.6, 0.5)


def settings(**changes: object) -> AppearanceSettings:
    values = {
        "ambient_only": False,
        "soft": True,
        "ambient_color": AMBIENT,
        "diffuse_color": DIFFUSE,
        "diffuse_prob": 0.75,
        "textureless_prob": 0.5,
        "random_prob": 0.5,
        "random_shared": True,
    }
    return AppearanceSettings(**(values | changes))


def draw(seed: int, **changes: object) -> Appearance:
    generator = torch.Generator().manual_seed(seed)
    return draw_appearance(settings(**changes), num_images=4, generator=generator, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("uniform", "mode"), [((0.3, 0.9), "albedo"), ((0.3, 0.2, 0.1), "textureless"), ((0.3, 0.2, 0.7), "diffuse")]
)
def test_soft_shading_mixes_white_lights(uniform: tuple[float, ...], mode: str) -> None:
    chosen, ambient, diffuse = choose_shading(settings(), iter(uniform))
    assert chosen == mode
    assert ambient == pytest.approx((0.7,) * 3)
    assert diffuse == pytest.approx((0.3,) * 3)


def test_hard_shading_has_the_configured_lights_and_draws_no_mixture() -> None:
    assert choose_shading(settings(soft=False), iter((0.2, 0.7))) == ("diffuse", AMBIENT, DIFFUSE)


def test_thresholds_themselves_mean_light_and_albedo() -> None:
    assert choose_shading(settings(soft=False), iter((0.75, 0.5)))[0] == "diffuse"


def test_ambient_only_is_albedo_and_draws_the_mixture_alone() -> None:
    uniform = iter((0.3, 0.1))
    assert choose_shading(settings(ambient_only=True), uniform)[0] == "albedo"
    assert list(uniform) == [0.1]


def test_evaluation_leaves_nothing_to_chance() -> None:
    shaded = evaluation_appearance(settings())
    assert (shaded.mode, shaded.ambient, shaded.diffuse) == ("diffuse", AMBIENT, DIFFUSE)
    assert shaded.background is None
    assert evaluation_appearance(settings(ambient_only=True)).mode == "albedo"


def test_background_is_the_scenes_own_unless_the_draw_falls_below_its_probability() -> None:
    colors = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    assert choose_background(settings(), 0.5, colors) is None
    assert choose_background(settings(random_prob=0.0), 0.0, colors) is None
    assert choose_background(settings(random_prob=1.0), 0.999, colors) is not None


def test_shared_background_is_the_first_color_for_all_images() -> None:
    colors = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choose_background(settings(), 0.1, colors), colors[:1].expand(3, 3))
    assert torch.equal(choose_background(settings(random_shared=False), 0.1, colors), colors)


def test_same_seed_gives_the_same_appearance() -> None:
    first, second = draw(3, random_prob=1.0), draw(3, random_prob=1.0)
    assert (first.mode, first.ambient) == (second.mode, second.ambient)
    assert torch.equal(first.background, second.background)


def test_equally_many_numbers_are_drawn_whatever_is_decided() -> None:
    states = []
    for changes in ({"ambient_only": True, "random_prob": 0.0}, {"ambient_only": False, "random_prob": 1.0}):
        generator = torch.Generator().manual_seed(0)
        draw_appearance(settings(**changes), num_images=4, generator=generator, device=torch.device("cpu"))
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_modes_come_as_often_as_configured() -> None:
    modes = [draw(seed).mode for seed in range(2000)]
    shares = [modes.count(mode) / 2000 for mode in ("albedo", "textureless", "diffuse")]
    assert shares == pytest.approx([0.25, 0.375, 0.375], abs=0.04)  # 4 standard deviations
