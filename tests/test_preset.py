"""A preset says what differs from params.yaml; the whole holds, keeps its comments, and takes the user's folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import owners
import pytest
from dvc.config import Config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.core import params
from stages.pipeline import by_hand, check, comments, preset

ROOT = Path(__file__).parent.parent
BASE = ROOT / "params.yaml"
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
EDIT = (
    "drop:\n- teachers.resnet18\nteachers:\n  resnet10t: {pretrained: false, checkpoint: null, checkpoint_sha256: null}"
)
OWN = f"title: Mine\nstudents:\n  eeea_net_c2: {{checkpoint: ROOT/net.pt, checkpoint_sha256: {'a' * 64}}}\n"


def load(text: str) -> Any:
    return YAML(typ="safe").load(text)


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def message(file: Path) -> str:
    with pytest.raises(params.ParamsError) as caught:
        preset.merged(file, BASE)
    return str(caught.value)


def leaves(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value, of everything that is no filled mapping."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def test_what_a_preset_names_replaces_merges_or_goes_and_all_else_stays(tmp_path: Path) -> None:
    text = (
        "seeds: [3, 4]\nheadline: {teacher: resnet10t, seed: 3}\nloss_sums:\n  mix: {sigmoid_kd: 1.0, paper: 0.5}\n"
        "losses: {sigmoid_kd: {alpha: 0.1, temperature: 2.0}}\n"
        "rates:\n  mix: {default: 0.4, per_cohort: {joint: 0.2}}\n  sigmoid_kd: {default: 0.3, per_cohort: {}}\n"
        f"train:\n  teacher:\n    asymmetric: {{gamma_neg: 4.0, gamma_pos: 1.0, clip: 0.05}}\n{EDIT}\n"
    )
    whole, base = (dict(leaves(v)) for v in (preset.merged(written(tmp_path, text), BASE), params.read(BASE)))
    changed = {
        "seeds": [3, 4],
        "headline.teacher": "resnet10t",
        "headline.seed": 3,
        "loss_sums.mix.sigmoid_kd": 1.0,
        "loss_sums.mix.paper": 0.5,
        "losses.sigmoid_kd.alpha": 0.1,
        "losses.sigmoid_kd.temperature": 2.0,
        "rates.sigmoid_kd.default": 0.3,
        "rates.sigmoid_kd.per_cohort": {},
        "rates.mix.default": 0.4,
        "rates.mix.per_cohort.joint": 0.2,
        "train.teacher.asymmetric.gamma_neg": 4.0,
        "train.teacher.asymmetric.gamma_pos": 1.0,
        "train.teacher.asymmetric.clip": 0.05,
        "teachers.resnet10t.pretrained": False,
        "teachers.resnet10t.checkpoint": None,
        "teachers.resnet10t.checkpoint_sha256": None,
    }
    gone = {key for key in base if key.startswith("teachers.resnet18.")} | {"loss_sums", "train.teacher.asymmetric"}
    assert whole == {key: value for key, value in base.items() if key not in gone} | changed


@pytest.mark.parametrize("file", PRESETS, ids=lambda path: path.stem)
def test_each_preset_says_nothing_that_params_yaml_says_already(file: Path) -> None:
    base, given = dict(leaves(params.read(BASE))), params.read(file)
    given.pop("drop", None)
    assert {key: value for key, value in leaves(given) if key in base and base[key] == value} == {}


@pytest.mark.parametrize("file", PRESETS, ids=lambda path: path.stem)
def test_the_text_of_the_whole_is_block_style_and_has_its_values(file: Path) -> None:
    text = preset.merged_text(file, BASE)
    assert load(text) == preset.merged(file, BASE)
    assert text.startswith(f"# Made of params.yaml and {file}: edit those.\n# Everything that changes a result.")
    code = [line.split(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert [line for line in code if ("{" in line or "[" in line) and not line.rstrip().endswith(("{}", "[]"))] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {student: {epochs: 3}}", "train.student.epochs: unknown key"),
        ("title: 3", "title: "),
        ("drop: [seed]", "seed: missing"),
        ("drop: [teachers.resnet81]", "drop: teachers.resnet81 is not in params.yaml, or is dropped twice"),
        ("drop: [losses.paper.alpha.x]", "drop: losses.paper.alpha.x is not in params.yaml"),
        (
            "drop: [phantoms.chexpert, phantoms.chexpert]",
            "drop: phantoms.chexpert is not in params.yaml, or is dropped",
        ),
        ("losses: {paper: {alpha: 0.2}}\ndrop: [losses.paper]", "drop: losses.paper is both dropped and given"),
        ("drop: losses.paper", "drop: must be a list of dotted keys, such as losses.paper, got 'losses.paper'"),
        ("drop: [1]", "drop: must be a list of dotted keys, such as losses.paper, got [1]"),
        ("drop:", "drop: must be a list of dotted keys, such as losses.paper, got None"),
        ("seed: 1\nviews:\n  count: 2\n  count: 3\n", 'names a key twice, in line 4: found duplicate key "count"'),
        ("", "must hold keys, got None"),
        ("- seed", "must hold keys, got ['seed']"),
        ("seed: [", "is no YAML"),
        ("phantoms: {}", "phantoms: an empty mapping changes nothing; name what goes in `drop`: chestxray14, chexpert"),
    ],
)
def test_a_fault_names_the_file_and_the_key(tmp_path: Path, text: str, expected: str) -> None:
    found = message(written(tmp_path, text))
    assert found.startswith(str(tmp_path / "mine.yaml"))
    assert expected in found


def test_bytes_that_are_no_text_are_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"title: \xff\xfe")
    assert message(tmp_path / "mine.yaml").startswith(f"{tmp_path}/mine.yaml is no YAML: ")


def test_faults_of_the_overlay_and_of_the_whole_come_in_one_message(tmp_path: Path) -> None:
    text = "drop: [teachers.resnet81, views]\nviews: {count: 0}\ntrain: {student: {epochs: 3}}\ntitel: Mine\n"
    found = message(written(tmp_path, text))
    for part in (
        "teachers.resnet81",
        "views is both",
        "views.count: ",
        "train.student.epochs: unknown",
        "titel: unknown",
    ):
        assert part in found


TEXT = """\
# A head.

a:                               # of a, in two
                                 # lines
  b: 1                           # of b
  c: '#x'                        # of c
  # above d
  d:
  - 1                            # of the first item

e: 2                             # of e
f: 3
"""


def laid_on(values: Any, overlay: str = "# Its head.\nz: 1\n") -> str:
    return comments.laid_on(values, TEXT, overlay)


def test_the_comments_of_a_text_stay_with_its_keys() -> None:
    assert laid_on(load(TEXT)) == TEXT


def test_a_dropped_key_takes_its_comments_and_no_others() -> None:
    values = load(TEXT)
    del values["a"]["b"], values["a"]["d"]
    gone = ("  b: 1", "  # above d", "  d:", "  - 1")
    assert laid_on(values) == "".join(line for line in TEXT.splitlines(True) if not line.startswith(gone))
    del values["a"], values["e"]
    assert laid_on(values) == "# A head.\n\nf: 3\n"


def test_a_presets_own_comment_replaces_that_of_the_key_and_comes_with_an_added_one() -> None:
    overlay = (
        "# Its head.\na:\n  b: 5   # mine\n  # over d\n  d: [7]\n  g: 6   # new,\n         # too\nf: 4   # at last\n"
    )
    values = {"a": {"b": 5, "c": "#x", "d": [7], "g": 6}, "e": 2, "f": 4}
    expected = (
        TEXT.replace("b: 1                           # of b", "b: 5                           # mine")
        .replace("# above d", "# over d")
        .replace(
            "  - 1                            # of the first item\n",
            f"  - 7\n  g: 6{' ' * 27}# new,\n{' ' * 33}# too\n",
        )
        .replace("f: 3", f"f: 4{' ' * 29}# at last")
    )
    assert laid_on(values, overlay) == expected


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)


@settings(max_examples=100, deadline=None)
@example({"a": {"b": "\x85", "c": " a\u2028b", "d": ["\ufeff"]}})  # line breaks of YAML 1.1
@given(st.fixed_dictionaries({"a": st.fixed_dictionaries({"b": SCALARS, "c": SCALARS, "d": st.lists(SCALARS)})}))
def test_no_value_is_changed_by_the_comments_beside_it(values: Any) -> None:
    assert load(laid_on(values)) == values


def test_the_comments_of_params_yaml_stand_in_the_whole_as_there(tmp_path: Path) -> None:
    file = written(tmp_path, "threads: 2\nseeds:\n- 0\n- 1   # new\n")
    base, whole = BASE.read_text().splitlines(), preset.merged_text(file, BASE).splitlines()[1:]
    lost = [line.split("#", 1)[1] for line in base if "#" in line and line.split("#", 1)[1] not in "\n".join(whole)]
    assert lost == []
    assert f"- 1{' ' * 30}# new" in whole
    assert [line for line in whole if line.startswith("threads: 2  ")] != []


def with_root(text: str, root: str | None) -> Any:
    return preset.with_root(load(text), root)


PLACES = "a: {root: ROOT, title: ROOT}\nb: {root: ROOT/chexpert}\nc: {checkpoint: ROOT/t.csv}\nd: {root: ROOTS}\n"


def test_root_is_replaced_in_roots_and_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    assert with_root(PLACES, str(tmp_path)) == {
        "a": {"root": str(tmp_path), "title": "ROOT"},
        "b": {"root": f"{tmp_path}/chexpert"},
        "c": {"checkpoint": f"{tmp_path}/t.csv"},
        "d": {"root": "ROOTS"},
    }


def test_a_preset_that_reads_a_users_files_needs_their_folder_and_another_takes_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name their folder"):
        with_root("a: {checkpoint: ROOT/t.csv}", None)
    with pytest.raises(ValueError, match="leave ROOT out"):
        with_root("a: {root: data/phantom}", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(FileNotFoundError, match=f"{name} is no folder with files"):
            with_root(PLACES, str(tmp_path / name))


@pytest.mark.parametrize("name", ["my films", "a #1", "a: b", "'quoted' \"twice\"", r"back\1slash", "- x", "ü"])
def test_a_folder_of_any_name_comes_as_it_is_into_the_params_of_the_run(tmp_path: Path, name: str) -> None:
    films = tmp_path / name
    films.mkdir()
    (films / "film.png").touch()
    preset.export(written(tmp_path, OWN), tmp_path / "run", str(films), repository=ROOT)
    found = params.read(tmp_path / "run/params.yaml")
    assert found["students"]["eeea_net_c2"]["checkpoint"] == f"{films}/net.pt"
    assert found["title"] == "Mine"
    assert "# share of train_val patients that validate" in (tmp_path / "run/params.yaml").read_text()


FREE = ("title", "datasets.chestxray14.root", "datasets.chestxray14.split", "datasets.chestxray14.val_fraction")


def test_chestxray14_is_the_papers_set_up_but_for_folder_split_and_title() -> None:
    alone = preset.merged(ROOT / "presets/chestxray14.yaml", BASE)
    paper = preset.of_datasets(preset.merged(ROOT / "presets/paper.yaml", BASE), "chestxray14")
    one, other = dict(leaves(alone)), dict(leaves(paper))
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} == set(FREE)
    assert (alone["datasets"]["chestxray14"]["split"], alone["datasets"]["chestxray14"]["films"]) == ("official", None)
    assert (alone["ingest"]["size_px"], alone["assemble"]["max_rows_without_image"]) == (224, 0.01)


@pytest.mark.parametrize(
    ("names", "cohorts", "headline"),
    [
        ("chestxray14", {"chestxray14": ["chestxray14"]}, "chestxray14"),
        ("padchest", {"padchest": ["padchest"]}, "padchest"),
        (
            "chexpert, chestxray14",
            {
                "joint": ["chestxray14", "chexpert"],
                "chestxray14": ["chestxray14"],
                "chexpert": ["chexpert"],
            },
            "joint",
        ),
        (
            "chestxray14,chexpert,padchest",
            {
                "joint": ["chestxray14", "chexpert", "padchest"],
                "chestxray14": ["chestxray14"],
                "chexpert": ["chexpert"],
                "padchest": ["padchest"],
            },
            "joint",
        ),
    ],
)
def test_the_paper_runs_with_the_data_sets_that_are_named(names: str, cohorts: Any, headline: str) -> None:
    whole = preset.merged(ROOT / "presets/paper.yaml", BASE)
    found = preset.of_datasets(whole, names)
    wanted = [name for name in whole["datasets"] if name in names]
    assert [*found["datasets"]] == [*found["policies"]] == wanted
    assert {name: cohort["datasets"] for name, cohort in found["cohorts"].items()} == cohorts
    assert found["headline"] == whole["headline"] | {"cohort": headline}
    assert found["phantoms"] == {}
    rest = ("datasets", "policies", "cohorts", "headline")
    assert {key: found[key] for key in whole if key not in rest} == {k: whole[k] for k in whole if k not in rest}
    assert check.parse(found).headline.cohort == headline


def test_a_joint_cohort_of_one_data_set_is_that_data_sets_own(tmp_path: Path) -> None:
    text = "rates: {paper: {per_cohort: {joint: 0.2}}}\n"
    found = preset.of_datasets(preset.merged(written(tmp_path, text), BASE), "chexpert")
    assert found["cohorts"] == {"chexpert": {"datasets": ["chexpert"]}}
    assert found["headline"]["cohort"] == "chexpert"
    assert found["rates"]["paper"]["per_cohort"] == {}
    assert [*found["phantoms"]] == ["chexpert"]
    check.parse(found)


def test_cohorts_that_become_one_are_trained_once(tmp_path: Path) -> None:
    text = "cohorts:\n  two: {datasets: [chexpert, padchest]}\nheadline: {cohort: joint}\n"
    found = preset.of_datasets(preset.merged(written(tmp_path, text), BASE), "padchest,chexpert")
    assert found["cohorts"] == {"two": {"datasets": ["chexpert", "padchest"]}}
    assert found["headline"]["cohort"] == "two"
    check.parse(found)


@pytest.mark.parametrize("names", ["", ",", "chexpert,", "nih", "chexpert,chexpert", "chexpert chestxray14", "$HOME"])
def test_a_data_set_that_is_unknown_empty_or_there_twice_is_refused(names: str) -> None:
    with pytest.raises(
        ValueError, match=r"must be one or more of chestxray14, chexpert, padchest, each once.*got"
    ) as caught:
        preset.of_datasets(preset.merged(ROOT / "presets/paper.yaml", BASE), names)
    assert repr(names) in str(caught.value)


def test_no_cohort_of_the_named_data_sets_is_nothing_to_train_on(tmp_path: Path) -> None:
    text = "drop: [cohorts.joint]\ncohorts: {nih: {datasets: [chestxray14]}}\nheadline: {cohort: nih}\n"
    with pytest.raises(ValueError, match="DATASETS=padchest leaves nothing to train on"):
        preset.of_datasets(preset.merged(written(tmp_path, text), BASE), "padchest")


def test_a_run_of_some_data_sets_needs_their_folders_alone(tmp_path: Path) -> None:
    films = tmp_path / "films"
    (films / "chexpert").mkdir(parents=True)
    paper = ROOT / "presets/paper.yaml"
    with pytest.raises(FileNotFoundError, match=r"no folder of chestxray14 .*, padchest .*: DATASETS=chexpert$"):
        preset.export(paper, tmp_path / "run", str(films), ROOT)
    assert not (tmp_path / "run").exists()
    preset.export(paper, tmp_path / "run", str(films), ROOT, datasets="chexpert")
    found = params.read(tmp_path / "run/params.yaml")
    assert found["datasets"]["chexpert"]["root"] == f"{films}/chexpert"
    with pytest.raises(FileNotFoundError, match=r"no folder of padchest \(.*/padchest\): put the files there$"):
        preset.export(paper, tmp_path / "run", str(films), ROOT, datasets="padchest")


NASTY = "a b'c\"d $HOME ${HOME} $(touch hit)`touch hit`;touch hit;&|<> #: (1) *?[x]{y} %~=@! ü '"


def test_a_root_of_any_text_reaches_its_stage_and_no_shell(tmp_path: Path) -> None:
    root = owners.nih(tmp_path / NASTY, owners.nih_rows(6))
    run = tmp_path / "a run #1; touch hit"
    preset.export(ROOT / "presets/nih_sample.yaml", run, str(root), ROOT)
    environment = os.environ | {"PYTHONPATH": ".", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for words in (["repro", "--single-item", "download@chestxray14"], ["status", "download@chestxray14"]):
        done = subprocess.run(
            ["dvc", *words], cwd=run, env=environment | {"PWD": str(run)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout
    manifest = json.loads((run / "data/raw/chestxray14/manifest.json").read_text())
    assert len(manifest["files"]) == 4 + 6
    assert not [*tmp_path.rglob("hit")]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a\nb", "a line break or another control character"),
        ("a\x1b[1m", "a line break or another control character"),
        ("a\u2028b", "a line break or another control character"),
        ("a\\${HOME}", r"\\\$\{, which DVC reads as \$\{"),
        ("a\udce9", "bytes that are no UTF-8"),
    ],
)
def test_a_root_that_no_path_can_be_is_refused_by_name_before_anything_is_laid_out(
    tmp_path: Path, name: str, fault: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "film.png").touch()
    with pytest.raises(ValueError, match=f"^ROOT='.*' must be the path of a folder, and has {fault}: rename"):
        preset.export(ROOT / "presets/nih_sample.yaml", tmp_path / "run", str(tmp_path / name), ROOT)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and two presets, as the current one."""
    (tmp_path / "presets").mkdir()
    (tmp_path / "params.yaml").write_bytes(BASE.read_bytes())
    written(tmp_path / "presets", "title: One\n", "one.yaml")
    written(tmp_path / "presets", "title: Two\n", "two.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_preset_is_found_by_name_or_anywhere_by_path(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = written(tmp_path_factory.mktemp("else where"), "title: Mine\n", "my-own_1.yaml")
    written(checkout, "title: Here\n", "here.yaml")
    assert preset.found("one") == Path("presets/one.yaml")
    assert preset.found("here.yaml") == Path("here.yaml")
    assert preset.found(str(elsewhere)) == elsewhere
    written(checkout.parent, "title: Beside\n", "params.yaml")
    refused = ("three", "./one.yaml", "../params", "../../p/presets/one", "presets", "..", "/", "presets/one")
    for name, got in (("", "two$"), *((name, f"two; got {name}$") for name in refused)):
        with pytest.raises(FileNotFoundError, match=f"name a preset: make run PRESET=<name>, there are one, {got}"):
            preset.found(name)


@pytest.mark.parametrize("name", ["my preset.yaml", "a.b.yaml", "ü.yaml"])
def test_a_name_that_is_none_for_a_runs_folder_is_refused(checkout: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must be of A-Z, a-z, 0-9, _ and -.*rename"):
        preset.found(str(written(checkout, "title: Mine\n", name)))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["preset", *words])
    preset.main()


@pytest.mark.usefixtures("checkout")
def test_the_command_prints_the_whole_and_without_a_preset_params_yaml(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "one", "--print")
    assert capsys.readouterr().out == preset.merged_text(Path("presets/one.yaml"))
    call(monkeypatch, "", "--print")
    assert capsys.readouterr().out == BASE.read_text()
    call(monkeypatch, "one", "--print", "--datasets=padchest")
    assert capsys.readouterr().out == preset.merged_text(Path("presets/one.yaml"), datasets="padchest")
    with pytest.raises(SystemExit, match="name a preset"):
        call(monkeypatch, "", "--print", "--datasets=padchest")


def test_the_cache_of_a_checkout_of_any_name_is_found(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path_factory.mktemp("my 'own' #1") / "checkout"
    shutil.copytree(checkout, odd)
    monkeypatch.setattr(preset, "tracked", lambda _: [])
    preset.export(odd / "presets/one.yaml", odd / "runs/one", repository=odd)
    assert Config(odd / "runs/one/.dvc")["cache"]["dir"] == str(odd / ".dvc/cache")


def test_a_preset_from_elsewhere_runs_in_the_folder_of_its_name(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = written(tmp_path_factory.mktemp("else"), "title: Mine\n")
    monkeypatch.setattr(preset, "tracked", lambda _: [])
    monkeypatch.setattr(preset, "repro", lambda target: 3 if target == Path("runs/mine") else 4)
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, str(elsewhere))
    assert caught.value.code == 3
    assert params.read(checkout / "runs/mine/params.yaml")["title"] == "Mine"
    with chdir(checkout / "runs/mine"):
        assert (by_hand.read(), list(by_hand.edited())) == ({}, [])  # pages of the repository are none of a run


def test_a_run_that_is_a_link_elsewhere_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "runs").mkdir()
    (checkout / "other").mkdir()
    (checkout / "runs/one").symlink_to(checkout / "other")
    with pytest.raises(SystemExit, match="runs/one is a link, and a run lies in runs/"):
        call(monkeypatch, "one")
    assert not [*(checkout / "other").iterdir()]


def test_a_faulty_preset_stops_before_anything_is_laid_out(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(checkout / "presets", "titel: One\n", "one.yaml")
    with pytest.raises(SystemExit, match=r"presets/one.yaml(.|\n)*titel: unknown key"):
        call(monkeypatch, "one")
    assert not (checkout / "runs").exists()
