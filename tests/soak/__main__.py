"""`make soak`: make the trials and write what they found to reports/soak.md."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import smoke

from soak import kills, walk, windows
from soak.found import Found
from stages.pipeline import by_hand

REPORT = smoke.ROOT / "reports/soak.md"
HEAD = """# What stopped runs, edits and races did

`make soak{given}` at commit {commit}: {minutes:.0f} minutes. Every trial draws its moments from the seed {seed}.

| trial | times | what came of them | faults |
|---|---|---|---|
"""


def commit() -> str:
    """The commit that is tried, and whether files differ from it."""
    words = ["git", "-C", str(smoke.ROOT), "describe", "--always", "--abbrev=12", "--dirty=, with changes"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def row(name: str, found: Found) -> str:
    """A line of the table."""
    outcomes = "; ".join(f"{outcome}: {times}" for outcome, times in sorted(found.outcomes.items()))
    return f"| {name} | {found.tried} | {outcomes} | {len(found.faults)} |"


def main() -> None:
    """Make the trials, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="how many runs are edited")
    parser.add_argument("--kills", type=int, default=20, help="how often each of the four victims is killed")
    parser.add_argument("--minutes", type=float, default=20, help="of the walk")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start, tried = time.monotonic(), commit()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        finished = smoke.lay_out(folder / "finished")
        smoke.side_by_side(finished)
        trials: dict[str, Callable[[], Found]] = {
            "code edited while its stage runs": lambda: windows.windows(args.moments, args.seed, folder / "windows"),
            "kill -9, then one `make repro`": lambda: kills.kills(args.kills, args.seed, finished, folder),
            "a user's day: steps of a random walk": lambda: walk.walk(
                args.minutes, args.seed, finished, folder / "walk"
            ),
        }
        found = {}
        for what, trial in trials.items():
            found[what] = trial()
            print("\n".join([row(what, found[what]), *found[what].faults]), flush=True)
    given = "" if len(sys.argv) == 1 else f" ({' '.join(sys.argv[1:])})"
    minutes = (time.monotonic() - start) / 60
    lines = [row(what, result) for what, result in found.items()]
    REPORT.write_text(
        HEAD.format(given=given, commit=tried, minutes=minutes, seed=args.seed) + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
    by_hand.stamp("soak")
    sys.exit(any(result.faults for result in found.values()))


if __name__ == "__main__":
    main()
