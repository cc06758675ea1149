//! Overlapping windows that a large image is seen in.

/// Where windows of `side` pixels begin along `length` pixels.
pub(crate) fn window_starts(length: usize, side: usize) -> Vec<usize> {
    let rest = length.saturating_sub(side);
    let steps = (3 * rest).div_ceil(2 * side);
    (0..=steps).map(|i| (i * rest + steps / 2).checked_div(steps).unwrap_or(0)).collect()
}
