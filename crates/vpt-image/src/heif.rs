//! HEIC and HEIF, the photos of phones: stills that are coded as HEVC pictures in boxes of ISO media (ISO/IEC 23008-12).
//!
//! Rotation and mirroring are the container's, as in libheif: EXIF's orientation, which repeats them, is not applied once more. Pixels are
//! those of libheif, and so of Pillow's plugin, to one of 255: where color has half of the resolution, each of its values stands
//! for a square of four pixels.

use heic_decoder::{ChromaUpsampling, RgbOptions, probe};

use crate::rgb::{MAX_PIXELS, Rgb8};

/// Brands of files whose pictures are HEVC, or may be.
const BRANDS: [&[u8; 4]; 9] = [b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"mif2", b"msf1"];

/// Whether a file that begins with `start` is one of HEIF, by the brand of its first box.
pub fn is_heif(start: &[u8]) -> bool {
    match start.get(4..12) {
        Some([b'f', b't', b'y', b'p', brand @ ..]) => {
            BRANDS.iter().any(|known| *known == brand)
                && !compatible_brands(start).any(|brand| brand.starts_with(b"avi"))
        }
        _ => false,
    }
}

/// Whether a file that begins with `start` is an AVIF image, which is HEIF with another coding.
pub(crate) fn is_avif(start: &[u8]) -> bool {
    start.get(4..8) == Some(b"ftyp")
        && (start.get(8..11) == Some(b"avi") || compatible_brands(start).any(|brand| brand.starts_with(b"avi")))
}

/// The brands that the first box lists behind its own.
fn compatible_brands(start: &[u8]) -> impl Iterator<Item = &[u8; 4]> {
    let length = start.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let listed = start.get(16..length.min(start.len())).unwrap_or_default();
    listed.as_chunks::<4>().0.iter()
}

/// Width and height of the picture the right way up, by the container.
///
/// # Errors
/// A message, if the file is damaged or of a kind that is not read.
pub(crate) fn size(bytes: &[u8]) -> Result<[u32; 2], String> {
    let info = probe(bytes).map_err(|error| error.to_string())?;
    let narrow = |side: usize| u32::try_from(side).map_err(|_| format!("a side of {side} pixels"));
    Ok([narrow(info.width)?, narrow(info.height)?])
}

/// The picture as 8-bit RGB; transparency is dropped, deeper values are rounded.
///
/// # Errors
/// A message, if the file has more than [`MAX_PIXELS`] pixels, also before it is turned and cut, is damaged, or of a kind
/// that is not read.
pub(crate) fn decode(bytes: &[u8]) -> Result<Rgb8, String> {
    let info = probe(bytes).map_err(|error| error.to_string())?;
    for [width, height] in [[info.coded_width, info.coded_height], [info.width, info.height]] {
        match width.checked_mul(height) {
            Some(0) => return Err(format!("an image of {width}x{height} pixels")),
            Some(count) if count <= MAX_PIXELS => {}
            _ => return Err(format!("{width}x{height} pixels, more than the limit of {MAX_PIXELS}")),
        }
    }
    let mut image = heic_decoder::decode(bytes).map_err(|error| error.to_string())?;
    // In the middle of the pixels that it stands for, whatever the file says.
    let color = &mut image.chroma_sampling;
    (color.origin_x, color.origin_y) = ((color.sub_x - 1) as f32 / 2., (color.sub_y - 1) as f32 / 2.);
    let options = RgbOptions { upsampling: ChromaUpsampling::Nearest, ..RgbOptions::default() };
    let image = image.to_rgb8_with_options(&options).map_err(|error| error.to_string())?;
    Ok(Rgb8 { width: image.width, height: image.height, pixels: image.data })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::decode::{decode_bytes, size_of_bytes};

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)).unwrap()
    }

    #[test]
    fn color_of_half_resolution_is_libheifs_to_a_rounding() {
        let ours = decode_bytes(&fixture("images/420.heic")).unwrap();
        let theirs = decode_bytes(&fixture("images/420-heic.png")).unwrap();
        assert_eq!((ours.width, ours.height), (theirs.width, theirs.height));
        let apart: Vec<u8> = ours.pixels.iter().zip(&theirs.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
        let different = apart.iter().filter(|apart| **apart > 0).count();
        assert!(
            apart.iter().all(|apart| *apart <= 1) && different * 10 < apart.len(),
            "{different} of {}",
            apart.len()
        );
    }

    #[test]
    fn what_is_cut_or_changed_is_refused_or_read_and_never_panics() {
        let whole = fixture("decode/heic-444.heic");
        assert!(decode_bytes(&whole).is_ok());
        for end in 0..whole.len() {
            assert!(decode_bytes(&whole[..end]).is_err(), "{end} of {} bytes", whole.len());
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let _ = (size_of_bytes(&changed), decode(&changed));
        }
    }

    #[test]
    fn avif_is_told_from_heic() {
        let file =
            |brand: &[u8; 4], other: &[u8; 4]| [&b"\0\0\0\x18ftyp"[..], brand, b"\0\0\0\0", b"mif1", other].concat();
        assert!(is_heif(&file(b"heic", b"heic")) && is_heif(&file(b"mif1", b"heic")));
        for (brand, other) in [(b"avif", b"avif"), (b"mif1", b"avif"), (b"avis", b"miaf")] {
            assert!(is_avif(&file(brand, other)) && !is_heif(&file(brand, other)), "{brand:?}");
            assert!(decode_bytes(&file(brand, other)).unwrap_err().contains("AVIF"));
        }
        assert!(!is_heif(b"") && !is_heif(b"\0\0\0\x18ftyp") && !is_avif(b"\0\0\0\x18ftypisom"));
    }
}
