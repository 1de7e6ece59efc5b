"""A run's state through a bundle and back, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from hqde.checkpoints import Bundle, read_bundle, write_bundle
from hqde.errors import CheckpointError
from hqde.rounds.events import Totals
from hqde.rounds.state import Best, RunState, pack_state, unpack_state
from hqde.training import WorkerState
from hqde.weights import Weights


def weights(seed: int, *, integers: int = 2) -> Weights:
    draws = torch.Generator().manual_seed(seed)
    return Weights(torch.randn(5, generator=draws), torch.randint(99, (integers,), generator=draws))


def full_state() -> RunState:
    return RunState(
        round_index=7,
        groups=((0, 1), (2, 3)),
        committed=(weights(1), weights(2)),
        server=({"m": torch.rand(3), "v": torch.rand(3)}, {"m": torch.rand(3), "v": torch.rand(3)}),
        fresh=frozenset({3, 1}),
        barren=2,
        best=Best(0.1 + 0.2, 5, (weights(3), weights(4))),
        totals=Totals(wall_s=1.5, worker_samples=10**12, rejected=3),
    )


def worker_states() -> dict[int, WorkerState]:
    return {
        worker: WorkerState(
            {"optimizer.0.step": torch.tensor(3.0), "buffers": torch.rand(2)}, 0.9 + worker / 1e9
        )
        for worker in range(4)
    }


def same(left: Weights, right: Weights) -> bool:
    return torch.equal(left.vector, right.vector) and torch.equal(left.integers, right.integers)


def test_a_state_survives_a_checkpoint(tmp_path):
    state, workers = full_state(), worker_states()
    manifest, tensors = pack_state(state, workers)
    write_bundle(tmp_path / "b", manifest=manifest, tensors=tensors)
    found, own = unpack_state(read_bundle(tmp_path / "b"))
    assert (found.round_index, found.groups, found.fresh, found.barren) == (7, ((0, 1), (2, 3)), {1, 3}, 2)
    assert found.totals == state.totals
    assert all(same(one, other) for one, other in zip(found.committed, state.committed, strict=True))
    for one, other in zip(found.server, state.server, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (found.best.loss, found.best.epoch) == (state.best.loss, 5)
    assert all(
        same(one, other) for one, other in zip(found.best.committed, state.best.committed, strict=True)
    )
    assert own.keys() == workers.keys()
    for worker, kept in workers.items():
        assert own[worker].efficiency == kept.efficiency
        assert own[worker].tensors.keys() == kept.tensors.keys()
        assert all(torch.equal(own[worker].tensors[key], kept.tensors[key]) for key in kept.tensors)


def test_what_is_empty_survives_too(tmp_path):
    state = RunState(0, ((0,),), (weights(1, integers=0),), ({},))
    manifest, tensors = pack_state(
        state, {0: WorkerState({"integers": torch.empty(0, dtype=torch.int64)}, 1.0)}
    )
    write_bundle(tmp_path / "b", manifest=manifest, tensors=tensors)
    found, own = unpack_state(read_bundle(tmp_path / "b"))
    assert same(found.committed[0], state.committed[0])
    assert (found.server, found.best, found.fresh, found.totals) == (({},), None, frozenset(), Totals())
    assert own[0].tensors["integers"].dtype == torch.int64


def test_more_than_ten_groups_keep_their_order_and_their_own_tensors():
    count = 12
    state = RunState(
        1,
        tuple((worker,) for worker in range(count)),
        tuple(weights(group) for group in range(count)),
        tuple({"momentum": torch.tensor([float(group)])} for group in range(count)),
        best=Best(1.0, 1, tuple(weights(100 + group) for group in range(count))),
    )
    found, _ = unpack_state(Bundle(*pack_state(state, {})))
    for group in range(count):
        assert same(found.committed[group], weights(group))
        assert same(found.best.committed[group], weights(100 + group))
        assert {key: value.item() for key, value in found.server[group].items()} == {"momentum": float(group)}


def test_the_manifest_is_plain_json():
    manifest, _ = pack_state(full_state(), worker_states())
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest


def test_the_weights_for_a_worker_are_its_group_s_or_the_first_s_while_it_has_none():
    state = full_state()
    assert state.committed_for(1) is state.committed[0]
    assert state.committed_for(2) is state.committed[1]
    assert state.committed_for(9) is state.committed[0]


@pytest.mark.parametrize(
    "missing", ["round_index", "groups", "fresh", "barren", "best", "totals", "efficiency"]
)
def test_a_manifest_that_lacks_something_is_refused_by_name(missing):
    manifest, tensors = pack_state(full_state(), worker_states())
    del manifest[missing]
    with pytest.raises(CheckpointError, match=f"the checkpoint lacks '{missing}'"):
        unpack_state(Bundle(manifest, tensors))


@pytest.mark.parametrize("missing", ["groups", "best", "worker-002"])
def test_tensors_that_are_missing_are_refused(missing):
    manifest, tensors = pack_state(full_state(), worker_states())
    del tensors[missing]
    with pytest.raises(CheckpointError, match=f"the checkpoint lacks '{missing}'"):
        unpack_state(Bundle(manifest, tensors))
