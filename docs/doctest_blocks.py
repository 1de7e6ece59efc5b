"""Show a docstring's `>>>` examples as code: Markdown alone would read them as quotations."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object


def fence_examples(text: str) -> str:
    """Put each example, from its first prompt to the next blank line, into a fenced block.

    >>> fence_examples("Text:\\n>>> 1 + 1\\n2\\n\\nMore.").splitlines()
    ['Text:', '', '```pycon', '>>> 1 + 1', '2', '```', '', 'More.']
    """
    lines: list[str] = []
    closing = ""
    for line in [*text.split("\n"), ""]:
        indent = line[: len(line) - len(line.lstrip())]
        if not closing and line.lstrip().startswith(">>>"):
            closing = f"{indent}```"
            lines += ["", f"{closing}pycon"]
        elif closing and not line.strip():
            lines.append(closing)
            closing = ""
        lines.append(line)
    return "\n".join(lines[:-1])


class DoctestBlocks(Extension):
    """The Griffe extension that rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fence_examples(obj.docstring.value)
