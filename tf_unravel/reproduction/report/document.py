"""A report as a list of blocks, written as Markdown or as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from collections.abc import Iterable, Sequence

from tf_unravel.text_table import text_table

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #fff; --tint: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --tint: #161b22 } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1rem }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin-top: 2.4rem } h3 { font-size: 1.05rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .65rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { background: var(--tint); font-weight: 600 } p.caption { color: var(--soft); font-size: .88rem; margin-top: .4rem }
.pinned td:first-child, .pinned th:first-child { position: sticky; left: 0 }
.pinned td:first-child { background: var(--paper) }
figure { margin: 1rem 0; overflow-x: auto } img { width: 100%; min-width: 40rem; height: auto; background: #fff }
code { overflow-wrap: anywhere }
@media screen and (max-width: 62rem) { th { min-width: var(--least) } }
@page { size: landscape }
@media print { body { max-width: none; font-size: 10pt } .scroll { overflow: visible } h2 { break-after: avoid }
  img { min-width: 0 } pre { white-space: pre-wrap }
  figure, tr { break-inside: avoid } table { font-size: 8pt } th, td { padding: .15rem .35rem } }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `small` for what belongs under a table or figure."""

    text: str
    small: bool = False


@dataclasses.dataclass(frozen=True)
class Code:
    """A command."""

    text: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table: the head, and rows of as many cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Image:
    """A figure: the path of its PNG relative to the document, the bytes, and what it shows."""

    path: str
    png: bytes = dataclasses.field(repr=False)
    text: str = ""


_NARROW = 20  # characters of a first column that may stay in view on a phone
_RAGGED = 4  # characters that the end of a line leaves empty

Block = Heading | Text | Code | Grid | Image


def markdown(blocks: Iterable[Block]) -> str:
    """The document as Markdown; images are links."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text, small):
            return f"*{text}*" if small else text
        case Code(text):
            return f"```\n{text}\n```"
        case Grid(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        case Image(path, _, text):
            return f"![{text}]({path})"


def page(blocks: Sequence[Block]) -> str:
    """The document as one HTML page: styles and images inside, no script."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(_html(block) for block in blocks)
        + "\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, small):
            return f'<p class="caption">{html.escape(text)}</p>' if small else f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f'<div class="scroll"><pre><code>{html.escape(text)}</code></pre></div>'
        case Grid(head, rows):
            widths = [_least_width(column) for column in zip(head, *rows, strict=True)]
            top = "".join(f'<th style="--least: {width}ch">{html.escape(cell)}</th>'
                          for cell, width in zip(head, widths, strict=True))
            lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
            body = "\n".join(f"<tr>{line}</tr>" for line in lines)
            # A first column that is narrow stays in view while the others are scrolled.
            pinned = ' class="pinned"' if widths[0] <= _NARROW else ""
            table = f"<table{pinned}>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
            return f'<div class="scroll">{table}</div>'
        case Image(_, png, text):
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            return f'<figure><img src="{source}" alt="{html.escape(text, quote=True)}"></figure>'


def _least_width(cells: Sequence[str]) -> int:
    """The width of a column in characters at which no cell needs more than some three lines, on a small screen too."""
    longest = max(map(len, cells))
    return longest if longest <= _NARROW // 2 else max(_NARROW // 2, math.ceil(longest / 3) + _RAGGED)


def plain(block: Grid) -> str:
    """A table for a terminal."""
    return text_table([block.head, *block.rows])
