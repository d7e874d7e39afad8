"""The commands of cluster/README.md, on a head and two workers, in the order in which a user gives them.

Each test needs what those before it have done, so they run together or not at all: make test-cluster.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from sweeps.folders import SweepFolder, load_sweep
from tests.cluster.conftest import SERVERS, Cluster, active_nodes
from tests.cluster.hosts import HOME, SHARED, Host, end, wait_for
from tests.sweep_folders import RESCALE, read_json, tiny_overrides, write_grid

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
STEPS = 150
SLOW = 1200.0  # on a machine that has much else to do

# What Slurm's srun does with `--exclude=THIS`, for a command that is the same everywhere. Its options are left out.
SRUN = r"""#!/bin/bash
while [[ $1 == --* ]]; do shift; done
ssh -i ~/ray_bootstrap_key.pem -o StrictHostKeyChecking=no worker1 "$(export -p); cd '$PWD'; $(printf '%q ' "$@")"
"""


@pytest.fixture(scope="module")
def grid(cluster: Cluster, tiny_prior_file: Path) -> str:
    """Four small trials, as the hosts see the file."""
    shutil.copy(tiny_prior_file, cluster.lan.shared / "tiny.safetensors")
    overrides = tiny_overrides(SHARED / "tiny.safetensors", max_steps=STEPS) | {"output.checkpoint_every": 10}
    del overrides["prompt"]
    parameters = {RESCALE: [0, 0.3, 0.5, 0.7]}
    write_grid(cluster.lan.shared, SHARED / "tiny.safetensors", parameters=parameters, overrides=overrides)
    return str(SHARED / "small.yaml")


def holders(sweep: Path) -> dict[str, str]:
    """By trial: which process on which host was the last to work on it."""
    return {lock.parent.name: lock.read_text().strip() for lock in sweep.glob("trials/*/trial.lock")}


def states(sweep: Path) -> list[str]:
    """Of all trials."""
    return [str(read_json(path)["state"]) for path in sweep.glob("trials/*/status.json")]


def hosts_of(sweep: Path) -> set[str]:
    return {holder.rpartition(" ")[2] for holder in holders(sweep).values()}


def test_ray_up_makes_one_cluster_of_all_hosts(cluster: Cluster):
    assert active_nodes(cluster) == len(SERVERS)
    _, shown = cluster.user(f"ray exec {cluster.file} hostname")
    assert "head" in shown.split()


def test_ray_attach_opens_a_shell_on_the_head(cluster: Cluster):
    typed = "(sleep 5; echo 'echo shell on $(hostname)'; sleep 1; echo exit)"
    _, shown = cluster.user(f"{typed} | script --quiet --return --command 'ray attach {cluster.file}' /dev/null")
    assert "shell on head" in shown


def test_a_storage_that_is_not_shared_is_refused_before_a_trial_starts(cluster: Cluster, grid: str):
    status, shown = cluster.user(
        f"ray submit {cluster.file} sweeps/run.py --grid {grid} --storage runs", seconds=SLOW, check=False
    )
    assert status != 0
    (error,) = re.findall(r"^sweeps: .*$", shown, re.MULTILINE)
    for number, name in enumerate(SERVERS[1:], 3):
        assert f"node {name} (10.88.0.{number}) does not see {HOME}/runs" in error
    assert "node head" not in error
    assert "Choose a --storage (or CORRDREAM_STORAGE) that all nodes share" in error
    for server in cluster.lan.servers:
        assert not list((server.home / "runs").glob("*"))


def test_ray_submit_runs_the_trials_on_several_hosts_and_leaves_all_of_it_on_the_shared_storage(cluster: Cluster):
    line = f"ray submit {cluster.file} sweeps/run.py --grid rescale"
    cluster.user(f"{line} --max-steps 4 --name submitted --prompts \"'a snowman'\"", seconds=SLOW)
    sweep = cluster.storage / "submitted"
    assert states(sweep) == ["finished"] * 4
    assert len(hosts_of(sweep)) >= 2
    assert len(set(holders(sweep).values())) <= len(SERVERS), "a process keeps the prior from one trial to the next"
    assert (sweep / "report.html").stat().st_size > 0
    assert len((sweep / "results.csv").read_text().splitlines()) == 1 + 4
    for trial in load_sweep(SweepFolder(sweep)).trials:
        assert (sweep / "trials" / trial.name / "checkpoints" / "step-000004.safetensors").exists()


def test_ray_submit_hands_on_that_the_script_failed(cluster: Cluster):
    status, shown = cluster.user(f"ray submit {cluster.file} sweeps/run.py --grid rescal", check=False)
    assert status != 0
    assert "did you mean rescale?" in shown


def submit_job(cluster: Cluster, identifier: str, words: str) -> None:
    """Through a tunnel that is closed again at once: the user shuts the laptop."""
    tunnel = cluster.lan.laptop.start(f"{cluster.setting} && exec ray dashboard {cluster.file}")
    wait_for(lambda: cluster.user(": < /dev/tcp/localhost/8265", check=False)[0] == 0, "the tunnel", seconds=120)
    submit = f"ray job submit --address http://localhost:8265 --submission-id {identifier} --no-wait --working-dir ."
    cluster.user(f"{submit} -- python sweeps/run.py {words}")
    end(tunnel)


def test_a_job_that_is_stopped_saves_its_trials_and_says_how_to_resume(cluster: Cluster, grid: str):
    submit_job(cluster, "first", f"--grid {grid} --name job")
    sweep = cluster.storage / "job"
    trial = sweep / "trials" / wait_for_trial(sweep, "head", {})
    cluster.user(f"ray exec {cluster.file} 'ray job stop first'")
    status = read_json(trial / "status.json")
    assert status["state"] in ("stopped", "finished")
    assert (trial / "checkpoints" / f"step-{int(str(status['step'])):06d}.safetensors").exists()
    _, log = cluster.user(f"ray exec {cluster.file} 'ray job logs first'")
    assert "--resume job" in log


def test_a_job_outlives_its_submitter_and_a_host(cluster: Cluster):
    sweep = cluster.storage / "job"
    before = holders(sweep)
    submit_job(cluster, "second", "--resume job")
    *_, victim = cluster.lan.servers
    trial = sweep / "trials" / wait_for_trial(sweep, victim.name, before)
    victim.kill()
    attempts = int(str(read_json(trial / "status.json")["attempts"]))
    saved = max(int(path.stem.removeprefix("step-")) for path in (trial / "checkpoints").glob("step-*.safetensors"))
    wait_for(lambda: states(sweep) == ["finished"] * 4, "the end of all trials", seconds=SLOW)
    assert not holders(sweep)[trial.name].endswith(f" on {victim.name}")
    assert int(str(read_json(trial / "status.json")["attempts"])) > attempts
    assert f"from step {saved}." in (trial / "log.txt").read_text(), "it went on from the lost host's last checkpoint"
    rows = [json.loads(row)["step"] for row in (trial / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, STEPS + 1)), "and took each step once"

    def succeeded() -> bool:
        return "'second' succeeded" in cluster.user(f"ray exec {cluster.file} 'ray job status second'")[1]

    wait_for(succeeded, "the job's success", seconds=120)
    _, log = cluster.user(f"ray exec {cluster.file} 'ray job logs second'")
    assert "report       /mnt/corrdream/runs/job/report.html" in log


def wait_for_trial(sweep: Path, host: str, before: dict[str, str]) -> str:
    """The name of a trial that runs on the host, in another process than `before`, and has a checkpoint."""

    def found() -> list[str]:
        there = {name: holder for name, holder in holders(sweep).items() if holder.endswith(f" on {host}")}
        new = [sweep / "trials" / name for name, holder in there.items() if holder != before.get(name)]
        saved = [trial for trial in new if list((trial / "checkpoints").glob("step-*"))]
        return [trial.name for trial in saved if read_json(trial / "status.json")["state"] == "running"]

    wait_for(found, f"a checkpoint on {host}", seconds=SLOW)
    return found()[0]


def test_ray_down_ends_the_cluster_on_every_host(cluster: Cluster):
    cluster.user(f"ray down --yes {cluster.file}")
    head, worker, _ = cluster.lan.servers  # the third one is lost
    for host in (head, worker):
        wait_for(lambda host=host: not cluster_processes(host), f"the end of Ray on {host.name}", seconds=300)


def cluster_processes(host: Host) -> list[str]:
    """Those that take part in a cluster or work for it; a monitor of log files may outlive them."""
    return [line for line in host.processes() if re.search(r"^ray::|/raylet/raylet |/gcs_server |run\.py", line)]


def test_the_batch_file_of_slurm_runs_a_sweep_in_its_allocation_and_resumes_it(cluster: Cluster, grid: str):
    head, worker, _ = cluster.lan.servers
    (head.home / "bin").mkdir()
    (head.home / "bin" / "srun").write_text(SRUN)
    (head.home / "bin" / "srun").chmod(0o755)
    run_batch(head, worker, f"--grid {grid} --name batch --seeds 7")  # no trial that the others have finished
    sweep = cluster.storage / "batch"
    assert states(sweep) == ["finished"] * 4
    assert hosts_of(sweep) == {"head", "worker1"}

    shutil.rmtree(next(sweep.glob("trials/*")))
    shown = run_batch(head, worker, "--resume batch")
    assert "3 finished, 1 to run" in shown
    assert states(sweep) == ["finished"] * 4


def run_batch(head: Host, worker: Host, words: str) -> str:
    """Runs the batch file as Slurm does on the first node, and ends what it leaves, as Slurm does; what it printed."""
    slurm = "SLURM_NNODES=2 SLURM_CPUS_ON_NODE=1 SLURMD_NODENAME=head PYTHONPATH=~/corrdream-src PATH=~/bin:$PATH"
    batch = f"cd ~/corrdream-src && {slurm} exec bash cluster/sweep.sbatch {words} > ~/batch.log 2>&1"
    started = head.start(batch)
    status = started.wait(timeout=SLOW)
    end(started)
    for host in (head, worker):
        host.run("~/corrdream-src/.venv/bin/ray stop")  # in a host it sees that host's processes only
    shown = (head.home / "batch.log").read_text()
    print(shown)
    assert status == 0, shown
    return shown
