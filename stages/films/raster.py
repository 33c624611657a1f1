"""Grey values of PNG (8 or 16 bits, RGBA, palette) and JPEG files, as they are stored: neither turned nor scaled."""

import cv2
import numpy as np

from stages.films.headers import Header, ImageError

DTYPES = (np.uint8, np.uint16)


def grey(content: bytes, header: Header) -> np.ndarray:
    """Grey values of a PNG or JPEG, uint8 or uint16 (height, width).

    Raises:
        ImageError: it is damaged, or of a kind that cannot be decoded.
    """
    if header.segments:
        from stages.films.scans import require_whole  # numba takes half a second to import

        require_whole(header)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ImageError("cannot be decoded")
    if image.ndim == 3:
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)  # NIH's RGBA is grey with an opaque alpha
    if image.shape != header.size[::-1] or image.dtype not in DTYPES:
        raise ImageError("cannot be decoded: it is no plane of the size in its header")
    return image
