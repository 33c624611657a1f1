"""Grey DICOM files: stored values to brightness as it is displayed (PS3.3 C.7.6.3, C.11.1, C.11.2).

An element that is there but empty counts as absent. Of each value the bits that the picture has are taken (HighBit,
BitsStored): older files hold an overlay in the others. Then the modality table or the rescale, then the first VOI table
that is not empty, else the first window, else the range of the file's own values; padding (PixelPaddingValue, to
PixelPaddingRangeLimit) is no value of the picture: it is left out of that range and shown black.
"""

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_fragments
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import get_j2k_parameters
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from stages.films.headers import ImageError, of_jpeg
from stages.films.raster import grey

PIXELS = Tag("PixelData")
TRAILERS = (0xFFFA, 0xFFFC)  # groups that may follow it, as private ones may: signatures and padding
UNDEFINED = 0xFFFFFFFF  # length
META_BYTES = 4096  # of a DICOM, which name its compression
GREY = ("MONOCHROME1", "MONOCHROME2")
JPEG_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit)
# of JPEG and JPEG-LS, of JPEG 2000 without and with boxes
IMAGE_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")


def dicom_header(content: bytes) -> pydicom.FileDataset:
    """A DICOM file; its pixels stay encoded.

    Raises:
        ImageError: it is deflated, or bytes follow its pixels that are no element.
        Exception: of any kind, by pydicom: it is damaged.
    """
    if DeflatedExplicitVRLittleEndian.encode() in content[:META_BYTES]:
        raise ImageError("a deflated DICOM, whose size is not known before it is unpacked")
    dicom = pydicom.dcmread(io.BytesIO(content))
    pixels = dicom.get_item(PIXELS)
    if isinstance(pixels, RawDataElement) and pixels.length != UNDEFINED:
        after = content[pixels.value_tell + pixels.length :]
        following = min((tag for tag in set(dicom.keys()) if tag > PIXELS), default=PIXELS)
        if after.strip(b"\0") and not (following.is_private_creator or following.group in TRAILERS):
            raise ImageError("damaged DICOM: its pixels are more than their length says")
    return dicom


def dicom_size(dicom: pydicom.FileDataset) -> tuple[int, int]:
    """Width and height of its one grey frame.

    Raises:
        ImageError: it holds something else.
    """
    frames, samples = (int(dicom.get(name) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
    if frames != 1 or samples != 1 or dicom.get("PhotometricInterpretation") not in GREY:
        raise _not_one_frame()
    return int(dicom.get("Columns") or 0), int(dicom.get("Rows") or 0)


def brightness(dicom: pydicom.FileDataset) -> np.ndarray:
    """Brightness as it is displayed, float32 in [0, 1] (height, width).

    Raises:
        ImageError: its pixels cannot be used.
        Exception: of any kind, by pydicom: it is damaged.
    """
    stored, is_padding = _stored(dicom)
    with np.errstate(all="ignore"):  # what is no number is met below
        shown = _displayed(_rescaled(stored, dicom), dicom, is_padding).astype(np.float32)
    picture = shown[~is_padding]
    if not np.isfinite(picture).all():
        raise ValueError("a display value is no number")
    if picture.size == 0 or picture.min() == picture.max():
        raise ImageError("without contrast: its window shows all of its values alike, or they are alike")
    if dicom.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    shown[is_padding] = 0
    return shown


def _not_one_frame() -> ImageError:
    return ImageError("a DICOM that is not one grey frame")


def _stored(dicom: pydicom.FileDataset) -> tuple[np.ndarray, np.ndarray]:
    """Stored values, int64 (height, width), and which of them are padding, bool."""
    allocated, bits = int(dicom.BitsAllocated), int(dicom.BitsStored)
    given = _given(dicom, "HighBit")
    high = bits - 1 if given is None else int(given)
    if not 0 < bits <= high + 1 <= allocated:
        raise ImageError("a DICOM whose BitsAllocated, BitsStored and HighBit contradict each other")
    raw, depth = _raw(dicom, allocated)
    is_signed = dicom.PixelRepresentation == 1
    if bits < depth < allocated and not is_signed and raw.max() >= 2**bits:  # no overlay: the header is wrong
        raise ImageError(f"a value exceeds the {bits} bits stored")
    shift = high + 1 - bits if depth > bits else 0
    sign = 2 ** (bits - 1) if is_signed else 0
    stored = (((raw >> shift) & (2**bits - 1)) ^ sign) - sign
    padding = _given(dicom, "PixelPaddingValue")
    if padding is None:
        return stored, np.zeros(stored.shape, np.bool_)
    limit = _given(dicom, "PixelPaddingRangeLimit")
    ends = sorted([int(padding), int(padding if limit is None else limit)])
    if -sign <= ends[0] and ends[1] < 2**bits - sign:
        return stored, (stored >= ends[0]) & (stored <= ends[1])
    ends = sorted(end & (2**allocated - 1) for end in ends)  # written in the bits allocated
    return stored, (raw >= ends[0]) & (raw <= ends[1])


def _raw(dicom: pydicom.FileDataset, allocated: int) -> tuple[np.ndarray, int]:
    """The bits allocated to each value, int64 and not negative (height, width), and how many of them were encoded."""
    syntax, shape, frame = dicom.file_meta.TransferSyntaxUID, (int(dicom.Rows), int(dicom.Columns)), b""
    if syntax.is_encapsulated:
        fragments = list(generate_fragments(dicom.PixelData))[1:]  # the first is the table of offsets
        starts = len(fragments) if syntax == RLELossless else sum(part.startswith(IMAGE_STARTS) for part in fragments)
        if starts > 1:  # others may lay a frame in several fragments
            raise _not_one_frame()
        frame = b"".join(fragments)
    elif len(dicom.PixelData) >= 2 * shape[0] * shape[1] * allocated // 8:
        raise _not_one_frame()
    if syntax in JPEG_SYNTAXES:
        return _of_jpeg(frame, shape, int(dicom.BitsStored)), 8
    dicom.NumberOfFrames = dicom.SamplesPerPixel = 1  # as was found, also where they are empty
    unmasked: Any = {"correct_unused_bits": False}  # is done by the caller, who knows HighBit
    values, _ = _decoder(syntax).as_array(dicom, raw=True, **unmasked)
    if values.shape != shape:
        raise _not_one_frame()
    depth = get_j2k_parameters(frame).get("precision", allocated) if syntax in JPEG2000TransferSyntaxes else allocated
    return values.astype(np.int64) & (2**allocated - 1), depth


def _decoder(syntax: UID) -> Decoder:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:  # pydicom's word for a compression that it does not know
        raise _unread(syntax) from error
    if not decoder.is_available:
        raise _unread(syntax)
    return decoder


def _unread(syntax: UID) -> ImageError:
    return ImageError(f"a DICOM in {syntax.name}, which no decoder here reads (pip install pylibjpeg)")


def _of_jpeg(frame: bytes, shape: tuple[int, int], bits: int) -> np.ndarray:
    if bits > 8:
        raise _unread(JPEGExtended12Bit)
    try:
        header = of_jpeg(frame)
        if header.planes != 1 or header.size != shape[::-1]:
            raise _not_one_frame()
        return grey(frame, header).astype(np.int64)
    except ImageError as error:
        raise ImageError(f"damaged DICOM: {error}") from error


def _given(dicom: pydicom.Dataset, name: str) -> Any:
    """The first value of an element; `None` if it is absent or empty."""
    values = _listed(dicom, name)
    return values[0] if values else None


def _listed(dicom: pydicom.Dataset, name: str) -> list[Any]:
    """The values of an element, `None` for each that is empty.

    Raises:
        ValueError: it is of another type than the standard's, and so may be its bytes.
    """
    value = dicom.get(name)
    if value is not None and dicom[name].VR not in dictionary_VR(name):
        raise ValueError(f"{name} is a {dicom[name].VR}")
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    return [None if one in (None, b"") or not str(one).strip() else one for one in values]


def _table(dicom: pydicom.Dataset, name: str) -> pydicom.Dataset | None:
    """The first item of a sequence of lookup tables that holds one."""
    items = dicom.get(name) or ()
    return next((item for item in items if item.get("LUTDescriptor") and item.get("LUTData")), None)


def _looked_up(values: np.ndarray, item: pydicom.Dataset, is_little: bool) -> tuple[np.ndarray, int]:
    """Values by a lookup table, and the highest that its entries can have."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16  # which has no room in its element
    data = item.LUTData
    if not 1 <= bits <= 16:
        raise ValueError(f"{bits} bits an entry")
    if isinstance(data, bytes):
        width = 1 if bits <= 8 and len(data) < 2 * count else 2
        table = np.frombuffer(data, f"{'<' if is_little else '>'}u{width}")
    else:
        table = np.atleast_1d(np.array(data, np.int64))
    if len(table) < count:
        raise ValueError("entries are missing")
    return table[np.clip(values.astype(np.int64) - first, 0, count - 1)].astype(np.float64), 2**bits - 1


def _rescaled(stored: np.ndarray, dicom: pydicom.FileDataset) -> np.ndarray:
    """Values by the modality table or the rescale, float64."""
    if item := _table(dicom, "ModalityLUTSequence"):
        return _looked_up(stored, item, dicom.file_meta.TransferSyntaxUID.is_little_endian)[0]
    slope, intercept = (_given(dicom, f"Rescale{name}") for name in ("Slope", "Intercept"))
    return stored * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)


def _displayed(values: np.ndarray, dicom: pydicom.FileDataset, is_padding: np.ndarray) -> np.ndarray:
    """Values as shares of the brightest shown, float64 in [0, 1]."""
    if item := _table(dicom, "VOILUTSequence"):
        found, highest = _looked_up(values, item, dicom.file_meta.TransferSyntaxUID.is_little_endian)
        return np.clip(found / highest, 0, 1)
    for centre, width in zip(_listed(dicom, "WindowCenter"), _listed(dicom, "WindowWidth"), strict=False):
        if centre is not None and width is not None:
            function = str(_given(dicom, "VOILUTFunction") or "LINEAR").upper()
            return _windowed(values, float(centre), float(width), function)
    picture = values[~is_padding]
    low, high = (picture.min(), picture.max()) if picture.size else (0.0, 0.0)
    return np.clip((values - low) / ((high - low) or 1), 0, 1)


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ValueError: there is no such window.
    """
    is_wide = width >= 1 if function == "LINEAR" else width > 0
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not is_wide:
        raise ValueError(f"a window {function} {width} wide")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return np.clip((values - centre) / width + 0.5, 0, 1) if width else (values > centre).astype(np.float64)
