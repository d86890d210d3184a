"""Cables of an emulated network: ../shared/tools/netlab, a host for each board. Needs root."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.errors import ResourceError
from tools.faults.cables import Cables
from tools.faults.process import MARK, ROOT, Process
from tools.faults.proxy import ProxyCables

__all__ = ["COORDINATOR_SPACE", "LabCables", "goodput_bytes_per_s", "make_cables", "prefix_of"]

NETLAB = ROOT.parent / "shared" / "tools" / "netlab" / "netlab.py"
CALL_S = 120.0
PORT = 7070
COORDINATOR = "h1"
COORDINATOR_SPACE = f"nlab-{COORDINATOR}"
# What TCP gets of a cable's rate with frames of 1500 bytes, by netlab's selftest.
TCP_SHARE = 0.9415
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def make_cables(wanted: str, n_boards: int, rate: str, root: Path, mark: str) -> Cables:
    """Return cables for so many boards at once: "lab", "proxy", or "auto" for what can be had.

    Raises:
        ResourceError: no lab can be made, and one is insisted on.
    """
    if wanted == "proxy":
        return ProxyCables()
    try:
        return LabCables(n_boards, rate, root, mark)
    except ResourceError as e:
        if wanted == "lab":
            raise
        print(f"no lab, a proxy stands in for cables: {e}", file=sys.stderr, flush=True)
        return ProxyCables()


def goodput_bytes_per_s(rate: str) -> float:
    """Return what TCP gets of a cable of such a rate, for example 1gbit."""
    return TCP_SHARE * float(rate[:-4]) * UNITS[rate[-4:]] / 8


class LabCables:
    """A lab of our own, with keys, as links between machines need them; see `cables.Cables`.

    Args:
        n_boards: most at a time.
        rate: of each cable, such as 1gbit.
        root: for keys and join files.
        mark: this run's.

    Raises:
        ResourceError: no lab can be made here, or another one is up.
    """

    name = "lab"
    port = PORT

    def __init__(self, n_boards: int, rate: str, root: Path, mark: str) -> None:
        if not NETLAB.exists():
            raise ResourceError(f"there is no {NETLAB}")
        if os.geteuid() != 0:
            raise ResourceError("network namespaces need root")
        if _netlab("status").returncode == 0:
            raise ResourceError("another lab is up on this machine")
        self._root, self._mark = root, mark
        self._store = root / "keys"
        self._hosts: dict[str, str] = {}
        self._free = [f"h{i + 2}" for i in range(n_boards)]
        up = _netlab("up", "--hosts", str(1 + n_boards), "--rate", rate, "--delay-ms", "0.3",
                     "--overhead-us", "70")  # fmt: skip
        if up.returncode != 0:
            raise ResourceError(f"no lab can be made here: {up.stderr.strip()[-300:]}")
        try:
            self._address = _ok("addr", COORDINATOR)
            self._keys("init")
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where the coordinator listens."""
        return self._address

    @property
    def store(self) -> Path:
        """The coordinator's keys."""
        return self._store

    def serve_prefix(self) -> Sequence[str]:
        """Return what starts the coordinator's process on its host."""
        return prefix_of(COORDINATOR)

    def serve_words(self) -> Sequence[str | Path]:
        """Return where the coordinator listens, and its keys."""
        return ("--host", self._address, "--port", str(PORT), "--keys", self._store)

    def prefix(self, board: str) -> Sequence[str]:
        """Return what starts a board's process on its host."""
        return prefix_of(self._host(board))

    def words(self, board: str) -> Sequence[str | Path]:
        """Return a board's join file, made when it first comes."""
        self._host(board)
        file = self._root / f"{board}.join"
        if not file.exists():
            self._keys("add", board, "--address", f"tcp://{self._address}:{PORT}", "-o", file)
        return ("--join", file)

    def cut(self, board: str) -> None:
        """Pull a board's cable."""
        _ok("cut", self._hosts[board])

    def mend(self, board: str) -> None:
        """Plug it in again."""
        if board in self._hosts:
            _ok("mend", self._hosts[board])

    def forget(self, board: str) -> None:
        """Let another board have the host."""
        if board in self._hosts:
            self._free.append(self._hosts.pop(board))

    def close(self) -> None:
        """Take the lab down."""
        _netlab("down")

    def _host(self, board: str) -> str:
        if board not in self._hosts:
            if not self._free:
                raise ResourceError(f"no host is left for board {board!r}; make a larger lab")
            self._hosts[board] = self._free.pop(0)
        return self._hosts[board]

    def _keys(self, *words: str | Path) -> None:
        what = ("tools.cli", "keys", *words[:1], "--keys", self._store, *words[1:])
        process = Process((), what, {MARK: self._mark}, self._root / "keys.log")
        if process.wait(CALL_S):
            raise ResourceError(f"keys {words[0]}: {process.tail()}")


def prefix_of(host: str) -> Sequence[str]:
    """Return what is put before a command for it to run on one of the lab's hosts, such as h2."""
    return ("ip", "netns", "exec", f"nlab-{host}")


def _netlab(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(NETLAB), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=CALL_S)


def _ok(*words: str) -> str:
    done = _netlab(*words)
    if done.returncode:
        raise ResourceError(f"netlab {' '.join(words)}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()
