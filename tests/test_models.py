"""Architectures: counts that the literature states, and weights that load or refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from stages.core import files
from stages.core.schema import Architecture
from stages.nets import nets, weights


def start(path: Path, sha256: str | None = None) -> Architecture:
    """The params entry of an architecture that starts from a file."""
    return Architecture(pretrained=False, checkpoint=str(path), checkpoint_sha256=sha256 or files.sha256(path))


@pytest.mark.parametrize(
    ("name", "outputs", "parameters", "macs", "tensors"),
    [
        ("eeea_net_c2", 14, 4_732_838, 300_685_888, 395),
        ("eeea_net_c2", 1000, 5_995_904, None, 395),
        ("ofa_595", 14, 7_620_446, 527_358_032, 417),
        ("ofa_595", 1000, 9_135_928, None, 417),
    ],
)
def test_once_for_all_nets_have_their_published_size(
    name: str, outputs: int, parameters: int, macs: int | None, tensors: int
) -> None:
    model = nets.build_model(name, outputs, 224).eval()
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    if macs:
        counted = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False)
        assert counted.total() == macs


@pytest.mark.parametrize(
    ("name", "parameters"), [("densenet161", 26_502_926), ("visformer_s", 39_456_398), ("autoformer_v2_t", 27_570_000)]
)
def test_the_papers_teachers_build_at_64_px_with_14_outputs(name: str, parameters: int) -> None:
    model = nets.build_model(name, 14, 64).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 14)
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(parameters, rel=0.01)


def test_same_seed_gives_the_same_first_weights_and_another_seed_others() -> None:
    one, same, other = (nets.build_model("eeea_net_c2", 3, 64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.conv_stem.weight, same.conv_stem.weight)
    assert not torch.equal(one.conv_stem.weight, other.conv_stem.weight)


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    nets.build_model("eeea_net_c2", 3, 64, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_published_checkpoint_loads_by_order_under_other_names(tmp_path: Path) -> None:
    """The authors' file has other names, the same order, and a classifier of 1,000 classes."""
    published = nets.build_model("eeea_net_c2", 1000, 64, seed=3).state_dict()
    torch.save({f"net.{number}": value for number, value in enumerate(published.values())}, tmp_path / "c2.pt")
    model = nets.build_model("eeea_net_c2", 14, 64, start(tmp_path / "c2.pt"), seed=4)
    assert torch.equal(model.conv_stem.weight, published["conv_stem.weight"])
    assert torch.equal(model.conv_head.weight, published["conv_head.weight"])
    assert model.classifier.weight.shape == (14, 1280)


def test_a_checkpoint_of_another_architecture_lists_the_keys(tmp_path: Path) -> None:
    torch.save(nets.build_model("resnet18", 14, 64).state_dict(), tmp_path / "other.pt")
    with pytest.raises(weights.CheckpointError, match=r"another architecture: \d+ keys differ: .*bn1"):
        nets.build_model("eeea_net_c2", 14, 64, start(tmp_path / "other.pt"))


def test_a_checkpoint_with_another_hash_is_refused(tmp_path: Path) -> None:
    torch.save(nets.build_model("eeea_net_c2", 14, 64).state_dict(), tmp_path / "c2.pt")
    with pytest.raises(weights.CheckpointError, match="it is another file"):
        nets.build_model("eeea_net_c2", 14, 64, start(tmp_path / "c2.pt", "0" * 64))


def test_a_saved_model_gives_the_same_logits_when_loaded(tmp_path: Path) -> None:
    model = nets.build_model("eeea_net_c2", 2, 64, seed=9).eval()
    about = {"architecture": "eeea_net_c2", "findings": ["Edema", "Mass"], "size_px": 64}
    nets.write(model, about, tmp_path / "model")
    loaded, found = nets.load_model(tmp_path / "model")
    films = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    device = torch.device("cpu")
    assert found == about
    assert np.array_equal(nets.logits(model, [films], device), nets.logits(loaded, [films], device))


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    original = nets.timm.create_model

    def offline(name: str, pretrained: bool = False, **given: Any) -> Any:
        if pretrained:
            raise OSError("no route to host")
        return original(name, **given)

    monkeypatch.setattr(nets.timm, "create_model", offline)
    wanted = Architecture(pretrained=True, checkpoint=None, checkpoint_sha256=None)
    with pytest.raises(FileNotFoundError, match=r"resnet18 could not be fetched \(no route to host\): connect once"):
        nets.build_model("resnet18", 2, 32, wanted)
