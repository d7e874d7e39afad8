"""How a rendering looks: its shading mode, the colors of its lights, the background that replaces the scene's.

Chance comes in as uniform numbers in [0, 1): `draw_appearance` takes them from a generator, the `choose` functions
decide. The released code consumes its numbers in that order and only as many as it needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from corrdream.structures import Appearance, ShadingMode
from corrdream.transfer import to_device

Color = tuple[float, float, float]
NUM_SHADING_DRAWS = 3  # at most


@dataclass(frozen=True, slots=True, kw_only=True)
class AppearanceSettings:
    """What an appearance is drawn from, at one step."""

    ambient_only: bool  # albedo without light
    soft: bool  # a random mixture of white ambient and point light, instead of the colors below
    ambient_color: Color
    diffuse_color: Color
    diffuse_prob: float  # of light at all
    textureless_prob: float  # of white instead of the albedo, given light
    random_prob: float  # of a uniformly random background color
    random_shared: bool  # one random color for all images


def draw_appearance(
    settings: AppearanceSettings, *, num_images: int, generator: torch.Generator, device: torch.device
) -> Appearance:
    """An appearance for one rendering of `num_images` views; takes equally many numbers whatever it decides."""
    shading = torch.rand(NUM_SHADING_DRAWS, generator=generator, device=generator.device)
    choice = torch.rand(1, generator=generator, device=generator.device)
    colors = torch.rand(num_images, 3, generator=generator, device=generator.device)
    mode, ambient, diffuse = choose_shading(settings, iter(shading.tolist()))
    return Appearance(
        mode=mode,
        ambient=ambient,
        diffuse=diffuse,
        background=choose_background(settings, choice.item(), to_device(colors, device)),
    )


def evaluation_appearance(settings: AppearanceSettings) -> Appearance:
    """No chance: the configured lights, and the scene's own background."""
    return Appearance(
        mode="albedo" if settings.ambient_only else "diffuse",
        ambient=settings.ambient_color,
        diffuse=settings.diffuse_color,
        background=None,
    )


def choose_shading(settings: AppearanceSettings, uniform: Iterator[float]) -> tuple[ShadingMode, Color, Color]:
    """Shading mode, ambient and diffuse color; takes from `uniform` only what it needs."""
    ambient, diffuse = settings.ambient_color, settings.diffuse_color
    if settings.soft:
        ratio = next(uniform)
        ambient, diffuse = (1 - ratio,) * 3, (ratio,) * 3
    if settings.ambient_only or next(uniform) > settings.diffuse_prob:
        return "albedo", ambient, diffuse
    return ("textureless" if next(uniform) < settings.textureless_prob else "diffuse"), ambient, diffuse


def choose_background(
    settings: AppearanceSettings, uniform: float, colors: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 3"] | None:
    """The random background colors, the first for all images if shared; None where the scene's own stays."""
    if uniform >= settings.random_prob:
        return None
    return colors[:1].expand_as(colors) if settings.random_shared else colors
