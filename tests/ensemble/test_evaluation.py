"""Figures against scikit-learn, and the description that reports are drawn from."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from hqde.data import TensorExamples
from hqde.ensemble import describe_evaluation, encode_images
from hqde.errors import PreconditionError

MEMBER_KEYS = {"member", "accuracy", "nll", "brier", "ece"}


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.arange(37) % 3


def exactly_one(probs: torch.Tensor) -> np.ndarray:
    """Rows that sum to 1 in float64 too, as scikit-learn asks."""
    exact = probs.double().numpy()
    return exact / exact.sum(axis=1, keepdims=True)


def test_figures_are_those_of_scikit_learn(make_ensemble, rows, targets):
    ensemble = make_ensemble(temperature=2.0)
    evaluation = ensemble.evaluate((rows, targets))
    proba, truth = exactly_one(ensemble.predict_proba(rows)), targets.numpy()
    assert evaluation.num_rows == 37
    assert evaluation.accuracy == pytest.approx(accuracy_score(truth, proba.argmax(axis=1)))
    assert evaluation.nll == pytest.approx(log_loss(truth, proba), rel=1e-6)
    assert evaluation.brier == pytest.approx(brier_score_loss(truth, proba, scale_by_half=False), rel=1e-6)
    assert evaluation.rmse is evaluation.crps is None
    assert [set(member) for member in evaluation.members] == [MEMBER_KEYS] * 3
    for member, probs in zip(evaluation.members, ensemble.predict_members(rows), strict=True):
        assert member["accuracy"] == pytest.approx(accuracy_score(truth, probs.argmax(dim=1).numpy()))
        assert member["nll"] == pytest.approx(log_loss(truth, exactly_one(probs)), rel=1e-4)
    mean = np.mean([member["accuracy"] for member in evaluation.members])
    assert evaluation.mean_member_accuracy == pytest.approx(mean)


def test_diversity_is_in_it_and_vanishes_for_one_member(make_ensemble, rows, targets):
    diversity = make_ensemble().evaluate((rows, targets)).diversity
    assert set(diversity) == {
        "disagreement",
        "effective_members",
        "q_statistic",
        "double_fault",
        "pairwise_kl",
        "mutual_information",
    }
    members = make_ensemble().predict_members(rows)
    chosen = members.argmax(dim=2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert diversity["disagreement"] == pytest.approx(
        np.mean([float((chosen[a] != chosen[b]).double().mean()) for a, b in pairs])
    )
    kl = [
        float((members[a] * (members[a] / members[b]).log()).sum(dim=1).mean())
        for a in range(3)
        for b in range(3)
        if a != b
    ]
    assert diversity["pairwise_kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert 1.0 < diversity["effective_members"] <= 3.0
    alone = make_ensemble(num_members=1).evaluate((rows, targets)).diversity
    assert (alone["disagreement"], alone["pairwise_kl"]) == (0.0, 0.0)
    assert alone["effective_members"] == pytest.approx(1.0)


def test_to_dict_is_plain_json(make_ensemble, rows, targets):
    evaluation = make_ensemble().evaluate((rows, targets))
    found = evaluation.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["accuracy"] == evaluation.accuracy
    with pytest.raises(AttributeError):
        evaluation.accuracy = 1.0


def test_members_predict_once_and_data_are_read_once(make_ensemble, rows, targets):
    ensemble = make_ensemble()
    calls, reads = [], []
    for member in ensemble.members:
        member.model.register_forward_hook(lambda module, args, out: calls.append(len(out)))

    class Counting(TensorExamples):
        def fetch(self, index):
            reads.extend(index.tolist())
            return super().fetch(index)

    ensemble.evaluate(Counting(rows, targets), batch_size=37)
    assert calls == [37, 37, 37]
    assert reads == list(range(37))


def test_uncertainty_adds_up_in_nats(make_ensemble, rows):
    ensemble = make_ensemble(temperature=3.0)
    members = ensemble.predict_members(rows).double()
    split = ensemble.predict_uncertainty(rows)

    def entropy(probs):
        return -(probs * probs.log()).sum(dim=-1)

    torch.testing.assert_close(split.total, entropy(members.mean(dim=0)))
    torch.testing.assert_close(split.aleatoric, entropy(members).mean(dim=0))
    torch.testing.assert_close(split.total, split.aleatoric + split.epistemic)


def test_the_description_has_the_figures_before_and_after_calibration(make_ensemble, rows, targets):
    ensemble = make_ensemble(temperature=2.5)
    found = describe_evaluation(ensemble, (rows, targets), num_uncertain=5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["task"] == "classification"
    assert found["classes"] == ["ant", "bee", "cat"]
    plain = ensemble.with_temperature(1.0).evaluate((rows, targets))
    tempered = ensemble.evaluate((rows, targets))
    assert found["ensemble"]["nll"] == plain.nll
    assert found["ensemble_calibrated"]["nll"] == tempered.nll != plain.nll
    assert found["members"] == tempered.members
    assert np.shape(found["disagreement_matrix"]) == (3, 3)
    assert np.diag(found["entanglement_matrix"]) == pytest.approx([1.0] * 3)
    for key in ("reliability", "reliability_calibrated"):
        assert {len(found[key][part]) for part in ("confidence", "accuracy", "count")} == {15}
        assert sum(found[key]["count"]) == 37
    assert found["reliability"] != found["reliability_calibrated"]
    at_hand = ensemble.predict_labelled((rows, targets))
    assert describe_evaluation(ensemble, (rows, targets), num_uncertain=5, predictions=at_hand) == found


def test_the_most_uncertain_rows_come_first(make_ensemble, rows, targets):
    ensemble = make_ensemble(temperature=2.5)
    uncertain = describe_evaluation(ensemble, (rows, targets), num_uncertain=5)["uncertain"]
    split = ensemble.predict_uncertainty(rows)
    expected = sorted(range(37), key=lambda row: (-float(split.total[row]), row))[:5]
    assert [entry["index"] for entry in uncertain] == expected
    for entry in uncertain:
        row = entry["index"]
        assert entry["target"] == int(targets[row])
        assert entry["predicted"] == int(ensemble.predict(rows)[row])
        assert entry["probability"] == pytest.approx(float(ensemble.predict_proba(rows)[row].max()))
        assert entry["total"] == pytest.approx(entry["aleatoric"] + entry["epistemic"])
        assert entry["features"] == pytest.approx(rows[row].tolist())
        assert entry["image"] is None
    assert len(describe_evaluation(ensemble, (rows, targets), num_uncertain=99)["uncertain"]) == 37
    assert describe_evaluation(ensemble, (rows, targets), num_uncertain=0)["uncertain"] == []


def test_uncertain_pictures_are_shown(make_ensemble, pictures):
    found = describe_evaluation(make_ensemble("cnn"), (pictures, torch.arange(21) % 3), num_uncertain=4)
    for entry in found["uncertain"]:
        assert entry["features"] is None
        assert entry["image"]["shape"] == [8, 8, 1]
        pixels = np.frombuffer(base64.b64decode(entry["image"]["pixels"]), dtype=np.uint8).reshape(8, 8)
        expected = pictures[entry["index"], 0].double().numpy() * 255 / 16  # values 0..16
        np.testing.assert_allclose(pixels, expected, atol=0.5)


def test_pictures_are_encoded_row_by_row_with_channels_last():
    picture = torch.arange(24, dtype=torch.uint8).reshape(1, 3, 2, 4) * 10
    (found,) = encode_images(picture)
    assert found["shape"] == [2, 4, 3]
    pixels = np.frombuffer(base64.b64decode(found["pixels"]), dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(pixels, picture[0].permute(1, 2, 0).numpy())
    (signed,) = encode_images(torch.tensor([[[[-1.0, 0.0, 1.0]]]]))
    assert list(base64.b64decode(signed["pixels"])) == [0, 128, 255]
    (black,) = encode_images(torch.zeros(1, 1, 1, 2))
    assert list(base64.b64decode(black["pixels"])) == [0, 0]


def test_regression_is_described_by_residuals(make_ensemble):
    generator = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(2500, 5, generator=generator), torch.randn(2500, generator=generator)
    ensemble = make_ensemble(loss="gaussian_nll")
    found = describe_evaluation(ensemble, (rows, targets))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["task"] == "regression"
    assert found["classes"] == []
    assert "reliability" not in found
    assert len(found["residuals"]["predicted"]) == len(found["residuals"]["target"]) == 2000
    assert found["residuals"]["target"][0] == float(targets[0])
    assert found["residuals"]["target"][1999] == float(targets[2498])
    assert len(found["uncertain"]) == 12
    assert found["uncertain"][0]["probability"] is None
    row = found["uncertain"][0]["index"]
    assert found["uncertain"][0]["predicted"] == pytest.approx(float(ensemble.predict(rows)[row]))
    with pytest.raises(PreconditionError, match="0 rows"):
        describe_evaluation(ensemble, (rows[:0], targets[:0]))
