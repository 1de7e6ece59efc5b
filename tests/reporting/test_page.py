"""The page as a whole: well formed, self-contained, escaped, small, and quiet in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hqde.errors import RunError
from hqde.reporting import build_comparison, build_report, read_run

WriteRun = Callable[..., Path]
VOID = {"meta", "img", "br", "hr", "input", "link"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>\'"&'


class Page(HTMLParser):
    """Checks the nesting of tags while it collects them, their attributes and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def page_of(run: Path) -> tuple[str, Page]:
    html = build_report(run).read_text(encoding="utf-8")
    return html, Page(html)


def hostile(write_run: WriteRun) -> Path:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        figures |= {"data": EVIL, "model": EVIL, "backend": EVIL}

    events = [{"time": EVIL, "round": 3, "kind": EVIL, "worker": None, "reason": EVIL}]
    run = write_run(classes=[EVIL + str(i) for i in range(10)], events=events, change=change)
    (run / "config.toml").write_text(f'source = "{EVIL}</pre></details>"\n')
    return run


SHAPES: dict[str, dict[str, Any]] = {
    "classification": {},
    "regression": {"regression": True},
    "unfinished": {"finished": False},
    "unfinished regression": {"finished": False, "regression": True},
    "one worker, one round": {"num_workers": 1, "num_groups": 1, "num_rounds": 1, "branch_at": 1},
    "two members": {"num_workers": 2, "num_groups": 2, "num_rounds": 2, "branch_at": 1},
    "many groups, few workers": {"num_workers": 12, "num_groups": 12, "num_rounds": 5},
    "many workers, few groups": {"num_workers": 40, "num_groups": 2, "num_rounds": 5},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_run_gives_a_well_formed_page_that_loads_nothing(
    write_run: WriteRun, shape: str
) -> None:
    html, page = page_of(write_run(**SHAPES[shape]))
    assert page.count("html") == page.count("main") == 1
    assert page.count("svg") >= 3
    assert "http://" not in html
    assert "https://" not in html
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset"):
                assert (value or "").startswith("data:image/png;base64," if tag == "img" else "#"), (
                    tag,
                    value,
                )
    assert not re.search(r"url\(|@import", html)
    assert "nan" not in re.findall(r"[a-z]+", " ".join(str(a.get("d", "")) for _, a in page.tags))
    assert ("unfinished" in page.words) == (not SHAPES[shape].get("finished", True))


def test_every_chart_says_what_to_read_and_has_words_for_those_who_cannot_see_it(write_run: WriteRun) -> None:
    html, page = page_of(write_run())
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(chart.get("role") == "img" and chart.get("aria-label") for chart in charts)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    for figure in html.split("<figure>")[1:]:
        assert re.search(r"<h3>[^<]{20,}</h3>", figure)
        assert figure.count('class="label') in (0, 1, 2)  # a table has none
    for anchor in re.findall(r'href="#([\w-]+)"', html):
        assert f'id="{anchor}"' in html


def test_what_users_write_is_shown_and_never_run(write_run: WriteRun) -> None:
    html, page = page_of(hostile(write_run))
    assert "<script" not in html
    assert "<img src=x" not in html
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert EVIL in page.words
    assert f"{EVIL}3" in page.words  # a class name


def test_a_class_name_that_utf8_cannot_say_does_not_stop_the_page(write_run: WriteRun) -> None:
    run = write_run(classes=["\ud800", *map(str, range(9))])
    assert page_of(run)[1].count("html") == 1


def test_the_same_run_gives_the_same_page(write_run: WriteRun) -> None:
    run = write_run()
    first = build_report(run).read_bytes()
    assert build_report(run, run / "again" / "page.html").read_bytes() == first


def test_the_page_goes_where_it_is_asked_and_leaves_nothing_else(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run()
    before = {path.name for path in run.iterdir()}
    assert build_report(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    assert (run / "report.html").stat().st_mode & 0o777 == 0o644
    with pytest.raises(RunError, match="is a directory"):
        build_report(run, tmp_path)


def test_a_broken_run_leaves_the_old_page_alone(write_run: WriteRun) -> None:
    run = write_run()
    old = build_report(run).read_bytes()
    (run / "metrics.json").write_text("{")
    with pytest.raises(RunError):
        build_report(run)
    assert (run / "report.html").read_bytes() == old


@pytest.mark.parametrize(("temperature", "told"), [(1.23, True), (1.0, False), (None, False)])
def test_the_page_says_which_figures_are_calibrated(
    write_run: WriteRun, temperature: float | None, told: bool
) -> None:
    def change(lines: Any, figures: Any, evaluation: Any) -> None:
        figures["temperature"] = temperature

    assert ("probabilities calibrated" in page_of(write_run(change=change))[1].words) == told


def test_figures_that_are_missing_are_left_out(write_run: WriteRun) -> None:
    run = write_run()
    (run / "metrics.json").write_text("{}")
    (run / "evaluation.json").write_text(json.dumps({"task": "classification", "classes": ["a", "b"]}))
    (run / "events.jsonl").unlink()
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    bare = [{"round": line["round"]} for line in lines]
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
    _, page = page_of(run)
    assert page.count("svg") == 0


def test_only_the_last_events_of_many_are_listed(write_run: WriteRun) -> None:
    events = [
        {"time": "", "round": 1 + i % 20, "kind": "rejected", "worker": i % 8, "reason": f"reason {i}"}
        for i in range(500)
    ]
    _, page = page_of(write_run(events=events))
    assert "the last 200 of 500" in page.words
    assert "500 updates were rejected" in page.words
    assert "reason 499" in page.words
    assert "reason 299" not in page.words.split("Rejections, failures")[1]


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [4, 64])
def test_64_workers_and_1000_rounds_stay_small_and_quick(write_run: WriteRun, num_groups: int) -> None:
    def sundry(lines: list[dict[str, Any]], *_: dict[str, Any]) -> None:
        for line in lines:
            for row in line["workers"]:
                reliability = 0.9 - 0.005 * row["worker"]
                row |= {"data_s": 0.1, "encode_s": 0.05, "reliability": reliability}
            line["workers"][5]["status"] = "rejected"

    event = {"time": "2026-01-02T03:05:00+00:00", "kind": "rejected", "worker": 5, "reason": "not finite"}
    run = write_run(
        num_workers=64, num_groups=num_groups, num_rounds=1000, branch_at=500, num_samples=20_000,
        events=[event | {"round": index} for index in range(1, 1001)], change=sundry,
    )  # fmt: skip
    started = time.process_time()  # not the wall clock: the machine may be busy with other things
    page = build_report(run)
    assert time.process_time() - started < 10
    assert page.stat().st_size < 3_000_000
    Page(page.read_text(encoding="utf-8"))
    assert len(read_run(run).rounds) == 1000


def console_of(page: Path, profile: Path) -> str:
    """What a headless browser writes to its console while it shows a page."""
    assert CHROMIUM is not None
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom",
    ]  # fmt: skip
    command = [CHROMIUM, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "</html>" in done.stdout
    return "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_has_nothing_to_complain_about(write_run: WriteRun, tmp_path: Path) -> None:
    page = build_report(hostile(write_run))
    assert console_of(page, tmp_path / "profile") == ""
    compared = build_comparison([write_run("one"), write_run("two", num_samples=30)], tmp_path / "both.html")
    assert console_of(compared, tmp_path / "profile 3") == ""
    # The same check must see a complaint where there is one: the page's own policy forbids scripts.
    html = page.read_text(encoding="utf-8").replace("</body>", "<script>1</script></body>")
    page.write_text(html, encoding="utf-8")
    assert "Content Security Policy" in console_of(page, tmp_path / "profile 2")
