"""`python -m corrdream`: what each command leaves behind, and one line for whatever is wrong with its input."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from corrdream import doctor
from corrdream.__main__ import main
from corrdream.backends import EXTRA
from tests.sweep_folders import tiny_overrides

ROOT = Path(__file__).parent.parent
BLOB = "3.0"  # a density that the blob of a new field reaches


@pytest.fixture(scope="module")
def settings(tiny_prior_file: Path) -> list[str]:
    plain = tiny_overrides(tiny_prior_file) | {"prompt": "snowman red", "device": "cpu", "max_steps": 2}
    return [f"{key}={value}" for key, value in plain.items()]


@pytest.fixture(scope="module")
def run_dir(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", *settings, "--run-dir", str(path)]) == 0
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that ends with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("corrdream: ")]
    assert len(complaint) == 1
    return complaint[0]


def test_train_leaves_a_run_folder(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "turntable.png", "normals.png"} <= names


def test_train_resumes_with_more_steps(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    branch = tmp_path / "branch"
    assert main(["train", "--resume", str(run_dir), "--run-dir", str(branch), "max_steps=3"]) == 0
    assert (branch / "checkpoints" / "step-000003.safetensors").is_file()
    assert f"Done: {branch}" in capsys.readouterr().out


def test_train_starts_from_another_runs_weights(run_dir: Path, settings: list[str], tmp_path: Path) -> None:
    weights = f"weights={run_dir / 'checkpoints' / 'step-000002.safetensors'}"
    assert main(["train", *settings, weights, "--run-dir", str(tmp_path / "run")]) == 0


def test_test_writes_frames_and_a_video(run_dir: Path) -> None:
    assert main(["test", str(run_dir), "--views", "3", "--size", "16"]) == 0
    assert sorted(path.name for path in (run_dir / "test").iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
        "turntable.mp4",
    ]
    assert np.asarray(Image.open(run_dir / "test" / "000.png")).shape == (16, 48, 3)  # color, normals, opacity


def test_validate_writes_one_sheet_named_by_its_step(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "step-000002.safetensors"
    assert main(["validate", str(run_dir), "--checkpoint", str(checkpoint), "--size", "16"]) == 0
    assert np.asarray(Image.open(run_dir / "validation" / "step-000002.png")).shape == (64, 48, 3)


@pytest.mark.parametrize("kind", ["obj", "glb", "ply"])
def test_export_writes_a_mesh_that_opens(run_dir: Path, kind: str) -> None:
    arguments = ["--format", kind, "--threshold", BLOB, "--resolution", "12"]
    assert main(["export", str(run_dir), *arguments]) == 0
    mesh = trimesh.load(run_dir / "export" / f"mesh.{kind}", force="mesh")
    assert 0.05 < np.abs(mesh.bounds).max() < 1


def test_preview_draws_one_row_a_sample(settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "preview.png"
    assert main(["preview", *settings, "--out", str(out), "--num-rows", "2"]) == 0
    picture = np.asarray(Image.open(out))
    assert picture.shape == (2 * 16, 4 * 16, 3)
    assert not np.array_equal(picture[:16], picture[16:])


def test_doctor_names_every_optional_package_with_its_cure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    for word in (
        "Python",
        f"torch {torch.__version__}",
        "CUDA",
        "tinycudann",
        "nerfacc",
        "xformers",
        "mvdream",
        "disk",
    ):
        assert word in report
    for line in report.splitlines():
        assert "not installed" not in line or "pip install" in line


def test_doctor_sees_a_binding_that_was_built_for_another_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tinycudann_bindings").mkdir()
    (tmp_path / "tinycudann_bindings" / "_86_C.cpython-312-x86_64-linux-gnu.so").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    (line,) = [line for line in doctor.clashes() if "tinycudann" in line]
    assert line.startswith("clash: tinycudann is built for compute capability 8.6, GPU 0 has 9.0; rebuild it: ")
    assert "TCNN_CUDA_ARCHITECTURES=90 pip install 'corrdream[cuda]'" in line
    (tmp_path / "tinycudann_bindings" / "_90_C.so").touch()
    assert not [line for line in doctor.clashes() if "tinycudann" in line]


def test_doctor_sees_kernels_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    package = module_from_spec(ModuleSpec("nerfacc", None, is_package=True))
    monkeypatch.setitem(sys.modules, "nerfacc", package)  # one that is imported from a file would outlive the test
    monkeypatch.setenv("PATH", "")
    assert "its kernels are not built, and without nvcc on the PATH" in doctor.describe_package("nerfacc")


def test_doctor_wants_a_gpu_for_packages_of_the_cuda_extra_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0")
    for package, extra in EXTRA.items():
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert f"pip install 'corrdream[{extra}]'" in doctor.describe_package(package)
        found = ModuleSpec(package, None, is_package=True)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        monkeypatch.setitem(sys.modules, package, module_from_spec(found))
        use = "imported, but of no use without an NVIDIA GPU" if extra == "cuda" else "ok"
        assert doctor.describe_package(package) == f"{package} 1.0: {use}"


def test_doctor_sees_versions_that_clash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def distribution(name: str, version: str, *requirements: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
            *(f"Requires-Dist: {r}" for r in requirements),
        ]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    distribution("xformers", "0.0.17", "numpy", "torch==2.0.0")
    distribution("open-clip-torch", "2.32.0")
    (tmp_path / "mvdream").mkdir()
    (tmp_path / "mvdream" / "__init__.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    report = "\n".join(doctor.examine())
    assert f"xformers is built for torch 2.0.0, installed is {torch.__version__}" in report
    assert "open-clip-torch 2.32.0 lays tensors out differently" in report
    assert "mvdream: installed, but import failed: No module named 'a_package_that_is_missing'" in report


def test_what_is_wrong_with_a_configuration_is_one_line(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("guidance: [1, 2\n")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"garbage")
    for arguments, expected in {
        (): "prompt must not be empty",
        ("nowhere.yaml",): "nowhere.yaml does not exist",
        (str(broken),): "broken.yaml cannot be read",
        ("promt=a snowman",): "promt",
        (*settings, "prompt=a snowmann"): "near it: snowman",
        (*settings, "guidance.guidance_rescale=1.5"): "guidance.guidance_rescale must be in [0, 1], got 1.5",
        (*settings, "cameras.batch_size=6"): "cameras.batch_size must be a multiple of the prior's 4 views, got 6",
        (*settings, f"prior.checkpoint={garbage}"): "garbage.safetensors is not a weights file",
        (*settings, "rendering.backend=nerfacc"): "rendering.backend=nerfacc needs an NVIDIA GPU, the device is cpu",
        (*settings, "weights=nowhere.safetensors"): "weights=nowhere.safetensors does not exist",
        (*settings, f"weights={garbage}"): "garbage.safetensors is torn or not a safetensors file",
        (*settings, "background.kind=nothing"): "background.kind",
    }.items():
        assert expected in refused(capsys, "train", *arguments, "--run-dir", str(tmp_path / "run")), arguments
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_is_wrong_with_a_run_is_one_line(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, run = str(tmp_path / "nowhere"), str(run_dir)
    for command in ("test", "validate", "export", "grade"):
        assert f"{nowhere} is not a run folder" in refused(capsys, command, nowhere)
        assert f"{nowhere} does not exist" in refused(capsys, command, run, "--checkpoint", nowhere)
    assert f"{nowhere} is not a run folder" in refused(capsys, "train", "--resume", nowhere)
    assert "drop other.yaml" in refused(capsys, "train", "--resume", run, "other.yaml")
    assert "in place only max_steps" in refused(capsys, "train", "--resume", run, "seed=3")
    assert "is empty: the field's densities reach from 0 to" in refused(
        capsys, "export", run, "--threshold", "1e6", "--resolution", "8"
    )


def test_a_preview_is_a_png(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out must name a .png file" in refused(capsys, "preview", *settings, "--out", str(tmp_path / "a.jpg"))


def test_a_folder_in_use_is_not_trained_again(
    run_dir: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is in use; continue it with --resume" in refused(capsys, "train", *settings, "--run-dir", str(run_dir))


def test_a_run_that_diverges_ends_with_one_line_and_status_1(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["guidance.guidance_scale=1e300", "--run-dir", str(tmp_path / "run")]
    assert main(["train", *settings, *arguments]) == 1
    assert "corrdream: step 0: the gradient is not finite" in capsys.readouterr().err


def test_the_module_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "corrdream", "validate", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.strip() == f"corrdream: {tmp_path} is not a run folder: it has no config.yaml."
    assert done.stdout == ""
