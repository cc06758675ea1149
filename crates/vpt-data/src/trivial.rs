//! `TrivialAugment`: one operation a training image, of a strength that is drawn too, with nothing to tune (Müller and Hutter,
//! "`TrivialAugment`: Tuning-free Yet State-of-the-Art Data Augmentation", 2021), in its wide space as torchvision has it.
//!
//! Operations are Pillow's, on 8-bit RGB and equal bit for bit.

use std::f64::consts::PI;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use vpt_image::decode::Rgb8;

/// Strengths that an operation has.
const BINS: usize = 31;

/// Operations on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

impl Operation {
    /// In torchvision's order.
    const ALL: [Self; 14] = [
        Self::Identity,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
        Self::Rotate,
        Self::Brightness,
        Self::Color,
        Self::Contrast,
        Self::Sharpness,
        Self::Posterize,
        Self::Solarize,
        Self::AutoContrast,
        Self::Equalize,
    ];

    /// The first and the last strength, and whether it may be negative; `None` if there is but one.
    fn strengths(self) -> Option<(f32, f32, bool)> {
        Some(match self {
            Self::Identity | Self::AutoContrast | Self::Equalize => return None,
            Self::ShearX | Self::ShearY | Self::Brightness | Self::Color | Self::Contrast | Self::Sharpness => {
                (0., 0.99, true)
            }
            Self::TranslateX | Self::TranslateY => (0., 32., true),
            Self::Rotate => (0., 135., true),
            Self::Posterize => (8., 2., false),
            Self::Solarize => (255., 0., false),
        })
    }

    /// The strength at `bin`, and whether it may be negative: torch's `linspace` in single precision, from both ends.
    fn strength(self, bin: usize) -> (f64, bool) {
        let Some((first, last, is_signed)) = self.strengths() else { return (0., false) };
        let step = (last - first) / (BINS - 1) as f32;
        let value = if bin < BINS / 2 {
            step.mul_add(bin as f32, first)
        } else {
            (-step).mul_add((BINS - 1 - bin) as f32, last)
        };
        let value = if self == Self::Posterize { value.round() } else { value };
        (f64::from(value), is_signed)
    }

    /// `image` after it, at `strength`.
    fn apply(self, image: &Rgb8, strength: f64) -> Rgb8 {
        let (w, h) = (image.width as f64 / 2., image.height as f64 / 2.);
        // Back and forth through degrees, as torchvision does.
        let shear = || strength.atan().to_degrees().to_radians().tan();
        match self {
            Self::Identity => image.clone(),
            Self::ShearX => affine(image, [1., shear(), 0., 0., 1., 0.]),
            Self::ShearY => affine(image, [1., 0., 0., shear(), 1., 0.]),
            Self::TranslateX => affine(image, [1., 0., -strength.trunc(), 0., 1., 0.]),
            Self::TranslateY => affine(image, [1., 0., 0., 0., 1., -strength.trunc()]),
            Self::Rotate => rotate(image, strength, (w, h)),
            Self::Brightness => blend(&Rgb8::new(image.width, image.height), image, 1. + strength),
            Self::Color => blend(&grey(image), image, 1. + strength),
            Self::Contrast => blend(&mean_grey(image), image, 1. + strength),
            Self::Sharpness => blend(&smooth(image), image, 1. + strength),
            Self::Posterize => {
                let mask = u8::MAX << (8 - strength as u32);
                look_up(image, |_| std::array::from_fn(|value| value as u8 & mask))
            }
            Self::Solarize => look_up(image, |_| {
                std::array::from_fn(|value| if (value as f64) < strength { value as u8 } else { 255 - value as u8 })
            }),
            Self::AutoContrast => look_up(image, stretched),
            Self::Equalize => look_up(image, equalised),
        }
    }
}

/// Does one operation to `image`: it and its strength are drawn by `rng`, each equally often.
pub(super) fn trivial_augment(image: &Rgb8, rng: &mut ChaCha8Rng) -> Rgb8 {
    let operation = Operation::ALL[rng.random_range(0..Operation::ALL.len())];
    // The number of draws is the same for all, so that what is drawn next is too.
    let (strength, is_signed) = operation.strength(rng.random_range(0..BINS));
    let is_negative = rng.random_bool(0.5);
    operation.apply(image, if is_signed && is_negative { -strength } else { strength })
}

/// Takes each pixel from where the matrix, two rows of three, leads from it; black outside. The nearest pixel, in 16 bits
/// behind the point, as Pillow.
fn affine(image: &Rgb8, matrix: [f64; 6]) -> Rgb8 {
    let fixed = |value: f64| (value * 65_536. + 0.5).floor() as i64;
    let [a, b, c, d, e, f] = matrix;
    let (mut x_row, mut y_row) = (fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5));
    let [a, b, d, e] = [a, b, d, e].map(fixed);
    let mut out = Rgb8::new(image.width, image.height);
    for row in out.pixels.chunks_exact_mut((image.width * 3).max(1)) {
        let (mut x, mut y) = (x_row, y_row);
        for pixel in row.as_chunks_mut::<3>().0 {
            let (from_x, from_y) = (x >> 16, y >> 16);
            if (0..image.width as i64).contains(&from_x) && (0..image.height as i64).contains(&from_y) {
                let at = (from_y as usize * image.width + from_x as usize) * 3;
                pixel.copy_from_slice(&image.pixels[at..at + 3]);
            }
            (x, y) = (x + a, y + d);
        }
        (x_row, y_row) = (x_row + b, y_row + e);
    }
    out
}

/// Turns `image` counter-clockwise about its `middle`.
#[allow(clippy::float_cmp, reason = "Pillow compares so, and some strengths are quarter turns exactly")]
fn rotate(image: &Rgb8, degrees: f64, middle: (f64, f64)) -> Rgb8 {
    let degrees = degrees.rem_euclid(360.);
    let quarter = degrees == 90. || degrees == 270.;
    if degrees == 0. {
        return image.clone();
    }
    // Pillow does not compute where it can permute.
    if quarter && image.width == image.height {
        let n = image.width;
        let mut out = Rgb8::new(n, n);
        for (at, pixel) in out.pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (x, y) = (at % n, at / n);
            let from = if degrees == 90. { x * n + (n - 1 - y) } else { (n - 1 - x) * n + y };
            pixel.copy_from_slice(&image.pixels[from * 3..from * 3 + 3]);
        }
        return out;
    }
    let angle = -degrees * PI / 180.;
    let to_15_digits = |value: f64| (value * 1e15).round() / 1e15;
    let (sin, cos) = (to_15_digits(angle.sin()), to_15_digits(angle.cos()));
    let (x, y) = middle;
    affine(image, [cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y])
}

/// `from` where `share` is 0, `to` where it is 1, on the line through both elsewhere; rounded down.
fn blend(from: &Rgb8, to: &Rgb8, share: f64) -> Rgb8 {
    let share = share as f32;
    let one = |(&a, &b): (&u8, &u8)| (f32::from(a) + share * (f32::from(b) - f32::from(a))) as u8;
    Rgb8 { pixels: from.pixels.iter().zip(&to.pixels).map(one).collect(), ..*to }
}

/// Luma of ITU-R BT.601, rounded, in 16 bits behind the point.
fn luma(pixel: [u8; 3]) -> u8 {
    let [r, g, b] = pixel.map(u32::from);
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}

fn grey(image: &Rgb8) -> Rgb8 {
    let pixels = image.pixels.as_chunks::<3>().0.iter().flat_map(|&pixel| [luma(pixel); 3]).collect();
    Rgb8 { pixels, ..*image }
}

/// The mean of the grey image everywhere.
fn mean_grey(image: &Rgb8) -> Rgb8 {
    let sum: u64 = image.pixels.as_chunks::<3>().0.iter().map(|&pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / (image.width * image.height).max(1) as f64 + 0.5) as u8;
    Rgb8 { pixels: vec![mean; image.pixels.len()], ..*image }
}

/// Each pixel averaged with its eight neighbours, five times as heavy as one of them; those at the border stay.
fn smooth(image: &Rgb8) -> Rgb8 {
    let mut out = image.clone();
    let stride = image.width * 3;
    for y in 1..image.height.saturating_sub(1) {
        for at in y * stride + 3..((y + 1) * stride).saturating_sub(3) {
            let row = |at: usize| [at - 3, at, at + 3].iter().map(|&i| u32::from(image.pixels[i])).sum::<u32>();
            let sum = row(at - stride) + row(at) + row(at + stride) + 4 * u32::from(image.pixels[at]);
            out.pixels[at] = ((2 * sum + 13) / 26) as u8;
        }
    }
    out
}

/// Every value replaced by what the `table` of its channel says; it is made of the channel's histogram.
fn look_up(image: &Rgb8, table: impl Fn(&[usize; 256]) -> [u8; 256]) -> Rgb8 {
    let mut out = image.clone();
    for channel in 0..3 {
        let mut histogram = [0; 256];
        image.pixels.iter().skip(channel).step_by(3).for_each(|&value| histogram[usize::from(value)] += 1);
        let table = table(&histogram);
        out.pixels.iter_mut().skip(channel).step_by(3).for_each(|value| *value = table[usize::from(*value)]);
    }
    out
}

fn unchanged() -> [u8; 256] {
    std::array::from_fn(|value| value as u8)
}

/// From the darkest to the lightest value becomes from 0 to 255.
fn stretched(histogram: &[usize; 256]) -> [u8; 256] {
    let occurs = |&value: &usize| histogram[value] > 0;
    let (Some(low), Some(high)) = ((0..256).find(occurs), (0..256).rev().find(occurs)) else { return unchanged() };
    if high <= low {
        return unchanged();
    }
    let scale = 255. / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
}

/// Values so that each range of them occurs about equally often.
fn equalised(histogram: &[usize; 256]) -> [u8; 256] {
    let total: usize = histogram.iter().sum();
    let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or_default();
    // A single value leaves nothing to distribute.
    let step = (total - last) / 255;
    if step == 0 {
        return unchanged();
    }
    let mut below = step / 2;
    histogram.map(|count| {
        let value = (below / step).min(255) as u8;
        below += count;
        value
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashSet};
    use vpt_base::random::stream;

    /// The picture that `scripts/make_augment_fixture.py` makes.
    fn picture(width: usize, height: usize) -> Rgb8 {
        let value =
            |x: usize, y: usize, c: usize| (30 + (x * 7 + y * 5 + c * 40 + (x * y * (c + 1)) % 23 * 3) % 200) as u8;
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| value(x, y, c))));
        Rgb8 { width, height, pixels: pixels.collect() }
    }

    #[derive(serde::Deserialize)]
    struct TrivialFixture {
        strengths: BTreeMap<String, Vec<f64>>,
        pictures: Vec<MadeByTorchvision>,
    }

    /// CRC-32 of a picture after each operation, at each strength, then at each negative one.
    #[derive(serde::Deserialize)]
    struct MadeByTorchvision {
        width: usize,
        height: usize,
        checksums: BTreeMap<String, Vec<u32>>,
    }

    #[test]
    fn every_operation_equals_torchvision_at_every_strength() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/trivial_augment.json");
        let fixture: TrivialFixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for operation in Operation::ALL {
            let name = format!("{operation:?}");
            let strengths = &fixture.strengths[&name];
            let ours: Vec<f64> = (0..strengths.len()).map(|bin| operation.strength(bin).0).collect();
            assert_eq!(ours, *strengths, "{name}");
            let is_signed = operation.strength(0).1;
            let signs: &[f64] = if is_signed { &[1., -1.] } else { &[1.] };
            let all: Vec<f64> = signs.iter().flat_map(|sign| strengths.iter().map(move |s| sign * s)).collect();
            for MadeByTorchvision { width, height, checksums } in &fixture.pictures {
                let checksums = &checksums[&name];
                assert_eq!(checksums.len(), all.len(), "{name}");
                for (strength, expected) in all.iter().zip(checksums) {
                    let mut crc = flate2::Crc::new();
                    crc.update(&operation.apply(&picture(*width, *height), *strength).pixels);
                    assert_eq!(crc.sum(), *expected, "{name} at {strength} of {width}x{height} pixels");
                }
            }
        }
    }

    #[test]
    fn small_and_plain_pictures_are_no_trouble() {
        for (width, height) in [(1, 1), (1, 5), (2, 2), (7, 1)] {
            for image in [picture(width, height), Rgb8::new(width, height)] {
                for operation in Operation::ALL {
                    for bin in [0, 7, BINS - 1] {
                        let (strength, _) = operation.strength(bin);
                        for strength in [strength, -strength] {
                            if strength >= 0. || operation.strength(bin).1 {
                                let out = operation.apply(&image, strength);
                                assert_eq!(
                                    (out.width, out.height, out.pixels.len()),
                                    (width, height, width * height * 3)
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn operations_are_drawn_equally_often_and_by_the_stream_alone() {
        let image = picture(24, 24);
        let mut counts = [0; 14];
        for index in 0..14_000 {
            let mut rng = stream(1, "t", 0, index);
            counts[rng.random_range(0..14_usize)] += 1;
        }
        assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
        let made = |index| trivial_augment(&image, &mut stream(1, "t", 0, index));
        let different: HashSet<_> = (0..300).map(|index| made(index).pixels).collect();
        assert!(different.len() > 150, "{}", different.len());
        assert_eq!(made(5), made(5));
    }
}
