"""Patients to splits by hash."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import seeds
from stages.sources import splits

PATIENTS = [f"patient{number:05d}" for number in range(20_000)]


@given(st.lists(st.text(max_size=12), max_size=8), st.sampled_from([("a",), ("a", 3), (np.int64(7), "b")]))
def test_many_names_get_the_numbers_that_each_gets_alone(each: list[str], shared: tuple[str | int, ...]) -> None:
    assert seeds.units(*shared, each=each).tolist() == [seeds.unit(*shared, name) for name in each]


def test_parts_have_their_shares() -> None:
    shares = {"train": 0.63, "val": 0.07, "test": 0.3}
    parts = splits.by_hash("any", "some", PATIENTS, shares)
    for part, share in shares.items():
        assert (parts == part).mean() == pytest.approx(share, abs=0.01)


def test_divisions_are_independent_of_each_other_and_of_the_data_set() -> None:
    shares = {"test": 0.5, "train_val": 0.5}
    one, other, elsewhere = (
        splits.by_hash(*names, PATIENTS, shares) == "test" for names in (("p", "a"), ("q", "a"), ("p", "b"))
    )
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one, elsewhere)[0, 1]) < 0.03


def test_a_patients_part_is_the_one_of_its_point_in_the_unit_interval() -> None:
    shares = {"val": 0.25, "train": 0.75}
    points = np.array([seeds.unit("split", "p", "a", patient) for patient in PATIENTS[:500]])
    assert ((splits.by_hash("p", "a", PATIENTS[:500], shares) == "val") == (points < 0.25)).all()
