"""The published prior: the contract from a tiny checkpoint, the published layout, and every refusal."""

import importlib.util
import json
import math
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from corrdream import Config, build, build_prior, check_prompt, identity, load_config
from corrdream.backends import MissingBackendError
from corrdream.config import ConfigError
from corrdream.prior.attention import build_attention
from corrdream.prior.mvdream import MvdreamPrior
from corrdream.prior.mvdream_checkpoint import checkpoint_fingerprint, locate_checkpoint, read_checkpoint
from corrdream.prior.mvdream_layout import MODELS, MvdreamShape, check_layout, checkpoint_layout, is_ignored
from corrdream.prior.network import MultiviewUNet
from corrdream.prior.text_cache import cached_embeddings, default_cache
from corrdream.prior.text_clip import Family
from tests.contracts.multiview_prior import MultiviewPriorContract, draw
from tests.mvdream_files import random_weights, tiny_shape, write_checkpoint

MODEL = {"open_clip": "sd-v2.1-base-4view", "clip": "sd-v1.5-4view"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    folder = tmp_path_factory.mktemp("mvdream")
    families: tuple[Family, ...] = ("open_clip", "clip")
    return {family: write_checkpoint(folder / f"{family}.pt", tiny_shape(family)) for family in families}


def load(path: Path, family: Family, cache: Path) -> MvdreamPrior:
    return MvdreamPrior.load(MODEL[family], checkpoint=str(path), shape=tiny_shape(family), cache=cache)


@pytest.fixture
def prior(checkpoints: dict[Family, Path], tmp_path: Path) -> MvdreamPrior:
    return load(checkpoints["open_clip"], "open_clip", tmp_path)


@pytest.mark.parametrize("family", ["open_clip", "clip"])
class TestMvdreamPrior(MultiviewPriorContract):
    @pytest.fixture
    def prior(self, family: Family, checkpoints: dict[Family, Path], tmp_path: Path) -> MvdreamPrior:
        return load(checkpoints[family], family, tmp_path)

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return "an astronaut riding a horse", "a corgi, 3D asset"


@pytest.mark.parametrize("model", list(MODELS))
def test_layout_is_that_of_the_published_model(model: str) -> None:
    recorded = json.loads((Path(__file__).parent / "references" / "checkpoint_keys.json").read_text(encoding="utf-8"))
    expected = {name: tuple(shape) for name, (shape, _) in recorded[model]["state_dict"].items()}
    assert checkpoint_layout(MODELS[model]) == expected


@pytest.mark.parametrize("model", list(MODELS))
def test_published_network_takes_every_weight_of_the_layout(model: str) -> None:
    from corrdream.prior.network import published_unet_weights

    prefix = "model.diffusion_model."
    with torch.device("meta"):
        unet = MultiviewUNet(MODELS[model].network)
        weights = {
            name.removeprefix(prefix): torch.empty(size)
            for name, size in checkpoint_layout(MODELS[model]).items()
            if name.startswith(prefix)
        }
    unet.load_state_dict(published_unet_weights(unet, weights), assign=True)
    assert unet.num_output_blocks == 12
    assert MODELS[model].image_size == 256


def test_only_what_is_named_as_ignored_changes_nothing(tmp_path: Path) -> None:
    shape = tiny_shape()
    ignored = [name for name in checkpoint_layout(shape) if is_ignored(name, shape)]
    assert len([name for name in ignored if "." not in name]) == 12  # the noise schedule
    last_layer = [name for name in ignored if "resblocks.2." in name]
    assert len(last_layer) == 12
    assert len(ignored) == 12 + 12 + 2  # and what pools and compares with images
    weights = random_weights(shape)
    changed = {name: weight + is_ignored(name, shape) for name, weight in weights.items()}
    first, second = (
        MvdreamPrior(values, shape, fingerprint=str(number), cache=tmp_path)
        for number, values in enumerate((weights, changed))
    )
    assert torch.equal(first.encode_text(["a cat"]), second.encode_text(["a cat"]))


def test_feature_blocks_8_and_5_have_the_published_shapes() -> None:
    # Shapes at full size without its memory: everything on the meta device.
    shape = MODELS["sd-v2.1-base-4view"].network
    with torch.device("meta"):
        unet = MultiviewUNet(shape)
        features = unet.features(
            torch.empty(4, 4, 32, 32),
            torch.empty(4, dtype=torch.long),
            torch.empty(4, 77, 1024),
            torch.empty(4, 16),
            (8, 5),
        )
    assert [tuple(feature.shape) for feature in features] == [(4, 640, 32, 32), (4, 1280, 16, 16)]


def test_safetensors_copy_gives_the_same_prior(
    checkpoints: dict[Family, Path], prior: MvdreamPrior, tmp_path: Path
) -> None:
    path = tmp_path / "copy.safetensors"
    save_file(torch.load(checkpoints["open_clip"], weights_only=True), path)
    other = load(path, "open_clip", tmp_path)
    latents, text = draw(4, 4, 8, 8), draw(4, 77, 64)
    c2w = torch.eye(4).expand(4, 4, 4)
    timesteps = torch.full((4,), 500)
    expected = prior.predict_noise(latents, timesteps, text=text, c2w=c2w).noise
    assert torch.equal(other.predict_noise(latents, timesteps, text=text, c2w=c2w).noise, expected)


def test_drawn_latents_scatter_about_their_mean(prior: MvdreamPrior) -> None:
    images = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    mean = prior.encode_images(images)
    noise = draw(*mean.shape)
    above, below = prior.encode_images(images, noise), prior.encode_images(images, -noise)
    torch.testing.assert_close((above + below) / 2, mean)
    assert not torch.allclose(above, mean)


def test_lower_precision_is_used_inside_and_float32_at_the_border(
    checkpoints: dict[Family, Path], prior: MvdreamPrior, tmp_path: Path
) -> None:
    half = MvdreamPrior.load(
        MODEL["open_clip"],
        checkpoint=str(checkpoints["open_clip"]),
        dtype=torch.bfloat16,
        shape=tiny_shape(),
        cache=tmp_path,
    )
    latents, c2w, timesteps = draw(4, 4, 8, 8), torch.eye(4).expand(4, 4, 4), torch.full((4,), 500)
    text = half.encode_text(["a cat"]).repeat(4, 1, 1)
    assert text.dtype == torch.bfloat16
    prediction = half.predict_noise(latents, timesteps, text=text, c2w=c2w, feature_blocks=(1,))
    assert prediction.noise.dtype == torch.float32
    assert prediction.features[0].dtype == torch.bfloat16
    expected = prior.predict_noise(latents, timesteps, text=text.float(), c2w=c2w).noise
    assert (prediction.noise - expected).norm() < 0.05 * expected.norm()
    with torch.autocast("cpu", torch.float16):  # the caller's, which is for other networks
        same = half.predict_noise(latents, timesteps, text=text, c2w=c2w)
    assert torch.equal(same.noise, prediction.noise)
    assert half.encode_images(torch.rand(1, 64, 64, 3)).dtype == torch.float32
    assert half.decode_latents(latents).dtype == torch.float32


def test_nothing_in_it_can_be_trained(prior: MvdreamPrior) -> None:
    modules = (prior._unet.network, prior._autoencoder)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for module in modules)


# The file


def test_missing_unknown_and_misshapen_weights_are_counted_and_named() -> None:
    shape = tiny_shape()
    sizes: dict[str, Sequence[int]] = dict(checkpoint_layout(shape))
    del sizes["first_stage_model.quant_conv.bias"]
    sizes["model_ema.decay"] = ()
    sizes["betas"] = (10,)
    with pytest.raises(ValueError, match=r"file\.pt is not a checkpoint of prior\.model") as error:
        check_layout(sizes, shape, "file.pt")
    assert "1 missing: first_stage_model.quant_conv.bias" in str(error.value)
    assert "1 unknown: model_ema.decay" in str(error.value)
    assert "1 of another shape: betas [10] instead of [1000]" in str(error.value)


def test_another_model_s_file_is_refused(checkpoints: dict[Family, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\d+ missing: cond_stage_model\.transformer.*, \.\.\.; \d+ unknown"):
        load(checkpoints["open_clip"], "clip", tmp_path)


def test_positions_that_some_text_libraries_save_may_be_missing() -> None:
    sizes = checkpoint_layout(tiny_shape("clip"))
    del sizes["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    check_layout(sizes, tiny_shape("clip"), "file.pt")


class _Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"weight": torch.zeros(1), "other": _Exploit()}, path)
    with pytest.raises(ValueError, match=r"evil\.pt is refused: .* can run code"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(_Exploit(), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pt is refused"):
        read_checkpoint(path)


def test_a_file_cut_short_is_an_error_that_names_it(checkpoints: dict[Family, Path], tmp_path: Path) -> None:
    path = tmp_path / "short.pt"
    path.write_bytes(checkpoints["clip"].read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"short\.pt"):
        read_checkpoint(path)
    path = path.rename(tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"short\.safetensors \([\d,]+ bytes\) cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\) cannot be read as a checkpoint: EOFError"),
        (b"hello\n", r"\(6 bytes\) cannot be read as a checkpoint: KeyError"),
        (pickle.dumps({"a": 1}), "is refused: it does not hold tensors alone"),
    ],
    ids=["empty", "text", "pickle"],
)
def test_what_is_no_checkpoint_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_fingerprint_follows_content_not_name_or_time(checkpoints: dict[Family, Path], tmp_path: Path) -> None:
    path = tmp_path / "copy.pt"
    shutil.copyfile(checkpoints["clip"], path)
    assert checkpoint_fingerprint(path) == checkpoint_fingerprint(checkpoints["clip"])
    assert checkpoint_fingerprint(path) != checkpoint_fingerprint(checkpoints["open_clip"])
    weights = torch.load(path, weights_only=True)
    weights["first_stage_model.quant_conv.bias"][3] += 1
    torch.save(weights, path)  # the same size and names: a checksum of the zip's directory differs
    assert checkpoint_fingerprint(path) != checkpoint_fingerprint(checkpoints["clip"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prior\.checkpoint=.*absent\.pt does not exist"):
        locate_checkpoint(MODEL["clip"], str(tmp_path / "absent.pt"))
    with pytest.raises(ValueError, match=r"prior\.checkpoint=.* is not a file"):
        locate_checkpoint(MODEL["clip"], str(tmp_path))


def test_offline_without_a_cached_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"prior\.model=sd-v1\.5-4view is not in the Hugging Face cache.*hf download"):
        locate_checkpoint(MODEL["clip"])


def test_a_download_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="cannot be downloaded"):
        locate_checkpoint(MODEL["open_clip"])
    assert "downloading it from MVDream/MVDream (about 5 GB, once)" in caplog.text
    assert "prior.checkpoint=PATH" in caplog.text


def test_a_file_of_another_size_says_so_itself(tmp_path: Path) -> None:
    shape = tiny_shape("clip")
    path = write_checkpoint(tmp_path / "tiny.safetensors", shape)
    assert MvdreamShape.from_text(shape.to_text()) == shape
    assert MvdreamPrior.load(MODEL["clip"], checkpoint=str(path), cache=tmp_path).image_size == shape.image_size
    pickled = write_checkpoint(tmp_path / "tiny.pt", shape)
    with pytest.raises(ValueError, match="of another shape"):
        MvdreamPrior.load(MODEL["clip"], checkpoint=str(pickled), cache=tmp_path)


def test_cached_file_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    repository = tmp_path / "models--MVDream--MVDream"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    (snapshot / "sd-v1.5-4view.pt").write_bytes(b"")
    assert locate_checkpoint(MODEL["clip"]) == snapshot / "sd-v1.5-4view.pt"


# The configuration


def settings(checkpoint: Path, *overrides: str) -> Config:
    prior = ["prior.kind=mvdream", "prior.model=sd-v2.1-base-4view", f"prior.checkpoint={checkpoint}"]
    return load_config(overrides=["prompt=a corgi", "device=cpu", *prior, *overrides])


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The model names stand for tiny sizes, and the cache is this test's."""
    monkeypatch.setitem(MODELS, MODEL["open_clip"], tiny_shape())
    monkeypatch.setenv("CORRDREAM_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("tiny_models")
def test_configuration_builds_it_and_a_step_of_each_kind_runs(checkpoints: dict[Family, Path]) -> None:
    small = ["cameras.resolution=16", "rendering.num_samples_per_ray=16", "field.dense_grid.resolutions=[8]"]
    blocks = ["correspondence.feature_blocks=[3,2]", "correspondence.window.progress=[0.0,1.0]"]
    config = settings(checkpoints["open_clip"], "max_steps=2", "correspondence.every=2", *small, *blocks)
    check_prompt(config)
    prior = build_prior(config)
    assert isinstance(prior, MvdreamPrior)
    assert prior.dtype == torch.float32
    trainer = build(config, prior=prior)
    metrics = {**trainer.train_step(), **trainer.train_step()}
    assert metrics["loss/sds"] > 0
    assert all(math.isfinite(value) for name, value in metrics.items() if name.startswith("loss/"))


@pytest.mark.usefixtures("tiny_models")
def test_precision_of_the_configuration_is_the_networks(checkpoints: dict[Family, Path]) -> None:
    for name, dtype in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        prior = build_prior(settings(checkpoints["open_clip"], f"prior.precision={name}"))
        assert isinstance(prior, MvdreamPrior)
        assert prior.encode_text([""]).dtype == dtype


def test_identity_follows_the_weights(checkpoints: dict[Family, Path], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    shutil.copyfile(checkpoints["open_clip"], path)
    first = identity(settings(path))
    path.touch()
    assert identity(settings(path)) == first
    shutil.copyfile(checkpoints["clip"], path)
    assert identity(settings(path)) != first


def test_file_errors_are_the_configuration_s(checkpoints: dict[Family, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prior\.checkpoint=.*absent\.pt does not exist"):
        identity(settings(tmp_path / "absent.pt"))
    with pytest.raises(ConfigError, match=r"open_clip\.pt is not a checkpoint of prior\.model"):
        build_prior(settings(checkpoints["open_clip"]))  # tiny, where the model is full size


@pytest.mark.usefixtures("tiny_models")
def test_attention_of_the_configuration_is_the_network_s(checkpoints: dict[Family, Path]) -> None:
    with pytest.raises(ConfigError, match=r"prior\.attention=xformers needs prior\.kind=mvdream, got blocks"):
        load_config(overrides=["prompt=a corgi", "prior.attention=xformers"])
    if importlib.util.find_spec("xformers") is None:
        with pytest.raises(ConfigError, match=r"prior\.attention=xformers needs the package xformers"):
            build_prior(settings(checkpoints["open_clip"], "prior.attention=xformers"))


# Attention


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed here")
def test_xformers_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingBackendError, match=r"prior\.attention=xformers needs the package xformers"):
        build_attention("xformers", torch.device("cpu"), torch.float32)


def test_attention_of_another_kind_is_what_the_network_uses() -> None:
    calls = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(query.shape)
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        return weights @ value

    shape = tiny_shape().network
    networks = MultiviewUNet(shape), MultiviewUNet(shape, attend)
    networks[1].load_state_dict(networks[0].state_dict())
    inputs = draw(4, 4, 8, 8), torch.full((4,), 500), draw(4, 77, 64), draw(4, 16)
    with torch.no_grad():
        expected, actual = (network(*inputs)[0] for network in networks)
    assert calls
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


# The cache of embeddings


def test_known_prompts_are_not_encoded_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def encode(prompts: Sequence[str]) -> Tensor:
        asked.extend(prompts)
        return torch.stack([torch.full((2, 3), float(len(prompt))) for prompt in prompts])

    first = cached_embeddings(["cat", "horse", "cat"], directory=tmp_path, revision="a", encode=encode)
    assert asked == ["cat", "horse"]
    assert first[:, 0, 0].tolist() == [3, 5, 3]
    again = cached_embeddings(["horse", "cat"], directory=tmp_path, revision="a", encode=encode)
    assert asked == ["cat", "horse"]
    assert torch.equal(again, first[1:])
    cached_embeddings(["cat"], directory=tmp_path, revision="b", encode=encode)
    assert asked == ["cat", "horse", "cat"]


def test_damaged_or_unwritable_cache_only_costs_time(tmp_path: Path) -> None:
    def encode(prompts: Sequence[str]) -> Tensor:
        return torch.ones(len(prompts), 2, 3)

    cached_embeddings(["cat"], directory=tmp_path, revision="a", encode=encode)
    (file,) = (tmp_path / "text").iterdir()
    file.write_bytes(b"half")
    assert cached_embeddings(["cat"], directory=tmp_path, revision="a", encode=encode).sum() == 6
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert cached_embeddings(["cat"], directory=blocked, revision="a", encode=encode).sum() == 6


def _write_many(directory: Path, number: int) -> None:
    for _ in range(20):
        for prompt in range(5):
            cached_embeddings(
                [str(prompt)],
                directory=directory,
                revision=str(number % 2),
                encode=lambda prompts: torch.full((len(prompts), 50, 40), float(prompts[0])),
            )


def test_many_processes_share_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_many, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    names = [path.suffix for path in (tmp_path / "text").iterdir()]
    assert names == [".safetensors"] * 10


def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CORRDREAM_CACHE", raising=False)
    assert default_cache() == tmp_path / "xdg" / "corrdream"
    monkeypatch.setenv("CORRDREAM_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
