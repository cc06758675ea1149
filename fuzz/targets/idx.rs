//! IDX files: an input is images and labels, taken as they are and as compressed ones.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::{Dataset, check};
use vpt_fuzz::{Scratch, files};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [images, labels] = files(data);
    let dir = if images.starts_with(&[0x1f, 0x8b]) {
        SCRATCH.put("packed/train-images-idx3-ubyte.gz", images);
        SCRATCH.put("packed/train-labels-idx1-ubyte.gz", labels);
        SCRATCH.path("packed")
    } else {
        SCRATCH.put("plain/train-images-idx3-ubyte", images);
        SCRATCH.put("plain/train-labels-idx1-ubyte", labels);
        SCRATCH.path("plain")
    };
    if let Ok(data) = Dataset::open(&dir, 1) {
        let _ = (data.summary(), data.train.first().map(|sample| sample.load()));
    }
    let _ = check::check(&dir, true, &mut |_, _| {});
});
