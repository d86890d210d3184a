"""Cables where there is no lab: bytes pass through this process, or stay where they are.

Each board dials ports of its own; what comes there goes on to the coordinator's. While the cable
is cut nothing is read on either side: the kernel's buffers fill, connections stay open, new ones
are taken but lead nowhere yet. As with a real cable, what was sent is delivered once it is mended.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tools.faults.cables import N_PORTS, free_ports

__all__ = ["ProxyCables"]

CHUNK_BYTES = 65536
CALL_S = 10.0

T = TypeVar("T")


class _Cable:
    """One board's ports and whether bytes pass."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mended = asyncio.Event()
        self.mended.set()
        self.servers: list[asyncio.Server] = []
        self.links: set[asyncio.Task[None]] = set()


class ProxyCables:
    """Loopback links through a thread of this process; see `cables.Cables`."""

    name = "proxy"

    def __init__(self) -> None:
        self._port = free_ports()
        self._cables: dict[str, _Cable] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The coordinator's control port."""
        return self._port

    def serve_prefix(self) -> Sequence[str]:
        """Return what starts the coordinator's process: nothing else."""
        return ()

    def serve_words(self) -> Sequence[str | Path]:
        """Return where the coordinator listens."""
        return ("--port", str(self._port), "--insecure")

    def prefix(self, board: str) -> Sequence[str]:
        """Return what starts a board's process: nothing else."""
        return ()

    def words(self, board: str) -> Sequence[str | Path]:
        """Return whom a board dials: its own ports, opened here."""
        if board not in self._cables:
            self._cables[board] = self._call(self._open())
        return ("--coordinator", f"tcp://127.0.0.1:{self._cables[board].port}", "--name", board)

    def cut(self, board: str) -> None:
        """Let nothing pass any more."""
        self._loop.call_soon_threadsafe(self._cables[board].mended.clear)

    def mend(self, board: str) -> None:
        """Let bytes pass again."""
        if board in self._cables:
            self._loop.call_soon_threadsafe(self._cables[board].mended.set)

    def forget(self, board: str) -> None:
        """Close a board's ports."""
        if board in self._cables:
            self._call(self._shut(self._cables.pop(board)))

    def close(self) -> None:
        """Close all ports and end the thread."""
        for board in list(self._cables):
            self.forget(board)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    async def _open(self) -> _Cable:
        cable = _Cable(free_ports())
        for i in range(N_PORTS):
            cable.servers.append(await self._listen(cable, i))
        return cable

    async def _listen(self, cable: _Cable, channel: int) -> asyncio.Server:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            cable.links.add(task)
            try:
                await self._link(cable, channel, reader, writer)
            except asyncio.CancelledError:
                pass  # the board is forgotten; asyncio would log it
            finally:
                cable.links.discard(task)
                writer.close()

        return await asyncio.start_server(accept, "127.0.0.1", cable.port + channel)

    async def _link(
        self, cable: _Cable, channel: int, reader: asyncio.StreamReader, out: asyncio.StreamWriter
    ) -> None:
        await cable.mended.wait()
        try:
            far, far_out = await asyncio.open_connection("127.0.0.1", self._port + channel)
        except OSError:
            return  # nobody listens yet: closed, as the kernel would
        try:
            ways = [_pass_on(cable, reader, far_out), _pass_on(cable, far, out)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            far_out.close()

    async def _shut(self, cable: _Cable) -> None:
        for server in cable.servers:
            server.close()
        for task in list(cable.links):
            task.cancel()
        await asyncio.gather(*cable.links, return_exceptions=True)


async def _pass_on(
    cable: _Cable, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass bytes on one way until an end is closed."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            await cable.mended.wait()
            writer.write(data)
            await writer.drain()
        # That the other end has gone is not heard through a cut cable either.
        await cable.mended.wait()
