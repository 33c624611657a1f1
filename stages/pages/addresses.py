"""Where a number comes from: `<file>:<key>/<key>/...` of a JSON file, which stays with the number up to the page.

Numbers read by `read` carry their address; what is computed of several is given theirs by `derived`. `resolve` is the
way back. Keys may hold slashes (`models/twin/joint/...` has the key `twin/joint/...`).
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

SHOWN = 5  # of the nearest addresses


class AddressError(ValueError):
    """Nothing is at an address; the message offers those that are near."""


class Whole(int):
    """A whole number with its `address`."""

    address: str


class Real(float):
    """A number with its `address`."""

    address: str


def addressed(value: Any, address: str) -> Any:
    """JSON values whose numbers carry their address, below `address` of the whole."""
    if isinstance(value, dict):
        return {key: addressed(of_key, _below(address, key)) for key, of_key in value.items()}
    if isinstance(value, list):
        return [addressed(one, _below(address, str(place))) for place, one in enumerate(value)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number = Whole(value) if isinstance(value, int) else Real(value)
    number.address = address
    return number


def _below(address: str, key: str) -> str:
    return f"{address}{'' if address.endswith(':') else '/'}{key}"


def read(path: Path) -> Any:
    """A JSON file, its numbers with their addresses."""
    return addressed(json.loads(path.read_text(encoding="utf-8")), f"{path}:")


def of(value: Any) -> str | None:
    """The address of a number; None of what has none."""
    return value.address if isinstance(value, Whole | Real) else None


def derived(value: float | None, parts: Iterable[Any]) -> Any:
    """A number computed of others, with the address of what they have in common.

    Args:
        value: as computed.
        parts: what it was computed of, numbers or addresses.
    """
    known = [part if isinstance(part, str) else of(part) for part in parts]
    split = [[f"{file}:", *keys.split("/")] for file, _, keys in (one.partition(":") for one in known if one)]
    common = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*split, strict=False))]
    return addressed(value, common[0] + "/".join(common[1:])) if common else value


def resolve(content: Any, keys: str, address: str) -> Any:
    """What lies at `<key>/<key>/...` of JSON content.

    Args:
        content: of the file.
        keys: below it; empty for the whole.
        address: as it was asked for, for the message.

    Raises:
        AddressError: nothing does.
    """
    rest = keys
    while rest:
        found = [(key, value) for key, value in _children(content) if rest == key or rest.startswith(f"{key}/")]
        if not found:
            raise AddressError(f"nothing is at {address}: {_near(content, keys.removesuffix(rest), rest)}")
        key, content = max(found, key=lambda item: len(item[0]))
        rest = rest[len(key) + 1 :]
    return content


def _children(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        yield from content.items()
    elif isinstance(content, list):
        yield from ((str(place), value) for place, value in enumerate(content))


def _near(content: Any, passed: str, rest: str) -> str:
    keys = [key for key, _ in _children(content)]
    if not keys:
        return f"{passed.rstrip('/')} is {json.dumps(content)}, and has nothing below"
    return f"nearest are {', '.join(passed + key for key in nearest(rest, keys))}"


def nearest(text: str, known: list[str]) -> list[str]:
    """The few known texts that are most like another."""
    return difflib.get_close_matches(text, known, SHOWN, 0)
