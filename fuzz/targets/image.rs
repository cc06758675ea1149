//! Images of all formats: the header alone, then all of it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::image::decode::{MAX_PIXELS, decode_bytes, size};
use vpt_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

/// Larger pictures are fine, and slow under a sanitizer.
const MOST: usize = 1 << 22;

fuzz_target!(|data: &[u8]| {
    let path = SCRATCH.put("image", data);
    let declared = size(&path);
    if let Ok([width, height]) = declared {
        assert!((1..=MAX_PIXELS).contains(&(width * height)));
        if width * height > MOST {
            return;
        }
    }
    if let Ok(image) = decode_bytes(data) {
        assert_eq!(image.pixels.len(), image.width * image.height * 3);
        assert_eq!(declared.expect("a size, where there are pixels"), [image.width, image.height]);
    }
});
