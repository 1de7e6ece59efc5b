"""Diversity and uncertainty against loops, numbers by hand, scipy, and what must hold for every ensemble."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

import hqde.metrics.checks
from hqde.errors import NonFiniteError, PreconditionError
from hqde.metrics import (
    disagreement,
    disagreement_matrix,
    double_fault,
    effective_members,
    fidelity_matrix,
    mutual_information,
    pairwise_kl,
    q_statistic,
    uncertainty,
)

UNLABELLED = [
    disagreement_matrix,
    disagreement,
    fidelity_matrix,
    mutual_information,
    pairwise_kl,
    effective_members,
    uncertainty,
]
LABELLED = [q_statistic, double_fault]


def random_members(
    seed: int, num_members: int, num_rows: int = 40, num_classes: int = 4, sharpness: float = 2.0
):
    gen = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(num_members, num_rows, num_classes, generator=gen, dtype=torch.float64)
    return logits.softmax(2), torch.randint(num_classes, (num_rows,), generator=gen)


@st.composite
def ensembles(draw):
    """Members of every sharpness; at 1e4 their probabilities are exact zeros and ones."""
    probs, targets = random_members(
        draw(st.integers(0, 2**31)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 5)),
        draw(st.sampled_from([0.0, 0.5, 3.0, 1e4])),
    )
    return probs.to(draw(st.sampled_from([torch.float32, torch.float64]))), targets


def as_correct(rows: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Members from strings of 1 (right) and 0 (wrong), one character per row of data."""
    right = torch.tensor([[int(mark) for mark in row] for row in rows])
    probs = torch.where(right[..., None] == 1, torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8]))
    return probs, torch.zeros(right.shape[1], dtype=torch.long)


def test_worked_example_of_three_members():
    # pairs ab: N11 2, N10 1, N01 1, N00 2; ac: 1, 2, 0, 3; bc: 0, 3, 1, 2
    probs, targets = as_correct(["111000", "110100", "001000"])
    expected = torch.tensor([[0, 2, 2], [2, 0, 4], [2, 4, 0]], dtype=torch.float64) / 6
    torch.testing.assert_close(disagreement_matrix(probs), expected)
    assert disagreement(probs).item() == pytest.approx((2 + 2 + 4) / 3 / 6)
    assert q_statistic(probs, targets).item() == pytest.approx(((4 - 1) / 5 + 3 / 3 + (0 - 3) / 3) / 3)
    assert double_fault(probs, targets).item() == pytest.approx((2 + 3 + 2) / 3 / 6)


@settings(deadline=None)
@given(ensembles())
def test_diversity_against_loops(ensemble):
    probs, targets = ensemble
    num_members, num_rows, _ = probs.shape
    right = (probs.argmax(2) == targets).tolist()
    chosen = probs.argmax(2).tolist()
    differing, associations, faults = [], [], []
    for i, j in combinations(range(num_members), 2):
        differing.append(sum(a != b for a, b in zip(chosen[i], chosen[j], strict=True)) / num_rows)
        pairs = list(zip(right[i], right[j], strict=True))
        together = pairs.count((True, True)) * pairs.count((False, False))
        apart = pairs.count((True, False)) * pairs.count((False, True))
        associations.append((together - apart) / (together + apart) if together + apart else 0.0)
        faults.append(pairs.count((False, False)) / num_rows)
    if num_members > 1:
        assert disagreement(probs).item() == pytest.approx(sum(differing) / len(differing))
        assert q_statistic(probs, targets).item() == pytest.approx(sum(associations) / len(associations))
        assert double_fault(probs, targets).item() == pytest.approx(sum(faults) / len(faults))


def test_divergence_against_scipy():
    probs, _ = random_members(0, 4)
    found = pairwise_kl(probs)
    for i in range(4):
        for j in range(4):
            expected = entropy(probs[i].numpy(), probs[j].numpy(), axis=1).mean()
            assert found[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_effective_members_against_the_definition_and_by_hand():
    probs, _ = random_members(1, 5)
    flat = probs.flatten(1).tolist()
    overlap = [[sum(math.sqrt(p * q) for p, q in zip(a, b, strict=True)) / 40 for b in flat] for a in flat]
    eigenvalues = torch.linalg.eigvals(torch.tensor(overlap, dtype=torch.float64) / 5).real
    expected = math.exp(-sum(v * math.log(v) for v in eigenvalues.tolist()))
    assert effective_members(probs).item() == pytest.approx(expected, rel=1e-6)
    # two members overlapping by r: eigenvalues (1 ± r) / 2
    pair = torch.tensor([[[1.0, 0.0]], [[0.64, 0.36]]], dtype=torch.float64)
    low, high = 0.1, 0.9
    assert effective_members(pair).item() == pytest.approx(
        math.exp(-low * math.log(low) - high * math.log(high))
    )


@pytest.mark.parametrize("num_members", [1, 2, 7])
def test_members_without_overlap_all_count(num_members):
    probs = torch.eye(num_members)[:, None, :].expand(-1, 3, -1)
    assert effective_members(probs).item() == pytest.approx(num_members)
    assert disagreement(probs).item() == (1.0 if num_members > 1 else 0.0)
    assert uncertainty(probs).epistemic.tolist() == pytest.approx([math.log(num_members)] * 3)


@settings(deadline=None)
@given(ensembles(), st.integers(1, 5))
def test_copies_of_one_member_are_one_member(ensemble, copies):
    probs, targets = ensemble[0][:1].expand(copies, -1, -1), ensemble[1]
    assert disagreement(probs).item() == 0.0
    assert torch.equal(disagreement_matrix(probs), torch.zeros(copies, copies, dtype=torch.float64))
    assert effective_members(probs).item() == pytest.approx(1.0, abs=1e-6)
    assert pairwise_kl(probs).max().item() == pytest.approx(0.0, abs=1e-9)
    assert uncertainty(probs).epistemic.max().item() == pytest.approx(0.0, abs=1e-12)
    error_rate = (probs[0].argmax(1) != targets).double().mean().item()
    assert double_fault(probs, targets).item() == pytest.approx(error_rate)
    assert q_statistic(probs, targets).item() == (1.0 if 0.0 < error_rate < 1.0 else 0.0)


@settings(deadline=None)
@given(ensembles())
def test_bounds(ensemble):
    probs, targets = ensemble
    num_members, num_rows, num_classes = probs.shape
    matrix, divergence, parts = disagreement_matrix(probs), pairwise_kl(probs), uncertainty(probs)
    assert matrix.shape == divergence.shape == (num_members, num_members)
    assert torch.equal(matrix, matrix.T)
    assert ((matrix >= 0) & (matrix <= 1)).all()
    assert divergence.isfinite().all()
    assert (divergence >= 0).all()
    assert not matrix.diagonal().any()
    assert not divergence.diagonal().any()
    assert -1.0 <= q_statistic(probs, targets).item() <= 1.0
    assert 0.0 <= double_fault(probs, targets).item() <= 1.0
    assert 1.0 <= effective_members(probs).item() <= num_members
    for part in parts:
        assert part.shape == (num_rows,)
        assert part.dtype == torch.float64
        assert (part >= 0).all()
    assert (parts.total <= math.log(num_classes) + 1e-6).all()
    assert (parts.epistemic <= math.log(num_members) + 1e-6).all()
    torch.testing.assert_close(parts.total, parts.aleatoric + parts.epistemic, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(ensembles(), st.randoms(use_true_random=False))
def test_the_order_of_members_and_rows_does_not_matter(ensemble, random):
    probs, targets = ensemble
    members = torch.tensor(random.sample(range(probs.shape[0]), probs.shape[0]))
    rows = torch.tensor(random.sample(range(probs.shape[1]), probs.shape[1]))
    mixed = probs[members][:, rows]
    close = {"rtol": 1e-7, "atol": 1e-9}
    for metric in LABELLED:
        torch.testing.assert_close(metric(mixed, targets[rows]), metric(probs, targets), **close)
    for metric in (disagreement, effective_members):
        torch.testing.assert_close(metric(mixed), metric(probs), **close)
    for matrix in (disagreement_matrix, pairwise_kl):
        torch.testing.assert_close(matrix(mixed), matrix(probs)[members][:, members], **close)
    for found, expected in zip(uncertainty(mixed), uncertainty(probs), strict=True):
        torch.testing.assert_close(found, expected[rows], **close)


def test_uncertainty_against_scipy_and_the_mutual_information():
    probs, _ = random_members(2, 5)
    parts = uncertainty(probs)
    mean = probs.mean(0)
    torch.testing.assert_close(parts.total, torch.from_numpy(entropy(mean.numpy(), axis=1)))
    torch.testing.assert_close(parts.aleatoric, torch.from_numpy(entropy(probs.numpy(), axis=2).mean(0)))
    divergence = (probs * (probs / mean).log()).sum(2).mean(0)
    torch.testing.assert_close(parts.epistemic, divergence)


def test_certainty_has_no_entropy_and_uniform_has_log_classes():
    sure = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    assert [part.item() for part in uncertainty(sure)] == [0.0, 0.0, 0.0]
    parts = uncertainty(torch.full((3, 1, 4), 0.25))
    assert parts.total.item() == pytest.approx(math.log(4))
    assert parts.epistemic.item() == pytest.approx(0.0)


def test_opposed_certainties_are_far_apart_by_a_finite_figure():
    opposed = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert pairwise_kl(opposed)[0, 1].item() == pytest.approx(87.3365447)
    assert pairwise_kl(opposed.double())[1, 0].item() == pytest.approx(708.396418532264)


def test_rows_taken_a_few_at_a_time_give_the_same_figures(monkeypatch):
    probs, _ = random_members(3, 3, num_rows=37)
    whole = [metric(probs) for metric in UNLABELLED]
    monkeypatch.setattr(hqde.metrics.checks, "CHUNK_NUMBERS", 60)  # 5 rows of 3 members and 4 classes
    assert len(list(hqde.metrics.checks.row_chunks(probs))) == 8
    for metric, expected in zip(UNLABELLED, whole, strict=True):
        torch.testing.assert_close(metric(probs), expected, rtol=1e-12, atol=1e-14)


def test_a_thousand_members():
    probs, targets = random_members(4, 1000, num_rows=200, num_classes=3, sharpness=0.5)
    probs = probs.float()
    assert 1.0 < effective_members(probs).item() < 1000.0
    # Random guesses of 3 classes agree on a third of the rows.
    assert disagreement(probs).item() == pytest.approx(2 / 3, abs=0.01)
    assert double_fault(probs, targets).item() == pytest.approx(4 / 9, abs=0.05)
    assert q_statistic(probs, targets).item() == pytest.approx(0.0, abs=0.05)
    assert pairwise_kl(probs).shape == (1000, 1000)


@pytest.mark.parametrize("metric", [*UNLABELLED, *LABELLED])
@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        (torch.full((2, 2), 0.5), PreconditionError, r"member_probs must be \(m, n, c\) .* got \(2, 2\)"),
        (torch.empty(0, 2, 2), PreconditionError, r"at least one of each, got \(0, 2, 2\)"),
        (torch.tensor([[[0.5, float("nan")]]]), NonFiniteError, r"member_probs holds 1 values"),
        (torch.tensor([[[2.0, -1.0]]]), PreconditionError, r"apply softmax"),
        (torch.tensor([[[0.6, 0.6]]]), PreconditionError, r"sums to 1.2"),
    ],
)
def test_refusals(metric, probs, error, message):
    arguments = (probs, torch.zeros(1, dtype=torch.long)) if metric in LABELLED else (probs,)
    with pytest.raises(error, match=message):
        metric(*arguments)


@pytest.mark.parametrize("metric", LABELLED)
def test_targets_must_fit_the_members(metric):
    probs, targets = random_members(0, 2)
    with pytest.raises(PreconditionError, match=r"targets must be \(40,\)"):
        metric(probs, targets[:-1])
    with pytest.raises(PreconditionError, match="class ids from 0 to 3"):
        metric(probs, targets + 1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_fidelity_and_mutual_information_are_those_of_plain_loops(seed):
    draws = np.random.default_rng(seed)
    probs = draws.dirichlet(np.ones(4), (3, 6))
    found = fidelity_matrix(torch.from_numpy(probs)).numpy()
    for i in range(3):
        for j in range(3):
            expected = np.mean([sum(np.sqrt(probs[i, n] * probs[j, n])) for n in range(6)])
            assert found[i, j] == pytest.approx(expected, abs=1e-12)
    between = [
        entropy(probs[:, n].mean(0)) - np.mean([entropy(probs[i, n]) for i in range(3)]) for n in range(6)
    ]
    assert float(mutual_information(torch.from_numpy(probs))) == pytest.approx(np.mean(between), abs=1e-12)
    assert 0 <= float(mutual_information(torch.from_numpy(probs))) <= np.log(3)
