"""Which rows are in which batch of which round."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hqde.training import Order, count_batches, epoch_batches
from hqde.weights import Weights


def order_of(num_rows: int, **changes) -> Order:
    """An order for rows 100, 101, …; nothing but its batches is looked at."""
    plain = Order(
        worker_id=0,
        round_index=1,
        attempt=0,
        epoch=1,
        start=Weights(torch.empty(0), torch.empty(0, dtype=torch.int64)),
        keep_buffers=False,
        fresh_optimizer=False,
        shard=100 + torch.arange(num_rows),
        first_batch=0,
        num_batches=None,
        progress=(0.0, 1.0),
    )
    return replace(plain, **changes)


@settings(deadline=None)
@given(num_rows=st.integers(1, 60), batch_size=st.integers(1, 12), seed=st.integers(0, 99))
def test_an_epoch_s_batches_hold_each_row_once_but_for_a_single_last_one(num_rows, batch_size, seed):
    batches = list(epoch_batches(order_of(num_rows), seed=seed, batch_size=batch_size))
    assert len(batches) == count_batches(num_rows, batch_size)
    rows = torch.cat(batches).tolist()
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(100, 100 + num_rows))
    leftover = num_rows % batch_size == 1 and batch_size > 1 and num_rows > 1
    assert len(rows) == num_rows - leftover
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if batch_size > 1 and num_rows > 1:
        assert len(batches[-1]) > 1


@settings(deadline=None)
@given(num_rows=st.integers(1, 60), batch_size=st.integers(1, 12), every=st.integers(1, 6))
def test_rounds_of_some_steps_share_out_the_epoch(num_rows, batch_size, every):
    whole = list(epoch_batches(order_of(num_rows), seed=0, batch_size=batch_size))
    parts: list[Tensor] = []
    for first in range(0, len(whole), every):
        parts += epoch_batches(
            order_of(num_rows, first_batch=first, num_batches=every), seed=0, batch_size=batch_size
        )
    assert all(torch.equal(part, batch) for part, batch in zip(parts, whole, strict=True))


def test_the_data_order_depends_on_worker_epoch_and_seed_alone():
    def rows(seed: int = 0, **changes) -> list[int]:
        return torch.cat(list(epoch_batches(order_of(40, **changes), seed=seed, batch_size=8))).tolist()

    usual = rows()
    assert usual != sorted(usual)
    assert rows(round_index=9, attempt=2, progress=(0.5, 0.6)) == usual
    for other in (rows(worker_id=1), rows(epoch=2), rows(seed=1)):
        assert other != usual
        assert sorted(other) == sorted(usual)


def test_batch_normalisation_trains_on_a_shard_that_leaves_one_row_over(tabular):
    update = tabular.worker(batch_size=12).train_round(tabular.order(shard=torch.arange(13)))
    assert update.num_samples == 12
    assert torch.isfinite(update.delta).all()
