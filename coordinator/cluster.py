"""The Python entrance: a coordinator in this process, its agents, and texts from them.

    from coordinator import Cluster

    with Cluster(local=3) as cluster:
        for token in cluster.generate("Once upon a time", max_tokens=100):
            print(token.text, end="", flush=True)

One thread uses a Cluster. Sockets of the control and bulk channels live in threads of their own.
"""

import contextlib
import importlib.util
import secrets
import statistics
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import zmq

from agent.bulk import BulkServer
from agent.cores import claimed_core, pinned
from agent.ids import AgentName, Epoch, KvId, ModelId, Rank, RunId
from agent.kv_ops import KvOp, KvOpCode
from agent.share import KvFormat
from agent.vocab_payload import SamplerRow
from coordinator.assign import assignments, largest_reply_bytes
from coordinator.cluster_options import check_numbers, checked_context, endpoints
from coordinator.control import Control
from coordinator.engine import Engine, Rows
from coordinator.generation import Generation
from coordinator.hot_link import HotLink
from coordinator.local import LocalAgents
from coordinator.plan import Plan, check_model, check_plan, member_weights_bytes
from coordinator.planner import Link, Offer, Place, Planned, PlanRequest, make_plan
from coordinator.sampling import SamplingOptions
from coordinator.writer import Writer
from kernels.errors import PlanError, PromptError, ResourceError
from weights.demo import demo_path
from weights.directory import ModelDirectory
from weights.tokenizer import Tokenizer

__all__ = ["Cluster"]

MAX_ROWS = 64
# Contexts open at once; their tokens share kv_tokens, each may leave one page partly empty.
N_CONTEXTS = 4
# Loopback round trips as measured by tools/bench_exchange.py; real links are issue 5's matter.
LOOPBACK = Link(hop_s=150e-6, bytes_per_s=1e9)
LOAD_STALL_S = 120.0


class Cluster:
    """A coordinator with its agents and one plan at a time.

    Args:
        model: a headwise model directory; None takes the shipped demo model.
        local: how many agent processes to start on this machine; they end with the cluster.
        bind: control endpoint for agents that dial in, such as tcp://127.0.0.1:7070; the hot and
            bulk channels take the next two ports.
        min_agents: how many dialled-in agents to wait for.
        wait_s: how long to wait for agents to appear.
        plan: a placement to use instead of the planner's.
        place: "spread" uses every agent, "auto" the fastest subset by prediction; None means
            spread for local agents and auto for others.
        exact: f32 on the wire and in the KV cache: greedy words then do not depend on placement.
        kv: type of cached keys and values; None means f16, or f32 when exact.
        context_tokens: longest context; None means the model's, at most 2048.
        insecure: allow `bind` to an address that other machines reach, though links are neither
            encrypted nor authenticated yet.
        pin: keep the calling thread, and the hot thread of each local agent, on a core of its
            own where one is free.
        verbose: let local agents log to stderr.

    Raises:
        HeadwiseError: whatever keeps the cluster from coming up, in words for its user.
    """

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
        pin: bool = False,
        verbose: bool = False,
    ) -> None:
        check_numbers(local, bind, min_agents, wait_s)
        self._directory = ModelDirectory.open(demo_path() if model is None else model)
        self.context_tokens = checked_context(context_tokens, self._directory)
        self.tokenizer, self._no_tokenizer = _tokenizer(self._directory)
        self._place: Place = place or ("spread" if local else "auto")
        self._wire: KvFormat = "f32" if exact else "f16"
        self._kv: KvFormat = kv or self._wire
        self._run_id = RunId(secrets.randbits(64))
        self._epoch = Epoch(0)
        self._last_kv_id = 0
        self._engine: Engine | None = None
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
        self.planned: Planned | None = None
        self.plan: Plan | None = None
        try:
            self._bind(bind, insecure)
            self._start_agents(local or int(bind is None), verbose)
            # While agents start and load; a token should not wait for a hash.
            self._directory.verify_embedding()
            names = list(self.local_pids)
            self._control.wait_agents(len(names) or min_agents, wait_s, names)
            self.install(plan or self.make_plan())
            # Last, because threads and processes that are started from here on stay there too.
            self._parts.enter_context(pinned(core))
        except BaseException:
            self.close()
            raise

    def _bind(self, bind: str | None, insecure: bool) -> None:
        """Bind the three channels."""
        control_at, hot_at, bulk_at = endpoints(bind, insecure)
        try:
            self._hot = HotLink(self._context, hot_at, self._run_id, self._lost_reason)
            self._parts.callback(self._hot.close)
            self._bulk = BulkServer(self._context, bulk_at, self._run_id, self._directory)
            self._parts.callback(self._bulk.close)
            ports = (self._hot.port, self._bulk.port)
            self._control = Control(self._context, control_at, self._run_id, *ports)
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
            self._local = LocalAgents(n_agents, self._control.port, model_dir, verbose, self._pin)
            self._control.watch(self._local.exit_reason)
            self._parts.callback(self._local.close)
        # Closed first: agents are told to leave before their processes are ended.
        self._parts.callback(self._control.close, leave=n_agents > 0)

    @property
    def directory(self) -> ModelDirectory:
        """The model in use."""
        return self._directory

    @property
    def engine(self) -> Engine:
        """What carries rows through the plan in force.

        Raises:
            PlanError: no plan is in force.
        """
        if self._engine is None:
            raise PlanError("no plan is in force; install one first")
        return self._engine

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
        if self.plan is None:
            return {}
        geometry = self._directory.geometry
        return {
            member.agent: member_weights_bytes(member, stage, geometry)
            for stage in self.plan.stages
            for member in stage.members
        }

    def agent_names(self) -> list[AgentName]:
        """Names of the agents that are here now, in the order of the planner's offers."""
        return [offer.name for offer in self._control.offers()]

    def make_plan(self, names: Sequence[AgentName] | None = None) -> Plan:
        """Let the planner place the model on the agents that are here, or on some of them.

        Raises:
            ResourceError: the model does not fit; says how many bytes are missing and where.
        """
        request = PlanRequest(
            context_tokens=self.context_tokens,
            kv_tokens=self.context_tokens,
            wire=self._wire,
            kv=self._kv,
            place=self._place,
            n_contexts=N_CONTEXTS,
        )
        offers = [o for o in self._offers() if names is None or o.name in names]
        model_id = ModelId(self._directory.model_id)
        self.planned = make_plan(model_id, self._directory.geometry, offers, request, LOOPBACK)
        return self.planned.plan

    def _offers(self) -> list[Offer]:
        offers = self._control.offers()
        if self._local is None:
            return offers
        # Agents of one machine are equally fast; what they measured while starting side by side
        # is noise, and would make the placement differ from run to run.
        speed = statistics.median(o.bytes_per_s for o in offers)
        return [o._replace(bytes_per_s=speed) for o in offers]

    def install(self, plan: Plan) -> None:
        """Put a plan into force and wait until every member is ready.

        Texts that are being written under the former plan end.

        Raises:
            PlanError: it does not fit the model or names agents that are not here.
            RemoteError: a member cannot carry out its part, or is lost.
        """
        check_plan(plan, self._directory.geometry)
        self._check_members(plan)
        previous, self._engine = self._epoch, None
        self._end_texts()
        self._epoch = Epoch(previous + 1)
        told = assignments(
            plan,
            self._run_id,
            self._epoch,
            manifest_bytes=len(self._directory.manifest.encode()),
            context_tokens=self.context_tokens,
            kv_tokens=self.context_tokens,
            n_contexts=N_CONTEXTS,
            max_rows=MAX_ROWS,
        )
        self.plan = plan
        if previous:
            self._control.release(previous)
        self._control.assign(told)
        self._control.wait_ready(self._epoch, list(told), LOAD_STALL_S)
        geometry = self._directory.geometry
        reply_bytes = largest_reply_bytes(plan, geometry, MAX_ROWS)
        self._hot.join(list(told), self._epoch, reply_bytes, time.monotonic() + 10.0)
        self._engine = Engine(self._hot, plan, geometry, self._run_id, self._epoch, MAX_ROWS)

    def _check_members(self, plan: Plan) -> None:
        check_model(plan, self._directory.model_id)
        here = set(self.agent_names())
        missing = [m.agent for m in plan.members if m.agent not in here]
        if missing:
            raise PlanError(
                f"plan names agent {missing[0]!r}, which is not here; here are: "
                f"{', '.join(sorted(here)) or 'none'}"
            )

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
        if (prompt is None) == (prompt_ids is None):
            raise PromptError("give either a prompt or prompt ids")
        if prompt is not None and self.tokenizer is None:
            raise PromptError(self._no_tokenizer)
        if prompt is not None and self.tokenizer is not None:
            prompt_ids = self.tokenizer.encode(prompt)
        writer = Writer(
            self.engine,
            self._directory,
            self.tokenizer,
            list(prompt_ids or ()),
            max_tokens=max_tokens,
            context_tokens=self.context_tokens,
            options=options or SamplingOptions(),
            stop=stop,
            kv_id=self._next_kv_id(),
        )
        generation = Generation(writer)
        self._generations.add(generation)
        return generation

    def logits(self, token_ids: Sequence[int], chunk_rows: int = 16) -> npt.NDArray[np.float32]:
        """Return the logits after each token of a given text, (n_tokens, V) float32.

        Raises:
            PromptError: no tokens, or more than the context holds.
        """
        n_tokens, config = len(token_ids), self._directory.config
        if not 1 <= n_tokens <= self.context_tokens:
            raise PromptError(f"{n_tokens} tokens; the context holds 1 to {self.context_tokens}")
        engine, kv_id = self.engine, self._next_kv_id()
        out = np.empty((n_tokens, config.vocab_size), np.float32)
        engine.control_kv([KvOp(KvOpCode.OPEN, kv_id, n_tokens)])
        try:
            for first in range(0, n_tokens, chunk_rows):
                ids = token_ids[first : first + chunk_rows]
                x = np.empty((len(ids), config.hidden_size), np.float32)
                for row, token_id in zip(x, ids, strict=True):
                    self._directory.embedding_row(token_id, row)
                rows = Rows([kv_id] * len(ids), list(range(first, first + len(ids))))
                samplers = [SamplerRow(full_logits=True)] * len(ids)
                out[first : first + len(ids)] = engine.step(x, rows, samplers)
        finally:
            engine.control_kv([KvOp(KvOpCode.RELEASE, kv_id)])
        return out

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
        """Return why the member of that rank is gone, or ""."""
        return self._control.lost_reason(self.plan.members[rank].agent) if self.plan else ""


def _tokenizer(directory: ModelDirectory) -> tuple[Tokenizer | None, str]:
    """Return the model's tokenizer, or None and why prompts in words cannot be served.

    Raises:
        ModelError: tokenizer.json is damaged.
    """
    if directory.path("tokenizer.json") is None:
        return None, "this model has no tokenizer; give token ids with --prompt-ids"
    if importlib.util.find_spec("tokenizers") is None:
        return None, (
            "prompts in words need the Python package 'tokenizers'; add it with: "
            "pip install 'headwise[run]', or give token ids with --prompt-ids"
        )
    return Tokenizer(directory), ""
