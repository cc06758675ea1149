//! The learning rate of each step: linear warm-up, then half a cosine.

use std::f64::consts::PI;

/// Warm-up and cosine over a known number of steps. Both move every step, and the first step already learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Steps in the whole run.
    pub total: u64,
    /// Steps of warm-up.
    pub warmup: u64,
}

impl Schedule {
    /// Factor on the learning rate in `step`, counted from 0: rises from 1/(warmup+1) to 1 over the warm-up, then falls
    /// along a cosine and reaches 0 one step after the last.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let falling = self.total.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / falling as f64).min(1.);
        0.5 * (1. + (PI * done).cos())
    }
}

/// A cosine that moves once an epoch, behind a first epoch of its own: how the public codes of CoOp and CLAP train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochSchedule {
    /// Epochs in the whole run, E.
    pub epochs: u64,
    /// Steps in an epoch.
    pub per_epoch: u64,
    /// Factor on the learning rate in the first epoch.
    pub first: f64,
}

impl EpochSchedule {
    /// Factor on the learning rate in `step`, counted from 0: `first` in the first epoch, `(1 + cos(π (e - 2) / E)) / 2` in
    /// epoch e from 2 on.
    pub fn factor(&self, step: u64) -> f64 {
        match (step / self.per_epoch.max(1)).checked_sub(1) {
            None => self.first,
            Some(done) => 0.5 * (1. + (PI * (done as f64 / self.epochs as f64).min(1.)).cos()),
        }
    }
}

/// How the learning rate goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LearningRateSchedule {
    /// It moves every step.
    Steps(Schedule),
    /// It moves every epoch.
    Epochs(EpochSchedule),
}

impl LearningRateSchedule {
    /// Factor on the learning rate in `step`, counted from 0.
    pub fn factor(&self, step: u64) -> f64 {
        match self {
            Self::Steps(schedule) => schedule.factor(step),
            Self::Epochs(schedule) => schedule.factor(step),
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use crate::optim::schedule::*;

    #[test]
    fn a_cosine_by_epochs_is_pytorch_s_behind_its_first_epoch() {
        let course = LearningRateSchedule::Epochs(EpochSchedule { epochs: 4, per_epoch: 3, first: 1e-4 });
        let factors: Vec<f64> = (0..12).map(|step| course.factor(step)).collect();
        assert_eq!(factors[..4], [1e-4, 1e-4, 1e-4, 1.]);
        // CosineAnnealingLR(T_max=4) after 0, 1 and 2 of its steps.
        let of_epochs = [1., 0.853_553_390_593_273_8, 0.5];
        assert!(factors[3..].iter().enumerate().all(|(i, f)| (f - of_epochs[i / 3]).abs() < 1e-12), "{factors:?}");
    }

    #[test]
    fn every_step_learns_and_the_peak_is_where_the_warmup_ends() {
        for (total, warmup) in [(1, 0), (1, 1), (10, 0), (100, 10), (7, 6), (5, 9)] {
            let schedule = Schedule { total, warmup };
            let factors: Vec<f64> = (0..total).map(|step| schedule.factor(step)).collect();
            assert!(factors.iter().all(|f| (0. ..=1.).contains(f) && *f > 0.), "{total} {warmup}: {factors:?}");
        }
        let schedule = Schedule { total: 100, warmup: 10 };
        assert_eq!(schedule.factor(0), 1. / 11.);
        assert_eq!(schedule.factor(10), 1.);
        assert!((schedule.factor(55) - 0.5).abs() < 1e-12);
        assert!((1..10).all(|s| schedule.factor(s) > schedule.factor(s - 1)));
        assert!((11..100).all(|s| schedule.factor(s) < schedule.factor(s - 1)));
        assert!(schedule.factor(100) < 1e-12);
    }
}
