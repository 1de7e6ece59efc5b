"""Workers side by side in one process: the bits of one after the other, and no trace left behind."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hqde.backends import Failure, LocalBackend, make_backend, seat_workers, usable_cores
from hqde.backends.cores import Seating
from hqde.backends.lanes import Lanes
from hqde.data import MapExamples, make_splits
from hqde.errors import ConfigError, HqdeError, PreconditionError
from hqde.models import ModelSpec
from hqde.rounds import Engine
from hqde.seeding import GlobalState
from hqde.testing.backend_checks import BACKEND_CHECKS, orders_of, small_experiment


class Functional(nn.Module):
    """Draws from torch's global generator in every step."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(functional.dropout(torch.relu(self.body(x)), 0.3, self.training))


class Standard(Functional):
    """Draws by PyTorch's own layer."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.body(x))))


class Noisy(Functional):
    """Draws from NumPy's and Python's generators."""

    def forward(self, x):
        noise = torch.from_numpy(np.random.standard_normal(16).astype("float32")) + random.random()  # noqa: NPY002
        return self.head(torch.relu(self.body(x)) + (0.1 * noise if self.training else 0.0))


class Recomputing(Functional):
    """Throws activations away, and draws the same mask again in the backward pass."""

    def forward(self, x):
        return self.head(checkpoint(self._inside, x, use_reentrant=False))

    def _inside(self, x):
        return functional.dropout(torch.relu(self.body(x)), 0.3, self.training)


class Fickle(Functional):
    """Draws in every third step only."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        hidden = torch.relu(self.body(x))
        return self.head(functional.dropout(hidden, 0.3, self.training) if self.calls % 3 == 0 else hidden)


class Refusing(Functional):
    def forward(self, x):
        if self.training:
            raise PreconditionError("this model does not train")
        return self.head(self.body(x))


class Slow(Functional):
    def forward(self, x):
        if self.training:
            time.sleep(0.02)
        return super().forward(x)


class Transformed:
    """A data set of the user's that changes its rows at random."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, row):
        batch = self.examples.fetch(torch.tensor([row]))
        return batch.inputs[0] + 0.1 * torch.randn(6), batch.targets[0]


def experiment(model=None, *, num_workers=4, **changes):
    found = small_experiment(num_workers=num_workers)
    if model is not None:
        found = replace(found, model=ModelSpec(model.__name__, {}, factory=model), dropout_rate=None)
    return replace(found, **changes)


def trained(experiment, *, on_step=None, **options):
    backend = LocalBackend(threads=1, **options)
    backend.start(experiment.worker_specs(), experiment.splits.train)
    arrivals = backend.train(orders_of(experiment), on_step=on_step)
    outcomes = sorted(arrivals, key=lambda outcome: outcome.worker_id)
    backend.close()
    return outcomes


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        assert not isinstance(left, Failure), left.reason
        assert torch.equal(left.delta, right.delta)
        assert torch.equal(left.integers, right.integers)
        assert (left.loss, left.accuracy, left.num_samples) == (right.loss, right.accuracy, right.num_samples)


@pytest.mark.parametrize("check", BACKEND_CHECKS)
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_conformance(check, lanes):
    check(lambda: make_backend("local", lanes=lanes))


@pytest.mark.parametrize("model", [None, Functional, Standard, Noisy, Recomputing])
@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_bits_are_those_of_one_after_the_other(model, lanes):
    assert_same(trained(experiment(model), lanes=lanes), trained(experiment(model), lanes=1))


def test_masks_differ_between_workers_that_share_everything_else():
    found = trained(experiment(Functional, partitioner=small_experiment().partitioner), lanes=2)
    assert len({float(update.delta.sum()) for update in found}) == len(found)


def test_a_data_set_that_draws_keeps_its_bits():
    plain = experiment(Functional)
    rows = MapExamples(Transformed(plain.splits.train))
    splits = make_splits("drawn", rows, task="classification")
    assert_same(
        trained(replace(plain, splits=splits), lanes=3), trained(replace(plain, splits=splits), lanes=1)
    )


def test_the_ensemble_of_a_whole_run_is_the_same():
    one, other = (
        Engine(experiment(), LocalBackend(lanes=lanes, threads=1)).run().ensemble for lanes in (1, 3)
    )
    for left, right in zip(one.members, other.members, strict=True):
        for name, tensor in left.model.state_dict().items():
            assert torch.equal(tensor, right.model.state_dict()[name])
    assert one.temperature == other.temperature


def test_predictions_side_by_side_have_the_same_bits():
    setting = small_experiment(num_workers=4)
    setting = replace(setting, topology=replace(setting.topology, groups=4))
    ensemble = Engine(setting, LocalBackend(lanes=1, threads=1)).run().ensemble
    backend = LocalBackend(lanes=3, threads=1)
    backend.start(setting.worker_specs(), setting.splits.train)
    found = backend.predict_members(ensemble, setting.splits.train)
    assert torch.equal(found, ensemble.predict_members(setting.splits.train))
    assert torch.is_inference(found) is False


def test_the_callers_generators_stay_where_they_were():
    torch.manual_seed(3)
    before = GlobalState.now()
    trained(experiment(Functional), lanes=3)
    assert GlobalState.now() == before


def test_a_model_that_draws_now_and_then_is_refused():
    before = GlobalState.now()
    with pytest.raises(PreconditionError, match=r"run\.lanes = 1"):
        trained(experiment(Fickle), lanes=2)
    assert GlobalState.now() == before
    assert_same(trained(experiment(Fickle), lanes=1), trained(experiment(Fickle), lanes=1))


@pytest.mark.parametrize("model", [None, Functional, Slow])
def test_a_listener_may_draw_and_moves_no_stream(model):
    before, drawn = GlobalState.now(), []

    def draw(worker, done, total):
        drawn.append((random.random(), float(torch.rand(())), float(np.random.random())))  # noqa: NPY002

    found = trained(experiment(model), lanes=2, on_step=draw)
    assert_same(found, trained(experiment(model), lanes=2))
    assert GlobalState.now() == before
    assert len(set(drawn)) == len(drawn) > 1, "the listener's own draws go on"


def test_another_thread_that_draws_is_named():
    done = threading.Event()

    def draw():
        while not done.is_set():
            random.random()
            time.sleep(0.001)

    other = threading.Thread(target=draw)
    other.start()
    try:
        with pytest.raises(PreconditionError, match=r"or another thread of this process.* run\.lanes = 1"):
            trained(experiment(Slow), lanes=2)
    finally:
        done.set()
        other.join()


def test_each_lane_has_its_threads_and_nobody_else_notices():
    before, seen = torch.get_num_threads(), []
    lanes = Lanes(Seating(2, 3))
    list(lanes.run([lambda: seen.append(torch.get_num_threads())] * 4))
    assert seen == [3] * 4
    assert torch.get_num_threads() == before
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [before]


def test_an_error_of_ours_ends_the_round_and_no_thread_is_left():
    with pytest.raises(PreconditionError, match="does not train"):
        trained(experiment(Refusing), lanes=2)
    assert not lanes_alive()


def test_who_stops_listening_stops_the_workers_within_a_step():
    setting = experiment(Slow)
    backend = LocalBackend(lanes=2, threads=1)
    backend.start(setting.worker_specs(), setting.splits.train)
    arrivals = backend.train(orders_of(setting))
    next(arrivals)
    arrivals.close()
    assert not lanes_alive()
    backend.close()


def test_ctrl_c_passes_through():
    def press(worker, done, total):
        raise KeyboardInterrupt

    setting = experiment(Slow)
    backend = LocalBackend(lanes=2, threads=1)
    backend.start(setting.worker_specs(), setting.splits.train)
    with pytest.raises(KeyboardInterrupt):
        list(backend.train(orders_of(setting), on_step=press))
    assert not lanes_alive()


def test_steps_are_told_by_the_calling_thread_up_to_the_last():
    told = []
    setting = experiment(Slow)
    backend = LocalBackend(lanes=2, threads=1)
    backend.start(setting.worker_specs(), setting.splits.train)
    list(
        backend.train(
            orders_of(setting), on_step=lambda *step: told.append((*step, threading.current_thread()))
        )
    )
    assert {thread for *_, thread in told} == {threading.main_thread()}
    assert {worker for worker, done, total, _ in told if done == total} == {0, 1, 2, 3}
    for worker in range(4):
        steps = [done for who, done, *_ in told if who == worker]
        assert steps == sorted(set(steps))


def test_processor_time_is_the_workers_own():
    for update in trained(experiment(), lanes=2):
        assert update.cpu_s is not None
        assert 0 < update.cpu_s <= update.seconds * 1.5 + 0.01


def test_threads_follow_workers_and_cores_and_never_lanes():
    torch_may = torch.get_num_threads()
    for lanes in (0, 1, 2, 9):
        assert seat_workers(4, lanes=lanes, cores=16).threads == min(4, torch_may)
    assert seat_workers(64, cores=2) == Seating(2, 1)
    assert seat_workers(3, lanes=8, threads=1, cores=2) == Seating(3, 1)
    assert seat_workers(4, threads=4, cores=2) == Seating(1, 4)


@pytest.mark.parametrize("setting", [{"lanes": -1}, {"threads": -1}])
def test_negative_numbers_are_refused(setting):
    with pytest.raises(ConfigError, match="must not be negative, got -1"):
        LocalBackend(**setting)


def test_lanes_on_a_gpu_are_refused():
    setting = experiment()
    specs = [replace(spec, device="cuda:0") for spec in setting.worker_specs()]
    with pytest.raises(HqdeError, match="on a GPU train in turn"):
        LocalBackend(lanes=2).start(specs, setting.splits.train)


@pytest.mark.parametrize(
    ("name", "text", "cores"),
    [
        ("cpu.max", "150000 100000\n", 1),
        ("cpu.max", "max 100000\n", usable_cores()),
        ("cpu/cpu.cfs_quota_us", "100000\n", 1),
    ],
)
def test_a_containers_quota_counts(tmp_path, name, text, cores):
    file = tmp_path / "sys/fs/cgroup" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (file.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


def lanes_alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("hqde-lane")]
