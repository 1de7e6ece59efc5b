"""TOML to strict objects and back."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from hqde.config.settings import Config, GroupConfig
from hqde.errors import ConfigError, did_you_mean
from hqde.training import Recipe

Tree = dict[str, Any]


def load_tree(path: Path | str) -> Tree:
    """Read a TOML file.

    Raises:
        ConfigError: it is missing, cannot be read, or is not TOML.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no config file {file}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def parse_assignment(text: str) -> Tree:
    """``"a.b=v"`` as a tree; ``v`` is a TOML value, or a bare word.

    Raises:
        ConfigError: there is no ``=`` or no name.

    Example:
        >>> parse_assignment("training.batch_size=64"), parse_assignment("model.name=cnn")
        ({'training': {'batch_size': 64}}, {'model': {'name': 'cnn'}})
    """
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"'{text}' is not a setting; write it as section.name=value")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def merge_trees(*trees: Mapping[str, Any]) -> Tree:
    """Later trees win, table by table.

    >>> merge_trees({"run": {"seed": 1, "epochs": 2}}, {"run": {"seed": 3}})
    {'run': {'seed': 3, 'epochs': 2}}
    """
    merged: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge_trees(merged[key], value) if both else value
    return merged


def build_config(tree: Mapping[str, Any]) -> Config:
    """A configuration from a tree of settings; what is left out takes its default.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value of the wrong type or out of range.

    Example:
        >>> build_config({"run": {"epochs": 3}}).run.epochs
        3
        >>> build_config({"run": {"ep0chs": 3}})
        Traceback (most recent call last):
        hqde.errors.ConfigError: unknown setting 'run.ep0chs'; did you mean 'epochs'?
    """
    config: Config = _build(Config, tree, "")
    for name, group in config.group.items():
        if not name.isdecimal() or name != str(int(name)):
            raise ConfigError(f"[group.{name}] must be named by its number, e.g. [group.0]")
        _build(Recipe, group.training, f"group.{name}.training.")
    return config


def dump_config(config: Config) -> str:
    """The configuration as TOML; settings that are ``None`` are left out."""
    return tomli_w.dumps(_without_none(asdict(config)))


def changed_settings(old: Config, new: Config) -> list[str]:
    """Names of the settings that decide a run's weights and in which two configurations differ.

    Where workers live, and who watches, does not count: a run may go on elsewhere.

    >>> changed_settings(build_config({}), build_config({"run": {"seed": 1, "backend": "ray"}}))
    ['run.seed']
    """
    return _differences(without_place(asdict(old)), without_place(asdict(new)), "")


def without_place(tree: Mapping[str, Any]) -> Tree:
    """A configuration's tree without where workers live and who watches: the weights do not depend on it.

    >>> without_place({"run": {"backend": "ray", "seed": 0}, "ray": {"plan": "tree"}})
    {'run': {'seed': 0}}
    """
    kept = {name: value for name, value in tree.items() if name not in ("ray", "monitoring")}
    places = ("backend", "lanes", "stacked")
    return kept | {"run": {name: value for name, value in kept.get("run", {}).items() if name not in places}}


def _build(kind: Any, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"[{prefix.rstrip('.')}] must be a table of settings, got {tree!r}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in known:
            raise ConfigError(f"unknown setting '{prefix}{name}'; {did_you_mean(name, known)}")
        hint = hints[name]
        if is_dataclass(hint):
            values[name] = _build(hint, value, f"{prefix}{name}.")
        elif hint == dict[str, GroupConfig]:
            if not isinstance(value, Mapping):
                raise ConfigError(f"[{name}] must hold tables like [group.0], got {value!r}")
            values[name] = {key: _build(GroupConfig, group, f"group.{key}.") for key, group in value.items()}
        else:
            values[name] = _leaf(hint, value, f"{prefix}{name}")
    return kind(**values)


def _leaf(hint: Any, value: Any, name: str) -> Any:
    try:
        # strict: neither "3" nor true is a number
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        wanted = " or ".join(problem["msg"].removeprefix("Input should be ") for problem in error.errors())
        raise ConfigError(f"setting '{name}' must be {wanted}, got {value!r}") from None


def _without_none(tree: Tree) -> Tree:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def _differences(old: Tree, new: Tree, prefix: str) -> list[str]:
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key), new.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}")
    return found
