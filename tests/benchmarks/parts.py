"""The parts of a step, each on its own: prior, autoencoder, matching, hash grid, sampling, rendering."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from corrdream.camera_sampling import sample_multiview_cameras
from corrdream.cameras import camera_rays
from corrdream.correspondence import StreamedMatching
from corrdream.correspondence.matching import count_before_rows
from corrdream.field.encodings import HashGrid
from corrdream.field.encodings_tcnn import TcnnHashGrid
from corrdream.interfaces import Encoding, JacobianEncoding, MultiviewPrior
from corrdream.settings import settings_at
from corrdream.structures import RenderOutput
from corrdream.trainer import Trainer
from tests.benchmarks.measure import Measurement, measure

Part = tuple[str, Callable[[], object]]
RELEASED_GROWTH = 1.447269237440378


def prior_parts(prior: MultiviewPrior, blocks: tuple[int, ...], device: torch.device) -> Iterator[Part]:
    """Network calls of the four cases: guidance on twice the views, features of both view sets, images to latents."""
    text = prior.encode_text([""])

    def inputs(count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        latents = torch.randn(count, prior.latent_channels, prior.latent_size, prior.latent_size, device=device)
        timesteps = torch.full((count,), 500, device=device)
        poses = torch.eye(4, device=device).expand(count, 4, 4)
        return latents, timesteps, {"text": torch.randn_like(text.expand(count, -1, -1)), "c2w": poses}

    for count in (16, 8):
        latents, timesteps, condition = inputs(count)
        images = torch.rand(count, prior.image_size, prior.image_size, 3, device=device)
        yield f"UNet B{count}", lambda a=(latents, timesteps), c=condition: prior.predict_noise(*a, **c)
        yield (
            f"UNet features B{count}",
            lambda a=(latents, timesteps), c=condition: prior.features(*a, **c, blocks=blocks),
        )
        yield f"encode B{count}", lambda images=images: _without_gradient(prior, images)
    for count in (8, 4):
        images = torch.rand(count, prior.image_size, prior.image_size, 3, device=device, requires_grad=True)
        yield f"encode+back B{count}", lambda images=images: prior.encode_images(images).sum().backward()


@torch.no_grad()
def _without_gradient(prior: MultiviewPrior, images: Tensor) -> Tensor:
    return prior.encode_images(images)


def matching_parts(device: torch.device, shapes: list[tuple[int, int]], *, tiny: bool) -> Iterator[Part]:
    """Random features to best targets and looked-up similarities; `few` as for the initial blob, `all` pixels."""
    for size, pairs, few in ((16, 2, 10),) if tiny else ((32, 8, 32), (128, 4, 600), (256, 4, 2400)):
        features = [
            [torch.randn(pairs, channels, side, side, device=device).half() for channels, side in shapes]
            for _ in range(2)
        ]
        total = pairs * size**2
        for name, count in (("few", few), ("all", total)):
            if size == 256 and name == "all":
                continue
            pixel = torch.randperm(total, device=device)[:count].sort().values
            view, pixel = pixel // size**2, pixel % size**2
            before = count_before_rows(view * size**2 + pixel, pairs, size)  # by then a step knows it
            yield f"matching {size} {name}", lambda f=features, s=size, v=view, p=pixel, b=before: _match(f, s, v, p, b)


def _match(features: list[list[Tensor]], size: int, view: Tensor, pixel: Tensor, before_row: list[int]) -> Tensor:
    similarity = StreamedMatching().similarity(*features, size=size)
    best, _ = similarity.best_target(view, pixel, before_row)
    return similarity.at(view, pixel, best)


def encoding_parts(points: Tensor, used: Encoding) -> Iterator[Part]:
    """Each backend on the same points: features; their gradient to the table; what analytic normals take in all."""
    for name, encoding, table in encodings(used, points.device):
        variable = points.clone().requires_grad_()
        cotangent = torch.randn(len(points), encoding.output_dim, device=points.device)
        features = encoding(points)
        yield f"{name} forward", lambda e=encoding: e(points)
        yield (
            f"{name} backward",
            lambda f=features, t=table, c=cotangent: torch.autograd.grad(f, t, c.to(f.dtype), retain_graph=True),
        )
        yield f"{name} all", lambda e=encoding, t=table, v=variable, c=cotangent: normals_by_autograd(e, t, v, c)
        if isinstance(encoding, JacobianEncoding):
            yield f"{name} all, jacobian", lambda e=encoding, t=table, c=cotangent: normals_by_jacobian(e, t, points, c)


def encodings(used: Encoding, device: torch.device) -> Iterator[tuple[str, Encoding, Tensor]]:
    """Name, encoding and table of the backends that run here, at the released size on a GPU."""
    grid = HashGrid(growth=RELEASED_GROWTH).to(device) if device.type == "cuda" else used
    if isinstance(grid, HashGrid):
        yield "torch", grid, grid.table
    if device.type != "cuda":
        return
    if find_spec("triton") is not None:
        from corrdream.field.encodings_triton import TritonHashGrid

        assert isinstance(grid, HashGrid), "made above"
        for block in (128, 256):
            encoding = TritonHashGrid(grid, block=block).to(device)
            yield f"triton{block}", encoding, encoding.table
    if find_spec("tinycudann") is not None:
        theirs = TcnnHashGrid(growth=RELEASED_GROWTH).to(device)
        yield "tinycudann", theirs, theirs.table


def normals_by_autograd(encoding: Encoding, table: Tensor, points: Tensor, cotangent: Tensor) -> Tensor:
    """Forward, gradient in the points, and the backward pass of both to the table: the double backward."""
    features = encoding(points)
    (slope,) = torch.autograd.grad(features, points, cotangent.to(features.dtype), create_graph=True)
    (gradient,) = torch.autograd.grad((slope.square().sum() + (features * cotangent).sum()), table)
    return gradient


def normals_by_jacobian(encoding: JacobianEncoding, table: Tensor, points: Tensor, cotangent: Tensor) -> Tensor:
    """The same without a second derivative."""
    features, jacobian = encoding.with_jacobian(points)
    slope = (jacobian * cotangent).sum(-1).t()
    (gradient,) = torch.autograd.grad((slope.square().sum() + (features * cotangent).sum()), table)
    return gradient


def rendering_parts(trainer: Trainer, step: int) -> Iterator[Part]:
    """Sampling alone, a rendering, and one with its backward pass, at a step's size."""
    settings = settings_at(trainer.config, step, trainer.prior.num_views)
    generator = torch.Generator().manual_seed(2)
    cameras, lights = sample_multiview_cameras(settings.cameras, generator)
    look = trainer.draw_look(settings)
    rays = camera_rays(cameras.to(trainer.device))
    field = trainer.scene.field

    def forward() -> RenderOutput:
        with trainer.autocast():
            return trainer.render(cameras, lights, look)

    def forward_and_backward() -> None:
        output = forward()
        loss = output.rgb.square().sum()
        if output.sample_normal is not None:
            loss = loss + output.sample_normal[:, 0].sum()
        loss.backward()
        trainer.optimizer.zero_grad(set_to_none=True)

    side = settings.cameras.resolution
    yield f"sample {side}", lambda: trainer.marching.sample(rays, density=field.density, jitter=look.jitter)
    yield f"render {side}", torch.no_grad()(forward)
    yield f"render+back {side}", forward_and_backward


def sample_points(trainer: Trainer, step: int) -> Tensor:
    """Unit coordinates at which a step evaluates its field, in the order of the rays."""
    settings = settings_at(trainer.config, step, trainer.prior.num_views)
    generator = torch.Generator().manual_seed(2)
    cameras, _ = sample_multiview_cameras(settings.cameras, generator)
    rays = camera_rays(cameras.to(trainer.device))
    samples = trainer.marching.sample(rays, density=trainer.scene.field.density, jitter=None)
    middle = (samples.t_starts + samples.t_ends)[:, None] / 2
    points = rays.origins[samples.ray_indices] + middle * rays.directions[samples.ray_indices]
    return ((points / trainer.scene.field.radius + 1) / 2).clamp(0, 1).detach()


def measure_parts(parts: Iterator[Part], device: torch.device, *, repeats: int, label: str = "") -> list[Measurement]:
    """A line for each part."""
    return [measure(label + name, function, device, repeats=repeats) for name, function in parts]
