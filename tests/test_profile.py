"""The cost of an architecture: exact figures by hand and by the paper, measured ones by what must hold of any."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import owners
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stages import profile
from stages.device import graphs, runtimes
from stages.nets import nets


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """What the stage sets in torch is undone."""
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_deterministic)


def test_student_has_the_published_cost() -> None:
    cost = profile.exact_cost("eeea_net_c2", 14, [224])
    assert cost["parameters"] == 4_732_838
    assert cost["compute"][0]["macs"] == 300_685_888


@pytest.mark.parametrize("name", ["eeea_net_c2", "resnet18", "densenet161"])
def test_both_counters_agree_but_for_what_one_of_them_leaves_out(name: str) -> None:
    (found,) = profile.exact_cost(name, 14, [64])["compute"]
    by_operator = found["macs_by_operator"]
    left_out = by_operator["batch_norm"] + by_operator["adaptive_avg_pool2d"]
    assert found["by_torch"]["macs"] == found["macs"] - left_out
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]


def test_layers_are_in_their_order_and_have_all_parameters() -> None:
    cost = profile.exact_cost("eeea_net_c2", 14, [64])
    names = [layer["name"] for layer in cost["compute"][0]["layers"]]
    assert names[0] == "conv_stem"
    assert [name for name in names if name.startswith("blocks.")] == [f"blocks.{number}" for number in range(7)]
    assert names[-1] == "classifier"
    assert sum(layer["parameters"] for layer in cost["compute"][0]["layers"]) == cost["parameters"]


def test_activations_are_the_largest_input_and_output_of_a_layer_together() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(100, 2)).eval()
    assert profile.activation_bytes(net, torch.zeros(1, 3, 10, 10)) == 4 * 100 * (3 + 8)


def test_macs_equal_the_count_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    by_hand = 3 * 8 * 9 * 10 * 10 + 8 * 10 * 10 + 8 * 2
    assert profile.count_macs(net, 10)["macs"] == by_hand


def test_operator_without_a_count_is_named() -> None:
    net = nn.Sequential(nn.Hardswish(), nn.Conv2d(3, 1, 1), nn.Hardswish()).eval()
    assert profile.count_macs(net, 8)["not_counted"] == {"aten::hardswish": 2}


def test_weight_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    state = nets.build_model("resnet18", 14, 64).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    cost = profile.exact_cost("resnet18", 14, [64])
    assert cost["weights_bytes"] == (tmp_path / "weights.safetensors").stat().st_size


def test_parameters_are_those_of_the_largest_size_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "count_macs", lambda _model, size_px: size_px)
    costs = [profile.exact_cost("visformer_s", 14, sizes) for sizes in ([64, 96], [96, 64])]
    assert costs[0] == costs[1]
    assert costs[0]["parameters"] > profile.exact_cost("visformer_s", 14, [64])["parameters"]


def test_stage_writes_exact_and_measured_figures_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # a process for each number of threads takes seconds to start
    owners.project(tmp_path, threads=1, profile={"sizes_px": [64, 96], "outputs": 5, "repeats": 4})
    ballast = np.ones(50_000_000)  # of this process; must not appear in what is measured in the child
    profile.main(["--arch", "resnet18", "--role", "teacher"])
    exact = json.loads(Path("reports/profile/teacher/resnet18.json").read_text())
    assert exact == profile.exact_cost("resnet18", 5, [64, 96])
    timing = json.loads(Path("reports/profile/teacher/resnet18.timing.json").read_text())
    names = ("pytorch", "onnxruntime", "onnxruntime, int8 weights")
    threads = sorted({1, os.cpu_count()})
    wanted = [(name, n, px, batch) for name in names for n in threads for px in (64, 96) for batch in (1, 8)]
    assert [(run["runtime"], run["threads"], run["size_px"], run["batch"]) for run in timing["runs"]] == wanted
    for run in timing["runs"]:
        assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p95"]
        assert run["cold_ms"] > 0
        assert run["peak_bytes"] > run["libraries_bytes"] + 4 * exact["parameters"] / 2
        assert run["libraries_bytes"] < runtimes.peak_bytes() - ballast.nbytes / 2


def test_energy_is_what_the_processor_counted_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "RAPL", tmp_path)
    assert runtimes.energy() is None
    assert runtimes.joules(None, None) is None
    (tmp_path / "max_energy_range_uj").write_text("10000000\n")
    (tmp_path / "energy_uj").write_text("9000000\n")
    before = runtimes.energy()
    (tmp_path / "energy_uj").write_text("500000\n")
    assert runtimes.joules(before, runtimes.energy()) == pytest.approx(1.5)  # it began anew


def test_a_net_that_is_not_exported_is_timed_in_pytorch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise graphs.GraphError("no operator for that")

    monkeypatch.setattr(graphs, "plain", refused)
    found = profile.measured_cost("resnet10t", 3, [32], 2, 20)
    assert {run["runtime"] for run in found["runs"]} == {"pytorch"}
    assert found["no_onnx"] == "no operator for that"


def test_a_table_of_probabilities_has_no_cost_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    owners.project(tmp_path)
    profile.main(["--arch", "precomputed", "--role", "teacher"])
    exact = json.loads(Path("reports/profile/teacher/precomputed.json").read_text())
    assert (exact["parameters"], exact["weights_bytes"], exact["compute"]) == (None, None, [])
    assert exact["reason"] == profile.NO_NET
    assert json.loads(Path("reports/profile/teacher/precomputed.timing.json").read_text())["runs"] == []


def test_an_ensemble_costs_what_its_members_cost_together() -> None:
    whole, *members = (profile.exact_cost(name, 14, [64]) for name in ("resnets", "resnet10t", "resnet18"))
    assert whole["parameters"] == sum(member["parameters"] for member in members)
    assert whole["compute"][0]["macs"] == sum(member["compute"][0]["macs"] for member in members)
