//! Weights of classes in the loss, for data in which some classes have many more images than others.

use std::sync::Arc;

use vpt_base::choice::choice;

choice! {
    /// How much an image counts in the loss, by its class. Evaluation is never weighted.
    #[derive(Default)]
    pub enum ClassWeights for "class_weights" {
        /// Every image counts the same, and so a class by the number of its images.
        #[default]
        None = "none",
        /// Every class counts the same.
        Balanced = "balanced",
        /// Half way between the two: a class counts by the square root of the number of its images.
        InverseSqrt = "inverse-sqrt",
    }
}

impl ClassWeights {
    /// The weight of each class, from the number of its training images; `None` if there is no need of any.
    ///
    /// `balanced` is scikit-learn's: `n / (k n_c)` for `n` images of `k` classes, `n_c` of them of class c. `inverse-sqrt` is
    /// proportional to `1 / sqrt(n_c)`. Both are scaled so that the training images weigh one on average.
    pub fn of_classes(self, counts: &[usize]) -> Option<Arc<[f32]>> {
        let power = match self {
            Self::None => return None,
            Self::Balanced => -1.,
            Self::InverseSqrt => -0.5,
        };
        let raw: Vec<f64> = counts.iter().map(|&n| (n.max(1) as f64).powf(power)).collect();
        let total: f64 = raw.iter().zip(counts).map(|(weight, &n)| weight * n as f64).sum();
        let images: usize = counts.iter().sum();
        Some(raw.iter().map(|weight| (weight * images as f64 / total) as f32).collect())
    }

    /// Weight of a class's positives, where an image may have several classes and negatives weigh one: `PyTorch`'s `pos_weight`.
    ///
    /// `balanced` is `(n - n_c) / n_c` for `n` images, `n_c` of them with class c, and `inverse-sqrt` the square root of that. A
    /// class that all images have, or none, weighs one.
    pub fn of_positives(self, counts: &[usize], images: usize) -> Option<Arc<[f32]>> {
        let power = match self {
            Self::None => return None,
            Self::Balanced => 1.,
            Self::InverseSqrt => 0.5,
        };
        let weight = |&n: &usize| {
            if n == 0 || n >= images { 1. } else { ((images - n) as f64 / n as f64).powf(power) as f32 }
        };
        Some(counts.iter().map(weight).collect())
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use crate::loss::class_weights::*;

    #[test]
    fn weights_have_the_values_of_their_formulas() {
        assert_eq!(ClassWeights::None.of_classes(&[1, 2]), None);
        // sklearn.utils.class_weight.compute_class_weight("balanced", classes=[0, 1, 2], y=[0] * 8 + [1] * 3 + [2]).
        let weights = ClassWeights::Balanced.of_classes(&[8, 3, 1]).unwrap();
        assert_eq!(weights[..], [0.5, 1.333_333_4, 4.]);
        let weights = ClassWeights::InverseSqrt.of_classes(&[16, 4, 1]).unwrap();
        // 1/4, 1/2 and 1, scaled by 21 / (16/4 + 4/2 + 1).
        assert_eq!(weights[..], [0.75, 1.5, 3.]);
    }

    #[test]
    fn training_images_weigh_one_on_average() {
        let counts = [7, 100, 1, 13];
        for kind in [ClassWeights::Balanced, ClassWeights::InverseSqrt] {
            let weights = kind.of_classes(&counts).unwrap();
            let mean = weights.iter().zip(counts).map(|(w, n)| f64::from(*w) * n as f64).sum::<f64>() / 121.;
            assert!((mean - 1.).abs() < 1e-6, "{kind}: {mean}");
        }
        assert_eq!(ClassWeights::Balanced.of_classes(&[5, 5, 5]).unwrap()[..], [1.; 3]);
    }

    #[test]
    fn the_rare_weigh_more_where_images_have_several_classes() {
        assert_eq!(ClassWeights::None.of_positives(&[1], 9), None);
        let weights = ClassWeights::Balanced.of_positives(&[10, 50, 80, 0, 100], 100).unwrap();
        assert_eq!(weights[..], [9., 1., 0.25, 1., 1.]);
        let weights = ClassWeights::InverseSqrt.of_positives(&[10, 50, 80, 0, 100], 100).unwrap();
        assert_eq!(weights[..], [3., 1., 0.5, 1., 1.]);
    }
}
