"""Copy the result tables of the reports into README.md: `python -m stages.core.readme`.

A block between `<!-- NAME -->` and `<!-- /NAME -->` comes from the `results` block of the file in `SOURCES`, so that no
figure in README is typed by hand.
"""

import re
import sys
from pathlib import Path

README = Path("README.md")
SOURCES = {"phantom": Path("reports/report.md"), "nih_sample": Path("reports/nih_sample.md")}


def block(text: str, name: str) -> re.Match[str]:
    """The lines between a name's markers.

    Raises:
        ValueError: the markers are not there.
    """
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no block <!-- {name} --> ... <!-- /{name} -->")
    return found


def filled(readme: str, sources: dict[str, str]) -> str:
    """README with each block replaced by the `results` block of its report."""
    for name, report in sources.items():
        start, end = block(readme, name).span(1)
        readme = readme[:start] + block(report, "results").group(1) + readme[end:]
    return readme


def main() -> None:
    """Read, fill, write."""
    if missing := [str(path) for path in SOURCES.values() if not path.exists()]:
        sys.exit(f"no {', '.join(missing)}: run `make repro`, or copy runs/nih_sample/reports/report.md there")
    sources = {name: path.read_text(encoding="utf-8") for name, path in SOURCES.items()}
    README.write_text(filled(README.read_text(encoding="utf-8"), sources), encoding="utf-8")


if __name__ == "__main__":
    main()
