"""What PNG and JPEG files say of themselves, read before any pixel is decoded, and whether they are whole."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
GREY_TYPES = (0, 4)  # of a PNG: grey, and with alpha; else colours, or a palette of them
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112
VALUES = {1: "B", 3: "H", 4: "I"}  # of TIFF: its types of whole numbers
MARKER = re.compile(rb"\xff+([^\x00\xff])")  # any number of fill bytes may stand before a marker (T.81 B.1.1.2)
SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # within a scan FF00 is a byte, and FFD0 to FFD7 restart it
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
START, END, SCAN, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length


class ImageError(ValueError):
    """An image cannot be used; the message is the reason that the report counts."""


@dataclass(frozen=True)
class Header:
    """What a file says of its image.

    Attributes:
        size: (width, height) as they are stored.
        orientation: 1 to 8, as Exif numbers how the stored image is turned and mirrored; 1 is upright.
        significant_bits: of a 16-bit PNG's values, by its sBIT chunk; 0 if it has none.
        planes: 1 where it is grey, else more.
        segments: of a JPEG.
    """

    size: tuple[int, int]
    orientation: int = 1
    significant_bits: int = 0
    planes: int = 1
    segments: tuple["Segment", ...] = ()

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        return self.size if self.orientation < 5 else self.size[::-1]


@dataclass(frozen=True)
class Segment:
    """A part of a JPEG; `coded` is what follows a scan's header."""

    kind: int
    body: bytes
    coded: bytes = b""


def of_png(content: bytes) -> Header:
    """The header of a PNG whose chunks are all there with their sums right.

    OpenCV decodes what there is of a cut PNG and says nothing.

    Raises:
        ImageError: the file is cut short or damaged.
    """
    found: dict[bytes, bytes] = {}
    place, kind = len(PNG), b""
    while kind != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        body = memoryview(content)[place + 4 : place + 8 + length]
        kind = bytes(body[:4])
        if len(body) < length + 4 or len(content) < place + length + 12:
            raise ImageError("truncated PNG")
        if zlib.crc32(body) != int.from_bytes(content[place + 8 + length : place + 12 + length], "big"):
            raise ImageError("damaged PNG: a chunk's sum is wrong")
        if kind in (b"IHDR", b"sBIT", b"eXIf"):
            found.setdefault(kind, bytes(body[4:]))
        place += length + 12
    size, is_grey = struct.unpack(">II", found[b"IHDR"][:8]), found[b"IHDR"][9] in GREY_TYPES
    significant = max(found.get(b"sBIT", b"\0"))
    return Header(size, _orientation(found.get(b"eXIf", b"")), significant, planes=1 if is_grey else 3)


def of_jpeg(content: bytes) -> Header:
    """The header of a JPEG whose end is there.

    Raises:
        ImageError: the file is cut short or damaged.
    """
    segments = tuple(_segments(content))
    frames = [segment.body for segment in segments if segment.kind in FRAMES]
    if len(frames) != 1 or not any(segment.kind == SCAN for segment in segments):
        raise ImageError("damaged JPEG: it holds no image, or two")
    height, width, planes = struct.unpack(">HHB", frames[0][1:6])
    exif = [s.body for s in segments if s.kind == APP1 and s.body.startswith(EXIF)]
    orientation = _orientation(exif[0][len(EXIF) :] if exif else b"")
    return Header((width, height), orientation, planes=planes, segments=segments)


def _segments(content: bytes) -> Iterator[Segment]:
    place = len(JPEG)
    while marker := MARKER.search(content, place):  # bytes between two segments are skipped, as every decoder does
        kind, place = marker[1][0], marker.end()
        if kind == END:
            return
        if kind == START:
            raise ImageError("damaged JPEG: another begins before its end")
        if kind in BARE:
            continue
        length = int.from_bytes(content[place : place + 2], "big")
        if length < 2:
            raise ImageError("damaged JPEG: a segment has no length")
        end = until = place + length
        if kind == SCAN:
            after = SCAN_END.search(content, end)
            until = after.start() if after else len(content) + 1
        if until > len(content):
            break
        yield Segment(kind, content[place + 2 : end], content[end:until])
        place = until
    raise ImageError("truncated JPEG")


def _orientation(exif: bytes) -> int:
    """The orientation in an Exif block, which is laid out as a TIFF file; 1 if it gives none, or none that exists."""
    if not exif:
        return 1
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (place,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION and kind in VALUES:
                (value,) = struct.unpack_from(order + VALUES[kind], exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error) as error:
        raise ImageError("damaged Exif block: whether the image is turned is not known") from error
    return 1
