"""What follows from an experiment before its first round: recipes, shards, starting weights, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hqde.data import (
    Augmentation,
    Bootstrap,
    Dirichlet,
    Iid,
    Replicate,
    Split,
    SubsetExamples,
    TensorExamples,
    make_splits,
)
from hqde.data.splits import Splits
from hqde.ensemble import make_combiner
from hqde.errors import ConfigError, PreconditionError
from hqde.models import model_spec
from hqde.rounds import Experiment, GroupSettings
from hqde.topology import Topology
from hqde.training import Diversity, Recipe, Worker
from hqde.weights import Layout


def table(count: int = 60, *, classes: int = 3, regression: bool = False) -> Splits:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=draws)
    targets = inputs.sum(1) if regression else torch.arange(count) % classes
    task = "regression" if regression else "classification"
    return make_splits("table", TensorExamples(inputs, targets), task=task)


def mlp(**options):
    return model_spec("mlp", input_shape=(4,), num_outputs=3, options={"hidden": [6]} | options)


def make(**changes) -> Experiment:
    usual = {
        "splits": table(),
        "model": mlp(),
        "num_workers": 4,
        "epochs": 4,
        "recipe": Recipe(batch_size=8, learning_rate=0.01),
    }
    return Experiment(**(usual | changes))


def workers_of(experiment: Experiment) -> list[Worker]:
    return [Worker(spec, experiment.splits.train) for spec in experiment.worker_specs()]


# -- groups and their overrides ----------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "expected"), [(None, [0, 1, 2, 3]), (1, [0] * 4), (2, [0, 0, 1, 1])])
def test_the_group_a_worker_ends_in(groups, expected):
    experiment = make(topology=Topology(groups=groups))
    assert [experiment.group_of(worker) for worker in range(4)] == expected
    assert experiment.num_groups == len(set(expected))


def test_a_group_s_overrides_reach_its_workers_optimizers_and_no_others():
    other = {"optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 0.2, "momentum": 0.6, "batch_size": 5}
    experiment = make(
        topology=Topology(groups=2),
        diversity=Diversity(learning_rate_spread=0.3),
        groups={1: GroupSettings(recipe=other)},
    )
    found = [worker.optimizer for worker in workers_of(experiment)]
    factors = (0.7, 0.9, 1.1, 1.3)  # four workers spread over 1 ± 0.3
    for optimizer, factor in zip(found[:2], factors[:2], strict=True):
        assert isinstance(optimizer, torch.optim.AdamW)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01 * factor] * 2)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01, 0.0}
    for optimizer, factor in zip(found[2:], factors[2:], strict=True):
        assert isinstance(optimizer, torch.optim.SGD)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * factor] * 2)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}
        assert {group["momentum"] for group in optimizer.param_groups} == {0.6}
    assert [experiment.recipe_of(worker).batch_size for worker in range(4)] == [8, 8, 5, 5]


def test_a_group_s_own_schedule_reaches_its_workers():
    experiment = make(
        topology=Topology(groups=2, branch_at=0.5),
        recipe=Recipe(batch_size=8, warmup=0.1, restart_level=0.5),
        groups={1: GroupSettings(recipe={"schedule": "constant", "warmup": 0.2, "restart_level": 1.0})},
    )
    common, own = (experiment.worker_specs()[worker].schedule for worker in (0, 2))
    assert (common.kind, common.warmup, common.restart_at, common.restart_level) == ("cosine", 0.1, 0.5, 0.5)
    assert (own.kind, own.warmup, own.restart_at, own.restart_level) == ("constant", 0.2, 0.5, 1.0)


def test_the_rate_restarts_only_where_groups_branch():
    assert make().schedule_of(0).restart_at is None
    assert make(topology=Topology(groups=2, branch_at=0.3)).schedule_of(0).restart_at == 0.25  # 1 of 4 epochs


def test_a_group_s_model_and_dropout_reach_its_workers():
    experiment = make(
        topology=Topology(groups=2),
        diversity=Diversity(dropout_spread=0.0),
        dropout_rate=0.2,
        groups={1: GroupSettings(model=mlp(hidden=[9, 9]), dropout_rate=0.4)},
    )
    found = workers_of(experiment)
    rates = [{m.p for m in w.model.modules() if isinstance(m, torch.nn.Dropout)} for w in found]
    assert rates == [{0.2}, {0.2}, {0.4}, {0.4}]
    widths = [w.model.head.in_features for w in found]
    assert widths == [6, 6, 9, 9]
    assert experiment.model_of(0) == mlp()
    assert experiment.model_of(1) == mlp(hidden=[9, 9])
    assert Layout.of(experiment.model_of(1).build()).size == len(experiment.initial_weights(1).vector)


def test_dropout_spreads_over_the_workers_and_not_at_all_without_a_base_rate():
    spread = make(diversity=Diversity(dropout_spread=0.1), dropout_rate=0.3)
    assert [spread.dropout_of(worker) for worker in range(4)] == pytest.approx(
        [0.2, 0.3 - 0.1 / 3, 0.3 + 0.1 / 3, 0.4]
    )
    default = make(dropout_rate=None, groups={1: GroupSettings(dropout_rate=0.5)})
    assert [default.dropout_of(worker) is None for worker in range(4)] == [True, False, True, True]


def test_a_group_may_bootstrap_or_not_against_the_rule():
    def repeats(experiment: Experiment) -> list[bool]:
        return [len(shard.unique()) < len(shard) for shard in experiment.shards(1).values()]

    assert repeats(make()) == [False] * 4
    assert repeats(make(diversity=Diversity(bootstrap=True))) == [True] * 4
    one = {1: GroupSettings(bootstrap=True)}
    assert repeats(make(topology=Topology(groups=2), groups=one)) == [False, False, True, True]
    none = {1: GroupSettings(bootstrap=False)}
    exempt = make(topology=Topology(groups=2), groups=none, diversity=Diversity(bootstrap=True))
    assert repeats(exempt) == [True, True, False, False]


# -- shards ------------------------------------------------------------------------------------------------


def test_a_bootstrap_is_of_the_worker_s_own_shard_its_own_and_the_same_every_epoch():
    experiment = make(partitioner=Iid(), diversity=Diversity(bootstrap=True))
    plain = list(make(partitioner=Iid()).shards(1).values())
    drawn = list(experiment.shards(1).values())
    for shard, own in zip(drawn, plain, strict=True):
        assert len(shard) == len(own)
        assert set(shard.tolist()) <= set(own.tolist())
    later = experiment.shards(3).values()
    assert all(torch.equal(one, other) for one, other in zip(drawn, later, strict=True))
    replicated = list(make(diversity=Diversity(bootstrap=True)).shards(1).values())
    assert not torch.equal(replicated[0], replicated[1])


@pytest.mark.parametrize("partitioner", [Split(), Iid(), Dirichlet(0.1)], ids=repr)
def test_shards_cover_the_training_rows_once(partitioner):
    experiment = make(partitioner=partitioner)
    rows = torch.cat(list(experiment.shards(1).values())).sort().values
    assert torch.equal(rows, torch.arange(len(experiment.splits.train)))


def test_dirichlet_shards_are_skewed_by_class():
    def largest_share(alpha: float) -> float:
        experiment = make(splits=table(600), partitioner=Dirichlet(alpha))
        targets = experiment.splits.train.targets
        counts = [torch.bincount(targets[shard], minlength=3) for shard in experiment.shards(1).values()]
        return max(float(count.max() / count.sum()) for count in counts)

    assert largest_share(0.05) > 0.7
    assert largest_share(1e4) < 0.4


@pytest.mark.parametrize("partitioner", [Replicate(), Split(), Iid(), Bootstrap()], ids=repr)
def test_shards_depend_on_the_seed_and_the_epoch_as_the_partitioner_says(partitioner):
    def rows(seed: int, epoch: int) -> list[Tensor]:
        return list(make(partitioner=partitioner, seed=seed).shards(epoch).values())

    def same(left: list[Tensor], right: list[Tensor]) -> bool:
        return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))

    assert same(rows(0, 1), rows(0, 1))
    assert same(rows(0, 1), rows(1, 1)) == isinstance(partitioner, Replicate)
    assert same(rows(0, 1), rows(0, 2)) == (not isinstance(partitioner, Split))


def test_fewer_examples_than_workers_are_refused_before_the_run():
    splits = table(12)
    assert len(splits.train) == 9
    with pytest.raises(PreconditionError, match="9 training examples cannot feed 10 workers; use at most 9"):
        make(splits=splits, num_workers=10)


# -- the plan ----------------------------------------------------------------------------------------------


def test_the_plan_counts_the_batches_of_the_worker_that_has_most():
    experiment = make(
        topology=Topology(groups=2, every=2),
        partitioner=Split(),
        groups={1: GroupSettings(recipe={"batch_size": 2})},
        epochs=1,
    )
    # 43 training rows: shards of 11, 11, 11 and 10; in batches of 2, 11 rows make 5 (a last row is left out)
    assert [len(shard) for shard in experiment.shards(1).values()] == [11, 11, 11, 10]
    assert [(p.first_batch, p.num_batches) for p in experiment.plan()] == [(0, 2), (2, 2), (4, None)]


def test_only_the_trunk_s_workers_have_shards_before_the_branch():
    experiment = make(
        topology=Topology(groups=2, branch_at=0.5, trunk_workers=1, every=1), partitioner=Split(), epochs=2
    )
    assert [len(shard) for shard in experiment.shards(1).values()] == [43]
    assert [len(shard) for shard in experiment.shards(2).values()] == [11, 11, 11, 10]
    plans = experiment.plan()
    assert [p.groups for p in plans if p.epoch == 1] == [((0,),)] * 6
    assert [p.groups for p in plans if p.epoch == 2] == [((0, 1), (2, 3))] * 2


# -- starting weights --------------------------------------------------------------------------------------


def starts(**changes) -> list[Tensor]:
    experiment = make(**changes)
    return [experiment.initial_weights(group).vector for group in range(experiment.num_groups)]


def test_independent_groups_start_differently():
    found = starts(topology=Topology.independent())
    assert len({tuple(vector.tolist()) for vector in found}) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"topology": Topology(groups=2, branch_at=0.5)},
        {"topology": Topology(groups=2, global_every=2)},
        {"topology": Topology(groups=2), "diversity": Diversity(shared_init=True)},
    ],
    ids=["branch_at", "global_every", "shared_init"],
)
def test_groups_that_are_averaged_with_each_other_start_alike(changes):
    first, second = starts(**changes)
    assert torch.equal(first, second)


def test_starting_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = starts(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert all(torch.equal(one, other) for one, other in zip(first, starts(seed=1), strict=True))
    assert not torch.equal(first[0], starts(seed=2)[0])


def test_inputs_are_normalised_by_the_training_rows_alone():
    experiment = make()
    inputs = experiment.splits.train.fetch(torch.arange(len(experiment.splits.train))).inputs
    torch.testing.assert_close(experiment.normalization.mean, inputs.mean(0))
    assert experiment.target_scale.mean == 0.0
    regression = make(splits=table(regression=True), model=model_spec("mlp", input_shape=(4,), num_outputs=1))
    targets = regression.splits.train.targets
    assert regression.target_scale.mean == pytest.approx(float(targets.mean()))
    assert regression.target_scale.std == pytest.approx(float(targets.std(correction=0)), rel=1e-5)


# -- refusals ----------------------------------------------------------------------------------------------


def without_validation() -> Splits:
    splits = table()
    return replace(splits, validation=TensorExamples(torch.empty(0, 4), torch.empty(0, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": -3}, "epochs must be at least 1, got -3"),
        ({"num_workers": 0}, "at least 1 worker, got 0"),
        ({"topology": Topology(groups=3)}, "3 groups do not divide 4 workers"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1 epoch, got 0"),
        ({"early_stopping": -1}, "early_stopping must be 0"),
        ({"dropout_rate": 1.0}, r"dropout_rate must lie in \[0, 1\), got 1.0"),
        ({"dropout_rate": float("nan")}, "dropout_rate must lie"),
        ({"buffers": "shared"}, "buffers must be 'average' or 'local', got 'shared'"),
        ({"splits": without_validation()}, "calibrate needs validation rows, and there are none"),
        (
            {"matrix_scaling": True},
            "matrix_scaling needs at least 100 validation rows, and there are ",
        ),
        (
            {"calibrate": False, "matrix_scaling": True},
            "matrix_scaling follows the temperature: set ensemble.calibrate = true as well",
        ),
        (
            {"splits": without_validation(), "calibrate": False, "early_stopping": 2},
            "early_stopping needs valid",
        ),
        ({"groups": {4: GroupSettings()}}, "settings are given for group 4, but groups are 0 to 3"),
        ({"groups": {-1: GroupSettings()}}, "settings are given for group -1"),
        (
            {"topology": Topology(groups=2, branch_at=0.1)},
            "branch_at=0.1 of 4 epochs leaves 0 epochs together",
        ),
        (
            {"topology": Topology(groups=2, branch_at=0.5, trunk_workers=5)},
            "trunk_workers=5 is more than the 4 workers",
        ),
        (
            {
                "topology": Topology(groups=2, branch_at=0.5),
                "groups": {1: GroupSettings(model=mlp(hidden=[3]))},
            },
            "groups of different architectures cannot be averaged with each other",
        ),
        (
            {
                "topology": Topology(groups=2, global_every=1),
                "groups": {0: GroupSettings(model=mlp(hidden=[3]))},
            },
            "groups of different architectures cannot be averaged with each other",
        ),
        (
            {"augmentation": Augmentation(flip=True)},
            "augmentation is for images, but 'table' holds tabular data",
        ),
        ({"recipe": Recipe(loss="mse")}, "loss 'mse' does not fit a classification task"),
        (
            {"groups": {2: GroupSettings(recipe={"batch_size": 0})}},
            "batch_size must be at least 1, got 0",
        ),
    ],
)
def test_settings_that_contradict_each_other_or_the_data_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(**changes)


def test_groups_of_different_losses_cannot_be_combined():
    with pytest.raises(ConfigError, match=r"all groups need one loss .* got \['gaussian_nll', 'mse'\]"):
        make(
            splits=table(regression=True),
            model=model_spec("mlp", input_shape=(4,), num_outputs=1),
            groups={1: GroupSettings(recipe={"loss": "gaussian_nll"})},
        )


def test_without_validation_rows_a_run_that_asks_for_none_is_accepted():
    assert len(make(splits=without_validation(), calibrate=False).splits.validation) == 0


def test_a_group_s_settings_are_checked_when_they_are_made():
    with pytest.raises(ConfigError, match="unknown training setting 'learning_rte' of a group; did you mean"):
        GroupSettings(recipe={"learning_rte": 0.1})
    with pytest.raises(ConfigError, match="dropout_rate must lie"):
        GroupSettings(dropout_rate=1.5)


def test_a_combiner_that_learns_needs_rows_and_must_not_have_learned():
    empty = replace(table(), validation=SubsetExamples(table().train, torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(ConfigError, match="combiner 'stacking' needs validation rows"):
        make(splits=empty, calibrate=False, combiner=make_combiner("stacking"))
    with pytest.raises(ConfigError, match="is fitted already"):
        make(combiner=make_combiner("stacking", {"shares": [0.5, 0.5]}))
