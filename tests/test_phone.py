"""The exported student for ExecuTorch: it answers as onnxruntime does, or is not written."""

import gc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_device import BIASES, OPSET, OUTPUTS, SIZE, STRIDE, TEMPERATURES, film, middle_square
from test_device import net as net
from torch import nn

pytestmark = [
    pytest.mark.extra,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of ExecuTorch and torchao
]
pytest.importorskip("executorch", reason="make extra")

from stages import export, phone  # noqa: E402
from stages.core import files  # noqa: E402
from stages.device import graphs, running  # noqa: E402

CALIBRATION = graphs.Calibration(TEMPERATURES, BIASES)
FILMS = [middle_square(film(seed, 90, 80)) for seed in range(OUTPUTS)]


def small_net(seed: int) -> nn.Module:
    """What is converted in seconds, and whose gradient ONNX has operators for."""
    torch.manual_seed(seed)
    stem = [nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Hardswish(), nn.Conv2d(8, 16, 3, stride=2, padding=1)]
    head = [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, OUTPUTS)]
    made: Any = nn.Sequential(*stem, *head).eval()
    made.feature_info = [{"module": "4", "reduction": 8, "num_chs": 16}]  # as timm's nets tell their layers
    return made


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """One of them."""
    return small_net(1)


@pytest.fixture(scope="module")
def contents(small: nn.Module) -> dict[str, bytes]:
    """Its programs."""
    return phone.programs(small, SIZE, CALIBRATION, (STRIDE, "layer_cam"))


def session(module: graphs.Answer | graphs.Explanation) -> running.Session:
    """The same graph in onnxruntime."""
    return running.Session(graphs.to_onnx(module, OPSET).SerializeToString(), 1)


def test_the_student_answers_as_in_onnxruntime(net: nn.Module) -> None:
    made = phone.programs(net, SIZE, CALIBRATION, None)
    assert list(made) == [phone.ANSWER]
    phone.require_same(made[phone.ANSWER], session(graphs.Answer(net, SIZE, CALIBRATION)), FILMS, 1e-4, phone.ANSWER)


def test_a_class_map_is_that_of_onnxruntime_for_each_finding(small: nn.Module, contents: dict[str, bytes]) -> None:
    mapping = session(graphs.Explanation(small, SIZE, CALIBRATION, STRIDE, "layer_cam"))
    phone.require_same(contents[phone.MAPS], mapping, FILMS, 1e-4, phone.MAPS)
    ours = phone.Program(contents[phone.MAPS])
    maps = [ours.execute([torch.from_numpy(FILMS[0]), torch.tensor(place)])[2].numpy() for place in range(OUTPUTS)]
    assert all(np.ptp(one) > 0 for one in maps)
    assert not np.allclose(maps[0], maps[1])


def test_a_program_outlives_the_name_of_its_bytes(contents: dict[str, bytes]) -> None:
    ours = phone.Program(bytes(bytearray(contents[phone.ANSWER])))
    first = [made.clone() for made in ours.execute([torch.from_numpy(FILMS[0])])]
    gc.collect()
    others = [bytes(len(contents[phone.ANSWER])) for _ in range(20)]
    assert torch.equal(ours.execute([torch.from_numpy(FILMS[0])])[0], first[0])
    assert len(others) == 20


def test_the_same_net_gives_the_same_bytes(small: nn.Module, contents: dict[str, bytes]) -> None:
    assert phone.programs(small, SIZE, CALIBRATION, None)[phone.ANSWER] == contents[phone.ANSWER]


@pytest.mark.parametrize("name", [phone.ANSWER, phone.MAPS])
def test_a_program_of_another_net_is_refused(contents: dict[str, bytes], name: str) -> None:
    other = small_net(2)
    answer = graphs.Answer(other, SIZE, CALIBRATION)
    reference = answer if name == phone.ANSWER else graphs.Explanation(other, SIZE, CALIBRATION, STRIDE, "layer_cam")
    with pytest.raises(phone.PhoneError, match=r"otherwise than data/export, by more than 0\.001"):
        phone.require_same(contents[name], session(reference), FILMS, 1e-3, name)


def test_a_map_alone_that_differs_is_refused(small: nn.Module, contents: dict[str, bytes]) -> None:
    other = session(graphs.Explanation(small, SIZE, CALIBRATION, STRIDE, "grad_cam"))
    with pytest.raises(phone.PhoneError, match=re.escape(phone.MAPS)):
        phone.require_same(contents[phone.MAPS], other, FILMS, 1e-3, phone.MAPS)


def test_the_folder_says_what_it_is_and_its_readme_runs(
    small: nn.Module, contents: dict[str, bytes], tmp_path: Path
) -> None:
    exported, into = tmp_path / "export", tmp_path / "phone"
    exported.mkdir()
    export.write_samples(exported / "samples", session(graphs.Answer(small, SIZE, CALIBRATION)), np.stack(FILMS[:3]))
    about = {"architecture": "small", "size_px": SIZE, "map": {"explainer": "layer_cam"}, "input": {}}
    for _ in range(2):  # the second replaces the first
        phone.write(contents, about, exported, "1.5.1", into)
    described = files.read_json(into / "model.json")
    assert (described["map"], described["executorch"], "input" in described) == ("layer_cam", "1.5.1", False)
    assert described["files"] == {
        name: about for name, about in export.hashes(into).items() if name not in ("model.json", "README.md")
    }
    (code,) = re.findall(r"```python\n(.*?)```", (into / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=into, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_an_exported_folder_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone, "EXPORTED", tmp_path)
    with pytest.raises(SystemExit, match="make repro"):
        phone.main([])
