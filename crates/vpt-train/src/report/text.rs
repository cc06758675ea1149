//! Text on pictures that are pixels.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use vpt_image::decode::Rgb8;

/// Letters of one size; all are equally wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Font {
    /// How heavy the strokes are.
    pub(super) weight: FontWeight,
    /// How high a line is.
    pub(super) height: RasterHeight,
}

impl Font {
    /// Pixels from one letter to the next.
    pub(super) fn advance(self) -> usize {
        get_raster_width(self.weight, self.height)
    }

    /// Pixels from the top of a line to its bottom.
    pub(super) fn line(self) -> usize {
        self.height.val()
    }

    /// Writes one line of text with its upper left corner at (`x`, `y`), cut at the edges of `image`. Letters outside Latin-1
    /// and Latin Extended-A become `?`.
    pub(super) fn write(self, image: &mut Rgb8, text: &str, x: usize, y: usize, colour: [u8; 3]) {
        for (i, c) in text.chars().enumerate() {
            let c = if c == '…' { '~' } else { c };
            let raster = |c| get_raster(c, self.weight, self.height);
            let glyph = raster(c).or_else(|| raster('?'));
            for (dy, row) in glyph.iter().flat_map(|glyph| glyph.rows().enumerate()) {
                for (dx, &ink) in row.iter().enumerate() {
                    blend(image, x + i * self.advance() + dx, y + dy, colour, ink);
                }
            }
        }
    }
}

/// Lays `colour` over the pixel at (`x`, `y`), if there is one; `ink` from 0 (nothing) to 255 (all).
pub(super) fn blend(image: &mut Rgb8, x: usize, y: usize, colour: [u8; 3], ink: u8) {
    if x >= image.width || y >= image.height {
        return;
    }
    let at = (y * image.width + x) * 3;
    for (pixel, colour) in image.pixels[at..at + 3].iter_mut().zip(colour) {
        let (paper, ink) = (u32::from(*pixel), u32::from(ink));
        *pixel = ((paper * (255 - ink) + u32::from(colour) * ink) / 255) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FONT: Font = Font { weight: FontWeight::Regular, height: RasterHeight::Size16 };

    #[test]
    fn letters_leave_ink_in_their_cells_alone_and_are_cut_at_the_edges() {
        let mut image = Rgb8::new(40, 20);
        FONT.write(&mut image, "iжW", 2, 1, [255; 3]);
        let inked = |image: &Rgb8, x: usize, w: usize| {
            (0..image.height).any(|y| image.pixels[(y * image.width + x) * 3..][..w * 3].iter().any(|&v| v > 0))
        };
        let advance = FONT.advance();
        assert!((0..3).all(|i| inked(&image, 2 + i * advance, advance)));
        assert!(!inked(&image, 0, 2) && !inked(&image, 2 + 3 * advance, 40 - 2 - 3 * advance));
        let mut question = Rgb8::new(40, 20);
        FONT.write(&mut question, "i?W", 2, 1, [255; 3]);
        assert_eq!(image, question);
        FONT.write(&mut Rgb8::new(5, 3), "far too long", 3, 2, [255; 3]);
    }
}
