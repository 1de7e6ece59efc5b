"""Naming, checking, building, saving and calling models."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from hqde.errors import ConfigError, PreconditionError
from hqde.models import ModelSpec, call_model, model_spec


class Plain(nn.Module):
    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(width, depth)


class Dropping(nn.Module):
    def __init__(self, *, dropout_rate: float = 0.3) -> None:
        super().__init__()
        self.dropout_rate = dropout_rate


class Greedy(nn.Module):
    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.settings = settings


def make_linear(width: int) -> nn.Module:
    return nn.Linear(width, 1)


def spec_of(name, **rest) -> ModelSpec:
    return model_spec(name, **{"input_shape": (3, 32, 32), "num_outputs": 10, **rest})


@pytest.fixture
def working_directory(tmp_path, monkeypatch) -> Path:
    """An empty working directory whose modules are forgotten afterwards, with sys.path as it was."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_built_in_spec_survives_json_and_builds_the_same_bits(name, norm):
    spec = spec_of(name, norm=norm)
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)
    torch.manual_seed(1)
    first = spec.build(dropout_rate=0.2).state_dict()
    torch.manual_seed(1)
    second = again.build(dropout_rate=0.2).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_making_a_spec_draws_no_random_numbers_and_leaves_the_default_device():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    spec_of("cnn")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.empty(1).device.type == "cpu"


def test_options_reach_the_constructor_and_the_dropout_argument_wins():
    spec = spec_of("mlp", options={"hidden": (7, 5), "dropout_rate": 0.4})
    assert spec.options["hidden"] == [7, 5]
    rates = [m.p for m in spec.build().modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.4, 0.4]
    rates = [m.p for m in spec.build(dropout_rate=0.1).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.1, 0.1]
    assert [m.out_features for m in spec.build().modules() if isinstance(m, nn.Linear)] == [7, 5, 10]


def test_a_spec_is_independent_of_the_callers_options_and_of_what_a_constructor_does_to_them():
    class Emptying(nn.Module):
        def __init__(self, sizes: list[int]) -> None:
            super().__init__()
            sizes.clear()

    sizes = [1, 2]
    spec = spec_of(Emptying, options={"sizes": sizes})
    sizes.append(3)
    spec.build()
    spec.to_dict()["options"]["sizes"].append(4)
    assert spec.options == {"sizes": [1, 2]}


def test_specs_pickle_and_compare_by_name_and_options():
    spec = spec_of("cnn")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec != spec_of("cnn", num_outputs=9)
    assert len({spec, spec_of("cnn"), spec_of("mlp")}) == 2
    one, other = ModelSpec("a:B", {"x": 1, "y": 2}), ModelSpec("a:B", {"y": 2, "x": 1})
    assert one == other
    assert hash(one) == hash(other)


def test_dropout_reaches_only_constructors_that_name_it():
    dropping, greedy, plain = spec_of(Dropping), spec_of(Greedy), spec_of(Plain, options={"width": 2})
    assert dropping.build(dropout_rate=0.15).dropout_rate == 0.15
    assert dropping.build().dropout_rate == 0.3
    assert greedy.build(dropout_rate=0.15).settings == {}
    assert plain.build(dropout_rate=0.15).layer.out_features == 1
    assert [s.accepts_dropout for s in (dropping, greedy, plain)] == [True, False, False]


def test_a_users_class_gets_its_options_alone():
    assert spec_of(Greedy, options={"a": 1}).build().settings == {"a": 1}


def test_a_class_in_python_is_named_but_not_saved():
    spec = spec_of(Plain, options={"width": 3})
    assert spec.name == f"{Plain.__module__}:Plain"
    assert spec.to_dict() == {"name": spec.name, "options": {"width": 3}}
    loaded = ModelSpec.from_dict(spec.to_dict(), factory=Plain)
    assert loaded == spec
    assert isinstance(loaded.build(), Plain)


def test_functions_build_models():
    assert isinstance(spec_of(make_linear, options={"width": 2}).build(), nn.Linear)
    assert isinstance(spec_of(lambda: nn.Linear(1, 1)).build(), nn.Linear)
    with pytest.raises(ConfigError, match=r"returned int, not a torch.nn.Module"):
        spec_of(lambda: 3).build()


def test_modules_are_found_in_the_working_directory_and_in_packages(working_directory):
    Path("nets_of_mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    class Small(nn.Module):\n"
        "        pass\n"
        "def make(width: int) -> nn.Linear:\n"
        "    return nn.Linear(width, 1)\n"
    )
    Path("pack_of_mine").mkdir()
    Path("pack_of_mine/inner.py").write_text("from torch import nn\nclass Deep(nn.Module):\n    pass\n")
    assert type(spec_of("nets_of_mine:Net").build()).__name__ == "Net"
    assert type(spec_of("nets_of_mine:Net.Small").build()).__name__ == "Small"
    assert spec_of("nets_of_mine:make", options={"width": 4}).build().in_features == 4
    assert type(spec_of("pack_of_mine.inner:Deep").build()).__name__ == "Deep"
    assert type(spec_of("torch.nn:Identity").build()) is nn.Identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", r"unknown model 'resnet': did you mean 'resnet18'\? \(your own class is 'module:Class'\)"),
        ("transformer9", r"unknown model 'transformer9': known: cnn, mlp, resnet18"),
        ("no_such_module_here:Net", r"cannot import 'no_such_module_here' .*ModuleNotFoundError"),
        ("broken:Net", r"cannot import 'broken' .*ZeroDivisionError"),
        ("fine:Nett", r"module 'fine' has no 'Nett'; did you mean 'Net'\?"),
        ("empty:Net", r"module 'empty' has no 'Net'; it holds no torch.nn.Module class"),
        ("__main__:Gone", r"script or notebook: hand it over in Python"),
        ("fine:Other", r"Other is not a torch.nn.Module class; derive it"),
        ("fine:number", r"must be a torch.nn.Module class or a function that returns one, got int"),
        ("fine:built", r"this Linear is already built; give its class"),
        ("fine:vague", r"does not say it returns a model; annotate it: -> torch.nn.Module"),
        ("os:system", r"does not say it returns a model"),
        ("subprocess:getoutput", r"does not say it returns a model"),
        ("fine.py:Net", r"cannot import 'fine.py'"),
        ("./fine:Net", r"not an importable 'module:Class'; write it as in 'my_models:Net'"),
        ("fine:", r"not an importable 'module:Class'"),
        (":Net", r"not an importable 'module:Class'"),
        ("fine:f.<locals>.Net", r"hand over the local class itself"),
    ],
)
def test_names_that_do_not_resolve_are_refused_with_the_cure(working_directory, name, message):
    Path("broken.py").write_text("1 / 0\n")
    Path("empty.py").write_text("x = 1\n")
    Path("fine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n    pass\n"
        "class Other:\n    pass\n"
        "number = 3\n"
        "built = nn.Linear(1, 1)\n"
        "def vague(width):\n    return nn.Linear(width, 1)\n"
    )
    with pytest.raises(ConfigError, match=message):
        spec_of(name)


def test_options_that_do_not_fit_the_constructor_are_named_with_what_does():
    with pytest.raises(ConfigError, match=r"does not accept widht; it accepts width, depth"):
        spec_of(Plain, options={"widht": 3})
    with pytest.raises(ConfigError, match=r"does not accept deepness, widht"):
        spec_of(Plain, options={"widht": 3, "deepness": 1})
    with pytest.raises(ConfigError, match=r"needs width; add them"):
        spec_of(Plain, options={"depth": 2})
    with pytest.raises(ConfigError, match=r"'mlp' does not accept hiden; it accepts .*hidden"):
        spec_of("mlp", options={"hiden": [3]})
    with pytest.raises(ConfigError, match=r"'mlp': norm, num_outputs must not stand in the options"):
        spec_of("mlp", options={"num_outputs": 3, "norm": "group"})


def test_bad_settings_of_built_in_models_are_refused_at_once():
    with pytest.raises(ConfigError, match="use model 'mlp'"):
        spec_of("cnn", input_shape=(64,))
    with pytest.raises(ConfigError, match="dropout_rate"):
        spec_of("mlp", options={"dropout_rate": 2})
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        spec_of("mlp", norm="bach")
    with pytest.raises(ConfigError, match="examples are tuples or dicts"):
        spec_of("mlp", input_shape=None)


def test_norm_is_refused_where_it_would_be_ignored():
    with pytest.raises(ConfigError, match="norm='group' is for the built-in models"):
        spec_of(Plain, norm="group", options={"width": 1})


def test_what_a_constructor_raises_is_told_with_its_options():
    with pytest.raises(ConfigError, match=r"cannot be built with \{'width': -3\}: RuntimeError") as caught:
        spec_of(Plain, options={"width": -3}).build()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_models_given_in_python_must_be_classes_or_functions():
    with pytest.raises(ConfigError, match="already built"):
        spec_of(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="got partial"):
        spec_of(partial(Plain, 3))
    with pytest.raises(ConfigError, match=r"int is not a torch.nn.Module class"):
        spec_of(int)


@pytest.mark.parametrize("value", [nn.ReLU, torch.ones(1), float("nan"), {1: 2}, [object()], {"a": {3}}])
def test_options_that_json_cannot_hold_are_refused(value):
    with pytest.raises(ConfigError, match=r"options\['setting'\].*cannot hold"):
        spec_of(Greedy, options={"setting": value})


@pytest.mark.parametrize(
    "values", [{}, {"name": "mlp"}, {"name": 3, "options": {}}, {"name": "mlp", "options": {}, "x": 1}]
)
def test_saved_specs_are_checked(values):
    with pytest.raises(ConfigError, match="a saved model must hold"):
        ModelSpec.from_dict(values)


class Sum(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + 2 * right


@dataclass
class Output:
    logits: torch.Tensor


class Wrapping(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, inputs: torch.Tensor) -> object:
        return self.wrap(inputs)


def test_models_are_called_with_a_tensor_a_tuple_or_a_dict():
    ones, twos = torch.ones(2, 1), torch.full((2, 1), 2.0)
    assert torch.equal(call_model(nn.Identity(), ones), ones)
    assert torch.equal(call_model(Sum(), (ones, twos)), ones + 4)
    assert torch.equal(call_model(Sum(), {"right": ones, "left": twos}), twos + 2)


@pytest.mark.parametrize("wrap", [lambda x: x, Output, lambda x: {"logits": x, "loss": None}])
def test_logits_are_taken_out_of_what_a_model_returns(wrap):
    inputs = torch.randn(3, 2)
    assert torch.equal(call_model(Wrapping(wrap), inputs), inputs)


@pytest.mark.parametrize(
    "wrap", [lambda x: (x,), lambda x: {"scores": x}, lambda x: None, lambda x: Output(3)]
)
def test_outputs_without_a_tensor_are_refused(wrap):
    with pytest.raises(PreconditionError, match=r"Wrapping returned \w+; return a tensor"):
        call_model(Wrapping(wrap), torch.ones(1, 1))


def test_inputs_of_another_type_are_refused():
    with pytest.raises(PreconditionError, match="got list"):
        call_model(nn.Identity(), [torch.ones(1)])
