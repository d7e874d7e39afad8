"""The files of cluster/ against the schemas of those who read them. Nothing is started, and no network is needed."""

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from botocore.session import Session
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from sweeps.run import parse

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT / "tests" / "references" / "cluster"
LAUNCHER_FILES = ("local", "aws", "gcp")
DOCKERFILE_WORDS = {"FROM", "RUN", "WORKDIR", "COPY", "ENV"}
PAGES = ("README.md", "cluster/README.md")
SBATCH_OPTIONS = {"job-name", "nodes", "ntasks-per-node", "exclusive", "gpus-per-node", "time", "signal"}


def read_yaml(name: str) -> dict[str, Any]:
    plain = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    assert isinstance(plain, dict)
    return plain


def closed(schema: Any) -> Any:
    """The schema with every key refused that it does not name, as `kubectl --validate=strict` and Google's API do."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    names = {
        key: {name: closed(part) for name, part in schema[key].items()}
        for key in ("properties", "$defs")
        if key in schema
    }
    rest = {key: closed(part) for key, part in schema.items() if key not in names}
    if rest.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    is_open = "properties" not in schema or "additionalProperties" in schema
    return rest | names | ({} if is_open else {"additionalProperties": False})


def refuse(document: Any, schema_file: str) -> str:
    """What is wrong with the document; empty if nothing."""
    schema = closed(json.loads((SCHEMAS / schema_file).read_text()))
    return "; ".join(error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document))


# The cluster launcher.


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_launcher_accepts_the_file(name: str):
    validate_config(prepare_config(read_yaml(name)))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_launcher_refuses_the_file_with_a_misspelled_key(name: str):
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate_config(prepare_config(read_yaml(name) | {"setup_comands": []}))


def test_the_launcher_takes_all_local_hosts_into_the_cluster():
    prepared = prepare_config(read_yaml("local"))
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(prepared["provider"]["worker_ips"])


def test_the_files_that_go_to_local_hosts_exist_and_are_all_that_the_setup_needs():
    mounted = {
        target: source for target, source in read_yaml("local")["file_mounts"].items() if "corrdream-src" in target
    }
    for target, source in mounted.items():
        assert target == f"~/corrdream-src/{source}"
        assert (ROOT / source).exists()
    needed = {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "corrdream", "sweeps", "configs", "cluster"}
    assert set(mounted.values()) == needed


def ec2_problems(node_config: dict[str, Any]) -> str:
    run_instances = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    asked = node_config | {"MinCount": 1, "MaxCount": 1}
    return str(ParamValidator().validate(asked, run_instances).generate_report())


def test_ec2_knows_every_field_of_the_machines():
    types = read_yaml("aws")["available_node_types"]
    for node_type in types.values():
        assert not ec2_problems(node_type["node_config"])
    assert "InstanceTyp" in ec2_problems({"InstanceTyp": "m7i.xlarge"})


def test_compute_engine_knows_every_field_of_the_machines():
    for node_type in read_yaml("gcp")["available_node_types"].values():
        assert not refuse(node_type["node_config"], "gce_instance_v1.json")
    assert "machineTyp" in refuse({"machineTyp": "g2-standard-8"}, "gce_instance_v1.json")


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_trials_run_on_workers_of_a_cloud_only(name: str):
    plain = read_yaml(name)
    assert plain["available_node_types"][plain["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert "--num-cpus=0 --num-gpus=0" in plain["head_start_ray_commands"][-1]


# Kubernetes.


def test_kuberay_accepts_the_job():
    assert not refuse(read_yaml("rayjob"), "rayjob_v1.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypont"), "python run.py"),
        (("spec", "shutdownAfterJobFinishes"), "yes"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "container"), []),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
    ],
)
def test_kuberay_refuses_the_job_with_a_mistake(path: tuple[str, ...], value: Any):
    job = copy.deepcopy(read_yaml("rayjob"))
    part = job
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert refuse(job, "rayjob_v1.json")


def test_the_job_names_the_version_of_ray_that_is_pinned():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert read_yaml("rayjob")["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


# Slurm.


def test_the_batch_file_is_a_script_whose_options_slurm_reads():
    path = CLUSTER / "sweep.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    given = [re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line) for line in lines if line.startswith("#SBATCH")]
    assert all(given)
    assert {option[1] for option in given if option} <= SBATCH_OPTIONS
    assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")], (
        "Slurm stops at the first command"
    )


# The image and the environment.


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, as word and rest."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def image_environment() -> dict[str, str]:
    words = [word for name, rest in dockerfile() if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def host_environment() -> dict[str, str]:
    line = "env -i HOME=/root PATH=/bin:/usr/bin bash -c 'source cluster/environment.sh && env'"
    shown = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def test_the_dockerfile_has_instructions_that_docker_knows_and_starts_from_a_python_that_is_supported():
    instructions = dockerfile()
    assert {name for name, _ in instructions} == DOCKERFILE_WORDS
    assert instructions[0][0] == "FROM"
    assert re.fullmatch(r"python:3\.1[12]-slim-\w+", instructions[0][1])
    for name, rest in instructions:
        if name == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
        if name == "COPY":
            assert rest == ". /app"


def test_what_the_image_leaves_out_is_what_git_and_docker_need_not_see():
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


def test_image_and_hosts_have_the_same_environment():
    image, host = image_environment(), host_environment()
    shared = {name: value for name, value in image.items() if name != "PATH" and not name.startswith("NVIDIA")}
    assert shared == {name: host[name] for name in shared}
    assert set(host) - set(image) <= {"HOME", "PWD", "SHLVL", "_"}
    assert host["PATH"].startswith(f"{ROOT}/.venv/bin:")
    assert image["PATH"].startswith("/app/.venv/bin:")


def test_all_files_name_one_image():
    named = {read_yaml(name)["docker"]["image"] for name in ("aws", "gcp")}
    cluster = read_yaml("rayjob")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        named |= {container["image"] for container in group["template"]["spec"]["containers"]}
    (image,) = named
    assert f"--tag {image} ." in (CLUSTER / "Dockerfile").read_text()


# What the pages say.


def commands(page: str) -> Iterator[str]:
    """Every line of the page's blocks of code, without its comment."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    for block in (block for language, block in blocks if not language):
        yield from (re.split(" [#>] ", line)[0].strip() for line in block.replace("\\\n", " ").splitlines())


def sweeps_of_pages() -> list[list[str]]:
    """The words that each sweep of the pages and of rayjob.yaml is given."""
    lines = [line for page in PAGES for line in commands(page)] + [read_yaml("rayjob")["spec"]["entrypoint"]]
    found = [re.search(r"(?:sweeps/run\.py|cluster/sweep\.sbatch) (.*)", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def test_every_sweep_of_the_pages_has_options_that_exist():
    sweeps = sweeps_of_pages()
    assert len(sweeps) >= 10
    for words in sweeps:
        assert parse(words)


def test_every_ray_command_of_the_pages_exists_and_has_its_options():
    given = [shlex.split(line)[1:] for page in PAGES for line in commands(page) if line.startswith("ray ")]
    assert {words[0] for words in given} >= {"up", "down", "submit", "exec", "attach", "dashboard", "job"}
    for name, *words in given:
        command = cli.commands[name]
        if name == "job":
            command = command.commands[words.pop(0)]
        command.make_context(name, list(words))
        assert not [word for word in words if word.startswith("cluster/") and not (ROOT / word).exists()]
