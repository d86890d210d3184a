"""CURVE keys and how a socket takes them: every TCP link is encrypted and authenticated.

A server socket proves the coordinator's key; a client socket knows that key beforehand and proves
its own. Which client keys are let in is the coordinator's matter (`coordinator.gate`). Secrets
are in no repr, no log line and no error text.
"""

import hashlib
import re
from dataclasses import dataclass, field

import zmq

from kernels.errors import InputError, ResourceError

__all__ = [
    "KEY_CHARS",
    "ZAP_DOMAIN",
    "ClientCurve",
    "KeyPair",
    "ServerCurve",
    "check_key",
    "fingerprint",
    "is_key_pair",
    "new_key_pair",
    "peer_key",
    "require_curve",
]

KEY_CHARS = 40
# A handler for domain "*" would match only an empty domain: every socket names this one.
ZAP_DOMAIN = b"agents"

_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, both halves as 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)


def new_key_pair() -> KeyPair:
    """Make a key pair.

    Raises:
        ResourceError: this libzmq has no CURVE.
    """
    require_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def require_curve() -> None:
    """Raise ResourceError if this libzmq cannot encrypt links."""
    if not zmq.has("curve"):
        raise ResourceError(
            f"libzmq {zmq.zmq_version()} on this machine was built without CURVE, so links cannot "
            f"be encrypted; install pyzmq's own build: pip install --force-reinstall "
            f"--only-binary :all: pyzmq"
        )


def check_key(text: str, what: str) -> str:
    """Return a key that is well-formed; what it is stands in the error, its value does not.

    Raises:
        InputError: not 40 characters of Z85.
    """
    if not _Z85.fullmatch(text):
        raise InputError(f"{what} is no key: {len(text)} characters, not 40 of Z85; make it anew")
    return text


def is_key_pair(pair: KeyPair) -> bool:
    """Tell whether the halves of a well-formed pair belong together."""
    return zmq.curve_public(pair.secret.encode()).decode() == pair.public


def fingerprint(public: str) -> str:
    """Return a short name of a public key, for people to compare: xxxx-xxxx-xxxx-xxxx."""
    digest = hashlib.blake2b(public.encode(), digest_size=8).hexdigest()
    return "-".join(digest[i : i + 4] for i in range(0, 16, 4))


@dataclass(frozen=True)
class ServerCurve:
    """What the sockets that the coordinator binds prove."""

    own: KeyPair

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket demand CURVE; call before it binds, with a gate on its context."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        # Without it libzmq lets everyone in while no gate answers.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


@dataclass(frozen=True)
class ClientCurve:
    """What an agent's sockets prove, and whom they talk to."""

    server_public: str
    own: KeyPair

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket speak CURVE to that server only; call before it connects."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_public.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret.encode())


def peer_key(frame: zmq.Frame) -> str:
    """Return the public key that the sender of a received frame has proved; "" without CURVE."""
    try:
        return str(frame.get("User-Id"))
    except (zmq.ZMQError, UnicodeDecodeError):
        # On links in clear peers say of themselves what they like, also what is no text.
        return ""
