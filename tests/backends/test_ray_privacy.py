"""A private run on Ray: noise comes to the rows wherever they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hqde.backends import LocalBackend, RaySettings
from hqde.data import Iid
from hqde.rounds import Engine, Privacy
from hqde.testing import small_experiment

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("plan", [pytest.param("tree", marks=pytest.mark.long), "sharded"])
def test_a_release_on_ray_has_the_bits_of_one_process(plan, on_ray):
    pytest.importorskip("opacus", reason="extra privacy")
    from hqde.backends.on_ray import RayBackend

    base = small_experiment(num_workers=5)
    experiment = replace(
        base,
        model=replace(base.model, options=dict(base.model.options) | {"norm": "group"}),
        partitioner=Iid(),
        privacy=Privacy(clip_norm=0.05, noise_multiplier=0.5, delta=1e-3, sample_rate=0.8, key=3),
    )
    expected = Engine(experiment, LocalBackend()).run().state.committed[0]
    backend = RayBackend(RaySettings(plan=plan, fan_in=4, num_shards=2), threads=1)
    found = Engine(experiment, backend).run().state.committed[0]
    assert torch.equal(found.vector, expected.vector)
