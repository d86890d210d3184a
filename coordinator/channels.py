"""What a coordinator binds: control, hot and bulk channel of one run, and the gate before them."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import zmq

from agent.bulk import BulkServer
from agent.ids import RunId
from coordinator.cluster_options import endpoints
from coordinator.control import Control
from coordinator.gate import Gate, open_gate
from coordinator.hot_socket import HotSocket
from coordinator.identity import LinkSecrets
from coordinator.keys import KeyStore
from coordinator.probes import Probes
from coordinator.relay import Relay
from kernels.errors import ResourceError
from weights.directory import ModelDirectory

__all__ = ["Channels", "open_channels"]


class Channels(NamedTuple):
    """The channels of one run; control and bulk live in threads of their own."""

    control: Control
    hot: HotSocket
    bulk: BulkServer
    gate: Gate | None
    relay: Relay

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped and refused on each channel, as fields of `status.Status`."""
        return {
            "n_frames_dropped": self.hot.n_dropped,
            "n_messages_dropped": self.control.n_dropped,
            "n_pulls_dropped": self.bulk.n_dropped + self.relay.n_dropped,
            "n_pulls_refused": self.bulk.n_refused + self.relay.n_refused,
            "n_keys_refused": self.gate.n_refused if self.gate else 0,
        }


def open_channels(
    parts: contextlib.ExitStack,
    context: zmq.Context[zmq.Socket[bytes]],
    bind: str | None,
    store: KeyStore | None,
    run_id: RunId,
    directory: ModelDirectory,
    is_busy: Callable[[], bool],
) -> Channels:
    """Bind the three channels.

    Args:
        parts: is told what to close, in reverse order.
        context: the ZeroMQ context.
        bind: control endpoint for agents that dial in; None: this machine's agents only.
        store: the key store; None lets in agents without keys, unless this machine starts them.
        run_id: number of the run.
        directory: the model that is served.
        is_busy: see `BulkServer`.

    Raises:
        InputError: no endpoint, one beyond loopback without keys, or keys that cannot be used.
        ResourceError: a port is taken.
    """
    control_at, hot_at, bulk_at = endpoints(bind, store is not None)
    # Agents that this machine starts have keys too, for this run alone.
    gate = open_gate(context, store) if bind is None or store is not None else None
    if gate is not None:
        parts.callback(gate.close)
    curve = gate.curve if gate else None
    try:
        hot = HotSocket(context, hot_at, run_id, curve)
        parts.callback(hot.close)
        relay = Relay(run_id)
        bulk = BulkServer(context, bulk_at, run_id, directory, is_busy, curve, relay)
        parts.callback(bulk.close)

        def on_link_end(ended: LinkSecrets) -> None:
            """See to it that nothing passes on the other channels of an agent that is gone."""
            hot.evict(ended.hot_route)
            bulk.end_grant(ended.bulk_token)

        # Links within this machine are not worth a probe.
        probes = Probes(bulk, is_busy) if bind is not None else None
        control = Control(
            context, control_at, run_id, hot.port, bulk.port, gate, on_link_end, probes,
            local=bind is None,
        )  # fmt: skip
        # Who starts agents closes it before their processes; closing twice does no harm.
        parts.callback(control.close)
    except ResourceError as e:
        if bind is None:
            raise
        raise ResourceError(f"{e} {bind} stands for that port and the next two") from e
    return Channels(control, hot, bulk, gate, relay)
