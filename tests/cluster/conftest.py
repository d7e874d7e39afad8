"""One cluster for all tests of this folder: hosts, and the project's own cluster/local.yaml on them."""

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import PREFIX, ROOT, Host, Lan, all_namespaces, build_lan, missing, wait_for

SERVERS = ("head", "worker1", "worker2")
# The line of cluster/README.md.
LAUNCHER = "export RAY_AUTH_MODE=token RAY_UP_enable_autoscaler_v2=0 RAY_USAGE_STATS_ENABLED=0"


@pytest.fixture(scope="session")
def lan() -> Iterator[Lan]:
    if lacking := missing():
        pytest.exit(lacking, returncode=2)
    before = traces()
    with build_lan(SERVERS) as built:
        namespaces = {link for host in (built.laptop, *built.servers) for link in host.namespaces()}
        for server in built.servers:
            _prepare(server)
        yield built
    assert traces() == before
    assert not namespaces & all_namespaces()


def traces() -> dict[str, list[str]]:
    """What hosts could leave on this machine besides processes."""
    return {
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if PREFIX in line],
        "folders": sorted(path.name for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*")),
    }


def _prepare(server: Host) -> None:
    """What `make setup` would install from the network: this program's environment; but the code is what SSH brings."""
    environment = server.home / "corrdream-src" / ".venv"
    environment.mkdir(parents=True)
    for part in Path(sys.prefix).iterdir():
        (environment / part.name).symlink_to(part)
    ready = environment / ".ready"
    ready.unlink(missing_ok=True)
    ready.touch()
    # Ray's workers give way to whatever else runs, which on a host of their own is nothing.
    (server.home / ".bashrc").write_text("export PYTHONPATH=$HOME/corrdream-src RAY_worker_niceness=0\n")


@dataclass(frozen=True)
class Cluster:
    """The cluster as its user has it: a file, and commands."""

    lan: Lan
    file: str

    def user(self, line: str, *, seconds: float = 300.0, check: bool = True) -> tuple[int, str]:
        """Runs a command at the laptop: exit status and all that it printed."""
        ended = self.lan.laptop.run(f"{self.setting} && {line}", seconds=seconds, check=check)
        print(f"$ {line}\n{ended.stdout}")
        return ended.returncode, ended.stdout

    @property
    def setting(self) -> str:
        """What the user's shell has set."""
        return f"export PATH={Path(sys.prefix) / 'bin'}:$PATH && {LAUNCHER}"

    @property
    def storage(self) -> Path:
        """CORRDREAM_STORAGE, as this program sees it."""
        return self.lan.shared / "corrdream" / "runs"


@pytest.fixture(scope="session")
def cluster(lan: Lan) -> Cluster:
    """Brought up by `ray up`; the test of `ray down` takes it down."""
    config = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
    head, *workers = lan.servers
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[key][-1] += " --num-cpus=1"  # each host sees all cores of this machine
    (lan.laptop.home / "local.yaml").write_text(yaml.safe_dump(config))
    made = Cluster(lan, "~/local.yaml")
    made.user("ray get-auth-token --generate > /dev/null")
    made.user(f"ray up --yes {made.file}")
    wait_for(lambda: active_nodes(made) == len(SERVERS), "three nodes in the cluster", seconds=120)
    return made


def active_nodes(cluster: Cluster) -> int:
    """How many nodes take part, as `ray status` says."""
    _, status = cluster.user(f"ray exec {cluster.file} 'ray status'")
    return sum(map(int, re.findall(r"^ (\d+) local\.cluster\.node", status, re.MULTILINE)))
