"""The guide names every setting with its default, and only settings that exist."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from hqde.config import Config, GroupConfig, build_config

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `(?P<name>[\w.]+\.[\w.]+)` \| (?P<default>.+?) \| (?P<meaning>.+?) \|$", re.MULTILINE)
LEFT_OUT = "—"
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def as_toml(value: object) -> str:
    """A default as the page shows it: a TOML value in code, or a dash where nothing stands for it."""
    if value is None:
        return LEFT_OUT
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value!r}`"


def settings(of: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its full name, with its default as the page shows it."""
    for field in fields(of):
        value = getattr(of, field.name)
        if isinstance(of, Config) and field.name == "group":
            yield from settings(GroupConfig(), "group.N.")
        elif is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", as_toml(value)


def documented() -> list[tuple[str, str]]:
    """Name and default of every row of the page's tables, in order."""
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    return [(row["name"], row["default"]) for row in ROW.finditer(page)]


def test_no_setting_is_documented_twice() -> None:
    names = [name for name, _ in documented()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(("name", "default"), list(settings(Config())))
def test_every_setting_is_documented_with_its_default(name: str, default: str) -> None:
    assert dict(documented()).get(name) == default


def test_every_documented_setting_exists() -> None:
    assert {name for name, _ in documented()} == {name for name, _ in settings(Config())}


def test_defaults_are_shown_as_toml() -> None:
    shown = [as_toml(value) for value in (None, True, "a", 0.5, {})]
    assert shown == ["—", "`true`", '`"a"`', "`0.5`", "`{}`"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_every_configuration_shown_is_accepted(path: Path) -> None:
    for block in TOML.findall(path.read_text(encoding="utf-8")):
        build_config(tomllib.loads(block))
