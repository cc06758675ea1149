//! `vpt train` on boxes.

use std::fs;

use serde_json::Value;

use crate::util::{Sandbox, files, fixture, json_file, keys, number, result_fields, run_files};

const METRICS: [&str; 12] = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];

#[test]
fn a_run_on_boxes_leaves_what_is_promised() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    let clip = fixture("clip");
    let args = ["train", "--backbone", &clip, "--data", "boxes", "--epochs", "2", "--image-size", "32", "--out", "run"];
    let run = sandbox.vpt(&[&args[..], &["--json"]].concat()).ok();
    assert_eq!(
        files(&sandbox.path("run")),
        run_files(&["confusion.svg", "f1_curve.svg", "pr_curve.svg", "test_detections.json", "val_detections.json"])
    );
    let results = run.json();
    assert_eq!(results, json_file(&sandbox.path("run/results.json")));
    assert_eq!(keys(&results), result_fields(&[("lr", &["head_only"])]));
    assert_eq!(keys(&results["head_only"]), ["best_epoch", "val", "test"]);
    for scores in ["/val", "/test", "/head_only/val", "/head_only/test"] {
        let scores = results.pointer(scores).unwrap();
        assert_eq!(keys(scores), METRICS);
        for metric in METRICS {
            let value = number(scores, &format!("/{metric}"));
            assert!(value == -1. || (0. ..=1.).contains(&value), "{metric} is {value}");
        }
    }
    assert_eq!(
        (&results["task"], &results["method"], &results["data"]),
        (&"detect".into(), &"vpt-deep".into(), &"boxes".into())
    );
    assert_eq!((number(&results, "/classes"), number(&results, "/train_images")), (8., 15.));
    // One epoch of two for the head alone.
    assert_eq!((number(&results, "/head_only/best_epoch"), number(&results, "/best_epoch")), (1., 2.));

    let lines = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    let epochs: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(epochs.iter().map(|e| e["stage"].as_str().unwrap()).collect::<Vec<_>>(), ["head", "prompts"]);
    assert_eq!(epochs[1]["val"], results["val"]);
    for file in ["val_detections.json", "test_detections.json"] {
        let found = json_file(&sandbox.path("run").join(file));
        for detection in found.as_array().unwrap() {
            assert_eq!(keys(detection), ["image_id", "category_id", "bbox", "score"]);
            let [x, y, w, h] = [0, 1, 2, 3].map(|i| number(detection, &format!("/bbox/{i}")));
            assert!(x >= 0. && y >= 0. && w >= 1. && h >= 1. && x + w <= 48.001 && y + h <= 48.001, "{detection}");
        }
    }
    assert!(fs::read(sandbox.path("run/val_predictions.jpg")).unwrap().starts_with(b"\xff\xd8"));
    for picture in ["curves.svg", "pr_curve.svg", "f1_curve.svg", "confusion.svg"] {
        assert!(fs::read_to_string(sandbox.path("run").join(picture)).unwrap().starts_with("<svg"), "{picture}");
    }
    let split = json_file(&sandbox.path("run/split.json"));
    assert_eq!(["train", "val", "test"].map(|part| split[part].as_array().unwrap().len()), [15, 3, 6]);

    // A finished run is shown again, and its configuration repeats it.
    let again = sandbox.vpt(&["train", "--resume", "run", "--json"]).ok();
    assert_eq!(again.stdout, run.stdout);
    sandbox.vpt(&["train", "--config", "run/config.toml", "--out", "second"]).ok();
    let best = |run: &str| fs::read(sandbox.path(run).join("best.safetensors")).unwrap();
    assert!(best("run") == best("second"));
}

#[test]
fn runs_on_boxes_are_numbered_in_a_folder_of_their_own() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 12);
    let clip = fixture("clip");
    let args = ["train", "--backbone", &clip, "--data", "boxes", "--epochs", "1", "--image-size", "32"];
    for method in ["linear", "vpt-shallow"] {
        let run = sandbox.vpt(&[&args[..], &["--method", method, "--quiet"]].concat()).ok();
        assert_eq!(run.stderr, "");
    }
    assert_eq!(files(&sandbox.path("runs/detect")), ["boxes-linear-1", "boxes-vpt-shallow-1"]);
    let results = json_file(&sandbox.path("runs/detect/boxes-linear-1/results.json"));
    assert!(results.get("head_only").is_none(), "the control of nothing: {results}");
}

#[test]
fn a_task_that_the_data_is_not_for_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 12);
    sandbox.colours("colours", 8);
    let clip = fixture("clip");
    let train = |data: &str, more: &[&str]| {
        sandbox.vpt(&[&["train", "--backbone", &clip, "--data", data, "--epochs", "2"], more].concat())
    };
    train("boxes", &["--task", "classify"]).fails(&["boxes", "COCO data set of boxes"]);
    train("colours", &["--task", "detect"]).refuses(&["--task: detect: colours", "COCO, YOLO, Pascal VOC"]);
    train("boxes", &["--task", "segment"]).fails(&["have boxes alone, neither polygons nor runs"]);
    for (flag, value) in
        [("--shots", "2"), ("--method", "vp-pad"), ("--head-epochs", "2"), ("--head", "cosine"), ("--mosaic", "2")]
    {
        train("boxes", &[flag, value]).refuses(&[flag]);
    }
    train("boxes", &["--image-size", "33"]).refuses(&["--image-size", "33"]);
    for flag in [&["--mosaic", "0.5"][..], &["--box-crop"], &["--fit", "letterbox"], &["--head-epochs", "1"]] {
        train("colours", flag).refuses(&[flag[0], "only for detection"]);
    }
    assert!(!sandbox.path("runs").exists(), "nothing was begun");
}

#[test]
fn an_open_vocabulary_looks_for_the_categories_of_other_data() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    let clip = fixture("clip");
    sandbox
        .vpt(&[
            "data",
            "make",
            "shapes",
            "--task",
            "detect",
            "--categories",
            "pairs",
            "--images",
            "12",
            "--out",
            "pairs",
        ])
        .ok();
    let train = |out: &str, more: &[&str]| {
        let args =
            ["train", "--backbone", &clip, "--data", "boxes", "--epochs", "1", "--method", "linear", "--out", out];
        sandbox.vpt(&[&args[..], &["--image-size", "32"], more].concat()).ok();
    };
    train("open", &["--open-vocabulary"]);
    let result = sandbox.vpt(&["eval", "--model", "open", "--data", "pairs", "--json"]).ok().json();
    assert_eq!(result["classes"], 64, "{result}");
    assert!(number(&result["metrics"], "/AP") >= 0., "{result}");
    // Those it was trained on are looked for as ever.
    assert_eq!(sandbox.vpt(&["eval", "--model", "open", "--data", "boxes", "--json"]).ok().json()["classes"], 8);

    train("closed", &[]);
    sandbox
        .vpt(&["eval", "--model", "closed", "--data", "pairs"])
        .fails(&["data set pairs", "none of the task's classes"]);
    sandbox
        .vpt(&["data", "make", "shapes", "--categories", "pairs", "--out", "classes"])
        .refuses(&["--categories", "--task detect"]);
}
