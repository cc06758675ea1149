//! CSV and TSV tables: one file is a table, two are `train.tsv` and `test.csv`. `data check` reads them its own way.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::{Dataset, check};
use vpt_fuzz::{Scratch, files};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [first, second] = files(data);
    let path = if second.is_empty() {
        SCRATCH.put("one/table.csv", first)
    } else {
        SCRATCH.put("two/train.tsv", first);
        SCRATCH.put("two/test.csv", second);
        SCRATCH.path("two")
    };
    let _ = Dataset::open(&path, 1).map(|data| data.summary());
    let _ = check::check(&path, true, &mut |_, _| {});
});
