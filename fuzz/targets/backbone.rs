//! `config.json` and `preprocessor_config.json`. An input of two files is both, of one the first.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::backbone::spec::Spec;
use vpt::image::{Preprocess, Rgb8};
use vpt_fuzz::{Scratch, files};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [config, processor] = files(data);
    if let Ok(spec) = Spec::from_json(config, Path::new("config.json")) {
        for size in [spec.image_size, 1, 224, usize::MAX] {
            let _ = spec.check_image_size(size);
        }
        let (towers, grid) = ([Some(&spec.vision), spec.text.as_ref().map(|text| &text.tower)], spec.grid());
        assert!(grid > 0 && towers.into_iter().flatten().all(|tower| tower.head_dim() > 0));
    }
    if processor.is_empty() {
        return;
    }
    SCRATCH.put("config.json", config);
    let path = SCRATCH.put("preprocessor_config.json", processor);
    let Ok(preprocess) = Preprocess::from_file(&path) else { return };
    let small = [Some(preprocess.clone()), preprocess.for_image_size(32).ok()];
    for preprocess in small.into_iter().flatten() {
        if preprocess.output_size().is_some_and(|(w, h)| w * h < 1 << 14) {
            let _ = preprocess.apply(&Rgb8::new(9, 7));
        }
    }
});
