"""Text to 3D by score distillation with cross-view correspondences. Importing this costs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corrdream.backends import require as require
    from corrdream.checkpoint import CheckpointError as CheckpointError
    from corrdream.checkpoint import fingerprint as fingerprint
    from corrdream.config import Config as Config
    from corrdream.config import ConfigError as ConfigError
    from corrdream.config import PromptError as PromptError
    from corrdream.config import check_overrides as check_overrides
    from corrdream.config import config_to_dict as config_to_dict
    from corrdream.config import load_config as load_config
    from corrdream.config import save_config as save_config
    from corrdream.config_reading import explain_unknown as explain_unknown
    from corrdream.config_reading import parse_override as parse_override
    from corrdream.config_reading import read_yaml as read_yaml
    from corrdream.config_reading import shown as shown
    from corrdream.engine import build as build
    from corrdream.engine import build_prior as build_prior
    from corrdream.engine import check_prompt as check_prompt
    from corrdream.engine import fingerprints as fingerprints
    from corrdream.engine import identity as identity
    from corrdream.learned_metrics import precision_in_pool as precision_in_pool
    from corrdream.out_of_memory import explain_out_of_memory as explain_out_of_memory
    from corrdream.out_of_memory import smaller_ray_chunk as smaller_ray_chunk
    from corrdream.outputs import finish_run as finish_run
    from corrdream.outputs import grade as grade
    from corrdream.outputs import measure as measure
    from corrdream.prompts import LIBRARY_PREFIX as LIBRARY_PREFIX
    from corrdream.runs import RunError as RunError
    from corrdream.runs import check_folder as check_folder
    from corrdream.runs import open_run as open_run
    from corrdream.tracking import Tracker as Tracker
    from corrdream.trainer import Report as Report
    from corrdream.trainer import Trainer as Trainer
    from corrdream.trainer import TrainingDivergedError as TrainingDivergedError
    from corrdream.wandb_runs import WandbMode as WandbMode
    from corrdream.wandb_runs import WandbRun as WandbRun
    from corrdream.wandb_runs import end_wandb as end_wandb
    from corrdream.wandb_runs import explain_wandb_mode as explain_wandb_mode
    from corrdream.wandb_runs import has_wandb_key as has_wandb_key
    from corrdream.wandb_runs import open_wandb_run as open_wandb_run
    from corrdream.wandb_runs import wandb_mode as wandb_mode

_HOMES = {
    "backends": ("require",),
    "config": (
        "Config",
        "ConfigError",
        "PromptError",
        "check_overrides",
        "config_to_dict",
        "load_config",
        "save_config",
    ),
    "config_reading": ("explain_unknown", "parse_override", "read_yaml", "shown"),
    "engine": ("build", "build_prior", "check_prompt", "fingerprints", "identity"),
    "runs": ("RunError", "check_folder", "open_run"),
    "out_of_memory": ("explain_out_of_memory", "smaller_ray_chunk"),
    "outputs": ("finish_run", "grade", "measure"),
    "learned_metrics": ("precision_in_pool",),
    "prompts": ("LIBRARY_PREFIX",),
    "checkpoint": ("CheckpointError", "fingerprint"),
    "tracking": ("Tracker",),
    "wandb_runs": (
        "WandbMode",
        "WandbRun",
        "end_wandb",
        "explain_wandb_mode",
        "has_wandb_key",
        "open_wandb_run",
        "wandb_mode",
    ),
    "trainer": ("Report", "Trainer", "TrainingDivergedError"),
}
_MODULE_OF = {name: f"corrdream.{module}" for module, names in _HOMES.items() for name in names}

__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'corrdream' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
