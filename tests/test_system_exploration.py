"""``HQDESystem`` with coupled replicas, privacy and snapshots: settings arrive, and stand in the file."""

from __future__ import annotations

import pytest
import torch

from hqde import Elastic, Ensemble, HQDESystem, Privacy, Recipe, Snapshots, Topology
from hqde.aggregation import make_rule
from hqde.config import build_config, load_tree
from hqde.errors import ConfigError


@pytest.fixture
def rows():
    x = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def test_elastic_groups_and_their_snapshots(rows, tmp_path):
    system = HQDESystem(
        "mlp",
        {"hidden": [8]},
        num_workers=4,
        topology=Topology(groups=2, elastic=Elastic(group_pull=0.3, global_pull_end=0.5)),
        recipe=Recipe(cycles=2, batch_size=32),
        snapshots=Snapshots(count=1),
    )
    metrics = system.train(rows, 4, run_dir=tmp_path / "run")
    assert len(system.ensemble) == 2
    assert len(Ensemble.load(tmp_path / "run" / "pool")) == 4
    assert [line["group_pull"] for line in metrics["history"]] == [0.3] * 4
    written = build_config(load_tree(tmp_path / "run" / "config.toml"))
    assert written.topology.elastic == Elastic(group_pull=0.3, global_pull_end=0.5)
    assert written.ensemble.snapshots == Snapshots(count=1)
    assert written.training.cycles == 2


def test_a_private_system_tells_what_it_spent(rows):
    pytest.importorskip("opacus", reason="extra privacy")
    settings = {"num_workers": 6, "norm": "group", "partitioner": "iid", "topology": Topology(groups=1)}
    privacy = Privacy(clip_norm=0.5, noise_multiplier=2.0, delta=0.01)
    system = HQDESystem("mlp", {"hidden": [8]}, **settings, privacy=privacy)
    spent = system.train(rows, 2)["privacy"]
    assert spent["epsilon"] == pytest.approx(privacy.epsilon(2))
    rule = make_rule("multi_krum", num_byzantine=1)
    wrong = HQDESystem("mlp", **settings, privacy=privacy, rule=rule)
    with pytest.raises(ConfigError, match=r"privacy needs aggregation\.rule = 'mean'"):
        wrong.train(rows)
