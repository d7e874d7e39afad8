"""Options and fixtures that every test shares."""

from pathlib import Path

import pytest

REFERENCES = Path(__file__).parent / "references"
# Minutes each: begun first, so that no process is left with one of them at the end.
LONG_FILES = ("test_sweep", "test_readme", "test_population", "test_extension", "test_asha", "test_trainable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=REFERENCES, help="directory of reference data to compare with")
    parser.addoption("--golden-device", default="cpu", help="where the comparisons run: cpu or cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    rank = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def tiny_prior_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `write_tiny_prior` writes."""
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    write_tiny_prior(path)
    return path


def write_tiny_prior(path: Path) -> None:
    """Weights of the built-in prior's own class at a tiny size (16 px images), random from a fixed seed."""
    import torch

    from corrdream.blocks.grammar import words
    from corrdream.prior.blocks import BlocksNetworks, BlocksShape, save_blocks_weights

    shape = BlocksShape(
        latent_size=4,
        channels=(32, 32),
        heads=(1, 1),
        attention=(False, True),
        text_width=32,
        text_layers=1,
        norm_groups=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = BlocksNetworks(shape, words())
    save_blocks_weights(path, networks, networks.state_dict())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`gpu` skips a test where there is no CUDA device; `gpu("nerfacc")` also where that package does not work."""
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    import torch

    from corrdream.acceleration import ENCODING, MARCHING
    from corrdream.backends import MissingBackendError

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    for package in marker.args:
        try:
            (ENCODING | MARCHING)[package]("this test")
        except MissingBackendError as error:
            pytest.skip(str(error))
