//! Annotations of boxes, by how they begin: COCO (`{`), VOC (`<`), YOLO (the rest: `data.yaml` and a file of labels).
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::boxes::{BoxDataset, BoxLayout, convert};
use vpt::data::{MeasuredPart, Split, check};
use vpt_fuzz::{PNG, Scratch, files};

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
    if let Ok(data) = BoxDataset::open(&path, 1) {
        for image in data.train.iter().chain(&data.val).chain(&data.test) {
            for object in &image.objects {
                let rect = object.rect;
                let inside = rect.x >= 0. && rect.y >= 0. && rect.right() <= 8.001 && rect.bottom() <= 6.001;
                assert!(inside && object.category < data.categories.len() && object.area.is_finite(), "{object:?}");
            }
        }
        let _ = (data.summary(), data.fingerprint());
        let (crops, ..) = data.crops(0.);
        for sample in crops.train.iter().chain(&crops.val).chain(&crops.test) {
            let image = sample.load().expect("a box of a picture that is there");
            assert!(image.width > 0 && image.height > 0 && image.pixels.len() == image.width * image.height * 3);
        }
        let out = SCRATCH.path("converted");
        let _ = convert(&data, BoxLayout::Coco, &out);
        let _ = std::fs::remove_dir_all(out);
    }
    let _ = BoxDataset::open_to_measure(&path, 1, MeasuredPart { split: Split::Test, learned: None });
    let _ = check::check(&path, true, &mut |_, _| {});
});
