"""Fixtures that several test files share."""

from pathlib import Path

import owners
import pytest
import smoke


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project to run stages in, with the repository's params but for loose limits; the current directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    owners.project(
        folder,
        datasets__chestxray14__max_rejected_rows=0.2,
        datasets__chexpert__max_rejected_rows=0.5,
        datasets__padchest__max_rejected_rows=1.0,
        datasets__chestxray14__max_rejected_images=0.5,
        ingest__size_px=32,
        ingest__shard_images=5,
    )
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smoke preset; tests copy it before they change anything."""
    folder = smoke.lay_out(tmp_path_factory.mktemp("smoke") / "run")
    smoke.side_by_side(folder)
    return folder
