"""What travels encoded: its bytes, its error, and what of it must survive a resume or a new grouping."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hqde.aggregation import make_rule
from hqde.backends import LocalBackend
from hqde.checkpoints import CheckpointStore
from hqde.compression import Compression, EntropyCodec, PackedCodec, Uplink, decode, dense_ranges
from hqde.errors import ConfigError
from hqde.rounds import Engine
from hqde.testing import Fault, FaultyBackend, orders_of, small_experiment
from hqde.topology import Topology
from hqde.training import Worker
from hqde.weights import Layout

FOUR_BITS = Compression(PackedCodec(bits=4))


class Watch:
    """A local backend that keeps what its workers are told and hand in."""

    def __init__(self):
        self.inner, self.orders, self.updates = LocalBackend(), [], []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def train(self, orders, **options):
        self.orders.append(list(orders))
        for update in self.inner.train(orders, **options):
            self.updates.append(update)
            yield update


class Records:
    """A listener that keeps rounds and events."""

    def __init__(self):
        self.rounds, self.events = [], []

    def on_start(self, plans, first_round):
        pass

    def on_step(self, worker_id, done, total):
        pass

    def on_round(self, record):
        self.rounds.append(record)

    def on_event(self, event):
        self.events.append(event)


def wide_experiment(compression=FOUR_BITS, *, epochs=4, **changes):
    """A model of 8 000 weights, most of them in tensors large enough to be encoded."""
    base = small_experiment(num_workers=4)
    model = replace(base.model, options={**base.model.options, "hidden": [64, 64, 40]})
    return replace(base, model=model, epochs=epochs, compression=compression, **changes)


def run(experiment, backend=None, **options):
    records = Records()
    return Engine(experiment, backend or LocalBackend(), listener=records, **options).run(), records


def layout_of(experiment):
    return Layout.of(experiment.model.build(dropout_rate=0.1))


def test_without_a_codec_as_many_bytes_travel_as_there_are():
    result, records = run(wide_experiment(Compression(), topology=Topology(groups=2)))
    nbytes = result.state.committed[0].nbytes
    assert [record.sent_bytes for record in records.rounds] == [2 * 4 * nbytes] * 4
    assert result.state.totals.dense_bytes == result.state.totals.sent_bytes


def test_bytes_are_those_of_the_packets_both_ways():
    backend = Watch()
    result, records = run(wide_experiment(topology=Topology(groups=2)), backend)
    for orders, record in zip(backend.orders, records.rounds, strict=True):
        mine = [update for update in backend.updates if update.round_index == record.round]
        down = sum(order.downlink.packet.nbytes for order in orders)
        up = sum(update.packet.nbytes for update in mine)
        integers = 2 * sum(update.integers.nbytes for update in mine)
        assert record.sent_bytes == down + up + integers
        assert record.dense_bytes == 2 * 4 * result.state.committed[0].nbytes
    totals = result.state.totals
    # Much of this small model is dense by rule; what is packed, at 4.16 bits, travels as 7.7 times less.
    assert totals.dense_bytes / totals.sent_bytes > 4.5


def test_rules_see_what_is_decoded_and_workers_start_from_what_they_can_decode():
    backend = Watch()
    run(wide_experiment(topology=Topology(groups=1)), backend)
    for update in backend.updates:
        assert torch.equal(update.delta, decode(update.packet))
    held = {}
    for orders in backend.orders:
        for order in orders:
            step = decode(order.downlink.packet)
            base = held.get(order.worker_id, torch.zeros_like(step))
            assert order.downlink.base_round == order.round_index - 1
            assert torch.equal(order.start.vector, base + step)
            held[order.worker_id] = order.start.vector


def test_the_worker_owes_exactly_the_error_of_its_packets():
    experiment = wide_experiment()
    codec = PackedCodec(bits=2)
    plain, coded = (Worker(experiment.worker_specs()[0], experiment.splits.train) for _ in range(2))
    sent, found = 0.0, 0.0
    for round_index in range(1, 5):
        order = orders_of(experiment, round_index)[0]
        exact = plain.train_round(order)
        update = coded.train_round(replace(order, uplink=Uplink(codec, True, False, 512)))
        found, sent = found + exact.delta, sent + update.delta
        owed = coded.state().tensors["owed"]
        kept = torch.ones_like(owed)
        for start, stop in dense_ranges(layout_of(experiment), smallest=512):
            kept[start:stop] = 0.0
        summed = (sent[: len(owed)] + owed) * kept
        torch.testing.assert_close(summed, found[: len(owed)] * kept, atol=1e-5, rtol=1e-4)
        assert owed.norm() < 2 * exact.delta.norm()  # bounded, however many rounds
    fresh = replace(orders_of(experiment, 4)[0], uplink=Uplink(codec, True, True, 512))
    update = coded.train_round(fresh)
    alone = codec.encode(
        plain.train_round(orders_of(experiment, 4)[0]).delta, dense=dense_ranges(coded.layout, smallest=512)
    )
    assert update.packet.to_bytes() == alone.to_bytes()


@pytest.mark.parametrize(
    "topology", [Topology(groups=1), Topology(groups=2, global_every=2), Topology(groups=2, branch_at=0.5)]
)
def test_resume_gives_the_bits_of_an_uninterrupted_run(tmp_path, topology):
    experiment = wide_experiment(topology=topology)
    whole, _ = run(experiment)
    for stop_after in (1, 2, 3):
        store = CheckpointStore(tmp_path / f"{stop_after}")
        broken = FaultyBackend(LocalBackend(), (Fault(1, stop_after + 1, "interrupt"),))
        with pytest.raises(KeyboardInterrupt):
            Engine(experiment, broken, store=store).run()
        resumed = Engine(experiment, LocalBackend(), store=store).run(resume=True)
        for mine, theirs in zip(resumed.state.committed, whole.state.committed, strict=True):
            assert torch.equal(mine.vector, theirs.vector)


def test_groups_that_part_owe_nothing_and_start_from_what_was_not_sent_yet_too():
    backend = Watch()
    run(wide_experiment(topology=Topology(groups=2, branch_at=0.5)), backend)
    parted = backend.orders[2]
    assert all(order.uplink.fresh and order.downlink is None for order in parted)
    assert not any(
        order.uplink.fresh for orders in (backend.orders[1], backend.orders[3]) for order in orders
    )


def test_one_alone_in_its_group_sends_nothing_and_loses_nothing():
    coded = run(wide_experiment(topology=Topology.independent()))[0]
    plain = run(wide_experiment(Compression(), topology=Topology.independent()))[0]
    assert coded.state.totals.sent_bytes == 0
    for mine, theirs in zip(coded.state.committed, plain.state.committed, strict=True):
        assert torch.equal(mine.vector, theirs.vector)


def test_the_first_rounds_may_go_as_they_are_and_bits_may_fall():
    compression = Compression(PackedCodec(bits=8), warmup_rounds=2, final_bits=2)
    _, records = run(wide_experiment(compression, epochs=6, topology=Topology(groups=1)))
    ratios = [record.dense_bytes / record.sent_bytes for record in records.rounds]
    assert ratios[:2] == [1.0, 1.0]
    assert ratios[3] < ratios[4] < ratios[5]


def test_deltas_alone_may_be_encoded():
    backend = Watch()
    _, records = run(
        wide_experiment(replace(FOUR_BITS, downlink=False), topology=Topology(groups=1)), backend
    )
    assert all(order.downlink is None for orders in backend.orders for order in orders)
    assert all(record.dense_bytes / record.sent_bytes < 2 for record in records.rounds)


def test_one_bit_near_the_entropy_trains_as_well():
    compression = Compression(EntropyCodec(bits=1))
    result, _ = run(wide_experiment(compression, epochs=8, topology=Topology(groups=1)))
    plain, _ = run(wide_experiment(Compression(), epochs=8, topology=Topology(groups=1)))
    data = wide_experiment().splits.test
    assert result.state.totals.dense_bytes / result.state.totals.sent_bytes > 8  # much of it stays dense
    assert abs(result.ensemble.evaluate(data).accuracy - plain.ensemble.evaluate(data).accuracy) < 0.12


def test_stochastic_rounding_is_repeatable_and_owes_nothing():
    compression = Compression(PackedCodec(bits=4, rounding="stochastic"), feedback=False)
    one, other = (run(wide_experiment(compression, topology=Topology(groups=1)))[0] for _ in range(2))
    assert torch.equal(one.state.committed[0].vector, other.state.committed[0].vector)
    assert not one.state.owed


def test_an_update_that_is_not_finite_is_refused_for_what_it_is():
    experiment = wide_experiment(topology=Topology(groups=1))
    backend = FaultyBackend(LocalBackend(), (Fault(1, 2, "nan_delta"),))
    _, records = run(experiment, backend)
    refused = [event for event in records.events if event.kind == "rejected"]
    assert len(refused) == 1
    assert "not finite" in refused[0].reason


def test_robust_rules_work_on_decoded_rows():
    result, _ = run(
        wide_experiment(rule=make_rule("geometric_median", num_byzantine=1), topology=Topology(groups=1))
    )
    plain, _ = run(
        wide_experiment(
            Compression(), rule=make_rule("geometric_median", num_byzantine=1), topology=Topology(groups=1)
        )
    )
    data = wide_experiment().splits.test
    assert abs(result.ensemble.evaluate(data).accuracy - plain.ensemble.evaluate(data).accuracy) < 0.12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codec": PackedCodec(rounding="stochastic")}, "error feedback"),
        ({"codec": PackedCodec(), "final_bits": 40}, "bits per weight lie in 1 to 16, got 40"),
        ({"codec": EntropyCodec(importance="fisher")}, "needs gradients"),
        ({"warmup_rounds": -1}, "warmup_rounds must not be negative, got -1"),
        ({"smallest": -5}, "smallest must not be negative, got -5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Compression(**settings)
