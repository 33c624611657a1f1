"""A run to hand on: `make crate` (PRESET=... for a run's), an archive that is checked without this repository.

It holds code, parameters, dvc.lock, reports and the exported models, but no films, label tables or weights of teachers:
whoever has their owners' consent makes them again. What describes it:

* `ro-crate-metadata.json`, an RO-Crate of the Workflow Run profile: each file with its SHA-256, what was run on what,
  licences of code and data
* `sbom.json`, the Python environment in CycloneDX 1.6, with the libraries' licences
* `models.intoto.json`, an in-toto statement with SLSA provenance: hashes of the models and of what they were made from
* `check.py`, for Python alone: does each file have the hash that the metadata names, and is none too many

Nothing is signed: whose key vouches for a release is its maker's to say (README shows how).
"""

import datetime
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from stages.core import arguments, files, params
from stages.pipeline import audit, lock, origin

INTO = Path("crate.zip")  # a folder here would be another project to DVC, by its dvc.yaml
CARRIED = ("LICENSE", "README.md", "dvc.lock", "dvc.yaml", "params.yaml", "requirements.lock", "stages", "reports")
MODELS = Path("data/export")
WORKFLOW, MAIN = "dvc.yaml", ["File", "SoftwareSourceCode", "ComputationalWorkflow"]
METADATA, SBOM, STATEMENT, CHECK = "ro-crate-metadata.json", "sbom.json", "models.intoto.json", "check.py"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
TERMS = {"sha256": "http://schema.org/sha256"}  # a word that version 1.1 of the context lacks
TYPES = {".json": "application/json", ".csv": "text/csv", ".html": "text/html", ".md": "text/markdown",
         ".png": "image/png", ".webp": "image/webp", ".py": "text/x-python", ".yaml": "text/yaml",
         ".onnx": "application/onnx"}  # fmt: skip
CHECKER = Path(__file__).parent / "crate_check.py"


class CrateError(RuntimeError):
    """There is nothing that may be handed on; the message says why."""


def carried() -> list[str]:
    """The files of CARRIED that git has; of a preset's run, whose folder it ignores, reports as dvc.lock names them."""
    is_run = not Path(".git").exists()
    words = ["git", "-C", "../.." if is_run else ".", "ls-files", "-z", "--", *CARRIED]
    tracked = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    names = [name for name in tracked if name and Path(name).is_file()]
    if is_run:
        outs = [Path(out) for out in lock.producers(lock.read(lock.LOCK)) if out.startswith("reports/")]
        made = [file for out in outs for file in (out.rglob("*") if out.is_dir() else [out]) if file.is_file()]
        names = [name for name in names if not name.startswith("reports/")] + [file.as_posix() for file in made]
    return sorted(names)


def copy(into: Path) -> list[str]:
    """Copy what a crate carries; returns the paths.

    Raises:
        CrateError: the exported models are not here.
    """
    if not MODELS.is_dir():
        raise CrateError(f"{MODELS} is not here, which a crate hands on: `dvc pull {MODELS}` or `make repro`")
    models = [path.as_posix() for path in sorted(MODELS.rglob("*")) if path.is_file()]
    for path in (*carried(), *models):
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, into / path)
    shutil.copyfile(CHECKER, into / CHECK)
    return sorted(path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file())


def sbom(path: Path) -> None:
    """Write the environment's packages, versions and licences."""
    words = ["environment", "--output-reproducible", "--spec-version", "1.6", "--of", "JSON", "-o", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", *words, sys.executable], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CrateError(f"cyclonedx-py fails: {done.stderr.strip().splitlines()[-1]}")


def committed() -> tuple[str, str]:
    """Hash and time of the last commit; the time is the same whoever makes the crate."""
    done = subprocess.run(["git", "log", "-1", "--format=%H %cI"], capture_output=True, text=True, check=False)
    found = done.stdout.split()
    if len(found) != 2:
        raise CrateError("a crate names the commit that it is of, and git has none here: clone the project, or commit")
    return found[0], found[1]


def statement(models: dict[str, str], made_from: dict[str, str], revision: str, values: Any) -> dict[str, Any]:
    """An in-toto statement of the exported models with SLSA provenance 1.

    Args:
        models: path -> SHA-256.
        made_from: likewise, of what they were made from.
        revision: the commit.
        values: params.yaml.
    """
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    def described(named: dict[str, str]) -> list[Any]:
        return [ResourceDescriptor(name=name, digest={"sha256": digest}).pb for name, digest in named.items()]

    predicate = {
        "buildDefinition": {
            "buildType": "https://dvc.org/doc/command-reference/repro",
            "externalParameters": {"workflow": WORKFLOW, "parameters": values},
            "resolvedDependencies": [
                {"name": "code", "digest": {"gitCommit": revision}},
                *({"name": name, "digest": {"sha256": digest}} for name, digest in made_from.items()),
            ],
        },
        "runDetails": {"builder": {"id": "https://dvc.org"}},
    }
    made = Statement(described(models), "https://slsa.dev/provenance/v1", predicate)
    made.validate()
    found: dict[str, Any] = MessageToDict(made.pb)
    return found


def describe(into: Path, paths: list[str], revision: str, when: str, values: Any) -> None:
    """Write the metadata of a folder that holds all else."""
    from rocrate.model.computationalworkflow import ComputationalWorkflow
    from rocrate.model.contextentity import ContextEntity
    from rocrate.model.file import File
    from rocrate.rocrate import ROCrate

    crate = ROCrate(version="1.1", gen_preview=False)
    crate.metadata.extra_terms.update(TERMS)
    profiles = [
        crate.add(ContextEntity(crate, uri, {"@type": "CreativeWork", "name": name, "version": version}))
        for uri, (name, version) in PROFILES.items()
    ]
    crate.name = f"{values['title']}: a run of a chest X-ray distillation pipeline"
    crate.description = (
        "Code, parameters, recorded hashes, reports and exported models of one run of a DVC pipeline that distils "
        "chest X-ray classifiers into a small student. Research only; not for diagnosis."
    )
    crate.datePublished = datetime.datetime.fromisoformat(when)
    code_licence = crate.add(
        ContextEntity(crate, "https://spdx.org/licenses/MIT", {"@type": "CreativeWork", "name": "MIT License"})
    )
    crate.license = code_licence
    crate.root_dataset["conformsTo"] = profiles
    language = crate.add(
        ContextEntity(crate, "#dvc", {"@type": "ComputerLanguage", "name": "DVC", "url": {"@id": "https://dvc.org"}})
    )
    held = {}
    for path in paths:
        source, kind = into / path, ComputationalWorkflow if path == WORKFLOW else File
        known: dict[str, Any] = {
            "name": path,
            "sha256": files.sha256(source),
            "contentSize": str(source.stat().st_size),
        }
        known |= {"@type": MAIN} if path == WORKFLOW else {}
        known |= {"encodingFormat": TYPES.get(source.suffix, "text/plain")}
        held[path] = crate.add(kind(crate, source, path, properties=known))
    workflow = held[WORKFLOW]
    workflow["programmingLanguage"], workflow["license"] = language, code_licence
    crate.mainEntity = workflow
    owners = [
        crate.add_dataset(
            about["source"],
            properties={"name": name, "description": _of_owner(about), "license": about["licence"]},
        )
        for name, about in origin.owners(lock.read(lock.LOCK), values).items()
    ]
    action = crate.add_action(
        workflow,
        identifier="#run",
        object=[held["params.yaml"], *owners],
        result=[one for path, one in held.items() if path.startswith(("reports/", "data/"))],
        properties={"name": f"the run that commit {revision} records in dvc.lock", "endTime": when,
                    "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"}},
    )  # fmt: skip
    crate.root_dataset["mentions"] = [action]
    content = json.dumps(crate.metadata.generate(), indent=2, sort_keys=True, ensure_ascii=False)
    (into / METADATA).write_text(content + "\n", encoding="utf-8")


def _of_owner(about: dict[str, Any]) -> str:
    kind = "Films drawn under this owner's label tables" if about["drawn"] else "The owner's films and label tables"
    return f"{kind}; not in this crate. Its files are pinned by SHA-256 in {STATEMENT}."


def fill(folder: Path) -> None:
    """Write what a crate holds into an empty folder.

    Raises:
        CrateError: the audit has faults, or there is nothing to hand on.
    """
    if faults := audit.whole()[0]:
        raise CrateError("\n".join([*faults, "a crate is of a commit and a run that `make audit` passes"]))
    values, entries = params.read(), lock.read(lock.LOCK)
    revision, when = committed()
    paths = copy(folder)
    sbom(folder / SBOM)
    models = {path: files.sha256(folder / path) for path in paths if path.startswith(f"{MODELS}/")}
    made_from = {name: files.sha256(folder / name) for name in ("dvc.lock", WORKFLOW, "params.yaml")}
    for dataset, about in origin.owners(entries, values).items():
        made_from |= {f"{dataset}/{one['name']}": one["sha256"] for one in about["files"] or []}
    files.write_json(statement(models, made_from, revision, values), folder / STATEMENT)
    describe(folder, sorted([*paths, SBOM, STATEMENT]), revision, when, values)


def pack(folder: Path, into: Path) -> None:
    """Write a folder as a zip archive; the same files give the same bytes."""
    with files.whole(into) as made, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            about = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(about, path.read_bytes())


def main(argv: list[str] | None = None) -> None:
    """Make a crate, check it, say how to."""
    arguments.parser(__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if INTO.is_dir():
                raise CrateError(f"{INTO} is a folder, where the crate is to be: move it")
            fill(folder)
            done = subprocess.run([sys.executable, CHECK], cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CrateError(f"the crate fails its own check: {done.stdout}{done.stderr}")
            pack(folder, INTO)
        except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
            sys.exit(str(error))
    print(done.stdout.strip())
    print(f"{INTO}, {INTO.stat().st_size:,} bytes: whoever gets it unpacks it and runs `python {CHECK}` there")


if __name__ == "__main__":
    main()
