"""Tiny data sets in their owners' layouts, and a place to run stages in."""

import csv
import io
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from PIL import Image
from ruamel.yaml import YAML

from stages import download, harmonize, ingest
from stages.core import files, params
from stages.datasets import chexpert

REPOSITORY = Path(__file__).parent.parent
NIH_HEADER = [
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
]
PADCHEST_HEADER = [
    "ImageID",
    "StudyDate_DICOM",
    "StudyID",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "Projection",
    "BitsStored_DICOM",
    "Rows_DICOM",
    "Columns_DICOM",
    "MethodLabel",
    "Labels",
]


def project(folder: Path, **changes: Any) -> None:
    """A params.yaml as the repository's, but for keys changed by their dotted names (`__` stands for the dot)."""
    values = params.read(REPOSITORY / "params.yaml")
    for key, value in changes.items():
        *path, last = key.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(values, file)
    read_by_stages(folder)


def read_by_stages(folder: Path) -> None:
    """Lay the files that stages read beside their data, the table of findings and the templates, in a project."""
    for path in [REPOSITORY / "stages/findings.csv", *(REPOSITORY / "stages/pages").glob("*.*")]:
        place = folder / path.relative_to(REPOSITORY)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def film(seed: int, side: int = 96, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A smooth random image."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6), dtype=np.uint8)
    return cv2.resize(small, (shape or (side, side))[::-1], interpolation=cv2.INTER_CUBIC)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


def jpeg_by_pillow(image: np.ndarray, mode: str = "L", **options: Any) -> bytes:
    """With what OpenCV does not write: `exif`, `progressive`, `restart_marker_blocks`."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def png_of_chunks(shape: tuple[int, int], depth: int, rows: bytes, *before: tuple[bytes, bytes],
                  colour: int = 0) -> bytes:  # fmt: skip
    """A PNG with these chunks before its pixels; `rows` each begin with the byte that names their filter."""
    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    sums = [struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts]
    chunks = [struct.pack(">I", len(body)) + kind + body + sum_ for (kind, body), sum_ in zip(parts, sums, strict=True)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_of_words(stored: np.ndarray, *before: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of 16 bits."""
    rows = b"".join(b"\0" + row.tobytes() for row in stored.astype(">u2"))
    return png_of_chunks((stored.shape[0], stored.shape[1]), 16, rows, *before)


def dicom(pixels: np.ndarray, **tags: Any) -> bytes:
    """An uncompressed grey DICOM of these stored values, with more tags or others."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3")
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def encapsulated(content: bytes, syntax: str, frames: Sequence[bytes], has_offsets: bool = True, **tags: Any) -> bytes:
    """A DICOM whose pixel data is replaced by these compressed frames, which its header is not told of."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = pydicom.encaps.encapsulate(list(frames), has_bot=has_offsets)
    dataset["PixelData"].is_undefined_length = True
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def jpeg_2000(stored: np.ndarray) -> bytes:
    """A lossless codestream of uint8 or uint16."""
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "JPEG2000", no_jp2=True, irreversible=False)
    return file.getvalue()


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def tar_gz(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def zipped(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def in_folder(path: Path, members: Mapping[str, bytes]) -> None:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def nih_name(patient: int, number: int = 0) -> str:
    return f"{patient:08d}_{number:03d}.png"


def nih_rows(patients: int = 8, labels: str = "No Finding") -> list[list[Any]]:
    """One film of each patient."""
    return [[nih_name(p), labels, 0, p, 50, "M" if p % 2 else "F", "PA"] for p in range(1, patients + 1)]


def nih(
    root: Path,
    rows: Sequence[Sequence[Any]],
    images: Mapping[str, bytes] | None = None,
    test: Sequence[int] = (1, 2),
    boxes: Sequence[Sequence[Any]] = (),
    header: Sequence[str] = NIH_HEADER,
) -> Path:
    """ChestX-ray14; films of the patients in `test` are the official test set."""
    root.mkdir(parents=True, exist_ok=True)
    names = [row[0] for row in rows]
    held_out = {int(name[:8]) for name in names} & set(test)
    (root / "Data_Entry_2017_v2020.csv").write_bytes(table(header, rows))
    for file, is_test in (("train_val_list.txt", False), ("test_list.txt", True)):
        listed = [name for name in names if (int(name[:8]) in held_out) == is_test]
        (root / file).write_text("".join(f"{name}\n" for name in listed))
    box_header = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""]
    first = [[names[0], "Infiltrate", 0, 0, 512, 256]]
    (root / "BBox_List_2017.csv").write_bytes(table(box_header, [*first, *boxes]))
    if images is None:
        images = {f"images/{name}": png(film(place)) for place, name in enumerate(dict.fromkeys(names))}
    in_folder(root, images)
    return root


def chexpert_row(path: str, sex: str = "Female", age: int = 60, view: str = "AP", **labels: float) -> list[Any]:
    """A row of train.csv or valid.csv; labels by finding term with `_` for a blank."""
    side = ["Lateral", ""] if view == "lateral" else ["Frontal", view]
    given = {term.replace("_", " "): value for term, value in labels.items()}
    return [f"CheXpert-v1.0-small/{path}", sex, age, *side, *(given.get(term, "") for term in chexpert.LABELS)]


def chexpert_path(part: str, patient: int, view: str = "frontal") -> str:
    return f"{part}/patient{patient:05d}/study1/view1_{view}.jpg"


def chexpert_zip(root: Path, train: Sequence[Sequence[Any]], valid: Sequence[Sequence[Any]] | None = None,
                 extra: Sequence[str] = ()) -> Path:  # fmt: skip
    """CheXpert; `extra` columns are appended to the header of train.csv."""
    root.mkdir(parents=True, exist_ok=True)
    valid = valid or [chexpert_row(chexpert_path("valid", 64541), No_Finding=1)]
    header = [*chexpert.ABOUT, *chexpert.LABELS]
    folder = "CheXpert-v1.0-small"
    members = {
        f"{folder}/train.csv": table([*header, *extra], train),
        f"{folder}/valid.csv": table(header, valid),
        **{row[0]: jpeg(film(place, shape=(80, 100))) for place, row in enumerate([*train, *valid])},
    }
    zipped(root / f"{folder}.zip", members)
    return root


def padchest_row(image: str, labels: Any, patient: str = "", source: str = "Physician", view: str = "PA",
                 sex: str = "M", birth: Any = "1950.0", bits: int = 12,
                 height: Any = "", width: Any = "") -> list[Any]:  # fmt: skip
    text = labels if isinstance(labels, str) else repr(labels)
    return [image, "20140915", f"s{image}", patient or image, birth, sex, view, bits, height, width, source, text]


def padchest(root: Path, rows: Sequence[Sequence[Any]], images: Mapping[str, bytes] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_bytes(table(PADCHEST_HEADER, rows))
    if images is None:
        images = {row[0]: png(film(place).astype(np.uint16) * 16) for place, row in enumerate(rows)}
    zipped(root / "0.zip", images)
    return root


def pin(dataset: str, root: Path) -> Any:
    """Run download."""
    download.main(["--dataset", dataset, "--root", str(root)])
    return files.read_json(Path(f"data/raw/{dataset}/manifest.json"))


def harmonized(dataset: str, root: Path) -> tuple[Any, Any]:
    """Run download and harmonize: (labels by image, report)."""
    pin(dataset, root)
    harmonize.main(["--dataset", dataset, "--root", str(root)])
    labels = files.read_table(Path(f"data/labels/{dataset}.parquet"))
    return labels.set_index("image"), files.read_json(Path(f"reports/labels/{dataset}.terms.json"))


def ingested(dataset: str, root: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Run download and ingest: ({image: square}, report)."""
    pin(dataset, root)
    ingest.main(["--dataset", dataset, "--root", str(root)])
    folder = Path(f"data/images/{dataset}")
    index = files.read_table(folder / "index.parquet")
    squares = {
        row.image: np.load(folder / f"shard_{row.shard:04d}.npy")[row.row] for row in index.itertuples(index=False)
    }
    return squares, files.read_json(Path(f"reports/labels/{dataset}.images.json"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def forget() -> None:
    """Remove what stages wrote, checkpoints too."""
    for name in ("data", "reports", ".ckpt"):
        shutil.rmtree(name, ignore_errors=True)
