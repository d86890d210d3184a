"""The key store: the coordinator's key pair and the public keys of the agents it lets in.

    DIR/coordinator.key      public and secret key of the coordinator
    DIR/agents/NAME.pub      public key of one agent, and since when

Files are 0600 and directories 0700, made so from the start and refused if others may reach them.
Every change is written aside, synced and renamed. A running coordinator reads a changed store
anew, so whoever may write here decides who is let in.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.address import check_name
from agent.curve import KeyPair, check_key, is_key_pair, new_key_pair
from agent.ids import AgentName
from agent.private_files import (
    check_private_directory,
    put_private,
    read_private,
    sync_directory,
)
from kernels.errors import InputError, ResourceError

__all__ = ["KeyStore", "KnownAgent", "default_directory", "find_store", "known_names"]

MAX_FILE_BYTES = 4096
MAX_AGENTS = 1024
SUFFIX = ".pub"
# Why files cannot be read for a while: nothing is wrong with them.
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR}

T = TypeVar("T")


class _Pair(msgspec.Struct, frozen=True):
    public: str
    secret: str


class KnownAgent(msgspec.Struct, frozen=True):
    """An agent that is let in.

    `added_s` counts from 1970; `address` is the coordinator's, as in the agent's join file.
    """

    name: AgentName
    public: str
    added_s: float
    address: str = ""


def default_directory() -> Path:
    """Return where the key store lies unless the user says otherwise."""
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "headwise" / "keys"


def known_names(directory: Path | None = None) -> list[AgentName]:
    """Return the names of the agents in a store, sorted; none if there is no store.

    Raises:
        InputError: the store is there but cannot be trusted or read.
    """
    store = KeyStore(directory or default_directory())
    return [agent.name for agent in store.agents()] if store.exists() else []


def find_store(directory: str | Path | None) -> "KeyStore | None":
    """Return the store in a directory, or the user's, or None if the user has none.

    Raises:
        InputError: there is none in the directory that was asked for.
    """
    store = KeyStore(Path(directory) if directory is not None else default_directory())
    if store.exists():
        return store
    if directory is None:
        return None
    raise InputError(
        f"no keys in {directory}; make them with: headwise keys init --keys {directory}"
    )


class KeyStore:
    """The keys in one directory. Reading checks permissions every time.

    Args:
        directory: where they lie or shall lie.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._agents = directory / "agents"
        self._pair = directory / "coordinator.key"
        self._stamp: object = ()

    def exists(self) -> bool:
        """Tell whether `init` has been run here."""
        return self._pair.exists()

    def init(self) -> str:
        """Make the directory and the coordinator's key pair; return its public key.

        Raises:
            InputError: there is one already; it is never overwritten.
            ResourceError: the directory cannot be written, or libzmq has no CURVE.
        """
        if self.exists():
            raise InputError(
                f"{self.directory} holds keys already; `headwise keys list` shows whose. To begin "
                f"anew, which locks every agent out, remove that directory first"
            )
        pair = new_key_pair()
        with _explained(f"make {self._agents}"):
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.directory, self._agents):
                path.mkdir(mode=0o700, exist_ok=True)
        self._check()
        with _explained(f"write {self._pair}"):
            put_private(self._pair, _encode(_Pair(pair.public, pair.secret)))
        return pair.public

    def pair(self) -> KeyPair:
        """Return the coordinator's key pair.

        Raises:
            InputError: there is none, or it is damaged or open to others.
        """
        self._check()
        if not self.exists():
            raise InputError(f"no keys in {self.directory}; make them with: headwise keys init")
        found = _read(self._pair, _Pair)
        pair = KeyPair(
            check_key(found.public, f"public in {self._pair}"),
            check_key(found.secret, f"secret in {self._pair}"),
        )
        if not is_key_pair(pair):
            raise InputError(f"the two keys in {self._pair} do not belong together; restore it")
        return pair

    def agents(self, problems: list[str] | None = None) -> list[KnownAgent]:
        """Return the agents that are let in, by name.

        Args:
            problems: gets a text for each file that cannot be used, which is then left out.

        Raises:
            InputError: a directory, or without `problems` a file, is damaged or open to others; or
                files cannot be read for a while.
        """
        self._check()
        found = []
        for path in sorted(self._agents.glob(f"*{SUFFIX}"))[:MAX_AGENTS]:
            try:
                agent = _read(path, KnownAgent)
                check_key(agent.public, f"public in {path}")
                if check_name(agent.name) != path.name.removesuffix(SUFFIX):
                    raise InputError(f"{path} holds the key of agent {agent.name!r}; remove it")
                found.append(agent)
            except InputError as e:
                if not path.exists():
                    continue  # revoked while we read
                if isinstance(e.__cause__, OSError) and e.__cause__.errno in PASSING:
                    # Whoever has a list keeps it, and looks again.
                    self._stamp = ()
                    raise
                if problems is None:
                    raise
                problems.append(str(e))
        return found

    def add(self, name: str, public: str, address: str = "", rotate: bool = False) -> None:
        """Let an agent's key in.

        Args:
            name: the agent's.
            public: its key.
            address: the coordinator's, as in the agent's join file.
            rotate: whether a former key of that name gives way.

        Raises:
            InputError: the name cannot be used, is taken, or is not there to be rotated.
            ResourceError: the store cannot be written.
        """
        self.check_new(name, rotate)
        agent = KnownAgent(AgentName(name), public, time.time(), address)
        path = self._agents / f"{name}{SUFFIX}"
        with _explained(f"write {path}"):
            put_private(path, _encode(agent), replace=rotate)

    def check_new(self, name: str, rotate: bool) -> KnownAgent | None:
        """Return what was known of an agent that is to be added or rotated.

        Raises:
            InputError: the name cannot be used, is taken, or is not there to be rotated.
        """
        check_name(name)
        self._check()
        if not self.exists():
            raise InputError(f"no keys in {self.directory}; make them with: headwise keys init")
        former = {agent.name: agent for agent in self.agents()}
        known = list(former)
        if rotate and name not in known:
            raise InputError(f"no agent {name!r} to rotate; here are: {_listed(known)}")
        if not rotate and name in known:
            raise InputError(
                f"agent {name!r} has a key already; give it a new one, which ends the old one, "
                f"with: headwise keys add --rotate {name}"
            )
        if not rotate and len(known) >= MAX_AGENTS:
            raise InputError(f"{MAX_AGENTS} agents have keys already; revoke some first")
        return former.get(AgentName(name))

    def revoke(self, name: str) -> None:
        """Let an agent's key in no more.

        Raises:
            InputError: there is no such agent.
            ResourceError: the store cannot be written.
        """
        check_name(name)
        self._check()
        path = self._agents / f"{name}{SUFFIX}"
        # Without reading it: a damaged entry can be revoked too.
        if not path.exists():
            known = sorted(p.name.removesuffix(SUFFIX) for p in self._agents.glob(f"*{SUFFIX}"))
            raise InputError(f"no agent {name!r} to revoke; here are: {_listed(known)}")
        with _explained(f"remove {path}"):
            path.unlink(missing_ok=True)
            sync_directory(self._agents)

    def changed(self) -> bool:
        """Tell whether the list of agents may have changed since this was asked last.

        Raises:
            InputError: the directory cannot be read.
        """
        try:
            # A change of permissions counts too: it may end or begin our trust.
            times = [path.stat().st_ctime_ns for path in (self.directory, self._agents)]
            with os.scandir(self._agents) as entries:
                files = sorted((e.name, e.stat().st_ctime_ns, e.inode()) for e in entries)
            stamp: object = (times, files)
        except FileNotFoundError:
            stamp = None
        except OSError as e:
            raise InputError(f"{self._agents} cannot be read ({e.strerror})") from e
        before, self._stamp = self._stamp, stamp
        return stamp != before

    def _check(self) -> None:
        for path in (self.directory, self._agents):
            if path.exists():
                check_private_directory(path)


def _read(path: Path, kind: type[T]) -> T:
    data = read_private(path, MAX_FILE_BYTES)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # What msgspec says may quote a secret.
        raise InputError(f"{path} is damaged; restore it, or revoke and add its agent") from None


def _encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as e:
        raise InputError(f"cannot {what}: it is there already") from e
    except OSError as e:
        raise ResourceError(f"cannot {what} ({e.strerror}); choose another with --keys") from e


def _listed(names: list[AgentName] | list[str]) -> str:
    return ", ".join(names) or "none"
