//! Files that were made to do harm, or were harmed themselves: each is refused with exit code 1 and one line that names
//! it, in two seconds and 512 MiB, by a program that does not panic.

mod annotations;
mod backbones;
mod images;
mod lists;
mod outputs;
mod pickles;
mod runs;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::util::{Sandbox, fixture};

/// Runs `args`, which must fail with one line that contains `parts`.
fn refused(sandbox: &Sandbox, args: &[&str], parts: &[&str]) {
    sandbox.holds("", || drop(sandbox.vpt_within_limits(args).fails(parts)));
}

/// The program names what is bad by `parts`, answers for the rest, and fails.
fn passed_over(sandbox: &Sandbox, args: &[&str], parts: &[&str]) {
    sandbox.holds("", || {
        let run = sandbox.vpt_within_limits(args);
        let last = run.stderr.lines().last().unwrap_or_default();
        assert!(run.code == Some(1) && last.starts_with("error: ") && last.len() <= 1000, "{run:#?}");
        assert!(parts.iter().all(|part| run.stderr.contains(part)), "no {parts:?} in {run:#?}");
    });
}

/// A copy `name` of the fixture `family` that can be damaged.
fn copied(sandbox: &Sandbox, family: &str, name: &str) {
    let to = sandbox.path(name);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(fixture(family)).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() && entry.file_name() != "expected.safetensors" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The JSON file `path` with `value` at the pointer `at`, or without what is there if that is `null`.
fn patch(path: &Path, at: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let (parent, key) = at.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(key).unwrap();
    } else {
        parent.insert(key.to_owned(), value);
    }
    fs::write(path, json.to_string()).unwrap();
}

/// A safetensors file with this header.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Header and data of a safetensors file.
fn parts(file: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + length]).unwrap(), &file[8 + length..])
}

/// Objects in objects, deeper than any reader should follow.
fn deep(levels: usize) -> String {
    format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels))
}

/// An entry of a safetensors header.
fn entry(dtype: &str, shape: &Value, offsets: [u64; 2]) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}
