"""An authenticated peer that sends anything: mutated frames and messages, in floods.

Also a program, for long runs:

    python -m tests.protocol.hostile --seed 1 --n 2000000
"""

import argparse
import contextlib
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zmq

from agent.frames import FrameType, Header, Phase, Wire, pack_header, payload_offset, write_rows
from agent.ids import Epoch, RunId
from agent.kv_ops import KvOp, KvOpCode, pack_kv_ops
from agent.messages import (
    BulkReply,
    BulkRequest,
    Bye,
    Failed,
    Heartbeat,
    Hello,
    Loading,
    Ready,
    Refused,
    Release,
    Shutdown,
    Welcome,
    decode_agent_message,
    decode_coordinator_message,
    encode,
)
from agent.sockets import BULK, CONTROL, HOT, set_options
from agent.versions import our_versions
from agent.vocab_payload import SamplerRow, pack_sampler_rows
from kernels.errors import WireError
from tests.protocol.agent_harness import assignment, make_model, running

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [0, 1, 2, 3, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
DEADLINE_S = 120.0


class Mutator:
    """Makes bad messages out of good ones; the same seed makes the same ones."""

    def __init__(self, seed, good):
        self._rng = random.Random(seed)
        self._good = good

    def message(self):
        """Return one message: mostly a single part, now and then none or several."""
        rng = self._rng
        n_parts = 1 if rng.random() < 0.97 else rng.choice([0, 2, 2, 3, 5])
        return [self._mutated() for _ in range(n_parts)] or [b""]

    def _mutated(self):
        rng = self._rng
        if rng.random() < 0.05:
            return rng.randbytes(rng.choice([0, 1, 8, 39, 40, 41, 300, 5000]))
        data = bytearray(rng.choice(self._good))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            self._mutate(data)
        return bytes(data)

    def _mutate(self, data):
        rng = self._rng
        at = rng.randrange(len(data) or 1)
        match rng.randrange(7):
            case 0:
                del data[at:]
            case 1:
                data += rng.randbytes(rng.choice([1, 8, 64]))
            case 2 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 3 if data:
                data[at] = rng.choice([0, 1, 127, 128, 255])
            case 4:
                size = rng.choice([1, 2, 4, 8])
                number = rng.choice(NUMBERS) & ((1 << (8 * size)) - 1)
                data[at : at + size] = number.to_bytes(size, "little")
            case 5:
                other = rng.choice(self._good)
                data[at:] = other[rng.randrange(len(other)) :]
            case 6:
                data[at:at] = data[at : at + rng.choice([1, 4, 40])]


def frame(kind, run_id, rows=(), payload=b"", **fields):
    """Return a good hot frame."""
    header = Header(kind, Wire.F16, Epoch(1), RunId(run_id), 7)._replace(
        n_rows=len(rows), payload_bytes=len(payload), **fields
    )
    data = bytearray(payload_offset(len(rows)) + len(payload))
    pack_header(data, header)
    if rows:
        write_rows(data, [r[0] for r in rows], [r[1] for r in rows])
    data[payload_offset(len(rows)) :] = payload
    return bytes(data)


def good_frames(run_id, hidden_size):
    """Return one or more good frames of every type."""
    x = np.ones(hidden_size, np.float16).tobytes()
    block = pack_sampler_rows([SamplerRow()])
    step = FrameType.STEP
    ops = pack_kv_ops([KvOp(KvOpCode.OPEN, 5, 20), KvOp(KvOpCode.RELEASE, 5)])
    return [
        frame(step, run_id, [(1, 0)], x),
        frame(step, run_id, [(1, 1)], x, layer=1, phase=Phase.MLP),
        frame(step, run_id, [(1, 2), (1, 3)], x + x),
        frame(step, run_id, [(1, 0)], x + block, phase=Phase.VOCAB, n_vocab_rows=1),
        frame(step, run_id, [(1, 0)], x, phase=Phase.STAGE),
        frame(FrameType.KV, run_id, payload=ops),
        frame(FrameType.PING, run_id),
        frame(FrameType.HELLO, run_id),
        frame(FrameType.PARTIAL, run_id, payload=x),
        frame(FrameType.RESIDUAL, run_id, payload=x),
        frame(FrameType.TOP, run_id, payload=struct.pack("<dI", 1.0, 0)),
        frame(FrameType.LOGITS, run_id, payload=x),
        frame(FrameType.ERROR, run_id, payload=b"it went wrong"),
    ]


def good_bulk(run_id, model_id):
    return [
        encode(BulkRequest(RunId(run_id), model_id, 0, 1000)),
        encode(BulkRequest(RunId(run_id), "0" * 32, 0, 1)),
        encode(BulkReply(model_id, 0, 10, 1)),
    ]


def resident_bytes(pid):
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def send(socket, parts):
    """Send a message unless the peer takes none for a while; returns whether it was sent."""
    try:
        socket.send_multipart(parts)
    except zmq.Again:
        return False
    return True


def drain(socket):
    with contextlib.suppress(zmq.Again):
        while True:
            socket.recv_multipart(zmq.NOBLOCK)


# An agent whose coordinator has gone mad.


def harmless(data):
    """Whether a message of the coordinator is none that rightly ends or unloads an agent."""
    try:
        message = decode_coordinator_message(data)
    except WireError:
        return True
    return not isinstance(message, Shutdown | Refused | Release)


def attack_agent(seed, n, scratch):
    """Send n mutated frames and messages to a live agent; returns what there is to report."""
    with (
        make_model(scratch / "model") as directory,
        running(directory, scratch / "agent") as (coordinator, agent),
    ):
        coordinator.join()
        coordinator.hot.setsockopt(zmq.SNDTIMEO, 2000)
        coordinator.kv(KvOp(KvOpCode.OPEN, 1, 100))
        x = np.linspace(-1, 1, 64, dtype=np.float32)[None]

        def answer():
            """Return the bytes of a right answer, whatever else came before it."""
            header = coordinator.header(FrameType.STEP, phase=Phase.ATTENTION)
            payload = x.astype(np.float16).tobytes()
            seq = coordinator.send(header._replace(seq=seqs.pop()), [(1, 0)], payload)
            while True:
                reply, data = coordinator.receive()
                if reply.seq == seq and reply.type is FrameType.PARTIAL:
                    return data

        seqs = list(range(2**31, 2**31 + n // 100 + 10))
        right = answer()
        run_id = coordinator.run_id
        hot = Mutator(seed, good_frames(run_id, 64))
        told = assignment(directory, run_id)
        control = Mutator(seed + 1, [
            encode(m) for m in (told, Welcome(run_id, 1, 2, 1.0, our_versions()),
                                Release(Epoch(9)), Shutdown("over"), Refused("no", True))
        ])  # fmt: skip
        n_sent = n_unsent = 0
        first_bytes = 0
        for i in range(n):
            if i % 10 == 0:
                parts = control.message()
                if not all(harmless(p) for p in parts):
                    continue
                sent = send(coordinator.control, [coordinator.route, *parts])
            else:
                sent = send(coordinator.hot, [coordinator.routes[0], *hot.message()])
            n_sent += sent
            n_unsent += not sent
            if i % 100 == 99:
                drain(coordinator.control)
                # A mutated KV frame may rightly have closed or truncated the context.
                coordinator.kv(KvOp(KvOpCode.RELEASE, 1))
                coordinator.kv(KvOp(KvOpCode.OPEN, 1, 100))
                assert answer() == right, f"a wrong answer after {i} messages, seed {seed}"
            if i == n // 5:
                first_bytes = resident_bytes(agent.popen.pid)
        assert agent.popen.poll() is None, agent.log[-2000:]
        last_bytes = resident_bytes(agent.popen.pid)
    return {"target": "agent", "seed": seed, "n_sent": n_sent, "n_unsent": n_unsent,
            "resident_first_bytes": first_bytes, "resident_last_bytes": last_bytes}  # fmt: skip


# A coordinator with one agent that works and one that has gone mad.

VICTIM = """
import sys, json
from coordinator.cluster import Cluster
with Cluster(sys.argv[1], bind=sys.argv[2], min_agents=1, wait_s=60) as cluster:
    print("ready", flush=True)
    for line in sys.stdin:
        ids = [t.id for t in cluster.generate(prompt_ids=[1, 5, 9], max_tokens=20)]
        print(json.dumps(ids), flush=True)
"""


def free_port():
    import socket

    for port in range(20000 + os.getpid() % 20000, 60000, 3):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for p in range(port, port + 3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", p))
            return port
    raise AssertionError("no three free ports")


class MadAgent:
    """Sockets of an agent that has joined and been welcomed."""

    def __init__(self, port):
        self.context = zmq.Context()
        self.control = self._dealer(CONTROL, port, b"mad/1")
        hello = Hello("mad", "1", our_versions(), 1, 1, 1 << 20, 1e9)
        self.control.send(encode(hello))
        welcome = decode_coordinator_message(self.control.recv())
        assert isinstance(welcome, Welcome), welcome
        self.run_id = welcome.run_id
        self.hot = self._dealer(HOT, welcome.hot_port, b"mad/1")
        self.bulk = self._dealer(BULK, welcome.bulk_port, b"mad/2")

    def _dealer(self, kind, port, routing_id):
        socket = self.context.socket(zmq.DEALER)
        set_options(socket, kind)
        socket.setsockopt(zmq.ROUTING_ID, routing_id)
        socket.setsockopt(zmq.SNDTIMEO, 5000)
        socket.setsockopt(zmq.RCVTIMEO, 20000)
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def close(self):
        self.context.destroy(linger=0)


def is_polite(data):
    """Whether an agent's message rightly changes what the coordinator thinks of it."""
    try:
        return isinstance(decode_agent_message(data), Hello | Bye)
    except WireError:
        return False


def attack_coordinator(seed, n, scratch):
    """Send n mutated frames and messages to a live coordinator; returns what to report."""
    port = free_port()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with make_model(scratch / "victim") as directory, contextlib.ExitStack() as stack:
        model_id, path = directory.model_id, directory.directory
        victim = stack.enter_context(subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(path), f"tcp://127.0.0.1:{port}"], env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ))  # fmt: skip
        stack.callback(victim.kill)
        worker = stack.enter_context(subprocess.Popen(
            [sys.executable, "-m", "agent", "--coordinator", f"tcp://127.0.0.1:{port}", "--name",
             "good", "--threads", "1", "--model-dir", str(path)], env=env, cwd=ROOT,
            stderr=subprocess.DEVNULL,
        ))  # fmt: skip
        stack.callback(worker.kill)

        def text():
            victim.stdin.write("\n")
            victim.stdin.flush()
            return victim.stdout.readline()

        assert victim.stdout.readline() == "ready\n"
        right = text()
        mad = MadAgent(port)
        stack.callback(mad.close)
        heartbeat = encode(Heartbeat(1, 1 << 20, 1 << 20))
        mutators = [
            (mad.hot, Mutator(seed, good_frames(mad.run_id, 64))),
            (mad.control, Mutator(seed + 1, [
                heartbeat, encode(Loading(Epoch(1), 5, 10)), encode(Ready(Epoch(1), 1, 1, 1, 1.0)),
                encode(Failed(Epoch(1), "no")), encode(Bye("over")),
                encode(Hello("mad", "1", our_versions(), 1, 1, 1 << 20, 1e9)),
            ])),
            (mad.bulk, Mutator(seed + 2, good_bulk(mad.run_id, model_id))),
        ]  # fmt: skip
        n_sent = n_unsent = n_texts = 0
        first_bytes, beat_s = 0, time.monotonic()
        for i in range(n):
            socket, mutator = mutators[i % 3]
            parts = mutator.message()
            if socket is mad.control and any(is_polite(p) for p in parts):
                continue
            sent = send(socket, parts)
            n_sent += sent
            n_unsent += not sent
            if i % 64 == 0:
                drain(mad.control)
                drain(mad.bulk)
                drain(mad.hot)
            if time.monotonic() > beat_s + 0.5:
                beat_s = time.monotonic()
                send(mad.control, [heartbeat])
            if i % max(n // 50, 1) == 0:
                assert text() == right, f"wrong words after {i} messages, seed {seed}"
                n_texts += 1
            if i == n // 5:
                first_bytes = resident_bytes(victim.pid)
        assert text() == right
        assert victim.poll() is None
        last_bytes = resident_bytes(victim.pid)
        victim.stdin.close()
        victim.wait(20)
        worker.terminate()
        worker.wait(20)
    return {"target": "coordinator", "seed": seed, "n_sent": n_sent, "n_unsent": n_unsent,
            "n_texts": n_texts, "resident_first_bytes": first_bytes,
            "resident_last_bytes": last_bytes}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=2_000_000, help="messages, half to each target")
    args = parser.parse_args()
    for attack in (attack_agent, attack_coordinator):
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            report = attack(args.seed, args.n // 2, Path(scratch))
        print(json.dumps(report | {"seconds": round(time.monotonic() - started_s, 1)}), flush=True)


if __name__ == "__main__":
    main()
