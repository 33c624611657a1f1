"""`make bench`: measure all, or one group with ONLY=<group>; write its part of reports/bench.md."""

import argparse
import importlib
import inspect
import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from stages.pipeline import by_hand

PAGE = Path("reports/bench.md")
GROUPS = ("labels", "ingest", "training", "judging", "device")
LIBRARIES = ("numpy", "onnxruntime", "opencv-python-headless", "pandas", "timm", "torch", "torchxrayvision")
HEAD = """# Speed and memory, as ratios

Written by `make bench`. Both sides of a line were measured in turn, in one run on one machine, so ratios hold better
than seconds; a ratio is the median of the pairs, its quartiles stand behind it. Each part says when and on what it was
measured.
"""
COLUMNS = "| what | ours | reference | ratio (quartiles) | wanted | met |\n|---|---:|---:|---:|---:|---|\n"


def machine() -> str:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    return (
        f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, {datetime.now(UTC):%Y-%m-%d}; "
        f"Python {platform.python_version()}, {versions}."
    )


def page(written: str, measured: dict[str, str]) -> str:
    """The page, with the parts that were measured in place of those that it had.

    Args:
        written: the page as it is.
        measured: group -> its part, from its heading on.
    """
    there = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", written, re.DOTALL | re.MULTILINE)
    parts = {name.lower(): f"## {name}\n{text}".rstrip() + "\n" for name, text in there} | measured
    return "\n".join([HEAD, *(parts[group] for group in GROUPS if group in parts)])


def main() -> None:
    """Run the groups and write their parts of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["", *GROUPS], default="")
    only = parser.parse_args().only
    for group in [only] if only else GROUPS:
        module, about = importlib.import_module(f"benchmarks.{group}"), machine()
        rows = "".join(f"{line.row()}\n" for line in module.run())
        part = f"## {group.capitalize()}\n\n{inspect.getdoc(module)}\n\n{about}\n\n{COLUMNS}{rows}"
        print(part, flush=True)
        PAGE.write_text(
            page(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "", {group: part}), encoding="utf-8"
        )
    by_hand.stamp("bench", is_whole=not only)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
