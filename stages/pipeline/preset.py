"""Run a preset beside the committed state: `python -m stages.pipeline.preset <preset> [--root <folder>] ...`.

A preset holds only what differs from `params.yaml`. What it names replaces that key: mappings merge key by key, lists
and scalars replace. Entries that go are named by their dotted keys in one top-level list, `drop`. The merged whole
must hold as a params file; `--print` shows it, with the comments of both files. `--datasets` keeps some of its data
sets, and what is of them.

The tracked files are copied to `runs/<preset>/`, the merged whole becomes `params.yaml` there, and the pipeline runs
there with the cache of this checkout. Nothing outside `runs/` changes; a second call runs what changed since the first.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core import files, params
from stages.pipeline import by_hand, check, comments, rules

NEEDED = ("stages", "reports/choices", "dvc.yaml", "requirements.lock", ".dvcignore", ".gitignore")
PLACE = re.compile(r"ROOT\b")
NAME = re.compile(r"[A-Za-z0-9_-]+")
CONFIG = '[core]\n    no_scm = true\n    analytics = false\n[cache]\n    dir = {cache}\n    type = "hardlink,symlink"\n'


def _laid_over(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    whole = dict(base)
    for key, value in given.items():
        merges = isinstance(base.get(key), dict) and isinstance(value, dict)
        whole[key] = _laid_over(base[key], value) if merges else value
    return whole


def _idle(base: dict[str, Any], given: dict[str, Any], above: str = "") -> Iterator[str]:
    """Empty mappings over filled ones: they look as if they emptied them, and by the rule change nothing."""
    for key, value in given.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if old and not value:
                yield f"{above}{key}: an empty mapping changes nothing; name what goes in `drop`: {', '.join(old)}"
            yield from _idle(old, value, f"{above}{key}.")


def _holder(values: Any, key: str) -> dict[str, Any] | None:
    """The mapping in which the last part of a dotted key stands, if it does."""
    *above, last = key.split(".")
    for part in above:
        values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, dict) and last in values else None


def _drop(base: dict[str, Any], given: dict[str, Any], drop: Any, name: str) -> Iterator[str]:
    """Take the dropped entries out of the base; yields what is wrong with those that stay."""
    if not isinstance(drop, list) or not all(isinstance(key, str) for key in drop):
        yield f"drop: must be a list of dotted keys, such as losses.paper, got {drop!r}"
        return
    for key in drop:
        holder = _holder(base, key)
        if _holder(given, key) is not None:
            yield f"drop: {key} is both dropped and given; take one out"
        elif holder is None:
            yield f"drop: {key} is not in {name}, or is dropped twice"
        else:
            del holder[key.rpartition(".")[2]]


def merged(preset: Path, base: Path = params.FILE) -> Any:
    """The plain values of a preset laid over a params file, checked as a whole.

    Raises:
        ParamsError: with every fault of the overlay and of the whole; the message names the preset's file.
    """
    values, given = params.read(base), params.read(preset)
    faults = list(_drop(values, given, given.pop("drop", []), base.name))
    faults += _idle(values, given)
    whole = _laid_over(values, given)
    messages = []
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        messages.append(f"{preset} has {len(faults)} fault(s) as an overlay on {base.name}:\n{listed}")
    try:
        check.parse(whole, str(preset))
    except params.ParamsError as error:
        messages.append(str(error))
    if messages:
        raise params.ParamsError("\n".join(messages))
    return whole


def of_datasets(values: dict[str, Any], names: str) -> dict[str, Any]:
    """Merged values with some of their data sets alone, and the cohorts that these make.

    A cohort keeps those of its data sets that are named; one that is left with a single data set bears its name, one
    that is left with none or with those of another goes. The headline follows its cohort, or else is of the first.

    Args:
        values: what holds as params.
        names: of data sets, with commas between.

    Raises:
        ValueError: one is unknown, empty or there twice; the message has those that there are.
    """
    there, wanted = list(values["datasets"]), [name.strip() for name in names.split(",")]
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(there):
        raise ValueError(
            f"DATASETS must be one or more of {', '.join(there)}, each once, with commas between; got {names!r}"
        )
    kept = dict(values)
    for group in ("datasets", "policies", "phantoms"):
        kept[group] = {name: entry for name, entry in values[group].items() if name in wanted or name not in there}
    kept["cohorts"], became = _cohorts_of(values["cohorts"], wanted)
    if not kept["cohorts"]:
        raise ValueError(f"DATASETS={names} leaves nothing to train on: no cohort has any of them")
    cohort = became.get(values["headline"]["cohort"], next(iter(kept["cohorts"])))
    kept["headline"] = values["headline"] | {"cohort": cohort}
    kept["rates"] = {
        way: rates
        | {"per_cohort": {name: rate for name, rate in rates["per_cohort"].items() if name in kept["cohorts"]}}
        for way, rates in values["rates"].items()
    }
    return kept


def _cohorts_of(cohorts: dict[str, Any], wanted: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The cohorts that are left of these, and what each of them became: itself, or another of the same data sets."""
    left = {name: [one for one in cohort["datasets"] if one in wanted] for name, cohort in cohorts.items()}
    is_whole = {name: left[name] == cohort["datasets"] for name, cohort in cohorts.items()}
    named: dict[frozenset[str], str] = {}
    for name in sorted(filter(left.get, left), key=lambda name: not is_whole[name]):
        alone = left[name][0]
        is_renamed = not is_whole[name] and len(left[name]) == 1 and alone not in cohorts
        named.setdefault(frozenset(left[name]), alone if is_renamed else name)
    became = {name: named[frozenset(left[name])] for name in filter(left.get, left)}
    return {became[name]: cohorts[name] | {"datasets": left[name]} for name in became}, became


def with_comments(values: Any, preset: Path, base: Path = params.FILE) -> str:
    """Merged values as the text of a params file, with the comments of kept keys and the preset's own."""
    first, second = (file.read_text(encoding="utf-8-sig") for file in (base, preset))
    return f"# Made of {base.name} and {preset}: edit those.\n" + comments.laid_on(values, first, second)


def merged_text(preset: Path, base: Path = params.FILE, datasets: str | None = None) -> str:
    """A preset laid over a params file, as the text of a params file.

    Args:
        preset: what differs.
        base: from this file.
        datasets: those that are kept, as of `of_datasets`; None: all.

    Raises:
        ParamsError: as `merged`.
        ValueError: as `of_datasets`.
    """
    return with_comments(_whole(preset, base, datasets), preset, base)


def _whole(preset: Path, base: Path, datasets: str | None) -> Any:
    values = merged(preset, base)
    return values if datasets is None else of_datasets(values, datasets)


def _rooted(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """The values with `folder` for the ROOT that begins a root or a checkpoint."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("root", "checkpoint") and isinstance(value, str):
            found[key] = PLACE.sub(lambda _: folder, value, count=1) if PLACE.match(value) else value
        else:
            found[key] = _rooted(value, folder) if isinstance(value, dict) else value
    return found


def with_root(values: dict[str, Any], root: str | None) -> dict[str, Any]:
    """Merged values with their `ROOT`, in roots and checkpoints, replaced by the folder that the user named.

    Raises:
        ValueError: the preset needs a root and none was given, or one was given that it does not use or that no path
            can be.
        FileNotFoundError: no such folder, nothing in it, or none in it of a data set.
    """
    needs = _rooted(values, "") != values
    if needs and root is None:
        raise ValueError("this preset reads your own files: name their folder, `make run PRESET=... ROOT=<folder>`")
    if root is None:
        return values
    if not needs:
        raise ValueError("this preset reads no files of yours: leave ROOT out")
    folder = Path(root).resolve()
    if fault := rules.fault_of_path(str(folder)):
        raise ValueError(f"ROOT={root!r} must be the path of a folder, and has {fault}: rename or move it")
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FileNotFoundError(f"ROOT={root} is no folder with files: README's table says what it must hold")
    found, given = _rooted(values, str(folder)), values.get("datasets", {})
    own = [name for name, entry in found.get("datasets", {}).items() if entry["root"] != given[name]["root"]]
    if lacking := [name for name in own if not Path(found["datasets"][name]["root"]).is_dir()]:
        listed = ", ".join(f"{name} ({found['datasets'][name]['root']})" for name in lacking)
        rest = ",".join(name for name in given if name not in lacking)
        way_out = f", or run without: DATASETS={rest}" if rest else ""
        raise FileNotFoundError(f"ROOT={root} has no folder of {listed}: put the files there{way_out}")
    return found


def tracked(repository: Path) -> list[str]:
    """The files that a run needs: those that git tracks, and new ones that it does not ignore."""
    listing = ["git", "-C", str(repository), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *NEEDED]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (repository / name).is_file()]


def export(
    preset: Path,
    target: Path,
    root: str | None = None,
    repository: Path | None = None,
    datasets: str | None = None,
) -> None:
    """Lay out a run: tracked files, the merged whole as `params.yaml`, the cache of the repository.

    Args:
        preset: what differs from the repository's params.yaml.
        target: the run's folder; what is there and no longer tracked goes, results stay.
        root: replaces `ROOT` in the preset.
        repository: where to copy from; the current folder by default.
        datasets: as of `merged_text`.
    """
    source = (repository or Path()).resolve()
    base = source / params.FILE
    text = with_comments(with_root(_whole(preset, base, datasets), root), preset, base)
    names = tracked(source)
    for old in [*target.glob("stages/**/*.py"), *target.glob("stages/**/*.csv")]:
        if old.relative_to(target).as_posix() not in names:
            old.unlink()
    for name in names:
        place, content = target / name, (source / name).read_bytes()
        if not place.exists() or place.read_bytes() != content:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    (target / ".dvc").mkdir(parents=True, exist_ok=True)
    (target / "params.yaml").write_text(text, encoding="utf-8")
    cache = os.path.relpath(source / ".dvc/cache", (target / ".dvc").resolve())  # absolute, it may have a # or a quote
    (target / ".dvc/config").write_text(CONFIG.format(cache=cache), encoding="utf-8")
    files.write_json({}, target / by_hand.STAMPS)  # the repository's pages are none of a run


def repro(target: Path) -> int:
    """Run what is due in a laid-out run; the exit code."""
    command = [sys.executable, "-m", "stages.pipeline.repro"]
    return subprocess.run(command, cwd=target, check=False, env={**os.environ, "PWD": str(target)}).returncode


def found(name: str) -> Path:
    """The file of a preset: of `presets/` by its name, or any by its path.

    Raises:
        FileNotFoundError: no such file.
        ValueError: its stem would be no name for a run's folder.
    """
    is_path = "/" in name or name.endswith(".yaml")
    preset = Path(name) if is_path else Path("presets") / f"{name}.yaml"
    if not name or not preset.is_file():
        known = ", ".join(sorted(path.stem for path in Path("presets").glob("*.yaml")))
        got = f"; got {name}" if name else ""
        raise FileNotFoundError(f"name a preset: make run PRESET=<name>, there are {known}{got}")
    if not NAME.fullmatch(preset.stem):
        raise ValueError(
            f"a preset's name must be of A-Z, a-z, 0-9, _ and -, its run lies in runs/<name>; got {preset.stem!r}: "
            f"rename {preset}"
        )
    return preset


def place(preset: Path) -> Path:
    """The folder of a preset's run.

    Raises:
        ValueError: it is a link, which could lead into another checkout.
    """
    target = Path("runs") / preset.stem
    if target.is_symlink():
        raise ValueError(f"{target} is a link, and a run lies in runs/: remove it, or link runs/ as a whole")
    return target


def main() -> None:
    """Parse, then print, or lay out and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="", help="a file of presets/ without its ending, or a path")
    parser.add_argument("--root", help="folder with your own files, for presets that read them")
    parser.add_argument("--datasets", help="those of its data sets that are kept, with commas between (all)")
    parser.add_argument("--print", action="store_true", help="print the whole (of params.yaml, if no preset is named)")
    args = parser.parse_args()
    try:
        if args.print:
            is_whole = not args.preset and args.datasets is None
            as_it_is = params.FILE.read_text(encoding="utf-8")
            print(as_it_is if is_whole else merged_text(found(args.preset), datasets=args.datasets), end="")
            return
        preset = found(args.preset)
        target = place(preset)
        export(preset, target, args.root or None, datasets=args.datasets)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    code = repro(target)
    if code == 0:
        print(f"report: {target / 'reports/index.html'}")
    sys.exit(code)


if __name__ == "__main__":
    main()
