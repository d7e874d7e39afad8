"""Optional packages: imported only where their adapter asks for them, with the cause and the cure when missing."""

from importlib import import_module
from types import ModuleType

EXTRA = {
    "tinycudann": "cuda",
    "nerfacc": "cuda",
    "xformers": "cuda",
    "mvdream": "mvdream",
    "optuna": "search",
    "open_clip": "metrics",
    "lpips": "metrics",
    "timm": "metrics",
}
BROKEN = (ImportError, OSError, RuntimeError, AttributeError)  # what a package built for something else raises


class MissingBackendError(ImportError):
    """A configuration asks for a package that cannot be imported here."""


def require(package: str, key: str) -> ModuleType:
    """The imported package; MissingBackendError names the configuration key that needs it, the cause and the cure."""
    try:
        return import_module(package)
    except BROKEN as error:
        cause = " ".join(str(error).split())
        raise MissingBackendError(
            f"{key} needs the package {package} ({install(package)}); import failed: {cause}"
        ) from error


def install(package: str) -> str:
    """The line that installs a package, or the one that a module is part of."""
    distribution = package.partition(".")[0]
    extra = EXTRA.get(distribution)
    return f"pip install 'corrdream[{extra}]'" if extra else f"pip install {distribution}"


def load_triton(key: str) -> ModuleType:
    """The package, which comes with torch for NVIDIA GPUs."""
    return require("triton", key)
