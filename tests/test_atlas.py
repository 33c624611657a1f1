"""The atlas: outcomes at the frozen threshold, which films are shown, and their pictures."""

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest
from PIL import Image
from trained import ARGS, KNOWN, SIZE, write_data

from stages import atlas
from stages.core import files, findings, params
from stages.judging import class_maps, gallery

IDS = {"teacher": "teacher/c/resnet18", "twin": "twin/c/eeea_net_c2/0",
       "distilled": "distilled/c/eeea_net_c2/resnet18/sigmoid_kd/0"}  # fmt: skip
THRESHOLD, TEMPERATURE, BIAS = 0.25, 2.0, 0.5


def films_of(facts: list[int], boxed: list[int]) -> class_maps.Films:
    """Films named 0, 1, ... with one finding."""
    names = [str(number) for number in range(len(facts))]
    table = pd.DataFrame({"image": names, "Nodule": facts})
    drawn = pd.DataFrame({"image": [names[i] for i in boxed], "finding": "Nodule"})
    return class_maps.Films(table, None, drawn, {})  # type: ignore[arg-type]  # no pixels are read


def logits_of(*values: float) -> pd.DataFrame:
    """Logits of the films 0, 1, ..."""
    return pd.DataFrame({"Nodule": values}, index=[str(number) for number in range(len(values))])


def test_a_film_is_called_from_the_threshold_on_and_unknown_labels_are_no_case() -> None:
    facts = [1, 1, 0, findings.IMPLIED, 0, findings.UNCERTAIN, findings.MISSING]
    found = gallery.outcomes(films_of(facts, [0, 1]), logits_of(3, 0, 2, 1, -1, 9, 9), {"Nodule": 2.0})
    assert dict(zip(found["image"], found["outcome"], strict=True)) == {
        "0": "true positive",
        "1": "false negative",
        "2": "false positive",
        "3": "true negative",
        "4": "true negative",
    }


def test_present_finding_without_a_box_is_not_shown_where_others_have_one() -> None:
    logits = logits_of(3, 2, 1)
    assert set(gallery.outcomes(films_of([1, 1, 0], [0]), logits, {"Nodule": 0.0})["image"]) == {"0", "2"}
    assert set(gallery.outcomes(films_of([1, 1, 0], []), logits, {"Nodule": 0.0})["image"]) == {"0", "1", "2"}


def test_gallery_prefers_different_findings_and_never_repeats_a_film() -> None:
    rows = [(f"a{i}", "A", "true positive") for i in range(50)]
    rows += [("b", "B", "true positive"), ("a0", "A", "true negative")]
    candidates = pd.DataFrame(rows, columns=["image", "finding", "outcome"])
    chosen = gallery.pick_gallery(candidates, 2, ("test",))
    positives = chosen[chosen["outcome"] == "true positive"]
    assert set(positives["finding"]) == {"A", "B"}
    assert chosen["image"].is_unique
    again = gallery.pick_gallery(candidates.sample(frac=1, random_state=0), 2, ("test",))
    pd.testing.assert_frame_equal(again, chosen)
    other = gallery.pick_gallery(candidates, 2, ("control",))
    assert not other.equals(chosen)


def test_atlas_has_each_finding_and_outcome_in_order_whatever_the_order_of_the_rows() -> None:
    rows = [(f"{i}", finding, gallery.OUTCOMES[i % 3]) for finding in "BA" for i in range(30)]
    candidates = pd.DataFrame(rows, columns=["image", "finding", "outcome"])
    chosen = gallery.pick_atlas(candidates, 2, ("test",))
    assert list(chosen["finding"]) == ["A"] * 6 + ["B"] * 6
    assert list(chosen["outcome"][:6]) == [outcome for outcome in gallery.OUTCOMES[:3] for _ in range(2)]
    again = gallery.pick_atlas(candidates.sample(frac=1, random_state=0), 2, ("test",))
    pd.testing.assert_frame_equal(again, chosen)


def chose(threshold: float | None, reason: str | None) -> dict[str, Any]:
    """What operate writes of a model and finding, as far as the atlas reads it."""
    scale = {"temperature": TEMPERATURE, "bias": BIAS} if threshold is not None else {"temperature": None, "bias": None}
    return {"threshold": threshold, "reason": reason, **scale}


def run(root: Path, without: tuple[str, ...] = ("Nodule",)) -> tuple[dict[str, Any], bytes]:
    """Run the stage in a folder: what it wrote by data set, and the gallery's bytes."""
    owners.project(root, threads=1, explain__max_stride=16, explain__gallery_per_outcome=1)
    datasets = list(params.read(root / "params.yaml")["datasets"])
    for dataset in datasets:
        models = {
            finding: dict.fromkeys(IDS, chose(None, "too few") if finding in without else chose(THRESHOLD, None))
            for finding in KNOWN
        }
        about = {"ids": IDS, "findings": {finding: {"models": of_finding} for finding, of_finding in models.items()}}
        files.write_json(about, root / f"reports/operating/{dataset}.json")
    with contextlib.chdir(root):
        atlas.main(ARGS)
    written = {dataset: json.loads((root / f"reports/atlas/{dataset}.json").read_text()) for dataset in datasets}
    return written, (root / "reports/gallery.png").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], bytes]:
    """A folder where the stage ran, and what it wrote."""
    root = tmp_path_factory.mktemp("atlas")
    write_data(root, boxed=True)
    return root, *run(root)


def test_cases_are_called_as_their_logit_and_label_say_and_probabilities_are_calibrated(made: Any) -> None:
    root, written, _ = made
    logits = files.read_table(root / f"data/predictions/{IDS['distilled']}.parquet")
    for dataset, found in written.items():
        labels = files.read_table(root / f"data/labels/{dataset}.parquet").set_index("image")
        of_dataset = logits[logits["dataset"] == dataset].set_index("image")
        assert {case["finding"] for case in found["cases"]} == {"Cardiomegaly", "Effusion"}
        assert found["reasons"] == {"Nodule": "too few"}
        for case in found["cases"]:
            logit, label = (table.loc[case["image"], case["finding"]] for table in (of_dataset, labels))
            assert labels.loc[case["image"], "split"] == "test"
            assert case["outcome"] == f"{'true' if (logit >= THRESHOLD) == bool(label) else 'false'} " + (
                "positive" if logit >= THRESHOLD else "negative"
            )
            wanted = 1 / (1 + np.exp(-(logit / TEMPERATURE + BIAS)))
            assert case["probabilities"]["distilled"] == pytest.approx(wanted, abs=1e-6)


def test_a_picture_is_the_film_then_each_models_map_and_all_show_the_box(made: Any) -> None:
    root, written, _ = made
    boxes = files.read_table(root / "data/boxes/chestxray14.parquet").set_index(["image", "finding"])
    case = next(
        case for case in written["chestxray14"]["cases"] if (case["image"], case["finding"]) in boxes.index
    )  # fmt: skip
    picture = Image.open(io.BytesIO(base64.b64decode(case["picture"].removeprefix("data:image/webp;base64,"))))
    assert picture.size == (4 * SIZE, SIZE)
    assert written["chestxray14"]["models"] == ["teacher", "twin", "distilled"]
    x, y, _, height = boxes.loc[[(case["image"], case["finding"])], class_maps.BOX].to_numpy()[0] * SIZE
    corner = np.asarray(picture).astype(int)[round(y + height / 2)]
    for tile in range(4):
        red, green, blue = corner[tile * SIZE + round(x)]
        assert blue - red > 30
        assert green - red > 30


def test_a_models_maps_of_a_finding_share_a_scale_and_a_faint_map_stays_faint() -> None:
    table = pd.DataFrame({"image": list("abc")})
    films = class_maps.Films(table, SIZES, pd.DataFrame(columns=["image", "finding", *class_maps.BOX]), {})
    rows = pd.DataFrame({"image": list("abc"), "finding": list("AAB"), "outcome": gallery.OUTCOMES[0]})
    with pytest.MonkeyPatch.context() as patched:
        strength = np.array([1.0, 10.0, 2.0])[:, None, None] * np.ones((1, 2, 2))
        patched.setattr(gallery, "make_maps", lambda *_: strength)
        cases = gallery.Cases(rows, films, {"distilled": None}, None)  # type: ignore[dict-item, arg-type]
    assert cases.maps["distilled"].max(axis=(1, 2)) == pytest.approx([0.1, 1, 1])


class _Films:
    """Three grey films."""

    def take(self, places: list[int]) -> np.ndarray:
        return np.full((len(places), 4, 4), 100, np.uint8)


SIZES: Any = _Films()


def test_stage_gives_the_same_bytes_again(made: Any) -> None:
    root, *first = made
    assert list(run(root)) == first


def test_gallery_is_small_and_a_run_without_a_threshold_says_why_it_shows_nothing(made: Any, tmp_path: Path) -> None:
    assert made[2].startswith(b"\x89PNG")
    assert len(made[2]) <= gallery.GALLERY_BYTES
    write_data(tmp_path, boxed=False)
    written, picture = run(tmp_path, without=tuple(KNOWN))
    assert all(found["cases"] == [] and set(found["reasons"]) == set(KNOWN) for found in written.values())
    assert picture.startswith(b"\x89PNG")


def test_gallery_that_cannot_be_small_enough_is_refused() -> None:
    figure = gallery.Figure(figsize=(1, 1))
    with pytest.raises(ValueError, match="gallery_per_outcome"):
        gallery.render(figure, 10)


def test_a_blank_map_leaves_the_film_as_it_is() -> None:
    film = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert (gallery._over(film, 0) == film[..., None]).all()
