//! Windows of an image: the squares that a network sees of it, with overlap where the image is longer than wide.
//!
//! The image is resized until its shorter side is as long as `tiles` windows, and its aspect ratio stays. Windows stand at even
//! distances of at most two thirds of their side, so each pixel lies in one or more.

use rand::Rng;

use super::{ClassMask, IGNORED};
use crate::windows::window_starts;
use vpt_base::{Error, Result};
use vpt_image::decode::Rgb8;
use vpt_image::preprocess::{MAX_SIDE, Preprocess};
use vpt_image::resize::{Window, resize_window};

/// Most times that one side of an image may be the other.
pub const MAX_RATIO: usize = 16;

/// Most windows along the shorter side.
const MAX_TILES: usize = 64;

/// What a network is given.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskInput {
    /// Filter and normalisation of the backbone; its sizes are not used.
    pub preprocess: Preprocess,
    /// Side of a window in pixels, `S`.
    pub side: usize,
    /// Cells in a row and in a column of a window, `L`, in each of which one class is learned.
    pub cells: usize,
    /// Windows along the shorter side of an image, if they did not overlap.
    pub tiles: usize,
}

/// Where a window lies in an image that was resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowPlace {
    /// Width and height that the image is resized to.
    scaled: [usize; 2],
    /// The window's upper left corner in it; it may reach past the border.
    at: [isize; 2],
}

/// What is seen in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenWindow {
    /// `[S, S, 3]`.
    pub(super) pixels: Vec<u8>,
    /// `[L, L]`.
    pub(super) labels: Vec<u16>,
}

impl MaskInput {
    /// # Errors
    /// The side is 0 or above [`MAX_SIDE`], there are more cells than pixels, or no or too many tiles.
    pub fn check(&self) -> Result<()> {
        let Self { side, cells, tiles, .. } = *self;
        if side == 0 || side > MAX_SIDE {
            return Err(Error::invalid("image size", format!("{side} is not between 1 and {MAX_SIDE}")));
        }
        if cells == 0 || cells > side {
            return Err(Error::invalid("cells", format!("{cells} in a window of {side} pixels")));
        }
        if tiles == 0 || tiles > MAX_TILES || tiles * side > MAX_SIDE {
            return Err(Error::setting(
                "tiles",
                format!("{tiles} windows of {side} pixels; 1 to {MAX_TILES} are possible"),
            ));
        }
        Ok(())
    }

    /// Width and height that an image of `width` x `height` is resized to, before it is `zoom`ed.
    ///
    /// # Errors
    /// One side is more than [`MAX_RATIO`] times the other.
    pub fn scaled(&self, width: usize, height: usize, zoom: f64) -> Result<[usize; 2]> {
        let short = width.min(height);
        if short == 0 || width.max(height) > MAX_RATIO * short {
            let message = format!("{width}x{height} pixels: one side is more than {MAX_RATIO} times the other");
            return Err(Error::invalid("image", message));
        }
        let factor = (self.tiles * self.side) as f64 * zoom / short as f64;
        Ok([width, height].map(|side| ((side as f64 * factor).round() as usize).max(1)))
    }

    /// The upper left corners of the windows of an image of `width` x `height`, row by row, in the image that is resized to
    /// [`Self::scaled`].
    ///
    /// # Errors
    /// As [`Self::scaled`].
    pub fn windows(&self, width: usize, height: usize) -> Result<Vec<[usize; 2]>> {
        let [xs, ys] = self.scaled(width, height, 1.)?.map(|length| window_starts(length, self.side));
        Ok(ys.iter().flat_map(|&y| xs.iter().map(move |&x| [x, y])).collect())
    }

    /// All windows of `image`, normalized: `[W, 3, S, S]`.
    ///
    /// # Errors
    /// As [`Self::scaled`].
    pub fn views(&self, image: &Rgb8) -> Result<Vec<f32>> {
        let (width, height) = (image.width, image.height);
        let windows = self.windows(width, height)?;
        let each = 3 * self.side * self.side;
        let mut pixels = vec![0.; windows.len() * each];
        for (at, to) in windows.into_iter().zip(pixels.chunks_exact_mut(each)) {
            let seen = self.see(image, None, self.place(width, height, at)?, false);
            self.preprocess.normalise_into(&seen.pixels, to);
        }
        Ok(pixels)
    }

    /// The window at `at` of an image of `width` x `height`.
    pub(super) fn place(&self, width: usize, height: usize, at: [usize; 2]) -> Result<WindowPlace> {
        Ok(WindowPlace { scaled: self.scaled(width, height, 1.)?, at: at.map(|at| at as isize) })
    }

    /// A window anywhere in the image after a zoom by a factor between `least` and `most`; where the image is smaller, anywhere
    /// around it.
    pub(super) fn random_place(
        &self,
        width: usize,
        height: usize,
        [least, most]: [f32; 2],
        rng: &mut impl Rng,
    ) -> Result<WindowPlace> {
        let (least, most) = (f64::from(least).ln(), f64::from(most).ln());
        let zoom = if most > least { rng.random_range(least..most).exp() } else { least.exp() };
        let scaled = self.scaled(width, height, zoom)?;
        let at = scaled.map(|length| {
            let room = length as i64 - self.side as i64;
            rng.random_range(room.min(0)..=room.max(0)) as isize
        });
        Ok(WindowPlace { scaled, at })
    }

    /// What the window `place` shows of `image`, and the classes in its cells by `mask`, if that is given. `mirror` exchanges left and
    /// right.
    pub(super) fn see(&self, image: &Rgb8, mask: Option<&ClassMask>, place: WindowPlace, mirror: bool) -> SeenWindow {
        let Self { side, cells, .. } = *self;
        let WindowPlace { scaled, at } = place;
        // In the image that is resized, and in the window.
        let range = |axis: usize| {
            let begin = at[axis].max(0) as usize;
            let end = ((at[axis] + side as isize).max(0) as usize).min(scaled[axis]);
            (begin..end, (begin as isize - at[axis]) as usize)
        };
        let ((x, left), (y, top)) = (range(0), range(1));
        let Preprocess { mean, rescale, filter, .. } = &self.preprocess;
        let color = mean.map(|m| (f64::from(m) / rescale).round() as u8);
        let mut pixels = color.repeat(side * side);
        let drawn = resize_window(image, scaled[0], scaled[1], *filter, &Window { x: x.clone(), y: y.clone() });
        for (row, drawn) in drawn.pixels.chunks_exact((drawn.width * 3).max(1)).enumerate() {
            let to = ((top + row) * side + left) * 3;
            pixels[to..to + drawn.len()].copy_from_slice(drawn);
        }
        let labels = mask.map_or_else(Vec::new, |mask| {
            let of = |cell: usize, axis: usize, size: usize| {
                let middle = at[axis] as f64 + (cell as f64 + 0.5) * side as f64 / cells as f64;
                let inside = (0. ..scaled[axis] as f64).contains(&middle);
                inside.then(|| ((middle / scaled[axis] as f64 * size as f64) as usize).min(size - 1))
            };
            let columns: Vec<Option<usize>> = (0..cells).map(|cell| of(cell, 0, mask.width)).collect();
            let rows = (0..cells).map(|cell| of(cell, 1, mask.height));
            let class = |x: Option<usize>, y: Option<usize>| {
                x.zip(y).map_or(IGNORED, |(x, y)| mask.classes[y * mask.width + x])
            };
            rows.flat_map(|y| columns.iter().map(move |&x| class(x, y)).collect::<Vec<_>>()).collect()
        });
        let mut seen = SeenWindow { pixels, labels };
        if mirror {
            seen.mirror(side, cells);
        }
        seen
    }
}

impl SeenWindow {
    fn mirror(&mut self, side: usize, cells: usize) {
        self.pixels.chunks_exact_mut(side * 3).for_each(|row| row.as_chunks_mut::<3>().0.reverse());
        self.labels.chunks_exact_mut(cells).for_each(<[u16]>::reverse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::random::stream;
    use vpt_image::resize::resize;

    fn input(side: usize, tiles: usize) -> MaskInput {
        MaskInput { preprocess: Preprocess::clip(side), side, cells: side / 4, tiles }
    }

    #[test]
    fn windows_cover_every_pixel_and_overlap_by_a_third() {
        for (width, height) in [(64, 64), (100, 64), (64, 500), (333, 32), (31, 496)] {
            for tiles in [1, 3] {
                let input = input(32, tiles);
                let [w, h] = input.scaled(width, height, 1.).unwrap();
                assert_eq!(w.min(h), 32 * tiles);
                let all = input.windows(width, height).unwrap();
                let mut covered = vec![false; w * h];
                for &[x, y] in &all {
                    assert!(x + 32 <= w && y + 32 <= h);
                    (y..y + 32).for_each(|y| covered[y * w + x..y * w + x + 32].fill(true));
                }
                assert!(covered.iter().all(|c| *c));
                for axis in [0, 1] {
                    let mut places: Vec<usize> = all.iter().map(|at| at[axis]).collect();
                    places.sort_unstable();
                    places.dedup();
                    assert!(places.windows(2).all(|pair| pair[1] - pair[0] <= 22), "{places:?}");
                }
            }
        }
        assert_eq!(input(32, 1).windows(50, 50).unwrap(), [[0, 0]]);
        assert!(input(32, 1).windows(1000, 62).unwrap_err().to_string().contains("16 times"));
        assert!(input(32, 0).check().is_err() && input(1000, 17).check().is_err());
    }

    #[test]
    fn a_window_shows_what_the_resized_image_has_there_and_the_classes_below() {
        let (width, height) = (60, 40);
        let pixels = (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect();
        let image = Rgb8::from_pixels(width, height, pixels).unwrap();
        let classes = (0..height).flat_map(|y| (0..width).map(move |x| (x / 30 + 2 * (y / 20)) as u16)).collect();
        let mask = ClassMask { width, height, classes };
        let input = input(20, 1);
        let whole = resize(&image, 30, 20, input.preprocess.filter);
        let place = input.place(width, height, [10, 0]).unwrap();
        let seen = input.see(&image, Some(&mask), place, false);
        for y in 0..20 {
            assert_eq!(seen.pixels[y * 60..(y + 1) * 60], whole.pixels[(y * 30 + 10) * 3..(y * 30 + 30) * 3]);
        }
        // Half of the image lies at column 15 of 30: a quarter of the window.
        assert_eq!(seen.labels[..5], [0, 1, 1, 1, 1]);
        assert_eq!(seen.labels[20..], [2, 3, 3, 3, 3]);
        let turned = input.see(&image, Some(&mask), place, true);
        assert_eq!(turned.labels[20..], [3, 3, 3, 3, 2]);
        assert_eq!(turned.pixels[..3], seen.pixels[57..60]);
    }

    #[test]
    fn around_a_smaller_image_nothing_is_learned() {
        let image = Rgb8::new(40, 40);
        let mask = ClassMask { width: 40, height: 40, classes: vec![1; 1600] };
        let input = input(20, 1);
        let mut rng = stream(1, "test", 0, 0);
        let place = input.random_place(40, 40, [0.5, 0.5], &mut rng).unwrap();
        let seen = input.see(&image, Some(&mask), place, false);
        let inside = seen.labels.iter().filter(|class| **class == 1).count();
        assert!((4..=9).contains(&inside), "{inside}");
        assert_eq!(seen.pixels.chunks(3).filter(|pixel| *pixel == [0; 3]).count(), 100);
        let all = input.random_place(40, 40, [1.5, 1.5], &mut rng).unwrap();
        assert!(input.see(&image, Some(&mask), all, false).labels.iter().all(|class| *class == 1));
    }
}
