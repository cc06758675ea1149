//! How many tiles images are cut into where that is left to the program: enough to see small objects by, no more than the images have
//! pixels for.

use crate::boxes::{BoxImage, Fit};
use crate::masks::MaskImage;
use vpt_image::preprocess::MAX_SIDE;

/// Most tiles along the shorter side that are chosen. A square image has 145 views with them.
const MOST_CHOSEN: usize = 8;

/// Patches that an object is to be long to be told well.
const LEAST_PATCHES: usize = 2;

/// How a network sees images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenAt {
    /// Side of its input in pixels, `S`.
    pub side: usize,
    /// Side of a patch of it.
    pub patch: usize,
    /// How a whole image becomes square.
    pub fit: Fit,
}

/// A number of tiles, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenTiles {
    /// Tiles along the shorter side of an image, if they did not overlap.
    pub tiles: usize,
    /// Why so many, as the end of a sentence.
    pub reason: String,
}

impl ChosenTiles {
    /// As many as show the pixels of images whose shorter sides these are, seen at `side` pixels.
    pub fn of_images(shorter: Vec<usize>, side: usize) -> Self {
        Self::by_pixels(shorter, side, f64::ceil)
    }

    /// As many as show images that segmentation learns from nearest to the size of their pixels.
    pub fn of_masks(images: &[MaskImage], side: usize) -> Self {
        Self::by_pixels(images.iter().map(|image| image.width.min(image.height)).collect(), side, f64::round)
    }

    fn by_pixels(mut shorter: Vec<usize>, side: usize, round: fn(f64) -> f64) -> Self {
        let median = median(&mut shorter);
        Self {
            // No more than an image may have pixels when it is resized.
            tiles: (round(median / side as f64) as usize).min(MAX_SIDE / side).clamp(1, MOST_CHOSEN),
            reason: format!(
                "by the pixels of the images, {median} along the shorter side (median), of which a tile shows {side}"
            ),
        }
    }

    /// The fewest with which nine in ten boxes of these `images` are two patches long, but no more than show the pixels of the images.
    pub fn of_boxes(images: &[BoxImage], seen: SeenAt) -> Self {
        let shorter = images.iter().map(|image| image.width.min(image.height)).collect();
        let most = Self::of_images(shorter, seen.side).tiles;
        let least = (LEAST_PATCHES * seen.patch) as f64;
        let objects = || images.iter().flat_map(|image| image.objects.iter().map(move |object| (image, object)));
        let boxes = objects().filter(|(_, object)| !object.crowd).count();
        let long = |tiles: usize| {
            let boxes = objects().filter(|(_, object)| !object.crowd);
            boxes.filter(|(image, object)| object.rect.area().sqrt() * seen.scale(image, tiles) >= least).count()
        };
        let are_enough = |tiles: &usize| 10 * long(*tiles) >= 9 * boxes;
        let of = format!("of {boxes} training boxes are at least {LEAST_PATCHES} patches long ({least} pixels)");
        if let Some(tiles) = (1..=most).find(are_enough) {
            let fewest = if tiles > 1 { "the fewest " } else { "" };
            return Self { tiles, reason: format!("{fewest}with which nine in ten {of}") };
        }
        let bound = if most == MOST_CHOSEN { "the most that are chosen" } else { "more would show no more pixels" };
        Self { tiles: most, reason: format!("{bound}; {} {of}", long(most)) }
    }
}

impl SeenAt {
    /// Pixels of the input to one of `image` in its tiles, or in the whole of it with one.
    fn scale(self, image: &BoxImage, tiles: usize) -> f64 {
        let (width, height) = (image.width as f64, image.height as f64);
        let length = match self.fit {
            _ if tiles > 1 => image.width.min(image.height).div_ceil(tiles) as f64,
            Fit::Stretch => (width * height).sqrt(),
            Fit::Letterbox => width.max(height),
        };
        self.side as f64 / length.max(1.)
    }
}

/// The middle of these, or between the two in the middle; 0 of none.
fn median(values: &mut [usize]) -> f64 {
    values.sort_unstable();
    let middle = |at: usize| values.get(at).copied().unwrap_or_default() as f64;
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(middle(half.saturating_sub(1)), middle(half))
    } else {
        middle(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::{Object, Rect};
    use vpt_image::Rgb8;

    const SEEN: SeenAt = SeenAt { side: 64, patch: 8, fit: Fit::Stretch };

    /// An image with boxes of these widths and heights.
    fn image(width: usize, height: usize, boxes: &[[f64; 2]]) -> BoxImage {
        let objects = boxes.iter().zip(1..).map(|(&[width, height], id)| {
            let rect = Rect { x: 0., y: 0., width, height };
            Object { id, category: 0, rect, area: 1., crowd: false }
        });
        let objects = objects.collect();
        BoxImage { id: 1, name: "a".to_owned(), image: Rgb8::new(1, 1).into(), width, height, objects }
    }

    fn boxes(images: &[BoxImage]) -> usize {
        ChosenTiles::of_boxes(images, SEEN).tiles
    }

    #[test]
    fn boxes_are_brought_to_two_patches() {
        // 16 pixels of 64 are asked for: 32 of 256, 16 with twice as many pixels, and 15 with a little more.
        for (side, tiles) in [(32., 2), (64., 1), (63.9, 2), (31.9, 3), (21.5, 3), (21.3, 4), (16., 4), (3., 4)] {
            assert_eq!(boxes(&[image(256, 256, &[[side; 2]])]), tiles, "{side}");
        }
        // The area counts, not the shape.
        assert_eq!(boxes(&[image(256, 256, &[[64., 16.]])]), 2);
        let ChosenTiles { tiles, reason } = ChosenTiles::of_boxes(&[image(256, 256, &[[32.; 2]])], SEEN);
        assert_eq!(
            (tiles, reason.as_str()),
            (2, "the fewest with which nine in ten of 1 training boxes are at least 2 patches long (16 pixels)")
        );
    }

    #[test]
    fn one_box_in_ten_may_be_smaller_and_crowds_do_not_count() {
        let mut sides = vec![[64.; 2]; 9];
        sides.push([16.; 2]);
        assert_eq!(boxes(&[image(256, 256, &sides)]), 1);
        sides.push([16.; 2]);
        assert_eq!(boxes(&[image(256, 256, &sides)]), 4);
        let mut crowded = image(256, 256, &sides);
        crowded.objects[9].crowd = true;
        assert_eq!(boxes(&[crowded.clone()]), 1);
        crowded.objects.clear();
        assert_eq!((boxes(&[crowded]), boxes(&[])), (1, 1), "nothing to be seen");
    }

    #[test]
    fn a_tile_shows_no_more_pixels_than_there_are() {
        let small = [[4.; 2]];
        for (size, tiles) in [([64, 64], 1), ([64, 500], 1), ([65, 500], 2), ([500, 129], 3), ([1024, 1024], 8)] {
            assert_eq!(boxes(&[image(size[0], size[1], &small)]), tiles, "{size:?}");
        }
        let reason = |side| ChosenTiles::of_boxes(&[image(side, side, &small)], SEEN).reason;
        assert!(reason(129).starts_with("more would show no more pixels; 0 of 1 training boxes"), "{}", reason(129));
        assert!(reason(1024).starts_with("the most that are chosen; 0 of 1 "), "{}", reason(1024));
        // By the median image: the one of the three, and between the two.
        let of = |sides: &[usize]| boxes(&sides.iter().map(|&side| image(side, 2 * side, &small)).collect::<Vec<_>>());
        assert_eq!([of(&[64, 1000, 128]), of(&[64, 1000, 128, 192]), of(&[64, 192])], [2, 3, 2]);
    }

    #[test]
    fn a_whole_image_is_seen_as_it_becomes_square() {
        // Of 256x64, 64 pixels: halves of it by the area, a quarter with padding; but there are pixels for no second tile.
        let long = [image(256, 64, &[[32.; 2]])];
        let reason = |fit| ChosenTiles::of_boxes(&long, SeenAt { fit, ..SEEN }).reason;
        assert!(reason(Fit::Stretch).starts_with("with which nine in ten"), "{}", reason(Fit::Stretch));
        assert!(reason(Fit::Letterbox).starts_with("more would"), "{}", reason(Fit::Letterbox));
    }

    #[test]
    fn images_are_seen_with_the_pixels_they_have() {
        let up = |shorter: &[usize]| ChosenTiles::of_images(shorter.to_vec(), 64).tiles;
        assert_eq!([up(&[]), up(&[1]), up(&[64]), up(&[65]), up(&[129, 1, 500])], [1, 1, 1, 2, 3]);
        assert_eq!([up(&[512]), up(&[513]), up(&[usize::MAX; 2])], [8; 3]);
        assert_eq!(ChosenTiles::of_images(vec![usize::MAX], MAX_SIDE / 3).tiles, 3);
        let mask = |side: usize| MaskImage::unlabelled("a".to_owned(), Rgb8::new(side, 2 * side).into()).unwrap();
        let nearest = |sides: &[usize]| {
            ChosenTiles::of_masks(&sides.iter().map(|&side| mask(side)).collect::<Vec<_>>(), 64).tiles
        };
        assert_eq!([nearest(&[20]), nearest(&[95]), nearest(&[96]), nearest(&[64, 255])], [1, 1, 2, 2]);
        assert_eq!([nearest(&[]), nearest(&[224]), nearest(&[900])], [1, 4, 8]);
        let reason = ChosenTiles::of_images(vec![128, 256], 64).reason;
        assert_eq!(
            reason,
            "by the pixels of the images, 192 along the shorter side (median), of which a tile shows 64"
        );
    }
}
