"""HQDESystem: the way from data in memory to an ensemble, its files, and what it refuses."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hqde.aggregation import Adaptive, FedAvg, Momentum
from hqde.compression import Compression, PackedCodec
from hqde.config import build_config, load_tree, without_place
from hqde.data import Dirichlet, TensorExamples, make_splits
from hqde.ensemble import Ensemble
from hqde.errors import ArtefactError, ConfigError, DataError, PreconditionError, RunError
from hqde.monitoring import Monitoring
from hqde.rounds import Event, GroupSettings, Listeners, RoundRecord
from hqde.system import HQDESystem, create_hqde_system
from hqde.system.settings import read_aggregation
from hqde.topology import Topology
from hqde.training import Recipe

draws = torch.Generator().manual_seed(0)
ROWS = torch.randn(240, 4, generator=draws)
LABELS = (ROWS @ torch.randn(4, 3, generator=draws)).argmax(dim=1)
DATA = (ROWS, LABELS)
FEDAVG = Topology.fedavg()
KEEN = Recipe(batch_size=24, learning_rate=0.02)  # learns these rows in a few epochs


class Net(nn.Module):
    """A user's model, with batch statistics and dropout."""

    def __init__(self, num_inputs: int = 4, num_classes: int = 3, dropout_rate: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_inputs, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.dropout = nn.Dropout(dropout_rate)
        self.head = nn.Linear(16, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.dropout(self.body(rows)))


class Pair(nn.Module):
    """A model that is called with named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Logits, the Hugging Face way."""
        return {"logits": self.head(torch.cat([left, right], dim=1))}


PACKED = {"quantization_config": {"base_bits": 6}}


def system(**settings: Any) -> HQDESystem:
    """A system that trains in a blink on the CPU."""
    model = settings.pop("model_class", Net)
    return HQDESystem(model, **{"num_workers": 2, "device": "cpu"} | settings)


def trained(
    data: Any = DATA, epochs: int = 2, train: dict[str, Any] | None = None, **settings: Any
) -> Tensor:
    """Probabilities on all rows after a training."""
    made = system(**settings)
    made.train(data, epochs, **train or {})
    return made.predict(ROWS)


def config_of(made: HQDESystem) -> dict[str, Any]:
    """The settings that the ensemble says it was trained with."""
    return made.ensemble.provenance["config"]


# -- training, judging, predicting ---------------------------------------------------------------------------


def test_the_whole_way() -> None:
    made = HQDESystem(
        Net, {"num_classes": 3}, num_workers=4, topology=Topology(groups=2), recipe=KEEN, device="cpu"
    )
    metrics = made.train(DATA, num_epochs=8, validation_loader=DATA)
    assert len(made.ensemble) == 2
    judged = made.evaluate(DATA)
    assert judged.accuracy is not None
    assert judged.accuracy > 0.85
    probs = made.predict(ROWS)
    assert probs.shape == (240, 3)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(240))
    assert (probs.argmax(dim=1) == LABELS).double().mean() == pytest.approx(judged.accuracy)
    assert metrics["calibrated"]["nll"] == pytest.approx(judged.nll)
    assert metrics["judged_on"] == "validation"


def test_training_returns_figures_costs_and_history() -> None:
    made = system(topology=FEDAVG)
    metrics = made.train(DATA, 3, test_data=DATA)
    assert metrics["judged_on"] == "test"
    assert metrics["num_rows"] == 240
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2, 3]
    losses = [worker["loss"] for worker in metrics["history"][-1]["workers"]]
    assert metrics["final_loss"] == pytest.approx(sum(losses) / 2)  # both saw the same number of rows
    assert metrics["train"]["worker_samples"] == 3 * 2 * 216  # a tenth of the rows was held out
    assert metrics["communication"]["rounds"] == 3
    json.dumps(metrics, allow_nan=False)
    costs = made.get_performance_metrics()
    assert costs == {key: metrics[key] for key in costs}
    assert {"train", "communication", "faults"} <= set(costs)


def test_every_form_of_data_gives_the_same_bits() -> None:
    recipe = Recipe(batch_size=32)
    forms = [
        DATA,
        (ROWS.numpy(), LABELS.numpy()),
        TensorDataset(*DATA),
        DataLoader(TensorDataset(*DATA), batch_size=7, shuffle=True),
        TensorExamples(*DATA),
        [(row, label) for row, label in zip(*DATA, strict=True)],
    ]
    forms[-1] = _ListDataset(forms[-1])
    expected = trained(DATA, recipe=recipe)
    for form in forms:
        assert torch.equal(trained(form, recipe=recipe), expected), type(form).__name__


class _ListDataset(torch.utils.data.Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_named_inputs_and_logits_by_name() -> None:
    rows = {"left": ROWS[:, :2], "right": ROWS[:, 2:], "labels": LABELS}
    made = system(model_class=Pair, recipe=KEEN)
    made.train(rows, 10)
    assert made.predict({"left": ROWS[:, :2], "right": ROWS[:, 2:]}).shape == (240, 3)
    accuracy = made.evaluate(rows).accuracy
    assert accuracy is not None
    assert accuracy > 0.8


def test_the_loaders_batch_size_is_the_recipes_unless_a_recipe_is_given() -> None:
    loader = DataLoader(TensorDataset(*DATA), batch_size=24)
    made = system()
    made.train(loader, 1)
    assert config_of(made)["training"]["batch_size"] == 24
    made = system(recipe=Recipe(batch_size=60))
    made.train(loader, 1)
    assert config_of(made)["training"]["batch_size"] == 60
    made = system()
    made.train(DATA, 1)
    assert config_of(made)["training"]["batch_size"] == Recipe().batch_size


def test_rows_are_held_out_only_without_validation_data() -> None:
    made = system()
    assert made.train(DATA, 1, validation_fraction=0.25)["history"][0]["workers"][0]["samples"] == 180
    assert made.train(DATA, 1, DATA)["history"][0]["workers"][0]["samples"] == 240


def test_splits_bring_their_validation_and_test_rows_along() -> None:
    splits = make_splits("mine", TensorExamples(*DATA), task="classification", classes=["a", "b", "c"])
    made = system()
    metrics = made.train(splits, 1)
    assert (metrics["judged_on"], metrics["num_rows"]) == ("test", 48)
    assert made.ensemble.schema.classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match="give no others"):
        made.train(splits, 1, DATA)
    with pytest.raises(ConfigError, match="'mine' is for classification"):
        system(task="regression").train(splits, 1)


def test_prediction_keeps_the_order_of_the_rows() -> None:
    made = system()
    made.train(DATA, 1)
    shuffled = DataLoader(TensorDataset(*DATA), batch_size=50, shuffle=True)
    torch.testing.assert_close(made.predict(shuffled), made.predict(ROWS), rtol=0, atol=1e-6)


def test_regression_predicts_means() -> None:
    target = 50 + 10 * ROWS[:, 0]
    made = system(model_class="mlp", model_kwargs={"hidden": [32]}, task="regression", recipe=KEEN)
    metrics = made.train((ROWS, target), 15)
    assert made.predict(ROWS).shape == (240,)
    assert metrics["rmse"] < 4
    assert metrics["accuracy"] is None


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    assert torch.equal(trained(seed=1), trained(seed=1))
    assert not torch.equal(trained(seed=1), trained(seed=2))


def test_a_second_training_starts_anew() -> None:
    made = system()
    made.train((ROWS.flip(0), LABELS.flip(0)), 3)
    metrics = made.train(DATA, 2)
    assert len(metrics["history"]) == 2
    assert torch.equal(made.predict(ROWS), trained())


# -- settings ------------------------------------------------------------------------------------------------


def test_settings_reach_the_training() -> None:
    made = system(
        num_workers=4,
        topology=Topology(groups=2),
        recipe=Recipe(learning_rate=0.01),
        partitioner="split",
        aggregation_config={"server_optimizer": "momentum", "learning_rate": 0.5, "buffers": "local"},
        groups={1: GroupSettings(recipe={"learning_rate": 0.001})},
        combiner="log_pool",
        calibrate=False,
        early_stopping=5,
        seed=3,
    )
    history = made.train(DATA, 2, validation_fraction=0.25)["history"]
    assert [worker["samples"] for worker in history[0]["workers"]] == [45, 45, 45, 45]
    rates = [worker["lr"] for worker in history[0]["workers"]]
    assert rates[0] / rates[2] == pytest.approx(10, rel=0.2)  # the workers' own spread is in it too
    assert made.ensemble.temperature == 1.0
    assert made.ensemble.combiner.name == "log_pool"
    config = build_config(config_of(made))
    assert config.server.optimizer == "momentum"
    assert config.server.buffers == "local"
    assert config.data.partition == "split"
    assert config.run.early_stopping == 5
    assert config.group["1"].training == {"learning_rate": 0.001}
    assert config.ensemble.calibrate is False


def test_the_base_dropout_rate_is_the_models_own_if_it_is_given_there() -> None:
    for settings, expected in [
        ({}, 0.1),
        ({"model_kwargs": {"dropout_rate": 0.4}}, 0.4),
        ({"model_kwargs": {"dropout_rate": 0.4}, "dropout_rate": 0.2}, 0.2),
    ]:
        made = system(**settings)
        made.train(DATA, 1)
        rates = [member.model.dropout.p for member in made.ensemble.members]
        assert rates == pytest.approx([expected - 0.05, expected + 0.05])


def test_aggregation_by_name_is_aggregation_by_object() -> None:
    by_name = trained(
        topology=FEDAVG, aggregation_config={"server_optimizer": "fedavg", "learning_rate": 0.5}
    )
    by_object = trained(topology=FEDAVG, server=FedAvg(0.5))
    assert torch.equal(by_name, by_object)
    assert not torch.equal(by_name, trained(topology=FEDAVG))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, FedAvg()),
        ({"server_optimizer": "nesterov", "momentum": 0.5}, Momentum(momentum=0.5, nesterov=True)),
        ({"server_optimizer": "fedyogi", "learning_rate": 0.1}, Adaptive("yogi", 0.1)),
    ],
)
def test_aggregation_config_is_read(config: dict[str, Any] | None, expected: Any) -> None:
    assert read_aggregation(config).server == expected


def test_quantization_config_sends_fewer_bytes_and_is_remembered() -> None:
    made = system(topology=FEDAVG, model_class="mlp", model_kwargs={"hidden": [64, 64]}, **PACKED)
    figures = made.train(DATA, 3)["communication"]
    assert figures["dense_bytes"] / figures["sent_bytes"] == figures["ratio"] > 3.5
    again = build_config(config_of(made)).compression.build()
    assert again == Compression(PackedCodec(bits=6, min_bits=4, max_bits=16))
    plain = system(topology=FEDAVG, model_class="mlp", model_kwargs={"hidden": [64, 64]})
    assert plain.train(DATA, 3)["communication"]["ratio"] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization_config": {"base_bit": 8}}, "unknown key 'base_bit'.*did you mean 'base_bits'"),
        ({"quantization_config": {"base_bits": 3}}, "3.*min.*4|budget"),
        ({"quantization_config": 8}, "must be a dict of base_bits, min_bits, max_bits, got 8"),
        (
            {"quantization_config": {}, "compression": Compression(PackedCodec(bits=4))},
            "say the same thing; leave one out",
        ),
        ({"aggregation_config": {"buffer": "local"}}, "unknown key 'buffer'.*did you mean 'buffers'"),
        ({"aggregation_config": {"buffers": "none"}}, "'average' or 'local', got 'none'"),
        ({"aggregation_config": {"server_optimizer": "fedadm"}}, "did you mean 'fedadam'"),
        ({"aggregation_config": {"momentum": 0.5}}, "takes no momentum"),
        ({"aggregation_config": {"learning_rate": 0.5}, "server": FedAvg()}, "given twice"),
        ({"aggregation_config": ["fedavg"]}, "must be a dict"),
        ({"topology": Topology(groups=2), "num_workers": 3}, "2 groups do not divide 3 workers"),
        ({"backend": "locl"}, "did you mean 'local'"),
        ({"partitioner": "spilt"}, "did you mean 'split'"),
        ({"combiner": "meen"}, "did you mean 'mean'"),
        ({"device": "gpu"}, "is no device"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        system(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_class": "cn"}, "did you mean 'cnn'"),
        ({"model_kwargs": {"width": 3}}, "does not accept width"),
        ({"model_kwargs": {"num_classes": 2}}, r"\(4, 2\) for 4 examples of 3 classes"),
        ({"task": "other"}, "task"),
        ({"classes": ["a", "b"]}, "beyond the 2 classes"),
        ({"groups": {7: GroupSettings()}}, "group 7"),
        ({"recipe": Recipe(loss="mse")}, "does not fit a classification task"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_training(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        system(**settings).train(DATA, 1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (torch.full((20, 4), torch.nan), torch.arange(20) % 3, "NaN"),
        (ROWS[:20], torch.zeros(20, dtype=torch.int64), "only one class"),
        (ROWS[:20], torch.arange(19), "20 rows and targets 19"),
        (ROWS[:4], torch.arange(4) % 2, "too few samples"),
    ],
)
def test_bad_rows_are_refused(rows: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        system().train((rows, labels), 1)


def test_epochs_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="epochs must be at least 1, got 0"):
        system().train(DATA, 0)


# -- what is told --------------------------------------------------------------------------------------------


def test_each_synchronisation_is_logged_with_the_learning_rate(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hqde"):
        system(topology=FEDAVG).train(DATA, 3)
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.getMessage().startswith("Weights aggregated and synchronized at epoch ")
    ]
    assert [int(line.split()[6]) for line in lines] == [1, 2, 3]
    rates = [float(line.rpartition("LR ")[2]) for line in lines]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1] >= 0


def test_nothing_is_synchronised_between_independent_workers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hqde"):
        system().train(DATA, 2)
    messages = [record.getMessage() for record in caplog.records]
    assert not any("synchronized" in message for message in messages)
    assert sum(message.startswith("round ") for message in messages) == 2


def test_progress_goes_to_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    system(topology=FEDAVG).train(DATA, 2)
    assert capsys.readouterr().err == ""
    system(topology=FEDAVG).train(DATA, 2, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Weights aggregated and synchronized at epoch 2" in shown.err
    assert "round 2/2 · epoch 2 · train loss" in shown.err


def test_a_worker_that_diverges_is_left_out_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    made = system(groups={1: GroupSettings(recipe={"learning_rate": 1e30, "clip_norm": 0.0})}, recipe=KEEN)
    metrics = made.train(DATA, 8)
    assert metrics["faults"]["rejected"] > 0
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("rejected: worker 1:" in message for message in warnings)
    accuracy = made.evaluate(DATA).members[0]["accuracy"]
    assert accuracy > 0.8  # its neighbour is none the worse for it


# -- files ---------------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_with_the_systems_class(tmp_path: Path) -> None:
    class Hidden(Net):
        """A class that cannot be imported by its name."""

    made = system(model_class=Hidden)
    made.train(DATA, 1)
    made.save_model(tmp_path / "model")
    fresh = system(model_class=Hidden)
    fresh.load_model(tmp_path / "model")
    assert torch.equal(fresh.predict(ROWS), made.predict(ROWS))
    with pytest.raises(PreconditionError, match="nothing was trained"):
        fresh.get_performance_metrics()
    with pytest.raises(ArtefactError, match="model_class"):
        Ensemble.load(tmp_path / "model")


def test_a_system_of_another_task_does_not_load_it(tmp_path: Path) -> None:
    made = system(model_class="mlp")
    made.train(DATA, 1)
    made.save_model(tmp_path / "model")
    with pytest.raises(ArtefactError, match="is for classification"):
        system(model_class="mlp", task="regression").load_model(tmp_path / "model")


def test_a_model_defined_in_a_script_works(tmp_path: Path) -> None:
    script = """
    import sys, torch
    from torch import nn
    from hqde import HQDESystem, Topology

    class Net(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.head = nn.Linear(4, num_classes)

        def forward(self, x):
            return self.head(x)

    system = HQDESystem(Net, {"num_classes": 2}, num_workers=2, topology=Topology(groups=1))
    X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    if sys.argv[1] == "train":
        system.train((X, (X[:, 0] > 0).long()), num_epochs=1)
        system.save_model("model")
    else:
        system.load_model("model")
    print(system.predict(X).double().sum(dim=0).tolist())
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    outputs = [
        subprocess.run(
            [sys.executable, "script.py", what], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for what in ("train", "load")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("[")


def test_a_run_directory_is_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = system(topology=FEDAVG, partitioner=Dirichlet(alpha=0.2), server=Adaptive("adam", beta1=0.5))
    metrics = made.train(DATA, 2, run_dir=run)
    names = {path.name for path in run.iterdir()}
    assert {
        "config.toml",
        "history.jsonl",
        "metrics.json",
        "evaluation.json",
        "checkpoints",
        "artefact",
    } <= names
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert metrics["history"] == history
    written = json.loads((run / "metrics.json").read_text())
    assert written == {key: metrics[key] for key in written}
    loaded = Ensemble.load(run / "artefact", model_class=Net)
    assert torch.equal(loaded.predict_proba(ROWS), made.predict(ROWS))
    config = build_config(load_tree(run / "config.toml"))
    assert config.data.source == "in memory: tuple, 216 training and 24 validation rows"
    assert config.data.alpha == 0.2
    assert config.server.optimizer == repr(Adaptive("adam", beta1=0.5))
    written = without_place(tomllib.loads((run / "config.toml").read_text()))
    assert written == made.ensemble.provenance["config"]


def test_a_run_directory_changes_nothing(tmp_path: Path) -> None:
    assert torch.equal(trained(train={"run_dir": tmp_path / "run"}), trained())


def test_a_taken_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunError, match="already holds other files"):
        system().train(DATA, 1, run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


class Interrupting(Listeners):
    """Presses Ctrl-C after the second round."""

    def on_round(self, record: RoundRecord) -> None:
        """Stop."""
        if record.round == 2:
            raise KeyboardInterrupt

    def on_event(self, event: Event) -> None:
        """Nothing."""


def test_an_interrupted_training_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        system().train(DATA, 4, run_dir=run, listeners=[Interrupting()])
    with pytest.raises(RunError, match=r"other settings \(run.seed\)"):
        system(seed=1).train(DATA, 4, run_dir=run, resume=True)
    with pytest.raises(RunError, match=r"other settings \(data.source\)"):
        system().train((ROWS[:200], LABELS[:200]), 4, run_dir=run, resume=True)
    made = system()
    metrics = made.train(DATA, 4, run_dir=run, resume=True)
    assert [entry["round"] for entry in metrics["history"]] == [1, 2, 3, 4]
    assert metrics["faults"]["resumes"] == 1
    assert torch.equal(made.predict(ROWS), trained(epochs=4))


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="give run_dir"):
        system().train(DATA, 1, resume=True)
    with pytest.raises(RunError, match="holds no run"):
        system().train(DATA, 1, run_dir=tmp_path, resume=True)


# -- before and after ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda made, path: made.predict(ROWS),
        lambda made, path: made.evaluate(DATA),
        lambda made, path: made.save_model(path / "model"),
        lambda made, path: made.ensemble,
    ],
    ids=["predict", "evaluate", "save_model", "ensemble"],
)
def test_before_training_there_is_a_clear_error(use: Any, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match=r"no ensemble yet; call train\(…\) or load_model"):
        use(system(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_performance_metrics_before_training_are_an_error() -> None:
    with pytest.raises(PreconditionError, match="nothing was trained"):
        system().get_performance_metrics()


def test_cleanup_may_be_called_at_any_time() -> None:
    made = system()
    made.cleanup()
    made.train(DATA, 1)
    made.cleanup()
    made.cleanup()
    assert made.predict(ROWS).shape == (240, 3)


def test_the_seeds_function_makes_the_same_system() -> None:
    made = create_hqde_system(
        Net, {"num_classes": 3}, 2, None, {"server_optimizer": "fedavg"}, device="cpu", topology=FEDAVG
    )
    assert isinstance(made, HQDESystem)
    made.train(DATA, 2)
    assert torch.equal(made.predict(ROWS), trained(model_kwargs={"num_classes": 3}, topology=FEDAVG))


def test_numpy_rows_may_be_predicted() -> None:
    made = system()
    made.train(DATA, 1)
    np.testing.assert_array_equal(made.predict(ROWS.numpy()).numpy(), made.predict(ROWS).numpy())


def test_a_run_directory_may_be_watched(tmp_path: Path) -> None:
    watching = Monitoring(interval_s=0.05)
    figures = system().train(DATA, num_epochs=2, run_dir=tmp_path / "run", monitoring=watching)
    assert figures["resources"]["samples"] >= 2
    assert len((tmp_path / "run" / "resources.jsonl").read_text().splitlines()) >= 2
    assert "interval_s = 0.05" in (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(RunError, match="nowhere to write samples to without a run directory"):
        system().train(DATA, num_epochs=1, monitoring=watching)


def test_where_workers_train_is_chosen_as_in_a_configuration() -> None:
    alone = system(num_workers=4, threads=1, lanes=1)
    beside = system(num_workers=4, threads=1, lanes=2)
    for each in (alone, beside):
        each.train(DATA, num_epochs=2)
    assert torch.equal(alone.predict(ROWS), beside.predict(ROWS))
    stacked = system(model_class="mlp", num_workers=4, backend="vectorised", stacked=2)
    assert stacked.train(DATA, num_epochs=2)["backend"] == "vectorised"
    with pytest.raises(ConfigError, match="stacked must not be negative"):
        system(backend="vectorised", stacked=-1)
