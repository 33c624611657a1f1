"""README tells what the reports tell, and names what is there."""

import re
from pathlib import Path

import pytest

from stages.core import plugins
from stages.pages import readme

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_the_reports() -> None:
    sources = {name: (ROOT / path).read_text(encoding="utf-8") for name, path in readme.SOURCES.items()}
    assert readme.filled(TEXT, sources) == TEXT, "run `python -m stages.pages.readme`"


def test_a_missing_marker_is_named() -> None:
    with pytest.raises(ValueError, match="no block <!-- phantom -->"):
        readme.filled("nothing", {"phantom": "<!-- results -->\nx\n<!-- /results -->"})


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", TEXT, re.MULTILINE))
    assert named - targets == set()
    assert {"repro", "test", "run"} <= named


def test_every_plug_in_folder_is_explained() -> None:
    for kind in plugins.KINDS:
        assert f"stages/{kind}/" in TEXT


def test_every_file_named_exists() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
