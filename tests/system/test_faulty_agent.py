"""An agent whose arithmetic goes wrong: named, asked again in f32, and then left out."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes import Command
from tests.system.site import Site

# An agent that spoils one number of its partial sums of layer 1 from its n-th one on.
SPOILT = """
import sys
import numpy as np
from agent.frames import Wire
from agent.stepper import Stepper
value, first = float(sys.argv.pop(1)), int(sys.argv.pop(1))
real, n_seen = Stepper._half_layer, 0
def spoil(self, header, views):
    global n_seen
    n_bytes = real(self, header, views)
    n_seen += header.layer == 1
    if header.layer == 1 and n_seen >= first:
        with np.errstate(over="ignore"):
            if header.wire is Wire.F16:
                views.out_wire.view(np.float16)[7] = value
            else:
                views.out.reshape(-1)[7] = value
    return n_bytes
Stepper._half_layer = spoil
from agent.main import main
sys.exit(main())
"""


@pytest.fixture
def site(tmp_path: Path, endless: Path) -> Iterator[Site]:
    site = Site(tmp_path, endless, "-c", "512", "--place", "spread")
    yield site
    site.close()


def add_spoilt(site: Site, name: str, value: float, first: int) -> Command:
    words = ["--coordinator", site.endpoint, "--name", name, "--threads", "1"]
    site.agents[name] = Command(
        str(value), str(first), *words, "--model-dir", site.model,
        program=(sys.executable, "-c", SPOILT), env={"HEADWISE_PLAIN_EXCHANGE": "1"},
    )  # fmt: skip
    return site.agents[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "inf or NaN in"),
        (float("inf"), "inf or NaN in"),
        (-float("inf"), "inf or NaN in"),
        # f16 cannot carry it, f32 can; but these weights cannot give it.
        (1e6, "the most that its weights can give, in"),
    ],
)
def test_numbers_that_stay_wrong_are_named_and_their_agent_left_out(
    site: Site, value: float, told: str
) -> None:
    site.add("pi-1")
    add_spoilt(site, "pi-2", value, 30)
    site.until_ready("pi-1", "pi-2")
    assert len(site.ids(60)) == 60
    site.serve.until("stderr", r"repeated in f32: agent 'pi-2' sent inf or NaN")
    site.serve.until("stderr", rf"text stopped .*agent 'pi-2' sent .*{told} .* of layer 1")
    site.serve.until("stderr", "agent=pi-2 is drained: its numbers cannot be right")
    site.until_ready("pi-1")
    assert [a.state for a in site.status().agents if a.name == "pi-2"] == ["drained"]
    assert len(site.ids(20)) == 20
