//! `config.toml`, filled in for some backbone and data.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::config::{RunContext, RunConfig, Task};
use vpt_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let path = SCRATCH.put("config.toml", data);
    let Ok(config) = RunConfig::load(&path) else { return };
    let tasks = [Task::Classify, Task::Multilabel, Task::Detect, Task::Segment];
    let drawn = [(None, None), (Some(12), Some(4))];
    for (task, (text_depth, shots)) in tasks.into_iter().flat_map(|task| drawn.map(|drawn| (task, drawn))) {
        let facts = RunContext { task, depth: 12, text_depth, image_size: 224, train_images: 1000, shots };
        if let Ok(plan) = config.resolve(&facts) {
            // What a run keeps can be read again.
            let kept = SCRATCH.put("kept.toml", plan.config.to_toml().expect("a configuration").as_bytes());
            assert_eq!(RunConfig::load(&kept).expect("the same configuration"), plan.config);
            let _ = (plan.rates(0.1), plan.detection_rates(0.1), plan.steps_per_epoch());
        }
    }
});
