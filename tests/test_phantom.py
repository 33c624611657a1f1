"""The drawn films: they show what the truth says, they don't depend on chance outside the seed, and their files are
laid out as the owners' are."""

import csv
import gzip
import hashlib
import importlib.util
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages import phantom
from stages.core import findings, params, plugins
from stages.core.schema import Difficulty, Interval
from stages.harmonize import assign_split
from stages.phantom import layouts, truth
from stages.phantom.anatomy import Anatomy, shape_chest
from stages.phantom.drawing import LOOKS, draw
from stages.phantom.lesions import DRAWN, SHAPES, draw_lot

REPOSITORY = Path(__file__).parent.parent
DATASETS = ("chestxray14", "chexpert", "padchest")
SIZE_PX = 96
DIFFICULTY = Difficulty(
    contrast=Interval(low=0.8, high=1.0),
    size=Interval(low=1.0, high=1.2),
    noise=0.01,
    anatomy=1.0,
    distractors=0.0,
)
# What stays within its box; the others reshape the chest or lie all over it.
FOCAL = (
    "Bronchiectasis", "Consolidation", "Costophrenic_Angle_Blunting", "Effusion", "Fibrosis", "Granuloma", "Hernia",
    "Infiltration", "Lung_Lesion", "Lung_Opacity", "Mass", "Nodule", "Pleural_Other", "Pleural_Thickening",
    "Pneumonia", "Pneumothorax", "Tuberculosis",
)  # fmt: skip


def film(shown: set[str], seed: int, view: str = "PA", difficulty: Difficulty = DIFFICULTY) -> tuple[np.ndarray, Any]:
    anatomy = Anatomy.of(np.random.default_rng(seed), "FM"[seed % 2], difficulty)
    look = replace(LOOKS["chestxray14"], border=0.0)
    return draw(frozenset(shown), anatomy, view, look, difficulty, np.random.default_rng(seed), SIZE_PX)


def inside(boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
    mask = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
    for x, y, w, h in boxes:
        left, top = int(x * SIZE_PX), int(y * SIZE_PX)
        mask[top : top + max(1, round(h * SIZE_PX)), left : left + max(1, round(w * SIZE_PX))] = True
    return mask


def test_every_finding_of_a_data_set_that_is_drawn_can_be_drawn() -> None:
    stated = {finding for name in layouts.LAYOUTS for finding in plugins.load("datasets", name).TERMS}
    assert stated == DRAWN
    assert set(findings.vocabulary().names) >= DRAWN


def test_film_follows_from_the_seed_alone() -> None:
    first, again, other = film({"Mass"}, 3)[0], film({"Mass"}, 3)[0], film({"Mass"}, 4)[0]
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 0.02


@pytest.mark.parametrize("finding", sorted(DRAWN))
def test_finding_changes_its_box(finding: str) -> None:
    changes = []
    for seed in range(6):
        normal = film(set(), seed)[0]
        sick, boxes = film({finding}, seed)
        changes.append(np.abs(sick - normal)[inside(boxes[finding])].mean())
    assert np.mean(changes) > 0.015


@pytest.mark.parametrize("finding", FOCAL)
def test_focal_finding_leaves_the_rest_of_the_film(finding: str) -> None:
    for seed in range(6):
        normal = film(set(), seed)[0]
        sick, boxes = film({finding}, seed)
        change, box = np.abs(sick - normal), inside(boxes[finding])
        assert change[~box].mean() < 0.2 * change[box].mean()


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_boxes_lie_in_the_film(view: str) -> None:
    for seed in range(5):
        for finding, boxes in film(set(DRAWN), seed, view)[1].items():
            assert boxes, finding
            for x, y, w, h in boxes:
                assert min(x, y) >= 0, finding
                assert min(w, h) > 0, finding
                assert max(x + w, y + h) <= 1 + 1e-9, finding


def test_pixels_stay_in_the_unit_interval() -> None:
    for look in LOOKS.values():
        pixels, _ = draw(
            DRAWN,
            Anatomy.of(np.random.default_rng(0), "", DIFFICULTY),
            "AP",
            look,
            DIFFICULTY,
            np.random.default_rng(1),
            64,
        )
        assert pixels.dtype == np.float32
        assert pixels.min() >= 0
        assert pixels.max() <= 1


def test_a_finding_is_drawn_alike_beside_another() -> None:
    for seed in range(5):
        assert film({"Nodule"}, seed)[1]["Nodule"] == film({"Nodule", "Granuloma"}, seed)[1]["Nodule"]


def test_contrast_makes_a_mass_denser() -> None:
    faint = DIFFICULTY.model_copy(update={"contrast": Interval(low=0.3, high=0.3)})
    dense = DIFFICULTY.model_copy(update={"contrast": Interval(low=0.9, high=0.9)})
    for seed in range(3):
        normal = film(set(), seed)[0]
        box = inside(film({"Mass"}, seed)[1]["Mass"])
        gain = [(film({"Mass"}, seed, difficulty=d)[0] - normal)[box].mean() for d in (faint, dense)]
        assert gain[1] > 2 * gain[0]


def test_cardiomegaly_is_wider_than_normal_even_beside_emphysema() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        chest = shape_chest(Anatomy.of(rng, "M", DIFFICULTY), "PA", rng)
        for name, shape in SHAPES.items():
            if name in ("Emphysema", "Cardiomegaly"):
                shape(chest, draw_lot(rng, DIFFICULTY))
        assert chest.cardiothoracic >= 0.55


def test_patients_hearts_differ_by_the_spread_in_params() -> None:
    def widths(spread: float) -> np.ndarray:
        difficulty = DIFFICULTY.model_copy(update={"anatomy": spread})
        return np.array([Anatomy.of(np.random.default_rng(s), "M", difficulty).cardiothoracic for s in range(300)])

    assert widths(1.0).std() == pytest.approx(2 * widths(0.5).std(), rel=0.15)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="Measles"):
        film({"Measles"}, 0)
    with pytest.raises(ValueError, match="lateral"):
        film(set(), 0, view="lateral")


def test_chosen_rows_are_whole_patients_with_enough_positives() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(400), rng.integers(1, 5, 400))
    positive = rng.random((len(patients), 3)) < (0.3, 0.05, 0.01)
    chosen = truth.choose_rows(patients, positive, ("A", "B", "C"), 200, 5, np.random.default_rng(1))
    assert (positive[chosen].sum(0) >= 5).all()
    assert set(np.flatnonzero(np.isin(patients, patients[chosen]))) == set(chosen)
    assert 200 <= len(chosen) < 205
    other = truth.choose_rows(patients, positive, ("A", "B", "C"), 200, 5, np.random.default_rng(2))
    assert set(chosen) != set(other)


def test_too_few_positives_are_named() -> None:
    positive = np.array([[True, False], [True, True]])
    with pytest.raises(ValueError, match="B has 1"):
        truth.choose_rows(np.arange(2), positive, ("A", "B"), 2, 2, np.random.default_rng(0))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="need 4 images, got 2"):
        truth.choose_rows(np.arange(4), np.eye(4, dtype=bool), tuple("ABCD"), 2, 1, np.random.default_rng(0))


def test_no_patient_dominates() -> None:
    rows = pd.DataFrame({"patient": ["a"] * 50 + ["b"] * 2})
    parts = np.array(["train"] * 51 + [""], dtype=object)
    kept = truth.cap_per_patient(rows, parts, 4, 0, "x")
    assert (rows["patient"].iloc[kept] == "a").sum() == 4
    assert 51 not in kept


def test_hidden_findings_have_the_rates_in_params() -> None:
    rng = np.random.default_rng(0)
    kinds = (findings.BLANK, findings.UNCERTAIN, findings.ABSENT, findings.PRESENT)
    facts = rng.choice(kinds, size=(40000, 2)).astype(np.int8)
    present = truth.decide_truth(facts, np.zeros(40000, bool), np.array([0.3, 0.03]), 0.05, 0.4, 0.0, rng)
    assert present[facts == findings.BLANK].mean() == pytest.approx(0.05, rel=0.1)
    assert present[facts == findings.UNCERTAIN].mean() == pytest.approx(0.4, rel=0.05)
    assert present[facts == findings.ABSENT].max() == 0
    assert present[facts == findings.PRESENT].min() == 1
    common, rare = (present[facts[:, k] == findings.BLANK, k].mean() for k in range(2))
    assert common == pytest.approx(10 * rare, rel=0.25)


def test_unchanged_hides_one_finding_at_its_rate() -> None:
    facts = np.full((20000, 3), findings.BLANK, np.int8)
    is_unchanged = np.arange(20000) % 2 == 0
    rng = np.random.default_rng(0)
    present = truth.decide_truth(facts, is_unchanged, np.array([0.2, 0.1, 0.1]), 0.0, 0.0, 0.3, rng)
    assert present.sum(1).max() == 1
    assert present[is_unchanged].sum() == pytest.approx(0.3 * 10000, rel=0.05)
    assert present[~is_unchanged].sum() == 0


def test_public_labels_err_at_the_rates_in_params() -> None:
    rng = np.random.default_rng(0)
    present = (rng.random((60000, 2)) < (0.4, 0.05)).astype(np.int8)
    facts = np.where(present == 1, findings.PRESENT, findings.ABSENT).astype(np.int8)
    facts[:3000] = findings.UNCERTAIN
    parts = np.array(["train", "test"], dtype=object)[np.arange(60000) % 4 // 3]
    is_mined = np.arange(60000) % 5 != 0
    public = truth.publish(present, facts, parts, is_mined, findings.ABSENT, 0.2, 0.5, rng)
    errs = (parts == "train") & is_mined & (np.arange(60000) >= 3000)
    for k in range(2):
        true = present[errs, k] == 1
        says = public[errs, k] == findings.PRESENT
        assert (true & ~says).sum() == pytest.approx(0.2 * true.sum(), rel=0.15)
        assert (~true & says).sum() == pytest.approx(0.5 * (true & says).sum(), rel=0.1)
    is_test = parts == "test"
    assert np.array_equal(public[is_test] == findings.PRESENT, present[is_test] == 1)
    spared = ~is_test & ~is_mined
    assert np.array_equal(public[spared], facts[spared])
    assert (public[:3000][~is_test[:3000]] == findings.UNCERTAIN).all()


# What the stage writes, from small runs on the real tables


def small_params(folder: Path, seed: int) -> None:
    yaml = YAML()
    values = yaml.load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values["seed"], values["workers"] = seed, 1
    values["phantom"] |= {"size_px": 48, "min_positives": 2, "images_per_patient": 3}
    for dataset in DATASETS:
        values["phantoms"][dataset] = {"train_val_images": 260, "test_images": 70}
        values["datasets"][dataset]["val_fraction"] = 0.25
    folder.mkdir()
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def digest(root: Path) -> dict[str, str]:
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def run(folder: Path, seed: int, *datasets: str) -> Path:
    small_params(folder, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for dataset in datasets:
            phantom.main(["--dataset", dataset])
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("phantom") / "run", 17, *DATASETS)


def read_truth(data: Path, dataset: str) -> pd.DataFrame:
    return pd.read_parquet(data / "truth" / f"{dataset}.parquet").set_index("image")


def owner_table(data: bytes, name: str, columns: dict[str, str]) -> pd.DataFrame:
    """A table as `harmonize` hands it to a data set."""
    whole = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    table = pd.DataFrame(
        {
            c: whole[c] if kind == "text" else pd.to_numeric(whole[c], errors="coerce")
            for column, kind in columns.items()
            for c in column.split("|")[:1]
        }
    )
    table.attrs.update(file=name, columns=list(whole.columns))
    return table


def real_header(dataset: str) -> list[str]:
    layout = layouts.LAYOUTS[dataset]({})
    spec = importlib.util.find_spec(layouts.PACKAGE)
    with gzip.open(Path(spec.submodule_search_locations[0]) / "data" / f"{layout.table_name}.gz", "rt") as file:
        return next(csv.reader(file))


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_finding_is_in_every_split(data: Path, dataset: str) -> None:
    table = read_truth(data, dataset)
    wanted = list(
        YAML().load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))["datasets"][dataset]["findings"]
    )
    assert (table.groupby("split")[wanted].sum() >= 2).all(axis=None)
    assert set(table["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_splits_share_no_patient(data: Path, dataset: str) -> None:
    assert (
        len(read_truth(data, dataset)[["patient", "split"]].drop_duplicates())
        == read_truth(data, dataset)["patient"].nunique()
    )


@pytest.mark.parametrize("dataset", DATASETS)
def test_truth_lies_outside_the_root(data: Path, dataset: str) -> None:
    assert (data / "truth" / f"{dataset}.parquet").is_file()
    assert not [name for name in digest(data / "phantom" / dataset) if "truth" in name or name.endswith(".parquet")]


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_true_finding_has_a_box(data: Path, dataset: str) -> None:
    table = read_truth(data, dataset)
    names = list(plugins.load("datasets", dataset).TERMS)
    for _, row in table.iterrows():
        assert set(json.loads(row["boxes"])) == {name for name in names if row[name] == 1}


def test_two_runs_write_the_same_bytes(data: Path, tmp_path: Path) -> None:
    again = run(tmp_path / "again", 17, "chestxray14")
    assert digest(again / "truth")["chestxray14.parquet"] == digest(data / "truth")["chestxray14.parquet"]
    root = Path("phantom") / "chestxray14"
    assert digest(again / root) == digest(data / root)


def test_films_depend_on_the_seed_and_not_on_the_workers() -> None:
    layout = layouts.LAYOUTS["chestxray14"](plugins.load("datasets", "chestxray14").TERMS)
    rows = pd.DataFrame({"image": [f"{i}.png" for i in range(70)], "patient": "p", "view": "PA", "sex": "F"})
    shown = np.eye(70, len(layout.names), dtype=np.int8)
    section = params.parse(params.read(REPOSITORY / "params.yaml")).phantom.model_copy(update={"size_px": 32})

    def films(seed: int, workers: int) -> tuple[list[bytes], list[layouts.Boxes]]:
        return phantom.draw_films(layout, rows, rows, shown, section, "chestxray14", seed, workers)

    assert films(0, 1) == films(0, 2)
    assert not set(films(0, 1)[0]) & set(films(1, 1)[0])


@pytest.mark.parametrize("name", ["chexpert", "padchest"])
def test_archives_of_the_same_rows_have_the_same_bytes(name: str, tmp_path: Path) -> None:
    layout = layouts.LAYOUTS[name]({})
    table = pd.DataFrame(
        {
            "Path": [f"C/train/patient{i}/study1/view1_frontal.jpg" for i in range(4)],
            "ImageID": list("abcd"),
            "ImageDir": "7",
        }
    )
    drawn = layouts.Drawn(table, np.array(["train", "test"] * 2, dtype=object), [b"1", b"2", b"3", b"4"], [{}] * 4)
    for folder in ("one", "two"):
        layout.write(tmp_path / folder, drawn)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_chestxray14_is_laid_out_as_nih_does(data: Path) -> None:
    root = data / "phantom" / "chestxray14"
    table = read_truth(data, "chestxray14")
    entries = pd.read_csv(root / "Data_Entry_2017_v2020.csv", dtype=str)
    with (root / "Data_Entry_2017_v2020.csv").open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == real_header("chestxray14")
    lists = {p: (root / f"{p}_list.txt").read_text(encoding="utf-8").split() for p in ("train_val", "test")}
    assert sorted(lists["train_val"] + lists["test"]) == sorted(entries["Image Index"])
    assert set(lists["test"]) == set(table.index[table["split"] == "test"])
    channels = set()
    with tarfile.open(root / "images_001.tar.gz") as archive:
        members = archive.getmembers()
        assert {m.mtime for m in members} == {0}
        assert sorted(m.name for m in members) == sorted("images/" + entries["Image Index"])
        for member in members:
            pixels = cv2.imdecode(np.frombuffer(archive.extractfile(member).read(), np.uint8), cv2.IMREAD_UNCHANGED)
            assert pixels.dtype == np.uint8
            channels.add(pixels.shape[2:])
    assert channels == {(), (4,)}


def test_nih_boxes_are_those_of_the_test_films(data: Path) -> None:
    root = data / "phantom" / "chestxray14"
    lines = (root / "BBox_List_2017.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    table = read_truth(data, "chestxray14")
    listed = sorted((image, finding, *map(float, box)) for image, finding, *box in csv.reader(lines[1:]))
    spelling = layouts.ChestXray14.boxed
    expected = sorted(
        (image, spelling[finding], *(1024 * side for side in box))
        for image, boxes in table.loc[table["split"] == "test", "boxes"].items()
        for finding, found in json.loads(boxes).items()
        if finding in spelling
        for box in found
    )
    assert [row[:2] for row in listed] == [row[:2] for row in expected]
    assert np.allclose([row[2:] for row in listed], [row[2:] for row in expected], atol=0.01)
    assert "Infiltrate" in {row[1] for row in listed}


def test_chexpert_is_laid_out_as_stanford_does(data: Path) -> None:
    plugin = plugins.load("datasets", "chexpert")
    table = read_truth(data, "chexpert")
    with zipfile.ZipFile(data / "phantom" / "chexpert" / "CheXpert-v1.0-small.zip") as archive:
        csvs = {n: archive.read(f"CheXpert-v1.0-small/{n}") for n in (plugin.TRAIN, plugin.VALID)}
        images = [name for name in archive.namelist() if name.endswith(".jpg")]
        pixels = cv2.imdecode(np.frombuffer(archive.read(images[0]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (48, 48)
    assert {plugin.image_key(name) for name in images} == set(table.index)
    for text in csvs.values():
        assert next(csv.reader(io.StringIO(text.decode()))) == real_header("chexpert")
    valid = pd.read_csv(io.BytesIO(csvs[plugin.VALID]))
    assert set(np.unique(valid.iloc[:, 5:].to_numpy())) == {0.0, 1.0}
    assert valid["Path"].str.match(r"CheXpert-v1.0-small/valid/patient6454\d/study\d+/view\d+_frontal.jpg").any()
    train = pd.read_csv(io.BytesIO(csvs[plugin.TRAIN]))
    assert train.iloc[:, 5:].isna().any(axis=None)
    assert (train.iloc[:, 5:] == -1).any(axis=None)


def test_padchest_is_laid_out_as_bimcv_does(data: Path) -> None:
    root = data / "phantom" / "padchest"
    with gzip.open(root / f"{layouts.PadChest.table_name}.gz", "rt", encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == real_header("padchest")
    entries = pd.read_csv(root / f"{layouts.PadChest.table_name}.gz", dtype=str, keep_default_na=False).set_index(
        "ImageID"
    )
    assert {p.stem for p in root.glob("*.zip")} == set(entries["ImageDir"])
    depths = set()
    for path in root.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
                bits = int(entries["BitsStored_DICOM"][name])
                assert pixels.dtype == np.uint16
                assert 2 ** (bits - 1) < pixels.max() < 2**bits
                depths.add(bits)
    assert depths == {10, 12}


@pytest.mark.parametrize("dataset", DATASETS)
def test_harmonized_splits_and_test_labels_are_the_truth(data: Path, dataset: str) -> None:
    plugin = plugins.load("datasets", dataset)
    table, root = read_truth(data, dataset), data / "phantom" / dataset
    contents: dict[str, bytes] = {}
    for name in plugin.TABLES:
        if dataset == "chexpert":
            with zipfile.ZipFile(root / "CheXpert-v1.0-small.zip") as archive:
                contents[name] = archive.read(f"CheXpert-v1.0-small/{name}")
        elif dataset == "padchest":
            contents[name] = gzip.decompress((root / f"{name}.gz").read_bytes())
        else:
            contents[name] = (b"Image Index\n" if name.endswith(".txt") else b"") + (root / name).read_bytes()
    tables = {name: owner_table(contents[name], name, columns) for name, columns in plugin.TABLES.items()}
    rows = plugin.harmonize(tables)[0].set_index("image").loc[table.index]
    names, is_test = list(plugin.TERMS), (table["split"] == "test").to_numpy()
    assert (rows["dropped"] == "").all()
    choices = params.read(data.parent / "params.yaml")["datasets"][dataset]
    split = assign_split(rows, dataset, choices["split"], choices["val_fraction"], choices["test_fraction"])
    assert np.array_equal(split, table["split"])
    assert np.array_equal(rows.loc[is_test, names].to_numpy(), table.loc[is_test, names].to_numpy())
    says = rows.loc[~is_test, names].to_numpy() == findings.PRESENT
    is_true = table.loc[~is_test, names].to_numpy() == 1
    assert 0 < (says & ~is_true).sum() < (says & is_true).sum()
