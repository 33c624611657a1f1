"""What a change moved: pull requests on a copy of this repository, each committed on top of the same base."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages.core import files
from stages.pipeline import audit, changes, committed, lock, moves

REPOSITORY = Path(__file__).parent.parent
DATASET, MEAN = "chestxray14", "all"
METRICS = f"reports/metrics/{DATASET}.json"
REPLICATES = f"data/replicates/{DATASET}.parquet"
ID = "distilled/joint/eeea_net_c2/resnet18/paper/0"
ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY),
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "DVC_NO_ANALYTICS": "1",
}
UNUSED = ("__pycache__", "cache", "tmp", "phantom", "images", "models", "runtime", "demo")  # of a developer's checkout
DISTILL = "distill@joint-eeea_net_c2-resnet18-paper-0"


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class PullRequest:
    """A branch whose results are edited as a run would have made them: dvc.lock follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock: dict[str, Any] = YAML(typ="safe").load((folder / "dvc.lock").read_bytes())

    def entry(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = self.lock["stages"][stage]
        return found

    def record(self, path: str, digest: str) -> None:
        """Let each stage that made or read a path say that it has this hash."""
        for entry in self.lock["stages"].values():
            for one in (*entry.get("outs", []), *entry.get("deps", [])):
                if one["path"] == path:
                    one["md5"] = digest

    def write(self, path: str, content: bytes, is_recorded: bool = True) -> None:
        (self.folder / path).write_bytes(content)
        if is_recorded:
            self.record(path, md5(content))

    def move(self, by: float, noise: float = 0.0, is_kept: bool = True) -> None:
        """Let the student's mean AUROC, and its bootstrap in the cache, move."""
        measured = files.read_json(self.folder / METRICS)
        scored = measured["models"][ID]["means"][MEAN]
        scored["auroc"] = round(scored["auroc"] + by, 6)
        files.write_json(measured, self.folder / METRICS)
        self.record(METRICS, md5((self.folder / METRICS).read_bytes()))
        self.keep(scored["auroc"], noise, is_kept)

    def keep(self, auroc: float, noise: float, is_kept: bool = True) -> None:
        """Put a bootstrap into the cache."""
        rng = np.random.default_rng(5)  # the same draws each time, and noise of its own
        drawn = auroc + rng.normal(0, 0.01, 201) + np.random.default_rng(int(1e6 * auroc)).normal(0, noise, 201)
        drawn[0] = auroc
        table = pd.DataFrame({"model": ID, "mean": MEAN, "replicate": range(201), "auroc": drawn})
        made = self.folder / "made.parquet"
        files.write_table(table, made)
        digest = md5(made.read_bytes())
        target = audit.cache_path(self.folder / ".dvc/cache", digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        made.replace(target) if is_kept else made.unlink()
        self.record(REPLICATES, digest)

    def settle(self) -> None:
        """Write the pages again."""
        words = [sys.executable, "-c", committed.WRITE]
        subprocess.run(words, cwd=self.folder, env={"PYTHONPATH": str(self.folder), "PATH": ""}, check=True)
        for stage in committed.PAGES:
            for out in self.entry(stage)["outs"]:
                if (self.folder / out["path"]).is_file():
                    self.record(out["path"], md5((self.folder / out["path"]).read_bytes()))
        from stages.pages import readme

        page = self.folder / "README.md"
        sources = {name: (self.folder / path).read_text() for name, path in readme.SOURCES.items()}
        page.write_text(readme.filled(page.read_text(), sources))

    def save(self) -> None:
        with (self.folder / "dvc.lock").open("w") as file:
            YAML().dump(self.lock, file)

    def commit(self) -> None:
        self.save()
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", "change")

    def told(self, base: str = "base") -> tuple[int, str]:
        """What the script says of it."""
        words = [sys.executable, "-m", "stages.pipeline.changes", "--base", base]
        env = {
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "DVC_NO_ANALYTICS": "1",
        }
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout or done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's code and committed results, with a bootstrap in its cache, as one commit."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("stages", "reports", "presets", ".dvc", "data"):
        ignored = shutil.ignore_patterns(
            "__pycache__", "cache", "tmp", "phantom", "images", "models", "runtime", "demo"
        )
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("dvc.lock", "dvc.yaml", "params.yaml", "requirements.lock", "README.md", ".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, folder)
    git(folder, "init", "-q")
    request = PullRequest(folder)
    request.keep(files.read_json(folder / METRICS)["models"][ID]["means"][MEAN]["auroc"], 0)
    request.settle()
    request.commit()
    git(folder, "tag", "base")
    return folder


@pytest.fixture
def request_of(base: Path, tmp_path: Path) -> PullRequest:
    shutil.copytree(base, tmp_path / "clone", symlinks=True)
    return PullRequest(tmp_path / "clone")


def test_nothing_moved(request_of: PullRequest) -> None:
    status, told = request_of.told()
    assert status == 0, told
    assert "No fault." in told
    assert told.count("None") == 6
    assert "Yes, measured times apart." in told


def test_a_loss_of_another_temperature_moves_its_students_within_noise(request_of: PullRequest) -> None:
    path = request_of.folder / "params.yaml"
    path.write_text(path.read_text().replace("temperature: 2.0 ", "temperature: 3.0 "))
    request_of.entry(DISTILL)["params"]["params.yaml"]["losses.paper"]["temperature"] = 3.0
    request_of.record(f"data/models/{ID}", "1" * 32 + ".dir")
    request_of.move(-0.03, noise=0.05)
    request_of.settle()
    request_of.commit()
    status, told = request_of.told()
    assert status == 0, told
    assert "| losses.paper.temperature | 2.0 | 3.0 |" in told
    assert f"| {DISTILL} | parameter losses.paper.temperature: 2.0 → 3.0 | data/models/{ID} |" in told
    assert (
        f"| predict_distilled@{DISTILL.split('@')[1]} | data data/models/{ID} (by {DISTILL}) | the same bytes |" in told
    )
    (row,) = [line for line in told.splitlines() if line.startswith(f"| {DATASET}, {MEAN} | {ID} |")]
    assert row.endswith("| within noise |")
    assert " | -0.0300 (" in row
    assert "reports/index.html" in told


def test_code_without_effect_is_told_and_fails_nothing(request_of: PullRequest) -> None:
    path = request_of.folder / "stages/losses/paper.py"
    path.write_text(path.read_text() + "# a note\n")
    request_of.record("stages/losses/paper.py", md5(path.read_bytes()))
    request_of.commit()
    status, told = request_of.told()
    assert status == 0, told
    assert f"| {DISTILL} | code stages/losses/paper.py | the same bytes |" in told
    assert "None moved." in told


@pytest.mark.parametrize(
    ("is_kept", "by", "known"),
    [(True, -0.03, "the interval (paired) excludes 0"), (False, -0.07, "the interval (unpaired) excludes 0")],
)
def test_a_metric_made_worse_fails(request_of: PullRequest, is_kept: bool, by: float, known: str) -> None:
    request_of.move(by, is_kept=is_kept)
    request_of.settle()
    request_of.commit()
    status, told = request_of.told()
    assert status == 1
    assert f"* {ID} on {DATASET}, {MEAN}: mean AUROC falls from" in told
    assert f"by more than 0.02; {known}" in told


def test_a_change_cannot_widen_the_margin_for_itself(request_of: PullRequest) -> None:
    path = request_of.folder / "params.yaml"
    path.write_text(path.read_text().replace("margin: 0.02", "margin: 0.20"))
    assert path.read_text().count("margin: 0.20") == 1
    request_of.move(-0.03)
    request_of.settle()
    request_of.commit()
    status, told = request_of.told()
    assert status == 1
    assert "by more than 0.02; the interval (paired) excludes 0" in told


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("page", ["reports/report.md", "reports/index.html"])
def test_a_page_edited_by_hand_fails(request_of: PullRequest, page: str, is_recorded: bool) -> None:
    """Even with its hash in dvc.lock: pages are written again from the committed results."""
    content = (request_of.folder / page).read_bytes()
    assert b"+0.0" in content
    request_of.write(page, content.replace(b"+0.0", b"+0.1", 1), is_recorded)
    request_of.commit()
    status, told = request_of.told()
    assert status == 1
    assert (f"* {page}: the commit's file has MD5" in told) == (not is_recorded)
    assert f"* {page}: report writes another from the committed results" in told


def test_a_metric_edited_by_hand_fails(request_of: PullRequest) -> None:
    content = (request_of.folder / METRICS).read_bytes()
    request_of.write(METRICS, content.replace(b'"auroc": 0.8', b'"auroc": 0.9', 1), is_recorded=False)
    request_of.commit()
    status, told = request_of.told()
    assert status == 1
    assert f"* {METRICS}: the commit's file has MD5" in told


def test_what_comes_out_otherwise_than_committed_fails_unless_models_do(request_of: PullRequest) -> None:
    request_of.commit()
    request_of.move(-0.004)
    request_of.save()
    status, told = request_of.told()
    assert status == 1
    assert f"* {METRICS}: came out otherwise here, by up to 0.004" in told
    request_of.record(f"data/models/{ID}", "1" * 32 + ".dir")  # as another processor trains it
    request_of.save()
    status, told = request_of.told()
    assert status == 0, told
    assert f"this machine does not repeat the committed bytes (1 outputs differ, first data/models/{ID})" in told
    assert f"* {METRICS}: came out otherwise here" in told
    (request_of.folder / METRICS).write_bytes((request_of.folder / METRICS).read_bytes() + b"\n")
    status, told = request_of.told()
    assert status == 1
    assert f"* {METRICS}: this checkout's file has MD5" in told


def test_other_data_is_no_other_machine(request_of: PullRequest) -> None:
    """Models of changed images are compared one by one, as on the machine that made the commit."""
    request_of.commit()
    request_of.record("data/cohorts/joint", "2" * 32 + ".dir")
    request_of.record(f"data/models/{ID}", "1" * 32 + ".dir")
    request_of.move(-0.03)
    request_of.save()
    status, told = request_of.told()
    assert status == 1
    assert "does not repeat the committed bytes" not in told
    assert "the interval (paired) excludes 0" in told


@pytest.mark.parametrize(("by", "is_noise"), [(0.0004, True), (-0.2, False)])
def test_another_processor_may_move_means_over_seeds_by_the_spread_over_seeds(
    request_of: PullRequest, by: float, is_noise: bool
) -> None:
    request_of.commit()
    path = request_of.folder / moves.COMPARISON
    compared = files.read_json(path)
    (group,) = compared
    test = next(test for test in compared[group]["tests"] if test["dataset"] == DATASET)
    test["twin"]["per_seed"] = [value + by for value in test["twin"]["per_seed"]]
    test["twin"]["auroc"] += by
    files.write_json(compared, path)
    request_of.record(moves.COMPARISON, md5(path.read_bytes()))
    request_of.record("data/models/twin/joint/eeea_net_c2/0", "1" * 32 + ".dir")
    request_of.save()
    status, told = request_of.told()
    assert status == (not is_noise), told
    row = next(line for line in told.splitlines() if line.startswith(f"| {DATASET}, all | twin of {group} |"))
    assert ("over seeds) | within noise" if is_noise else "falls by more than 0.02") in row
    assert (f"* twin of {group} on {DATASET}, all: committed" in told) == (not is_noise)


def test_without_a_bootstrap_the_committed_intervals_decide_and_one_seed_is_not_judged() -> None:
    assert moves._unpaired({"auroc": 0.8, "low": 0.77, "high": 0.83}, {"auroc": 0.85, "low": 0.81, "high": 0.89}) == (
        pytest.approx((0.0, 0.1))
    )
    assert moves._unpaired({"auroc": 0.8, "low": None, "high": None}, {"auroc": 0.8, "low": 0.7, "high": 0.9}) is None
    assert moves.Move("a", "teacher", 0.9, 0.8, None, None, moves.NONE).falls(0.005)
    assert not moves.Move("a", "teacher", 0.9, 0.8, None, None, moves.ONE_SEED).falls(0.005)
    ends = moves._over_seeds([0.80, 0.82, 0.84], [0.81, 0.83, 0.85], 0.95)
    assert ends is not None
    low, high = ends
    assert (low + high) / 2 == pytest.approx(0.01)
    assert high - low == pytest.approx(2 * 2.776445 * 0.02 * (2 / 3) ** 0.5, rel=1e-4)  # t of 4 degrees of freedom
    assert moves._over_seeds([0.8], [0.7], 0.95) is None


def test_measured_times_may_come_out_otherwise(request_of: PullRequest) -> None:
    path = "reports/profile/student/eeea_net_c2.timing.json"
    request_of.write(path, (request_of.folder / path).read_bytes().replace(b"1", b"2"))
    request_of.save()
    status, told = request_of.told()
    assert status == 0, told


@pytest.mark.parametrize("name", ["nowhere", "--help", "", "0" * 40])
def test_a_commit_that_is_not_here_is_refused(request_of: PullRequest, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.pipeline.changes", f"--base={name}"], cwd=request_of.folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"there is no commit {name} here: name another by BASE=, or fetch it")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("content", "said"), [("<<<<<<< ours", "is not whole"), ("schema: '9.9'\nstages: {}\n", "another version of DVC")]
)
def test_a_base_whose_lock_file_cannot_be_read_is_refused(request_of: PullRequest, content: str, said: str) -> None:
    (request_of.folder / "dvc.lock").write_text(content)
    git(request_of.folder, "commit", "-qam", "broken")
    git(request_of.folder, "tag", "broken")
    git(request_of.folder, "checkout", "-q", "base")
    status, told = request_of.told("broken")
    assert status == 1
    assert said in told
    assert "Traceback" not in told


def test_differences_of_nested_values_are_told_by_key() -> None:
    assert changes.differing({"a": {"b": 1, "c": [1]}, "d": {}}, {"a": {"b": 2, "c": [1]}, "e": None}) == [
        ("a.b", "1", "2"), ("d", "{}", "none"), ("e", "none", "null"),
    ]  # fmt: skip
    entry = {"cmd": "x", "deps": [{"path": "stages/core", "md5": "1"}, {"path": "data/a", "md5": "1"}]}
    other = {"cmd": "y", "deps": [{"path": "stages/core", "md5": "2"}, {"path": "data/a", "md5": "2"}]}
    made = lock.producers({"a": {"outs": [{"path": "data/a", "md5": "2"}]}})
    assert changes.reasons(entry, other, made, ["stages/core/files.py"]) == [
        "command", "data data/a (by a)", "code stages/core (files.py)",
    ]  # fmt: skip
