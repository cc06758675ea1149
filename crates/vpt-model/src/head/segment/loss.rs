//! Cross-entropy over the cells of a window, with logits upsampled to them.

use super::shape::SegmentShape;

/// Loss of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SegmentLoss {
    /// Sum of the cross-entropies of its cells that are of a class.
    pub sum: f64,
    /// How many of these are told rightly.
    pub right: u64,
    /// How many there are.
    pub cells: u64,
}

impl SegmentLoss {
    /// Adds that of other windows.
    pub fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.right += other.right;
        self.cells += other.cells;
    }
}

/// For each cell along a side the first logit beside its middle, and the weight of the one behind that.
pub(super) fn taps(side: usize, cells: usize) -> Vec<(usize, f32)> {
    let place = |cell: usize| {
        let at = (cell as f64 + 0.5) * side as f64 / cells as f64 - 0.5;
        let at = at.clamp(0., (side - 1) as f64);
        let first = (at as usize).min(side.saturating_sub(2));
        (first, if side == 1 { 0. } else { (at - first as f64) as f32 })
    };
    (0..cells).map(place).collect()
}

/// The loss of windows, as a share of all cells of a batch.
pub struct CellLoss {
    classes: usize,
    side: usize,
    cells: usize,
    taps: Vec<(usize, f32)>,
    /// One over the number of cells of a class in the batch.
    share: f64,
}

impl CellLoss {
    /// Of a head of this shape in a batch with so many cells of a class.
    pub fn new(shape: &SegmentShape, valid: u64) -> Self {
        let (side, cells) = (shape.side(), shape.cells());
        Self { classes: shape.classes, side, cells, taps: taps(side, cells), share: 1. / valid.max(1) as f64 }
    }

    /// Loss of `logits` `[M, M, K]` where cells are of the classes `labels` `[L, L]`, and its gradient divided by the number of cells
    /// of the batch. Classes that are none count for nothing.
    pub fn gradients(&self, logits: &[f32], labels: &[u16]) -> (SegmentLoss, Vec<f32>) {
        let Self { classes: k, side, cells, .. } = *self;
        if side == cells {
            let mut gradient = logits.to_vec();
            let loss = self.cross_entropy(&mut gradient, labels);
            return (loss, gradient);
        }
        let next = usize::from(side > 1);
        // Down first, then along the rows: `[L, M, K]`, `[L, L, K]`.
        let row = side * k;
        let mut tall = vec![0.; cells * row];
        for (to, &(first, weight)) in tall.chunks_exact_mut(row).zip(&self.taps) {
            let (a, b) = (&logits[first * row..][..row], &logits[(first + next) * row..][..row]);
            for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
                *to = a + weight * (b - a);
            }
        }
        let mut wide = vec![0.; cells * cells * k];
        for (to, from) in wide.chunks_exact_mut(cells * k).zip(tall.chunks_exact(row)) {
            for (to, &(first, weight)) in to.chunks_exact_mut(k).zip(&self.taps) {
                let (a, b) = (&from[first * k..][..k], &from[(first + next) * k..][..k]);
                for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
                    *to = a + weight * (b - a);
                }
            }
        }
        let loss = self.cross_entropy(&mut wide, labels);
        tall.fill(0.);
        for (from, to) in wide.chunks_exact(cells * k).zip(tall.chunks_exact_mut(row)) {
            for (from, &(first, weight)) in from.chunks_exact(k).zip(&self.taps) {
                for (i, value) in from.iter().enumerate() {
                    to[first * k + i] += (1. - weight) * value;
                    to[(first + next) * k + i] += weight * value;
                }
            }
        }
        let mut gradient = vec![0.; logits.len()];
        for (from, &(first, weight)) in tall.chunks_exact(row).zip(&self.taps) {
            for (i, value) in from.iter().enumerate() {
                gradient[first * row + i] += (1. - weight) * value;
                gradient[(first + next) * row + i] += weight * value;
            }
        }
        (loss, gradient)
    }

    /// Puts the gradient in the place of the logits `[L, L, K]`.
    fn cross_entropy(&self, logits: &mut [f32], labels: &[u16]) -> SegmentLoss {
        let mut loss = SegmentLoss::default();
        for (cell, &label) in logits.chunks_exact_mut(self.classes).zip(labels) {
            let label = usize::from(label);
            if label >= self.classes {
                cell.fill(0.);
                continue;
            }
            let most = cell.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let own = cell[label];
            let mut total = 0.;
            for value in cell.iter_mut() {
                *value = (*value - most).exp();
                total += *value;
            }
            loss.sum += f64::from(most) + f64::from(total).ln() - f64::from(own);
            loss.right += u64::from(own >= most);
            loss.cells += 1;
            let scale = self.share as f32 / total;
            for value in cell.iter_mut() {
                *value *= scale;
            }
            cell[label] -= self.share as f32;
        }
        loss
    }
}
