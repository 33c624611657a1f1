"""A crate: valid by the community's own validator without a network, and any change to it is found."""

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.extra
rocrate = pytest.importorskip("rocrate", reason="make extra")

from stages.core import files  # noqa: E402
from stages.pipeline import audit, crate  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
VALIDATOR = "roc-validator==0.13.0"  # in an environment of its own: it needs an older rich than DVC
CONTEXT = "https://w3id.org/ro/crate/1.1/context"
SEED = """
import io, sys
from pathlib import Path
from requests.adapters import HTTPAdapter
from requests_cache import CachedSession
from urllib3 import HTTPResponse

# rocrate carries the context of version 1.3, which names Bioschemas' terms otherwise than 1.1 does
body = Path(sys.argv[2]).read_bytes().replace(b"https://bioschemas.org/terms/", b"https://bioschemas.org/")

class Given(HTTPAdapter):
    def send(self, request, **_):
        kind = {"Content-Type": "application/ld+json"}
        return self.build_response(request, HTTPResponse(io.BytesIO(body), kind, 200, preload_content=False))

session = CachedSession(sys.argv[1], backend="sqlite", expire_after=-1)
session.mount("https://", Given())
session.get(sys.argv[3])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's code and reports, with an exported model, as a commit."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("stages", "reports", ".dvc"):
        ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp", "demo")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("dvc.lock", "dvc.yaml", "params.yaml", "README.md", "LICENSE", "requirements.lock", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    for words in (
        ["init", "-q"],
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    (folder / "data/export").mkdir(parents=True)
    (folder / "data/export/student.onnx").write_bytes(b"a model")
    (folder / "data/raw/padchest").mkdir(parents=True)
    pinned = {"dataset": "padchest", "files": [{"name": "a b.zip", "bytes": 3, "sha256": "0" * 64}]}
    files.write_json(pinned, folder / "data/raw/padchest/manifest.json")
    return folder


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setattr(audit, "whole", lambda: ([], audit.Seen()))  # the exported model is not that of dvc.lock
    return project


@pytest.fixture(scope="module")
def made(project: Path) -> Path:
    """The crate's archive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(audit, "whole", lambda: ([], audit.Seen()))
        crate.main([])
    return project / "crate.zip"


@pytest.fixture
def unpacked(made: Path, tmp_path: Path) -> Path:
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path / "crate")
    return tmp_path / "crate"


def check(folder: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-I", "check.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_crate_is_valid_by_rocrate_validator_without_a_network(unpacked: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    binary = tmp_path / "env/bin"
    subprocess.run([binary / "pip", "install", "--quiet", VALIDATOR], check=True, capture_output=True)
    context = Path(rocrate.__file__).parent / "data/ro-crate.jsonld"
    subprocess.run([binary / "python", "-c", SEED, tmp_path / "seed", context, CONTEXT], check=True)
    words = [
        "validate",
        "--offline",
        "--cache-path",
        tmp_path / "seed",
        "-p",
        "workflow-run-crate-0.5",
        "-l",
        "required",
    ]
    command = [binary / "rocrate-validator", "--no-interactive", *words, "--no-paging", "-v", unpacked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    metadata = unpacked / crate.METADATA
    metadata.write_text(metadata.read_text().replace('"ComputationalWorkflow"', '"HowTo"'))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0, "the validator looks"


def test_an_untouched_crate_passes_its_own_check_and_each_change_is_named(unpacked: Path) -> None:
    status, told = check(unpacked)
    assert (status, told.startswith("every file is as named by ro-crate-metadata.json ")) == (0, True)
    (unpacked / "data/export/student.onnx").write_bytes(b"A model")
    (unpacked / "more.txt").write_text("x")
    (unpacked / "dvc.lock").unlink()
    status, told = check(unpacked)
    assert status == 1
    assert told.splitlines()[:3] == [
        "data/export/student.onnx: other content than the metadata names",
        "dvc.lock: not here",
        "more.txt: no file that the metadata names",
    ]


def test_links_are_no_files_and_metadata_that_cannot_be_read_is_told(unpacked: Path) -> None:
    (unpacked / "stages/more").symlink_to(unpacked / "stages/core")
    (unpacked / "gone").symlink_to(unpacked / "nowhere")
    status, told = check(unpacked)
    assert (status, told.splitlines()[:2]) == (1, ["gone: a link, or no file", "stages/more: a link, or no file"])
    (unpacked / crate.METADATA).write_text("{")
    status, told = check(unpacked)
    assert (status, told.startswith(f"{crate.METADATA}: cannot be read (")) == (1, True)


def test_what_git_does_not_have_is_not_handed_on_and_a_folder_in_the_way_stays(inside: Path) -> None:
    for name in ("reports/patients.csv", "stages/.env"):
        (inside / name).write_text("a secret")
    handed = crate.carried()
    assert {"dvc.lock", "stages/report.py", "reports/index.html"} <= set(handed)
    assert not {"reports/patients.csv", "stages/.env"} & set(handed)
    (inside / "crate.zip").rename(inside / "kept.zip")
    (inside / "crate.zip").mkdir()
    with pytest.raises(SystemExit, match=r"crate\.zip is a folder"):
        crate.main([])
    (inside / "crate.zip").rmdir()
    (inside / "kept.zip").rename(inside / "crate.zip")
    for name in ("reports/patients.csv", "stages/.env"):
        (inside / name).unlink()


def test_a_changed_hash_in_the_metadata_fails(unpacked: Path) -> None:
    metadata = unpacked / crate.METADATA
    held = files.sha256(unpacked / "params.yaml")
    assert metadata.read_text().count(held) == 1
    metadata.write_text(metadata.read_text().replace(held, "0" * 64))
    status, told = check(unpacked)
    assert (status, told.splitlines()[0]) == (1, "params.yaml: other content than the metadata names")


def test_the_same_commit_gives_the_same_bytes(made: Path, inside: Path) -> None:
    before = files.sha256(made)
    crate.main([])
    assert files.sha256(inside / "crate.zip") == before


def test_what_describes_it_names_licences_models_and_sources(unpacked: Path) -> None:
    graph = {one["@id"]: one for one in json.loads((unpacked / crate.METADATA).read_text())["@graph"]}
    owners = {one["name"]: one["license"] for one in graph.values() if one["@type"] == "Dataset" and "name" in one}
    assert owners.keys() >= {"chestxray14", "chexpert", "padchest"}
    assert owners["padchest"].startswith("PadChest research use agreement")
    bill = json.loads((unpacked / crate.SBOM).read_text())
    packages = {one["name"]: one for one in bill["components"]}
    assert packages["torch"]["version"]
    assert packages["numpy"]["licenses"]
    stated: dict[str, Any] = json.loads((unpacked / crate.STATEMENT).read_text())
    assert stated["predicateType"] == "https://slsa.dev/provenance/v1"
    assert stated["subject"] == [
        {"name": "data/export/student.onnx", "digest": {"sha256": files.sha256(unpacked / "data/export/student.onnx")}}
    ]
    built = stated["predicate"]["buildDefinition"]
    assert built["externalParameters"]["parameters"]["seed"] == 17
    assert {"name": "padchest/a b.zip", "digest": {"sha256": "0" * 64}} in built["resolvedDependencies"]


def test_no_path_of_this_machine_is_handed_on(unpacked: Path) -> None:
    secrets = [str(REPOSITORY).encode(), str(Path.home()).encode() + b"/", sys.prefix.encode()]
    for path in (unpacked / name for name in (crate.METADATA, crate.SBOM, crate.STATEMENT)):
        assert not [one for one in secrets if one in path.read_bytes()]


def test_without_models_or_with_another_lock_there_is_no_crate(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(inside, tmp_path / "bare", ignore=shutil.ignore_patterns("export", "crate.zip"))
    monkeypatch.chdir(tmp_path / "bare")
    with pytest.raises(SystemExit, match="data/export is not here, which a crate hands on"):
        crate.main([])
    monkeypatch.setattr(audit, "whole", lambda: (["evaluate: changed"], audit.Seen()))
    with pytest.raises(SystemExit, match="evaluate: changed\na crate is of a commit and a run that"):
        crate.main([])
    assert not Path("crate.zip").exists()
    monkeypatch.setattr(audit, "whole", lambda: ([], audit.Seen()))
    shutil.rmtree(".git")
    with pytest.raises(SystemExit, match="git"):
        crate.main([])
