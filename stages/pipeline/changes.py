"""What a change moved, for whoever reviews it: `make changes BASE=<revision>`, after `make repro`.

Holds this checkout against another commit, and prints Markdown: parameters that changed; stages that ran and why; mean
AUROC before and after with its paired interval, where DVC's cache has both bootstraps (`data/replicates`); the few
other numbers of the summary; plots and pages; and whether the committed results are what this commit gives (see
`committed`).

Ends with 1 where they are not, and where a mean AUROC fell by more than `evaluate.margin` (of both commits' the
smaller) and the paired interval excludes 0, or there is none to tell.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from stages.core import arguments, files, params
from stages.judging import evaluation
from stages.pages import rendering
from stages.pipeline import audit, committed, lock
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


@dataclass(frozen=True)
class Move:
    """A mean AUROC of a model before and after.

    Attributes:
        where: data set and mean.
        model: its id.
        before: at the base.
        after: here.
        low: of the paired interval, None without one.
        high: likewise.
        why: there is no interval.
    """

    where: str
    model: str
    before: float
    after: float
    low: float | None
    high: float | None
    why: str

    def falls(self, margin: float) -> bool:
        """Whether it is a fall by more than the margin that is not shown to be noise."""
        return self.after - self.before < -margin and (self.high is None or self.high < 0)

    def told(self, margin: float) -> str:
        """A fall, in a sentence."""
        known = (
            f"no interval tells whether it is noise ({self.why})" if self.high is None else "the interval excludes 0"
        )
        moved = f"mean AUROC falls from {self.before:.4f} to {self.after:.4f}, by more than {margin:g}"
        return f"{self.model} on {self.where}: {moved}; {known}"

    def cells(self, margin: float) -> tuple[str, ...]:
        """A row of the table."""
        change = f"{self.after - self.before:+.4f}"
        if self.low is None or self.high is None:
            verdict = f"no interval: {self.why}"
        else:
            change += f" ({self.low:+.4f} to {self.high:+.4f})"
            verdict = "within noise" if self.low <= 0 <= self.high else "larger than noise"
        if self.falls(margin):
            verdict += f"; **falls by more than {margin:g}**"
        return self.where, self.model, f"{self.before:.4f}", f"{self.after:.4f}", change, verdict


def replicates(of: dict[str, Entry], dataset: str, store: Path) -> pd.DataFrame | None:
    """The bootstrap of a data set's mean AUROCs from DVC's cache; None where it is not there."""
    made = lock.producers(of).get(f"data/replicates/{dataset}.parquet")
    path = audit.cache_path(store, made[1]) if made else None
    return files.read_table(path) if path and path.is_file() else None


def drawn_alike(old: dict[str, Entry], new: dict[str, Entry], dataset: str) -> bool:
    """Whether both bootstraps are of the same films and draws, so that they pair."""

    def of(lock_: dict[str, Entry]) -> Any:
        entry = lock_.get(f"evaluate@{dataset}", {})
        given = entry.get("params", {}).get("params.yaml", {})
        settings = given.get("evaluate", {})
        labels = [dep["md5"] for dep in entry.get("deps", []) if dep["path"].startswith("data/labels/")]
        return labels, given.get("seed"), settings.get("replicates"), settings.get("confidence")

    return bool(of(old) == of(new))


def moves(base: str, dataset: str, old: dict[str, Entry], new: dict[str, Entry], store: Path) -> Iterator[Move]:
    """Each mean AUROC of each model on a data set that is another than at the base.

    Args:
        base: the commit.
        dataset: the data set.
        old: dvc.lock of the base.
        new: that of this checkout.
        store: DVC's cache.
    """
    path = f"reports/metrics/{dataset}.json"
    before, after = (_means(json.loads(content(revision, path) or "{}")) for revision in (base, HERE))
    moved = sorted(key for key in before.keys() & after.keys() if before[key] != after[key])
    why, tables = "other test films or draws", list[pd.DataFrame | None]()
    if moved and drawn_alike(old, new, dataset):
        why, tables = "a bootstrap is not in DVC's cache", [replicates(of, dataset, store) for of in (old, new)]
    for model, mean in moved:
        low, high = _interval(tables, model, mean)
        was, is_ = before[model, mean], after[model, mean]
        yield Move(f"{dataset}, {mean}", model, was, is_, low, high, why)


def _means(measured: Entry) -> dict[tuple[str, str], float]:
    """(model, mean) -> AUROC, where it is defined."""
    found = {
        (model, name): mean["auroc"]
        for model, scored in measured.get("models", {}).items()
        for name, mean in scored["means"].items()
    }
    return {key: value for key, value in found.items() if value is not None}


def _interval(tables: Sequence[pd.DataFrame | None], model: str, mean: str) -> tuple[float | None, float | None]:
    """Of after less before, over the same draws; None where one lacks."""
    drawn = [
        one[(one["model"] == model) & (one["mean"] == mean)].sort_values("replicate")["auroc"].to_numpy()
        for one in tables
        if one is not None
    ]
    if len(drawn) < 2 or len(drawn[0]) != len(drawn[1]) or len(drawn[0]) < 2:
        return None, None
    found = evaluation.estimate(drawn[1] - drawn[0], "auroc", "", params.read()["evaluate"]["confidence"])
    return found["low"], found["high"]


def margin_of(base: str) -> float:
    """By how much a metric may fall: the smaller of both, so that no change widens it for itself."""
    values = [YAML(typ="safe").load(text) for revision in (base, HERE) if (text := content(revision, str(params.FILE)))]
    known = [value.get("evaluate", {}).get("margin") for value in values]
    return min(float(margin) for margin in known if margin is not None)


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
    margin, store = margin_of(base), Path(lock.dvc("cache", "dir").strip())
    before, after = (YAML(typ="safe").load(content(revision, str(params.FILE)) or b"{}") for revision in (base, HERE))
    ran = stages_that_ran(old, new, changed_files(base, "stages"))
    moved = [one for dataset in after["datasets"] for one in moves(base, dataset, old, new, store)]
    short = [json.loads(content(revision, "reports/summary.json") or b"{}") for revision in (base, HERE)]
    others = [row for row in differing(*short) if not row[0].startswith("auroc.")]
    shown = [path for path in changed_files(base, "reports") if not path.endswith(".json")]
    not_given, listed = committed.check(head, margin)
    faults = [*(one.told(margin) for one in moved if one.falls(margin)), *not_given]
    lines = [
        f"# What moved since {base[:12]}",
        "",
        f"**{len(faults)} faults:**" if faults else "No fault.",
        *(f"* {line}" for line in faults),
        "",
        *section("Parameters", "key | before | after", differing(before, after), "None changed."),
        *section("Stages that ran, and why", "stage | why | what came of it", ran, "None."),
        *section("Mean AUROC", MOVED, [one.cells(margin) for one in moved], "None moved."),
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
