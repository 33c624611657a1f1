"""What `download` pins, and what it says of an incomplete root."""

import gzip
import hashlib
import shutil
from pathlib import Path
from typing import Any

import owners
import pandas as pd
import pytest

from stages import download
from stages.sources import raw


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


def packed(root: Path, name: str, pack: Any, folder: str = "") -> Path:
    """A whole root in one archive of this name."""
    members = {f"{folder}{path}": content for path, content in owners.content(root).items()}
    shutil.rmtree(root)
    root.mkdir()
    pack(root / name, members)
    return root


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("archive.zip", owners.zipped),
        ("nih (1).zip", owners.zipped),
        ("download", owners.tar_gz),
        ("chest.zip.1", owners.zipped),
        ("images_001.tar(1).gz", owners.tar_gz),
    ],
)
def test_an_archive_with_everything_in_it_is_looked_into_whatever_its_name(project: Path, name: str, pack: Any) -> None:
    root = packed(owners.nih(project / "root", owners.nih_rows()), name, pack, "a/b/")
    labels, _ = owners.harmonized("chestxray14", root)
    squares, _ = owners.ingested("chestxray14", root)
    assert sorted(squares) == labels.index.tolist() == [owners.nih_name(place) for place in range(1, 9)]
    assert [file["name"] for file in owners.pin("chestxray14", root)["files"]] == [name]


def test_an_archive_that_is_not_understood_is_named_with_three_of_the_names_in_it(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(), images={})
    owners.zipped(root / "archive.zip", {f"images_{place:03d}.zip": b"" for place in range(1, 13)})
    first = "images_001.zip, images_002.zip, images_003.zip"
    with pytest.raises(
        FileNotFoundError, match=rf"Left unread: archive.zip holds no table .*\(members: 12, e.g. {first}\)"
    ):
        owners.pin("chestxray14", root)
    packed(root, "mirror.zip", owners.zipped)
    with pytest.raises(FileNotFoundError, match=r"mirror.zip holds tables but no film .*members: 1, e.g. archive.zip"):
        owners.pin("chestxray14", root)


def test_an_archive_beside_a_complete_root_is_said_to_be_unread(project: Path, capsys: Any) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    owners.zipped(root / "masks.zip", {f"mask_{place}.png": b"" for place in range(5)})
    (root / "half.zip").write_bytes(b"PK\3\4half")
    manifest = owners.pin("chestxray14", root)
    assert set(manifest["unused"]["archives"]) == {"half.zip", "masks.zip"}
    told = capsys.readouterr().err
    assert "left unread: masks.zip holds no table and no film of this data set (members: 5, e.g. mask_0.png" in told
    assert "left unread: half.zip is damaged or cut short" in told


@pytest.mark.parametrize(
    ("first", "packing"), [(b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!\x1a\7\0", "RAR"), (b"BZh9", "bzip2")]
)
def test_a_packing_that_is_not_read_is_named_with_the_remedy(project: Path, first: bytes, packing: str) -> None:
    root = owners.nih(project / "root", owners.nih_rows(), images={})
    (root / "films").write_bytes(first + bytes(600))
    with pytest.raises(FileNotFoundError, match=rf"films is packed by {packing}, which is not read: unpack it"):
        owners.pin("chestxray14", root)


def test_pictures_in_office_documents_and_links_that_lead_nowhere_are_passed_by(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3))
    owners.zipped(root / "notes.xlsx", {f"xl/media/{owners.nih_name(1)}": b""})
    (root / "gone").symlink_to("nowhere")
    assert owners.pin("chestxray14", root)["unused"]["files"] == ["gone", "notes.xlsx"]


def test_image_files_whose_names_are_no_films_are_counted_and_three_are_named(project: Path, capsys: Any) -> None:
    root = owners.nih(project / "root", owners.nih_rows(6))
    for place in range(1, 5):
        path = root / "images" / owners.nih_name(place)
        path.rename(path.with_suffix(".tif"))
    first = [f"images/{place:08d}_000.tif" for place in range(1, 4)]
    assert owners.pin("chestxray14", root)["unused"]["images"] == {"count": 4, "first": first}
    assert f"left unread: image files of other names: 4, e.g. {', '.join(first)}" in capsys.readouterr().err
    assert owners.ingested("chestxray14", root)[1]["left_unread"] == {"count": 4, "first": first}
    for path in (root / "images").iterdir():
        path.rename(path.with_name(f"{path.stem} (1).png"))
    with pytest.raises(FileNotFoundError, match=r"lacks images .*image files of other names: 6, e.g. images/00000001"):
        owners.pin("chestxray14", root)


def test_what_operating_systems_leave_is_counted_and_no_film(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3))
    names = (f"images/._{owners.nih_name(1)}", f"__MACOSX/{owners.nih_name(2)}", "images/Thumbs.db", ".DS_Store")
    owners.in_folder(root, dict.fromkeys(names, b"x"))
    manifest = owners.pin("chestxray14", root)
    assert len(manifest["files"]) == 3 + 4
    assert manifest["unused"]["of_operating_systems"] == 4


@pytest.mark.parametrize(
    "pack", [owners.zipped, lambda path, members: path.write_bytes(gzip.compress(*members.values()))]
)
def test_a_table_that_is_packed_under_its_plain_name_is_read(project: Path, pack: Any) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    expected, _ = owners.harmonized("chestxray14", root)
    path = root / "Data_Entry_2017_v2020.csv"
    pack(path, {f"x/{path.name}": path.read_bytes()})
    labels, _ = owners.harmonized("chestxray14", root)
    pd.testing.assert_frame_equal(labels, expected)


def test_folders_that_links_lead_to_in_circles_are_walked_once(tmp_path: Path) -> None:
    """Two links to the folder that they lie in make 2^40 paths, before the system refuses the next link."""
    (tmp_path / "films").mkdir()
    for name in ("films/1.png", "films/Thumbs.db"):
        (tmp_path / name).write_text("")
    for name in ("here", "there", "films/above"):
        (tmp_path / name).symlink_to(tmp_path)
    assert list(raw.walk(tmp_path)) == ["films/1.png", "films/Thumbs.db"]
    assert raw.count_of_system(tmp_path) == 1


def test_a_folder_that_a_link_leads_to_outside_is_walked(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "films").mkdir()
    (tmp_path / "films/1.png").write_text("")
    (tmp_path / "root/linked").symlink_to(tmp_path / "films")
    assert list(raw.walk(tmp_path / "root")) == ["linked/1.png"]
