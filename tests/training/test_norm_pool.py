"""Batch normalisation, pool and ReLU in one: what the three compute one after the other, but for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from hqde.backends import torch_threads
from hqde.models import model_spec
from hqde.training.norm_pool import NormPoolReLU, fuse_norm_pools, norm_pools


def some_norm(channels):
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, -1.0, 2.0)  # some below 0: the least of a window wins
    nn.init.normal_(norm.bias)
    return norm


def some_images(shape, dtype, *, mean=3.0):
    images = (torch.randn(shape) * 2 + mean).to(dtype)
    return images.contiguous(memory_format=torch.channels_last)


def trained(layer, images, gradient):
    """What a layer gives, and everything that it sends back and keeps."""
    inputs = images.clone().requires_grad_()
    out = layer(inputs)
    out.backward(gradient.to(out.dtype))
    return [out, inputs.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]


class OneByOne(nn.BatchNorm2d):
    """The oracle: PyTorch's own operations."""

    def forward(self, inputs):
        return functional.relu(functional.max_pool2d(super().forward(inputs), 2))


def one_by_one(norm, dtype):
    layer = OneByOne(norm.num_features)
    layer.load_state_dict(norm.state_dict())
    return layer.to(dtype)


def error(found, exact):
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("shape", [(32, 16, 12, 12), (3, 5, 7, 9), (1, 2, 2, 3), (8, 33, 4, 4)])
def test_it_is_what_float64_gives(dtype, tolerance, shape):
    torch.manual_seed(1)
    norm, images = some_norm(shape[1]), some_images(shape, dtype)
    gradient = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2).to(dtype)
    exact = trained(one_by_one(norm, torch.float64), images.double(), gradient)
    layer = NormPoolReLU(norm)
    found = trained(layer, images, gradient)
    assert found[0].dtype == found[1].dtype == dtype
    assert layer.num_batches_tracked == 1
    for one, other in zip(found, exact, strict=True):
        assert error(one, other) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 16, 24, 24), (1, 5, 7, 9)])
def test_bits_do_not_depend_on_threads(dtype, shape):
    torch.manual_seed(1)
    norm, images = some_norm(shape[1]), some_images(shape, dtype)
    gradient = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2)
    found = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            found.append(trained(NormPoolReLU(copy.deepcopy(norm)), images, gradient))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


def test_a_first_pixel_far_out_costs_no_accuracy():
    torch.manual_seed(1)
    norm, images = some_norm(3), some_images((16, 3, 32, 32), torch.float32, mean=0.0)
    images[0, :, 0, 0] = 100.0
    layer, exact = NormPoolReLU(norm), one_by_one(norm, torch.float64)
    assert error(layer(images), exact(images.double())) < 1e-5
    assert error(layer.running_var, exact.running_var) < 1e-6


def test_a_mean_far_from_0_costs_no_accuracy():
    torch.manual_seed(1)
    norm, images = some_norm(4), some_images((64, 4, 8, 8), torch.float32, mean=1e4)
    gradient = torch.randn(64, 4, 4, 4)
    exact = trained(one_by_one(norm, torch.float64), images.double(), gradient)
    for one, other in zip(trained(NormPoolReLU(norm), images, gradient), exact, strict=True):
        assert error(one, other) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equals_the_first_gets_the_gradient_as_in_pytorch(dtype):
    norm, images = nn.BatchNorm2d(1), torch.ones(2, 1, 2, 2)
    images[1] = torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    nn.init.constant_(norm.bias, 2.0)
    gradient = torch.ones(2, 1, 1, 1)
    exact = trained(one_by_one(norm, torch.float64), images.double(), gradient)
    found = trained(NormPoolReLU(norm), images, gradient)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=0.02, atol=1e-3)


def test_a_nan_stays_one():
    images = some_images((2, 3, 4, 4), torch.bfloat16)
    images[0, 1, 0, 0] = torch.nan
    out = NormPoolReLU(nn.BatchNorm2d(3))(images)
    assert out[:, 1].isnan().all()
    assert out[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "images",
    [
        torch.randn(4, 3, 6, 6),  # not channels-last
        torch.randn(4, 3, 6, 6).double().contiguous(memory_format=torch.channels_last),
    ],
    ids=["layout", "dtype"],
)
def test_where_it_does_not_apply_pytorch_does_it(images):
    norm = some_norm(3).to(images.dtype)
    gradient = torch.randn(4, 3, 3, 3)
    exact = trained(one_by_one(norm, images.dtype), images, gradient)
    assert all(map(torch.equal, trained(NormPoolReLU(norm), images, gradient), exact))


def test_evaluation_uses_what_was_kept():
    norm, images = some_norm(3), some_images((4, 3, 6, 6), torch.float32)
    layer, exact = NormPoolReLU(copy.deepcopy(norm)).eval(), one_by_one(norm, torch.float32).eval()
    assert torch.equal(layer(images), exact(images))


def test_layers_in_a_row_are_fused_in_either_order_and_share_their_parameters():
    for middle in ([nn.ReLU(), nn.MaxPool2d(2)], [nn.MaxPool2d(2), nn.ReLU()]):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *middle, nn.Flatten())
        before, parameters = {**model.state_dict()}, list(model.parameters())
        fuse_norm_pools(model, norm_pools(model))
        assert isinstance(model[1], NormPoolReLU)
        assert model.training
        assert list(model.state_dict()) == list(before)
        assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
        assert model.state_dict()["1.running_mean"].data_ptr() == before["1.running_mean"].data_ptr()


def convolved(*, after=nn.Identity):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), after(), *three())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_over_what_a_convolution_computed_are_the_same(dtype):
    norm, images = some_norm(3), some_images((4, 3, 7, 6), dtype)
    gradient = torch.randn(4, 3, 3, 3)
    layers = [NormPoolReLU(copy.deepcopy(norm), own_inputs=own) for own in (False, True)]
    kept, over = (trained_through(layer, images, gradient) for layer in layers)
    assert all(map(torch.equal, kept, over))


def trained_through(layer, images, gradient):
    """The same as ``trained``, of inputs that somebody computed."""
    leaf = images.clone().requires_grad_()
    out = layer(leaf * 2)
    out.backward(gradient.to(out.dtype))
    return [out, leaf.grad, layer.weight.grad, layer.bias.grad]


def test_inputs_are_written_over_where_a_convolution_computes_them_for_nobody_else():
    [found] = norm_pools(nn.Sequential(nn.Conv2d(3, 4, 3), *three()))
    assert found.own_inputs
    [found] = norm_pools(convolved(after=nn.Sigmoid))  # keeps its outputs for its own gradient
    assert not found.own_inputs
    [found] = norm_pools(Shared())
    assert not found.own_inputs
    hooked_convolution = nn.Sequential(nn.Conv2d(3, 4, 3), *three())
    hooked_convolution[0].register_forward_hook(lambda *_: None)
    assert not any(found.own_inputs for found in norm_pools(hooked_convolution))


def test_who_reads_inputs_that_were_written_over_is_told():
    layer = NormPoolReLU(some_norm(3), own_inputs=True)
    leaf = some_images((2, 3, 4, 4), torch.float32).requires_grad_()
    inputs = leaf * 2
    out = layer(inputs).sum() + inputs.square().sum()  # the square wants its inputs on the way back
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out.backward(retain_graph=True), out.backward())


class Shared(nn.Module):
    """Gives what its convolution computes to others too."""

    def __init__(self):
        super().__init__()
        self.convolution, self.layers = nn.Conv2d(3, 4, 3), nn.Sequential(*three())

    def forward(self, x):
        x = self.convolution(x)
        return self.layers(x).sum() + x.mean()


class Tapped(nn.Module):
    """Looks at what the normalisation gives."""

    def __init__(self):
        super().__init__()
        self.norm, self.relu, self.pool = nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.norm(x)
        return self.pool(self.relu(x)).sum() + x.mean()


class Named(nn.Module):
    """Has a layer under two names."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(self.norm, nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x):
        return self.layers(x)


class Listed(nn.Module):
    """Reaches its layers by a list of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)])
        self.own = list(self.layers)

    def forward(self, x):
        for layer in self.own:
            x = layer(x)
        return x


class Helped(nn.Sequential):
    """Looks at what the normalisation gives in training alone."""

    def forward(self, x):
        x = self[0](x)
        more = x.mean() if self.training else 0.0
        return self[2](self[1](x)) + more


class Choosy(nn.Sequential):
    """Asks what its layers are."""

    def forward(self, x):
        for layer in self:
            x = layer(x) * (2.0 if isinstance(layer, nn.MaxPool2d) else 1.0)
        return x


class Lazy(nn.Sequential):
    """Keeps what it computed first."""

    kept = None

    def forward(self, x):
        self.kept = torch.ones_like(x) if self.kept is None else self.kept
        return super().forward(x * self.kept)


def three():
    return nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)


def hooked(place):
    model = nn.Sequential(*three())
    model[place].register_forward_hook(lambda module, inputs, out: out * 3)
    return model


def pruned():
    model = nn.Sequential(*three())
    prune.l1_unstructured(model[0], "weight", amount=1)
    return model


def test_a_model_that_keeps_values_is_left_as_it_was():
    model, images = Lazy(*three()), some_images((2, 4, 6, 6), torch.float32)
    exact = copy.deepcopy(model)(images)
    fuse_norm_pools(model, norm_pools(model))
    assert model.kept is None
    assert isinstance(model[0], NormPoolReLU)
    torch.testing.assert_close(model(images), exact)


def test_a_normalisation_that_is_frozen_stays_so():
    model = nn.Sequential(*three())
    model[0].eval()
    fuse_norm_pools(model, norm_pools(model))
    assert not model[0].training


def test_a_whole_network_trains_as_it_would():
    torch.manual_seed(0)
    model = model_spec("cnn", input_shape=(3, 16, 16), num_outputs=10, options={"dropout_rate": 0.0}).build()
    model = model.to(memory_format=torch.channels_last)
    exact, images = copy.deepcopy(model), some_images((8, 3, 16, 16), torch.float32)
    fuse_norm_pools(model, norm_pools(model))
    for one in (model, exact):
        one(images).square().mean().backward()
    for (name, found), expected in zip(model.named_parameters(), exact.parameters(), strict=True):
        if (
            not name.endswith("bias") or "body.0" not in name
        ):  # a bias before a normalisation gets rounding alone
            torch.testing.assert_close(found.grad, expected.grad, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        Tapped(),
        Named(),
        Listed(),
        Helped(*three()),
        Choosy(*three()),
        hooked(0),
        hooked(1),
        pruned(),
        nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(3), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(2, padding=1), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.MaxPool2d(2)),
    ],
    ids=[
        "tapped",
        "named",
        "listed",
        "helped",
        "choosy",
        "hooked",
        "hooked ReLU",
        "pruned",
        "3x3",
        "padded",
        "two ReLUs",
        "bare",
        "no momentum",
    ],
)
def test_what_is_not_in_a_row_is_left_alone(model):
    assert norm_pools(model) == []


def test_the_cnn_has_three():
    model = model_spec("cnn", input_shape=(3, 32, 32), num_outputs=10).build()
    exact = copy.deepcopy(model)
    fuse_norm_pools(model, norm_pools(model))
    assert sum(isinstance(layer, NormPoolReLU) for layer in model.modules()) == 3
    images = some_images((8, 3, 32, 32), torch.float32)
    found, expected = model.eval()(images), exact.eval()(images)
    torch.testing.assert_close(found, expected)
