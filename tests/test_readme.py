"""The README and the guide say only what runs: their Python blocks and `$ hqde` lines are executed here.

Each file is read from top to bottom in one temporary directory and one namespace, so that a later block may
use what an earlier one made. A block right after a line `<!-- not run -->` is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from hqde.cli import app

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent>[ \t]*)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = "<!-- not run -->"


class Block(NamedTuple):
    """One fenced block: its language, its text, and the line of the file that its text starts on."""

    language: str
    text: str
    line: int


def blocks(markdown: str) -> list[Block]:
    """The fenced Python and console blocks of a page, in order, without those marked as not run."""
    found = []
    for fence in FENCE.finditer(markdown):
        before = markdown[: fence.start()].rstrip().rsplit("\n", 1)[-1].strip()
        if fence["language"] in ("python", "console") and before != NOT_RUN:
            line = markdown.count("\n", 0, fence.start("body")) + 1
            found.append(Block(fence["language"], textwrap.dedent(fence["body"]), line))
    return found


def commands(console: str) -> list[str]:
    """The `$ hqde` commands of a console block; a backslash at the end of a line continues it."""
    joined = console.replace("\\\n", " ")
    return [line.strip()[2:] for line in joined.splitlines() if line.strip().startswith("$ hqde")]


def run_command(command: str, where: str) -> None:
    """Run a command as a reader would: in a shell that finds `hqde` and `python` of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{where}: `{command}` ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    )


def run_here(command: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command without pipes and the like in this process, which has PyTorch at hand already."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    code = None
    try:
        app.main()
    except SystemExit as leave:
        code = leave.code
    assert not code, f"{where}: `{command}` ended with {code}"


def run_page(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every block of one page in the current directory: the README's commands in a shell."""
    program = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)  # a class defined in a block is found where it says
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.language == "console":
            for command in commands(block.text):
                where = f"{path.name}:{block.line}"
                if path.name == "README.md" or set(command) & set("|&;<>$`"):
                    run_command(command, where)
                else:
                    run_here(command, where, monkeypatch)
        else:
            # Blank lines in front make a traceback name the page's own line.
            exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), program.__dict__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_the_page_says_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(path, monkeypatch)


def test_blocks_are_found_in_order_with_their_lines() -> None:
    page = (
        "# T\n\n```python\na = 1\n```\n\n<!-- not run -->\n```python\nboom\n```\n\n"
        "    ```console\n    $ hqde x\n    ```\n"
    )
    assert blocks(page) == [Block("python", "a = 1\n", 4), Block("console", "$ hqde x\n", 13)]


def test_a_continued_command_is_one_command_and_output_is_none() -> None:
    assert commands("$ hqde train \\\n    --epochs 2\nround 1\n$ ls\n$ hqde doctor\n") == [
        "hqde train      --epochs 2",
        "hqde doctor",
    ]


def test_a_page_that_fails_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\nand\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, monkeypatch)


def test_a_command_that_fails_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ hqde that-does-not-exist\n```\n")
    with pytest.raises(AssertionError, match="that-does-not-exist` ended with 2"):
        run_page(page, monkeypatch)
    page.write_text("```console\n$ hqde-that-does-not-exist | cat\n```\n")
    with pytest.raises(AssertionError, match="hqde-that-does-not-exist"):
        run_page(page, monkeypatch)
