"""Compression at rest: sizes on the disk, what is evaluated is what is loaded, and what is refused."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hqde.checkpoints import read_bundle, write_bundle
from hqde.compression import PackedCodec, decode
from hqde.data import Normalization, Schema, as_examples
from hqde.ensemble import Ensemble, Member, compress_ensemble, describe_storage, pack_weights
from hqde.ensemble.compressing import share_bits
from hqde.ensemble.low_memory import PackedParameter, keep_packed
from hqde.ensemble.packed_weights import quantisable
from hqde.ensemble.recentring import observe
from hqde.ensemble.sensitivity import divergence, measure_sensitivity, sample_rows
from hqde.errors import ArtefactError, ConfigError, NonFiniteError, PreconditionError
from hqde.models import ModelSpec, model_spec
from hqde.seeding import seeded

FIRST = "body.4.weight"


class Tangled(nn.Module):
    """Weights in all the places that make decoding at the last moment hard: tied, in an RNN, borrowed."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width, bias=False)
        self.recurrent = nn.LSTM(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.tables = nn.ParameterList([torch.randn(width, width) / width**0.5])
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.borrowed = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("grid", torch.arange(5000.0) + 0.25)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(x).unsqueeze(1)
        hidden = self.recurrent(hidden)[0] + hidden
        hidden = (self.attention(hidden, hidden, hidden)[0] + hidden).squeeze(1)
        hidden = self.second(torch.relu(self.first(hidden @ self.tables[0])))
        hidden = nn.functional.linear(hidden, self.borrowed.weight)
        return self.head(self.norm(hidden)) + self.grid[0]


def tangled(seed: int = 0) -> Ensemble:
    spec = ModelSpec(f"{Tangled.__module__}:Tangled", {}, Tangled)
    schema = Schema("classification", "tabular", ("a", "b", "c"), (8,))
    with seeded(seed, "tangled"):
        model = spec.build()
        for _ in range(3):
            model(torch.randn(32, 8))
    return Ensemble([Member(0, spec, model)], schema=schema, normalization=Normalization.identity())


def wide(loss: str | None = None, *, num_members: int = 2) -> Ensemble:
    """MLPs whose first layers matter more than their last."""
    regression = loss is not None
    outputs = {"mse": 1, "gaussian_nll": 2}.get(loss or "", 3)
    schema = Schema(
        "regression" if regression else "classification",
        "tabular",
        () if regression else ("a", "b", "c"),
        (20,),
    )
    spec = model_spec("mlp", input_shape=(20,), num_outputs=outputs, options={"hidden": [64, 128, 64]})
    members = []
    for index in range(num_members):
        with seeded(0, "wide", index):
            members.append(Member(index, spec, spec.build(), score=1.0))
            members[-1].model.train()
            for _ in range(3):
                members[-1].model(torch.randn(64, 20))
            members[-1].model.eval()
    return Ensemble(members, schema=schema, normalization=Normalization.identity(), loss=loss)


def labelled(ensemble: Ensemble, rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with what the ensemble says about them, and one in ten wrong."""
    inputs = torch.randn(rows, 20, generator=torch.Generator().manual_seed(5))
    targets = ensemble.predict(inputs)
    if ensemble.schema.task == "classification":
        targets[::10] = (targets[::10] + 1) % 3
    return inputs, targets


def directory_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


@pytest.mark.parametrize("bits", [2, 2.7, 4, 16])
def test_what_is_evaluated_is_what_is_loaded_whichever_way(tmp_path, bits):
    whole = wide()
    x, _ = labelled(whole)
    small = whole.compress(bits)
    small.save(tmp_path / "a")
    plain, packed = Ensemble.load(tmp_path / "a"), Ensemble.load(tmp_path / "a", low_memory=True)
    for loaded in (plain, packed):
        assert torch.equal(loaded.predict_members(x), small.predict_members(x))
        loaded.save(tmp_path / "b")
        for file in (tmp_path / "a").iterdir():
            assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_the_old_ensemble_is_untouched_and_the_new_one_shares_nothing_with_it():
    whole = wide()
    before = {k: v.clone() for k, v in whole.members[0].model.state_dict().items()}
    small = whole.compress(2)
    assert all(torch.equal(v, before[k]) for k, v in whole.members[0].model.state_dict().items())
    assert not torch.equal(small.members[0].model.state_dict()[FIRST], before[FIRST])
    assert "at_rest" not in whole.provenance
    assert small.provenance["at_rest"] == {"bits": 2.0}
    own = {p.data_ptr() for p in whole.members[0].model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in small.members[0].model.parameters())


@given(
    shapes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4),
    bits=st.floats(2, 16),
)
@settings(max_examples=25, deadline=None)
def test_the_average_is_met_whatever_the_tensors(shapes, bits):
    draws = torch.Generator().manual_seed(0)
    tensors = {str(i): torch.randn(*shape, generator=draws) * 10.0**i for i, shape in enumerate(shapes)}
    widths = share_bits(tensors, bits, dict.fromkeys(tensors, 1.0))
    blocks = {name: -(-tensor.numel() // 128) for name, tensor in tensors.items()}
    spent = sum(widths[name] * blocks[name] for name in tensors)
    assert abs(spent - bits * sum(blocks.values())) <= 0.5 + 1e-6
    for name, tensor in tensors.items():
        PackedCodec(bits=widths[name]).encode(tensor.reshape(-1))  # a tensor's average is one the codec takes


def test_bits_go_where_they_are_worth_most():
    tensors = {"a": torch.randn(64, 128), "b": torch.randn(64, 128)}
    equal = share_bits(tensors, 4, {"a": 1.0, "b": 1.0})
    assert abs(equal["a"] - equal["b"]) < 0.1
    skewed = share_bits(tensors, 4, {"a": 16.0, "b": 1.0})
    assert skewed["a"] - skewed["b"] == pytest.approx(2.0, abs=0.4)  # an error 4 times smaller
    louder = share_bits({"a": 4 * tensors["a"], "b": tensors["b"]}, 4, {"a": 1.0, "b": 1.0})
    assert louder["a"] - louder["b"] == pytest.approx(2.0, abs=0.4)


def test_the_saved_directory_has_the_bytes_that_were_announced(tmp_path):
    whole = wide()
    whole.save(tmp_path / "whole")
    found = compress_ensemble(whole, bits=4)
    found.ensemble.save(tmp_path / "small")
    assert directory_bytes(tmp_path / "small") == found.nbytes
    held = sum(member.packed.nbytes for member in found.ensemble.members)
    files = sum(file.stat().st_size for file in (tmp_path / "small").glob("*.safetensors"))
    assert held < files < held + 2000
    numbers = 64 * 128 * 2 + 20 * 64
    assert (
        sum(r.numbers for r in describe_storage(found.ensemble.members) if r.kind == "Linear") == 2 * numbers
    )
    assert found.bits == 4.0


def test_four_bits_are_a_seventh_of_a_network_whose_weights_are_most_of_it(tmp_path):
    spec = model_spec("cnn", input_shape=(3, 32, 32), num_outputs=10)
    schema = Schema("classification", "image", tuple("abcdefghij"), (3, 32, 32))
    whole = Ensemble(
        [Member(i, spec, spec.build()) for i in range(2)],
        schema=schema,
        normalization=Normalization.identity(),
    )
    whole.save(tmp_path / "whole")
    whole.compress(4).save(tmp_path / "small")
    assert directory_bytes(tmp_path / "whole") / directory_bytes(tmp_path / "small") >= 7.0


@pytest.mark.parametrize("budget", [30_000, 26_123, 40_000, 10**9])
def test_a_budget_is_met_and_used(tmp_path, budget):
    found = compress_ensemble(wide(), budget_bytes=budget)
    found.ensemble.save(tmp_path / "small")
    assert directory_bytes(tmp_path / "small") <= budget
    assert found.bits == 16.0 or directory_bytes(tmp_path / "small") > budget - 400


def test_a_budget_below_the_smallest_names_the_smallest(tmp_path):
    smallest = compress_ensemble(wide(), bits=2).nbytes
    with pytest.raises(PreconditionError, match=f"{smallest} bytes and the budget is 900: allow at least"):
        wide().compress(budget_bytes=900)
    assert compress_ensemble(wide(), budget_bytes=smallest).nbytes == smallest


def test_the_search_keeps_the_accuracy_and_looks_no_more_often_than_it_says(monkeypatch):
    whole = wide()
    data = labelled(whole)
    looked = []
    original = Ensemble.evaluate
    monkeypatch.setattr(Ensemble, "evaluate", lambda *a, **k: looked.append(1) or original(*a, **k))
    steps: list[tuple[str, int, int]] = []
    found = compress_ensemble(
        whole, max_accuracy_loss=0.02, data=data, on_progress=lambda *step: steps.append(step)
    )
    assert found.after.accuracy >= found.before.accuracy - 0.02
    assert found.after == original(found.ensemble, data)
    assert 2 <= found.bits < 8
    assert len(looked) <= 2 + 8
    searched = [step for step in steps if step[0] == "search"]
    assert all(0 <= done < total for _, done, total in searched)
    again = compress_ensemble(whole, max_accuracy_loss=0.02, data=data)
    assert (again.bits, again.nbytes) == (found.bits, found.nbytes)
    looser = compress_ensemble(whole, max_accuracy_loss=0.9, data=data)
    assert (looser.bits, looser.nbytes) == (2.0, compress_ensemble(whole, bits=2).nbytes)


@pytest.mark.parametrize("loss", ["mse", "gaussian_nll"])
def test_for_regression_the_error_may_grow_by_so_much(loss):
    whole = wide(loss)
    x, y = labelled(whole)
    y = y + torch.randn(len(y), generator=torch.Generator().manual_seed(1)) * 0.05
    found = compress_ensemble(whole, max_accuracy_loss=0.1, data=(x, y))
    assert found.after.rmse <= found.before.rmse * 1.1 + 1e-9
    assert found.nbytes < compress_ensemble(whole, bits=16).nbytes


def test_an_accuracy_out_of_reach_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr("hqde.ensemble.compressing.accuracy_loss", lambda before, after: 0.25)
    whole = wide()
    with pytest.raises(PreconditionError, match=r"even 16 bits lose 0.25.* on 200 rows, and at most 0.1"):
        whole.compress(max_accuracy_loss=0.1, data=labelled(whole))


def test_a_tensor_that_matters_more_is_found_to():
    whole = wide(num_members=1)
    member = whole.members[0]
    inputs = sample_rows(as_examples(labelled(whole), task="classification"))
    weights = quantisable(member.model)
    found = measure_sensitivity(whole, member, weights, inputs)
    assert set(found) == set(weights)
    state = member.model.state_dict()
    for name in weights:  # by hand: the same errors, one tensor at a time
        flat, ratios = state[name].reshape(-1).clone(), []
        for bits in (2, 4):
            rough = decode(PackedCodec(bits=bits, allocation="uniform").encode(flat))
            clean = whole.predict_members(inputs)[0]
            state[name].copy_(rough.view(state[name].shape))
            moved = whole.predict_members(inputs)[0]
            state[name].copy_(flat.view(state[name].shape))
            kl = (clean.double() * (clean.double() / moved.double()).log()).sum(1).mean()
            ratios.append(float(kl / (rough - flat).square().sum()))
        assert found[name] == pytest.approx((ratios[0] * ratios[1]) ** 0.5, rel=0.02)


def test_with_rows_the_means_of_layers_stay_and_predictions_move_less(monkeypatch):
    whole = wide()
    data = labelled(whole)
    x = torch.randn(1000, 20, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        for member in whole.members:
            member.model.body[4].bias.add_(1.0)  # activations far from zero on average
    moved = {}
    for name in ("moved back", "left"):
        small = whole.compress(3, data=data)
        pairs = zip(whole.predict_members(x), small.predict_members(x), strict=True)
        moved[name] = sum(divergence(before, after, loss="cross_entropy") for before, after in pairs)
        monkeypatch.setattr("hqde.ensemble.compressing.recentre", lambda *_: None)
    assert moved["moved back"] < 0.7 * moved["left"]


def test_few_rows_move_nothing_and_shared_biases_stay():
    whole = wide()
    inputs, targets = labelled(whole)
    small = whole.compress(3, data=(inputs[:8], targets[:8]))
    for old, new in zip(whole.members, small.members, strict=True):
        torch.testing.assert_close(new.model.body[0].bias, old.model.body[0].bias, rtol=1e-3, atol=1e-6)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    model[1].bias = model[0].bias
    assert list(observe(model, lambda: model(torch.ones(4, 3)))) == ["2"]


def test_divergences_by_hand():
    half, skewed = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    assert divergence(half, half, loss="cross_entropy") == pytest.approx(0.0, abs=1e-12)
    assert divergence(skewed, half, loss="cross_entropy") == pytest.approx(0.6931, abs=1e-4)
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
    assert divergence(a, b, loss="mse") == 4.0
    assert divergence(a, b, loss="gaussian_nll") == pytest.approx(1.0)  # (μ - μ')² / 2σ²


def test_tied_borrowed_recurrent_and_odd_tensors_survive(tmp_path):
    whole = tangled()
    x = torch.randn(50, 8)
    small = whole.compress(5)
    packed = small.members[0].packed
    assert packed.aliases == {"second.weight": "first.weight"}
    assert {"grid", "mask", "norm.num_batches_tracked"}.isdisjoint(packed.names)  # not exact as float16
    assert {"norm.running_mean", "norm.running_var", "norm.weight", "head.weight"} <= set(packed.halved)
    small.save(tmp_path / "a")
    models = {f"{Tangled.__module__}:Tangled": Tangled}
    for low_memory in (False, True):
        loaded = Ensemble.load(tmp_path / "a", model_class=models, low_memory=low_memory)
        assert torch.equal(loaded.predict_members(x), small.predict_members(x))
        state = loaded.members[0].model.state_dict()
        assert torch.equal(state["grid"], torch.arange(5000.0) + 0.25)
        assert torch.equal(state["second.weight"], state["first.weight"])
    model = loaded.members[0].model
    lazy = {
        type(dict.__getitem__(m._parameters, "weight")) for m in (model.first, model.second, model.borrowed)
    }
    assert lazy == {PackedParameter}
    held = weakref.ref(model.first.weight)
    assert held() is None  # nobody keeps it
    one = model.first.weight
    assert model.second.weight is one
    assert isinstance(model.recurrent._parameters["weight_ih_l0"], nn.Parameter)
    assert not isinstance(dict.__getitem__(model.recurrent._parameters, "weight_ih_l0"), PackedParameter)
    files = read_bundle(tmp_path / "a").tensors["member-000"]
    assert "first.weight.packet" in files
    assert "second.weight.packet" not in files


def test_statistics_that_float16_would_spoil_stay_whole():
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))
    model[1].running_var[:] = torch.logspace(-9, 4, 32)
    model[1].running_mean[:] = torch.linspace(1, 2, 32)
    packed = pack_weights(model, {"0.weight": 4.0})
    assert "1.running_var" not in packed.names
    assert "1.running_mean" in packed.halved
    lost = (packed.decode()["1.running_mean"] - model[1].running_mean).abs() / model[1].running_mean
    assert float(lost.max()) <= 2**-10


def test_with_low_memory_only_the_layer_at_work_is_decoded(tmp_path, monkeypatch):
    whole = wide(num_members=3)
    whole.compress(4).save(tmp_path / "a")
    loaded = Ensemble.load(tmp_path / "a", low_memory=True)
    decoded: list[weakref.ref[nn.Parameter]] = []
    original = PackedParameter.decode

    def watched(self):
        assert all(reference() is None for reference in decoded)  # those of the layers before are gone
        parameter = original(self)
        decoded.append(weakref.ref(parameter))
        return parameter

    monkeypatch.setattr(PackedParameter, "decode", watched)
    loaded.predict_members(labelled(whole, rows=10)[0])
    assert len(decoded) == 3 * 3  # one look-up for each layer
    assert all(reference() is None for reference in decoded)


def test_a_model_with_packed_weights_takes_no_others_and_copies_as_an_ordinary_one(tmp_path):
    whole = wide(num_members=1)
    x, _ = labelled(whole)
    whole.compress(4).save(tmp_path / "a")
    loaded = Ensemble.load(tmp_path / "a", low_memory=True)
    with pytest.raises(PreconditionError, match="load it without low_memory"):
        loaded.members[0].model.load_state_dict(whole.members[0].model.state_dict())
    fast = loaded.for_inference("fp32")
    assert fast.members[0].packed is None
    assert torch.equal(
        fast.predict_members(x), Ensemble.load(tmp_path / "a").for_inference("fp32").predict_members(x)
    )
    loaded.to("cpu")
    assert torch.equal(loaded.predict_members(x), Ensemble.load(tmp_path / "a").predict_members(x))
    names = [name for name, _ in loaded.members[0].model.named_parameters()]
    assert names == [name for name, _ in whole.members[0].model.named_parameters()]


def test_a_compressed_member_that_was_changed_is_not_saved(tmp_path):
    small = wide().compress(4)
    with torch.no_grad():
        next(p for p in small.members[1].model.parameters() if p.dim() > 1).add_(1e-3)
    with pytest.raises(PreconditionError, match=r"member 1 was compressed and its .* changed since"):
        small.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    small.members[1].packed = None
    small.save(tmp_path / "a")
    assert len(Ensemble.load(tmp_path / "a")) == 2


def test_refusals(tmp_path):
    whole = wide()
    for bits in (1.9, 16.5, float("nan"), -4):
        with pytest.raises(ConfigError, match="2 to 16"):
            whole.compress(bits)
    with pytest.raises(ConfigError, match="bits and budget_bytes contradict"):
        whole.compress(4, budget_bytes=10**6)
    with pytest.raises(PreconditionError, match="labelled rows"):
        whole.compress(max_accuracy_loss=0.01)
    with pytest.raises(ConfigError, match="at least 0 and below 1, got"):
        whole.compress(max_accuracy_loss=1.5, data=labelled(whole))
    with pytest.raises(PreconditionError, match="compressed already"):
        whole.compress(4).compress(3)
    with pytest.raises(PreconditionError, match="0 rows"):
        whole.compress(4, data=(torch.zeros(0, 20), torch.zeros(0, dtype=torch.int64)))
    whole.save(tmp_path / "a")
    with pytest.raises(ArtefactError, match="holds full weights: compress it first"):
        Ensemble.load(tmp_path / "a", low_memory=True)
    with torch.no_grad():
        next(iter(whole.members[1].model.parameters()))[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="member 1"):
        whole.compress(4)


def test_an_ensemble_too_small_to_quantise_is_halved_where_it_can_be(tmp_path, make_ensemble, rows):
    found = compress_ensemble(make_ensemble(), bits=4)
    assert found.bits is None
    found.ensemble.save(tmp_path / "a")
    loaded = Ensemble.load(tmp_path / "a", low_memory=True)
    assert torch.equal(loaded.predict_members(rows), found.ensemble.predict_members(rows))
    assert compress_ensemble(make_ensemble(), budget_bytes=10**6).nbytes == found.nbytes


def _rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Change an artefact and seal it again, as somebody with bad intentions would."""
    bundle = read_bundle(path)
    tensors = {stem: dict(named) for stem, named in bundle.tensors.items()}
    change(bundle.manifest, tensors["member-000"])
    write_bundle(path, manifest=bundle.manifest, tensors=tensors)


def _packed(manifest):
    return manifest["members"][0]["packed"]


def _flip(tensors, name, at):
    tensors[name] = tensors[name].clone()
    tensors[name][at] ^= 255


DAMAGE = {
    "payload": (lambda m, t: _flip(t, f"{FIRST}.packet", 500), "altered"),
    "version": (lambda m, t: _flip(t, f"{FIRST}.packet", 4), "version"),
    "magic": (lambda m, t: _flip(t, "*.packet", 0), "no packet"),
    "cut": (lambda m, t: t.update({f"{FIRST}.packet": t[f"{FIRST}.packet"][:-9]}), "truncated"),
    "empty": (lambda m, t: t.update({f"{FIRST}.packet": t[f"{FIRST}.packet"][:0]}), "truncated"),
    "floats": (lambda m, t: t.update({f"{FIRST}.packet": torch.ones(3)}), "bytes"),
    "gone": (lambda m, t: t.pop(f"{FIRST}.packet"), "is missing"),
    "halves gone": (lambda m, t: t.pop("*.packet"), "is missing"),
    "swapped": (lambda m, t: t.update({f"{FIRST}.packet": t["*.packet"]}), "expected"),
    "other halves": (lambda m, t: t.update({"*.packet": t[f"{FIRST}.packet"]}), "expected"),
    "shape": (lambda m, t: _packed(m).update({FIRST: "F32 1x2"}), "expected"),
    "no text": (lambda m, t: _packed(m).update({FIRST: 4}), "does not say"),
    "list": (lambda m, t: m["members"][0].update(packed=[1]), "does not say"),
    "unknown": (lambda m, t: _packed(m).update({"ghost": "F32 1"}), "unknown"),
    "alias": (lambda m, t: _packed(m).update({FIRST: "= ghost"}), "does not fit"),
    "twice": (lambda m, t: t.update({FIRST: torch.zeros(128, 64)}), "twice"),
    "no longer packed": (lambda m, t: m["members"][0].pop("packed"), "does not fit"),
}


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_packet_is_one_sentence(tmp_path, kind, low_memory):
    wide(num_members=1).compress(4).save(tmp_path / "a")
    change, words = DAMAGE[kind]
    _rewrite(tmp_path / "a", change)
    with pytest.raises(
        ArtefactError, match=words if not low_memory or kind != "no longer packed" else "full"
    ) as found:
        Ensemble.load(tmp_path / "a", low_memory=low_memory).predict_members(torch.zeros(2, 20))
    assert "\n" not in str(found.value)
    assert str(tmp_path / "a") in str(found.value)


def test_a_compressed_artefact_of_a_newer_format_is_refused(tmp_path):
    wide(num_members=1).compress(4).save(tmp_path / "a")
    file = tmp_path / "a" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 2}))
    with pytest.raises(ArtefactError, match="install a newer hqde"):
        Ensemble.load(tmp_path / "a")


def test_a_large_tensor_is_decoded_in_pieces_to_the_same_bits(monkeypatch):
    model = nn.Linear(130, 77)
    whole = pack_weights(model, {"weight": 3.3})
    expected = decode(whole.quantised["weight"]).view(77, 130)
    for piece in (128, 1000, 4096):
        monkeypatch.setattr("hqde.ensemble.packed_weights.PIECE", piece)
        assert torch.equal(whole.decode_one("weight"), expected)


def test_parameters_kept_elsewhere_are_filled(tmp_path):
    model = nn.Sequential(nn.Linear(64, 32))
    held = model[0].weight
    packed = pack_weights(model, {"0.weight": 2.0})
    assert keep_packed(model, packed) == frozenset()
    assert torch.equal(held, packed.decode()["0.weight"])
    assert model[0].weight is held
