"""Links whose peers misbehave below the level of messages. A broken socket aborts its process."""

import subprocess
import sys

import pytest

from tests.protocol.agent_harness import ROOT

# A ROUTER that does not read, or reads under handover, and peers that vanish from it.
PROGRAM = """
import sys, threading, time
import zmq
from agent.sockets import HOT, set_options

context = zmq.Context()
router = context.socket(zmq.ROUTER)
set_options(router, HOT)
port = router.bind_to_random_port("tcp://127.0.0.1")
others = zmq.Context()

def dial():
    dealer = others.socket(zmq.DEALER)
    dealer.setsockopt(zmq.ROUTING_ID, b"x")
    set_options(dealer, HOT)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    return dealer

first = dial()
if sys.argv[1] == "flood":
    first.setsockopt(zmq.SNDTIMEO, 300)
    try:
        while True:
            first.send(bytes(20_000))
    except zmq.Again:
        first.close(linger=0)
else:
    first.send(b"a")
    router.recv_multipart()
    second = dial()
    second.send(b"b")
    router.recv_multipart()
    first.send(b"c")
    router.poll(100)
    first.close(linger=0)
# Two heartbeats would be due by then.
never = threading.Event()
deadline_s = time.monotonic() + 1.2
while time.monotonic() < deadline_s:
    never.wait(0.05) if sys.argv[1] == "flood" else router.poll(50)
last = dial()
last.send(b"still there")
router.setsockopt(zmq.RCVTIMEO, 5000)
while router.recv_multipart()[1] != b"still there":
    pass
others.destroy(linger=0)
context.destroy(linger=0)
"""


@pytest.mark.parametrize("how", ["flood", "handover"])
def test_a_peer_that_vanishes_does_not_take_the_process_with_it(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
