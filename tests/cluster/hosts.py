"""Several hosts on one machine. Each has its own network, processes, host name, home, /tmp and sshd.

The hosts are Linux namespaces without names, which end with their first process; that one is killed when this program
ends, however it ends. Their network is a bridge inside the one called `laptop`, and leads nowhere else. All of them
see one folder as SHARED, as they would a network file system.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SHARED = Path("/mnt")
HOME = Path(pwd.getpwuid(0).pw_dir)
ROOT = Path(__file__).resolve().parents[2]
LAPTOP = "laptop"
NETWORK = "10.88.0"
PREFIX = "corrdream-hosts-"  # of the folder that holds all of it
WAIT_SECONDS = 20.0
NEEDED = {"sshd": "openssh-server", "ip": "iproute2", "rsync": "rsync", "ps": "procps", "make": "make"}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SET_UP = """
hostname {name}
mount --bind {scratch}/hosts /etc/hosts
mount --bind {scratch}/resolv.conf /etc/resolv.conf
mount --bind {scratch}/shared {shared}
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for path in {visible}; do
  case $path in
    {home}/*) copy={folder}/home${{path#{home}}} ;;
    /tmp/*) copy={folder}$path ;;
    *) continue ;;
  esac
  mkdir -p "$copy" && mount --bind "$path" "$copy"
done
mount --rbind {folder}/home {home}
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --rbind {folder}/tmp /tmp
"""
BRIDGE = """
ip link set lo up
ip link add lan type bridge
ip address add {address}/24 dev lan
ip link set lan up
"""
# Ray asks for the way to a public address to learn its own; nothing is sent, and it would lead to the laptop only.
PLUG_IN = """
ip link set lo up
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {gateway}
"""
SSHD = """\
HostKey {home}/.ssh/host_key
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PidFile none
MaxSessions 100
MaxStartups 100
"""


def missing() -> str:
    """What this machine lacks to build hosts, and how to get it; empty if nothing."""
    if os.geteuid() != 0:
        return "building hosts needs root: sudo make test-cluster"
    search = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    lacking = sorted({package for program, package in NEEDED.items() if not shutil.which(program, path=search)})
    if lacking:
        return f"building hosts needs Debian packages: apt-get install {' '.join(lacking)}"
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        return "building hosts needs the right to make namespaces; in a container, run it privileged"
    return ""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A running host."""

    name: str
    address: str
    folder: Path  # holds its home and its /tmp, as this program sees them
    pid: int  # of its first process, as this program numbers it
    guard: subprocess.Popen[bytes]  # at whose end the first process is killed

    @property
    def home(self) -> Path:
        """Its user's home, as this program sees it."""
        return self.folder / "home"

    def start(self, line: str) -> subprocess.Popen[str]:
        """Starts a line of shell there, in the project's folder, with nothing of this program's environment."""
        return subprocess.Popen(
            ["nsenter", "--target", str(self.pid), "--all", "--", "bash", "-c", f"cd '{ROOT}' && {line}"],
            env={"HOME": str(HOME), "USER": "root", "LANG": "C.UTF-8", "PATH": SYSTEM_PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, line: str, *, seconds: float = 300.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The same, to its end; an AssertionError with all it printed if it fails and `check`."""
        process = self.start(line)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            output = end(process)
            raise AssertionError(f"{self.name}: {line}: no end after {seconds:.0f} s\n{output}") from None
        assert not check or process.returncode == 0, f"{self.name}: {line}: status {process.returncode}\n{output}"
        return subprocess.CompletedProcess(line, process.returncode, output)

    def processes(self) -> list[str]:
        """Command lines of all that runs there, except of what looks."""
        return [line for line in self.run("ps -eo args --no-headers").stdout.splitlines() if "ps -eo" not in line]

    def namespaces(self) -> set[str]:
        """What its processes alone are in."""
        return _namespaces(self.pid) - _namespaces(os.getpid())

    def kill(self) -> None:
        """As if its power failed."""
        self.guard.kill()
        self.guard.wait()
        wait_for(lambda: not Path(f"/proc/{self.pid}").exists(), f"the end of {self.name}")


@dataclass(frozen=True, kw_only=True)
class Lan:
    """The hosts of one network."""

    laptop: Host  # where the user sits; the only one without sshd
    servers: tuple[Host, ...]
    shared: Path  # SHARED, as this program sees it


def all_namespaces() -> set[str]:
    """Of every process of this machine."""
    return {name for path in Path("/proc").glob("[0-9]*") for name in _namespaces(int(path.name))}


def _namespaces(pid: int) -> set[str]:
    with suppress(OSError):  # it may have ended, or be a stranger's
        return {str(path.readlink()) for path in Path(f"/proc/{pid}/ns").iterdir()}
    return set()


def end(process: subprocess.Popen[str]) -> str:
    """Kills what `Host.start` started, with all that it has started itself; returns what they printed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


@contextmanager
def build_lan(names: Sequence[str]) -> Iterator[Lan]:
    """A laptop, and a server of each name; nothing is left of them afterwards."""
    addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate((LAPTOP, *names), 1)}
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, ExitStack() as stack:
        scratch = Path(folder)
        (scratch / "shared").mkdir()
        (scratch / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        (scratch / "hosts").write_text("\n".join(lines) + "\n")
        hosts = [stack.enter_context(_build_host(name, address, scratch)) for name, address in addresses.items()]
        laptop, *servers = hosts
        laptop.run(BRIDGE.format(address=laptop.address))
        laptop.run("mkdir -m 700 ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
        for number, server in enumerate(servers):
            _connect(server, laptop, port=f"port{number}")
        yield Lan(laptop=laptop, servers=tuple(servers), shared=scratch / "shared")


@contextmanager
def _build_host(name: str, address: str, scratch: Path) -> Iterator[Host]:
    folder = scratch / name
    (folder / "home").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    # The first process of a host must bury orphans: bash does while it waits.
    options = "--mount --uts --ipc --net --pid --fork --kill-child --mount-proc"
    guard = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *options.split(), "bash", "-c", "sleep infinity & wait"]
    )
    children = Path(f"/proc/{guard.pid}/task/{guard.pid}/children")
    wait_for(lambda: children.exists() and children.read_text().strip(), f"the start of {name}")
    host = Host(name=name, address=address, folder=folder, pid=int(children.read_text()), guard=guard)
    try:
        # unshare sets its child up before that becomes bash.
        wait_for(lambda: Path(f"/proc/{host.pid}/comm").read_text().strip() == "bash", f"the start of {name}")
        visible = " ".join(map(str, (ROOT, Path(sys.prefix), Path(sys.base_prefix))))
        script = SET_UP.format(name=name, scratch=scratch, folder=folder, shared=SHARED, home=HOME, visible=visible)
        host.run(f"set -e; {script}")
        yield host
    finally:
        host.kill()


def _connect(server: Host, laptop: Host, *, port: str) -> None:
    """A cable from the server to the laptop's bridge, and sshd at the server, to which the laptop has the key."""
    pair = f"ip link add {port} type veth peer name eth0 netns {server.pid}"
    inside = ["nsenter", "--target", str(laptop.pid), "--net", "bash", "-c"]  # and so with this program's numbers
    subprocess.run([*inside, f"{pair} && ip link set {port} master lan up"], check=True)
    server.run(PLUG_IN.format(address=server.address, gateway=laptop.address))
    ssh = server.home / ".ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(laptop.home / ".ssh" / "id_ed25519.pub", ssh / "authorized_keys")
    (ssh / "sshd_config").write_text(SSHD.format(home=HOME))
    server.run("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/host_key && /usr/sbin/sshd -f ~/.ssh/sshd_config")
