//! Values of tensors and pictures by a formula that scripts of fixtures have too, so that no file has to hold them.

use vpt_image::Rgb8;

/// `count` values of tensor `number`, uniform in `-scale..scale`: a linear congruence of the place.
pub(crate) fn values(number: u64, count: usize, scale: f32) -> Vec<f32> {
    let value = |place: u64| {
        let mixed = (place + number * 1_000_003).wrapping_mul(2_654_435_761).wrapping_add(12345) % (1 << 32);
        let mixed = (mixed ^ (mixed >> 15)) % 65521;
        (mixed as f32 / 65521. - 0.5) * (2. * scale)
    };
    (0..count as u64).map(value).collect()
}

/// A picture of this width and height.
pub(crate) fn picture((width, height): (usize, usize)) -> Rgb8 {
    let pixel = |i: usize| {
        let (x, y) = (i % width, i / width);
        [x * 7 + y * 3, x * x + y, x + y * y * 2].map(|v| (v % 256) as u8)
    };
    Rgb8 { width, height, pixels: (0..width * height).flat_map(pixel).collect() }
}

/// Largest difference, beside 1e-4 of the largest value.
pub(crate) fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    let apart = got.iter().zip(expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart <= 1e-4 * largest.max(1.), "{what}: {apart} apart");
}
