//! Runs of older versions: their task files open and predict the same, and what was interrupted is taken up to the same end.
//!
//! `scripts/make_old_run_fixtures.py` made them, a folder a version, a run of every method and task, with the portable kernel.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::util::{Run, Sandbox, finish, fixture, json_file};

/// Folder of the fixtures of one version.
pub(crate) const VERSION: &str = "old-runs/0.1.0";

/// Whether functions such as `exp` are those of the machine where the runs were made, so that all numbers are the same.
const SAME_NUMBERS: bool = cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"));

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else if entry.file_name() != "expected.safetensors" {
            fs::copy(path, to).unwrap();
        }
    }
}

/// Header and data of a safetensors file.
fn parts(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), &bytes[8 + length..])
}

/// Name, shape and bytes.
type Tensor<'a> = (String, Value, &'a [u8]);

/// Metadata of a task file, and its tensors in the order of their names.
fn content(bytes: &[u8]) -> (Value, Vec<Tensor<'_>>) {
    let (header, data) = parts(bytes);
    let metadata = serde_json::from_str(header["__metadata__"]["vpt"].as_str().unwrap()).unwrap();
    let mut tensors: Vec<_> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, tensor)| {
            let [begin, end] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() as usize);
            (name.clone(), tensor["shape"].clone(), &data[begin..end])
        })
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    (metadata, tensors)
}

/// A file of this header whose tensors repeat 1021 numbers, as the script fills those of detectors.
pub(crate) fn filled(header: &[u8]) -> Vec<u8> {
    let mut state = 1u32;
    let numbers: Vec<f32> = (0..1021)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(state >> 8) / f64::from(1 << 24) * 0.1 - 0.05) as f32
        })
        .collect();
    let mut bytes = [&(header.len() as u64).to_le_bytes(), header].concat();
    let begin = bytes.len();
    let header: Value = serde_json::from_slice(header).unwrap();
    for (name, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        let [from, to] = [0, 1].map(|i| begin + tensor["data_offsets"][i].as_u64().unwrap() as usize);
        bytes.resize(bytes.len().max(to), 0);
        for (number, to) in numbers.iter().cycle().zip(bytes[from..to].chunks_exact_mut(4)) {
            let squares = name.starts_with("second/");
            to.copy_from_slice(&(if squares { number.abs() } else { *number }).to_le_bytes());
        }
    }
    bytes
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

/// `actual` says what `expected` says, and maybe more; numbers differ by `error` at most, relative to those above one.
fn says(expected: &Value, actual: &Value, error: f64) -> bool {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            expected.iter().all(|(key, value)| actual.get(key).is_some_and(|actual| says(value, actual, error)))
        }
        (Value::Array(expected), Value::Array(actual)) => {
            expected.len() == actual.len() && expected.iter().zip(actual).all(|(e, a)| says(e, a, error))
        }
        (Value::Number(expected), Value::Number(actual)) => {
            let (expected, actual) = (expected.as_f64().unwrap(), actual.as_f64().unwrap());
            (expected - actual).abs() <= error * expected.abs().max(1.)
        }
        _ => expected == actual,
    }
}

/// Runs the program with the kernel of the fixtures.
fn portable(sandbox: &Sandbox, args: &[&str]) -> Run {
    let mut command = sandbox.command(args);
    command.env("VPT_KERNEL", "portable");
    finish(command, args).ok()
}

/// Puts the finished task of a run of the fixtures into the folder `whole`, and its backbone where it looks for it.
pub(crate) fn place(sandbox: &Sandbox, run: &Value) -> Vec<u8> {
    let kept = Path::new(&fixture(VERSION)).join(run["name"].as_str().unwrap());
    let read = |file: &str| fs::read(kept.join(file)).unwrap();
    let backbone = run["backbone"].as_str().unwrap();
    copy(Path::new(&fixture(backbone)), &sandbox.path("fixtures").join(backbone));
    let task_file = if run["large"] == true { filled(&read("finished.header")) } else { read("finished.safetensors") };
    sandbox.write("whole/config.toml", read("config.toml"));
    sandbox.write("whole/split.json", read("split.json"));
    sandbox.write("whole/best.safetensors", &task_file);
    task_file
}

/// A sandbox with the data of the fixtures, and the list of their runs.
pub(crate) fn of_version() -> (Sandbox, Value) {
    let sandbox = Sandbox::new();
    let version = fixture(VERSION);
    copy(&Path::new(&version).join("data"), &sandbox.path("data"));
    (sandbox, json_file(&Path::new(&version).join("runs.json")))
}

/// One run of the fixtures, in a folder where its relative paths hold.
fn opens_predicts_and_resumes(sandbox: &Sandbox, run: &Value) {
    let name = run["name"].as_str().unwrap();
    let large = run["large"] == true;
    let kept = Path::new(&fixture(VERSION)).join(name);
    let read = |file: &str| fs::read(kept.join(file)).unwrap();
    let task_file = place(sandbox, run);
    let info = sandbox.vpt(&["task", "info", "whole", "--json"]).ok().json();
    assert_eq!(info["method"], content(&task_file).0["method"]);
    let predict = ["predict", "--model", "whole", "--threads", "2", "--json"];
    let least: &[&str] = if large { &["--min-score", "0"] } else { &[] };
    let images: Vec<&str> = run["images"].as_array().unwrap().iter().map(|image| image.as_str().unwrap()).collect();
    let predict = [&predict[..], least, &images].concat();
    let expected = json_file(&kept.join("predictions.json"));
    let same = portable(sandbox, &predict).json();
    let near = sandbox.vpt(&predict).ok().json();
    // The order of a detector's boxes hangs on the last digits of scores that are all about the same here.
    if SAME_NUMBERS || !large {
        // That version's heads took all images at once, whose sums have other last digits than those of one image.
        assert!(says(&expected, &same, if SAME_NUMBERS { 1e-6 } else { 1e-3 }), "{expected} where now {same}");
    }
    assert!(large || says(&expected, &near, 1e-3), "{expected} where now {near}");

    copy(&kept, &sandbox.path(name));
    if large {
        sandbox.write(&format!("{name}/checkpoint.safetensors"), filled(&read("checkpoint.header")));
    }
    if run["stopped"] == false {
        sandbox.write(&format!("{name}/best.safetensors"), &task_file);
    }
    sandbox.vpt(&["runs", "show", name]).ok();
    portable(sandbox, &["train", "--resume", name, "--json"]).json();
    let best = fs::read(sandbox.path(name).join("best.safetensors")).unwrap();
    let (metadata, tensors) = content(&best);
    if large {
        let expected = json_file(&kept.join("finished.json"));
        assert!(says(&expected["metadata"], &metadata, 0.) || !SAME_NUMBERS, "{metadata} where {expected}");
        assert_eq!(tensors.len(), expected["tensors"].as_object().unwrap().len());
        for (tensor, shape, data) in tensors {
            let expected = &expected["tensors"][&tensor];
            assert_eq!(shape, expected[0], "{tensor}");
            assert!(!SAME_NUMBERS || expected[1] == adler32(data), "{tensor} has other values");
        }
        return;
    }
    let (expected, values) = content(&task_file);
    let error = if SAME_NUMBERS { 0. } else { 1e-2 };
    assert!(says(&expected, &metadata, error), "{expected} where now {metadata}");
    assert_eq!(tensors.len(), values.len());
    for ((tensor, shape, data), (expected, of_shape, values)) in tensors.into_iter().zip(values) {
        assert_eq!((&tensor, shape), (&expected, of_shape));
        let numbers = |bytes: &[u8]| -> Value {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        assert!(data == values || !SAME_NUMBERS && says(&numbers(values), &numbers(data), error), "{tensor} differs");
    }
}

/// All runs whose names `chosen` picks.
fn all(chosen: impl Fn(&str) -> bool) {
    let (sandbox, runs) = of_version();
    let mut looked_at = 0;
    for run in runs.as_array().unwrap().iter().filter(|run| chosen(run["name"].as_str().unwrap())) {
        sandbox.holds(run["name"].as_str().unwrap(), || opens_predicts_and_resumes(&sandbox, run));
        looked_at += 1;
    }
    assert!(looked_at > 2, "{looked_at} runs");
}

fn on_boxes(name: &str) -> bool {
    name.starts_with("detect") || name.starts_with("multilabel")
}

fn on_clip(name: &str) -> bool {
    ["linear-text", "zero-shot", "zs-lp", "clap", "tip-adapter", "tip-adapter-f"].contains(&name)
        || ["coop", "cocoop", "ivlp", "maple", "promptsrc", "lora"].contains(&name)
}

#[test]
fn old_runs_on_boxes_go_on() {
    all(on_boxes);
}

#[test]
fn old_runs_that_know_texts_go_on() {
    all(on_clip);
}

#[test]
fn old_runs_of_other_methods_go_on() {
    all(|name| !on_boxes(name) && !on_clip(name));
}

#[test]
fn every_method_has_an_old_run() {
    let runs = json_file(&Path::new(&fixture(VERSION)).join("runs.json"));
    let mut methods: Vec<String> = runs.as_array().unwrap().iter().map(method_of).collect();
    methods.sort();
    methods.dedup();
    assert_eq!(methods.len(), 21, "{methods:?}");
}

fn method_of(run: &Value) -> String {
    let folder = Path::new(&fixture(VERSION)).join(run["name"].as_str().unwrap());
    let config = fs::read_to_string(folder.join("config.toml")).unwrap();
    config.lines().find(|line| line.starts_with("method = ")).unwrap().to_owned()
}
