"""Where a number comes from: the chain that dvc.lock has, from its JSON file down to the owners' files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.core import files
from stages.pages import addresses
from stages.pipeline import lock, origin

REPOSITORY = Path(__file__).parent.parent
IS_SHALLOW = (REPOSITORY / ".git/shallow").exists()
ID = "distilled/joint/eeea_net_c2/resnet18/paper/0"
ADDRESS = f"reports/metrics/chestxray14.json:models/{ID}/means/all/auroc"


def ask(*words: str) -> tuple[int, str, str]:
    """What the command prints, in the repository."""
    command = [sys.executable, "-m", "stages.pipeline.origin", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_number_of_one_model_is_traced_to_that_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    entries = lock.entries()
    stages = origin.trace(entries, "reports/metrics/chestxray14.json", f"models/{ID}/means/all/auroc")
    assert [name for name in stages if name.startswith("predict")] == [
        "predict_distilled@joint-eeea_net_c2-resnet18-paper-0"
    ]
    assert {"distill@joint-eeea_net_c2-resnet18-paper-0", "train_teacher@joint-resnet18", "assemble@joint",
            "phantom@padchest", "download@chexpert"} <= stages.keys()  # fmt: skip
    assert not [name for name in stages if name.startswith("train_student")]
    every = origin.trace(entries, "reports/metrics/chestxray14.json")
    assert len(every) > len(stages)
    assert {name for name in every if name.startswith("predict")} == {
        name for name in entries if name.startswith("predict")
    }


def test_a_difference_of_two_models_is_traced_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    key = f"comparisons/distilled_minus_twin/{ID} - twin/joint/eeea_net_c2/0/means/all/difference"
    found = origin.explain(f"reports/metrics/padchest.json:{key}")
    assert sorted(name for name in found["stages"] if name.startswith("predict")) == [
        "predict_distilled@joint-eeea_net_c2-resnet18-paper-0", "predict_student@joint-eeea_net_c2-0"
    ]  # fmt: skip
    assert found["value"] == addresses.resolve(files.read_json(REPOSITORY / "reports/metrics/padchest.json"), key, "")


def test_a_model_is_not_taken_for_one_whose_name_goes_on() -> None:
    assert origin._names("models/twin/joint/x/1/means", "twin/joint/x/1.parquet")
    assert not origin._names("models/twin/joint/x/10/means", "twin/joint/x/1.parquet")
    assert not origin._names("models/my_twin/joint/x/1/means", "twin/joint/x/1.parquet")
    assert not origin._names("rows/padchest", "padchest.parquet")


def test_what_is_told_names_value_command_code_parameters_inputs_and_licence() -> None:
    status, told, _ = ask(ADDRESS)
    assert status == 0
    value = files.read_json(REPOSITORY / "reports/metrics/chestxray14.json")["models"][ID]["means"]["all"]["auroc"]
    assert told.startswith(f"{ADDRESS}\n= {value}\n")
    assert re.search(r"^at commit [0-9a-f]{7,} of \d{4}-\d\d-\d\d$", told, re.M)
    assert re.search(r"^training stages ran with Python 3.\d+, instruction set pinned to .*, torch [\d.]+$", told, re.M)
    assert re.search(r"^stages ran on \S", told, re.M)
    assert "evaluate@chestxray14: python -m stages.pipeline.guard stages.evaluate --dataset chestxray14" in told
    last = "$" if IS_SHALLOW else ", last changed by [0-9a-f]{7,} of"
    assert re.search(rf"^  code   \d+ files and rooms, as recorded{last}", told, re.M)
    assert "seed = 17" in told
    assert "├ harmonize@chestxray14" in told
    assert re.search(r"^  reads  data/predictions [0-9a-f]{32}\.dir, from predict_distilled@joint-", told, re.M)
    assert "licence No restriction on use; link the source, cite Wang et al." in told
    assert len(told.splitlines()) < 200


def test_machines_get_all_of_it_as_json_and_the_key_may_stand_apart() -> None:
    file, key = ADDRESS.split(":")
    status, told, _ = ask("--json", "--key", key, "--", file)
    found = json.loads(told)
    assert (status, found["address"]) == (0, ADDRESS)
    stage = found["stages"]["evaluate@chestxray14"]
    entry = lock.entries(REPOSITORY / "dvc.lock")["evaluate@chestxray14"]
    assert stage["params"] == entry["params"]["params.yaml"]
    listed = {(one["path"], one["md5"]) for kind in ("code", "reads") for one in stage[kind]}
    assert listed == {(dep["path"], dep["md5"]) for dep in entry["deps"]}
    assert {one["state"] for one in stage["code"]} == {origin.AS_RECORDED}
    assert found["owners"]["padchest"]["licence"].startswith("PadChest research use agreement")
    whole = ask("--whole", ADDRESS)[1]
    assert all(f"{one['path']} {one['md5']}" in whole for one in stage["code"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("reports/metrics/padchest.json:means/al", r"nothing is at .*: nearest are means/all"),
        (f"reports/metrics/padchest.json:models/{ID[:-1]}7", rf"nearest are models/.*models/{ID}"),
        ("reports/metrics/padchest.json:rows/test/0/1", "nothing is at"),
        ("reports/metrics/padchets.json", r"no stage in dvc\.lock made .*nearest are reports/metrics/padchest\.json"),
        ("reports/report.md:auroc", "only JSON files have keys"),
        (
            "reports/bench.md",
            r"no stage made reports/bench\.md: `make bench` did, at commit [0-9a-f]{7,}; `make audit`",
        ),
        ("README.md", r"no stage in dvc\.lock made README\.md"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is_near(asked: str, said: str) -> None:
    status, told, error = ask(asked)
    assert (status, told) == (1, "")
    assert re.search(said, error)
    assert "Traceback" not in error


def test_a_value_of_a_changed_file_is_shown_as_such_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stages", "reports", "dvc.lock", "params.yaml"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["origin", ADDRESS])
    told = []
    for change in ("", "\n"):
        with Path("reports/metrics/chestxray14.json").open("a") as file:
            file.write(change)
        with pytest.raises(SystemExit) as ended:
            origin.main()
        told.append((ended.value.code, "NOT as dvc.lock records it" in capsys.readouterr().out.splitlines()[2]))
    assert told == [(False, False), (True, True)]


def test_a_file_that_is_not_in_a_stages_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/export").mkdir(parents=True)
    (tmp_path / "data/export/student.onnx").write_text("x")
    entries = {"export": {"cmd": "x", "outs": [{"path": "data/export", "md5": lock.md5(Path("data/export"))}]}}
    assert origin.state_of(entries, "data/export/student.onnx") == origin.AS_RECORDED
    with pytest.raises(ValueError, match=r"export made data/export, in which there is no other\.onnx"):
        origin.state_of(entries, "data/export/other.onnx")


def test_code_that_changed_since_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry: dict[str, Any] = {"path": "stages/a.py", "md5": "0" * 32}
    monkeypatch.chdir(tmp_path)
    assert origin.state(entry) == origin.ABSENT
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/a.py").write_text("a")
    assert origin.state(entry) == origin.OTHER
    assert origin.state(entry | {"md5": lock.md5(Path("stages/a.py"))}) == origin.AS_RECORDED
    stage = {"code": [entry | {"state": origin.OTHER}], "commit": None}
    assert list(origin._code(stage, False)) == [
        "  code   1 files and rooms, 1 not as recorded", f"  code   stages/a.py {'0' * 32} (other content)"
    ]  # fmt: skip
    assert origin.state(entry | {"path": "data/labels"}) == origin.UNREAD


def test_a_shallow_clone_names_no_commit_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{REPOSITORY}", tmp_path / "shallow"], check=True)
    monkeypatch.chdir(tmp_path / "shallow")
    assert origin.last_commit(["stages/core"]) is None
    assert origin.last_commit([])
    monkeypatch.chdir(REPOSITORY)
    assert IS_SHALLOW or origin.last_commit(["stages/core"])
