//! From logits of windows to a class for each pixel of an image, at the image's own resolution.
//!
//! A pixel takes the logits of each window that it lies in, interpolated between the four nearest, adds them up, and is of the
//! class whose sum is largest.

use vpt_base::{Error, Result};
use vpt_data::masks::IGNORED;

/// The logits of an image's windows.
#[derive(Clone, Copy, Debug)]
pub struct WindowLogits<'a> {
    /// `[W, M, M, K]`.
    pub logits: &'a [f32],
    /// Upper left corners of the windows in the image that was resized.
    pub corners: &'a [[usize; 2]],
    /// Width and height of that image.
    pub scaled: [usize; 2],
}

/// Puts windows together.
#[derive(Clone, Copy, Debug)]
pub struct Composer {
    /// Pixels along the side of a window, S.
    pub window: usize,
    /// Logits along it, M.
    pub side: usize,
    /// Number of classes, K.
    pub classes: usize,
}

/// Where a pixel's middle lies among logits: the first of two, and the weight of the second.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    weight: f32,
}

impl Composer {
    /// The class of each pixel of an image of `width` x `height`, `[height, width]`.
    ///
    /// # Errors
    /// There are not as many logits as windows.
    pub fn classes(&self, windows: WindowLogits, width: usize, height: usize) -> Result<Vec<u16>> {
        self.sure_classes(windows, width, height, 0.)
    }

    /// As [`Self::classes`], with [`IGNORED`] where the class's probability, the softmax of the mean over the pixel's windows, is less
    /// than `least`.
    ///
    /// # Errors
    /// As [`Self::classes`].
    pub fn sure_classes(&self, windows: WindowLogits, width: usize, height: usize, least: f32) -> Result<Vec<u16>> {
        let Self { side: m, classes: k, .. } = *self;
        let WindowLogits { logits, corners, scaled } = windows;
        if corners.is_empty() || logits.len() != corners.len() * m * m * k {
            let message =
                format!("{} values of {} windows of {m}x{m} logits of {k} classes", logits.len(), corners.len());
            return Err(Error::invalid("logits", message));
        }
        let (row, next) = (m * k, usize::from(m > 1));
        let mut out = Vec::with_capacity(width * height);
        // Each column's windows and taps are the same in every row.
        let columns: Vec<Vec<(usize, Tap)>> = {
            let taps = |x: usize| {
                let among = corners.iter().enumerate();
                among.filter_map(|(i, corner)| Some((i, self.tap(x, width, scaled[0], corner[0])?))).collect()
            };
            (0..width).map(taps).collect()
        };
        let mut lines = vec![0.; corners.len() * row];
        let mut is_in = vec![false; corners.len()];
        let mut sums = vec![0.; k];
        for y in 0..height {
            for (i, corner) in corners.iter().enumerate() {
                let tap = self.tap(y, height, scaled[1], corner[1]);
                is_in[i] = tap.is_some();
                let Some(Tap { first, weight }) = tap else { continue };
                let own = &logits[i * m * row..(i + 1) * m * row];
                let (a, b) = (&own[first * row..][..row], &own[(first + next) * row..][..row]);
                for ((to, a), b) in lines[i * row..(i + 1) * row].iter_mut().zip(a).zip(b) {
                    *to = a + weight * (b - a);
                }
            }
            for column in &columns {
                sums.fill(0.);
                let mut seen = 0.;
                for &(i, Tap { first, weight }) in column.iter().filter(|(i, _)| is_in[*i]) {
                    let line = &lines[i * row..(i + 1) * row];
                    let (a, b) = (&line[first * k..][..k], &line[(first + next) * k..][..k]);
                    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                        *sum += a + weight * (b - a);
                    }
                    seen += 1.;
                }
                let mut best = 0;
                for (class, value) in sums.iter().enumerate() {
                    if *value > sums[best] {
                        best = class;
                    }
                }
                let is_sure = least <= 0. || {
                    let all: f32 = sums.iter().map(|sum| ((sum - sums[best]) / seen).exp()).sum();
                    1. / all >= least
                };
                out.push(if is_sure { best as u16 } else { IGNORED });
            }
        }
        Ok(out)
    }

    /// Where pixel `at` of `size` lies in the window that begins at `corner` of `scaled` pixels; `None` if outside.
    fn tap(&self, at: usize, size: usize, scaled: usize, corner: usize) -> Option<Tap> {
        let middle = (at as f64 + 0.5) * scaled as f64 / size as f64 - corner as f64;
        if !(0. ..self.window as f64).contains(&middle) {
            return None;
        }
        let place = middle * self.side as f64 / self.window as f64 - 0.5;
        let place = place.clamp(0., (self.side - 1) as f64);
        let first = (place as usize).min(self.side.saturating_sub(2));
        let weight = if self.side == 1 { 0. } else { (place - first as f64) as f32 };
        Some(Tap { first, weight })
    }
}
