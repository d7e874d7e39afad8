"""What is installed on this machine, what is broken, and the cure; one line each."""

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from corrdream.backends import BROKEN, EXTRA, MissingBackendError, install
from corrdream.prior.attention import build_attention
from corrdream.prior.blocks import WEIGHTS, blocks_fingerprint
from corrdream.prior.mvdream_checkpoint import REPOSITORY

# What a package is for, and how to get it where `pip install 'corrdream[EXTRA]'` needs more than that.
USE = {
    "tinycudann": "fused hash grid on NVIDIA GPUs; builds against the installed torch, needs nvcc and a C++ compiler",
    "nerfacc": "fused ray marching on NVIDIA GPUs",
    "xformers": "another attention for the MVDream prior; torch's own is the default",
    "mvdream": "MVDream's own code as the prior; the built-in loader needs none of it",
    "optuna": "suggests the next trials of a sweep from the results of earlier ones",
    "open_clip": "CLIP score and R-precision at the end of a run",
    "lpips": "A-LPIPS at the end of a run",
    "timm": "consistency of DINOv2's features at the end of a run",
}
OPEN_CLIP = "2.7.0"  # the last that hands MVDream's code tensors in the layout that it expects
MODELS = ("sd-v2.1-base-4view", "sd-v1.5-4view")
TCNN_BINDINGS = "tinycudann_bindings"  # holds _90_C.*.so, say, for compute capability 9.0


def examine() -> Iterator[str]:
    """The report, line by line."""
    yield f"Python {platform.python_version()} at {sys.executable}, {platform.platform()}"
    yield f"corrdream {_version('corrdream') or 'not installed: pip install -e .'}"
    yield from describe_torch()
    for package in EXTRA:
        yield describe_package(package)
    yield from clashes()
    yield from describe_weights()
    free = shutil.disk_usage(Path.cwd()).free
    yield f"disk: {free / 1e9:.1f} GB free in {Path.cwd()}"


def describe_torch() -> Iterator[str]:
    """torch, what it was built for, and the GPUs that it sees."""
    yield f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield (
            f"CUDA: none seen, though torch was built for CUDA {built}; check the driver with nvidia-smi"
            if built
            else "CUDA: none, this torch is built for the CPU; pip install torch from pytorch.org's CUDA index"
        )
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"CUDA {torch.version.cuda}, GPU {index}: {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def describe_package(package: str) -> str:
    """Whether an optional package can be imported, and what to do if not."""
    cure = install(package)
    if importlib.util.find_spec(package) is None:
        return f"{package}: not installed ({USE[package]}); {cure}"
    try:
        importlib.import_module(package)
    except BROKEN as error:
        return f"{package}: installed, but import failed: {' '.join(str(error).split())}; reinstall: {cure}"
    obstacle = _without_kernels(package)
    return f"{package} {_version(package)}: {f'imported, but {obstacle}' if obstacle else 'ok'}"


def _without_kernels(package: str) -> str | None:
    """Why an imported package cannot compute here: some say so only when they are used."""
    gpu = torch.cuda.is_available()
    match package:
        case "nerfacc" if importlib.util.find_spec("nerfacc.csrc") is None:
            if shutil.which("nvcc") is None:
                return "its kernels are not built, and without nvcc on the PATH cannot be: install CUDA's compiler"
            return "its kernels are compiled when they are first used, which takes minutes"
        case "xformers" if gpu:
            try:
                build_attention("xformers", torch.device("cuda"), torch.float16)
            except MissingBackendError as error:
                return " ".join(str(error).split())
    return "of no use without an NVIDIA GPU" if EXTRA[package] == "cuda" and not gpu else None


def clashes() -> Iterator[str]:
    """Versions that are known not to work together."""
    yield from _built_for_other_gpus()
    built_for = _requirement("xformers", "torch")
    if built_for and built_for.split("+")[0] != torch.__version__.split("+")[0]:
        yield f"clash: xformers is built for torch {built_for}, installed is {torch.__version__}; install its match"
    if importlib.util.find_spec("mvdream") and not importlib.util.find_spec("pkg_resources"):
        setuptools = _version("setuptools") or "is missing and"
        yield f"clash: mvdream imports pkg_resources, which setuptools {setuptools} lacks; pip install 'setuptools<81'"
    open_clip = _version("open-clip-torch")
    if open_clip and open_clip != OPEN_CLIP:
        yield (
            f"clash: open-clip-torch {open_clip} lays tensors out differently, mvdream's text embeddings come out "
            f"wrong without an error; pip install open-clip-torch=={OPEN_CLIP}"
        )


def _built_for_other_gpus() -> Iterator[str]:
    """GPUs whose architecture tiny-cuda-nn was not built for."""
    spec = importlib.util.find_spec(TCNN_BINDINGS)
    folders = spec.submodule_search_locations if spec else None
    names = [path.name for folder in folders or () for path in Path(folder).glob("_*_C*.so")]
    built = sorted({int(found[1]) for name in names if (found := re.match(r"_(\d+)_C\b", name))})
    for index in range(torch.cuda.device_count() if built else 0):
        major, minor = torch.cuda.get_device_capability(index)
        if 10 * major + minor not in built:
            yield (
                f"clash: tinycudann is built for compute capability {', '.join(f'{n / 10:.1f}' for n in built)}, GPU "
                f"{index} has {major}.{minor}; rebuild it: TCNN_CUDA_ARCHITECTURES={10 * major + minor} "
                f"{install('tinycudann')} --force-reinstall --no-deps"
            )


def describe_weights() -> Iterator[str]:
    """Which priors can be loaded without a download."""
    if WEIGHTS.is_file():
        yield f"built-in prior: {WEIGHTS} ({blocks_fingerprint(WEIGHTS)})"
    else:
        yield f"built-in prior: {WEIGHTS} is missing; reinstall corrdream"
    for model in MODELS:
        cached = try_to_load_from_cache(REPOSITORY, f"{model}.pt")
        where = cached if isinstance(cached, str) else f"not in the hub cache; hf download {REPOSITORY} {model}.pt"
        yield f"prior.model={model}: {where}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirement(distribution: str, dependency: str) -> str | None:
    """The exact version of `dependency` that a distribution was built for, where it names one."""
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pins = (re.fullmatch(rf"{dependency}\s*\(?==\s*([^\s;)]+).*", text) for text in requirements)
    return next((pin[1] for pin in pins if pin), None)
