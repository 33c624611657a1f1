"""What may not be committed: files of data sets' owners, by name and by content; nothing of this repository is."""

import subprocess
from pathlib import Path

import pytest

from stages.pipeline import staged

REPOSITORY = Path(__file__).parent.parent
KNOWN = sorted(set(staged.names()))


def test_nothing_that_git_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(listed) > 200
    staged.main(listed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Data_Entry_2017_v2020.csv", "has the name of a file of chestxray14's owner"),
        ("films/images_007.tar.gz", "has the name of a file of chestxray14's owner"),
        ("mine/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "has the name of a file of padchest's owner"),
        ("DATA_entry_2017_V2020.CSV", "has the name of a file of chestxray14's owner"),
        ("x/00000001_000.png", "has the name of a film of chestxray14"),
        ("reports/00000001_000.PNG", "has the name of a film of chestxray14"),
        ("CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg", "has the name of a film of chexpert"),
    ],
)
def test_an_owners_file_is_refused_by_its_name(name: str, said: str) -> None:
    assert staged.fault(Path(name), KNOWN, ()) == said


def test_a_file_is_refused_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(bytes(128) + b"DICM" + bytes(9))
    (tmp_path / "table.txt").write_bytes(b"PAR1" + bytes(9))
    (tmp_path / "large").write_bytes(bytes(1_000_001))
    (tmp_path / "notes.md").write_text("a film")
    assert staged.fault(tmp_path / "scan", KNOWN, ()) == "is a DICOM file"
    assert staged.fault(tmp_path / "table.txt", KNOWN, ()) == "is a parquet file"
    assert staged.fault(tmp_path / "large", KNOWN, ()) == "has 1,000,001 bytes: what a command makes again, DVC keeps"
    assert staged.fault(tmp_path / "notes.md", KNOWN, ()) is None
    with pytest.raises(SystemExit, match="scan is a DICOM file\ntake it out: git restore --staged"):
        staged.main([str(tmp_path / "scan"), str(tmp_path / "notes.md")])
