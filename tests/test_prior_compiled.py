"""Prepared calls give what the plain ones give, once a shape, and fall back with a warning."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from corrdream.config import ConfigError, load_config
from corrdream.engine import pick_compilation
from corrdream.prior.compiled import PreparedFunction
from corrdream.prior.mvdream import MvdreamPrior
from tests.contracts.multiview_prior import MultiviewPriorContract, draw
from tests.mvdream_files import random_weights, tiny_shape

pytestmark = pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # of the compiler's own import
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def make_prior(compilation: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> MvdreamPrior:
    shape = tiny_shape()
    return MvdreamPrior(
        random_weights(shape),
        shape,
        fingerprint="random",
        device=torch.device(device),
        dtype=dtype,
        compilation=compilation,
    )


def calls(prior: MvdreamPrior, num_views: int = 4) -> list[Tensor]:
    """Noise, features, latents with and without gradient, and that gradient."""
    latents, text, poses = draw(num_views, 4, 8, 8), draw(num_views, 77, 64), torch.eye(4).expand(num_views, 4, 4)
    inputs = [part.to(prior.device) for part in (latents, torch.full((num_views,), 500))]
    condition = {"text": text.to(prior.device), "c2w": poses.to(prior.device)}
    prediction = prior.predict_noise(*inputs, **condition, feature_blocks=(1,))
    alone = prior.predict_noise(*inputs, **condition)
    features = prior.features(*inputs, **condition, blocks=(3, 2))
    images = torch.rand(num_views, 32, 32, 3, generator=torch.Generator().manual_seed(0)).to(prior.device)
    with torch.no_grad():
        still = prior.encode_images(images)
    variable = images.clone().requires_grad_()
    encoded = prior.encode_images(variable)
    (gradient,) = torch.autograd.grad((encoded * inputs[0]).sum(), variable)
    return [prediction.noise, *prediction.features, alone.noise, *features, still, encoded.detach(), gradient]


def assert_same(prior: MvdreamPrior, plain: MvdreamPrior, tolerance: float) -> None:
    for num_views in (4, 8, 4):
        for ours, theirs in zip(calls(prior, num_views), calls(plain, num_views), strict=True):
            off = (ours.float() - theirs.float()).norm() / theirs.float().norm()
            assert off <= tolerance


@compiler
def test_compiled_function_equals_the_plain_one_with_its_gradient() -> None:
    weight = draw(4, 3, 3, 3)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.nn.functional.conv2d(x, weight)
        return torch.nn.functional.silu(hidden), hidden.mean()

    prepared = PreparedFunction(function, "it", "full")
    for count, with_gradient in ((2, False), (2, True), (3, True), (2, True)):
        x = draw(count, 3, 6, 6).requires_grad_(with_gradient)
        ours, theirs = prepared(x), function(x)
        torch.testing.assert_close(ours, theirs)
        if with_gradient:
            (expected,) = torch.autograd.grad(theirs[0].square().sum() + theirs[1], x)
            (gradient,) = torch.autograd.grad(ours[0].square().sum() + ours[1], x)
            torch.testing.assert_close(gradient, expected)
    assert not prepared.failed


@compiler
@pytest.mark.parametrize("own", [False, True])
def test_compiled_code_is_kept_where_it_was_asked_for(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRDREAM_CACHE", str(tmp_path / "ours"))
    # Without a choice of the user's, torch has filled in its own default by the time that diffusers is imported.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch's" if own else default_cache_dir()))
    factor = 3 + int(own)  # a graph of its own
    prepared = PreparedFunction(lambda x: (factor * x + 1,), "it", "full")
    assert prepared(torch.ones(5))[0].tolist() == [factor + 1] * 5
    assert any((tmp_path / ("torch's" if own else "ours/compiled")).iterdir())
    assert (tmp_path / "ours" / "compiled").exists() is not own


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared in float32 is computed in it, not in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.gpu
@pytest.mark.timeout(600)  # compilation: some minutes on a few cores
@pytest.mark.parametrize("compilation", ["graph", "full"])
@pytest.mark.usefixtures("float32")
def test_prepared_prior_equals_the_plain_one_on_the_gpu(compilation: str) -> None:
    prior = make_prior(compilation, "cuda")
    assert_same(prior, make_prior("eager", "cuda"), 1e-4)
    half = make_prior(compilation, "cuda", torch.float16)
    assert_same(half, make_prior("eager", "cuda", torch.float16), 2e-2)
    prepared = [half._autoencoder.moments, *half._unet._predictions.values(), *half._unet._features.values()]
    assert not any(one.failed for one in prepared)


@pytest.mark.gpu
def test_graphs_do_not_depend_on_each_others_lives() -> None:
    ones = torch.ones(3, device="cuda")
    for _ in range(2):  # the first one is gone when the second is captured
        assert PreparedFunction(lambda x: (2 * x,), "it", "graph")(ones)[0].tolist() == [2] * 3
    kept = PreparedFunction(lambda x: (3 * x,), "it", "graph")
    kept(ones)
    waits = PreparedFunction(lambda x: (x * float(x.sum()),), "it", "graph")  # what waits cannot be captured
    assert waits(ones)[0].tolist() == [3] * 3
    assert waits.failed == {"captured"}
    after = PreparedFunction(lambda x: (5 * x,), "it", "graph")
    assert after(ones)[0].tolist() == [5] * 3
    assert not after.failed
    assert kept(2 * ones)[0].tolist() == [6] * 3


@pytest.mark.gpu
def test_captured_gradient_is_that_of_its_own_call_or_an_error() -> None:
    prepared = PreparedFunction(lambda x: (x.square(), 3 * x), "it", "graph")
    for _ in range(2):
        x = torch.arange(3.0, device="cuda").requires_grad_()
        square, triple = prepared(x)
        PreparedFunction(lambda x: (x.exp(),), "other", "graph")(x.detach())  # another graph in between
        (gradient,) = torch.autograd.grad((square + triple).sum(), x)
        assert gradient.tolist() == [3, 5, 7]
    first, _ = prepared(x)
    prepared(2 * x)
    with pytest.raises(RuntimeError, match="cannot be differentiated after the next one"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.gpu
@pytest.mark.usefixtures("float32")
class TestCapturedPrior(MultiviewPriorContract):
    @pytest.fixture(scope="class")
    def prior(self) -> MvdreamPrior:
        return make_prior("graph", "cuda")

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return "an astronaut riding a horse", "a corgi, 3D asset"


def test_plain_function_is_called_as_it_is() -> None:
    prepared = PreparedFunction(lambda x: (x + 1,), "it", "eager")
    assert prepared(torch.zeros(2))[0].tolist() == [1, 1]
    assert prepared.seconds == {}


def test_graph_mode_prepares_each_shape_once() -> None:
    seen = []

    def double(x: Tensor) -> tuple[Tensor]:
        seen.append(tuple(x.shape))
        return (2 * x,)

    prepared = PreparedFunction(double, "it", "graph")
    for count in (2, 2, 3, 2):
        assert prepared(torch.ones(count))[0].tolist() == [2] * count
    assert list(prepared.seconds) == ["2", "3"]


def test_failed_preparation_is_said_aloud_and_the_function_runs(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    @torch.compiler.disable
    def fails_first(x: Tensor) -> tuple[Tensor]:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no compiler\nand a long trace")
        return (x,)

    prepared = PreparedFunction(fails_first, "the network", "full")
    with caplog.at_level(logging.WARNING):
        assert prepared(torch.ones(1))[0].item() == 1
    (record,) = caplog.records
    assert "the network cannot be compiled, so it is slower" in record.message
    assert record.message.endswith("no compiler")
    assert prepared.failed == {"compiled"}
    assert prepared(torch.ones(2))[0].tolist() == [1, 1], "another shape is not tried again"
    assert len(calls) == 3


def test_a_fault_of_the_call_itself_is_not_hidden() -> None:
    def wrong(x: Tensor) -> tuple[Tensor]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        PreparedFunction(wrong, "it", "graph")(torch.ones(1))


def test_automatic_choice_follows_device_and_kind() -> None:
    def config(**overrides: str):
        return load_config((), {"prompt": "a duck"} | {f"prior.{key}": value for key, value in overrides.items()})

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_compilation(config(), cpu) == "eager"
    assert pick_compilation(config(), cuda) == "graph"
    assert pick_compilation(config(kind="mvdream"), cuda) == "full"
    assert pick_compilation(config(kind="mvdream", compile="eager"), cuda) == "eager"
    with pytest.raises(ConfigError, match=r"prior\.compile=full needs prior\.kind=mvdream or blocks"):
        config(kind="mvdream_package", compile="full")
