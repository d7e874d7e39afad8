"""Which cells of the box may hold something: a running maximum of the density, on a regular grid.

Symbols: R cells along a side, V = R^3 cells in C order (x slowest), occupancy = density times the sampling step.
The rule is instant-ngp's (arXiv:2201.05989, appendix C) as nerfacc runs it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corrdream.interfaces import DensityFunction
from corrdream.transfer import to_device


class OccupancyGrid(nn.Module):
    """Occupancy of each cell and whether it exceeds the threshold; both are part of the state dict.

    Until the first update every cell counts as occupied.
    """

    occs: Tensor
    binary: Tensor

    def __init__(
        self,
        *,
        radius: float = 1.0,
        resolution: int = 32,
        step_size: float,
        update_every: int = 16,
        warmup_steps: int = 256,
        decay: float = 0.95,
        threshold: float = 0.01,
    ) -> None:
        super().__init__()
        self.radius = radius
        self.resolution = resolution
        self.step_size = step_size
        self.update_every = update_every
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.threshold = threshold
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binary", torch.ones(resolution, resolution, resolution, dtype=torch.bool))

    def is_due(self, step: int) -> bool:
        """Whether `update` looks at the density at this step."""
        return step % self.update_every == 0

    @torch.no_grad()
    def update(self, density: DensityFunction, step: int, generator: torch.Generator) -> None:
        """At multiples of `update_every`: looks at the density of all cells, after the warm-up of some of them."""
        if not self.is_due(step):
            return
        cells = self._all_cells() if step < self.warmup_steps else self._some_cells(generator)
        jitter = torch.rand(len(cells), 3, generator=generator, device=generator.device)
        self.refresh(density, cells, to_device(jitter, self.occs.device).to(self.occs))

    def refresh(self, density: DensityFunction, cells: Int[Tensor, " P"], jitter: Float[Tensor, "P 3"]) -> None:
        """Decays the cells named and raises them to what the density has at a jittered point inside each."""
        side = self.resolution
        corner = torch.stack((cells // side**2, cells // side % side, cells % side), dim=-1)
        points = ((corner + jitter) / side * 2 - 1) * self.radius
        seen = density(points).detach() * self.step_size
        decayed = self.occs.clone()
        decayed[cells] *= self.decay  # a cell named twice decays once
        self.occs.copy_(decayed.scatter_reduce(0, cells, seen.to(decayed), "amax"))
        threshold = self.occs.mean().clamp(max=self.threshold)
        self.binary.copy_((self.occs > threshold).view_as(self.binary))

    def _all_cells(self) -> Int[Tensor, " P"]:
        return torch.arange(self.occs.numel(), device=self.occs.device)

    def _some_cells(self, generator: torch.Generator) -> Int[Tensor, " P"]:
        """A quarter as many cells at random, and the occupied ones, or a random quarter as many if they are more."""
        count = self.occs.numel() // 4
        random = self._draw(self.occs.numel(), count, generator)
        occupied = self.binary.flatten().nonzero().squeeze(1)  # sync
        if count < len(occupied):
            occupied = occupied[self._draw(len(occupied), count, generator)]
        return torch.cat((random, occupied))

    def _draw(self, high: int, count: int, generator: torch.Generator) -> Int[Tensor, " P"]:
        drawn = torch.randint(high, (count,), generator=generator, device=generator.device)
        return to_device(drawn, self.occs.device)

    def bounds(self) -> Float[Tensor, "2 3"]:
        """Corners of the occupied cells' bounding box, in world units; low > high if there are none."""
        corners = []
        for axis in range(3):
            others = [other for other in range(3) if other != axis]
            used = self.binary.any(dim=others[1]).any(dim=others[0])
            index = torch.arange(self.resolution, device=used.device)
            low = torch.where(used, index, self.resolution).min()
            high = torch.where(used, index + 1, 0).max()
            corners.append(torch.stack((low, high)))
        return (torch.stack(corners, dim=1) * (2 / self.resolution) - 1) * self.radius
