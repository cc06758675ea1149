//! Work dealt out to threads in fixed shares, so that what each thread does, and the order of what comes back, depend on the
//! number of threads and on nothing else.

use std::ops::Range;

/// Calls `work` on `0..count` cut into one consecutive share a thread, and returns the results in the order of the shares.
/// There are no more threads than things to do; with one, the caller's own does it. A panic of `work` goes on here.
pub fn shares<T: Send>(count: usize, threads: usize, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    with_shares(cut(count, threads), work)
}

/// The shares of [`shares`].
pub fn cut(count: usize, threads: usize) -> impl Iterator<Item = Range<usize>> {
    let threads = threads.clamp(1, count.max(1));
    (0..threads).map(move |thread| thread * count / threads..(thread + 1) * count / threads)
}

/// Calls `work` on each of `shares`, the first on the caller's thread and every other on one of its own; returns the results
/// in their order.
pub fn with_shares<S: Send, T: Send>(shares: impl IntoIterator<Item = S>, work: impl Fn(S) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let mut shares = shares.into_iter();
        let first = shares.next();
        let others: Vec<_> = shares.map(|share| scope.spawn(move || work(share))).collect();
        let first = first.map(work);
        let others = others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        first.into_iter().chain(others).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_back_in_order_and_leave_nothing_out() {
        for (count, threads) in [(0, 3), (1, 4), (7, 3), (8, 2), (5, 0)] {
            let parts = shares(count, threads, |range| range);
            assert!(parts.len() <= threads.max(1));
            let all: Vec<_> = parts.iter().flat_map(Clone::clone).collect();
            assert_eq!(all, (0..count).collect::<Vec<_>>(), "{count} by {threads}");
            let longest = parts.iter().map(ExactSizeIterator::len).max();
            assert!(longest <= parts.iter().map(|part| part.len() + 1).min(), "{parts:?}");
        }
    }
}
