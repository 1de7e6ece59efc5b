"""Combiners that learn from held-out rows: what holds once fitted, and what each one computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import hqde.ensemble
from hqde.checkpoints import read_manifest
from hqde.ensemble import (
    COMBINERS,
    AutoCombiner,
    EntanglementCombiner,
    FittableCombiner,
    MeanCombiner,
    PluralityCombiner,
    StackingCombiner,
    SuperpositionCombiner,
    WeightedVoteCombiner,
    apply_temperature,
    combiner_settings,
    fit_exponents,
    fit_temperature,
    fit_to_predictions,
    make_combiner,
)
from hqde.ensemble.stacking import SPREADS, choose_spread, simplest
from hqde.errors import ArtefactError, ConfigError, PreconditionError
from hqde.metrics import accuracy, brier, nll

FITTABLE = sorted(name for name, kind in COMBINERS.items() if isinstance(kind(), FittableCombiner))
VOTES = {"plurality", "weighted_vote"}


def pool_of(seed, *, members=4, rows=60, classes=3, skills=None, sure=2.0):
    """(m, n, c) probabilities of members of given skill, and targets (n,)."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=draws)
    members = members if skills is None else len(skills)
    skills = torch.linspace(0.2, 1.5, members) if skills is None else torch.tensor(skills)
    hit = torch.nn.functional.one_hot(targets, classes).float()
    shared = torch.randn(rows, classes, generator=draws)
    own = torch.randn(members, rows, classes, generator=draws)
    logits = skills[:, None, None] * hit + 0.5 * shared + 0.7 * own
    return torch.softmax(sure * logits, dim=2), targets


def test_the_four_that_learn_are_known():
    assert FITTABLE == ["entanglement", "stacking", "superposition", "weighted_vote"]


@pytest.mark.parametrize("name", FITTABLE)
class TestEveryFittedCombiner:
    @settings(max_examples=15, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        members=st.integers(2, 6),
        rows=st.integers(1, 40),
        sure=st.sampled_from([0.1, 2.0, 300.0]),  # the last gives exact zeros and ones
    )
    def test_rows_are_distributions_and_order_does_not_matter(self, name, seed, members, rows, sure):
        probs, targets = pool_of(seed, members=members, rows=rows, sure=sure)
        fitted = make_combiner(name).fit(probs, targets)
        combined = fitted.combine(probs, torch.ones(members))
        assert torch.isfinite(combined).all()
        assert (combined >= 0).all()
        assert (combined.sum(dim=1) - 1).abs().max() <= 1e-6
        order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
        again = make_combiner(name).fit(probs[order], targets)
        torch.testing.assert_close(
            again.combine(probs[order], torch.ones(members)), combined, rtol=1e-3, atol=2e-4
        )

    @pytest.mark.parametrize("copies", [2, 5])
    def test_identical_members_are_returned(self, name, copies):
        probs, targets = pool_of(3, members=1, rows=80)
        same = probs.expand(copies, -1, -1)
        fitted = make_combiner(name).fit(same, targets)
        assert fitted.shares == pytest.approx([1 / copies] * copies, abs=1e-6)
        expected = torch.nn.functional.one_hot(probs[0].argmax(1), 3).float() if name in VOTES else probs[0]
        torch.testing.assert_close(fitted.combine(same, torch.ones(copies)), expected, rtol=1e-5, atol=1e-6)

    def test_a_thousand_members(self, name):
        probs, targets = pool_of(0, members=1000, rows=30)
        fitted = make_combiner(name).fit(probs, targets)
        combined = fitted.combine(probs, torch.ones(1000))
        assert (combined.sum(dim=1) - 1).abs().max() <= 1e-6

    def test_its_settings_and_its_repr_rebuild_it(self, name):
        fitted = make_combiner(name).fit(*pool_of(1))
        assert make_combiner(name, json.loads(json.dumps(combiner_settings(fitted)))) == fitted
        assert eval(repr(fitted), vars(hqde.ensemble)) == fitted

    def test_it_does_not_combine_another_number_of_members(self, name):
        fitted = make_combiner(name).fit(*pool_of(1))
        with pytest.raises(PreconditionError, match="was fitted for 4 members, and there are 3"):
            fitted.combine(torch.full((3, 1, 2), 0.5), torch.ones(3))

    def test_some_of_its_members_share_what_all_had(self, name):
        fitted = make_combiner(name).fit(*pool_of(1))
        some = fitted.of_members([3, 1])
        kept = np.array([fitted.shares[3], fitted.shares[1]])
        assert some.shares == pytest.approx(kept / kept.sum())
        assert make_combiner(name).of_members([0]).shares == ()

    def test_bad_shares_are_refused(self, name):
        for shares in ((0.5, 0.6), (1.5, -0.5), (float("nan"),)):
            with pytest.raises(PreconditionError, match=f"combiner '{name}' are at least 0 and sum to 1"):
                COMBINERS[name](shares=shares)

    def test_better_members_weigh_more(self, name):
        fitted = make_combiner(name).fit(*pool_of(0, rows=2000, skills=[0.2, 0.2, 2.0]))
        assert max(fitted.shares) == fitted.shares[2]


# -- stacking ----------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.5, 2.0]))
def test_exponents_are_those_of_a_slow_solver(seed, spread):
    probs, targets = pool_of(seed, members=3, rows=50)
    logs = probs.double().log().numpy()

    def objective(a):
        odds = np.tensordot(a, logs, axes=1)
        fit = np.log(np.exp(odds).sum(1)) - odds[np.arange(50), targets.numpy()]
        apart = 3 * (a - a.mean()) / spread
        return fit.sum() + (apart**2).sum() / 2 + (a.sum() - 1) ** 2 / 2

    slow = minimize(objective, [1 / 3] * 3, method="SLSQP", bounds=[(0, None)] * 3, tol=1e-12)
    found = fit_exponents(probs, targets, spread=spread).numpy()
    assert objective(found) <= slow.fun + 1e-6
    np.testing.assert_allclose(found, slow.x, atol=2e-3)
    for place in range(3):
        step = np.zeros(3)
        step[place] = 1e-4
        assert objective(found + step) > objective(found) - 1e-9
        assert found[place] < 1e-4 or objective(found - step) > objective(found) - 1e-9


def test_a_spread_of_nothing_leaves_a_temperature():
    probs, targets = pool_of(5, rows=4000)
    found = fit_exponents(probs, targets, spread=0.0)
    assert found.tolist() == pytest.approx([found[0].item()] * 4)
    log_pool = StackingCombiner().combine(probs, torch.ones(4))
    assert 1 / float(found.sum()) == pytest.approx(fit_temperature(log_pool, targets), rel=1e-3)


def test_equal_members_keep_equal_shares_and_different_ones_do_not():
    assert choose_spread(*pool_of(0, rows=400, skills=[1.0] * 5)) <= 0.5
    assert choose_spread(*pool_of(0, rows=400, skills=[0.0, 0.0, 0.0, 2.0])) >= 1.0
    assert choose_spread(*pool_of(0, rows=9)) == 0.0
    assert {choose_spread(*pool_of(seed, rows=60)) for seed in range(4)} <= set(SPREADS)


def test_members_that_know_nothing_give_something_that_can_be_scaled():
    wrong = torch.tensor([[0.0, 1.0]]).expand(2, 500, 2)
    fitted = StackingCombiner().fit(wrong, torch.zeros(500, dtype=torch.long))
    assert fitted.shares == pytest.approx((0.5, 0.5))


def test_stacking_and_its_temperature_are_the_exponents():
    probs, targets = pool_of(2, rows=3000)
    exponents = fit_exponents(probs, targets, spread=choose_spread(probs, targets))
    fitted = StackingCombiner().fit(probs, targets)
    combined = fitted.combine(probs, torch.ones(4))
    assert fit_temperature(combined, targets) == pytest.approx(1 / float(exponents.sum()), rel=4e-2)


def test_fitted_pools_beat_the_mean_on_other_rows_of_a_mixed_pool():
    probs, targets = pool_of(0, members=8, rows=4000, skills=[0.1] * 6 + [1.0, 2.0])
    fit, judge = slice(0, 1000), slice(1000, None)
    losses = {}
    for name in ("mean", "stacking", "entanglement", "superposition"):
        combiner = make_combiner(name)
        if isinstance(combiner, FittableCombiner):
            combiner = combiner.fit(probs[:, fit], targets[fit])
        combined = combiner.combine(probs, torch.ones(8))
        tempered = apply_temperature(combined, fit_temperature(combined[fit], targets[fit]))
        losses[name] = float(nll(tempered[judge], targets[judge]))
    assert losses["stacking"] < 0.9 * losses["mean"]
    assert losses["entanglement"] < 0.9 * losses["mean"]
    assert losses["superposition"] < losses["mean"]


# -- superposition, entanglement, votes --------------------------------------------------------------------


def test_superposition_weighs_by_the_geometric_mean_of_what_was_right():
    probs, targets = pool_of(4)
    fitted = SuperpositionCombiner().fit(probs, targets)
    right = probs[:, torch.arange(60), targets].double().log().mean(dim=1).exp()
    assert fitted.shares == pytest.approx((right / right.sum()).tolist(), rel=1e-6)
    assert 0.0 <= fitted.coherence <= 1.0
    assert SuperpositionCombiner(coherence=0.0, shares=fitted.shares).combine(
        probs, torch.ones(4)
    ).sum() == pytest.approx(60, abs=1e-4)
    with pytest.raises(PreconditionError, match=r"between 0 and 1, got 1\.5"):
        SuperpositionCombiner(coherence=1.5)


def test_entanglement_has_the_least_brier_score_of_linear_pools_it_was_shrunk_to():
    probs, targets = pool_of(0, rows=5000, skills=[0.5, 0.6, 1.0, 1.1])
    fitted = EntanglementCombiner().fit(probs, targets)
    best = float(brier(fitted.combine(probs.double(), torch.ones(4)), targets))
    assert best < float(brier(MeanCombiner().combine(probs.double(), torch.ones(4)), targets))
    draws = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = torch.rand(4, generator=draws).double().pow(3)
        pooled = torch.tensordot(other / other.sum(), probs.double(), dims=1)
        assert float(brier(pooled, targets)) > best - 1e-5  # the shrinkage is slight with so many rows


def test_entanglement_mixes_normals():
    draws = torch.Generator().manual_seed(0)
    truth = torch.randn(500, generator=draws)
    means = truth + torch.tensor([[0.3], [1.0]]) * torch.randn(2, 500, generator=draws)
    normals = torch.stack([means, torch.ones(2, 500)], dim=2)
    fitted = EntanglementCombiner().fit(normals, truth)
    assert fitted.shares[0] == pytest.approx(1 / (1 + 0.09), abs=0.03)  # 1/σ² each, if errors are independent


def test_votes_by_hand():
    probs = torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]], [[0.0, 1.0]], [[0.2, 0.8]]])
    assert PluralityCombiner().combine(probs, torch.ones(4)).tolist() == [[0.5, 0.5]]
    weighted = WeightedVoteCombiner((0.4, 0.3, 0.2, 0.1)).combine(probs, torch.ones(4))
    assert weighted.tolist() == [pytest.approx([0.7, 0.3])]
    # Right in 3 of 4 rows and in 1 of 4, of two classes: odds 3.5/1.5, and below even.
    targets = torch.tensor([0, 0, 0, 1])
    first = torch.tensor([[1.0, 0.0]] * 4)
    fitted = WeightedVoteCombiner().fit(torch.stack([first, 1 - first]), targets)
    assert fitted.shares == (1.0, 0.0)


# -- in an ensemble ----------------------------------------------------------------------------------------


@pytest.fixture
def labels(rows):
    return (rows[:, 0] > rows[:, 1]).long() + (rows[:, 2] > 3).long()


@pytest.mark.parametrize("name", FITTABLE)
def test_a_fitted_ensemble_is_saved_and_loaded_with_its_shares(make_ensemble, rows, labels, tmp_path, name):
    ensemble = make_ensemble().fit_combiner(name, (rows, labels))
    assert ensemble.combiner.name == name
    assert len(ensemble.combiner.shares) == 3
    ensemble.save(tmp_path / "a")
    loaded = type(ensemble).load(tmp_path / "a")
    assert loaded.combiner == ensemble.combiner
    assert torch.equal(loaded.predict_proba(rows), ensemble.predict_proba(rows))
    torch.testing.assert_close(ensemble.to_torch_module()(rows), ensemble.predict_proba(rows))


def test_fitting_lowers_the_loss_on_its_rows_and_leaves_the_members(make_ensemble, rows, labels):
    plain = make_ensemble()
    fitted = plain.fit_combiner("stacking", (rows, labels))
    assert fitted.members == plain.members
    assert fitted.evaluate((rows, labels)).nll < plain.evaluate((rows, labels)).nll
    assert plain.combiner == MeanCombiner()
    assert fitted.fit_combiner("mean", (rows, labels)).combiner == MeanCombiner()
    assert plain.fit_combiner("stacking", (rows, labels), calibrate=False).temperature == 1.0


def test_selected_members_keep_their_part(make_ensemble, rows, labels):
    fitted = make_ensemble().fit_combiner("superposition", (rows, labels))
    some = fitted.select([2, 0])
    assert some.combiner == fitted.combiner.of_members([2, 0])
    assert some.temperature == fitted.temperature
    assert some.predict_proba(rows).shape == (37, 3)


def test_what_does_not_fit_is_refused(make_ensemble, rows, labels):
    ensemble = make_ensemble()
    with pytest.raises(PreconditionError, match="0 rows to fit"):
        fit_to_predictions(ensemble, "stacking", torch.zeros(3, 0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ConfigError, match="did you mean 'stacking'"):
        ensemble.fit_combiner("staking", (rows, labels))
    with pytest.raises(ConfigError, match="no setting 'share': did you mean 'shares'"):
        make_combiner("stacking", {"share": [1.0]})
    with pytest.raises(PreconditionError, match="fitted for 2 members, and there are 3"):
        ensemble.with_combiner(StackingCombiner((0.5, 0.5)))
    numbers = make_ensemble(loss="gaussian_nll")
    with pytest.raises(ConfigError, match="'stacking' is for classes"):
        numbers.fit_combiner("stacking", (rows, rows[:, 0]))
    assert len(numbers.fit_combiner("entanglement", (rows, rows[:, 0])).combiner.shares) == 3


def test_an_artefact_with_other_shares_than_members_is_refused(make_ensemble, tmp_path, rows, labels):
    from hqde.checkpoints import write_bundle
    from hqde.checkpoints.bundle import read_bundle

    path = tmp_path / "a"
    make_ensemble().fit_combiner("stacking", (rows, labels)).save(path)
    assert read_manifest(path)["combiner_settings"]["shares"]
    bundle = read_bundle(path, error=ArtefactError)
    for shares in ([0.5, 0.5], [0.5, 0.1, 0.1], "x"):
        manifest = {**bundle.manifest, "combiner_settings": {"shares": shares}}
        for key in ("files", "manifest_sha256", "format_version"):
            manifest.pop(key, None)
        write_bundle(tmp_path / "b", manifest=manifest, tensors=bundle.tensors, error=ArtefactError)
        with pytest.raises(ArtefactError, match="describes no ensemble"):
            hqde.ensemble.Ensemble.load(tmp_path / "b")


def test_an_unfitted_combiner_leaves_no_trace_in_an_artefact(make_ensemble, tmp_path):
    make_ensemble().save(tmp_path / "a")
    assert "combiner_settings" not in read_manifest(tmp_path / "a")


def test_samples_are_drawn_as_often_as_their_probability_says(make_ensemble, rows):
    ensemble = make_ensemble()
    drawn = ensemble.sample(rows, 20_000, seed=3)
    assert drawn.shape == (37, 20_000)
    assert torch.equal(drawn, ensemble.sample(rows, 20_000, seed=3, batch_size=5))
    assert not torch.equal(drawn, ensemble.sample(rows, 20_000, seed=4))
    shares = torch.nn.functional.one_hot(drawn, 3).float().mean(dim=1)
    torch.testing.assert_close(shares, ensemble.predict_proba(rows), atol=0.02, rtol=0)
    assert ensemble.sample(rows[:0], 2).shape == (0, 2)
    with pytest.raises(PreconditionError, match="at least 1 sample"):
        ensemble.sample(rows, 0)


def test_accuracy_of_votes_in_an_ensemble(make_ensemble, rows, labels):
    ensemble = make_ensemble().fit_combiner("plurality", (rows, labels))
    votes = ensemble.predict_members(rows).argmax(dim=2).mode(dim=0).values
    assert float(accuracy(ensemble.predict_proba(rows), votes)) == 1.0


# -- auto --------------------------------------------------------------------------------------------------


def specialists(seed=0, *, rows=600):
    """Three members that each know two of three classes and rule the third out, more or less firmly."""
    probs, targets = pool_of(seed, members=3, rows=rows, skills=[2.0, 2.0, 2.0])
    probs, draws = probs.clone(), torch.Generator().manual_seed(seed)
    for member in range(3):
        probs[member, :, member] = 10 ** (-1 - 20 * torch.rand(rows, generator=draws))
    return probs / probs.sum(dim=2, keepdim=True), targets


def test_auto_takes_the_mean_where_members_rule_out_what_they_have_not_seen():
    probs, targets = specialists()
    assert AutoCombiner().fit(probs, targets) == MeanCombiner()
    stacked = StackingCombiner().fit(probs, targets).combine(probs, torch.ones(3))
    mean = MeanCombiner().combine(probs, torch.ones(3))
    losses = [float(nll(apply_temperature(p, fit_temperature(p, targets)), targets)) for p in (stacked, mean)]
    assert losses[0] > 1.5 * losses[1]


def test_auto_takes_weights_where_members_differ():
    probs, targets = pool_of(0, rows=1000, skills=[0.1] * 6 + [1.5, 2.0])
    found = AutoCombiner().fit(probs, targets)
    assert found in (StackingCombiner().fit(probs, targets), EntanglementCombiner().fit(probs, targets))


def test_auto_is_not_led_astray_by_chance():
    for seed in range(6):
        probs, targets = pool_of(seed, rows=120, skills=[1.0] * 4)
        found = AutoCombiner().fit(probs, targets)
        assert isinstance(found, MeanCombiner) or max(found.shares) < 0.6


def test_auto_without_anything_to_choose_by_is_the_mean():
    probs, targets = pool_of(0, rows=99)
    assert AutoCombiner().fit(probs, targets) == MeanCombiner()
    assert AutoCombiner().fit(probs[:1], targets) == MeanCombiner()
    assert AutoCombiner().fit(torch.ones(3, 200, 2), torch.ones(200)) == MeanCombiner()
    torch.testing.assert_close(
        AutoCombiner().combine(probs, torch.ones(4)), MeanCombiner().combine(probs, torch.ones(4))
    )
    assert make_combiner("auto") == AutoCombiner() == AutoCombiner().of_members([0])


def test_an_ensemble_keeps_what_auto_chose(make_ensemble):
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(3)) * 3 + 1
    labels = (rows[:, 0] > rows[:, 1]).long() + (rows[:, 2] > 3).long()
    fitted = make_ensemble().fit_combiner("auto", (rows, labels))
    assert fitted.combiner.name in ("mean", "stacking", "entanglement")


def test_the_simplest_candidate_that_is_not_clearly_worse():
    draws = torch.Generator().manual_seed(0)
    base = torch.rand(100, generator=draws)
    noise = 0.1 * torch.randn(100, generator=draws)
    assert simplest(torch.stack([base + noise, base])) == 0  # no more than noise apart
    assert simplest(torch.stack([base + 0.05 + noise, base, base + noise])) == 1
    assert simplest(torch.stack([base, base])) == 0
