"""Makes the checksums that data::trivial is compared with: every operation of torchvision's TrivialAugmentWide at every
strength and, where it is signed, at its negative, on a square picture and on one that is not.

    pip install torch torchvision pillow
    python scripts/make_augment_fixture.py

Made with torchvision 0.29.2 and Pillow 13.0.0.
"""
import json
import os
import zlib

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")


def picture(width, height):
    y, x, c = np.mgrid[:height, :width, :3]
    return (30 + (x * 7 + y * 5 + c * 40 + (x * y * (c + 1)) % 23 * 3) % 200).astype(np.uint8)


def main():
    space = TrivialAugmentWide()._augmentation_space(31)
    strengths = {name: values.tolist() if values.ndim else [values.item()] for name, (values, _) in space.items()}

    def checksum(image, operation, strength):
        out = np.asarray(_apply_op(image, operation, float(strength), InterpolationMode.NEAREST, None))
        return zlib.crc32(out.tobytes())

    pictures = []
    for width, height in [(24, 24), (21, 14)]:
        image = Image.fromarray(picture(width, height))
        made = {}
        for name, values in strengths.items():
            values = values + [-value for value in values] if space[name][1] else values
            made[name] = [checksum(image, name, value) for value in values]
        pictures.append({"width": width, "height": height, "checksums": made})
    with open(os.path.join(FIXTURES, "trivial_augment.json"), "w") as file:
        file.write(json.dumps({"strengths": strengths, "pictures": pictures}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
