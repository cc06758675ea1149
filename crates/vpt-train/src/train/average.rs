//! The average of the learned values over the epochs, weighted by a Gaussian around a late one: what PromptSRC keeps.
//!
//! Khattak et al., "Self-regulating Prompts", ICCV 2023. After the last epoch the average is the published one; before, it is
//! that of the epochs so far, so that every epoch can be evaluated.

use vpt_base::params::Param;

/// Mean and deviation of the Gaussian as shares of the epochs: the published 30 of 50 for few shots.
const MEAN: f64 = 0.6;
const DEVIATION: f64 = 0.6;

/// An average over this many epochs.
#[derive(Debug, Clone, Copy)]
pub(super) struct EpochAverage {
    pub(super) epochs: usize,
}

impl EpochAverage {
    fn weight(self, epoch: usize) -> f64 {
        let epochs = self.epochs as f64;
        let z = (epoch as f64 - MEAN * epochs) / (DEVIATION * epochs);
        (-0.5 * z * z).exp()
    }

    /// The average after `epoch`, counted from 1, which ended with `values`, from that `before` it.
    pub(super) fn after(self, epoch: usize, before: Option<Vec<Param>>, values: &[Param]) -> Vec<Param> {
        let Some(mut average) = before else { return values.to_vec() };
        let so_far: f64 = (1..=epoch).map(|epoch| self.weight(epoch)).sum();
        let share = self.weight(epoch) / so_far;
        for (average, value) in average.iter_mut().zip(values) {
            for (a, &v) in average.values.iter_mut().zip(&value.values) {
                *a = (f64::from(*a) + share * (f64::from(v) - f64::from(*a))) as f32;
            }
        }
        average
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::params::Group;

    #[test]
    fn the_last_average_is_the_gaussian_sum() {
        let values = |epoch: usize| vec![Param::new("x", &[2], vec![epoch as f32, 1.], Group::Part(0)).unwrap()];
        let average = EpochAverage { epochs: 50 };
        let last = (1..=50).fold(None, |before, epoch| Some(average.after(epoch, before, &values(epoch)))).unwrap();
        // Mean 30, deviation 30, weights that add up to one.
        let weights: Vec<f64> = (1..=50).map(|e| (-0.5 * ((f64::from(e) - 30.) / 30.).powi(2)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let want: f64 = weights.iter().zip(1..).map(|(w, e)| w / sum * f64::from(e)).sum();
        assert!((f64::from(last[0].values[0]) - want).abs() < 1e-4, "{last:?} {want}");
        assert!((last[0].values[1] - 1.).abs() < 1e-6);
    }
}
