//! Cards of public data sets: `vpt data list`, `vpt data info NAME`, and the texts that methods take from them.

use std::fs;

use serde_json::{Value, json};

use crate::util::{Sandbox, fixture, json_file};

#[test]
fn public_data_sets_are_listed_by_benchmark_and_task() {
    let sandbox = Sandbox::new();
    let listed = |args: &[&str]| {
        let json = sandbox.vpt(&[&["data", "list", "--json"], args].concat()).ok().json();
        let names = json["cards"].as_array().unwrap().iter().map(|card| card["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(listed(&["--of", "fgvc"]), ["fgvc-cub", "fgvc-nabirds", "fgvc-flowers", "fgvc-dogs", "fgvc-cars"]);
    assert_eq!(listed(&["--of", "detect"]), ["coco", "lvis", "voc2007", "voc2012", "rf100-vl"]);
    assert!(listed(&[]).len() > 60);
    let text = sandbox.vpt(&["data", "list", "--of", "CoOp"]).ok().stdout;
    assert!(text.contains("oxford-pets") && text.lines().count() == 12, "{text}");
    sandbox.vpt(&["data", "list", "--of", "CoCoOp"]).fails(&[
        "--of: no public data set is of CoCoOp",
        "CoOp",
        "VTAB-1k",
    ]);
}

#[test]
fn a_name_prints_its_card_and_a_path_what_lies_there() {
    let sandbox = Sandbox::new();
    let card = sandbox.vpt(&["data", "info", "eurosat"]).ok().stdout;
    for part in [
        "EuroSAT",
        "13500 train, 5400 val, 8100 test",
        "split_zhou_EuroSAT.json",
        "licence  MIT",
        "SeaLake",
        "Sea or Lake",
    ] {
        assert!(card.contains(part), "no {part} in {card}");
    }
    let json = sandbox.vpt(&["data", "info", "Oxford_Pets", "--json"]).ok().json();
    assert_eq!(
        (&json["name"], &json["classes"], &json["names"][0]),
        (&"oxford-pets".into(), &37.into(), &"Abyssinian".into())
    );
    // What lies there comes first.
    sandbox.colours("eurosat", 4);
    let info = sandbox.vpt(&["data", "info", "eurosat", "--json"]).ok().json();
    assert_eq!(info["layout"], "folder");
    fs::create_dir(sandbox.path("dtd")).unwrap();
    sandbox.vpt(&["data", "info", "dtd"]).fails(&["dtd: no data set found"]);
}

#[test]
fn a_name_that_is_near_one_is_told() {
    let sandbox = Sandbox::new();
    sandbox
        .vpt(&["data", "info", "oxford-pest"])
        .fails(&["did you mean the public data set oxford-pets (`vpt data list`)?"]);
    let far = sandbox.vpt(&["data", "info", "holidays"]).fails(&["holidays"]);
    assert!(!far.stderr.contains("public data set"), "{far:?}");
}

/// A sandbox with `photos`, three classes whose folders are ids of `WordNet`.
fn with_ids() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.colours("photos", 12);
    for (class, id) in [("blue", "n01440764"), ("dark_red", "n01443537"), ("green", "n01484850")] {
        fs::rename(sandbox.path("photos").join(class), sandbox.path("photos").join(id)).unwrap();
    }
    sandbox
}

const WORDS: [&str; 3] = ["tench", "goldfish", "great white shark"];

#[test]
fn zero_shot_takes_words_and_templates_for_ids_and_says_so() {
    let sandbox = with_ids();
    let clip = fixture("clip");
    let zero_shot = |more: &[&str]| {
        sandbox.vpt(&[&["zero-shot", "--backbone", &clip, "--data", "photos", "--json"], more].concat())
    };
    let run = zero_shot(&[]).ok();
    let json = run.json();
    assert_eq!((&json["classnames"], &json["dataset_card"]), (&json!(WORDS), &json!("imagenet")));
    assert_eq!(json["templates"].as_array().unwrap().len(), 80);
    let note = "photos is taken for ImageNet-1k (ILSVRC 2012), by the WordNet ids of its classes: class names and 80 templates";
    assert!(run.stderr.contains(note), "{run:?}");
    let json = zero_shot(&["--dataset-card", "none"]).ok().json();
    assert_eq!((&json["classnames"][0], &json["templates"]), (&json!("n01440764"), &json!(["a photo of a {}."])));
    assert_eq!(json["dataset_card"], Value::Null);
    sandbox.write("names.txt", "a\nb\nc\n");
    let json = zero_shot(&["--classnames", "names.txt"]).ok().json();
    assert_eq!((&json["classnames"], json["templates"].as_array().unwrap().len()), (&json!(["a", "b", "c"]), 80));
    zero_shot(&["--dataset-card", "eurosat"])
        .refuses(&["--dataset-card: the card eurosat has other classes", "'n01440764'"]);
    zero_shot(&["--dataset-card", "imagnet"]).refuses(&["--dataset-card: ", "did you mean imagenet?"]);
}

#[test]
fn training_takes_the_texts_of_few_shot_tables_and_can_be_repeated() {
    let sandbox = with_ids();
    let clip = fixture("clip");
    let train = |more: &[&str]| sandbox.vpt(&[&["train", "--backbone", &clip, "--data", "photos"], more].concat());
    let text = ["--method", "linear", "--head", "text", "--epochs", "2", "--out", "run"];
    let run = train(&text).ok();
    assert!(run.stderr.contains("class names and the template \"a photo of a {}.\" of the card imagenet"), "{run:?}");
    assert!(run.stdout.contains("class names  of the card imagenet"), "{run:?}");
    let results = json_file(&sandbox.path("run/results.json"));
    assert_eq!((&results["texts"]["classnames"], &results["dataset_card"]), (&json!(WORDS), &json!("imagenet")));
    let file = fs::read(sandbox.path("run/best.safetensors")).unwrap();
    sandbox.vpt(&["train", "--config", "run/config.toml", "--out", "again"]).ok();
    assert_eq!(fs::read(sandbox.path("again/best.safetensors")).unwrap(), file);
    // Texts of the card stay behind where the data changes, and the card where no texts are read.
    sandbox.colours("others", 12);
    sandbox.vpt(&["train", "--config", "run/config.toml", "--data", "others", "--out", "other"]).ok();
    let results = json_file(&sandbox.path("other/results.json"));
    assert_eq!((&results["texts"]["classnames"][0], &results["dataset_card"]), (&json!("blue"), &Value::Null));
    sandbox.vpt(&["train", "--config", "run/config.toml", "--head", "linear", "--out", "means"]).ok();
    assert_eq!(json_file(&sandbox.path("means/results.json"))["dataset_card"], Value::Null);
    train(&["--method", "ncm", "--dataset-card", "imagenet"])
        .refuses(&["--dataset-card: ncm reads no names of classes"]);
    let shown = sandbox.vpt(&["runs", "show", "run"]).ok().stdout;
    assert!(shown.contains("imagenet") && !shown.contains("goldfish"), "{shown}");
}

#[test]
fn learned_texts_and_the_grid_take_the_names_of_a_card() {
    let sandbox = with_ids();
    let clip = fixture("clip");
    let grid = ["--backbone", &clip, "--data", "photos", "--methods", "zero-shot,coop", "--shots", "1", "--seeds", "1"];
    let grid = [&["bench", "few-shot"], &grid[..], &["--epochs", "1", "--out", "grid"]].concat();
    let run = sandbox.vpt(&grid).ok();
    assert!(run.stderr.contains("photos: class names and templates of the card imagenet"), "{run:?}");
    let results = json_file(&sandbox.path("grid/results.json"));
    assert_eq!(results["grid"]["cards"], json!({ "photos": "imagenet" }));
    let plain = [&grid[..grid.len() - 1], &["plain", "--dataset-card", "none"]].concat();
    sandbox.vpt(&plain).ok();
    assert_eq!(json_file(&sandbox.path("plain/results.json"))["grid"]["cards"], Value::Null);
    sandbox
        .vpt(&["train", "--backbone", &clip, "--data", "photos", "--method", "coop", "--epochs", "1", "--out", "coop"])
        .ok();
    let info = sandbox.vpt(&["task", "info", "coop", "--json"]).ok().json();
    assert_eq!((&info["classes"][0], &info["classnames"]), (&json!("n01440764"), &json!(WORDS)));
}
