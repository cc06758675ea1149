//! `--label-map`: prompt pixels in front of the classifier that a backbone was published with.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::json::Schema;
use crate::util::{Sandbox, fixture, json_file, number};

const MAPS: [&str; 5] = ["rlm", "flm", "ilm", "blm", "blm+"];

/// Trains on `colours` into the folder `run`, on a backbone with twelve named classes of its own.
fn train(sandbox: &Sandbox, run: &str, backbone: &str, more: &[&str]) -> Value {
    if !sandbox.path("colours").exists() {
        sandbox.colours("colours", 20);
    }
    let args = ["train", "--backbone", backbone, "--data", "colours", "--out", run, "--json", "--threads", "2"];
    sandbox.vpt(&[&args, more].concat()).ok().json()
}

fn mapped(family: &str) -> String {
    fixture(&format!("label-map/{family}"))
}

#[test]
fn every_map_trains_predicts_and_tells_what_it_maps() {
    let sandbox = Sandbox::new();
    let mut schema = Schema::load();
    let families = ["vit", "dinov2", "registers", "vit", "registers"];
    let methods = ["vp-frame", "vp-pad", "vp-patch", "vp-full", "vp-frame"];
    for ((map, family), method) in MAPS.iter().zip(families).zip(methods) {
        let (backbone, run) = (mapped(family), format!("run-{map}"));
        let result = train(&sandbox, &run, &backbone, &["--method", method, "--label-map", map, "--epochs", "3"]);
        schema.holds("train", &result);
        assert_eq!((&result["label_map"], result.get("head")), (&json!(map), None), "{result:#}");
        let config = fs::read_to_string(sandbox.path(&run).join("config.toml")).unwrap();
        assert!(config.contains(&format!("label_map = \"{map}\"")) && !config.contains("head"), "{config}");

        let info = sandbox.vpt(&["task", "info", &run, "--json"]).ok().json();
        schema.holds("task info", &info);
        let label_map = &info["label_map"];
        assert_eq!((&label_map["kind"], number(label_map, "/sources")), (&json!(map), 12.), "{label_map:#}");
        let classes = label_map["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 3);
        let mut taken = Vec::new();
        for part in classes.iter().flat_map(|parts| parts.as_array().unwrap()) {
            assert_eq!(part["name"], json!(format!("source {}", part["source"])), "{part}");
            taken.push(number(part, "/source") as usize);
        }
        if !map.starts_with("blm") {
            taken.sort_unstable();
            taken.dedup();
            assert_eq!(taken.len(), 3, "a source of its own for each class: {classes:?}");
            assert!(classes.iter().all(|parts| number(parts, "/0/weight") == 1.), "{classes:?}");
        }
        assert_eq!(number(&info, "/trainable_params"), number(&result, "/trainable_params"), "only pixels are learned");
        let text = sandbox.vpt(&["task", "info", &run]).ok().stdout;
        let first = &classes[0][0];
        let line = format!("{} ({})", first["name"].as_str().unwrap(), first["source"]);
        assert!(text.contains(&line) && text.contains("-> blue"), "no {line} in {text}");
        assert!(text.contains(&format!("classifier of 12 classes, label map {map}")), "{text}");

        // The task file alone, elsewhere.
        fs::copy(sandbox.path(&run).join("best.safetensors"), sandbox.path("task.safetensors")).unwrap();
        let eval = ["eval", "--model", "task.safetensors", "--backbone", &backbone, "--data", "colours", "--json"];
        let eval = sandbox.vpt(&eval).ok().json();
        assert_eq!(number(&eval, "/metrics/acc1"), number(&result, "/test/acc1"), "{map}: {eval:#}");
        let image = "colours/blue/000.png";
        let predict = ["predict", "--model", "task.safetensors", "--backbone", &backbone, image, "--json"];
        assert!(sandbox.vpt(&predict).ok().stdout.contains("blue"));
    }
}

#[test]
fn a_config_repeats_the_run_and_a_head_takes_its_place() {
    let sandbox = Sandbox::new();
    let vit = mapped("vit");
    train(&sandbox, "first", &vit, &["--method", "vp-frame", "--label-map", "ilm", "--epochs", "3"]);
    sandbox.vpt(&["train", "--config", "first/config.toml", "--out", "again"]).ok();
    let best = |run: &str| fs::read(sandbox.path(run).join("best.safetensors")).unwrap();
    assert!(best("first") == best("again"));
    let other = ["train", "--config", "first/config.toml", "--label-map", "flm", "--out", "flm", "--json"];
    assert_eq!(sandbox.vpt(&other).ok().json()["label_map"], "flm");
    let headed = ["train", "--config", "first/config.toml", "--head", "linear", "--out", "head", "--json"];
    let headed = sandbox.vpt(&headed).ok().json();
    assert_eq!((headed.get("label_map"), &headed["head"]), (None, &json!("linear")), "{headed:#}");
    let back = ["train", "--config", "head/config.toml", "--label-map", "ilm", "--out", "back", "--json"];
    assert_eq!(sandbox.vpt(&back).ok().json()["label_map"], "ilm");
}

#[test]
fn what_cannot_be_mapped_is_refused_in_a_line() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 4);
    let refuse = |backbone: &str, more: &[&str], parts: &[&str]| {
        let args = ["train", "--backbone", backbone, "--data", "colours", "--out", "run"];
        sandbox.vpt(&[&args[..], more].concat()).refuses(parts);
    };
    let ilm = ["--label-map", "ilm"];
    let frame = [&["--method", "vp-frame"], &ilm[..]].concat();
    let vit = mapped("vit");
    for method in ["linear", "vpt-deep", "ncm", "coop"] {
        let parts = ["--label-map", &format!("method {method} has no prompt pixels"), "take vp-pad"];
        refuse(&vit, &[&["--method", method], &ilm[..]].concat(), &parts);
    }
    refuse(&vit, &[&frame[..], &["--head", "cosine"]].concat(), &["--head: not with --label-map ilm"]);
    refuse(&vit, &[&frame[..], &["--head-lr", "0.1"]].concat(), &["--head-lr: not with --label-map ilm"]);
    refuse(&vit, &["--method", "vp-pad", "--label-map", "blm++"], &["--label-map", "blm+"]);
    let none = "has no classifier of its own";
    for (backbone, why) in [
        (fixture("clip"), "CLIP tells classes by texts"),
        (fixture("dinov2"), "no tensor `classifier.weight`"),
        (fixture("deit"), "a distilled DeiT"),
    ] {
        refuse(&backbone, &frame, &["--label-map", none, why]);
    }
    let few = "3 classes of the data, where the backbone's classifier has 2";
    refuse(&fixture("vit"), &frame, &["--label-map", few]);
    assert!(!sandbox.path("run/results.json").exists());
}

#[test]
fn classifiers_and_names_that_cannot_be_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 4);
    let copy = |name: &str| {
        for file in ["config.json", "preprocessor_config.json", "model.safetensors"] {
            sandbox.write(&format!("{name}/{file}"), fs::read(Path::new(&mapped("vit")).join(file)).unwrap());
        }
    };
    let header = |change: &dyn Fn(&mut Value)| {
        let bytes = fs::read(Path::new(&mapped("vit")).join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(&mut header);
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat()
    };
    let weight =
        |field: &'static str, value: Value| header(&move |header| header["classifier.weight"][field] = value.clone());
    let nan = {
        let bytes = fs::read(Path::new(&mapped("vit")).join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let at = 8 + length + number(&header, "/classifier.weight/data_offsets/0") as usize;
        let mut bytes = bytes;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    };
    let weights = [
        ("wide", weight("shape", json!([6, 32])), "shape [6, 32], the configuration asks for [6, 16]"),
        ("flat", weight("shape", json!([192])), "shape [192]"),
        ("deep", weight("shape", json!([12, 16, 1])), "shape [12, 16, 1]"),
        ("many", weight("shape", json!([24, 8])), "shape [24, 8]"),
        ("of-bytes", weight("dtype", json!("I32")), "of type I32"),
        ("nan", nan, "`classifier.weight` holds NaN"),
        (
            "no-bias",
            header(&|h| {
                let bias = h.as_object_mut().unwrap().remove("classifier.bias").unwrap();
                h["other"] = bias;
            }),
            "has no tensor `classifier.bias`",
        ),
    ];
    let args =
        |name| vec!["train", "--backbone", name, "--data", "colours", "--method", "vp-pad", "--label-map", "blm"];
    for (name, bytes, message) in weights {
        copy(name);
        sandbox.write(&format!("{name}/model.safetensors"), bytes);
        sandbox.vpt_within_limits(&args(name)).fails(&[name, message]);
    }
    let configs = [
        ("gap", json!({"0": "a", "2": "b"}), "id2label: must hold a name for each number"),
        ("list", json!(["a"]), "id2label: must be an object"),
        ("fewer", json!({"0": "a"}), "id2label: 1 names, where the classifier has 12 classes"),
    ];
    for (name, labels, message) in configs {
        copy(name);
        let mut config = json_file(&sandbox.path(name).join("config.json"));
        config["id2label"] = labels;
        sandbox.write(&format!("{name}/config.json"), config.to_string());
        sandbox.vpt_within_limits(&args(name)).fails(&[&format!("{name}/config.json"), message]);
    }
    // Names are no part of what is computed.
    copy("nameless");
    let mut config = json_file(&sandbox.path("nameless/config.json"));
    config.as_object_mut().unwrap().remove("id2label").unwrap();
    sandbox.write("nameless/config.json", config.to_string());
    let run = [&args("nameless")[..], &["--out", "run", "--epochs", "1"]].concat();
    sandbox.vpt(&run).ok();
    assert!(sandbox.vpt(&["task", "info", "run"]).ok().stdout.contains("class "));
}

#[test]
fn damaged_mappings_of_task_files_are_refused() {
    let sandbox = Sandbox::new();
    train(&sandbox, "run", &mapped("vit"), &["--method", "vp-pad", "--label-map", "ilm", "--epochs", "1"]);
    let bytes = fs::read(sandbox.path("run/best.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let meta: Value = serde_json::from_str(header["__metadata__"]["vpt"].as_str().unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Value, &mut Value)| {
        let (mut header, mut meta) = (header.clone(), meta.clone());
        change(&mut header, &mut meta);
        header["__metadata__"]["vpt"] = meta.to_string().into();
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat()
    };
    let cases = [
        ("more-sources", with(&|_, meta| meta["label_map"]["sources"] = json!(13)), "[12, 3] where [13, 3]"),
        ("few-sources", with(&|_, meta| meta["label_map"]["sources"] = json!(2)), "a label map of 2 classes to 3"),
        ("endless", with(&|_, meta| meta["label_map"]["sources"] = json!(u64::MAX)), "a label map of"),
        ("unknown", with(&|_, meta| meta["label_map"]["kind"] = json!("xlm")), "`xlm` is not one of"),
        ("named", with(&|_, meta| meta["label_map"]["names"] = json!({"12": "x"})), "a name for class 12 of 12"),
        ("prompt", with(&|_, meta| meta["prompt"] = json!({"input": "none"})), "a label map of something else"),
        (
            "without",
            with(&|_, meta| drop(meta.as_object_mut().unwrap().remove("label_map"))),
            "`head.weight` is missing",
        ),
    ];
    for (name, bytes, message) in cases {
        let file = format!("{name}.safetensors");
        sandbox.write(&file, bytes);
        sandbox.vpt_within_limits(&["task", "info", &file]).fails(&[&file, message]);
    }
}

#[test]
fn nothing_that_is_chosen_depends_on_the_labels_of_test() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let classes = ["blue", "dark_red", "green"];
    for (data, shift) in [("right", 0), ("wrong", 1)] {
        for (i, class) in classes.iter().enumerate() {
            for image in 0..20 {
                let part = ["train", "train", "val", "test"][image % 4];
                let label = if part == "test" { classes[(i + shift) % 3] } else { class };
                let name = format!("{image:03}.png");
                let bytes = fs::read(sandbox.path("colours").join(class).join(&name)).unwrap();
                sandbox.write(&format!("{data}/{part}/{label}/{class}-{name}"), bytes);
            }
        }
    }
    let vit = mapped("vit");
    let run = |data: &str| {
        let args = ["train", "--backbone", &vit, "--data", data, "--out", &format!("run-{data}"), "--json"];
        let how = ["--method", "vp-frame", "--label-map", "ilm", "--epochs", "6", "--lr", "auto", "--threads", "2"];
        sandbox.vpt(&[&args[..], &how].concat()).ok().json()
    };
    let (right, wrong) = (run("right"), run("wrong"));
    for field in ["val", "best_epoch", "lr", "lr_search", "temperature"] {
        assert_eq!(right[field], wrong[field], "{field}");
    }
    assert_ne!(right["test"], wrong["test"]);
    let last = |data: &str| fs::read(sandbox.path(&format!("run-{data}/last.safetensors"))).unwrap();
    assert!(last("right") == last("wrong"));
}

#[test]
fn a_grid_maps_labels_where_pixels_are_learned() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = mapped("vit");
    let grid = |out, methods, more: &[&str]| {
        let args = ["bench", "few-shot", "--backbone", &vit, "--data", "colours", "--methods", methods];
        let how = ["--shots", "2", "--seeds", "1", "--epochs", "2", "--threads", "1", "--out", out];
        sandbox.vpt(&[&args[..], &how, more].concat())
    };
    grid("grid", "linear,vp-frame", &["--label-map", "blm"]).ok();
    let map = |job: &str| json_file(&sandbox.path("grid/jobs").join(job))["identity"]["label_map"].clone();
    assert_eq!((map("colours-vp-frame-2-1.json"), map("colours-linear-2-1.json")), (json!("blm"), Value::Null));
    let csv = fs::read_to_string(sandbox.path("grid/results.csv")).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].ends_with(",label_map") && lines[1].ends_with(',') && lines[2].ends_with(",blm"), "{csv}");
    grid("grid", "linear,vp-frame", &["--label-map", "ilm"]).fails(&["label_map", "\"blm\" there, \"ilm\" here"]);
    grid("other", "linear", &["--label-map", "ilm"]).refuses(&["--label-map: none of --methods learns prompt pixels"]);
    let few = ["bench", "few-shot", "--backbone", &fixture("vit"), "--data", "colours", "--methods", "vp-pad"];
    let few = [&few[..], &["--label-map", "ilm", "--out", "few"]].concat();
    sandbox.vpt(&few).refuses(&["--label-map: colours has 3 classes, where the backbone's classifier has 2"]);
}
