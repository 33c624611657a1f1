"""Architectures: counts that the literature states, and weights that load or refuse."""

import argparse
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from safetensors.torch import save_file

from stages.core import files
from stages.core.schema import Architecture
from stages.nets import nets, weights

Weights = dict[str, torch.Tensor]


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


# checkpoints as people have them


@pytest.fixture(scope="module")
def trained() -> Weights:
    """What a file holds: a net with the classifier of 14 findings, and equal-shaped layers."""
    given = nets.build_model("resnet10t", 14, 64, seed=1).state_dict()
    return {name: value.contiguous() for name, value in given.items()}


def loaded(path: Path, outputs: int = 14) -> Weights:
    """A net with other random weights, after a file's were loaded into it."""
    return nets.build_model("resnet10t", outputs, 64, start(path), seed=2).state_dict()


def saved(folder: Path, what: Any) -> Path:
    torch.save(what, folder / "net.pt")
    return folder / "net.pt"


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda given: OrderedDict((prefix + name, value) for name, value in given.items())


def beside(given: Weights, **entries: Any) -> dict[str, Any]:
    """What a trainer saves beside weights."""
    return {"epoch": 3, "best_loss": 0.1, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}} | entries | {
        "state_dict": given
    }  # fmt: skip


FORMS: dict[str, Callable[[Weights], Any]] = {
    "as it is": lambda given: given,
    "sorted by name": lambda given: {name: given[name] for name in sorted(given)},
    "DataParallel": prefixed("module."),
    "DataParallel, sorted by name": lambda given: {f"module.{name}": given[name] for name in sorted(given)},
    "compiled under DataParallel": prefixed("module._orig_mod."),
    "net of a larger model": prefixed("backbone."),
    "torchvision's wrapper of CheXNet": prefixed("module.resnet10."),
    "state_dict": beside,
    "state_dict of DataParallel": lambda given: beside(prefixed("module.")(given)),
    "model": lambda given: {"model": given, "scheduler": None},
    "model_state_dict": lambda given: {"model_state_dict": given, "loss": torch.tensor(0.1)},
    "state_dict within a model": lambda given: {"model": {"state_dict": given}},
    "a key that nobody else has": lambda given: {"my_weights": given, "epoch": 3},
    "averaged weights alone": lambda given: {"model_ema": given, "state_dict": None},
    "timm's trainer": lambda given: beside(given, arch="resnet10t", version=2, args=argparse.Namespace(lr=0.1)),
    "NumPy numbers beside": lambda given: beside(given, best_auroc=np.float64(0.8), best_epoch=np.int64(3)),
    "without counters, of torch < 0.4.1": lambda given: {
        name: value for name, value in given.items() if "num_batches_tracked" not in name
    },
    "averaged by torch": lambda given: prefixed("module.")(given) | {"n_averaged": torch.tensor(7)},
    "layers compiled one by one": lambda given: {
        name.replace("layer1.", "layer1._orig_mod."): value for name, value in given.items()
    },
    "DataParallel within": lambda given: {name.replace("conv1.", "conv1.module."): v for name, v in given.items()},
    "with operations counted": lambda given: given | {"layer1.0.total_ops": torch.zeros(1)},
    "parameters": lambda given: {name: torch.nn.Parameter(v, requires_grad=False) for name, v in given.items()},
    "double precision": lambda given: {name: v.double() if v.is_floating_point() else v for name, v in given.items()},
    "under one loss beside it": lambda given: prefixed("model.")(given) | {"criterion.pos_weight": torch.ones(14)},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_loads_by_name_in_the_forms_that_people_have(tmp_path: Path, trained: Weights, form: str) -> None:
    found = loaded(saved(tmp_path, FORMS[form](trained)))
    assert [name for name in trained if not torch.equal(found[name], trained[name])] == []


def test_two_equal_shaped_layers_keep_their_names_whatever_the_order(tmp_path: Path, trained: Weights) -> None:
    one, other = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    assert trained[one].shape == trained[other].shape
    order = [{one: other, other: one}.get(name, name) for name in trained]
    found = loaded(saved(tmp_path, {f"module.{name}": trained[name] for name in order}))
    assert [name for name in trained if not torch.equal(found[name], trained[name])] == []


def test_a_file_is_read_by_its_first_bytes_whatever_its_name(tmp_path: Path, trained: Weights) -> None:
    torch.save(trained, tmp_path / "net.safetensors")
    save_file(trained, tmp_path / "net.pt")
    torch.save(trained, tmp_path / "net.old", _use_new_zipfile_serialization=False)
    for name in ("net.safetensors", "net.pt", "net.old"):
        assert torch.equal(loaded(tmp_path / name)["conv1.0.weight"], trained["conv1.0.weight"])


def test_half_precision_is_widened(tmp_path: Path, trained: Weights) -> None:
    half = {name: v.bfloat16() if v.is_floating_point() else v for name, v in trained.items()}
    found = loaded(saved(tmp_path, half))
    assert found["conv1.0.weight"].dtype == torch.float32
    assert torch.equal(found["conv1.0.weight"], half["conv1.0.weight"].float())


def test_of_trained_and_averaged_weights_the_averaged_are_taken_and_that_is_said(
    tmp_path: Path, trained: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {name: torch.zeros_like(value) for name, value in trained.items()}
    found = loaded(saved(tmp_path, {"state_dict": other, "state_dict_ema": trained}))
    assert torch.equal(found["fc.weight"], trained["fc.weight"])
    assert "its state_dict_ema was taken, not its state_dict" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: {}, "the file has none under fc.weight, fc.bias"),
        (
            lambda given: {"fc.weight": given["fc.weight"][:5], "fc.bias": given["fc.bias"][:5]},
            "the file has fc.weight (5, 512) for (14, 512), fc.bias (5,) for (14,)",
        ),
        (lambda given: {"fc.weight": given["fc.weight"]}, "the file has fc.weight (14, 512) for (14, 512)"),
        (
            lambda given: {"fc.0.weight": given["fc.weight"], "fc.0.bias": given["fc.bias"]},
            "left out: fc.0.weight, fc.0.bias; the classifier is made anew",
        ),
        (
            lambda given: {"head.weight": given["fc.weight"], "head.bias": given["fc.bias"]},
            "left out: head.weight, head.bias; the classifier is made anew",
        ),
    ],
)
def test_a_classifier_that_is_not_the_models_is_made_anew_and_that_is_said(
    tmp_path: Path, trained: Weights, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    body = {name: value for name, value in trained.items() if not name.startswith("fc.")}
    found = loaded(saved(tmp_path, body | change(trained)))
    fresh = nets.build_model("resnet10t", 14, 64, seed=2).state_dict()
    assert [name for name in body if not torch.equal(found[name], body[name])] == []
    assert torch.equal(found["fc.weight"], fresh["fc.weight"])
    assert torch.equal(found["fc.bias"], fresh["fc.bias"])
    assert said in capsys.readouterr().out


def test_the_classifier_is_timms_and_not_the_last_two_tensors(tmp_path: Path) -> None:
    """A file in the order of names ends with another layer."""
    given = nets.build_model("visformer_s", 3, 64, seed=1).state_dict()
    torch.save({name: given[name] for name in sorted(given)}, tmp_path / "net.pt")
    found = nets.build_model("visformer_s", 14, 64, start(tmp_path / "net.pt"), seed=2).state_dict()
    assert found["head.weight"].shape == (14, 768)
    assert [name for name in given if "head" not in name and not torch.equal(found[name], given[name])] == []


def test_old_densenet_names_are_todays(tmp_path: Path) -> None:
    given = nets.build_model("densenet161", 14, 64, seed=1).state_dict()
    old = {f"module.densenet.{name}".replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
           for name, value in given.items() if "num_batches_tracked" not in name}  # fmt: skip
    torch.save({"state_dict": old}, tmp_path / "net.pth.tar")
    found = nets.build_model("densenet161", 14, 64, start(tmp_path / "net.pth.tar"), seed=2).state_dict()
    assert [name for name in given if not torch.equal(found[name], given[name])] == []


def anonymous(given: Weights, order: list[str]) -> Weights:
    """Under names that are no model's, numbered in the given's own order, stored in another."""
    numbers = {name: number for number, name in enumerate(given)}
    return {f"layers.{numbers[name]}": given[name] for name in order}


def test_loading_by_order_is_said(tmp_path: Path, trained: Weights, capsys: pytest.CaptureFixture[str]) -> None:
    found = loaded(saved(tmp_path, anonymous(trained, list(trained))))
    assert torch.equal(found["layer1.0.conv2.weight"], trained["layer1.0.conv2.weight"])
    assert "no name is the model's, loaded by order (layers.0 as conv1.0.weight, and so on)" in capsys.readouterr().out


def test_no_layers_are_exchanged_by_order(tmp_path: Path, trained: Weights) -> None:
    one, other = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    order = [{one: other, other: one}.get(name, name) for name in trained]
    with pytest.raises(weights.CheckpointError, match=r"not in the model's order \(layers\.\d+ after layers\.\d+"):
        loaded(saved(tmp_path, anonymous(trained, order)))
    exchanged = {f"x{place}.{name.rpartition('.')[2]}": trained[name] for place, name in enumerate(trained)}
    names = list(exchanged)
    place = next(place for place, name in enumerate(names) if name.endswith("weight") and exchanged[name].ndim == 1)
    names[place], names[place + 1] = f"x{place}.bias", f"x{place + 1}.weight"
    with pytest.raises(weights.CheckpointError, match="not in the model's order"):
        loaded(saved(tmp_path, dict(zip(names, exchanged.values(), strict=True))))


def test_a_deeper_net_of_the_family_is_another_architecture(tmp_path: Path, trained: Weights) -> None:
    """All of the smaller one's tensors are there, under their names and in their shapes."""
    deeper = trained | {name.replace("layer1.0.", "layer1.1."): v for name, v in trained.items() if "layer1.0." in name}
    with pytest.raises(weights.CheckpointError, match=r"another architecture: \d+ keys differ: layer1\.1\.bn1"):
        loaded(saved(tmp_path, deeper))


class Own:
    """A class that a pickle names."""

    def __reduce__(self) -> Any:
        return (print, ("this ran",))


def without_values(given: Weights) -> Any:
    return {name: value.to("meta") for name, value in given.items()}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda _: {}, "holds no tensors"),
        (lambda given: list(given.values()), "holds a list and no tensors by name"),
        (lambda given: given["fc.weight"], "holds a Tensor and no tensors by name"),
        (lambda _: {"epoch": 3}, "1 values that are no tensors by name .epoch."),
        (lambda given: given | {"epoch": 3}, "1 values that are no tensors by name .epoch."),
        (lambda given: given | {"fc.bias": [0.0] * 14}, "1 values that are no tensors by name .fc.bias."),
        (lambda given: dict(enumerate(given.values())), "values that are no tensors by name .0, 1"),
        (lambda given: given | {f"module.{name}": v for name, v in given.items()}, "a tensor under several names"),
        (lambda given: {"student": given, "teacher": given}, "several sets of weights .student, teacher."),
        (lambda given: prefixed("student.")(given) | prefixed("teacher.")(given), "several sets of weights .names beg"),
        (lambda given: given | {"conv1.0.weight": given["conv1.0.weight"] * torch.nan}, "NaN .* tensors .conv1.0.wei"),
        (lambda given: given | {"bn1.bias": given["bn1.bias"].double() + 1e300}, "NaN or infinite .* .bn1.bias."),
        (lambda given: given | {"bn1.bias": given["bn1.bias"].to(torch.int8)}, "1 tensors that are quantized, .*int8"),
        (lambda given: given | {"fc.weight": given["fc.weight"].to_sparse()}, "1 tensors that are .*sparse"),
        (without_values, "without values"),
        (lambda given: given | {"bn1.bias": torch.zeros(7)}, r"1 keys differ: bn1.bias .7,. for .64,."),
        (lambda given: {name: v for name, v in given.items() if "running" not in name}, "keys differ: bn1.running_m"),
        (lambda given: {"state_dict": given, "model": Own()}, "holds pickled objects .builtins.print. and not tensors"),
    ],
)
def test_a_file_of_no_use_is_refused_in_one_line(
    tmp_path: Path, trained: Weights, capfd: pytest.CaptureFixture[str], what: Any, message: str
) -> None:
    with pytest.raises(weights.CheckpointError, match=message) as caught:
        loaded(saved(tmp_path, what(trained)))
    assert str(caught.value).startswith(str(tmp_path / "net.pt"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_pickled_model_is_not_run_and_nobody_is_told_to(tmp_path: Path) -> None:
    torch.save(nets.build_model("resnet10t", 14, 64), tmp_path / "zip.pt")
    torch.save(nets.build_model("resnet10t", 14, 64), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("zip.pt", "old.pt"):
        with pytest.raises(
            weights.CheckpointError, match=r"holds pickled objects \(.*timm.*save the model's state_di"
        ) as (caught):
            loaded(tmp_path / name)
        assert not {"weights_only", "safe_globals", "trust"} & set(str(caught.value).replace("`", " ").split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no file of PyTorch or safetensors, or a damaged one"),
        (b"\x80\x02}q\x00.", "is no file of PyTorch or safetensors, or a damaged one"),
        (b"PK\x03\x04" + bytes(100), "is no file of PyTorch or safetensors, or a damaged one"),
        (b"\x40" + bytes(7) + b'{"a": ' + bytes(40), "is a damaged safetensors file"),
        (b"\x02" + bytes(7) + b"{}", "holds no tensors"),
    ],
)
def test_bytes_that_are_no_checkpoint_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(weights.CheckpointError, match=f"net.safetensors {message}"):
        loaded(tmp_path / "net.safetensors")


def test_a_file_cut_short_is_damaged(tmp_path: Path, trained: Weights) -> None:
    save_file(trained, tmp_path / "net.safetensors")
    for path in (saved(tmp_path, trained), tmp_path / "net.safetensors"):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(weights.CheckpointError, match=r"damaged .*fetch it again"):
            loaded(path)


def test_a_program_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, json.dumps(name))
    with pytest.raises(weights.CheckpointError, match="is a TorchScript program, which holds code"):
        loaded(tmp_path / "net.pt")


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
