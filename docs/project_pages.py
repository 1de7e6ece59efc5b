"""Make the repository's own pages part of the site, so that each text exists once.

README becomes the start page; CONTRIBUTING, CHANGELOG and LICENSE become pages beside the guide. Their links
are written for the repository's root, so `docs/design.md` is turned into `design.md`, and so on.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
}


def rewrite_links(text: str) -> str:
    """Turn links that hold at the repository's root into links that hold on the site.

    >>> rewrite_links("[a](docs/design.md#b) [c](CONTRIBUTING.md) [d](https://example.org/docs/x)")
    '[a](design.md#b) [c](contributing.md) [d](https://example.org/docs/x)'
    >>> rewrite_links('<img src="docs/flow.svg">')
    '<img src="flow.svg">'
    """
    text = re.sub(r"""(\]\(|(?:src|href|srcset)=["'])docs/""", r"\1", text)
    for source, page in PAGES.items():
        text = re.sub(rf"\]\({re.escape(source)}(#[^)]*)?\)", rf"]({page}\1)", text)
    return text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's pages to the files that MkDocs found under docs/."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        path = root / source
        if path.exists():
            text = path.read_text(encoding="utf-8")
            content = f"# License\n\n```text\n{text}```\n" if source == "LICENSE" else rewrite_links(text)
            files.append(File.generated(config, page, content=content))
    return files
