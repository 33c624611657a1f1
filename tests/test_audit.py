"""The whole audit names each change that is made to a finished run, time stamps kept, and passes an untouched one.

Slow: it needs a finished run, with its cache, in a git repository of its own.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
import smoke
from ruamel.yaml import YAML

from stages.pages import readme
from stages.pipeline import audit, lock, pinning, recovery

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("project")]
COMMITTED = ("README.md", "requirements.lock", ".gitignore", ".dvc/.gitignore", "tests/test_lock.py", "tests/parity.py")
CACHE = Path(".dvc/cache/files/md5")


@pytest.fixture(scope="module")
def project(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the finished run, links of the cache kept, committed to git; the current directory."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    subprocess.run(["cp", "-a", finished, folder], check=True)
    (folder / ".dvc/config").write_text('[core]\n    analytics = false\n[cache]\n    type = "hardlink,symlink"\n')
    for name in (
        "README.md",
        "requirements.lock",
        ".gitignore",
        ".dvc/.gitignore",
        "tests/test_lock.py",
        "tests/parity.py",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(smoke.ROOT / name, folder / name)
    with chdir(folder):
        readme.README.write_text(readme.filled(readme.README.read_text(), _reports()))
        name = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        for words in (["init", "-q"], ["add", "--all"], [*name, "commit", "-q", "-m", "finished"]):
            subprocess.run(["git", *words], check=True)
        yield folder


def _reports() -> dict[str, str]:
    return {name: path.read_text() for name, path in readme.SOURCES.items() if path.exists()}


def found() -> str:
    """What the audit says, a fault a line."""
    return "\n".join(audit.whole()[0])


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Files as they were, after the block, in content and time."""
    before = {path: (path.read_bytes(), path.stat()) for path in paths}
    try:
        yield
    finally:
        for path, (content, about) in before.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file in place, with its time stamp kept; hard links change with it."""
    about, content = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        changed = change(content)
        assert changed != content
        file.write(changed)
        file.truncate()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def flipped(content: bytes) -> bytes:
    """One bit of the middle byte."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def mistyped(content: bytes) -> bytes:
    """A word of a comment."""
    return content.replace(b" the ", b" teh ", 1)


def one(pattern: str) -> Path:
    """The first file of a pattern."""
    return next(path for path in sorted(Path().glob(pattern)) if path.is_file())


def cached(path: Path) -> Path:
    """The object of the cache that a file is linked to."""
    digest = lock.md5(path)
    return CACHE / digest[:2] / digest[2:]


def test_an_untouched_run_passes() -> None:
    faults, seen = audit.whole()
    assert faults == []
    assert seen.files > 100
    assert not seen.absent
    assert not seen.uncommitted
    line = audit.verdict(faults, seen, 1.0)
    assert re.fullmatch(
        r"audit of [0-9a-f]{12}, dvc.lock [0-9a-f]{12}: [\d,]+ files and [\d,]+ bytes read .*: all as recorded", line
    )


FLIPPED = [
    "data/phantom/chestxray14/Data_Entry_2017_v2020.csv",
    "data/phantom/chestxray14/*.tar.gz",
    "data/images/chestxray14/shard_*.npy",
    "data/labels/chexpert.parquet",
    "data/cohorts/*/targets.npy",
    "data/soft_labels/**/*.npy",
    "data/models/distilled/**/*.safetensors",
    "data/predictions/distilled/**/*.parquet",
    "data/raw/chestxray14/manifest.json",
    "data/export/student.onnx",
    "reports/metrics/chexpert.json",
    "reports/index.html",
    "reports/curves/**/*.csv",
    "stages/losses/paper.py",
    "stages/pipeline/guard.py",
    "tests/test_lock.py",
    "dvc.yaml",
    "README.md",
]


@pytest.mark.parametrize("pattern", FLIPPED)
def test_a_flipped_bit_is_named(pattern: str) -> None:
    path = one(pattern)
    with kept(path):
        rewrite(
            path,
            lambda content: (
                re.sub(rb"the", b"teh", content, count=1)
                if path.suffix in (".py", ".yaml", ".md")
                else flipped(content)
            ),
        )
        assert str(path) in found()


def test_a_table_of_readme_that_is_not_the_reports_is_named() -> None:
    with kept(Path("README.md")):
        text = Path("README.md").read_text()
        place = text.index("<!-- phantom -->")
        digit = re.search(r"0\.\d+", text[place:])
        assert digit is not None
        at = place + digit.end() - 1
        Path("README.md").write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        assert "README.md: phantom (reports/report.md)" in found()


def test_a_parameter_that_is_changed_is_named_with_both_values() -> None:
    with kept(Path("params.yaml")):
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(re.sub(r"min_range: \S+", "min_range: 0.25", text))
        assert re.search(r"params.yaml: ingest \(ingest@chexpert\): expected .*: `make repro`", found())


def test_two_swapped_objects_of_the_cache_are_named() -> None:
    first, second = (
        cached(one(pattern)) for pattern in ("data/labels/chexpert.parquet", "data/labels/chestxray14.parquet")
    )
    first.rename("x")
    second.rename(first)
    Path("x").rename(second)
    try:
        said = found()
    finally:
        first.rename("x")
        second.rename(first)
        Path("x").rename(second)
    assert f"{first} (DVC's cache, data/labels/chexpert.parquet of harmonize@chexpert)" in said
    assert str(second) in said


@pytest.mark.parametrize("change", ["truncated", "deleted"])
def test_an_object_of_the_cache_that_is_not_whole_is_named(change: str) -> None:
    path = cached(one("data/predictions/distilled/**/*.parquet"))
    path.rename("x")
    if change == "truncated":
        path.write_bytes(Path("x").read_bytes()[:-10])
    try:
        said = found()
    finally:
        Path("x").rename(path)
    assert re.search(
        rf"{path} \(DVC's cache, data/predictions/\S+ of predict_distilled@\S+\): expected \w+, found", said
    )


def test_a_changed_list_of_a_folder_in_the_cache_is_named() -> None:
    entry = lock.entries()["assemble@joint"]["outs"][0]
    path = audit.cache_path(Path(".dvc/cache"), entry["md5"])
    with kept(path):
        rewrite(path, lambda content: content.replace(b"rows", b"rowz"))
        assert str(path) in found()


def test_a_hash_that_is_edited_in_the_lock_is_named() -> None:
    digest = lock.producers(lock.entries())["data/labels/chexpert.parquet"][1]
    with kept(lock.LOCK):
        rewrite(lock.LOCK, lambda content: content.replace(digest.encode(), digest[::-1].encode()))
        assert "data/labels/chexpert.parquet (harmonize@chexpert)" in found()


@pytest.mark.parametrize("path", ["data/predictions", "data/labels/chexpert.parquet", "stages/core"])
def test_a_hash_that_is_edited_for_one_of_the_stages_that_read_a_file_is_named(path: str) -> None:
    readers = {
        name: dep["md5"] for name, entry in lock.entries().items() for dep in entry["deps"] if dep["path"] == path
    }
    stage, digest = list(readers.items())[-1]

    def edited(content: bytes) -> bytes:
        start, found, end = content.rpartition(f"path: {path}\n".encode())
        return start + found + end.replace(digest.encode(), b"beef" + digest[4:].encode(), 1)

    with kept(lock.LOCK):
        rewrite(lock.LOCK, edited)
        assert re.search(rf"^{path} \({stage}\): expected beef", found(), re.MULTILINE)


def in_lock(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """An edit of the stages of dvc.lock."""

    def changed(content: bytes) -> bytes:
        yaml, text = YAML(), io.BytesIO()
        yaml.width = 10**6
        values = yaml.load(content)
        change(values["stages"])
        yaml.dump(values, text)
        return text.getvalue()

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda stages: stages["report"]["outs"][0].update(size=1), r"reports/\S+ \(report\): expected 1 bytes"),
        (lambda stages: stages["assemble@joint"]["outs"][0].update(nfiles=99), r"data/cohorts/joint .*, 99 files"),
        (lambda stages: stages["harmonize@chexpert"]["outs"][0].update(isexec=True), r"expected .*, a program"),
        (lambda stages: stages["export"]["params"]["params.yaml"].update(threads=True), "threads.*expected true"),
    ],
)
def test_what_the_lock_says_beside_hashes_is_held_too(change: Any, said: str) -> None:
    with kept(lock.LOCK):
        rewrite(lock.LOCK, in_lock(change))
        assert re.search(said, found())


def test_what_git_status_passes_over_is_named() -> None:
    readme_, code = Path("README.md"), Path("tests/parity.py")
    with kept(readme_, code):
        for path, flag in ((readme_, "--assume-unchanged"), (code, "--skip-worktree")):
            subprocess.run(["git", "update-index", flag, path], check=True)
            rewrite(path, lambda content: content.replace(b"e", b"a", 1))
        told = found()
    subprocess.run(["git", "update-index", "--no-assume-unchanged", readme_], check=True)
    subprocess.run(["git", "update-index", "--no-skip-worktree", code], check=True)
    assert "README.md (the commit): expected what the commit has, found other content" in told
    assert "tests/parity.py (the commit)" in told


def test_a_module_that_git_ignores_is_named() -> None:
    hidden = [Path("stages/evil.py"), Path("sitecustomize.pyc")]
    exclude = Path(".git/info/exclude")
    with kept(exclude):
        exclude.write_text("evil.py\n*.pyc\n")
        for path in hidden:
            path.write_text("x = 1\n")
        told = found()
    for path in hidden:
        path.unlink()
    assert all(f"{path} (the commit): expected what the commit has, found a file that git does not" in told
               for path in hidden)  # fmt: skip


def test_a_link_in_the_place_of_a_result_or_beside_one_is_named(tmp_path: Path) -> None:
    page, beside = Path("reports/summary.json"), Path("data/export/more")
    shutil.copyfile(page, tmp_path / "elsewhere.json")
    with kept(page):
        page.unlink()
        page.symlink_to(tmp_path / "elsewhere.json")
        beside.symlink_to(tmp_path)
        told = found()
        page.unlink()
        beside.unlink()
    assert re.search(r"reports/summary\.json \(report\): expected a file, found a link to", told)
    assert "data/export/more (export): expected nothing" in told


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "x.pyc"])
def test_a_file_more_in_an_outputs_folder_is_named(name: str) -> None:
    path = one("data/models/distilled/**/*.safetensors").with_name(name)
    path.write_text("x")
    try:
        assert f"{path} (distill@" in found()
    finally:
        path.unlink()


def test_an_output_that_is_gone_is_named() -> None:
    path = one("data/models/distilled/**/*.safetensors")
    with kept(path):
        path.unlink()
        assert re.search(rf"{path} \(distill@\S+\): expected \w+, found nothing", found())
    path.unlink()
    os.link(cached_of(path), path)


def cached_of(path: Path) -> Path:
    """The object of an output that is not here."""
    folder = json.loads(audit.cache_path(Path(".dvc/cache"), md5_of(path.parent)).read_text())
    digest = next(item["md5"] for item in folder if item["relpath"] == path.name)
    return CACHE / digest[:2] / digest[2:]


def md5_of(folder: Path) -> str:
    """As dvc.lock has it."""
    return lock.producers(lock.entries())[str(folder)][1]


def test_files_that_git_does_not_have_or_lacks_are_named() -> None:
    plugin = Path("stages/losses/mine.py")
    plugin.write_text("NEEDS = 'logits'\n")
    with kept(Path("tests/parity.py")):
        Path("tests/parity.py").unlink()
        said = found()
    plugin.unlink()
    assert f"{plugin} (the commit): expected what the commit has, found a file that git does not have" in said
    assert "tests/parity.py (the commit): expected what the commit has, found nothing" in said


def test_a_dependency_that_is_dropped_is_named() -> None:
    with kept(Path("dvc.yaml")):
        text = Path("dvc.yaml").read_text()
        Path("dvc.yaml").write_text(text.replace("      - stages/sources/archives.py\n", "", 1))
        assert re.search(r"stages/sources/archives.py \(download@\S+\): .* found it in dvc.lock alone", found())


def test_a_pin_and_a_package_of_another_version_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with kept(pinning.LOCK):
        pinning.LOCK.write_text(re.sub(r"(?m)^tqdm==.*$", "tqdm==0.1", pinning.LOCK.read_text()))
        assert "tqdm (requirements.lock): expected ==0.1, found 4." in found()
    real = pinning.version
    monkeypatch.setattr(pinning, "version", lambda name: "1.0" if name == "numpy" else real(name))
    assert re.search(r"numpy \(requirements.lock\): expected ==\S+, found 1.0", found())


def test_results_of_another_processor_are_listed_and_no_fault_unless_they_contradict_each_other(
    capfd: pytest.CaptureFixture[str],
) -> None:
    report = Path("reports/report.md")
    before = (report.read_bytes(), (md5 := lock.producers(lock.entries())[str(report)][1]))
    with kept(report, lock.LOCK, pinning.PROCESSORS, readme.README):
        changed = before[0].replace(b"0.5", b"0.6", 1)
        assert changed != before[0]
        report.write_bytes(changed)
        digest = hashlib.md5(changed, usedforsecurity=False).hexdigest()
        lock.LOCK.write_text(lock.LOCK.read_text().replace(md5, digest))
        pinning.PROCESSORS.write_text('{"report": "another one, without AVX-512"}\n')
        with pytest.raises(SystemExit) as ended:
            audit.main()
        told = capfd.readouterr().out
        assert ended.value.code == 0, told
        assert "results differ from the committed ones, which another processor made (" in told
        assert "; here: another one, without AVX-512): dvc.lock, " in told
        report.write_bytes(changed + b"!")
        assert f"{report} (report): expected {digest}" in found()


BROKEN: dict[str, tuple[Any, str]] = {
    "conflict": (b"<<<<<<< ours\nschema: '2.0'\n=======\n>>>>>>> theirs\n", "conflicts of a merge"),
    "empty": (b"", "is cut off"),
    "newer": (b"schema: '9.0'\nstages: {}\n", "another version of DVC"),
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_lock_that_cannot_be_read_ends_in_a_line(kind: str) -> None:
    content, reason = BROKEN[kind]
    with kept(lock.LOCK):
        lock.LOCK.write_bytes(content)
        with pytest.raises(recovery.LockFileError, match=reason):
            audit.whole()


def test_it_takes_no_longer_for_a_fault_and_says_so_by_its_exit_code() -> None:
    words = ["python", "-m", "stages.pipeline.audit"]
    done, took = [], []
    for change in (None, one("data/labels/chexpert.parquet")):
        with kept(*filter(None, [change])):
            if change:
                rewrite(change, flipped)
            start = time.monotonic()
            done.append(subprocess.run(words, capture_output=True, text=True, check=False))
            took.append(time.monotonic() - start)
    assert [one.returncode for one in done] == [0, 1]
    assert "all as recorded" in done[0].stdout
    assert re.search(r": \d+ faults$", done[1].stdout.strip())
    assert took[1] < 2 * took[0] + 1  # nothing is done over again
