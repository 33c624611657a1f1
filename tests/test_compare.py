"""Means over seeds and data sets: what is averaged, what is paired, and what has no value."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from stages import compare
from stages.core import files, params, schema
from stages.judging import cells, evaluation

SETTINGS = schema.Evaluate(replicates=100, confidence=0.9, min_positives=10, margin=0.02, plateau=0.01)
GROUP = "joint/small/big/kd"
KEYS = ("teacher", "twin", "distilled")


def declared(seeds: list[int], losses: tuple[str, ...] = ("kd",)) -> tuple[Any, ...]:
    """What `params.load(*cells.PARAMS)` gives."""
    return {"joint": 0}, {"big": 0}, {"small": 0}, dict.fromkeys(losses, 0), {}, seeds


def made(teacher: Any, twin: Any, distilled: Any) -> compare.Scores:
    """Scores from lists: (1 + replicate,) of the teacher, (seed, 1 + replicate) of the students."""
    return compare.Scores(np.array(teacher, float), np.array(twin, float), np.array(distilled, float))


def drawn(rng: np.random.Generator, level: float, spread: float = 0.02, replicates: int = 100) -> NDArray[np.float64]:
    """An estimate, and replicates around it."""
    return np.concatenate([[level], level + spread * rng.standard_normal(replicates)])


def table_of(values: dict[tuple[str, str], NDArray[np.float64]]) -> pd.DataFrame:
    """What evaluate writes, rows shuffled: a reader must not lean on their order."""
    parts = [
        pd.DataFrame({"model": model, "mean": mean, "replicate": np.arange(len(auroc)), "auroc": auroc})
        for (model, mean), auroc in values.items()
    ]
    return pd.concat(parts).sample(frac=1, random_state=0)


def replicates_of(seeds: list[int], seed: int = 0, means: tuple[str, ...] = ("all",)) -> compare.Replicates:
    """Scores of a data set, better of a teacher than of a student than of a twin; patients move all of them alike."""
    rng = np.random.default_rng(seed)
    found = {}
    for mean in means:
        shared = drawn(rng, 0, 0.03)
        levels = {"teacher/joint/big": 0.9}
        for number in seeds:
            levels[f"twin/joint/small/{number}"] = 0.7 + 0.01 * number
            levels[f"distilled/{GROUP}/{number}"] = 0.8 + 0.02 * number
        found |= {(model, mean): shared + drawn(rng, level, 0.003) for model, level in levels.items()}
    return found


def compared(seeds: list[int], **replicates: compare.Replicates) -> list[dict[str, Any]]:
    """The tests of the group of these seeds."""
    return compare.compare_groups(cells.models(*declared(seeds)), replicates, SETTINGS)[GROUP]["tests"]


def test_the_scores_are_means_over_seeds_with_each_seed_and_their_spread() -> None:
    scores = made([0.9, 0.9], [[0.6, 0.6], [0.7, 0.7], [0.8, 0.8]], [[0.7, 0.7], [0.9, 0.9], [0.8, 0.8]])
    found = compare.compare(scores, 0.9, 0.02)
    assert [found[key]["auroc"] for key in KEYS] == [0.9, 0.7, 0.8]
    assert found["twin"]["per_seed"] == [0.6, 0.7, 0.8]
    assert (found["twin"]["deviation"], found["distilled"]["deviation"]) == (0.1, 0.1)
    gain = found["distilled_minus_twin"]
    assert (gain["difference"], gain["per_seed"], gain["deviation"]) == (0.1, [0.1, 0.2, 0.0], 0.1)
    assert found["distilled_minus_teacher"]["difference"] == -0.1
    assert found["teacher_minus_twin"]["difference"] == 0.2
    assert found["gap_closed"]["share"] == 0.5


def test_an_interval_averages_the_seeds_within_each_replicate_and_is_paired() -> None:
    rng = np.random.default_rng(0)
    teacher, twin, distilled = rng.random(201), rng.random((3, 201)), rng.random((3, 201))
    found = compare.compare(made(teacher, twin, distilled), 0.9, 0.02)
    for key, values in {
        "twin": twin.mean(axis=0),
        "distilled_minus_twin": distilled.mean(axis=0) - twin.mean(axis=0),
        "distilled_minus_teacher": distilled.mean(axis=0) - teacher,
        "teacher_minus_twin": teacher - twin.mean(axis=0),
    }.items():
        ends = np.quantile(values[1:], [0.05, 0.95])
        assert (found[key]["low"], found[key]["high"]) == pytest.approx(tuple(ends), abs=1e-6)


def test_what_moves_both_sides_alike_leaves_the_difference() -> None:
    patients = np.linspace(-0.2, 0.2, 101)
    found = compare.compare(made(0.7 + patients, [0.5 + patients] * 2, [0.6 + patients] * 2), 0.9, 0.02)
    assert found["twin"]["high"] - found["twin"]["low"] > 0.3
    gain = found["distilled_minus_twin"]
    assert (gain["low"], gain["high"], gain["excludes_zero"]) == (0.1, 0.1, True)
    assert (found["gap_closed"]["low"], found["gap_closed"]["high"]) == (0.5, 0.5)


def test_the_interval_of_the_share_is_that_of_its_replicates() -> None:
    rng = np.random.default_rng(1)
    teacher, twin, distilled = drawn(rng, 0.9, 0.01), drawn(rng, 0.7, 0.01), drawn(rng, 0.8, 0.01)
    found = compare.compare(made(teacher, [twin], [distilled]), 0.9, 0.02)["gap_closed"]
    share = (distilled - twin) / (teacher - twin)
    ends = np.quantile(share[1:], [0.05, 0.95])
    assert (found["low"], found["high"]) == pytest.approx(tuple(ends), abs=1e-6)
    assert (found["share"], found["dropped"], found["reason"]) == (0.5, 0, None)


def test_no_share_is_closed_of_a_gap_that_is_not_there() -> None:
    """One replicate in ten has the teacher at its twin's level, so that the interval's low end is 0."""
    replicates = np.array([0.2] + [0.2] * 90 + [0.0] * 10)
    found = compare.compare(made(0.7 + replicates, [np.full(101, 0.7)], [np.full(101, 0.8)]), 0.9, 0.02)
    assert found["teacher_minus_twin"]["low"] == 0
    assert found["gap_closed"] == {
        "share": None, "low": None, "high": None, "dropped": 100, "reason": compare.NOT_ABOVE,
    }  # fmt: skip


def test_replicates_without_a_gap_are_left_out_of_the_share_and_counted() -> None:
    """One in fifty has none: too few to reach the low end of a 90% interval."""
    replicates = np.array([0.2] + [0.2] * 98 + [-0.1] * 2)
    found = compare.compare(made(0.7 + replicates, [np.full(101, 0.7)], [np.full(101, 0.8)]), 0.9, 0.02)
    assert found["gap_closed"] == {"share": 0.5, "low": 0.5, "high": 0.5, "dropped": 2, "reason": None}


@pytest.mark.parametrize(("reach", "holds"), [(0.005, True), (0.015, False)])
def test_non_inferiority_needs_the_low_end_above_the_margin(reach: float, holds: bool) -> None:
    """A student 0.01 below its teacher, with replicates that reach so far to both sides."""
    student = 0.89 + np.concatenate([[0], np.linspace(-reach, reach, 100)])
    found = compare.compare(made([0.9] * 101, [[0.7] * 101], [student]), 0.9, margin=0.02)["distilled_minus_teacher"]
    assert found["difference"] == -0.01
    assert found["low"] == pytest.approx(-0.01 - 0.9 * reach)
    assert found["non_inferior"] is holds


def test_one_seed_has_no_spread() -> None:
    [test] = compared([0], a=replicates_of([0]))
    for key in ("twin", "distilled", "distilled_minus_twin"):
        assert (test[key]["deviation"], test[key]["deviation_reason"]) == (None, evaluation.ONE_SEED)
        assert len(test[key]["per_seed"]) == 1
    assert test["distilled_minus_twin"]["difference"] == 0.1


def test_a_data_set_alone_has_no_mean_of_data_sets() -> None:
    [test] = compared([0, 1], a=replicates_of([0, 1]))
    assert (test["dataset"], test["datasets"], test["mean"]) == ("a", ["a"], "all")


def test_the_mean_of_the_data_sets_is_of_their_main_means_replicate_by_replicate() -> None:
    seeds = [0, 1]
    a = replicates_of(seeds, 1, ("all", "shared7", "own", "own_per_study"))
    b = replicates_of(seeds, 2, ("all", "shared7"))
    tests = compared(seeds, a=a, b=b)
    assert [(test["dataset"], test["mean"]) for test in tests] == [
        ("a", "own"), ("a", "own_per_study"), ("b", "all"), (None, compare.MEAN_OF_DATASETS),
    ]  # fmt: skip
    mean = tests[-1]
    assert mean["datasets"] == ["a", "b"]
    sides = {
        kind: np.mean([(a[f"{kind}/{seed}", "own"] + b[f"{kind}/{seed}", "all"]) / 2 for seed in seeds], axis=0)
        for kind in ("twin/joint/small", f"distilled/{GROUP}")
    }
    gain = sides[f"distilled/{GROUP}"] - sides["twin/joint/small"]
    found = mean["distilled_minus_twin"]
    assert found["difference"] == pytest.approx(0.105)
    assert found["per_seed"] == pytest.approx([0.1, 0.11])
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(gain[1:], [0.05, 0.95])), abs=1e-6)
    width = {name: test["twin"]["high"] - test["twin"]["low"] for name, test in (("a", tests[0]), ("all", mean))}
    assert width["all"] < 0.9 * width["a"]  # two independent draws average out


def test_a_teacher_without_a_data_set_leaves_the_comparison_of_students() -> None:
    lacking = replicates_of([0, 1], 1)
    lacking["teacher/joint/big", "all"] = np.full(101, np.nan)
    first, second, mean = compared([0, 1], a=lacking, b=replicates_of([0, 1], 2))
    nothing = {"low": None, "high": None, "dropped": 100, "reason": evaluation.NO_PREDICTION}
    for test in (first, mean):
        assert test["teacher"] == nothing | {"auroc": None}
        assert test["teacher_minus_twin"] == nothing | {"difference": None, "excludes_zero": None}
        assert test["distilled_minus_teacher"]["non_inferior"] is None
        assert test["gap_closed"] == nothing | {"share": None}
        assert test["distilled_minus_twin"]["difference"] == pytest.approx(0.105)
        assert test["distilled_minus_twin"]["excludes_zero"] is True
    assert second["teacher"]["auroc"] == 0.9
    assert second["gap_closed"]["reason"] is None
    assert mean["datasets"] == ["a", "b"]


def test_a_data_set_that_defines_nothing_is_left_out_of_the_mean() -> None:
    nothing = {key: np.full(101, np.nan) for key in replicates_of([0])}
    *tests, mean = compared([0], a=nothing, b=replicates_of([0], 1), c=replicates_of([0], 2))
    assert [test["dataset"] for test in tests] == ["a", "b", "c"]
    assert mean["datasets"] == ["b", "c"]
    for key in KEYS:
        assert (tests[0][key]["auroc"], tests[0][key]["reason"]) == (None, evaluation.NONE_DEFINED)
    assert tests[0]["distilled_minus_twin"]["deviation_reason"] == "undefined"
    assert [test["dataset"] for test in compared([0], a=nothing, b=replicates_of([0]))] == ["a", "b"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stage's inputs, and the params that it loads."""
    for seed, dataset in enumerate(("a", "b")):
        files.write_table(table_of(replicates_of([0, 1], seed)), tmp_path / f"data/replicates/{dataset}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(params, "load", lambda *_: (*declared([0, 1]), {"a": 0, "b": 0}, SETTINGS))
    return tmp_path


def test_the_file_has_each_group_with_its_seeds_whatever_the_order_of_rows(project: Path) -> None:
    compare.main([])
    first = (project / "reports/comparison.json").read_bytes()
    written = files.read_json(project / "reports/comparison.json")
    assert list(written) == [GROUP]
    assert written[GROUP]["seeds"] == [0, 1]
    assert written[GROUP]["tests"] == compared([0, 1], a=replicates_of([0, 1], 0), b=replicates_of([0, 1], 1))
    compare.main([])
    assert (project / "reports/comparison.json").read_bytes() == first


def test_losses_are_groups_of_their_own() -> None:
    models = cells.models(*declared([0, 1], ("kd", "other")))
    replicates = replicates_of([0, 1])
    replicates |= {(f"distilled/joint/small/big/other/{seed}", "all"): np.full(101, 0.75) for seed in (0, 1)}
    found = compare.compare_groups(models, {"a": replicates}, SETTINGS)
    assert list(found) == [GROUP, "joint/small/big/other"]
    assert found["joint/small/big/other"]["tests"][0]["distilled_minus_twin"]["per_seed"] == [0.05, 0.04]
    assert found[GROUP]["tests"][0]["distilled_minus_twin"]["per_seed"] == [0.1, 0.11]


def test_a_missing_table_stops_the_stage(project: Path) -> None:
    (project / "data/replicates/b.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks b.parquet; run `make repro`"):
        compare.main([])


def test_an_undeclared_table_stops_the_stage(project: Path) -> None:
    (project / "data/replicates/removed.parquet").touch()
    with pytest.raises(cells.UndeclaredError, match=r"removed.parquet; run `make prune`"):
        compare.main([])
