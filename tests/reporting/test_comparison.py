"""Several runs on one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hqde.errors import RunError
from hqde.reporting import build_comparison, read_run, render_comparison

WriteRun = Callable[..., Path]


def quality(accuracy: float) -> Callable[..., None]:
    def change(_lines: Any, figures: dict[str, Any], _evaluation: Any) -> None:
        figures["accuracy"] = accuracy

    return change


def test_figures_settings_and_curves_of_each_run(write_run: WriteRun, tmp_path: Path) -> None:
    one = write_run("one", change=quality(0.91))
    two = write_run("two", num_rounds=12, change=quality(0.95))
    (two / "config.toml").write_text("[train]\nepochs = 12\n")
    page = build_comparison([one, two], tmp_path / "out" / "both.html").read_text().replace("\xa0", " ")
    assert "two has the best test accuracy: 95.0 %." in page
    assert "two was the quickest: 16.8 s." in page
    assert "train.epochs" in page
    assert "train.learning_rate" in page
    for title in ("Validation accuracy by epoch", "Validation accuracy by time", "Training loss by epoch"):
        assert title in page
    assert page.count("<svg") == 7
    assert page.count("<title>one</title>") == page.count("<title>two</title>") == 7


def test_an_unfinished_run_is_compared_as_far_as_it_got(write_run: WriteRun) -> None:
    records = [read_run(write_run("one")), read_run(write_run("two", finished=False))]
    page = render_comparison(records, ["one", "two"])
    assert "Not finished yet: two." in page
    assert "has the best" not in page


def test_regressions_are_compared_by_their_error(write_run: WriteRun) -> None:
    names = ["one", "two"]
    page = render_comparison([read_run(write_run(name, regression=True)) for name in names], names)
    assert "Validation RMSE by epoch" in page
    assert "best test RMSE" in page


def test_runs_of_the_same_name_are_told_apart(write_run: WriteRun, tmp_path: Path) -> None:
    runs = []
    for folder in ("a", "b"):
        run = write_run("run")
        (tmp_path / folder).mkdir()
        runs.append(run.rename(tmp_path / folder / "run"))
    page = build_comparison(runs, tmp_path / "both.html").read_text()
    assert "<li>a/run</li><li>b/run</li>" in page
    with pytest.raises(RunError, match="named twice"):
        build_comparison([runs[0], runs[0]], tmp_path / "both.html")


def test_bad_comparisons(write_run: WriteRun, tmp_path: Path) -> None:
    one = write_run("one")
    with pytest.raises(RunError, match="2 to 8 runs, got 1"):
        build_comparison([one], tmp_path / "x.html")
    with pytest.raises(RunError, match="got 9"):
        build_comparison([one] * 9, tmp_path / "x.html")
    two = write_run("two")
    with pytest.raises(RunError, match="is a directory"):
        build_comparison([one, two], tmp_path)
    with pytest.raises(RunError, match="cannot be written"):
        build_comparison([one, two], one / "config.toml" / "x.html")
