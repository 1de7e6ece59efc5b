"""Server optimizers against their published equations, with the arithmetic written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hqde.aggregation.server import SERVER_OPTIMIZERS, Adaptive, FedAvg, Momentum, make_server_optimizer
from hqde.errors import ConfigError

DELTAS = ([2.0, -1.0], [1.0, 3.0], [-4.0, 0.0])
EVERY_ONE = [make_server_optimizer(name) for name in SERVER_OPTIMIZERS]

deltas = st.lists(
    st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=4
)  # fmt: skip


def run(optimizer, rounds=DELTAS, *, start=(0.0, 0.0), dtype=torch.float64) -> tuple[list[Tensor], dict]:
    """The parameters after each round, and the last state."""
    parameters = torch.tensor(start, dtype=dtype)
    state, path = optimizer.init(parameters), []
    for delta in rounds:
        step, state = optimizer.update(torch.tensor(delta, dtype=dtype), state)
        parameters = parameters + step
        path.append(parameters)
    return path, state


def assert_path(path: list[Tensor], expected: list[list[float]]) -> None:
    assert [row.tolist() for row in path] == [pytest.approx(row, rel=1e-12) for row in expected]


def test_fedavg_is_the_identity_step():
    path, state = run(FedAvg())
    assert_path(path, [[2.0, -1.0], [3.0, 2.0], [-1.0, 2.0]])
    assert state == {}
    for dtype in (torch.float32, torch.float64):
        delta = torch.rand(50, dtype=dtype)
        assert torch.equal(FedAvg().update(delta, {})[0], delta)


def test_fedavg_with_a_rate_scales_the_step():
    assert_path(run(FedAvg(learning_rate=0.5))[0], [[1.0, -0.5], [1.5, 1.0], [-0.5, 1.0]])


def test_heavy_ball_momentum_by_hand():
    # b1 = Δ1 = [2, -1]                     x1 = 0.5 b1           = [1, -0.5]
    # b2 = 0.5 [2, -1] + [1, 3] = [2, 2.5]  x2 = x1 + 0.5 [2, 2.5] = [2, 0.75]
    # b3 = 0.5 [2, 2.5] + [-4, 0] = [-3, 1.25]  x3 = x2 + 0.5 [-3, 1.25] = [0.5, 1.375]
    path, state = run(Momentum(learning_rate=0.5, momentum=0.5))
    assert_path(path, [[1.0, -0.5], [2.0, 0.75], [0.5, 1.375]])
    assert state["momentum"].tolist() == [-3.0, 1.25]


def test_nesterov_momentum_by_hand():
    # b1 = [2, -1]       step 0.5 (Δ1 + 0.5 b1) = 0.5 [3, -1.5]      x1 = [1.5, -0.75]
    # b2 = [2, 2.5]      step 0.5 ([1, 3] + [1, 1.25])               x2 = [2.5, 1.375]
    # b3 = [-3, 1.25]    step 0.5 ([-4, 0] + [-1.5, 0.625])          x3 = [-0.25, 1.6875]
    path, state = run(Momentum(learning_rate=0.5, momentum=0.5, nesterov=True))
    assert_path(path, [[1.5, -0.75], [2.5, 1.375], [-0.25, 1.6875]])
    assert state["momentum"].tolist() == [-3.0, 1.25]


@pytest.mark.parametrize("nesterov", [False, True])
@settings(deadline=None)
@given(rounds=deltas, rate=st.floats(0.01, 2), momentum=st.floats(0.01, 0.99))
def test_momentum_is_torch_s_sgd_on_the_negative_delta(nesterov, rounds, rate, momentum):
    path, _ = run(Momentum(rate, momentum, nesterov), rounds, start=(1.0, 2.0, 3.0))
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    sgd = torch.optim.SGD([parameter], lr=rate, momentum=momentum, nesterov=nesterov)
    for delta, found in zip(rounds, path, strict=True):
        parameter.grad = -torch.tensor(delta, dtype=torch.float64)
        sgd.step()
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-9, atol=1e-9)


def test_fedadagrad_by_hand():
    # one coordinate, η = 1, β₁ = 0.5, τ = 1, so v₀ = 1
    # m1 = 0.5·0 + 0.5·2 = 1      v1 = 1 + 4 = 5     x1 = 1 / (√5 + 1)
    # m2 = 0.5·1 + 0.5·4 = 2.5    v2 = 5 + 16 = 21   x2 = x1 + 2.5 / (√21 + 1)
    path, state = run(
        Adaptive("adagrad", learning_rate=1.0, beta1=0.5, tau=1.0), ([2.0], [4.0]), start=(0.0,)
    )
    first = 1.0 / (math.sqrt(5.0) + 1.0)
    assert_path(path, [[first], [first + 2.5 / (math.sqrt(21.0) + 1.0)]])
    assert (state["m"].item(), state["v"].item()) == (2.5, 21.0)


def test_fedadam_by_hand():
    # η = 0.1, β₁ = 0.5, β₂ = 0.75, τ = 2, so v₀ = 4; no bias correction
    # m1 = 0.5·2 = 1             v1 = 0.75·4 + 0.25·4 = 4        x1 = 0.1·1 / (2 + 2) = 0.025
    # m2 = 0.5·1 + 0.5·4 = 2.5   v2 = 0.75·4 + 0.25·16 = 7       x2 = x1 + 0.1·2.5 / (√7 + 2)
    # m3 = 0.5·2.5 - 0.5·6 = -1.75   v3 = 0.75·7 + 0.25·36 = 14.25
    optimizer = Adaptive("adam", learning_rate=0.1, beta1=0.5, beta2=0.75, tau=2.0)
    path, state = run(optimizer, ([2.0], [4.0], [-6.0]), start=(0.0,))
    second = 0.025 + 0.25 / (math.sqrt(7.0) + 2.0)
    assert_path(path, [[0.025], [second], [second - 0.175 / (math.sqrt(14.25) + 2.0)]])
    assert (state["m"].item(), state["v"].item()) == (-1.75, 14.25)


def test_fedyogi_by_hand():
    # η = 1, β₁ = 0, β₂ = 0.75, τ = 2, so v₀ = 4
    # Δ1 = 4: Δ² = 16 > v₀, sign(v - Δ²) = -1: v1 = 4 + 0.25·16 = 8;   step 4 / (√8 + 2)
    # Δ2 = 2: Δ² = 4 < 8, sign +1:             v2 = 8 - 0.25·4 = 7;    step 2 / (√7 + 2)
    # Δ3 = √7: Δ² = v, sign 0:                 v3 = 7;                 step √7 / (√7 + 2)
    optimizer = Adaptive("yogi", learning_rate=1.0, beta1=0.0, beta2=0.75, tau=2.0)
    state = optimizer.init(torch.zeros(1, dtype=torch.float64))
    for delta, variance in ((4.0, 8.0), (2.0, 7.0)):
        step, state = optimizer.update(torch.tensor([delta], dtype=torch.float64), state)
        assert state["v"].item() == variance
        assert step.item() == pytest.approx(delta / (math.sqrt(variance) + 2.0), rel=1e-12)
    even = {"m": torch.zeros(1), "v": torch.tensor([9.0])}
    assert optimizer.update(torch.tensor([3.0]), even)[1]["v"].item() == 9.0


def test_adaptive_optimizers_start_at_m_zero_and_v_tau_squared():
    state = Adaptive("yogi", tau=0.5).init(torch.ones(3))
    assert state["m"].tolist() == [0.0, 0.0, 0.0]
    assert state["v"].tolist() == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("kind", ["adagrad", "adam", "yogi"])
@settings(deadline=None)
@given(rounds=deltas)
def test_an_adaptive_step_is_bounded_by_its_rate_and_its_history(kind, rounds):
    """|η m / (√v + τ)| ≤ η max|Δ| / τ, and never NaN."""
    path, state = run(Adaptive(kind, learning_rate=0.1, tau=0.01), rounds, start=(0.0, 0.0, 0.0))
    largest = max(abs(value) for delta in rounds for value in delta)
    previous = torch.zeros(3, dtype=torch.float64)
    for found in path:
        assert torch.isfinite(found).all()
        assert float((found - previous).abs().max()) <= 0.1 * largest / 0.01 * (1 + 1e-9)
        previous = found
    assert (state["v"] >= 0).all()


@pytest.mark.parametrize("optimizer", EVERY_ONE, ids=SERVER_OPTIMIZERS)
@settings(deadline=None)
@given(rounds=deltas)
def test_nothing_that_is_given_is_changed_and_the_same_goes_in_the_same_comes_out(optimizer, rounds):
    parameters = torch.ones(3)
    state = optimizer.init(parameters)
    for values in rounds:
        delta = torch.tensor(values)
        kept = {key: value.clone() for key, value in state.items()}
        step, after = optimizer.update(delta, state)
        again, after_again = optimizer.update(delta, state)
        assert torch.equal(step, again)
        assert torch.equal(delta, torch.tensor(values))
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        assert all(torch.equal(after[key], after_again[key]) for key in kept)
        state = after
    assert torch.equal(parameters, torch.ones(3))


@pytest.mark.parametrize("optimizer", EVERY_ONE, ids=SERVER_OPTIMIZERS)
def test_coordinates_do_not_touch_each_other_and_the_dtype_stays(optimizer):
    both, _ = run(optimizer, dtype=torch.float32)
    for coordinate in range(2):
        alone, _ = run(optimizer, [[d[coordinate]] for d in DELTAS], start=(0.0,), dtype=torch.float32)
        assert [row[coordinate].item() for row in both] == [row.item() for row in alone]
        assert alone[-1].dtype == torch.float32


@pytest.mark.parametrize("optimizer", EVERY_ONE, ids=SERVER_OPTIMIZERS)
def test_a_zero_delta_from_the_start_moves_nothing(optimizer):
    path, _ = run(optimizer, ([0.0, 0.0], [0.0, 0.0]), start=(1.0, -2.0))
    assert_path(path, [[1.0, -2.0]] * 2)


def test_optimizers_by_name():
    assert make_server_optimizer("fedavg", learning_rate=0.5) == FedAvg(0.5)
    assert make_server_optimizer("momentum", momentum=0.3) == Momentum(0.7, 0.3, nesterov=False)
    assert make_server_optimizer("nesterov", learning_rate=0.2) == Momentum(0.2, 0.9, nesterov=True)
    assert make_server_optimizer("fedadagrad") == Adaptive("adagrad")
    assert make_server_optimizer("fedadam", learning_rate=0.2) == Adaptive("adam", 0.2)
    assert make_server_optimizer("fedyogi") == Adaptive("yogi")
    for optimizer in EVERY_ONE:
        assert eval(repr(optimizer)) == optimizer


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: make_server_optimizer("fedavgg"),
            "unknown server optimizer 'fedavgg'; did you mean 'fedavg'",
        ),
        (lambda: make_server_optimizer("adam", momentum=0.1), "unknown server optimizer 'adam'; "),
        (lambda: make_server_optimizer("fedavg", momentum=0.9), "'fedavg' takes no momentum; leave it out"),
        (lambda: make_server_optimizer("fedadam", momentum=0.9), "'fedadam' takes no momentum"),
        (lambda: FedAvg(0.0), "server optimizer 'fedavg' must be above 0 and finite, got 0.0"),
        (lambda: FedAvg(math.nan), "server optimizer 'fedavg' must be above 0"),
        (lambda: Momentum(-1.0), "server optimizer 'momentum' must be above 0"),
        (lambda: Momentum(math.inf, nesterov=True), "server optimizer 'nesterov' must be above 0 and finite"),
        (lambda: Momentum(momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: Momentum(momentum=math.nan), "momentum must lie in"),
        (lambda: Adaptive("sgd"), "kind must be 'adagrad', 'adam' or 'yogi', got 'sgd'"),
        (lambda: Adaptive("adam", learning_rate=0.0), "server optimizer 'fedadam' must be above 0"),
        (lambda: Adaptive("adam", beta1=1.0), "beta1 must lie in"),
        (lambda: Adaptive("adam", beta2=-0.1), "beta2 must lie in"),
        (lambda: Adaptive("adam", tau=0.0), "tau must be above 0, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()
