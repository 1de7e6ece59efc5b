"""A model's state as one flat vector: nothing is lost on the way there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hqde.errors import PreconditionError
from hqde.seeding import seeded
from hqde.weights import Layout, Slot, Weights


class Tied(nn.Module):
    """Two linear layers that are one tensor under two names, and a buffer under two names as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.rand(2))
        self.register_buffer("also_scale", self.scale)


class Assorted(nn.Module):
    """Scalars, an empty tensor, a boolean mask, and a buffer that is not part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.rand(()))
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("level", torch.rand(()))
        self.register_buffer("mask", torch.rand(4) > 0.5)
        self.register_buffer("count", torch.tensor(2**60 + 1))
        self.register_buffer("scratch", torch.rand(5), persistent=False)


def norm_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model.train()
    for _ in range(3):  # statistics and the batch counter move
        model[1](torch.randn(5, 4, 1, 1))
    return model


def frozen_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def mixed_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float16))


MODELS = {
    "norm": norm_model,
    "tied": Tied,
    "frozen": frozen_model,
    "assorted": Assorted,
    "float64": lambda: nn.Linear(3, 2, dtype=torch.float64),
    "bfloat16": lambda: nn.Linear(3, 2, dtype=torch.bfloat16),
    "float64 beside float16": mixed_model,
    "channels_last": lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
}


def build(name: str, seed: int) -> nn.Module:
    with seeded(seed, "test", name):
        return MODELS[name]()


def state_copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_a_read_state_written_into_another_model_is_the_same_bit_for_bit(name):
    source, target = build(name, 1), build(name, 2)
    expected = state_copy(source)
    layout = Layout.of(source)
    assert any(not torch.equal(v, target.state_dict()[k]) for k, v in expected.items())
    weights = layout.read(source)
    layout.write(weights, target)
    assert_same(state_copy(target), expected)
    assert torch.equal(layout.read(target).vector, weights.vector)
    assert_same(state_copy(source), expected)


@pytest.mark.parametrize("name", MODELS)
def test_equal_architectures_have_equal_layouts_whatever_their_weights(name):
    assert Layout.of(build(name, 1)) == Layout.of(build(name, 2))


def test_other_architectures_have_other_layouts():
    layouts = [Layout.of(build(name, 1)) for name in MODELS]
    for index, layout in enumerate(layouts):
        assert layout not in layouts[:index]


@pytest.mark.parametrize("name", MODELS)
def test_slots_tile_the_vector_parameters_first(name):
    layout = Layout.of(build(name, 1))
    for slots, start, stop in (
        (layout.parameters, 0, layout.num_parameters),
        (layout.buffers, layout.num_parameters, layout.size),
        (layout.integers, 0, layout.num_integers),
    ):
        for slot in slots:
            assert slot.offset == start
            start = slot.end
        assert start == stop


def test_the_vector_holds_parameters_then_statistics_in_the_model_s_order():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0]]))
        model[0].bias.fill_(3.0)
        model[1].weight.fill_(4.0)
        model[1].bias.fill_(5.0)
        model[1].running_mean.fill_(6.0)
        model[1].running_var.fill_(7.0)
        model[1].num_batches_tracked.fill_(8)
    layout = Layout.of(model)
    weights = layout.read(model)
    assert weights.vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert weights.integers.tolist() == [8]
    assert (layout.num_parameters, layout.size, layout.num_integers) == (5, 7, 1)
    assert weights.nbytes == 7 * 4 + 8


def test_tied_tensors_travel_once_and_stay_tied():
    model = Tied()
    layout = Layout.of(model)
    assert [slot.name for slot in layout.parameters] == ["first.weight"]
    assert [slot.name for slot in layout.buffers] == ["scale"]
    layout.write(Weights(torch.arange(11.0), torch.empty(0, dtype=torch.int64)), model)
    assert model.second.weight is model.first.weight
    assert torch.equal(model.second.weight.detach(), torch.arange(9.0).reshape(3, 3))


def test_frozen_parameters_travel_and_stay_frozen():
    source, target = build("frozen", 1), build("frozen", 2)
    layout = Layout.of(source)
    assert layout.num_parameters == layout.size == 3 * 4 + 4 + 4 * 2 + 2
    layout.write(layout.read(source), target)
    assert torch.equal(target[0].weight, source[0].weight)
    assert [p.requires_grad for p in target.parameters()] == [False, False, True, True]


def test_a_buffer_outside_the_state_does_not_travel():
    source, target = build("assorted", 1), build("assorted", 2)
    kept = target.scratch.clone()
    layout = Layout.of(source)
    layout.write(layout.read(source), target)
    assert "scratch" not in {slot.name for slot in layout.buffers}
    assert torch.equal(target.scratch, kept)


def test_without_buffers_only_parameters_are_written():
    source, target = build("norm", 1), build("norm", 2)
    layout, before = Layout.of(source), state_copy(target)
    layout.write(layout.read(source), target, with_buffers=False)
    trained = {slot.name for slot in layout.parameters}
    for name, tensor in target.state_dict().items():
        origin = source.state_dict() if name in trained else before
        assert torch.equal(tensor, origin[name]), name
    assert not torch.equal(before["1.running_mean"], source.state_dict()["1.running_mean"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("norm", torch.float32), ("bfloat16", torch.float32), ("float64", torch.float64),
     ("float64 beside float16", torch.float64)],
)  # fmt: skip
def test_the_vector_is_wide_enough_for_every_tensor(name, dtype):
    layout = Layout.of(build(name, 1))
    assert layout.dtype == dtype
    assert layout.read(build(name, 1)).vector.dtype == dtype


@pytest.mark.parametrize("name", MODELS)
def test_named_tensors_are_what_the_model_s_own_state_would_be(name):
    source = build(name, 1)
    layout = Layout.of(source)
    named = layout.tensors(layout.read(source))
    assert_same(dict(named), {key: source.state_dict()[key] for key in named})
    assert set(named) == {slot.name for slot in layout.parameters + layout.buffers + layout.integers}


def test_reading_and_cloning_share_no_memory_with_the_model():
    model = nn.Linear(3, 2)
    before = state_copy(model)
    weights = Layout.of(model).read(model)
    other = weights.clone()
    weights.vector.fill_(9.0)
    assert_same(state_copy(model), before)
    assert not torch.equal(other.vector, weights.vector)
    assert other.vector.data_ptr() != weights.vector.data_ptr()


def test_writing_leaves_the_weights_alone_and_copies_them():
    model = nn.Linear(3, 2)
    layout = Layout.of(model)
    weights = Weights(torch.arange(8.0), torch.empty(0, dtype=torch.int64))
    layout.write(weights, model)
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(weights.vector, torch.arange(8.0))


@settings(deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shapes_go_there_and_back(shapes, seed):
    model = nn.Module()
    draws = torch.Generator().manual_seed(seed)
    for index, shape in enumerate(shapes):
        model.register_parameter(f"p{index}", nn.Parameter(torch.randn(shape, generator=draws)))
        model.register_buffer(f"b{index}", torch.randint(-9, 9, shape, generator=draws))
    layout, expected = Layout.of(model), state_copy(model)
    weights = layout.read(model)
    assert torch.equal(weights.vector, torch.cat([p.detach().flatten() for p in model.parameters()]))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    layout.write(weights, model)
    assert_same(state_copy(model), expected)


def test_slot_arithmetic():
    assert (Slot("w", (2, 3), torch.float32, 4).size, Slot("w", (2, 3), torch.float32, 4).end) == (6, 10)
    assert Slot("s", (), torch.float32, 4).end == 5
    assert Slot("e", (0, 7), torch.float32, 4).end == 4


@pytest.mark.parametrize(
    ("vector", "integers"),
    [(torch.zeros(7), torch.zeros(0)), (torch.zeros(9), torch.zeros(0)), (torch.zeros(8), torch.zeros(1)),
     (torch.zeros(8, 1), torch.zeros(0))],
)  # fmt: skip
def test_weights_of_another_size_are_refused_and_nothing_is_written(vector, integers):
    model = nn.Linear(3, 2)
    layout, before = Layout.of(model), state_copy(model)
    weights = Weights(vector, integers.long())
    with pytest.raises(PreconditionError, match=r"do not fit a model of \(8,\) \+ \(0,\)"):
        layout.write(weights, model)
    with pytest.raises(PreconditionError, match="do not fit"):
        layout.tensors(weights)
    assert_same(state_copy(model), before)


def test_a_model_without_floating_parameters_is_refused():
    with pytest.raises(PreconditionError, match="ReLU has no floating parameters to train"):
        Layout.of(nn.ReLU())
    with pytest.raises(PreconditionError, match="BatchNorm1d has no floating parameters"):
        Layout.of(nn.BatchNorm1d(3, affine=False))


def test_complex_tensors_are_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(PreconditionError, match=r"tensor '1\.weight' is torch\.complex64"):
        Layout.of(model)


@pytest.mark.parametrize("extra", [{"calls": 3}, torch.ones(2)], ids=["dict", "tensor"])
def test_state_that_is_neither_parameter_nor_buffer_is_refused_by_name(extra):
    class Stateful(nn.Linear):
        def get_extra_state(self) -> object:
            return extra

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(PreconditionError, match=r"'0\._extra_state' of Sequential is neither"):
        Layout.of(nn.Sequential(Stateful(2, 2)))
