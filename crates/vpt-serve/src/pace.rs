//! How much goes into one batch where nobody says.
//!
//! On a CPU a large batch of a large backbone is no faster an image than a small one, and whoever comes while it is computed waits for
//! all of it. A small backbone gains by batches, as what surrounds a pass is then most of it. So a batch is as large as is
//! computed in a tenth of a second, going by those before it.

use std::time::Duration;

/// What a batch is to take at the most.
const BATCH: Duration = Duration::from_millis(100);

/// Images times tasks of a batch at the most.
pub(crate) const MOST: usize = 32;

/// How long an image, times its tasks, took lately.
#[derive(Debug)]
pub(crate) struct Pace {
    threads: usize,
    /// Seconds of one, with the weight of the newest batch at a quarter; `None` before the first.
    each: Option<f64>,
}

impl Pace {
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1), each: None }
    }

    /// How many the next batch may have: the same number for every thread, one at least.
    pub(crate) fn most(&self) -> usize {
        let fits = self.each.map_or(0., |each| BATCH.as_secs_f64() / each);
        let of_thread = (fits as usize / self.threads).max(1);
        of_thread.saturating_mul(self.threads).min(MOST.max(self.threads))
    }

    /// Takes in what a batch of `count` took.
    pub(crate) fn learn(&mut self, count: usize, took: Duration) {
        // The clock of a small batch may not have moved.
        let each = took.as_secs_f64().max(1e-6) / count.max(1) as f64;
        self.each = Some(self.each.map_or(each, |before| before + (each - before) / 4.));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(threads: usize, batches: &[(usize, u64)]) -> usize {
        let mut pace = Pace::new(threads);
        for &(count, took) in batches {
            pace.learn(count, Duration::from_micros(took));
        }
        pace.most()
    }

    #[test]
    fn a_batch_takes_a_tenth_of_a_second_but_keeps_all_threads_busy() {
        assert_eq!(after(2, &[]), 2, "nothing is known before the first");
        assert_eq!(after(2, &[(1, 60_000)]), 2, "slow: one a thread, though that takes longer");
        assert_eq!(after(8, &[(1, 60_000)]), 8);
        assert_eq!(after(2, &[(4, 80_000)]), 4, "20 ms each: 5 would fit, 4 is the same for both threads");
        assert_eq!(after(2, &[(1, 500)]), MOST);
        assert_eq!(after(48, &[(1, 500)]), 48, "no thread without an image");
        assert_eq!(after(2, &[(1, 0)]), MOST, "a clock that did not move");
    }

    #[test]
    fn one_odd_batch_does_not_decide() {
        assert_eq!(after(2, &[(1, 10_000), (1, 10_000), (1, 30_000)]), 6, "15 ms each on average");
    }
}
