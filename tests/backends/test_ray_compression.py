"""Encoded deltas and weights between processes: the local backend's bits, and the bytes that are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hqde.aggregation import make_rule
from hqde.backends import LocalBackend, RaySettings
from hqde.compression import Compression, PackedCodec
from hqde.rounds import FaultPolicy
from hqde.topology import Topology

pytestmark = pytest.mark.ray


def experiment_of(runs, **changes):
    """A model of 3.4 blocks of an aggregation, so that shards are really cut."""
    base = runs.experiment()
    options = {"hidden": [4000, 12], "input_shape": [6], "num_outputs": 2, "norm": "batch"}
    return replace(
        base,
        model=replace(base.model, options=options),
        num_workers=3,
        topology=Topology(groups=1),
        compression=Compression(PackedCodec(bits=4)),
        **changes,
    )


@pytest.mark.parametrize("plan", [pytest.param("flat", marks=pytest.mark.long), "sharded"])
def test_packets_give_the_bits_of_the_local_backend_and_are_counted_where_they_leave(plan, on_ray, runs):
    from hqde.backends.on_ray import RayBackend
    from hqde.backends.on_ray import crew as crews

    seen = []

    class Counting(crews.Crew):
        """Looks into the store: what each order brings and what comes back."""

        def _collect(self, run, *rest):
            update = super()._collect(run, *rest)
            arrays = on_ray.get([*self._start_refs(run.order), *run.pieces])
            assert all(array.dtype == np.uint8 for array in arrays)
            seen.append((run.order.round_index, sum(array.nbytes for array in arrays)))
            return update

    experiment = experiment_of(runs, rule=make_rule("geometric_median", num_byzantine=1))
    backend = RayBackend(RaySettings(plan=plan, num_shards=3), threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hqde.backends.on_ray.backend.Crew", Counting)
        result, recorder = runs.run(backend, experiment)
    expected, local = runs.run(LocalBackend(), experiment)
    runs.assert_same_weights(result, expected)
    integers = result.state.committed[0].integers.nbytes
    for record, same in zip(recorder.records, local.records, strict=True):
        stored = sum(nbytes for number, nbytes in seen if number == record.round)
        assert record.sent_bytes == stored + 2 * 3 * integers
        # Cutting costs a header for each shard, and blocks of 128 that two shards share.
        assert same.sent_bytes <= record.sent_bytes <= 1.05 * same.sent_bytes
    totals = result.state.totals
    assert totals.dense_bytes / totals.sent_bytes > 4  # its wide normalisations stay dense


@pytest.mark.long
def test_a_worker_that_dies_is_sent_the_whole_start_and_the_bits_are_the_same(on_ray, tmp_path, runs):
    from hqde.backends.on_ray import RayBackend
    from hqde.testing.ray_faults import ActorFault, faulty_actor, injected

    actor = faulty_actor([ActorFault(1, 2, "killed_during")], tmp_path)
    experiment = experiment_of(runs, faults=FaultPolicy(patience=3.0))
    result, recorder = runs.run(RayBackend(threads=1, actor_class=actor), experiment)
    expected, local = runs.run(LocalBackend(), experiment)
    assert injected(tmp_path) == Counter({"killed_during": 1})
    runs.assert_same_weights(result, expected)
    rounds = zip(recorder.records, local.records, strict=True)
    more = [ours.sent_bytes - theirs.sent_bytes for ours, theirs in rounds]
    assert more[0] == more[2] == 0
    assert more[1] > 0.7 * result.state.committed[0].vector.nbytes
