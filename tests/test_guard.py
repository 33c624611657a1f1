"""The guard: DVC records a run only if what it would record is what ran. Each test runs a toy stage under real DVC."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.core import files
from stages.pipeline import fence, lock, pinning
from stages.pipeline import repro as runner

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
    return run(["dvc", "repro"], folder, variables)


def guarded(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run there what DVC would run, without DVC: its start takes longer than the toy."""
    return run(
        ["python", "-m", "stages.pipeline.guard", "stages.toy"], folder, {"DVC_STAGE": "dvc.yaml:toy"} | variables
    )


def run(words: list[str], folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command with the project's programs first."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    environment["PATH"] = f"{ROOT / '.venv/bin'}:{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    return subprocess.run(words, cwd=folder, env=environment | variables, capture_output=True, text=True, check=False)


def test_an_honest_stage_runs_and_is_recorded(tmp_path: Path) -> None:
    folder = project(tmp_path)
    done = repro(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "data/out.txt").read_text() == "in 17"
    assert YAML(typ="safe").load(folder / "dvc.lock")["stages"]["toy"]["params"]["params.yaml"] == {"seed": 17}


def test_a_stage_does_not_run_in_another_environment_than_it_depends_on(tmp_path: Path) -> None:
    folder = project(tmp_path)
    recorded = pinning.facts("images") | {"python": "3.0"}
    files.write_json(recorded, folder / "reports/environment/images.json")
    text = (
        (folder / "dvc.yaml")
        .read_text()
        .replace("    - stages/core\n", "    - stages/core\n    - reports/environment/images.json\n")
    )
    (folder / "dvc.yaml").write_text(text)
    done = repro(folder)
    assert done.returncode != 0
    assert (
        "toy would not run with what reports/environment/images.json records (python: recorded 3.0, here 3."
        in done.stderr
    )
    assert "`dvc repro -f environment@images`" in done.stderr
    assert not (folder / "data/out.txt").exists()
    files.write_json(pinning.facts("images"), folder / "reports/environment/images.json")
    assert repro(folder).returncode == 0


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
        ("import os; os.chdir('data'); open('secret.txt').read()", "toy read data/secret.txt"),
        ("open('/proc/self/cwd/data/secret.txt').read()", "toy read data/secret.txt"),
        (
            "import os; os.open('secret.txt', os.O_RDONLY, dir_fd=os.open('data', os.O_RDONLY | os.O_DIRECTORY))",
            "toy read data/secret.txt",
        ),
        (
            "link = Path(f'{Path.cwd()}.link'); link.symlink_to(Path('data/secret.txt').resolve()); link.read_text()",
            "toy read data/secret.txt",
        ),
        ("Path('data/secret.txt').rename('data/other.txt')", "toy wrote data/secret.txt"),
        ("Path('data/secret.txt').unlink()", "toy wrote data/secret.txt"),
        ("Path('data/new').mkdir()", "toy wrote data/new"),
        ("import os; os.link('data/secret.txt', 'data/.out.txt.1-1.part')", "toy read data/secret.txt"),
        ("import os; os.link('data/in.txt', 'data/other.txt')", "toy wrote data/other.txt"),
        ("import os; os.symlink('in.txt', 'data/other.txt')", "toy wrote data/other.txt"),
        ("import os; os.truncate('data/in.txt', 0)", "toy wrote data/in.txt"),
        ("open('params.yaml').read()", "toy read params.yaml by itself"),
        ("import os; os._exit(0)", "stages.toy ended the process by os._exit: let main return"),
        ("params.load('threads')", "params read and params declared in dvc.yaml differ: seed, threads"),
    ],
)
def test_a_stage_that_goes_outside_its_declaration_fails(tmp_path: Path, trick: str, message: str) -> None:
    folder = project(tmp_path, trick)
    done = guarded(folder)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (folder / "data/out.txt").exists()


HIDDEN = "raw/secret.txt"  # not beside the output
C_READERS = {
    "a program": f"import subprocess; subprocess.run(['cat', {HIDDEN!r}], check=True)",
    "a worker": f"import joblib; joblib.Parallel(2)([joblib.delayed(Path.read_text)(Path({HIDDEN!r}))] * 2)",
    "OpenCV": f"import cv2; assert cv2.FileStorage({HIDDEN!r}, 0).isOpened()",
    "Arrow": f"import pyarrow; pyarrow.memory_map({HIDDEN!r}).read()",
    "SQLite": f"import sqlite3; sqlite3.connect('file:{HIDDEN}?mode=ro', uri=True).execute('pragma table_list')",
    "torch": f"import torch; torch.from_file({HIDDEN!r}, size=1, dtype=torch.uint8)",
}


@pytest.mark.skipif(not fence.is_offered(), reason="this system has no Landlock (Linux 5.13 or newer)")
@pytest.mark.slow
@pytest.mark.parametrize("reader", C_READERS)
def test_the_kernels_fence_stops_readers_that_python_does_not_hear_of(tmp_path: Path, reader: str) -> None:
    folder = project(tmp_path, C_READERS[reader])
    (folder / "raw").mkdir()
    if reader == "SQLite":
        sqlite3.connect(folder / HIDDEN).close()
    else:
        (folder / HIDDEN).write_text("%YAML:1.0\n---\nkey: 1\n")
    assert repro(folder).returncode == 0, "not seen without the fence, as `doors` says"
    for name in ("dvc.lock", "data/out.txt", ".dvc/cache"):
        files.remove(folder / name)
    assert repro(folder, STRICT="1").returncode != 0
    assert not (folder / "dvc.lock").exists()


@pytest.mark.skipif(not fence.is_offered(), reason="this system has no Landlock (Linux 5.13 or newer)")
def test_within_the_kernels_fence_an_honest_stage_runs_and_has_temporary_files(tmp_path: Path) -> None:
    trick = "import tempfile; made = tempfile.NamedTemporaryFile(); made.write(b'x'); open(made.name).read()"
    done = repro(project(tmp_path, trick), STRICT="1")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / ".ckpt/tmp").iterdir()) == []


def test_a_fence_that_the_system_does_not_offer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "is_offered", lambda: False)
    with pytest.raises(fence.FenceError, match="STRICT=1 needs Landlock"):
        fence.put_up(tmp_path, [], tmp_path / "tmp")


def test_what_lies_outside_the_project_may_be_read_by_any_path(tmp_path: Path) -> None:
    """Numba opens sources of packages by a path relative to the folder that it runs in."""
    (tmp_path / "above").mkdir()
    (tmp_path / "package.py").write_text("")
    done = guarded(project(tmp_path / "above/project", "open('../../package.py').read()"))
    assert done.returncode == 0, done.stderr
    trick = "open('../project/data/secret.txt').read()"
    assert "toy read data/secret.txt" in guarded(project(tmp_path / "below/project", trick)).stderr


@pytest.mark.parametrize(
    ("trick", "shown", "is_told"),
    [
        ("raise ValueError(f'seed {seed} is no prime: take 19')", "stages.toy: seed 17 is no prime: take 19 (", True),
        ("raise params.ParamsError('no')", "stages.toy: no (TRACEBACK=1 shows where)", True),
        (
            "import pydantic; pydantic.create_model('Settings', rate=(float, ...)).model_validate({'rate': 'high'})",
            "stages.toy: Settings refuses rate: Input should be a valid number, unable to parse string as a number,"
            " got 'high' (",
            True,
        ),
        ("int(text)", "ValueError: invalid literal for int() with base 10: 'in'", False),
        ("dict()['seed']", "KeyError: 'seed'", False),
    ],
)
def test_what_the_project_refuses_is_told_in_a_line_and_a_fault_shows_where(
    tmp_path: Path, trick: str, shown: str, is_told: bool
) -> None:
    folder = project(tmp_path, trick)
    done = guarded(folder)
    assert done.returncode != 0
    assert shown in done.stderr
    assert ("Traceback" in done.stderr) is not is_told
    assert "Traceback" in guarded(folder, TRACEBACK="1").stderr


def test_code_below_a_declared_folder_may_be_imported(tmp_path: Path) -> None:
    folder = project(tmp_path, "from stages.losses import sigmoid_kd")
    rooms = "".join(f"    - stages/{name}\n" for name in ("judging", "learning", "nets", "sources"))
    (folder / "dvc.yaml").write_text(STAGE.replace("    - stages/toy.py\n", f"{rooms}    - stages/toy.py\n"))
    assert "toy imported stages/losses/sigmoid_kd.py, which dvc.yaml does not declare" in guarded(folder).stderr
    text = (
        (folder / "dvc.yaml").read_text().replace("    - stages/toy.py\n", "    - stages/losses\n    - stages/toy.py\n")
    )
    (folder / "dvc.yaml").write_text(text)
    done = guarded(folder)
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
    done = guarded(project(tmp_path, trick))
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


def test_a_swallowed_refusal_fails_the_stage_at_its_end_and_its_output_goes(tmp_path: Path) -> None:
    trick = """
    try:
        from stages.sources import splits
    except RuntimeError:
        pass"""
    folder = project(tmp_path, trick)
    assert "toy went outside its declaration in dvc.yaml: imported stages/sources/splits.py" in repro(folder).stderr
    assert not (folder / "dvc.lock").exists()
    assert not (folder / "data/out.txt").exists()


def test_a_stage_that_leaves_before_its_end_is_checked_all_the_same(tmp_path: Path) -> None:
    code = f"from pathlib import Path; {EDITS['stages/toy.py']}"
    edit = f"import subprocess; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    done = repro(project(tmp_path, f"{edit}; sys.exit(0)"))
    assert "inputs of toy changed while it ran: stages/toy.py; " in done.stderr


def test_workers_that_end_by_themselves_are_let(tmp_path: Path) -> None:
    trick = (
        "import multiprocessing; worker = multiprocessing.get_context('fork').Process(target=print); worker.start(); "
        "worker.join(); assert worker.exitcode == 0"
    )
    folder = project(tmp_path, trick)
    done = repro(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "data/out.txt").exists()


def test_code_that_was_edited_when_it_was_loaded_and_edited_back_fails_the_run(tmp_path: Path) -> None:
    folder = project(tmp_path)
    plain = (folder / "stages/core/files.py").read_text()
    (folder / "stages/core/files.py").write_text(f"{plain}# edited\n")
    back = f"from pathlib import Path\nPath('stages/core/files.py').write_text({plain!r})\n"
    with (folder / "stages/core/schema.py").open("a") as file:  # which is loaded after files.py
        file.write(back)
    done = repro(folder)
    assert "inputs of toy changed while it ran: stages/core/files.py; " in done.stderr
    assert not (folder / "dvc.lock").exists()


def test_bytecode_of_other_source_is_not_run(tmp_path: Path) -> None:
    """Python takes cached bytecode by the size and the second of its source: an edit may change neither."""
    folder = project(tmp_path, "text = text + '1'")
    source = folder / "stages/toy.py"
    moment = source.stat().st_mtime
    done = subprocess.run([sys.executable, "-m", "compileall", "-q", str(source)], check=True)
    source.write_text(source.read_text().replace("'1'", "'2'"))
    os.utime(source, (moment, moment))
    done = repro(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "data/out.txt").read_text() == "in2 17"


def test_a_tree_of_folders_of_its_own_may_be_removed(tmp_path: Path) -> None:
    """`shutil.rmtree` opens what lies deeper by a descriptor of the folder above, and its name alone."""
    trick = (
        "import shutil; made = Path('.ckpt/a/secret/b'); made.mkdir(parents=True); (made / 'c').touch(); "
        "shutil.rmtree('.ckpt/a')"
    )
    done = repro(project(tmp_path, trick))
    assert done.returncode == 0, done.stderr


def test_without_a_stage_the_usage_is_shown() -> None:
    words = [sys.executable, "-m", "stages.pipeline.guard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "name a stage: python -m stages.pipeline.guard stages.<stage> --<cell> ...\n",
    )


LATE = """
import atexit
import subprocess

atexit.register(lambda: subprocess.run({words!r}, check=True))
"""


@pytest.mark.parametrize("edited", ["stages/toy.py", "stages/core", "params.yaml:seed"])
def test_an_edit_after_the_last_check_and_before_dvc_looks_is_forgotten_again(
    tmp_path: Path, edited: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The edit is made as the guard's process ends; DVC would record it as what ran."""
    edits = EDITS | {"stages/core": "open('stages/core/files.py', 'a').write('#')"}
    folder = project(tmp_path)
    words = [sys.executable, "-c", f"from pathlib import Path; {edits[edited]}"]
    with (folder / "stages/pipeline/guard.py").open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("import hashlib\n", f"import hashlib\n{LATE.format(words=words)}", 1))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{ROOT / '.venv/bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(subprocess.CalledProcessError):
        runner.run(runner.due(), lanes=1)
    assert f"{edited} changed as toy ended: DVC recorded what had not run" in capsys.readouterr().err
    assert "toy" not in YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    assert not [path for path in (folder / ".dvc/cache/runs").rglob("*") if path.is_file()]
    (folder / "stages/pipeline/guard.py").write_text(text)
    runner.run(runner.due(), lanes=1)
    seed = 18 if edited == "params.yaml:seed" else 17
    assert (folder / "data/out.txt").read_text() == f"in {seed}"
    assert not lock.forged("toy")


def test_what_goes_beyond_the_schema_is_checked_before_the_stage_too(tmp_path: Path) -> None:
    folder = project(tmp_path)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("        Atelectasis: ones ", "        Atelektasis: ones ", 1))
    done = repro(folder)
    assert "policies.chexpert.uncertain.per_finding: unknown finding 'Atelektasis', did you mean Atelectasis?" in (
        done.stderr
    )
    assert not (folder / "data/out.txt").exists()
