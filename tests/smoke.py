"""Runs of the smoke preset, in a folder of their own with a cache of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.pipeline import fence, preset

ROOT = Path(__file__).parent.parent
TIMED = re.compile(r"\.timing\.json$|^reports/(index\.html|report\.md|profile)$")


def environment() -> dict[str, str]:
    """Of a command in a run's folder: the code is the run's, the programs are those that tests run with.

    Stages run within the kernel's fence where there is one: what one of them reads undeclared, in C code too, ends it.
    """
    found = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    found |= {fence.WISH: "1"} if fence.is_offered() else {}
    return {key: value for key, value in found.items() if key not in ("PYTHONPATH", "DVC_STAGE")}


def dvc(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A DVC command in a run's folder."""
    done = subprocess.run(["dvc", *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def runner(module: str = "repro", *words: str) -> list[str]:
    """The command of a module of `stages/pipeline`."""
    return [sys.executable, "-m", f"stages.pipeline.{module}", *words]


def side_by_side(folder: Path) -> str:
    """Run what is due, two stages at a time; what is printed."""
    words = runner("repro", "--lanes", "2")
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def lay_out(folder: Path) -> Path:
    """The smoke preset, ready to run, with a cache of its own."""
    preset.export(ROOT / "presets/smoke.yaml", folder, repository=ROOT)
    (folder / ".dvc/config").write_text(preset.CONFIG.format(cache="cache"))
    return folder


def lock(folder: Path) -> dict[str, Any]:
    """The stages of a run's dvc.lock."""
    return dict(YAML(typ="safe").load(folder / "dvc.lock")["stages"])


def stable(stages: dict[str, Any]) -> dict[str, Any]:
    """A lock without the hashes of measured times, and of the report that shows them."""
    return {
        name: {
            kind: [item for item in entry.get(kind, []) if not TIMED.search(item["path"])] for kind in ("deps", "outs")
        }
        | {"cmd": entry["cmd"], "params": entry.get("params")}
        for name, entry in stages.items()
    }
