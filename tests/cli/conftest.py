"""Running the command in this process, on a table small enough to train in a blink."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch

from hqde.cli import app


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def hqde(monkeypatch, capsys, tmp_path):
    """``hqde("train", "--epochs", 1)`` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hqde", *map(str, arguments)])
        try:
            app.main()
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def _write_table(path, *, rows=120, seed=0):
    """Three classes by the signs of two of four features."""
    draws = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 4, generator=draws)
    names = ["ash", "birch", "cedar"]
    lines = ["a,b,c,d,label"]
    for row in features.tolist():
        kind = names[0] if row[0] > 0.3 else names[1] if row[1] > 0 else names[2]
        lines.append(",".join(f"{value:.6f}" for value in row) + f",{kind}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(tmp_path):
    """A CSV file with a header, words as labels."""
    return _write_table(tmp_path / "trees.csv")


@pytest.fixture
def write_table():
    """``write_table(path, rows=…)``."""
    return _write_table
