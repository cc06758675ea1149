//! What `--json` prints and what a run leaves as JSON is what docs/json.schema.json says, command by command.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::util::{Sandbox, copy_folder, fixture, json_file};

/// The schema, and which of its definitions have met a value.
pub(crate) struct Schema {
    definitions: Map<String, Value>,
    seen: BTreeSet<String>,
}

impl Schema {
    pub(crate) fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.schema.json");
        let definitions = json_file(&path)["$defs"].as_object().unwrap().clone();
        Self { definitions, seen: BTreeSet::new() }
    }

    /// `value` is what `name` says.
    #[track_caller]
    pub(crate) fn holds(&mut self, name: &str, value: &Value) {
        let definition = self.definitions.get(name).unwrap_or_else(|| panic!("no definition of {name}")).clone();
        let faults = self.faults(&definition, value, name);
        assert!(faults.is_empty(), "{faults:#?} in {value:#}");
        self.seen.insert(name.to_owned());
    }

    /// What of `value` is not as `schema` says. Only the keywords that the file uses are known; another one is a fault.
    fn faults(&mut self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let mut faults = Vec::new();
        for (keyword, rule) in schema.as_object().unwrap() {
            match keyword.as_str() {
                "description" | "title" => {}
                "$ref" => {
                    let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap().to_owned();
                    let definition = self.definitions.get(&name).unwrap_or_else(|| panic!("no {name}")).clone();
                    self.seen.insert(name);
                    faults.extend(self.faults(&definition, value, at));
                }
                "anyOf" => {
                    let tried: Vec<_> =
                        rule.as_array().unwrap().iter().map(|one| self.faults(one, value, at)).collect();
                    if tried.iter().all(|faults| !faults.is_empty()) {
                        faults.push(format!("{at} is none of {}: {tried:?}", tried.len()));
                    }
                }
                "type" => {
                    let types: Vec<&str> = match rule {
                        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
                        one => one.as_str().into_iter().collect(),
                    };
                    if !types.iter().any(|name| is(value, name)) {
                        faults.push(format!("{at} is {value}, not {types:?}"));
                    }
                }
                "enum" => {
                    if !rule.as_array().unwrap().contains(value) {
                        faults.push(format!("{at} is {value}, none of {rule}"));
                    }
                }
                "pattern" => {
                    // The patterns of the file are plain text.
                    if !value.as_str().is_some_and(|text| text.contains(rule.as_str().unwrap())) {
                        faults.push(format!("{at} is {value}, without {rule}"));
                    }
                }
                "minimum" | "maximum" => {
                    let (bound, found) = (rule.as_f64().unwrap(), value.as_f64());
                    if found.is_some_and(|v| if keyword == "minimum" { v < bound } else { v > bound }) {
                        faults.push(format!("{at} is {value}, {keyword} {bound}"));
                    }
                }
                "minItems" | "maxItems" => {
                    let (length, bound) = (value.as_array().map(|all| all.len() as u64), rule.as_u64().unwrap());
                    let wrong = |length: u64| if keyword == "minItems" { length < bound } else { length > bound };
                    faults.extend(length.filter(|length| wrong(*length)).map(|n| format!("{at} has {n} items")));
                }
                "items" => {
                    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                        faults.extend(self.faults(rule, item, &format!("{at}/{i}")));
                    }
                }
                "properties" => {
                    for (name, rule) in rule.as_object().unwrap() {
                        if let Some(part) = value.get(name) {
                            faults.extend(self.faults(rule, part, &format!("{at}/{name}")));
                        }
                    }
                }
                "required" => {
                    let missing = rule.as_array().unwrap().iter().filter_map(Value::as_str);
                    let missing = missing.filter(|name| value.is_object() && value.get(name).is_none());
                    faults.extend(missing.map(|name| format!("{at} has no {name}")));
                }
                "additionalProperties" => {
                    let known = schema.get("properties").and_then(Value::as_object);
                    for (name, part) in value.as_object().into_iter().flatten() {
                        let at = format!("{at}/{name}");
                        match rule {
                            _ if known.is_some_and(|known| known.contains_key(name)) => {}
                            Value::Bool(false) => faults.push(format!("{at} is not in the schema")),
                            rule => faults.extend(self.faults(rule, part, &at)),
                        }
                    }
                }
                other => panic!("the test does not know the keyword {other}"),
            }
        }
        faults
    }
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the test does not know the type {other}"),
    }
}

/// Trains a run of each task and looks at everything that knows of it.
fn runs(sandbox: &Sandbox, schema: &mut Schema) {
    let clip = fixture("clip");
    sandbox.colours("photos", 12);
    sandbox.boxes("boxes", 24);
    // With an object of every class in every part.
    sandbox.boxes("plenty", 120);
    sandbox.masks("masks", 24);
    let of_task: [(&str, &str, &[&str]); 4] = [
        ("classify", "photos", &["--method", "linear", "--head", "text", "--lr", "auto", "--epochs", "4"]),
        ("multilabel", "boxes", &["--task", "multilabel", "--method", "vp-pad", "--epochs", "2"]),
        ("detect", "boxes", &["--image-size", "32", "--prompt-layers", "last:1", "--epochs", "3"]),
        (
            "segment",
            "masks",
            &["--task", "segment", "--image-size", "32", "--prompt-layers", "last:1", "--epochs", "2"],
        ),
    ];
    for (task, data, flags) in of_task {
        let run = format!("runs/{task}/a");
        let mut print = |name: &str, args: &[&str]| {
            let printed = sandbox.vpt(&[args, &["--json"]].concat()).ok().json();
            schema.holds(name, &printed);
        };
        print("train", &[&["train", "--backbone", &clip, "--data", data, "--out", &run], flags].concat());
        print("eval", &["eval", "--model", &run, "--data", data]);
        let image = match data {
            "photos" => "photos/green/000.png",
            "boxes" => "boxes/val",
            _ => "masks/JPEGImages",
        };
        print("predict", &["predict", "--model", &run, image, "--save", "drawn"]);
        if task != "segment" {
            print("predict", &["predict", "--model", &run, image, "--attention", "looks"]);
        }
        print("task info", &["task", "info", &run]);
        if task != "segment" {
            print("export", &["export", "--model", &run, "--out", "m.onnx"]);
        }
        print("runs show", &["runs", "show", &run]);
        let file = |name: &str| sandbox.path(&run).join(name);
        for name in ["results.json", "environment.json", "split.json"] {
            schema.holds(name, &json_file(&file(name)));
        }
        for line in fs::read_to_string(file("metrics.jsonl")).unwrap().lines() {
            schema.holds("metrics.jsonl", &serde_json::from_str(line).unwrap());
        }
    }
    schema.holds("lr_search.json", &json_file(&sandbox.path("runs/classify/a/lr_search.json")));
    schema.holds("detections.json", &json_file(&sandbox.path("runs/detect/a/val_detections.json")));
    let solved = [
        "train",
        "--backbone",
        &clip,
        "--data",
        "photos",
        "--method",
        "linear",
        "--solver",
        "lbfgs",
        "--out",
        "runs/l2",
    ];
    schema.holds("train", &sandbox.vpt(&[&solved[..], &["--json"]].concat()).ok().json());
    schema.holds("l2_search.json", &json_file(&sandbox.path("runs/l2/l2_search.json")));
    let few = [
        "train",
        "--backbone",
        &clip,
        "--data",
        "photos",
        "--shots",
        "2",
        "--epochs",
        "1",
        "--folds",
        "2",
        "--out",
        "runs/few",
        "--country",
        "FRA",
    ];
    schema.holds("train", &sandbox.vpt(&[&few[..], &["--json"]].concat()).ok().json());
    schema.holds("few_shot.json", &json_file(&sandbox.path("runs/few/few_shot.json")));
    schema.holds("folds.json", &json_file(&sandbox.path("runs/few/folds.json")));
    schema.holds("runs list", &sandbox.vpt(&["runs", "list", "--json"]).ok().json());
    schema.holds("runs compare", &sandbox.vpt(&["runs", "compare", "classify/a", "detect/a", "--json"]).ok().json());
    schema.holds("runs rm", &sandbox.vpt(&["runs", "rm", "few", "--yes", "--json"]).ok().json());
}

#[test]
fn json_is_what_the_schema_says() {
    let sandbox = Sandbox::new();
    let mut schema = Schema::load();
    runs(&sandbox, &mut schema);
    let clip = fixture("clip");
    // With a label that is wrong and a picture that is there twice.
    sandbox.colours("twice", 12);
    fs::copy(sandbox.path("twice/blue/000.png"), sandbox.path("twice/green/blue.png")).unwrap();
    let commands: &[(&str, &[&str])] = &[
        ("zero-shot", &["zero-shot", "--backbone", &clip, "--data", "photos"]),
        ("export", &["export", "--backbone", &clip, "--out", "b.onnx"]),
        (
            "embed",
            &["embed", "--backbone", &clip, "--out", "e.safetensors", "photos/green/000.png", "--texts", "a cat"],
        ),
        ("shards", &["embed", "--backbone", &clip, "--input", "photos/green", "--shard", "1/1", "--out", "shards"]),
        ("shards", &["predict", "--model", "runs/classify/a", "--input", "photos/green", "--out", "predicted"]),
        ("bench step", &["bench", "step", "--backbone", &clip, "--batch-size", "2"]),
        (
            "bench backbones",
            &[
                "bench",
                "backbones",
                "--data",
                "photos",
                "--backbones",
                &clip,
                "--shots",
                "1",
                "--seeds",
                "1",
                "--out",
                "which",
            ],
        ),
        ("bench kernels", &["bench", "kernels", "--rows", "8", "--width", "64", "--tokens", "9", "--repeats", "1"]),
        ("bench detect", &["bench", "detect", "--backbone", &clip, "--image-size", "32", "--batch-size", "2"]),
        (
            "bench detect",
            &["bench", "detect", "--task", "segment", "--backbone", &clip, "--image-size", "32", "--repeats", "1"],
        ),
        ("cache info", &["cache", "info"]),
        ("cache clear", &["cache", "clear"]),
        ("data info", &["data", "info", "photos"]),
        ("data info", &["data", "info", "boxes"]),
        ("data info", &["data", "info", "masks"]),
        ("data info", &["data", "info", "oxford-pets"]),
        ("data info", &["data", "info", "rf100-vl"]),
        ("data list", &["data", "list"]),
        ("data check", &["data", "check", "plenty"]),
        ("data audit", &["data", "audit", "twice", "--backbone", &clip, "--out", "audit"]),
        ("data audit", &["data", "audit", "boxes", "--backbone", &clip]),
        ("data convert", &["data", "convert", "boxes", "--to", "yolo", "--out", "yolo"]),
        ("data make shapes", &["data", "make", "shapes", "--out", "drawn-shapes", "--images", "192", "--size", "16"]),
        ("backbones list", &["backbones", "list"]),
        ("backbones info", &["backbones", "info", "clip-nano"]),
        ("backbones info", &["backbones", "info", &fixture("vit")]),
        ("backbones verify", &["backbones", "verify", "clip-nano"]),
        ("completions", &["completions", "bash"]),
        ("man", &["man"]),
        ("man", &["man", "--out", "man"]),
    ];
    for (name, args) in commands {
        schema.holds(name, &sandbox.vpt(&[args, &["--json"][..]].concat()).ok().json());
    }
    let cluster = ["cluster", "slurm", "--json", "--", "train", "--data", "photos", "--out", "there"];
    schema.holds("cluster", &sandbox.vpt(&cluster).ok().json());
    schema.holds("shard stats", &json_file(&sandbox.path("shards/stats/0.json")));
    // With something to find: an empty file, and a file of another kind.
    sandbox.write("photos/green/bad.png", "");
    sandbox.write("photos/green/notes.avif", "x");
    let found = sandbox.vpt(&["data", "check", "photos", "--json"]);
    assert_eq!(found.code, Some(1));
    schema.holds("data check", &found.json());
    // Random weights under the name of published ones.
    copy_folder(Path::new(&clip), &sandbox.path("weights/clip-vit-b32"));
    let verify = [
        "backbones",
        "verify",
        "clip-vit-b32",
        "--weights-dir",
        "weights",
        "--image",
        "photos/green/000.png",
        "--json",
    ];
    let found = sandbox.vpt(&verify);
    assert_eq!(found.code, Some(1));
    schema.holds("backbones verify --image", &found.json());
    assert!(found.stderr.contains("values differ from the published ones"), "{}", found.stderr);
    let unseen: Vec<&String> = schema.definitions.keys().filter(|name| !schema.seen.contains(*name)).collect();
    // What the hub sends needs a hub; see hub.rs. A server does not end by itself; see serve/life.rs.
    assert_eq!(unseen, ["backbones fetch", "serve"], "definitions that nothing was held against");
}
