"""The workers' actors: hired, given orders, waited for, and replaced when they are lost."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskUnschedulableError,
)

from hqde.aggregation import Update
from hqde.backends.base import Failure, Outcome, StepReport, Supervisor
from hqde.backends.on_ray.cluster import Seats, node_resources, num_fitting
from hqde.backends.on_ray.failures import cause_of, failure_of, first_line, swallow
from hqde.backends.on_ray.seats import Running, Seat
from hqde.backends.on_ray.shipping import pack
from hqde.backends.on_ray.states import States
from hqde.backends.on_ray.weight_store import DamagedCopyError, WeightStore
from hqde.backends.on_ray.worker_actor import CONTROL, WorkerActor, whole_update, with_control
from hqde.compression import Downlink
from hqde.errors import ConfigError, HqdeError, WorkerError
from hqde.seeding import seeded
from hqde.training import Order, WorkerSpec, is_out_of_memory
from hqde.weights import Layout, Weights

HIRING_TIMEOUT_S = 120.0  # for an actor to be placed, import torch and build its model
HIRING_PAUSE_S = 1.0  # a node that is gone is offered for a moment longer
POLL_S = 0.25  # between two looks at deadlines and progress


class Crew:
    """Actors by worker id. Owned by the driver: they end with it.

    Args:
        specs: of the workers, by id.
        examples: reference to the packed training examples.
        seats: what each actor holds.
        store: keeps the workers' states on several nodes; ``None`` leaves each where it was made.
        actor_class: what the actors run.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        examples: Any,
        seats: Seats,
        *,
        store: WeightStore | None = None,
        actor_class: type[WorkerActor] = WorkerActor,
    ) -> None:
        self.seats = seats
        self.workers = [Seat(spec) for spec in specs]
        self._at_a_time = seats.at_a_time
        self._layouts: dict[int, Layout] = {}
        self._supervisor: Supervisor | None = None  # of the round under way, until the next
        self._start_refs: Callable[[Order], Sequence[Any]] = lambda _: ()
        self._examples = examples
        self._states = States(store)
        self._actor_class = ray.remote(
            num_cpus=seats.num_cpus,
            num_gpus=seats.num_gpus,
            max_restarts=0,  # a new process knows nothing: the driver restores it, or nobody does
            max_task_retries=0,
            concurrency_groups={CONTROL: 1},
            scheduling_strategy="SPREAD",
        )(with_control(actor_class))

    def hire(self) -> None:
        """Start an actor for each worker that there is room for, and build the workers.

        Raises:
            ConfigError: a model cannot be imported or built where the workers are.
            WorkerError: an actor did not come up.
        """
        calls = [self._engage(worker) for worker in range(self.seats.places)]
        for worker, call in enumerate(calls):
            self._welcome(worker, call)

    def layout(self, worker: int) -> Layout:
        """The layout of a worker's model."""
        if worker not in self._layouts:  # it has never been hired, but its model can be built anywhere
            with seeded(0, "layout"):
                self._layouts[worker] = Layout.of(self.workers[worker].spec.model.build())
        return self._layouts[worker]

    def resize(self, seats: Seats) -> frozenset[int]:
        """Let as many work as there are places; who is hired goes before who is not. Returns who may work."""
        if seats != self.seats:
            self.roll_call()
            self.seats, self._at_a_time = seats, seats.at_a_time
        hired_first = sorted(range(len(self.workers)), key=lambda w: (self.workers[w].actor is None, w))
        for worker in hired_first[seats.places :]:
            self.dismiss(worker)
        return frozenset(hired_first[: seats.places])

    def call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every actor and wait for all; an error of a worker's is raised as it is."""
        hired = [seat.actor for seat in self.workers if seat.actor is not None]
        calls = [getattr(actor, method).remote(*arguments) for actor in hired]
        try:
            return list(ray.get(calls))
        except RayTaskError as error:
            raise cause_of(error) from None

    def train(
        self,
        orders: Sequence[Order],
        *,
        start_refs: Callable[[Order], Sequence[Any]],
        on_loss: Callable[[Order], None],
        cut: Callable[[Order], Sequence[tuple[int, int]]],
        on_step: StepReport | None,
        supervisor: Supervisor | None,
    ) -> Iterator[Outcome]:
        """Carry out orders, as many at a time as there is room for; see ``Backend.train``.

        Args:
            orders: at most one for each worker.
            start_refs: references to the packet of an order's downlink, or without one to its start.
            on_loss: is told when something an order needs was lost, before it is given out again.
            cut: how an order's delta is to be cut into pieces.
        """
        self._supervisor, self._start_refs = supervisor, start_refs
        waiting = deque(orders)
        running: dict[Any, Running] = {}
        hiring: dict[Any, tuple[Order, float]] = {}
        try:
            while waiting or running or hiring:
                while waiting and len(running) + len(hiring) < self._at_a_time:
                    order = waiting.popleft()
                    if self.workers[order.worker_id].actor is None:
                        hiring[self._engage(order.worker_id)] = (order, time.perf_counter())
                    else:
                        run = self._dispatch(order, cut(order))
                        running[run.report] = run
                done, _ = ray.wait([*running, *hiring], num_returns=1, timeout=POLL_S)
                ended: list[tuple[Order, Outcome]] = []
                tired = [ref for ref, (_, began) in hiring.items() if _since(began) > HIRING_TIMEOUT_S]
                for ref in [*done, *tired]:
                    if ref in hiring:
                        order, _ = hiring.pop(ref)
                        lost = self._settle(order, ref)
                        if lost is None:
                            waiting.appendleft(order)
                        else:
                            ended.append((order, lost))
                    else:
                        run = running.pop(ref)
                        ended.append((run.order, self._collect(run, supervisor, on_loss)))
                for ref, run in list(running.items()):
                    lost = self._if_late(run, supervisor)
                    if lost is not None:
                        del running[ref]
                        ended.append((run.order, lost))
                for order, outcome in ended:
                    if (
                        isinstance(outcome, Failure)
                        and supervisor is not None
                        and supervisor.retries(outcome)
                    ):
                        self.workers[order.worker_id].restore = True
                        waiting.append(replace(order, attempt=order.attempt + 1))
                    else:
                        yield outcome
                if on_step is not None:
                    self._report_steps(running, on_step)
        finally:
            # Left early (Ctrl-C, a caller that stops listening): nobody knows where who is at work stands.
            for order in [*(run.order for run in running.values()), *(order for order, _ in hiring.values())]:
                self.dismiss(order.worker_id)

    def submit(self, place: int, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
        """Run a step of an aggregation on one of the actors; see ``spreading.Hands``."""
        by_node: dict[str, list[Any]] = defaultdict(list)
        for seat in self.workers:
            if seat.actor is not None:
                by_node[seat.node].append(seat.actor)
        if not by_node:
            raise WorkerError("no worker is left to add up the round's updates")
        actors = by_node[sorted(by_node)[place % len(by_node)]]
        actor = actors[place // len(by_node) % len(actors)]
        return actor.reduce.options(num_returns=num_returns).remote(function, *arguments)

    def roll_call(self) -> None:
        """Dismiss the actors that do not answer."""
        calls = {w: s.actor.progress.remote() for w, s in enumerate(self.workers) if s.actor is not None}
        ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=5.0) if calls else ([], [])
        for worker, call in calls.items():
            try:
                if call in ready:
                    ray.get(call)
                    continue
            except RayError:
                pass
            self.dismiss(worker)

    def send_again(self, worker: int) -> Update:
        """The update of a worker's last order once more: what arrived was damaged, or is lost.

        A worker that still lives hands out what it has; one that died is replaced, put back to where the
        round began, and trains it again, to the same bits.

        Raises:
            WorkerError: that failed too.
        """
        seat = self.workers[worker]
        assert seat.last is not None
        run = seat.last
        if self._supervisor is not None:
            told = f"the update of worker {worker} was damaged or lost on its way, and is sent again"
            self._supervisor.on_repair(run.order.round_index, told)
        outcome: Outcome | None = None
        for attempt in range(run.order.attempt, run.order.attempt + 2):
            if seat.actor is None:
                self._welcome(worker, self._engage(worker))
                seat.state, seat.restore = run.before, True
            order = replace(run.order, attempt=attempt) if seat.restore else run.order
            outcome = self._collect(self._dispatch(order, run.bounds), None)
            if isinstance(outcome, Update):
                return outcome
        assert isinstance(outcome, Failure)
        raise WorkerError(
            f"worker {worker} cannot hand in its update of round {run.order.round_index} again: "
            f"{outcome.reason}",
            worker_id=worker,
        )

    def dismiss(self, worker: int) -> None:
        """Kill a worker's actor; its state stays."""
        seat = self.workers[worker]
        if seat.actor is not None:
            ray.kill(seat.actor, no_restart=True)
        seat.actor, seat.held_round, seat.restore = None, None, True

    def states(self) -> dict[int, Any]:
        """References to packed states, of the workers that have one; who has not trained is asked."""
        return {
            worker: seat.actor.state.remote() if seat.state is None else self._states.resolved(seat.state)
            for worker, seat in enumerate(self.workers)
            if (seat.actor is not None if seat.state is None else self._states.is_kept(seat.state))
        }

    def close(self) -> None:
        """Kill all actors and forget their states."""
        for worker, seat in enumerate(self.workers):
            self.dismiss(worker)
            seat.state = seat.last = None

    # -- one worker --------------------------------------------------------------------------------------

    def _engage(self, worker: int) -> Any:
        """Hire an actor for a worker; the reference is ready when its worker is built."""
        seat, seats = self.workers[worker], self.seats
        # Nodes may have gone since the seats were planned; a replacement then shares the CPUs that are left.
        room = num_fitting(seats.num_cpus, node_resources("CPU")) >= seats.places
        hired = self._actor_class.options(num_cpus=seats.num_cpus if room else 0)
        seat.actor = hired.remote(seats.threads, seats.num_gpus)
        return seat.actor.build.remote(pack(seat.spec), self._examples)

    def _welcome(self, worker: int, call: Any) -> None:
        try:
            self.workers[worker].node, layout = ray.get(call, timeout=HIRING_TIMEOUT_S)
        except RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, HqdeError):
                raise ConfigError(f"on Ray, worker {worker} cannot be built: {cause}") from None
            raise ConfigError(
                f"on Ray, worker {worker} cannot be built ({type(cause).__name__}: {first_line(cause)}); "
                f"make the model's module importable on every node"
            ) from None
        except GetTimeoutError:
            raise WorkerError(
                f"worker {worker} did not start on Ray within {HIRING_TIMEOUT_S:g} s; see `ray status` for "
                f"what the cluster has left",
                worker_id=worker,
            ) from None
        except RayError as error:
            raise WorkerError(
                f"worker {worker} did not start on Ray: {first_line(error)}", worker_id=worker
            ) from None
        self._layouts[worker] = layout

    def _settle(self, order: Order, call: Any) -> Failure | None:
        """A replacement is there, or it is not."""
        try:
            self._welcome(order.worker_id, call)
        except (WorkerError, ConfigError) as error:
            self.dismiss(order.worker_id)
            time.sleep(HIRING_PAUSE_S)
            return failure_of(order, str(error), "died")
        self.workers[order.worker_id].restore = True
        return None

    def _dispatch(self, order: Order, bounds: Sequence[tuple[int, int]]) -> Running:
        seat, down = self.workers[order.worker_id], order.downlink
        if down is not None and down.base_round and (seat.restore or seat.held_round != down.base_round):
            order, down = replace(order, downlink=None), None
        start = self._start_refs(order)
        slim = replace(
            order,
            start=Weights(torch.empty(0), order.start.integers),
            downlink=None if down is None else Downlink(None, down.base_round),
        )
        state = self._states.resolved(seat.state) if seat.restore else None
        call = seat.actor.train_round.options(num_returns=2 + len(bounds))
        report, after, *pieces = call.remote(pack(slim), list(bounds), seat.restore, state, *start)
        return Running(order, bounds, seat.state, time.perf_counter(), report, after, pieces)

    def _collect(
        self, run: Running, supervisor: Supervisor | None, on_loss: Callable[[Order], None] | None = None
    ) -> Outcome:
        order, seat = run.order, self.workers[run.order.worker_id]
        try:
            update: Update = ray.get(run.report)
        except RayTaskError as error:
            swallow([run.state, *run.pieces])
            cause = cause_of(error)
            if isinstance(cause, DamagedCopyError | ObjectLostError | RayActorError):
                return self._after_loss(order, cause, on_loss)
            if isinstance(cause, HqdeError):
                raise cause from None
            seat.restore = True
            if is_out_of_memory(cause):
                return self._make_room(order, cause)
            return failure_of(order, f"{type(cause).__name__}: {first_line(cause)}", "raised")
        except OutOfMemoryError as error:
            self.dismiss(order.worker_id)
            return self._make_room(order, error)
        except ObjectLostError as error:
            return self._after_loss(order, error, on_loss)
        except (RayActorError, TaskUnschedulableError) as error:
            if on_loss is not None:
                on_loss(order)
            self.dismiss(order.worker_id)
            return failure_of(order, f"its process died: {first_line(error)}", "died")
        seat.state, seat.restore, seat.last = self._states.keep(run, seat.last), False, run
        seat.held_round = order.round_index
        if supervisor is not None:
            supervisor.on_arrival(order, _since(run.began))
        return whole_update(update, run.pieces)

    def _after_loss(
        self, order: Order, error: BaseException, on_loss: Callable[[Order], None] | None
    ) -> Failure:
        """Something the order needs was on a node that is gone, or is damaged."""
        self.dismiss(order.worker_id)
        if on_loss is not None:
            on_loss(order)
        seat, lost = self.workers[order.worker_id], "what its round starts from was lost"
        if seat.state is not None and not self._states.is_kept(seat.state):
            seat.state = None
            lost = "its optimizer state went with its node and there was no other copy, so it starts anew"
        return failure_of(order, f"{lost}: {first_line(error)}", "died")

    def _make_room(self, order: Order, error: BaseException) -> Failure:
        self._at_a_time = max(1, self._at_a_time // 2)
        reason = f"out of memory ({first_line(error)}); from now on {self._at_a_time} worker(s) at a time"
        return failure_of(order, reason, "memory")

    def _if_late(self, run: Running, supervisor: Supervisor | None) -> Failure | None:
        patience_s = None if supervisor is None else supervisor.patience_s(run.order)
        waited_s = _since(run.began)
        if patience_s is None or waited_s <= patience_s:
            return None
        self.dismiss(run.order.worker_id)  # a step that hangs cannot be cancelled, only killed
        return failure_of(
            run.order, f"not done after {waited_s:.1f} s, {patience_s:.1f} s were expected", "late"
        )

    def _report_steps(self, running: Mapping[Any, Running], on_step: StepReport) -> None:
        asked = {
            run.order.worker_id: self.workers[run.order.worker_id].actor.progress.remote()
            for run in running.values()
        }
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=0.05) if asked else ([], [])
        for worker, ref in asked.items():
            if ref in ready:
                try:
                    done, total = ray.get(ref)
                except RayError:
                    continue  # its report will say the same
                if total:
                    on_step(worker, done, total)


def _since(began: float) -> float:
    return time.perf_counter() - began
