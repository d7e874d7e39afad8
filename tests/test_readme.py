"""Every command of the README runs, at test size; a command that no rule here covers fails.

Commands come in the README's order and share a working directory, where RUN is a finished run of a released
configuration (a random checkpoint in the official layout), OLD.yaml a released file, and NAME a finished sweep.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from corrdream.__main__ import main as corrdream
from sweeps.dashboard import main as dashboard
from sweeps.folders import create_sweep
from sweeps.grids import load_grid
from sweeps.jobs import new_job
from sweeps.markdown import main as markdown
from sweeps.options import parse
from sweeps.plan import Measurement
from sweeps.run import main as sweep
from sweeps.trials import expand
from tests.benchmarks.__main__ import parse as parse_benchmark
from tests.mvdream_files import released_overrides, small_blocks_shape, write_checkpoint
from tests.object_server import object_server
from tests.sweep_folders import finish_trial, tiny_overrides

ROOT = Path(__file__).parent.parent
PROGRAMS = ("python", "make", "pytest", "CUDA_VISIBLE_DEVICES=0")
# Of other projects; what they are given must exist.
OUTSIDE = ("ray", "kubectl", "sbatch", "docker", "git", "pip", "hf", "wandb", "tensorboard")
RELEASED = "configs/corr-mvdream-sd21-shading.yaml"
SMALL_PICTURES = {
    "test": ["--views", "3", "--size", "16"],
    "validate": ["--size", "16"],
    "export": ["--resolution", "24"],
    "preview": ["--num-rows", "1"],
}


def readme_commands() -> list[str]:
    """From blocks without a language, and from inline code; of tables that say what was, only what is now."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = []
    for block in blocks(text, language=""):
        lines = re.sub(r"\\\n", " ", block).splitlines()
        found += [line.partition("  #")[0].strip() for line in lines if _program(line) in PROGRAMS + OUTSIDE]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    is_then = False
    for line in prose.splitlines():
        is_then = line.startswith("| then |") or (is_then and line.startswith("|"))
        shown = line.partition(" | ")[2] if is_then else line
        found += [code for code in re.findall(r"`([^`]+)`", shown) if _program(code) in PROGRAMS and " " in code]
    return list(dict.fromkeys(found))


def blocks(text: str, language: str) -> list[str]:
    """What stands in the code blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in found if name == language]


def readme_grid() -> str:
    """The grid file that the README shows."""
    shown = blocks((ROOT / "README.md").read_text(encoding="utf-8"), language="yaml")
    return next(block for block in shown if block.startswith("# mine.yaml"))


def _program(line: str) -> str:
    return line.split(maxsplit=1)[0] if line.strip() else ""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make a released configuration small."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("mvdream") / "tiny.safetensors", small_blocks_shape())
    plain = released_overrides(checkpoint) | {"field.density_blob_scale": 400}
    return [f"{key}={value}" for key, value in plain.items()]


@pytest.fixture(scope="module")
def small(tiny_prior_file: Path) -> list[str]:
    """Overrides that make a run of the built-in world small."""
    plain = tiny_overrides(tiny_prior_file, device="cpu")
    return [f"{key}={value}" for key, value in plain.items() if key != "prompt"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, released: list[str], small: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "mine.yaml").write_text(readme_grid(), encoding="utf-8")
    shutil.copy(ROOT / "tests/references/upstream_configs/mvdream-sd21.yaml", folder / "OLD.yaml")
    words = [str(ROOT / RELEASED), "prompt=An astronaut riding a horse", *released, "--run-dir", str(folder / "RUN")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRDREAM_CACHE", str(folder / "cache"))
        assert corrdream(["train", *words]) == 0
    job = new_job(parse(["--grid", "rescale", "--name", "NAME", "--storage", str(folder / "runs"), *small]))
    create_sweep(job.folder, job.sweep)
    for trial in job.sweep.trials:
        finish_trial(job.folder, trial, viou=0.7)
    return folder


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are measured and meshed coarsely, which saves minutes; at full size in test_quality and test_runs."""
    monkeypatch.setattr("corrdream.metrics.RESOLUTION", 16)
    monkeypatch.setattr("corrdream.quality.NUM_VIEWS", 4)
    monkeypatch.setattr("corrdream.quality.SAMPLING_STEPS", 2)
    monkeypatch.setattr("corrdream.outputs.RESOLUTION", {"cpu": 16, "cuda": 16})
    monkeypatch.setattr("corrdream.outputs.VIDEO_VIEWS", 4)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("coarse")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces, when it is imported
@pytest.mark.parametrize("command", readme_commands())
def test_command_runs(
    command: str, workspace: Path, released: list[str], small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    taken = Measurement(seconds_per_step=0.1, start_seconds=1.0, memory_bytes=1e8, checkpoint_bytes=1e6)
    monkeypatch.setattr("sweeps.plan.measure", lambda *_, **__: taken)  # for real in test_plan
    monkeypatch.setenv("CORRDREAM_CACHE", str(workspace / "cache"))
    last = sorted((workspace / "RUN" / "checkpoints").glob("step-*.safetensors"))[-1]
    words = shlex.split(command.replace("step-....safetensors", last.name))
    if words[0] == "CUDA_VISIBLE_DEVICES=0":
        del words[0]
    match words:
        case ["python", "-m", "corrdream", name, *rest]:
            assert corrdream([name, *_small(name, rest, released, small)]) == 0
        case ["python", "sweeps/run.py", *rest] if "--resume" in rest:
            assert sweep(rest) == 0
        case ["python", "sweeps/run.py", *rest] if "--extend" in rest:
            assert sweep([*rest, "--dry-run"]) == 0
        case ["python", "sweeps/run.py", *rest] if any(word.startswith("s3://") for word in rest):
            with object_server() as server:
                here = [server.uri("sweeps") if word.startswith("s3://") else word for word in rest]
                assert sweep([*here, "--dry-run", *small]) == 0
        case ["python", "sweeps/run.py", *rest]:
            planned = rest if "--dry-run" in rest else [*rest, "--dry-run"]
            assert sweep([*planned, *(released if any("mvdream" in word for word in rest) else small)]) == 0
        case ["python", "-m", "tests.benchmarks", kinds]:  # each runs in test_benchmarks
            assert [parse_benchmark([kind]).what for kind in kinds.split("|")] == ["step", "parts", "cpu"]
        case ["python", "sweeps/dashboard.py", *rest]:
            assert dashboard(rest) == 0
        case ["python", "sweeps/markdown.py", *rest]:
            assert markdown(rest) == 0
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        case ["pytest", file, option, _]:
            assert (ROOT / file).is_file()
            assert f'addoption("{option}"' in (ROOT / "tests/conftest.py").read_text(encoding="utf-8")
        case [program, *rest] if program in OUTSIDE:
            files = [word for word in rest if "/" in word and "://" not in word and not word.startswith("-")]
            assert all((ROOT / file).exists() for file in files if (ROOT / file).parent != ROOT)
        case _:
            raise AssertionError(f"no rule covers {command!r}; add one, so that it is tested.")


def _small(name: str, rest: list[str], released: list[str], small: list[str]) -> list[str]:
    """A command's words at test size: fewer steps, small networks and pictures."""
    words = [re.sub(r"^max_steps=\d+$", "max_steps=3", word) for word in rest]
    if (
        name in ("train", "preview")
        and "--resume" not in words
        and not any(word.startswith("weights=") for word in words)
    ):
        words += released if any("mvdream" in word for word in words) else [*small, "max_steps=2"]
    return words + SMALL_PICTURES.get(name, [])


def test_the_grid_that_is_shown_has_as_many_trials_as_it_says(tmp_path: Path, tiny_prior_file: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(readme_grid(), encoding="utf-8")
    trials = expand(load_grid(str(path)), [f"prior.checkpoint={tiny_prior_file}"])
    assert f"{len(trials)} trials" in readme_grid()
    assert {trial.config.max_steps for trial in trials} == {100}
    assert {trial.config.correspondence.enabled for trial in trials} == {False, True}


def test_the_readme_has_commands_of_every_kind() -> None:
    commands = "\n".join(readme_commands())
    for name in ("train", "test", "grade", "preview", "export", "doctor", "import-config"):
        assert f"corrdream {name}" in commands
    assert "sweeps/run.py --resume" in commands
    assert "make sweep" in commands
    assert "launch.py" not in commands
