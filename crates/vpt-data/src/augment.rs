//! Random changes to training images, each drawn from (seed, epoch, sample) alone.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::trivial::trivial_augment;
use vpt_base::choice::choice;
use vpt_base::{Error, Result};
use vpt_image::decode::Rgb8;
use vpt_image::preprocess::Preprocess;
use vpt_image::resize::{crop, resize};

/// Width over height of a random crop, at least and at most; torchvision's.
const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

/// What is done to training images. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Augment {
    /// Mirror every second image, left and right.
    pub flip: bool,
    /// Take a random part of the image instead of its middle: least and greatest share of its area, `(0.08, 1.0)` in
    /// torchvision's `RandomResizedCrop`. The part is resized, with the preprocessing's filter, to the size of the crop.
    pub random_resized_crop: Option<(f32, f32)>,
    /// Take the crop from a random place of the resized image instead of its middle.
    pub random_crop: bool,
    /// What else is done to the crop, after the flip.
    pub policy: AugmentPolicy,
}

choice! {
    /// A set of operations of which some are drawn for each training image.
    #[derive(Default)]
    pub enum AugmentPolicy for "augment" {
        /// Nothing is drawn.
        #[default]
        None = "none",
        /// `TrivialAugment` in its wide space: one of fourteen operations, at one of 31 strengths.
        Trivial = "trivial",
    }
}

impl Augment {
    /// Whether every image stays as it is.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the part of the image that is taken stays the same, so that resized pixels can be kept.
    pub fn keeps_crop(&self) -> bool {
        self.random_resized_crop.is_none() && !self.random_crop
    }

    /// Whether nothing changes the values of the pixels.
    pub(super) fn keeps_values(&self) -> bool {
        self.keeps_crop() && self.policy == AugmentPolicy::None
    }

    /// # Errors
    /// Both kinds of crop are asked for, or the shares of the area are not `0 < least <= greatest <= 1`.
    pub fn check(&self) -> Result<()> {
        let Some((least, greatest)) = self.random_resized_crop else { return Ok(()) };
        if self.random_crop {
            return Err(Error::invalid("random_resized_crop", "cannot be combined with random_crop"));
        }
        if !(0.0 < least && least <= greatest && greatest <= 1.0) {
            let message =
                format!("shares of the area from {least} to {greatest}; wanted is 0 < least <= greatest <= 1");
            return Err(Error::invalid("random_resized_crop", message));
        }
        Ok(())
    }

    /// `image` resized and cropped by `preprocess`, with random crops by `rng`; not flipped.
    ///
    /// # Errors
    /// As [`Preprocess::pixels`].
    pub fn pixels(&self, image: &Rgb8, preprocess: &Preprocess, rng: &mut ChaCha8Rng) -> Result<Rgb8> {
        if let (Some(scale), Some((width, height))) = (self.random_resized_crop, preprocess.output_size()) {
            let scale = (f64::from(scale.0), f64::from(scale.1));
            let [left, top, w, h] = random_part(image.width, image.height, scale, rng);
            let part = crop(image, left as isize, top as isize, w, h);
            return Ok(resize(&part, width, height, preprocess.filter));
        }
        if let (true, Some((crop_width, crop_height))) = (self.random_crop, preprocess.crop) {
            let (width, height) = preprocess.resized(image)?;
            // Where the image is smaller than the crop it stays in the middle of a black border.
            let mut begin = |size: usize, crop: usize| {
                if size <= crop {
                    -((crop - size).div_ceil(2) as isize)
                } else {
                    rng.random_range(0..=size - crop) as isize
                }
            };
            let begin = (begin(width, crop_width), begin(height, crop_height));
            return Ok(preprocess.crop_at(image, (width, height), begin));
        }
        preprocess.pixels(image)
    }

    /// Changes `image`, which is cropped already, as the rest of the settings say: the flip, then the policy.
    pub fn change(&self, image: &mut Rgb8, rng: &mut ChaCha8Rng) {
        self.flip(image, rng);
        if self.policy == AugmentPolicy::Trivial {
            *image = trivial_augment(image, rng);
        }
    }

    /// Whether an image is mirrored.
    fn is_turn(&self, rng: &mut ChaCha8Rng) -> bool {
        self.flip && rng.random_bool(0.5)
    }

    /// As [`Self::flip`], of rows of `width` values.
    pub(super) fn flip_rows(&self, rows: &mut [f32], width: usize, rng: &mut ChaCha8Rng) {
        if self.is_turn(rng) {
            rows.chunks_exact_mut(width.max(1)).for_each(<[f32]>::reverse);
        }
    }

    /// Mirrors `image` if it is this one's turn.
    pub fn flip(&self, image: &mut Rgb8, rng: &mut ChaCha8Rng) {
        if self.is_turn(rng) {
            for row in image.pixels.chunks_exact_mut((image.width * 3).max(1)) {
                let (pixels, _) = row.as_chunks_mut::<3>();
                pixels.reverse();
            }
        }
    }
}

/// Left, top, width and height of a random part of a `width` x `height` image, by torchvision's
/// `RandomResizedCrop.get_params`: ten tries at an area and a ratio that fit, else the largest middle with a ratio in bounds.
fn random_part(width: usize, height: usize, scale: (f64, f64), rng: &mut ChaCha8Rng) -> [usize; 4] {
    let (w, h) = (width as f64, height as f64);
    let between = |rng: &mut ChaCha8Rng, (a, b): (f64, f64)| a + (b - a) * rng.random::<f64>();
    for _ in 0..10 {
        let area = w * h * between(rng, scale);
        let ratio = between(rng, (RATIO.0.ln(), RATIO.1.ln())).exp();
        let (pw, ph) = ((area * ratio).sqrt().round_ties_even(), (area / ratio).sqrt().round_ties_even());
        if (1.0..=w).contains(&pw) && (1.0..=h).contains(&ph) {
            let (pw, ph) = (pw as usize, ph as usize);
            let top = rng.random_range(0..=height - ph);
            let left = rng.random_range(0..=width - pw);
            return [left, top, pw, ph];
        }
    }
    let ratio = w / h;
    let (pw, ph) = if ratio < RATIO.0 {
        (width, (w / RATIO.0).round_ties_even() as usize)
    } else if ratio > RATIO.1 {
        ((h * RATIO.1).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    // Rounding must not reach outside.
    let (pw, ph) = (pw.clamp(1, width), ph.clamp(1, height));
    [(width - pw) / 2, (height - ph) / 2, pw, ph]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vpt_base::random::stream;
    use vpt_image::preprocess::Size;
    use vpt_image::resize::Filter;

    fn gradient(width: usize, height: usize) -> Rgb8 {
        let grey: Vec<u8> = (0..height).flat_map(|y| (0..width).map(move |x| (x * 7 + y * 13) as u8)).collect();
        Rgb8::from_grey(width, height, &grey)
    }

    #[test]
    fn a_flip_mirrors_rows_and_happens_to_half_of_the_images() {
        let augment = Augment { flip: true, ..Augment::default() };
        let image = gradient(5, 2);
        let mut flipped = 0;
        for index in 0..1000 {
            let mut out = image.clone();
            augment.flip(&mut out, &mut stream(1, "augment", 0, index));
            if out != image {
                flipped += 1;
                let at = |i: &Rgb8, x: usize, y: usize| i.pixels[(y * 5 + x) * 3];
                assert!((0..2).all(|y| (0..5).all(|x| at(&out, x, y) == at(&image, 4 - x, y))));
            }
        }
        assert!((440..560).contains(&flipped), "{flipped}");
    }

    #[test]
    fn the_whole_area_of_a_square_is_the_plain_resize() {
        let preprocess =
            Preprocess { resize: Some(Size::Exact { width: 8, height: 8 }), crop: None, ..Preprocess::clip(8) };
        let augment = Augment { random_resized_crop: Some((1.0, 1.0)), ..Augment::default() };
        let image = gradient(20, 20);
        // No ratio but 1 fits, so all ten tries fail unless one is almost 1.
        let out = augment.pixels(&image, &preprocess, &mut stream(1, "t", 0, 0)).unwrap();
        assert_eq!(out, resize(&image, 8, 8, Filter::Bicubic));
    }

    #[test]
    fn a_random_crop_is_a_part_of_the_resized_image() {
        let preprocess = Preprocess { resize: Some(Size::ShortestEdge(12)), ..Preprocess::clip(8) };
        let augment = Augment { random_crop: true, ..Augment::default() };
        let image = gradient(30, 20);
        let whole = resize(&image, 18, 12, Filter::Bicubic);
        let places = (0..=10).flat_map(|x| (0..=4).map(move |y| (x, y)));
        let parts: Vec<_> = places.map(|(x, y)| crop(&whole, x, y, 8, 8)).collect();
        let mut seen = std::collections::HashSet::new();
        for index in 0..200 {
            let out = augment.pixels(&image, &preprocess, &mut stream(1, "t", 0, index)).unwrap();
            seen.insert(parts.iter().position(|p| *p == out).unwrap());
        }
        assert!(seen.len() > 40, "{} of 55 places", seen.len());
    }

    #[test]
    fn senseless_settings_are_refused() {
        for scale in [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (f32::NAN, 1.0)] {
            assert!(Augment { random_resized_crop: Some(scale), ..Augment::default() }.check().is_err());
        }
        let both = Augment { random_resized_crop: Some((0.1, 1.0)), random_crop: true, ..Augment::default() };
        assert!(both.check().is_err());
        assert!(Augment { random_crop: false, ..both }.check().is_ok());
    }

    proptest! {
        #[test]
        fn random_parts_lie_inside(width in 1_usize..400, height in 1_usize..400, least in 0.01..1.0_f64, seed: u64) {
            let [left, top, w, h] = random_part(width, height, (least, 1.0), &mut stream(seed, "t", 0, 0));
            prop_assert!(w >= 1 && h >= 1 && left + w <= width && top + h <= height);
        }

        #[test]
        fn random_parts_have_the_area_asked_for(seed: u64) {
            let [_, _, w, h] = random_part(300, 200, (0.2, 0.5), &mut stream(seed, "t", 0, 0));
            let share = (w * h) as f64 / 60_000.0;
            prop_assert!((0.19..0.51).contains(&share), "{share}");
            let ratio = w as f64 / h as f64;
            prop_assert!((0.74..1.35).contains(&ratio), "{ratio}");
        }
    }
}
