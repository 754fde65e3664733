"""Source of the digits that scikit-learn ships."""

import numpy as np

from ...config import Ingest
from .rows import Source, frame_of


def source(spark, config: Ingest) -> Source:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships (Alpaydin and Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rows = [
        {
            "id": f"digits/{index:04d}",
            "content": image.tobytes(),
            "height": 8,
            "width": 8,
            "channels": 1,
            "label": str(label),
        }
        for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True))
    ]
    return Source(frame_of(spark, rows), tuple("0123456789"), len(rows))
