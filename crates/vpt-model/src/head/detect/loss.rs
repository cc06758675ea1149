//! The four losses of an image's tokens and their gradients for what the head said.
//!
//! Tokens with a box learn its class, where it is (generalised IoU and the distance of coordinates) and how good their own
//! guess is; all others learn that nothing is there, in class logits only. All sums are divided by the number of tokens
//! with a box in the whole batch, which is known before any forward pass, so that images can be treated one by one.

use super::RawBoxes;
use super::assign::{Assignment, Role, Truth};
use super::geometry::{Grid, corners, generalized_iou, iou};
use vpt_kernel::focal_background;

/// Weights of the parts.
const CLASS: f64 = 1.;
const GIOU: f64 = 2.;
const L1: f64 = 5.;
const QUALITY: f64 = 0.5;

/// Share of positives in the focal loss.
const ALPHA: f64 = 0.25;

/// A token that has no box but whose own box agrees better than this with one is not told that nothing is there.
const NEAR_MISS: f64 = 0.7;

/// The losses' sums over tokens, neither weighted nor divided.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Focal loss (alpha 0.25, gamma 2) of all class logits.
    pub class: f64,
    /// `1 - GIoU` over tokens with a box.
    pub giou: f64,
    /// Sum of the four absolute differences of `cx, cy, w, h`, over tokens with a box.
    pub l1: f64,
    /// Cross-entropy of the quality logit with the IoU of the token's box, which is taken as a constant.
    pub quality: f64,
    /// Tokens with a box.
    pub positives: usize,
}

impl LossSums {
    /// Adds those of other images.
    pub fn add(&mut self, other: &Self) {
        self.class += other.class;
        self.giou += other.giou;
        self.l1 += other.l1;
        self.quality += other.quality;
        self.positives += other.positives;
    }

    /// The loss, `(class + 2 giou + 5 l1 + quality / 2) / positives`, for a batch with `positives` tokens with a box.
    pub fn total(&self, positives: usize) -> f64 {
        let sum = CLASS * self.class + GIOU * self.giou + L1 * self.l1 + QUALITY * self.quality;
        sum / positives.max(1) as f64
    }
}

/// The loss of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectionLoss {
    /// Where the tokens lie.
    pub grid: Grid,
    /// Tokens with a box in the whole batch, [`Assignment::positives`] summed over its images.
    pub positives: usize,
}

impl DetectionLoss {
    /// The losses of one image and the gradient of [`LossSums::total`] for what the head said. Without boxes all tokens
    /// learn that nothing is there.
    ///
    /// # Panics
    /// If lengths differ or a box has a class that the head does not tell apart.
    pub fn gradients(&self, raw: &RawBoxes, truths: &[Truth], assignment: &Assignment) -> (LossSums, RawBoxes) {
        let tokens = self.grid.side * self.grid.side;
        let classes = raw.class.len() / tokens;
        let lengths = [raw.class.len(), raw.boxes.len(), raw.quality.len(), assignment.roles.len()];
        assert_eq!(lengths, [tokens * classes, tokens * 4, tokens, tokens], "lengths for {tokens} tokens");
        assert!(truths.iter().all(|t| t.crowd || t.class < classes), "a class beyond the head's {classes}");
        let scale = 1. / self.positives.max(1) as f64;
        let real: Vec<[f64; 4]> = truths.iter().filter(|t| !t.crowd).map(|t| corners(t.rect.map(f64::from))).collect();

        let mut sums = LossSums::default();
        let mut gradient =
            RawBoxes { class: vec![0.; tokens * classes], boxes: vec![0.; tokens * 4], quality: vec![0.; tokens] };
        let (offsets, _) = raw.boxes.as_chunks::<4>();
        let (d_offsets, _) = gradient.boxes.as_chunks_mut::<4>();
        for (token, role) in assignment.roles.iter().enumerate() {
            let rect = self.grid.decode(token, offsets[token]);
            let logits = &raw.class[token * classes..(token + 1) * classes];
            let d_logits = &mut gradient.class[token * classes..(token + 1) * classes];
            match *role {
                Role::Ignored => {}
                Role::Negative => {
                    let found = corners(rect);
                    if real.iter().all(|&truth| iou(found, truth) <= NEAR_MISS) {
                        sums.class += focal(logits, None, CLASS * scale, d_logits);
                    }
                }
                Role::Positive(index) => {
                    let truth = truths[index].rect.map(f64::from);
                    sums.positives += 1;
                    sums.class += focal(logits, Some(truths[index].class), CLASS * scale, d_logits);

                    let (giou, mut d_rect) = generalized_iou(rect, truth);
                    sums.giou += 1. - giou;
                    for i in 0..4 {
                        let gap = rect[i] - truth[i];
                        sums.l1 += gap.abs();
                        let sign = if gap == 0. { 0. } else { gap.signum() };
                        d_rect[i] = scale * (L1 * sign - GIOU * d_rect[i]);
                    }
                    d_offsets[token] = self.grid.decode_vjp(offsets[token], rect, d_rect).map(|g| g as f32);

                    let x = f64::from(raw.quality[token]);
                    let target = iou(corners(rect), corners(truth));
                    sums.quality += softplus(x) - target * x;
                    gradient.quality[token] = (QUALITY * scale * (sigmoid(x) - target)) as f32;
                }
            }
        }
        (sums, gradient)
    }
}

/// The focal loss of a token's logits, whose target is 1 for `class` and else 0; its gradient times `scale` goes to
/// `gradient`.
fn focal(logits: &[f32], class: Option<usize>, scale: f64, gradient: &mut [f32]) -> f64 {
    let mut sum = (1. - ALPHA) * f64::from(focal_background(logits, gradient));
    let factor = (scale * (1. - ALPHA)) as f32;
    for g in gradient.iter_mut() {
        *g *= factor;
    }
    if let Some(class) = class {
        let x = f64::from(logits[class]);
        let (p, q) = (sigmoid(x), sigmoid(-x));
        // -log p is softplus(-x): no infinity at either end.
        let surprise = softplus(-x);
        sum += ALPHA * q * q * surprise - (1. - ALPHA) * p * p * softplus(x);
        gradient[class] = (-scale * ALPHA * q * q * (q + 2. * p * surprise)) as f32;
    }
    sum
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1. / (1. + (-x).exp())
}

/// `log(1 + exp(x))`.
fn softplus(x: f64) -> f64 {
    x.max(0.) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::random::{normal, stream};

    fn truth(rect: [f32; 4], class: usize) -> Truth {
        Truth { rect, class, crowd: false }
    }

    fn setup() -> (DetectionLoss, RawBoxes, Vec<Truth>, Assignment) {
        let truths = vec![
            truth([0.3, 0.35, 0.4, 0.3], 1),
            truth([0.72, 0.6, 0.2, 0.45], 2),
            Truth { crowd: true, ..truth([0.9, 0.1, 0.2, 0.2], 0) },
        ];
        let grid = Grid { side: 5, anchor: 0.3 };
        let assignment = Assignment::new(5, &truths, None);
        let mut rng = stream(2, "test", 0, 0);
        let mut draw = |n: usize, std: f32| (0..n).map(|_| std * normal(&mut rng)).collect::<Vec<f32>>();
        let raw = RawBoxes { class: draw(25 * 3, 2.), boxes: draw(25 * 4, 0.5), quality: draw(25, 2.) };
        let positives = assignment.positives() + 3;
        (DetectionLoss { grid, positives }, raw, truths, assignment)
    }

    #[test]
    fn gradients_equal_central_differences() {
        let (loss, raw, truths, assignment) = setup();
        let (sums, found) = loss.gradients(&raw, &truths, &assignment);
        assert_eq!(sums.positives, 8);
        let h = 1f32 / 256.;
        let total = |raw: &RawBoxes| loss.gradients(raw, &truths, &assignment).0.total(loss.positives);
        let check = |i: usize, part: fn(&mut RawBoxes) -> &mut Vec<f32>, got: f32, what: &str| {
            let moved = |by: f32| {
                let mut raw = raw.clone();
                part(&mut raw)[i] += by;
                total(&raw)
            };
            let slope = (moved(h) - moved(-h)) / f64::from(2. * h);
            assert!((slope - f64::from(got)).abs() < 2e-4, "{what}[{i}]: {slope}, got {got}");
        };
        for i in 0..found.class.len() {
            check(i, |r| &mut r.class, found.class[i], "class");
        }
        for i in 0..found.quality.len() {
            check(i, |r| &mut r.quality, found.quality[i], "quality");
        }
        // The quality's target moves with the box but counts as a constant: its logit is set where its loss does not depend
        // on the target.
        let still = RawBoxes { quality: vec![0.; 25], ..raw.clone() };
        let boxes = loss.gradients(&still, &truths, &assignment).1.boxes;
        assert_eq!(boxes, found.boxes);
        for (i, &got) in boxes.iter().enumerate() {
            let moved = |by: f32| {
                let mut raw = still.clone();
                raw.boxes[i] += by;
                total(&raw)
            };
            let slope = (moved(h) - moved(-h)) / f64::from(2. * h);
            assert!((slope - f64::from(got)).abs() < 5e-4, "boxes[{i}]: {slope}, got {got}");
        }
    }

    #[test]
    fn a_token_that_finds_a_box_of_another_is_not_taught_otherwise() {
        let (loss, mut raw, truths, assignment) = setup();
        let token = assignment.roles.iter().rposition(|r| *r == Role::Negative).unwrap();
        let [x, y] = loss.grid.centre(token);
        let on = |iou: f64| -> Vec<f32> {
            // As high as the first box and `iou` times as wide.
            let [cx, cy, w, h] = truths[0].rect.map(f64::from);
            let (a, side) = (f64::from(loss.grid.anchor), loss.grid.side as f64);
            [(cx - x) * side, (cy - y) * side, (iou * w / a).ln(), (h / a).ln()].map(|v| v as f32).to_vec()
        };
        for (iou, learns) in [(0.69, true), (0.71, false)] {
            raw.boxes[4 * token..4 * token + 4].copy_from_slice(&on(iou));
            let (_, gradient) = loss.gradients(&raw, &truths, &assignment);
            assert_eq!(gradient.class[3 * token..3 * token + 3].iter().all(|&g| g > 0.), learns);
            assert_eq!(gradient.class[3 * token..3 * token + 3].iter().all(|&g| g == 0.), !learns);
        }
    }

    #[test]
    fn ignored_tokens_and_empty_images_are_what_the_doc_says() {
        let (loss, raw, truths, assignment) = setup();
        let ignored = assignment.roles.iter().position(|r| *r == Role::Ignored).unwrap();
        let (_, gradient) = loss.gradients(&raw, &truths, &assignment);
        assert_eq!(gradient.class[3 * ignored..3 * ignored + 3], [0.; 3]);

        let none = Assignment::new(5, &[], None);
        let (sums, gradient) = DetectionLoss { positives: 0, ..loss }.gradients(&raw, &[], &none);
        assert_eq!(sums, LossSums { class: sums.total(0), ..LossSums::default() });
        assert!(gradient.class.iter().all(|&g| g > 0.));
    }

    #[test]
    fn huge_logits_give_finite_losses_and_gradients() {
        let (loss, raw, truths, assignment) = setup();
        for sign in [1., -1.] {
            let huge = |n: usize| vec![sign * 1e30; n];
            let raw = RawBoxes { class: huge(75), quality: huge(25), ..raw.clone() };
            let (sums, gradient) = loss.gradients(&raw, &truths, &assignment);
            assert!(sums.total(loss.positives).is_finite());
            let all = gradient.class.iter().chain(&gradient.boxes).chain(&gradient.quality);
            assert!(all.into_iter().all(|g| g.is_finite()));
        }
    }
}
