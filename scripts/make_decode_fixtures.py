"""Makes images in every form that a decoder may meet, and what Pillow makes of them: sizes and CRC-32 of the RGB pixels.

    pip install pillow pillow-heif numpy
    python scripts/make_decode_fixtures.py

`ImageOps.exif_transpose(Image.open(path)).convert("RGB")`, except for 16-bit grey: its high byte is taken, as for 16-bit
colour, where Pillow clips.

Made with Pillow 13.0.0, pillow-heif 1.8.1 and numpy 2.4.6. A photo as phones store them, with color at half resolution, goes to
`images/420.heic` beside what libheif makes of it, `images/420-heic.png`.
"""
import io
import json
import os
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()

OUT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures", "decode")
WIDTH, HEIGHT = 19, 13


def smooth(channels):
    """8-bit values that change slowly, and differently in each channel."""
    y, x, c = np.mgrid[:HEIGHT, :WIDTH, :channels]
    values = 128 + 110 * np.sin(x / (4 + c) + c) * np.cos(y / (3 + c))
    return values.astype(np.uint8)


def deep(channels):
    """16-bit values, low bytes set."""
    return smooth(channels).astype(np.uint16) * 256 + np.arange(HEIGHT * WIDTH * channels, dtype=np.uint16).reshape(
        HEIGHT, WIDTH, channels) * 7 % 256


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, colour, interlaced=False, extra=b""):
    """A PNG file of `samples`, [height, width, channels], as Pillow does not write them."""
    depth = samples.dtype.itemsize * 8
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    data = b""
    for left, top, right, down in passes if interlaced else [(0, 0, 1, 1)]:
        part = samples[top::down, left::right]
        if part.size:
            data += b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in part)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour, 0, 0, int(interlaced))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data, 9)) +
            chunk(b"IEND", b""))


def tiff(samples, photometric):
    """A TIFF file of `samples`, [height, width, channels], in one strip."""
    height, width, channels = samples.shape
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    bits = struct.pack(f"<{channels}H", *[samples.dtype.itemsize * 8] * channels)
    start = 8 + len(data)
    inline = struct.unpack("<I", bits.ljust(4, b"\0")[:4])[0]
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, inline if channels < 3 else start),
            (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height),
            (279, 4, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (b"II*\0" + struct.pack("<I", start + len(bits)) + data + bits + struct.pack("<H", len(tags)) + entries +
            struct.pack("<I", 0))


def save(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def files():
    rgb = Image.fromarray(smooth(3))
    rgba = Image.fromarray(smooth(4))
    grey = rgb.convert("L")
    grey_alpha = rgba.convert("LA")
    bits = grey.point(lambda v: 255 * (v > 120)).convert("1")
    palette = rgb.quantize(60)
    few = rgb.quantize(4)
    cmyk = Image.fromarray(smooth(4), "CMYK")
    wide = Image.fromarray(deep(1)[:, :, 0])

    def exif(orientation):
        tags = Image.Exif()
        tags[274] = orientation
        return tags

    yield "1.png", save(bits, "PNG")
    yield "palette.png", save(palette, "PNG")
    yield "palette-2-bit.png", save(few, "PNG", bits=2)
    yield "palette-transparent.png", save(palette, "PNG", transparency=3)
    yield "grey.png", save(grey, "PNG")
    yield "grey-transparent.png", save(grey, "PNG", transparency=100)
    yield "grey-alpha.png", save(grey_alpha, "PNG")
    yield "grey-16.png", save(wide, "PNG")
    yield "grey-alpha-16.png", png(deep(2), 4)
    yield "rgb.png", save(rgb, "PNG")
    yield "rgb-transparent.png", save(rgb, "PNG", transparency=rgb.getpixel((2, 3)))
    yield "rgb-16.png", png(deep(3), 2)
    yield "rgba.png", save(rgba, "PNG")
    yield "rgba-16.png", png(deep(4), 6)
    yield "interlaced.png", png(smooth(3), 2, interlaced=True)
    yield "orientation-6.png", save(rgb, "PNG", exif=exif(6))
    yield "baseline.jpg", save(rgb, "JPEG", quality=90, subsampling=0)
    yield "subsampled.jpg", save(rgb, "JPEG", quality=80, subsampling=2)
    yield "progressive.jpg", save(rgb, "JPEG", quality=90, progressive=True)
    yield "grey.jpg", save(grey, "JPEG", quality=90)
    yield "rgb.jpg", save(rgb, "JPEG", quality=90, keep_rgb=True)
    yield "cmyk.jpg", save(cmyk, "JPEG", quality=90)
    # Adobe's marker says how its four channels are to be understood: 0 CMYK, 2 YCCK.
    ycck = bytearray(save(cmyk, "JPEG", quality=90))
    ycck[ycck.index(b"Adobe") + 11] = 2
    yield "ycck.jpg", bytes(ycck)
    for orientation in range(1, 9):
        yield f"orientation-{orientation}.jpg", save(rgb, "JPEG", quality=70, exif=exif(orientation))
    yield "lossy.webp", save(rgb, "WEBP", quality=80)
    yield "lossy-alpha.webp", save(rgba, "WEBP", quality=80)
    yield "lossless.webp", save(rgb, "WEBP", lossless=True)
    yield "lossless-alpha.webp", save(rgba, "WEBP", lossless=True)
    yield "animated.webp", save(rgb, "WEBP", lossless=True, save_all=True, append_images=[rgb.rotate(180)])
    yield "orientation-8.webp", save(rgb, "WEBP", lossless=True, exif=exif(8))
    for name, image in [("1", bits), ("grey", grey), ("palette", palette), ("rgb", rgb), ("rgba", rgba)]:
        yield f"{name}.bmp", save(image, "BMP")
    for name, image in [("1", bits), ("grey", grey), ("rgb", rgb), ("rgba", rgba), ("cmyk", cmyk), ("grey-16", wide)]:
        yield f"{name}.tif", save(image, "TIFF")
    yield "rgb-16.tif", tiff(deep(3), 2)
    yield "white-is-0.tif", tiff(255 - smooth(1), 0)
    for name, image in [("grey-alpha", grey_alpha), ("ycbcr", rgb.convert("YCbCr"))]:
        yield f"{name}.tif", save(image, "TIFF")
        yield f"{name}-lzw.tif", save(image, "TIFF", compression="tiff_lzw")
    for name, image in [("cmyk", cmyk), ("rgba", rgba)]:
        yield f"{name}-jpeg.tif", save(image, "TIFF", compression="jpeg", quality=90)
    yield "palette.tif", save(palette, "TIFF")
    yield "lzw.tif", save(rgb, "TIFF", compression="tiff_lzw")
    yield "deflate.tif", save(rgb, "TIFF", compression="tiff_adobe_deflate")
    yield "orientation-3.tif", save(rgb, "TIFF", exif=exif(3))
    yield "orientation-6.tif", save(rgb, "TIFF", exif=exif(6))
    yield "palette.gif", save(palette, "GIF")
    yield "transparent.gif", save(palette, "GIF", transparency=3)
    yield "grey.gif", save(grey, "GIF")
    yield "animated.gif", save(palette, "GIF", save_all=True, append_images=[palette.rotate(180)])
    # Color at full resolution, which has no values between to be rounded.
    for name, image, options in [("444", rgb, {}), ("alpha", rgba, {}), ("orientation-6", rgb, {"exif": exif(6).tobytes()})]:
        yield f"heic-{name}.heic", save(image, "HEIF", quality=90, chroma=444, **options)
    yield "heic-grey.heic", save(grey, "HEIF", quality=90)


def main():
    os.makedirs(OUT, exist_ok=True)
    expected = {}
    for name, content in files():
        with open(os.path.join(OUT, name), "wb") as file:
            file.write(content)
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        pixels = np.asarray(image.convert("RGB"))
        if image.mode.startswith("I"):
            pixels = np.repeat((np.asarray(image) // 256).astype(np.uint8)[:, :, None], 3, 2)
        expected[name] = {"width": image.width, "height": image.height, "crc": zlib.crc32(pixels.tobytes())}
        print(name, image.mode, image.size, pixels[0, :3].tolist())
    images = os.path.join(os.path.dirname(OUT), "images")
    half = save(Image.open(os.path.join(images, "444.png")).convert("RGB"), "HEIF", quality=80, chroma=420)
    with open(os.path.join(images, "420.heic"), "wb") as file:
        file.write(half)
    Image.open(io.BytesIO(half)).convert("RGB").save(os.path.join(images, "420-heic.png"))
    with open(os.path.join(OUT, "expected.json"), "w") as file:
        file.write(json.dumps(expected, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
