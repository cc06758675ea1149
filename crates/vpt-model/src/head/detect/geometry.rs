//! Boxes as the head writes them, and how far two boxes agree.
//!
//! All coordinates are in units of the network input, 0 to 1; a box is centre and size `[cx, cy, w, h]`.

/// Offsets of width and height are held in this range, so that sizes stay finite.
pub const SIZE_RANGE: [f64; 2] = [-6., 3.];

/// The map's tokens as places in the image, and the size boxes are counted from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Tokens a side, G'.
    pub side: usize,
    /// The side of a box whose size offsets are zero.
    pub anchor: f32,
}

impl Grid {
    /// Where the centre of a token lies: `((i + 1/2) / G', (j + 1/2) / G')` for column i, line j.
    pub fn centre(self, token: usize) -> [f64; 2] {
        [token % self.side, token / self.side].map(|i| (i as f64 + 0.5) / self.side as f64)
    }

    /// The box a token writes as `offsets`: `cx = x + o1/G'`, `cy = y + o2/G'`, `w = a exp(o3)`, `h = a exp(o4)`, o3 and o4
    /// clamped to -6..3.
    pub fn decode(self, token: usize, offsets: [f32; 4]) -> [f64; 4] {
        let [x, y] = self.centre(token);
        let [dx, dy, w, h] = offsets.map(f64::from);
        let side = self.side as f64;
        let size = |o: f64| f64::from(self.anchor) * o.clamp(SIZE_RANGE[0], SIZE_RANGE[1]).exp();
        [x + dx / side, y + dy / side, size(w), size(h)]
    }

    /// The gradient of the offsets from that of the box they make.
    pub fn decode_vjp(self, offsets: [f32; 4], rect: [f64; 4], gradient: [f64; 4]) -> [f64; 4] {
        let side = self.side as f64;
        let size = |i: usize| {
            let inside = (SIZE_RANGE[0]..=SIZE_RANGE[1]).contains(&f64::from(offsets[i]));
            if inside { gradient[i] * rect[i] } else { 0. }
        };
        [gradient[0] / side, gradient[1] / side, size(2), size(3)]
    }
}

/// The side of a typical box, `√(median width * median height)`, of the training boxes; none if there are no boxes.
pub fn anchor_side(boxes: &[[f32; 4]]) -> Option<f32> {
    let median = |i: usize| {
        let mut sizes: Vec<f64> = boxes.iter().map(|b| f64::from(b[i])).collect();
        sizes.sort_by(f64::total_cmp);
        let n = sizes.len();
        (n > 0).then(|| f64::midpoint(sizes[(n - 1) / 2], sizes[n / 2]))
    };
    let side = (median(2)? * median(3)?).sqrt();
    Some(side.clamp(1e-3, 1.) as f32)
}

/// `[x0, y0, x1, y1]` of `[cx, cy, w, h]`.
pub fn corners([x, y, w, h]: [f64; 4]) -> [f64; 4] {
    [x - w / 2., y - h / 2., x + w / 2., y + h / 2.]
}

/// Intersection over union of two boxes given by their corners; 0 where both are empty.
pub fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let (both, any) = overlap(a, b);
    if any > 0. { both / any } else { 0. }
}

/// Areas of intersection and union.
fn overlap(a: [f64; 4], b: [f64; 4]) -> (f64, f64) {
    let sides = |i: usize| (a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.);
    let both = sides(0) * sides(1);
    let area = |r: [f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    (both, area(a) + area(b) - both)
}

/// The generalised IoU of a predicted and a true box, both by centre and size, and its gradient for the predicted one
/// (Rezatofighi et al., "Generalized Intersection over Union", 2019): `I/U - (E - U)/E`, E the area that encloses both.
pub fn generalized_iou(predicted: [f64; 4], truth: [f64; 4]) -> (f64, [f64; 4]) {
    let (p, t) = (corners(predicted), corners(truth));
    let (both, any) = overlap(p, t);
    let enclosing = [0, 1].map(|i| p[i + 2].max(t[i + 2]) - p[i].min(t[i]));
    let around = enclosing[0] * enclosing[1];
    if any <= 0. || around <= 0. {
        return (0., [0.; 4]);
    }
    let value = both / any - (around - any) / around;
    // With A the predicted box's area: U = A + |t| - I, so that dU = dA - dI.
    let (by_both, by_any, by_around) = (1. / any, 1. / around - both / (any * any), -any / (around * around));
    let side = [0, 1].map(|i| p[i + 2].min(t[i + 2]) - p[i].max(t[i]));
    let crossing = side[0] > 0. && side[1] > 0.;
    let mut gradient = [0.; 4];
    for i in 0..2 {
        let other = 1 - i;
        // For the upper and lower corner of this axis: the share of dI, dE and dA that moving it outwards brings.
        let edge = |inner: bool, outer: bool| {
            let d_both = if crossing && inner { side[other] } else { 0. };
            let d_around = if outer { enclosing[other] } else { 0. };
            let d_area = predicted[2 + other];
            by_both * d_both + by_any * (d_area - d_both) + by_around * d_around
        };
        let upper = edge(p[i + 2] < t[i + 2], p[i + 2] > t[i + 2]);
        let lower = edge(p[i] > t[i], p[i] < t[i]);
        gradient[i] = upper - lower;
        gradient[2 + i] = f64::midpoint(upper, lower);
    }
    (value, gradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vpt_base::testing::central_differences;

    fn any_box() -> impl Strategy<Value = [f64; 4]> {
        [0.0..1.0f64, 0.0..1.0f64, 0.02..0.9f64, 0.02..0.9f64]
    }

    proptest! {
        #[test]
        fn the_generalised_iou_lies_below_the_iou_and_its_gradient_is_its_slope(a in any_box(), b in any_box()) {
            let (value, gradient) = generalized_iou(a, b);
            let plain = iou(corners(a), corners(b));
            prop_assert!(value > -1. && value <= plain + 1e-12 && plain <= 1. + 1e-12);
            // Kinks, where two edges meet, have no slope.
            let (p, t) = (corners(a), corners(b));
            let meet = |x: f64, y: f64| (x - y).abs() < 1e-3;
            prop_assume!(!(0..4).any(|i| meet(p[i], t[i]) || meet(p[i], t[(i + 2) % 4])));
            let slopes = central_differences(&a, |x| generalized_iou([x[0], x[1], x[2], x[3]], b).0);
            for i in 0..4 {
                prop_assert!((slopes[i] - gradient[i]).abs() < 1e-4 * slopes[i].abs().max(1.), "{slopes:?} {gradient:?}");
            }
        }

        #[test]
        fn the_gradient_of_offsets_is_the_slope_of_their_box(
            offsets in [-2f32..2., -2f32..2., -7f32..4., -7f32..4.], g in any_box(), token in 0usize..25,
        ) {
            prop_assume!(offsets[2..].iter().all(|o| (o + 6.).abs() > 1e-2 && (o - 3.).abs() > 1e-2));
            let grid = Grid { side: 5, anchor: 0.3 };
            let found = grid.decode_vjp(offsets, grid.decode(token, offsets), g);
            let h = 1f32 / 512.;
            for i in 0..4 {
                let value = |by: f32| {
                    let mut moved = offsets;
                    moved[i] += by;
                    grid.decode(token, moved).iter().zip(g).map(|(x, g)| x * g).sum::<f64>()
                };
                let (up, down) = (value(h), value(-h));
                let slope = (up - down) / (f64::from(offsets[i] + h) - f64::from(offsets[i] - h));
                prop_assert!((slope - found[i]).abs() < 1e-4, "{i}: {slope}, got {}", found[i]);
            }
        }
    }

    #[test]
    fn zero_offsets_are_a_box_of_the_anchor_at_the_token() {
        let grid = Grid { side: 4, anchor: 0.5 };
        assert_eq!(grid.decode(6, [0.; 4])[..], [0.625, 0.375, 0.5, 0.5]);
        assert_eq!(grid.decode(6, [1., -1., f32::INFINITY, f32::NEG_INFINITY])[..2], [0.875, 0.125]);
        let sizes = &grid.decode(6, [0., 0., 100., -100.])[2..];
        assert!((sizes[0] - 0.5 * 3f64.exp()).abs() < 1e-12 && (sizes[1] - 0.5 * (-6f64).exp()).abs() < 1e-12);
    }

    #[test]
    fn the_anchor_is_the_root_of_the_medians_product() {
        let with = |sizes: &[(f32, f32)]| anchor_side(&sizes.iter().map(|s| [0.5, 0.5, s.0, s.1]).collect::<Vec<_>>());
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[(0.2, 0.8)]), Some(0.4));
        assert_eq!(with(&[(0.1, 1.), (0.3, 0.4), (0.1, 0.4), (0.9, 0.2)]), Some(0.282_842_73));
    }
}
