//! Forms of TIFF that the general decoder does not read as Pillow does: JPEG inside, which libjpeg-turbo decodes, and which the
//! general decoder does not read at all where its colours are YCbCr, nor palettes.

use std::io::{Cursor, Read, Seek};

use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, DecodingResult};
use tiff::tags::Tag;

use crate::rgb::{MAX_PIXELS, Rgb8};

/// TIFF's number of the compression that is called JPEG today.
const MODERN_JPEG: u32 = 7;

/// Numbers of what values mean.
const GREY: u32 = 1;
const RGB: u32 = 2;
const PALETTE: u32 = 3;
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
    let transform = match (number(&mut decoder, Tag::PhotometricInterpretation)?, channels) {
        (GREY, 1) => None,
        (RGB, 3) => Some(0),
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
        let image = libjpeg_turbo_rs::decompress_to(&stream, libjpeg_turbo_rs::PixelFormat::Rgb).ok()?;
        if image.data.len() != width * height * 3 {
            return None;
        }
        pixels.extend(image.data);
    }
    (pixels.len() == width * height * 3).then_some(Rgb8 { width, height, pixels })
}

/// The image, as it lies in the file, if it is of a form that the general decoder does not read at all.
pub(crate) fn palette_or_jpeg(bytes: &[u8]) -> Option<Rgb8> {
    let [width, height] = size(Cursor::new(bytes))?.map(|side| side as usize);
    if width.checked_mul(height).is_none_or(|count| count == 0 || count > MAX_PIXELS) {
        return None;
    }
    palette(bytes, width, height).or_else(|| jpeg(bytes, width, height))
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

/// Width and height as they lie in the file of a TIFF of positions in a palette or of JPEG in YCbCr, from its header.
pub(crate) fn size<R: Read + Seek>(file: R) -> Option<[u32; 2]> {
    let mut decoder = Decoder::new(file).ok()?;
    let mut number = |tag| decoder.find_tag_unsigned::<u32>(tag).ok().flatten();
    let is_one = match number(Tag::PhotometricInterpretation)? {
        PALETTE => true,
        YCBCR => number(Tag::Compression) == Some(MODERN_JPEG),
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
            assert_eq!(super::palette_or_jpeg(&tiff[..length]), None);
        }
    }
}
