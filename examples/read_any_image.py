"""Open any medical image and say where it is: python read_any_image.py FILE_OR_FOLDER..."""

from __future__ import annotations

import sys

from vesalius.core.errors import VesaliusError
from vesalius.io.open import open_image

for path in sys.argv[1:]:
    try:
        image = open_image(path)
    except VesaliusError as error:
        print(error)
        continue
    print(f"{path}: {image.pixels.dtype} {image.pixels.shape}, unit {image.unit}, channels {', '.join(image.channels)}")
    print(f"  shape (z, y, x) {image.grid.shape}, spacing mm {image.grid.spacing_mm or 'unknown'}")
    affine = image.grid.affine
    print(f"  index (z, y, x, 1) to patient LPS mm: {'unknown' if affine is None else affine.round(3).tolist()}")
    for key, value in sorted(image.meta.items()):
        print(f"  {key}: {value}")
    for note in image.record:
        print(f"  {note.act}: {note.text}")
