//! Annotations that name the category of each object in place, by how they begin: Create ML (`[`), labelme (`{`), CVAT (`<`),
//! Darknet (`c`lasses = …, with a list and labels), lines of metadata (`m`, which is cut off), lines of boxes (`l`), else CSV.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vpt::data::{Dataset, check};
use vpt_fuzz::{PNG, Scratch, files, open_and_convert};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new();
    for set in ["createml", "labelme", "cvat", "darknet", "metadata", "lines", "csv"] {
        for name in ["a", "b", "c"] {
            scratch.put(&format!("{set}/{name}.png"), PNG);
        }
    }
    for name in ["b", "c"] {
        let text = r#"{"shapes": [{"label": "x", "points": [[1, 1], [4, 4]], "shape_type": "rectangle"}], "imagePath": ""}"#;
        scratch.put(&format!("labelme/{name}.json"), text.as_bytes());
    }
    scratch.put("darknet/obj.names", b"x\ny\n");
    scratch.put("lines/_classes.txt", b"x\ny\n");
    scratch
});

fuzz_target!(|data: &[u8]| {
    let [first, second] = files(data);
    let set = match first.first() {
        Some(b'[') => {
            SCRATCH.put("createml/_annotations.createml.json", first);
            "createml"
        }
        Some(b'{') => {
            SCRATCH.put("labelme/a.json", first);
            "labelme"
        }
        Some(b'<') => {
            SCRATCH.put("cvat/annotations.xml", first);
            "cvat"
        }
        Some(b'c') => {
            SCRATCH.put("darknet/obj.data", first);
            SCRATCH.put("darknet/train.txt", b"a.png\nb.png\nc.png\n");
            SCRATCH.put("darknet/a.txt", second);
            "darknet"
        }
        Some(b'm') => {
            SCRATCH.put("metadata/metadata.jsonl", &first[1..]);
            "metadata"
        }
        Some(b'l') => {
            SCRATCH.put("lines/_annotations.txt", &first[1..]);
            "lines"
        }
        _ => {
            SCRATCH.put("csv/_annotations.csv", first);
            "csv"
        }
    };
    let path = SCRATCH.path(set);
    open_and_convert(&SCRATCH, &path);
    let _ = Dataset::open(&path, 1);
    let _ = check::check(&path, true, &mut |_, _| {});
});
