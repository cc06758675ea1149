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
    let run = sandbox.vpt(&[&args[..], &["--keep-better", "false", "--json"]].concat()).ok();
    assert_eq!(
        files(&sandbox.path("run")),
        run_files(&["confusion.svg", "f1_curve.svg", "pr_curve.svg", "test_detections.json", "val_detections.json"])
    );
    let results = run.json();
    assert_eq!(results, json_file(&sandbox.path("run/results.json")));
    assert_eq!(keys(&results), result_fields(&[("lr", &["head_only"])]));
    assert_eq!(keys(&results["head_only"]), ["best_epoch", "val", "test", "moved", "better", "kept", "learned"]);
    assert_eq!(results["head_only"]["kept"], false);
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
        [("--shots", "0"), ("--method", "vp-pad"), ("--head-epochs", "2"), ("--head", "cosine"), ("--mosaic", "2")]
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

#[test]
fn which_boxes_are_kept_can_be_said() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    let clip = fixture("clip");
    let train =
        ["train", "--backbone", &clip, "--data", "boxes", "--epochs", "1", "--image-size", "32", "--out", "run"];
    sandbox.vpt(&train).ok();
    let count = |more: &[&str]| {
        let args = ["predict", "--model", "run", "--backbone", &clip, "--min-score", "0", "--json", "boxes/val"];
        let result = sandbox.vpt(&[&args[..], more].concat()).ok().json();
        let counts =
            result["predictions"].as_array().unwrap().iter().map(|image| image["boxes"].as_array().unwrap().len());
        counts.max().unwrap()
    };
    let [all, class, none] =
        ["all", "class", "none"].map(|nms| count(&["--nms", nms, "--nms-iou", "0.05", "--max-detections", "1000"]));
    assert!(0 < all && all < class && class < none, "{all} {class} {none}");
    assert_eq!(count(&["--nms-iou", "1", "--max-detections", "1000"]), none);
    assert_eq!(count(&["--max-detections", "3"]), 3);
    let eval = |more: &[&str]| {
        let args = ["eval", "--model", "run", "--backbone", &clip, "--data", "boxes", "--json"];
        sandbox.vpt(&[&args[..], more].concat()).ok().json()["metrics"].clone()
    };
    let usual = eval(&[]);
    assert_eq!(eval(&["--nms", "class", "--nms-iou", "0.6", "--max-detections", "100"]), usual);
    assert_ne!(eval(&["--max-detections", "1"]), usual);
    let predict =
        |more: &[&str]| sandbox.vpt(&[&["predict", "--model", "run", "--backbone", &clip, "boxes/val"], more].concat());
    predict(&["--nms-iou", "1.5"]).refuses(&["--nms-iou", "between 0 and 1"]);
    predict(&["--max-detections", "0"]).refuses(&["--max-detections", "between 1 and 1000"]);
    predict(&["--nms", "agnostic"]).refuses(&["--nms", "class, all, none"]);
    sandbox.trained("classes", &["--epochs", "1", "--method", "linear"]);
    let args = ["--model", "classes", "--max-detections", "5"];
    sandbox.vpt(&[&["predict", "colours/blue/000.png"], &args[..]].concat()).refuses(&["--max-detections", "no boxes"]);
    sandbox.vpt(&[&["eval", "--data", "colours"], &args[..]].concat()).refuses(&["--max-detections", "no boxes"]);
}

#[test]
fn a_detector_of_an_open_vocabulary_looks_for_what_it_is_shown() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    let clip = fixture("clip");
    let train = |out: &str, more: &[&str]| {
        let args =
            ["train", "--backbone", &clip, "--data", "boxes", "--epochs", "1", "--method", "linear", "--out", out];
        sandbox.vpt(&[&args[..], &["--image-size", "32"], more].concat()).ok();
    };
    train("open", &["--open-vocabulary"]);
    train("closed", &[]);
    let predict = |model: &str, more: &[&str]| {
        sandbox.vpt(&[&["predict", "--model", model, "--backbone", &clip, "--min-score", "0"], more].concat())
    };
    let json = r#"[{"image": "boxes/train/000002.png", "bbox": [2, 2, 20, 20], "label": "thing"},
                   {"image": "boxes/train/000003.png", "bbox": [20, 20, 20, 20], "label": "other"}]"#;
    sandbox.write("shown.json", json);
    let args =
        ["--exemplars", "shown.json", "--exemplars", "boxes/train/000004.png:5,5,12,12=thing", "--json", "boxes/val"];
    let shown = predict("open", &[&args[..], &["--save-task", "shown.safetensors"]].concat()).ok().json();
    let labels: std::collections::BTreeSet<&str> = shown["predictions"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|image| image["boxes"].as_array().unwrap())
        .map(|found| found["label"].as_str().unwrap())
        .collect();
    assert_eq!(labels, ["other", "thing"].into());
    // The file finds the same by itself.
    let kept = predict("shown.safetensors", &["--json", "boxes/val"]).ok().json();
    assert_eq!(kept["predictions"], shown["predictions"]);
    let info = sandbox.vpt(&["task", "info", "shown.safetensors", "--json"]).ok().json();
    assert_eq!(info["classes"], serde_json::json!(["thing", "other"]));
    // What is told takes the place of what was shown.
    let told = predict("shown.safetensors", &["--classes", "circle", "--json", "boxes/val"]).ok().json();
    assert_eq!(
        told["predictions"],
        predict("open", &["--classes", "circle", "--json", "boxes/val"]).ok().json()["predictions"]
    );

    let one = ["--exemplars", "boxes/train/000002.png:2,2,20,20=thing", "boxes/val"];
    predict("closed", &one).refuses(&["--exemplars", "rows of a layer", "--open-vocabulary"]);
    predict("open", &["--exemplars", "thing", "boxes/val"])
        .refuses(&["--exemplars: thing", "IMAGE:left,top,width,height=name"]);
    predict("open", &["--exemplars", "gone.png:1,1,5,5=x", "boxes/val"]).fails(&["gone.png"]);
    predict("open", &["--exemplars", "boxes/train/000002.png:99,2,5,5=x", "boxes/val"])
        .refuses(&["no box in 48x48 pixels"]);
    predict("open", &["--save-task", "x", "boxes/val"]).refuses(&["--exemplars"]);
    predict("open", &[&["--classes", "x"], &one[..]].concat()).refuses(&["--classes"]);
}

#[test]
fn tiles_see_small_things_and_keep_the_metric_of_whole_images() {
    let sandbox = Sandbox::new();
    let make =
        ["data", "make", "shapes", "--task", "detect", "--size", "96", "--object-size", "6", "10", "--objects", "8"];
    sandbox.vpt(&[&make[..], &["--images", "16", "--out", "small"]].concat()).ok();
    let clip = fixture("clip");
    let train =
        ["train", "--backbone", &clip, "--data", "small", "--epochs", "1", "--image-size", "32", "--out", "run"];
    sandbox.vpt(&train).ok();
    let eval = |more: &[&str]| {
        let args = ["eval", "--model", "run", "--backbone", &clip, "--data", "small", "--json"];
        sandbox.vpt(&[&args[..], more].concat()).ok().json()
    };
    let (plain, tiled) = (eval(&[]), eval(&["--tiles", "3", "--detections", "found.json"]));
    assert_eq!((&plain["images"], &plain["metrics"]), (&tiled["images"], &eval(&["--tiles", "1"])["metrics"]));
    let found = json_file(&sandbox.path("found.json"));
    for detection in found.as_array().unwrap() {
        let [x, y, w, h] = [0, 1, 2, 3].map(|i| number(detection, &format!("/bbox/{i}")));
        assert!(x >= 0. && y >= 0. && w >= 1. && h >= 1. && x + w <= 96.001 && y + h <= 96.001, "{detection}");
    }
    let predict = |more: &[&str]| {
        sandbox
            .vpt(&[&["predict", "--model", "run", "--backbone", &clip, "--min-score", "0", "small/val"], more].concat())
    };
    let counts = |more: &[&str]| {
        let result = predict(&[more, &["--json"]].concat()).ok().json();
        let boxes =
            result["predictions"].as_array().unwrap().iter().map(|image| image["boxes"].as_array().unwrap().len());
        boxes.collect::<Vec<_>>()
    };
    assert_eq!(counts(&["--tiles", "3", "--max-detections", "7"]), [7, 7]);
    // Trained on tiles, it looks at tiles, and says so.
    let run = sandbox.vpt(&[&train[..train.len() - 1], &["tiled", "--tiles", "3", "--batch-size", "16"]].concat()).ok();
    assert!(run.stderr.contains(" views of 10 training images: each whole, and tiles, 3 along"), "{}", run.stderr);
    let tiled = |more: &[&str]| {
        let args = ["eval", "--model", "tiled", "--backbone", &clip, "--data", "small", "--json"];
        sandbox.vpt(&[&args[..], more].concat()).ok()
    };
    let as_trained = tiled(&[]);
    assert!(as_trained.stderr.contains("tiles, 3 along the shorter side, as in training"), "{}", as_trained.stderr);
    assert_eq!(as_trained.json()["metrics"], json_file(&sandbox.path("tiled/results.json"))["test"]);
    assert_eq!(as_trained.json()["metrics"], tiled(&["--tiles", "3"]).json()["metrics"]);
    assert!(!tiled(&["--tiles", "1"]).stderr.contains("tiles"));
    let info = sandbox.vpt(&["task", "info", "tiled"]).ok();
    assert!(info.stdout.contains("whole and in tiles, 3 along the shorter side"), "{}", info.stdout);
    sandbox.vpt(&["train", "--data", "small", "--tiles", "65"]).refuses(&["--tiles", "65 is not between 1 and 64"]);
    for bad in ["0", "65"] {
        predict(&["--tiles", bad]).refuses(&["--tiles", "between 1 and 64"]);
    }
    predict(&["--tiles", "many"]).refuses(&["--tiles", "neither a number nor auto"]);
    predict(&["--tiles", "-2"]).refuses(&["--tiles", "neither a number nor auto"]);
    let make = |more: &[&str]| sandbox.vpt(&[&["data", "make", "shapes", "--out", "new"], more].concat());
    make(&["--object-size", "8", "16"]).refuses(&["--object-size", "--task detect"]);
    make(&["--task", "detect", "--object-size", "16", "8"]).refuses(&["--object-size", "16 to 8"]);
    make(&["--task", "detect", "--objects", "0"]).refuses(&["--objects", "between 1 and 100"]);
}

#[test]
fn how_many_tiles_can_be_left_to_the_images() {
    let sandbox = Sandbox::new();
    let make = ["data", "make", "shapes", "--task", "detect", "--size", "128", "--objects", "4", "--images", "16"];
    sandbox.vpt(&[&make[..], &["--object-size", "32", "36", "--out", "small"]].concat()).ok();
    let clip = fixture("clip");
    let train = |out: &str, more: &[&str]| {
        let args = ["train", "--backbone", &clip, "--epochs", "1", "--image-size", "32", "--batch-size", "16"];
        sandbox.vpt(&[&args[..], &["--data", "small", "--out", out], more].concat())
    };
    // 22 pixels of 128 are two patches of 8 in tiles of 43 pixels, which become 32.
    let said = "3 tiles along the shorter side of images, the fewest with which nine in ten of ";
    let run = train("auto", &["--tiles", "auto"]).ok();
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert!(run.stderr.contains("training boxes are at least 2 patches long (16 pixels)"), "{}", run.stderr);
    sandbox.write("auto.toml", "tiles = \"auto\"\n");
    train("config", &["--config", "auto.toml"]).ok();
    let run = train("three", &["--tiles", "3"]).ok();
    assert!(!run.stderr.contains("tiles along the shorter side of"), "{}", run.stderr);
    let bytes = |run: &str, file: &str| fs::read(sandbox.path(run).join(file)).unwrap();
    for file in ["best.safetensors", "last.safetensors", "config.toml", "test_detections.json", "split.json"] {
        assert!(bytes("auto", file) == bytes("three", file), "{file}");
        assert!(bytes("config", file) == bytes("three", file), "{file}");
    }
    let config = String::from_utf8(bytes("auto", "config.toml")).unwrap();
    assert!(config.contains("\ntiles = 3\n"), "{config}");
    let shown = sandbox.vpt(&["runs", "show", "auto"]).ok();
    assert!(shown.stdout.contains("tiles"), "{}", shown.stdout);

    // What is said of it, and what is found.
    let looks = |command: &[&str]| {
        let run = sandbox.vpt(&[command, &["--model", "auto", "--backbone", &clip]].concat()).ok();
        (run.stderr, run.stdout, fs::read(sandbox.path("found.json")).unwrap())
    };
    let eval = ["eval", "--data", "small", "--detections", "found.json"];
    let predict = ["predict", "small/val", "--min-score", "0", "--json"];
    for command in [&eval[..], &predict] {
        let auto = looks(&[command, &["--tiles", "auto"]].concat());
        let said =
            "whole and in tiles, 4 along the shorter side, by the pixels of the images, 128 along the shorter side";
        assert!(auto.0.contains(said), "{}", auto.0);
        let four = looks(&[command, &["--tiles", "4"]].concat());
        assert!((&four.1, &four.2) == (&auto.1, &auto.2), "{}", four.1);
        let learned = looks(command);
        assert!(learned.0.contains("tiles, 3 along the shorter side, as in training"), "{}", learned.0);
        assert!((&learned.1, &learned.2) != (&auto.1, &auto.2), "{}", learned.1);
    }
    // An image that cannot be read has no part in it.
    sandbox.write("small/val/broken.png", "no image");
    let args = ["predict", "small/val", "--tiles", "auto", "--skip-bad-images"];
    assert!(looks(&args).0.contains("tiles, 4 along the shorter side"));

    for bad in ["0", "x", "-1", "1.5", ""] {
        train("bad", &["--tiles", bad]).refuses(&["--tiles"]);
    }
    train("bad", &["--tiles", "Auto"]).refuses(&["--tiles", "neither a number nor auto"]);
    sandbox.write("bad.toml", "tiles = \"many\"\n");
    train("bad", &["--config", "bad.toml"]).fails(&["bad.toml", "expected a number or \"auto\""]);
    assert!(!sandbox.path("bad").exists(), "nothing was begun");
    let shards = ["predict", "--model", "auto", "--backbone", &clip, "--input", "small/val", "--out", "found"];
    sandbox.vpt(&[&shards[..], &["--tiles", "auto"]].concat()).refuses(&["--tiles auto", "give a number"]);
}
