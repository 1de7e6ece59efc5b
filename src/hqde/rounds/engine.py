"""The engine: plan, train, admit, aggregate, commit, evaluate, checkpoint, until the last round."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hqde.aggregation import ReliabilityState, Update
from hqde.backends import Backend, Failure, Outcome
from hqde.balance import Timing
from hqde.checkpoints import CheckpointStore
from hqde.errors import CheckpointError, QuorumError, WorkerError
from hqde.memory import freed_memory_kept
from hqde.rounds.clock import PhaseClock
from hqde.rounds.commit import Commit, HeldOut, Memory, commit_group, couple_groups
from hqde.rounds.entangling import entangled_perturbations
from hqde.rounds.events import Event, Listener, Listeners, RoundRecord, Validation, phase_report
from hqde.rounds.experiment import Experiment
from hqde.rounds.finishing import Result, finish_run
from hqde.rounds.members import MemberPool
from hqde.rounds.privacy import taking_part, with_privacy
from hqde.rounds.records import worker_records
from hqde.rounds.snapshots import keep_snapshot
from hqde.rounds.state import RunState, pack_state, unpack_state
from hqde.rounds.stopping import keep_best, reason_to_stop
from hqde.rounds.supervision import RoundSupervisor
from hqde.rounds.traffic import Traffic, count_bytes
from hqde.topology import Groups, RoundPlan
from hqde.training import Order
from hqde.weights import Weights

# A run in which nobody can be used this often in a row is not going to recover by itself.
MAX_BARREN_ROUNDS = 3


class Engine:
    """Drives an experiment on a backend. Does not know where workers live.

    Args:
        experiment: what to run.
        backend: where; the engine starts and closes it.
        listener: is told of rounds and events.
        store: where checkpoints go; ``None`` writes none.
        checkpoint_every: epochs between two checkpoints.
        provenance: plain JSON kept in the ensemble: how it was trained.
    """

    def __init__(
        self,
        experiment: Experiment,
        backend: Backend,
        *,
        listener: Listener | None = None,
        store: CheckpointStore | None = None,
        checkpoint_every: int = 1,
        provenance: dict[str, object] | None = None,
    ) -> None:
        self.experiment = experiment
        self._backend = backend = with_privacy(backend, experiment.privacy, group_size=experiment.group_size)
        self._tell: Listener = listener or Listeners()
        self._tell_phase = phase_report(self._tell)
        self._store = store
        self._checkpoint_every = checkpoint_every
        self._traffic = Traffic(experiment, backend.layout)
        self._pool = MemberPool(experiment, provenance or {})
        self._supervisor = RoundSupervisor(experiment.faults, self._tell.on_event)
        self._shards: tuple[int, frozenset[int], dict[int, Tensor]] | None = None
        self._plans: tuple[RoundPlan, ...] | None = None
        self._checkpoint_s = 0.0

    def prepare(self) -> tuple[RoundPlan, ...]:
        """Check that the run can start: shards, models, outputs. Writes nothing; ``run`` calls it if need be.

        Raises:
            HqdeError: the sentence says what does not fit.
        """
        if self._plans is not None:
            return self._plans
        plans = self.experiment.plan()
        try:
            self._backend.start(self.experiment.worker_specs(), self.experiment.splits.train)
            few = torch.arange(min(4, len(self.experiment.splits.train)))
            self._backend.check(few, self.experiment.check_rule(plans))
        except BaseException:
            self._backend.close()
            raise
        self._plans = plans
        return plans

    @freed_memory_kept()
    def run(self, *, resume: bool = False) -> Result:
        """Run to the end, from the start or, with ``resume``, from the newest checkpoint if there is one.

        Raises:
            CheckpointError: the checkpoint to resume from is damaged, or does not fit the run.
            QuorumError: no worker handed in a usable update for several rounds.
            WorkerError: every worker failed.
        """
        try:
            plans = self.prepare()
            state = (self._resume if resume else self._initial)(plans[0])
            self._tell.on_start(plans, state.round_index + 1)
            stopped = None
            for plan in plans[state.round_index :]:
                reason = reason_to_stop(plans, state, self.experiment.early_stopping)
                if reason is not None and state.best is not None:
                    self._tell.on_event(Event("early_stop", state.round_index, None, reason))
                    stopped = state.best.epoch
                    break
                state, record = self._round(plan, state)
                # The history first: on resume a line too many is cut, but a missing one would stay missing.
                self._tell.on_round(record)
                self._save(plan, state)
            return self._finish(state, stopped)
        finally:
            self._backend.close()

    # -- one round ---------------------------------------------------------------------------------------

    def _round(self, plan: RoundPlan, state: RunState) -> tuple[RunState, RoundRecord]:
        clock = PhaseClock(plan.index, self._tell_phase)
        clock.enter("train")
        regrouped = plan.groups != state.groups
        if regrouped:
            state = self._regroup(plan, state)
        orders = self._orders(plan, state, regrouped=regrouped)
        outcomes = self._train(orders)
        clock.enter("aggregate")
        commits = self._commit(plan, state, [o for o in outcomes if isinstance(o, Update)])
        clock.enter("encode")
        state = self._traffic.send(plan, commits, state, outcomes)
        clock.enter("commit")
        state = self._account(plan, state, commits, outcomes)
        sent, dense = count_bytes(plan, outcomes)
        clock.enter("evaluate")
        validation = self._validate(plan, state, outcomes)
        final = self.experiment.topology.groups_of(self.experiment.num_workers)
        if validation is not None and self.experiment.early_stopping and plan.groups == final:
            state = keep_best(state, plan, validation)
        state = keep_snapshot(self.experiment.snapshots, self.experiment.epochs, state, plan)
        # The checkpoint of the round before: a record is told before its own is saved.
        phases = {"checkpoint": self._checkpoint_s} | clock.stop()
        wall_s = self._checkpoint_s + clock.elapsed_s
        totals = replace(state.totals)
        totals.train_s += sum(phases[name] for name in ("train", "aggregate", "encode", "commit"))
        totals.sent_bytes += sent
        totals.dense_bytes += dense
        totals.wall_s += wall_s
        state = replace(state, round_index=plan.index, totals=totals)

        record = RoundRecord(
            round=plan.index,
            epoch=plan.epoch,
            progress=plan.progress[1],
            groups=plan.groups,
            scope=plan.scope,
            wall_s=wall_s,
            phases=phases,
            workers=worker_records(outcomes, plan.groups, commits, self._scores(state)),
            validation=validation,
            sent_bytes=sent,
            dense_bytes=dense,
            group_pull=plan.group_pull,
            global_pull=plan.global_pull if plan.scope == "global" else None,
            epsilon=self.experiment.privacy.epsilon(plan.index),
        )
        return state, record

    def _save(self, plan: RoundPlan, state: RunState) -> None:
        began = time.perf_counter()
        self._tell_phase(plan.index, "checkpoint")
        last = plan.progress[1] == 1.0
        if self._store is not None and plan.ends_epoch and (plan.epoch % self._checkpoint_every == 0 or last):
            self._store.save(plan.index, *pack_state(state, self._backend.worker_states()))
        self._checkpoint_s = time.perf_counter() - began

    def _orders(self, plan: RoundPlan, state: RunState, *, regrouped: bool) -> list[Order]:
        present = self._backend.present() - state.excluded
        if self._shards is None or self._shards[:2] != (plan.epoch, present):
            shards = self.experiment.shards(plan.epoch, state.balance, present=present)
            self._shards = (plan.epoch, present, shards)
        shards = self._shards[2]
        perturbations = entangled_perturbations(self.experiment, plan, shards)
        orders = [
            Order(
                worker_id=worker,
                round_index=plan.index,
                attempt=0,
                epoch=plan.epoch,
                start=state.committed_for(worker),
                keep_buffers=self.experiment.buffers == "local" and worker in state.trained,
                fresh_optimizer=worker in state.fresh,
                shard=shards[worker],
                first_batch=plan.first_batch,
                num_batches=plan.num_batches,
                progress=plan.progress,
                uplink=self._traffic.uplink(plan, group, fresh=regrouped),
                downlink=state.downlinks.get(worker),
                pull=plan.group_pull,
                perturbation=perturbations.get(worker),
            )
            for group in plan.groups
            for worker in group
            if worker in shards
        ]
        if not orders:
            raise WorkerError("no worker is left: each was excluded after its last attempt failed")
        return taking_part(self._backend, plan.index, orders)

    def _train(self, orders: Sequence[Order]) -> list[Outcome]:
        if not orders:
            return []
        self._supervisor.begin(orders)
        arrivals = self._backend.train(orders, on_step=self._tell.on_step, supervisor=self._supervisor)
        outcomes = sorted(arrivals, key=lambda outcome: outcome.worker_id)
        failures = [o for o in outcomes if isinstance(o, Failure)]
        if len(failures) == len(orders):
            raise WorkerError(
                f"all {len(orders)} workers failed in round {failures[0].round_index}: {failures[0].reason}",
                worker_id=failures[0].worker_id,
            )
        return outcomes

    def _commit(self, plan: RoundPlan, state: RunState, updates: Sequence[Update]) -> list[Commit]:
        experiment = self.experiment
        scores = self._scores(state)
        commits = [
            commit_group(
                [update for update in updates if update.worker_id in group],
                round_index=plan.index,
                base=state.committed[index],
                server_state=state.server[index],
                layout=self._backend.layout(group[0]),
                rule=experiment.rule,
                server=experiment.server,
                backend=self._backend,
                quorum=min(experiment.faults.min_workers, len(group)),
                policy=experiment.policy,
                memory=Memory(state.norms.get(index, {}), scores),
                held_out=HeldOut(
                    partial(self._pool.held_out_loss, index, group),
                    partial(self._pool.held_out_slope, index, group),
                ),
                releases_always=experiment.privacy.enabled,
            )
            for index, group in enumerate(plan.groups)
        ]
        if plan.scope == "global":
            commits = couple_groups(commits, plan.global_pull, equally=experiment.privacy.enabled)
        return commits

    def _account(
        self, plan: RoundPlan, state: RunState, commits: Sequence[Commit], outcomes: Sequence[Outcome]
    ) -> RunState:
        """Turn what went wrong into events, totals and fresh optimizers."""
        failures = [o for o in outcomes if isinstance(o, Failure)]
        rejected = [r for commit in commits for r in commit.rejected]
        excluded = {failure.worker_id for failure in failures if self._supervisor.gives_up_on(failure)}
        for failure in failures:
            kind = "excluded" if failure.worker_id in excluded else "failed"
            self._tell.on_event(Event(kind, plan.index, failure.worker_id, failure.reason))
        for rejection in rejected:
            self._tell.on_event(Event("rejected", plan.index, rejection.worker_id, rejection.reason))
        trained = {o.worker_id for o in outcomes if isinstance(o, Update) and o.num_samples > 0}
        skipped = 0
        for group, commit in zip(plan.groups, commits, strict=True):
            if commit.num_samples == 0 and (trained | {f.worker_id for f in failures}) & set(group):
                skipped += 1
                reason = f"group of workers {list(group)} kept its weights: {commit.skipped}"
                self._tell.on_event(Event("skipped", plan.index, None, reason))
        barren = state.barren + 1 if skipped == len(commits) else 0
        if barren >= MAX_BARREN_ROUNDS:
            why = (rejected[0].reason if rejected else failures[0].reason) if rejected or failures else "none"
            raise QuorumError(
                f"no worker handed in a usable update in {barren} rounds in a row (the last: {why}); "
                f"lower the learning rate, or look at the data",
                present=0,
                required=1,
            )
        worked = [o for o in outcomes if isinstance(o, Update) and o.num_samples > 0]
        timings = {o.worker_id: Timing(o.num_samples, o.seconds, o.node_load) for o in worked}
        totals = replace(state.totals)
        totals.failures += len(failures)
        totals.restarts += self._supervisor.restarts
        totals.excluded += len(excluded)
        totals.rejected += len(rejected)
        totals.left_out += sum(len(commit.left_out) for commit in commits)
        totals.skipped += skipped
        totals.worker_samples += sum(o.num_samples for o in outcomes if isinstance(o, Update))
        totals.synchronisations += plan.scope != "none"
        return replace(
            state,
            server=tuple(commit.server for commit in commits),
            # Who sat the round out begins anew when its turn comes.
            fresh=(state.fresh - {o.worker_id for o in outcomes})
            | {f.worker_id for f in failures}
            | {r.worker_id for r in rejected},
            trained=state.trained | trained,
            excluded=state.excluded | excluded,
            barren=barren,
            norms={index: commit.norms for index, commit in enumerate(commits) if commit.norms},
            reliability=self._remember(state, commits),
            balance=self.experiment.balancer.observe(state.balance, timings),
            totals=totals,
        )

    def _scores(self, state: RunState) -> dict[int, float]:
        """Every worker's reliability; empty where the policy remembers nothing."""
        reliability = self.experiment.policy.reliability
        return {} if reliability is None else dict(enumerate(reliability.scores(state.reliability).tolist()))

    def _remember(self, state: RunState, commits: Sequence[Commit]) -> ReliabilityState:
        reliability = self.experiment.policy.reliability
        if reliability is None:
            return state.reliability
        agreements = {worker: value for commit in commits for worker, value in commit.agreements.items()}
        return reliability.update(agreements, state.reliability)

    def _validate(self, plan: RoundPlan, state: RunState, outcomes: Sequence[Outcome]) -> Validation | None:
        last = plan.progress[1] == 1.0
        if not plan.ends_epoch or (plan.epoch % self.experiment.evaluate_every and not last):
            return None
        if not len(self.experiment.splits.validation):
            return None
        efficiency = {o.worker_id: o.efficiency for o in outcomes if isinstance(o, Update)}
        ensemble = self._pool.ensemble(plan.groups, state.committed, efficiency)
        return self._pool.validate(ensemble, self._backend, plan.groups)

    # -- start and end -----------------------------------------------------------------------------------

    def _initial(self, plan: RoundPlan) -> RunState:
        experiment, groups = self.experiment, plan.groups
        committed = tuple(experiment.initial_weights(experiment.group_of(group[0])) for group in groups)
        state = RunState(0, groups, committed, self._server_states(groups, committed))
        state, reliability = self._traffic.begin(plan, state), experiment.policy.reliability
        if reliability is None:
            return state
        return replace(state, reliability=reliability.init(experiment.num_workers))

    def _server_states(self, groups: Groups, committed: Sequence[Weights]) -> tuple[dict[str, Tensor], ...]:
        return tuple(
            self.experiment.server.init(weights.vector[: self._backend.layout(group[0]).num_parameters])
            for group, weights in zip(groups, committed, strict=True)
        )

    def _regroup(self, plan: RoundPlan, state: RunState) -> RunState:
        """New groups start from the weights of the group they come out of, with a new server state."""
        committed = tuple(state.exact_for(group[0]) for group in plan.groups)
        reason = f"{len(state.groups)} group(s) became {len(plan.groups)}"
        self._tell.on_event(Event("branched", plan.index, None, reason))
        server = self._server_states(plan.groups, committed)
        return replace(
            state, groups=plan.groups, committed=committed, server=server, norms={}, owed={}, downlinks={}
        )

    def _resume(self, plan: RoundPlan) -> RunState:
        if self._store is None:
            raise CheckpointError("a run without a checkpoint store cannot be resumed; start it anew")
        found = self._store.latest()
        if found is None:
            self._tell.on_event(Event("resumed", 0, None, "from the start: no checkpoint was written yet"))
            return self._initial(plan)
        state, workers = unpack_state(found[1])
        unknown = set(workers) - set(range(self.experiment.num_workers))
        if unknown:
            raise CheckpointError(
                f"the checkpoint holds a worker {max(unknown)}, "
                f"the run has {self.experiment.num_workers} workers"
            )
        self._backend.load_worker_states(workers, {w: state.committed_for(w) for w in workers})
        state = replace(state, totals=replace(state.totals, resumes=state.totals.resumes + 1))
        self._tell.on_event(
            Event("resumed", state.round_index, None, f"from the checkpoint of round {state.round_index}")
        )
        return state

    def _finish(self, state: RunState, stopped: int | None) -> Result:
        return finish_run(
            self.experiment,
            self._pool,
            state,
            efficiency={w: own.efficiency for w, own in self._backend.worker_states().items()},
            stopped=stopped,
            tell=self._tell.on_event,
        )
