"""The command lines: what `--help` says, what is refused, what make installs and where it runs, what a crash shows."""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.pages import published
from stages.pipeline import repro

REPOSITORY = Path(__file__).parent.parent
COMMANDS = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in (REPOSITORY / "stages").rglob("*.py")
    if ".parse_args(" in path.read_text(encoding="utf-8")
)


def described(parser: argparse.ArgumentParser) -> dict[str, str | None]:
    """Each argument of a parser, and of its subcommands, with its help."""
    found: dict[str, str | None] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {choice.dest: choice.help for choice in action._choices_actions}
            for command in action.choices.values():
                found |= described(command)
        else:
            found[action.dest] = action.help
    return found


@pytest.mark.parametrize("module", COMMANDS)
def test_every_argument_says_what_it_is(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        shown.append(parser)
        raise SystemExit

    main = importlib.import_module(module).main
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        main()
    assert [name for name, text in described(shown[0]).items() if not text] == []


def test_the_commands_are_those_that_dvc_and_make_run() -> None:
    run = (REPOSITORY / "dvc.yaml").read_text() + (REPOSITORY / "Makefile").read_text()
    without_words = {"stages.demo", "stages.pages.readme", "stages.pipeline.audit", "stages.pipeline.guard"}
    named = set(re.findall(r"\bstages(?:\.\w+)+", run)) - without_words
    assert "stages.ingest" in named
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("lanes", ["0", "-1", "two"])
def test_lanes_that_would_run_nothing_are_refused(
    lanes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["repro", "--lanes", lanes])
    with pytest.raises(SystemExit):
        repro.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"repro: error: argument --lanes: must be a whole number of 1 or more, got {lanes}"


# make


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and a .venv whose python only notes where it is called with what."""
    for name in ("Makefile", "requirements.lock", "requirements-cuda.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$(basename "$PWD"): $*" >> {tmp_path}/calls\n')
    python.chmod(0o755)
    make(tmp_path, "setup")
    return tmp_path


def make(folder: Path, *words: str) -> tuple[int, list[str], str]:
    """Run make: its exit status, the calls of python, what it said."""
    calls = folder / "calls"
    calls.write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = ("make", f"PYTHON={sys.executable}", *words)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, calls.read_text().splitlines(), done.stdout + done.stderr


def test_a_second_setup_installs_nothing_whatever_the_files_times(checkout: Path) -> None:
    for name in ("requirements.lock", "requirements-cuda.lock"):
        os.utime(checkout / name, (2**32, 2**32))
    assert make(checkout, "setup")[:2] == (0, [])


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda.lock"])
def test_setup_installs_again_when_a_lock_file_says_something_else(checkout: Path, name: str) -> None:
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    os.utime(checkout / name, (0, 0))
    status, calls, _ = make(checkout, "setup")
    assert (status, len(calls)) == (0, 1)
    assert "-m pip install" in calls[0]


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["audit"], "audit"),
        (["audit", "QUICK=1"], "lock check"),
        (["audit", "FILE=reports/report.md"], "origin --key= -- reports/report.md"),
        (["prune"], "lock prune"),
    ],
)
def test_audit_and_prune_look_at_the_run_that_is_named(checkout: Path, words: list[str], called: str) -> None:
    (checkout / "runs/smoke").mkdir(parents=True)
    assert make(checkout, *words)[1] == [f"{checkout.name}: -m stages.pipeline.{called}"]
    assert make(checkout, *words, "PRESET=smoke")[1] == [f"smoke: -m stages.pipeline.{called}"]
    status, calls, said = make(checkout, *words, "PRESET=other")
    assert (status != 0, calls) == (True, [])
    assert "there is no run of other (runs/other): make run PRESET=other" in said


def test_a_run_of_another_version_is_told_with_the_way_out(checkout: Path) -> None:
    for folder in (checkout, checkout / "runs/smoke"):
        (folder / "stages").mkdir(parents=True)
        (folder / "stages/report.py").write_text("x = 1\n")
    told = "runs/smoke has another version of the code; it answers here and may lack a command: make run"
    assert told not in make(checkout, "audit", "PRESET=smoke")[2]
    (checkout / "runs/smoke/stages/report.py").write_text("x = 2\n")
    status, calls, said = make(checkout, "audit", "PRESET=smoke")
    assert (status, calls) == (0, ["smoke: -m stages.pipeline.audit"])
    assert f"{told} PRESET=smoke brings it to this one" in said


def test_a_key_without_its_file_is_refused_and_json_goes_before_whole(checkout: Path) -> None:
    status, calls, said = make(checkout, "audit", "KEY=a/b")
    assert (status != 0, calls, "KEY is of a file: add FILE=<path>" in said) == (True, [], True)
    calls = make(checkout, "audit", "FILE=x.json", "KEY=a", "JSON=1", "WHOLE=1")[1]
    assert calls == [f"{checkout.name}: -m stages.pipeline.origin --json --key=a -- x.json"]


def test_make_hands_lanes_on_so_that_zero_is_refused(checkout: Path) -> None:
    assert f"{checkout.name}: -m stages.pipeline.repro --lanes 0" in make(checkout, "repro", "LANES=0")[1]


TEXTS = [
    "chest films",
    'lab\'s "films"',
    "films #2",
    "a: b",
    "(1)",
    "$HOME x",
    "${HOME} $(touch hit) `touch hit`",
    "x; touch hit & touch hit | touch hit > hit",
    "*",
    "$$ %s \\n \\",
    "--help",
    "röntgen",
    "a\nb",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "PRESET={}", "ROOT={}", "DATASETS={}"], "stages.pipeline.preset --datasets={} --root={} -- {}"),
        (["params", "PRESET={}"], "stages.pipeline.preset --print -- {}"),
        (["fetch", "DATASET={}", "ROOT={}", "URL={}"], "stages.pipeline.fetch --dataset={} --root={} --url={}"),
        (["audit", "FILE={}", "KEY={}"], "stages.pipeline.origin --key={} -- {}"),
        (["repro", "LANES={}"], "stages.pipeline.repro --lanes {}"),
        (["bench", "ONLY={}"], "benchmarks --only={}"),
        (["trials", "STUDY={}"], "benchmarks.trials --into CHECKOUT/reports/choices -- {}"),
    ],
)
def test_what_is_given_to_make_comes_as_it_is_and_no_shell_reads_it(
    checkout: Path, text: str, words: list[str], expected: str
) -> None:
    words = [word.format(text) if "=" in word else word for word in words]
    wanted = [word.replace("CHECKOUT", str(checkout)).format(text) for word in expected.split(" ")]
    assert arguments(checkout, *words) == ["-m", *wanted]
    named = [word.partition("=") for word in words[1:]]
    assert arguments(checkout, words[0], **{name: value for name, _, value in named}) == ["-m", *wanted]
    assert not (checkout / "hit").exists()


def arguments(folder: Path, *words: str, **environment: str) -> list[str]:
    """The arguments of the one call of python that make makes."""
    python = folder / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {folder}/arguments\n')
    (folder / "arguments").unlink(missing_ok=True)
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = ("make", f"PYTHON={sys.executable}", *words)
    subprocess.run(words, cwd=folder, env=rest | environment, capture_output=True, check=True)
    return (folder / "arguments").read_text().split("\0")[:-1]


@pytest.mark.parametrize("text", [text for text in TEXTS if text != "--help"])
def test_an_index_for_torch_is_one_word_for_pip(checkout: Path, text: str) -> None:
    (checkout / "requirements.lock").write_text("# changed\n")
    called = arguments(checkout, "setup", f"TORCH_INDEX={text}")
    assert called[called.index("--extra-index-url") + 1 :] == [
        text, "-r", "requirements.lock", "-c", "requirements-cuda.lock"
    ]  # fmt: skip
    assert not (checkout / "hit").exists()


def test_data_sets_that_are_not_given_are_not_handed_on_and_empty_ones_are(checkout: Path) -> None:
    assert arguments(checkout, "run", "PRESET=paper") == ["-m", "stages.pipeline.preset", "--root=", "--", "paper"]
    assert "--datasets=" in arguments(checkout, "run", "PRESET=paper", "DATASETS=")


@pytest.mark.parametrize("preset", ["..", ".", "a/", "/", "../params", "$(touch hit)", "smoke x", "runs/..", "*"])
def test_no_preset_leads_a_command_out_of_runs(checkout: Path, preset: str) -> None:
    (checkout / "runs/smoke").mkdir(parents=True)
    (checkout / "params").mkdir()
    status, calls, said = make(checkout, "prune", f"PRESET={preset}")
    assert (status != 0, calls) == (True, [])
    assert f"there is no run of {preset} (runs/" in said
    assert not (checkout / "hit").exists()


def test_a_preset_by_its_path_names_the_same_run(checkout: Path) -> None:
    (checkout / "runs/my-own_1").mkdir(parents=True)
    for ending in ("yaml", "yml"):
        called = make(checkout, "prune", f"PRESET=/else where/my-own_1.{ending}")[1]
        assert called == ["my-own_1: -m stages.pipeline.lock prune"]


def test_git_ignores_a_linked_venv_and_drawn_plots(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "dvc_plots").mkdir()
    (tmp_path / "dvc_plots/index.html").touch()
    (tmp_path / "seen").touch()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert status.stdout.split() == ["??", ".gitignore", "??", "seen"]


# a crash

CRASH = """
from pathlib import Path
from stages.learning.trainer import Curves

def fit():
    curves = Curves(Path("live"), [{"step": 1, "loss": 0.5}])
    curves.add({"step": 2, "loss": 0.4})
    raise ValueError("no finite loss")

fit()
"""


def test_a_crash_in_a_training_ends_with_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a"]
    for words in (["init", "--quiet"], ["add", "file"], commit, ["gc", "--quiet"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert list(tmp_path.glob(".git/objects/pack/*.pack"))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", CRASH]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ValueError: no finite loss"
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "live/plots/metrics/loss.tsv").read_text().splitlines()[1:] == ["1\t0.5", "2\t0.4"]


# what others published


@pytest.mark.parametrize("name", ["report.html.j2", "report.md.j2"])
def test_no_published_figure_is_typed_in_a_template(name: str) -> None:
    template = (REPOSITORY / "stages/pages" / name).read_text(encoding="utf-8")
    typed = re.findall(r"\b\d+\.\d+\b", re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", template))
    assert typed == []
    assert "published.cost" in template
    assert all(figures.source for figures in published.FIGURES.values())
