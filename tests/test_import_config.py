"""Threestudio's files as ours: the released four become our released four, and nothing is lost in silence."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from corrdream.__main__ import main
from corrdream.config import Config, ConfigError, Piecewise, load_config
from corrdream.import_config import Imported, import_config, read_upstream
from corrdream.upstream_keys import ACCEPTED, LEFT_BEHIND, RENAMED

UPSTREAM = Path(__file__).parent / "references" / "upstream_configs"
CONFIGS = Path(__file__).parent.parent / "configs"
MAIN = UPSTREAM / "corr-mvdream-sd21-shading.yaml"
PROMPT = "a red cube"


def load(imported: Imported, folder: Path) -> Config:
    path = folder / "imported.yaml"
    path.write_text(imported.to_yaml(), encoding="utf-8")
    return load_config([path])


def from_main(folder: Path, *overrides: str) -> Config:
    return load(import_config(MAIN, [f"system.prompt_processor.prompt={PROMPT}", *overrides]), folder)


@pytest.mark.parametrize("path", sorted(UPSTREAM.glob("*.yaml")), ids=lambda path: path.stem)
def test_released_file_becomes_our_released_configuration(path: Path, tmp_path: Path) -> None:
    imported = import_config(path, [f"system.prompt_processor.prompt={PROMPT}"])
    assert load(imported, tmp_path) == load_config([CONFIGS / path.name], {"prompt": PROMPT})


@pytest.mark.parametrize("path", sorted(UPSTREAM.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_released_file_is_carried_over_or_reported_with_a_reason(path: Path) -> None:
    imported = import_config(path)
    noted = {note.split("=")[0] for note in imported.notes}
    assert len(noted) == len(imported.notes)
    assert not [note for note in imported.notes if "no such setting" in note]
    for key in read_upstream(path):
        known = key in ACCEPTED or RENAMED.get(key) in imported.values
        assert not (known and key in noted), key


def test_prompt_is_left_open_where_the_file_leaves_it_open() -> None:
    assert "prompt" not in import_config(MAIN).values
    assert import_config(MAIN, ["system.prompt_processor.prompt=a red cube"]).values["prompt"] == PROMPT


@pytest.mark.parametrize(
    ("override", "section", "name", "expected"),
    [
        ("system.guidance.recon_std_rescale=0.3", "guidance", "guidance_rescale", 0.3),
        ("system.guidance.guidance_scale=20", "guidance", "guidance_scale", 20),
        ("system.guidance.ckpt_path=weights.pt", "prior", "checkpoint", "weights.pt"),
        ("data.batch_size=8", "cameras", "batch_size", 8),
        (
            "system.loss.lambda_orient=[10.,1000.,400]",
            "loss_weights",
            "orientation",
            Piecewise(values=[10.0, 1000.0], steps=[0, 400]),
        ),
        ("system.geometry.normal_type=finite_difference", "field", "normal", "finite_difference_released"),
        ("system.geometry.density_bias=-1.0", "field", "density_blob", "constant"),
        ("system.loss.use_corr_loss=false", "correspondence", "enabled", False),
        ("system.background.random_aug=false", "background", "random_prob", 0.0),
        ("system.optimizer.params.geometry.encoding.lr=0.02", "optimizer", "encoding_lr", 0.02),
        ("checkpoint.save_top_k=0", "output", "checkpoint_keep", 1),
    ],
)
def test_overrides_in_the_old_names_arrive(
    override: str, section: str, name: str, expected: Any, tmp_path: Path
) -> None:
    assert getattr(getattr(from_main(tmp_path, override), section), name) == expected


def test_defaults_of_the_classes_fill_in_what_a_file_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    plain = OmegaConf.load(MAIN)
    for key in ("camera_perturb", "fovy_range", "n_view"):
        del plain.data[key]
    del plain.system.material["ambient_only_steps"]
    OmegaConf.save(plain, path)
    config = load(import_config(path, [f"system.prompt_processor.prompt={PROMPT}"]), tmp_path)
    assert config.cameras.camera_perturb == 0.1
    assert config.cameras.fovy_range == (40.0, 70.0)
    assert config.shading.ambient_only.steps == (0, 1000)


def test_interpolations_and_functions_of_threestudio_are_resolved_and_then_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "a: {ramp: [0, 10., 1000., 6000], still: 0., half: '${div:${b},4}'}\nb: 2\n"
        "c: ['${cmaxgt0:${a.ramp}}', '${cmaxgt0orcmaxgt0:${a.still},${a.ramp}}', '${not:${gt0:${a.still}}}']\n"
        "d: '${rmspace:${e},_}'\ne: a red cube\nf: ???\n",
        encoding="utf-8",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_upstream(path, ["b=6"])
    assert (read["a.half"], read["c"], read["d"]) == (1.5, [True, True, True], "a_red_cube")
    assert "f" not in read
    assert not OmegaConf.has_resolver("cmaxgt0")


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("data.colour=red", "data.colour=red: no such setting here."),
        ("system.guidance.half_precision_weights=true", "half_precision_weights=True: the released code never reads"),
        ("system.loss.lambda_sparsity=10.", "system.loss.lambda_sparsity=10.0: corr-mvdream-system never reads it"),
        ("system.loss.use_corr_loss=false", "use_corr_loss=False: the released code refuses"),
        ("data.height=64", "data.width=[32, 128]: pictures are square"),
        ("system.loss.lambda_orient=[0,10.,1000.,6000.]", "6000.0 counts epochs"),
        ("system.optimizer.params.geometry.feature_network.lr=0.1", "feature_network.lr=0.1: both networks"),
        ("tag=mine", "tag=mine: a run's folder is named by --run-dir"),
        ("system.weights=old.ckpt", "system.weights=old.ckpt: a checkpoint of threestudio"),
        ("resume=last.ckpt", "resume=last.ckpt: give the run to --resume"),
    ],
)
def test_what_is_not_carried_over_is_reported_with_the_reason(override: str, note: str) -> None:
    assert [line for line in import_config(MAIN, [override]).notes if note in line]


def test_a_probability_whose_switch_is_off_is_reported() -> None:
    overrides = ["system.background.random_aug=false", "system.background.random_aug_prob=0.7"]
    notes = import_config(MAIN, overrides).notes
    assert "system.background.random_aug_prob=0.7: system.background.random_aug is off." in notes


def test_guidance_scale_that_the_released_schedule_overwrites_is_reported() -> None:
    overrides = ["system.guidance.use_cfg_scheduling=true", "system.guidance.guidance_scale=30"]
    imported = import_config(MAIN, overrides)
    assert imported.values["guidance.guidance_scale"]["values"] == [50, 10, 50]
    assert [note for note in imported.notes if note.startswith("system.guidance.guidance_scale=30: ")]


def test_tables_do_not_contradict_each_other() -> None:
    assert not (RENAMED.keys() & LEFT_BEHIND.keys())
    assert not (ACCEPTED.keys() & (RENAMED.keys() - {"system.guidance.model_name"}))


def test_command_writes_the_file_and_reports_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new.yaml"
    arguments = ["import-config", str(MAIN), f"system.prompt_processor.prompt={PROMPT}", "data.colour=red"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "not carried over: data.colour=red: no such setting here." in capsys.readouterr().err
    assert load_config([out]) == load_config([CONFIGS / MAIN.name], {"prompt": PROMPT})
    assert main(arguments) == 0
    assert capsys.readouterr().out == out.read_text(encoding="utf-8")


def test_command_refuses_a_place_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "missing" / "new.yaml"
    assert main(["import-config", str(MAIN), "--out", str(out)]) == 2
    assert f"corrdream: {out} cannot be written: No such file or directory." in capsys.readouterr().err


def test_command_refuses_what_is_no_threestudio_file_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-config", str(CONFIGS / "corrdream.yaml")]) == 2
    assert capsys.readouterr().err == "corrdream: system_type is missing: this is no configuration of threestudio.\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system_type=dreamfusion-system", "system_type=dreamfusion-system has no counterpart; accepted: corr-mvdream"),
        ("system.geometry_type=tetrahedra-sdf-grid", "accepted: implicit-volume"),
        ("system.geometry.normal_type=exact", "normal_type=exact has no counterpart"),
        ("trainer.precision=64", "trainer.precision=64 has no counterpart"),
        ("data.resolution_milestones=[1,2]", "data.batch_size must have one entry more"),
        ("system.loss.lambda_orient=[1,2]", "system.loss.lambda_orient must have three or four entries"),
        ("data.height=${data.depth}", "data.depth"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_config(MAIN, [override])


def test_files_that_are_none_of_threestudios_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system_type is missing"):
        import_config(CONFIGS / "corrdream.yaml")
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be read"):
        import_config(tmp_path / "missing.yaml")
