"""What `dvc.lock` proves: `python -m stages.pipeline.lock check | prune | compare <other lock>`.

`check` (`make audit QUICK=1`; `audit` reads everything) says whether the lock belongs to this checkout's code and
params and whether its chain of hashes is whole; it needs no data (`dvc repro --dry --allow-missing` is no gate: it
exits 0 with a changed stage). `prune` drops entries and files of cells that params.yaml no longer declares; DVC keeps
both. `compare` says which outputs have the bytes that they have in another lock file, whatever the code that made them.
"""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core import arguments, files, params
from stages.learning import checkpoints
from stages.pipeline import pinning, recovery
from stages.pipeline.check import parse

LOCK = Path("dvc.lock")
CHOICE = Path("reports/choice.json")
SHOWN = 3  # of many names, in a line
RAN = checkpoints.ROOT / "ran"  # what the guard saw of each stage that it let pass

Entry = dict[str, Any]


def dvc(*words: str) -> str:
    """The output of a DVC command.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(["dvc", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout


def entries(lock: Path = LOCK) -> dict[str, Entry]:
    """Stage name -> its entry in dvc.lock, or in another file of its form.

    Raises:
        FileNotFoundError: no such file.
        LockFileError: it is not whole.
    """
    with recovery.still() if lock == LOCK and lock.exists() else nullcontext():
        return read(lock)


def read(lock: Path) -> dict[str, Entry]:
    """`entries`, for who holds DVC's lock already."""
    if not lock.exists():
        raise FileNotFoundError(f"there is no {lock}: run `make repro`")
    content = lock.read_bytes()
    values = recovery.parsed(content)
    if values is None:
        raise recovery.broken(lock, content)
    recovery.require_known(lock, values)
    return dict(values["stages"])


def declared() -> list[str]:
    """The stages that dvc.yaml and params.yaml declare."""
    return [line.strip() for line in dvc("stage", "list", "--all", "--name-only").splitlines() if line.strip()]


def producers(lock: dict[str, Entry]) -> dict[str, tuple[str, str]]:
    """Output path -> (stage that made it, its hash)."""
    return {out["path"]: (name, out["md5"]) for name, entry in lock.items() for out in entry.get("outs", [])}


def chain_faults(lock: dict[str, Entry], stages: list[str]) -> list[str]:
    """Where what a stage consumed is not what the stage before it produced, and entries too few or too many."""
    made = producers(lock)
    faults = [f"{name}: never run, not in dvc.lock" for name in stages if name not in lock]
    faults += [f"{name}: no such stage any more, run `make prune`" for name in lock if name not in stages]
    outs = [out for entry in lock.values() for out in entry.get("outs", [])]
    for name, entry in lock.items():
        for dep in entry.get("deps", []):
            producer, md5 = made.get(dep["path"], (None, dep.get("md5")))
            if md5 != dep.get("md5"):
                faults.append(f"{name}: consumed another {dep['path']} than {producer} produced")
            below = [out for out in outs if out["path"].startswith(f"{dep['path']}/")]
            if below and not holds(dep, below):
                faults.append(f"{name}: consumed another {dep['path']} than the stages that write below it produced")
    return faults


def holds(folder: Entry, outs: list[Entry]) -> bool:
    """Whether a folder that was read is made of these outputs below it.

    DVC's hash of a folder is the MD5 of a JSON list of its files. The files of an output that is itself a folder are
    not in dvc.lock, so that such folders are compared by number of files and bytes alone.
    """
    if any(out["md5"].endswith(".dir") for out in outs):
        files_and_bytes = (sum(out.get("nfiles", 1) for out in outs), sum(out["size"] for out in outs))
        return files_and_bytes == (folder["nfiles"], folder["size"])
    listed = {out["path"].removeprefix(f"{folder['path']}/"): out["md5"] for out in outs}
    return bool(folder["md5"] == folder_md5(listed))


def folder_md5(listed: dict[str, str]) -> str:
    """DVC's hash of a folder, of relative path -> MD5 of its files."""
    text = json.dumps([{"md5": md5, "relpath": path} for path, md5 in sorted(listed.items())])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def md5(path: Path) -> str:
    """What DVC records of a file, or of a folder of code."""
    if path.is_dir():
        members = [file for file in path.rglob("*") if file.is_file() and not is_ignored(file)]
        return folder_md5({file.relative_to(path).as_posix(): md5(file) for file in members})
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def is_ignored(path: Path) -> bool:
    """By `.dvcignore`."""
    return "__pycache__" in path.parts or path.suffix in (".pyc", ".part") or path.name in (".DS_Store", ".gitignore")


def forged(stage: str) -> list[str]:
    """The inputs of a stage of which dvc.lock says otherwise than the guard, which saw it run."""
    kept, entry = RAN / f"{stage}.json", entries().get(stage)
    if entry is None or not kept.exists():
        return []
    ran = files.read_json(kept)
    recorded = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    given = entry.get("params", {}).get("params.yaml", {})
    found = [path for path, md5 in ran["deps"].items() if recorded.get(path) != md5]
    return found + [f"params.yaml:{key}" for key, value in ran["params"].items() if given.get(key) != value]


def record_processors() -> None:
    """Record on which processor each stage ran, for those that ran here; other stages keep what is recorded."""
    recorded = files.read_json(pinning.PROCESSORS) if pinning.PROCESSORS.exists() else {}
    ran = {path.stem: files.read_json(path).get("processor") for path in RAN.glob("*.json")}
    merged = {stage: of for stage in entries() if (of := ran.get(stage) or recorded.get(stage))}
    if merged != recorded:
        with files.whole(pinning.PROCESSORS) as path:
            files.write_json(merged, path)


def forget(stage: str, since: float) -> None:
    """Take a stage out of dvc.lock, and out of DVC's cache of runs what was put there since.

    Args:
        stage: its name in dvc.lock.
        since: seconds since the epoch.
    """
    with recovery.still() as repo:
        runs = Path(repo.stage_cache.cache_dir)
        for run in runs.glob("*/*"):  # a folder of what such a run gave, each time that it ran
            if any(path.stat().st_mtime >= since for path in run.iterdir()):
                files.remove(run)
        _drop([stage])


def status_faults(status: dict[str, list[Any]], made: dict[str, tuple[str, str]]) -> list[str]:
    """What `dvc status --json` reports, less outputs and inputs that are only absent from this checkout."""

    def is_absent(path: str, change: Any) -> bool:
        below = [other for other in made if other == path or other.startswith(f"{path}/")]
        if path.startswith("reports/"):
            return False  # git has these
        if change in ("deleted", "not in cache"):
            return bool(below)
        return change == "modified" and path not in made and any(not Path(other).exists() for other in below)

    faults = []
    for name, items in status.items():
        for item in items:
            if isinstance(item, str):
                faults.append(f"{name}: {item}")
                continue
            for kind, changes in item.items():
                for path, change in changes.items():
                    if not is_absent(path, change):
                        faults.append(f"{name}: {kind}: {path}: {change}")
    return faults


def lock_faults() -> list[str]:
    """All that is wrong between dvc.lock and this checkout, and the way out."""
    lock = entries()
    faults = chain_faults(lock, declared())
    faults += status_faults(json.loads(dvc("status", "--json") or "{}"), producers(lock))
    way_out = f"dvc.lock does not belong to this checkout ({len(faults)} faults): `make repro` runs what changed"
    return [*faults, way_out] if faults else []


def choice_notes() -> list[str]:
    """Return what has changed since the trials that chose the settings, as information: the report says it too."""
    found = files.read_json(CHOICE) if CHOICE.exists() else {"stale": [], "differs": []}
    notes = [f"choice: {line}" for line in (*found["stale"], *found["differs"])]
    if notes:
        notes.append(
            f"choice: settings were chosen by trials of other code or params ({len(notes)} differences): `make trials "
            f"STUDY={found['name']}` tries them anew, `choice: null` in params.yaml says that no trials chose them"
        )
    return notes


def prune() -> list[str]:
    """Drop the lock entries of cells that are declared no more, and what these made; returns what went.

    Nothing else is touched: a file goes only if dvc.lock says that a dropped cell made it and no declared one does.
    """
    lock, stages = entries(), declared()
    gone = [name for name in lock if name not in stages]
    kept = set(producers({name: entry for name, entry in lock.items() if name in stages}))
    stale = [Path(out["path"]) for name in gone for out in lock[name].get("outs", []) if out["path"] not in kept]
    for path in stale:
        files.remove(path)
        for parent in list(path.parents)[:-2]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    if gone:
        with recovery.still():
            _drop(gone)
    return [*(f"dvc.lock: {name}" for name in gone), *map(str, stale)]


def _drop(names: list[str]) -> None:
    """Take entries out of dvc.lock, whole or not at all."""
    yaml = YAML()
    yaml.width = 10**6
    with LOCK.open(encoding="utf-8") as file:
        content = yaml.load(file)
    for name in names:
        del content["stages"][name]
    with files.whole(LOCK) as made, made.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def first_to_differ(ours: dict[str, Entry], theirs: dict[str, Entry]) -> list[str]:
    """Return the stages that made other bytes, although what they read from other stages has the same bytes.

    Args:
        ours: the stages of a lock file.
        theirs: those of another.
    """
    made, others = producers(ours), producers(theirs)

    def differs(path: str) -> bool:
        below = [out for out in made if out == path or out.startswith(f"{path}/") or path.startswith(f"{out}/")]
        return any(out in others and made[out][1] != others[out][1] for out in below)

    stages = [name for name, entry in ours.items() if any(differs(out["path"]) for out in entry.get("outs", []))]
    return [name for name in stages if not any(differs(dep["path"]) for dep in ours[name].get("deps", []))]


def compare(other: Path) -> list[str]:
    """Return the outputs with other bytes than in another lock file, or in one of the two alone, and a count.

    The stages where the difference begins come first, with the processor that they ran on.
    """
    both = entries(LOCK), entries(other)
    ours, theirs = ({path: md5 for path, (_, md5) in producers(stages).items()} for stages in both)
    lines = [f"differs: {path}" for path in sorted(ours.keys() & theirs.keys()) if ours[path] != theirs[path]]
    ran_on = [other.parent / pinning.PROCESSORS, pinning.PROCESSORS]
    there, here = (files.read_json(path) if path.exists() else {} for path in ran_on)
    first = [
        f"first to differ: {stage} (here on {here.get(stage, 'an unknown processor')}, there on "
        f"{there.get(stage, 'an unknown processor')})"
        for stage in first_to_differ(*both)
    ]
    same = len(ours.keys() & theirs.keys()) - len(lines)
    lines += [f"only in {LOCK}: {path}" for path in sorted(ours.keys() - theirs.keys())]
    lines += [f"only in {other}: {path}" for path in sorted(theirs.keys() - ours.keys())]
    return [*first, *lines, f"{same} outputs have the same bytes, {len(lines)} do not"]


def main() -> None:
    """Parse, do, print."""
    parser = arguments.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="does dvc.lock belong to this code and these params")
    commands.add_parser("prune", help="drop what cells made that params.yaml no longer declares")
    comparing = commands.add_parser("compare", help="which outputs have the bytes that another lock file has")
    comparing.add_argument("file", type=Path, help="another dvc.lock")
    args = parser.parse_args()
    do: dict[str, Callable[[], list[str]]] = {
        "check": lock_faults,
        "prune": prune,
        "compare": lambda: compare(args.file),
    }
    try:
        parse(params.read())
        lines = do[args.command]()
        whole = f"dvc.lock belongs to this code and these params: {len(entries())} stages"
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(str(error))
    for note in choice_notes() if args.command == "check" else ():
        print(note)
    print("\n".join(lines) or {"check": whole, "prune": "nothing to prune"}[args.command])
    sys.exit(bool(lines) and args.command == "check")


def quiet_pipe() -> None:
    """Let `make audit FILE=... | head` end quietly."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


if __name__ == "__main__":
    quiet_pipe()
    main()
