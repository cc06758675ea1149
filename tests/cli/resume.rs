//! A run that is killed without warning and taken up again ends as if nothing had happened.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use rand::Rng;
use serde_json::Value;

use crate::util::{Sandbox, fixture, json_file, number};

/// How long the run should take: some of its checkpoints, which come every two seconds.
const SECONDS: f64 = 7.;
const LIMIT: Duration = Duration::from_secs(120);

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Waits until `path` is written anew, or the run ends.
fn wait_for_change(path: &Path, before: Option<SystemTime>, child: &mut Child) {
    let begin = Instant::now();
    while modified(path) == before && child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < LIMIT, "{} is never written", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

/// As many epochs as take [`SECONDS`] here and now; `train` trains as the run will.
fn epochs(sandbox: &Sandbox, train: &[&str]) -> String {
    sandbox.vpt(&[train, &["--out", "trial", "--epochs", "40"]].concat()).ok();
    let lines = fs::read_to_string(sandbox.path("trial/metrics.jsonl")).unwrap();
    let seconds = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        number(&record, "/train_seconds") + number(&record, "/val_seconds")
    };
    let taken: f64 = lines.lines().map(seconds).sum();
    ((SECONDS / taken * 40.) as usize).clamp(80, 50_000).to_string()
}

/// Runs `train` as a whole, then again with kills at random, and compares what is left.
fn killed_and_resumed(sandbox: &Sandbox, train: &[&str]) {
    let epochs = epochs(sandbox, train);
    let train = |out| [train, &["--epochs", &epochs, "--out", out]].concat();
    sandbox.vpt(&train("whole")).ok();

    let first = train("killed");
    let mut rng = rand::rng();
    let checkpoint = sandbox.path("killed/checkpoint.safetensors");
    let mut kills = 0;
    for attempt in 0..4 {
        let begun = sandbox.path("killed/config.toml").exists();
        let args = if begun { vec!["train", "--resume", "killed"] } else { first.clone() };
        let before = modified(&checkpoint);
        let mut child = sandbox.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if attempt == 0 {
            // Before there is a checkpoint.
            wait_for_change(&sandbox.path("killed/metrics.jsonl"), None, &mut child);
        } else {
            wait_for_change(&checkpoint, before, &mut child);
        }
        thread::sleep(Duration::from_millis(rng.random_range(0..600)));
        child.kill().unwrap();
        kills += usize::from(!child.wait().unwrap().success());
        if sandbox.path("killed/results.json").exists() {
            break;
        }
    }
    assert!(kills > 0, "the run was over before it could be killed");
    sandbox.vpt(&["train", "--resume", "killed"]).ok();
    for file in ["best.safetensors", "last.safetensors", "split.json", "config.toml"] {
        let read = |run: &str| fs::read(sandbox.path(run).join(file)).unwrap();
        assert!(read("whole") == read("killed"), "{file} differs after {kills} kills");
    }
    let results = |run: &str| json_file(&sandbox.path(run).join("results.json"));
    assert_eq!(results("whole")["test"], results("killed")["test"]);
    assert_eq!(results("whole")["head_only"], results("killed")["head_only"]);
    let told = |run: &str| fs::read_to_string(sandbox.path(run).join("metrics.jsonl")).unwrap().lines().count();
    assert_eq!(told("whole"), told("killed"), "every epoch is told once");
}

#[test]
fn killed_runs_end_with_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = fixture("vit");
    let settings = ["--method", "vpt-deep", "--flip", "--augment", "trivial", "--batch-size", "8", "--threads", "2"];
    killed_and_resumed(&sandbox, &[&["train", "--backbone", &vit, "--data", "colours"], &settings[..]].concat());
}

#[cfg(feature = "candle")]
#[test]
fn killed_runs_on_candle_end_with_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = fixture("vit");
    let settings = ["--method", "vpt-shallow,vp-pad", "--pad", "4", "--batch-size", "8", "--threads", "2"];
    let engine = ["--engine", "candle"];
    let data = ["train", "--backbone", &vit, "--data", "colours"];
    killed_and_resumed(&sandbox, &[&data[..], &settings[..], &engine[..]].concat());
}

#[test]
fn killed_runs_that_learn_texts_end_with_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let clip = fixture("clip");
    // Both towers, and an average over the epochs; the others keep no more than this. (src/train/tests.rs stops them all.)
    let settings = ["--method", "promptsrc", "--flip", "--threads", "2"];
    killed_and_resumed(&sandbox, &[&["train", "--backbone", &clip, "--data", "colours"], &settings[..]].concat());
}

#[test]
fn killed_runs_with_a_label_map_end_with_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = fixture("label-map/vit");
    // Votes that are fractions, counted in every epoch. (src/train/tests.rs stops the other maps.)
    let settings = ["--method", "vp-frame", "--label-map", "blm+", "--batch-size", "8", "--threads", "2"];
    killed_and_resumed(&sandbox, &[&["train", "--backbone", &vit, "--data", "colours"], &settings[..]].concat());
}

#[test]
fn killed_runs_on_boxes_end_with_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    let clip = fixture("clip");
    // The head alone learns from what is kept, then prompts and head from images: each for a part of the time.
    let settings = ["--image-size", "32", "--prompt-layers", "last:1", "--mosaic", "0.3", "--threads", "2"];
    killed_and_resumed(&sandbox, &[&["train", "--backbone", &clip, "--data", "boxes"], &settings[..]].concat());
}

#[test]
fn a_run_in_use_is_not_taken_up_twice() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = fixture("vit");
    let args = ["train", "--backbone", &vit, "--data", "colours", "--out", "run", "--epochs", "1000000"];
    let mut child = sandbox.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_change(&sandbox.path("run/metrics.jsonl"), None, &mut child);
    let second = sandbox.vpt(&["train", "--resume", "run"]);
    child.kill().unwrap();
    child.wait().unwrap();
    second.fails(&["run", "another process"]);
}
