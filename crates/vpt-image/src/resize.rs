//! Pillow's `Image.resize` for 8-bit RGB, bit for bit.
//!
//! Published backbones were trained and are evaluated behind this function, and its rounding is part of what they see:
//! coefficients in fixed point with 22 fractional bits, two passes, each rounded and clipped to 8 bits. When an image
//! shrinks, the filter's support grows with it (antialiasing). The algorithm is that of Pillow's `Resample.c`, and of
//! `Geometry.c` for the nearest neighbour; the tests compare with images that Pillow 13 made.
//!
//! The horizontal pass comes first, except where that would be much more work: Pillow 13 starts with the vertical pass if
//! the height loses more than twice as many pixels as the width (older versions never did, which makes a difference of one
//! level here and there for tall images).

use std::f64::consts::PI;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::decode::Rgb8;
use vpt_kernel::resample::{PRECISION, weighted_sum};

/// How new pixels are made from old ones; the names and numbers are Pillow's `Image.Resampling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The pixel under the new pixel's centre.
    Nearest,
    /// The mean of the pixels under the new pixel.
    Box,
    /// A triangle of radius 1.
    Bilinear,
    /// A raised cosine times a sinc, of radius 1.
    Hamming,
    /// A cubic with a = -1/2, of radius 2.
    Bicubic,
    /// A windowed sinc of radius 3.
    Lanczos,
}

impl Filter {
    /// The filter with Pillow's number, as `resample` in a preprocessor's configuration gives it.
    pub fn from_pillow(number: u64) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming]
            .get(usize::try_from(number).ok()?)
            .copied()
    }

    /// Radius in pixels of the larger of the two images.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Weight at distance `x`.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            // Half open, so that a pixel on the border of two new pixels counts once.
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => match x.abs() {
                x if x >= 1.0 => 0.0,
                // Pillow's constants are of single precision.
                x => sinc(x) * (f64::from(0.54_f32) + f64::from(0.46_f32) * (x * PI).cos()),
            },
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// A rectangle of an image, in pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Columns.
    pub x: Range<usize>,
    /// Rows.
    pub y: Range<usize>,
}

/// `image` resized to `width` x `height`, which must not be zero; so must neither side of `image`.
pub fn resize(image: &Rgb8, width: usize, height: usize, filter: Filter) -> Rgb8 {
    resize_window(image, width, height, filter, &Window { x: 0..width, y: 0..height })
}

/// The pixels inside `window` of `image` resized to `width` x `height`: what [`resize`] followed by a crop gives, without the
/// work and memory for what lies outside. The window must lie inside the resized image.
pub fn resize_window(image: &Rgb8, width: usize, height: usize, filter: Filter, window: &Window) -> Rgb8 {
    debug_assert!(window.x.end <= width && window.y.end <= height);
    if (width, height) == (image.width, image.height) {
        return crop_inside(image, window);
    }
    if filter == Filter::Nearest {
        return nearest(image, width, height, window);
    }
    // A side that keeps its length is not filtered.
    let columns = (width != image.width).then(|| Taps::new(filter, image.width, width, window.x.clone()));
    let rows = (height != image.height).then(|| Taps::new(filter, image.height, height, window.y.clone()));
    match (columns, rows) {
        (None, None) => crop_inside(image, window),
        (Some(columns), None) => horizontal(image, window.y.clone(), &columns),
        (None, Some(rows)) => vertical(image, window.x.clone(), &rows),
        (Some(columns), Some(rows)) => {
            let (needed_x, needed_y) = (columns.span(), rows.span());
            let lost = |from: usize, to: usize| from.saturating_sub(to);
            if lost(image.height, height) > 2 * lost(image.width, width) {
                let short = vertical(image, needed_x.clone(), &rows);
                horizontal(&short, 0..short.height, &columns.shifted(needed_x.start))
            } else {
                let narrow = horizontal(image, needed_y.clone(), &columns);
                vertical(&narrow, 0..narrow.width, &rows.shifted(needed_y.start))
            }
        }
    }
}

/// The `width` x `height` pixels of `image` from column `left` and row `top` on; black where they lie outside of it.
pub fn crop(image: &Rgb8, left: isize, top: isize, width: usize, height: usize) -> Rgb8 {
    let (x, left) = overlap(left, width, image.width);
    let (y, top) = overlap(top, height, image.height);
    paste(crop_inside(image, &Window { x, y }), left, top, (width, height), [0; 3])
}

/// A crop of `length` from `begin` on, of a side of `size`: the part of it that exists, and where in the crop that begins.
pub fn overlap(begin: isize, length: usize, size: usize) -> (Range<usize>, usize) {
    let inside = |at: isize| at.clamp(0, size as isize) as usize;
    let offset = begin.saturating_neg().clamp(0, length as isize) as usize;
    (inside(begin)..inside(begin.saturating_add_unsigned(length)), offset)
}

/// An image of one `color` of `width` x `height` with `part`, which must fit, at column `left` and row `top`.
pub fn paste(part: Rgb8, left: usize, top: usize, (width, height): (usize, usize), color: [u8; 3]) -> Rgb8 {
    if (part.width, part.height) == (width, height) {
        return part;
    }
    let mut out = Rgb8 { width, height, pixels: color.repeat(width * height) };
    for (y, row) in part.pixels.chunks_exact((part.width * 3).max(1)).enumerate() {
        let at = ((y + top) * width + left) * 3;
        out.pixels[at..at + row.len()].copy_from_slice(row);
    }
    out
}

fn crop_inside(image: &Rgb8, window: &Window) -> Rgb8 {
    let mut pixels = Vec::with_capacity(window.x.len() * window.y.len() * 3);
    for y in window.y.clone() {
        let row = y * image.width;
        pixels.extend_from_slice(&image.pixels[(row + window.x.start) * 3..(row + window.x.end) * 3]);
    }
    Rgb8 { width: window.x.len(), height: window.y.len(), pixels }
}

fn nearest(image: &Rgb8, width: usize, height: usize, window: &Window) -> Rgb8 {
    // Pillow adds up the step instead of multiplying, and the sum's rounding decides at the borders.
    let positions = |from: usize, to: usize, wanted: &Range<usize>| {
        let step = from as f64 / to as f64;
        let mut at = step * 0.5;
        let mut positions = Vec::with_capacity(wanted.len());
        for i in 0..wanted.end {
            if wanted.contains(&i) {
                positions.push((at as usize).min(from - 1));
            }
            at += step;
        }
        positions
    };
    let xs = positions(image.width, width, &window.x);
    let mut pixels = Vec::with_capacity(window.x.len() * window.y.len() * 3);
    for y in positions(image.height, height, &window.y) {
        let row = &image.pixels[y * image.width * 3..][..image.width * 3];
        for &x in &xs {
            pixels.extend_from_slice(&row[x * 3..x * 3 + 3]);
        }
    }
    Rgb8 { width: window.x.len(), height: window.y.len(), pixels }
}

/// Writes the weights of the old pixels that new pixel `i` is made of, of a side that goes from length `from` to length `to`;
/// returns the first of those.
fn exact_weights(filter: Filter, from: usize, to: usize, i: usize, weights: &mut Vec<f64>) -> usize {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let center = (i as f64 + 0.5) * scale;
    let first = (center - support + 0.5).max(0.0) as usize;
    let count = ((center + support + 0.5) as usize).min(from) - first;
    weights.clear();
    weights.extend((0..count).map(|x| filter.weight(((x + first) as f64 - center + 0.5) * (1.0 / stretch))));
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        for weight in weights.iter_mut() {
            *weight /= sum;
        }
    }
    first
}

/// `image` resized to `(width, height)` without rounding, its values times `scale`: `[3, H, W]`. It is torch's `interpolate` of
/// floats with `antialias=True`. No side may be zero.
pub fn resize_planes(image: &Rgb8, scale: f64, (width, height): (usize, usize), filter: Filter) -> Vec<f32> {
    let scaled: Vec<f32> = (0..256).map(|level| (f64::from(level) * scale) as f32).collect();
    let row_len = image.width * 3;
    let (mut weights, mut row, mut of_row) = (Vec::new(), vec![0.; row_len], vec![0.; row_len]);
    // Of each new column the first old one, and its weights behind those of the column before.
    let (mut columns, mut of_columns) = (Vec::new(), Vec::new());
    for x in 0..width {
        let first = exact_weights(filter, image.width, width, x, &mut weights);
        columns.push((first, of_columns.len()..of_columns.len() + weights.len()));
        of_columns.extend(weights.iter().map(|&weight| weight as f32));
    }
    let mut out = vec![0.; 3 * width * height];
    for y in 0..height {
        let first = exact_weights(filter, image.height, height, y, &mut weights);
        row.fill(0.);
        for (old, &weight) in image.pixels[first * row_len..].chunks_exact(row_len).zip(&weights) {
            of_row.iter_mut().zip(old).for_each(|(value, &level)| *value = scaled[usize::from(level)]);
            row.iter_mut().zip(&of_row).for_each(|(sum, value)| *sum += weight as f32 * value);
        }
        for (x, (first, taps)) in columns.iter().enumerate() {
            for channel in 0..3 {
                let old = row[first * 3 + channel..].iter().step_by(3);
                let products = old.zip(&of_columns[taps.clone()]).map(|(value, weight)| value * weight);
                out[(channel * height + y) * width + x] = products.sum();
            }
        }
    }
    out
}

/// For each new pixel along one side, the old pixels it is made of and their weights.
struct Taps {
    /// For each new pixel the first old one and how many follow.
    bounds: Vec<(usize, usize)>,
    /// For each new pixel `stride` weights in fixed point.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    /// The new pixels `wanted` of a side that goes from length `from` to length `to`.
    fn new(filter: Filter, from: usize, to: usize, wanted: Range<usize>) -> Self {
        let stretch = (from as f64 / to as f64).max(1.0);
        let stride = ((filter.support() * stretch).ceil() as usize * 2 + 1).min(from);
        let mut bounds = Vec::with_capacity(wanted.len());
        let mut weights = vec![0; wanted.len() * stride];
        let mut exact = Vec::with_capacity(stride);
        for (i, slots) in wanted.zip(weights.chunks_exact_mut(stride)) {
            let first = exact_weights(filter, from, to, i, &mut exact);
            for (slot, weight) in slots.iter_mut().zip(&exact) {
                let scaled = weight * f64::from(1 << PRECISION);
                *slot = (scaled + 0.5_f64.copysign(scaled)) as i32;
            }
            bounds.push((first, exact.len()));
        }
        Self { bounds, weights, stride }
    }

    /// The old pixels that are read at all.
    fn span(&self) -> Range<usize> {
        let start = self.bounds.first().map_or(0, |b| b.0);
        start..self.bounds.iter().map(|b| b.0 + b.1).max().unwrap_or(start)
    }

    /// The same for an image that lacks the first `missing` old pixels.
    fn shifted(mut self, missing: usize) -> Self {
        for bound in &mut self.bounds {
            bound.0 -= missing;
        }
        self
    }

    /// For each new pixel the first old one and the weights.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.bounds.iter().zip(self.weights.chunks_exact(self.stride.max(1))).map(|(&(first, n), w)| (first, &w[..n]))
    }
}

/// Rows that the horizontal pass works on together.
const ROWS: usize = 32;
/// Bytes of one pixel in each of them.
const LANES: usize = ROWS * 3;

/// The rows `rows` of `image`, each filtered along `x`.
fn horizontal(image: &Rgb8, rows: Range<usize>, taps: &Taps) -> Rgb8 {
    let span = taps.span();
    let width = taps.bounds.len();
    let mut out = Rgb8::new(width, rows.len());
    // A block of rows is turned so that a pixel's neighbours in the block lie side by side: the sums then run over whole
    // vectors although the taps differ from pixel to pixel.
    let mut columns = vec![0; span.len() * LANES];
    let mut sums = [0; LANES];
    for (block, out_rows) in out.pixels.chunks_mut((ROWS * width * 3).max(1)).enumerate() {
        let count = out_rows.len() / (width * 3);
        for r in 0..count {
            let start = (rows.start + block * ROWS + r) * image.width;
            let row = &image.pixels[(start + span.start) * 3..(start + span.end) * 3];
            for (column, pixel) in columns.chunks_exact_mut(LANES).zip(row.chunks_exact(3)) {
                column[r * 3..r * 3 + 3].copy_from_slice(pixel);
            }
        }
        for (x, (first, weights)) in taps.iter().enumerate() {
            weighted_sum(&columns[(first - span.start) * LANES..], LANES, weights, &mut sums);
            for (row, pixel) in out_rows.chunks_exact_mut(width * 3).zip(sums.chunks_exact(3)) {
                row[x * 3..x * 3 + 3].copy_from_slice(pixel);
            }
        }
    }
    out
}

/// The columns `columns` of `image`, each filtered along `y`.
fn vertical(image: &Rgb8, columns: Range<usize>, taps: &Taps) -> Rgb8 {
    let mut out = Rgb8::new(columns.len(), taps.bounds.len());
    let stride = image.width * 3;
    for (row, (first, weights)) in out.pixels.chunks_exact_mut((columns.len() * 3).max(1)).zip(taps.iter()) {
        weighted_sum(&image.pixels[first * stride + columns.start * 3..], stride, weights, row);
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::resize::*;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    const FIXTURE: &[u8] = include_bytes!("../../../tests/fixtures/resize/pillow.safetensors");

    fn image(tensors: &SafeTensors<'_>, name: &str) -> Rgb8 {
        let tensor = tensors.tensor(name).unwrap();
        Rgb8 { width: tensor.shape()[1], height: tensor.shape()[0], pixels: tensor.data().to_vec() }
    }

    fn filter(name: &str) -> Filter {
        serde_json::from_str(&format!("\"{name}\"")).unwrap()
    }

    #[test]
    fn every_filter_equals_pillow_bit_for_bit() {
        let tensors = SafeTensors::deserialize(FIXTURE).unwrap();
        let mut cases = 0;
        for name in tensors.names() {
            let [source, filter_name, _size] = name.split('.').collect::<Vec<_>>()[..] else { continue };
            let expected = image(&tensors, name);
            let got = resize(&image(&tensors, source), expected.width, expected.height, filter(filter_name));
            assert!(got == expected, "{name}");
            cases += 1;
        }
        assert_eq!(cases, 9 * 6);
    }

    #[test]
    fn pillow_s_numbers_name_the_filters() {
        let names = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"];
        for (number, name) in names.into_iter().enumerate() {
            assert_eq!(Filter::from_pillow(number as u64), Some(filter(name)));
        }
        assert_eq!(Filter::from_pillow(6), None);
        assert_eq!(Filter::from_pillow(u64::MAX), None);
    }

    #[test]
    fn a_crop_reaching_outside_is_black_there() {
        let white = Rgb8 { width: 2, height: 1, pixels: vec![255; 6] };
        let grey = |image: Rgb8| image.pixels.chunks_exact(3).map(|p| p[0]).collect::<Vec<_>>();
        assert_eq!(grey(crop(&white, -1, -1, 4, 3)), [0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0]);
        assert_eq!(grey(crop(&white, 1, 0, 2, 1)), [255, 0]);
        assert_eq!(grey(crop(&white, 5, 5, 2, 1)), [0, 0]);
        assert_eq!(grey(crop(&white, isize::MIN, isize::MAX, 1, 1)), [0]);
    }

    prop_compose! {
        fn any_image()(width in 1_usize..50, height in 1_usize..50, seed: u64) -> Rgb8 {
            let mut pixels = vec![0; width * height * 3];
            rand::RngCore::fill_bytes(&mut vpt_base::random::stream(seed, "test", 0, 0), &mut pixels);
            Rgb8 { width, height, pixels }
        }
    }

    proptest! {
        #[test]
        fn a_window_equals_the_crop_of_the_whole(
            image in any_image(), width in 1_usize..60, height in 1_usize..60, number in 0_u64..6,
            edges in [0.0..1.0_f64, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        ) {
            let filter = Filter::from_pillow(number).unwrap();
            let part = |a: f64, b: f64, n: usize| {
                let (a, b) = (a.min(b), a.max(b));
                (a * n as f64) as usize..(b * n as f64).ceil() as usize
            };
            let window = Window { x: part(edges[0], edges[1], width), y: part(edges[2], edges[3], height) };
            let whole = resize(&image, width, height, filter);
            let expected = crop(&whole, window.x.start as isize, window.y.start as isize, window.x.len(), window.y.len());
            prop_assert_eq!(resize_window(&image, width, height, filter, &window), expected);
        }

        #[test]
        fn one_colour_stays_that_colour(
            colour: [u8; 3], from in [1_usize..90, 1..90], to in [1_usize..90, 1..90], number in 0_u64..6,
        ) {
            let image = Rgb8 { width: from[0], height: from[1], pixels: colour.repeat(from[0] * from[1]) };
            let out = resize(&image, to[0], to[1], Filter::from_pillow(number).unwrap());
            prop_assert_eq!(out.pixels, colour.repeat(to[0] * to[1]));
        }
    }
}
