//! Task files, also put on a backbone. An input that is JSON is the header of one that is as long as it says, of zeros.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vpt::backbone::{Backbone, OpenOptions};
use vpt::model::{AnyTask, DetectTask, TaskModel};
use vpt::model::task_file::TaskFile;
use vpt_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);
static BACKBONE: LazyLock<Arc<Backbone>> =
    LazyLock::new(|| Arc::new(Backbone::open("clip-nano", &OpenOptions::default()).expect("the bundled backbone")));
/// One with the classifier that it was published with, for label maps.
static CLASSIFIER: LazyLock<Arc<Backbone>> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/label-map/vit");
    Arc::new(Backbone::open(folder, &OpenOptions::default()).expect("the fixture"))
});

/// Bytes of the tensors of a header, where they are not too many.
fn tensors(header: &[u8]) -> usize {
    let header: serde_json::Value = serde_json::from_slice(header).unwrap_or_default();
    let ends = header.as_object().into_iter().flatten().filter_map(|(_, entry)| entry["data_offsets"][1].as_u64());
    ends.max().map_or(0, |end| end.min(4 << 20) as usize)
}

fuzz_target!(|data: &[u8]| {
    let path = if data.starts_with(b"{") {
        let length = (data.len() as u64).to_le_bytes();
        SCRATCH.put("task.safetensors", &[&length[..], data, &vec![0; tensors(data)]].concat())
    } else {
        SCRATCH.put("task.safetensors", data)
    };
    let Ok(mut task) = TaskFile::open(&path) else { return };
    let _ = (task.to_bytes(), task.meta.names_in_texts());
    let backbone = if task.meta.label_map.is_some() { &CLASSIFIER } else { &BACKBONE };
    // Nobody guesses a hash.
    task.meta.backbone.hash = backbone.hash().expect("its hash").to_owned();
    let _ = if task.meta.detect.is_some() {
        DetectTask::with_backbone(task, Arc::clone(backbone), 1).map(AnyTask::Detect)
    } else {
        TaskModel::with_backbone(task, Arc::clone(backbone), 1).map(AnyTask::Classify)
    };
});
