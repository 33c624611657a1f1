"""Class maps, their scores and controls."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest
import pytorch_grad_cam
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import nn
from torch.nn import functional
from trained import ARGS, KNOWN, SIZE, write_data

from stages import explain
from stages.core import files, params, plugins
from stages.explainers import grad_cam
from stages.judging import cells, class_maps, localisation, metrics
from stages.models import eeea_net_c2  # registers with timm
from stages.nets import activations, nets

THRESHOLDS = [0.1, 0.5]
NETS = ["resnet18", eeea_net_c2.ID, "densenet121", "swin_s3_tiny_224", "vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small nets are faster on one thread; what the stage sets is undone."""
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_deterministic)


# --- localisation ---------------------------------------------------------------------------------------------------


def box(x: float, y: float, width: float, height: float) -> np.ndarray:
    """One box's mask."""
    return localisation.box_mask(np.array([[x, y, width, height]]), SIZE)


def scores_of(enlarged: np.ndarray, mask: np.ndarray, quantile: float = 0.9) -> dict[str, float]:
    """One map against one mask, by name."""
    values = localisation.score([localisation.read(enlarged, quantile)], mask[None], THRESHOLDS)[0, 0]
    return dict(zip(localisation.score_names(THRESHOLDS), values, strict=True))


fractions = st.floats(0, 1, allow_nan=False)


@given(fractions, fractions, fractions, fractions)
@settings(max_examples=50, deadline=None)
def test_mask_covers_the_area_of_the_box(x: float, y: float, far_x: float, far_y: float) -> None:
    width, height = abs(far_x - x), abs(far_y - y)
    mask = box(min(x, far_x), min(y, far_y), width, height)
    assert mask.mean() == pytest.approx(width * height, abs=1e-9)


def test_overlapping_boxes_count_once() -> None:
    both = localisation.box_mask(np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.5, 0.5]]), SIZE)
    assert both.mean() == pytest.approx(0.75 * 0.5)


@pytest.mark.parametrize("cells_a_side", [1, 2, 7, SIZE])
def test_enlarge_equals_torch_bilinear(cells_a_side: int) -> None:
    maps = np.random.default_rng(0).random((3, cells_a_side, cells_a_side)).astype(np.float32)
    torchs = functional.interpolate(torch.from_numpy(maps)[None], size=SIZE, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(localisation.enlarge(maps, SIZE), torchs.numpy(), atol=1e-6)


def test_map_equal_to_the_box_scores_one() -> None:
    mask = box(0.25, 0.5, 0.25, 0.25)
    assert scores_of(mask, mask) == pytest.approx(dict.fromkeys(localisation.score_names(THRESHOLDS), 1))


def test_map_beside_the_box_scores_zero() -> None:
    found = scores_of(box(0.25, 0.5, 0.25, 0.25), box(0.5, 0.5, 0.25, 0.25))
    assert found == pytest.approx(dict.fromkeys(localisation.score_names(THRESHOLDS), 0))


@given(fractions, fractions, st.sampled_from([0.0, 3.5]))
@settings(max_examples=25, deadline=None)
def test_constant_map_scores_the_share_of_the_film_in_the_box(width: float, height: float, level: float) -> None:
    found = scores_of(np.full((SIZE, SIZE), level), box(0, 0, width, height))
    assert [found[name] for name in ("pointing", "energy", "iobb")] == pytest.approx([width * height] * 3)


@given(st.floats(1e-6, 1e6), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_scores_do_not_depend_on_a_maps_magnitude(factor: float, seed: int) -> None:
    enlarged = localisation.enlarge(np.random.default_rng(seed).random((1, 4, 4)), SIZE)[0]
    mask = box(0.1, 0.2, 0.35, 0.4)
    assert scores_of(enlarged * factor, mask) == pytest.approx(scores_of(enlarged, mask))


def test_tied_maxima_count_by_their_share_in_the_box() -> None:
    tied = box(0, 0, 0.25, 0.25) + box(0.5, 0.5, 0.25, 0.25)
    assert scores_of(tied, box(0, 0, 0.5, 0.5))["pointing"] == pytest.approx(0.5)


def test_detected_box_bounds_the_region_of_the_maximum_and_not_the_larger_one() -> None:
    strong, wide = box(0, 0, 0.125, 0.125), box(0.5, 0.5, 0.5, 0.5)
    assert scores_of(strong + 0.9 * wide, strong, quantile=0.7)["iobb"] == pytest.approx(1)


def test_iobb_is_the_share_of_the_detected_box_not_of_the_drawn_one() -> None:
    detected, drawn = box(0.25, 0.25, 0.5, 0.25), box(0.5, 0.25, 0.5, 0.75)
    found = scores_of(detected, drawn)
    assert found["iobb"] == pytest.approx(0.5)
    assert (found["iobb_over_0.1"], found["iobb_over_0.5"]) == (1, 0)


def test_map_with_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        localisation.read(np.full((4, 4), -1.0), 0.9)


def test_random_map_points_at_a_quarter_of_the_film_in_a_quarter_of_the_draws() -> None:
    masks = box(0, 0, 0.5, 0.5)[None]
    draw = localisation.score_random((4, 4), masks, 1000, 0.9, THRESHOLDS, np.random.default_rng(1))
    assert draw[0, 0] == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1000) ** 0.5)


def test_prior_of_a_film_holds_no_box_of_its_own_patient() -> None:
    masks = np.stack([box(0, 0, 0.5, 0.5), box(0.5, 0.5, 0.5, 0.5), box(0, 0.5, 0.5, 0.5), box(0, 0, 1, 1)])
    kinds, patients = np.array(["a", "a", "a", "b"]), np.array(["p", "p", "q", "q"])
    priors = localisation.prior_maps(masks, kinds, patients)
    np.testing.assert_allclose(priors[0], masks[2])
    np.testing.assert_allclose(priors[2], (masks[0] + masks[1]) / 2)
    assert np.isnan(priors[3]).all()


def intervals_of(scores: dict[str, np.ndarray], kinds: list[str], patients: list[int]) -> dict[str, Any]:
    """Intervals over 200 replicates."""
    weights = metrics.patient_weights(max(patients) + 1, 200, np.random.default_rng(0))
    return localisation.intervals(scores, np.array(kinds), np.array(patients), weights, 0.95)


def test_mean_over_findings_weighs_each_finding_the_same() -> None:
    found = intervals_of({"distilled": np.array([[1.0], [1.0], [1.0], [0.0]])}, ["a", "a", "a", "b"], [0, 1, 2, 3])
    assert found["mean"]["distilled"][0]["value"] == 0.5


def test_difference_to_itself_is_zero_without_spread() -> None:
    values = np.random.default_rng(0).random((6, 1))
    found = intervals_of({"distilled": values, "twin": values}, ["a"] * 6, list(range(6)))
    assert found["a"]["distilled_minus_twin"][0] == {"value": 0, "low": 0, "high": 0}


def test_interval_of_one_patient_is_null_and_of_two_is_not() -> None:
    values = np.array([[0.0], [1.0], [0.0]])
    found = intervals_of({"distilled": values}, ["a", "a", "b"], [0, 1, 1])
    assert found["b"]["distilled"][0] == {"value": 0, "low": None, "high": None}
    assert found["a"]["distilled"][0] == {"value": 0.5, "low": 0, "high": 1}


def test_difference_to_the_prior_uses_pairs_that_have_one() -> None:
    found = intervals_of(
        {"distilled": np.array([[1.0], [0.0]]), "prior": np.array([[0.25], [np.nan]])}, ["a", "a"], [0, 1]
    )
    assert found["a"]["distilled_minus_prior"][0]["value"] == 0.75
    alone = intervals_of({"distilled": np.ones((2, 1)), "prior": np.full((2, 1), np.nan)}, ["a", "a"], [0, 1])
    assert alone["mean"]["distilled_minus_prior"][0] == {"value": None, "low": None, "high": None}


# --- Grad-CAM -------------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """A net whose Grad-CAM is known in closed form: features, mean over space, linear."""

    feature_info = ({"module": "features", "num_chs": 4, "reduction": 8},)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 8, stride=8)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits


@pytest.fixture
def batch() -> torch.Tensor:
    """Two random inputs."""
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_map_of_a_linear_head_is_its_weighted_features(batch: torch.Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Pooled()
    with torch.no_grad():
        cells_of_map = 8 * 8
        wanted = torch.einsum("k,bkhw->bhw", net.head.weight[2] / cells_of_map, net.features(batch))
    np.testing.assert_allclose(grad_cam.maps(net, batch, [0, 2], 8)[:, 1], wanted.numpy(), atol=1e-7)


LIBRARY = {
    "grad_cam": pytorch_grad_cam.GradCAM,
    "grad_cam_pp": pytorch_grad_cam.GradCAMPlusPlus,
    "layer_cam": pytorch_grad_cam.LayerCAM,
    "score_cam": pytorch_grad_cam.ScoreCAM,
}


FEW_CHANNELS = (eeea_net_c2.ID, "vit_tiny_patch16_224")  # of which Score-CAM takes a pass each
COMPARED = [
    (explainer, name, stride)
    for explainer in LIBRARY
    for name in NETS
    for stride in (16, 32)
    if explainer != "score_cam" or (name in FEW_CHANNELS and stride == 16)
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("explainer", "name", "max_stride"), COMPARED)
def test_a_map_equals_the_librarys_once_rescaled(
    explainer: str, name: str, max_stride: int, batch: torch.Tensor
) -> None:
    extra = {"img_size": SIZE} if name.startswith(("swin", "vit")) else {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = timm.create_model(name, num_classes=4, **extra).eval()
    maps = plugins.load("explainers", explainer).maps(net, batch, [1, 3], max_stride)
    layer, channels = activations.target_layer(net, max_stride)
    for place, output in enumerate((1, 3)):
        reshape = lambda features: nets.as_grid(features, channels, layer, net)  # noqa: E731
        with LIBRARY[explainer](net, [net.get_submodule(layer)], reshape_transform=reshape) as library:
            wanted = library(batch, [ClassifierOutputTarget(output)] * len(batch))
        mine = scale_cam_image(scale_cam_image(np.maximum(maps[:, place], 0), (SIZE, SIZE)))
        np.testing.assert_allclose(mine, wanted, atol=1e-4 if explainer == "score_cam" else 1e-5)


@pytest.mark.parametrize("name", NETS)
def test_eigen_cam_is_the_librarys_projection_with_its_largest_value_positive(name: str, batch: torch.Tensor) -> None:
    extra = {"img_size": SIZE} if name.startswith(("swin", "vit")) else {}
    net = timm.create_model(name, num_classes=4, **extra).eval()
    maps = plugins.load("explainers", "eigen_cam").maps(net, batch, [0, 1], 16)
    np.testing.assert_array_equal(maps[:, 0], maps[:, 1])
    assert (maps[:, 0].max(axis=(1, 2)) >= -maps[:, 0].min(axis=(1, 2))).all()
    features, _ = activations.with_gradients(net, batch, [0], 16)
    plain = get_2d_projection(features.numpy())
    np.testing.assert_allclose(np.abs(maps[:, 0]), np.abs(plain), atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize(("max_stride", "side"), [(8, 8), (16, 4), (31, 4), (32, 2)])
def test_target_is_the_deepest_layer_of_at_most_that_stride(max_stride: int, side: int, batch: torch.Tensor) -> None:
    net = nets.build_model("eeea_net_c2", 3, SIZE).eval()
    assert grad_cam.maps(net, batch, [0], max_stride).shape == (2, 1, side, side)


def test_stride_that_no_layer_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"explain\.max_stride"):
        activations.target_layer(nets.build_model("resnet18", 3, SIZE), 1)


# --- the stage ------------------------------------------------------------------------------------------------------


def test_every_box_is_scored_or_counted_with_its_reason() -> None:
    boxes = pd.DataFrame({"image": list("aabbcdx"), "finding": ["A", "A", "A", "B", "A", "Z", "A"]})
    boxes[["x", "y", "width", "height"]] = 0.25
    kept, left_out = class_maps.select_boxes(boxes, list("abcd"), ["A", "B"], 2, ("test",))
    assert left_out["not on a test film"] == 1
    assert left_out["finding without output"] == 1
    assert kept["image"].nunique() == 2
    assert len(kept) + sum(left_out.values()) == len(boxes)


def run(root: Path, **changes: Any) -> tuple[Any, dict[str, bytes]]:
    """Run the stage in a folder: its report, and the bytes of its outputs."""
    defaults = {
        "threads": 1,
        "evaluate__replicates": 100,
        "explain__max_stride": 16,
        "explain__explainers": ["grad_cam", "eigen_cam"],
    }
    owners.project(root, **defaults | {"explain__iobb_thresholds": [0.25]} | changes)
    with contextlib.chdir(root):
        explain.main(ARGS)
    outputs = ["data/explain/c/maps.npz", "data/explain/c/pairs.parquet", "reports/explain/c.json"]
    written = {path: (root / path).read_bytes() for path in outputs}
    return json.loads(written["reports/explain/c.json"]), written


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, bytes]]:
    """A folder where the stage ran and only ChestX-ray14 has boxes, the report, and the bytes written."""
    root = tmp_path_factory.mktemp("boxed")
    write_data(root, boxed=True)
    return root, *run(root)


def test_stage_gives_the_same_bytes_again_and_others_with_another_seed(boxed: Any) -> None:
    root, _, first = boxed
    assert run(root)[1] == first
    other = run(root, seed=1)[1]
    assert other["reports/explain/c.json"] != first["reports/explain/c.json"]
    assert other["data/explain/c/maps.npz"] == first["data/explain/c/maps.npz"]


def test_report_scores_boxed_films_and_gives_null_with_a_reason_elsewhere(boxed: Any) -> None:
    _, report, _ = boxed
    scored, unscored = report["datasets"]["chestxray14"], report["datasets"]["padchest"]
    assert unscored["mean"] is None
    assert unscored["reason"].startswith("no box")
    assert set(scored["findings"]) == set(KNOWN)
    assert scored["grids"] == {"teacher": [4, 4], "twin": [4, 4], "distilled": [4, 4]}
    assert scored["left_out"] == {"not on a test film": 3, "finding without output": 0, "beyond max_boxes": 0}
    others = ("teacher", "twin", "random", "prior")
    makers = {"distilled", *others, *(f"distilled_minus_{other}" for other in others)}
    makers |= {"teacher_minus_random", "twin_minus_random"}
    for part in (scored["mean"], *scored["findings"].values()):
        assert set(part["scores"]) == {"pointing", "energy", "iobb", "iobb_over_0.25"}
        for by_maker in part["scores"].values():
            assert set(by_maker) == makers
            assert all(values["low"] <= values["value"] <= values["high"] for values in by_maker.values())
            for model in ("teacher", "twin", "distilled"):
                less = by_maker[model]["value"] - by_maker["random"]["value"]
                assert by_maker[f"{model}_minus_random"]["value"] == pytest.approx(less, abs=2e-6)


def test_films_of_another_split_bring_their_own_boxes(boxed: Any) -> None:
    data = boxed[0] / "data"
    labels = files.read_table(data / "labels/chestxray14.parquet")
    plan = class_maps.Plan(grad_cam.maps, params.parse(params.read(boxed[0] / "params.yaml")).explain, 100, 0.95, 0)
    boxes = labels[["image"]].assign(finding=KNOWN[0], x=0.1, y=0.1, width=0.5, height=0.5)
    for split in ("train", "test"):
        found = class_maps.films_of("chestxray14", split, data / "labels", data / "images", boxes, KNOWN, plan)
        inside = sorted(labels.loc[labels["split"] == split, "image"])
        assert list(found.table["image"]) == list(found.boxes["image"]) == inside
        assert inside
        assert found.left_out["not on a test film"] == len(labels) - len(inside)


def test_stored_maps_times_their_peaks_are_the_maps(boxed: Any) -> None:
    root = boxed[0]
    pairs, maps = files.read_table(root / "data/explain/c/pairs.parquet"), np.load(root / "data/explain/c/maps.npz")
    pair = pairs.iloc[4]
    net, _ = nets.load_model(root / "data/models/twin/c/eeea_net_c2/0")
    index = files.read_table(root / "data/images/chestxray14/index.parquet").set_index("image").loc[pair["image"]]
    film = np.load(root / f"data/images/chestxray14/shard_{index['shard']:04d}.npy")[index["row"]]
    wanted = grad_cam.maps(net, nets.to_input(film[None]), [KNOWN.index(pair["finding"])], 16)[0, 0]
    stored = maps[f"{pair['dataset']}.twin"][pair["place"]].astype(float) * pair["twin_peak"]
    np.testing.assert_allclose(stored, wanted, atol=1e-3 * wanted.max())


def test_run_without_any_box_has_no_score(tmp_path: Path) -> None:
    write_data(tmp_path, boxed=False)
    assert all(part["mean"] is None for part in run(tmp_path)[0]["datasets"].values())


def test_a_teacher_without_maps_is_left_out_with_its_reason_and_the_others_score_as_before(boxed: Any) -> None:
    root, _, _ = boxed
    report, _ = run(root)
    (root / "data/models/teacher/c/precomputed").mkdir()
    distilled = "data/{}/distilled/c/eeea_net_c2/{}/sigmoid_kd/0{}"
    for kind, ending in (("models", ""), ("predictions", ".parquet")):
        target = root / distilled.format(kind, "precomputed", ending)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.remove(target)
        target.symlink_to(root / distilled.format(kind, "resnet18", ending))
    arguments = ["precomputed" if word == "resnet18" else word for word in ARGS]
    with contextlib.chdir(root):
        explain.main(arguments)
    found = json.loads((root / "reports/explain/c.json").read_text())
    assert found["left_out"] == {"teacher": "a table of probabilities has no maps"}
    assert report["left_out"] == {}
    ours, theirs = (of["datasets"]["chestxray14"]["mean"]["scores"]["energy"] for of in (found, report))
    assert set(theirs) - set(ours) == {"teacher", "distilled_minus_teacher", "teacher_minus_random"}
    assert {maker: theirs[maker] for maker in ("twin", "distilled", "prior", "distilled_minus_twin")} == {
        maker: ours[maker] for maker in ("twin", "distilled", "prior", "distilled_minus_twin")
    }
    assert run(root)[0] == report  # the other tests read what this leaves


def test_table_of_an_undeclared_data_set_stops_the_stage(tmp_path: Path) -> None:
    (tmp_path / "data/boxes").mkdir(parents=True)
    for dataset in ("one", "two"):
        (tmp_path / f"data/boxes/{dataset}.parquet").touch()
    data, plan = tmp_path / "data", class_maps.Plan(grad_cam.maps, None, 100, 0.95, 0)
    with pytest.raises(cells.UndeclaredError, match="two"):
        class_maps.load_films(data / "labels", data / "images", data / "boxes", ["one"], KNOWN, plan)
