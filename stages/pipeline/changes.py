"""What a change moved, for whoever reviews it: `make changes BASE=<revision>`, after `make repro`.

Compares this checkout with another commit, and prints Markdown: parameters that changed; packages that changed; stages
that ran and why; mean AUROC before and after with an interval (see `moves`); the few other numbers of the summary;
plots and pages; and whether the committed results are what this commit gives (see `committed`).

Ends with 1 where they are not, and where a mean AUROC fell by more than `evaluate.margin` (the smaller of both
commits') and its interval excludes 0, or there is none.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core import arguments, params
from stages.pages import rendering
from stages.pipeline import audit, committed, lock, moves, pinning, recovery
from stages.pipeline.revisions import HERE, Entry, commit_of, content, entries, flat

LONGEST = 40  # rows of a table
SAME = "the same bytes"
MOVED = "data set, mean | model | before | after | change | is it more than noise?"


def differing(before: Any, after: Any) -> list[tuple[str, str, str]]:
    """(key, before, after) of what differs between nested values."""
    old, new = flat(before), flat(after)

    def told(values: dict[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "none"

    return [(key, told(old, key), told(new, key)) for key in sorted(old.keys() | new.keys())
            if told(old, key) != told(new, key)]  # fmt: skip


def section(title: str, head: str, rows: Sequence[tuple[str, ...]], none: str) -> list[str]:
    """Lines of a section with a table, the first LONGEST rows of it.

    Args:
        title: of the section.
        head: of the table, its cells apart by ` | `.
        rows: cells.
        none: what is said where there is no row.
    """
    if not rows:
        return [f"## {title}", "", none, ""]
    lines = [f"## {title}", "", f"| {head} |", "|---" * len(rows[0]) + "|"]
    lines += [
        f"| {' | '.join(rendering.as_markdown(cell, rendering.OUR_MARKUP) for cell in row)} |" for row in rows[:LONGEST]
    ]
    return [*lines, "", *([f"And {len(rows) - LONGEST} more.", ""] if len(rows) > LONGEST else [])]


def reasons(old: Entry | None, new: Entry, made: dict[str, tuple[str, str]], code: list[str]) -> list[str]:
    """Why a stage's entry is another: what it read, and with what.

    Args:
        old: the entry at the base.
        new: that of now.
        made: as of `lock.producers`.
        code: files that changed.
    """
    if old is None:
        return ["new stage"]
    before = {dep["path"]: dep.get("md5") for dep in old.get("deps", [])}
    after = {dep["path"]: dep.get("md5") for dep in new.get("deps", [])}
    found = ["command"] if old["cmd"] != new["cmd"] else []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            by = f" (by {made[path][0]})" if path in made else ""
            if path.startswith("stages/"):
                inside = [file.removeprefix(f"{path}/") for file in code if file.startswith(f"{path}/")]
                by = f" ({', '.join(inside[:3])}{' ...' if len(inside) > 3 else ''})" if inside else ""
            found.append(f"{'code' if path.startswith('stages/') else 'data'} {path}{by}")
    given = [entry.get("params", {}).get("params.yaml", {}) for entry in (old, new)]
    return found + [f"parameter {key}: {was} → {is_}" for key, was, is_ in differing(*given)]


def stages_that_ran(before: dict[str, Entry], after: dict[str, Entry], code: list[str]) -> list[tuple[str, str, str]]:
    """(stage, why, what came of it) of each whose entry in dvc.lock is another, those that made other bytes first."""
    rows, made = [], lock.producers(after)
    for name, entry in after.items():
        old = before.get(name)
        why = reasons(old, entry, made, code)
        outs = [{out["path"]: out["md5"] for out in one.get("outs", [])} for one in (old or {}, entry)]
        changed = [path for path, md5 in outs[1].items() if outs[0].get(path) != md5]
        if why or changed:
            came = SAME if not changed else ", ".join(changed[:3]) + (" ..." if len(changed) > 3 else "")
            rows.append((name, "; ".join(why) or "ran again, or was edited", came))
    rows += [(name, "no such stage any more", "gone") for name in before if name not in after]
    return sorted(rows, key=lambda row: row[2] == SAME)


def margin_of(base: str) -> float:
    """By how much a metric may fall: the smaller of both, so that no change widens it for itself."""
    values = [YAML(typ="safe").load(text) for revision in (base, HERE) if (text := content(revision, str(params.FILE)))]
    known = [value.get("evaluate", {}).get("margin") for value in values]
    return min(float(margin) for margin in known if margin is not None)


def environments(base: str) -> list[tuple[str, str, str]]:
    """Return what of the recorded environments differs from the base, once for all groups of stages."""
    rows = set[tuple[str, str, str]]()
    for group in pinning.GROUPS:
        path = f"{pinning.FOLDER}/{group}.json"
        rows |= set(differing(*(json.loads(content(revision, path) or "{}") for revision in (base, HERE))))
    return sorted(rows)


def changed_files(base: str, folder: str) -> list[str]:
    """Files below a folder that are others than at the base."""
    words = ["git", "diff", "--name-only", "--relative", base, "--", folder]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def compare(base: str) -> tuple[list[str], list[str]]:
    """The whole comparison of this checkout with a commit: what is told, and what the change fails on.

    Raises:
        RevisionError: the commit is not here.
    """
    base, head = commit_of(base), commit_of("HEAD")
    old, new = entries(base), entries(HERE)
    margin = margin_of(base)
    with recovery.still() as repo:
        store = audit.store_of(repo)
    before, after = (YAML(typ="safe").load(content(revision, str(params.FILE)) or b"{}") for revision in (base, HERE))
    ran = stages_that_ran(old, new, changed_files(base, "stages"))
    is_repeated = committed.is_repeated(entries(head), new)
    if is_repeated:
        moved = [move for name in after["datasets"] for move in moves.of_models(base, HERE, name, old, new, store)]
    else:
        moved = [*moves.of_kinds(base, HERE, after["evaluate"]["confidence"])]
    short = [json.loads(content(revision, "reports/summary.json") or b"{}") for revision in (base, HERE)]
    others = [row for row in differing(*short) if not row[0].startswith("auroc.")]
    shown = [path for path in changed_files(base, "reports") if not path.endswith(".json")]
    not_given, listed = committed.check(head)
    faults = [*(move.fall(margin) for move in moved if move.falls(margin)), *not_given]
    lines = [
        f"# What moved since {base[:12]}",
        "",
        f"**{len(faults)} faults:**" if faults else "No fault.",
        *(f"* {line}" for line in faults),
        "",
        *section("Parameters", "key | before | after", differing(before, after), "None changed."),
        *section("Python, instruction set and packages", "what | before | after", environments(base), "None changed."),
        *section("Stages that ran, and why", "stage | why | what came of it", ran, "None."),
        *section("Mean AUROC", MOVED, [move.cells(margin) for move in moved], "None moved."),
        *section("Other numbers of the summary", "number | before | after", others, "None moved."),
        *["## Pages, plots and pictures", "", ", ".join(shown[:LONGEST]) or "None changed.", ""],
        *["## Are the committed results what this commit gives?", ""],
        *([f"* {line}" for line in (*not_given, *listed)] or ["Yes, measured times apart."]),
    ]
    return lines, faults


def main() -> None:
    """Parse, compare, print."""
    parser = arguments.parser(__doc__)
    parser.add_argument("--base", required=True, help="a revision: a branch, a tag, a commit")
    parser.add_argument("--into", type=Path, help="a file to append to, e.g. the summary of a CI job")
    args = parser.parse_args()
    try:
        with args.into.open("a", encoding="utf-8") if args.into else nullcontext() as file:
            lines, faults = compare(args.base)
            text = "\n".join(lines)
            print(text)
            if file:
                file.write(text + "\n")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    sys.exit(bool(faults))


if __name__ == "__main__":
    lock.quiet_pipe()
    main()
