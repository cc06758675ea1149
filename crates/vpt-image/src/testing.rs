//! Files that tests of several crates need.

use std::io::Cursor;

use image::{ImageBuffer, ImageFormat, Luma};

/// A PNG whose header claims `width` x `height` and that has almost no data.
///
/// # Panics
/// Never: one pixel can be encoded.
pub fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    ImageBuffer::from_pixel(1, 1, Luma([9u8])).write_to(&mut out, ImageFormat::Png).expect("one pixel can be encoded");
    let mut bytes = out.into_inner();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    // The checksum covers "IHDR" and the 13 bytes after it.
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}
