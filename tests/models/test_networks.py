"""The reference networks: shapes, sizes, determinism, normalisation, dropout, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hqde.errors import ConfigError, PreconditionError
from hqde.models import BUILT_IN, CNN, MLP, NORMS, Dropout, ResNet18, draw_dropout_from
from hqde.models.normalization import group_count

IMAGE_SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 9, 17)]


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model_class", "input_shape", "expected"),
    [
        # linear 64*128+128, 128*128+128, head 128*10+10, two norms of 2*128
        (MLP, (1, 8, 8), 8320 + 16512 + 1290 + 512),
        # convolutions 9*in*out+out, norms 2*out, head 128*4*4*10+10
        (CNN, (3, 32, 32), 896 + 18496 + 73856 + 448 + 20490),
        (CNN, (1, 28, 28), 320 + 18496 + 73856 + 448 + 128 * 9 * 10 + 10),
        (CNN, (1, 8, 8), 320 + 18496 + 73856 + 448 + 1290),
        (ResNet18, (3, 32, 32), 11_173_962),
    ],
)
def test_parameter_counts(model_class, input_shape, expected, norm):
    assert num_parameters(model_class(input_shape, 10, norm=norm)) == expected


def test_the_small_cnn_has_the_size_its_docs_state():
    assert num_parameters(CNN((3, 32, 32), 10)) == 114_186


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("input_shape", IMAGE_SHAPES)
@pytest.mark.parametrize("model_class", [MLP, CNN, ResNet18])
def test_outputs_have_one_row_per_example_and_gradients_reach_every_parameter(model_class, input_shape, norm):
    torch.manual_seed(0)
    model = model_class(input_shape, 7, norm=norm, dropout_rate=0.0)
    outputs = model(torch.randn(3, *input_shape))
    assert outputs.shape == (3, 7)
    nn.functional.cross_entropy(outputs, torch.tensor([0, 3, 6])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.head.weight.grad.abs().sum() > 0
    first = next(model.parameters())
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 2, 3, 4)])
def test_mlp_takes_any_shape_and_equals_its_flattened_self(shape):
    torch.manual_seed(0)
    model = MLP(shape, 4, hidden=(16,)).eval()
    inputs = torch.randn(6, *shape)
    torch.manual_seed(0)
    flat = MLP((math.prod(shape),), 4, hidden=(16,)).eval()
    assert torch.equal(model(inputs), flat(inputs.flatten(1)))


def test_mlp_without_hidden_layers_is_linear():
    model = MLP((3,), 2, hidden=()).eval()
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(model(a + b), model(a) + model(b) - model(torch.zeros(1, 3)))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("norm", NORMS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(name, norm):
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return BUILT_IN[name]((3, 8, 8), 5, norm=norm).state_dict()

    first, again, other = state(3), state(3), state(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_group_norm_carries_no_buffers_and_treats_each_example_alone(name):
    torch.manual_seed(0)
    model = BUILT_IN[name]((3, 16, 16), 5, norm="group", dropout_rate=0.0)
    assert not list(model.buffers())
    inputs = torch.randn(4, 3, 16, 16)
    together = model(inputs)
    alone = torch.cat([model(row[None]) for row in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_batch_norm_has_running_statistics(name):
    model = BUILT_IN[name]((3, 16, 16), 5, norm="batch")
    assert any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, nn.GroupNorm) for m in model.modules())


@pytest.mark.parametrize(("side", "expected"), [(32, 4), (28, 4), (9, 2), (8, 1)])
def test_resnet_halves_the_image_three_times_and_no_more(side, expected):
    model = ResNet18((1, side, side), 2).eval()
    with torch.no_grad():
        stem = model.stem(torch.zeros(1, 1, side, side))
        assert stem.shape == (1, 64, side, side)
        assert model.body(stem).shape == (1, 512, expected, expected)


def test_group_count_divides_and_leaves_at_least_sixteen_channels():
    for channels in range(1, 600):
        groups = group_count(channels)
        assert channels % groups == 0
        assert groups == 1 or channels // groups >= 16
    assert [group_count(c) for c in (32, 64, 128, 256, 512)] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_dropout_acts_in_training_only_and_at_the_stated_rate(name):
    torch.manual_seed(0)
    model = BUILT_IN[name]((3, 16, 16), 5, dropout_rate=0.5, norm="group")
    rates = {m.p for m in model.modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.5}
    inputs = torch.randn(2, 3, 16, 16)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_first_outputs_are_small_so_that_the_first_loss_is_near_log_classes(name):
    torch.manual_seed(0)
    model = BUILT_IN[name]((3, 32, 32), 10, dropout_rate=0.0)
    inputs, targets = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    loss = nn.functional.cross_entropy(model(inputs), targets).item()
    assert loss == pytest.approx(math.log(10), abs=0.5)


def test_resnet_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    for conv in (m for m in ResNet18((3, 32, 32), 10).modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.var().item() * fan_out == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("norm", NORMS)
def test_the_cnn_learns_a_separable_problem(norm):
    torch.manual_seed(0)
    model = CNN((1, 8, 8), 2, norm=norm)
    targets = torch.arange(64) % 2
    inputs = torch.randn(64, 1, 8, 8)
    inputs[:, :, :, :4] += 2.0 * targets.float()[:, None, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert (model.eval()(inputs).argmax(1) == targets).float().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "shape", "settings", "message"),
    [
        ("cnn", (64,), {}, r"cnn needs images .* shape \(64,\); use model 'mlp'"),
        ("resnet18", (8, 8), {}, r"resnet18 needs images"),
        ("cnn", (1, 7, 28), {}, r"at least 8x8 pixels, got 7x28"),
        ("cnn", (1, 8, 8), {"channels": (8, 8, 8, 8)}, r"at least 16x16 pixels, got 8x8"),
        ("cnn", (1, 8, 8), {"channels": ()}, r"at least one block"),
        ("resnet18", (3, 32, 4), {}, r"at least 8x8 pixels, got 32x4"),
        ("cnn", (0, 8, 8), {}, r"input_shape\[0\] must be a whole number of at least 1, got 0"),
        ("mlp", (), {}, r"input_shape is empty"),
        ("mlp", (4,), {"hidden": (8, -1)}, r"hidden\[1\] .* got -1"),
        ("mlp", (4,), {"hidden": 8}, r"hidden must be a list of whole numbers, got 8"),
        ("mlp", (4,), {"hidden": "88"}, r"hidden must be a list"),
        ("mlp", (4,), {"hidden": (2.5,)}, r"hidden\[0\] .* got 2.5"),
        ("mlp", (4,), {"hidden": (True,)}, r"hidden\[0\] .* got True"),
        ("mlp", (4,), {"hidden": (1,), "norm": "group"}, r"constant"),
        ("mlp", (4,), {"dropout_rate": 1.0}, r"dropout_rate must be at least 0 and below 1, got 1.0"),
        ("cnn", (1, 8, 8), {"dropout_rate": -0.1}, r"got -0.1"),
        ("resnet18", (1, 8, 8), {"dropout_rate": float("nan")}, r"got nan"),
        ("resnet18", (1, 8, 8), {"norm": "grop"}, r"unknown norm 'grop': did you mean 'group'\?"),
    ],
)
def test_refusals(name, shape, settings, message):
    with pytest.raises(ConfigError, match=message):
        BUILT_IN[name](shape, 3, **settings)


@pytest.mark.parametrize("num_outputs", [0, -1, 2.0, True])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_number_of_outputs_is_checked(name, num_outputs):
    with pytest.raises(ConfigError, match="num_outputs must be a whole number"):
        BUILT_IN[name]((3, 8, 8), num_outputs)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_scales_the_rest(rate, dtype):
    layer = Dropout(rate)
    draw_dropout_from(torch.Generator().manual_seed(5), layer)
    inputs = torch.ones(333, 301, dtype=dtype)
    before = torch.get_rng_state()
    found = layer(inputs)
    assert torch.equal(torch.get_rng_state(), before)
    taken = min(rate, 1 - 2**-16)
    deviation = (rate * (1 - rate) / inputs.numel()) ** 0.5
    assert float((found == 0).double().mean()) == pytest.approx(taken, abs=5 * deviation + 2**-16)
    assert set(found.unique().tolist()) <= {
        0.0,
        float(torch.tensor(1 / (1 - round(taken * 2**16) / 2**16)).to(dtype)),
    }
    assert not torch.equal(layer(inputs), found)
    rows, columns = (found == 0).double().mean(1), (found == 0).double().mean(0)
    assert rows.var() == pytest.approx(rate * (1 - rate) / 301, rel=0.5, abs=1e-4)
    assert columns.var() == pytest.approx(rate * (1 - rate) / 333, rel=0.5, abs=1e-4)


def test_dropout_refuses_to_draw_another_mask_in_the_backward_pass():
    layer = Dropout(0.3)
    inputs = torch.rand(4, 3, requires_grad=True)
    checkpoint(layer, inputs, use_reentrant=False).sum().backward()  # the global generator's mask comes again
    draw_dropout_from(torch.Generator().manual_seed(5), layer)
    with pytest.raises(PreconditionError, match=r"take torch\.nn\.Dropout there"):
        checkpoint(layer, inputs, use_reentrant=False).sum().backward()
