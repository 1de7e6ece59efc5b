"""The conformance suite of backends: what every one must do, stated once.

Each check takes a function that makes a backend, and asserts. A new backend is tested by one line:
``@pytest.mark.parametrize("check", BACKEND_CHECKS)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hqde.aggregation import Combination, FedAvg, Mean, Update
from hqde.backends import Backend, Failure, LocalBackend
from hqde.data import TensorExamples, make_splits
from hqde.models import model_spec
from hqde.rounds import Experiment
from hqde.seeding import generator
from hqde.topology import Topology
from hqde.training import Order, Recipe

MakeBackend = Callable[[], Backend]


def small_experiment(*, num_workers: int = 3, model: str = "mlp", seed: int = 0) -> Experiment:
    """A small classification problem with batch normalisation and dropout, for tests of backends."""
    draws = generator(seed, "testing", "data")
    inputs = torch.randn(90, 6, generator=draws)
    targets = (inputs[:, 0] + inputs[:, 1] > 0).long()
    splits = make_splits("small", TensorExamples(inputs, targets), task="classification")
    return Experiment(
        splits=splits,
        model=model_spec(model, input_shape=(6,), num_outputs=2, options={"hidden": [8]}),
        num_workers=num_workers,
        epochs=2,
        recipe=Recipe(batch_size=16, learning_rate=0.05),
        topology=Topology(groups=1),
        seed=seed,
    )


def orders_of(experiment: Experiment, round_index: int = 1) -> list[Order]:
    """Orders for a round in which every worker starts from the same weights."""
    start = experiment.initial_weights(0)
    plan = experiment.plan()[round_index - 1]
    return [
        Order(
            worker_id=worker,
            round_index=round_index,
            attempt=0,
            epoch=plan.epoch,
            start=start,
            keep_buffers=False,
            fresh_optimizer=False,
            shard=shard,
            first_batch=plan.first_batch,
            num_batches=plan.num_batches,
            progress=plan.progress,
        )
        for worker, shard in experiment.shards(plan.epoch).items()
    ]


def check_matches_local(make: MakeBackend) -> None:
    """The same specs and orders give the same bits as on the local backend, or agree within a tolerance.

    A backend that computes in another order says how far apart it may be (``tolerance``). Its deltas are
    compared after SGD: Adam makes whole steps of the rounding in a gradient that is 0, such as that of a bias
    before a batch normalisation, where only what comes out can be compared.
    """
    experiment, backend = small_experiment(), make()
    tolerance = float(getattr(backend, "tolerance", 0.0))
    actual, expected = _trained(backend, experiment), _trained(LocalBackend(), experiment)
    if not tolerance:
        _assert_same(actual, expected)
        return
    for left, right in zip(actual, expected, strict=True):
        assert abs(left.loss - right.loss) <= tolerance * abs(right.loss), f"{left.loss} for {right.loss}"
    for momentum in (0.0, 0.9):
        recipe = replace(experiment.recipe, optimizer="sgd", momentum=momentum)
        plain = replace(experiment, recipe=recipe)
        _assert_near(_trained(make(), plain), _trained(LocalBackend(), plain), tolerance)


def check_order_of_orders_does_not_matter(make: MakeBackend) -> None:
    """Workers trained in another order, or alone, give the same bits."""
    experiment = small_experiment()
    _assert_same(_trained(make(), experiment, reverse=True), _trained(make(), experiment))


def check_one_outcome_per_order(make: MakeBackend) -> None:
    """Every order is answered exactly once, tagged with its worker, round and attempt."""
    experiment = small_experiment()
    backend = _started(make(), experiment)
    orders = orders_of(experiment)
    outcomes = list(backend.train(orders))
    backend.close()
    expected = sorted((o.worker_id, o.round_index, o.attempt) for o in orders)
    assert sorted((o.worker_id, o.round_index, o.attempt) for o in outcomes) == expected


def check_states_continue(make: MakeBackend) -> None:
    """Workers put back to a saved state go on with the same bits as those that never stopped."""
    experiment = small_experiment()
    first, second = orders_of(experiment, 1), orders_of(experiment, 2)
    backend = _started(make(), experiment)
    list(backend.train(first))
    states = dict(backend.worker_states())
    expected = _updates(backend, second)
    backend.close()
    again = _started(make(), experiment)
    again.load_worker_states(states, {order.worker_id: order.start for order in second})
    actual = _updates(again, second)
    again.close()
    _assert_same(actual, expected)


def check_replicas_are_kept(make: MakeBackend) -> None:
    """Workers with weights of their own are drawn to the start from there, also once they were put back."""
    tolerance = float(getattr(make(), "tolerance", 0.0))
    experiment = small_experiment()
    experiment = replace(experiment, recipe=replace(experiment.recipe, optimizer="sgd"))

    def check(actual: Sequence[Update], expected: Sequence[Update]) -> None:
        if tolerance:
            _assert_near(actual, expected, tolerance)
        else:
            _assert_same(actual, expected)

    first, second = ([replace(o, pull=0.25) for o in orders_of(experiment, r)] for r in (1, 2))
    backend = _started(LocalBackend(), experiment)
    list(backend.train(first))
    expected = _updates(backend, second)
    fresh = _started(make(), experiment)
    list(fresh.train(first))
    states = dict(fresh.worker_states())
    check(_updates(fresh, second), expected)
    fresh.close()
    again = _started(make(), experiment)
    again.load_worker_states(states, {order.worker_id: order.start for order in second})
    actual = _updates(again, second)
    again.close()
    check(actual, expected)
    forgetful = _started(LocalBackend(), experiment)
    list(forgetful.train(orders_of(experiment, 1)))
    other = _updates(forgetful, orders_of(experiment, 2))
    pairs = [(a.delta, b.delta) for a, b in zip(other, expected, strict=True)]
    same = [torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    assert not any(same), "orders with a pull gave what orders without one give"


def check_a_failing_worker_is_a_value(make: MakeBackend) -> None:
    """An exception in one worker becomes a ``Failure``; the others finish."""
    experiment = small_experiment()
    backend = _started(make(), experiment)
    orders = orders_of(experiment)
    broken = Order(**(vars(orders[1]) | {"shard": torch.tensor([10**9, 10**9 + 1])}))
    outcomes = list(backend.train([orders[0], broken, orders[2]]))
    backend.close()
    failed = [outcome.worker_id for outcome in outcomes if isinstance(outcome, Failure)]
    assert failed == [1], f"worker 1 should have failed, failed: {failed}"


def check_combines(make: MakeBackend) -> None:
    """``combine`` applies the rule to rows in the order given, the server optimizer to parameters only."""
    backend = _started(make(), small_experiment())
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
    task = Combination(rows, shares, Mean(), FedAvg(0.5), torch.ones(2), {}, num_parameters=1)
    vector = backend.combine(task).vector
    backend.close()
    assert vector.tolist() == [1.0 + 0.5 * 2.5, 1.0 + 5.0]


def check_closes_twice(make: MakeBackend) -> None:
    """``close`` may be called again, and before ``start``."""
    backend = make()
    backend.close()
    _started(backend, small_experiment()).close()
    backend.close()


BACKEND_CHECKS: tuple[Callable[[MakeBackend], None], ...] = (
    check_matches_local,
    check_order_of_orders_does_not_matter,
    check_one_outcome_per_order,
    check_states_continue,
    check_replicas_are_kept,
    check_a_failing_worker_is_a_value,
    check_combines,
    check_closes_twice,
)


def _started(backend: Backend, experiment: Experiment) -> Backend:
    backend.start(experiment.worker_specs(), experiment.splits.train)
    return backend


def _trained(backend: Backend, experiment: Experiment, *, reverse: bool = False) -> list[Update]:
    _started(backend, experiment)
    orders = orders_of(experiment)
    updates = _updates(backend, orders[::-1] if reverse else orders)
    backend.close()
    return updates


def _updates(backend: Backend, orders: Sequence[Order]) -> list[Update]:
    """What the workers hand in, by worker, with the deltas fetched."""
    found = [o for o in backend.train(orders) if isinstance(o, Update)]
    fetched = [replace(update, delta=backend.fetch(update.delta).clone()) for update in found]
    return sorted(fetched, key=lambda update: update.worker_id)


def _assert_near(actual: Sequence[Update], expected: Sequence[Update], tolerance: float) -> None:
    assert len(actual) == len(expected), f"{len(actual)} updates instead of {len(expected)}"
    for left, right in zip(actual, expected, strict=True):
        assert isinstance(left.delta, Tensor)
        assert isinstance(right.delta, Tensor)
        apart = float((left.delta - right.delta).norm() / right.delta.norm())
        assert apart <= tolerance, f"worker {left.worker_id}: {apart:.2g} apart, {tolerance:g} allowed"
        assert torch.equal(left.integers, right.integers)
        assert left.num_samples == right.num_samples
        assert abs(left.loss - right.loss) <= tolerance * abs(right.loss)


def _assert_same(actual: Sequence[Update], expected: Sequence[Update]) -> None:
    assert len(actual) == len(expected), f"{len(actual)} updates instead of {len(expected)}"
    for left, right in zip(actual, expected, strict=True):
        assert left.worker_id == right.worker_id
        assert isinstance(left.delta, Tensor)
        assert isinstance(right.delta, Tensor)
        assert torch.equal(left.delta, right.delta), f"worker {left.worker_id}: other bits"
        assert torch.equal(left.integers, right.integers)
        assert (left.loss, left.accuracy, left.num_samples) == (right.loss, right.accuracy, right.num_samples)
