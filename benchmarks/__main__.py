"""`make bench`: measure all, or one group with ONLY=<group>; write its part of reports/bench.md.

Each group is measured in a process of its own. All but `device` run with the pinned instruction set of the stages.
"""

import argparse
import importlib
import inspect
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from stages.pipeline import pinning

PAGE = Path("reports/bench.md")
GROUPS = ("labels", "ingest", "training", "judging", "device", "pinning")
LIBRARIES = ("numpy", "onnxruntime", "opencv-python-headless", "pandas", "timm", "torch", "torchxrayvision")
HEAD = """# Speed and memory, as ratios

Written by `make bench`. Both sides of a line were measured in turn, in one run on one machine, so ratios hold better
than seconds; a ratio is the median of the pairs, its quartiles stand behind it. Each part says when and on what it was
measured.
"""
COLUMNS = "| what | ours | reference | ratio (quartiles) | wanted | met |\n|---|---:|---:|---:|---:|---|\n"


def machine() -> str:
    """What the figures were measured on."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    load, day = os.getloadavg()[0], datetime.now(UTC)
    return (
        f"{pinning.processor()}, {os.cpu_count()} cores, load {load:.1f} at the start, {day:%Y-%m-%d}; "
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
    """Run one group, or each, and write its part of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["", *GROUPS], default="")
    group = parser.parse_args().only
    if group:
        run_group(group)
    else:
        for each in GROUPS:
            subprocess.run([sys.executable, "-m", "benchmarks", f"--only={each}"], check=True)
    from stages.pipeline import by_hand  # imports NumPy, which must find the pins

    by_hand.stamp("bench", is_whole=not group)
    print(f"written: {PAGE}")


def run_group(group: str) -> None:
    """Measure one group in this process."""
    if group != "device":
        pinning.pin()
    module, about = importlib.import_module(f"benchmarks.{group}"), machine()
    rows = "".join(f"{line.row()}\n" for line in module.run())
    part = f"## {group.capitalize()}\n\n{inspect.getdoc(module)}\n\n{about}\n\n{COLUMNS}{rows}"
    print(part, flush=True)
    written = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(page(written, {group: part}), encoding="utf-8")


if __name__ == "__main__":
    main()
