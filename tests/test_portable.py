"""The same bytes on every x86-64 processor with AVX2: `make test-portable`.

`qemu-user` (a Debian package) emulates a processor without AVX-512 and with other caches. It does not emulate AVX-512.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.pipeline import pinning

HERE = Path(__file__).parent
QEMU = "qemu-x86_64"
MODELS = ("Haswell",)  # emulated: Intel's first with AVX2

pytestmark = [
    pytest.mark.portable,
    pytest.mark.skipif(pinning.unpinnable() is not None, reason=f"cannot pin on {pinning.unpinnable()}"),
]


def hashes(*before: str, **environment: str) -> dict[str, Any]:
    """What `portable.py` prints, with other words before the command or other variables."""
    variables = {key: value for key, value in os.environ.items() if key not in pinning.PINS}
    variables |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
    words = [*before, str(Path(sys.executable).resolve()), str(HERE / "portable.py")]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    """The hashes that every processor must give."""
    return dict(json.loads((HERE / "portable.json").read_text()))


def test_this_processor_gives_the_committed_bytes(committed: dict[str, Any]) -> None:
    assert hashes() == committed


def test_another_instruction_set_gives_other_bytes(committed: dict[str, Any]) -> None:
    """The control: without the pins of PyTorch and oneDNN, weights are others, and drawn images the same."""
    found = hashes(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    changed = {name for name in committed if found[name] != committed[name]}
    assert "weights of a teacher" in changed
    assert not any("images" in name for name in changed)


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed (Debian: qemu-user)")
@pytest.mark.parametrize("model", MODELS)
def test_an_emulated_processor_gives_the_committed_bytes(model: str, committed: dict[str, Any]) -> None:
    assert hashes(QEMU, "-cpu", model) == committed
