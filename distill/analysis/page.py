"""A report's page: one HTML file that needs nothing beside it. All text is escaped here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

CSS = """
:root { color-scheme: light dark; --page: #fdfdfc; --ink: #1c1e21; --soft: #5c6570;
        --rule: #dfe2e6; --card: #f4f5f6; --accent: #2f6cc0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171a; --ink: #e4e6e9; --soft: #9aa3ad; --rule: #33383e; --card: #1e2125;
          --accent: #79aef2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 54rem; background: var(--page);
       color: var(--ink); font: 16px/1.6 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: .8rem;
     border-top: 1px solid var(--rule); }
p { margin: .6rem 0; } .soft { color: var(--soft); }
.findings { background: var(--card); border-left: 3px solid var(--accent); border-radius: 4px;
            padding: .8rem 1.2rem .8rem 2.4rem; margin: 1.4rem 0; }
.findings li { margin: .35rem 0; }
figure { margin: 1.4rem 0; } figure svg { width: 100%; height: auto; display: block; }
figure img { max-width: 100%; display: block; image-rendering: pixelated; border-radius: 3px; }
figcaption { color: var(--soft); font-size: .88rem; line-height: 1.5; margin-top: .5rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.row figure { margin: .6rem 0; }
.row img { width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
code { font: .86em ui-monospace, "DejaVu Sans Mono", monospace; }
"""


@dataclass
class Section:
    """A heading and what stands under it.

    Attributes:
        title: the heading.
        parts: HTML of each block, in order; the methods append to it.
    """

    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, text: str, soft: bool = False) -> None:
        """Add a paragraph."""
        self.parts.append(f"<p{' class=soft' if soft else ''}>{escape(text)}</p>")

    def findings(self, sentences: Sequence[str]) -> None:
        """Add what was found, as a list that stands out; nothing for none."""
        if sentences:
            items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
            self.parts.append(f'<ul class="findings">{items}</ul>')

    def plot(self, svg: str, caption: str, name: str) -> None:
        """Add a plot of `plotting.to_svg`, which is trusted, with its caption.

        Args:
            svg: the element.
            caption: how to read it.
            name: read aloud in place of the image.
        """
        labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
        self.parts.append(f"<figure>{labelled}<figcaption>{escape(caption)}</figcaption></figure>")

    def images(self, images: Sequence[tuple[str, str]]) -> None:
        """Add images side by side: pairs of data: URI and caption."""
        figures = "".join(
            f'<figure><img src="{escape(uri)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for uri, caption in images
        )
        self.parts.append(f'<div class="row">{figures}</div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first column is text, the others are numbers."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        self.parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
            "</table></div>"
        )


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: heading and title.
        subtitle: one line under it.
        sections: in order; one without a title is the page's beginning.
    """
    body = []
    for section in sections:
        heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
        body.append(f"<section>{heading}{''.join(section.parts)}</section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>'
        f"{''.join(body)}</body></html>\n"
    )
