//! Gradients of the head's tensors, summed over images.

use super::shape::DetectShape;

/// A flat sum of weight gradients. Each thread has its own; [`HeadGrads::add`] joins them in an order of the caller's
/// choosing, and [`super::BoundDetectHead::gradients`] makes them those of the head's tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadGrads {
    /// In the order of [`DetectShape::tensors`], but for the neck: its weight's place holds the gradient of the weight with
    /// the norms' scale folded in, `[levels, C, D]`, from which all others of the neck follow.
    pub(super) values: Vec<f32>,
}

impl HeadGrads {
    /// Zeros for a head of `shape`.
    pub fn new(shape: &DetectShape) -> Self {
        Self { values: vec![0.; shape.places().len()] }
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        self.values.fill(0.);
    }

    /// Adds those of other images.
    ///
    /// # Panics
    /// If they are of a head with another shape.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.values.len(), other.values.len(), "gradients of two heads");
        for (sum, value) in self.values.iter_mut().zip(&other.values) {
            *sum += value;
        }
    }
}
