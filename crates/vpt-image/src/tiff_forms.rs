//! Forms of TIFF that the general decoder does not read as Pillow does: JPEG inside, which libjpeg-turbo decodes, and which the
//! general decoder does not read at all where its colours are YCbCr, nor palettes, grey with alpha and YCbCr without JPEG.

use std::io::{Cursor, Read, Seek};

use libjpeg_turbo_rs::PixelFormat;
use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, DecodingResult};
use tiff::tags::Tag;

use crate::rgb::{MAX_PIXELS, Rgb8, cmyk_to_rgb};

/// TIFF's number of the compression that is called JPEG today.
const MODERN_JPEG: u32 = 7;

/// What Y, Cb and Cr are made of, and what their black and white are.
const COEFFICIENTS: Tag = Tag::Unknown(529);
const REFERENCES: Tag = Tag::Unknown(532);

/// Numbers of what values mean.
const GREY: u32 = 1;
const RGB: u32 = 2;
const PALETTE: u32 = 3;
const INKS: u32 = 5;
const YCBCR: u32 = 6;

fn number(decoder: &mut Decoder<Cursor<&[u8]>>, tag: Tag) -> Option<u32> {
    decoder.find_tag_unsigned(tag).ok().flatten()
}

/// The image, if it is a TIFF of strips that are JPEG each; `None` for anything else, and for damage, which is left to the general
/// decoder.
pub(crate) fn jpeg(bytes: &[u8], width: usize, height: usize) -> Option<Rgb8> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).ok()?;
    let is_plain = number(&mut decoder, Tag::PlanarConfiguration).is_none_or(|planes| planes == 1);
    let has_tiles = decoder.find_tag(Tag::TileOffsets).ok()?.is_some();
    if number(&mut decoder, Tag::Compression) != Some(MODERN_JPEG) || !is_plain || has_tiles {
        return None;
    }
    let channels = number(&mut decoder, Tag::SamplesPerPixel).unwrap_or(1);
    // Without a word on colours decoders take three channels for YCbCr; Adobe's marker says which they are.
    let meaning = number(&mut decoder, Tag::PhotometricInterpretation)?;
    let transform = match (meaning, channels) {
        (GREY, 1) => None,
        (RGB, 3 | 4) | (INKS, 4) => Some(0),
        (YCBCR, 3) => Some(1),
        _ => return None,
    };
    let tables = decoder.find_tag(Tag::JPEGTables).ok()?.map(Value::into_u8_vec).transpose().ok()?;
    let tables = tables.as_deref().map_or(&[][..], |tables| {
        let inner = tables.strip_prefix(&[0xff, 0xd8]).unwrap_or(tables);
        inner.strip_suffix(&[0xff, 0xd9]).unwrap_or(inner)
    });
    let offsets: Vec<u64> = decoder.find_tag_unsigned_vec(Tag::StripOffsets).ok()??;
    let counts: Vec<u64> = decoder.find_tag_unsigned_vec(Tag::StripByteCounts).ok()??;
    let rows = number(&mut decoder, Tag::RowsPerStrip).map_or(height, |rows| (rows as usize).min(height));
    if rows == 0 || offsets.len() != counts.len() || offsets.len() != height.div_ceil(rows) {
        return None;
    }
    let format = if channels == 4 { PixelFormat::Cmyk } else { PixelFormat::Rgb };
    let mut pixels = Vec::new();
    for (i, (offset, count)) in offsets.into_iter().zip(counts).enumerate() {
        let start = usize::try_from(offset).ok()?;
        let strip = bytes.get(start..start.checked_add(usize::try_from(count).ok()?)?)?;
        let mut stream = vec![0xff, 0xd8];
        if let Some(transform) = transform {
            stream.extend(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00");
            stream.push(transform);
        }
        stream.extend(tables);
        stream.extend(strip.strip_prefix(&[0xff, 0xd8])?);
        let height = rows.min(height - i * rows);
        let info = libjpeg_turbo_rs::probe(&stream).ok()?;
        if (info.width, info.height) != (width, height) {
            return None;
        }
        let image = libjpeg_turbo_rs::decompress_to(&stream, format).ok()?;
        if image.data.len() != width * height * channels.max(3) as usize {
            return None;
        }
        match (meaning, image.data.as_chunks::<4>().0) {
            (INKS, inks) => pixels.extend(inks.iter().flat_map(|&inks| cmyk_to_rgb(inks))),
            (_, colours) if channels == 4 => pixels.extend(colours.iter().flat_map(|colour| &colour[..3])),
            _ => pixels.extend(image.data),
        }
    }
    (pixels.len() == width * height * 3).then_some(Rgb8 { width, height, pixels })
}

/// Whether it is a TIFF of JPEG with four channels, of which the general decoder makes other colours.
pub(crate) fn is_jpeg_of_four(bytes: &[u8]) -> bool {
    let Ok(mut decoder) = Decoder::new(Cursor::new(bytes)) else { return false };
    number(&mut decoder, Tag::Compression) == Some(MODERN_JPEG) && number(&mut decoder, Tag::SamplesPerPixel) == Some(4)
}

/// The image, as it lies in the file, if it is of a form that the general decoder does not read at all.
pub(crate) fn other_form(bytes: &[u8]) -> Option<Rgb8> {
    let [width, height] = size(Cursor::new(bytes))?.map(|side| side as usize);
    if width.checked_mul(height).is_none_or(|count| count == 0 || count > MAX_PIXELS) {
        return None;
    }
    palette(bytes, width, height)
        .or_else(|| jpeg(bytes, width, height))
        .or_else(|| grey_with_alpha(bytes, width, height))
        .or_else(|| ycbcr(bytes, width, height))
}

/// The values of a TIFF of this meaning, a byte each, so many of a pixel, that is not compressed as JPEG.
fn values(bytes: &[u8], meaning: u32, channels: usize) -> Option<Vec<u8>> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).ok()?;
    let is_plain = number(&mut decoder, Tag::PlanarConfiguration).is_none_or(|planes| planes == 1);
    let is_meant = number(&mut decoder, Tag::PhotometricInterpretation) == Some(meaning);
    let bits: Vec<u32> = decoder.find_tag_unsigned_vec(Tag::BitsPerSample).ok()??;
    // 6 is JPEG's older number.
    let is_jpeg = number(&mut decoder, Tag::Compression).is_some_and(|number| [6, MODERN_JPEG].contains(&number));
    if !is_plain || !is_meant || is_jpeg || bits != vec![8; channels] {
        return None;
    }
    match decoder.read_image().ok()? {
        DecodingResult::U8(values) => Some(values),
        _ => None,
    }
}

/// The image, if it is a TIFF of grey with alpha, which is dropped.
fn grey_with_alpha(bytes: &[u8], width: usize, height: usize) -> Option<Rgb8> {
    let values = values(bytes, GREY, 2)?;
    let pixels: Vec<u8> = values.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect();
    (values.len() == width * height * 2).then_some(Rgb8 { width, height, pixels })
}

/// Whether these are the black and white of Y, Cb and Cr of a byte each.
fn is_full_range(value: &Value) -> bool {
    let Value::List(values) = value else { return false };
    let full = [0, 255, 128, 255, 128, 255];
    let is = |(value, full): (&Value, &u32)| matches!(value, Value::Rational(above, below) if *below != 0 && u64::from(*above) == u64::from(*below) * u64::from(*full));
    values.len() == full.len() && values.iter().zip(&full).all(is)
}

/// The image, if it is a TIFF of YCbCr with the colours of every pixel: what Pillow makes of them by tables of 64ths, or, where they
/// are compressed, libtiff for it by tables of 65536ths.
fn ycbcr(bytes: &[u8], width: usize, height: usize) -> Option<Rgb8> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).ok()?;
    // Without the tag they are of 2 x 2 pixels.
    let shared: Vec<u32> = decoder.find_tag_unsigned_vec(Tag::ChromaSubsampling).ok()??;
    let is_compressed = number(&mut decoder, Tag::Compression).is_some_and(|number| number != 1);
    // A scale of luma and colours of its own is for libtiff alone.
    let references = decoder.find_tag(REFERENCES).ok()?;
    let is_scaled =
        decoder.find_tag(COEFFICIENTS).ok()?.is_some() || references.is_some_and(|value| !is_full_range(&value));
    if shared != [1, 1] || is_compressed && is_scaled {
        return None;
    }
    let values = values(bytes, YCBCR, 3)?;
    let (bits, green) =
        if is_compressed { (16, [-0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587]) } else { (6, [-0.34414, -0.71414]) };
    let one = f64::from(1 << bits);
    let table = |factor: f64| -> Vec<i32> {
        let entry = |i: i32| {
            if is_compressed {
                i * (factor.abs() * one + 0.5) as i32 * if factor < 0. { -1 } else { 1 }
            } else {
                (factor * f64::from(i) * one + 0.5) as i32
            }
        };
        (-128..128).map(entry).collect()
    };
    let [red, green_of_blue, green_of_red, blue] = [1.402, green[0], green[1], 1.772].map(table);
    let half = if is_compressed { 1 << 15 } else { 0 };
    let light = |y: u8, more: i32| (i32::from(y) + ((more + half) >> bits)).clamp(0, 255) as u8;
    let colour = |pixel: &[u8; 3]| {
        let [y, cb, cr] = *pixel;
        let (b, r) = (usize::from(cb), usize::from(cr));
        [light(y, red[r]), light(y, green_of_blue[b] + green_of_red[r]), light(y, blue[b])]
    };
    let pixels: Vec<u8> = values.as_chunks().0.iter().flat_map(colour).collect();
    (pixels.len() == width * height * 3).then_some(Rgb8 { width, height, pixels })
}

/// The image, if it is a TIFF of positions in a palette of 256 colours, a byte each.
fn palette(bytes: &[u8], width: usize, height: usize) -> Option<Rgb8> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).ok()?;
    if number(&mut decoder, Tag::PhotometricInterpretation) != Some(PALETTE) {
        return None;
    }
    let bits: Vec<u32> = decoder.find_tag_unsigned_vec(Tag::BitsPerSample).ok()??;
    if bits != [8] {
        return None;
    }
    let colours: Vec<u16> = decoder.find_tag_unsigned_vec(Tag::ColorMap).ok()??;
    if colours.len() != 3 * 256 {
        return None;
    }
    // Positions are read as if they were shades of grey.
    let mut grey = bytes.to_vec();
    let at = photometric_at(bytes)?;
    let value = if bytes.starts_with(b"II") { [GREY as u8, 0] } else { [0, GREY as u8] };
    grey.get_mut(at..at + 2)?.copy_from_slice(&value);
    let DecodingResult::U8(positions) = Decoder::new(Cursor::new(&grey[..])).ok()?.read_image().ok()? else {
        return None;
    };
    let colour = |position: u8| [0, 256, 512].map(|channel| (colours[channel + usize::from(position)] >> 8) as u8);
    let pixels: Vec<u8> = positions.into_iter().flat_map(colour).collect();
    (pixels.len() == width * height * 3).then_some(Rgb8 { width, height, pixels })
}

/// Width and height as they lie in the file of a TIFF of one of the [`other_form`]s, from its header.
pub(crate) fn size<R: Read + Seek>(file: R) -> Option<[u32; 2]> {
    let mut decoder = Decoder::new(file).ok()?;
    let mut number = |tag| decoder.find_tag_unsigned::<u32>(tag).ok().flatten();
    let is_one = match number(Tag::PhotometricInterpretation)? {
        PALETTE | YCBCR => true,
        GREY => number(Tag::SamplesPerPixel) == Some(2),
        _ => false,
    };
    if !is_one {
        return None;
    }
    Some([number(Tag::ImageWidth)?, number(Tag::ImageLength)?])
}

/// Where in a classic TIFF the value of the first image's photometric interpretation lies.
fn photometric_at(bytes: &[u8]) -> Option<usize> {
    let is_little = bytes.starts_with(b"II*\0");
    if !is_little && !bytes.starts_with(b"MM\0*") {
        return None;
    }
    let short = |at: usize| {
        let two: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(usize::from(if is_little { u16::from_le_bytes(two) } else { u16::from_be_bytes(two) }))
    };
    let four: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    let directory = (if is_little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) }) as usize;
    // Entries of 12 bytes: tag, type, count, value.
    let entries = (0..short(directory)?).map(|entry| directory + 2 + 12 * entry);
    let tag = usize::from(Tag::PhotometricInterpretation.to_u16());
    entries.into_iter().find(|&at| short(at) == Some(tag)).map(|at| at + 8)
}

#[cfg(test)]
mod tests {
    use crate::decode::{decode_bytes, size_of_bytes};

    /// A little-endian TIFF of one strip, with these entries of type, count and value.
    fn tiff(strip: &[u8], entries: &[(u16, u16, u32, u32)], behind: &[u8]) -> Vec<u8> {
        let mut out = b"II*\0".to_vec();
        out.extend((8 + strip.len() as u32 + behind.len() as u32).to_le_bytes());
        out.extend(strip);
        out.extend(behind);
        out.extend((entries.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend(count.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        out.extend([0; 4]);
        out
    }

    #[test]
    fn jpeg_inside_is_decoded_as_jpeg_outside() {
        let picture =
            image::RgbImage::from_fn(40, 24, |x, y| image::Rgb([(x * 6) as u8, (y * 9) as u8, (x * y) as u8]));
        let mut jpeg = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        let mut jpeg = jpeg.into_inner();
        jpeg.resize(jpeg.len().next_multiple_of(2), 0);
        let bits = 8 + jpeg.len() as u32;
        let entries = [
            (256, 3, 1, 40),
            (257, 3, 1, 24),
            (258, 3, 3, bits),
            (259, 3, 1, 7),
            (262, 3, 1, 6),
            (273, 4, 1, 8),
            (277, 3, 1, 3),
            (278, 3, 1, 24),
            (279, 4, 1, jpeg.len() as u32),
        ];
        let tiff = tiff(&jpeg, &entries, &[8, 0, 8, 0, 8, 0]);
        assert_eq!(super::jpeg(&tiff, 40, 24), Some(decode_bytes(&jpeg).unwrap()));
        assert_eq!(decode_bytes(&tiff).unwrap(), decode_bytes(&jpeg).unwrap());
        assert_eq!(size_of_bytes(&tiff), Ok([40, 24]));
        for length in 0..tiff.len() {
            assert_eq!(super::jpeg(&tiff[..length], 40, 24), None);
        }
    }

    #[test]
    fn palettes_are_looked_up() {
        let positions: Vec<u8> = (0..=255).collect();
        let colours: Vec<u16> = (0..3 * 256).map(|i: u32| (i * 5 % 256 * 257) as u16).collect();
        let map: Vec<u8> = colours.iter().flat_map(|value| value.to_le_bytes()).collect();
        let entries: [(u16, u16, u32, u32); 10] = [
            (256, 3, 1, 16),
            (257, 3, 1, 16),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 3),
            (273, 4, 1, 8),
            (277, 3, 1, 1),
            (278, 3, 1, 16),
            (279, 4, 1, 256),
            (320, 3, 768, 8 + 256),
        ];
        let upside_down = [&entries[..6], &[(274, 3, 1, 3)], &entries[6..]].concat();
        let upside_down = decode_bytes(&tiff(&positions, &upside_down, &map)).unwrap();
        let tiff = tiff(&positions, &entries, &map);
        let image = decode_bytes(&tiff).unwrap();
        let expected: Vec<u8> =
            (0..256).flat_map(|i| [0, 256, 512].map(|channel| (colours[channel + i] >> 8) as u8)).collect();
        assert!(upside_down.pixels.chunks(3).eq(expected.rchunks(3)));
        assert_eq!((image.width, image.height, image.pixels), (16, 16, expected));
        for length in 0..tiff.len() {
            assert_eq!(super::other_form(&tiff[..length]), None);
        }
    }
}
