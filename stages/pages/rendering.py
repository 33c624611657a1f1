"""Pages from templates, and the blocks between markers by which one page takes over a part of another.

A cell of an HTML table says where its first number comes from: `<td data-of="<file>:<key>/...">`, for each number that
has an address (see `addresses`).
"""

import json
import re
from collections.abc import Callable
from html import escape, unescape
from typing import Any

from jinja2 import Environment, StrictUndefined

from stages.pages import addresses, charts

MARKUP = re.compile(r"[\\`|<\[]")  # of Markdown, in what others wrote
OUR_MARKUP = re.compile(r"[|<]")  # in what we wrote around it, which may have code in backticks


def as_markdown(text: str, markup: re.Pattern[str] = MARKUP) -> str:
    """Text as one line that Markdown shows as it is, in a table too."""
    return markup.sub(r"\\\g<0>", " ".join(text.split()))


NUMBERS: dict[str, Callable[..., str]] = {  # filters of a number
    "number": charts.number,
    "signed": charts.signed,
    "count": lambda value: f"{value:,}",
    "millions": lambda value, digits=2: f"{value / 1e6:,.{digits}f}",
    "thousands": lambda value: f"{value / 1e3:.1f}",
    "thousandths": lambda value: f"{1e3 * value:.1f}",
    "megabytes": lambda value: f"{value / 1e6:.1f}",
    "percent": charts.percent,
    "chance": charts.chance,
    "whole_percent": charts.whole_percent,
    "as": lambda value, form: format(value, form),
}


def render(template: str, context: dict[str, Any], is_html: bool) -> str:
    """Fill a template; text is escaped for HTML, and a name that the context lacks is an error."""
    known: list[str] = []  # addresses of the numbers that were filled in

    def marked(text: str, value: Any) -> str:
        if not is_html or (address := addresses.of(value)) is None:
            return text
        known.append(address)
        return f"{text}{OPENS}{len(known) - 1}{CLOSES}"

    environment = Environment(
        autoescape=is_html,  # noqa: S701 - Markdown is not escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if addresses.of(value) is None else marked(str(value), value),
    )
    environment.filters |= {
        name: lambda value, *form, shown=shown: marked(shown(value, *form), value) for name, shown in NUMBERS.items()
    }
    environment.filters |= {
        "text": as_markdown,
        "told": lambda text: as_markdown(text, OUR_MARKUP),
        "words": lambda name: name.replace("_", " "),
    }
    environment.globals |= {"interval": lambda low, *rest: marked(charts.interval(low, *rest), low)}
    return _addressed_cells(environment.from_string(template).render(context), known)


OPENS, CLOSES = "\ue000", "\ue001"  # around the place of an address; of no text, being in Unicode's private area
MARK = re.compile(f"{OPENS}(\\d+){CLOSES}")
CELL = re.compile(r"<td([^>]*)>(.*?)</td>", re.DOTALL)


def _addressed_cells(page: str, known: list[str]) -> str:
    """The page with each mark's address at its cell, of several marks the first's."""

    def with_address(cell: re.Match[str]) -> str:
        mark = MARK.search(cell[2])
        return f'<td{cell[1]} data-of="{escape(known[int(mark[1])])}">{cell[2]}</td>' if mark else cell[0]

    return MARK.sub("", CELL.sub(with_address, page))


OF_CELL = re.compile(r' data-of="([^"]*)"')


def shortened(page: str) -> str:
    """A page whose cells name their addresses by number; behind `</main>` stands which that is.

    A third of the bytes: the numbers are leaves of a tree of JSON, whose keys are the parts of an address, such as
    `{"reports/comparison.json:":{"joint":{"tests":{"0":{"twin":{"auroc":7}}}}}}`; where an address goes on in others,
    its own number has the key "/".
    """
    tree, numbers = dict[str, Any](), dict[str, int]()

    def number(cell: re.Match[str]) -> str:
        return f" data-of={numbers.setdefault(unescape(cell[1]), len(numbers))}"

    page = OF_CELL.sub(number, page)
    for address, place in numbers.items():
        file, _, keys = address.partition(":")
        node = tree
        for word in (f"{file}:", *(keys.split("/") if keys else [])):
            node = node.setdefault(word, {})
        node["/"] = place
    listed = json.dumps(_plain(tree), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return page.replace("</main>", f'</main>\n<script type="application/json" id="addresses">{listed}</script>')


def _plain(node: Any) -> Any:
    """A tree whose leaves are numbers, not objects that hold one."""
    if not isinstance(node, dict):
        return node
    return node["/"] if list(node) == ["/"] else {word: _plain(below) for word, below in node.items()}


def block(text: str, name: str) -> re.Match[str]:
    """The lines between a name's markers, `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the markers are not there.
    """
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no block <!-- {name} --> ... <!-- /{name} -->")
    return found


def without(text: str, name: str) -> str:
    """A page without the blocks of this name (see `block`)."""
    return re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->\n", "", text, flags=re.DOTALL)
