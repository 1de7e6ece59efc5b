"""From a configuration to an experiment: every setting reaches what it is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hqde.aggregation import Momentum
from hqde.config import Config, build_config, build_experiment, load_data, resolve
from hqde.data import Bootstrap, Dirichlet, Splits, TensorExamples, make_splits
from hqde.ensemble import LogPoolCombiner
from hqde.errors import ConfigError, DataError
from hqde.rounds import Experiment
from hqde.training import Recipe


def table(*, regression: bool = False) -> Splits:
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    targets = inputs.sum(1) if regression else torch.arange(40) % 2
    task = "regression" if regression else "classification"
    return make_splits("table", TensorExamples(inputs, targets), task=task)


def pictures() -> Splits:
    images = torch.randint(
        0, 255, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return make_splits("pictures", TensorExamples(images, torch.arange(40) % 2), task="classification")


def experiment_of(tree: dict, splits: Splits | None = None) -> Experiment:
    splits = splits or table()
    config = build_config({"model": {"name": "mlp"}} | tree)
    return build_experiment(resolve(config, splits), splits)


def test_auto_becomes_a_cnn_for_images_and_an_mlp_for_tables(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = build_config({})
    assert (config.model.name, config.run.device) == ("auto", "auto")
    assert resolve(config, pictures()).model.name == "cnn"
    assert resolve(config, table()).model.name == "mlp"
    resolved = resolve(config, table())
    assert resolved.run.device == "cpu"
    assert resolve(resolved, table()) == resolved
    rest = replace(resolved, model=config.model, run=config.run, ensemble=config.ensemble)
    assert rest == config
    named = build_config({"model": {"name": "resnet18"}})
    assert resolve(named, table()).model.name == "resnet18"


def test_auto_is_the_mean_where_there_is_nothing_to_choose_by():
    def combiner(tree, count=8000, regression=False):
        inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
        targets = inputs.sum(1) if regression else torch.arange(count) % 3
        rows = TensorExamples(inputs, targets)
        splits = make_splits("rows", rows, task="regression" if regression else "classification")
        return resolve(build_config(tree), splits).ensemble.combiner

    assert combiner({}) == "auto"
    assert combiner({}, count=1000) == "mean"  # 80 rows held out
    assert combiner({}, regression=True) == "mean"
    assert combiner({"topology": {"groups": 1}}) == "mean"
    assert combiner({"ensemble": {"calibrate": False}}) == "mean"
    assert combiner({"ensemble": {"combiner": "median"}}) == "median"


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve(build_config({}), table()).run.device == "cuda"


def test_every_section_reaches_the_experiment():
    found = experiment_of(
        {
            "data": {"partition": "dirichlet", "alpha": 0.25},
            "model": {"name": "mlp", "norm": "group", "dropout_rate": 0.4, "options": {"hidden": [5]}},
            "training": {"batch_size": 7, "learning_rate": 0.5},
            "diversity": {"learning_rate_spread": 0.2, "shared_init": True},
            "topology": {"groups": 3, "every": 4},
            "server": {"optimizer": "nesterov", "learning_rate": 0.3, "momentum": 0.8, "buffers": "local"},
            "ensemble": {"combiner": "log_pool", "calibrate": False},
            "run": {
                "workers": 6, "epochs": 9, "seed": 11,
                "device": "cpu", "early_stopping": 3, "evaluate_every": 2,
            },
        }
    )  # fmt: skip
    assert found.partitioner == Dirichlet(0.25)
    assert (found.model.options["hidden"], found.model.options["norm"]) == ([5], "group")
    assert found.dropout_rate == 0.4
    assert found.recipe == Recipe(batch_size=7, learning_rate=0.5)
    assert (found.diversity.learning_rate_spread, found.diversity.shared_init) == (0.2, True)
    assert (found.topology.groups, found.topology.every) == (3, 4)
    assert found.server == Momentum(0.3, 0.8, nesterov=True)
    assert (found.buffers, found.calibrate, found.combiner) == ("local", False, LogPoolCombiner())
    assert (found.num_workers, found.epochs, found.seed) == (6, 9, 11)
    assert (found.early_stopping, found.evaluate_every, found.device) == (3, 2, "cpu")


def test_augmentation_reaches_the_experiment():
    found = experiment_of(
        {"model": {"name": "cnn"}, "data": {"augmentation": {"flip": True, "cutout": 2}}}, pictures()
    )
    assert (found.augmentation.flip, found.augmentation.cutout) == (True, 2)


def test_group_tables_reach_their_groups():
    found = experiment_of(
        {
            "model": {"name": "mlp", "options": {"hidden": [8], "dropout_rate": 0.0}},
            "run": {"workers": 4},
            "group": {
                "0": {"training": {"learning_rate": 0.7, "optimizer": "sgd"}, "dropout_rate": 0.25},
                "1": {"model": "mlp", "options": {"hidden": [3]}},
                "2": {"options": {"hidden": [2, 2]}, "bootstrap": True},
            },
        }
    )
    assert found.groups.keys() == {0, 1, 2}
    assert (found.recipe_of(0).optimizer, found.recipe_of(0).learning_rate) == ("sgd", pytest.approx(0.63))
    assert found.recipe_of(3).optimizer == "adamw"
    assert found.groups[0].model is None
    assert found.groups[0].dropout_rate == 0.25
    assert found.model_of(0) == found.model_of(3) == found.model
    # another architecture starts from its own options, the common one from the common options
    assert {k: v for k, v in found.model_of(1).options.items() if k in ("hidden", "dropout_rate")} == {
        "hidden": [3]
    }
    assert found.model_of(2).options["hidden"] == [2, 2]
    assert found.model_of(2).options["dropout_rate"] == 0.0
    assert [found.settings_of(worker).bootstrap for worker in range(4)] == [None, None, True, None]


@pytest.mark.parametrize(("loss", "columns"), [(None, 1), ("mse", 1), ("gaussian_nll", 2)])
def test_the_model_s_outputs_fit_the_loss_in_regression(loss, columns):
    tree = {"training": {}} if loss is None else {"training": {"loss": loss}}
    found = experiment_of(tree, table(regression=True))
    assert found.model.options["num_outputs"] == columns
    assert found.model.options["input_shape"] == [4]


def test_the_model_s_outputs_are_the_classes_in_classification():
    assert experiment_of({}).model.options["num_outputs"] == 2


def test_an_experiment_is_the_same_again_from_its_written_configuration():
    config = resolve(build_config({"data": {"partition": "bootstrap"}}), table())
    one, other = build_experiment(config, table()), build_experiment(config, table())
    assert one.partitioner == other.partitioner == Bootstrap()
    assert torch.equal(one.initial_weights(2).vector, other.initial_weights(2).vector)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"model": {"name": "mpl"}}, "mpl"),
        ({"model": {"name": "mlp", "options": {"hiden": [3]}}}, "does not accept hiden"),
        ({"model": {"name": "cnn"}}, "cnn"),
        ({"data": {"partition": "iidd"}}, "unknown partitioner 'iidd'; did you mean 'iid'"),
        ({"server": {"optimizer": "fedadm"}}, "unknown server optimizer 'fedadm'; did you mean 'fedadam'"),
        ({"server": {"momentum": 0.9}}, "server optimizer 'fedavg' takes no momentum"),
        ({"ensemble": {"combiner": "meen"}}, "did you mean 'mean'"),
        ({"run": {"device": "gpu"}}, "'gpu' is no device"),
        ({"run": {"workers": 4}, "topology": {"groups": 3}}, "3 groups do not divide 4 workers"),
        (
            {"run": {"workers": 2}, "group": {"2": {}}},
            "settings are given for group 2, but groups are 0 to 1",
        ),
        ({"training": {"loss": "mse"}}, "loss 'mse' does not fit a classification task"),
        ({"data": {"augmentation": {"flip": True}}}, "augmentation is for images"),
    ],
)
def test_what_does_not_fit_is_refused(tree, sentence):
    with pytest.raises(ConfigError, match=sentence):
        experiment_of(tree)


def test_data_settings_reach_the_reader(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", X=inputs, y=np.arange(50) % 2)
    tree = {
        "source": str(tmp_path / "d.npz"), "max_train": 20, "validation_fraction": 0.25, "test_fraction": 0.1,
    }  # fmt: skip
    splits = load_data(build_config({"data": tree}))
    assert (len(splits.test), len(splits.validation), len(splits.train)) == (5, 5, 15)
    same, other = (load_data(build_config({"data": tree | {"split_seed": seed}})) for seed in (0, 1))

    def rows(splits: Splits) -> torch.Tensor:
        return splits.test.fetch(torch.arange(5)).inputs

    assert torch.equal(rows(splits), rows(same))
    assert not torch.equal(rows(splits), rows(other))


def test_data_that_are_not_there_are_refused(tmp_path):
    with pytest.raises((DataError, ConfigError), match=r"gone\.npz"):
        load_data(build_config({"data": {"source": str(tmp_path / "gone.npz")}}))


def test_the_default_configuration_is_the_documented_one():
    config = Config()
    assert (config.run.workers, config.run.epochs, config.data.source) == (4, 20, "digits")
    assert (config.topology.groups, config.server.optimizer, config.ensemble.combiner) == (
        None,
        "fedavg",
        "auto",
    )
