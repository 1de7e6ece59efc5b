"""Matrix scaling: against an objective written down anew, what it must find, and when nothing."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.ensemble import Ensemble, MatrixScaling, fit_matrix_scaling, fit_temperature, matrix_scaling
from hqde.errors import ArtefactError, ConfigError, NonFiniteError, PreconditionError
from hqde.metrics import accuracy, nll

SWAP = MatrixScaling(
    torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64),
    torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64),
)


def confused(
    seed: int = 0, *, n: int = 1_500, c: int = 4, strength: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities that are right but for a shift towards class 0, and the targets."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=draws, dtype=torch.float64) * 2
    targets = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=draws).squeeze(1)
    wrong = logits.clone()
    wrong[:, 0] += 3 * strength + 0.5 * strength * logits[:, 1]
    return torch.softmax(wrong, dim=1).float(), targets


def test_it_is_the_minimum_of_the_objective_as_written_down():
    probs, targets = confused(n=300, c=3)
    logs = probs.double().log()
    for spread in matrix_scaling.SPREADS[1:]:
        found = matrix_scaling._solve(logs, targets, spread, None)
        weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
        fit = sum(
            torch.logsumexp(weight @ row + bias, 0) - (weight @ row + bias)[target]
            for row, target in zip(logs, targets, strict=True)
        )
        prior = (weight - torch.eye(3)).square().sum() / (2 * spread**2)
        prior = prior + bias.square().sum() / (2 * (10 * spread) ** 2)
        # Convex: where its slope is 0, there the minimum is.
        slopes = torch.autograd.grad(fit + prior, (weight, bias))
        assert max(float(slope.abs().max()) for slope in slopes) <= 1e-2
        again = matrix_scaling._solve(logs, targets, spread, SWAP)
        torch.testing.assert_close(again.weight, found.weight, rtol=0, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1_000), strength=st.floats(0.0, 2.0))
def test_it_never_raises_the_nll_of_the_rows_and_is_the_same_each_time(seed, strength):
    probs, targets = confused(seed, n=200, strength=strength)
    found = fit_matrix_scaling(probs, targets)
    if found is not None:
        again = fit_matrix_scaling(probs, targets)
        assert torch.equal(found.weight, again.weight)
        assert nll(found.apply(probs), targets) <= nll(probs, targets) + 1e-6
        scaled = found.apply(probs)
        assert scaled.dtype == probs.dtype
        assert (scaled.sum(dim=1) - 1).abs().max() <= 1e-5


def test_classes_that_are_named_too_often_are_put_right_on_other_rows():
    found = fit_matrix_scaling(*confused(0))
    assert found is not None
    probs, targets = confused(1)
    assert accuracy(found.apply(probs), targets) > accuracy(probs, targets) + 0.05
    assert nll(found.apply(probs), targets) < 0.8 * nll(probs, targets)


def test_rows_may_come_class_by_class_in_turn():
    # Every fifth row is of one class then: folds by position alone would never see it.
    probs, targets = confused(n=2_000, c=5)
    in_turn = torch.stack([(targets == c).nonzero().flatten()[:250] for c in range(5)], dim=1).flatten()
    assert targets[in_turn[:6]].tolist() == [0, 1, 2, 3, 4, 0]
    assert fit_matrix_scaling(probs[in_turn], targets[in_turn]) is not None


def test_it_does_not_matter_how_classes_are_numbered():
    probs, targets = confused(n=400)
    order = torch.tensor([2, 0, 3, 1])
    found = fit_matrix_scaling(probs, targets)
    moved = fit_matrix_scaling(probs[:, order], order.argsort()[targets])
    assert found is not None
    assert moved is not None
    torch.testing.assert_close(moved.apply(probs[:, order]), found.apply(probs)[:, order], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_that_are_right_stay(seed):
    assert fit_matrix_scaling(*confused(seed, n=600, strength=0.0)) is None


def test_a_few_rows_change_nothing():
    probs, targets = confused(n=matrix_scaling.LEAST_ROWS, strength=3.0)
    assert fit_matrix_scaling(probs, targets) is not None
    assert fit_matrix_scaling(probs[1:], targets[1:]) is None


def test_sure_and_wrong_rows_are_borne():
    # Certainty itself: logarithms stay finite, and a class that is never right is given up.
    told = torch.arange(300) % 3
    found = fit_matrix_scaling(torch.eye(3)[told], torch.where(told == 2, 1, told))
    assert found is not None
    assert found.apply(torch.eye(3)).argmax(dim=1).tolist() == [0, 1, 1]


def test_bad_input_is_refused():
    probs, targets = confused(n=120)
    with pytest.raises(PreconditionError):
        fit_matrix_scaling(probs, targets[:5])
    with pytest.raises(PreconditionError):
        fit_matrix_scaling(probs[:0], targets[:0])
    with pytest.raises(NonFiniteError):
        fit_matrix_scaling(probs * float("nan"), targets)
    with pytest.raises(PreconditionError, match="each pair of 201 classes: it is for at most 200"):
        fit_matrix_scaling(torch.full((300, 201), 1 / 201), torch.arange(300) % 201)
    with pytest.raises(PreconditionError, match=r"got \(2, 2\) and \(3,\)"):
        MatrixScaling(torch.eye(2), torch.zeros(3))
    with pytest.raises(PreconditionError, match="finite numbers"):
        MatrixScaling(torch.eye(2), torch.tensor([0.0, float("inf")]))


def test_an_ensemble_applies_it_after_its_temperature_and_keeps_it(make_ensemble, rows, tmp_path):
    plain = make_ensemble(temperature=1.5)
    scaled = plain.with_temperature(plain.temperature, SWAP)
    expected = SWAP.apply(plain.predict_proba(rows))
    assert torch.equal(scaled.predict_proba(rows), expected)
    assert torch.equal(scaled.predict(rows), expected.argmax(dim=1))
    assert "matrix scaling" in repr(scaled)
    torch.testing.assert_close(scaled.to_torch_module()(rows), expected)
    assert scaled.select([0, 1]).matrix_scaling is SWAP
    assert scaled.with_members(scaled.members[:1]).matrix_scaling is SWAP
    assert scaled.with_temperature(1.5).matrix_scaling is None
    assert scaled.with_combiner(scaled.combiner).matrix_scaling is None

    scaled.save(tmp_path / "a")
    loaded = Ensemble.load(tmp_path / "a")
    assert torch.equal(loaded.predict_proba(rows), expected)
    scaled.save(tmp_path / "b")
    same = [(tmp_path / name / "manifest.json").read_bytes() for name in "ab"]
    assert same[0] == same[1]
    plain.save(tmp_path / "c")
    assert "matrix_scaling" not in json.loads((tmp_path / "c" / "manifest.json").read_text())


def test_export_takes_it_along(make_ensemble, rows):
    ensemble = make_ensemble(matrix_scaling=SWAP)
    any_number = (({0: torch.export.Dim("rows", min=2)},),)
    exported = torch.export.export(ensemble.to_torch_module(), (rows,), dynamic_shapes=any_number)
    torch.testing.assert_close(exported.module()(rows[:5]), ensemble.predict_proba(rows[:5]))


def test_one_that_does_not_fit_is_refused(make_ensemble, tmp_path):
    two = MatrixScaling(torch.eye(2), torch.zeros(2))
    with pytest.raises(PreconditionError, match="of 2 classes does not fit an ensemble of 3"):
        make_ensemble(matrix_scaling=two)
    with pytest.raises(ConfigError, match="a matrix scaling is for classification"):
        make_ensemble(loss="mse", matrix_scaling=two)
    make_ensemble(matrix_scaling=SWAP).save(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert set(manifest["matrix_scaling"]) == {"weight", "bias"}
    manifest["matrix_scaling"]["bias"] = [0.0]
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError):
        Ensemble.load(tmp_path / "a")


def test_calibrating_fits_it_to_what_the_temperature_leaves(make_ensemble):
    ensemble = make_ensemble()
    data = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1
    found = ensemble.predict(data)
    targets = torch.where(found == 2, 1, found)  # its third class is always the second
    fitted = ensemble.calibrate((data, targets), matrix_scaling=True)
    temperature = fit_temperature(ensemble.predict_proba(data), targets)
    expected = fit_matrix_scaling(ensemble.with_temperature(temperature).predict_proba(data), targets)
    assert fitted.temperature == temperature
    assert torch.equal(fitted.matrix_scaling.weight, expected.weight)
    assert fitted.evaluate((data, targets)).accuracy > ensemble.evaluate((data, targets)).accuracy
    assert fitted.calibrate((data, targets)).matrix_scaling is None
    again = ensemble.fit_combiner("log_pool", (data, targets), matrix_scaling=True)
    assert again.matrix_scaling is not None
