//! From what the head says to detections: scores, non-maximum suppression, and back to the original's pixels.

use std::cmp::Ordering;

use super::RawBoxes;
use super::geometry::{Grid, corners, iou};
use super::loss::sigmoid;
use vpt_base::choice::choice;
use vpt_base::{Error, Result};
use vpt_data::boxes::{Rect, View};

/// Detections with lower scores are dropped.
pub const MIN_SCORE: f64 = 0.01;

/// So many of an image's best pairs of token and class go on to suppression.
pub const CANDIDATES: usize = 1000;

/// A detection whose IoU with a better one of its class is higher is a duplicate.
pub const DUPLICATE: f64 = 0.6;

/// So many are left of an image.
pub const KEPT: usize = 100;

choice! {
    #[derive(Default)]
    /// Which detections are taken for one object where they lie on each other (non-maximum suppression).
    pub enum Suppress for "nms" {
        /// Those of one class.
        #[default]
        Class = "class",
        /// Those of any classes.
        All = "all",
        /// None: every detection is kept.
        Nothing = "none",
    }
}

/// Which detections are kept of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeOptions {
    /// Which may be duplicates of each other.
    pub suppress: Suppress,
    /// A detection whose IoU with a better one is higher is a duplicate.
    pub overlap: f64,
    /// Most that are left.
    pub kept: usize,
}

impl Default for DecodeOptions {
    /// IoU above 0.6 within a class, the best 100.
    fn default() -> Self {
        Self { suppress: Suppress::Class, overlap: DUPLICATE, kept: KEPT }
    }
}

impl DecodeOptions {
    /// # Errors
    /// The overlap is not between 0 and 1, or none, or more than [`CANDIDATES`], are to be kept.
    pub fn check(&self) -> Result<()> {
        if !(0. ..=1.).contains(&self.overlap) {
            return Err(Error::setting("nms_iou", format!("{} is not between 0 and 1", self.overlap)));
        }
        if self.kept == 0 || self.kept > CANDIDATES {
            return Err(Error::setting("max_detections", format!("{} is not between 1 and {CANDIDATES}", self.kept)));
        }
        Ok(())
    }

    /// Those of `all`, of several views of an image, that are kept of it, best first; `of` tells class, score and place.
    pub fn merged<T>(&self, mut all: Vec<T>, of: impl Fn(&T) -> (usize, f64, Rect)) -> Vec<T> {
        all.sort_by(|a, b| of(b).1.total_cmp(&of(a).1));
        let corners = |Rect { x, y, width, height }: Rect| [x, y, x + width, y + height];
        let mut kept: Vec<(T, (usize, [f64; 4]))> = Vec::new();
        for found in all {
            let (class, _, rect) = of(&found);
            let own = (class, corners(rect));
            if kept.len() < self.kept && !kept.iter().any(|(_, better)| self.is_duplicate(own, *better)) {
                kept.push((found, own));
            }
        }
        kept.into_iter().map(|(found, _)| found).collect()
    }

    /// Whether `found` says again what the better `other` says.
    pub(crate) fn is_duplicate(&self, (class, rect): (usize, [f64; 4]), (other, better): (usize, [f64; 4])) -> bool {
        let may_be = match self.suppress {
            Suppress::Class => class == other,
            Suppress::All => true,
            Suppress::Nothing => false,
        };
        // What is no box is nothing new.
        may_be && iou(rect, better).partial_cmp(&self.overlap).is_none_or(Ordering::is_gt)
    }
}

/// A detection in units of the network input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxScore {
    /// Its class.
    pub class: usize,
    /// `√(σ(class) σ(quality))`.
    pub score: f32,
    /// Left, upper, right and lower edge, not clipped.
    pub rect: [f32; 4],
}

/// The detections in what the head says of one image, best first: scores above 0.01, the best 1000, without duplicates, the best
/// so many, both as `options` say. Equal scores are in the order of tokens, then classes.
/// Tokens that are not `valid` (one flag a token: no padding) find nothing.
///
/// # Panics
/// If lengths differ.
pub fn decode(raw: &RawBoxes, grid: Grid, valid: Option<&[bool]>, options: &DecodeOptions) -> Vec<BoxScore> {
    let tokens = grid.side * grid.side;
    let classes = raw.class.len() / tokens;
    let lengths = [raw.class.len(), raw.boxes.len(), raw.quality.len(), valid.map_or(tokens, <[bool]>::len)];
    assert_eq!(lengths, [tokens * classes, tokens * 4, tokens, tokens], "lengths for {tokens} tokens");

    let mut candidates: Vec<(f64, usize)> = Vec::new();
    for token in (0..tokens).filter(|&t| valid.is_none_or(|v| v[t])) {
        let quality = sigmoid(f64::from(raw.quality[token]));
        // A bound on the logit, a little low, saves most of the exponentials.
        let needed = MIN_SCORE * MIN_SCORE / quality;
        let bound = (needed / (1. - needed)).ln() - 1e-3;
        if needed >= 1. {
            continue;
        }
        for (class, &logit) in raw.class[token * classes..(token + 1) * classes].iter().enumerate() {
            if f64::from(logit) > bound {
                let score = (sigmoid(f64::from(logit)) * quality).sqrt();
                if score > MIN_SCORE {
                    candidates.push((score, token * classes + class));
                }
            }
        }
    }
    let better = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if candidates.len() > CANDIDATES {
        candidates.select_nth_unstable_by(CANDIDATES, better);
        candidates.truncate(CANDIDATES);
    }
    candidates.sort_unstable_by(better);

    let (offsets, _) = raw.boxes.as_chunks::<4>();
    let mut kept: Vec<(BoxScore, [f64; 4])> = Vec::new();
    for (score, place) in candidates {
        let (token, class) = (place / classes, place % classes);
        let rect = corners(grid.decode(token, offsets[token]));
        if !kept.iter().any(|(other, better)| options.is_duplicate((class, rect), (other.class, *better))) {
            kept.push((BoxScore { class, score: score as f32, rect: rect.map(|v| v as f32) }, rect));
            if kept.len() == options.kept {
                break;
            }
        }
    }
    kept.into_iter().map(|(found, _)| found).collect()
}

impl BoxScore {
    /// The box in pixels of the image that `view` shows, cut at its border; `None` if a side is less than a pixel then.
    pub fn in_original(&self, view: &View) -> Option<Rect> {
        let [x0, y0, x1, y1] = self.rect;
        let rect = view.to_original([f32::midpoint(x0, x1), f32::midpoint(y0, y1), x1 - x0, y1 - y0]);
        (rect.width >= 1. && rect.height >= 1.).then_some(rect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::random::{normal, stream};

    /// All pairs sorted, then the textbook loop: take the best, strike out what it suppresses.
    fn brute_force(raw: &RawBoxes, grid: Grid, valid: &[bool], options: &DecodeOptions) -> Vec<BoxScore> {
        let tokens = grid.side * grid.side;
        let classes = raw.class.len() / tokens;
        let mut all = Vec::new();
        for t in (0..tokens).filter(|&t| valid[t]) {
            let rect = corners(grid.decode(t, [0, 1, 2, 3].map(|i| raw.boxes[4 * t + i])));
            for class in 0..classes {
                let score = (sigmoid(raw.class[t * classes + class].into()) * sigmoid(raw.quality[t].into())).sqrt();
                all.push((score, class, rect));
            }
        }
        all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
        all.retain(|a| a.0 > 0.01);
        all.truncate(1000);
        let mut kept = Vec::new();
        while !all.is_empty() {
            let best = all.remove(0);
            all.retain(|other| {
                let may_be = match options.suppress {
                    Suppress::Class => other.1 == best.1,
                    Suppress::All => true,
                    Suppress::Nothing => false,
                };
                !may_be || iou(other.2, best.2) <= options.overlap
            });
            kept.push(BoxScore { class: best.1, score: best.0 as f32, rect: best.2.map(|v| v as f32) });
        }
        kept.truncate(options.kept);
        kept
    }

    #[test]
    fn equals_brute_force_with_ties_few_and_many_candidates() {
        let (mut few, mut many) = (0, 0);
        for (seed, side, classes, mean) in
            [(1, 5, 3, -1.), (2, 9, 2, -9.), (3, 12, 20, 0.), (4, 3, 1, -20.), (5, 8, 5, 2.)]
        {
            let mut rng = stream(seed, "test", 0, 0);
            let tokens = side * side;
            let grid = Grid { side, anchor: 0.4 };
            // Rounded, so that scores tie.
            let mut draw = |n: usize, mean: f32, std: f32, step: f32| -> Vec<f32> {
                (0..n).map(|_| mean + (std * normal(&mut rng) / step).round() * step).collect()
            };
            let raw = RawBoxes {
                class: draw(tokens * classes, mean, 3., 0.5),
                boxes: draw(tokens * 4, 0., 0.3, 0.01),
                quality: draw(tokens, 0., 3., 1.),
            };
            let valid: Vec<bool> = (0..tokens).map(|t| t % side != 1).collect();
            let usual = DecodeOptions::default();
            let found = decode(&raw, grid, Some(&valid), &usual);
            assert_eq!(found, brute_force(&raw, grid, &valid, &usual));
            for suppress in Suppress::ALL.iter().copied() {
                for (overlap, kept) in [(0.6, 100), (0.2, 7), (0.9, 1000)] {
                    let options = DecodeOptions { suppress, overlap, kept };
                    let all = brute_force(&raw, grid, &vec![true; tokens], &options);
                    assert_eq!(decode(&raw, grid, None, &options), all, "{options:?}");
                }
            }
            if found.len() == 100 { many += 1 } else { few += 1 }
        }
        assert!(few >= 2 && many >= 2, "{few} {many}");
    }

    #[test]
    fn hopeless_and_unreadable_logits_find_nothing() {
        let (grid, usual) = (Grid { side: 1, anchor: 0.5 }, DecodeOptions::default());
        for (class, quality) in [(5., -100.), (-100., 5.), (f32::NAN, 5.), (5., f32::NAN), (-1e30, -1e30)] {
            let raw = RawBoxes { class: vec![class], boxes: vec![0.; 4], quality: vec![quality] };
            assert_eq!(decode(&raw, grid, None, &usual), [], "{class} {quality}");
        }
        let sure = RawBoxes { class: vec![1e30], boxes: vec![0.; 4], quality: vec![1e30] };
        let found = [BoxScore { class: 0, score: 1., rect: [0.25, 0.25, 0.75, 0.75] }];
        assert_eq!(decode(&sure, grid, None, &usual), found);
    }

    #[test]
    fn what_several_views_say_again_is_one() {
        let rect = |x| Rect { x, y: 0., width: 10., height: 10. };
        let all = || {
            vec![(0, 0.4, rect(0.)), (0, 0.9, rect(1.)), (1, 0.5, rect(1.)), (0, 0.3, rect(9.)), (0, 0.9, rect(50.))]
        };
        let scores = |options: DecodeOptions| {
            let kept = options.merged(all(), |found| *found);
            kept.iter().map(|(class, _, rect)| (*class, rect.x)).collect::<Vec<_>>()
        };
        let usual = DecodeOptions::default();
        assert_eq!(scores(usual), [(0, 1.), (0, 50.), (1, 1.), (0, 9.)]);
        assert_eq!(scores(DecodeOptions { suppress: Suppress::All, ..usual }), [(0, 1.), (0, 50.), (0, 9.)]);
        assert_eq!(scores(DecodeOptions { suppress: Suppress::Nothing, kept: 2, ..usual }), [(0, 1.), (0, 50.)]);
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let with = |overlap, kept| DecodeOptions { overlap, kept, ..DecodeOptions::default() }.check();
        assert!(with(0., 1).is_ok() && with(1., CANDIDATES).is_ok());
        for (overlap, kept) in [(f64::NAN, 1), (-0.1, 1), (1.1, 1), (0.5, 0), (0.5, CANDIDATES + 1)] {
            assert!(with(overlap, kept).is_err(), "{overlap} {kept}");
        }
    }

    #[test]
    fn boxes_go_back_to_the_original_clipped_and_without_slivers() {
        // A letter-box of a 200 x 100 image: the input spans 200 pixels both ways, 50 of them above the image.
        let scale = 1. / 200.;
        let view = View { scale_x: scale, scale_y: scale, offset_x: 0., offset_y: 0.25, width: 200, height: 100 };
        let back = |rect| BoxScore { class: 2, score: 0.5, rect }.in_original(&view);
        let rect = |x, y, width, height| Some(Rect { x, y, width, height });
        assert_eq!(back([0.25, 0.5, 0.5, 0.625]), rect(50., 50., 50., 25.));
        assert_eq!(back([-0.25, 0., 0.5, 1.]), rect(0., 0., 100., 100.));
        for sliver in [[0., 0., 1., 0.25], [0.5, 0.5, 0.503, 0.6], [0.999, 0.5, 1.5, 0.6]] {
            assert_eq!(back(sliver), None, "{sliver:?}");
        }
    }
}
