"""The Python entrance: a coordinator in this process, its agents, and texts from them.

    from coordinator import Cluster

    with Cluster(local=3) as cluster:
        for token in cluster.generate("Once upon a time", max_tokens=100):
            print(token.text, end="", flush=True)

One thread uses a Cluster. Sockets of the control and bulk channels live in threads of their own.
"""

import contextlib
import secrets
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import zmq

from agent.bulk import BulkServer
from agent.cores import claimed_core, pinned
from agent.ids import AgentName, Epoch, KvId, Rank, RunId
from agent.share import KvFormat
from coordinator.cluster_options import check_numbers, checked_context, endpoints
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.gate import Gate, open_gate
from coordinator.generation import Generation
from coordinator.hot_link import HotLink
from coordinator.identity import LinkSecrets
from coordinator.installer import Installer
from coordinator.keys import find_store
from coordinator.local import LocalAgents
from coordinator.plan import Plan
from coordinator.planner import Place, Planned
from coordinator.prompts import Prompts
from coordinator.sampling import SamplingOptions
from coordinator.scoring import all_logits
from coordinator.writer import Writer
from kernels.errors import PromptError, ResourceError
from weights.demo import demo_path
from weights.directory import ModelDirectory
from weights.tokenizer import Tokenizer

__all__ = ["Cluster"]


class Cluster:
    """A coordinator with its agents and one plan at a time.

    Args:
        model: a headwise model directory; None takes the shipped demo model.
        local: how many agent processes to start on this machine; they end with the cluster.
        bind: control endpoint for agents that dial in, such as tcp://127.0.0.1:7070; the hot and
            bulk channels take the next two ports.
        min_agents: how many dialled-in agents to wait for; 0: none, and no plan is made either,
            so that the caller installs one when it likes.
        wait_s: how long to wait for agents to appear.
        plan: a placement to use instead of the planner's.
        place: "spread" uses every agent, "auto" the fastest subset by prediction; None means
            spread for local agents and auto for others.
        exact: f32 on the wire and in the KV cache: greedy words then do not depend on placement.
        kv: type of cached keys and values; None means f16, or f32 when exact.
        context_tokens: longest context; None means the model's, at most 2048.
        insecure: bind without keys, though there are some; loopback addresses only.
        keys: the key store; None takes the user's, if there is one.
        pin: keep the calling thread, and the hot thread of each local agent, on a core of its
            own where one is free.
        verbose: let local agents log to stderr.

    Attributes:
        interrupt: called between the chunks of a prompt, and about ten times a second while
            members are waited for; whatever it raises ends the text being written.

    Raises:
        HeadwiseError: whatever keeps the cluster from coming up, in words for its user.
    """

    # Set by `_bind`.
    _hot: HotLink
    _bulk: BulkServer
    _control: Control

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        local: int = 0,
        bind: str | None = None,
        min_agents: int = 1,
        wait_s: float = 60.0,
        plan: Plan | None = None,
        place: Place | None = None,
        exact: bool = False,
        kv: KvFormat | None = None,
        context_tokens: int | None = None,
        insecure: bool = False,
        keys: str | Path | None = None,
        pin: bool = False,
        verbose: bool = False,
    ) -> None:
        check_numbers(local, bind, min_agents, wait_s)
        self._directory = ModelDirectory.open(demo_path() if model is None else model)
        self.context_tokens = checked_context(context_tokens, self._directory)
        self._prompts = Prompts(self._directory)
        wire: KvFormat = "f32" if exact else "f16"
        self._run_id = RunId(secrets.randbits(64))
        self._last_kv_id = 0
        self.interrupt: Callable[[], None] = lambda: None
        self._generations: weakref.WeakSet[Generation] = weakref.WeakSet()
        # Closed in reverse order, each even if another fails.
        self._parts = contextlib.ExitStack()
        self._parts.callback(self._directory.close)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._parts.callback(self._context.destroy, linger=0)
        self._pin = pin
        core = self._parts.enter_context(claimed_core()) if pin else None
        if core is not None:
            self._context.set(zmq.THREAD_AFFINITY_CPU_ADD, core)
        self._local: LocalAgents | None = None
        self._gate: Gate | None = None
        try:
            self._bind(bind, insecure, keys)
            self._installer = Installer(
                self._directory,
                self._control,
                self._hot,
                self._bulk,
                self._run_id,
                context_tokens=self.context_tokens,
                wire=wire,
                kv=kv or wire,
                place=place or ("spread" if local else "auto"),
                alike=bind is None,
            )
            self._start_agents(local or int(bind is None), verbose)
            # While agents start and load; a token should not wait for a hash.
            self._directory.verify_embedding()
            names = list(self.local_pids)
            if names or min_agents:
                self._control.wait_agents(len(names) or min_agents, wait_s, names)
                self.install(plan or self.make_plan())
            # Last, because threads and processes that are started from here on stay there too.
            self._parts.enter_context(pinned(core))
        except BaseException:
            self.close()
            raise

    def _bind(self, bind: str | None, insecure: bool, keys: str | Path | None) -> None:
        """Bind the three channels."""
        store = None if bind is None or insecure else find_store(keys)
        control_at, hot_at, bulk_at = endpoints(bind, store is not None)
        if bind is None or store is not None:
            self._gate = open_gate(self._context, store)
            self._parts.callback(self._gate.close)
        curve = self._gate.curve if self._gate else None
        try:
            self._hot = HotLink(self._context, hot_at, self._run_id, self._lost_reason, curve)
            self._parts.callback(self._hot.close)
            run = self._run_id, self._directory, self._is_busy
            self._bulk = BulkServer(self._context, bulk_at, *run, curve)
            self._parts.callback(self._bulk.close)
            ports = (self._hot.port, self._bulk.port)
            self._control = Control(
                self._context, control_at, self._run_id, *ports, self._gate, self._on_link_end
            )
            # Once more, and last, if no agents come to be started.
            self._parts.callback(self._control.close)
        except ResourceError as e:
            if bind is None:
                raise
            raise ResourceError(f"{e} {bind} stands for that port and the next two") from e

    def _start_agents(self, n_agents: int, verbose: bool) -> None:
        """Start local agents, if any, and see to it that all agents hear of the run's end."""
        if n_agents:
            model_dir = self._directory.directory
            self._local = LocalAgents(
                n_agents, self._control.port, model_dir, verbose, self._pin, self._gate
            )
            self._control.watch(self._local.exit_reason)
            self._parts.callback(self._local.close)
        # Closed first: agents are told to leave before their processes are ended.
        self._parts.callback(self._control.close, leave=n_agents > 0)

    def _on_link_end(self, ended: LinkSecrets) -> None:
        """See to it that nothing passes on the other channels of an agent that is gone."""
        self._hot.evict(ended.hot_route)
        self._bulk.end_grant(ended.bulk_token)

    @property
    def directory(self) -> ModelDirectory:
        """The model in use."""
        return self._directory

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None if it has none, or the package is not installed."""
        return self._prompts.tokenizer

    @property
    def engine(self) -> Engine:
        """What carries rows through the plan in force.

        Raises:
            PlanError: no plan is in force.
        """
        return self._installer.engine

    @property
    def plan(self) -> Plan | None:
        """The plan in force, if there is one."""
        return self._installer.plan

    @property
    def planned(self) -> Planned | None:
        """The plan that `make_plan` made last, with its forecast."""
        return self._installer.planned

    @property
    def epoch(self) -> Epoch:
        """The number of the plan that was installed last; 0 = none yet."""
        return self._installer.epoch

    @property
    def run_id(self) -> RunId:
        """The random number of this run."""
        return self._run_id

    @property
    def control(self) -> Control:
        """The register of agents."""
        return self._control

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped and refused on each channel, as fields of `status.Status`."""
        return {
            "n_frames_dropped": self._hot.n_dropped,
            "n_messages_dropped": self._control.n_dropped,
            "n_pulls_dropped": self._bulk.n_dropped,
            "n_pulls_refused": self._bulk.n_refused,
            "n_keys_refused": self._gate.n_refused if self._gate else 0,
        }

    def drain(self) -> None:
        """Drop what agents sent on the hot channel unasked; call it now and then between texts."""
        self._hot.drain()

    @property
    def control_port(self) -> int:
        """The port that agents dial."""
        return self._control.port

    @property
    def local_pids(self) -> dict[AgentName, int]:
        """Process ids of the agents that `local` started."""
        return self._local.pids if self._local else {}

    @property
    def local_threads(self) -> int:
        """Kernel threads of each agent that `local` started."""
        return self._local.n_threads if self._local else 0

    def weights_bytes(self) -> dict[AgentName, int]:
        """Return the bytes of weights that each member of the plan in force holds."""
        return self._installer.weights_bytes()

    def agent_names(self) -> list[AgentName]:
        """Names of the agents that are here now, in the order of the planner's offers."""
        return [offer.name for offer in self._control.offers()]

    def make_plan(self, names: Sequence[AgentName] | None = None) -> Plan:
        """Let the planner place the model on the agents that are here, or on some of them.

        Raises:
            ResourceError: the model does not fit; says how many bytes are missing and where.
        """
        return self._installer.make_plan(names)

    def install(self, plan: Plan) -> None:
        """Put a plan into force and wait until every member is ready.

        Texts that are being written under the former plan end.

        Raises:
            PlanError: it does not fit the model or names agents that are not here.
            RemoteError: a member cannot carry out its part, or is lost.
        """
        self._installer.install(plan, before=self._end_texts)

    def drop_plan(self) -> None:
        """End the texts and let every agent free what it holds of the plan in force."""
        self._end_texts()
        self._installer.drop()

    def generate(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        max_tokens: int = 256,
        options: SamplingOptions | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Start a text; iterate over the result to get its tokens as they arrive.

        Args:
            prompt: text to continue; empty means BOS alone. Needs a model with a tokenizer.
            prompt_ids: token ids instead of a prompt.
            max_tokens: most tokens to generate.
            options: sampling; None is greedy.
            stop: strings that end the text.

        Raises:
            PromptError: a prompt or option that cannot be served.
        """
        writer = Writer(
            self.engine,
            self._directory,
            self.tokenizer,
            self._prompts.read(prompt, prompt_ids),
            max_tokens=max_tokens,
            context_tokens=self.context_tokens,
            options=options or SamplingOptions(),
            stop=stop,
            kv_id=self._next_kv_id(),
            check=self._check,
        )
        generation = Generation(writer)
        self._generations.add(generation)
        return generation

    def logits(self, token_ids: Sequence[int], chunk_rows: int = 16) -> npt.NDArray[np.float32]:
        """Return the logits after each token of a given text, (n_tokens, V) float32.

        Raises:
            PromptError: no tokens, or more than the context holds.
        """
        n_tokens = len(token_ids)
        if not 1 <= n_tokens <= self.context_tokens:
            raise PromptError(f"{n_tokens} tokens; the context holds 1 to {self.context_tokens}")
        kv_id = self._next_kv_id()
        return all_logits(self.engine, self._directory, token_ids, kv_id, chunk_rows)

    def close(self) -> None:
        """End local agents, tell others that the run is over, and close all sockets."""
        self._end_texts()
        self._parts.close()

    def _end_texts(self) -> None:
        for generation in list(self._generations):
            generation.close()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _next_kv_id(self) -> KvId:
        self._last_kv_id = (self._last_kv_id + 1) & 0xFFFFFFFF
        return KvId(self._last_kv_id)

    def _lost_reason(self, rank: Rank) -> str:
        """Return why the member of that rank, which is awaited, is gone, or ""."""
        reason = self._installer.lost_reason(rank)
        if not reason:
            self._check()
        return reason

    def _check(self) -> None:
        # Whoever calls this was made before somebody set `interrupt`.
        self.interrupt()

    def _is_busy(self) -> bool:
        """Whether a request runs."""
        return self._installer.is_busy
