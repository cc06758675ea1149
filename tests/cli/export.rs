//! Tasks and backbones as ONNX files: of every method and family, each held against the engine by the command itself, and what
//! must not be left behind.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::old_runs;
use crate::util::{Sandbox, files, fixture, number};

/// The entry `key` of a model's metadata: what stands behind it in the file.
fn holds_text(path: &Path, text: &str) -> bool {
    fs::read(path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

/// The command has compared, and what it found is rounding.
fn is_rounding(result: &Value, images: u64) {
    let parity = &result["parity"];
    let [difference, largest, limit] = ["/max_difference", "/largest", "/limit"].map(|pointer| number(parity, pointer));
    assert!(difference <= limit * largest, "{parity}");
    assert!(parity["images"] == images, "{parity}");
}

/// Every old run that `chosen` picks, as a file.
fn all(chosen: impl Fn(&str) -> bool) {
    let (sandbox, runs) = old_runs::of_version();
    let mut exported = 0;
    for run in runs.as_array().unwrap().iter().filter(|run| chosen(run["name"].as_str().unwrap())) {
        sandbox.holds(run["name"].as_str().unwrap(), || {
            old_runs::place(&sandbox, run);
            let images: Vec<&str> = run["images"].as_array().unwrap().iter().map(|i| i.as_str().unwrap()).collect();
            let args = [&["export", "--model", "whole", "--out", "m.onnx", "--json", "--verify"][..], &images].concat();
            let result = sandbox.vpt(&args).ok().json();
            is_rounding(&result, images.len() as u64);
            assert_eq!(result["parity"]["agree"], result["parity"]["of_total"], "{result}");
            let boxes = result["parity"]["of"] == "boxes";
            assert_eq!(
                result["outputs"],
                if boxes { "[\"output0\"]" } else { "[\"probs\",\"logits\"]" }.parse::<Value>().unwrap()
            );
            assert!(holds_text(&sandbox.path("m.onnx"), "vpt_parity"));
        });
        exported += 1;
    }
    assert!(exported > 2, "{exported} runs");
}

fn on_boxes(name: &str) -> bool {
    name.starts_with("detect") || name.starts_with("multilabel")
}

#[test]
fn every_method_for_classes_leaves_as_a_file_that_answers_the_same() {
    all(|name| !on_boxes(name));
}

#[test]
fn detectors_and_labels_of_boxes_leave_as_files_that_answer_the_same() {
    all(on_boxes);
}

#[test]
fn backbones_leave_with_their_text_towers() {
    let sandbox = Sandbox::new();
    let families = ["clip", "clip-gelu", "siglip", "siglip2", "dinov2-registers", "dinov2-swiglu", "mae"];
    for family in families {
        let backbone = fixture(family);
        let args = ["export", "--backbone", &backbone, "--out", "b.onnx", "--json"];
        let result = sandbox.vpt(&args).ok().json();
        is_rounding(&result, 8);
        let texts = ["clip", "clip-gelu", "siglip", "siglip2"].contains(&family);
        assert_eq!(result["texts"].is_object(), texts, "{result}");
        if texts {
            is_rounding(&result["texts"], 4);
            assert_eq!(result["texts"]["files"][0], "b.text.onnx");
        }
    }
}

#[test]
fn forms_differ_and_answer_the_same() {
    let (sandbox, runs) = old_runs::of_version();
    let runs = runs.as_array().unwrap();
    let run = |name: &str| runs.iter().find(|run| run["name"] == name).unwrap();
    old_runs::place(&sandbox, run("vpt-deep"));
    let export = |more: &[&str]| {
        let args = [&["export", "--model", "whole", "--out", "m.onnx", "--json"][..], more].concat();
        sandbox.vpt(&args).ok().json()
    };
    let plain = export(&[]);
    // The run's own validation images are read where its data are.
    assert_eq!(plain["parity"]["on"], "validation images", "{plain}");
    for (more, precision, opset) in [
        (&["--opset", "23"][..], "f32", 23),
        (&["--precision", "f16"], "f16", 17),
        (&["--external-data"], "f32", 17),
        (&["--task-input"], "f32", 17),
        (&["--layout", "hf"], "f32", 17),
    ] {
        let result = export(more);
        is_rounding(&result, plain["parity"]["images"].as_u64().unwrap());
        assert_eq!((&result["precision"], &result["opset"]), (&precision.into(), &opset.into()));
    }
    assert_eq!(export(&["--external-data"])["files"], "[\"m.onnx\",\"m.onnx.data\"]".parse::<Value>().unwrap());
    assert_eq!(export(&["--layout", "hf"])["outputs"], "[\"logits\",\"probs\"]".parse::<Value>().unwrap());
    let config: Value = serde_json::from_slice(&fs::read(sandbox.path("config.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"], "{\"0\":\"blue\",\"1\":\"green\",\"2\":\"red\"}".parse::<Value>().unwrap());
    let inputs = export(&["--task-input"])["inputs"].clone();
    assert_eq!(inputs.as_array().unwrap().len(), 5, "{inputs}");
    let args = ["export", "--model", "whole", "--task-tensors", "t.npz", "--json"];
    let result = sandbox.vpt(&args).ok().json();
    assert_eq!(result["task_tensors"]["names"].as_array().unwrap()[..], inputs.as_array().unwrap()[1..]);
    old_runs::place(&sandbox, run("detect-deep"));
    let result = export(&["--nms"]);
    is_rounding(&result, result["parity"]["images"].as_u64().unwrap());
}

#[test]
fn the_same_task_is_the_same_file() {
    let (sandbox, runs) = old_runs::of_version();
    old_runs::place(&sandbox, &runs[0]);
    let bytes = |out: &str| {
        sandbox.vpt(&["export", "--model", "whole", "--out", out]).ok();
        fs::read(sandbox.path(out)).unwrap()
    };
    assert!(bytes("a.onnx") == bytes("b.onnx"));
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let (sandbox, runs) = old_runs::of_version();
    let runs = runs.as_array().unwrap();
    let run = |name: &str| runs.iter().find(|run| run["name"] == name).unwrap();
    let export = |more: &[&str]| sandbox.vpt(&[&["export", "--model", "whole", "--out", "m.onnx"][..], more].concat());
    old_runs::place(&sandbox, run("detect-deep"));
    export(&["--layout", "hf"]).refuses(&["--layout", "detector"]);
    export(&["--task-input"]).refuses(&["--task-input"]);
    old_runs::place(&sandbox, run("full"));
    export(&["--task-input"]).refuses(&["--task-input", "weights of its own"]);
    export(&["--nms"]).refuses(&["--nms", "classes, not boxes"]);
    export(&["--precision", "bf16"]).refuses(&["--precision", "f32 or f16"]);
    sandbox.vpt(&["export", "--out", "m.onnx"]).refuses(&["--model"]);
    sandbox.vpt(&["embed", "--precision", "f16", "--out", "x", "data/colours"]).refuses(&["f16 is for vpt export"]);
    export(&["--verify", "nowhere.png"]).fails(&["nowhere.png"]);
    sandbox.vpt(&["export", "--model", "whole", "--out", "absent/m.onnx"]).fails(&["absent/m.onnx"]);
    fs::remove_dir_all(sandbox.path("fixtures")).unwrap();
    fs::remove_file(sandbox.path("whole/config.toml")).unwrap();
    export(&[]).fails(&["dinov2-swiglu", "--backbone"]);
    assert!(!files(&sandbox.path(".")).iter().any(|file| file.contains("onnx") || file.contains(".vpt-")));
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let (sandbox, runs) = old_runs::of_version();
    old_runs::place(&sandbox, &runs[0]);
    let closed = sandbox.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    // Who may do everything writes here, too.
    if fs::write(closed.join("probe"), b"").is_err() {
        sandbox.vpt(&["export", "--model", "whole", "--out", "closed/m.onnx"]).fails(&["closed/m.onnx", "denied"]);
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!files(&closed).iter().any(|file| file.contains("onnx")));
}
