"""The guard: DVC records a run only if what it would record is what ran. Each test runs a toy stage under real DVC."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
TOY = '''"""A toy stage."""

import argparse
import sys
from pathlib import Path

from stages.core import files, params


def main(argv: list[str] | None = None) -> None:
    seed = params.load("seed")
    text = files.input("data/in.txt").read_text()
    {trick}
    with files.output("data/out.txt") as made:
        made.write_text(f"{{text}} {{seed}}")
'''
STAGE = """
stages:
  toy:
    cmd: python -m stages.pipeline.guard stages.toy
    deps:
    - data/in.txt
    - stages/core
    - stages/toy.py
    params:
    - seed
    outs:
    - data/out.txt
"""


def project(folder: Path, trick: str = "pass") -> Path:
    """A DVC project with one stage that plays a trick between reading and writing."""
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    shutil.copyfile(ROOT / ".dvcignore", folder / ".dvcignore")
    (folder / "stages/toy.py").write_text(TOY.format(trick=trick))
    (folder / "dvc.yaml").write_text(STAGE)
    (folder / "data").mkdir()
    (folder / "data/in.txt").write_text("in")
    (folder / "data/secret.txt").write_text("secret")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    return folder


def repro(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `dvc repro` there."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    environment["PATH"] = f"{ROOT / '.venv/bin'}:{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    environment |= variables
    return subprocess.run(["dvc", "repro"], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_an_honest_stage_runs_and_is_recorded(tmp_path: Path) -> None:
    folder = project(tmp_path)
    done = repro(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "data/out.txt").read_text() == "in 17"
    assert YAML(typ="safe").load(folder / "dvc.lock")["stages"]["toy"]["params"]["params.yaml"] == {"seed": 17}


EDITS = {  # a dependency -> how it is edited
    "params.yaml:seed": "p = Path('params.yaml'); p.write_text(p.read_text().replace('seed: 17', 'seed: 18'))",
    "stages/toy.py": "open('stages/toy.py', 'a').write('#')",
    "data/in.txt": "open('data/in.txt', 'a').write('!')",
}


@pytest.mark.parametrize("edited", EDITS)
def test_inputs_edited_by_another_process_during_the_run_fail_it(tmp_path: Path, edited: str) -> None:
    """The edit is made by a child process, as by an editor: the guard's own process never opens the file."""
    code = f"from pathlib import Path; {EDITS[edited]}"
    folder = project(tmp_path, f"import subprocess; subprocess.run([sys.executable, '-c', {code!r}], check=True)")
    done = repro(folder)
    assert done.returncode != 0
    assert f"inputs of toy changed while it ran: {edited}; " in done.stderr
    assert "Run `make repro` again" in done.stderr
    assert not (folder / "data/out.txt").exists()
    assert not (folder / "dvc.lock").exists()


@pytest.mark.parametrize(
    ("trick", "message"),
    [
        ("open('data/secret.txt').read()", "toy read data/secret.txt, which dvc.yaml does not declare"),
        ("open('data/other.txt', 'w').write('x')", "toy wrote data/other.txt, which dvc.yaml does not declare"),
        ("open('data/in.txt', 'w').write('x')", "toy wrote data/in.txt, which dvc.yaml does not declare"),
        ("from stages.sources import splits", "toy imported stages/sources/splits.py, which dvc.yaml does not declare"),
        ("params.load('threads')", "params read and params declared in dvc.yaml differ: seed, threads"),
    ],
)
def test_a_stage_that_goes_outside_its_declaration_fails(tmp_path: Path, trick: str, message: str) -> None:
    folder = project(tmp_path, trick)
    done = repro(folder)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (folder / "dvc.lock").exists()


def test_what_lies_outside_the_project_may_be_read_by_any_path(tmp_path: Path) -> None:
    """Numba opens sources of packages by a path relative to the folder that it runs in."""
    (tmp_path / "above").mkdir()
    (tmp_path / "package.py").write_text("")
    done = repro(project(tmp_path / "above/project", "open('../../package.py').read()"))
    assert done.returncode == 0, done.stderr
    trick = "open('../project/data/secret.txt').read()"
    assert "toy read data/secret.txt" in repro(project(tmp_path / "below/project", trick)).stderr


@pytest.mark.parametrize(
    ("trick", "shown", "is_told"),
    [
        ("raise ValueError(f'seed {seed} is no prime: take 19')", "stages.toy: seed 17 is no prime: take 19 (", True),
        ("raise params.ParamsError('no')", "stages.toy: no (TRACEBACK=1 shows where)", True),
        ("int(text)", "ValueError: invalid literal for int() with base 10: 'in'", False),
        ("dict()['seed']", "KeyError: 'seed'", False),
    ],
)
def test_what_the_project_refuses_is_told_in_a_line_and_a_fault_shows_where(
    tmp_path: Path, trick: str, shown: str, is_told: bool
) -> None:
    folder = project(tmp_path, trick)
    done = repro(folder)
    assert done.returncode != 0
    assert shown in done.stderr
    assert ("Traceback" in done.stderr) is not is_told
    assert "Traceback" in repro(folder, TRACEBACK="1").stderr


def test_code_below_a_declared_folder_may_be_imported(tmp_path: Path) -> None:
    folder = project(tmp_path, "from stages.losses import sigmoid_kd")
    rooms = "".join(f"    - stages/{name}\n" for name in ("judging", "learning", "nets", "sources"))
    (folder / "dvc.yaml").write_text(STAGE.replace("    - stages/toy.py\n", f"{rooms}    - stages/toy.py\n"))
    assert "toy imported stages/losses/sigmoid_kd.py, which dvc.yaml does not declare" in repro(folder).stderr
    text = (
        (folder / "dvc.yaml").read_text().replace("    - stages/toy.py\n", "    - stages/losses\n    - stages/toy.py\n")
    )
    (folder / "dvc.yaml").write_text(text)
    done = repro(folder)
    assert done.returncode == 0, done.stderr


def test_wrong_params_stop_the_stage_before_any_work(tmp_path: Path) -> None:
    folder = project(tmp_path)
    text = (
        (folder / "params.yaml")
        .read_text()
        .replace("threads: 1 ", "threads: two ")
        .replace("workers: 2 ", "wrkers: 2 ")
    )
    (folder / "params.yaml").write_text(text)
    done = repro(folder)
    assert done.returncode != 0
    assert "params.yaml has 3 fault(s)" in done.stderr
    for fault in ("threads: ", "workers: missing", "wrkers: unknown key"):
        assert fault in done.stderr
    assert not (folder / "data/out.txt").exists()


def test_an_undeclared_import_stops_the_stage_when_it_is_made(tmp_path: Path) -> None:
    """Not after the stage's work, which may take hours."""
    trick = "from stages.sources import splits; Path('data/worked.txt').write_text('x')"
    done = repro(project(tmp_path, trick))
    assert "imported stages/sources/splits.py" in done.stderr
    assert "wrote" not in done.stderr


def test_code_edited_after_it_was_loaded_and_before_it_was_hashed_fails_the_run(tmp_path: Path) -> None:
    """The guard's own imports take half a second: an edit then is neither what ran nor noticed by a later hash."""
    folder = project(tmp_path)
    edit = "from pathlib import Path\nPath('stages/core/files.py').open('a').write('# edited')\n"
    with (folder / "stages/core/schema.py").open("a") as file:  # which is loaded after files.py
        file.write(edit)
    done = repro(folder)
    assert done.returncode != 0
    assert "inputs of toy changed while it ran: stages/core/files.py; " in done.stderr
    assert not (folder / "dvc.lock").exists()


def test_a_swallowed_refusal_fails_the_stage_at_its_end(tmp_path: Path) -> None:
    trick = """
    try:
        from stages.sources import splits
    except RuntimeError:
        pass"""
    folder = project(tmp_path, trick)
    assert "toy went outside its declaration in dvc.yaml: imported stages/sources/splits.py" in repro(folder).stderr
    assert not (folder / "dvc.lock").exists()


def test_what_goes_beyond_the_schema_is_checked_before_the_stage_too(tmp_path: Path) -> None:
    folder = project(tmp_path)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("        Atelectasis: ones ", "        Atelektasis: ones ", 1))
    done = repro(folder)
    assert "policies.chexpert.uncertain.per_finding: unknown finding 'Atelektasis', did you mean Atelectasis?" in (
        done.stderr
    )
    assert not (folder / "data/out.txt").exists()
