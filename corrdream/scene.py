"""What is trained, and how it is looked at without training it: no prior is needed for that."""

from dataclasses import dataclass

import torch
from torch import nn

from corrdream.cameras import lights_at_cameras, orbit_cameras
from corrdream.checkpoint import Checkpoint, CheckpointError
from corrdream.config import Config
from corrdream.field import RadianceField
from corrdream.interfaces import Marching
from corrdream.rendering import OccupancyGrid, render
from corrdream.structures import Appearance, CameraBatch, RenderOutput

RAYS_AT_ONCE = 65536  # so that a large picture costs time, not memory


class Scene(nn.Module):
    """All that is trained, and the occupancy that follows it; its state dict is what a checkpoint keeps."""

    def __init__(self, *, field: RadianceField, background: nn.Module, occupancy: OccupancyGrid) -> None:
        super().__init__()
        self.field = field
        self.background = background
        self.occupancy = occupancy


def load_scene(scene: Scene, checkpoint: Checkpoint) -> None:
    """Sets what is trained, and its occupancy, to the checkpoint's values."""
    values = {name.removeprefix("scene/"): v for name, v in checkpoint.tensors.items() if name.startswith("scene/")}
    try:
        scene.load_state_dict(values)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit this configuration: {error}") from error


@dataclass(frozen=True, kw_only=True)
class SceneView:
    """A scene under the evaluation's cameras and light."""

    config: Config
    scene: Scene
    marching: Marching
    device: torch.device
    step: int

    def orbit(self, num_views: int, *, size: int, include_end: bool = False) -> CameraBatch:
        """Cameras around the scene at the evaluation's elevation and distance, `size` pixels a side."""
        cameras = self.config.cameras
        return orbit_cameras(
            num_views,
            elevation_deg=cameras.eval_elevation,
            distance=cameras.eval_distance,
            fovy_deg=cameras.eval_fovy,
            height=size,
            width=size,
            include_end=include_end,
            device=self.device,
        )

    @torch.no_grad()
    def render(self, cameras: CameraBatch) -> RenderOutput:
        """The scene unshaded on the evaluation background, with normals, without jitter."""
        count = len(cameras.c2w)
        background = torch.tensor(self.config.background.color, device=self.device).expand(count, 3)
        shading = self.config.shading
        appearance = Appearance(
            mode="albedo", ambient=shading.ambient_color, diffuse=shading.diffuse_color, background=background
        )
        return render(
            cameras,
            lights_at_cameras(cameras),
            appearance,
            field=self.scene.field,
            background=self.scene.background,
            marching=self.marching,
            jitter=None,
            with_normals=True,
            chunk=RAYS_AT_ONCE,
        )
