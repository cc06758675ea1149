//! Data sets of boxes: what is said of them, and conversion.

use std::fs;

use crate::util::{Sandbox, files, fixture, keys};

/// A drawn set of boxes in the COCO layout.
fn drawn(sandbox: &Sandbox) {
    let args = ["data", "make", "shapes", "--task", "detect", "--images", "16", "--out", "coco"];
    sandbox.vpt(&args).ok();
}

#[test]
fn info_counts_objects_and_lists_problems() {
    let sandbox = Sandbox::new();
    drawn(&sandbox);
    let json = sandbox.vpt(&["data", "info", "coco", "--json"]).ok().json();
    assert_eq!(
        keys(&json),
        [
            "name",
            "layout",
            "split_note",
            "images",
            "empty_images",
            "objects",
            "crowds",
            "categories",
            "width",
            "height",
            "sizes",
            "box_width",
            "box_height",
            "problem_counts",
            "problems",
            "unreadable",
            "fingerprint",
        ]
    );
    assert_eq!(json["images"], serde_json::json!({"train": 10, "val": 2, "test": 4}));
    assert_eq!((&json["layout"], json["categories"].as_array().unwrap().len()), (&"coco".into(), 8));
    assert_eq!(json["problems"], serde_json::json!([]));

    // A box past the border is mended and said, and no failure; a missing image is one.
    let path = sandbox.path("coco/annotations/instances_train.json");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find("\"bbox\":[").unwrap() + 8;
    let end = start + text[start..].find(']').unwrap();
    fs::write(&path, format!("{}60,10,20,8{}", &text[..start], &text[end..])).unwrap();
    let text = sandbox.vpt(&["data", "info", "coco"]).ok().stdout;
    for part in ["COCO", "outside image", "annotation 1: a box that reaches 16.0 pixels past the border; box clipped"] {
        assert!(text.contains(part), "{text}");
    }
    let gone = files(&sandbox.path("coco/train")).remove(0);
    fs::remove_file(sandbox.path("coco/train").join(&gone)).unwrap();
    let run = sandbox.vpt(&["data", "info", "coco"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), "error: coco: 1 missing or unreadable images\n"));
    assert!(run.stdout.contains(&format!("{gone} is not there; image dropped")), "{run:#?}");
}

#[test]
fn conversion_goes_round() {
    let sandbox = Sandbox::new();
    drawn(&sandbox);
    let convert = |from: &str, to: &str, out: &str| {
        sandbox.vpt(&["data", "convert", from, "--to", to, "--out", out, "--json"]).ok().json()
    };
    let json = convert("coco", "yolo", "yolo");
    assert_eq!(
        keys(&json),
        ["data", "from", "to", "out", "split_note", "images", "objects", "categories", "lost", "problems"]
    );
    assert_eq!((&json["from"], &json["to"], &json["problems"]), (&"coco".into(), &"yolo".into(), &0.into()));
    assert_eq!(json["images"], serde_json::json!({"train": 10, "val": 2, "test": 4}));
    convert("yolo", "voc", "voc");
    convert("voc", "coco", "again");
    assert_eq!(files(&sandbox.path("yolo")), ["data.yaml", "images", "labels"]);
    assert_eq!(files(&sandbox.path("voc")), ["Annotations", "ImageSets", "JPEGImages", "classes.txt"]);
    let objects = |name: &str| {
        let json = sandbox.vpt(&["data", "info", name, "--json"]).ok().json();
        (json["categories"].clone(), json["box_width"].clone(), json["unreadable"].clone())
    };
    assert_eq!(objects("again"), objects("coco"));
    let text = sandbox.vpt(&["data", "convert", "coco", "--to", "yolo", "--out", "second"]).ok().stdout;
    assert!(text.contains("YOLO from COCO") && text.contains("not held by it"), "{text}");
    sandbox.vpt(&["data", "convert", "coco", "--to", "voc", "--out", "yolo"]).fails(&["yolo", "not empty"]);
}

#[test]
fn what_is_no_data_set_of_boxes_is_named() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let convert = |from: &str| sandbox.vpt(&["data", "convert", from, "--to", "voc", "--out", "new"]);
    convert("colours").fails(&["colours: no data set of boxes", "COCO", "YOLO", "Pascal VOC"]);
    convert("nowhere").fails(&["nowhere: "]);
    sandbox.write("coco/annotations/instances_train.json", "{\"images\": [\n  {\"id\": }\n");
    convert("coco").fails(&["instances_train.json: ", "line 2 column 10"]);
    sandbox.vpt(&["data", "info", "coco"]).fails(&["instances_train.json: ", "line 2 column 10"]);
    assert!(!sandbox.path("new").exists());

    let sandbox = Sandbox::new();
    drawn(&sandbox);
    let clip = fixture("clip");
    sandbox
        .vpt(&["zero-shot", "--backbone", &clip, "--data", "coco"])
        .fails(&["coco: a COCO data set of boxes", "vpt data info"]);
}
