//! Tar archives of pictures and classes, with every picture read.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::{Dataset, check};
use vpt_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let path = SCRATCH.put("set/train.tar", data);
    let _ = Dataset::open(&path, 1).map(|data| data.summary());
    let _ = check::check(&path, false, &mut |_, _| {});
});
