//! PyTorch checkpoints. An input that is no zip archive is the pickle of one that is whole.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::backbone::weights::pickle::{PICKLED, convert};
use vpt::backbone::weights::{SINGLE, Weights};
use vpt_fuzz::{Scratch, stored_zip};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let packed;
    let bytes = if data.starts_with(b"PK") {
        data
    } else {
        packed = stored_zip(&[("a/data.pkl", data), ("a/data/0", &[0; 64])]);
        &packed
    };
    let (from, to) = (SCRATCH.put(PICKLED, bytes), SCRATCH.path(SINGLE));
    if convert(&from, &to).is_ok() {
        // What it writes is what is read.
        Weights::open(&SCRATCH.path("")).expect("a checkpoint");
    }
});
