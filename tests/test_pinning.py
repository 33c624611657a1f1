"""The instruction set of stages, and what is recorded of the environment."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import smoke

from stages import environment
from stages.core import files
from stages.pipeline import pinning, repro

TORCH = "2.15.0"


@pytest.fixture
def without_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """An x86-64 processor with AVX2, and none of the variables set."""
    monkeypatch.setattr(pinning, "unpinnable", lambda: None)
    for name in pinning.PINS:
        monkeypatch.delenv(name, raising=False)


PROBE = """
import os
import numpy as np

def main(argv):
    print(np._core._multiarray_umath.__cpu_features__["X86_V4"], os.environ.get("MKL_CBWR"))
"""


def test_a_stages_process_pins_every_library_before_it_imports_one(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    variables = {key: value for key, value in os.environ.items() if key not in pinning.PINS}
    variables |= {"PYTHONPATH": f"{smoke.ROOT}:{tmp_path}"}
    words = [sys.executable, "-m", "stages.pipeline.guard", "probe"]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(None if pinning.unpinnable() else "COMPATIBLE")]


@pytest.mark.usefixtures("without_pins")
def test_a_variable_of_the_user_wins_and_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    recorded = pinning.facts("training")
    pinning.pin()
    assert os.environ["MKL_CBWR"] == "AVX2"
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"
    assert recorded["instruction_set"] == pinning.PINS | {"MKL_CBWR": "AVX2"}
    assert pinning.facts("training") == recorded  # the same before and after the pins


@pytest.mark.usefixtures("without_pins")
def test_a_users_own_program_is_started_without_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    pinning.pin()
    with pinning.released():
        assert os.environ["MKL_CBWR"] == "AVX2"  # is the user's
        assert "ATEN_CPU_CAPABILITY" not in os.environ
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"


@pytest.mark.parametrize(
    ("machine", "flags", "reason", "name"),
    [
        ("aarch64", "", "aarch64, which is not x86-64", "Some CPU"),
        ("x86_64", "sse4_2", "x86_64 without AVX2", "Some CPU, without AVX-512"),
        ("x86_64", "avx2 fma", None, "Some CPU, without AVX-512"),
        ("x86_64", "avx2 avx512f", None, "Some CPU, with AVX-512"),
    ],
)
def test_only_x86_64_with_avx2_is_pinned(
    machine: str, flags: str, reason: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: Some CPU\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(pinning, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for variable in pinning.PINS:
        monkeypatch.delenv(variable, raising=False)
    pinning.pin()
    assert pinning.unpinnable() == reason
    assert pinning.facts("images")["instruction_set"] == (reason or pinning.PINS)
    assert ("OPENBLAS_CORETYPE" in os.environ) == (reason is None)
    assert pinning.processor() == name


def test_each_difference_of_two_environments_is_told_in_words() -> None:
    recorded: dict[str, Any] = {"python": "3.11", "instruction_set": {"A": "1"}, "packages": {"numpy": "2.0"}}
    here: dict[str, Any] = {
        "python": "3.12",
        "instruction_set": "arm64, which is not x86-64",
        "packages": {"numpy": None},
    }
    assert list(pinning.differing(recorded, recorded)) == []
    assert list(pinning.differing(recorded, here)) == [
        "instruction_set: recorded {'A': '1'}, here arm64, which is not x86-64",
        "packages numpy: recorded 2.0, here None",
        "python: recorded 3.11, here 3.12",
    ]


def installed(monkeypatch: pytest.MonkeyPatch, **others: str | None) -> None:
    """Let some packages seem to be installed in other versions, or not (None)."""
    real = pinning.version
    monkeypatch.setattr(pinning, "version", lambda name: others[name] if name in others else real(name))


@pytest.mark.parametrize("found", ["9.9.9", None])
def test_a_stage_records_no_package_that_is_not_the_lock_files(
    found: str | None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "requirements.lock").write_text(f"torch=={TORCH}\npytest==0.1  # no result depends on it\n")
    environment.main(["--group", "training"])
    assert files.read_json(project / "reports/environment/training.json")["packages"]["torch"] == TORCH
    installed(monkeypatch, torch=found)
    with pytest.raises(
        pinning.EnvironmentMismatchError, match=rf"torch: .* has =={TORCH}, installed is {found or 'no'}"
    ):
        environment.main(["--group", "training"])


def test_the_cpu_build_of_torch_fits_the_lock_file_and_is_another_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "requirements.lock").write_text(f"torch=={TORCH}\n")
    recorded = pinning.facts("training")
    installed(monkeypatch, torch=f"{TORCH}+cpu")
    pinning.require_lock()
    assert list(pinning.differing(recorded, pinning.facts("training"))) == [
        f"packages torch: recorded {TORCH}, here {TORCH}+cpu"
    ]


UPGRADES = {  # package -> some stages that an upgrade makes due, and some that it does not
    "torch": ({"train_teacher", "train_student", "distill", "predict_distilled", "evaluate", "export", "report"},
              {"phantom", "download", "harmonize", "ingest", "assemble"}),
    "opencv-python-headless": ({"phantom", "download", "ingest", "assemble", "train_student", "report"}, set()),
    "pytest": (set(), {"phantom", "ingest", "train_student", "report"}),
}  # fmt: skip
DUE = """
import json
from stages.pipeline import repro
repro.record_environment()
print(json.dumps(sorted({stage.split("@")[0] for stage in repro.due_after_environment()})))
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", UPGRADES)
def test_an_upgrade_runs_again_what_it_may_change(package: str, finished: Path, tmp_path: Path) -> None:
    """The lock file is edited, and a package of that version seems to be installed."""
    folder, extra = tmp_path / "run", tmp_path / "site"
    subprocess.run(["cp", "-a", finished, folder], check=True)
    known = extra / f"{package.replace('-', '_')}-9.9.9.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9.9\n")
    lock = folder / "requirements.lock"
    lines = lock.read_text().splitlines()
    assert any(line.startswith(f"{package}==") for line in lines)
    variables = smoke.environment() | {"PYTHONPATH": f"{folder}:{extra}"}

    def due() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", DUE]
        return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)

    done = due()
    if UPGRADES[package][0]:
        assert "installed is 9.9.9" in done.stderr  # the lock file has the old version yet
    lock.write_text("\n".join(f"{package}==9.9.9" if line.startswith(f"{package}==") else line for line in lines))
    done = due()
    assert done.returncode == 0, done.stderr
    found = set(json.loads(done.stdout.splitlines()[-1]))
    wanted, unwanted = UPGRADES[package]
    assert wanted <= found
    assert not unwanted & found


def test_make_repro_says_what_is_not_pinned(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "requirements.lock").write_text("")
    monkeypatch.setattr(pinning, "unpinnable", lambda: "x86_64 without AVX2")
    repro.record_environment()
    assert capsys.readouterr().out.startswith(
        "x86_64 without AVX2: the instruction set is not pinned, and results have"
    )
