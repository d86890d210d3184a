"""A coordinator of few words, to drive real agent processes over real sockets."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import zmq

from agent.bulk import BulkServer
from agent.frames import (
    HEADER_BYTES,
    Flag,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
    read_header,
    write_rows,
)
from agent.kv_ops import pack_kv_ops
from agent.messages import Welcome, decode_agent_message, encode
from agent.share import Assignment, AtomRange, LayerShare
from agent.sockets import CONTROL, HOT, set_options
from agent.versions import our_versions
from weights.directory import ModelDirectory
from weights.random_model import convert_random

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0

CONFIG = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 100,
    "max_position_embeddings": 256, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make_model(out: Path, dtype="q8") -> ModelDirectory:
    config = out.with_suffix(".json")
    config.write_text(json.dumps(CONFIG))
    convert_random(config, out, dtype, seed=7)
    return ModelDirectory.open(out)


def assignment(directory, run_id, epoch=1, rank=0, *, groups=(0, 2), columns=(0, 4), vocab=(0, 3),
               **changes):  # fmt: skip
    def ranges(first_count):
        return (AtomRange(*first_count),) if first_count[1] else ()

    fields = {
        "run_id": run_id,
        "epoch": epoch,
        "rank": rank,
        "model_id": directory.model_id,
        "manifest_bytes": len(directory.manifest.encode()),
        "layers": tuple(
            LayerShare(layer, ranges(groups), ranges(columns))
            for layer in range(directory.geometry.n_layers)
        ),
        "vocab": ranges(vocab),
        "wire": "f16",
        "kv": "f16",
        "context_tokens": 192,
        "kv_tokens": 256,
        "n_contexts": 3,
        "max_rows": 80,
    }
    return Assignment(**(fields | changes))


class AgentProcess:
    """One `python -m agent` with its own cache; killed at the end whatever happened."""

    def __init__(self, cache_dir, port, *extra, name="a", program=None, env=None):
        command = [
            *(program or [sys.executable, "-m", "agent"]), "--coordinator", f"tcp://127.0.0.1:{port}",
            "--name", name, "--threads", "1", "--cache-dir", str(cache_dir), "-v", *extra,
        ]  # fmt: skip
        self.popen = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, **(env or {})},
            pass_fds=[int(extra[i + 1]) for i, e in enumerate(extra) if e == "--leave-with-fd"],
        )  # fmt: skip
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.popen.stderr:
            self.lines.append(line.decode())

    @property
    def log(self):
        return "".join(self.lines)

    def wait(self, timeout_s=DEADLINE_S):
        code = self.popen.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def close(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._reader.join()
        self.popen.stderr.close()


class TinyCoordinator:
    """Control, hot and bulk sockets of one run, used by the test's thread."""

    def __init__(self, directory, run_id=0xABCDEF, control_port=0):
        self.run_id = run_id
        self.directory = directory
        self.context = zmq.Context()
        self.control = self._router(CONTROL, f"tcp://127.0.0.1:{control_port or '*'}")
        self.hot = self._router(HOT, "tcp://127.0.0.1:*")
        self.bulk = BulkServer(self.context, "tcp://127.0.0.1:*", run_id, directory)
        self.bulk.grant(b"", self.bulk.object_ids, 600.0)
        self.port = self._port(self.control)
        self.routes = {}
        self.seen = []
        self.seq = 0

    def _router(self, kind, endpoint):
        socket = self.context.socket(zmq.ROUTER)
        set_options(socket, kind)
        socket.setsockopt(zmq.RCVTIMEO, int(1000 * DEADLINE_S))
        socket.bind(endpoint)
        return socket

    @staticmethod
    def _port(socket):
        return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])

    def close(self):
        self.bulk.close()
        self.control.close(linger=0)
        self.hot.close(linger=0)
        self.context.term()

    def until(self, *kinds, timeout_s=DEADLINE_S):
        """Return the next control message of these kinds; others are kept in `seen`."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            route, data = self.control.recv_multipart()
            message = decode_agent_message(data)
            self.seen.append(message)
            self.route = route
            if isinstance(message, kinds):
                return message
        raise AssertionError(f"none of {kinds} came; seen {self.seen}")

    def tell(self, message):
        self.control.send_multipart([self.route, encode(message)])

    def welcome(self, **changes):
        fields = {
            "run_id": self.run_id,
            "hot_port": self._port(self.hot),
            "bulk_port": self.bulk.port,
            "heartbeat_s": 0.2,
            "versions": our_versions(),
        }
        self.tell(Welcome(**(fields | changes)))

    def receive(self):
        """Return (header, payload) of the next hot frame and remember the sender's route."""
        route, frame = self.hot.recv_multipart()
        header = read_header(frame, len(frame))
        self.routes[header.rank] = route
        return header, frame[payload_offset(header.n_rows) :]

    def send(self, header, rows=(), payload=b"", rank=0):
        self.seq += 1
        header = header._replace(
            seq=header.seq or self.seq, n_rows=len(rows), payload_bytes=len(payload)
        )
        frame = bytearray(payload_offset(len(rows)) + len(payload))
        pack_header(frame, header)
        if rows:
            write_rows(frame, [r[0] for r in rows], [r[1] for r in rows])
        frame[payload_offset(len(rows)) :] = payload
        self.hot.send_multipart([self.routes[rank], frame])
        return header.seq

    def header(self, kind, **changes):
        return Header(kind, Wire.F16, 1, self.run_id, 0)._replace(**changes)

    def kv(self, *ops, **changes):
        return self.send(self.header(FrameType.KV, **changes), payload=pack_kv_ops(ops))

    def step(self, phase, layer, x, rows, *, n_vocab_rows=0, block=b"", vocab_after=False,
             wire=Wire.F16, rank=0, **changes):  # fmt: skip
        """Send one STEP and return its reply as (header, payload)."""
        payload = x.astype(np.float16 if wire is Wire.F16 else np.float32).tobytes() + block
        header = self.header(
            FrameType.STEP, wire=wire, phase=Phase(phase), layer=layer, n_vocab_rows=n_vocab_rows,
            flags=Flag.VOCAB_AFTER if vocab_after else Flag.NONE,
        )  # fmt: skip
        seq = self.send(header._replace(**changes), rows, payload, rank)
        reply, answer = self.receive()
        assert reply.seq == seq
        assert reply.n_rows == 0
        return reply, answer

    def join(self, told=None):
        """Bring the connected agent to READY with an assignment and learn its hot route."""
        from agent.messages import Failed, Hello, Ready

        self.until(Hello)
        self.welcome()
        return self.assign(told or assignment(self.directory, self.run_id), (Ready, Failed))

    def assign(self, told, kinds):
        self.tell(told)
        message = self.until(*kinds)
        if type(message).__name__ == "Ready":
            header, payload = self.receive()
            assert (header.type, header.epoch, header.rank) == (
                FrameType.HELLO, told.epoch, told.rank,
            )  # fmt: skip
            assert payload == b""
            assert HEADER_BYTES == 40
        return message


@contextlib.contextmanager
def running(directory, tmp_path, *extra, **options):
    """Yield (coordinator, agent process) with the agent dialled in but not yet welcomed."""
    coordinator = TinyCoordinator(directory)
    agent = AgentProcess(tmp_path / "cache", coordinator.port, *extra, **options)
    try:
        yield coordinator, agent
    finally:
        agent.close()
        coordinator.close()
