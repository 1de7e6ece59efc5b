"""What a trial is worth: the validation loss its settings end with, several in one run where that goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from hqde.backends import Backend, seat_workers
from hqde.config import (
    Config,
    EnsembleSettings,
    GroupConfig,
    build_backend,
    build_config,
    build_experiment,
    merge_trees,
    resolve,
)
from hqde.data import Splits
from hqde.errors import ConfigError, NonFiniteError, QuorumError, WorkerError
from hqde.rounds import Engine, Event, RoundRecord, Validation
from hqde.topology import RoundPlan, Topology
from hqde.tuning.space import Dimension, tree_of

PER_GROUP = ("training.", "model.options.")


def runs_together(space: Sequence[Dimension], config: Config) -> bool:
    """Whether trials can be groups of one run: all that is searched may differ from group to group.

    These are ``training.*`` but the loss, ``model.dropout_rate``, ``model.name`` and ``model.options.*``,
    where every worker sees all rows and a round is an epoch.
    """
    per_group = all(
        dimension.name.startswith(PER_GROUP) or dimension.name in ("model.dropout_rate", "model.name")
        for dimension in space
    )
    fixed = {"training.loss"}.isdisjoint(dimension.name for dimension in space)
    alike = config.data.partition == "replicate" and config.topology.every == "epoch" and not config.group
    return per_group and fixed and alike and config.topology == Topology(groups=config.topology.groups)


def trial_values(
    config: Config,
    splits: Splits,
    proposals: Sequence[Mapping[str, Any]],
    *,
    together: bool,
    parallel: int = 0,
) -> list[float | str]:
    """The validation loss that each proposal ends with; a sentence in place of it where training failed.

    Together, each proposal is a group of as many workers as the configuration's groups have, all groups
    start from the same weights, and a trial is worth its member's loss. Should such a run fail, its trials
    are made one by one. Apart, each is a run of its own, worth the ensemble's loss.

    A group that kept its weights in the last round for want of usable updates has failed, for its loss is
    that of an earlier epoch, or of no training. So has a run apart in which every group did.

    Args:
        config: what all trials share, resolved.
        splits: the data; validation rows judge.
        proposals: settings by their full names.
        together: in one run.
        parallel: trials that a run of the study has at most: cores are shared out among so many, for bits
            depend on a worker's threads. 0 takes those at hand.

    Raises:
        ConfigError: settings that contradict each other, or no validation rows.
    """
    if not len(splits.validation):
        raise ConfigError(
            "trials are judged on validation rows and there are 0; raise data.validation_fraction"
        )
    if not together:
        return [found for values in proposals for found in _outcome(_alone(config, values), splits, None)]
    most = parallel or len(proposals)
    found = _outcome(_side_by_side(config, proposals, most), splits, len(proposals))
    if len(found) == len(proposals):
        return found
    return [one for values in proposals for one in _outcome(_side_by_side(config, [values], most), splits, 1)]


def _outcome(config: Config, splits: Splits, num_members: int | None) -> list[float | str]:
    """The losses of a run's members, or of its ensemble, or why they failed; one sentence if the run did."""
    config = resolve(config, splits)
    experiment, backend = build_experiment(config, splits), build_backend(config)
    watcher = _LastLook()
    try:
        _run(experiment, backend, watcher)
    except (NonFiniteError, QuorumError, WorkerError) as error:
        return [str(error)]
    assert watcher.validation is not None
    quorum = min(experiment.faults.min_workers, experiment.group_size)
    problems = [watcher.problem(group, quorum) for group in range(experiment.num_groups)]
    if num_members is None:
        return [problems[0] if all(problems) else watcher.validation.loss]
    losses = [float(m["nll"] if "nll" in m else m["rmse"] ** 2) for m in watcher.validation.members]
    return [problem or loss for problem, loss in zip(problems, losses, strict=True)]


def _run(experiment: Any, backend: Backend, watcher: _LastLook) -> None:
    Engine(experiment, backend, listener=watcher).run()


def _alone(config: Config, values: Mapping[str, Any]) -> Config:
    tree = merge_trees(tree_of_config(config), tree_of(values))
    changed = build_config(tree)
    return replace(changed, run=replace(changed.run, evaluate_every=changed.run.epochs, early_stopping=0))


def _side_by_side(config: Config, proposals: Sequence[Mapping[str, Any]], most: int) -> Config:
    size = config.run.workers // config.topology.num_groups(config.run.workers)
    threads = config.run.threads
    if config.run.backend == "local" and config.run.device == "cpu":
        threads = seat_workers(size * most, threads=threads).threads
    run = replace(
        config.run,
        workers=size * len(proposals),
        threads=threads,
        evaluate_every=config.run.epochs,
        early_stopping=0,
    )
    diversity = replace(config.diversity, learning_rate_spread=0.0, dropout_spread=0.0, shared_init=True)
    return replace(
        config,
        run=run,
        topology=Topology(groups=len(proposals)),
        diversity=diversity,
        ensemble=EnsembleSettings(combiner="mean", calibrate=False),
        group={str(number): _group(values) for number, values in enumerate(proposals)},
    )


def _group(values: Mapping[str, Any]) -> GroupConfig:
    tree = tree_of(values)
    model = tree.get("model", {})
    return GroupConfig(
        model=model.get("name"),
        options=model.get("options", {}),
        dropout_rate=model.get("dropout_rate"),
        training=tree.get("training", {}),
    )


def tree_of_config(config: Config) -> dict[str, Any]:
    """A configuration as a tree; what is left out stays out."""

    def given(tree: dict[str, Any]) -> dict[str, Any]:
        return {
            key: given(value) if isinstance(value, dict) else value
            for key, value in tree.items()
            if value is not None
        }

    return given(asdict(config))


class _LastLook:
    """Keeps the last look at the validation split, and whose updates counted in the last round."""

    def __init__(self) -> None:
        self.validation: Validation | None = None
        self._usable: Counter[int] = Counter()
        self._reasons: dict[int, str] = {}

    def problem(self, group: int, quorum: int) -> str:
        """Why the group kept its weights in the last round; empty if it did not."""
        if self._usable[group] >= quorum:
            return ""
        why = self._reasons.get(group, "its workers did not train")
        return f"{self._usable[group]} of {quorum} usable updates in the last round: {why}"

    def on_start(self, plans: Sequence[RoundPlan], first_round: int) -> None:
        """Nothing."""

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Nothing."""

    def on_event(self, event: Event) -> None:
        """Nothing."""

    def on_round(self, record: RoundRecord) -> None:
        """Keep it."""
        self.validation = record.validation or self.validation
        unusable = [worker for worker in record.workers if worker.status in ("failed", "rejected")]
        self._usable = Counter(w.group for w in record.workers if w not in unusable and w.samples)
        # Workers that were given up earlier have no record any more; their reason stays.
        self._reasons |= {worker.group: worker.reason for worker in unusable}
