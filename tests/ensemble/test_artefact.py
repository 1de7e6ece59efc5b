"""Saving and loading: the same bits, the same files, and nothing damaged accepted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hqde.checkpoints import read_manifest, write_bundle
from hqde.data import Normalization, Schema
from hqde.ensemble import EfficiencyCombiner, Ensemble, Member
from hqde.errors import ArtefactError, PreconditionError
from hqde.models import ModelSpec, model_spec


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("num_members", [1, 3])
def test_predictions_are_the_same_bits_after_loading(
    make_ensemble, rows, pictures, tmp_path, model, num_members
):
    ensemble = make_ensemble(model, num_members=num_members, temperature=1.3)
    data = rows if model == "mlp" else pictures
    ensemble.save(tmp_path / "a")
    loaded = Ensemble.load(tmp_path / "a")
    assert torch.equal(loaded.predict_members(data), ensemble.predict_members(data))
    assert torch.equal(loaded.predict_proba(data), ensemble.predict_proba(data))
    for before, after in zip(ensemble.members, loaded.members, strict=True):
        old, new = before.model.state_dict(), after.model.state_dict()
        assert old.keys() == new.keys()
        assert any("running_var" in name for name in old)
        assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in old)
        counters = [tensor for name, tensor in new.items() if name.endswith("num_batches_tracked")]
        assert counters
        assert all(int(tensor) == 3 and tensor.dtype == torch.int64 for tensor in counters)


def test_everything_else_comes_back(make_ensemble, tmp_path):
    ensemble = make_ensemble(
        loss="gaussian_nll",
        combiner=EfficiencyCombiner(),
        metrics={"rmse": 0.1},
        provenance={"seed": 3, "config": {"epochs": 2}},
    )
    ensemble.save(tmp_path / "a")
    loaded = Ensemble.load(tmp_path / "a")
    for name in (
        "schema",
        "normalization",
        "target_scale",
        "combiner",
        "temperature",
        "loss",
        "metrics",
        "provenance",
    ):
        assert getattr(loaded, name) == getattr(ensemble, name), name
    for before, after in zip(ensemble.members, loaded.members, strict=True):
        for name in ("member_id", "spec", "score", "dropout_rate", "num_parameters"):
            assert getattr(after, name) == getattr(before, name), name
        assert not any(module.training for module in after.model.modules())
    assert loaded.members[0].model.body[3].p == 0.3  # the dropout rate it was built with
    manifest = read_manifest(tmp_path / "a")
    assert manifest["format_version"] == 1
    assert manifest["versions"]["torch"] == torch.__version__
    assert [entry["file"] for entry in manifest["members"]] == [
        f"member-00{index}.safetensors" for index in range(3)
    ]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "manifest.json",
        *(f"member-00{index}.safetensors" for index in range(3)),
    ]


def test_equal_ensembles_are_equal_bytes_and_others_are_not(make_ensemble, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        make_ensemble(seed=seed, temperature=1.1).save(tmp_path / name)
    Ensemble.load(tmp_path / "one").save(tmp_path / "again")
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "other" / file.name).read_bytes() != file.read_bytes()
    assert str(tmp_path) not in (tmp_path / "one" / "manifest.json").read_text()


def test_a_damaged_file_is_refused_in_one_sentence(make_ensemble, tmp_path):
    path = tmp_path / "a"
    make_ensemble().save(path)
    for file in sorted(path.iterdir()):
        raw = file.read_bytes()
        for position in range(0, len(raw), 1 + len(raw) // 60):
            file.write_bytes(raw[:position] + bytes([raw[position] ^ 4]) + raw[position + 1 :])
            with pytest.raises(ArtefactError, match=rf"{file.name}|newer hqde"):
                Ensemble.load(path)
        for length in (0, 1, len(raw) // 2, len(raw) - 1):
            file.write_bytes(raw[:length])
            with pytest.raises(ArtefactError, match=rf"{file.name} .*: copy it again or retrain\.$"):
                Ensemble.load(path)
        file.unlink()
        with pytest.raises(ArtefactError, match=rf"{file.name} is missing: copy it again or retrain\.$"):
            Ensemble.load(path)
        file.write_bytes(raw)
    assert len(Ensemble.load(path)) == 3
    with pytest.raises(ArtefactError, match="nowhere is not there"):
        Ensemble.load(tmp_path / "nowhere")


def rewrite(path: Path, **changes) -> None:
    """A bundle whose hashes fit but whose content does not, as a careful forger would make it."""
    from hqde.checkpoints import read_bundle

    bundle = read_bundle(path)
    write_bundle(path, manifest=bundle.manifest | changes, tensors=bundle.tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "hqde-checkpoint"}, r"no saved ensemble \(its kind is 'hqde-checkpoint'\)"),
        ({"schema": {}}, "describes no ensemble"),
        ({"normalization": {"mean": [0.0], "std": [0.0]}}, "describes no ensemble"),
        ({"combiner": "vote"}, "unknown combiner 'vote'"),
        ({"members": 3}, "describes no ensemble"),
        ({"members": [{"spec": {"name": "mlp", "options": {}}}]}, "describes no ensemble"),
        ({"temperature": "warm"}, "describes no ensemble"),
        ({"temperature": -1.0}, "describes no ensemble"),
        ({"loss": "hinge"}, "describes no ensemble"),
        ({"members": []}, "describes no ensemble"),
    ],
)
def test_a_manifest_that_describes_no_ensemble_is_refused(make_ensemble, tmp_path, changes, message):
    make_ensemble().save(tmp_path / "a")
    rewrite(tmp_path / "a", **changes)
    with pytest.raises(ArtefactError, match=message):
        Ensemble.load(tmp_path / "a")


def test_weights_that_do_not_fit_the_architecture_are_refused(make_ensemble, tmp_path):
    from hqde.checkpoints import read_bundle

    make_ensemble().save(tmp_path / "a")
    bundle = read_bundle(tmp_path / "a")
    state = bundle.tensors["member-001"]
    for change, message in (
        (
            {"head.bias": torch.zeros(4)},
            r"head\.bias is \(4,\) torch\.float32, expected \(3,\) torch\.float32",
        ),
        ({"head.bias": torch.zeros(3).double()}, r"head\.bias is \(3,\) torch\.float64"),
        ({"tail.bias": torch.zeros(4)}, r"tail\.bias is unknown"),
        ({"head.bias": None}, r"head\.bias is missing"),
    ):
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        write_bundle(
            tmp_path / "b", manifest=bundle.manifest, tensors=bundle.tensors | {"member-001": changed}
        )
        with pytest.raises(ArtefactError, match=rf"member-001\.safetensors does not fit .*{message}"):
            Ensemble.load(tmp_path / "b")


class LocalNet(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)


class OtherNet(LocalNet):
    pass


def local_ensemble(*specs: ModelSpec) -> Ensemble:
    return Ensemble(
        [Member(index, spec, spec.build()) for index, spec in enumerate(specs)],
        schema=Schema("classification", "tabular", ("a", "b", "c"), (5,)),
        normalization=Normalization.identity(),
    )


def test_a_class_that_cannot_be_imported_is_given_when_loading(rows, tmp_path):
    spec = ModelSpec("__main__:LocalNet", {"width": 6}, LocalNet)
    ensemble = local_ensemble(spec, spec)
    ensemble.save(tmp_path / "a")
    with pytest.raises(
        ArtefactError,
        match=r"member 0 cannot be built: .*__main__:LocalNet.*Ensemble\.load\(path, model_class=",
    ):
        Ensemble.load(tmp_path / "a")
    for given in (LocalNet, {"__main__:LocalNet": LocalNet}):
        loaded = Ensemble.load(tmp_path / "a", model_class=given)
        assert torch.equal(loaded.predict_members(rows), ensemble.predict_members(rows))
        assert loaded.members[0].spec == spec
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (
        tmp_path / "a" / "manifest.json"
    ).read_bytes()
    with pytest.raises(ArtefactError, match=r"does not fit the architecture|cannot be built"):
        Ensemble.load(tmp_path / "a", model_class=nn.Linear)
    with pytest.raises(ArtefactError, match=r"model_class names \['x:Y'\]"):
        Ensemble.load(tmp_path / "a", model_class={"x:Y": LocalNet})


def test_several_given_classes_are_told_apart(rows, tmp_path):
    ensemble = local_ensemble(
        ModelSpec("__main__:LocalNet", {}, LocalNet), ModelSpec("__main__:OtherNet", {}, OtherNet)
    )
    ensemble.save(tmp_path / "a")
    classes = {"__main__:LocalNet": LocalNet, "__main__:OtherNet": OtherNet}
    loaded = Ensemble.load(tmp_path / "a", model_class=classes)
    assert [type(member.model) for member in loaded.members] == [LocalNet, OtherNet]
    with pytest.raises(ArtefactError, match="give model_class as a dict"):
        Ensemble.load(tmp_path / "a", model_class=nn.Linear)
    with pytest.raises(ArtefactError, match="member 1 cannot be built"):
        Ensemble.load(tmp_path / "a", model_class=LocalNet)


def test_a_class_in_an_importable_module_needs_no_help(rows, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, dropout_rate=0.0):\n"
        "        super().__init__()\n"
        "        self.drop, self.head = nn.Dropout(dropout_rate), nn.Linear(5, 3)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.drop(x))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = model_spec("my_nets:Net", input_shape=(5,), num_outputs=3)
    ensemble = local_ensemble(spec)
    ensemble.save(tmp_path / "a")
    assert torch.equal(Ensemble.load(tmp_path / "a").predict_proba(rows), ensemble.predict_proba(rows))


def test_a_member_that_could_not_be_loaded_is_refused_when_saving(make_ensemble, tmp_path):
    ensemble = make_ensemble()
    ensemble.members[1].model.half()
    with pytest.raises(
        PreconditionError, match=r"member 1 could not be loaded again: .*torch\.float16, expected"
    ):
        ensemble.save(tmp_path / "a")
    ensemble = make_ensemble()
    ensemble.members[0].model.extra = nn.Linear(2, 2)
    with pytest.raises(PreconditionError, match=r"member 0 .*extra\.bias is unknown"):
        ensemble.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_an_artefact_and_nothing_else(make_ensemble, rows, tmp_path):
    make_ensemble(seed=1).save(tmp_path / "a")
    make_ensemble(num_members=2).save(tmp_path / "a")
    assert len(Ensemble.load(tmp_path / "a")) == 2
    (tmp_path / "a" / "README").write_text("mine")
    with pytest.raises(PreconditionError, match="README, which would be lost"):
        make_ensemble().save(tmp_path / "a")


def test_saving_and_loading_leave_the_random_streams_alone(make_ensemble, tmp_path):
    ensemble = make_ensemble()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    ensemble.save(tmp_path / "a")
    Ensemble.load(tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)


CHILD = """
import json, sys
import numpy as np
from hqde.ensemble import Ensemble

ensemble = Ensemble.load(sys.argv[1])
found = ensemble.predict_members(np.load(sys.argv[2]))
heavy = ["pydantic", "typer", "rich", "matplotlib", "pyarrow", "jinja2", "ray", "psutil", "sklearn", "scipy"]
loaded = {name.partition(".")[0] for name in sys.modules}
rooms = ["hqde.training", "hqde.rounds", "hqde.backends", "hqde.cli", "hqde.config"]
np.save(sys.argv[3], found.numpy())
rooms = [room for room in rooms if room in sys.modules]
print(json.dumps({"heavy": sorted(loaded & set(heavy)), "rooms": rooms}))
"""


def test_another_process_predicts_the_same_bits_with_plain_pytorch(make_ensemble, pictures, tmp_path):
    ensemble = make_ensemble("cnn")
    ensemble.save(tmp_path / "a")
    np.save(tmp_path / "x.npy", pictures.numpy())
    expected = ensemble.predict_members(pictures)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, "a", "x.npy", "out.npy"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert np.load(tmp_path / "out.npy").tobytes() == expected.numpy().tobytes()
    assert json.loads(ran.stdout) == {"heavy": [], "rooms": []}
