//! Images whose pixels are numbers of classes: PNG files with a palette or in grey, and pictures in a color a class.
//!
//! A palette is not looked up: what counts is the index, which decoders of pictures throw away.

use std::io::Cursor;
use std::path::Path;

use super::ClassMask;
use super::classes::VOID;
use crate::index_png;
use png::{BitDepth, ColorType, Decoder, Limits, Transformations};
use vpt_base::contain::contain;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
use vpt_image::decode::{MAX_FILE_BYTES, MAX_PIXELS};

/// Flag of a value that is a color, 0xRRGGBB, and no index.
pub(super) const COLOR: u32 = 1 << 24;

/// What a mask file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MaskPixels {
    pub(super) width: usize,
    pub(super) height: usize,
    /// An index for each pixel, or a color with [`COLOR`].
    pub(super) values: Vec<u32>,
}

/// Reads the mask in `path`.
///
/// # Errors
/// It cannot be read, is no PNG, has more than [`MAX_PIXELS`] pixels, ends too early or has pixels of a kind that no class is
/// told by.
pub(super) fn read(path: &Path) -> Result<MaskPixels> {
    let bytes = read_limited(path, MAX_FILE_BYTES).map_err(|error| error.of_kind(Error::image))?;
    read_bytes(&bytes).map_err(|message| Error::image(path, message))
}

/// [`read`] of a file that is in memory; the error says what is wrong with it.
pub(super) fn read_bytes(bytes: &[u8]) -> Result<MaskPixels, String> {
    contain(|| decode(bytes)).unwrap_or_else(|panic| Err(format!("the image decoder failed: {panic}")))
}

fn decode(bytes: &[u8]) -> Result<MaskPixels, String> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        return Err("a mask as JPEG, whose compression changes the numbers of classes; save it as PNG".into());
    }
    if !bytes.starts_with(b"\x89PNG") {
        return Err("a mask that is no PNG file; save it as PNG with the number of a class in each pixel".into());
    }
    let one_line = |error: png::DecodingError| error.to_string().replace(['\n', '\r'], " ");
    let limits = Limits { bytes: MAX_PIXELS * 4 };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(one_line)?;
    let info = reader.info();
    let (width, height) = (info.width as usize, info.height as usize);
    let count = width.checked_mul(height).filter(|count| (1..=MAX_PIXELS).contains(count));
    let count = count.ok_or_else(|| format!("{width}x{height} pixels, more than the limit of {MAX_PIXELS}"))?;
    let (color, depth, line) = (info.color_type, info.bit_depth, info.raw_row_length() - 1);
    let size = reader.output_buffer_size().filter(|size| *size <= MAX_PIXELS * 8).ok_or("too large to be decoded")?;
    let mut raw = vec![0; size];
    reader.next_frame(&mut raw).map_err(one_line)?;
    let rows = raw.chunks_exact(line).take(height);
    let mut values = Vec::with_capacity(count);
    match (color, depth) {
        (ColorType::Grayscale | ColorType::Indexed, BitDepth::One | BitDepth::Two | BitDepth::Four) => {
            let bits = depth as usize;
            let (each, most) = (8 / bits, (1_u32 << bits) - 1);
            for row in rows {
                let of = |x: usize| u32::from(row[x / each]) >> (8 - bits * (x % each + 1)) & most;
                values.extend((0..width).map(of));
            }
        }
        (ColorType::Grayscale | ColorType::Indexed, BitDepth::Eight) => {
            rows.for_each(|row| values.extend(row.iter().copied().map(u32::from)));
        }
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            let of = |two: &[u8; 2]| u32::from(u16::from_be_bytes(*two));
            rows.for_each(|row| values.extend(row.as_chunks().0.iter().map(of)));
        }
        (ColorType::Rgb, BitDepth::Eight) => {
            rows.for_each(|row| values.extend(row.as_chunks().0.iter().copied().map(rgb)));
        }
        (ColorType::Rgba, BitDepth::Eight) => {
            rows.for_each(|row| values.extend(row.as_chunks().0.iter().map(|[r, g, b, _]| rgb([*r, *g, *b]))));
        }
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => {
            rows.for_each(|row| values.extend(row.as_chunks::<2>().0.iter().map(|two| u32::from(two[0]))));
        }
        _ => {
            return Err(format!(
                "a mask of {color:?} in {} bits a value, where the number of a class is expected: grey or with a palette",
                depth as usize
            ));
        }
    }
    // Grey that was saved in three channels.
    if values[0] & COLOR != 0 && values.iter().all(|value| (value & 0xff) * 0x0001_0101 == value & 0x00ff_ffff) {
        for value in &mut values {
            *value &= 0xff;
        }
    }
    Ok(MaskPixels { width, height, values })
}

pub(super) fn rgb([r, g, b]: [u8; 3]) -> u32 {
    COLOR | u32::from(r) << 16 | u32::from(g) << 8 | u32::from(b)
}

impl ClassMask {
    /// The mask as a PNG file of the numbers that stand for its classes, `indices`, 255 for none: with the palette of Pascal VOC, or in
    /// 16 bits where a number needs them.
    ///
    /// # Errors
    /// The encoder refuses it.
    pub fn to_png(&self, indices: &[u16]) -> Result<Vec<u8>> {
        let number = |class: &u16| indices.get(usize::from(*class)).copied().unwrap_or(VOID as u16);
        let numbers: Vec<u16> = self.classes.iter().map(number).collect();
        let is_wide = indices.iter().any(|index| u32::from(*index) > VOID);
        index_png::encode(self.width, self.height, &numbers, is_wide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn encode(width: u32, height: u32, color: ColorType, depth: BitDepth, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette((0..=255).flat_map(|i| [i, 255 - i, 7]).collect::<Vec<u8>>());
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        out
    }

    #[test]
    fn indices_come_out_whatever_the_depth_and_the_palette() {
        let of = |color, depth, data: &[u8]| read_bytes(&encode(3, 2, color, depth, data)).unwrap().values;
        let all = [0, 1, 255, 7, 7, 2];
        assert_eq!(of(ColorType::Indexed, BitDepth::Eight, &[0, 1, 255, 7, 7, 2]), all);
        assert_eq!(of(ColorType::Grayscale, BitDepth::Eight, &[0, 1, 255, 7, 7, 2]), all);
        assert_eq!(of(ColorType::Grayscale, BitDepth::One, &[0b1010_0000, 0b0110_0000]), [1, 0, 1, 0, 1, 1]);
        assert_eq!(of(ColorType::Grayscale, BitDepth::Four, &[0x12, 0x30, 0xf0, 0x90]), [1, 2, 3, 15, 0, 9]);
        let wide = [1, 0, 0, 7, 255, 255, 0, 0, 0, 1, 0, 2];
        assert_eq!(of(ColorType::Grayscale, BitDepth::Sixteen, &wide), [256, 7, 65535, 0, 1, 2]);
        let grey: Vec<u8> = all.iter().flat_map(|&v| [v as u8; 3]).collect();
        assert_eq!(of(ColorType::Rgb, BitDepth::Eight, &grey), all);
        let mut colors = grey;
        colors[1] = 9;
        assert_eq!(of(ColorType::Rgb, BitDepth::Eight, &colors)[..2], [COLOR | 0x900, COLOR | 0x1_0101]);
    }

    #[test]
    fn masks_come_back_as_they_were_written() {
        let mask = ClassMask { width: 3, height: 1, classes: vec![0, 1, u16::MAX] };
        for indices in [[0, 7], [0, 300]] {
            let read = read_bytes(&mask.to_png(&indices).unwrap()).unwrap();
            assert_eq!(read.values, [0, u32::from(indices[1]), 255]);
        }
    }

    #[test]
    fn what_is_no_mask_is_refused_in_one_line() {
        let good = encode(3, 2, ColorType::Grayscale, BitDepth::Eight, &[0; 6]);
        let mut huge = good.clone();
        huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let deep = encode(1, 1, ColorType::Rgb, BitDepth::Sixteen, &[0; 6]);
        for (bytes, expected) in [
            (&good[..good.len() - 20], ""),
            (&huge, ""),
            (&deep, "Rgb in 16 bits"),
            (&[0xff, 0xd8, 0xff, 0xe0][..], "as JPEG"),
            (&b"GIF89a"[..], "no PNG"),
            (&b""[..], "no PNG"),
        ] {
            let message = read_bytes(bytes).unwrap_err();
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }
}
