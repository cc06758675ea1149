//! How much goes into one batch where nobody says.
//!
//! On a CPU a large batch of a large backbone is no faster an image than a small one, and whoever comes while it is computed waits for
//! all of it. A small backbone gains by batches, as what surrounds a pass is then most of it. So a batch is as large as its
//! threads compute in a tenth of a second, going by those before it.

use std::time::Duration;

/// What a batch is to take at the most.
const BATCH: Duration = Duration::from_millis(100);

/// Images times tasks of a batch at the most.
pub(crate) const MOST: usize = 32;

/// How long an image, times its tasks, takes one thread lately.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Seconds of one, with the weight of the newest batch at a quarter; `None` before the first.
    each: Option<f64>,
}

impl Pace {
    /// How many the next batch may have on so many threads: the same number for every thread, one at least.
    pub(crate) fn most(&self, threads: usize) -> usize {
        let fits = self.each.map_or(0., |each| BATCH.as_secs_f64() / each);
        (fits as usize).max(1).saturating_mul(threads).min(MOST.max(threads))
    }

    /// Takes in what a batch of `count` took on so many threads.
    pub(crate) fn learn(&mut self, count: usize, took: Duration, threads: usize) {
        // The clock of a small batch may not have moved.
        let each = took.as_secs_f64().max(1e-6) * threads as f64 / count.max(1) as f64;
        self.each = Some(self.each.map_or(each, |before| before + (each - before) / 4.));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is right for `threads` after batches `(count, microseconds)` of one thread each.
    fn after(threads: usize, batches: &[(usize, u64)]) -> usize {
        let mut pace = Pace::default();
        for &(count, took) in batches {
            pace.learn(count, Duration::from_micros(took), 1);
        }
        pace.most(threads)
    }

    #[test]
    fn a_batch_takes_a_tenth_of_a_second_but_keeps_all_threads_busy() {
        assert_eq!(after(2, &[]), 2, "nothing is known before the first");
        assert_eq!(after(1, &[(1, 120_000)]), 1, "slow: one, though that takes longer");
        assert_eq!(after(8, &[(1, 120_000)]), 8);
        assert_eq!(after(1, &[(4, 160_000)]), 2, "40 ms each: two fit");
        assert_eq!(after(2, &[(4, 160_000)]), 4);
        assert_eq!(after(2, &[(1, 1000)]), MOST);
        assert_eq!(after(48, &[(1, 1000)]), 48, "no thread without an image");
        assert_eq!(after(2, &[(1, 0)]), MOST, "a clock that did not move");
    }

    #[test]
    fn several_threads_count_several_times() {
        let mut pace = Pace::default();
        pace.learn(2, Duration::from_millis(40), 2);
        assert_eq!(pace.most(1), 2, "40 ms of one thread each");
    }

    #[test]
    fn one_odd_batch_does_not_decide() {
        assert_eq!(after(2, &[(1, 20_000), (1, 20_000), (1, 60_000)]), 6, "30 ms each on average");
    }
}
