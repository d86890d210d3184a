"""What a phase costs outside kernels, against a bare pyzmq ping of equal frames.

`python tools/bench_exchange.py --agents 1,2,3` makes a random model with the hidden size of
TinyLlama and little else, so that kernels are short, and alternates decode steps with pings of
frames of the same size to as many echo processes. Prints a table and a final JSON line.

Three pings: the bare one, whose links have no keys and whose processes do nothing else; the same
with encrypted links, as ours are; and a working one, encrypted too, whose peers read as many bytes
as our kernels do before they answer (the time of the slowest is taken off, as with ours). The last
is what ZeroMQ itself costs in our rhythm: cores that slept and caches that hold other things take
longer to answer.
"""

import argparse
import contextlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zmq

from agent.curve import new_key_pair
from agent.frames import payload_offset
from agent.ids import KvId
from agent.kv_ops import KvOp, KvOpCode
from agent.shell import run_verb
from agent.sockets import HOT, set_options
from coordinator.cluster import Cluster
from coordinator.engine import Engine
from coordinator.rows import Rows, StepTimes
from weights.convert import convert_random

__all__ = ["add_arguments", "run"]

CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# An agent's end without headwise: receive into a buffer, read as many bytes of a block of 12 MB
# as the frame's first number says, send the frame back with the microseconds that took.
ECHO = """
import struct, sys, time, zmq
import numpy as np
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.ROUTING_ID, sys.argv[2].encode())
if len(sys.argv) > 3:
    socket.curve_serverkey = sys.argv[3].encode()
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
socket.setsockopt(zmq.RCVTIMEO, 60000)
socket.connect(sys.argv[1])
buffer = bytearray(1 << 20)
block, at = np.ones(3_000_000, np.float32), 0
socket.send(b"hello")
while True:
    n = socket.recv_into(buffer)
    if n == 1:
        break
    n_bytes = struct.unpack_from("<I", buffer)[0]
    if n_bytes:
        started_ns = time.perf_counter_ns()
        at = (at + n_bytes // 4) % (len(block) - n_bytes // 4)
        np.add.reduce(block[at : at + n_bytes // 4])
        struct.pack_into("<I", buffer, 4, (time.perf_counter_ns() - started_ns) // 1000)
    socket.send(memoryview(buffer)[:n])
"""


@contextlib.contextmanager
def on_any_core() -> Iterator[None]:
    """Let this thread, and threads and processes that it starts, run where they like."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Pings:
    """N echo processes and a ROUTER that pings them all and waits for all echoes; not pinned."""

    def __init__(self, n_peers: int, frame_bytes: int, encrypted: bool) -> None:
        with on_any_core():
            self._start(n_peers, frame_bytes, encrypted)

    def _start(self, n_peers: int, frame_bytes: int, encrypted: bool) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        set_options(self._socket, HOT)
        self._socket.setsockopt(zmq.RCVTIMEO, 30000)
        keys = []
        if encrypted:
            pair = new_key_pair()
            keys = [pair.public]
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._routes = [f"echo-{i}".encode() for i in range(n_peers)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", ECHO, f"tcp://127.0.0.1:{port}", route.decode(), *keys]
            )
            for route in self._routes
        ]
        self._frame = bytearray(frame_bytes)
        self._buffer = bytearray(frame_bytes)
        for _ in self._routes:
            self._socket.recv_multipart()

    def round_s(self, n_rounds: int, read_bytes: int = 0) -> float:
        """Return the mean time of one round: a frame to every peer, an echo from every peer.

        Each peer reads read_bytes of memory before it answers; the time of the slowest is taken
        off, as the time of the slowest member's kernels is taken off a phase.
        """
        with on_any_core():
            return self._round_s(n_rounds, read_bytes)

    def _round_s(self, n_rounds: int, read_bytes: int) -> float:
        struct.pack_into("<II", self._frame, 0, read_bytes, 0)
        work_us = 0
        started_s = time.perf_counter()
        for _ in range(n_rounds):
            for route in self._routes:
                self._socket.send(route, zmq.SNDMORE)
                self._socket.send(self._frame)
            slowest_us = 0
            for _ in self._routes:
                self._socket.recv()
                self._socket.recv_into(self._buffer)
                if read_bytes:
                    slowest_us = max(slowest_us, struct.unpack_from("<I", self._buffer, 4)[0])
            work_us += slowest_us
        return (time.perf_counter() - started_s - 1e-6 * work_us) / n_rounds

    def close(self) -> None:
        """End the echo processes."""
        for route in self._routes:
            self._socket.send_multipart([route, b"x"])
        for process in self._processes:
            process.wait(10)
        self._context.destroy(linger=0)


def phase_s(cluster: Cluster, engine: Engine, n_steps: int) -> tuple[float, float]:
    """Return (seconds outside kernels, seconds in kernels) of one phase, mean of n_steps."""
    kv_id = KvId(4_000_000_000)
    engine.times = StepTimes()
    engine.control_kv([KvOp(KvOpCode.OPEN, kv_id, n_steps)])
    x = np.empty((1, cluster.directory.config.hidden_size), np.float32)
    started_s = time.perf_counter()
    for pos in range(n_steps):
        cluster.directory.embedding_row(pos % 512, x[0])
        engine.step(x, Rows([kv_id], [pos]))
    total_s = time.perf_counter() - started_s
    engine.control_kv([KvOp(KvOpCode.RELEASE, kv_id)])
    times = engine.times
    n_phases = times.n_dispatches
    return (total_s - times.kernels_s) / n_phases, times.kernels_s / n_phases


def measure(
    model: Path, n_agents: int, n_repeats: int, n_steps: int, pin: bool
) -> dict[str, float]:
    """Alternate steps and pings n_repeats times; return medians in seconds and their ratio."""
    with Cluster(model, local=n_agents, place="spread", pin=pin) as cluster:
        engine = cluster.engine
        n_phases = 44 if n_agents > 1 else 1
        d = cluster.directory.config.hidden_size
        frame_bytes = payload_offset(1) + 2 * d
        with contextlib.ExitStack() as stack:
            bare, encrypted = (Pings(n_agents, frame_bytes, keys) for keys in (False, True))
            stack.callback(bare.close)
            stack.callback(encrypted.close)
            phase_s(cluster, engine, 20)
            weights_bytes = sum(cluster.weights_bytes().values())
            read_bytes = weights_bytes // n_agents // n_phases
            bare.round_s(200)
            encrypted.round_s(200)
            n_rounds = n_steps * n_phases
            rows = [
                (
                    *phase_s(cluster, engine, n_steps),
                    bare.round_s(n_rounds),
                    encrypted.round_s(n_rounds),
                    encrypted.round_s(n_rounds, read_bytes),
                )
                for _ in range(n_repeats)
            ]
    return {
        "agents": n_agents,
        "outside_kernels_s": statistics.median(r[0] for r in rows),
        "kernels_s": statistics.median(r[1] for r in rows),
        "bare_ping_s": statistics.median(r[2] for r in rows),
        "encrypted_ping_s": statistics.median(r[3] for r in rows),
        "working_ping_s": statistics.median(r[4] for r in rows),
        "ratio_bare": statistics.median(r[0] / r[2] for r in rows),
        "ratio_encrypted": statistics.median(r[0] / r[3] for r in rows),
        "ratio_working": statistics.median(r[0] / r[4] for r in rows),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("--agents", default="1,2,3", help="agent counts (1,2,3)")
    parser.add_argument("-r", "--repeats", type=int, default=7)
    parser.add_argument("--pin", action="store_true", help="pin hot threads, not the pings")
    parser.add_argument("--steps", type=int, default=40, help="decode steps a repeat")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and print its table and JSON line."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config.json"
        config.write_text(json.dumps(CONFIG))
        model = Path(scratch) / "model"
        convert_random(config, model, "f16", seed=1)
        results = []
        columns = ("outside_kernels_s", "kernels_s")
        pings = ("bare", "encrypted", "working")
        print("us:       outside kernels  kernels   and so many pings: " + "  ".join(pings))
        for count in (int(word) for word in args.agents.split(",")):
            r = measure(model, count, args.repeats, args.steps, args.pin)
            results.append(r)
            outside_us, kernels_us = (1e6 * r[c] for c in columns)
            ratios = "  ".join(f"{r['ratio_' + ping]:{len(ping)}.2f}" for ping in pings)
            print(
                f"{count} agents {outside_us:15.0f} {kernels_us:8.0f} {'':21} {ratios}", flush=True
            )
    print(json.dumps({"results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("bench_exchange", "Cost of a phase outside kernels.", (add_arguments, run)))
