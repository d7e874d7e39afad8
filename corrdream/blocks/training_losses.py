"""The losses that the built-in prior is trained with: diffusion, and two that put geometry into its features.

* diffusion: mean squared error of the predicted velocity, importance-weighted to timesteps uniform on [0, T).
* match: of a source point in one view set, the cosine similarities of L2-normalized features to all pixels of the same
  view of the other set, as a softmax with a temperature, against soft targets exp(-|X_p - X_q|^2 / 2 sigma^2) from the
  true surface points X. A source whose surface point the other view does not see counts nothing.
* coordinate: a 1 x 1 convolution on the same features predicts the surface point of each place.

Both view sets share timestep and noise, as a correspondence step has it. The last two fade with the noise: they are
weighted by alpha_cumprod. Symbols: O objects, S = 2 sets, V views, B = O * S * V images, K feature blocks.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from corrdream.blocks.training_data import NUM_SETS
from corrdream.diffusion import NUM_TIMESTEPS, add_noise, alphas_cumprod
from corrdream.prior.blocks import BlocksNetworks

FEATURE_BLOCKS = (3, 5)  # those that matching uses: after the upsampling to 16 x 16, and the last
LOW_TIMESTEPS = 300  # of the objects drawn for their features: half at 0, half below this
TEMPERATURE = 0.05  # of the cosine similarities
SIGMA = 0.04  # of the soft targets, world units: about 1.4 pixels of 64
VISIBLE_WITHIN = 0.05  # world units between a source point and the nearest one seen in the other view
COORDINATE_BETA = 0.05  # where the coordinate loss turns from quadratic to linear, world units


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """Tensors of one training step."""

    latents: Float[Tensor, "B C h w"]
    noise: Float[Tensor, "B C h w"]  # equal in both sets
    timesteps: Int[Tensor, " O"]
    diffusion_weight: Float[Tensor, " O"]
    tokens: Int[Tensor, "O L"]
    camera: Float[Tensor, "B 16"]
    mask: Bool[Tensor, "B H W"]
    position: Float[Tensor, "B H W 3"]
    source_image: Int[Tensor, " P"]  # image of each matched pair ...
    target_image: Int[Tensor, " P"]  # ... and the one it is matched with
    source_pixel: Int[Tensor, "P N"]  # row-major indices of source points

    def at_timestep(self, timestep: int) -> "StepInput":
        """The same step with one timestep for all objects, and equal weights."""
        timesteps = torch.full_like(self.timesteps, timestep)
        return replace(self, timesteps=timesteps, diffusion_weight=torch.ones_like(self.diffusion_weight))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLosses:
    """Scalars, not yet weighted."""

    diffusion: Float[Tensor, ""]
    match: Float[Tensor, ""]
    coordinate: Float[Tensor, ""]


def draw_timesteps(
    generator: torch.Generator, num_objects: int, feature_share: float
) -> tuple[Int[Tensor, " O"], Float[Tensor, " O"]]:
    """Timesteps, low for a share of the objects, and the weights that make the diffusion loss as if uniform."""
    device = generator.device
    kind = torch.rand(num_objects, generator=generator, device=device)
    low = torch.randint(LOW_TIMESTEPS, (num_objects,), generator=generator, device=device)
    low = torch.where(kind < feature_share / 2, 0, low)
    any_of_all = torch.randint(NUM_TIMESTEPS, (num_objects,), generator=generator, device=device)
    timesteps = torch.where(kind < feature_share, low, any_of_all)
    density = (1 - feature_share) / NUM_TIMESTEPS + (timesteps < LOW_TIMESTEPS) * feature_share / 2 / LOW_TIMESTEPS
    density = density + (timesteps == 0) * feature_share / 2
    return timesteps, 1 / (NUM_TIMESTEPS * density)


class TrainingModel(nn.Module):
    """The networks with the heads that only training uses; calling it gives the losses of a step."""

    alphas_cumprod: Tensor

    def __init__(self, networks: BlocksNetworks, *, compiled: bool = False) -> None:
        super().__init__()
        self.networks = networks
        widths = [_block_width(networks, block) for block in FEATURE_BLOCKS]
        self.coordinate_heads = nn.ModuleList(nn.Conv2d(width, 3, kernel_size=1) for width in widths)
        self.register_buffer("alphas_cumprod", alphas_cumprod().float(), persistent=False)
        self._match_targets, self._match_loss = match_targets, match_loss
        if compiled:
            self.networks.unet.compile(dynamic=False)
            self._match_targets = torch.compile(match_targets, dynamic=False)
            self._match_loss = torch.compile(match_loss, dynamic=False)

    def forward(self, step: StepInput) -> StepLosses:
        """All losses of a step."""
        per_object = NUM_SETS * self.networks.shape.num_views
        text = self.networks.text(step.tokens).repeat_interleave(per_object, dim=0)
        timesteps = step.timesteps.repeat_interleave(per_object)
        alpha = self.alphas_cumprod[timesteps]
        noisy = add_noise(step.latents, step.noise, alpha)
        velocity, features = self.networks.unet(noisy, timesteps, text, step.camera, FEATURE_BLOCKS)
        share = alpha[:, None, None, None]
        target = share.sqrt() * step.noise - (1 - share).sqrt() * step.latents
        errors = (velocity.float() - target).square().mean((1, 2, 3))
        coordinate = [
            coordinate_loss(head(feature), step.mask, step.position, alpha)
            for head, feature in zip(self.coordinate_heads, features, strict=True)
        ]
        pairs = (step.source_image, step.target_image, step.source_pixel)
        distribution, visible = self._match_targets(step.mask, step.position, *pairs)
        counted = visible * alpha[step.source_image, None] / visible.sum().clamp_min(1)
        match = [self._match_loss(feature, distribution, counted, *pairs) for feature in features]
        return StepLosses(
            diffusion=(errors * step.diffusion_weight.repeat_interleave(per_object)).mean(),
            match=torch.stack(match).mean(),
            coordinate=torch.stack(coordinate).mean(),
        )


def coordinate_loss(
    predicted: Float[Tensor, "B 3 h w"],
    mask: Bool[Tensor, "B H W"],
    position: Float[Tensor, "B H W 3"],
    weight: Float[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Weighted mean error of predicted surface points, over places that lie wholly on the object."""
    factor = mask.shape[-1] // predicted.shape[-1]
    inside = F.avg_pool2d(mask[:, None].float(), factor) == 1
    truth = F.avg_pool2d((position * mask[..., None]).permute(0, 3, 1, 2), factor)
    errors = F.smooth_l1_loss(predicted.float(), truth, beta=COORDINATE_BETA, reduction="none").sum(1, keepdim=True)
    return (errors * inside * weight[:, None, None, None]).sum() / inside.sum().clamp_min(1)


def match_targets(
    mask: Bool[Tensor, "B H W"],
    position: Float[Tensor, "B H W 3"],
    source_image: Int[Tensor, " P"],
    target_image: Int[Tensor, " P"],
    source_pixel: Int[Tensor, "P N"],
) -> tuple[Float[Tensor, "P N Q"], Bool[Tensor, "P N"]]:
    """The distribution over target pixels that each source point should have, and whether the target sees it."""
    index = source_pixel[:, :, None].expand(-1, -1, 3)
    points = position[source_image].flatten(1, 2).gather(1, index)[:, :, None]
    others = position[target_image].flatten(1, 2)[:, None]
    x, y, z = ((points[..., axis] - others[..., axis]).square() for axis in range(3))
    squared = torch.where(mask[target_image].flatten(1)[:, None], x + y + z, torch.inf)
    nearest = squared.amin(-1, keepdim=True)
    # Relative to the nearest: the same once normalized, and the sum cannot vanish.
    weight = torch.exp((nearest.clamp_max(1e3) - squared) / (2 * SIGMA**2))
    visible = nearest[..., 0] < VISIBLE_WITHIN**2
    on_object = mask[source_image].flatten(1).gather(1, source_pixel)
    return weight / weight.sum(-1, keepdim=True).clamp_min(1e-6), visible & on_object


def match_loss(
    feature: Float[Tensor, "B C h w"],
    distribution: Float[Tensor, "P N Q"],
    weight: Float[Tensor, "P N"],
    source_image: Int[Tensor, " P"],
    target_image: Int[Tensor, " P"],
    source_pixel: Int[Tensor, "P N"],
) -> Float[Tensor, ""]:
    """Weighted sum of the cross-entropies of the matches of one feature map, upsampled to the images' size."""
    size = math.isqrt(distribution.shape[-1])
    source = F.normalize(upsample(feature[source_image].float(), size).flatten(2), dim=1)
    other = F.normalize(upsample(feature[target_image].float(), size).flatten(2), dim=1)
    points = source.gather(2, source_pixel[:, None].expand(-1, source.shape[1], -1))
    logits = torch.einsum("pcn,pcq->pnq", points, other).float() / TEMPERATURE
    entropy = logits.logsumexp(-1) - (distribution * logits).sum(-1)
    return (entropy * weight).sum()


def upsample(feature: Float[Tensor, "P C h w"], size: int) -> Float[Tensor, "P C H W"]:
    """Bicubic interpolation, as two matrix products: a GPU's kernel for its gradient is slow."""
    identity = torch.eye(feature.shape[-1], device=feature.device)[None, :, :, None]
    rows = F.interpolate(identity, size=(size, 1), mode="bicubic", align_corners=False)[0, :, :, 0]
    return torch.einsum("pcyx,yY,xX->pcYX", feature, rows, rows)


def draw_pairs(
    generator: torch.Generator, mask: Bool[Tensor, "B H W"], *, num_views: int, pairs_per_object: int, num_points: int
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Int[Tensor, "P N"]]:
    """Source image, target image and source pixels on the object of random pairs: equal views of the two sets."""
    device = mask.device
    num_objects = len(mask) // (NUM_SETS * num_views)
    order = torch.rand(num_objects, num_views, generator=generator, device=device).argsort(1)
    view = order[:, :pairs_per_object]
    chosen = torch.randint(NUM_SETS, view.shape, generator=generator, device=device)
    first = torch.arange(num_objects, device=device)[:, None] * NUM_SETS * num_views + view
    source = (first + chosen * num_views).flatten()
    target = (first + (1 - chosen) * num_views).flatten()
    likelihood = mask[source].flatten(1).float() + 1e-6
    return source, target, torch.multinomial(likelihood, num_points, replacement=True, generator=generator)


def _block_width(networks: BlocksNetworks, block: int) -> int:
    """Channels after an output block."""
    return networks.shape.channels[-1 - block // (networks.shape.layers_per_block + 1)]
