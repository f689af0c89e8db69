"""HTML for notebooks: a framed card, its title, bars, and text that is safe to show.

A card is one element with all that it needs: its styles, which follow the notebook's theme, and for
tables a few lines of script that sort them.  Where a notebook strips styles and scripts (GitHub,
notebooks that are not trusted), the card reads as plain tables.

A stranger may have written the keys, paths, dtypes and messages that a card shows.  Each of them
passes through `escaped` or `bdi`.  These first remove the characters that cannot be seen, some of
which turn text round, and then escape what HTML would take for its own.
"""

from __future__ import annotations

import functools
import html
import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from arraychest.text import visible

_STYLE = """
.arraychest{--bg:#fff;--ink:#24292f;--faint:#6a737d;--line:#d8dee4;--stripe:#f6f8fa;--ram:#0072b2;
--disk:#d98200;--good:#009e73;--bad:#c2410c;--track:#e7ebef;--chunk:#cfe5f3;--chunk2:#b4d5ea;
--chunk3:#9cc6e0;--edge:#2f6f9c}
@media (prefers-color-scheme:dark){.arraychest{DARK}}
[data-jp-theme-light="true"] .arraychest,body.vscode-light .arraychest,
body.vscode-high-contrast-light .arraychest,[data-theme="light"] .arraychest{LIGHT}
[data-jp-theme-light="false"] .arraychest,body.vscode-dark .arraychest,
body.vscode-high-contrast:not(.vscode-high-contrast-light) .arraychest,
[data-theme="dark"] .arraychest{DARK}
.arraychest{background:var(--bg);color:var(--ink);border:1px solid var(--line);border-radius:8px;
padding:12px 16px;font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
max-width:60rem;box-sizing:border-box;display:inline-block;min-width:min(34rem,100%);
text-align:left;color-scheme:light dark}
.arraychest *{box-sizing:border-box}
.arraychest .ac-title{font-size:14px;margin-bottom:8px;overflow-wrap:anywhere}
.arraychest .ac-title b{margin-right:.5em}
.arraychest .ac-faint{color:var(--faint)}
.arraychest .ac-bad{color:var(--bad)}
.arraychest .ac-flow{display:flex;flex-wrap:wrap;gap:10px 32px;align-items:center}
.arraychest table{border-collapse:collapse;border:0;margin:0;font-size:12px;color:inherit;
background:none;table-layout:auto}
.arraychest thead{border:0}
.arraychest.arraychest tbody tr,.arraychest.arraychest tbody tr:hover{background:none}
.arraychest tr,.arraychest th,.arraychest td{border:0;background:none;color:inherit;
text-align:left;padding:3px 10px;vertical-align:top;white-space:nowrap;max-width:none}
.arraychest .ac-n{text-align:right;font-variant-numeric:tabular-nums}
.arraychest .ac-key{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:normal;overflow-wrap:anywhere;min-width:15em}
.arraychest .ac-bars{width:100%}
.arraychest .ac-bars td{padding:2px 12px 2px 0;vertical-align:middle}
.arraychest .ac-bars td:nth-child(2){width:45%;min-width:9em}
.arraychest .ac-track{height:12px;border-radius:6px;background:var(--track);overflow:hidden;
display:flex}
.arraychest .ac-track i{display:block;height:100%;min-width:2px}
.arraychest .ac-scroll{max-height:22rem;overflow:auto;margin-top:10px;
border-top:1px solid var(--line)}
.arraychest .ac-list{width:100%}
.arraychest .ac-list thead th{position:sticky;top:0;background:var(--bg);font-weight:600;
box-shadow:0 1px 0 var(--line)}
.arraychest .ac-list tbody tr:nth-child(even) td{background:var(--stripe)}
.arraychest .ac-list th[data-sorts]{cursor:pointer;user-select:none}
.arraychest th[aria-sort=ascending]::after{content:" \\2191"}
.arraychest th[aria-sort=descending]::after{content:" \\2193"}
.arraychest .ac-dot{display:inline-block;width:8px;height:8px;border-radius:50%;
margin-right:6px;background:var(--faint)}
.arraychest .ac-ram{background:var(--ram)}.arraychest .ac-disk{background:var(--disk)}
.arraychest .ac-good{background:var(--good)}.arraychest .ac-both{
background:linear-gradient(90deg,var(--disk) 50%,var(--ram) 50%)}
.arraychest svg{display:block;overflow:visible}
.arraychest svg text{fill:var(--ink);stroke:none;font:11px system-ui,sans-serif}
.arraychest .ac-face{fill:var(--chunk);stroke:var(--edge);stroke-width:1.6;stroke-linejoin:round}
.arraychest .ac-top{fill:var(--chunk2)}.arraychest .ac-side{fill:var(--chunk3)}
.arraychest .ac-cut{stroke:var(--edge);stroke-width:.8;fill:none}
.arraychest .ac-many{stroke:var(--edge);stroke-width:.7;fill:none;stroke-dasharray:2 2;opacity:.6}
.arraychest .ac-none{fill:none;stroke-dasharray:4 3}
"""
_LIGHT = _STYLE[_STYLE.index("{") + 1 : _STYLE.index("}")]
_DARK = (
    "--bg:#1c2128;--ink:#dbe2ea;--faint:#98a4b1;--line:#3a424d;--stripe:#242b34;--ram:#56b4e9;"
    "--disk:#e6a53c;--good:#35c79a;--bad:#ff8f66;--track:#333c47;--chunk:#2b5573;--chunk2:#234660;"
    "--chunk3:#1b374c;--edge:#9fcbe8"
)

# Numbers largest first, texts from A on; the other way round at the next click.
_SCRIPT = """
(function(){var t=document.getElementById("ID");if(!t)return;t=t.querySelector(".ac-list");if(!t)
return;var b=t.tBodies[0],h=Array.from(t.tHead.rows[0].cells);h.forEach(function(c,i){
function go(){var n=c.getAttribute("data-sorts")==="n",o=c.getAttribute("aria-sort"),
up=o?o==="descending":!n;h.forEach(function(e){e.removeAttribute("aria-sort")});
c.setAttribute("aria-sort",up?"ascending":"descending");
var v=function(r){var d=r.cells[i];return n?+d.getAttribute("data-v"):d.textContent};
Array.from(b.rows).sort(function(x,y){x=v(x);y=v(y);
var k=n?x-y:x.localeCompare(y,undefined,{numeric:true});return up?k:-k})
.forEach(function(r){b.appendChild(r)})}
c.tabIndex=0;c.addEventListener("click",go);c.addEventListener("keydown",function(e){
if(e.key==="Enter"||e.key===" "){e.preventDefault();go()}})})})();
"""


@functools.cache
def _style() -> str:
    light = " ".join(_LIGHT.split())
    return _STYLE.replace("LIGHT", light).replace("DARK", _DARK)


def escaped(text: object) -> str:
    """The text, without characters that cannot be seen, escaped."""
    return html.escape(visible(str(text)))


def bdi(text: str) -> str:
    """What is written from right to left stays in its place."""
    return f"<bdi>{html.escape(visible(text))}</bdi>"


def framed(*parts: str, script: bool = False) -> str:
    """A card of these parts; with `script` the columns of its table sort it when clicked."""
    name = f"arraychest-{secrets.token_hex(6)}"
    run = f"<script>{_SCRIPT.replace('ID', name)}</script>" if script else ""
    return (
        f'<style>{_style()}</style><div class="arraychest" id="{name}">{"".join(parts)}</div>{run}'
    )


def title(kind: str, rest: str) -> str:
    """The first line of a card."""
    return f'<div class="ac-title"><b>{kind}</b> <span class="ac-faint">{rest}</span></div>'


def facts_card(kind: str, rest: str, facts: Iterable[tuple[str, str]]) -> str:
    """A card of names and texts, a line each; texts of a stranger are safe to show."""
    rows = "".join(f"<tr><th>{escaped(name)}</th><td>{bdi(text)}</td></tr>" for name, text in facts)
    return framed(title(escaped(kind), rest), f"<table><tbody>{rows}</tbody></table>")


class Bar(NamedTuple):
    """One line of bars: what it is of, parts as (class, share), and what is said beside it."""

    name: str
    parts: Sequence[tuple[str, float]]
    text: str


def bars(lines: Sequence[Bar]) -> str:
    """Lines of bars, one below the other."""
    rows = []
    for bar in lines:
        drawn = "".join(
            f'<i class="{kind}" style="width:{100 * min(max(share, 0.0), 1.0):.2f}%"></i>'
            for kind, share in bar.parts
            if share > 0
        )
        rows.append(
            f'<tr><td>{bar.name}</td><td><div class="ac-track">{drawn}</div></td>'
            f"<td>{bar.text}</td></tr>"
        )
    return f'<table class="ac-bars">{"".join(rows)}</table>'
