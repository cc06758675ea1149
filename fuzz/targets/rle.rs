//! Runs and polygons of COCO: the first bytes say the size of the image, and which of the three forms the others are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vpt::data::masks::Rle;

fuzz_target!(|data: &[u8]| {
    let [form, width, height, rest @ ..] = data else { return };
    let (width, height) = (usize::from(*width), usize::from(*height));
    let found = match form % 3 {
        0 => Rle::from_text(width, height, rest),
        1 => {
            let counts = rest.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
            Rle::from_counts(width, height, counts.collect())
        }
        _ => {
            let number = |eight: &[u8]| f64::from_le_bytes(eight.try_into().unwrap_or_default());
            Rle::from_polygon(width, height, &rest.chunks_exact(8).map(number).collect::<Vec<_>>())
        }
    };
    if let Ok(rle) = found {
        assert_eq!(rle.decode().iter().filter(|inside| **inside).count() as u64, rle.area());
    }
});
