"""Optional packages: imported only where their adapter asks for them, with the cause and the cure when missing."""

from importlib import import_module
from types import ModuleType

EXTRA = {
    "tinycudann": "cuda",
    "nerfacc": "cuda",
    "xformers": "cuda",
    "mvdream": "mvdream",
    "optuna": "search",
}


class MissingBackendError(ImportError):
    """A configuration asks for a package that cannot be imported here."""


def require(package: str, key: str) -> ModuleType:
    """The imported package; MissingBackendError names the configuration key that needs it, the cause and the cure."""
    try:
        return import_module(package)
    except ImportError as error:
        distribution = package.partition(".")[0]
        extra = EXTRA.get(distribution)
        install = f"pip install 'corrdream[{extra}]'" if extra else f"pip install {distribution}"
        raise MissingBackendError(f"{key} needs the package {package} ({install}); import failed: {error}") from error
