"""What a frame keeps, as one HTML page that needs nothing else: no script, no font, no network.

In: ``Kept``. Out: the page. Everything from outside is escaped, and the page forbids browsers to load or run anything.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Final

from .kept import Kept, Latent
from .kept_colours import LEGEND, VERBATIM, colour

_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STYLE: Final = f"""
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b;
  background: #fff; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
p.text {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.1rem; line-height: 2; }}
mark {{ padding: .15rem .2rem; border-radius: .2rem; color: inherit; border: 1px solid #0002; }}
.verbatim {{ border-bottom: 3px solid {VERBATIM}; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: top; padding: .15rem .9rem .15rem 0; border-bottom: 1px solid #0002;
  unicode-bidi: isolate; }}
td.n {{ font-variant-numeric: tabular-nums; }} i {{ color: #666; font-style: normal; font-size: .85em; }}
.bar {{ display: inline-block; height: .7rem; background: #4477aa; }}
""".strip()


def page(found: Kept) -> str:
    """The whole page."""
    return "".join(_parts(found))


def _parts(found: Kept) -> Iterator[str]:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>What the frame keeps</title>\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<style>{_STYLE}</style></head><body>\n<h1>What the frame keeps</h1>\n<p>{escape(summary(found))}</p>\n"
    if found.text is not None:
        yield from _text(found, found.text)
    if found.verbatim:
        yield f"<h2>Travels as it is</h2>\n<p>{escape('; '.join(found.verbatim))}</p>\n"
    if found.question:
        yield f"<h2>{escape(found.question)}</h2>\n<p>{escape(found.answer)}</p>\n"
    yield from _latents(found)
    yield "</body></html>\n"


def summary(found: Kept) -> str:
    """One sentence."""
    said = f"{len(found.latents)} latents, {found.bytes} bytes, read by {found.llm}."
    if found.share is None:
        return said
    return f"{said} Of {len(found.words)} words asked for, the latents take away {found.share:.0%} of the surprise."


def escape(text: str) -> str:
    """For HTML; control characters become visible."""
    return html.escape(_CONTROLS.sub("\ufffd", text.encode("utf-8", "replace").decode()))


def _text(found: Kept, text: str) -> Iterator[str]:
    yield "<h2>The text</h2>\n<p>"
    for label, share in LEGEND:
        yield f'<mark style="background:{colour(share)}">{label}</mark> '
    yield '<span class="verbatim">travels as it is</span></p>\n<p class="text">'
    at = 0
    for word in found.words:
        yield escape(text[at : word.start])
        told = f"{word.nats:.2f} nats a token with the latents, {word.without:.2f} without: {word.kept:.0%} taken away"
        classes = ' class="verbatim"' if word.verbatim else ""
        yield f'<mark{classes} style="background:{colour(word.kept)}" title="{told}">'
        yield f"{escape(text[word.start : word.stop])}</mark>"
        at = word.stop
    yield escape(text[at:]) + "</p>\n<p><i>Each coloured word was left out of its sentence and asked for."
    yield " Words without a colour were not asked for.</i></p>\n"


def _latents(found: Kept) -> Iterator[str]:
    most = max((one.influence or 0.0 for one in found.latents), default=0.0)
    columns = ["latent"]
    columns += ["stands for"] if any(one.start is not None for one in found.latents) else []
    columns += ["nearest tokens, cosine"]
    columns += ["the answer without it, nats a token"] if found.question else []
    yield "<h2>The latents</h2>\n<table><tr>" + "".join(f"<th>{c}</th>" for c in columns) + "</tr>\n"
    for one in found.latents:
        yield f'<tr><td class="n">{one.index}</td>'
        if "stands for" in columns:
            yield f"<td>{escape(span(found, one))}</td>"
        near = "&ensp;".join(f"{escape(n.token.strip() or repr(n.token))} <i>{n.cosine:.2f}</i>" for n in one.near)
        yield f"<td>{near}</td>"
        if one.influence is not None:
            wide = round(160 * max(one.influence, 0.0) / most) if most > 0 else 0
            yield f'<td class="n">{one.influence:+.2f} <span class="bar" style="width:{wide}px"></span></td>'
        yield "</tr>\n"
    yield "</table>\n<p><i>Attention weights are not shown: the engines do not give them.</i></p>\n"


def span(found: Kept, one: Latent) -> str:
    """The characters that a latent stands for; empty where that is not known."""
    return "" if found.text is None or one.start is None else found.text[one.start : one.stop].strip()
