"""A program under systemd's RestrictAddressFamilies=, without systemd.

    python -m tests.system.restricted "AF_INET AF_UNIX" -- PROGRAM WORD ...

A seccomp filter as systemd makes it: socket() of another family fails with EAFNOSUPPORT. It holds
for PROGRAM and all its threads and children, and needs no privileges.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

__all__ = ["NO_SECCOMP", "restrict"]

# Exit code where no filter can be set up.
NO_SECCOMP = 77
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
# Machine -> (audit number of its calls, number of socket()); 64-bit, little endian.
CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
# struct seccomp_data: u32 call, u32 architecture, u64 address, u64 arguments[6].
CALL_AT, ARCHITECTURE_AT, FAMILY_AT = 0, 4, 16
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("n_steps", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def filter_of(families: list[int], architecture: int, socket_call: int) -> bytes:
    """Return the filter; the last step allows the call, the one before lets it fail."""
    n = len(families)
    checks = [step(IF_EQUAL, f, if_true=n - i) for i, f in enumerate(families)]
    return b"".join(
        [
            step(LOAD, ARCHITECTURE_AT),
            step(IF_EQUAL, architecture, if_false=n + 4),
            step(LOAD, CALL_AT),
            step(IF_EQUAL, socket_call, if_false=n + 2),
            step(LOAD, FAMILY_AT),
            *checks,
            step(RETURN, FAIL | errno.EAFNOSUPPORT),
            step(RETURN, ALLOW),
        ]
    )


def restrict(families: list[int]) -> bool:
    """Let this process make sockets of these families only; False where that is impossible."""
    if platform.machine() not in CALLS:
        return False
    steps = filter_of(families, *CALLS[platform.machine()])
    buffer = ctypes.create_string_buffer(steps, len(steps))
    program = Program(len(steps) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return (
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0
    )


def main(names: str, dashes: str, *words: str) -> int:
    assert dashes == "--"
    if not restrict([getattr(socket, name) for name in names.split()]):
        return NO_SECCOMP
    os.execvp(words[0], words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
