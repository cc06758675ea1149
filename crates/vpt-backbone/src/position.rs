//! Position embeddings for image sizes other than the stored one: the stored grid, resampled as transformers 5.23 does.
//!
//! That is torch's bicubic `interpolate` with `align_corners=False` to the wanted grid: Keys' cubic with a = -0.75 at four
//! taps or, with `antialias=True`, Pillow's form of it: a = -0.5, and a filter as wide as the scale; or bilinear in that form. Positions of tokens
//! before the patches are left as they are.

use super::spec::{Resampling, Rotary};
use vpt_base::{Error, Result};

/// Resamples the positions of patches `[G*G, width]`, row by row of the image, to the grid `target`, as `(rows, columns)`:
/// `[rows*columns, width]`.
///
/// # Errors
/// `pos` is not that shape for any G, or the target is empty.
pub fn interpolate(pos: &[f32], width: usize, resampling: Resampling, target: (usize, usize)) -> Result<Vec<f32>> {
    let count = pos.len().checked_div(width).unwrap_or(0);
    let grid = count.isqrt();
    let (rows, columns) = target;
    if grid == 0 || grid * grid * width != pos.len() {
        return Err(Error::invalid("position embeddings", format!("{count} of them are not a square")));
    }
    if rows == 0 || columns == 0 {
        return Err(Error::invalid("position embeddings", format!("cannot be made for {rows} x {columns} patches")));
    }
    if target == (grid, grid) {
        return Ok(pos.to_vec());
    }
    let taps: fn(usize, usize) -> Vec<ResampleTaps> = match resampling {
        Resampling::Bicubic => four_taps,
        Resampling::AntialiasedBicubic => |input, output| antialiased(input, output, 2.0, |x| cubic(x, -0.5)),
        Resampling::AntialiasedBilinear => |input, output| antialiased(input, output, 1.0, |x| (1.0 - x).max(0.0)),
    };
    let mut wide = vec![0.0; grid * columns * width];
    for (from, to) in pos.chunks_exact(grid * width).zip(wide.chunks_exact_mut(columns * width)) {
        for (taps, to) in taps(grid, columns).iter().zip(to.chunks_exact_mut(width)) {
            taps.apply(from, width, to);
        }
    }
    let mut out = vec![0.0; rows * columns * width];
    for (taps, to) in taps(grid, rows).iter().zip(out.chunks_exact_mut(columns * width)) {
        taps.apply(&wide, columns * width, to);
    }
    Ok(out)
}

/// The angles `[rows * columns, head_dim / 2]` by which rotary positions turn the patches of an image of `rows` x `columns`
/// patches, row by row of the image: `2π y θ^(-4i / head_dim)` for i below a quarter of the head, then the same of x, where
/// y and x are the patch's middle and go from -1 to 1 along each axis (`DINOv3`, Siméoni et al. 2025).
pub(crate) fn rotary_angles(Rotary { theta }: Rotary, head_dim: usize, (rows, columns): (usize, usize)) -> Vec<f64> {
    let quarter = head_dim / 4;
    let middle = |i: usize, of: usize| 2. * (i as f64 + 0.5) / of as f64 - 1.;
    let turns =
        |at: f64| (0..quarter).map(move |i| std::f64::consts::TAU * at * theta.powf(-(i as f64) / quarter as f64));
    let patches = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    patches.flat_map(|(row, column)| turns(middle(row, rows)).chain(turns(middle(column, columns)))).collect()
}

/// One output position: weights of the inputs from `start` on.
struct ResampleTaps {
    start: usize,
    weights: Vec<f32>,
}

impl ResampleTaps {
    /// Adds up rows of `len` values of `from` into `to`, which holds zeros.
    fn apply(&self, from: &[f32], len: usize, to: &mut [f32]) {
        for (&weight, row) in self.weights.iter().zip(from[self.start * len..].chunks_exact(len)) {
            for (to, from) in to.iter_mut().zip(row) {
                *to += weight * from;
            }
        }
    }
}

/// torch's `upsample_bicubic2d`: four inputs around the centre; those beyond the border repeat the border.
fn four_taps(input: usize, output: usize) -> Vec<ResampleTaps> {
    const A: f32 = -0.75;
    let scale = input as f32 / output as f32;
    let tap = |i: usize| {
        let centre = scale * (i as f32 + 0.5) - 0.5;
        let (first, t) = (centre.floor() as isize - 1, centre - centre.floor());
        let inside = |j: isize| j.clamp(0, input as isize - 1) as usize;
        let start = inside(first);
        let mut weights = vec![0.0; inside(first + 3) - start + 1];
        for (j, distance) in [t + 1.0, t, 1.0 - t, 2.0 - t].into_iter().enumerate() {
            weights[inside(first + j as isize) - start] += cubic(distance, A);
        }
        ResampleTaps { start, weights }
    };
    (0..output).map(tap).collect()
}

/// torch's `_upsample_bicubic2d_aa` and `_upsample_bilinear2d_aa`, which follow Pillow: the `filter`, which is zero from
/// distance `radius` on, is stretched when shrinking, cut at the border and normalised.
fn antialiased(input: usize, output: usize, radius: f32, filter: fn(f32) -> f32) -> Vec<ResampleTaps> {
    let scale = input as f32 / output as f32;
    let stretch = scale.max(1.0);
    let support = radius * stretch;
    let tap = |i: usize| {
        let centre = scale * (i as f32 + 0.5);
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(input);
        let weights: Vec<f32> = (start..end).map(|j| filter(((j as f32 + 0.5 - centre) / stretch).abs())).collect();
        let sum: f32 = weights.iter().sum();
        ResampleTaps { start, weights: weights.iter().map(|w| w / sum).collect() }
    };
    (0..output).map(tap).collect()
}

/// Keys' cubic convolution kernel (1981) at a distance of 0 or more.
fn cubic(x: f32, a: f32) -> f32 {
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::spec::Spec;

    const WAYS: [Resampling; 3] =
        [Resampling::Bicubic, Resampling::AntialiasedBicubic, Resampling::AntialiasedBilinear];

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn equals_transformers_for_every_family() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/position.safetensors");
        let fixture = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let (mut cases, mut moved) = (0, 0);
        for (name, want) in &fixture {
            let parts: Vec<&str> = name.split('.').collect();
            let [family, grid, target] = parts[..] else { continue };
            let config = format!(r#"{{"model_type": "{family}"}}"#);
            let spec = Spec::from_json(config.as_bytes(), Path::new("config.json")).unwrap();
            // The class token's position is the first row of both.
            let stored = values(&fixture[&format!("{family}.{grid}")]);
            let (h, w) = target.split_once('x').unwrap();
            let target = (h.parse().unwrap(), w.parse().unwrap());
            let got = interpolate(&stored[8..], 8, spec.positions.unwrap().resampling, target).unwrap();
            let want = &values(want)[8..];
            assert_eq!(got.len(), want.len(), "{name}");
            let square = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
            let error = square(&mut got.iter().zip(want).map(|(a, b)| a - b)) / square(&mut want.iter().copied());
            assert!(error.sqrt() < 1e-6, "{name}: {}", error.sqrt());
            cases += 1;
            moved += usize::from(got.len() + 8 != stored.len());
        }
        assert_eq!((cases, moved), (48, 38), "the fixture holds every case");
    }

    #[test]
    fn a_constant_stays_constant() {
        for way in WAYS {
            for target in [(1, 1), (3, 9), (37, 2)] {
                let out = interpolate(&[2.5; 25], 1, way, target).unwrap();
                assert!(out.iter().all(|v| (v - 2.5).abs() < 1e-5), "{way:?} {target:?}");
            }
        }
    }

    #[test]
    fn rotary_angles_follow_from_the_place_of_a_patch() {
        let angles = rotary_angles(Rotary { theta: 100. }, 8, (1, 2));
        let (pi, tenth) = (std::f64::consts::PI, 0.1);
        // The only row lies in the middle; the columns half way to the borders.
        let expected = [0., 0., -pi, -pi * tenth, 0., 0., pi, pi * tenth];
        assert_eq!(angles.len(), expected.len());
        angles.iter().zip(expected).for_each(|(got, want)| assert!((got - want).abs() < 1e-12, "{got} {want}"));
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let interpolate = |pos: &[f32], width, target| interpolate(pos, width, Resampling::Bicubic, target);
        assert!(interpolate(&[0.0; 12], 4, (2, 2)).is_err());
        assert!(interpolate(&[0.0; 16], 4, (0, 2)).is_err());
        assert!(interpolate(&[0.0; 17], 4, (2, 2)).is_err());
        assert!(interpolate(&[], 0, (1, 1)).is_err());
    }
}
