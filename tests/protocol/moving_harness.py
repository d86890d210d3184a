"""A coordinator of few words whose agents move head groups: the relay is the real one."""

import contextlib
import resource
import time

import zmq

from agent.messages import Hello, Ready, Welcome, decode_agent_message, decode_bulk_message, encode
from agent.migration_messages import KvAsk, KvOffer, KvRows
from agent.sockets import BULK
from agent.versions import our_versions
from coordinator.relay import Relay
from tests.protocol.agent_harness import DEADLINE_S, AgentProcess, TinyCoordinator


class MovingCoordinator(TinyCoordinator):
    """Control, hot and bulk sockets of several agents, used by the test's thread.

    Attributes:
        told: control messages of each agent that nobody has asked for yet.
        rows: (header, bytes) of each reply of a source.
        asks: requests of targets.
        spoil: changes the bytes of a reply before the target gets them.
        passing: whether replies are handed on at once; else they wait in `held`.
    """

    def __init__(self, directory):
        super().__init__(directory)
        self.moves = self._router(BULK, "tcp://127.0.0.1:*")
        self.relay = Relay(self.run_id)
        self.control_routes, self.told = {}, {}
        self.rows, self.asks, self.held, self.bulk_routes = [], [], [], {}
        self.spoil = lambda data: data
        self.passing = True
        self.agents = {}

    def close(self):
        self.moves.close(linger=0)
        super().close()

    def rebind_bulk(self):
        """Close the bulk socket with all its links and open it again; return the former routes."""
        port, routes = self._port(self.moves), set(self.bulk_routes.values())
        self.bulk_routes.clear()
        self.moves.close(linger=0)
        self.moves = self._router(BULK, "tcp://127.0.0.1:*")
        # The port is free once the I/O thread has closed the former socket.
        endpoint, bound = f"tcp://127.0.0.1:{port}", False
        while not bound:
            with contextlib.suppress(zmq.ZMQError):
                self.moves.bind(endpoint)
                bound = True
        return routes

    def serve(self, until):
        """Receive on control and bulk until something is so; each message is looked at once."""
        poller = zmq.Poller()
        for socket in (self.control, self.moves):
            poller.register(socket, zmq.POLLIN)
        deadline_s = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline_s, (self.told, self.asks[-4:])
            ready = dict(poller.poll(100))
            if self.control in ready:
                self._on_control(*self.control.recv_multipart())
            if self.moves in ready:
                self._on_bulk(*self.moves.recv_multipart())
            self.forward(self.relay.on_tick(time.monotonic()))

    def of(self, name, *kinds, where=lambda message: True):
        """Return the next control message of these kinds from one agent."""
        found = []

        def look():
            queue = self.told.setdefault(name, [])
            while queue and not found:
                message = queue.pop(0)
                if isinstance(message, kinds) and where(message):
                    found.append(message)
            return bool(found)

        self.serve(look)
        return found[0]

    def say(self, name, message):
        self.control.send_multipart([self.control_routes[name], encode(message)])

    def join_all(self, names):
        for rank, name in enumerate(names):
            self.of(name, Hello)
            self.say(name, Welcome(
                self.run_id, self._port(self.hot), self._port(self.moves), 0.2, our_versions(),
                bulk_token=f"token of {name}".encode(), hot_route=f"{name} {rank}".encode(),
            ))  # fmt: skip

    def take_on(self, name, told):
        """Give an agent an assignment and wait until it is ready and says so on the hot link."""
        self.say(name, told)
        ready = self.of(name, Ready)
        header, _ = self.receive()
        assert (header.epoch, header.rank) == (told.epoch, told.rank)
        return ready

    def resident_bytes(self, name):
        """Return the memory of an agent's process that is in use."""
        with open(f"/proc/{self.agents[name].popen.pid}/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()

    def begin_relay(self, epoch, shares, token_bytes):
        peers = [(f"token of {name}".encode(), name, "") for name in self.control_routes]
        self.relay.begin(epoch, shares, token_bytes, peers)

    def pass_on(self, n):
        """Hand on the first replies that wait."""
        for _ in range(n):
            self.moves.send_multipart(self.held.pop(0))

    def forward(self, forwards):
        for forward in forwards:
            parts = [forward.route, encode(forward.message)]
            if forward.data is not None:
                parts.append(self.spoil(bytes(forward.data)))
            if isinstance(forward.message, KvRows) and not self.passing:
                self.held.append(parts)
            else:
                # A link that has gone is as good as a lost message.
                with contextlib.suppress(zmq.ZMQError):
                    self.moves.send_multipart(parts)

    def _on_control(self, route, data):
        message = decode_agent_message(data)
        if isinstance(message, Hello):
            self.control_routes[message.name] = route
        names = {route: name for name, route in self.control_routes.items()}
        self.told.setdefault(names[route], []).append(message)

    def _on_bulk(self, route, raw, *data):
        message, now_s = decode_bulk_message(raw), time.monotonic()
        if isinstance(message, KvOffer):
            self.bulk_routes[message.token] = route
            self.forward(self.relay.on_offer(route, message, "", now_s))
        elif isinstance(message, KvAsk):
            self.bulk_routes[message.token] = route
            self.asks.append(message)
            self.forward(self.relay.on_ask(route, message, "", now_s))
        elif isinstance(message, KvRows):
            self.rows.append((message, data[0]))
            self.forward(self.relay.on_rows(route, message, data[0], 0, now_s))


@contextlib.contextmanager
def moving(directory, tmp_path, names=("a", "b")):
    """Yield a coordinator whose agents have joined; they find the model on their own disk."""
    coordinator = MovingCoordinator(directory)
    options = coordinator.port, "--model-dir", str(directory.directory)
    agents = {name: AgentProcess(tmp_path / name, *options, name=name) for name in names}
    coordinator.agents = agents
    try:
        coordinator.join_all(names)
        yield coordinator
    finally:
        for agent in agents.values():
            agent.close()
        coordinator.close()
