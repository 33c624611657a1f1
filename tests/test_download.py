"""What `download` pins, and what it says of an incomplete root."""

import hashlib
from pathlib import Path

import owners
import pytest

from stages import download


@pytest.mark.usefixtures("project")
def test_a_missing_root_is_refused_with_what_belongs_there_and_where_to_get_it() -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder nowhere .*train.csv.*CheXpert-v1.0\*.zip.*Stanford AIMI"):
        download.main(["--dataset", "chexpert", "--root", "nowhere"])


def test_every_missing_file_is_named_at_once(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(), images={})
    (root / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks test_list.txt, images \(archives named images\*.tar.gz"):
        owners.pin("chestxray14", root)


def test_the_manifest_has_size_and_sha256_of_each_used_file_and_names_the_others(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3))
    (root / "README.md").write_text("hello")
    manifest = owners.pin("chestxray14", root)
    pinned = {file["name"]: (file["bytes"], file["sha256"]) for file in manifest["files"]}
    image = (root / "images" / owners.nih_name(1)).read_bytes()
    assert pinned[f"images/{owners.nih_name(1)}"] == (len(image), hashlib.sha256(image).hexdigest())
    assert len(pinned) == 3 + 4
    assert manifest["unused"]["files"] == ["README.md"]
    assert "NIH Clinical Center" in manifest["licence"]


def test_nothing_but_the_manifest_is_written(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3))
    before = owners.content(root)
    owners.pin("chestxray14", root)
    assert owners.content(root) == before
    assert list(owners.content(project / "data")) == ["raw/chestxray14/manifest.json"]


def test_a_table_inside_the_zip_counts_as_there(project: Path) -> None:
    root = owners.chexpert_zip(project / "root", [owners.chexpert_row(owners.chexpert_path("train", 1))])
    assert [file["name"] for file in owners.pin("chexpert", root)["files"]] == ["CheXpert-v1.0-small.zip"]


def test_a_table_that_lies_in_two_places_is_refused(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3))
    (root / "old").mkdir()
    (root / "old" / "test_list.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"test_list.txt is there 2 times .*old/test_list.txt.*leave one"):
        owners.pin("chestxray14", root)
