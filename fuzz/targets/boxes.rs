//! Annotations of boxes, by how they begin: COCO (`{`), VOC (`<`), YOLO (the rest: `data.yaml` and a file of labels).
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::boxes::BoxDataset;
use vpt::data::{MadeParts, MeasuredPart, Split, check};
use vpt_fuzz::{PNG, Scratch, files, open_and_convert};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new();
    for set in ["coco", "voc", "yolo/images"] {
        for name in ["a", "b", "c"] {
            scratch.put(&format!("{set}/{name}.png"), PNG);
        }
    }
    for name in ["b", "c"] {
        scratch.put(
            &format!("voc/{name}.xml"),
            b"<annotation><object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>",
        );
    }
    scratch
});

fuzz_target!(|data: &[u8]| {
    let [first, second] = files(data);
    let set = match first.first() {
        Some(b'{') => {
            SCRATCH.put("coco/annotations.json", first);
            "coco"
        }
        Some(b'<') => {
            SCRATCH.put("voc/a.xml", first);
            "voc"
        }
        _ => {
            SCRATCH.put("yolo/data.yaml", first);
            SCRATCH.put("yolo/labels/a.txt", second);
            "yolo"
        }
    };
    let path = SCRATCH.path(set);
    open_and_convert(&SCRATCH, &path);
    let _ = BoxDataset::open_with(&path, 1, MadeParts::Measured(MeasuredPart { split: Split::Test, learned: None }));
    let _ = check::check(&path, true, &mut |_, _| {});
});
