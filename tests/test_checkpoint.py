import json
from pathlib import Path

import pytest
import torch

from corrdream.checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    checkpoint_path,
    checkpoint_paths,
    fingerprint,
    load_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    restore_optimizer,
    save_checkpoint,
    sources_fingerprint,
    valid_checkpoints,
)


def write(directory: Path, step: int) -> Path:
    path = checkpoint_path(directory, step)
    tensors = {"scene/weight": torch.full((3, 2), float(step)), "generator": torch.Generator().get_state()}
    save_checkpoint(path, step=step, tensors=tensors, info={"prior": "abc"})
    return path


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write(tmp_path, 7))
    assert (checkpoint.step, checkpoint.info) == (7, {"prior": "abc"})
    assert torch.equal(checkpoint.tensors["scene/weight"], torch.full((3, 2), 7.0))
    assert checkpoint.tensors["generator"].dtype == torch.uint8


def test_saving_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_valid_checkpoint_skips_a_torn_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 50)
    torn = write(tmp_path, 100)
    torn.write_bytes(torn.read_bytes()[:-9])
    assert [checkpoint.step for checkpoint in valid_checkpoints(tmp_path)] == [50]
    assert str(torn) in caplog.text


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (10, 20, 30)]
    prune_checkpoints(tmp_path, keep=2)
    assert checkpoint_paths(tmp_path) == [paths[2], paths[1]]


def test_optimizer_goes_on_as_if_never_interrupted() -> None:
    def steps(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()

    whole = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    steps(whole, whole_optimizer := torch.optim.AdamW([whole], lr=0.1), 3)
    resumed = torch.nn.Parameter(whole.detach().clone())
    resumed_optimizer = torch.optim.AdamW([resumed], lr=0.1)
    restore_optimizer(resumed_optimizer, optimizer_tensors(whole_optimizer))
    steps(whole, whole_optimizer, 4)
    steps(resumed, resumed_optimizer, 4)
    assert torch.equal(whole, resumed)


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": [2.5]}) == fingerprint({"b": [2.5], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(sources_fingerprint()) == 16


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_a_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'executed')!r}, 'w')",))

    path = tmp_path / "step-000001.safetensors"
    torch.save(Bomb(), path)
    with pytest.raises(UnsafeCheckpointError, match="is refused: it is a pickle"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_a_header_as_long_as_a_pickles_first_bytes_is_no_pickle(tmp_path: Path) -> None:
    for padding in range(600, 700):
        path = tmp_path / f"step-{padding:06d}.safetensors"
        save_checkpoint(path, step=1, tensors={"x": torch.zeros(1)}, info={"padding": "x" * (padding - 200)})
        assert load_checkpoint(path).step == 1
        if path.read_bytes()[:2] == b"\x80\x02":
            return
    raise AssertionError("no header of 640 bytes was tried")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "step-000001.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"other": json.dumps({})})
    with pytest.raises(CheckpointError, match="not written by corrdream"):
        load_checkpoint(path)
