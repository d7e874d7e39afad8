"""Asks every node of a cluster, before the first trial, whether it can run this sweep's trials."""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import corrdream
from sweeps.folders import SweepFolder
from sweeps.locks import SweepError
from sweeps.places import sweep_at
from sweeps.storage import Storage

QUESTION = "question"
ANSWER_SECONDS = 600.0  # a node may have to download the prior first


@dataclass(frozen=True)
class Problem:
    """Why a node cannot take part, and what to do about it."""

    what: str
    cure: str


def check_nodes(folder: SweepFolder, config: corrdream.Config) -> None:
    """SweepError, naming nodes and cure, unless all share the storage and have the same sources and prior.

    Nodes that join later are not asked; there, each trial finds out for itself.
    """
    storage, meeting = folder.storage, folder.path.with_name(f".nodes-{uuid.uuid4().hex}")
    _leave_word(storage, meeting / QUESTION)
    try:
        problems = _ask(storage.uri(meeting), corrdream.config_to_dict(config), corrdream.identity(config))
    finally:
        for path in storage.files(meeting):
            storage.delete(path)
        shutil.rmtree(meeting, ignore_errors=True)
    if problems:
        cure = problems[0][1].cure  # one thing after the other
        nodes = [f"{node} {problem.what}" for node, problem in problems if problem.cure == cure]
        raise SweepError(f"{'; '.join(nodes)}. {cure}")


def _ask(meeting: str, config: dict[str, Any], identity: str) -> list[tuple[str, Problem]]:
    """Those nodes that have one, by host name and address."""
    answers = []
    for node in filter(lambda node: node["Alive"], ray.nodes()):
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        question = ray.remote(examine).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        answers.append((name, question.remote(meeting, config, identity)))
    ray.wait([answer for _, answer in answers], num_returns=len(answers), timeout=ANSWER_SECONDS)
    return [(name, problem) for name, answer in answers if (problem := _read(answer))]


def _read(answer: Any) -> Problem | None:
    try:
        problem: Problem | None = ray.get(answer, timeout=0)
    except RayError as error:  # the package is missing there, the process died, or there was no answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        return Problem(f"cannot run trials: {reason}", "Install corrdream there in the same way as here.")
    return problem


def examine(meeting: str, config: dict[str, Any], identity: str) -> Problem | None:
    """Runs on the node."""
    here = sweep_at(meeting)
    place = here.storage.uri(here.path.parent)
    share = "Choose a --storage (or CORRDREAM_STORAGE) that all nodes share and may write to."
    try:
        if not here.storage.exists(here.path / QUESTION):
            return Problem(f"does not see {place} as this one does", share)
        _leave_word(here.storage, here.path / uuid.uuid4().hex)
    except OSError as error:
        return Problem(f"cannot write to {place} ({error.strerror or ' '.join(str(error).split())})", share)
    try:
        known = corrdream.identity(corrdream.load_config((), config))
    except ValueError as error:  # the prior's file
        return Problem(f"cannot run trials: {str(error).rstrip('.')}", "Every node needs that file, at the same place.")
    if known != identity:
        return Problem("has other sources of corrdream or another prior", "Put the same ones on all nodes.")
    return None


def _leave_word(storage: Storage, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    storage.push([path])
