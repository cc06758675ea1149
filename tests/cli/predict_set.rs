//! `vpt predict --to`: data sets made of predictions are read again.

use std::fs;

use serde_json::Value;

use crate::json::Schema;
use crate::util::{Run, Sandbox, files, fixture, json_file, keys, number};

const TRAIN: [&str; 5] = ["--epochs", "1", "--image-size", "32", "--quiet"];

fn train(sandbox: &Sandbox, more: &[&str]) {
    let clip = fixture("clip");
    sandbox.vpt(&[&["train", "--backbone", &clip, "--out", "run"], more, &TRAIN].concat()).ok();
}

fn predict(sandbox: &Sandbox, more: &[&str]) -> Run {
    let clip = fixture("clip");
    sandbox.vpt(&[&["predict", "--model", "run", "--backbone", &clip], more].concat())
}

/// The data set in `out` as `vpt data check` and `vpt data info` see it.
fn read_again(sandbox: &Sandbox, out: &str, more: &[&str]) -> Value {
    let check = sandbox.vpt(&[&["data", "check", out, "--json"], more].concat()).json();
    assert_eq!(number(&check, "/errors"), 0., "{check:#}");
    sandbox.vpt(&[&["data", "info", out, "--json"], more].concat()).ok().json()
}

#[test]
fn boxes_become_a_data_set_and_a_list_of_what_is_doubtful() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    train(&sandbox, &["--data", "boxes"]);
    let mut schema = Schema::load();
    for (to, layout) in [("coco", "coco"), ("yolo", "yolo"), ("voc", "voc")] {
        let args = ["--to", to, "--out", to, "--min-score", "0.05", "--json", "boxes/train"];
        let result = predict(&sandbox, &args).ok().json();
        schema.holds("predict", &result);
        let set = &result["data_set"];
        let found: usize = result["predictions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|image| image["boxes"].as_array().unwrap().len())
            .sum();
        assert!(found > 0);
        assert_eq!((number(set, "/images"), number(set, "/objects")), (15., found as f64), "{set}");
        let info = read_again(&sandbox, to, &[]);
        assert_eq!(info["layout"], layout);
        let counts = |what: &str| ["train", "val", "test"].map(|part| number(&info[what], &format!("/{part}")));
        assert_eq!((counts("images").iter().sum::<f64>(), counts("objects").iter().sum::<f64>()), (15., found as f64));
        assert_eq!(info["categories"].as_array().unwrap().len(), 8);
        // Its list lies beside it.
        let list = format!("{to}-review.csv");
        assert_eq!(set["review"].as_str(), Some(list.as_str()));
        let text = fs::read_to_string(sandbox.path(&list)).unwrap();
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!((rows[0], rows.len() as f64 - 1.), ("image,doubt,written,reason", number(set, "/to_review")));
        let doubts: Vec<f64> = rows[1..].iter().map(|row| row.split(',').nth(1).unwrap().parse().unwrap()).collect();
        assert!(doubts.is_sorted_by(|a, b| a >= b), "{text}");
    }
    // One part, with the ids of the data that was learned from.
    assert_eq!(files(&sandbox.path("coco")), ["annotations", "train"]);
    assert_eq!(files(&sandbox.path("coco/annotations")), ["instances_train.json"]);
    let written = json_file(&sandbox.path("coco/annotations/instances_train.json"));
    let learned = json_file(&sandbox.path("boxes/annotations/instances_train.json"));
    let ids = |json: &Value| json["categories"].as_array().unwrap().iter().map(|c| c["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&written), ids(&learned));
    assert!(!fs::read_to_string(sandbox.path("yolo/data.yaml")).unwrap().contains("val:"));

    // The gate is that of what is printed.
    let text = predict(&sandbox, &["--to", "coco", "--out", "none", "--min-score", "1", "boxes/val"]).ok().stdout;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("data set none (coco): 3 images, 0 objects"), "{text}");
    assert!(text.contains("to look at 3 images, listed in none-review.csv"), "{text}");
    predict(&sandbox, &["--to", "coco", "--out", "coco", "boxes/val"]).fails(&["coco", "not empty"]);
    predict(&sandbox, &["--to", "folder", "--out", "new", "boxes/val"]).refuses(&["--to", "coco, yolo or voc"]);
    predict(&sandbox, &["--to", "coco", "boxes/val"]).refuses(&["--out"]);
    predict(&sandbox, &["--out", "new", "boxes/val"]).refuses(&["--out is for --input"]);
    predict(&sandbox, &["--review", "x.csv", "boxes/val"]).refuses(&["--to"]);
    let inside = ["--to", "coco", "--out", "new", "--review", "new/x.csv", "boxes/val"];
    predict(&sandbox, &inside).refuses(&["--review new/x.csv", "taken for labels"]);
    assert!(!sandbox.path("new").exists());
}

#[test]
fn classes_become_folders_of_what_is_sure() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 12);
    train(&sandbox, &["--data", "colours", "--method", "linear"]);
    let mut schema = Schema::load();
    let args = ["--to", "folder", "--out", "all", "--review", "look.csv", "--min-score", "0", "--json"];
    let result = predict(&sandbox, &[&args[..], &["colours/blue", "colours/green"]].concat()).ok().json();
    schema.holds("predict", &result);
    assert_eq!(keys(&result["data_set"]), ["out", "layout", "images", "objects", "left_out", "review", "to_review"]);
    let predicted = |result: &Value| {
        let all = result["predictions"].as_array().unwrap().clone();
        let mut labels: Vec<String> = all.iter().map(|image| image["label"].as_str().unwrap().to_owned()).collect();
        labels.sort();
        labels
    };
    let mut written = Vec::new();
    for class in files(&sandbox.path("all")).into_iter().filter(|name| name != "classes.txt") {
        let images = files(&sandbox.path("all").join(&class)).len();
        written.extend(std::iter::repeat_n(class, images));
    }
    assert_eq!(written, predicted(&result));
    assert!(sandbox.path("look.csv").is_file() && !sandbox.path("all-review.csv").exists());

    // What is less likely is left out and listed.
    let likely: Vec<f64> =
        result["predictions"].as_array().unwrap().iter().map(|image| number(image, "/probability")).collect();
    let gate = likely.iter().copied().fold(0., f64::max);
    let below = likely.iter().filter(|probability| **probability < gate).count();
    let gate = gate.to_string();
    let args = ["--to", "folder", "--out", "best", "--min-score", &gate, "--json", "colours/blue", "colours/green"];
    let result = predict(&sandbox, &args).ok().json();
    assert_eq!(
        (number(&result, "/data_set/left_out"), result["predictions"].as_array().unwrap().len()),
        (below as f64, 24)
    );
    let text = fs::read_to_string(sandbox.path("best-review.csv")).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains(",false,")).count(), below);
    predict(&sandbox, &["--to", "coco", "--out", "new", "colours/blue"]).refuses(&["--to", "folder"]);
    predict(&sandbox, &["--to", "folder", "--out", "new", "--min-score", "1", "colours/blue"])
        .refuses(&["--min-score", "no image is that sure"]);
    predict(&sandbox, &["--min-score", "0.5", "colours/blue"]).refuses(&["--min-score", "classes, not boxes"]);
}

#[test]
fn pixels_become_masks_without_what_is_not_sure() {
    let sandbox = Sandbox::new();
    sandbox.masks("masks", 16);
    train(&sandbox, &["--task", "segment", "--data", "masks"]);
    let args = |out: &'static str, gate: &'static str| {
        ["--to", "voc", "--out", out, "--min-score", gate, "--json", "masks/JPEGImages"]
    };
    let all = predict(&sandbox, &args("all", "0")).ok().json();
    let info = read_again(&sandbox, "all", &["--task", "segment"]);
    assert_eq!(info["layout"], "voc-masks");
    assert_eq!(files(&sandbox.path("all/SegmentationClass")).len(), 16);
    assert_eq!(number(&all, "/data_set/to_review"), 0.);
    // The masks are those that it predicts.
    let clip = fixture("clip");
    let eval = sandbox.vpt(&["eval", "--model", "run", "--backbone", &clip, "--data", "all", "--json"]).ok().json();
    assert_eq!(number(&eval, "/metrics/pixel_acc"), 1.);
    let none = predict(&sandbox, &args("none", "1")).ok().json();
    assert_eq!(number(&none, "/data_set/to_review"), 16.);
    predict(&sandbox, &["--to", "coco", "--out", "new", "masks/JPEGImages"]).refuses(&["--to", "voc"]);
    let both = ["--to", "voc", "--out", "new", "--save", "drawn", "masks/JPEGImages"];
    predict(&sandbox, &both).refuses(&["--save", "--to writes the masks"]);
}
