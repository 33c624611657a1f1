"""Do maps explain: deletion and insertion, agreement, and randomised weights, on nets that are known in closed form."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.core import findings, plugins, schema
from stages.judging import agreement, class_maps, faithfulness, sanity, soundness
from stages.nets import nets

SIZE = 32


class Corner(nn.Module):
    """A net whose logit is the brightness of the film's upper left corner: a planted shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Two logits: of the corner, and of the middle."""
        corner, middle = images[:, 0, :8, :8].mean(dim=(1, 2)), images[:, 0, 12:20, 12:20].mean(dim=(1, 2))
        return self.slope * torch.stack([corner, middle], dim=1)


def films(count: int = 6) -> np.ndarray:
    """Noise, with a bright corner."""
    made = np.random.default_rng(0).integers(60, 120, (count, SIZE, SIZE), np.uint8)
    made[:, :8, :8] = 250
    return made


def pointing_at(row: int, column: int, count: int = 6) -> np.ndarray:
    """Maps of 4x4 cells with one strong cell."""
    maps = np.zeros((count, 4, 4))
    maps[:, row, column] = 1
    return maps


def test_a_planted_shortcut_is_found_by_deletion_and_insertion() -> None:
    rng, outputs = np.random.default_rng(0), np.zeros(6, np.int64)
    right = faithfulness.areas(Corner(), films(), outputs, faithfulness.order_of(pointing_at(0, 0), rng))
    wrong = faithfulness.areas(Corner(), films(), outputs, faithfulness.order_of(pointing_at(3, 3), rng))
    assert (right.deletion <= wrong.deletion).all()
    assert (right.insertion >= wrong.insertion).all()
    assert right.deletion.mean() < wrong.deletion.mean()
    assert right.insertion.mean() > wrong.insertion.mean()


def test_a_model_that_does_not_use_the_corner_is_not_accused() -> None:
    """Of the other output, whose logit is the middle's, deleting the corner first is no better than another order."""
    rng, outputs = np.random.default_rng(0), np.ones(6, np.int64)
    corner = faithfulness.areas(Corner(), films(), outputs, faithfulness.order_of(pointing_at(0, 0), rng))
    chance = [
        faithfulness.areas(Corner(), films(), outputs, faithfulness.order_of(np.zeros((6, 4, 4)), rng))
        for _ in range(30)
    ]
    spread = np.std([areas.deletion.mean() for areas in chance])
    assert abs(corner.deletion.mean() - np.mean([areas.deletion.mean() for areas in chance])) < 4 * spread


def test_areas_of_a_hand_made_case() -> None:
    """The corner is one of 16 cells: taken first, the probability is the blurred film's from the first cell on."""
    rng, outputs = np.random.default_rng(0), np.zeros(6, np.int64)
    made = faithfulness.areas(Corner(), films(), outputs, faithfulness.order_of(pointing_at(0, 0), rng))
    with torch.no_grad():
        whole, blurred = (
            torch.sigmoid(Corner()(nets.to_input(of))[:, 0]).double().numpy()
            for of in (films(), faithfulness.blurred(films()))
        )
    step = (whole - blurred) / (2 * faithfulness.STEPS)  # the triangle of the first
    np.testing.assert_allclose(made.deletion, blurred + step, atol=1e-6)
    np.testing.assert_allclose(made.insertion, whole - step, atol=1e-6)


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_ranks_follow_the_map_and_ties_are_broken_by_seed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 3, (5, 4, 4)).astype(float)
    ranks = faithfulness.order_of(maps, np.random.default_rng(seed))
    for of_map, of_ranks in zip(maps, ranks, strict=True):
        assert sorted(of_ranks.ravel()) == list(range(16))
        assert (np.diff(of_map.ravel()[np.argsort(of_ranks.ravel())]) <= 0).all()
    np.testing.assert_array_equal(ranks, faithfulness.order_of(maps, np.random.default_rng(seed)))
    assert not np.array_equal(
        faithfulness.order_of(np.zeros((5, 4, 4)), rng), faithfulness.order_of(np.zeros((5, 4, 4)), rng)
    )


def test_a_map_agrees_with_itself_and_not_with_another() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((40, 8, 8))
    np.testing.assert_allclose(agreement.likeness(maps, maps, 64), 1, atol=1e-9)
    spearman, overlap, alike = agreement.likeness(maps, rng.random((40, 8, 8)), 64).mean(axis=0)
    assert abs(spearman) < 0.1
    assert overlap == pytest.approx(agreement.TOP / (2 - agreement.TOP), abs=0.03)  # of two random tenths
    assert alike < 0.3


def test_a_map_that_is_even_has_no_likeness() -> None:
    maps = np.random.default_rng(0).random((2, 8, 8))
    maps[0] = 0
    found = agreement.likeness(maps, maps, 64)
    assert np.isnan(found[0]).all()
    assert not np.isnan(found[1]).any()


def test_another_film_is_of_the_same_finding_and_another_patient() -> None:
    keys, patients = np.array(["a", "a", "b", "a", "c", "c"]), np.array([1, 1, 1, 2, 3, 3])
    assert agreement.of_another_film(keys, patients).tolist() == [3, 3, -1, 0, -1, -1]


def test_agreement_and_hits_are_counted_apart() -> None:
    found = agreement.hits(np.array([0.9, 0.8, 0.1, 0.2, np.nan]), np.array([1, 0, 1, 0, 1]))
    assert found == {"alike_hit": 1, "alike_miss": 1, "unlike_hit": 1, "unlike_miss": 1}
    assert sum(agreement.hits(np.array([np.nan]), np.array([1.0])).values()) == 0


def test_weights_are_randomised_from_the_head_down_and_the_model_stays_as_it_was() -> None:
    net, fresh = (nets.build_model("eeea_net_c2", 3, 64, seed=seed).eval() for seed in (3, 4))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    steps = [(name, {key: value.clone() for key, value in changed.state_dict().items()})
             for name, changed in sanity.randomised(net, fresh)]  # fmt: skip
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert steps[0][0] == sanity.layers(net)[0]
    assert [name for name, _ in steps] == sanity.layers(net)
    first = {key for key in before if not torch.equal(steps[0][1][key], before[key])}
    assert first
    assert all(key.startswith(steps[0][0]) for key in first)
    torch.testing.assert_close(steps[-1][1], dict(fresh.state_dict()), rtol=0, atol=0)


def test_maps_of_a_method_that_asks_the_model_change_and_those_of_one_that_does_not_are_named() -> None:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net, fresh = (nets.build_model("resnet10t", 3, 64, seed=seed).eval() for seed in (3, 4))

    def left(explainer: str, depth: int) -> float:
        maps = plugins.load("explainers", explainer).maps
        steps = sanity.randomised(net, fresh)
        *_, (_, changed) = itertools.islice(steps, depth) if depth else steps
        return float(
            np.nanmean(sanity.correlation(maps(net, images, [0], 16)[:, 0], maps(changed, images, [0], 16)[:, 0]))
        )

    assert left("grad_cam", 0) < 0.5
    assert left("eigen_cam", 1) > 0.999  # the head is not asked


def test_a_map_that_does_not_change_is_named_by_how_far_down_it_does_not() -> None:
    assert sanity.unchanged_through(["head", "b", "a"], [1.0, 0.95, 0.2]) == "b"
    assert sanity.unchanged_through(["head", "b", "a"], [0.3, 0.95, 0.95]) is None
    assert sanity.unchanged_through(["head"], [None]) is None


# --- on a data set's films ------------------------------------------------------------------------------------------


class Shortcut(nn.Module):
    """A net of one convolution whose first logit is the brightness of the upper left corner, its second the film's."""

    feature_info = ({"module": "features", "num_chs": 2, "reduction": 8},)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        nn.init.constant_(self.features.weight, 1 / 192)
        self.corner = nn.Parameter(torch.tensor(8.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Two logits."""
        features = self.features(images)
        return torch.stack([self.corner * features[:, 0, 0, 0], 4 * features[:, 1].mean(dim=(1, 2))], dim=1)


NAMES = ["Mass", "Nodule"]
SETTINGS = schema.Explain(
    explainers=["grad_cam"], max_stride=8, iobb_thresholds=[0.1], map_quantile=0.9, gallery_per_outcome=1, max_boxes=40,
    sound_pairs=12, sanity_pairs=4,
)  # fmt: skip


def sound() -> soundness.Soundness:
    """The shortcut's net as student, teacher and twin, on films whose corner is marked where they have a mass."""
    count, rng = 24, np.random.default_rng(0)
    pixels = rng.integers(60, 120, (count, SIZE, SIZE), np.uint8)
    has_mass = np.arange(count) % 2 == 0
    pixels[has_mass, :8, :8] = 250
    table = pd.DataFrame({"image": [f"{place:02}" for place in range(count)], "patient": np.arange(count) // 2})
    table["Mass"] = np.where(has_mass, findings.PRESENT, findings.ABSENT)
    table["Nodule"] = np.where(has_mass, findings.ABSENT, findings.UNCERTAIN)
    films_ = class_maps.Films(table, Pixels(pixels), pd.DataFrame(columns=["image", "finding", *class_maps.BOX]), {})
    net = Shortcut().eval()
    trained = {kind: class_maps.Model(net, NAMES, kind) for kind in ("teacher", "twin", "distilled")}
    plan = class_maps.Plan(plugins.load("explainers", "grad_cam").maps, SETTINGS, 200, 0.95, 0)
    return soundness.Soundness(films_, trained, plan, ("explain", 0, "toy"))


class Pixels:
    """Films in memory, as a stage's are on disk."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def take(self, rows: list[int]) -> np.ndarray:
        """Some of them."""
        return self.pixels[rows]


def test_a_model_that_reads_a_marker_is_shown_to_read_it() -> None:
    asked = sound()
    assert set(asked.pairs["finding"]) == {"Mass"}
    assert set(asked.pairs["other"]) == {"Nodule"}
    described = asked.described()
    of_student = described["faithfulness"]["distilled"]
    assert of_student["deletion"]["map_minus_random"]["high"] < 0
    assert of_student["insertion"]["map_minus_random"]["low"] > 0
    alike = described["agreement"]
    assert alike["distilled"]["spearman"]["value"] == pytest.approx(1)  # they are one net


def test_the_other_finding_is_any_that_the_film_lacks_however_few_pairs_are_drawn() -> None:
    """Drawn by luck of its own: by that which chose the pair, it would be the first one nearly always."""
    names = [f"f{number}" for number in range(10)]
    facts = (np.random.default_rng(0).random((600, 10)) < 0.1).astype(np.int8)
    table = pd.DataFrame({"image": [f"{n}.png" for n in range(600)], "patient": [f"p{n}" for n in range(600)]})
    films = class_maps.Films(table.join(pd.DataFrame(facts, columns=names)), None, pd.DataFrame(), {})  # type: ignore[arg-type]
    pairs = soundness.pairs_of(films, names, 60, ("test",))
    assert len(pairs) == 60
    assert pairs["other"].value_counts().max() < 15
    assert pairs["other"].nunique() >= 8


def test_films_without_a_pair_have_a_reason() -> None:
    asked = sound()
    asked.films.table["Mass"] = findings.ABSENT
    none = soundness.Soundness(asked.films, asked.trained, asked.plan, ("explain", 0, "toy")).described()
    assert (none["pairs"], none["faithfulness"], none["reason"]) == (0, None, soundness.NO_PAIRS)


def test_a_confident_call_whose_map_misses_every_box_is_listed_and_a_model_that_hits_is_not_accused() -> None:
    pairs = pd.DataFrame({"image": list("abcd"), "finding": "Mass", "random_pointing": 0.1})
    logits = pd.DataFrame({"image": list("abcdefgh"), "Mass": [9.0, 8, 7, 6, 5, 4, 3, 2]})
    wrong = soundness.wrong_reasons(pairs.assign(distilled_pointing=[0, 0, 0, 1]), logits, {"Mass": 6})
    assert (wrong["confident"], wrong["missed"], wrong["missed_by_random"]) == (3, 3, 0.9)
    assert [film["image"] for film in wrong["films"]] == ["a", "b", "c"]
    right = soundness.wrong_reasons(pairs.assign(distilled_pointing=[1, 1, 1, 0]), logits, {"Mass": 6})
    assert (right["confident"], right["missed"], right["films"]) == (3, 0, [])
    none = soundness.wrong_reasons(pairs.assign(distilled_pointing=0), logits, {"Mass": 1})
    assert (none["confident"], none["missed_by_random"]) == (0, None)
