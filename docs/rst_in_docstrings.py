"""The docstrings' equations and references, written for Python's help(), as Markdown."""

import re
from typing import Any

from griffe import Extension, Object

_BLOCK = re.compile(r"^\.\. math::(.*(?:\n(?:[ \t].*|[ \t]*(?=\n[ \t])))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:class|meth|func):`~?([^`]+)`")


def as_markdown(text: str) -> str:
    """A docstring without reStructuredText."""
    text = _BLOCK.sub(lambda match: _equation(match[1]), text)
    return _ROLE.sub(r"`\1`", _INLINE.sub(r"$\1$", text))


def _equation(body: str) -> str:
    lines = [line.strip() for line in body.strip().splitlines()]
    if any("&" in line for line in lines):
        lines = [r"\begin{align*}", *lines, r"\end{align*}"]
    return "\n".join(["$$", *lines, "$$"])


class Rst(Extension):
    """Every docstring that mkdocstrings reads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
