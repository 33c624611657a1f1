"""Whether this checkout is what dvc.lock and git say, byte by byte: `make audit` (QUICK=1: without reading data).

Quick is what `lock.check` compares: hashes in dvc.lock with code, params and reports, as DVC sees them, by time stamps.
The whole audit trusts no time stamp. It reads every file that dvc.lock names, in the checkout and in DVC's cache (a
file that is linked into both once), holds dvc.yaml and params against the lock, code against the commit, installed
packages against requirements.lock, the owners' files against their manifests and published checksums, and README
against the reports. Data that is neither here nor in the cache, as in a fresh clone, is counted and no fault.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from tqdm import tqdm

from stages.core import files, params, plugins
from stages.pages import readme
from stages.pipeline import by_hand, lock, pinning, recovery, revisions

BLOCK = 1 << 20
FOLDER = ".dir"  # ends DVC's hash of a folder
STATES = {"??": "a file that git does not have", " D": "nothing", "D ": "nothing"}  # as `git status` has them
REPRO = "`make repro`"
AGAIN = "`make repro` makes it again, or bring the right one back"


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        what: file, key or package.
        where: the stage, or what else it belongs to.
        expected: hash, version or words.
        found: likewise.
        remedy: what to do.
    """

    what: str
    where: str
    expected: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} ({self.where}): expected {self.expected}, found {self.found}: {self.remedy}"


@dataclass
class Seen:
    """What was read.

    Attributes:
        files: number of them.
        bytes: of them.
        absent: outputs that are neither in the checkout nor in the cache.
        uncommitted: results of this checkout that git has otherwise.
    """

    files: int = 0
    bytes: int = 0
    absent: set[str] = field(default_factory=set)
    uncommitted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Named:
    """A file or folder as dvc.lock names it.

    Attributes:
        path: its path.
        md5: its hash, of a folder with `.dir` at its end.
        stage: that names it.
        is_cached: whether DVC's cache must have it.
        size: its bytes as recorded, if they are.
        files: of a folder how many, likewise.
        is_program: whether it is recorded as one.
    """

    path: str
    md5: str
    stage: str
    is_cached: bool
    size: int | None
    files: int | None
    is_program: bool


class Hashes:
    """MD5 of files, each read once however often it is linked or asked for."""

    def __init__(self, seen: Seen) -> None:
        """What is read is counted in `seen`."""
        self.seen, self._known = seen, dict[tuple[int, int], str]()

    def read(self, paths: Iterable[Path], workers: int) -> None:
        """Read files side by side, with a progress bar."""
        todo = dict[tuple[int, int], tuple[Path, int]]()
        for path in paths:
            about = path.stat()
            todo.setdefault((about.st_dev, about.st_ino), (path, about.st_size))
        todo = {key: value for key, value in todo.items() if key not in self._known}
        total = sum(size for _, size in todo.values())
        with (
            tqdm(total=total, unit="B", unit_scale=True, desc="audit", disable=None) as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            for key, digest in zip(todo, pool.map(_md5, (path for path, _ in todo.values())), strict=True):
                self._known[key] = digest
                bar.update(todo[key][1])
        self.seen.files += len(todo)
        self.seen.bytes += total

    def of(self, path: Path) -> str:
        """Of a file, read before or now."""
        about = path.stat()
        key = (about.st_dev, about.st_ino)
        if key not in self._known:
            self.read([path], 1)
        return self._known[key]


def _md5(path: Path) -> str:
    total = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def named(entries: dict[str, Any], cached: set[str]) -> list[Named]:
    """All that dvc.lock names, outputs before inputs, each once; again where another stage says otherwise of it."""
    found: dict[tuple[Any, ...], Named] = {}
    for kind in ("outs", "deps"):
        for stage, entry in entries.items():
            for one in entry.get(kind, []):
                said = one["path"], one["md5"], one.get("size"), one.get("nfiles"), bool(one.get("isexec"))
                path, md5, size, count, is_program = said
                is_cached = kind == "outs" and path in cached
                found.setdefault(said, Named(path, md5, stage, is_cached, size, count, is_program))
    return list(found.values())


def in_cache(one: Named) -> str:
    """Where a fault of the cache lies, in words."""
    return f"DVC's cache, {one.path} of {one.stage}"


def cache_path(cache: Path, md5: str) -> Path:
    """Where DVC's cache has the file, or the list of a folder, of this hash."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def store_of(repo: Any) -> Path:
    """Return the folder of DVC's cache."""
    return Path(repo.cache.local.path).parent.parent


def listed(one: Named, cache: Path) -> dict[str, str] | None:
    """The files of a folder by its list in the cache, path -> MD5; None where the list is not there or not whole."""
    try:
        content = cache_path(cache, one.md5).read_bytes()
    except OSError:
        return None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() + FOLDER != one.md5:
        return None
    return {f"{one.path}/{item['relpath']}": item["md5"] for item in json.loads(content)}


def members(folder: Path) -> list[Path]:
    """The files in a folder that DVC's hash of it takes in."""
    return [path for path in folder.rglob("*") if path.is_file() and not lock.is_ignored(path)]


def file_faults(entries: dict[str, Any], cached: set[str], cache: Path, seen: Seen) -> Iterator[Fault]:
    """Every file that dvc.lock names, read in the checkout and in the cache."""
    hashes, all_named = Hashes(seen), named(entries, cached)
    to_read: list[Path] = []
    wanted: dict[tuple[str, str], Named] = {}  # file, its hash -> what it belongs to
    unlisted: list[Named] = []
    for one in all_named:
        inside = {one.path: one.md5}
        if one.md5.endswith(FOLDER):
            known = listed(one, cache) if one.is_cached else None
            if known is None:
                unlisted.append(one)
                to_read += members(Path(one.path)) if Path(one.path).is_dir() else []
                continue
            inside = known
        wanted |= {key: one for key in inside.items() if key not in wanted}
    objects = {md5: cache_path(cache, md5) for (_, md5), one in wanted.items() if one.is_cached}
    to_read += [path for path in (Path(path) for path, _ in wanted) if path.is_file()]
    to_read += [path for path in objects.values() if path.is_file()]
    hashes.read(to_read, os.cpu_count() or 1)
    outs = set(lock.producers(entries))
    for one in unlisted:
        is_made = one.path in outs or any(path.startswith(f"{one.path}/") for path in outs)
        yield from _unlisted_faults(one, is_made, hashes, cache, seen)
    for (path, md5), one in wanted.items():
        yield from _here_faults(Path(path), md5, one, hashes, objects, seen)
    for md5, kept in objects.items():
        if kept.is_file() and (found := hashes.of(kept)) != md5:
            one = next(one for (_, other), one in wanted.items() if other == md5)
            yield Fault(str(kept), in_cache(one), md5, found, f"remove it; {AGAIN}")
    yield from _strangers(all_named, {path for path, _ in wanted})


def _unlisted_faults(one: Named, is_made: bool, hashes: Hashes, cache: Path, seen: Seen) -> Iterator[Fault]:
    """A folder whose files no list in the cache names: of code, or one whose list is missing or changed."""
    folder, kept = Path(one.path), cache_path(cache, one.md5)
    if not folder.is_dir():
        if one.is_cached and kept.exists():
            yield Fault(str(kept), in_cache(one), one.md5, "other bytes", f"remove it; {AGAIN}")
        elif folder.exists() or not is_made:
            yield Fault(one.path, one.stage, "a folder", "a file" if folder.exists() else "nothing", AGAIN)
        else:
            seen.absent.add(one.path)
        return
    inside = {path.relative_to(folder).as_posix(): hashes.of(path) for path in members(folder)}
    if (found := lock.folder_md5(inside)) != one.md5:
        others = "" if one.is_cached else ", ".join(path for _, path in uncommitted(one.path)[: lock.SHOWN])
        yield Fault(one.path, one.stage, one.md5, f"{found} ({others})" if others else found, AGAIN)
    if one.is_cached:
        state = "other bytes" if kept.exists() else "nothing"
        yield Fault(str(kept), in_cache(one), one.md5, state, f"`dvc commit {one.stage}`")


def _here_faults(
    path: Path, md5: str, one: Named, hashes: Hashes, objects: dict[str, Path], seen: Seen
) -> Iterator[Fault]:
    """A file in the checkout, and whether the cache has it."""
    is_kept = not one.is_cached or objects[md5].is_file()
    if path.is_file():
        if (found := hashes.of(path)) != md5:
            yield Fault(str(path), one.stage, md5, found, AGAIN)
        elif not one.is_cached and path.is_symlink():
            yield Fault(str(path), one.stage, "a file", f"a link to {path.readlink()}", AGAIN)
        elif not is_kept:
            kept = str(objects[md5])
            yield Fault(kept, in_cache(one), md5, "nothing", f"`dvc commit {one.stage}`")
    elif Path(one.path).exists() or not one.is_cached:
        yield Fault(str(path), one.stage, md5, "nothing", AGAIN)
    elif not is_kept:
        seen.absent.add(one.path)


def _strangers(all_named: list[Named], wanted: set[str]) -> Iterator[Fault]:
    """What lies in an output's folder and its list does not name, links and what DVC passes over too."""
    for folder in {one.path for one in all_named if one.is_cached and one.md5.endswith(FOLDER)}:
        for path in sorted(Path(folder).rglob("*")):
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder and str(path) not in wanted and path.name != ".DS_Store":
                stage = next(one.stage for one in all_named if one.path == folder)
                yield Fault(str(path), stage, "nothing", "a file that the stage did not make", "remove it")


def said_faults(all_named: list[Named]) -> Iterator[Fault]:
    """Where dvc.lock says other bytes, another number of files, or a program, than its hash is of."""
    for one in all_named:
        path = Path(one.path)
        inside = members(path) if path.is_dir() else [path] if path.is_file() else []
        if not inside:
            continue
        size, count = sum(file.stat().st_size for file in inside), len(inside) if path.is_dir() else None
        is_program = path.is_file() and os.access(path, os.X_OK) and bool(path.stat().st_mode & 0o100)
        if one.size not in (None, size) or one.files not in (None, count) or one.is_program > is_program:
            said = f"{one.size} bytes, {one.files or 1} files{', a program' if one.is_program else ''}"
            yield Fault(one.path, one.stage, said, f"{size} bytes, {len(inside)} files", REPRO)


def declared_faults(entries: dict[str, Any], stages: Iterable[Any], values: Any) -> Iterator[Fault]:
    """What dvc.yaml and params.yaml say of each stage, and dvc.lock otherwise."""
    from dvc.dependency.param import ParamsDependency

    for stage in stages:
        entry = entries.get(stage.name)
        if entry is None:
            continue  # told with the chain
        given = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
        for kind, paths in (("deps", given), ("outs", stage.outs)):
            in_yaml, in_lock = {one.def_path for one in paths}, {one["path"] for one in entry.get(kind, [])}
            for path in sorted(in_yaml ^ in_lock):
                has = ("dvc.yaml", "dvc.lock")[path in in_lock]
                yield Fault(path, stage.name, f"it in the {kind} of dvc.yaml and dvc.lock", f"it in {has} alone", REPRO)
        keys = {key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params}
        recorded = entry.get("params", {}).get("params.yaml", {})
        for key in sorted(keys ^ recorded.keys()):
            has = ("dvc.yaml", "dvc.lock")[key in recorded]
            yield Fault(f"params.yaml: {key}", stage.name, "it in dvc.yaml and dvc.lock", f"it in {has} alone", REPRO)
        for key in sorted(keys & recorded.keys()):
            before, now = (json.dumps(one, sort_keys=True) for one in (recorded[key], _value(values, key)))
            if now != before:  # as text, since 1 == True
                yield Fault(f"params.yaml: {key}", stage.name, before, now, REPRO)
        if stage.cmd != entry["cmd"]:
            yield Fault("command", stage.name, entry["cmd"], stage.cmd, REPRO)


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def git(*words: str) -> str:
    """What git prints.

    Raises:
        NoCommitError: it refuses, as where there is no repository.
    """
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise recovery.NoCommitError(f"git {words[0]} fails: {done.stderr.strip()}: clone the project with its history")
    return done.stdout


def uncommitted(folder: str = ".") -> list[tuple[str, str]]:
    """(git's two letters, path) of each file below a folder that is not as the commit has it.

    Raises:
        NoCommitError: there is no repository.
    """
    listed = git("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", folder)
    top = git("rev-parse", "--show-prefix").strip()
    return [(line[:2], line[3:].removeprefix(top)) for line in filter(None, listed.split("\0"))]


def hidden() -> Iterator[tuple[str, str]]:
    """(path, what it is) of files that `git status` passes over: by a flag, a time stamp, or a rule to ignore them."""
    tracked = dict[str, str]()
    for line in filter(None, git("ls-tree", "-r", "-z", "HEAD").split("\0")):
        about, _, path = line.partition("\t")
        mode, _, blob = about.split(" ")
        if mode.startswith("100") and Path(path).is_file():
            tracked[path] = blob
    given = "".join(f"{path}\n" for path in tracked if "\n" not in path)
    words = ["git", "hash-object", "--stdin-paths"]
    hashes = subprocess.run(words, input=given, capture_output=True, text=True, check=True).stdout.split()
    yield from (
        (path, "other content")
        for path, found in zip(given.splitlines(), hashes, strict=True)
        if found != tracked[path]
    )
    known = set(filter(None, git("ls-files", "-z").split("\0")))
    modules = [*Path().glob("*.py*"), *Path("stages").rglob("*.py*")]
    for path in sorted(path.as_posix() for path in modules if path.is_file() and "__pycache__" not in path.parts):
        if path not in known:
            yield path, STATES["??"]


def commit_faults(entries: dict[str, Any], seen: Seen) -> Iterator[Fault]:
    """Files that are not as the commit has them; results that the lock vouches for are only noted."""
    made = set(lock.producers(entries)) | {str(lock.LOCK), str(pinning.PROCESSORS)}
    changed = {path: STATES.get(state, "other content") for state, path in uncommitted()}
    if Path(".git").exists():  # a preset's run lies in its repository's folder, which ignores it
        changed = {**dict(hidden()), **changed}
    for path, found in sorted(changed.items()):
        if path in made or any(parent.as_posix() in made for parent in Path(path).parents):
            seen.uncommitted.append(path)
        else:
            yield Fault(path, "the commit", "what the commit has", found, "commit it, or bring it back by git")


def package_faults() -> Iterator[Fault]:
    """Yield installed packages of other versions than pinned, or not there."""
    for name, wanted, found in pinning.unlike_lock():
        yield Fault(name, str(pinning.LOCK), wanted, found, "`make setup`, after `rm -r .venv`")


def source_faults(values: Any, seen: Seen) -> Iterator[Fault]:
    """The owners' files against the manifest that pins them, and this against the checksums that owners publish."""
    for dataset, settings in values["datasets"].items():
        manifest, root = Path(f"data/raw/{dataset}/manifest.json"), Path(settings["root"])
        if not manifest.is_file():
            continue
        published = plugins.load("datasets", dataset).FILES if dataset not in values["phantoms"] else {}
        for file in files.read_json(manifest)["files"]:
            path = root / file["name"]
            stated = published.get(file["name"], {}).get("checksum", "")
            if stated.startswith("sha256:") and stated != f"sha256:{file['sha256']}":
                remedy = f"fetch it again (`make fetch DATASET={dataset} ROOT={root}`), unless it is a part of that one"
                yield Fault(str(path), f"{dataset}'s owner", stated, f"sha256:{file['sha256']}", remedy)
            if not path.is_file():
                if root.exists():
                    yield Fault(str(path), str(manifest), file["sha256"], "nothing", "bring it back, or `make repro`")
                continue
            seen.files += 1
            seen.bytes += path.stat().st_size
            if (found := files.sha256(path)) != file["sha256"]:
                yield Fault(str(path), str(manifest), file["sha256"], found, "bring it back, or `make repro`")


def page_faults(seen: Seen) -> Iterator[Fault]:
    """Pages that are not those of the reports, or as their makers stamped them; a preset's run has none of its own.

    README shows the committed reports, which this machine may not repeat.
    """
    if not readme.README.exists() or not Path(".git").exists():
        return
    written = readme.README.read_text(encoding="utf-8")
    for name, source in readme.SOURCES.items():
        if not source.exists():
            continue
        revision = "HEAD" if {source.as_posix(), str(lock.LOCK)} <= set(seen.uncommitted) else revisions.HERE
        text = (revisions.content(revision, source.as_posix()) or b"").decode()
        if readme.filled(written, {name: text}) != written:
            yield Fault(f"README.md: {name}", str(source), "the report's table", "another", "`make readme`")
    for page, stamped, found in by_hand.edited():
        yield Fault(page, str(by_hand.STAMPS), stamped, found, "bring it back by git, or make it again")


def whole() -> tuple[list[str], Seen]:
    """Every fault, in words, and what was read."""
    seen = Seen()
    with recovery.still() as repo:
        entries, stages = lock.read(lock.LOCK), list(repo.index.stages)
        cache = store_of(repo)
    cached = {out.def_path for stage in stages for out in stage.outs if out.use_cache}
    values = params.read()
    faults: list[Any] = [
        *lock.chain_faults(entries, [stage.name for stage in stages]),
        *declared_faults(entries, stages, values),
        *(of_files := list(file_faults(entries, cached, cache, seen))),
        *(one for one in said_faults(named(entries, cached)) if one.what not in {fault.what for fault in of_files}),
        *commit_faults(entries, seen),
        *package_faults(),
        *source_faults(values, seen),
        *page_faults(seen),
    ]
    return list(dict.fromkeys(map(str, faults))), seen


def differing(paths: list[str]) -> str:
    """Say which results of this checkout differ from the committed ones, and which processors made both."""
    committed, here = (
        json.loads(revisions.content(revision, str(pinning.PROCESSORS)) or "{}")
        for revision in ("HEAD", revisions.HERE)
    )
    there, ours = ("; ".join(sorted(set(filter(None, ran.values())))) or "unknown" for ran in (committed, here))
    made = f"which another processor made ({there}; here: {ours})" if there != ours else f"made on {there} too"
    few = ", ".join(paths[: lock.SHOWN]) + (" and more" if len(paths) > lock.SHOWN else "")
    return f"results differ from the committed ones, {made}: {few} ({len(paths)})"


def verdict(faults: list[str], seen: Seen, seconds: float) -> str:
    """A line to paste: commit, lock, what was read, how it ended."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    of_lock = hashlib.sha256(lock.LOCK.read_bytes()).hexdigest()[:12]
    unread = f", but for {len(seen.absent)} outputs that are not here" if seen.absent else ""
    ended = f"{len(faults)} faults" if faults else f"all as recorded{unread}"
    read = f"{seen.files:,} files and {seen.bytes:,} bytes read in {seconds:.0f} s"
    return f"audit of {asked[:12] or 'no commit'}, dvc.lock {of_lock}: {read}: {ended}"


def main() -> None:
    """Audit, print, end with 1 where there is a fault."""
    start = time.monotonic()
    try:
        faults, seen = whole()
    except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError, DvcException) as error:
        sys.exit(str(error))
    for fault in faults:
        print(fault)
    if seen.absent:
        few = ", ".join(sorted(seen.absent)[:3])
        print(f"not here, and not in the cache ({len(seen.absent)} outputs, e.g. {few}): `dvc pull` or `make repro`")
    if seen.uncommitted:
        print(differing(sorted(seen.uncommitted)))
    for line in (*lock.choice_notes(), *by_hand.stale()):
        print(line)
    print(verdict(faults, seen, time.monotonic() - start))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
