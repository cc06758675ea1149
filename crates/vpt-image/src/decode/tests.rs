//! Every format against what Pillow makes of it, and files that are damaged or claim too much.

use super::*;
use crate::orientation::next_segment;
use crate::testing::png_header;
use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// A picture with something in every corner, so that a missing part shows.
fn picture() -> DynamicImage {
    ImageBuffer::from_fn(61, 43, |x, y| Rgb([(x * 4) as u8, (y * 5) as u8, (x * y % 251) as u8])).into()
}

const FORMATS: [ImageFormat; 6] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Gif];

// Pillow stretches values to 255 and rounds down: 30 of 31 is 246, 62 of 63 is 250.
#[test]
fn colors_of_five_and_six_bits_are_stretched_as_by_pillow() {
    let bmp = |masks: &[u32], height: i32, values: [u16; 2]| {
        let mut out = b"BM".to_vec();
        let begin = 54 + 4 * masks.len() as u32;
        for field in [begin + 4, 0, begin, 40, 1, height as u32, 1 | 16 << 16, if masks.is_empty() { 0 } else { 3 }] {
            out.extend(field.to_le_bytes());
        }
        out.extend([0; 20]);
        out.extend(masks.iter().flat_map(|mask| mask.to_le_bytes()));
        for value in &values[..height.unsigned_abs() as usize] {
            out.extend([&value.to_le_bytes()[..], &[0, 0]].concat());
        }
        decode_bytes(&out).unwrap().pixels
    };
    assert_eq!(bmp(&[], 1, [0b0111_1000_0011_1111, 0]), [246, 8, 255]);
    assert_eq!(bmp(&[0xf800, 0x7e0, 0x1f], 1, [0b0000_1111_1101_1110, 0]), [8, 250, 246]);
    assert_eq!(bmp(&[], 2, [1, 2]), [0, 0, 16, 0, 0, 8]);
    assert_eq!(bmp(&[], -2, [1, 2]), [0, 0, 8, 0, 0, 16]);
}

#[test]
fn bytes_between_the_segments_of_a_jpeg_are_skipped() {
    let picture = RgbImage::from_fn(40, 24, |x, y| image::Rgb([(x * 6) as u8, (y * 9) as u8, (x * y) as u8]));
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, ImageFormat::Jpeg).unwrap();
    let plain = file.into_inner();
    let expected = decode_bytes(&plain).unwrap();
    let mut reader = Cursor::new(&plain[..]);
    reader.set_position(2);
    while let Some((_, length)) = next_segment(&mut reader) {
        let at = reader.position() as usize + usize::from(length);
        reader.set_position(at as u64);
        for junk in [&b"abc\0"[..], &[0xff, 0xff], &[0xff, 0, 7]] {
            let stray = [&plain[..at], junk, &plain[at..]].concat();
            assert_eq!(decode_bytes(&stray).unwrap(), expected, "{at} {junk:?}");
            assert_eq!(size_of_bytes(&stray), Ok([40, 24]));
        }
    }
}

#[test]
fn bits_of_deep_images_are_counted() {
    for (most, bits) in [(0_u16, 0), (1023, 10), (4095, 12), (4096, 13), (65535, 16)] {
        let grey = ImageBuffer::from_fn(9, 9, |x, y| Luma([if (x, y) == (4, 4) { most } else { 0 }]));
        for format in [ImageFormat::Png, ImageFormat::Tiff] {
            assert_eq!(bits_of_16(&encode(&DynamicImage::ImageLuma16(grey.clone()), format)), Some(bits));
        }
    }
    let seen = ImageBuffer::from_pixel(3, 3, Rgba([7_u16, 8, 9, 65535]));
    assert_eq!(bits_of_16(&encode(&DynamicImage::ImageRgba16(seen), ImageFormat::Png)), Some(4));
    assert_eq!(bits_of_16(&encode(&picture(), ImageFormat::Png)), None);
    assert_eq!(bits_of_16(b"text"), None);
}

#[test]
fn every_format_is_read() {
    for format in FORMATS {
        let image = decode_bytes(&encode(&picture(), format)).unwrap();
        assert_eq!((image.width, image.height, image.pixels.len()), (61, 43, 61 * 43 * 3), "{format:?}");
        if !matches!(format, ImageFormat::Jpeg | ImageFormat::Gif) {
            assert_eq!(image.pixels, picture().into_rgb8().into_raw(), "{format:?}");
        }
    }
}

#[test]
fn sizes_come_from_headers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for format in FORMATS {
        std::fs::write(&path, encode(&picture(), format)).unwrap();
        assert_eq!(size(&path).unwrap(), [61, 43], "{format:?}");
    }
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/images");
    for name in ["420.jpg", "422-progressive.jpg", "444.jpg", "grey.jpg"] {
        let path = images.join(name);
        let image = decode(&path).unwrap();
        assert_eq!(size(&path).unwrap(), [image.width, image.height], "{name}");
    }
    // A file that is cut behind its header has a size all the same; one that is cut before has none.
    let jpeg = encode(&picture(), ImageFormat::Jpeg);
    for (keep, whole) in [(jpeg.len() - 9, true), (12, false), (3, false), (0, false)] {
        std::fs::write(&path, &jpeg[..keep]).unwrap();
        assert_eq!(size(&path).is_ok(), whole, "{keep}");
    }
    // A frame of a kind that nobody decodes counts no more here than there.
    let frame = b"\xff\xce\x00\x0eAdobe\0d\0\0\0\0\0";
    let odd = [&jpeg[..2], frame, &jpeg[2..]].concat();
    std::fs::write(&path, &odd).unwrap();
    assert_eq!(size(&path).ok(), decode_bytes(&odd).ok().map(|image| [image.width, image.height]));
    std::fs::write(&path, png_header(60_000, 60_000)).unwrap();
    assert!(size(&path).unwrap_err().to_string().contains("limit"));
    assert!(size(dir.path()).is_err());
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for format in FORMATS {
        let bytes = encode(&picture(), format);
        // The last few bytes of PNG, GIF and TIFF hold no pixels; a reader may do without them.
        for keep in (0..bytes.len() - 32).step_by(7) {
            assert!(decode_bytes(&bytes[..keep]).is_err(), "{format:?} cut to {keep} of {}", bytes.len());
        }
    }
    let jpeg = encode(&picture(), ImageFormat::Jpeg);
    assert!(decode_bytes(&jpeg[..jpeg.len() - 2]).unwrap_err().contains("truncated"));
}

#[test]
fn bytes_after_the_end_of_a_jpeg_do_not_matter() {
    let mut jpeg = encode(&picture(), ImageFormat::Jpeg);
    let image = decode_bytes(&jpeg).unwrap();
    jpeg.extend_from_slice(b"trailing text");
    assert_eq!(decode_bytes(&jpeg).unwrap(), image);
}

// Decoded by Pillow 13 and saved as PNG.
#[test]
fn jpegs_equal_pillow_bit_for_bit() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/images");
    for name in ["420", "422-progressive", "444", "grey"] {
        let ours = decode(&images.join(format!("{name}.jpg"))).unwrap();
        assert_eq!(ours, decode(&images.join(format!("{name}.png"))).unwrap(), "{name}");
    }
}

#[derive(serde::Deserialize)]
struct Decoded {
    width: usize,
    height: usize,
    crc: u32,
}

// Made by scripts/make_decode_fixtures.py.
#[test]
fn every_form_of_every_format_equals_pillow_bit_for_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/decode");
    let expected = std::fs::read(folder.join("expected.json")).unwrap();
    let expected: std::collections::BTreeMap<String, Decoded> = serde_json::from_slice(&expected).unwrap();
    let mut different = Vec::new();
    for (name, Decoded { width, height, crc }) in &expected {
        let path = folder.join(name);
        assert_eq!(size(&path).unwrap(), [*width, *height], "{name}");
        let image = decode(&path).unwrap();
        let mut found = flate2::Crc::new();
        found.update(&image.pixels);
        if (image.width, image.height, found.sum()) != (*width, *height, *crc) {
            different.push(format!("{name}: {}x{} {:?}", image.width, image.height, &image.pixels[..9]));
        }
    }
    assert!(expected.len() > 50 && different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn colours_become_rgb_as_pillow_does() {
    let one = |image: DynamicImage| decode_bytes(&encode(&image, ImageFormat::Png)).unwrap().pixels;
    assert_eq!(one(ImageBuffer::from_pixel(1, 1, Luma([9u8])).into()), [9, 9, 9]);
    assert_eq!(one(ImageBuffer::from_pixel(1, 1, LumaA([9u8, 0])).into()), [9, 9, 9]);
    assert_eq!(one(ImageBuffer::from_pixel(1, 1, Rgba([1u8, 2, 3, 0])).into()), [1, 2, 3]);
    assert_eq!(one(ImageBuffer::from_pixel(1, 1, Rgb([0x01ff_u16, 0x0280, 0xffff])).into()), [1, 2, 255]);
    assert_eq!(one(ImageBuffer::from_pixel(1, 1, Luma([0x80ff_u16])).into()), [128, 128, 128]);
}

#[test]
fn a_huge_header_is_refused_before_memory_is_taken() {
    let message = decode_bytes(&png_header(60_000, 60_000)).unwrap_err();
    assert!(message.contains("60000x60000") && message.contains("limit"), "{message}");
    let mut jpeg = encode(&picture(), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let message = decode_bytes(&jpeg).unwrap_err();
    assert!(message.contains("65535x65535"), "{message}");
    // Below the limit, and still far more than so few bytes can hold.
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x30, 0, 0x30, 0]);
    assert!(decode_bytes(&jpeg).unwrap_err().contains("truncated"));
    assert!(decode_bytes(&png_header(12_288, 12_288)).unwrap_err().contains("truncated"));
}

#[test]
fn what_is_not_an_image_is_refused() {
    assert_eq!(decode_bytes(b"").unwrap_err(), "empty file");
    assert!(decode_bytes(b"path,label\na.jpg,cat\n").unwrap_err().contains("not an image"));
    let message = decode(Path::new("/no/such/file.png")).unwrap_err().to_string();
    assert!(message.starts_with("/no/such/file.png: "), "{message}");
}

#[test]
fn extensions_are_recognised_in_any_case() {
    assert!(has_image_extension(Path::new("a/B.JPeG")));
    assert!(!has_image_extension(Path::new("a/jpg")));
    assert!(!has_image_extension(Path::new("a/b.txt")));
}

proptest::proptest! {
    #[test]
    fn damaged_files_never_panic(format in 0..FORMATS.len(), at in 0usize..100_000, value: u8, cut in 0usize..100_000) {
        let mut bytes = encode(&picture(), FORMATS[format]);
        let len = bytes.len();
        bytes[at % len] = value;
        bytes.truncate(len - (cut % len) / 8);
        let _ = decode_bytes(&bytes);
    }
}
