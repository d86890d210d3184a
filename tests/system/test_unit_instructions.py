"""The instructions in the systemd units, carried out word for word where nothing can be harmed.

In mount and network namespaces of its own, with /etc, /var and /opt of its own: users, keys and
services made here are gone with the test. What systemd would do is done by hand from the unit's
own lines; `systemctl` itself does nothing. Needs root.
"""

import os
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.system.processes import ROOT, Command
from weights.demo import demo_path

UNITS = ROOT / "tools" / "systemd"
TOOLS = ("unshare", "useradd", "runuser", "install", "ip")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="users and namespaces need root"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason=f"one of {', '.join(TOOLS)} is not here"
    ),
]

# A machine of our own: /etc copied, the rest empty; Python where every user may read it.
MACHINE = """
umask 022
mkdir $T/etc && cp -a /etc/. $T/etc && mount --bind $T/etc /etc
for place in /var/lib /var/cache /opt /run; do mount -t tmpfs -o mode=755 own $place; done
mkdir -p /opt/headwise/bin /opt/python /opt/site /opt/source $T/bin
mount --bind {base} /opt/python
mount --bind {site} /opt/site
mount --bind {root} /opt/source
cat > /opt/headwise/bin/headwise <<'END'
#!/bin/sh
PYTHONPATH=/opt/source:/opt/site exec /opt/python/bin/{python} -m tools.cli "$@"
END
cat > $T/bin/sudo <<'END'
#!/bin/sh
[ "$1" = -u ] || exit 1
user=$2; shift 2
exec runuser -u $user -- env "$@"
END
printf '#!/bin/sh\\n' > $T/bin/systemctl
chmod 755 /opt/headwise/bin/headwise $T/bin/*
export PATH=$T/bin:$PATH
unset PYTHONPATH XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_CACHE_HOME
ip link set lo up && ip addr add 192.168.1.10/24 dev lo
mkdir -p /etc/systemd/system
"""


def _cut_off(step: str) -> str:
    """Return a step; compiling every kernel takes minutes, so that it begins well has to do."""
    if " --warm" not in step:
        return step
    # This process may have chosen a cache of its own, which a user's shell has not.
    return f"env -u NUMBA_CACHE_DIR timeout 10 {step} || [ $? -eq 124 ]"


class Unit:
    """A unit file: what it tells its reader to do, and what it tells systemd."""

    def __init__(self, name: str) -> None:
        self.path = UNITS / f"headwise-{name}.service"
        self._text = self.path.read_text()
        told = re.findall(r"^#   (.*)$", self._text, re.MULTILINE)
        self.steps = [_cut_off(line) for line in told if " status" not in line]
        self.client = [line for line in told if " status" in line]

    def values(self, key: str) -> list[str]:
        return re.findall(rf"^{key}=(.*)$", self._text, re.MULTILINE)

    def start(self) -> str:
        """Return what systemd does to start it, as a line for the shell."""
        lines = []
        for key, parent in (("State", "/var/lib"), ("Cache", "/var/cache"), ("Runtime", "/run")):
            for name, mode in zip(
                self.values(f"{key}Directory"), self.values(f"{key}DirectoryMode"), strict=True
            ):
                lines.append(f"install -d -o headwise -g headwise -m {mode} {parent}/{name}")
        (user,), (command,) = self.values("User"), self.values("ExecStart")
        (mask,) = self.values("UMask")
        env = shlex.join(["env", "-i", "PATH=/usr/bin:/bin", *self.values("Environment")])
        lines.append(f"(cd / && umask {mask} && exec runuser -u {user} -- {env} {command}) &")
        return "\n".join(lines)


def script(boards: Path) -> str:
    """Return all that the instructions say, for a coordinator and a board on one machine."""
    coordinator, agent = Unit("coordinator"), Unit("agent")
    steps = [*coordinator.steps, *(step for step in agent.steps if step not in coordinator.steps)]
    carry = "cp /var/lib/headwise/pi-1.join ."
    at = steps.index(next(step for step in steps if "NAME.join" in step))
    text = "\n".join([*steps[:at], carry, *steps[at:]])
    text = text.replace("MODEL", str(demo_path())).replace("NAME", "pi-1")
    base = Path(sys.base_prefix)
    machine = MACHINE.format(
        base=base, site=sysconfig.get_path("purelib"), root=ROOT,
        python=Path(os.path.realpath(sys.executable)).name,
    )  # fmt: skip
    (client,) = coordinator.client
    run = client.replace(" status", " run --attach -p 'One day,' -n 12")
    stop = client.replace(" status", " stop")
    return "\n".join(
        ["set -e", machine, f"cd {boards}", text, coordinator.start(), agent.start(),
         run, client, stop]
    )  # fmt: skip


def test_the_instructions_lead_to_a_cluster(tmp_path: Path) -> None:
    boards = tmp_path / "boards"
    # As /root is: the user headwise may not enter it.
    boards.mkdir(mode=0o700)
    for name in ("coordinator", "agent"):
        shutil.copy(Unit(name).path, boards)
    # Everything that was started ends with the first process of its namespace.
    names = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    # Readable on the way to what lies below it.
    own = Path("/tmp") / f"headwise-units-{os.getpid()}"
    own.mkdir(mode=0o755)
    try:
        words = "mount -t tmpfs -o mode=755 own $T\n" + script(boards)
        with Command("-c", words, program=(*names, "sh"), env={"T": str(own)}) as shell:
            code = shell.wait(110.0)
            assert code == 0, shell.stdout + shell.stderr
        assert re.search(r"^pi-1 +ready ", shell.stdout, re.MULTILINE), shell.stdout
        assert "the coordinator has stopped" in shell.stdout
    finally:
        own.rmdir()
    assert "headwise:" not in Path("/etc/passwd").read_text()
