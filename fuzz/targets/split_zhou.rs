//! `split_zhou_*.json`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::{Dataset, check};
use vpt_fuzz::{PNG, Scratch};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new();
    for name in ["set/images/a.png", "set/images/b/c.png"] {
        scratch.put(name, PNG);
    }
    scratch
});

fuzz_target!(|data: &[u8]| {
    SCRATCH.put("set/split_zhou_Set.json", data);
    let _ = Dataset::open(SCRATCH.path("set"), 1).map(|data| data.summary());
    let _ = check::check(&SCRATCH.path("set"), true, &mut |_, _| {});
});
