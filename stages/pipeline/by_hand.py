"""Results that no stage makes: which code made them, and has it changed since?

Benchmarks, coverage, parity and the runs of presets take too long for every run, so that their pages are committed. The
command that writes one stamps it in reports/by_hand.json: the page's hash, the commit, and the hash of each room of
code that it stands on. `make audit` fails where a page is not as it was stamped, and names those whose code has changed
since; the stage `stamps` says it in the report.

`python -m stages.pipeline.by_hand keep <preset>` takes over the page of a preset's finished run (`make keep
PRESET=...`); `stamp <page>` stamps a page at the commit that it came with.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import arguments, files
from stages.pages.digests import digest
from stages.pipeline import lock, recovery

STAMPS = Path("reports/by_hand.json")
RUN = ("stages/core", "stages/datasets", "stages/device", "stages/explainers", "stages/films", "stages/ingest",
       "stages/judging", "stages/learning", "stages/losses", "stages/models", "stages/nets", "stages/phantom",
       "stages/sources")  # fmt: skip


class StampError(ValueError):
    """The stamps cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Made:
    """What makes a page.

    Attributes:
        command: that writes it.
        code: files and folders that its figures depend on.
    """

    command: str
    code: tuple[str, ...]


PAGES = {
    "bench": Made("make bench", ("benchmarks", *RUN)),
    "coverage": Made("python -m benchmarks.coverage", ("benchmarks/coverage.py", "stages/judging")),
    "integers": Made("make integers", ("benchmarks/integers.py", "stages/device", "stages/learning", "stages/nets")),
    "maps": Made("make maps", ("benchmarks/maps.py", "stages/explainers", "stages/judging", "stages/nets")),
    "parity": Made("make parity", ("tests/parity.py", "stages/datasets", "stages/harmonize.py", "stages/sources")),
    "soak": Made("make soak", ("tests/soak", "stages/pipeline", "stages/core")),
    "nih_sample": Made("make run PRESET=nih_sample", ("presets/nih_sample.yaml", *RUN)),
    "nih_teacher": Made("make run PRESET=nih_teacher", ("presets/nih_teacher.yaml", *RUN)),
    "per_dataset": Made("make run PRESET=per_dataset", ("presets/per_dataset.yaml", *RUN)),
    "other_seeds": Made("make run, a preset with other seeds", RUN),
}


def page_of(name: str) -> Path:
    """The page's file."""
    return Path(f"reports/{name}.md")


def hashes(name: str, root: Path = Path()) -> dict[str, str]:
    """Each file or folder of a page's code -> SHA-256, of those that are there."""
    return {path: digest(root / path) for path in PAGES[name].code if (root / path).exists()}


def stamp(name: str, is_whole: bool = True) -> None:
    """Note that a page was made now, by this checkout's code; if only a part was, the code of the rest counts."""
    held = read().get(name)
    if is_whole or held is None:
        _write(name, hashes(name), _git("rev-parse", "--short", "HEAD").strip())
    else:
        _write(name, held["code"], held["commit"])


def stamp_as_committed(name: str) -> None:
    """Note that a page was made by the code of the commit that it came with.

    Raises:
        ValueError: it is not as git has it.
    """
    if _git("status", "--porcelain", "--", str(page_of(name))).strip():
        raise ValueError(f"{page_of(name)} is not committed, or has changed since: the command that makes it stamps it")
    commit = _git("log", "-1", "--format=%h", "--", str(page_of(name))).strip()
    packed = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
        _write(name, hashes(name, Path(folder)), commit)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def _write(name: str, code: dict[str, str], commit: str) -> None:
    kept, page = read(), digest(page_of(name))
    kept[name] = {"command": PAGES[name].command, "commit": commit, "sha256": page, "code": code}
    files.write_json(kept, STAMPS)


def read() -> dict[str, Any]:
    """Page -> its stamp.

    Raises:
        StampError: the file is damaged, or has stamps of pages that nobody makes.
    """
    try:
        held: dict[str, Any] = files.read_json(STAMPS) if STAMPS.exists() else {}
        is_whole = all({"command", "commit", "sha256", "code"} == about.keys() for about in held.values())
    except (ValueError, TypeError, AttributeError):
        held, is_whole = {}, False
    if not is_whole or held.keys() - PAGES.keys():
        raise StampError(f"{STAMPS} is not as the commands write it that make pages: `git checkout {STAMPS}`")
    return held


def edited() -> Iterator[tuple[str, str, str]]:
    """(page, stamped hash, its hash) of each page that is not as it was stamped, or was not stamped."""
    held = read()
    for name in PAGES:
        stamped = held[name]["sha256"] if name in held else "a stamp"
        found = digest(page_of(name)) if page_of(name).is_file() else "nothing"
        if found != stamped and (name in held or found != "nothing"):
            yield str(page_of(name)), stamped, found


def stale() -> Iterator[str]:
    """A line for each page whose code has changed since."""
    for name, about in sorted(read().items()):
        now = hashes(name)
        changed = sorted(path for path in now.keys() | about["code"].keys() if now.get(path) != about["code"].get(path))
        if changed:
            told = f"{', '.join(changed[: lock.SHOWN])}{' and more' if len(changed) > lock.SHOWN else ''}"
            way_out = f"`{PAGES[name].command}` makes it anew"
            yield f"{page_of(name)} is of {about['commit']}; changed since: {told} ({way_out})"


def keep(preset: str) -> None:
    """Take over the page of a preset's finished run.

    Raises:
        ValueError: no page of this name is kept, or its run is not finished.
    """
    made = Path("runs") / preset / "reports/report.md"
    if preset not in PAGES or not made.is_file():
        kept = ", ".join(name for name in PAGES if Path(f"presets/{name}.yaml").exists())
        raise ValueError(f"there is no {made}, or no page of its name is kept ({kept} are): make run PRESET={preset}")
    shutil.copyfile(made, page_of(preset))
    stamp(preset)


def main() -> None:
    """Parse, do."""
    parser = arguments.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="take over the page of a preset's run")
    keeping.add_argument("name", help="the preset")
    stamping = commands.add_parser("stamp", help="stamp a page at its commit")
    stamping.add_argument("name", choices=PAGES, help="the page's name in reports/")
    args = parser.parse_args()
    try:
        (keep if args.command == "keep" else stamp_as_committed)(args.name)
    except (ValueError, recovery.NoCommitError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
