//! `tokenizer.json`, then some texts with it; an input of two files is `vocab.json` and `merges.txt`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::backbone::tokenizer::{MERGES, TOKENIZER, Tokenizer, VOCAB};
use vpt_fuzz::{Scratch, files};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [first, merges] = files(data);
    let dir = if merges.is_empty() {
        SCRATCH.put(&format!("one/{TOKENIZER}"), first);
        SCRATCH.path("one")
    } else {
        SCRATCH.put(&format!("two/{VOCAB}"), first);
        SCRATCH.put(&format!("two/{MERGES}"), merges);
        SCRATCH.path("two")
    };
    let Ok(tokenizer) = Tokenizer::open(&dir) else { return };
    for text in ["", "a photo of a dog.", "it's \u{fc}ber 42 \u{1f600}"] {
        for context in [0, 2, 77] {
            if let Ok(ids) = tokenizer.encode(text, context) {
                assert!(ids.len() <= context);
            }
        }
    }
});
