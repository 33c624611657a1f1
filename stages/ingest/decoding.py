"""Image files to 8-bit grey squares: PNG (8 or 16 bits, RGBA, palette), JPEG and DICOM.

An image that is no square loses the ends of its longer side (torchxrayvision's centre crop: it keeps the proportions
that cardiomegaly is read from), then is resized by area. Values of a 16-bit PNG span the bits that its table says are
stored; a DICOM's go through its rescale and its window (PS3.3 C.11), and MONOCHROME1, where low values are bright, is
inverted.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import DeflatedExplicitVRLittleEndian

FULL_BITS = 16
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
JPEG_SCAN = 0xDA
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
DICOM = b"DICM"
DICOM_AT = 128  # bytes before its mark
META_BYTES = 4096  # of a DICOM, which name its compression
UNREADABLE = (AttributeError, EOFError, KeyError, NotImplementedError, OSError, TypeError, ValueError, struct.error)
UNBOUNDED = np.array([-1e12, 1e12])  # beyond any stored value: what a window makes of them are its ends


class ImageError(ValueError):
    """An image cannot be used; the message is the reason that the report counts."""


@dataclass(frozen=True)
class Stated:
    """What a data set's table says of an image file.

    Attributes:
        bits: stored in the values of a 16-bit PNG.
        size: (width, height), or None where the table does not say, or is not to be held to it.
    """

    bits: int = FULL_BITS
    size: tuple[int, int] | None = None


def to_square(content: bytes, stated: Stated, size_px: int, max_pixels: int) -> np.ndarray:
    """Decode an image file to an 8-bit grey square.

    Args:
        content: the file.
        stated: what its table says of it.
        size_px: side of the result.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        uint8 (size_px, size_px).

    Raises:
        ImageError: with the reason for which the image cannot be used.
    """
    dicom = _header(content) if content[DICOM_AT:].startswith(DICOM) else None
    size = size_of(content) if dicom is None else _size_of_dicom(dicom)
    if size[0] * size[1] > max_pixels:
        raise ImageError("more pixels than ingest.max_pixels")
    if stated.size and size != stated.size:
        raise ImageError("its size is not the one in its table")
    image = _decode(content, stated.bits) if dicom is None else _decode_dicom(dicom)
    side = min(image.shape)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    square = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA)
    brightest = {"uint8": 255, "uint16": 2**stated.bits - 1, "float32": 1}[square.dtype.name]
    return square if brightest == 255 else np.round(square * (255 / brightest)).astype(np.uint8)


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height by the header of a PNG or JPEG file that is whole.

    Raises:
        ImageError: the file is empty, of another format, or cut short.
    """
    if not content:
        raise ImageError("zero bytes")
    if content.startswith(PNG):
        return _size_of_png(content)
    if content.startswith(JPEG):
        return _size_of_jpeg(content)
    raise ImageError("neither PNG, JPEG nor DICOM")


def _size_of_png(content: bytes) -> tuple[int, int]:
    # OpenCV decodes what there is of a cut PNG and says nothing, so each chunk's sum is checked first
    place, kind = len(PNG), b""
    while kind != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        body = memoryview(content)[place + 4 : place + 8 + length]
        kind = bytes(body[:4])
        if len(body) < length + 4 or len(content) < place + length + 12:
            raise ImageError("truncated PNG")
        if zlib.crc32(body) != int.from_bytes(content[place + 8 + length : place + 12 + length], "big"):
            raise ImageError("damaged PNG: a chunk's sum is wrong")
        place += length + 12
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _size_of_jpeg(content: bytes) -> tuple[int, int]:
    place, size = len(JPEG), None
    while place + 4 <= len(content) and content[place] == 0xFF:
        kind = content[place + 1]
        if kind in JPEG_FRAMES:
            size = (
                int.from_bytes(content[place + 7 : place + 9], "big"),
                int.from_bytes(content[place + 5 : place + 7], "big"),
            )
        if kind == JPEG_SCAN:
            break
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    if size is None or content.find(JPEG_END, place) < 0:
        raise ImageError("truncated JPEG")
    return size


def _decode(content: bytes, bits: int) -> np.ndarray:
    """Grey values of a PNG or JPEG, uint8 or uint16 (height, width)."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ImageError("cannot be decoded")
    if image.ndim == 3:
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)  # NIH's RGBA is grey with an opaque alpha
    if image.dtype == np.uint16 and image.max() >= 2**bits:
        raise ImageError(f"a value exceeds the {bits} bits stored")
    return image


def _header(content: bytes) -> pydicom.FileDataset:
    """A DICOM file; its pixels stay encoded."""
    if DeflatedExplicitVRLittleEndian.encode() in content[:META_BYTES]:
        raise ImageError("a deflated DICOM, whose size is not known before it is unpacked")
    try:
        return pydicom.dcmread(io.BytesIO(content))
    except UNREADABLE as error:
        raise ImageError("damaged DICOM") from error


def _size_of_dicom(dicom: pydicom.FileDataset) -> tuple[int, int]:
    frames = int(dicom.get("NumberOfFrames") or 1)
    if frames != 1 or dicom.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError("a DICOM that is not one grey frame")
    return int(dicom.get("Columns") or 0), int(dicom.get("Rows") or 0)


def _decode_dicom(dicom: pydicom.FileDataset) -> np.ndarray:
    """Brightness as it is displayed, float32 in [0, 1] (height, width); without a window, the values' own range."""
    try:
        values = apply_modality_lut(dicom.pixel_array, dicom).astype(np.float64)
        if "VOILUTSequence" in dicom:
            low, high = 0, 2 ** int(dicom.VOILUTSequence[0].LUTDescriptor[2]) - 1
            values = apply_voi(values.astype(np.int64), dicom)
        elif "WindowWidth" in dicom:
            with np.errstate(over="ignore"):  # of a sigmoid window
                low, high = apply_windowing(UNBOUNDED, dicom)
                values = apply_windowing(values, dicom)
        else:
            low, high = values.min(), values.max()
    except RuntimeError as error:
        syntax = dicom.file_meta.TransferSyntaxUID.name
        raise ImageError(f"a DICOM in {syntax}, which no decoder here reads (pip install pylibjpeg)") from error
    except UNREADABLE as error:
        raise ImageError("a DICOM whose pixels cannot be read") from error
    shown = np.clip((values - low) / ((high - low) or 1), 0, 1).astype(np.float32)
    return 1 - shown if dicom.PhotometricInterpretation == "MONOCHROME1" else shown
