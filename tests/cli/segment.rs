//! `vpt` on masks.

use std::fs;

use serde_json::Value;

use crate::util::{Sandbox, files, fixture, json_file, keys, number, result_fields, run_files};

const METRICS: [&str; 3] = ["mIoU", "pixel_acc", "mean_acc"];

#[test]
fn a_run_on_masks_leaves_what_is_promised_and_its_task_writes_masks() {
    let sandbox = Sandbox::new();
    sandbox.masks("masks", 24);
    let clip = fixture("clip");
    let args =
        ["train", "--task", "segment", "--backbone", &clip, "--data", "masks", "--epochs", "2", "--image-size", "32"];
    let run = sandbox.vpt(&[&args[..], &["--keep-better", "false", "--out", "run", "--json"]].concat()).ok();
    assert_eq!(files(&sandbox.path("run")), run_files(&["confusion.svg"]));
    let results = run.json();
    assert_eq!(results, json_file(&sandbox.path("run/results.json")));
    assert_eq!(keys(&results), result_fields(&[("lr", &["head_only"])]));
    for scores in ["/val", "/test", "/head_only/val", "/head_only/test"] {
        let scores = results.pointer(scores).unwrap();
        assert_eq!(keys(scores), [&METRICS[..], &["per_class"]].concat());
        assert_eq!(scores["per_class"].as_array().unwrap().len(), 9);
        for metric in METRICS {
            assert!((0. ..=1.).contains(&number(scores, &format!("/{metric}"))), "{metric}");
        }
    }
    let lines = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    let epochs: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(epochs.iter().map(|e| e["stage"].as_str().unwrap()).collect::<Vec<_>>(), ["head", "prompts"]);
    for picture in ["curves.svg", "confusion.svg"] {
        assert!(fs::read_to_string(sandbox.path("run").join(picture)).unwrap().starts_with("<svg"), "{picture}");
    }

    let eval = sandbox.vpt(&["eval", "--model", "run", "--backbone", &clip, "--data", "masks", "--json"]).ok().json();
    assert_eq!(eval["metrics"], results["test"]);
    let info = sandbox.vpt(&["task", "info", "run", "--json"]).ok().json();
    assert_eq!((info["task"].as_str(), &info["segment"]["tiles"]), (Some("segment"), &1.into()));

    // Windows of 32 pixels show images of 48 in two.
    let eval = ["eval", "--model", "run", "--backbone", &clip, "--data", "masks", "--json", "--tiles"];
    let eval = |tiles: &str| sandbox.vpt(&[&eval[..], &[tiles]].concat()).ok();
    let auto = eval("auto");
    assert!(
        auto.stderr.contains("in windows, 2 along the shorter side, by the pixels of the images"),
        "{}",
        auto.stderr
    );
    assert_eq!(auto.json()["metrics"], eval("2").json()["metrics"]);

    // What is written is a folder of masks that is read again.
    let predict = ["predict", "--model", "run", "--backbone", &clip, "--save", "drawn", "--json", "masks/JPEGImages"];
    let predicted = sandbox.vpt(&predict).ok().json();
    let first = &predicted["predictions"][0];
    let shares: f64 = first["classes"].as_array().unwrap().iter().map(|class| class["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.).abs() < 1e-9);
    assert_eq!(first["mask"].as_str().unwrap(), "drawn/masks/000001.png");
    assert_eq!(files(&sandbox.path("drawn/masks")).len(), 24);
    fs::create_dir(sandbox.path("again")).unwrap();
    fs::rename(sandbox.path("drawn/masks"), sandbox.path("again/masks")).unwrap();
    fs::rename(sandbox.path("masks/JPEGImages"), sandbox.path("again/images")).unwrap();
    fs::copy(sandbox.path("masks/classes.txt"), sandbox.path("again/classes.txt")).unwrap();
    let eval = sandbox.vpt(&["eval", "--model", "run", "--backbone", &clip, "--data", "again", "--json"]).ok().json();
    assert_eq!(number(&eval, "/metrics/pixel_acc"), 1.);

    let wrong = ["predict", "--model", "run", "--backbone", &clip, "--min-score", "0.5", "again/images"];
    sandbox.vpt(&wrong).refuses(&["--min-score"]);
}

#[test]
fn a_task_of_pixels_leaves_as_a_file_that_answers_the_same() {
    let sandbox = Sandbox::new();
    sandbox.masks("masks", 24);
    let clip = fixture("clip");
    sandbox.segmented("deep", &[]);
    sandbox.segmented("tiles", &["--tiles", "auto"]);
    assert!(fs::read_to_string(sandbox.path("tiles/config.toml")).unwrap().contains("\ntiles = 2\n"));
    sandbox
        .vpt(&[
            "train",
            "--task",
            "segment",
            "--backbone",
            &clip,
            "--data",
            "masks",
            "--image-size",
            "32",
            "--out",
            "linear",
            "--epochs",
            "1",
            "--method",
            "linear",
            "--decode-head",
            "linear",
        ])
        .ok();
    let export = |name: &str, more: &[&str]| {
        let args = ["export", "--model", name, "--backbone", &clip, "--out", "task.onnx", "--json"];
        sandbox.vpt(&[&args[..], more].concat())
    };
    for (name, more, windows, limit) in [
        ("deep", &[][..], 3, 1e-4),
        ("deep", &["--opset", "23"], 3, 1e-4),
        ("deep", &["--precision", "f16"], 3, 2e-2),
        ("tiles", &[], 6, 1e-4),
        ("linear", &["--external-data"], 3, 1e-4),
    ] {
        let result = export(name, more).ok().json();
        let parity = &result["parity"];
        assert_eq!((parity["of"].as_str(), parity["images"].as_u64()), (Some("pixels"), Some(windows)), "{parity}");
        assert!(number(parity, "/max_difference") <= limit * number(parity, "/largest"), "{parity}");
        assert_eq!(number(parity, "/of_total"), (windows * 32 * 32) as f64);
        assert_eq!(result["outputs"], "[\"logits\",\"masks\"]".parse::<Value>().unwrap());
        if limit < 1e-3 {
            assert_eq!(parity["agree"], parity["of_total"], "{parity}");
        }
    }
    for (more, part) in [
        (&["--layout", "hf"][..], "--layout"),
        (&["--nms"], "--nms"),
        (&["--task-input"], "--task-input"),
        (&["--task-tensors", "t.npz"], "--task-tensors"),
    ] {
        export("deep", more).refuses(&[part]);
    }
}

#[test]
fn masks_are_looked_into_and_checked() {
    let sandbox = Sandbox::new();
    sandbox.masks("masks", 16);
    let info = sandbox.vpt(&["data", "info", "masks", "--json"]).ok().json();
    assert_eq!((info["layout"].as_str(), info["classes"][0]["name"].as_str()), (Some("voc-masks"), Some("background")));
    let text = sandbox.vpt(&["data", "info", "masks"]).ok().stdout;
    assert!(text.contains("Pascal VOC masks") && text.contains("star"), "{text}");
    let check = sandbox.vpt(&["data", "check", "masks", "--json"]);
    assert_eq!(number(&check.json(), "/errors"), 0.);

    sandbox.write("masks/SegmentationClass/000002.png", "no mask");
    let check = sandbox.vpt(&["data", "check", "masks"]);
    assert_eq!(check.code, Some(1));
    assert!(check.stdout.contains("000002.png: a mask that is no PNG file"), "{}", check.stdout);
    let train = ["train", "--task", "segment", "--data", "masks"];
    sandbox.vpt(&train).fails(&["000002.png", "no PNG"]);
    // Who does not ask for masks is told of them.
    sandbox.vpt(&["train", "--data", "masks"]).fails(&["--task segment"]);
    fs::remove_dir_all(sandbox.path("masks/ImageSets")).unwrap();
    fs::rename(sandbox.path("masks/JPEGImages"), sandbox.path("masks/images")).unwrap();
    fs::rename(sandbox.path("masks/SegmentationClass"), sandbox.path("masks/masks")).unwrap();
    sandbox.vpt(&["train", "--data", "masks"]).fails(&["--task segment"]);
    sandbox
        .vpt(&["train", "--data", "masks", "--tiles", "2"])
        .refuses(&["--tiles", "only for detection and segmentation"]);
    fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.vpt(&["train", "--task", "segment", "--data", "empty"]).fails(&["no data set of masks"]);
}
