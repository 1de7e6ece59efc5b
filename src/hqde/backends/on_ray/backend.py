"""Workers as Ray actors, on one machine or many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from torch import Tensor

from hqde.aggregation import BLOCK, Basis, Combination, Combined, Delta, RemoteDelta, Rule, Update
from hqde.backends.base import Outcome, StepReport, Supervisor
from hqde.backends.on_ray.board import Board
from hqde.backends.on_ray.cluster import alive_nodes, join, seat
from hqde.backends.on_ray.crew import Crew
from hqde.backends.on_ray.machines import Machines
from hqde.backends.on_ray.predicting import predict_members, row_slices
from hqde.backends.on_ray.seats import Kept
from hqde.backends.on_ray.shipping import pack, unpack
from hqde.backends.on_ray.spreading import fetch, spread
from hqde.backends.on_ray.weight_store import WeightStore
from hqde.backends.on_ray.worker_actor import WorkerActor
from hqde.backends.ray_settings import RaySettings
from hqde.balance import Balancer, BalanceState, RoundRobin, Timing
from hqde.data import Examples
from hqde.ensemble import Ensemble
from hqde.errors import ConfigError, QuorumError
from hqde.monitoring import SystemMetrics
from hqde.topology import Links, Plan, check_plan, choose_plan, shard_bounds
from hqde.training import Order, WorkerSpec, WorkerState
from hqde.weights import Layout, Weights


class RayBackend:
    """A worker per Ray actor.

    Args:
        settings: where the cluster is, and what a worker takes of it.
        threads: torch threads of each worker; 0 follows from its CPUs.
        balancer: who predicts which rows.
        actor_class: what the actors run.

    Attributes:
        settings: as given; ``plan`` may be replaced between two rounds.
    """

    name = "ray"

    def __init__(
        self,
        settings: RaySettings | None = None,
        *,
        threads: int = 0,
        balancer: Balancer = RoundRobin(),
        actor_class: type[WorkerActor] = WorkerActor,
    ) -> None:
        self.settings = settings or RaySettings()
        self._threads = threads
        self._basis: Basis = "gram"  # of the rule, once it is known; until then one that no tree can run
        self._balancer = balancer
        self._balance = BalanceState()
        self._actor_class = actor_class
        self._ours = False
        self._crew: Crew | None = None
        self._store: WeightStore | None = None
        self._machines: Machines | None = None
        self._board = Board()
        self._plans: dict[int, Plan] = {}  # by worker, for the round under way
        self._examples: dict[int, tuple[Examples, Any]] = {}

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Join the cluster, check that the workers fit, and start them.

        Raises:
            ConfigError: no cluster, or one on which they do not fit.
        """
        self._ours = join(self.settings)
        try:
            seats = seat(self.settings, len(specs), self._threads)
            copies = self.settings.replication_factor or min(2, len(alive_nodes()))
            if copies > 1:
                self._store = WeightStore(copies)
            self._board = Board(self._store)
            shared = self._shared(examples)
            self._crew = Crew(specs, shared, seats, store=self._store, actor_class=self._actor_class)
            self._crew.hire()
            self._machines = Machines()
        except BaseException:
            self.close()
            raise

    def check(self, index: Tensor, rule: Rule) -> None:
        """Run a few examples through each worker's model; refuse a rule that the plan cannot run."""
        check_plan(self.settings.plan, basis=rule.basis, rule=rule.name)
        self._basis = rule.basis
        self._hired.call_all("check", index.numpy())

    def layout(self, worker_id: int) -> Layout:
        """The flat layout of a worker's model."""
        return self._hired.layout(worker_id)

    def train(
        self,
        orders: Sequence[Order],
        *,
        on_step: StepReport | None = None,
        supervisor: Supervisor | None = None,
    ) -> Iterator[Outcome]:
        """One call for each worker; the start of a group is put into the object store once."""
        self._board.turn()
        self._mend(orders[0].round_index if orders else 0, supervisor)
        self._plans = self._plans_of(orders)
        for outcome in self._hired.train(
            orders,
            start_refs=self._start_refs,
            on_loss=lambda order: self._recover(order, supervisor),
            cut=lambda order: self._plans[order.worker_id].bounds,
            on_step=on_step,
            supervisor=supervisor,
        ):
            if isinstance(outcome, Update) and outcome.num_samples:
                seen = {outcome.worker_id: Timing(outcome.num_samples, outcome.seconds, outcome.node_load)}
                self._balance = self._balancer.observe(self._balance, seen)
            yield outcome

    def present(self) -> frozenset[int]:
        """All workers; of an elastic run, those that the cluster has room for now."""
        crew = self._hired
        if not self.settings.min_workers:
            return frozenset(range(len(crew.workers)))
        try:
            return crew.resize(seat(self.settings, len(crew.workers), self._threads))
        except ConfigError as error:
            raise QuorumError(str(error), present=0, required=self.settings.min_workers) from None

    def fetch(self, delta: Delta) -> Tensor:
        """A delta in this process."""
        return fetch(delta)

    def combine(self, task: Combination) -> Combined:
        """Spread the work as the group's plan says."""
        workers = [self._owner_of(row) for row in task.rows]
        plan = self._plans.get(workers[0]) or Plan("flat", self.settings.fan_in, ((0, len(task.base)),))
        return spread(task, plan, self._board, workers, self._hired)

    def predict_members(self, ensemble: Ensemble, examples: Examples) -> Tensor:
        """Slices of the rows, predicted by the workers side by side."""
        actors = [worker.actor for worker in self._hired.workers]
        slices = row_slices(len(examples), len(actors))
        rows = [last - first for first, last in slices]
        owners, self._balance = self._balancer.assign(rows, [0.0] * len(actors), self._balance)
        return predict_members(ensemble, self._shared(examples), slices, owners, actors)

    def worker_states(self) -> Mapping[int, WorkerState]:
        """Every worker's state."""
        refs = self._hired.states()
        return dict(zip(refs, map(unpack, ray.get(list(refs.values()))), strict=True))

    def load_worker_states(self, states: Mapping[int, WorkerState], committed: Mapping[int, Weights]) -> None:  # noqa: ARG002
        """Workers take up their states, over their group's weights, when their next round begins."""
        for worker, state in states.items():
            own = self._hired.workers[worker]
            own.state, own.restore = Kept(ray.put(pack(state))), True

    def machines(self) -> Mapping[str, SystemMetrics]:
        """What an actor on each other node of the cluster saw last."""
        return {} if self._machines is None else self._machines.look()

    def close(self) -> None:
        """Let go of actors and objects, and of Ray if it was started or joined here."""
        if self._machines is not None:
            self._machines.close()
        if self._crew is not None:
            self._crew.close()
        if self._store is not None:
            self._store.close()
        self._machines = self._crew = self._store = None
        self._board.clear()
        self._plans, self._examples = {}, {}
        if self._ours and ray.is_initialized():
            ray.shutdown()
        self._ours = False

    @property
    def _hired(self) -> Crew:
        assert self._crew is not None, "start comes first"
        return self._crew

    def _shared(self, examples: Examples) -> Any:
        """A reference to packed examples, put into the store once."""
        if id(examples) not in self._examples:
            self._examples[id(examples)] = (examples, ray.put(pack(examples)))
        return self._examples[id(examples)][1]

    def _start_refs(self, order: Order) -> Sequence[Any]:
        packet = None if order.downlink is None else order.downlink.packet
        return self._board.pieces(order.start.vector) if packet is None else self._board.packet(packet)

    def _recover(self, order: Order, supervisor: Supervisor | None) -> None:
        """A machine may be gone: make new copies of what it held, and put the round's start out again."""
        self._mend(order.round_index, supervisor, surely=True)
        self._board.lose(order.start.vector)

    def _mend(self, round_index: int, supervisor: Supervisor | None, *, surely: bool = False) -> None:
        if self._store is None:
            return
        self._store.settle()
        for sentence in self._store.heal() if surely or self._store.needs_healing() else ():
            if supervisor is not None:
                supervisor.on_repair(round_index, sentence)

    def _plans_of(self, orders: Sequence[Order]) -> dict[int, Plan]:
        """Workers that start from the same weights are a group; each group has a plan."""
        groups: dict[int, list[Order]] = defaultdict(list)
        for order in orders:
            groups[id(order.start.vector)].append(order)
        nodes = len(alive_nodes())
        plans: dict[int, Plan] = {}
        for group in groups.values():
            plan = self._plan(group[0].start.vector, len(group), nodes)
            plans |= {order.worker_id: plan for order in group}
        return plans

    def _plan(self, vector: Tensor, num_rows: int, nodes: int) -> Plan:
        settings, kind = self.settings, self.settings.plan
        if kind == "auto":
            links = Links(nodes=nodes, bytes_per_s=settings.link_gbit * 1.25e8)
            kind = choose_plan(
                num_rows=num_rows,
                row_bytes=vector.nbytes,
                basis=self._basis,
                fan_in=settings.fan_in,
                links=links,
                num_shards=settings.num_shards,
            )
        if num_rows == 1:
            kind = "flat"
        num_shards = (settings.num_shards or max(2, nodes)) if kind == "sharded" else 1
        return Plan(kind, settings.fan_in, shard_bounds(len(vector), num_shards, block=BLOCK))

    def _owner_of(self, row: Delta) -> int:
        return row.handle.worker_id if isinstance(row, RemoteDelta) else -1
