"""What `make bench` measures with; no test here depends on how fast anything is."""

import subprocess
import sys

import pytest

from benchmarks import measure

OWN_PEAK = "from benchmarks import measure; print(measure.own_peak_mb())"
BALLAST_MB = 300


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts with no peak of its parent's")
def test_peak_memory_of_a_process_is_its_own_and_not_its_parents() -> None:
    ballast = bytearray(BALLAST_MB << 20)
    done = subprocess.run([sys.executable, "-c", OWN_PEAK], check=True, capture_output=True, text=True)
    assert float(done.stdout) < BALLAST_MB / 3
    assert measure.own_peak_mb() > len(ballast) >> 20


def test_works_are_called_in_turn_and_backwards_in_every_other_round() -> None:
    called: list[str] = []
    timed = measure.in_turn(lambda: called.append("a"), lambda: called.append("b"), count=3)
    assert called == [*"ab", *"ab", *"ba", *"ab"]
    assert [len(seconds) for seconds in timed] == [3, 3]


def test_a_rate_is_ours_to_theirs_and_a_duration_too() -> None:
    rate = measure.compare("", [2.0, 2.0], [1.0, 1.0], "films", 10, 0.85, True)
    duration = measure.compare("", [2.0, 2.0], [1.0, 1.0], "s", 1, 2.5, False)
    assert (rate.ratio, rate.ours, rate.is_met) == (0.5, "5 films/s", False)
    assert (duration.ratio, duration.ours, duration.is_met) == (2.0, "2 s", True)
    assert rate.row().endswith("| 0.5 (0.5 to 0.5) | at least 0.85 | **no** |")
