"""Pages from templates, and the blocks between markers by which one page takes over a part of another."""

import re
from typing import Any

from jinja2 import Environment, StrictUndefined

from stages.pages import charts

MARKUP = re.compile(r"[\\`|<\[]")  # of Markdown, in what others wrote
OUR_MARKUP = re.compile(r"[|<]")  # in what we wrote around it, which may have code in backticks


def as_markdown(text: str, markup: re.Pattern[str] = MARKUP) -> str:
    """Text as one line that Markdown shows as it is, in a table too."""
    return markup.sub(r"\\\g<0>", " ".join(text.split()))


def render(template: str, context: dict[str, Any], is_html: bool) -> str:
    """Fill a template; text is escaped for HTML, and a name that the context lacks is an error."""
    environment = Environment(
        autoescape=is_html,  # noqa: S701 - Markdown is not escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": charts.number,
        "signed": charts.signed,
        "count": lambda value: f"{value:,}",
        "millions": lambda value: f"{value / 1e6:.2f}",
        "megabytes": lambda value: f"{value / 1e6:.1f}",
        "percent": charts.percent,
        "chance": charts.chance,
        "whole_percent": charts.whole_percent,
        "text": as_markdown,
        "told": lambda text: as_markdown(text, OUR_MARKUP),
        "words": lambda name: name.replace("_", " "),
    }
    environment.globals |= {"interval": charts.interval}
    return environment.from_string(template).render(context)


def block(text: str, name: str) -> re.Match[str]:
    """The lines between a name's markers, `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the markers are not there.
    """
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no block <!-- {name} --> ... <!-- /{name} -->")
    return found
