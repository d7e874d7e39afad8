"""Copies between host and device keep values and shapes, and do not make the host wait."""

import pytest
import torch

from corrdream.transfer import HostCopy, all_to_device, to_device


def test_several_tensors_arrive_in_their_shapes() -> None:
    parts = [torch.randn(4, 4), torch.randn(()), torch.randn(0, 3), torch.randn(2, 3, 1)]
    assert all(part is original for part, original in zip(all_to_device(parts, "cpu"), parts, strict=True))
    moved = all_to_device(parts, "meta")
    assert all(part.is_meta for part in moved)
    assert [part.shape for part in moved] == [part.shape for part in parts]


@pytest.mark.gpu
def test_several_tensors_keep_their_values_on_the_way_to_the_gpu() -> None:
    parts = [torch.randn(4, 4), torch.randn(()), torch.randn(0, 3), torch.randn(2, 3, 1)]
    for part, original in zip(all_to_device(parts, "cuda"), parts, strict=True):
        assert torch.equal(part.cpu(), original)


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


def test_what_comes_to_the_host_is_there_at_once_from_the_cpu() -> None:
    values = torch.arange(4.0)
    copy = HostCopy(values)
    assert copy.is_there
    assert torch.equal(copy.read(), values)


@pytest.mark.gpu
def test_reading_waits_for_the_values_and_for_nothing_later() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        copy = HostCopy(torch.full((3,), 2.0, device="cuda") + 1)
        assert not copy.is_there
        torch.cuda._sleep(500_000_000)
        assert copy.read().tolist() == [3.0] * 3
        assert not stream.query(), "what was started later still runs"
    torch.cuda.synchronize()
