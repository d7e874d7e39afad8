"""What a node is asked before a sweep starts. Here the question is put without a cluster; tests/cluster has one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import corrdream
from sweeps.nodes import QUESTION, examine
from tests.sweep_folders import tiny_overrides


@pytest.fixture
def config(tiny_prior_file: Path) -> corrdream.Config:
    return corrdream.load_config((), tiny_overrides(tiny_prior_file))


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    path = tmp_path / "meeting"
    path.mkdir()
    (path / QUESTION).touch()
    return path


def ask(meeting: Path, config: corrdream.Config, **changes: Any) -> str:
    there = dataclasses.replace(config, **changes)
    problem = examine(str(meeting), corrdream.config_to_dict(there), corrdream.identity(config))
    return f"{problem.what}. {problem.cure}" if problem else ""


def test_a_node_that_sees_the_storage_and_has_the_same_sources_has_no_problem(meeting: Path, config: corrdream.Config):
    assert ask(meeting, config) == ""


def test_a_node_with_a_folder_of_the_same_name_on_its_own_disk_does_not_see_the_storage(
    tmp_path: Path, config: corrdream.Config
):
    problem = ask(tmp_path / "another node's meeting", config)
    assert f"does not see {tmp_path}" in problem
    assert "--storage (or CORRDREAM_STORAGE) that all nodes share" in problem


def test_a_node_that_may_only_read_is_found(meeting: Path, config: corrdream.Config, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # root may write anywhere
    assert f"cannot write to {meeting.parent} (Permission denied)" in ask(meeting, config)


def test_a_node_with_other_sources_or_another_prior_is_found(meeting: Path, config: corrdream.Config):
    assert "has other sources of corrdream or another prior. Put the same" in ask(meeting, config, seed=7)


def test_a_node_without_the_priors_file_is_found(meeting: Path, config: corrdream.Config):
    away = dataclasses.replace(config.prior, checkpoint="/nowhere/prior.safetensors")
    problem = ask(meeting, config, prior=away)
    assert "/nowhere/prior.safetensors does not exist" in problem
    assert "Every node needs that file" in problem
