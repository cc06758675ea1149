//! Images of numbers as PNG files, in the palette that Pascal VOC gives its classes.

use png::{BitDepth, ColorType, Encoder};
use vpt_base::{Error, Result};

/// The color of a class in Pascal VOC: its bits by turns in red, green and blue, from the highest on.
pub(super) fn voc_color(class: u32) -> [u8; 3] {
    let mut color = [0_u8; 3];
    for bit in 0..8 {
        for (channel, level) in color.iter_mut().enumerate() {
            let own = (class >> (3 * bit + channel as u32)) & 1;
            *level |= (own << (7 - bit)) as u8;
        }
    }
    color
}

/// A PNG file with `numbers` `[height, width]`: with the palette of Pascal VOC, or in 16 bits if they are `wide`.
///
/// # Errors
/// The encoder refuses it.
pub(super) fn encode(width: usize, height: usize, numbers: &[u16], wide: bool) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, width as u32, height as u32);
    let data: Vec<u8> = if wide {
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::Sixteen);
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    } else {
        encoder.set_color(ColorType::Indexed);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_palette((0..256).flat_map(voc_color).collect::<Vec<u8>>());
        numbers.iter().map(|&number| number as u8).collect()
    };
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&data));
    written.map_err(|error| Error::invalid("mask", error.to_string()))?;
    Ok(out)
}
