"""Accuracy, NLL, Brier, calibration and AUROC against scikit-learn, numbers by hand, and bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from hqde.errors import NonFiniteError, PreconditionError
from hqde.metrics import accuracy, auroc, brier, ece, nll, reliability_bins

METRICS = [accuracy, nll, brier, ece]


def random_problem(seed: int, num_rows: int = 200, num_classes: int = 5, sharpness: float = 1.0):
    gen = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(num_rows, num_classes, generator=gen, dtype=torch.float64)
    return logits.softmax(1), torch.randint(num_classes, (num_rows,), generator=gen)


@st.composite
def problems(draw):
    """Probabilities of every sharpness, exact zeros and ones included, in both precisions."""
    num_classes = draw(st.integers(1, 6))
    num_rows = draw(st.integers(1, 30))
    seed = draw(st.integers(0, 2**31))
    probs, targets = random_problem(seed, num_rows, num_classes, draw(st.sampled_from([0.0, 0.3, 3.0, 1e4])))
    return probs.to(draw(st.sampled_from([torch.float32, torch.float64]))), targets


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    probs, targets = random_problem(seed, sharpness=2.0)
    classes = list(range(5))
    assert accuracy(probs, targets).item() == pytest.approx(accuracy_score(targets, probs.argmax(1)))
    assert nll(probs, targets).item() == pytest.approx(log_loss(targets, probs, labels=classes), abs=1e-12)
    one_hot = np.eye(5)[targets.numpy()]
    assert brier(probs, targets).item() == pytest.approx(np.mean(((probs.numpy() - one_hot) ** 2).sum(1)))


def test_brier_of_two_classes_is_twice_scikit_learns():
    probs, targets = random_problem(0, num_classes=2)
    assert brier(probs, targets).item() == pytest.approx(2 * brier_score_loss(targets, probs[:, 1]))


def test_worked_example():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25]])
    targets = torch.tensor([0, 1, 2])
    assert accuracy(probs, targets).item() == pytest.approx(2 / 3)
    assert nll(probs, targets).item() == pytest.approx((math.log(2) + 0 + math.log(4)) / 3)
    assert brier(probs, targets).item() == pytest.approx((0.375 + 0 + 0.0625 + 0.25 + 0.5625) / 3)
    # bins of 15: 0.5 falls into (7/15, 8/15] with one of two right, 1.0 into the last, right
    assert ece(probs, targets).item() == pytest.approx((2 * abs(0.5 - 0.5) + 0) / 3)


@pytest.mark.parametrize(("dtype", "cost"), [(torch.float32, 87.3365447), (torch.float64, 708.396418532264)])
def test_a_target_ruled_out_costs_a_finite_amount(dtype, cost):
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype)
    assert nll(probs, torch.tensor([1, 1])).item() == pytest.approx(cost / 2)
    assert nll(probs, torch.tensor([0, 1])).item() == 0.0
    assert brier(probs, torch.tensor([1, 0])).item() == 2.0
    assert ece(probs, torch.tensor([1, 0])).item() == 1.0


@settings(deadline=None)
@given(problems())
def test_bounds(problem):
    probs, targets = problem
    assert 0.0 <= accuracy(probs, targets).item() <= 1.0
    assert 0.0 <= brier(probs, targets).item() <= 2.0 + 1e-6
    assert 0.0 <= ece(probs, targets).item() <= 1.0 + 1e-6
    assert 0.0 <= nll(probs, targets).item() <= 708.5
    assert all(metric(probs, targets).dtype == torch.float64 for metric in METRICS)


@settings(deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_nor_the_order_of_classes(problem, random):
    probs, targets = problem
    rows = torch.tensor(random.sample(range(len(targets)), len(targets)))
    names = torch.tensor(random.sample(range(probs.shape[1]), probs.shape[1]))
    renamed = torch.empty_like(probs)
    renamed[:, names] = probs
    tied = (probs == probs.max(1, keepdim=True).values).sum(1).max() > 1
    for metric in METRICS:
        expected = metric(probs, targets)
        torch.testing.assert_close(metric(probs[rows], targets[rows]), expected, rtol=1e-9, atol=1e-12)
        if tied and metric in (accuracy, ece):
            continue  # a tie goes to the first class, whichever that is
        torch.testing.assert_close(metric(renamed, names[targets]), expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(problems())
def test_a_perfect_and_sure_prediction_has_no_error(problem):
    _, targets = problem
    probs = torch.nn.functional.one_hot(targets, 6).float()
    assert accuracy(probs, targets).item() == 1.0
    assert nll(probs, targets).item() == brier(probs, targets).item() == ece(probs, targets).item() == 0.0


def slow_bins(probs, targets, num_bins):
    """Counts, confidences and accuracies by a loop over rows and bins."""
    rows = [[] for _ in range(num_bins)]
    for row, target in zip(probs.tolist(), targets.tolist(), strict=True):
        confidence = max(row)
        place = next(b for b in range(num_bins) if confidence <= (b + 1) / num_bins or b == num_bins - 1)
        rows[place].append((confidence, float(row.index(confidence) == target)))
    return rows


@settings(deadline=None)
@given(problems(), st.integers(1, 20))
def test_bins_against_a_loop(problem, num_bins):
    probs, targets = problem[0].double(), problem[1]
    bins, expected = reliability_bins(probs, targets, num_bins=num_bins), slow_bins(probs, targets, num_bins)
    assert bins.count.tolist() == [len(rows) for rows in expected]
    error = 0.0
    for place, rows in enumerate(expected):
        confidence = sum(c for c, _ in rows) / len(rows) if rows else 0.0
        right = sum(r for _, r in rows) / len(rows) if rows else 0.0
        assert bins.confidence[place].item() == pytest.approx(confidence)
        assert bins.accuracy[place].item() == pytest.approx(right)
        error += len(rows) / len(targets) * abs(right - confidence)
    assert ece(probs, targets, num_bins=num_bins).item() == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_edge_belongs_to_the_bin_below_it(dtype):
    edges = torch.tensor([8 / 15, 9 / 15, 12 / 15, 1.0], dtype=dtype)
    bins = reliability_bins(torch.stack([edges, 1 - edges], 1), torch.zeros(4, dtype=torch.long))
    assert bins.count.nonzero().flatten().tolist() == [7, 8, 11, 14]


def test_ece_has_fifteen_bins_and_finds_overconfidence():
    assert len(reliability_bins(*random_problem(0)).count) == 15
    gen = torch.Generator().manual_seed(0)
    sure = torch.full((100_000,), 0.9, dtype=torch.float64)
    probs = torch.stack([sure, 1 - sure], 1)
    calibrated = (torch.rand(100_000, generator=gen) > 0.9).long()
    overconfident = (torch.rand(100_000, generator=gen) > 0.7).long()
    assert ece(probs, calibrated).item() < 0.005
    assert ece(probs, overconfident).item() == pytest.approx(0.2, abs=0.01)


scores = st.lists(
    st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]) | st.floats(-1e6, 1e6), min_size=1, max_size=40
)


@settings(deadline=None)
@given(scores, scores)
def test_auroc_against_scikit_learn_and_by_counting_pairs(positive, negative):
    found = auroc(
        torch.tensor(positive, dtype=torch.float64), torch.tensor(negative, dtype=torch.float64)
    ).item()
    labels = [1] * len(positive) + [0] * len(negative)
    assert found == pytest.approx(roc_auc_score(labels, positive + negative), abs=1e-12)
    wins = sum((p > q) + 0.5 * (p == q) for p in positive for q in negative)
    assert found == pytest.approx(wins / (len(positive) * len(negative)), abs=1e-12)


def test_auroc_extremes():
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0, 4.0])
    assert auroc(high, low).item() == 1.0
    assert auroc(low, high).item() == 0.0
    assert auroc(torch.ones(5), torch.ones(7)).item() == 0.5


def test_arguments_are_not_changed():
    probs, targets = random_problem(0)
    before = probs.clone(), targets.clone()
    for metric in METRICS:
        metric(probs, targets)
    auroc(probs[:, 0], probs[:, 1])
    assert torch.equal(probs, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("metric", [*METRICS, reliability_bins])
@pytest.mark.parametrize(
    ("probs", "targets", "error", "message"),
    [
        ([[float("nan"), 1.0]], [0], NonFiniteError, r"probs holds 1 values .* the first at \(0, 0\)"),
        ([[0.5, 0.5], [float("inf"), 0.0]], [0, 0], NonFiniteError, r"first at \(1, 0\)"),
        ([0.5, 0.5], [0], PreconditionError, r"probs must be \(n, c\) .* got \(2,\)"),
        ([[0.5, 0.5]], [0, 1], PreconditionError, r"targets must be \(1,\), .* got \(2,\)"),
        ([[0.5, 0.5]], [[0]], PreconditionError, r"targets must be \(1,\), .* got \(1, 1\)"),
        ([[0.5, 0.5]], [2], PreconditionError, r"class ids from 0 to 1, got ids from 2 to 2"),
        ([[0.5, 0.5]], [-1], PreconditionError, r"class ids from 0 to 1, got ids from -1"),
        ([[0.5, 0.5]], [0.0], PreconditionError, r"whole class ids \(int64\), got torch.float32"),
        ([[3.0, -2.0]], [0], PreconditionError, r"smallest entry is -2 .* apply softmax"),
        ([[0.7, 0.7]], [0], PreconditionError, r"one row sums to 1.4; apply softmax"),
        ([[1, 0]], [0], PreconditionError, r"floating-point probabilities, got torch.int64"),
    ],
)
def test_refusals(metric, probs, targets, error, message):
    with pytest.raises(error, match=message):
        metric(torch.tensor(probs), torch.tensor(targets))


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_are_refused(metric):
    with pytest.raises(PreconditionError, match=r"at least one of each, got \(0, 3\)"):
        metric(torch.empty(0, 3), torch.empty(0, dtype=torch.long))


def test_refusals_of_bins_and_scores():
    with pytest.raises(PreconditionError, match="num_bins must be at least 1, got 0"):
        ece(*random_problem(0), num_bins=0)
    with pytest.raises(PreconditionError, match="scores_negative must be"):
        auroc(torch.ones(2), torch.empty(0))
    with pytest.raises(PreconditionError, match="scores_positive must be"):
        auroc(torch.ones(2, 2), torch.ones(2))
    with pytest.raises(NonFiniteError, match="scores_negative holds 1"):
        auroc(torch.ones(2), torch.tensor([1.0, float("nan")]))
