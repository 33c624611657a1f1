"""Random generators named after what they are for.

No stage uses a global generator. A seed is the hash of the names that it serves, so adding a cell, an image or a
worker never moves another one's numbers.
"""

import hashlib
from collections.abc import Iterable
from numbers import Integral

import numpy as np


def integer(*names: str | int) -> int:
    """A 63-bit seed for these names; equal names give equal seeds on every machine.

    Args:
        names: what the seed is for, from the general to the particular, e.g. ``("distill", "joint", 0)``.
    """
    text = "\x1f".join(_plain(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _plain(name: str | int) -> str:
    """A name with its kind; NumPy's integers and strings count as Python's, so that both derive the same seed."""
    if isinstance(name, str):
        return f"str:{name}"
    if isinstance(name, Integral):
        return f"int:{int(name)}"
    raise TypeError(f"seeds derive from strings and integers, got {name!r}")


def of(*names: str | int) -> np.random.Generator:
    """A NumPy generator for these names (see `integer`)."""
    return np.random.default_rng(integer(*names))


def unit(*names: str | int) -> float:
    """A number in [0, 1) for these names: the hash that splits use, so that a patient's split never moves."""
    return integer(*names) / 2**63


def units(*names: str | int, each: Iterable[str]) -> np.ndarray:
    """`unit(*names, name)` of each name, float (names,), without hashing what they share again."""
    shared = hashlib.blake2b(("\x1f".join(map(_plain, names)) + "\x1fstr:").encode(), digest_size=8)
    found = []
    for name in each:
        own = shared.copy()
        own.update(name.encode())
        found.append((int.from_bytes(own.digest(), "little") >> 1) / 2**63)
    return np.array(found)
