"""Values of the tensors of fixtures, and their pictures, which any program can make again."""

import numpy as np
from PIL import Image


def values(number, shape, scale):
    """Of tensor `number` (in the order of names): a linear congruence of the place, uniform in -scale..scale."""
    count = int(np.prod(shape)) if len(shape) else 1
    at = np.arange(count, dtype=np.uint64) + np.uint64(number * 1000003)
    mixed = (at * np.uint64(2654435761) + np.uint64(12345)) % np.uint64(1 << 32)
    mixed = (mixed ^ (mixed >> np.uint64(15))) % np.uint64(65521)
    return ((mixed.astype(np.float32) / np.float32(65521.0) - np.float32(0.5)) * np.float32(2 * scale)).reshape(shape)


def picture(width, height):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([(x * 7 + y * 3) % 256, (x * x + y) % 256, (x + y * y * 2) % 256], -1).astype(np.uint8))
