"""What the site needs beyond Markdown: equations without a script, the benchmarks' plots.

Equations become MathML, which browsers draw by themselves, so that a page needs no network.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*href=["']?(?:https?:)?//[^>]+"""
    r"""|(?:@import\s+|url\()["']?(?:https?:)?//[^"')\s]+"""
)
"""What a browser fetches from another machine when it opens a page; a link to follow is not."""


def on_files(files: Files, config: Any) -> Files:
    """Add the plots, which lie beside the results."""
    for plot in sorted((ROOT / RESULTS).glob("*.png")):
        files.append(File.generated(config, f"{RESULTS}/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """From docs/ the plots are one folder up, in the site they are not."""
    return markdown.replace(f"(../{RESULTS}/", f"({RESULTS}/")


def on_page_content(content: str, **_: Any) -> str:
    """LaTeX as MathML."""
    return EQUATION.sub(mathml, content)


def mathml(equation: re.Match) -> str:
    """One equation; in a div of its own line, in a span inside a sentence."""
    display = "block" if equation[1] == "div" else "inline"
    latex = html.unescape(equation[2]).strip()
    found = str(convert(latex, display=display))
    if "\\" in found or "<mi>&</mi>" in found:
        raise PluginError(f"latex2mathml cannot read all of {latex}")
    # Browsers that know MathML Core only align a table's columns by CSS.
    return re.sub(r'columnalign="(\w+)"', r'style="text-align: \1"', found)


def on_post_build(config: Any) -> None:
    """Refuse a site that needs the network."""
    site = Path(config["site_dir"])
    pages = [path for suffix in ("html", "css") for path in sorted(site.rglob(f"*.{suffix}"))]
    found = {path.relative_to(site): fetched(path.read_text(encoding="utf-8")) for path in pages}
    remote = [f"{path}: {what}" for path, whats in found.items() for what in whats]
    if remote:
        raise PluginError("the site would fetch from the network:\n" + "\n".join(remote))


def fetched(text: str) -> list[str]:
    """What a page or a style sheet fetches from another machine."""
    return FETCHED.findall(text)
