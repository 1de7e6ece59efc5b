"""``hqde doctor``: what this machine has, whether it works, and what to do where it does not."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.markup import escape
from rich.table import Table

from hqde.cli.console import Format, FormatOption, out, print_json
from hqde.cli.examination import Finding, examine_machine
from hqde.cli.self_test import Speed, self_tests

MARKS = {"ok": "[green]✓[/]", "note": "[dim]·[/]", "problem": "[yellow]![/]"}


def doctor(format_: FormatOption = Format.text) -> None:
    """Look the machine over: versions, threads, devices, memory, disk, extras; train, pack and aggregate."""
    findings, speeds = list(examine_machine()), {}
    for finding, speed in self_tests():
        findings.append(finding)
        if speed is not None:
            speeds[finding.what.removeprefix("self-test ")] = speed
    if format_ is Format.json:
        print_json(
            {
                "findings": [asdict(finding) for finding in findings],
                "problems": sum(finding.level == "problem" for finding in findings),
                "speeds": {name: {speed.unit: speed.figure} for name, speed in speeds.items()},
            }
        )
    else:
        _print(findings, speeds)
    if any(finding.level == "problem" for finding in findings if finding.what.startswith("self-test")):
        raise typer.Exit(1)


def _print(findings: list[Finding], speeds: dict[str, Speed]) -> None:
    table = Table(show_header=False, box=None)
    for finding in findings:
        table.add_row(MARKS[finding.level], finding.what, escape(finding.found), escape(finding.cure))
    out.print(table)
    problems = [finding for finding in findings if finding.level == "problem"]
    tests = f"{len(speeds)} of 3 self-tests passed"
    if not problems:
        out.print(f"nothing is wrong here; {tests}", soft_wrap=True)
    else:
        out.print(f"{len(problems)} problem(s), {tests}:", soft_wrap=True)
        for finding in problems:
            out.print(f"  {finding.what}: {escape(finding.cure)}", soft_wrap=True)
