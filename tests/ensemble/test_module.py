"""The ensemble as one torch module: same numbers, stable names, exportable."""

from __future__ import annotations

import pytest
import torch

from hqde.data import Normalization, Schema
from hqde.ensemble import COMBINERS, Ensemble, Member, make_combiner
from hqde.models import ModelSpec


@pytest.mark.parametrize("combiner", sorted(COMBINERS))
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_forward_is_what_the_ensemble_predicts(make_ensemble, rows, pictures, model, combiner):
    ensemble = make_ensemble(model, combiner=make_combiner(combiner), temperature=1.7)
    data = rows if model == "mlp" else pictures
    module = ensemble.to_torch_module()
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(module(data), ensemble.predict_proba(data), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "gaussian_nll"])
def test_regression_returns_mean_and_variance(make_ensemble, rows, loss):
    ensemble = make_ensemble(loss=loss)
    with torch.no_grad():
        found = ensemble.to_torch_module()(rows)
    torch.testing.assert_close(found, ensemble.combine(ensemble.predict_members(rows)))


def test_names_are_stable_and_weights_shared(make_ensemble):
    ensemble = make_ensemble()
    module = ensemble.to_torch_module()
    names = set(module.state_dict())
    for index, member in enumerate(ensemble.members):
        own = {f"members.{index}.{name}" for name in member.model.state_dict()}
        assert own <= names
        names -= own
        assert module.members[index] is member.model
    assert names == {"weights", "input_mean", "input_std"}


def test_gradients_reach_the_inputs(make_ensemble, rows):
    rows = rows.clone().requires_grad_()
    make_ensemble().to_torch_module()(rows)[:, 0].sum().backward()
    assert rows.grad.abs().sum() > 0


def test_tuple_and_dict_inputs_are_passed_on():
    spec = ModelSpec("torch.nn:Bilinear", {"in1_features": 2, "in2_features": 4, "out_features": 3})
    ensemble = Ensemble(
        [Member(0, spec, spec.build())],
        schema=Schema("classification", "other", ("a", "b", "c"), None),
        normalization=Normalization.identity(),
    )
    one, two = torch.randn(6, 2), torch.randn(6, 4, dtype=torch.float64)
    module = ensemble.to_torch_module()
    with torch.no_grad():
        torch.testing.assert_close(module(one, two), ensemble.predict_proba((one, two)))
        torch.testing.assert_close(module(input1=one, input2=two), module(one, two))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_torch_export_with_any_number_of_rows(make_ensemble, rows, pictures, model):
    ensemble = make_ensemble(model, num_members=2, temperature=1.7)
    data = rows if model == "mlp" else pictures
    dynamic = {"inputs": ({0: torch.export.Dim("rows")},)}
    program = torch.export.export(ensemble.to_torch_module(), (data,), dynamic_shapes=dynamic)
    exported = program.module()
    for part in (data, data[:4]):
        with torch.no_grad():
            torch.testing.assert_close(exported(part), ensemble.predict_proba(part), rtol=0, atol=1e-6)
