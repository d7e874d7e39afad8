"""Which implementation is chosen, and what is said about it."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from corrdream import acceleration
from corrdream.acceleration import Backends, choose_backends
from corrdream.backends import MissingBackendError
from corrdream.config import Config, ConfigError, load_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HASH_GRID = ("field.encoding=hash_grid", "field.normal=analytic")


def config(*overrides: str) -> Config:
    return load_config(overrides=["prompt=a red cone", *overrides])


def present(key: str) -> None:
    del key


def absent(key: str) -> None:
    raise MissingBackendError(f"{key} needs the package fast (pip install fast); import failed: undefined symbol")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which packages the machine has."""

    def has(tinycudann: Any, nerfacc: Any) -> None:
        monkeypatch.setattr(acceleration, "ENCODING", {"tinycudann": tinycudann})
        monkeypatch.setattr(acceleration, "MARCHING", {"nerfacc": nerfacc})

    return has


def test_auto_is_torch_on_a_cpu(machine: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    machine(present, present)
    with caplog.at_level(logging.INFO):
        assert choose_backends(config(*HASH_GRID), CPU) == Backends(encoding="torch", marching="torch")
    assert [record.message for record in caplog.records] == [
        "Encoding by torch (field.backend=tinycudann needs an NVIDIA GPU, the device is cpu), "
        "ray marching by torch (rendering.backend=nerfacc needs an NVIDIA GPU, the device is cpu)."
    ]


def test_auto_takes_what_a_gpu_has(machine: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    machine(present, absent)
    with caplog.at_level(logging.INFO):
        assert choose_backends(config(*HASH_GRID), GPU) == Backends(encoding="tinycudann", marching="torch")
    assert [record.message for record in caplog.records] == [
        "Encoding by tinycudann (field.backend=auto), ray marching by torch (rendering.backend=nerfacc needs the "
        "package fast (pip install fast); import failed: undefined symbol)."
    ]


def test_dense_grid_is_torch_s(machine: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    machine(present, present)
    with caplog.at_level(logging.INFO):
        assert choose_backends(config(), GPU) == Backends(encoding="torch", marching="nerfacc")
    assert "Encoding by torch (a dense grid has no other)" in caplog.text


def test_what_is_named_is_taken(machine: Callable[..., None]) -> None:
    machine(present, present)
    named = config(*HASH_GRID, "field.backend=torch", "rendering.backend=torch")
    assert choose_backends(named, GPU) == Backends(encoding="torch", marching="torch")
    named = config(*HASH_GRID, "field.backend=tinycudann", "rendering.backend=nerfacc")
    assert choose_backends(named, GPU) == Backends(encoding="tinycudann", marching="nerfacc")


@pytest.mark.parametrize("choice", ["field.backend=tinycudann", "rendering.backend=nerfacc"])
def test_what_is_named_and_missing_is_an_error(machine: Callable[..., None], choice: str) -> None:
    machine(absent, absent)
    key = choice.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        choose_backends(config(*HASH_GRID, choice), GPU)
    assert str(caught.value) == (
        f"{choice} needs the package fast (pip install fast); import failed: undefined symbol. "
        f"{key}=auto takes what there is."
    )
    with pytest.raises(ConfigError, match=f"{choice} needs an NVIDIA GPU, the device is cpu. {key}=auto takes"):
        choose_backends(config(*HASH_GRID, choice), CPU)


def test_tinycudann_of_a_dense_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"field\.backend=tinycudann needs field\.encoding=hash_grid, got dense_grid"):
        config("field.backend=tinycudann")
