"""Wrong input to a sweep: one line that names the thing and the cure, exit status 2, and nothing is written."""

import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sweeps
from sweeps.folders import SweepFolder, create_sweep, load_sweep
from sweeps.jobs import Placement, new_job
from sweeps.locks import NameTakenError, hold_lock
from sweeps.plan import this_machine
from sweeps.run import create, main, parse
from tests.sweep_folders import RESCALE, finish_trial, write_grid


def make_sweep(storage: Path, prior: Path) -> SweepFolder:
    """A sweep that was planned and never ran."""
    grid = str(write_grid(storage.parent, prior))
    job = new_job(parse(["--grid", grid, "--storage", str(storage), "--name", "planned"]))
    create_sweep(job.folder, job.sweep)
    return job.folder


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run_main(
    tmp_path: Path, tiny_prior_file: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the program with a small grid; returns its exit status and what it says on stderr."""
    grid = write_grid(tmp_path, tiny_prior_file)

    def run(*words: str) -> tuple[int, str]:
        options = [] if "--resume" in words or "--grid" in words else ["--grid", str(grid)]
        options += [] if "--storage" in words else ["--storage", str(storage)]
        status = main([*options, *words])
        return status, capsys.readouterr().err

    return run


WRONG_INPUT = {
    "unknown grid": (["--grid", "rescal"], "did you mean rescale?"),
    "unknown word": (["--prompts", "a snowman", "a red xylophone"], "xylophone"),
    "no library": (["--prompts", "lib:snow"], "prompts: prompt=lib:snow needs prompt_library=FILE"),
    "no prompt of the library": (
        ["--prompts", "lib:astronot", "prompt_library=configs/prompts.txt"],
        "prompt=lib:astronot names no prompt of prompt_library=configs/prompts.txt; near: An astronaut riding a horse",
    ),
    "unknown key": (["guidance.rescale=0.3"], "guidance.rescale"),
    "wrong type": (["output.checkpoint_every=often"], "output.checkpoint_every"),
    "wrong value": (["guidance.guidance_scale=-1"], "guidance.guidance_scale must be at least 0"),
    "swept group": (["guidance={guidance_rescale: 0.3}"], "drop the override or use another grid"),
    "no name of the grid's": ([f"{RESCALE}=0.3"], f"{RESCALE} has no value '0.3'; it has 0, 0.5"),
    "wrong seeds": (["--seeds", "one"], "--seeds must be a list of whole numbers"),
    "seed twice": (["--seeds", "1", "1"], "has 1 twice"),
    "no configuration": (["--config", "nothing.yaml"], "nothing.yaml does not exist"),
    "storage that nothing knows": (["--storage", "shelf://box/runs"], "--storage shelf://box/runs is not understood"),
    "storage without a bucket": (["--storage", "s3://"], "names no bucket"),
    "name with a slash": (["--name", "a/b"], "--name 'a/b' must be letters"),
    "too many threads": (["--cpus-per-trial", "4096"], "more than this machine's"),
    "too many GPUs": (["--gpus-per-trial", "64"], "more than this machine's"),
    "no Ray there": (["--address", "127.0.0.1:1"], "no Ray at 127.0.0.1:1"),
    "nothing to resume": (["--resume", "never"], "there is no sweep in"),
    "samples of a grid": (["--num-samples", "3"], "--num-samples is for --search random and optuna"),
    "search without a number": (["--search", "random"], "give --num-samples"),
    "asha without a budget": (["--scheduler", "asha"], "asha needs a budget in steps"),
    "search of a resumed sweep": (["--resume", "never", "--search", "random"], "leave out --search"),
    "options of a new sweep": (["--resume", "never", "--seeds", "1"], "leave out --seeds"),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_input_is_refused_in_one_line_with_status_2_and_nothing_is_written(
    case: str, run_main: Callable[..., tuple[int, str]], storage: Path, capsys: pytest.CaptureFixture[str]
):
    words, message = WRONG_INPUT[case]
    try:
        status, error = run_main(*words)
    except SystemExit as refused:  # argparse's way
        status, error = refused.code, capsys.readouterr().err.splitlines()[-1] + "\n"
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not storage.exists()


def test_an_empty_grid_is_refused(run_main: Callable[..., tuple[int, str]], tmp_path: Path):
    (tmp_path / "empty.yaml").touch()
    status, error = run_main("--grid", str(tmp_path / "empty.yaml"))
    assert status == 2
    assert "is empty" in error


def test_a_name_that_exists_is_refused_and_left_alone(run_main: Callable[..., tuple[int, str]], storage: Path):
    (storage / "mine").mkdir(parents=True)
    status, error = run_main("--name", "mine")
    assert status == 2
    assert "--resume mine" in error
    assert not list((storage / "mine").iterdir())


def test_a_name_made_of_the_time_of_day_never_collides(storage: Path, tiny_prior_file: Path):
    storage.mkdir()
    grid = str(write_grid(storage.parent, tiny_prior_file))
    job = new_job(parse(["--grid", grid, "--storage", str(storage)]))
    placement = Placement(machine=this_machine(), gpus=0.0, measured=None, concurrent=1)
    names = [create(job, placement, may_rename=True).sweep.name for _ in range(3)]
    assert names == [job.sweep.name, f"{job.sweep.name}+2", f"{job.sweep.name}+3"]
    assert [load_sweep(SweepFolder(storage / name)).name for name in names] == names
    with pytest.raises(NameTakenError):
        create(job, placement, may_rename=False)


def test_a_storage_that_cannot_be_written_is_refused(run_main: Callable[..., tuple[int, str]], tmp_path: Path):
    (tmp_path / "file").touch()
    for place, cause in {
        str(tmp_path / "file" / "runs"): "Not a directory",
        str(tmp_path / ("x" * 300)): "File name too long",
        # The free space there is said to be zero.
        "/proc/runs": "Permission denied" if os.geteuid() else "No such file or directory",
    }.items():
        expected = f"sweeps: cannot write to {place}: {cause}; choose another place with --storage.\n"
        assert run_main("--storage", place) == (2, expected)


def test_a_full_disk_is_noticed_before_the_start(
    run_main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    status, error = run_main()
    assert status == 2
    assert "1 MB free, the sweep needs" in error


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    run_main: Callable[..., tuple[int, str]], storage: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--dry-run", "--seeds", "0", "1", "output.checkpoint_keep=3"]
    assert run_main(*arguments) == (0, "")
    assert not storage.exists()


def test_a_sweep_that_is_running_is_not_resumed_beside_it(
    run_main: Callable[..., tuple[int, str]], storage: Path, tiny_prior_file: Path
):
    folder = make_sweep(storage, tiny_prior_file)
    with hold_lock(folder.driver_lock):
        status, error = run_main("--resume", folder.path.name)
    assert status == 2
    assert f"in use by process {os.getpid()}" in error


def test_a_sweep_of_other_sources_is_not_mixed_with_these(
    run_main: Callable[..., tuple[int, str]], storage: Path, tiny_prior_file: Path
):
    folder = make_sweep(storage, tiny_prior_file)
    text = folder.sweep_file.read_text()
    here = load_sweep(folder).fingerprints["sources"]
    folder.sweep_file.write_text(text.replace(here, "0" * 16))
    status, error = run_main("--resume", folder.path.name)
    assert status == 2
    assert f"other sources of corrdream ({'0' * 16}; here is {here})" in error


def test_a_finished_sweep_of_other_sources_has_its_report_made_anew(
    run_main: Callable[..., tuple[int, str]], storage: Path, tiny_prior_file: Path
):
    folder = make_sweep(storage, tiny_prior_file)
    sweep = load_sweep(folder)
    folder.sweep_file.write_text(folder.sweep_file.read_text().replace(sweep.fingerprints["sources"], "0" * 16))
    for trial in sweep.trials:
        finish_trial(folder, trial, viou=0.625)
    assert run_main("--resume", folder.path.name) == (0, "")
    assert "0.625" in folder.report.read_text()


def test_a_sweep_file_that_is_torn_is_refused(
    run_main: Callable[..., tuple[int, str]], storage: Path, tiny_prior_file: Path
):
    folder = make_sweep(storage, tiny_prior_file)
    folder.sweep_file.write_text(folder.sweep_file.read_text()[:100])
    status, error = run_main("--resume", folder.path.name)
    assert status == 2
    assert "cannot be read" in error


def test_no_module_hides_one_of_python() -> None:
    """`python sweeps/run.py` puts this folder first on the path, there and in the processes it spawns."""
    assert not {module.name for module in pkgutil.iter_modules(sweeps.__path__)} & sys.stdlib_module_names
