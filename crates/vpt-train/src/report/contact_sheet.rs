//! `val_predictions.jpg`: some validation images side by side, each with its prediction and, where that is wrong, the
//! true class.

use image::codecs::jpeg::JpegEncoder;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight};

use super::label;
use super::text::Font;
use vpt_base::{Error, Result};
use vpt_image::decode::Rgb8;
use vpt_image::resize::{Filter, resize};

/// Side of the square an image is fitted into, in pixels.
const SIDE: usize = 160;
/// Height of a line of text.
const LINE: usize = 18;
/// Space around a tile.
const GAP: usize = 8;
/// Images in a row of the sheet.
const COLUMNS: usize = 6;
const FONT: Font = Font { weight: FontWeight::Regular, height: RasterHeight::Size16 };

const BACKGROUND: [u8; 3] = [255, 255, 255];
const RIGHT: [u8; 3] = [0, 110, 70];
const WRONG: [u8; 3] = [190, 60, 0];
const TRUTH: [u8; 3] = [90, 90, 90];

/// One image of the sheet.
#[derive(Debug, Clone)]
pub struct SheetTile {
    /// The image as it is in the data set, any size.
    pub image: Rgb8,
    /// Name of the class it belongs to, or names of all.
    pub truth: String,
    /// Name of the class the model gave it, or names of all.
    pub predicted: String,
    /// The model's probability for `predicted`, where that is one class.
    pub probability: Option<f64>,
}

/// Draws `tiles` in the order given, six a row, as a JPEG file. Letters outside Latin-1 and Latin Extended-A become `?`.
///
/// # Errors
/// If the JPEG encoder refuses the picture: more than 65,535 pixels high, some two thousand tiles.
pub fn contact_sheet_jpeg(tiles: &[SheetTile]) -> Result<Vec<u8>> {
    let rows = tiles.len().div_ceil(COLUMNS).max(1);
    let (cell_width, cell_height) = (SIDE + GAP, SIDE + 2 * LINE + GAP);
    let (width, height) = (COLUMNS * cell_width + GAP, rows * cell_height + GAP);
    let mut sheet = Rgb8 { width, height, pixels: BACKGROUND.repeat(width * height) };
    for (i, tile) in tiles.iter().enumerate() {
        let (x, y) = (GAP + i % COLUMNS * cell_width, GAP + i / COLUMNS * cell_height);
        paste(&mut sheet, &tile.image, x, y);
        let correct = tile.truth == tile.predicted;
        let percent = tile.probability.map_or_else(String::new, |probability| format!(" {:.0}%", probability * 100.));
        let fits = SIDE / FONT.advance();
        let predicted = label(&tile.predicted, fits - percent.len()) + &percent;
        FONT.write(&mut sheet, &predicted, x, y + SIDE + 2, if correct { RIGHT } else { WRONG });
        if !correct {
            FONT.write(&mut sheet, &label(&format!("is {}", tile.truth), fits), x, y + SIDE + 2 + LINE, TRUTH);
        }
    }
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 90)
        .encode(&sheet.pixels, width as u32, height as u32, image::ExtendedColorType::Rgb8)
        .map_err(|error| Error::invalid("val_predictions.jpg", error.to_string()))?;
    Ok(jpeg)
}

/// Scales `image` to fit the square at (`x`, `y`), in its middle.
fn paste(sheet: &mut Rgb8, image: &Rgb8, x: usize, y: usize) {
    let longest = image.width.max(image.height).max(1);
    let fit = |side: usize| (side * SIDE).div_ceil(longest).clamp(1, SIDE);
    let (width, height) = (fit(image.width), fit(image.height));
    // Enlarged pixels of a tiny image should look like pixels.
    let filter = if longest <= SIDE / 4 { Filter::Nearest } else { Filter::Bicubic };
    let small = resize(image, width, height, filter);
    let (x, y) = (x + (SIDE - width) / 2, y + (SIDE - height) / 2);
    for row in 0..height {
        let to = ((y + row) * sheet.width + x) * 3;
        sheet.pixels[to..to + width * 3].copy_from_slice(&small.pixels[row * width * 3..][..width * 3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(width: usize, height: usize, truth: &str, predicted: &str) -> SheetTile {
        let pixels =
            (0..width * height).flat_map(|i| [(i % width * 255 / width) as u8, (i / width * 255 / height) as u8, 128]);
        let image = Rgb8 { width, height, pixels: pixels.collect() };
        SheetTile { image, truth: truth.into(), predicted: predicted.into(), probability: Some(0.934) }
    }

    #[test]
    fn a_sheet_is_a_jpeg_of_the_expected_size_whatever_the_images() {
        let long = "a class name that is far too long to be shown below its image";
        let mut tiles = vec![tile(1, 1, "dot", "dot"), tile(28, 28, "ж", "Ä"), tile(3000, 10, long, "b")];
        tiles.extend((0..5).map(|i| tile(100 + 90 * i, 200, "cat", "dog")));
        let jpeg = contact_sheet_jpeg(&tiles).unwrap();
        let decoded = image::load_from_memory_with_format(&jpeg, image::ImageFormat::Jpeg).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (6 * 168 + 8, 2 * 204 + 8));
        assert_eq!(jpeg, contact_sheet_jpeg(&tiles).unwrap(), "same bytes every time");
    }

    #[test]
    fn no_images_still_make_a_file() {
        assert!(contact_sheet_jpeg(&[]).is_ok());
    }
}
