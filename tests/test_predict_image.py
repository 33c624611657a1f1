"""People's own films answered by the exported folder: what comes out, what is refused, what a second call does."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import filelock
import numpy as np
import onnx
import owners
import pytest
from onnx import TensorProto, helper

from stages import predict_image
from stages.core import files
from stages.device import running

SIZE = 64
NAMES = ["Effusion", "Mass", "Nodule"]
FILM, SCALAR = ("height", "width"), ()


def graph(with_map: bool) -> bytes:
    """A model of which anybody can tell what it says: each logit is the film's mean brightness over 64, less 2."""
    nodes = [
        helper.make_node("Cast", ["film"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["grey"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["row"]),
        helper.make_node("Mul", ["row", "calibrated"], ["probabilities"]),
    ]
    inputs = [helper.make_tensor_value_info("film", TensorProto.UINT8, FILM)]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [2, 3]),
    ]
    if with_map:
        inputs.append(helper.make_tensor_value_info("finding", TensorProto.INT64, SCALAR))
        nodes.append(helper.make_node("Cast", ["finding"], ["chosen"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Add", ["peak", "chosen"], ["map"]))
        outputs.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, [8, 8]))
    peak = np.full((8, 8), -9.0, np.float32)
    peak[1, 6] = 5
    tables = {
        "gain": np.full(3, 1 / 64, np.float32),
        "shift": np.array([-2, -2.1, -2.2], np.float32),
        "calibrated": np.array([[1, 1, np.nan], [0.5, 0.5, 0.5]], np.float32),
        "peak": peak,
    }
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in tables.items()]
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `export` writes it, of that model."""
    folder = tmp_path_factory.mktemp("model")
    for name, with_map in (("student.onnx", False), ("student_map.onnx", True)):
        (folder / name).write_bytes(graph(with_map))
    about = {
        "format": running.FORMAT,
        "size_px": SIZE,
        "ingest": {"max_pixels": 40_000_000, "min_range": 0.125},
        "findings": [{"name": name, "title": name.lower()} for name in NAMES],
        "populations": [
            {"name": "here", "threshold": [-0.5, 5.0, None]},
            {"name": "there", "threshold": [5.0, 5.0, 5.0]},
        ],
        "map": {"explainer": "layer_cam", "files": ["student_map.onnx"]},
        "files": {path.name: {"sha256": files.sha256(path)} for path in folder.iterdir()},
    }
    files.write_json(about, folder / running.MODEL)
    return folder


Run = Callable[..., int]


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command in an empty folder, with answers in `out`."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: predict_image.main([*map(str, words), "--model", str(model), "--out", "out"])


def film(seed: int = 0, side: int = 96) -> np.ndarray:
    """Dark edges, bright middle, noise."""
    return owners.film(seed, side)


def answers(name: str = "out/results.jsonl") -> dict[str, Any]:
    """File -> its line."""
    return {line["file"]: line for line in map(json.loads, Path(name).read_text().splitlines())}


def table() -> list[dict[str, str]]:
    with Path("out/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_film_is_answered_with_thresholds_of_the_population(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("Röntgen 1.png").write_bytes(owners.png(film()))
    assert run("Röntgen 1.png") == 0
    line = answers()["Röntgen 1.png"]
    mean = cv2.resize(film(), (SIZE, SIZE), interpolation=cv2.INTER_AREA).mean()
    effusion, mass, nodule = (line["findings"][name] for name in NAMES)
    assert effusion["logit"] == pytest.approx(mean / 64 - 2, abs=1e-4)
    assert effusion["probability"] == pytest.approx(1 / (1 + np.exp(2 - mean / 64)), abs=1e-4)
    assert (effusion["called"], mass["called"], nodule["called"]) == (mean / 64 - 2 >= -0.5, False, None)
    assert nodule["probability"] is None
    (row,) = table()
    assert row["called"] == ("Effusion" if effusion["called"] else "")
    assert float(row["Effusion"]) == effusion["probability"]
    assert row["Nodule"] == ""
    told = capsys.readouterr().out
    assert "1 films answered, 0 refused" in told
    assert "films like those of here" in told


def test_another_population_has_its_own_calibration(run: Run) -> None:
    Path("a.png").write_bytes(owners.png(film()))
    assert run("a.png", "--population", "there") == 0
    assert answers()["a.png"]["findings"]["Nodule"]["probability"] < 0.5
    assert run("a.png") == 2  # their answers would mix
    assert answers()["a.png"]["population"] == "there"


def test_a_map_is_drawn_over_the_film_for_each_finding_that_is_called(run: Run) -> None:
    bright = np.clip(film().astype(int) + 120, 0, 255).astype(np.uint8)
    Path("a b.png").write_bytes(owners.png(bright))
    assert run("a b.png", "--explain") == 0
    maps = answers()["a b.png"]["maps"]
    assert set(maps) == {"Effusion"}
    shown = cv2.imread(str(Path("out", maps["Effusion"]))).astype(int)
    colour = shown.max(axis=2) - shown.min(axis=2)
    row, column = np.unravel_index(colour.argmax(), colour.shape)
    assert (row // 64, column // 64) == (1, 6)
    assert colour[300:, :300].max() == 0  # where the map speaks against, the film is as it was


def refused() -> dict[str, tuple[bytes, str]]:
    """File -> what it holds, and a part of the reason."""
    rng = np.random.default_rng(0)
    photo = cv2.GaussianBlur(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8), (0, 0), 20)
    photo = cv2.normalize(photo, None, 0, 255, cv2.NORM_MINMAX)
    page = np.full((400, 300), 255, np.uint8)
    for line in range(20, 380, 12):
        cv2.putText(page, "findings and words", (10, line), cv2.FONT_HERSHEY_PLAIN, 0.8, 0, 1)
    screen = np.full((300, 300), 20, np.uint8)
    cv2.putText(screen, "menu", (40, 100), cv2.FONT_HERSHEY_PLAIN, 2, 240, 2)
    good = owners.png(film())
    return {
        "photo.png": (owners.png(photo), "in colour"),
        "photo.jpg": (cv2.imencode(".jpg", photo)[1].tobytes(), "in colour"),
        "page.png": (owners.png(page), "mostly white"),
        "screen.png": (owners.png(screen), "of one grey"),
        "blank.png": (owners.png(np.full((90, 90), 7, np.uint8)), "less of its range"),
        "dot.png": (owners.png(np.zeros((1, 1), np.uint8)), "less of its range"),
        "small.png": (owners.png(film(0, 40)), "the model needs 64"),
        "long.png": (owners.png(np.tile(film(), (1, 5))), "no film is that long"),
        "cut.png": (good[:-40], "truncated PNG"),
        "empty.png": (b"", "zero bytes"),
        "notes.txt": (b"to do", "neither PNG, JPEG nor DICOM"),
        "more.zip": (b"PK\\3\\4" + bytes(100), "an archive"),
        "no pixels.dcm": (owners.dicom(film()[:0]), ""),
        "ct.dcm": (owners.dicom(film(), Modality="CT"), "modality CT"),
        "side.dcm": (owners.dicom(film(), ViewPosition="LL"), "a lateral view"),
    }


def test_what_is_no_film_is_refused_by_name_and_the_rest_goes_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/deep er").mkdir(parents=True)
    for name, (content, _) in refused().items():
        Path("in", name).write_bytes(content)
    Path("in/deep er/ä.png").write_bytes(owners.png(film(1)))
    Path("in/scan").write_bytes(owners.dicom(film(2)))
    Path("in/.DS_Store").write_bytes(b"x")
    assert run("in", "in/nowhere.png") == 1
    found = answers()
    assert {name for name, line in found.items() if "findings" in line} == {"in/deep er/ä.png", "in/scan"}
    told = capsys.readouterr().err
    for name, (_, reason) in refused().items():
        assert reason in found[f"in/{name}"]["refused"], name
        assert f"in/{name}: " in told
    assert "No such file" in found["in/nowhere.png"]["refused"]
    assert len(found) == len(refused()) + 3
    assert sum(row["refused"] != "" for row in table()) == len(refused()) + 1


def test_a_picture_with_too_many_pixels_is_refused_unread(run: Run) -> None:
    Path("bomb.png").write_bytes(owners.png_of_chunks((20_000, 20_000), 8, b""))
    assert run("bomb.png") == 1
    assert "more pixels than" in answers()["bomb.png"]["refused"]


def test_a_file_without_rights_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # root, who runs tests too, may read everything

    Path("a.png").write_bytes(owners.png(film()))
    monkeypatch.setattr(Path, "read_bytes", denied)
    monkeypatch.setattr(running.Exported, "session", lambda *_: None)
    assert run("a.png") == 1
    assert answers()["a.png"]["refused"] == "cannot be read: Permission denied"


def test_a_film_twice_is_answered_once_or_said_to_be_the_same(run: Run) -> None:
    Path("in").mkdir()
    Path("in/a.png").write_bytes(owners.png(film()))
    shutil.copy("in/a.png", "in/b.png")
    assert run("in/a.png", "in", "./in/a.png") == 0
    assert answers()["in/b.png"]["same_as"] == "in/a.png"
    assert len(answers()) == 2


def test_a_second_call_finishes_what_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    for number in range(6):
        Path(f"in/{number}.png").write_bytes(owners.png(film(number)))
    Path("in/5.png").write_bytes(b"")
    real, read = predict_image.read, list[str]()

    def stops(path: Path, *rest: Any) -> predict_image.Film:
        if path.name == "3.png":
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(predict_image, "read", stops)
    assert run("in") == 2
    with Path("out/results.jsonl").open("a") as log:
        log.write('{"file": "in/2.png", "find')  # as a kill leaves it
    Path("in/0.png").write_bytes(owners.png(film(10)))  # changed since
    monkeypatch.setattr(predict_image, "read", lambda path, *rest: read.append(path.name) or real(path, *rest))
    assert run("in") == 1
    assert "0.png" in read
    assert {"3.png", "4.png", "5.png"} <= set(read)
    Path("in/5.png").write_bytes(owners.png(film(5)))
    read.clear()
    assert run("in") == 0
    assert read == ["5.png"]
    assert run("in") == 0
    assert read == ["5.png"]
    assert [row["file"] for row in table()].count("in/0.png") == 1
    assert len(table()) == 6


def test_answers_are_not_read_as_films(run: Run) -> None:
    bright = np.clip(film().astype(int) + 120, 0, 255).astype(np.uint8)
    Path("a.png").write_bytes(owners.png(bright))
    assert run(".", "--explain") == 0
    assert run(".", "--explain") == 0
    assert set(answers()) == {"a.png"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "model.json").unlink(), "holds no model.json"),
        (lambda folder: (folder / "model.json").write_text("{"), "holds no model.json that can be read"),
        (lambda folder: files.write_json({"format": 99}, folder / "model.json"), "of another version"),
        (lambda folder: (folder / "student.onnx").write_bytes(graph(True)), "is not the file that model.json lists"),
        (lambda folder: (folder / "student.onnx").unlink(), "copy the folder again"),
    ],
)
def test_a_changed_folder_is_refused(
    change: Any, reason: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    change(folder)
    (tmp_path / "a.png").write_bytes(owners.png(film()))
    words = [str(tmp_path / "a.png"), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert predict_image.main(words) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--population", "mars"], "knows here, there"),
        (["--file", "x.onnx"], "has student.onnx"),
        (["--file", "student_map.onnx"], "has student.onnx"),
        (["--population", ""], "knows here, there"),
    ],
)
def test_a_wrong_choice_is_told_what_there_is(
    words: list[str], reason: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.png").write_bytes(owners.png(film()))
    assert run("a.png", *words) == 2
    assert reason in capsys.readouterr().err


def test_it_needs_neither_torch_nor_pandas(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(owners.png(film()))
    code = (
        "import sys; from stages import predict_image; "
        f"assert predict_image.main(['a.png', '--model', {str(model)!r}]) == 0; "
        "print(sorted({'torch', 'pandas', 'pydicom', 'numba', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def bright(seed: int = 0) -> bytes:
    """A film that has a finding."""
    return owners.png((film(seed) * 0.6 + 100).astype(np.uint8))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("out", ["in", "in/out", "in/../in/out", "link/out"])
def test_answers_among_the_films_are_not_read_as_films(out: str, model: Path) -> None:
    Path("in").mkdir()
    Path("link").symlink_to("in")
    Path("in/a.png").write_bytes(bright())
    for code in (0, 0):
        assert predict_image.main(["in", "--explain", "--model", str(model), "--out", out]) == code
    assert set(answers(f"{out}/results.jsonl")) == {"in/a.png"}


def test_a_second_call_leaves_what_it_does_not_ask_for(run: Run) -> None:
    for name in "abc":
        Path(f"{name}.png").write_bytes(bright("abc".index(name)))
    Path("bad.png").write_bytes(b"")
    assert run("a.png", "bad.png") == 1
    assert run("b.png", "--explain") == 0
    Path("a.png").write_bytes(bright(7))
    assert run("c.png") == 0
    assert set(answers()) == {"a.png", "b.png", "bad.png", "c.png"}
    Path("a.png").unlink()
    assert run("a.png") == 1  # asked for, and gone
    assert "No such file" in answers()["a.png"]["refused"]


def test_a_film_is_known_however_it_is_named(run: Run) -> None:
    Path("in").mkdir()
    Path("in/a.png").write_bytes(bright())
    Path("link").symlink_to("in")
    for name in ("in", "in/a.png", Path("in").resolve(), "link", "in/../in/a.png"):
        assert run(name) == 0
    assert len(table()) == 1
    Path("twin.png").write_bytes(bright())
    assert run("twin.png") == 0
    assert answers()["twin.png"]["same_as"] == "in/a.png"


def test_folders_behind_links_are_looked_into_once(run: Run) -> None:
    Path("in").mkdir()
    Path("other").mkdir()
    Path("other/a.png").write_bytes(bright())
    Path("in/sub").symlink_to(Path("other").resolve())
    Path("in/loop").symlink_to(Path("in").resolve())
    assert run("in") == 0
    assert set(answers()) == {"in/sub/a.png"}


def test_maps_that_are_gone_are_made_again_and_those_of_an_older_film_go(run: Run) -> None:
    Path("a.png").write_bytes(bright())
    assert run("a.png", "--explain") == 0
    (before,) = answers()["a.png"]["maps"].values()
    shutil.rmtree("out/maps")
    assert run("a.png", "--explain") == 0
    assert Path("out", before).exists()
    Path("a.png").write_bytes(bright(3))
    assert run("a.png", "--explain") == 0
    (after,) = answers()["a.png"]["maps"].values()
    assert [path.name for path in Path("out/maps").iterdir()] == [Path(after).name] != [Path(before).name]


def test_names_of_any_bytes_and_length_are_answered(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    names = [b"a\xff.png", "é".encode() * 100 + b".png", b"line\nbreak\r.png", b"red\x1b[31m.png"]
    for name in names:
        Path(os.fsdecode(b"in/" + name)).write_bytes(bright())
    assert run("in", "--explain") == 0
    assert len(answers()) == len(names)
    assert len(table()) == len(names)
    assert "\x1b" not in capsys.readouterr().out


def test_the_same_film_in_many_folders_is_explained_by_threads_at_once(run: Run) -> None:
    for number in range(12):
        Path(f"in/{number}").mkdir(parents=True)
        Path(f"in/{number}/film.png").write_bytes(bright())
    assert run("in", "--explain", "--threads", "8") == 0
    assert len(table()) == 12


@pytest.mark.parametrize(
    "end", [b"\xff\xfe\0garbage\n", b'{"findings": {}}\n', b'{"findings": 3, "file": "x", "path": "x"}', b"[1]"]
)
def test_lines_that_are_no_answers_are_dropped(run: Run, end: bytes) -> None:
    Path("a.png").write_bytes(bright())
    Path("b.png").write_bytes(bright(1))
    assert run("a.png") == 0
    with Path("out/results.jsonl").open("ab") as log:
        log.write(end)
    assert run("b.png") == 0
    assert [row["file"] for row in table()] == ["a.png", "b.png"]
    assert not [path for path in Path("out").iterdir() if path.suffix == ".part"]


def test_a_last_line_without_its_end_is_kept(run: Run) -> None:
    Path("a.png").write_bytes(bright())
    Path("b.png").write_bytes(bright(1))
    assert run("a.png") == 0
    Path("out/results.jsonl").write_bytes(Path("out/results.jsonl").read_bytes().rstrip(b"\n"))
    assert run("b.png") == 0
    assert set(answers()) == {"a.png", "b.png"}


def test_two_calls_at_once_do_not_mix(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.png").write_bytes(bright())
    Path("out").mkdir()
    with filelock.FileLock("out/.lock"):
        assert run("a.png") == 2
    assert "another call writes to out" in capsys.readouterr().err


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("words", "reason"), [(["empty"], "no file in empty"), (["a.png", "--out", "a.png"], "--out")])
def test_nothing_to_do_and_no_place_for_answers_are_told(
    words: list[str], reason: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("a.png").write_bytes(bright())
    assert predict_image.main([*words, "--model", str(model)]) == 2
    assert reason in capsys.readouterr().err


def test_a_dicom_whose_header_cannot_be_decoded_is_refused(run: Run) -> None:
    content = owners.dicom(film(), Modality="DX").replace(b"CS\x02\x00DX", b"FD\x02\x00DX")
    Path("a.dcm").write_bytes(content)
    Path("hand.dcm").write_bytes(owners.dicom(film(), BodyPartExamined="HAND"))
    assert run("a.dcm", "hand.dcm") == 1
    assert "damaged DICOM" in answers()["a.dcm"]["refused"]
    assert "another part of the body (HAND)" in answers()["hand.dcm"]["refused"]


@pytest.mark.parametrize("key", ["files", "findings", "ingest", "populations", "size_px"])
def test_a_description_that_lacks_a_part_is_refused(
    key: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    about = files.read_json(folder / "model.json")
    files.write_json({name: value for name, value in about.items() if name != key}, folder / "model.json")
    (tmp_path / "a.png").write_bytes(bright())
    words = [str(tmp_path / "a.png"), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert predict_image.main(words) == 2
    assert f"lacks {key}" in capsys.readouterr().err
    files.write_json(about | {"findings": about["findings"][:2]}, folder / "model.json")
    assert predict_image.main(words) == 2
    assert "names other findings than student.onnx answers" in capsys.readouterr().err
