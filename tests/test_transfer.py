"""Copies to a device keep values and shapes, and do not make the host wait."""

import pytest
import torch

from corrdream.transfer import all_to_device, to_device


def test_several_tensors_arrive_as_they_were() -> None:
    parts = [torch.randn(4, 4), torch.randn(()), torch.randn(0, 3), torch.randn(2, 3, 1)]
    moved = all_to_device(parts, "cpu")
    assert [part.shape for part in moved] == [part.shape for part in parts]
    assert all(torch.equal(part, original) for part, original in zip(moved, parts, strict=True))


def test_tensor_that_is_there_is_not_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, "cpu") is tensor


@pytest.mark.gpu
def test_host_does_not_wait_for_the_gpu() -> None:
    values = torch.arange(1000.0)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # cycles: tens of milliseconds
        moved = to_device(values, "cuda")
        assert not torch.cuda.current_stream().query(), "the copy is queued, and the host is here already"
    torch.cuda.synchronize()
    assert torch.equal(moved.cpu(), values)
