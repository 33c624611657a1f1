"""Pixels, rejections and restarts of `ingest`."""

import errno
import gzip
import io
import json
import os
import re
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
from owners import dicom, film, nih_name, png
from PIL import Image, ImageOps

from stages import ingest
from stages.core import files
from stages.films import decoding, headers
from stages.films.raster import grey
from stages.ingest import duplicates
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


def detailed(side: int = 320) -> np.ndarray:
    """A film whose JPEG has data enough to be damaged here and there."""
    small = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8), dtype=np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def scans_of(content: bytes) -> list[int]:
    """Where the scans of a JPEG begin."""
    return [found.start() for found in re.finditer(rb"\xff\xda", content)]


DAMAGE: dict[str, Any] = {
    "a hole of 100 bytes": lambda c: c[: len(c) // 2] + bytes(100) + c[len(c) // 2 + 100 :],
    "a hole of 4096 bytes": lambda c: c[: len(c) // 2] + bytes(4096) + c[len(c) // 2 + 4096 :],
    "a third left out": lambda c: c[: len(c) // 3] + c[2 * len(c) // 3 :],
    "a third twice": lambda c: c[: 2 * len(c) // 3] + c[len(c) // 3 :],
    "cut, end mark added": lambda c: c[: len(c) // 2] + b"\xff\xd9",
    "cut, zeros and end mark added": lambda c: c[: len(c) // 2] + bytes(len(c) // 2) + b"\xff\xd9",
    "another file after half of it": lambda c: c[: len(c) // 2] + c,
    "bytes left over": lambda c: c[:-2] + bytes(50) + c[-2:],
}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 40}], ids=str)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_jpeg_that_is_damaged_but_decodes_is_rejected(damage: Any, options: dict[str, Any]) -> None:
    content = owners.jpeg_by_pillow(detailed(), quality=95, **options)
    assert square(content).shape == (32, 32)
    with pytest.raises(decoding.ImageError, match="damaged JPEG"):
        square(damage(content))


def test_a_progressive_jpeg_that_ends_after_any_of_its_scans_but_the_last_is_rejected() -> None:
    content = owners.jpeg_by_pillow(detailed(), progressive=True)
    starts = scans_of(content)
    assert len(starts) > 4
    for start in starts[1:]:
        with pytest.raises(decoding.ImageError, match="damaged JPEG: scans are missing"):
            square(content[:start] + b"\xff\xd9")


def test_a_jpeg_whose_restarts_are_out_of_order_is_rejected() -> None:
    content = owners.jpeg_by_pillow(detailed(), restart_marker_blocks=40)
    with pytest.raises(decoding.ImageError, match="damaged JPEG: its restarts are not where they should be"):
        square(content.replace(b"\xff\xd1", b"\xff\xd3", 1))
    start = content.index(b"\xff\xd1")
    with pytest.raises(decoding.ImageError, match="damaged JPEG"):
        square(content[:start] + content[content.index(b"\xff\xd2") :])


@given(st.data())
@trials(max_examples=60, deadline=None)
def test_a_jpeg_of_any_legal_kind_is_read_as_opencv_reads_it(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["L", "RGB", "CMYK"]))
    shape = (data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if data.draw(st.booleans()):
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)  # the extremes, where encoders overshoot
    content = owners.jpeg_by_pillow(
        pixels,
        mode,
        quality=data.draw(st.sampled_from([1, 10, 50, 95, 100])),
        progressive=data.draw(st.booleans()),
        optimize=data.draw(st.booleans()),
        subsampling=data.draw(st.integers(0, 2)),
        restart_marker_blocks=data.draw(st.sampled_from([0, 1, 7])),
    )
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    found = grey(content, headers.of_jpeg(content))
    np.testing.assert_array_equal(found, decoded if mode == "L" else cv2.cvtColor(decoded, cv2.COLOR_BGR2GRAY))


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\xff\xd9"])
@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xff\xff"])
def test_fill_bytes_before_a_marker_of_a_jpeg_are_legal(marker: bytes, filling: bytes) -> None:
    content = owners.jpeg(film(6, 64))
    place = content.rindex(marker)
    np.testing.assert_array_equal(square(content[:place] + filling + content[place:]), square(content))


def test_fill_bytes_before_a_restart_of_a_jpeg_are_legal() -> None:
    content = owners.jpeg_by_pillow(film(6, 64), restart_marker_blocks=4)
    place = content.index(b"\xff\xd1")
    np.testing.assert_array_equal(square(content[:place] + b"\xff\xff" + content[place:]), square(content))


def test_a_comment_that_holds_an_end_mark_does_not_end_a_jpeg() -> None:
    content = owners.jpeg(film(6, 64))
    comment = b"\xff\xfe\0\6\xff\xd9ab"
    np.testing.assert_array_equal(square(content[:2] + comment + content[2:]), square(content))
    with pytest.raises(decoding.ImageError, match="truncated JPEG"):
        square((content[:2] + comment + content[2:])[: len(content) // 2])


def turned(kind: str, image: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_film_lies_as_a_viewer_shows_it(kind: str, orientation: int) -> None:
    content = turned(kind, film(8, shape=(64, 96)), orientation)
    shown = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.abs(square(content).astype(int) - square(png(shown))).max() <= 1
    shape = (96, 64) if orientation < 5 else (64, 96)
    decoding.to_square(content, decoding.Stated(size=shape), 32, MAX_PIXELS)
    with pytest.raises(decoding.ImageError, match="its size is not the one in its table"):
        decoding.to_square(content, decoding.Stated(size=shape[::-1]), 32, MAX_PIXELS)


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    np.testing.assert_array_equal(square(turned("PNG", film(8, 64), orientation)), square(png(film(8, 64))))


def test_an_exif_block_that_cannot_be_read_is_rejected_as_its_orientation_is_not_known() -> None:
    content = turned("JPEG", film(8, 64), 6)
    place = content.index(b"Exif\0\0") + 6
    with pytest.raises(decoding.ImageError, match="whether the image is turned is not known"):
        square(content[:place] + b"XX" + content[place + 2 :])


def test_a_16_bit_png_whose_bits_nobody_states_spans_the_fewest_that_hold_it() -> None:
    for bits in (8, 10, 12, 14, 16):
        stored = np.linspace(0, 2**bits - 1, 32 * 32).reshape(32, 32).round().astype(np.uint16)
        np.testing.assert_array_equal(square(png(stored)), np.round(stored * (255 / (2**bits - 1))))


def test_a_16_bit_png_spans_the_bits_of_its_sbit_chunk_wherever_they_lie() -> None:
    """By the PNG standard values are scaled up to all 16 bits; what exports write keeps them in the low ones."""
    stored = np.linspace(0, 900, 32 * 32).reshape(32, 32).round().astype(np.uint16)
    chunk = (b"sBIT", b"\x0c")
    np.testing.assert_array_equal(square(owners.png_of_words(stored, chunk)), np.round(stored * (255 / 4095)))
    scaled = (stored << 4) | (stored >> 8)
    apart = square(owners.png_of_words(scaled, chunk)).astype(int) - np.round(stored * (255 / 4095))
    assert np.abs(apart).max() <= 1
    assert square(owners.png_of_words(stored, chunk), bits=10).max() == round(900 / 1023 * 255), "the table is first"


def test_padchest_films_without_stored_bits_in_their_row_are_as_bright_as_the_others(project: Path) -> None:
    rows = [owners.padchest_row("a.png", ["normal"], bits=12), owners.padchest_row("b.png", ["normal"], bits="")]
    stored = film(3).astype(np.uint16) * 16
    squares, _ = owners.ingested("padchest", owners.padchest(project / "root", rows, {r[0]: png(stored) for r in rows}))
    np.testing.assert_array_equal(squares["a.png"], squares["b.png"])
    assert squares["b.png"].max() > 240


def test_the_range_of_a_film_is_not_measured_in_a_few_of_its_columns() -> None:
    picture = np.tile(np.linspace(0, 255, 1024).astype(np.uint8)[:, None], 1024)
    picture[:, ::64] = 100
    assert decoding.to_square(png(picture), decoding.Stated(), 64, 2**20, min_range=0.5).max() > 200


def test_a_film_that_uses_little_of_its_range_is_rejected_or_listed_as_params_say(project: Path) -> None:
    rows = [owners.padchest_row(f"{name}.png", ["normal"], bits=12) for name in "abc"]
    images = {row[0]: png(film(place).astype(np.uint16) * 16) for place, row in enumerate(rows)}
    images["b.png"] = png(film(1).astype(np.uint16))  # 8 bits, though the table says 12
    root = owners.padchest(project / "root", rows, images)
    owners.project(project, datasets__padchest__max_rejected_images=0.5)
    squares, report = owners.ingested("padchest", root)
    assert sorted(squares) == ["a.png", "c.png"]
    assert report["rejected_by_reason"] == {"uses less of its range than ingest.min_range": 1}
    assert report["low_contrast"] == []
    owners.project(project, datasets__padchest__max_rejected_images=0.5, ingest__min_range=0.0)
    squares, report = owners.ingested("padchest", root)
    assert sorted(squares) == ["a.png", "b.png", "c.png"]
    assert report["low_contrast"] == ["b.png"]


def test_dead_pixels_of_a_detector_do_not_make_a_range() -> None:
    stored = 2000 + film(1).astype(np.uint16)
    stored[5, 5], stored[7, 70] = 4095, 0
    with pytest.raises(decoding.ImageError, match="uses less of its range"):
        decoding.to_square(png(stored), decoding.Stated(12), 32, MAX_PIXELS, min_range=0.125)
    assert decoding.to_square(png(stored), decoding.Stated(12), 32, MAX_PIXELS, min_range=0.05).shape == (32, 32)


def test_a_film_whose_pixels_are_all_alike_is_rejected() -> None:
    for content in (png(np.full((64, 64), 90, np.uint8)), owners.jpeg(np.zeros((64, 64), np.uint8))):
        with pytest.raises(decoding.ImageError, match="without contrast"):
            square(content)


@pytest.mark.parametrize("error", [IndexError(), cv2.error("x"), ZeroDivisionError(), RecursionError(), MemoryError()])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_whatever_a_decoder_raises_rejects_the_film(kind: str, error: Exception, monkeypatch: Any) -> None:
    contents = {"PNG": png(film(1)), "JPEG": owners.jpeg(film(1)), "DICOM": dicom(STORED)}

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cv2, "imdecode", fail)
    monkeypatch.setattr(pydicom, "dcmread", fail)
    with pytest.raises(decoding.ImageError, match=f"damaged {kind}, whose pixels cannot be read"):
        square(contents[kind])


@pytest.mark.parametrize("shape", [(32, 32, 2), (2, 32, 32), (32,), (32, 31)])
def test_what_is_no_plane_of_the_size_in_its_header_is_rejected(shape: tuple[int, ...], monkeypatch: Any) -> None:
    content = png(film(1, 32))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros(shape, np.uint8))
    with pytest.raises(decoding.ImageError, match=r"cannot be (decoded|read)"):
        square(content)


@pytest.mark.parametrize("encode", [png, owners.jpeg])
def test_an_image_with_too_many_pixels_is_rejected_before_it_is_decoded(encode: Any, monkeypatch: Any) -> None:
    content = encode(film(7, shape=(64, 80)))
    assert square(content, max_pixels=64 * 80).shape == (32, 32)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(decoding.ImageError, match=r"more pixels than ingest.max_pixels"):
        square(content, max_pixels=64 * 80 - 1)


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


def table_of(**tags: Any) -> pydicom.Dataset:
    """An item of a sequence of lookup tables."""
    item = pydicom.Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


WINDOW: dict[str, Any] = {"WindowCenter": 500, "WindowWidth": 801}


@pytest.mark.parametrize(
    ("tags", "like"),
    [
        ({"VOILUTSequence": []}, {}),
        ({"VOILUTSequence": [], **WINDOW}, WINDOW),
        ({"VOILUTSequence": [table_of(LUTExplanation="NORMAL")], **WINDOW}, WINDOW),
        ({"VOILUTSequence": [table_of(LUTDescriptor=[4, 0, 12], LUTData=b"")], **WINDOW}, WINDOW),
        ({"ModalityLUTSequence": [], **WINDOW}, WINDOW),
        ({"ModalityLUTSequence": [table_of(LUTExplanation="x")], **WINDOW}, WINDOW),
        ({"RescaleSlope": None, "RescaleIntercept": None, **WINDOW}, WINDOW),
        ({"RescaleSlope": None, "RescaleIntercept": 7, **WINDOW}, {"RescaleSlope": 1, "RescaleIntercept": 7, **WINDOW}),
        ({"RescaleSlope": 2, "RescaleIntercept": None, **WINDOW}, {"RescaleSlope": 2, "RescaleIntercept": 0, **WINDOW}),
        ({"WindowCenter": None, "WindowWidth": None}, {}),
        ({"WindowCenter": 500, "WindowWidth": None}, {}),
        ({"WindowWidth": 801}, {}),
        ({"WindowCenter": ["", "500"], "WindowWidth": ["", "801"]}, WINDOW),
        ({"WindowCenter": [500, 100], "WindowWidth": [801, 50]}, WINDOW),
        ({"VOILUTFunction": "", **WINDOW}, WINDOW),
        ({"PixelPaddingValue": None}, {}),
        ({"NumberOfFrames": None}, {}),
        ({"HighBit": None}, {}),
    ],
)
def test_an_element_that_is_there_but_empty_counts_as_absent(tags: dict[str, Any], like: dict[str, Any]) -> None:
    np.testing.assert_array_equal(square(dicom(STORED, **tags)), square(dicom(STORED, **like)))


def test_a_lookup_table_of_more_entries_than_its_values_have_levels_is_not_wrapped() -> None:
    """4096 entries of 8 bits: pydicom 3.0.2 takes the place in the table modulo 256."""
    item = table_of(LUTDescriptor=[1024, 0, 8], LUTData=(STORED.ravel() // 4).astype("<u2").tobytes())
    np.testing.assert_array_equal(square(dicom(STORED, VOILUTSequence=[item])), STORED // 4)


def test_a_modality_table_is_applied_before_the_window() -> None:
    table = STORED.ravel()[::-1].astype("<u2").tobytes()
    item = table_of(LUTDescriptor=[1024, 0, 10], LUTData=table, ModalityLUTType="US")
    found = square(dicom(STORED, ModalityLUTSequence=[item], **WINDOW))
    np.testing.assert_array_equal(found, square(dicom(1023 - STORED, **WINDOW)))


def overlaid(bit: int) -> np.ndarray:
    """STORED with an overlay in a bit beside the picture."""
    stored = STORED.copy()
    stored[5:15, 5:30] |= 1 << bit
    return stored


@pytest.mark.parametrize("bit", [12, 15])
@pytest.mark.parametrize("tags", [{}, WINDOW])
def test_bits_beside_the_picture_are_masked_in_any_compression(bit: int, tags: dict[str, Any]) -> None:
    plain, marked = (dicom(stored, **tags) for stored in (STORED, overlaid(bit)))
    run_lengths = pydicom.dcmread(io.BytesIO(marked))
    run_lengths.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    run_lengths.save_as(file)
    packed = owners.encapsulated(marked, pydicom.uid.JPEG2000Lossless, [owners.jpeg_2000(overlaid(bit))])
    for content in (marked, file.getvalue(), packed):
        np.testing.assert_array_equal(square(content), square(plain))


@pytest.mark.parametrize("is_signed", [False, True])
def test_values_are_shifted_by_the_high_bit(is_signed: bool) -> None:
    values = STORED.astype(int) - 500 * is_signed
    shifted = ((values & 0xFFF) << 4).astype(np.uint16)
    tags = {"PixelRepresentation": int(is_signed), "WindowCenter": 512 - 500 * is_signed, "WindowWidth": 1024}
    found = square(dicom(shifted, HighBit=15, **tags))
    np.testing.assert_array_equal(found, square(dicom((values & 0xFFF).astype(np.uint16), **tags)))
    np.testing.assert_allclose(found, STORED * (255 / 1023), atol=1)


def test_bits_that_contradict_each_other_are_rejected() -> None:
    for tags in ({"HighBit": 3}, {"HighBit": 16}, {"BitsStored": 17, "HighBit": 16}, {"BitsStored": 0}):
        with pytest.raises(decoding.ImageError, match=r"contradict each other|cannot be read"):
            square(dicom(STORED, **tags))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (0, {"PixelPaddingValue": 0}),
        (4095, {"PixelPaddingValue": 4095}),
        (3000, {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 2500}),
        (3000, {"PixelPaddingValue": 2500, "PixelPaddingRangeLimit": 4095}),
        (65535, {"PixelPaddingValue": 65535}),
        (4095, {"PixelPaddingValue": 4095, "WindowCenter": 912, "WindowWidth": 1024}),
    ],
)
def test_padding_is_black_and_no_part_of_the_range(padding: int, tags: dict[str, Any], number: int) -> None:
    tags = {"PhotometricInterpretation": f"MONOCHROME{number}"} | tags
    bordered = STORED + 400
    bordered[:, :6] = padding
    found = square(dicom(bordered, **tags))
    assert (found[:, :6] == 0).all()
    values = bordered[:, 6:].astype(float)
    bright = (values - values.min()) / (values.max() - values.min()) * 255
    np.testing.assert_allclose(found[:, 6:], bright if number == 2 else 255 - bright, atol=2)


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 5000, "WindowWidth": 100},
        {"WindowCenter": -500, "WindowWidth": 100},
        {"RescaleSlope": 0, "RescaleIntercept": 5},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4000},
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_dicom_that_is_shown_without_contrast_is_rejected(tags: dict[str, Any], number: int) -> None:
    with pytest.raises(decoding.ImageError, match="without contrast"):
        square(dicom(STORED, PhotometricInterpretation=f"MONOCHROME{number}", **tags))


@pytest.mark.parametrize(
    "tags", [{"WindowCenter": "nan", "WindowWidth": 10}, {"WindowCenter": 1, "WindowWidth": "inf"}]
)
@pytest.mark.filterwarnings("ignore")  # pydicom's, of the values
def test_a_window_of_no_number_is_rejected(tags: dict[str, Any]) -> None:
    with pytest.raises(decoding.ImageError, match=r"cannot be read|without contrast"):
        square(dicom(STORED, RescaleSlope=1, RescaleIntercept=0, **tags))


def planes() -> dict[str, bytes]:
    """DICOM files whose pixels are more than one plane, though their headers say one frame."""
    one = owners.jpeg_2000(STORED)
    grey_jpeg = owners.jpeg(film(1, 32))
    j2k, base = pydicom.uid.JPEG2000Lossless, pydicom.uid.JPEGBaseline8Bit
    byte = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    coloured = owners.jpeg(np.stack([film(1, 32)] * 3, axis=2))
    return {
        "two frames": owners.encapsulated(dicom(STORED), j2k, [one, one]),
        "two frames, called one": owners.encapsulated(dicom(STORED), j2k, [one, one], NumberOfFrames=1),
        "two frames, no offsets": owners.encapsulated(dicom(STORED), j2k, [one, one], has_offsets=False),
        "two JPEG frames": owners.encapsulated(dicom(STORED), base, [grey_jpeg, grey_jpeg], **byte),
        "a colour JPEG": owners.encapsulated(dicom(STORED), base, [coloured], **byte),
        "two frames of bytes": dicom(STORED, PixelData=STORED.astype("<u2").tobytes() * 2),
        "three samples": dicom(
            STORED, SamplesPerPixel=3, PlanarConfiguration=0, PixelData=STORED.astype("<u2").tobytes() * 3
        ),
    }


@pytest.mark.parametrize("name", planes())
def test_a_dicom_of_more_than_one_plane_is_rejected_whatever_it_calls_itself(name: str) -> None:
    with pytest.raises(decoding.ImageError, match="not one grey frame"):
        square(planes()[name])


@pytest.mark.parametrize("name", ["two frames of bytes", "three samples", "cut short", "junk"])
def test_a_dicom_that_cannot_be_used_is_named_and_shifts_no_other_film(project: Path, name: str) -> None:
    images = films(8)
    bad = planes() | {"cut short": dicom(STORED)[:-50], "junk": dicom(STORED, Rows=None)}
    root = nih_of(project / "root", {key: content for key, content in images.items() if key != nih_name(3)})
    owners.in_folder(root, {f"images/{nih_name(3)[:-4]}.dcm": bad[name]})
    squares, report = owners.ingested("chestxray14", root)
    assert [found["image"] for found in report["rejected"]] == [nih_name(3)]
    assert "DICOM" in report["rejected"][0]["reason"] or "without pixels" in report["rejected"][0]["reason"]
    assert sorted(squares) == sorted(set(images) - {nih_name(3)})
    for key, found in squares.items():
        np.testing.assert_array_equal(found, square(images[key]))


def compressed() -> dict[str, tuple[bytes, bytes]]:
    """A DICOM in each compression, and the same whose frame was cut before it was wrapped."""
    pixels = detailed(128)
    whole, j2k = dicom(pixels.astype(np.uint16)), pydicom.uid.JPEG2000Lossless
    base: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    frames = owners.jpeg(pixels), owners.jpeg_2000(pixels.astype(np.uint16))
    run_lengths = pydicom.dcmread(io.BytesIO(whole))
    run_lengths.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    run_lengths.save_as(file)
    jpegs = [
        owners.encapsulated(whole, pydicom.uid.JPEGBaseline8Bit, [frame], **base)
        for frame in (frames[0], frames[0][: len(frames[0]) // 2] + b"\xff\xd9")
    ]
    codestreams = [owners.encapsulated(whole, j2k, [frame]) for frame in (frames[1], frames[1][: len(frames[1]) // 2])]
    return {
        "none": (whole, dicom(pixels.astype(np.uint16), PixelData=pixels.astype("<u2").tobytes()[:-100])),
        "run lengths": (file.getvalue(), file.getvalue()[: len(file.getvalue()) // 2]),
        "JPEG": (jpegs[0], jpegs[1]),
        "JPEG 2000": (codestreams[0], codestreams[1]),
    }


@pytest.mark.parametrize("kind", compressed())
def test_a_dicom_cut_short_is_damaged_in_any_compression(kind: str) -> None:
    whole, cut_before = compressed()[kind]
    assert square(whole).shape == (32, 32)
    for content in (cut_before, whole[: len(whole) * 2 // 3], whole[:-40]):
        with pytest.raises(decoding.ImageError, match=r"^damaged DICOM"):
            square(content)


def test_bytes_after_a_dicoms_pixels_are_damage_unless_they_are_zeros_or_elements() -> None:
    content = dicom(STORED)
    np.testing.assert_array_equal(square(content + bytes(512)), square(content))
    np.testing.assert_array_equal(square(content + b"\xfc\xff\xfc\xffOB\0\0\2\0\0\0ab"), square(content))
    with pytest.raises(decoding.ImageError, match="damaged DICOM"):
        square(content[:-400] + content[-500:])


def test_an_element_of_another_type_is_rejected() -> None:
    """The bytes of `500.0 ` read as a number of another kind are another window."""
    content = dicom(STORED, WindowCenter="500.0", WindowWidth="801.0")
    place = content.index(b"\x28\0\x50\x10DS") + 4
    with pytest.raises(decoding.ImageError, match="damaged DICOM"):
        square(content[:place] + b"SS" + content[place + 2 :])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "allowed"), [("png", 40), ("jpeg", 40), ("dicom", 40)])
def test_no_mutation_of_a_film_ends_the_stage_or_is_written_in_another_form(kind: str, allowed: int) -> None:
    """2,000 each, by a fixed seed. What is accepted and differs has no sum in its format, and is little.

    PNG: only damage that was there before its sums were made (their Adler sum is what OpenCV leaves unread). JPEG: what
    keeps to its code to the last bit. DICOM: other values.
    """
    command = [sys.executable, str(Path(__file__).parent / "fuzz.py"), kind, "2000", "16"]
    environment = os.environ | {"PYTHONPATH": str(owners.REPOSITORY)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=True).stdout
    found = json.loads(printed)
    assert found["wrong"] == []
    assert found["slowest_s"] < 2
    assert found["grown_mb"] < 500
    assert len(found["different"]) <= allowed, found["different"]
    kinds = {what for _, what, _ in found["different"]}
    assert kind != "png" or all("sums mended" in what for what in kinds), found["different"]


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


def test_a_dask_scheduler_that_does_not_answer_is_named(project: Path) -> None:
    root = nih_of(project / "root", films(2))
    owners.project(project, ingest__dask_scheduler="tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*dask_scheduler"),
    ):
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


@pytest.mark.parametrize("where", ["write", "read"])
def test_a_full_disk_or_one_that_fails_to_read_ends_the_stage_once_no_thread_decodes(
    project: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread inside a decoder's C++ as the process ends aborts it: "FATAL: exception not rethrown"."""
    root, at_work, decode, read = nih_of(project / "root", films(200)), [], ingest.decode_chunk, ingest.Reader.read

    def slowly(*args: Any) -> Any:
        at_work.append(1)
        time.sleep(0.2)
        try:
            return decode(*args)
        finally:
            at_work.pop()

    def full(*_: Any) -> None:
        raise files.DiskFullError("no room")

    def failing(*args: Any, **options: Any) -> Any:
        for place, source in enumerate(read(*args, **options)):
            if place == 150:
                raise OSError(errno.EIO, "no answer from the disk")
            yield source

    monkeypatch.setattr(ingest, "decode_chunk", slowly)
    if where == "write":
        monkeypatch.setattr(checkpoints, "write", full)
    else:
        monkeypatch.setattr(ingest.Reader, "read", failing)
    with pytest.raises(OSError, match="no room" if where == "write" else "no answer"):
        owners.ingested("chestxray14", root)
    assert at_work == []


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


FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)


@pytest.mark.parametrize("fork", ["__MACOSX/{folder}/._{name}", "{folder}/._{name}", "{folder}/@eaDir/{name}/t.png"])
@pytest.mark.parametrize("pack", [owners.zipped, owners.tar_gz])
def test_resource_forks_and_thumbnails_are_no_films_and_are_counted(project: Path, pack: Any, fork: str) -> None:
    rows = [owners.padchest_row(f"{place}_a.png", ["normal"]) for place in range(6)]
    root = owners.padchest(project / "root", rows, images={})
    (root / "0.zip").unlink()
    images = {f"0/{row[0]}": png(film(place).astype(np.uint16) * 16) for place, row in enumerate(rows)}
    forks = {fork.format(folder="0", name=name[2:]): FORK for name in images}
    pack(root / "0.zip", {**forks, **images, "0/.DS_Store": b"x"})
    squares, report = owners.ingested("padchest", root)
    assert sorted(squares) == [row[0] for row in rows]
    assert (report["rejected"], report["members_of_operating_systems"]) == ([], 7)
    assert report["members_that_are_no_image"] == []


def test_a_backslash_in_an_archive_parts_folders(project: Path) -> None:
    rows = [owners.chexpert_row(owners.chexpert_path("train", place), No_Finding=1) for place in range(1, 4)]
    root = owners.chexpert_zip(project / "root", rows)
    path = root / "CheXpert-v1.0-small.zip"
    expected, _ = owners.ingested("chexpert", root)
    with zipfile.ZipFile(path) as archive:
        members = {name.replace("/", "\\"): archive.read(name) for name in archive.namelist()}
    owners.zipped(path, {"CheXpert-v1.0-small\\": b"", **members})
    labels, _ = owners.harmonized("chexpert", root)
    squares, _ = owners.ingested("chexpert", root)
    assert sorted(squares) == labels.index.tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("images_001.tar.gz", "w"), ("images_001.tar", "w:gz"), ("images_001.zip", "w:gz"), ("images_001.tgz", "w")],
)
def test_how_an_archive_is_packed_its_first_bytes_say(project: Path, name: str, mode: Any) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3), images={})
    with tarfile.open(root / name, mode) as archive:
        for image, content in films(3).items():
            info = tarfile.TarInfo(f"images/{image}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    squares, _ = owners.ingested("chestxray14", root)
    assert sorted(squares) == sorted(films(3))


def test_a_zip_called_tar_gz_and_a_tar_packed_twice_are_read(tmp_path: Path) -> None:
    owners.zipped(tmp_path / "x.tar.gz", films(3))
    owners.tar_gz(tmp_path / "y.tar.gz", films(3))
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress((tmp_path / "y.tar.gz").read_bytes()))
    for name in ("x.tar.gz", "y.tar.gz", "z.tar.gz"):
        assert {member.name: member.read() for member in archives.members(tmp_path / name)} == films(3)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>sign in</html>"])
@pytest.mark.parametrize("name", ["images.zip", "images_001.tar.gz"])
def test_an_archive_that_is_none_is_refused_with_the_remedy(project: Path, content: bytes, name: str) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3), images={})
    (root / name).write_bytes(content)
    with pytest.raises(archives.ArchiveError, match=rf"{name} is damaged or cut short .*fetch it again"):
        owners.ingested("chestxray14", root)


def test_archives_in_an_archive_are_named_with_the_remedy(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(2), images={})
    owners.zipped(root / "images.zip", {f"images_{place:03d}.zip": b"" for place in range(1, 13)})
    first = "images_001.zip, images_002.zip, images_003.zip"
    with pytest.raises(
        archives.ArchiveError, match=rf"images.zip holds no film but archives \(12, e.g. {first}\).*unpack"
    ):
        owners.ingested("chestxray14", root)
    owners.zipped(root / "images.zip", films(2) | {"images_002.zip": b"", "images_003.tar.gz": b""})
    assert owners.ingested("chestxray14", root)[1]["left_unread"] == {
        "count": 2, "first": ["images_002.zip", "images_003.tar.gz"],
    }  # fmt: skip


def test_an_archive_with_other_names_in_it_is_named_with_three_of_them(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(2), images={})
    owners.zipped(root / "images.zip", {f"{place}.png": b"" for place in range(5)})
    with pytest.raises(ValueError, match=r"chestxray14 holds no image; .*other names \(5, e.g. 0.png, 1.png, 2.png\)"):
        owners.ingested("chestxray14", root)


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPG", ".jpeg", ".JPEG", ".jfif"])
def test_a_films_key_is_its_official_stem_and_films_saved_again_are_counted(project: Path, suffix: str) -> None:
    encode = png if suffix == ".PNG" else owners.jpeg
    images = {
        name if place % 2 else f"{name[:-4]}{suffix}": png(film(place)) if place % 2 else encode(film(place))
        for place, name in enumerate(films(6))
    }
    squares, report = owners.ingested("chestxray14", nih_of(project / "root", images))
    assert sorted(squares) == sorted(films(6))
    assert report.get("saved_again_as") == (None if suffix == ".PNG" else {"JPEG": 3})
    rows = [owners.padchest_row(f"{place}_a.png", ["normal"]) for place in range(3)]
    packed = {f"{row[0][:-4]}{suffix}": encode(film(place)) for place, row in enumerate(rows)}
    squares, report = owners.ingested("padchest", owners.padchest(project / "padchest", rows, packed))
    assert sorted(squares) == [row[0] for row in rows]


@pytest.mark.parametrize(
    "folder", ["CheXpert-v1.0_batch_2_train_1", "train_1", "a/CheXpert-v1.0 batch 2 (train 1)", "x"]
)
@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png"])
def test_the_part_of_a_film_of_chexpert_is_its_patients_where_the_folder_does_not_say_it(
    project: Path, folder: str, suffix: str
) -> None:
    rows = [owners.chexpert_row(owners.chexpert_path("train", place), No_Finding=1) for place in (1, 64540)]
    root = owners.chexpert_zip(project / "root", rows)
    with zipfile.ZipFile(root / "CheXpert-v1.0-small.zip") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    (root / "CheXpert-v1.0-small.zip").unlink()
    renamed = {name.replace("train/", f"{folder}/").replace(".jpg", suffix): members[name] for name in members}
    owners.in_folder(root, renamed)
    labels, _ = owners.harmonized("chexpert", root)
    squares, _ = owners.ingested("chexpert", root)
    assert sorted(squares) == labels.index.tolist()
    assert len(squares) == 3


@pytest.mark.parametrize("other", [".PNG", ".jpg", ".dcm"])
@pytest.mark.parametrize(("file", "pack"), [("images", owners.in_folder), ("images.zip", owners.zipped)])
def test_two_files_of_one_film_are_refused_whatever_their_format(
    project: Path, other: str, file: str, pack: Any
) -> None:
    root = owners.nih(project / "root", owners.nih_rows(3), images={})
    pack(root / file, films(3) | {f"{nih_name(2)[:-4]}{other}": png(film(9))})
    with pytest.raises(
        ValueError, match=rf"1 images lie in two places, e.g. {nih_name(2)} in {file}.* and {file}.*leave one"
    ):
        owners.ingested("chestxray14", root)


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
