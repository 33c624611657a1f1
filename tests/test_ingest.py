"""Pixels, rejections and restarts of `ingest`."""

import gzip
import io
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import dask
import filelock
import numpy as np
import owners
import pydicom
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from owners import film, nih_name, png

from stages import ingest
from stages.core import files
from stages.ingest import decoding, duplicates
from stages.learning import checkpoints
from stages.sources import archives

MAX_PIXELS = 40_000_000
BOMB_BYTES = 40_000_000


def square(content: bytes, bits: int = 16, size_px: int = 32, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    return decoding.to_square(content, decoding.Stated(bits), size_px, max_pixels)


def nih_of(root: Path, images: dict[str, bytes]) -> Path:
    """A ChestX-ray14 root with these images in a folder."""
    rows = owners.nih_rows(max(int(name[:8]) for name in images))
    return owners.nih(root, rows, {f"images/{name}": content for name, content in images.items()})


def films(count: int) -> dict[str, bytes]:
    return {nih_name(place): png(film(place)) for place in range(1, count + 1)}


def test_a_square_image_is_resized_by_area() -> None:
    image = film(0, 64)
    means = image.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(square(png(image)) - means).max() <= 0.5


def test_the_longer_side_loses_its_ends() -> None:
    image = np.full((32, 96), 200, np.uint8)
    image[:, 32:64] = film(1, 32)
    np.testing.assert_array_equal(square(png(image)), image[:, 32:64])
    np.testing.assert_array_equal(square(png(image.T)), image[:, 32:64].T)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_16_bit_values_span_the_bits_that_are_stored(bits: int) -> None:
    stored = np.linspace(0, 2**bits - 1, 32 * 32).reshape(32, 32).round().astype(np.uint16)
    result = square(png(stored), bits)
    np.testing.assert_array_equal(result, np.round(stored * (255 / (2**bits - 1))))
    assert (result.min(), result.max()) == (0, 255)


def test_a_value_beyond_the_stored_bits_is_rejected() -> None:
    with pytest.raises(decoding.ImageError, match="a value exceeds the 12 bits stored"):
        square(png(np.full((32, 32), 4096, np.uint16)), bits=12)


def test_rgba_and_jpeg_of_a_grey_film_give_the_grey_film() -> None:
    grey = film(2, 32)
    np.testing.assert_array_equal(square(png(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA))), grey)
    assert np.abs(square(owners.jpeg(grey)).astype(int) - grey).max() < 12


def test_a_palette_image_gives_its_colours_not_its_indices() -> None:
    indices = (film(3, 32) > 127).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes([10, 10, 10, 250, 250, 250])),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    np.testing.assert_array_equal(square(decoding.PNG + b"".join(chunks)), np.where(indices == 1, 250, 10))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_png_is_rejected_wherever_it_is_cut(share: float) -> None:
    content = png(film(4, 128))
    with pytest.raises(decoding.ImageError, match="truncated PNG"):
        square(content[: int(len(content) * share)])
    assert square(content).shape == (32, 32)


def test_a_png_with_a_flipped_bit_is_rejected() -> None:
    content = bytearray(png(film(5, 128)))
    content[len(content) // 2] ^= 1
    with pytest.raises(decoding.ImageError, match="damaged PNG"):
        square(bytes(content))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_jpeg_is_rejected_wherever_it_is_cut(share: float) -> None:
    content = owners.jpeg(film(6, 128))
    with pytest.raises(decoding.ImageError, match="truncated JPEG"):
        square(content[: int(len(content) * share)])


@pytest.mark.parametrize("encode", [png, owners.jpeg])
def test_an_image_with_too_many_pixels_is_rejected_before_it_is_decoded(encode: Any, monkeypatch: Any) -> None:
    content = encode(film(7, shape=(64, 80)))
    assert square(content, max_pixels=64 * 80).shape == (32, 32)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(decoding.ImageError, match=r"more pixels than ingest.max_pixels"):
        square(content, max_pixels=64 * 80 - 1)


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


STORED = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)


def test_a_dicom_without_a_window_spans_its_own_values() -> None:
    np.testing.assert_array_equal(square(dicom(STORED + 100)), np.round(STORED * (255 / 1023)))


def test_a_dicom_is_rescaled_then_windowed() -> None:
    """Rescaled values are 2 v - 200; the window runs from 100 to 900: PS3.3 C.11.2.1.2, the linear function."""
    found = square(dicom(STORED, RescaleSlope=2, RescaleIntercept=-200, WindowCenter=500, WindowWidth=801))
    rescaled = 2.0 * STORED - 200
    np.testing.assert_allclose(found, np.clip((rescaled - 99.5) / 800, 0, 1) * 255, atol=0.5)
    assert (found.min(), found.max()) == (0, 255)


def test_low_values_of_monochrome1_are_bright() -> None:
    plain, inverted = (square(dicom(STORED, PhotometricInterpretation=f"MONOCHROME{number}")) for number in (2, 1))
    np.testing.assert_allclose(inverted, 255.0 - plain, atol=1)


def test_a_dicoms_lookup_table_is_applied() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [1024, 0, 10], STORED.ravel()[::-1].tobytes()
    found = square(dicom(STORED, VOILUTSequence=[table], WindowCenter=500, WindowWidth=10))
    np.testing.assert_allclose(found, (1023 - STORED) * (255 / 1023.0), atol=0.5)


def test_a_dicoms_values_may_be_signed() -> None:
    signed = STORED.astype(np.int16) - 500
    found = square(dicom(signed.view(np.uint16), PixelRepresentation=1, WindowCenter=12, WindowWidth=1024))
    np.testing.assert_allclose(found, STORED * (255 / 1023), atol=1)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 2}, "not one grey frame"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "not one grey frame"),
        ({"PixelData": b"abcd"}, "pixels cannot be read"),
        ({"WindowCenter": 3, "WindowWidth": 0}, "pixels cannot be read"),
        ({"Rows": 60_000, "Columns": 60_000}, "more pixels than ingest.max_pixels"),
    ],
)
def test_a_dicom_that_is_no_film_is_rejected(tags: dict[str, Any], reason: str) -> None:
    with pytest.raises(decoding.ImageError, match=reason):
        square(dicom(STORED, **tags))


def test_a_dicom_whose_compression_nobody_reads_is_rejected_with_its_name() -> None:
    content = dicom(STORED)
    syntax = pydicom.uid.ExplicitVRLittleEndian.encode()
    other = pydicom.uid.JPEGLosslessSV1.encode()
    place, length = content.index(syntax), len(syntax) + len(syntax) % 2
    assert len(other) - length == 2, "the group's length grows by this"
    grown = content[: place - 2] + struct.pack("<H", len(other)) + other + content[place + length :]
    with pytest.raises(decoding.ImageError, match="DICOM"):
        square(grown)


def test_a_deflated_dicom_is_not_unpacked(monkeypatch: Any) -> None:
    monkeypatch.setattr(pydicom, "dcmread", lambda *_: pytest.fail("was read"))
    with pytest.raises(decoding.ImageError, match="deflated DICOM"):
        square(bytes(128) + b"DICM" + bytes(40) + b"1.2.840.10008.1.2.1.99\0")


@pytest.mark.filterwarnings("ignore")  # pydicom tells of what it misses
@pytest.mark.parametrize("length", range(132, 2400, 97))
def test_a_truncated_dicom_is_rejected_wherever_it_is_cut(length: int) -> None:
    content = dicom(STORED, WindowCenter=500, WindowWidth=900)
    assert length < len(content)
    with pytest.raises(decoding.ImageError):
        square(content[:length])


def test_a_dicom_stands_for_the_image_of_its_name(project: Path) -> None:
    stored = film(1).astype(np.uint16)
    root = nih_of(project / "root", {nih_name(2): png(film(2))})
    rows = owners.nih_rows(2)
    owners.nih(root, rows, {f"images/{nih_name(1)[:-4]}.dcm": dicom(stored)})
    squares, _ = owners.ingested("chestxray14", root)
    assert sorted(squares) == [nih_name(1), nih_name(2)]
    assert np.corrcoef(squares[nih_name(1)].ravel(), square(png(film(1))).ravel())[0, 1] > 0.99


def test_a_film_of_another_size_than_its_table_says_is_rejected_until_params_allow_it(project: Path) -> None:
    sizes = {"a.png": (96, 96), "b.png": (100, 96), "c.png": ("", "")}
    rows = [owners.padchest_row(name, ["normal"], height=h, width=w) for name, (h, w) in sizes.items()]
    root = owners.padchest(project / "root", rows)
    owners.project(project, datasets__padchest__max_rejected_images=0.1)
    with pytest.raises(ValueError, match=r"1 of 3 images .* b.png in 0.zip: its size is not the one in its table"):
        owners.ingested("padchest", root)
    owners.project(project, datasets__padchest__max_rejected_images=0.1, ingest__check_size=False)
    squares, _ = owners.ingested("padchest", root)
    assert sorted(squares) == ["a.png", "b.png", "c.png"]


def test_a_film_stored_again_smaller_and_brighter_is_a_near_duplicate_and_another_film_is_not(project: Path) -> None:
    images = films(6)
    again = cv2.resize(film(2), (80, 80), interpolation=cv2.INTER_AREA)
    images[nih_name(6)] = png(np.clip(again.astype(int) + 8, 0, 255).astype(np.uint8))
    _, report = owners.ingested("chestxray14", nih_of(project / "root", images))
    assert report["near_duplicates"] == [[nih_name(2), nih_name(6)]]
    assert report["identical"] == []


@given(st.integers(0, 10**6), st.integers(0, 6))
@trials(max_examples=20, deadline=None)
def test_near_duplicates_are_all_pairs_within_the_distance(seed: int, max_bits: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (3, 256), dtype=np.uint8).repeat(4, axis=0)
    for row in bits:
        row[rng.choice(256, size=rng.integers(0, 8), replace=False)] ^= 1
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    expected = [(i, j) for i in range(12) for j in range(i + 1, 12) if apart[i, j] <= max_bits]
    assert duplicates.near([np.packbits(row).tobytes().hex() for row in bits], max_bits) == expected


def test_a_dask_cluster_of_two_workers_writes_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = nih_of(project / "root", films(200) | {nih_name(7): b""})
    owners.ingested("chestxray14", root)
    alone = owners.content(Path("data/images")) | owners.content(Path("reports"))
    owners.forget()
    monkeypatch.setattr(ingest, "to_square", lambda *_: pytest.fail("this process decoded"))
    command = [sys.executable, str(Path(__file__).parent / "cluster.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(owners.REPOSITORY)}
    with subprocess.Popen(command, env=environment, **pipes) as cluster:
        assert cluster.stdout
        settings = {"ingest__dask_scheduler": cluster.stdout.readline().strip(), "ingest__size_px": 32}
        owners.project(project, **settings, ingest__shard_images=5, datasets__chestxray14__max_rejected_images=0.5)
        owners.ingested("chestxray14", root)
        cluster.communicate("")
    assert owners.content(Path("data/images")) | owners.content(Path("reports")) == alone


def test_a_dask_scheduler_that_does_not_answer_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = nih_of(project / "root", films(2))
    monkeypatch.setitem(dask.config.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    owners.project(project, ingest__dask_scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*dask_scheduler"):
        owners.ingested("chestxray14", root)


@pytest.mark.parametrize(
    ("file", "pack"),
    [("images", owners.in_folder), ("images_001.tar.gz", owners.tar_gz), ("images.zip", owners.zipped)],
)
def test_each_rejected_image_is_named_with_its_reason_and_the_others_are_kept(
    project: Path, file: str, pack: Any
) -> None:
    images = films(10)
    images[nih_name(3)] = b""
    images[nih_name(5)] = images[nih_name(5)][:-20]
    images[nih_name(7)] = b"GIF89a"
    root = owners.nih(project / "root", owners.nih_rows(10), images={})
    pack(root / file, images)
    squares, report = owners.ingested("chestxray14", root)
    assert {(found["image"], found["source"].split("/")[0], found["reason"]) for found in report["rejected"]} == {
        (nih_name(3), file, "zero bytes"),
        (nih_name(5), file, "truncated PNG"),
        (nih_name(7), file, "neither PNG, JPEG nor DICOM"),
    }
    assert (report["read"], report["written"]) == (10, 7)
    assert set(squares) == set(images) - {nih_name(3), nih_name(5), nih_name(7)}
    for name, found in squares.items():
        np.testing.assert_array_equal(found, square(images[name]))


def test_more_rejected_images_than_allowed_stop_the_stage(project: Path) -> None:
    images = dict.fromkeys(films(4), b"") | {nih_name(4): png(film(4))}
    with pytest.raises(ValueError, match=r"3 of 4 images are rejected, more than the share 0.5 .*zero bytes': 3"):
        owners.ingested("chestxray14", nih_of(project / "root", images))


def test_padchest_reads_stored_bits_from_its_table(project: Path) -> None:
    rows = [owners.padchest_row("a.png", ["normal"], bits=10), owners.padchest_row("b.png", ["normal"], bits=12)]
    stored = np.full((32, 32), 1023, np.uint16)
    stored[0] = 0
    images = {row[0]: png(stored) for row in rows}
    squares, _ = owners.ingested("padchest", owners.padchest(project / "root", rows, images))
    assert (squares["a.png"].max(), squares["b.png"].max()) == (255, round(1023 / 4095 * 255))


def test_folder_tar_and_zip_of_a_whole_root_give_the_same_shards_for_any_number_of_workers(project: Path) -> None:
    members = {f"images/{name}": content for name, content in reversed(films(13).items())}
    members[f"images/{nih_name(4)}"] = b""
    root = owners.nih(project / "folder", owners.nih_rows(13), members)
    whole = {f"sample/{name}": content for name, content in owners.content(root).items()}
    roots = {"folder": root, "tar": project / "tar", "zip": project / "zip"}
    for name, file, pack in (("tar", "images_001.tar.gz", owners.tar_gz), ("zip", "images.zip", owners.zipped)):
        roots[name].mkdir()
        pack(roots[name] / file, whole)
    written = []
    for root in roots.values():
        for workers in (1, 3):
            params = {"ingest__size_px": 32, "ingest__shard_images": 5, "workers": workers}
            owners.project(project, datasets__chestxray14__max_rejected_images=0.5, **params)
            owners.forget()
            owners.ingested("chestxray14", root)
            index = files.read_table(Path("data/images/chestxray14/index.parquet"))
            shards = {name: data for name, data in owners.content(Path("data/images")).items() if "shard" in name}
            written.append((index.drop(columns="source").values.tolist(), shards))
    assert len(written[0][1]) == 3
    assert [row[0] for row in written[0][0]] == sorted(set(films(13)) - {nih_name(4)})
    assert all(one == written[0] for one in written)


def test_identical_images_are_reported(project: Path) -> None:
    images = films(5)
    images[nih_name(5)] = images[nih_name(2)]
    _, report = owners.ingested("chestxray14", nih_of(project / "root", images))
    assert report["identical"] == [[nih_name(2), nih_name(5)]]


def test_an_image_in_two_places_is_refused_with_both(project: Path) -> None:
    root = nih_of(project / "root", films(3))
    owners.tar_gz(root / "images_001.tar.gz", {f"images/{nih_name(2)}": png(film(2))})
    with pytest.raises(
        ValueError, match=rf"e.g. {nih_name(2)} in images_001.tar.gz and images/{nih_name(2)}: leave one"
    ):
        owners.ingested("chestxray14", root)


def test_members_that_are_no_image_are_named(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(2), images={})
    owners.tar_gz(root / "images_001.tar.gz", {f"images/{nih_name(1)}": png(film(1)), "images/film.png": png(film(2))})
    _, report = owners.ingested("chestxray14", root)
    assert report["members_that_are_no_image"] == ["images/film.png"]


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize(("name", "pack"), [("images_002.tar.gz", owners.tar_gz), ("images_2.zip", owners.zipped)])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_an_archive_cut_short_is_refused_and_what_was_read_before_is_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, pack: Any, share: float
) -> None:
    monkeypatch.setattr(ingest, "CHUNK_IMAGES", 2)
    root = owners.nih(project / "root", owners.nih_rows(12), images={})
    first, second = (
        {f"images/{nih_name(place)}": png(film(place)) for place in places} for places in (range(1, 7), range(7, 13))
    )
    owners.tar_gz(root / "images_001.tar.gz", first)
    pack(root / name, second)
    whole = (root / name).read_bytes()
    cut(root / name, share)
    with pytest.raises(archives.ArchiveError, match=rf"{name} is damaged or cut short .*fetch it again"):
        owners.ingested("chestxray14", root)
    assert not Path("data/images/chestxray14").exists()
    (root / name).write_bytes(whole)
    decoded: list[bytes] = []
    to_square = ingest.to_square
    monkeypatch.setattr(
        ingest, "to_square", lambda content, *rest: decoded.append(content) or to_square(content, *rest)
    )
    squares, _ = owners.ingested("chestxray14", root)
    assert sorted(squares) == [nih_name(place) for place in range(1, 13)]
    assert not set(decoded) & set(first.values())
    assert set(decoded) <= set(second.values())


def test_a_tar_without_its_end_mark_is_refused(tmp_path: Path) -> None:
    owners.tar_gz(tmp_path / "whole.tar.gz", films(4))
    with gzip.open(tmp_path / "whole.tar.gz") as file:
        content = file.read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        third = archive.getmembers()[2]
    (tmp_path / "cut.tar").write_bytes(content[: third.offset + 100])
    with pytest.raises(archives.ArchiveError, match="end mark is missing"):
        list(archives.members(tmp_path / "cut.tar"))
    assert len(list(archives.members(tmp_path / "whole.tar.gz"))) == 4


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:/evil.png"])
@pytest.mark.parametrize(("file", "pack"), [("x.tar.gz", owners.tar_gz), ("x.zip", owners.zipped)])
def test_a_member_that_leaves_the_archive_is_refused(tmp_path: Path, name: str, file: str, pack: Any) -> None:
    pack(tmp_path / file, {name: b"x"})
    with pytest.raises(archives.ArchiveError, match="members must lie below the archive"):
        list(archives.members(tmp_path / file))


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        info = zipfile.ZipInfo("a.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    for name in ("x.tar.gz", "x.zip"):
        with pytest.raises(archives.ArchiveError, match=r"'a.png', which is a link or a device"):
            list(archives.members(tmp_path / name))


@pytest.mark.parametrize(("file", "pack"), [("images_001.tar.gz", owners.tar_gz), ("images.zip", owners.zipped)])
def test_a_bomb_in_an_archive_is_rejected_unread(project: Path, file: str, pack: Any) -> None:
    owners.project(project, ingest__max_pixels=96 * 96, datasets__chestxray14__max_rejected_images=0.5)
    root = owners.nih(project / "root", owners.nih_rows(2), images={})
    pack(root / file, {nih_name(1): png(film(1)), nih_name(2): bytes(3_000_000)})
    _, report = owners.ingested("chestxray14", root)
    assert [found["reason"] for found in report["rejected"]] == ["more bytes than ingest.max_pixels can have"]


def test_a_zip_whose_directory_understates_a_member_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    content, stated = bytes(BOMB_BYTES), 1000
    owners.zipped(tmp_path / "x.zip", {"a.png": content}, zipfile.ZIP_DEFLATED)
    packed = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(packed.replace(struct.pack("<I", len(content)), struct.pack("<I", stated)))
    member = archives.members(tmp_path / "x.zip")
    tracemalloc.start()
    with pytest.raises(archives.ArchiveError, match=r"x.zip is damaged .*CRC"):
        next(member).read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BOMB_BYTES / 4


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_by_a_method_that_is_unpacked_all_at_once_is_refused(tmp_path: Path, method: int) -> None:
    owners.zipped(tmp_path / "x.zip", {"a.png": b"x"}, method)
    with pytest.raises(archives.ArchiveError, match=r"'a.png', which is encrypted or packed by another method"):
        list(archives.members(tmp_path / "x.zip"))


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    owners.zipped(tmp_path / "x.zip", {"a.png": b"x"})
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[content.index(b"PK\1\2") + 8] |= archives.ENCRYPTED
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(archives.ArchiveError, match=r"'a.png', which is encrypted"):
        list(archives.members(tmp_path / "x.zip"))


def test_a_second_writer_is_refused_by_name_of_the_first(project: Path) -> None:
    root = nih_of(project / "root", films(3))
    locks = project / ".ckpt" / "locks"
    locks.mkdir(parents=True)
    (locks / "ingest-chestxray14.pid").write_text("4711")
    with (
        filelock.FileLock(locks / "ingest-chestxray14.lock"),
        pytest.raises(checkpoints.BusyError, match="process 4711 is still making ingest-chestxray14"),
    ):
        owners.ingested("chestxray14", root)
    squares, _ = owners.ingested("chestxray14", root)
    assert len(squares) == 3


def start(root: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from stages import ingest; ingest.main()"]
    command += ["--dataset", "chestxray14", "--root", str(root)]
    environment = os.environ | {"PYTHONPATH": str(owners.REPOSITORY)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_run_killed_in_the_middle_goes_on_and_writes_the_bytes_of_an_undisturbed_one(project: Path) -> None:
    owners.project(project, ingest__size_px=32, workers=1)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    slow = png(noise)
    root = owners.nih(project / "root", owners.nih_rows(600), images={"images/original.png": slow})
    for place in range(1, 601):
        os.link(root / "images" / "original.png", root / "images" / nih_name(place))
    (root / "images" / "original.png").unlink()
    owners.pin("chestxray14", root)
    process = start(root)
    while not (finished := list(Path(".ckpt").glob("ingest-chestxray14/*/*.json"))) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = list(Path(".ckpt").glob("ingest-chestxray14/*/*.json"))
    assert 0 < len(finished) * ingest.CHUNK_IMAGES < 600
    assert not Path("data/images/chestxray14").exists()
    again = start(root)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert f"{len(finished) * ingest.CHUNK_IMAGES} images of images/{nih_name(1)} were read before" in errors
    assert not list(Path(".ckpt").glob("ingest-chestxray14/*"))
    first = owners.content(Path("data/images")) | owners.content(Path("reports"))
    undisturbed = start(root)
    _, errors = undisturbed.communicate()
    assert "read before" not in errors
    assert owners.content(Path("data/images")) | owners.content(Path("reports")) == first
