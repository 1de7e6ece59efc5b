"""Normalisation against numpy in float64, and against float32's limits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from hqde.data import (
    Normalization,
    Schema,
    SubsetExamples,
    TargetScale,
    TensorExamples,
    infer_schema,
    normalization,
)
from hqde.errors import PreconditionError


def fitted(inputs, targets=None):
    rows = len(inputs["a"]) if isinstance(inputs, dict) else len(inputs)
    examples = TensorExamples(inputs, torch.arange(rows) % 2 if targets is None else targets)
    return Normalization.fit(examples, infer_schema(examples, task="classification"))


def test_images_are_scaled_per_channel_like_numpy_in_float64():
    images = torch.randint(
        0, 256, (50, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    scale = fitted(images)
    reference = images.numpy().astype(np.float64)
    assert scale.mean.numpy() == pytest.approx(reference.mean(axis=(0, 2, 3)), rel=1e-7)
    assert scale.std.numpy() == pytest.approx(reference.std(axis=(0, 2, 3)), rel=1e-7)
    out = scale.apply(images)
    assert out.dtype == torch.float32
    assert out.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (out.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_tables_are_scaled_per_feature_like_scikit_learn():
    rows = (
        torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 1e-4, 1e5]) + 3
    )
    reference = StandardScaler().fit(rows.double().numpy())
    scale = fitted(rows)
    assert scale.mean.numpy() == pytest.approx(reference.mean_, rel=1e-6)
    assert scale.std.numpy() == pytest.approx(reference.scale_, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(chunk_rows=st.integers(1, 30))
def test_chunks_do_not_change_the_statistics(chunk_rows):
    rows = torch.randn(23, 3, generator=torch.Generator().manual_seed(0)) + 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalization, "_CHUNK_BYTES", chunk_rows * 3 * 8)
        scale = fitted(rows)
    reference = rows.double().numpy()
    assert scale.mean.numpy() == pytest.approx(reference.mean(axis=0), rel=1e-7)
    assert scale.std.numpy() == pytest.approx(reference.std(axis=0), rel=1e-6)


def test_a_small_spread_around_a_large_mean_survives():
    # Summing squares in float32 would lose this entirely.
    rows = torch.tensor([[1e6 - 1.0], [1e6 + 1.0]]).repeat(500, 1)
    assert fitted(rows).std.item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e7 + 1])
def test_a_constant_feature_gets_std_one_and_becomes_zero(value):
    rows = torch.full((1000, 2), value)
    rows[:, 1] = torch.arange(1000.0)
    scale = fitted(rows)
    assert scale.std[0] == 1.0
    assert scale.apply(rows)[:, 0].abs().max() == 0.0


def test_only_the_rows_given_count():
    rows = torch.cat([torch.zeros(10, 1), torch.full((10, 1), 1000.0)])
    rows[:10, 0] = torch.arange(10.0)
    examples = SubsetExamples(TensorExamples(rows, torch.arange(20) % 2), torch.arange(10))
    assert (
        Normalization.fit(examples, Schema("classification", "tabular", ("0", "1"), (1,))).mean.item() == 4.5
    )


def test_dicts_and_tuples_keep_integers_and_get_float32():
    inputs = {"a": torch.arange(4), "b": torch.rand(4, 2, dtype=torch.float64)}
    scale = fitted(inputs)
    assert scale == Normalization.identity()
    out = scale.apply(inputs)
    assert out["a"] is inputs["a"]
    assert out["b"].dtype == torch.float32
    first, second = scale.apply((inputs["a"], inputs["b"]))
    assert first is inputs["a"]
    assert second.dtype == torch.float32


def test_inputs_of_another_rank_are_left_as_they_are_but_in_float32():
    sequences = torch.rand(4, 7, 3) * 100
    assert torch.equal(fitted(sequences).apply(sequences), sequences)


def test_apply_does_not_change_its_inputs():
    rows = torch.rand(5, 2)
    before = rows.clone()
    fitted(rows).apply(rows)
    assert torch.equal(rows, before)


def test_no_rows_teach_nothing():
    examples = TensorExamples(torch.zeros(0, 2), torch.zeros(0))
    with pytest.raises(PreconditionError, match="at least 1 row"):
        Normalization.fit(examples, Schema("regression", "tabular", (), (2,)))


def test_inputs_of_another_width_are_refused():
    scale = fitted(torch.rand(5, 2))
    with pytest.raises(PreconditionError, match=r"shape \(5, 3\) do not fit statistics of 2 features"):
        scale.apply(torch.rand(5, 3))
    with pytest.raises(PreconditionError, match="2 channels"):
        scale.apply(torch.rand(5, 3, 4, 4))


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=5),
    std=st.floats(2.0**-100, 2.0**100, width=32),
)
def test_a_trip_through_json_keeps_every_bit(values, std):
    scale = Normalization(torch.tensor(values), torch.full((len(values),), std))
    assert Normalization.from_dict(json.loads(json.dumps(scale.to_dict()))) == scale


def test_identity_survives_json():
    again = Normalization.from_dict(json.loads(json.dumps(Normalization.identity().to_dict())))
    assert again == Normalization.identity()


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0], [0.0], "std above 0"),
        ([float("nan")], [1.0], "finite"),
        ([0.0], [float("inf")], "finite"),
        ([0.0, 1.0], [1.0], r"not \(2,\) and \(1,\)"),
    ],
)
def test_impossible_statistics_are_refused(mean, std, message):
    with pytest.raises(PreconditionError, match=message):
        Normalization(torch.tensor(mean), torch.tensor(std))


def test_target_scale_there_and_back():
    targets = torch.tensor([10.0, 20.0, 30.0])
    scale = TargetScale.fit(targets)
    assert (scale.mean, scale.std) == (20.0, pytest.approx(np.std([10, 20, 30])))
    assert torch.allclose(scale.invert(scale.apply(targets)), targets)
    assert scale.invert_variance(torch.tensor([1.0])).item() == pytest.approx(200 / 3)
    assert TargetScale.from_dict(json.loads(json.dumps(scale.to_dict()))) == scale


def test_target_scale_is_the_identity_for_class_ids_and_safe_for_constants():
    ids = torch.tensor([0, 3, 1])
    assert TargetScale.fit(ids) == TargetScale(0.0, 1.0)
    assert TargetScale.fit(ids).apply(ids) is ids
    assert TargetScale.fit(torch.full((7,), 0.1)).std == 1.0


def test_an_impossible_target_scale_is_refused():
    with pytest.raises(PreconditionError, match="std=0"):
        TargetScale(0.0, 0.0)
