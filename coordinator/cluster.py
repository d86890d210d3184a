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
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import zmq

from agent.cores import claimed_core, pinned
from agent.ids import AgentName, Epoch, KvId, RunId
from agent.share import KvFormat, WireFormat
from coordinator.advisor import Advisor
from coordinator.channels import open_channels
from coordinator.cluster_options import check_numbers, checked_context
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.generation import Generation
from coordinator.installer import Installer
from coordinator.keys import find_store
from coordinator.local import LocalAgents
from coordinator.migration_events import Finished
from coordinator.mirrors import Mirrors
from coordinator.moves import Moves
from coordinator.plan import Plan
from coordinator.planner.decision import Replan
from coordinator.planner.place import Place
from coordinator.plans import Plans
from coordinator.prompts import Prompts
from coordinator.recovery import Recovery
from coordinator.sampling import SamplingOptions
from coordinator.scoring import all_logits
from coordinator.texts import Texts
from coordinator.writer import Writer
from kernels.errors import PromptError, RemoteError
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
        mirror: keep a second copy of keys and values on other agents, as far as there is room, so
            that a text need not be computed again when one is lost.
        insecure: bind without keys, though there are some; loopback addresses only.
        keys: the key store; None takes the user's, if there is one.
        pin: keep the calling thread, and the hot thread of each local agent, on a core of its
            own where one is free.
        verbose: let local agents log to stderr.

    Attributes:
        interrupt: called between the chunks of a prompt, and about ten times a second while
            members are waited for; whatever it raises ends the text being written.
        recover: called when a text has stopped because an agent was lost or is faulty; puts
            another plan into force, with which the text goes on, or raises what ends it. By
            itself a cluster plans with whoever is left.

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
        mirror: bool = False,
        insecure: bool = False,
        keys: str | Path | None = None,
        pin: bool = False,
        verbose: bool = False,
    ) -> None:
        check_numbers(local, bind, min_agents, wait_s)
        self._directory = ModelDirectory.open(demo_path() if model is None else model)
        self.context_tokens = checked_context(context_tokens, self._directory)
        self._prompts = Prompts(self._directory)
        wire: WireFormat = "f32" if exact else "f16"
        self._run_id = RunId(secrets.randbits(64))
        self._last_kv_id = 0
        self.interrupt: Callable[[], None] = lambda: None
        self.recover: Callable[[RemoteError], None] = Recovery(self).go_on_without
        self._texts = Texts(lambda: self.engine, self._go_on_without)
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
        try:
            store = None if bind is None or insecure else find_store(keys)
            self._channels = open_channels(
                self._parts, self._context, bind, store, self._run_id, self._directory,
                # Their threads ask before there is one.
                lambda: hasattr(self, "_plans") and self.installer.is_busy,
            )  # fmt: skip
            self._plans = Plans(
                self._run_id, self._directory, self._channels, self._texts, self._lost_reason,
                self._end_texts, self._check, context_tokens=self.context_tokens, wire=wire,
                kv=kv or wire, place=place or ("spread" if local else "auto"), alike=bind is None,
                mirror=mirror,
            )  # fmt: skip
            self._start_agents(local or int(bind is None), verbose)
            # While agents start and load; a token should not wait for a hash.
            self._directory.verify_embedding()
            names = list(self.local_pids)
            if names or min_agents:
                self.control.wait_agents(len(names) or min_agents, wait_s, names)
                self.install(plan or self.make_plan())
            # Last, because threads and processes that are started from here on stay there too.
            self._parts.enter_context(pinned(core))
        except BaseException:
            self.close()
            raise

    def _start_agents(self, n_agents: int, verbose: bool) -> None:
        """Start local agents, if any, and see to it that all agents hear of the run's end."""
        if n_agents:
            model_dir = self._directory.directory
            gate = self._channels.gate
            self._local = LocalAgents(
                n_agents, self.control.port, model_dir, verbose, self._pin, gate
            )
            self.control.watch(self._local.exit_reason, self._local.is_stopped)
            self._parts.callback(self._local.close)
        # Closed first: agents are told to leave before their processes are ended.
        self._parts.callback(self.control.close, leave=n_agents > 0)

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
        return self.installer.engine

    @property
    def plan(self) -> Plan | None:
        """The plan in force, if there is one."""
        return self.installer.plan

    @property
    def epoch(self) -> Epoch:
        """The number of the plan that was installed last; 0 = none yet."""
        return self.installer.epoch

    @property
    def run_id(self) -> RunId:
        """The random number of this run."""
        return self._run_id

    @property
    def control(self) -> Control:
        """The register of agents."""
        return self._channels.control

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped and refused on each channel, as fields of `status.Status`."""
        return self._channels.counters

    def drain(self) -> None:
        """Drop what agents sent on the hot channel unasked; call it now and then between texts."""
        self._channels.hot.drain()

    @property
    def control_port(self) -> int:
        """The port that agents dial."""
        return self.control.port

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
        return self.installer.weights_bytes()

    def agent_names(self) -> list[AgentName]:
        """Names of the agents that are here now, in the order of the planner's offers."""
        return [offer.name for offer in self.control.offers()]

    def make_plan(self, names: Sequence[AgentName] | None = None) -> Plan:
        """Let the planner place the model on the agents that are here, or on some of them.

        Raises:
            ResourceError: the model does not fit; says how many bytes are missing and where.
        """
        return self.installer.make_plan(names)

    def replan(
        self, advisor: Advisor, names: Sequence[AgentName], cordoned: Collection[AgentName] = ()
    ) -> Replan:
        """Look for a change of the plan in force that pays; see `Installer.replan`."""
        n_tokens = sum(text.n_tokens for text in self._texts.here())
        return self.installer.replan(advisor, n_tokens, names, cordoned)

    def install(self, plan: Plan, end_texts: bool = True) -> None:
        """Put a plan into force and wait until every member is ready.

        Args:
            plan: takes the place of the former one.
            end_texts: end texts that are written; otherwise their next token carries them again.

        Raises:
            PlanError: it does not fit the model or names agents that are not here.
            RemoteError: a member cannot carry out its part, or is lost.
        """
        self._plans.install(plan, end_texts)

    def drop_plan(self, end_texts: bool = True, keep_rows: bool = False) -> None:
        """Let every agent free what it holds of the plan in force; see `install` for texts.

        With `keep_rows` they keep it for a while, if there is a mirror for what others have lost.
        """
        self._plans.drop(end_texts, keep_rows)

    def _go_on_without(self, why: RemoteError) -> None:
        self._plans.distrust(why)
        self.recover(why)

    @property
    def installer(self) -> Installer:
        """What puts plans into force."""
        return self._plans.installer

    @property
    def moves(self) -> Moves:
        """Migrations to other plans."""
        return self._plans.moves

    @property
    def mirrors(self) -> Mirrors:
        """The second copy of keys and values."""
        return self._plans.mirrors

    def begin_move(self, plan: Plan) -> None:
        """Begin to move to another plan; texts go on being written meanwhile.

        It makes progress with every token, and with every `poll_move`.

        Raises:
            PlanError: it does not fit the model or names agents that are not here, or another
                migration is under way.
            RemoteError: no plan is in force, or a member of the new one is gone.
        """
        self._plans.begin_move(plan)

    def poll_move(self) -> Finished | None:
        """Let a migration go on; return how it ended, once."""
        return self._plans.poll_move()

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
        _ = self.engine  # says so if no plan is in force
        writer = Writer(
            self._texts.new(self._next_kv_id()),
            self._directory,
            self.tokenizer,
            self._prompts.read(prompt, prompt_ids),
            max_tokens=max_tokens,
            context_tokens=self.context_tokens,
            options=options or SamplingOptions(),
            stop=stop,
            check=self._before_step,
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
        return all_logits(self._texts.new(kv_id), self._directory, token_ids, chunk_rows)

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

    def _lost_reason(self, name: AgentName) -> str:
        """Return why a member, which is awaited, is gone, or ""."""
        reason = self.control.lost_reason(name)
        if not reason:
            self._check()
        return reason

    def _before_step(self) -> None:
        self._plans.go_on()
        self._check()

    def _check(self) -> None:
        # Whoever calls this was made before somebody set `interrupt`.
        self.interrupt()
