"""Everything a run depends on, as one value, and what follows from it before the first round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from hqde.aggregation import (
    AggregationPolicy,
    FedAvg,
    FractionalRule,
    Mean,
    Remembering,
    Rule,
    ServerOptimizer,
    rule_of,
)
from hqde.balance import Balancer, BalanceState, RoundRobin
from hqde.compression import Compression
from hqde.data import (
    Augmentation,
    Normalization,
    Partitioner,
    Replicate,
    Splits,
    TargetScale,
)
from hqde.ensemble import Combiner, FittableCombiner, MeanCombiner, check_can_scale
from hqde.errors import ConfigError, PreconditionError, did_you_mean
from hqde.models import ModelSpec
from hqde.rounds.privacy import Privacy, check_privacy
from hqde.rounds.snapshots import Snapshots
from hqde.rounds.supervision import FaultPolicy
from hqde.seeding import generator, seeded
from hqde.topology import RoundPlan, Topology, branch_epoch, plan_rounds
from hqde.training import Diversity, Recipe, Schedule, WorkerSpec, count_batches
from hqde.weights import Layout, Weights

RECIPE_FIELDS = frozenset(f.name for f in fields(Recipe))


@dataclass(frozen=True)
class GroupSettings:
    """What one group does differently.

    Args:
        model: another architecture for the group's member.
        dropout_rate: another base rate for its workers.
        bootstrap: its workers draw their shards with replacement.
        recipe: fields of ``Recipe`` to replace, e.g. ``{"learning_rate": 0.01}``.

    Raises:
        ConfigError: a name in ``recipe`` is no field of ``Recipe``, or the dropout rate is out of range.
    """

    model: ModelSpec | None = None
    dropout_rate: float | None = None
    bootstrap: bool | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.recipe:
            if name not in RECIPE_FIELDS:
                raise ConfigError(
                    f"unknown training setting '{name}' of a group; {did_you_mean(name, RECIPE_FIELDS)}"
                )
        _check_dropout(self.dropout_rate)


@dataclass(frozen=True)
class Experiment:
    """A run, before it starts. The same experiment gives the same bits.

    Args:
        splits: the data; the validation split may be empty when neither ``early_stopping`` nor ``calibrate``
            asks for it.
        model: architecture of every group that names no other.
        num_workers: training replicas.
        epochs: passes of each worker over its shard.
        recipe: how workers train.
        topology: who is averaged with whom.
        diversity: how workers differ.
        dropout_rate: base rate; ``None`` leaves the architecture's default and spreads nothing.
        partitioner: which examples each worker sees.
        balancer: how many of them, where the partitioner deals out rows: equally, or by the workers' speed.
        augmentation: of images while training.
        server: from aggregated delta to new weights.
        rule: from a group's deltas to one.
        policy: what is asked of updates beside being sound, what is remembered of their senders, and what
            follows when too few are left for the rule.
        compression: how deltas and weights travel.
        buffers: ``"average"`` shares BatchNorm statistics inside a group; ``"local"`` lets each worker train
            with its own (the member still gets the average).
        groups: overrides by group index.
        faults: what the run puts up with.
        privacy: what the weights that groups release may tell of a worker.
        early_stopping: stop when the ensemble's validation loss has not improved for this many epochs, and
            keep the best; 0 trains to the end.
        evaluate_every: epochs between two looks at the validation split.
        combiner: how member predictions become one; one that learns is fitted on the validation split at the
            end, and must not be fitted yet.
        snapshots: members beside the groups' last weights.
        drop_outliers: leave members out whose loss on validation rows stands out at the end.
        calibrate: fit a temperature on the validation split at the end.
        matrix_scaling: and a matrix scaling after it, where those rows speak for one.
        seed: of every random stream.
        device: where workers train.
    """

    splits: Splits
    model: ModelSpec
    num_workers: int
    epochs: int
    recipe: Recipe = Recipe()
    topology: Topology = Topology()
    diversity: Diversity = Diversity()
    dropout_rate: float | None = 0.1
    partitioner: Partitioner = Replicate()
    balancer: Balancer = RoundRobin()
    augmentation: Augmentation = Augmentation()
    server: ServerOptimizer = FedAvg()
    rule: Rule | FractionalRule = Mean()
    policy: AggregationPolicy = AggregationPolicy()
    compression: Compression = Compression()
    buffers: Literal["average", "local"] = "average"
    groups: Mapping[int, GroupSettings] = field(default_factory=dict)
    faults: FaultPolicy = FaultPolicy()
    privacy: Privacy = Privacy()
    early_stopping: int = 0
    evaluate_every: int = 1
    combiner: Combiner = MeanCombiner()
    snapshots: Snapshots = Snapshots()
    drop_outliers: bool = False
    calibrate: bool = True
    matrix_scaling: bool = False
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1, got {self.epochs}")
        if self.evaluate_every < 1:
            raise ConfigError(f"evaluate_every must be at least 1 epoch, got {self.evaluate_every}")
        if self.early_stopping < 0:
            raise ConfigError(
                f"early_stopping must be 0 (off) or a number of epochs, got {self.early_stopping}"
            )
        count = len(self.splits.train)
        if count < self.num_workers:
            raise PreconditionError(
                f"{count} training examples cannot feed {self.num_workers} workers; use at most {count}"
            )
        _check_dropout(self.dropout_rate)
        if isinstance(self.combiner, FittableCombiner) and self.combiner.shares:
            raise ConfigError(
                f"combiner '{self.combiner.name}' is fitted already, and a run fits its own; give it by name"
            )
        if self.buffers not in ("average", "local"):
            raise ConfigError(f"buffers must be 'average' or 'local', got {self.buffers!r}")
        calibrates = self.calibrate and self.splits.schema.task == "classification"
        if self.matrix_scaling:
            check_can_scale(self.splits, calibrate=self.calibrate)
        if self.policy.learnt_shares is not None:
            rule = rule_of(self.rule, self.num_workers)
            if rule.counts != "nothing":
                raise ConfigError(
                    "aggregation.learn_shares goes with the rule 'mean': "
                    f"'{rule.name}' counts {rule.counts}, and learnt shares are not equal"
                )
        judges = self.policy.uses_server_data or self.drop_outliers
        learns = isinstance(self.combiner, FittableCombiner)
        if not len(self.splits.validation) and (self.early_stopping or calibrates or judges or learns):
            wanting = f"combiner '{self.combiner.name}'" if learns else "judging by held-out loss"
            if self.early_stopping or calibrates:
                wanting = "early_stopping" if self.early_stopping else "calibrate"
            raise ConfigError(
                f"{wanting} needs validation rows, and there are none; hold some out, or switch it off"
            )
        if self.balances and self.topology.every != "epoch":
            raise ConfigError(
                f"balance '{self.balancer.name}' sizes whole epochs, and rounds are {self.topology.every} "
                f"steps long; use topology.every = 'epoch', or balance 'round_robin'"
            )
        if self.balances:
            equal = [1 / self.num_workers] * self.num_workers
            self.partitioner.assign(
                self.splits.train.targets, self.num_workers, epoch=1, seed=self.seed, shares=equal
            )
        count = self.topology.num_groups(self.num_workers)
        for group in self.groups:
            if not 0 <= group < count:
                raise ConfigError(f"settings are given for group {group}, but groups are 0 to {count - 1}")
        branch_epoch(self.topology, self.epochs)
        self._check_noise()
        self.snapshots.check(self.epochs, branches=self.topology.branch_at is not None)
        self.topology.num_trunk_workers(self.num_workers)
        if self.topology.mixes_groups and any(given.model is not None for given in self.groups.values()):
            raise ConfigError(
                "groups of different architectures cannot be averaged with each other; drop branch_at, "
                "global_every and elastic.global_pull, or use one model"
            )
        if self.augmentation.enabled and self.splits.schema.kind != "image":
            raise ConfigError(
                f"augmentation is for images, but '{self.splits.name}' holds {self.splits.schema.kind} data; "
                f"switch it off"
            )
        recipes = [replace(self.recipe, **group.recipe) for group in self.groups.values()]  # type: ignore[arg-type]
        if len(recipes) < self.num_groups:
            recipes.append(self.recipe)
        losses = {recipe.loss_for(self.splits.schema.task) for recipe in recipes}
        if len(losses) > 1:
            raise ConfigError(
                f"all groups need one loss so that members can be combined, got {sorted(losses)}"
            )

    def _check_noise(self) -> None:
        if self.diversity.entangled_noise and self.group_size < 2:
            raise ConfigError(
                f"entangled_noise={self.diversity.entangled_noise:g} cancels over the workers of a group, "
                f"and each of {self.num_groups} groups has one; use fewer groups, or 0"
            )
        if self.privacy.enabled:
            check_privacy(self)

    @property
    def num_groups(self) -> int:
        """Members at the end."""
        return self.topology.num_groups(self.num_workers)

    @property
    def group_size(self) -> int:
        """Workers of each group at the end."""
        return self.num_workers // self.num_groups

    def group_of(self, worker: int) -> int:
        """The group a worker ends in."""
        return worker // (self.num_workers // self.num_groups)

    def settings_of(self, worker: int) -> GroupSettings:
        """Overrides that apply to a worker."""
        return self.groups.get(self.group_of(worker), GroupSettings())

    def recipe_of(self, worker: int) -> Recipe:
        """A worker's recipe: the common one, its group's overrides, its own learning rate."""
        recipe = replace(self.recipe, **self.settings_of(worker).recipe)  # type: ignore[arg-type]
        factor = self.diversity.learning_rate_factors(self.num_workers)[worker]
        return replace(recipe, learning_rate=recipe.learning_rate * factor)

    def dropout_of(self, worker: int) -> float | None:
        """A worker's dropout rate."""
        base = self.settings_of(worker).dropout_rate
        base = self.dropout_rate if base is None else base
        return None if base is None else self.diversity.dropout_rates(base, self.num_workers)[worker]

    def model_of(self, group: int) -> ModelSpec:
        """A group's architecture."""
        settings = self.groups.get(group)
        return self.model if settings is None or settings.model is None else settings.model

    @cached_property
    def normalization(self) -> Normalization:
        """Input statistics of the training split."""
        return Normalization.fit(self.splits.train, self.splits.schema)

    @cached_property
    def target_scale(self) -> TargetScale:
        """Target statistics of the training split; the identity for classification."""
        return TargetScale.fit(self.splits.train.targets)

    def schedule_of(self, worker: int) -> Schedule:
        """A worker's learning rate over the run, with its restart where groups branch."""
        branch, recipe = branch_epoch(self.topology, self.epochs), self.recipe_of(worker)
        return Schedule(
            kind=recipe.schedule,
            warmup=recipe.warmup,
            restart_at=None if branch is None else (branch - 1) / self.epochs,
            restart_level=recipe.restart_level,
            cycles=recipe.cycles,
        )

    def worker_specs(self) -> tuple[WorkerSpec, ...]:
        """What each worker is told before its first round."""
        return tuple(
            WorkerSpec(
                worker_id=worker,
                model=self.model_of(self.group_of(worker)),
                dropout_rate=self.dropout_of(worker),
                recipe=self.recipe_of(worker),
                schedule=self.schedule_of(worker),
                schema=self.splits.schema,
                normalization=self.normalization,
                target_scale=self.target_scale,
                augmentation=self.augmentation,
                seed=self.seed,
                device=self.device,
            )
            for worker in range(self.num_workers)
        )

    @property
    def balances(self) -> bool:
        """Whether shards follow the workers' speed, and so the weights depend on timings."""
        return not isinstance(self.balancer, RoundRobin)

    def active_workers(self, epoch: int) -> int:
        """How many workers train in an epoch: those of the trunk before the groups branch, all afterwards."""
        branch = branch_epoch(self.topology, self.epochs)
        if branch is not None and epoch < branch:
            return self.topology.num_trunk_workers(self.num_workers)
        return self.num_workers

    def shards(
        self,
        epoch: int,
        balance: BalanceState = BalanceState(),
        *,
        present: frozenset[int] | None = None,
    ) -> dict[int, Tensor]:
        """The examples of each worker that trains in an epoch, as index tensors, by worker id.

        Args:
            epoch: 1, 2, …
            balance: what is known of the workers' speed.
            present: workers that can train; the rows are dealt out to them. Left out, all can.

        Raises:
            PreconditionError: fewer training examples than workers.
        """
        targets = self.splits.train.targets
        workers = [w for w in range(self.active_workers(epoch)) if present is None or w in present]
        shares = None
        if self.balances:
            of_all = self.balancer.shares(self.num_workers, balance)[workers]
            shares = of_all / of_all.sum()
        # A private run's rows stay with their worker, whether it is there or not.
        owners = range(self.active_workers(epoch)) if self.privacy.enabled else workers
        dealt = self.partitioner.assign(targets, len(owners), epoch=epoch, seed=self.seed, shares=shares)
        shards = {w: rows for w, rows in zip(owners, dealt, strict=True) if w in workers}
        for worker, shard in shards.items():
            own = self.settings_of(worker).bootstrap
            if self.diversity.bootstrap if own is None else own:
                draws = generator(self.seed, "worker", worker, "bootstrap")
                shards[worker] = shard[torch.randint(len(shard), (len(shard),), generator=draws)]
        return shards

    def plan(self) -> tuple[RoundPlan, ...]:
        """Every round of the run."""
        return plan_rounds(
            self.topology,
            self.num_workers,
            epochs=self.epochs,
            batches_per_epoch=self._most_batches(self.epochs),
            trunk_batches_per_epoch=self._most_batches(1),
        )

    def check_rule(self, plans: Sequence[RoundPlan]) -> Rule:
        """The rule as the backend will have to spread it, for the largest group.

        Raises:
            PreconditionError: a group is too small for the rule's f.
        """
        sizes = sorted({len(group) for plan in plans for group in plan.groups})
        for size in sizes:
            rule_of(self.rule, size).check_bound(size)
        rule = rule_of(self.rule, sizes[-1])
        if self.policy.reliability is None:
            return rule
        return Remembering(rule, (), self.policy.reliability, self.policy.use)

    def _most_batches(self, epoch: int) -> int:
        """Batches of the worker that has most in an epoch."""
        return max(
            count_batches(len(shard), self.recipe_of(worker).batch_size)
            for worker, shard in self.shards(epoch).items()
        )

    def initial_weights(self, group: int) -> Weights:
        """What a group starts from: common weights for all its workers.

        Groups that are averaged with each other at some time start from the same weights: averaging
        differently initialised networks gives one that predicts at chance.
        """
        shared = self.diversity.shared_init or self.topology.mixes_groups
        with seeded(self.seed, "init", 0 if shared else group):
            model = self.model_of(group).build(dropout_rate=self.dropout_rate)
        return Layout.of(model).read(model)


def _check_dropout(rate: float | None) -> None:
    if rate is not None and not 0 <= rate < 1:
        raise ConfigError(f"dropout_rate must lie in [0, 1), got {rate}")
