"""Who may connect: the allow-list of agents' keys, and the thread that libzmq asks (ZAP).

libzmq asks at handshakes only. So whoever owns a socket looks every sender's key up again, and
ends the links of a key that left the list (`evictor`). One gate a ZeroMQ context.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping

import zmq
from zmq.utils import z85

from agent.bell import Bell
from agent.curve import (
    ZAP_DOMAIN,
    KeyPair,
    ServerCurve,
    fingerprint,
    new_key_pair,
    require_curve,
)
from agent.ids import AgentName
from agent.threads import NamedThread
from coordinator.keys import KeyStore
from kernels.errors import HeadwiseError

__all__ = ["Gate", "open_gate"]

log = logging.getLogger(__name__)

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
# How long the thread sleeps where no list of keys can change behind its back.
IDLE_S = 60.0
RELOAD_S = 1.0

Context = zmq.Context[zmq.Socket[bytes]]
# Returns the keys as they are now, or None if nothing changed since it was asked last.
Reload = Callable[[], Mapping[AgentName, str] | None]


class Gate:
    """The allow-list of one context, asked at each handshake and for each control message.

    Args:
        context: bind the sockets that it guards on this one, after this.
        own: the coordinator's key pair.
        allowed: public keys of agents, by name.
        reload: asked once a second for a changed list; None: the list changes by `add` and
            `revoke` only.

    Attributes:
        curve: for the sockets to bind.
        version: rises whenever the list changes.
        n_refused: handshakes with a key that is not on the list.
        on_change: called whenever the list has changed, by whichever thread changed it.
    """

    def __init__(
        self,
        context: Context,
        own: KeyPair,
        allowed: Mapping[AgentName, str],
        reload: Reload | None = None,
    ) -> None:
        self.curve = ServerCurve(own)
        self._lock = threading.Lock()
        self._keys: dict[AgentName, str] = {}
        self._names: dict[str, AgentName] = {}
        self.version = -1
        self._set(allowed)
        self.n_refused = 0
        self.on_change: Callable[[], None] = lambda: None
        self._reload = reload
        self._stopping = False
        self._bell = Bell()
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ENDPOINT)
        self._thread = NamedThread(self._run, "gate")
        self._thread.start()

    def close(self) -> None:
        """End the thread; from now on nobody gets in."""
        self._stopping = True
        self._bell.ring()
        self._thread.join()

    def name_of(self, public: str) -> AgentName | None:
        """Return whose key this is now; None if nobody's."""
        with self._lock:
            return self._names.get(public)

    def names(self) -> list[AgentName]:
        """Return who may connect, by name."""
        with self._lock:
            return sorted(self._keys)

    def add(self, name: AgentName, public: str) -> None:
        """Let a key in under a name; it takes the place of the name's former key."""
        with self._lock:
            self._set({**self._keys, name: public})
        self.on_change()

    def revoke(self, name: AgentName) -> None:
        """Let a name in no more; the owners of sockets end its links within 0.1 s."""
        with self._lock:
            self._set({n: key for n, key in self._keys.items() if n != name})
        self.on_change()

    def _set(self, allowed: Mapping[AgentName, str]) -> None:
        self._keys = dict(allowed)
        self._names = {public: name for name, public in self._keys.items()}
        self.version += 1

    # The thread.

    def _run(self) -> None:
        look_s, wait_s = 0.0, IDLE_S
        try:
            while not self._stopping:
                if self._reload is not None:
                    if time.monotonic() >= look_s:
                        look_s = time.monotonic() + RELOAD_S
                        self._look(self._reload)
                    wait_s = max(0.0, look_s - time.monotonic())
                if self._bell.wait(self._socket, wait_s):
                    with contextlib.suppress(zmq.Again):
                        self._answer(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.ContextTerminated:
            log.debug("gate ended with its context")
        finally:
            self._socket.close(linger=0)

    def _look(self, reload: Reload) -> None:
        try:
            allowed = reload()
        except (HeadwiseError, OSError) as e:
            # A store that cannot be trusted lets nobody in who is not in already.
            log.warning("gate: %s; the former list of agents stands", e)
            return
        if allowed is None:
            return
        with self._lock:
            before = set(self._keys.items())
            self._set(allowed)
            gone = sorted(before - set(self._keys.items()))
            new = sorted(set(self._keys.items()) - before)
        for name, public in gone:
            log.warning("gate: agent=%s key=%s is no longer valid", name, fingerprint(public))
        for name, public in new:
            log.info("gate: agent=%s key=%s may connect", name, fingerprint(public))
        self.on_change()

    def _answer(self, parts: list[bytes]) -> None:
        """Answer one question of libzmq's (RFC 27); only a listed CURVE key gets 200."""
        # Addressed within the process: the parts are libzmq's own, the key is the peer's.
        request_id, domain, address, _, mechanism = parts[1:6]
        public = ""
        if domain == ZAP_DOMAIN and mechanism == b"CURVE" and len(parts) == 7:
            public = z85.encode(parts[6]).decode()
        name = self.name_of(public)
        status, text = (b"200", b"OK") if name is not None else (b"400", b"unknown key")
        user_id = public.encode() if name is not None else b""
        self._socket.send_multipart([b"1.0", request_id, status, text, user_id, b""])
        if name is None:
            self.n_refused += 1
            if self.n_refused & (self.n_refused - 1) == 0:
                log.warning(
                    "gate: refused the unknown key %s from %s (%d refused so far)",
                    fingerprint(public), address.decode(errors="replace")[:64], self.n_refused,
                )  # fmt: skip


def open_gate(context: Context, store: KeyStore | None) -> Gate:
    """Return a gate with the keys of a store, or with throw-away keys and nobody listed.

    Raises:
        InputError: the store cannot be trusted or read.
        ResourceError: this libzmq has no CURVE.
    """
    if store is None:
        return Gate(context, new_key_pair(), {})
    require_curve()
    own = store.pair()
    store.changed()  # from here on

    def listed() -> dict[AgentName, str]:
        problems: list[str] = []
        agents = store.agents(problems)
        for problem in problems:
            log.warning("gate: an agent is not let in: %s", problem)
        return {agent.name: agent.public for agent in agents}

    return Gate(context, own, listed(), lambda: listed() if store.changed() else None)
