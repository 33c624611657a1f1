"""Results on another disk or in a bucket, for other machines: `python -m stages.pipeline.remote add | push | pull`.

`add <URL>` names the place where this checkout keeps results (a folder, `s3://`, `gs://`, `ssh://`), and has DVC check
the hash of whatever comes from there. `push` sends outputs, and what DVC knows of runs, so that another machine with
the same inputs restores what it would else train. `pull` brings both; where the place lost an object, or has another
content under its name, it brings all the rest, names what is missing, and ends with 1.
"""

import hashlib
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException

from stages.core import arguments
from stages.learning import checkpoints
from stages.pipeline import audit, lock, recovery

NAME = "store"
NEEDED = {"s3": "dvc_s3", "ssh": "dvc_ssh", "gs": "dvc_gs"}  # scheme -> package that DVC reaches it by
AGAIN = "nothing here has changed; run it again once the place answers"


class RemoteError(RuntimeError):
    """The remote does not do what it is asked for; the message says what to do."""


def add(url: str) -> list[str]:
    """Let results be kept at a URL, for this checkout alone (in .dvc/config.local, which git does not hold).

    Raises:
        RemoteError: DVC cannot reach such a URL here.
    """
    scheme, separator, _ = url.partition("://")
    if not url or url.startswith("-"):
        raise RemoteError(f"a URL is needed, such as /mnt/results or s3://bucket/results, got {url!r}")
    if separator and scheme not in NEEDED:
        known = ", ".join(f"{one}://" for one in NEEDED)
        raise RemoteError(f"results are kept in a folder, or at {known}, got {url}")
    if not separator and Path(url).exists() and not Path(url).is_dir():
        raise RemoteError(f"{url} is a file, where a folder is needed")
    if separator and (package := NEEDED.get(scheme)) and importlib.util.find_spec(package) is None:
        how = "`pip install dvc-gs`" if scheme == "gs" else "`make extra`"
        raise RemoteError(f"DVC reaches {scheme}:// by {package.replace('_', '-')}, which is not installed: {how}")
    lock.dvc("remote", "add", "--local", "--force", "--default", NAME, url)
    lock.dvc("remote", "modify", "--local", NAME, "verify", "true")
    return [f"results are kept at {url}; what comes from there is checked by its hash"]


def outputs(repo: Any) -> list[audit.Named]:
    """What DVC's cache must have of the stages that ran."""
    cached = {out.def_path for stage in repo.index.stages for out in stage.outs if out.use_cache}
    entries = lock.read(lock.LOCK) if lock.LOCK.exists() else {}
    return [one for one in audit.named(entries, cached) if one.is_cached]


def missing(one: audit.Named, cache: Path) -> list[tuple[str, str]]:
    """(path, MD5) of the files of an output that DVC's cache lacks; of a folder whose list it lacks, of the folder."""
    inside: dict[str, str] | None = {one.path: one.md5}
    if one.md5.endswith(audit.FOLDER):
        inside = audit.listed(one, cache)
    if inside is None:
        return [(one.path, one.md5)]
    return [(path, md5) for path, md5 in inside.items() if not audit.cache_path(cache, md5).is_file()]


def _bring_list(repo: Any, one: audit.Named, cache: Path) -> None:
    """Bring the list of a folder's files alone, which DVC brings after the files: so that what is lost has a name."""
    target, store = audit.cache_path(cache, one.md5), repo.cloud.get_remote_odb(NAME)
    with suppress(Exception):  # lost too: then the folder is named
        content = store.fs.cat_file(store.oid_to_path(one.md5))
        if hashlib.md5(content, usedforsecurity=False).hexdigest() + audit.FOLDER == one.md5:
            checkpoints.write(target, content)


def _fetch(repo: Any, **asked: Any) -> bool:
    """Bring objects to the cache; whether anything went wrong."""
    try:
        repo.fetch(remote=NAME, **asked)
    except Exception:  # noqa: BLE001 - each kind of remote has errors of its own; what is missing is looked up
        return True
    return False


def _answers(repo: Any) -> str | None:
    """Why the remote does not even say what it has, if it does not."""
    try:
        store = repo.cloud.get_remote_odb(NAME)
        store.fs.ls(store.fs.parent(store.path), detail=False)
    except FileNotFoundError as error:
        return f"{error}: it holds nothing yet, or is another place"
    except Exception as error:  # noqa: BLE001 - likewise
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _check_out(repo: Any, paths: list[str]) -> None:
    """Put what the cache has in place.

    Raises:
        RemoteError: files that were changed here are in the way.
    """
    try:
        repo.checkout(targets=paths)
    except DvcException as error:
        raise RemoteError(
            f"what came is in DVC's cache, but not all of it in place: {' '.join(str(error).split())}. A file that was "
            "changed here stays: move it away, or take the recorded one by `dvc checkout --force <path>`"
        ) from error


def pull() -> tuple[list[str], list[str]]:
    """Bring what the remote has; returns what is told, and what is missing.

    Raises:
        RemoteError: none is named, or it does not answer.
    """
    with recovery.still() as repo:
        require(repo)
        wanted, cache = outputs(repo), Path(repo.cache.local.path).parent.parent
        absent = [one for one in wanted if missing(one, cache)]
        if error := _answers(repo):
            raise RemoteError(f"the remote does not answer: {error}: {AGAIN}")
        if _fetch(repo, run_cache=True):  # it stops at the first object that is lost
            for one in absent:
                if _fetch(repo, targets=[one.path]) and one.md5.endswith(audit.FOLDER):
                    _bring_list(repo, one, cache)
        lost = {one: missing(one, cache) for one in wanted}
        whole = [one.path for one in wanted if not lost[one]]
        if whole:  # no target would be all
            _check_out(repo, whole)
    faults = [
        f"{path} ({one.stage}): the remote has no such object, or another content under its name (MD5 {md5})"
        for one, files_ in lost.items()
        for path, md5 in files_
    ]
    way_out = (
        "`make repro` makes again what is missing, and `make push` sends it; an object with another content must be "
        "removed from the remote before (files/md5/<two digits of its MD5>/<the others>)"
    )
    new = sum(not lost[one] for one in absent)
    told = [f"{len(whole)} of {len(wanted)} outputs are here, {new} of them new"]
    return told, [*faults, way_out] if faults else []


def _mend(repo: Any, wanted: set[str], cache: Path) -> int:
    """Send files of folders that the remote lacks; DVC takes a folder for whole where its list is."""
    store = repo.cloud.get_remote_odb(NAME)
    lacking = sorted(wanted - set(store.oids_exist(sorted(wanted))))
    for md5 in lacking:
        store.add(str(audit.cache_path(cache, md5)), repo.cache.local.fs, md5)
    return len(lacking)


def push() -> list[str]:
    """Send outputs and runs.

    Raises:
        RemoteError: none is named, or it does not take them.
    """
    with recovery.still() as repo:
        require(repo)
        cache, files_of_folders = Path(repo.cache.local.path).parent.parent, set[str]()
        for one in outputs(repo):
            if one.md5.endswith(audit.FOLDER):
                files_of_folders |= {*(audit.listed(one, cache) or {}).values()}
        try:
            sent = repo.push(remote=NAME, run_cache=True)
            sent += _mend(repo, files_of_folders, cache)
        except Exception as error:
            said = " ".join(str(error).split())
            raise RemoteError(
                f"the remote took not everything: {said or type(error).__name__}. What it has it keeps, {AGAIN}"
            ) from error
    return [f"{sent} files sent"]


def require(repo: Any) -> None:
    """Check that a remote is named.

    Raises:
        RemoteError: it is not.
    """
    if NAME not in repo.config["remote"]:
        raise RemoteError("no remote is named: make remote URL=<folder, s3://..., ssh://...>")


def main() -> None:
    """Parse, do, print."""
    parser = arguments.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="name where results are kept")
    adding.add_argument("url", help="a folder, s3://bucket/path, gs://bucket/path or ssh://user@host/path")
    commands.add_parser("push", help="send outputs and runs there")
    commands.add_parser("pull", help="bring them from there")
    args = parser.parse_args()
    faults: list[str] = []
    try:
        if args.command == "pull":
            told, faults = pull()
        else:
            told = add(args.url) if args.command == "add" else push()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    print("\n".join([*told, *faults]))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
