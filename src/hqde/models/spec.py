"""How to build one architecture, again and anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from hqde.errors import ConfigError, HqdeError
from hqde.models.normalization import check_norm
from hqde.models.resolution import (
    BUILT_IN,
    ModelFactory,
    accepted_options,
    check_factory,
    check_options,
    resolve_factory,
)
from hqde.seeding import seeded

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


@dataclass(frozen=True)
class ModelSpec:
    """An architecture by name and constructor arguments, without weights.

    Args:
        name: ``"mlp"``, ``"cnn"``, ``"resnet18"``, or ``"module:Class"``.
        options: keyword arguments of the constructor; JSON values only (tuples become lists), because they
            are written into checkpoints and artefacts.
        factory: a class or function given in Python, built instead of what ``name`` would import. Neither
            compared nor saved.

    Raises:
        ConfigError: an option is not a JSON value, or the factory builds no torch module.

    >>> spec = ModelSpec("torch.nn:Linear", {"in_features": 3, "out_features": 2})
    >>> ModelSpec.from_dict(spec.to_dict()) == spec
    True
    >>> spec.build()
    Linear(in_features=3, out_features=2, bias=True)
    """

    name: str
    options: Mapping[str, JSON] = field(default_factory=dict)
    factory: ModelFactory | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"a model's name must be a string, got {self.name!r}")
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"a model's options must be a table of names and values, got {self.options!r}")
        options = {key: _plain(value, f"options[{key!r}]") for key, value in self.options.items()}
        if not all(isinstance(key, str) for key in options):
            raise ConfigError(f"the names of a model's options must be strings, got {list(options)}")
        object.__setattr__(self, "options", options)
        if self.factory is not None:
            check_factory(self.factory)

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(self.options, sort_keys=True)))

    @property
    def accepts_dropout(self) -> bool:
        """Whether the constructor names a ``dropout_rate`` argument; ``**kwargs`` alone does not count."""
        return "dropout_rate" in accepted_options(self._factory())[0]

    def build(self, *, dropout_rate: float | None = None) -> nn.Module:
        """A new model, its starting weights drawn from torch's global generator, which the caller seeds.

        Args:
            dropout_rate: handed to constructors that name such an argument, in place of the one in the
                options; others do not see it. None leaves the options as they are.

        Raises:
            ConfigError: the name does not resolve, the options do not fit the constructor, the constructor
                raised, or it returned something else than a torch module.
        """
        factory = self._factory()
        options: dict[str, object] = deepcopy(dict(self.options))
        if dropout_rate is not None and self.accepts_dropout:
            options["dropout_rate"] = dropout_rate
        check_options(factory, self.name, options)
        try:
            model: object = factory(**options)
        except HqdeError:
            raise
        except Exception as error:
            raise ConfigError(
                f"model {self.name!r} cannot be built with {options}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model {self.name!r} returned {type(model).__name__}, not a torch.nn.Module")
        return model

    def to_dict(self) -> dict[str, JSON]:
        """The name and options as JSON values; the factory is left out."""
        return {"name": self.name, "options": deepcopy(dict(self.options))}

    @classmethod
    def from_dict(cls, values: Mapping[str, JSON], *, factory: ModelFactory | None = None) -> ModelSpec:
        """The spec that `to_dict` wrote; nothing is imported until `build`.

        Args:
            values: exactly ``name`` and ``options``.
            factory: the class to build where ``name`` cannot be imported.

        Raises:
            ConfigError: other keys, or values of the wrong kind.
        """
        name, options = values.get("name"), values.get("options")
        if set(values) != {"name", "options"} or not isinstance(name, str) or not isinstance(options, dict):
            raise ConfigError(f"a saved model must hold a name and a table of options, got {dict(values)}")
        return cls(name, options, factory)

    def _factory(self) -> ModelFactory:
        return self.factory if self.factory is not None else resolve_factory(self.name)


def model_spec(
    name_or_class: str | Callable[..., nn.Module],
    *,
    input_shape: Sequence[int] | None,
    num_outputs: int,
    norm: str = "batch",
    options: Mapping[str, JSON] | None = None,
) -> ModelSpec:
    """The spec of a model for the data at hand, checked before anything is trained.

    A built-in network is told the data's ``input_shape`` and ``num_outputs`` and the ``norm``; a user's class
    is built from ``options`` alone, and decides all that by itself.

    Args:
        name_or_class: ``"mlp"``, ``"cnn"``, ``"resnet18"``, ``"module:Class"``, or a torch module class or
            function in Python.
        input_shape: shape of one example, without the row dimension; None where examples are tuples or dicts,
            which no built-in network takes.
        num_outputs: columns of the output: classes, 1 for MSE, 2 for Gaussian likelihood.
        norm: ``"batch"`` or ``"group"``; built-in networks only.
        options: further constructor arguments.

    Raises:
        ConfigError: the model is unknown, cannot be imported, is no torch module, does not fit the input
            shape, or does not accept an option.

    >>> model_spec("mlp", input_shape=(4,), num_outputs=3, options={"hidden": [8]})
    ModelSpec(name='mlp', options={'hidden': [8], 'input_shape': [4], 'num_outputs': 3, 'norm': 'batch'})
    """
    check_norm(norm)
    given = dict(options or {})
    if not isinstance(name_or_class, str):
        factory = check_factory(name_or_class)
        name = f"{factory.__module__}:{factory.__qualname__}"
        spec = ModelSpec(name, given, factory)
    elif name_or_class in BUILT_IN:
        return _built_in_spec(name_or_class, input_shape, num_outputs, norm, given)
    else:
        factory, spec = resolve_factory(name_or_class), ModelSpec(name_or_class, given)
    if norm != "batch":
        raise ConfigError(
            f"norm={norm!r} is for the built-in models {', '.join(BUILT_IN)}; "
            f"choose the norm of {spec.name!r} through its own options"
        )
    check_options(factory, spec.name, spec.options)
    return spec


def _built_in_spec(
    name: str, input_shape: Sequence[int] | None, num_outputs: int, norm: str, options: dict[str, JSON]
) -> ModelSpec:
    fixed = sorted({"input_shape", "num_outputs", "norm"} & set(options))
    if fixed:
        raise ConfigError(
            f"model {name!r}: {', '.join(fixed)} must not stand in the options; the data set or norm= say"
        )
    if input_shape is None:
        raise ConfigError(
            f"model {name!r} takes one tensor, but examples are tuples or dicts; use 'module:Class'"
        )
    shape: list[JSON] = list(input_shape)
    spec = ModelSpec(name, {**options, "input_shape": shape, "num_outputs": num_outputs, "norm": norm})
    # Built once and thrown away, so that a bad setting is refused here and not in the middle of a run.
    with seeded(0, "model_spec"):
        spec.build()
    return spec


def _plain(value: object, where: str) -> JSON:
    """``value`` as fresh JSON: tuples become lists; anything JSON cannot hold exactly is refused."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
    elif isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise ConfigError(
        f"a model's {where} is {value!r}, which a saved model cannot hold; use numbers, strings, lists or "
        "tables, or a function of yours that takes them and builds the model"
    )
