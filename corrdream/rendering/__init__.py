"""From a radiance field to images: occupancy, marching, shading, compositing."""

from corrdream.rendering.appearance import AppearanceSettings, draw_appearance, evaluation_appearance
from corrdream.rendering.marching import TorchMarching, sampling_step
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.rendering.renderer import render

__all__ = [
    "AppearanceSettings",
    "OccupancyGrid",
    "TorchMarching",
    "draw_appearance",
    "evaluation_appearance",
    "render",
    "sampling_step",
]
