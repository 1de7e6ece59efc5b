"""Predicting: every form of data, eval mode, batch sizes, and inputs that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hqde.data import Normalization, Schema, TensorExamples, as_examples
from hqde.ensemble import Ensemble, Member
from hqde.errors import DataError, NonFiniteError, PreconditionError
from hqde.models import ModelSpec
from hqde.seeding import seeded


def by_hand(ensemble: Ensemble, rows: torch.Tensor) -> torch.Tensor:
    normalization = ensemble.normalization
    found = []
    for member in ensemble.members:
        member.model.eval()
        with torch.no_grad():
            ready = (rows.float() - normalization.mean) / normalization.std
            found.append(torch.softmax(member.model(ready), dim=1))
    return torch.stack(found)


class Items(Dataset):
    """A map-style dataset of whatever ``item`` makes of a row."""

    def __init__(self, rows, item):
        self.rows, self.item = rows, item

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.item(self.rows[index], index)


class Stream(IterableDataset):
    def __init__(self, rows, with_targets):
        self.rows, self.with_targets = rows, with_targets

    def __iter__(self):
        return ((row, 0) if self.with_targets else row for row in self.rows)


class Duck:
    """A dataset that inherits from nothing."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index], 1


def test_members_see_normalised_rows_in_eval_mode(make_ensemble, rows):
    ensemble = make_ensemble()
    for member in ensemble.members:
        member.model.train()  # someone trained on; dropout and batch statistics must not leak in
    found = ensemble.predict_members(rows)
    assert found.shape == (3, 37, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_hand(ensemble, rows))
    assert not any(module.training for member in ensemble.members for module in member.model.modules())
    proba = ensemble.predict_proba(rows)
    torch.testing.assert_close(proba, found.mean(dim=0))
    assert torch.equal(ensemble.predict(rows), proba.argmax(dim=1))
    assert not found.requires_grad
    assert not found.is_inference()  # an ordinary tensor


FORMS = {
    "tensor": lambda rows: rows,
    "float64 tensor": lambda rows: rows.double(),
    "float64 array": lambda rows: rows.double().numpy(),
    "read-only array": lambda rows: np.frombuffer(rows.numpy().tobytes(), dtype=np.float32).reshape(
        rows.shape
    ),
    "reversed array": lambda rows: rows.numpy()[::-1].copy()[::-1],
    "big-endian array": lambda rows: rows.numpy().astype(">f8"),
    "list of arrays": lambda rows: list(rows.numpy()),
    "list of tensors": lambda rows: list(rows),
    "list of lists": lambda rows: rows.tolist(),
    "examples": lambda rows: TensorExamples(rows, torch.zeros(len(rows), dtype=torch.int64)),
    "tensor dataset": lambda rows: TensorDataset(rows, torch.zeros(len(rows))),
    "tensor dataset of inputs alone": lambda rows: TensorDataset(rows),
    "dataset of pairs": lambda rows: Items(rows, lambda row, index: (row, index % 3)),
    "dataset of inputs alone": lambda rows: Items(rows, lambda row, index: row),
    "map examples": lambda rows: as_examples(Items(rows, lambda row, index: (row, index % 3))),
    "subset": lambda rows: Subset(Items(rows, lambda row, index: (row, 0)), range(len(rows))),
    "dataset without a base class": Duck,
    "iterable dataset": lambda rows: Stream(rows, with_targets=True),
    "iterable dataset of inputs alone": lambda rows: Stream(rows, with_targets=False),
    "loader": lambda rows: DataLoader(TensorDataset(rows, torch.zeros(len(rows))), batch_size=5),
    "shuffling loader": lambda rows: DataLoader(
        Items(rows, lambda row, index: (row, 0)), batch_size=5, shuffle=True, drop_last=True
    ),
    "loader that collates": lambda rows: DataLoader(
        Items(rows, lambda row, index: {"row": row, "y": 0}),
        batch_size=4,
        collate_fn=lambda items: (torch.stack([item["row"] for item in items]), None),
    ),
    "loader without batches": lambda rows: DataLoader(
        Items(rows, lambda row, index: (row, 0)), batch_size=None
    ),
    "loader with a subset sampler": lambda rows: DataLoader(
        TensorDataset(rows, torch.zeros(len(rows))), sampler=SubsetRandomSampler(range(len(rows)))
    ),
    "loader over a stream": lambda rows: DataLoader(Stream(rows, with_targets=True), batch_size=7),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_rows_in_the_same_order(make_ensemble, rows, form):
    ensemble = make_ensemble()
    found = ensemble.predict_members(FORMS[form](rows), batch_size=8)
    torch.testing.assert_close(found, by_hand(ensemble, rows), rtol=1e-5, atol=1e-6)


def test_a_sampler_of_its_own_keeps_its_order(make_ensemble, rows):
    ensemble = make_ensemble()
    sampler = WeightedRandomSampler([1.0, 0.0, 0.0], num_samples=4)
    loader = DataLoader(TensorDataset(rows[:3], torch.zeros(3)), sampler=sampler, batch_size=3)
    torch.testing.assert_close(ensemble.predict_members(loader), by_hand(ensemble, rows[[0, 0, 0, 0]]))


@pytest.mark.parametrize("combiner", ["mlp", "cnn"])
@pytest.mark.parametrize("batch_size", [1, 3, 20, 1000])
def test_the_batch_size_does_not_matter(make_ensemble, rows, pictures, combiner, batch_size):
    ensemble = make_ensemble(combiner)
    data = rows if combiner == "mlp" else pictures
    whole = ensemble.predict_proba(data)
    torch.testing.assert_close(ensemble.predict_proba(data, batch_size=batch_size), whole, rtol=0, atol=1e-6)


def test_members_of_different_architectures(make_ensemble, pictures):
    cnn, mlp = (
        make_ensemble("cnn", num_members=1),
        ModelSpec("mlp", {"input_shape": [1, 8, 8], "num_outputs": 3}),
    )
    members = [*cnn.members, Member(7, mlp, mlp.build(), score=0.9)]
    ensemble = Ensemble(members, schema=cnn.schema, normalization=cnn.normalization)
    assert ensemble.member_ids == (0, 7)
    found = ensemble.predict_members(pictures)
    assert torch.equal(found[0], cnn.predict_members(pictures)[0])
    assert not torch.allclose(found[0], found[1])


def test_predicting_leaves_the_random_streams_alone(make_ensemble, rows):
    ensemble = make_ensemble()
    noisy = Items(rows, lambda row, index: (row + 0 * torch.rand(5), int(torch.randint(3, ()))))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ensemble.predict_proba(noisy)
    ensemble.evaluate(noisy)
    assert torch.equal(torch.rand(3), expected)


def test_no_rows_give_empty_predictions(make_ensemble):
    ensemble = make_ensemble()
    assert ensemble.predict_members(torch.zeros(0, 5)).shape == (3, 0, 3)
    assert ensemble.predict_proba(TensorDataset(torch.zeros(0, 5), torch.zeros(0))).shape == (0, 3)
    assert ensemble.predict(np.zeros((0, 5))).shape == (0,)
    assert [len(part) for part in ensemble.predict_uncertainty(torch.zeros(0, 5))] == [0, 0, 0]
    assert make_ensemble(loss="mse").predict(torch.zeros(0, 5)).shape == (0,)
    with pytest.raises(PreconditionError, match="0 rows"):
        ensemble.evaluate((torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(PreconditionError, match="expected"):
        ensemble.predict(torch.zeros(0, 4))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4, 6), r"shape \(4, 6\), expected \(n, 5\)"),
        (torch.zeros(5), r"shape \(5,\), expected \(n, 5\): put a single example into a row"),
        (torch.zeros(2, 5, 1), r"shape \(2, 5, 1\), expected \(n, 5\)"),
        (torch.tensor(3.0), r"shape \(\), expected \(n, 5\)"),
        ((torch.zeros(2, 5), torch.zeros(2, 5)), r"inputs are a tuple, .* one tensor \(n, 5\)"),
        ({"x": torch.zeros(2, 5)}, r"inputs are a dict, .* one tensor \(n, 5\)"),
    ],
)
def test_a_wrong_shape_is_refused_with_both_shapes(make_ensemble, bad, message):
    with pytest.raises(PreconditionError, match=message):
        make_ensemble().predict_proba(bad)


def test_images_with_channels_last_are_refused(make_ensemble):
    with pytest.raises(PreconditionError, match=r"shape \(2, 8, 8, 1\), expected \(n, 1, 8, 8\)"):
        make_ensemble("cnn").predict(torch.zeros(2, 8, 8, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_inputs_that_are_not_finite_are_refused_with_the_row(make_ensemble, rows, value):
    data = rows.double().clone()
    data[20, 3] = value
    data[25, 0] = value
    with pytest.raises(NonFiniteError, match=r"1 rows hold .*first: 20"):
        make_ensemble().predict_proba(data, batch_size=8)


def test_data_that_are_no_numbers_or_no_rows_are_refused(make_ensemble):
    ensemble = make_ensemble()
    for bad in (
        np.array([["a"] * 5]),
        "text",
        [[1.0, 2.0], [3.0]],
        [torch.zeros(5), torch.zeros(4)],
        object(),
    ):
        with pytest.raises(DataError):
            ensemble.predict_proba(bad)
    with pytest.raises(PreconditionError, match="batch_size is at least 1, got 0"):
        ensemble.predict_proba(torch.zeros(2, 5), batch_size=0)
    with pytest.raises(PreconditionError, match="batch_size is at least 1, got -1"):
        ensemble.evaluate((torch.zeros(2, 5), torch.tensor([0, 1])), batch_size=-1)
    with pytest.raises(DataError, match=r"labels lie in 0\.\.3, and the classes are 0\.\.2"):
        ensemble.evaluate((torch.zeros(2, 5), torch.tensor([0, 3])))


def test_a_member_with_broken_weights_or_outputs_is_named(make_ensemble, rows):
    ensemble = make_ensemble()
    with torch.no_grad():
        ensemble.members[1].model.head.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"member 1 predicts NaN or infinity in 37 rows \(first: 0\)"):
        ensemble.predict_proba(rows)
    spec = ModelSpec("torch.nn:Linear", {"in_features": 5, "out_features": 4})
    wrong = Ensemble(
        [Member(2, spec, spec.build())], schema=ensemble.schema, normalization=ensemble.normalization
    )
    with pytest.raises(PreconditionError, match=r"member 2 returns shape \(37, 4\), expected \(37, 3\)"):
        wrong.predict(rows)


class TwoTowers(nn.Module):
    """Integer ids and float values in, a Hugging Face style output out."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 4), nn.Linear(6, 3)

    def forward(self, ids, values):
        return {"logits": self.head(torch.cat([self.table(ids).mean(dim=1), values], dim=1))}


def two_towers() -> Ensemble:
    with seeded(0, "towers"):
        models = [TwoTowers() for _ in range(2)]
    spec = ModelSpec("towers:TwoTowers", {}, TwoTowers)
    return Ensemble(
        [Member(index, spec, model) for index, model in enumerate(models)],
        schema=Schema("classification", "other", ("a", "b", "c"), None),
        normalization=Normalization.identity(),
    )


def test_dict_and_tuple_inputs():
    ensemble = two_towers()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 11, (9, 5), generator=generator)
    values = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack(
            [torch.softmax(member.model(ids, values.float())["logits"], 1) for member in ensemble.members]
        )
    labels = torch.arange(9) % 3
    for data in (
        (ids, values),
        (ids.numpy(), values.numpy()),
        {"ids": ids, "values": values},
        {"values": values, "ids": ids},
        TensorDataset(ids, values, labels),
        DataLoader(TensorDataset(ids, values, labels), batch_size=2),
        DataLoader(
            Items(range(9), lambda row, i: {"ids": ids[i], "values": values[i], "labels": labels[i]}),
            batch_size=2,
        ),
    ):
        torch.testing.assert_close(ensemble.predict_members(data, batch_size=4), expected)
    assert ensemble.evaluate(({"ids": ids, "values": values}, labels)).num_rows == 9
    with pytest.raises(PreconditionError, match="trained on a dict or tuple"):
        ensemble.predict(ids)
    with pytest.raises(DataError, match="number of rows"):
        ensemble.predict((ids, values[:3]))
    values[3, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="of input 'values' hold"):
        ensemble.predict({"ids": ids, "values": values})


def test_an_ensemble_is_checked_when_it_is_made(make_ensemble):
    ensemble = make_ensemble(num_members=1)
    member, given = ensemble.members[0], {"schema": ensemble.schema, "normalization": ensemble.normalization}
    assert repr(ensemble) == "Ensemble(1 member, classification of 3 classes, combiner 'mean', temperature 1)"
    with pytest.raises(PreconditionError, match=r"at least one member and unique ids, got \[\]"):
        Ensemble([], **given)
    with pytest.raises(PreconditionError, match=r"unique ids, got \[0, 0\]"):
        Ensemble([member, member], **given)
    with pytest.raises(PreconditionError, match="finite and above 0, got 0"):
        Ensemble([member], temperature=0, **given)
    with pytest.raises(ValueError, match="loss 'mse' does not fit classification"):
        Ensemble([member], loss="mse", **given)
    with pytest.raises(PreconditionError, match="at least 0, got -1"):
        Member(-1, member.spec, member.model)
    with pytest.raises(NonFiniteError, match="score nan"):
        Member(0, member.spec, member.model, score=float("nan"))


def test_it_moves_to_a_device_and_answers_on_the_cpu(make_ensemble, rows):
    ensemble = make_ensemble()
    assert ensemble.to("cpu") is ensemble
    assert ensemble.device == torch.device("cpu")
    assert ensemble.predict_proba(rows).device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_answers_on_the_cpu(make_ensemble, rows):
    ensemble = make_ensemble()
    expected = ensemble.predict_proba(rows)
    found = ensemble.to("cuda").predict_proba(rows)
    assert found.device == torch.device("cpu")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
