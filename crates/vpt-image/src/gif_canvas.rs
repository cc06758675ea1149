//! The first picture of a GIF as Pillow shows it: on a canvas that is as large as it needs, in the color that its palette has for
//! what is transparent, or else for number 0. The general decoder cuts at the canvas of the header and leaves the rest black.

use std::borrow::Cow;

/// The first picture's canvas, and what fills it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GifCanvas {
    /// Width and height.
    pub(crate) size: [u16; 2],
    /// The color of pixels that are transparent, or that the picture does not reach.
    pub(crate) fill: [u8; 3],
}

impl GifCanvas {
    /// Of the GIF file `bytes` (version 89a); `None` for anything else, and for one that ends before its first picture.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
        if !bytes.starts_with(b"GIF87a") && !bytes.starts_with(b"GIF89a") {
            return None;
        }
        let flags = *bytes.get(10)?;
        let [whole, mut at] = [palette_bytes(flags), 13 + palette_bytes(flags)];
        let mut palette = bytes.get(13..13 + whole)?;
        let mut transparent = None;
        loop {
            match *bytes.get(at)? {
                b'!' => {
                    let is_control = *bytes.get(at + 1)? == 0xf9;
                    let block = bytes.get(at + 3..at + 7).filter(|_| is_control && bytes[at + 2] >= 4);
                    if let Some(block) = block.filter(|block| block[0] & 1 == 1) {
                        transparent = Some(block[3]);
                    }
                    at += 2;
                    while *bytes.get(at)? != 0 {
                        at += 1 + usize::from(bytes[at]);
                    }
                    at += 1;
                }
                b',' => break,
                b';' => return None,
                _ => at += 1,
            }
        }
        let [left, top, width, height] = [1, 3, 5, 7].map(|field| number(at + field));
        let own = palette_bytes(*bytes.get(at + 9)?);
        if own > 0 {
            palette = bytes.get(at + 10..at + 10 + own)?;
        }
        let entry = usize::from(transparent.unwrap_or(0));
        // Without a palette numbers are shades of grey.
        let fill = match palette.get(3 * entry..3 * entry + 3) {
            Some(color) => [color[0], color[1], color[2]],
            None if palette.is_empty() => [transparent.unwrap_or(0); 3],
            None => [0; 3],
        };
        let reach =
            |screen: Option<u16>, begin: Option<u16>, side: Option<u16>| Some(screen?.max(begin?.checked_add(side?)?));
        Some(Self { size: [reach(number(6), left, width)?, reach(number(8), top, height)?], fill })
    }

    /// `bytes` with this canvas in the header.
    pub(crate) fn in_header(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        let [width, height] = self.size.map(u16::to_le_bytes);
        let size = [width, height].concat();
        if bytes.get(6..10) == Some(&size[..]) {
            return bytes.into();
        }
        let mut bytes = bytes.to_vec();
        bytes[6..10].copy_from_slice(&size);
        bytes.into()
    }
}

/// Bytes of a palette, by the flags of a screen or picture.
fn palette_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

#[cfg(test)]
mod tests {
    use crate::decode::{decode_bytes, size_of_bytes};

    const COLORS: [[u8; 3]; 4] = [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]];

    /// A picture of 2x1 pixels, of colors 1 and 2, at a place of a canvas.
    fn gif(canvas: [u8; 2], place: [u8; 2], transparent: Option<u8>) -> Vec<u8> {
        let mut out = b"GIF89a".to_vec();
        out.extend([canvas[0], 0, canvas[1], 0, 0x81, 3, 0]);
        out.extend(COLORS.concat());
        if let Some(index) = transparent {
            out.extend([b'!', 0xf9, 4, 1, 0, 0, index, 0]);
        }
        out.extend([b',', place[0], 0, place[1], 0, 2, 0, 1, 0, 0]);
        // Codes of three bits: clear 4, then 1, 2, end 5.
        out.extend([2, 2, 0b1000_1100, 0b1010, 0, b';']);
        out
    }

    // What Pillow 13 makes of each: `Image.open(file).convert("RGB")`.
    #[test]
    fn the_first_picture_lies_on_a_canvas_of_its_palette() {
        let [zero, one, two, three] = COLORS;
        for (canvas, place, transparent, size, expected) in [
            ([2, 1], [0, 0], None, [2, 1], vec![one, two]),
            ([3, 2], [1, 1], None, [3, 2], vec![zero, zero, zero, zero, one, two]),
            ([3, 1], [0, 0], Some(3), [3, 1], vec![one, two, three]),
            ([3, 1], [0, 0], Some(1), [3, 1], vec![one, two, one]),
            ([1, 1], [0, 0], None, [2, 1], vec![one, two]),
            ([2, 1], [1, 0], None, [3, 1], vec![zero, one, two]),
        ] {
            let file = gif(canvas, place, transparent);
            let image = decode_bytes(&file).unwrap();
            assert_eq!(([image.width, image.height], image.pixels), (size, expected.concat()), "{canvas:?} {place:?}");
            assert_eq!(size_of_bytes(&file), Ok(size));
            for length in 0..file.len() {
                let _ = decode_bytes(&file[..length]);
            }
        }
    }
}
