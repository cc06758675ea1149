//! Masks drawn over images: pictures of predictions, and `val_predictions.jpg` of a segmentation run.

use std::collections::BTreeSet;

use super::boxes::{NAME, colour, fitted, pair_sheet_jpeg};
use super::label;
use vpt_base::Result;
use vpt_data::masks::{ClassMask, IGNORED};
use vpt_image::decode::Rgb8;

/// What is called a class that is not drawn, as most of a picture is of it.
const BACKGROUND: &str = "background";

/// Share of a class's colour in a pixel, of 256.
const INK: u32 = 150;

/// An image with two masks of it.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskTile {
    /// The image.
    pub image: Rgb8,
    /// As it is marked.
    pub truth: ClassMask,
    /// As a model sees it.
    pub predicted: ClassMask,
}

/// Draws the classes of `mask` over `image`, which may be of another size, in the colours of their numbers. Background, by its name
/// among `names`, stays as it is.
pub fn draw_mask(image: &mut Rgb8, mask: &ClassMask, names: &[String]) {
    for y in 0..image.height {
        for x in 0..image.width {
            let at = y * mask.height / image.height * mask.width + x * mask.width / image.width;
            let class = mask.classes[at];
            if class == IGNORED || names.get(usize::from(class)).is_some_and(|name| name == BACKGROUND) {
                continue;
            }
            let to = (y * image.width + x) * 3;
            for (value, ink) in image.pixels[to..to + 3].iter_mut().zip(colour(usize::from(class))) {
                *value = ((u32::from(*value) * (256 - INK) + u32::from(ink) * INK) / 256) as u8;
            }
        }
    }
}

/// Draws `tiles`, two a row, each with the truth on its left and the prediction on its right, as a JPEG file. A legend names the
/// colours.
///
/// # Errors
/// If the JPEG encoder refuses the picture: more than 65,535 pixels high, some four hundred tiles.
pub fn mask_sheet_jpeg(tiles: &[MaskTile], names: &[String]) -> Result<Vec<u8>> {
    let all = tiles.iter().flat_map(|tile| tile.truth.classes.iter().chain(&tile.predicted.classes));
    let classes: BTreeSet<u16> = all.copied().filter(|class| *class != IGNORED).collect();
    let entry = |class: u16| {
        let name = names.get(usize::from(class)).map_or("?", String::as_str);
        (name != BACKGROUND).then(|| (Some(usize::from(class)), label(name, NAME)))
    };
    let legend: Vec<_> = classes.into_iter().filter_map(entry).collect();
    pair_sheet_jpeg(tiles.len(), &legend, |i| {
        let MaskTile { image, truth, predicted } = &tiles[i];
        let (small, _) = fitted(image);
        [truth, predicted].map(|mask| {
            let mut picture = small.clone();
            draw_mask(&mut picture, mask, names);
            picture
        })
    })
}
