"""What is plainly no frontal chest film, by checks that anybody can follow.

They refuse what was picked by mistake: a photograph, a page, a scan of another kind. Of a grey picture that passes they
say nothing: whether it shows a chest, upright and not inverted, whoever asks has to know.
"""

import cv2
import numpy as np

from stages.films.decoding import Decoded, ends, kind_of, sampled
from stages.films.headers import ImageError

LONGEST = 3.0  # longer side over shorter
TINT = 24  # of 255 between a pixel's channels: what JPEG makes of grey stays below
COLOURED = 0.02  # share of pixels with more: annotations in colour have less
NEAR_WHITE = 0.05  # share of the range, from its bright end
MOSTLY = 0.6  # of the pixels near white: a page; films of NIH have .45 at most (2,172 films)
ALIKE = 0.8  # of the pixels of one grey: a drawing, a screenshot; films of NIH have .65 at most
GREYS = 64
RADIOGRAPHS = ("", "CR", "DX", "RG", "OT", "SC")  # DICOM's Modality: computed and digital radiographs, or not said
TOLD = ("Modality", "ViewPosition", "BodyPartExamined")
OTHER_PARTS = ("ABDOMEN", "ANKLE", "ARM", "BREAST", "CSPINE", "ELBOW", "EXTREMITY", "FINGER", "FOOT", "FOREARM", "HAND",
               "HEAD", "HIP", "HUMERUS", "JAW", "KNEE", "LEG", "LSPINE", "PELVIS", "SKULL", "TOE", "WRIST")  # fmt: skip
LATERAL = ("LL", "RL", "LATERAL", "LAT")  # DICOM's ViewPosition


def require_film(content: bytes, decoded: Decoded, smallest_px: int) -> None:
    """Check a file and its picture.

    Args:
        content: the file.
        decoded: its picture.
        smallest_px: a side that is shorter would be enlarged.

    Raises:
        ImageError: with the reason.
    """
    height, width = decoded.image.shape
    if min(height, width) < smallest_px:
        raise ImageError(f"{width} x {height} pixels: the model needs {smallest_px} a side")
    if max(height, width) > LONGEST * min(height, width):
        raise ImageError(f"{width} x {height} pixels: no film is that long")
    if kind_of(content) == "DICOM":
        _require_radiograph(content)
    elif decoded.planes > 1 and _coloured(content) > COLOURED:
        raise ImageError("in colour: a film is grey")
    some = sampled(decoded.image)
    dark, bright = ends(some)
    if (some > bright - NEAR_WHITE * (bright - dark)).mean() > MOSTLY:
        raise ImageError("mostly white, like a page of text")
    if np.bincount((some * ((GREYS - 1) / decoded.brightest)).astype(np.int64)).max() > ALIKE * some.size:
        raise ImageError("nearly all of one grey, like a drawing or a screenshot")


def _require_radiograph(content: bytes) -> None:
    from stages.films.dicom import dicom_header

    header = dicom_header(content)
    try:
        modality, view, part = (str(header.get(name) or "").strip().upper() for name in TOLD)
    except Exception as error:  # of a kind that nobody can list: elements are decoded when they are asked for
        raise ImageError("damaged DICOM, whose header cannot be read") from error
    if modality not in RADIOGRAPHS:
        raise ImageError(f"a DICOM of modality {modality}: no radiograph")
    if view in LATERAL:
        raise ImageError(f"a lateral view ({view}): the model learnt from frontal films")
    if part in OTHER_PARTS:
        raise ImageError(f"a DICOM of another part of the body ({part})")


def _coloured(content: bytes) -> float:
    """Share of a PNG's or JPEG's pixels that are in colour."""
    small = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
    if small is None:
        return 0.0
    spread = small.max(axis=2).astype(int) - small.min(axis=2)
    return float((spread > TINT).mean())
