"""Members made ready to predict quickly: the same but for rounding, and nothing of the old touched."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from hqde.data import Normalization, Schema
from hqde.ensemble import Ensemble, Member, ready_for_inference
from hqde.ensemble.int8 import Int8Conv2d, Scale
from hqde.errors import ConfigError, NonFiniteError, PreconditionError
from hqde.models import HalvingMaxPool, model_spec

in_int8 = pytest.mark.usefixtures("int8_processor")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def built(name, shape=(3, 32, 32)):
    """A model whose normalisations have seen something."""
    torch.manual_seed(0)
    spec = model_spec(name, input_shape=shape, num_outputs=10)
    model = spec.build()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 2.0)
            module.bias.data.normal_()
    return spec, model.eval()


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_normalisations_go_into_the_convolutions(name):
    _, model = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = ready_for_inference(model, "fp32")
    assert not any(isinstance(module, NORMS) for module in ready.modules())
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        exact, fast = model(images), ready(images)
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(isinstance(module, NORMS) for module in model.modules())


def test_a_model_that_cannot_be_traced_predicts_all_the_same():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm(self.conv(x)) if float(x.sum()) > 0 else x

    model = Branching().eval()
    images = torch.rand(2, 1, 5, 5)
    assert torch.equal(ready_for_inference(model, "fp32")(images), model(images))


def test_a_convolution_that_is_used_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x)))

    model = Twice().eval()
    model.norm.running_mean.fill_(3.0)
    images = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(ready_for_inference(model, "fp32")(images), model(images))


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 5, 7), (2, 8, 16, 16), (3, 4, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_halving_pool_has_the_bits_of_pytorchs(shape, layout):
    images = torch.randn(shape)
    if len(shape) == 4:
        images = images.contiguous(memory_format=layout)
    assert torch.equal(HalvingMaxPool()(images), nn.MaxPool2d(2)(images))


def test_before_a_relu_integers_are_compared_to_the_same_bits():
    images = torch.randn(64, 16, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    images[images.abs() < 0.3] = 0.0
    images[0, 0, 0, 0], images[0, 1, 0, 0], images[0, 2, :2, :2] = float("inf"), float("-inf"), float("nan")
    found = HalvingMaxPool(as_integers=True)(images).relu()
    assert torch.equal(found.nan_to_num(7.0), nn.MaxPool2d(2)(images).relu().nan_to_num(7.0))
    assert found[0, 2, 0, 0].isnan()


def test_integers_are_compared_in_bfloat16_alone_and_where_a_relu_follows():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.apart, self.twice = nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2)
            self.relu = nn.ReLU()

        def forward(self, x):
            both = self.twice(x)
            return self.relu(self.before(x)) + self.apart(x) + self.relu(both) + both

    for precision, expected in (("fp32", set()), ("bf16", {"before"})):
        ready = ready_for_inference(Branches(), precision)
        named = (ready.model if precision == "bf16" else ready).named_children()
        assert {name for name, m in named if isinstance(m, HalvingMaxPool) and m.as_integers} == expected


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05), ("int8", 0.1)])
def test_an_ensemble_predicts_the_same_but_for_rounding_and_cannot_be_saved(
    precision, tolerance, tmp_path, request
):
    if precision == "int8":
        request.getfixturevalue("int8_processor")
    schema = Schema("classification", "image", tuple(map(str, range(10))), (3, 32, 32))
    ensemble = Ensemble(
        [Member(i, *built("cnn")) for i in range(2)],
        schema=schema,
        normalization=Normalization(torch.full((3,), 120.0), torch.full((3,), 60.0)),
    )
    ensemble = ensemble.with_temperature(1.5)
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    fast = ensemble.for_inference(precision, images)
    exact, made = ensemble.predict_proba(images), fast.predict_proba(images)
    assert made.dtype == torch.float32
    assert fast.temperature == 1.5
    torch.testing.assert_close(made, exact, rtol=0, atol=tolerance)
    with pytest.raises(PreconditionError, match="member 0"):
        fast.save(tmp_path / "artefact")


def test_another_precision_is_refused():
    with pytest.raises(ConfigError, match="unknown precision 'fp16'"):
        ready_for_inference(nn.Linear(1, 1), "fp16")


def levels_by_hand(convolution, inputs, scale, outputs):
    """What an 8-bit convolution gives, in float64: the oracle."""
    levels = (inputs.double() / scale.step + scale.zero).round().clamp(0, 255)
    weight = convolution.weight.detach().double()
    steps = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    numbers = nn.functional.conv2d(
        (levels - scale.zero) * scale.step,
        (weight / steps).round() * steps,
        None if convolution.bias is None else convolution.bias.detach().double(),
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
    return numbers if outputs is None else (numbers / outputs.step + outputs.zero).clamp(0, 255)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "bias": False},
        {"stride": 2, "padding": (2, 1)},
        {"dilation": 2, "padding": 2},
        {"groups": 2, "padding": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("least", [0.0, -1.5])
@pytest.mark.parametrize("chained", [False, True])
@in_int8
def test_an_8_bit_convolution_is_that_of_the_rounded_numbers(options, least, chained):
    torch.manual_seed(3)
    convolution = nn.Conv2d(6, 4, 3, **options)
    inputs = (torch.rand(3, 6, 9, 11) * 4 + least).contiguous(memory_format=torch.channels_last)
    scale, outputs = Scale.covering(least, 4 + least), Scale.covering(-0.5, 0.75) if chained else None
    found = Int8Conv2d(convolution, scale, outputs)(inputs)
    expected = levels_by_hand(convolution, inputs, scale, outputs)
    if chained:
        assert found.dtype == torch.uint8
        assert float((found - expected).abs().max()) <= 0.501  # float32 may round a tie the other way
    else:
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)


@in_int8
def test_levels_are_passed_on_between_convolutions_that_only_monotone_layers_separate():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
            self.pool, self.relu, self.drop = nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(0.5)

        def forward(self, x):
            x = self.drop(self.relu(self.pool(self.one(x))))  # levels
            x = self.two(x)  # numbers: two that use them
            return torch.sigmoid(self.three(x)) + x

    torch.manual_seed(0)
    model, images = Branches().eval(), torch.randn(2, 4, 8, 8)
    ready = ready_for_inference(model, "int8", lambda model: model(images))
    inner = ready.model
    assert [type(layer) for layer in (inner.one, inner.two, inner.three)] == [Int8Conv2d] * 3
    assert [layer.outputs is None for layer in (inner.one, inner.two, inner.three)] == [False, True, True]
    assert isinstance(inner.relu, nn.Identity)
    assert isinstance(model.relu, nn.ReLU)
    with torch.inference_mode():
        torch.testing.assert_close(ready(images).float(), model(images), rtol=0, atol=0.03)


@in_int8
def test_an_8_bit_ensemble_predicts_the_same_bits_however_its_rows_are_cut_and_sent():
    schema = Schema("classification", "image", tuple(map(str, range(10))), (3, 32, 32))
    plain = Normalization(torch.full((3,), 120.0), torch.full((3,), 60.0))
    ensemble = Ensemble([Member(0, *built("resnet18"))], schema=schema, normalization=plain)
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    fast = ensemble.for_inference("int8", images)
    whole = fast.predict_proba(images)
    assert torch.equal(fast.predict_proba(images, batch_size=7), whole)
    sent = pickle.loads(pickle.dumps(fast.members[0].model))
    assert torch.equal(fast.with_members([fast.members[0].with_model(sent)]).predict_proba(images), whole)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "the model has none"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), "the model has none"),
    ],
    ids=str,
)
def test_8_bits_without_convolutions_are_refused(model, words):
    with pytest.raises(ConfigError, match=words):
        ready_for_inference(model, "int8", lambda model: None)


@in_int8
def test_8_bits_without_rows_or_with_broken_ones_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(ConfigError, match="needs rows like those to come"):
        ready_for_inference(model, "int8")
    with pytest.raises(NonFiniteError, match="range from nan to nan"):
        ready_for_inference(model, "int8", lambda model: model(torch.full((1, 1, 4, 4), torch.nan)))


def test_8_bits_on_a_processor_that_lacks_them_are_refused(monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    monkeypatch.setattr(Int8Conv2d, "forward", lambda self, x: torch.full_like(x, 128))
    with pytest.raises(ConfigError, match="8-bit sums overflow on this processor"):
        ready_for_inference(model, "int8", lambda model: model(torch.ones(1, 1, 4, 4)))


def test_what_cannot_be_traced_has_no_8_bits():
    class Branching(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ConfigError, match=r"cannot trace Branching"):
        ready_for_inference(Branching(), "int8", lambda model: None)


class Aliased(nn.Module):
    """Has a convolution under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layers = nn.Sequential(self.stem, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def forward(self, x):
        return self.layers(x).mean((2, 3))


class Asking(nn.Sequential):
    """Asks what its layers are."""

    def forward(self, x):
        for layer in self:
            x = layer(x) * (2.0 if isinstance(layer, nn.MaxPool2d) else 1.0)
        return x


@pytest.mark.parametrize("make", [Aliased, lambda: Asking(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))])
def test_models_that_would_do_something_else_with_other_layers_predict_the_same(make):
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 3, 8, 8)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.running_mean.fill_(1.0)
    with torch.inference_mode():
        torch.testing.assert_close(ready_for_inference(model, "fp32")(images), model(images))


@in_int8
def test_8_bits_for_a_model_that_asks_what_its_layers_are_are_refused():
    model, images = Asking(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match="does something else with other layers"):
        ready_for_inference(model, "int8", lambda model: model(images))
