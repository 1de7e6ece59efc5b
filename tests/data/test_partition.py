"""Partitioners: every row where it should be, the same bits for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.balance import split_by_shares
from hqde.data import Bootstrap, Dirichlet, Iid, Replicate, Split, make_partitioner
from hqde.data.partition import PARTITIONERS, _share_out
from hqde.errors import ConfigError, PreconditionError
from hqde.seeding import generator

EVERY_ONE = [make_partitioner(name) for name in PARTITIONERS]
COVER_ONCE = [Split(), Iid(), Dirichlet(0.01), Dirichlet(0.5), Dirichlet(100.0)]


@st.composite
def class_targets(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Class ids, some classes rare or missing, and at most as many workers as rows."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0))
    targets = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    shuffled = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    return shuffled, draw(st.integers(1, min(len(targets), 12)))


@pytest.mark.parametrize("partitioner", EVERY_ONE, ids=PARTITIONERS)
@settings(deadline=None, max_examples=50)
@given(case=class_targets(), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_every_worker_gets_rows_and_the_same_seed_the_same_rows(partitioner, case, seed, epoch):
    targets, num_workers = case
    parts = partitioner.assign(targets, num_workers, epoch=epoch, seed=seed)
    again = partitioner.assign(targets, num_workers, epoch=epoch, seed=seed)
    assert len(parts) == num_workers
    for part, other in zip(parts, again, strict=True):
        assert part.dtype == torch.int64
        assert part.ndim == 1
        assert len(part) > 0
        assert int(part.min()) >= 0
        assert int(part.max()) < len(targets)
        assert torch.equal(part, other)


@pytest.mark.parametrize("partitioner", COVER_ONCE, ids=repr)
@settings(deadline=None, max_examples=50)
@given(case=class_targets(), seed=st.integers(0, 2**40))
def test_every_row_goes_to_exactly_one_worker_and_sizes_differ_by_at_most_one(partitioner, case, seed):
    targets, num_workers = case
    parts = partitioner.assign(targets, num_workers, epoch=1, seed=seed)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(targets)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_replicate_gives_all_rows_in_order_and_each_worker_its_own_tensor():
    first, second = Replicate().assign(torch.zeros(5), 2, epoch=3, seed=9)
    assert torch.equal(first, torch.arange(5))
    first[0] = 4
    assert second[0] == 0


def test_bootstrap_draws_n_rows_with_replacement_differently_for_each_worker():
    first, second = Bootstrap().assign(torch.zeros(2000), 2, epoch=0, seed=0)
    assert len(first) == len(second) == 2000
    # a share 1 - 1/e = 0.632 of the rows is drawn; its standard deviation at n = 2000 is 0.007
    assert 0.60 < len(first.unique()) / 2000 < 0.66
    assert not torch.equal(first, second)


@pytest.mark.parametrize("partitioner", EVERY_ONE, ids=PARTITIONERS)
def test_only_split_depends_on_the_epoch(partitioner):
    targets = torch.arange(300) % 3
    first = torch.cat(partitioner.assign(targets, 4, epoch=0, seed=0))
    later = torch.cat(partitioner.assign(targets, 4, epoch=1, seed=0))
    assert torch.equal(first, later) == (not isinstance(partitioner, Split))


@pytest.mark.parametrize("partitioner", [Split(), Iid(), Dirichlet(), Bootstrap()], ids=repr)
def test_another_seed_gives_other_rows(partitioner):
    targets = torch.arange(300) % 3
    first = partitioner.assign(targets, 4, epoch=0, seed=0)
    other = partitioner.assign(targets, 4, epoch=0, seed=1)
    assert not torch.equal(torch.cat(first), torch.cat(other))


def test_split_lets_each_worker_meet_every_row_over_the_epochs():
    targets = torch.zeros(40)
    seen = torch.cat([Split().assign(targets, 4, epoch=epoch, seed=0)[2] for epoch in range(60)])
    assert len(seen.unique()) == 40


def _class_shares(parts: list[torch.Tensor], targets: torch.Tensor) -> np.ndarray:
    counts = np.array([torch.bincount(targets[part], minlength=10).numpy() for part in parts])
    return counts / counts.sum(axis=1, keepdims=True)


def test_dirichlet_is_skewed_for_small_alpha_and_even_for_large():
    targets = torch.arange(5000) % 10
    skewed = _class_shares(Dirichlet(0.1).assign(targets, 8, epoch=0, seed=0), targets)
    even = _class_shares(Dirichlet(1e4).assign(targets, 8, epoch=0, seed=0), targets)
    assert skewed.max(axis=1).mean() > 0.5
    assert np.abs(even - 0.1).max() < 0.02


def test_dirichlet_workers_hold_the_proportions_drawn_for_them_where_rows_suffice():
    # One worker of two takes half the rows; with mild skew no class runs out, so both follow the same draw.
    targets = torch.arange(20000) % 10
    parts = Dirichlet(50.0).assign(targets, 2, epoch=0, seed=3)
    shares = _class_shares(parts, targets)
    # Dir(50 p) over p = 0.1 has standard deviation sqrt(0.1 * 0.9 / 51) = 0.042
    assert 0.02 < shares.std() < 0.08


def test_shares_are_met_exactly_when_proportions_allow():
    wanted = np.array([[0.75, 0.25], [0.25, 0.75]])
    counts = _share_out(wanted, need=np.array([4, 4]), supply=np.array([4, 4]))
    assert counts.tolist() == [[3, 1], [1, 3]]


def test_a_class_that_all_want_is_shared_and_the_rest_filled_up():
    wanted = np.array([[1.0, 0.0], [1.0, 0.0]])
    counts = _share_out(wanted, need=np.array([3, 3]), supply=np.array([2, 4]))
    assert counts.sum(axis=0).tolist() == [2, 4]
    assert counts.sum(axis=1).tolist() == [3, 3]
    assert counts[:, 0].tolist() == [1, 1]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), num_workers=st.integers(1, 7), num_classes=st.integers(1, 7))
def test_sharing_out_uses_up_need_and_supply_exactly(data, num_workers, num_classes):
    need = np.array(data.draw(st.lists(st.integers(1, 30), min_size=num_workers, max_size=num_workers)))
    cuts = sorted(
        data.draw(
            st.lists(st.integers(0, int(need.sum())), min_size=num_classes - 1, max_size=num_classes - 1)
        )
    )
    supply = np.diff([0, *cuts, int(need.sum())])
    weights = data.draw(
        st.lists(
            st.sampled_from([0.0, 1e-300, 1e-9, 0.1, 1.0]),
            min_size=num_workers * num_classes,
            max_size=num_workers * num_classes,
        )
    )
    wanted = np.array(weights).reshape(num_workers, num_classes)
    total = wanted.sum(axis=1, keepdims=True)
    wanted = np.divide(wanted, total, out=np.zeros_like(wanted), where=total > 0)
    counts = _share_out(wanted, need=need, supply=supply)
    assert (counts >= 0).all()
    assert counts.sum(axis=1).tolist() == need.tolist()
    assert counts.sum(axis=0).tolist() == supply.tolist()


@pytest.mark.parametrize("partitioner", [Split(), Iid()], ids=repr)
@given(num_rows=st.integers(1, 500), data=st.data(), seed=st.integers(0, 2**40))
def test_equal_shares_give_the_bits_of_no_shares_and_of_torchs_even_cut(partitioner, num_rows, data, seed):
    n = data.draw(st.integers(1, num_rows))
    targets = torch.zeros(num_rows)
    plain = partitioner.assign(targets, n, epoch=2, seed=seed)
    shared = partitioner.assign(targets, n, epoch=2, seed=seed, shares=np.full(n, 1 / n))
    name, path = ("split", (2,)) if isinstance(partitioner, Split) else ("iid", ())
    order = torch.randperm(num_rows, generator=generator(seed, "partition", name, *path))
    for part, other, cut in zip(plain, shared, order.tensor_split(n), strict=True):
        assert torch.equal(part, other)
        assert torch.equal(part, cut)


@pytest.mark.parametrize("partitioner", [Split(), Iid()], ids=repr)
@given(num_rows=st.integers(12, 300), speeds=st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_shares_deal_out_every_row_once_and_nobody_is_left_without(partitioner, num_rows, speeds):
    shares = np.array(speeds) / sum(speeds)
    parts = partitioner.assign(torch.zeros(num_rows), len(speeds), epoch=0, seed=0, shares=shares)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(num_rows))
    assert [len(part) for part in parts] == split_by_shares(num_rows, shares)
    assert min(len(part) for part in parts) >= 1


@pytest.mark.parametrize(
    ("partitioner", "why"),
    [
        (Replicate(), "gives every worker all rows"),
        (Bootstrap(), "draws as many rows as there are"),
        (Dirichlet(), "equally many rows"),
    ],
    ids=repr,
)
def test_shares_where_there_is_nothing_to_share_out_are_refused(partitioner, why):
    with pytest.raises(ConfigError, match=f"{why}.*; use split or iid, or no balancer"):
        partitioner.assign(torch.tensor([0, 1]), 2, epoch=0, seed=0, shares=[0.5, 0.5])


def test_shares_must_be_one_for_each_worker():
    with pytest.raises(PreconditionError, match="each of the 2 workers is needed, got 3"):
        Split().assign(torch.zeros(9), 2, epoch=0, seed=0, shares=[0.5, 0.25, 0.25])


def test_dirichlet_refuses_regression():
    with pytest.raises(PreconditionError, match=r"class ids, but targets are torch\.float32"):
        Dirichlet().assign(torch.rand(10), 2, epoch=0, seed=0)


@pytest.mark.parametrize("partitioner", EVERY_ONE, ids=PARTITIONERS)
def test_fewer_samples_than_workers_is_refused_with_both_numbers(partitioner):
    with pytest.raises(PreconditionError, match="3 rows for 4 workers; use at most 3"):
        partitioner.assign(torch.tensor([0, 1, 0]), 4, epoch=0, seed=0)
    with pytest.raises(PreconditionError, match="at least 1, not 0"):
        partitioner.assign(torch.tensor([0, 1, 0]), 0, epoch=0, seed=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive_and_finite(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        make_partitioner("dirichlet", alpha=alpha)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'dirichlet'"):
        make_partitioner("dirichlett")


def test_names_make_what_they_say():
    made = [make_partitioner(name, alpha=2.0) for name in PARTITIONERS]
    assert made == [Replicate(), Split(), Iid(), Dirichlet(2.0), Bootstrap()]
