//! `vpt train`, and the commands that use what it made.

use std::fs;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use vpt::model::task_file::TaskFile;

use crate::util::{Sandbox, files, fixture, json_file, keys, number, result_fields, run_files};

const METHODS: [&str; 7] = ["linear", "vpt-shallow", "vpt-deep", "vp-pad", "vp-patch", "vp-full", "vp-frame"];
const METRICS: [&str; 4] = ["acc1", "acc5", "mean_per_class_recall", "loss"];

#[test]
fn a_run_leaves_what_is_promised() {
    let sandbox = Sandbox::new();
    let run = sandbox.trained("run", &["--epochs", "6", "--json"]);
    assert_eq!(files(&sandbox.path("run")), run_files(&["confusion.svg", "l2_search.json"]));
    let results = run.json();
    assert_eq!(results, json_file(&sandbox.path("run/results.json")));
    assert_eq!(
        keys(&results),
        result_fields(&[
            ("backbone", &["head"]),
            ("data", &["content_hash"]),
            ("lr", &["temperature", "ece", "probe"])
        ])
    );
    assert_eq!((keys(&results["val"]), keys(&results["test"])), (METRICS.to_vec(), METRICS.to_vec()));
    assert_eq!(results["method"], "vpt-deep");
    assert_eq!(number(&results, "/classes"), 3.);
    // Three blocks of ten prompts of width 32, and a linear head.
    assert_eq!(number(&results, "/trainable_params"), f64::from(3 * 10 * 32 + 3 * 32 + 3));
    assert!(number(&results, "/test/acc1") >= 0.8, "three plain colours: {results:#}");
    assert!(results["test"]["acc5"].is_null(), "three classes have no top 5");

    let lines = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    let epochs: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(epochs.iter().map(|e| number(e, "/epoch")).collect::<Vec<_>>(), [1., 2., 3., 4., 5., 6.]);
    assert_eq!(
        keys(&epochs[0]),
        ["epoch", "step", "lr", "train_loss", "train_acc1", "val", "train_seconds", "val_seconds"]
    );
    assert!(fs::read(sandbox.path("run/val_predictions.jpg")).unwrap().starts_with(b"\xff\xd8"));
    for picture in ["curves.svg", "confusion.svg"] {
        assert!(fs::read_to_string(sandbox.path("run").join(picture)).unwrap().starts_with("<svg"));
    }
    let split = json_file(&sandbox.path("run/split.json"));
    assert_eq!(["train", "val", "test"].map(|part| split[part].as_array().unwrap().len()), [42, 9, 9]);
    // One line for the data, one for the probe, one for the run, one an epoch.
    assert_eq!(run.stderr.lines().count(), 9, "{run:#?}");
    let [probe, learned] = [&results["probe"], &results["probe"]["learned"]];
    let kept = if probe["kept"] == true { probe } else { learned };
    assert_eq!([&kept["val"], &kept["test"]], [&results["val"], &results["test"]]);
    let moved = number(learned, "/test/acc1") - number(probe, "/test/acc1");
    assert!((number(probe, "/moved/difference") - moved).abs() < 1e-12, "{probe:#}");
}

#[test]
fn every_method_trains_and_its_task_can_be_used() {
    let sandbox = Sandbox::new();
    for method in METHODS {
        let run = sandbox.trained(method, &["--method", method, "--epochs", "2", "--json", "--quiet"]);
        assert_eq!(run.stderr, "", "{method}");
        let results = run.json();
        assert_eq!(results["method"], method);
        let eval = sandbox.vpt(&["eval", "--model", method, "--data", "colours", "--json"]).ok().json();
        assert_eq!(
            keys(&eval),
            ["model", "method", "backbone", "data", "split", "images", "classes", "metrics", "energy"]
        );
        assert_eq!(eval["metrics"], results["test"], "{method}: a task file scores what its run did");
        let predict = ["predict", "--model", method, "colours/green/001.png", "--json"];
        let prediction = &sandbox.vpt(&predict).ok().json()["predictions"][0];
        let sum: f64 = (0..3).map(|i| number(prediction, &format!("/top5/{i}/probability"))).sum();
        assert!((sum - 1.).abs() < 1e-9, "{method}: {prediction:#}");
        let embed = ["embed", "--model", method, "--out", "e.safetensors", "colours/green/001.png"];
        sandbox.vpt(&embed).ok();
    }
}

#[test]
fn methods_that_learn_texts_train_and_tell_other_classes_by_their_names() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let clip = fixture("clip");
    for method in ["coop", "cocoop", "ivlp", "maple", "promptsrc"] {
        let train = ["train", "--backbone", &clip, "--data", "colours", "--method", method, "--out", method];
        let run = sandbox.vpt(&[&train[..], &["--shots", "4", "--epochs", "3", "--json", "--quiet"]].concat()).ok();
        assert_eq!(run.stderr, "", "{method}");
        let results = run.json();
        assert_eq!(results["method"], method);
        let eval = sandbox.vpt(&["eval", "--model", method, "--data", "colours", "--json"]).ok().json();
        assert_eq!(eval["metrics"], results["test"], "{method}: a task file scores what its run did");
        let predict = ["predict", "--model", method, "colours/green/001.png", "--json"];
        let top = |more: &[&str]| sandbox.vpt(&[&predict, more].concat()).ok().json()["predictions"][0]["top5"].clone();
        let told = |top: &Value| {
            let mut labels: Vec<_> = top.as_array().unwrap().iter().map(|g| g["label"].to_string()).collect();
            labels.sort();
            labels.join(" ")
        };
        assert_eq!(told(&top(&[])), r#""blue" "dark_red" "green""#, "{method}");
        assert_eq!(told(&top(&["--classes", "green, red square"])), r#""green" "red square""#, "{method}");
        sandbox.vpt(&["embed", "--model", method, "--out", "e.safetensors", "colours/green/001.png"]).ok();
        let info = sandbox.vpt(&["task", "info", method]).ok().stdout;
        assert!(info.contains("vectors in the texts of the classes"), "{info}");
    }
    // Classes that no run has seen, of which the names are known.
    let rows = (0..9).map(|i| format!("colours/blue/00{i}.png,teal\ncolours/green/00{i}.png,olive\n"));
    sandbox.write("others.csv", format!("path,label\n{}", rows.collect::<String>()));
    let eval = sandbox.vpt(&["eval", "--model", "coop", "--data", "others.csv"]).ok();
    assert!(eval.stderr.contains("telling the classes of others by their names"), "{eval:#?}");
    sandbox.write("templates.txt", "one {}\n{} on a wall\n");
    let more = ["--method", "promptsrc", "--templates", "templates.txt", "--epochs", "2", "--lr", "auto"];
    let train = ["train", "--backbone", &clip, "--data", "colours", "--out", "own"];
    sandbox.vpt(&[&train[..], &more].concat()).ok();
    let config = fs::read_to_string(sandbox.path("own/config.toml")).unwrap();
    assert!(config.contains(r#"templates = ["one {}", "{} on a wall"]"#), "{config}");
    sandbox
        .vpt(&["predict", "--model", "coop", "--min-score", "0.5", "colours/green/001.png"])
        .refuses(&["--min-score"]);
}

#[test]
fn predictions_are_right_and_in_the_order_given() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--method", "linear", "--epochs", "30", "--lr", "0.05"]);
    let images = ["colours/green/003.png", "colours/blue/004.png", "colours/dark_red/005.png", "colours/blue/001.png"];
    let args = [&["predict", "--model", "run/best.safetensors"], &images[..]].concat();
    let json = sandbox.vpt(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!(keys(&json), ["model", "predictions", "skipped", "passed_by"]);
    let predictions = json["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 4);
    for (prediction, image) in predictions.iter().zip(images) {
        assert_eq!(keys(prediction), ["image", "label", "probability", "top5"]);
        assert_eq!(prediction["image"], image);
        assert_eq!(prediction["label"], image.split('/').nth(1).unwrap());
        assert_eq!(prediction["top5"][0]["label"], prediction["label"]);
        assert!(number(prediction, "/top5/0/probability") >= number(prediction, "/top5/1/probability"));
    }
    let text = sandbox.vpt(&args).ok().stdout;
    let classes: Vec<&str> = text.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(classes, ["green", "blue", "dark_red", "blue"], "{text}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let sandbox = Sandbox::new();
    let best = |run: &str| fs::read(sandbox.path(run).join("best.safetensors")).unwrap();
    let method = ["--method", "vp-patch", "--patch-place", "random", "--flip", "--epochs", "3"];
    sandbox.trained("a", &method);
    sandbox.trained("b", &method);
    assert!(best("a") == best("b"));
    sandbox.trained("c", &[&method[..], &["--seed", "2"]].concat());
    assert!(best("a") != best("c"));
    // config.toml holds all of it, and flags go before it.
    sandbox.vpt(&["train", "--config", "a/config.toml", "--out", "d"]).ok();
    assert!(best("a") == best("d"));
    sandbox.vpt(&["train", "--config", "a/config.toml", "--seed", "2", "--out", "e"]).ok();
    assert!(best("c") == best("e"));
    sandbox.vpt(&["train", "--config", "a/config.toml", "--method", "linear", "--out", "f"]).refuses(&["--flip"]);
}

#[test]
fn shots_are_drawn_by_the_seed_and_written_down() {
    let sandbox = Sandbox::new();
    let results = sandbox.trained("run", &["--shots", "4", "--epochs", "2", "--keep-better", "false", "--json"]).json();
    assert_eq!(number(&results, "/train_images"), 12.);
    assert_eq!(number(&results, "/best_epoch"), 2., "few-shot runs count the last epoch");
    let draw = json_file(&sandbox.path("run/few_shot.json"));
    assert_eq!(draw["train"]["blue"].as_array().unwrap().len(), 4);
    assert_eq!(json_file(&sandbox.path("run/split.json"))["train"].as_array().unwrap().len(), 12);
}

#[test]
fn runs_are_numbered_and_a_full_folder_is_left_alone() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1"]);
    let vit = fixture("vit");
    let args = ["train", "--backbone", &vit, "--data", "colours", "--epochs", "1"];
    for _ in 0..2 {
        sandbox.vpt(&args).ok();
    }
    assert_eq!(files(&sandbox.path("runs/classify")), ["colours-vpt-deep-1", "colours-vpt-deep-2"]);
    let before = fs::read(sandbox.path("run/best.safetensors")).unwrap();
    sandbox.vpt(&[&args[..], &["--out", "run"]].concat()).fails(&["run: is not empty", "--out", "--resume"]);
    assert_eq!(fs::read(sandbox.path("run/best.safetensors")).unwrap(), before);
}

#[test]
fn unreadable_images_stop_a_run_unless_told_otherwise() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    sandbox.write("colours/blue/bad.png", "not an image");
    let vit = fixture("vit");
    let args = ["train", "--backbone", &vit, "--data", "colours", "--epochs", "1", "--out"];
    sandbox.vpt(&[&args[..], &["stopped"]].concat()).fails(&["data set colours", "bad.png", "--skip-bad-images"]);
    let run = sandbox.vpt(&[&args[..], &["run", "--skip-bad-images"]].concat()).ok();
    assert!(run.stderr.contains("bad.png"), "what was left out is said: {run:#?}");
}

#[test]
fn a_finished_run_is_shown_again_and_not_touched() {
    let sandbox = Sandbox::new();
    let first = sandbox.trained("run", &["--epochs", "2"]);
    let written = fs::metadata(sandbox.path("run/best.safetensors")).unwrap().modified().unwrap();
    let again = sandbox.vpt(&["train", "--resume", "run"]).ok();
    assert_eq!(first.stdout, again.stdout);
    assert_eq!(fs::metadata(sandbox.path("run/best.safetensors")).unwrap().modified().unwrap(), written);
}

#[test]
fn a_task_knows_its_backbone() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1"]);
    let (vit, dino) = (fixture("vit"), fixture("dinov2"));
    let eval = |model: &str, backbone: &[&str]| {
        sandbox.vpt(&[&["eval", "--model", model, "--data", "colours"], backbone].concat())
    };
    eval("run", &["--backbone", &dino]).fails(&["learned on vit", "dinov2"]);
    // Away from its run folder, a task knows its backbone's name and hash only.
    fs::copy(sandbox.path("run/best.safetensors"), sandbox.path("task.safetensors")).unwrap();
    eval("task.safetensors", &[]).fails(&["a folder called vit", "--backbone"]);
    eval("task.safetensors", &["--backbone", &vit]).ok();
}

#[test]
fn a_class_that_a_task_does_not_know_is_the_fault_of_the_data() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1"]);
    let rows = (0..9).map(|i| format!("colours/blue/00{i}.png,blue\ncolours/green/00{i}.png,teal\n"));
    sandbox.write("others.csv", format!("path,label\n{}", rows.collect::<String>()));
    sandbox
        .vpt(&["eval", "--model", "run", "--data", "others.csv"])
        .fails(&["data set others: class 'teal' is none of the task's (blue, dark_red, green)"]);
}

#[test]
fn predictions_are_made_at_the_temperature_of_the_run() {
    let sandbox = Sandbox::new();
    // Noise that has nothing to do with the class keeps validation from being all right, so that there is a temperature.
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for i in 0..120u32 {
        let image = image::RgbImage::from_fn(24, 20, |_, _| image::Rgb(rng.random::<[u8; 3]>().map(|v| v / 2 + 60)));
        fs::create_dir_all(sandbox.path(&format!("noise/c{}", i % 3))).unwrap();
        image.save(sandbox.path(&format!("noise/c{}/{i}.png", i % 3))).unwrap();
    }
    let vit = fixture("vit");
    let train = ["train", "--backbone", &vit, "--data", "noise", "--method", "linear", "--lr", "0.05", "--out", "run"];
    let results = sandbox.vpt(&[&train[..], &["--epochs", "60", "--select", "last", "--json"]].concat()).ok().json();
    let temperature = number(&results, "/temperature");
    assert!(temperature > 1.2, "sure of noise: {results:#}");
    assert!(number(&results, "/ece/val/after") < number(&results, "/ece/val/before"), "{results:#}");
    assert_eq!(keys(&results["ece"]["test"]), ["before", "after"]);
    let info = sandbox.vpt(&["task", "info", "run", "--json"]).ok().json();
    assert_eq!(number(&info, "/temperature"), temperature);

    // A file of before there were temperatures is read as one of temperature 1.
    let mut old = TaskFile::open(&sandbox.path("run")).unwrap();
    old.meta.temperature = None;
    old.save(&sandbox.path("old.safetensors")).unwrap();
    let top = |model: &str| {
        let args = ["predict", "--model", model, "--backbone", &vit, "noise/c0/0.png", "--json"];
        let top = sandbox.vpt(&args).ok().json()["predictions"][0]["top5"].clone();
        let ratio = (number(&top, "/0/probability") / number(&top, "/1/probability")).ln();
        (top[0]["label"].clone(), top[1]["label"].clone(), ratio)
    };
    let (old, new) = (top("old.safetensors"), top("run"));
    assert_eq!((&old.0, &old.1), (&new.0, &new.1));
    assert!((old.2 / new.2 - temperature).abs() < 1e-6, "{old:?} {new:?} {temperature}");
}

#[test]
fn a_written_draw_is_learned_from_again_whatever_the_seed() {
    let sandbox = Sandbox::new();
    let quick = ["--epochs", "2", "--method", "linear"];
    sandbox.trained("first", &[&quick[..], &["--shots", "2"]].concat());
    let draw = "first/few_shot.json";
    sandbox.trained("second", &[&quick[..], &["--draw", draw, "--split-seed", "1", "--seed", "9"]].concat());
    let read = |run: &str, file: &str| fs::read(sandbox.path(run).join(file)).unwrap();
    assert_eq!(read("first", "few_shot.json"), read("second", "few_shot.json"));
    let split = |run: &str| json_file(&sandbox.path(run).join("split.json"));
    for part in ["train", "val", "test"] {
        assert_eq!(split("first")[part], split("second")[part], "{part}");
    }
    let config = fs::read_to_string(sandbox.path("second/config.toml")).unwrap();
    assert!(config.contains("split_seed = 1") && config.contains("select = \"last\""), "{config}");
    let args = ["train", "--data", "colours", "--out", "third", "--draw", draw];
    sandbox.vpt(&[&args[..], &["--seed", "9"]].concat()).fails(&["few-shot draw of colours", "no image"]);
    sandbox.vpt(&[&args[..], &["--shots", "2"]].concat()).refuses(&["--shots", "--draw"]);
}
