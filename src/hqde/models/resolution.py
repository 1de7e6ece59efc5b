"""From the name of a model, or a class, to something that builds it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import get_type_hints

from torch import nn

from hqde.errors import ConfigError, did_you_mean
from hqde.models.cnn import CNN
from hqde.models.mlp import MLP
from hqde.models.resnet import ResNet18

ModelFactory = Callable[..., nn.Module]

BUILT_IN: Mapping[str, ModelFactory] = {"mlp": MLP, "cnn": CNN, "resnet18": ResNet18}


def resolve_factory(name: str) -> ModelFactory:
    """The class or function behind a model's name.

    Args:
        name: ``"mlp"``, ``"cnn"``, ``"resnet18"``, or ``"module:Class"``. Modules are looked for in the
            working directory first, then where Python always looks; importing one runs its code. A function
            in the class's place must be annotated to return a torch module: names also come out of saved
            files, and a saved file must not get to call any function of any module.

    Raises:
        ConfigError: the name is unknown, the module cannot be imported, has no such attribute, or the
            attribute builds no torch module.

    >>> resolve_factory("torch.nn:Linear").__name__
    'Linear'
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"unknown model {name!r}: {did_you_mean(name, BUILT_IN)} (your own class is 'module:Class')"
        )
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        local = "<" in name
        cure = "hand over the local class itself in Python" if local else "write it as in 'my_models:Net'"
        raise ConfigError(f"model {name!r} is not an importable 'module:Class'; {cure}")
    with _working_directory_first():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ConfigError(
                f"model {name!r}: cannot import {module_name!r} from {os.getcwd()!r} or the Python path "
                f"({type(error).__name__}: {error})"
            ) from error
    try:
        found: object = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ConfigError(
            f"model {name!r}: module {module_name!r} has no {attribute!r}; {_cure(module, attribute)}"
        ) from error
    factory = check_factory(found)
    if not isinstance(factory, type) and not _returns_module(factory):
        raise ConfigError(
            f"model {name!r} is a function that does not say it returns a model; "
            "annotate it: -> torch.nn.Module"
        )
    return factory


def check_factory(found: object) -> ModelFactory:
    """``found`` itself if it is a torch module class or any function, else ConfigError."""
    if isinstance(found, type):
        if issubclass(found, nn.Module):
            return found
        raise ConfigError(f"{found.__name__} is not a torch.nn.Module class; derive it from torch.nn.Module")
    if inspect.isroutine(found):
        return found
    kind = type(found).__name__
    if isinstance(found, nn.Module):
        raise ConfigError(
            f"a model must be built anew for every worker, but this {kind} is already built; give its class"
        )
    raise ConfigError(f"a model must be a torch.nn.Module class or a function that returns one, got {kind}")


def check_options(factory: ModelFactory, name: str, options: Mapping[str, object]) -> None:
    """Raise ConfigError unless ``factory(**options)`` fits the constructor's signature.

    Names the options that are not accepted, and what is; then those that are required and missing.
    """
    keywords, takes_any = accepted_options(factory)
    unknown = [] if takes_any else sorted(set(options) - set(keywords))
    if unknown:
        accepts = ", ".join(keywords) or "no options"
        raise ConfigError(f"model {name!r} does not accept {', '.join(unknown)}; it accepts {accepts}")
    missing = [key for key, required in keywords.items() if required and key not in options]
    if missing:
        raise ConfigError(f"model {name!r} needs {', '.join(missing)}; add them to the model's options")


def accepted_options(factory: ModelFactory) -> tuple[dict[str, bool], bool]:
    """The keyword arguments of a constructor, each with whether it is required, and whether it takes any."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"cannot read the arguments of {factory!r}; wrap it in a Python function"
        ) from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    keywords = {p.name: p.default is inspect.Parameter.empty for p in parameters if p.kind in named}
    return keywords, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _returns_module(function: ModelFactory) -> bool:
    try:
        returned = get_type_hints(function).get("return")
    except (NameError, TypeError):
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)


def _cure(module: ModuleType, attribute: str) -> str:
    if module.__name__ == "__main__":
        return "it was a class of a script or notebook: hand it over in Python, or move it into a module"
    names = [
        key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)
    ]
    return did_you_mean(attribute, names) if names else "it holds no torch.nn.Module class"


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Let imports see the working directory, which an installed command's path leaves out."""
    entry = os.getcwd()
    importlib.invalidate_caches()
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
