"""Copy the result tables of the reports into README.md: `python -m stages.pages.readme`.

A block between `<!-- NAME -->` and `<!-- /NAME -->` comes from the `results` block of the file in `SOURCES`, so that no
figure in README is typed by hand.
"""

import sys
from pathlib import Path

from stages.pages import rendering

README = Path("README.md")
SOURCES = {
    "phantom": Path("reports/report.md"),
    "nih_sample": Path("reports/nih_sample.md"),
    "nih_teacher": Path("reports/nih_teacher.md"),
}


def filled(readme: str, sources: dict[str, str]) -> str:
    """README with each block replaced by the `results` block of its report."""
    for name, report in sources.items():
        start, end = rendering.block(readme, name).span(1)
        readme = readme[:start] + rendering.block(report, "results").group(1) + readme[end:]
    return readme


def main() -> None:
    """Read, fill, write."""
    if missing := [str(path) for path in SOURCES.values() if not path.exists()]:
        sys.exit(f"no {', '.join(missing)}: run `make repro`, or copy runs/<preset>/reports/report.md there")
    sources = {name: path.read_text(encoding="utf-8") for name, path in SOURCES.items()}
    README.write_text(filled(README.read_text(encoding="utf-8"), sources), encoding="utf-8")


if __name__ == "__main__":
    main()
