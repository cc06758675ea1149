//! Buffers that are reused from step to step, and the row stride that keeps their rows apart in the cache.

/// Floats between the starts of two rows of `cols` values: a multiple of 16 (one AVX-512 register, one cache line), and
/// never a multiple of 512, because rows 2 KiB (or a multiple) apart fall into the same few cache sets (measured: 15 % of
/// a matrix product at a stride of 12 KiB).
pub fn row_stride(cols: usize) -> usize {
    let stride = cols.next_multiple_of(16);
    if stride >= 512 && stride.is_multiple_of(512) { stride + 16 } else { stride }
}

/// A buffer that only ever grows, so that a step after the first allocates nothing.
pub trait Grow {
    /// The first `len` values, whatever they hold; the buffer grows (with zeros) if it is shorter.
    fn grow(&mut self, len: usize) -> &mut [f32];
    /// The first `len` values, set to zero.
    fn zeroed(&mut self, len: usize) -> &mut [f32] {
        let values = self.grow(len);
        values.fill(0.0);
        values
    }
}

impl Grow for Vec<f32> {
    fn grow(&mut self, len: usize) -> &mut [f32] {
        if self.len() < len {
            self.resize(len, 0.0);
        }
        &mut self[..len]
    }
}
