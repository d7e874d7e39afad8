"""nerfacc's sampling against its torch twin and the recorded samples, and what is said where it is missing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from corrdream.backends import MissingBackendError
from corrdream.interfaces import Marching
from corrdream.rendering.marching import TorchMarching
from corrdream.rendering.marching_nerfacc import NerfaccMarching, load_nerfacc
from corrdream.rendering.occupancy import OccupancyGrid
from tests.contracts.marching import MarchingContract
from tests.golden import nerfacc as golden
from tests.golden.helpers import match_samples, tensor
from tests.test_golden import load
from tests.test_marching import TestTorchMarching


@pytest.mark.gpu
class TestTorchMarchingOnGpu(TestTorchMarching):
    device = "cuda"


@pytest.mark.gpu("nerfacc")
class TestNerfaccMarching(MarchingContract):
    device = "cuda"

    def make(
        self, occupancy: OccupancyGrid, *, prune: bool, alpha_threshold: float, early_stop_transmittance: float
    ) -> Marching:
        return NerfaccMarching(
            occupancy=occupancy,
            prune=prune,
            alpha_threshold=alpha_threshold,
            early_stop_transmittance=early_stop_transmittance,
        )

    @pytest.mark.parametrize("prune", [False, True])
    def test_samples_are_those_of_the_torch_twin(self, prune: bool) -> None:
        binary = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3
        occupancy, rays = self.occupancy(binary), self.random_rays(2000)
        jitter = torch.rand(2000, generator=torch.Generator().manual_seed(2)).to(self.device)

        def blob(points: Tensor) -> Tensor:
            return 20 * torch.exp(-2 * points.square().sum(dim=1))

        twin, ours = (
            kind(occupancy=occupancy, prune=prune).sample(rays, density=blob, jitter=jitter)
            for kind in (TorchMarching, NerfaccMarching)
        )
        expected = {
            "ray_indices": twin.ray_indices.cpu().numpy(),
            "t_starts": twin.t_starts.cpu().numpy(),
            "t_ends": twin.t_ends.cpu().numpy(),
        }
        assert len(twin.t_starts) > 10_000
        assert match_samples(ours, expected, golden.STEP_TOLERANCE * occupancy.step_size) <= 1e-3 * len(twin.t_starts)


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    path = request.config.getoption("--golden") / golden.FILE
    if not path.is_file():
        pytest.skip(f"{golden.FILE} is not in {path.parent}")
    return load(path)


@pytest.mark.gpu("nerfacc")
def test_recorded_samples_come_again(recorded: dict) -> None:
    with torch.device("cuda"):
        golden.compare_sampling(recorded, NerfaccMarching)


@pytest.mark.gpu("nerfacc")
def test_recorded_samples_are_pruned_again(recorded: dict) -> None:
    with torch.device("cuda"):
        occupancy, rays, density = golden.occupancy_of(recorded), golden.rays_of(recorded), tensor(recorded["sigmas"])
    marching = NerfaccMarching(
        occupancy=occupancy, alpha_threshold=golden.ALPHA_THRESHOLD, early_stop_transmittance=golden.EARLY_STOP
    )
    kept = marching.sample(rays, density=lambda points: density, jitter=None)
    expected = {name: recorded[f"pruned_{name}"] for name in ("ray_indices", "t_starts", "t_ends")}
    differing = match_samples(kept, expected, golden.STEP_TOLERANCE * marching.occupancy.step_size)
    assert differing <= golden.SHARE_OF_SAMPLES * len(expected["t_starts"])


@pytest.mark.skipif(importlib.util.find_spec("nerfacc") is not None, reason="nerfacc is installed here")
def test_nerfacc_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingBackendError, match=r"rendering\.backend=nerfacc needs the package nerfacc \(pip inst"):
        NerfaccMarching(occupancy=OccupancyGrid(step_size=0.1))


def test_nerfacc_without_a_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is imported without an error then, and has no kernels."""
    backend = ModuleType("nerfacc.cuda._backend")
    backend._C = None
    for name, module in (("nerfacc", ModuleType("nerfacc")), ("nerfacc.cuda", ModuleType("cuda"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", backend)
    with pytest.raises(MissingBackendError, match=r"needs the kernels of nerfacc, .* there is no nvcc on the PATH"):
        load_nerfacc("rendering.backend=nerfacc")
