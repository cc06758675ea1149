//! `prompt.png`: a pixel prompt as it was learned, and images as the backbone sees them with it.

use std::path::Path;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight};

use super::label;
use super::text::Font;
use vpt_base::Result;
use vpt_image::decode::Rgb8;
use vpt_image::encode::picture_bytes;
use vpt_image::resize::{Filter, resize};

/// Least side of a picture; smaller ones are enlarged by a whole factor, so that pixels stay pixels.
const SIDE: usize = 192;
/// Height of a line of text.
const LINE: usize = 20;
/// Space around a picture.
const GAP: usize = 8;
const FONT: Font = Font { weight: FontWeight::Regular, height: RasterHeight::Size16 };
const WHITE: [u8; 3] = [255, 255, 255];
const TEXT: [u8; 3] = [60, 60, 60];

/// Draws `columns` side by side, each a picture above another with what they are, as a PNG file. All pictures are squares of
/// one size.
///
/// # Errors
/// If the PNG encoder refuses the picture.
pub fn prompt_sheet_png(columns: &[[(Rgb8, String); 2]]) -> Result<Vec<u8>> {
    let side = columns.first().map_or(1, |[(picture, _), _]| picture.width).max(1);
    let shown = side * SIDE.div_ceil(side);
    let (cell_width, cell_height) = (shown + GAP, shown + LINE + GAP);
    let (width, height) = (columns.len() * cell_width + GAP, 2 * cell_height + GAP);
    let mut sheet = Rgb8 { width, height, pixels: WHITE.repeat(width * height) };
    for (i, column) in columns.iter().enumerate() {
        for (j, (picture, text)) in column.iter().enumerate() {
            let (x, y) = (GAP + i * cell_width, GAP + j * cell_height);
            let large = resize(picture, shown, shown, Filter::Nearest);
            for (row, y) in large.pixels.chunks_exact(shown * 3).zip(y..) {
                let to = (y * width + x) * 3;
                sheet.pixels[to..to + shown * 3].copy_from_slice(row);
            }
            FONT.write(&mut sheet, &label(text, shown / FONT.advance()), x, y + shown + 2, TEXT);
        }
    }
    picture_bytes(&sheet, Path::new("prompt.png"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_image::decode::decode_bytes;

    #[test]
    fn pictures_stand_in_their_places_enlarged_by_a_whole_factor() {
        let plain = |level: u8| Rgb8 { width: 48, height: 48, pixels: vec![level; 48 * 48 * 3] };
        let column =
            |a, b| [(plain(a), "above".to_owned()), (plain(b), "a text that is too long for its picture".to_owned())];
        let sheet = decode_bytes(&prompt_sheet_png(&[column(10, 20), column(30, 40)]).unwrap()).unwrap();
        assert_eq!((sheet.width, sheet.height), (2 * 200 + 8, 2 * 220 + 8));
        let at = |x: usize, y: usize| sheet.pixels[(y * sheet.width + x) * 3];
        assert_eq!([at(8, 8), at(8, 228), at(208, 8), at(399, 419)], [10, 20, 30, 40]);
        assert_eq!(at(4, 4), 255);
    }
}
