"""Image files to 8-bit grey squares: PNG (8 or 16 bits, RGBA, palette), JPEG and DICOM.

An image is turned upright by the orientation in its Exif block. One that is no square loses the ends of its longer side
(torchxrayvision's centre crop: it keeps the proportions that cardiomegaly is read from), then is resized by area.

Values of a 16-bit PNG span the bits that its table says are stored. Where none does, they span those of its sBIT chunk
(all 16 if a value is beyond them: the PNG standard scales values up); without one, the fewest of DEPTHS that hold its
brightest value. `dicom` says what the values of a DICOM span.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from stages.films.headers import JPEG, PNG, Header, ImageError, of_jpeg, of_png
from stages.films.raster import grey

FULL_BITS = 16
DEPTHS = (8, 10, 12, 14, FULL_BITS)  # that detectors and exports have
BYTES_PER_PIXEL = 8  # of 16-bit RGBA, uncompressed
HEADER_BYTES = 1 << 20  # what an image file may hold beside its pixels
SAMPLE = 2**14
EXTREMES = 0.001  # of the pixels at either end: dead ones of the detector, which say nothing of the picture
DICOM = b"DICM"
DICOM_AT = 128  # bytes before its mark


@dataclass(frozen=True)
class Stated:
    """What a data set's table says of an image file.

    Attributes:
        bits: stored in the values of a 16-bit PNG; FULL_BITS where the table says nothing, or no more than the file.
        size: (width, height), or None where the table does not say, or is not to be held to it.
    """

    bits: int = FULL_BITS
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Decoded:
    """An image file's picture.

    Attributes:
        image: upright, uint8, uint16 or float32 (height, width).
        brightest: the largest value that it may have; the least is 0.
        planes: of the file, 1 where it is grey.
    """

    image: np.ndarray
    brightest: int
    planes: int = 1

    def square(self, size_px: int) -> np.ndarray:
        """Its middle square, uint8 (size_px, size_px), resized by area."""
        side = min(self.image.shape)
        top, left = (self.image.shape[0] - side) // 2, (self.image.shape[1] - side) // 2
        middle = np.ascontiguousarray(self.image[top : top + side, left : left + side])
        square = cv2.resize(middle, (size_px, size_px), interpolation=cv2.INTER_AREA)
        if square.dtype == np.uint8:
            return square
        return np.round(square * (255 / self.brightest)).astype(np.uint8)


def largest_bytes(max_pixels: int) -> int:
    """What a file of an image with so many pixels has at most: more is not worth reading."""
    return max_pixels * BYTES_PER_PIXEL + HEADER_BYTES


def to_square(content: bytes, stated: Stated, size_px: int, max_pixels: int, min_range: float = 0.0) -> np.ndarray:
    """Decode an image file to an 8-bit grey square.

    Args:
        content: the file.
        stated: what its table says of it.
        size_px: side of the result.
        max_pixels: larger images are refused before they are decoded.
        min_range: share of its range that an image must use, but for the EXTREMES of its pixels. One whose pixels are
            all alike is refused with any.

    Returns:
        uint8 (size_px, size_px).

    Raises:
        ImageError: with the reason for which the image cannot be used; whatever a decoder raises becomes one.
    """
    return squared(decode(content, stated, max_pixels), size_px, min_range)


def decode(content: bytes, stated: Stated, max_pixels: int) -> Decoded:
    """The first half of `to_square`."""
    kind = kind_of(content)
    try:
        return _decode(content, kind, stated, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # of a kind that nobody can list: one film must not end the run
        raise ImageError(f"damaged {kind}, whose pixels cannot be read") from error


def squared(decoded: Decoded, size_px: int, min_range: float) -> np.ndarray:
    """The second half of `to_square`."""
    square = decoded.square(size_px)
    dark, bright = ends(sampled(decoded.image))
    if bright - dark < min_range * decoded.brightest:
        raise ImageError("uses less of its range than ingest.min_range")
    if square.min() == square.max():
        raise ImageError("without contrast: all its pixels are alike")
    return square


def sampled(image: np.ndarray) -> np.ndarray:
    """Some pixels of an image on a grid, SAMPLE or more if it has them: each n-th of all would lie in a few columns."""
    step = max(1, math.isqrt(image.size // SAMPLE))
    return image[::step, ::step].ravel()


def ends(some: np.ndarray) -> tuple[float, float]:
    """The dark and the bright end of some pixels' values, without EXTREMES."""
    dark = int(len(some) * EXTREMES)
    bright = len(some) - 1 - dark
    found = np.partition(some, (dark, bright))
    return float(found[dark]), float(found[bright])


def kind_of(content: bytes) -> str:
    """`PNG`, `JPEG` or `DICOM`, by a file's first bytes.

    Raises:
        ImageError: none of these.
    """
    if not content:
        raise ImageError("zero bytes")
    if content[DICOM_AT:].startswith(DICOM):
        return "DICOM"
    for kind, mark in (("PNG", PNG), ("JPEG", JPEG)):
        if content.startswith(mark):
            return kind
    raise ImageError("neither PNG, JPEG nor DICOM")


def _decode(content: bytes, kind: str, stated: Stated, max_pixels: int) -> Decoded:
    if kind == "DICOM":
        from stages.films.dicom import brightness, dicom_header, dicom_size  # pydicom takes half a second to import

        file = dicom_header(content)
        _require_size(dicom_size(file), stated, max_pixels)
        return Decoded(brightness(file), 1)
    header = of_png(content) if kind == "PNG" else of_jpeg(content)
    _require_size(header.shown_size, stated, max_pixels)
    image = grey(content, header)
    brightest = 2 ** _bits(image, header, stated.bits) - 1
    return Decoded(_upright(image, header.orientation), brightest, header.planes)


def _require_size(size: tuple[int, int], stated: Stated, max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ImageError("more pixels than ingest.max_pixels")
    if 0 in size:
        raise ImageError("without pixels")
    if stated.size and size != stated.size:
        raise ImageError("its size is not the one in its table")


def _bits(image: np.ndarray, header: Header, stated: int) -> int:
    """How many bits the values of a PNG or JPEG span."""
    if image.dtype == np.uint8:
        return 8
    brightest = int(image.max())
    if stated < FULL_BITS:
        if brightest >= 2**stated:
            raise ImageError(f"a value exceeds the {stated} bits stored")
        return stated
    depths = (header.significant_bits, FULL_BITS) if header.significant_bits else DEPTHS
    return next(bits for bits in depths if brightest < 2**bits)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the turn that an Exif orientation names: from 5 on rows are columns; 2, 3, 6 and 7 are mirrored then."""
    if orientation >= 5:
        image = image.T
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image[::-1] if orientation in (3, 4, 7, 8) else image
