"""The package as a whole: what importing it costs, what it exports, and how big its files are."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hqde

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "hqde").rglob("*.py"))
NEVER = ("ray", "matplotlib", "fastapi", "pyarrow", "sklearn", "typer", "rich")
PUBLIC = sorted(set(hqde.__all__) - {"__version__"})


def modules_after(statement: str) -> set[str]:
    """The modules a fresh interpreter holds after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = modules_after("import hqde")
    assert "hqde" in loaded
    assert loaded.isdisjoint({*NEVER, "torch", "numpy", "pydantic"})


def test_the_system_needs_neither_scikit_learn_nor_anything_optional() -> None:
    loaded = modules_after("from hqde import HQDESystem, Ensemble, Topology, load_splits")
    assert "torch" in loaded
    assert loaded.isdisjoint(NEVER)


def test_loading_an_ensemble_needs_no_training_code() -> None:
    loaded = modules_after("from hqde import Ensemble")
    assert loaded.isdisjoint({*NEVER, "pydantic", "hqde.training", "hqde.rounds", "hqde.backends"})


def test_importing_costs_little_beside_torch() -> None:
    code = """
import time
began = time.process_time()
import torch
middle = time.process_time()
from hqde import HQDESystem
print(middle - began, time.process_time() - middle)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch_s, hqde_s = map(float, done.stdout.split())  # processor time: other processes do not matter
    assert hqde_s < 0.5 * torch_s + 0.5


@pytest.mark.parametrize("name", PUBLIC)
def test_every_exported_name_is_there_and_documented(name: str) -> None:
    found = getattr(hqde, name)
    assert found.__doc__, f"{name} has no docstring"
    assert found.__name__ == name
    assert found.__module__.startswith("hqde.")


def test_exports_are_the_same_for_people_and_for_type_checkers() -> None:
    source = (ROOT / "src" / "hqde" / "__init__.py").read_text(encoding="utf-8")
    typed = source.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    assert all(name in typed for name in PUBLIC)
    assert hqde.__all__ == sorted(hqde.__all__)
    assert set(hqde.__all__) <= set(dir(hqde))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hqde' has no attribute 'HQDE'"):
        hqde.HQDE  # noqa: B018 - the access is the test


def test_the_version_is_that_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert hqde.__version__ == project["version"]


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {path.as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert SOURCES
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_file_is_named_after_nothing_in_particular() -> None:
    assert {path.stem for path in SOURCES} & {"utils", "helpers", "common", "misc", "manager"} == set()
