"""Where a file or a number comes from: `python -m stages.pipeline.origin <file>[:<key>/<key>/...]`.

Prints the value, then each stage that it was made by: command, code with its last commit, parameters, and what it
read, from which stage, down to the owners' files with their licence. `--json` has the whole for machines, `--whole` for
people.
Hashes are those of dvc.lock. The file itself, code and what git holds are read and compared (it ends with 1 where the
file is another); other data is left to `make audit`, which reads all. Of a folder that a stage read
(`data/predictions`), a number of some models is traced to those alone.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core import arguments, files, params, plugins
from stages.pages import addresses
from stages.pipeline import by_hand, lock, pinning

SHORT = 60  # characters of a value in a summary
READ = ("stages/", "reports/")  # git holds these
AS_RECORDED, OTHER, ABSENT, UNREAD = "as recorded", "other content", "not here", "not read"
Entry = dict[str, Any]


class Makers:
    """Which stage made what, by dvc.lock."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries, self.made = entries, lock.producers(entries)

    def of(self, path: str, keys: str = "") -> list[str]:
        """The stages that made a path, what lies below it or what it lies in.

        Args:
            path: as dvc.lock has it.
            keys: of a number; of a folder that holds a file a model, stages of models that it names come alone.
        """
        exact = [name for out, (name, _) in self.made.items() if out == path or path.startswith(f"{out}/")]
        below = {out: name for out, (name, _) in self.made.items() if out.startswith(f"{path}/")}
        named = [name for out, name in below.items() if _names(keys, out.removeprefix(f"{path}/"))]
        return sorted({*exact, *(named or below.values())})


def _names(keys: str, path: str) -> bool:
    """Whether an address names a model by its path, which may be one of two (`a - b`)."""
    model = re.escape(Path(path).with_suffix("").as_posix())
    return "/" in path and bool(re.search(rf"(^|/| - ){model}($|/| - )", keys))


def trace(entries: dict[str, Entry], file: str, keys: str = "") -> dict[str, Entry]:
    """Every stage that a file was made by, from the file down to the owners' files, as dvc.lock has it.

    Args:
        entries: of dvc.lock.
        file: a path.
        keys: of a number in it.

    Returns:
        stage -> command, code (path, md5), params, reads (path, md5, from), made (path, md5).

    Raises:
        ValueError: no stage made it.
    """
    makers = Makers(entries)
    pending, found = makers.of(file), dict[str, Entry]()
    if not pending:
        for name, about in by_hand.read().items():
            if by_hand.page_of(name).as_posix() == file:
                raise ValueError(f"no stage made {file}: `{about['command']}` did, at commit {about['commit']}; `make "
                                 "audit` tells whether it is as then, and what has changed since")  # fmt: skip
        raise ValueError(f"no stage in dvc.lock made {file}: {_nearest(makers, file)}")
    narrowed = set(pending)
    while pending:
        name = pending.pop(0)
        if name in found:
            continue
        entry, of_number = entries[name], keys if name in narrowed else ""
        deps = entry.get("deps", [])
        reads = [
            {"path": dep["path"], "md5": dep.get("md5"), "from": made}
            for dep in deps
            if (made := makers.of(dep["path"], of_number)) or not dep["path"].startswith("stages/")
        ]
        found[name] = {
            "command": entry["cmd"],
            "code": [{"path": dep["path"], "md5": dep["md5"]} for dep in deps if dep["path"].startswith("stages/")],
            "params": entry.get("params", {}).get("params.yaml", {}),
            "reads": reads,
            "made": [{"path": out["path"], "md5": out["md5"]} for out in entry.get("outs", [])],
        }
        pending += [made for read in reads for made in read["from"]]
    return found


def _nearest(makers: Makers, file: str) -> str:
    near = addresses.nearest(file, list(makers.made))
    return f"nearest are {', '.join(near)}" if near else "it has no stage that ran"


def state(one: Entry) -> str:
    """Whether a path is what dvc.lock says, for what git holds."""
    path = Path(one["path"])
    if not one["path"].startswith(READ):
        return UNREAD
    if not path.exists():
        return ABSENT
    return AS_RECORDED if lock.md5(path) == one["md5"] else OTHER


def state_of(entries: dict[str, Entry], file: str) -> str:
    """Whether a file that stages made, or the folder that it lies in, has the bytes that dvc.lock says.

    Raises:
        ValueError: the folder is here and holds no such file.
    """
    found = AS_RECORDED
    for out, (stage, md5) in Makers(entries).made.items():
        path = Path(out)
        if out != file and not (file.startswith(f"{out}/") or out.startswith(f"{file}/")):
            continue
        if file.startswith(f"{out}/") and path.is_dir() and not Path(file).exists():
            raise ValueError(f"{stage} made {out}, in which there is no {file.removeprefix(f'{out}/')}")
        if not path.exists():
            found = ABSENT if found == AS_RECORDED else found
        elif lock.md5(path) != md5:
            found = OTHER
    return found


def last_commit(paths: list[str]) -> str | None:
    """Hash and day of the last commit, that changed any of these if there are some; None without git's history."""
    if paths and _git("rev-parse", "--is-shallow-repository") == "true":
        return None  # a shallow clone takes its first commit for the one that changed everything
    return _git("log", "-1", "--format=%h of %cs", "--", *paths) or None


def _git(*words: str) -> str:
    """What git says, nothing without a repository."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def owners(stages: dict[str, Entry], values: Any) -> dict[str, Entry]:
    """The owners' files below the stages, data set -> licence, source, and the files if their manifest is here."""
    found = {}
    for name in stages:
        stage, _, dataset = name.partition("@")
        if stage != "download":
            continue
        about, manifest = plugins.load("datasets", dataset), Path(f"data/raw/{dataset}/manifest.json")
        found[dataset] = {
            "licence": about.LICENCE,
            "source": about.SOURCE,
            "drawn": dataset in values.get("phantoms", {}),
            "files": files.read_json(manifest)["files"] if manifest.is_file() else None,
        }
    return found


def environments(stages: dict[str, Entry]) -> dict[str, Entry]:
    """Return group -> what is recorded of Python, instruction set and packages, for groups that they depend on."""
    paths = {Path(read["path"]) for stage in stages.values() for read in stage["reads"]}
    return {
        path.stem: files.read_json(path) for path in sorted(paths) if path.parent == pinning.FOLDER and path.is_file()
    }


def machine(stages: dict[str, Entry]) -> Entry | None:
    """The machine of the timings, where a file is made of them or holds them; dvc.lock names none of the others."""
    timed = [one["path"] for stage in stages.values() for one in stage["made"] if one["path"].endswith(".timing.json")]
    here = [path for path in timed if Path(path).is_file()]
    return dict(files.read_json(Path(here[0]))["machine"]) if here else None


def explain(address: str) -> Entry:
    """All that is known of where a file or a number comes from.

    Args:
        address: `<file>`, or `<file>:<key>/<key>/...` of a JSON file.

    Raises:
        ValueError: no stage made the file, it is not in the folder that a stage made, or nothing is at the address.
        FileNotFoundError: the file of a number is not here, or dvc.lock.
    """
    file, _, keys = address.partition(":")
    file = os.path.normpath(file)
    values = params.read()
    entries = lock.read(lock.LOCK)
    stages = trace(entries, file, keys)
    is_as_recorded = state_of(entries, file)
    value = _value(file, keys, address) if keys else None
    for stage in stages.values():
        for one in (*stage["code"], *stage["reads"], *stage["made"]):
            one["state"] = state(one)
        stage["commit"] = last_commit([one["path"] for one in stage["code"]])
    processors = files.read_json(pinning.PROCESSORS) if pinning.PROCESSORS.exists() else {}
    for name, stage in stages.items():
        stage["processor"] = processors.get(name)
    return {
        "address": address,
        "value": value,
        "state": is_as_recorded,
        "commit": last_commit([]),
        "environments": environments(stages),
        "machine": machine(stages),
        "stages": stages,
        "owners": owners(stages, values),
    }


def _value(file: str, keys: str, address: str) -> Any:
    path = Path(file)
    if path.suffix != ".json":
        raise ValueError(f"only JSON files have keys, got {file}: leave the key out to ask for the file")
    if not path.is_file():
        raise FileNotFoundError(f"{file} is not here: `dvc pull` or `make repro` brings it")
    return addresses.resolve(files.read_json(path), keys, address)


def told(found: Entry, is_whole: bool) -> Iterator[str]:
    """The lines for people.

    Args:
        found: as `explain` gives it.
        is_whole: every file and parameter, not only their number.
    """
    value = found["value"]
    yield found["address"]
    if value is not None:
        yield f"= {_short(value, is_whole)}"
    if found["state"] == OTHER:
        yield "NOT as dvc.lock records it: changed since (`make audit` names all that is)"
    yield f"at commit {found['commit'] or 'unknown'}"
    for group, recorded in found["environments"].items():
        versions = ", ".join(f"{name} {version}" for name, version in sorted(recorded["packages"].items()))
        pinned = recorded["instruction_set"]
        pinned = pinned if isinstance(pinned, str) else "pinned to " + _short(pinned, is_whole)
        yield f"{group} stages ran with Python {recorded['python']}, instruction set {pinned}; {versions}"
    processors = {stage["processor"] for stage in found["stages"].values() if stage["processor"]}
    if processors:
        yield f"stages ran on {'; '.join(sorted(processors))}"
    if found["machine"]:
        yield f"timed on {found['machine']['cpu']}, {found['machine']['system']}"
    yield ""
    is_environment = {name for name, stage in found["stages"].items()
                      if any(Path(one["path"]).parent == pinning.FOLDER for one in stage["made"])}  # fmt: skip
    shown = {name: stage for name, stage in found["stages"].items() if is_whole or name not in is_environment}
    yield from tree(shown)
    for name, stage in shown.items():
        yield ""
        yield f"{name}: {stage['command']}"
        yield from _code(stage, is_whole)
        given = [f"{key} = {_short(of_key, is_whole)}" for key, of_key in sorted(stage["params"].items())]
        if given and is_whole:
            yield from (f"  param  {line}" for line in given)
        elif given:
            yield f"  params {'; '.join(given)}"
        for one in stage["reads"]:
            if not is_whole and Path(one["path"]).parent == pinning.FOLDER:
                continue  # told above
            yield f"  reads  {_line(one)}{_from(one['from'], is_whole)}"
        yield from (f"  made   {_line(one)}" for one in stage["made"])
    if found["owners"]:
        yield ""
    for dataset, about in found["owners"].items():
        yield from _owner(dataset, about, is_whole)


def tree(stages: dict[str, Entry]) -> Iterator[str]:
    """The stages as a tree, each stage's inputs once."""
    sources = {
        name: [made for read in stage["reads"] for made in read["from"] if made in stages]
        for name, stage in stages.items()
    }
    inner = {source for of_stage in sources.values() for source in of_stage}
    shown = set[str]()

    def below(name: str, start: str) -> Iterator[str]:
        listed = list(dict.fromkeys(sources[name]))
        for place, source in enumerate(listed):
            is_last = place == len(listed) - 1
            again = " (as above)" if source in shown and sources[source] else ""
            yield f"{start}{'└ ' if is_last else '├ '}{source}{again}"
            if not again:
                shown.add(source)
                yield from below(source, start + ("  " if is_last else "│ "))

    for name in stages:
        if name not in inner:
            yield name
            yield from below(name, "")


def _line(one: Entry) -> str:
    is_odd = one["state"] in (OTHER, ABSENT)
    return f"{one['path']} {one['md5']}{' (' + one['state'] + ')' if is_odd else ''}"


def _from(stages: list[str], is_whole: bool) -> str:
    if not stages:
        return ""
    if is_whole or len(stages) <= 3:
        return f", from {', '.join(stages)}"
    return f", from {len(stages)} stages, {stages[0]} to {stages[-1]}"


def _code(stage: Entry, is_whole: bool) -> Iterator[str]:
    odd = [one for one in stage["code"] if one["state"] != AS_RECORDED]
    rest = f", {len(odd)} not as recorded" if odd else ", as recorded"
    last = f", last changed by {stage['commit']}" if stage["commit"] else ""
    yield f"  code   {len(stage['code'])} files and rooms{rest}{last}"
    yield from (f"  code   {_line(one)}" for one in (stage["code"] if is_whole else odd))


def _owner(dataset: str, about: Entry, is_whole: bool) -> Iterator[str]:
    kind = "films drawn under the owner's label tables" if about["drawn"] else "the owner's files"
    yield f"{dataset}: {kind}, {about['source']}"
    yield f"  licence {about['licence']}"
    held = about["files"]
    if held is None:
        yield f"  files   data/raw/{dataset}/manifest.json, which names them, is not here: `dvc pull` or `make repro`"
    elif is_whole:
        yield from (f"  file    {one['name']}, {one['bytes']:,} bytes, SHA-256 {one['sha256']}" for one in held)
    else:
        yield f"  files   {len(held)}, {sum(one['bytes'] for one in held):,} bytes, pinned in data/raw/{dataset}"


def _short(value: Any, is_whole: bool) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if is_whole or len(text) <= SHORT:
        return text
    return f"({len(value)} values)" if isinstance(value, dict | list) else f"{text[:SHORT]}..."


def main() -> None:
    """Parse, explain, print."""
    parser = arguments.parser(__doc__)
    parser.add_argument("file", help="its path, or with :<key>/<key>/... the address of a number in it")
    parser.add_argument("--key", default="", help="<key>/<key>/... of a number, if not in the address")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON")
    form.add_argument("--whole", action="store_true", help="every file and parameter")
    args = parser.parse_args()
    try:
        found = explain(f"{args.file}:{args.key}" if args.key else args.file)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(told(found, args.whole)))
    sys.exit(found["state"] == OTHER)


if __name__ == "__main__":
    lock.quiet_pipe()
    main()
