//! Parquet tables, of classes and of boxes, with every picture read; `data check` reads them its own way.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::boxes::BoxDataset;
use vpt::data::{Dataset, check};
use vpt_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let path = SCRATCH.put("set/train.parquet", data);
    let _ = Dataset::open(&path, 1).map(|data| data.summary());
    let _ = BoxDataset::open(&path, 1).map(|data| data.summary());
    let _ = check::check(&path, false, &mut |_, _| {});
});
