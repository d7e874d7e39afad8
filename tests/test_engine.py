"""Every choice builds and runs; what cannot is refused by name; a run's identity is what its result depends on."""

import ast
import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jaxtyping
import pytest
import torch

import corrdream
from corrdream.cameras import normalize_camera
from corrdream.config import Config, ConfigError, LossWeightsConfig, load_config
from corrdream.engine import build, identity
from corrdream.prior.blocks import BlocksPrior
from tests.sweep_folders import tiny_overrides

ROOT = Path(__file__).parent.parent
SMALL_HASH_GRID = {
    "field.encoding": "hash_grid",
    "field.hash_grid.num_levels": 2,
    "field.hash_grid.log2_table_size": 8,
    "field.normal": "analytic",
}
COMPANIONS = {  # what a choice needs beside it
    ("field.encoding", "hash_grid"): SMALL_HASH_GRID,
    ("field.normal", "predicted"): SMALL_HASH_GRID,
    ("field.backend", "tinycudann"): SMALL_HASH_GRID | {"background.kind": "network"},
    ("field.backend", "triton"): SMALL_HASH_GRID,
    ("background.direction_encoding", "frequency"): {"background.kind": "network"},
    ("background.direction_encoding", "spherical_harmonics"): {"background.kind": "network"},
}
TESTED_ELSEWHERE = ("prior.", "correspondence.")  # test_prior_*, test_trainer


def choices(kind: type = Config, prefix: str = "") -> list[tuple[str, str]]:
    """(key, choice) of every Literal in the configuration."""
    found = []
    for name, hint in get_type_hints(kind).items():
        if get_origin(hint) is Literal:
            found += [(prefix + name, choice) for choice in get_args(hint)]
        elif dataclasses.is_dataclass(hint) and hint.__module__ == Config.__module__:
            found += choices(hint, f"{prefix}{name}.")
    return found


NEEDS = {  # a CUDA device, and the package
    ("device", "cuda"): (),
    ("field.backend", "tinycudann"): ("tinycudann",),
    ("field.backend", "triton"): ("triton",),
    ("rendering.backend", "nerfacc"): ("nerfacc",),
}
BUILT_HERE = [
    pytest.param(*choice, marks=pytest.mark.gpu(*NEEDS[choice]) if choice in NEEDS else ())
    for choice in choices()
    if not choice[0].startswith(TESTED_ELSEWHERE)
]


@pytest.fixture(scope="module")
def prior(tiny_prior_file: Path) -> BlocksPrior:
    return BlocksPrior.load(path=tiny_prior_file)


@pytest.fixture
def configure(tiny_prior_file: Path):
    def configure(**overrides: Any) -> Config:
        return load_config((), tiny_overrides(tiny_prior_file, max_steps=4, **overrides))

    return configure


@pytest.mark.parametrize(("key", "choice"), BUILT_HERE)
def test_every_choice_builds_and_takes_a_step(configure, tiny_prior_file: Path, key: str, choice: str) -> None:
    shaded = {"shading.ambient_only": {"steps": [0, 0]}, "loss_weights.orientation": 0.1 if choice != "none" else 0.0}
    device = "cuda" if (key, choice) in NEEDS else "cpu"
    changes = {"device": device} | shaded | COMPANIONS.get((key, choice), {}) | {key: choice}
    if (key, choice) == ("field.normal", "none"):
        changes["shading.ambient_only"] = {"steps": [0, 4]}
    prior = BlocksPrior.load(torch.device(device), path=tiny_prior_file)
    metrics = build(configure(**changes), prior=prior).train_step()
    assert metrics["samples"] > 0


def test_a_batch_that_is_no_multiple_of_the_views_is_refused(configure, prior: BlocksPrior) -> None:
    with pytest.raises(ConfigError, match=r"cameras\.batch_size must be a multiple of the prior's 4 views, got 6"):
        build(configure(**{"cameras.batch_size": 6}), prior=prior)


def test_an_unknown_word_is_refused_with_those_near_it(configure, prior: BlocksPrior) -> None:
    with pytest.raises(
        ConfigError, match=r"prompt='a snowmann'.*does not know the word \"snowmann\".*near it: snowman\.$"
    ):
        build(configure(prompt="a snowmann"), prior=prior)
    with pytest.raises(
        ConfigError, match=r"\"xylophone\" in \"a xylophone\"\. colors: red, .*; nouns: sphere, .*umbrella\.$"
    ):
        build(configure(prompt="a xylophone"), prior=prior)


def test_a_device_that_is_not_there_is_refused(configure, prior: BlocksPrior) -> None:
    if torch.cuda.is_available():
        assert build(configure(device="cuda")).device.type == "cuda"
    else:
        with pytest.raises(ConfigError, match="device=cuda, but torch sees no CUDA device"):
            build(configure(device="cuda"), prior=prior)


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_prior_file_that_is_something_else_is_refused(configure, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"prior\.checkpoint=.*other\.safetensors is not a weights file"):
        build(configure(**{"prior.checkpoint": str(path)}))


def test_identity_is_that_of_the_result(configure) -> None:
    reference = identity(configure())
    assert identity(configure()) == reference
    assert identity(configure(**{"output.preview_every": 7, "output.checkpoint_keep": 9})) == reference
    assert identity(configure(**{"guidance.guidance_scale": 2})) == identity(
        configure(**{"guidance.guidance_scale": 2.0})
    )
    assert identity(configure(seed=1)) != reference
    assert identity(configure(**{"guidance.guidance_rescale": 0.1})) != reference


def test_identity_follows_the_content_of_the_files_that_it_names(configure, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"one")
    first = identity(configure(weights=str(path)))
    path.write_bytes(b"two")
    assert identity(configure(weights=str(path))) != first


def test_the_whole_configuration_is_read() -> None:
    attributes, strings = set(), set()
    for path in [*(ROOT / "corrdream").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")]:
        if path.name == "config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                attributes.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.add(node.value)
    unread = {f"{kind.__name__}.{name}" for kind, name in _all_fields(Config) if name not in attributes}
    # The weights are read all at once, and each term looks for its own by name.
    by_name = {f"{LossWeightsConfig.__name__}.{field.name}" for field in dataclasses.fields(LossWeightsConfig)}
    while_loading = {"Config.prompt_library"}
    assert unread - by_name - while_loading == set()
    assert {field.name for field in dataclasses.fields(LossWeightsConfig)} <= strings | attributes


def _all_fields(kind: type) -> list[tuple[type, str]]:
    fields = []
    for name, hint in get_type_hints(kind).items():
        fields.append((kind, name))
        if dataclasses.is_dataclass(hint) and hint.__module__ == Config.__module__:
            fields += _all_fields(hint)
    return fields


def test_every_public_name_can_be_imported() -> None:
    for name in corrdream.__all__:
        assert getattr(corrdream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        corrdream.nothing  # noqa: B018


def test_shapes_are_checked_while_testing() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        normalize_camera(torch.zeros(2, 3))
