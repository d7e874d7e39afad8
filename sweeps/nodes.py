"""Asks every node of a cluster, before the first trial, whether it can run this sweep's trials."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import corrdream
from sweeps.folders import SweepError

ANSWER_SECONDS = 600.0  # a node may have to download the prior first


@dataclass(frozen=True)
class Problem:
    """Why a node cannot take part, and what to do about it."""

    what: str
    cure: str


def check_nodes(storage: Path, config: corrdream.Config) -> None:
    """SweepError, naming nodes and cure, unless all share `storage` and have the same sources and prior.

    Nodes that join later are not asked; there, each trial finds out for itself.
    """
    storage.mkdir(parents=True, exist_ok=True)
    token = storage / f".nodes-{uuid.uuid4().hex}"
    token.touch()
    try:
        problems = _ask(str(token), corrdream.config_to_dict(config), corrdream.identity(config))
    finally:
        for path in storage.glob(f"{token.name}*"):
            path.unlink()
    if problems:
        cure = problems[0][1].cure  # one thing after the other
        nodes = [f"{node} {problem.what}" for node, problem in problems if problem.cure == cure]
        raise SweepError(f"{'; '.join(nodes)}. {cure}")


def _ask(token: str, config: dict[str, Any], identity: str) -> list[tuple[str, Problem]]:
    """Those nodes that have one, by host name and address."""
    answers = []
    for node in filter(lambda node: node["Alive"], ray.nodes()):
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        question = ray.remote(examine).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        answers.append((name, question.remote(token, config, identity)))
    ray.wait([answer for _, answer in answers], num_returns=len(answers), timeout=ANSWER_SECONDS)
    return [(name, problem) for name, answer in answers if (problem := _read(answer))]


def _read(answer: Any) -> Problem | None:
    try:
        problem: Problem | None = ray.get(answer, timeout=0)
    except RayError as error:  # the package is missing there, the process died, or there was no answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        return Problem(f"cannot run trials: {reason}", "Install corrdream there in the same way as here.")
    return problem


def examine(token: str, config: dict[str, Any], identity: str) -> Problem | None:
    """Runs on the node."""
    storage = Path(token).parent
    share = "Choose a --storage (or CORRDREAM_STORAGE) that all nodes share and may write to."
    if not Path(token).exists():
        return Problem(f"does not see {storage} as this one does", share)
    try:
        Path(f"{token}-{uuid.uuid4().hex}").touch()
    except OSError as error:
        return Problem(f"cannot write to {storage} ({error.strerror})", share)
    try:
        known = corrdream.identity(corrdream.load_config((), config))
    except ValueError as error:  # the prior's file
        return Problem(f"cannot run trials: {str(error).rstrip('.')}", "Every node needs that file, at the same place.")
    if known != identity:
        return Problem("has other sources of corrdream or another prior", "Put the same ones on all nodes.")
    return None
