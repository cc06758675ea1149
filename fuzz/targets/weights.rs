//! Headers of `model.safetensors`, and the index of a sharded checkpoint.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::backbone::weights::{INDEX, SINGLE, Weights};
use vpt_fuzz::{Scratch, files};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [first, index] = files(data);
    let dir = if index.is_empty() {
        SCRATCH.put(&format!("single/{SINGLE}"), first);
        SCRATCH.path("single")
    } else {
        SCRATCH.put("sharded/a.safetensors", first);
        SCRATCH.put(&format!("sharded/{INDEX}"), index);
        SCRATCH.path("sharded")
    };
    let Ok(weights) = Weights::open(&dir) else { return };
    let _ = (weights.parameters(), weights.dtypes(), weights.hash());
    for name in ["a", "b", "vision_model.embeddings.class_embedding"] {
        if let Some(shape) = weights.shape(name).map(<[usize]>::to_vec) {
            let _ = weights.get(name, &shape);
        }
    }
});
