//! How far what a file answers and what the engine answers are apart.

use serde::Serialize;

/// Most that 32-bit logits may differ by, of the largest logit.
const LIMIT: f64 = 1e-4;
/// The same of a tower of 16 bits.
const LIMIT_HALF: f64 = 2e-2;

/// The figures of a comparison on some images.
#[derive(Clone, Debug, Serialize)]
pub struct Parity {
    /// What was compared: `logits`, `boxes` (sides of an image), `pixels` (their logits) or `embeddings`.
    pub of: &'static str,
    /// Images.
    pub images: usize,
    /// What they were.
    pub on: String,
    /// The largest difference.
    pub max_difference: f64,
    /// The largest value that the engine gave.
    pub largest: f64,
    /// Images, or pixels, whose first class is the same; of a detector, boxes that both find.
    pub agree: usize,
    /// Of so many.
    pub of_total: usize,
    /// Most that the largest difference may be, of the largest value.
    pub limit: f64,
    /// Whether something differs that is no matter of rounding.
    #[serde(skip)]
    other: bool,
}

impl Parity {
    /// Of rows of logits `[n, width]`, or of embeddings, which have no first class.
    pub(crate) fn of_rows(
        of: &'static str,
        (engine, file): (&[f32], &[f32]),
        width: usize,
        half: bool,
        on: &str,
    ) -> Self {
        let limit = if half { LIMIT_HALF } else { LIMIT };
        let largest = engine.iter().fold(0_f64, |max, &v| max.max(f64::from(v).abs()));
        let mut max_difference = 0_f64;
        for (a, b) in engine.iter().zip(file) {
            let difference = (f64::from(*a) - f64::from(*b)).abs();
            // NaN is as far apart as can be.
            max_difference = if difference.is_nan() { f64::INFINITY } else { max_difference.max(difference) };
        }
        let first = |row: &[f32]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let (mut agree, mut other) = (0, engine.len() != file.len());
        for (a, b) in engine.chunks_exact(width).zip(file.chunks_exact(width)) {
            let (of_engine, of_file) = (first(a), first(b));
            if of_engine == of_file {
                agree += 1;
            } else {
                // Two that are as likely as each other may change places.
                other |= f64::from(a[of_engine] - a[of_file]) > 2. * limit * largest;
            }
        }
        let images = engine.len() / width.max(1);
        let on = on.to_owned();
        Self { of, images, on, max_difference, largest, agree, of_total: images, limit, other: other && of == "logits" }
    }

    /// Of pixels of so many windows.
    pub(crate) fn of_pixels(images: usize, apart: &PixelsApart, on: &str) -> Self {
        let PixelsApart { limit, max_difference, largest, agree, of_total, flips, same_length } = *apart;
        // Two that are as likely as each other may change places.
        let other = !same_length || flips > 2. * limit * largest;
        Self { of: "pixels", images, on: on.to_owned(), max_difference, largest, agree, of_total, limit, other }
    }

    /// Of boxes: `max_difference` in sides of the image.
    pub(crate) fn of_boxes(
        images: usize,
        max_difference: f64,
        (agree, of_total): (usize, usize),
        half: bool,
        on: &str,
    ) -> Self {
        let limit = if half { LIMIT_HALF } else { 1e-3 };
        let on = on.to_owned();
        Self { of: "boxes", images, on, max_difference, largest: 1., agree, of_total, limit, other: agree < of_total }
    }

    /// The largest difference, of the largest value.
    pub fn relative(&self) -> f64 {
        if self.largest > 0. { self.max_difference / self.largest } else { self.max_difference }
    }

    /// What is wrong, if anything is.
    pub(crate) fn fault(&self) -> Option<String> {
        let Self { of, images, agree, of_total, limit, .. } = self;
        let apart = self.relative() > *limit || self.relative().is_nan();
        (apart || self.other).then(|| {
            format!(
                "the file does not answer as the engine does: {of} of {images} images differ by {:.1e} of the largest, where \
                 {limit:.0e} is allowed, and {agree} of {of_total} agree",
                self.relative()
            )
        })
    }

    /// The figures in words.
    pub fn describe(&self) -> String {
        let Self { of, images, on, agree, of_total, .. } = self;
        let agree = match *of {
            "embeddings" => String::new(),
            "boxes" => format!(", {agree} of {of_total} boxes the same"),
            "pixels" => format!(", {agree} of {of_total} pixels the same"),
            _ => format!(", top-1 equal on {agree} of {of_total}"),
        };
        let of = if *of == "pixels" { "logits" } else { of };
        format!("{of} differ by at most {:.1e} of the largest on {images} {on}{agree}", self.relative())
    }
}

/// How far logits and classes of windows are apart, added up window by window.
pub(crate) struct PixelsApart {
    limit: f64,
    max_difference: f64,
    largest: f64,
    agree: usize,
    of_total: usize,
    /// The largest difference between the engine's logits of its class at a pixel and of the file's.
    flips: f64,
    same_length: bool,
}

impl PixelsApart {
    pub(crate) fn new(half: bool) -> Self {
        let limit = if half { LIMIT_HALF } else { LIMIT };
        Self { limit, max_difference: 0., largest: 0., agree: 0, of_total: 0, flips: 0., same_length: true }
    }

    /// Adds a window: the engine's logits `[K, M, M]`, the class of each of its pixels and the logits at them, `[K, S, S]`; and the file's
    /// logits and classes.
    pub(crate) fn add(
        &mut self,
        (logits, classes, at_pixels): (&[f32], &[u16], &[f32]),
        (of_file, masks): (&[f32], &[i64]),
    ) {
        self.same_length &= logits.len() == of_file.len() && classes.len() == masks.len();
        for (a, b) in logits.iter().zip(of_file) {
            let difference = (f64::from(*a) - f64::from(*b)).abs();
            self.max_difference = if difference.is_nan() { f64::INFINITY } else { self.max_difference.max(difference) };
            self.largest = self.largest.max(f64::from(a.abs()));
        }
        for (pixel, (&own, &found)) in classes.iter().zip(masks).enumerate() {
            self.of_total += 1;
            if i64::from(own) == found {
                self.agree += 1;
                continue;
            }
            let logit = |class: usize| at_pixels.get(class * classes.len() + pixel).map(|&logit| f64::from(logit));
            let found = usize::try_from(found).ok().and_then(logit);
            let apart = logit(usize::from(own)).zip(found).map_or(f64::INFINITY, |(own, found)| own - found);
            self.flips = self.flips.max(apart);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_apart_is_found_and_ties_are_not() {
        let engine = [1., 2., 2., 1.99999];
        assert!(Parity::of_rows("logits", (&engine, &engine), 2, false, "").fault().is_none());
        let tie = [1., 2., 1.99999, 2.];
        let parity = Parity::of_rows("logits", (&engine, &tie), 2, false, "");
        assert_eq!((parity.agree, parity.fault()), (1, None));
        for bad in [[1., 2.1, 2., 1.99999], [1., f32::NAN, 2., 1.99999]] {
            assert!(Parity::of_rows("logits", (&engine, &bad), 2, false, "").fault().is_some(), "{bad:?}");
        }
        // Of two classes and two pixels.
        let pixels = |logits: &[f32], masks: &[i64]| {
            let mut apart = PixelsApart::new(false);
            apart.add((&[1., 2., 2., 1.99999], &[1, 0], &[1., 2., 2., 1.99999]), (logits, masks));
            Parity::of_pixels(1, &apart, "")
        };
        let tie = pixels(&[1., 1.99999, 2., 2.], &[1, 1]);
        assert_eq!((tie.agree, tie.of_total, tie.fault()), (1, 2, None));
        assert!(pixels(&[1., 2., 2., 1.99999], &[0, 0]).fault().is_some());
        assert!(pixels(&[1., 2., 2., 1.99999], &[2, 0]).fault().is_some());
        assert!(pixels(&[1., 2., 2.1, 1.99999], &[1, 0]).fault().is_some());
        assert!(pixels(&[1., 2., 2., 1.99999], &[1]).fault().is_some());
        let short = Parity::of_rows("logits", (&engine, &engine[..2]), 2, false, "");
        assert!(short.fault().is_some());
    }
}
