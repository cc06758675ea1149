//! JPEG files: pixels as libjpeg-turbo makes them, the size in the frame header, and whether the end is there.

use std::borrow::Cow;
use std::io::{Cursor, Read, Seek, SeekFrom};

use crate::orientation::next_segment;
use crate::rgb::{Rgb8, cmyk_to_rgb};

/// The size in a JPEG file's frame header (ITU T.81, B.2.2). The general decoder reads the whole file before it tells.
pub(crate) fn size_in(reader: &mut (impl Read + Seek)) -> std::io::Result<[u32; 2]> {
    let not_found = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut start = [0; 2];
    reader.read_exact(&mut start)?;
    if start != [0xff, 0xd8] {
        return Err(not_found());
    }
    loop {
        // Before the first scan there is a frame.
        let (code, length) = next_segment(reader).ok_or_else(not_found)?;
        match code {
            // Start of a baseline, extended or progressive frame.
            0xc0..=0xc2 => {
                let mut frame = [0; 5];
                reader.read_exact(&mut frame)?;
                let [_, high, low, wide, narrow] = frame;
                return Ok([u16::from_be_bytes([wide, narrow]), u16::from_be_bytes([high, low])].map(u32::from));
            }
            // Frames of other kinds, which decoders may refuse or pass over.
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return Err(not_found()),
            _ => reader.seek(SeekFrom::Current(i64::from(length)))?,
        };
    }
}

/// A JPEG, decoded as libjpeg-turbo does and so Pillow: the `image` crate's decoder rounds interpolated
/// chroma up, which shifts the colours of a whole photo by a fifth of a level and embeddings by half a per cent. `None` for
/// what this decoder does not read, damage above all, which is left to the other one.
pub(crate) fn decode(bytes: &[u8], width: usize, height: usize) -> Option<Rgb8> {
    let bytes = &*without_stray(bytes);
    let info = libjpeg_turbo_rs::probe(bytes).ok()?;
    if !matches!(info.components, 1 | 3 | 4) || (info.width, info.height) != (width, height) {
        return None;
    }
    if info.components == 4 {
        let image = libjpeg_turbo_rs::decompress_to(bytes, libjpeg_turbo_rs::PixelFormat::Cmyk).ok()?;
        // Everyone stores them as Adobe does, and so Pillow takes them all: 0 where there is most ink.
        let (pixels, _) = image.data.as_chunks::<4>();
        let whole = (image.width, image.height, pixels.len()) == (width, height, width * height);
        let rgb = || pixels.iter().flat_map(|pixel| cmyk_to_rgb(pixel.map(|value| 255 - value))).collect();
        return whole.then(|| Rgb8 { width, height, pixels: rgb() });
    }
    let image = libjpeg_turbo_rs::decompress_to(bytes, libjpeg_turbo_rs::PixelFormat::Rgb).ok()?;
    let whole = (image.width, image.height, image.data.len()) == (width, height, width * height * 3);
    whole.then_some(Rgb8 { width, height, pixels: image.data })
}

/// A JPEG without what lies between its segments before the first scan, which libjpeg skips and the decoder here does not.
fn without_stray(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut reader = Cursor::new(bytes);
    let mut plain = bytes.get(..2).unwrap_or_default().to_vec();
    reader.set_position(2);
    let mut begin = 2;
    while let Some((code, length)) = next_segment(&mut reader) {
        let end = reader.position() as usize + usize::from(length);
        let Some(segment) = bytes.get(reader.position() as usize - 2..end) else { return bytes.into() };
        plain.extend([0xff, code]);
        plain.extend(segment);
        begin = end;
        reader.set_position(end as u64);
    }
    // The scan begins with its marker.
    let Some(scan) = bytes[begin..].windows(2).position(|pair| pair == [0xff, 0xda]) else { return bytes.into() };
    plain.extend(&bytes[begin + scan..]);
    if plain.len() == bytes.len() { bytes.into() } else { plain.into() }
}

/// Walks the markers of a JPEG file (ITU T.81, annex B) up to the end-of-image marker. A thumbnail's own markers lie
/// inside a segment and are stepped over; what follows the end is ignored.
pub(crate) fn reaches_its_end(bytes: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    loop {
        // The next marker: 0xff, any number of fill bytes 0xff, a code. Inside a scan's data, 0xff00 is a byte of data
        // and 0xffd0 to 0xffd7 are restarts.
        let Some(step) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) else { return false };
        at += step + 1;
        while bytes.get(at) == Some(&0xff) {
            at += 1;
        }
        let Some(&code) = bytes.get(at) else { return false };
        at += 1;
        match code {
            END_OF_IMAGE => return true,
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let Some(&[high, low]) = bytes.get(at..at + 2) else { return false };
                at += usize::from(u16::from_be_bytes([high, low]));
                if code == START_OF_SCAN && bytes.len() <= at {
                    return false;
                }
            }
        }
    }
}
