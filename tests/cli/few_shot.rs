//! `vpt bench few-shot` and `vpt bench merge`: shards, kills, signals, failures.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::util::{Sandbox, files, fixture, json_file, keys};

const LIMIT: Duration = Duration::from_secs(120);

/// A grid of nine jobs on `colours`, into the folder `out`.
fn grid<'a>(clip: &'a str, out: &'a str, epochs: &'a str) -> Vec<&'a str> {
    let what = ["--data", "colours", "--methods", "zero-shot,linear,vpt-shallow", "--shots", "1,2", "--seeds", "1,2"];
    let how = ["bench", "few-shot", "--backbone", clip, "--out", out, "--epochs", epochs, "--threads", "1"];
    [&how[..], &what].concat()
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    sandbox
}

/// The results that do not depend on time.
fn table(sandbox: &Sandbox, out: &str) -> (String, Vec<Value>) {
    let markdown = fs::read_to_string(sandbox.path(out).join("table.md")).unwrap();
    let mut jobs = json_file(&sandbox.path(out).join("results.json"))["jobs"].as_array().unwrap().clone();
    for job in &mut jobs {
        let job = job.as_object_mut().unwrap();
        for field in ["wall_s", "peak_rss_bytes", "energy"] {
            job.remove(field).unwrap();
        }
    }
    (markdown, jobs)
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !there() {
        assert!(begin.elapsed() < LIMIT, "no {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn results(out: &Path) -> usize {
    fs::read_dir(out.join("jobs"))
        .map_or(0, |jobs| jobs.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "json")).count())
}

fn begin(sandbox: &Sandbox, args: &[&str]) -> Child {
    sandbox.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn shards_together_are_one_grid() {
    let (sandbox, clip) = (sandbox(), fixture("clip"));
    let whole = sandbox.vpt(&grid(&clip, "whole", "4")).ok();
    assert!(whole.stdout.contains("zero-shot") && whole.stdout.contains("2 shots"), "{}", whole.stdout);
    assert_eq!(whole.stderr.lines().count(), 10, "{}", whole.stderr);
    let shards =
        ["1/2", "2/2"].map(|shard| begin(&sandbox, &[&grid(&clip, "sharded", "4")[..], &["--shard", shard]].concat()));
    let mut done = 0;
    for shard in shards {
        let output = shard.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        done += said.lines().filter(|line| line.starts_with('[')).count();
    }
    assert_eq!(done, 9, "no job is done twice");
    assert_eq!(table(&sandbox, "sharded"), table(&sandbox, "whole"));
    // Without shards, processes take from each other what is left.
    let both = [(); 2].map(|()| begin(&sandbox, &grid(&clip, "both", "4")));
    let mut done = 0;
    for process in both {
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        done += said.lines().filter(|line| line.starts_with('[') && !line.contains("by another process")).count();
    }
    assert_eq!(done, 9, "no job is done twice");
    assert_eq!(table(&sandbox, "both"), table(&sandbox, "whole"));
    let wanted =
        [".merge.lock", "curves.svg", "draws", "grid.json", "jobs", "report.html", "results.csv", "results.json"];
    let wanted: BTreeSet<&str> = wanted.into_iter().chain(["table.md", "table.tex", "work"]).collect();
    assert_eq!(files(&sandbox.path("both")), wanted.into_iter().collect::<Vec<_>>());
}

#[test]
fn a_killed_grid_goes_on_to_the_same_table() {
    let (sandbox, clip) = (sandbox(), fixture("clip"));
    sandbox.vpt(&grid(&clip, "whole", "60")).ok();
    let args = grid(&clip, "killed", "60");
    for jobs in [1, 4, 7] {
        let mut child = begin(&sandbox, &args);
        let out = sandbox.path("killed");
        wait_for("result", || results(&out) >= jobs || child.try_wait().unwrap().is_some());
        thread::sleep(Duration::from_millis(120));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let last = sandbox.vpt(&args).ok();
    assert!(last.stderr.contains("done already"), "{}", last.stderr);
    assert_eq!(table(&sandbox, "killed"), table(&sandbox, "whole"));
    assert_eq!(sandbox.vpt(&args).ok().stderr, "9 jobs, 9 done already\n");
}

#[test]
#[cfg(unix)]
fn an_interrupted_grid_saves_and_goes_on() {
    let (sandbox, clip) = (sandbox(), fixture("clip"));
    let args = grid(&clip, "stopped", "400");
    let mut child = begin(&sandbox, &args);
    let out = sandbox.path("stopped");
    wait_for("result", || results(&out) >= 1);
    wait_for("run", || fs::read_dir(out.join("work")).is_ok_and(|mut work| work.next().is_some()));
    let kill = format!("kill -INT {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    wait_for("end", || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.ends_with("error: interrupted; the same command goes on with the grid\n"), "{said}");
    assert!(out.join("results.json").exists(), "what there is is written");
    sandbox.vpt(&args).ok();
    sandbox.vpt(&grid(&clip, "whole", "400")).ok();
    assert_eq!(table(&sandbox, "stopped"), table(&sandbox, "whole"));
}

#[test]
fn data_with_boxes_is_compared_by_ap() {
    let (sandbox, clip) = (Sandbox::new(), fixture("clip"));
    sandbox.boxes("boxes", 40);
    let what = ["--data", "boxes", "--methods", "all", "--shots", "2", "--seeds", "1,2", "--epochs", "2"];
    let how = ["bench", "few-shot", "--backbone", &clip, "--image-size", "32", "--threads", "1"];
    let run = sandbox.vpt(&[&how[..], &what, &["--out", "out"]].concat()).ok();
    assert!(run.stdout.contains("boxes: AP in percent, mean ± sd over seeds, AP50 behind it"), "{}", run.stdout);
    assert!(run.stderr.contains("boxes vpt-deep, 2 shots, seed 1: test AP "), "{}", run.stderr);
    let results = json_file(&sandbox.path("out/results.json"));
    let methods: BTreeSet<&str> =
        results["jobs"].as_array().unwrap().iter().map(|job| job["method"].as_str().unwrap()).collect();
    assert!(
        methods.contains("linear") && methods.contains("vpt-deep") && !methods.contains("zero-shot"),
        "{methods:?}"
    );
    // The draw is one that training takes, too.
    let train =
        ["train", "--backbone", &clip, "--data", "boxes", "--image-size", "32", "--epochs", "2", "--method", "linear"];
    sandbox.vpt(&[&train[..], &["--draw", "out/draws/boxes-2-1.json", "--out", "drawn"]].concat()).ok();
    sandbox.vpt(&[&train[..], &["--shots", "2", "--out", "shots"]].concat()).ok();
    assert_eq!(json_file(&sandbox.path("drawn/few_shot.json")), json_file(&sandbox.path("shots/few_shot.json")));
    let best = |run: &str| fs::read(sandbox.path(run).join("best.safetensors")).unwrap();
    assert_eq!(best("drawn"), best("shots"));
    for (args, part) in [
        (&["--task", "classify"][..], "boxes"),
        (&["--base-to-new"], "--base-to-new: not for detection"),
        (&["--label-map", "ilm"], "--label-map: none of --methods learns prompt pixels"),
    ] {
        let run = sandbox.vpt(&[&how[..], &what, args, &["--out", "other"]].concat());
        assert!(run.code.is_some_and(|code| code > 0) && run.stderr.contains(part), "{part}: {run:#?}");
    }
}

#[test]
fn data_with_masks_is_compared_by_miou() {
    let (sandbox, clip) = (Sandbox::new(), fixture("clip"));
    sandbox.masks("masks", 40);
    let task = ["--task", "segment", "--backbone", &clip, "--data", "masks", "--image-size", "32", "--threads", "1"];
    let grid =
        [&["bench", "few-shot", "--methods", "all", "--shots", "2", "--seeds", "1,2", "--epochs", "2"][..], &task];
    let run = sandbox.vpt(&[&grid.concat()[..], &["--out", "out"]].concat()).ok();
    assert!(run.stdout.contains("masks: mIoU in percent, mean ± sd over seeds\n"), "{}", run.stdout);
    assert!(run.stdout.contains("k images that show each class"), "{}", run.stdout);
    assert!(run.stderr.contains("masks vpt-deep, 2 shots, seed 1: test mIoU "), "{}", run.stderr);
    let results = json_file(&sandbox.path("out/results.json"));
    let difference = &results["differences"][0];
    assert!(difference["low"].as_f64() <= difference["difference"].as_f64(), "{difference}");
    assert_eq!((difference["seeds"].as_u64(), difference.get("AP50")), (Some(2), None));
    let csv = fs::read_to_string(sandbox.path("out/results.csv")).unwrap();
    assert!(csv.starts_with("dataset,method,shots,seed,part,mIoU,pixel_acc,mean_acc,val_mIoU,"), "{csv}");
    // The draw is one that training takes, too, and what it makes of it is what the table says.
    let train = [&["train", "--epochs", "2", "--method", "linear"][..], &task].concat();
    sandbox.vpt(&[&train[..], &["--draw", "out/draws/masks-2-1.json", "--out", "drawn"]].concat()).ok();
    sandbox.vpt(&[&train[..], &["--shots", "2", "--out", "shots"]].concat()).ok();
    assert_eq!(json_file(&sandbox.path("drawn/few_shot.json")), json_file(&sandbox.path("shots/few_shot.json")));
    let best = |run: &str| fs::read(sandbox.path(run).join("best.safetensors")).unwrap();
    assert_eq!(best("drawn"), best("shots"));
    let job = json_file(&sandbox.path("out/jobs/masks-linear-2-1.json"));
    assert_eq!(job["parts"][0]["metrics"], json_file(&sandbox.path("drawn/results.json"))["test"]);
    let other = sandbox.vpt(&[&grid.concat()[..], &["--base-to-new", "--out", "other"]].concat());
    assert!(other.stderr.contains("--base-to-new: not for segmentation"), "{}", other.stderr);
}

#[test]
fn a_job_that_fails_is_reported_and_the_others_go_on() {
    let (sandbox, clip) = (sandbox(), fixture("clip"));
    sandbox.vpt(&grid(&clip, "first", "2")).ok();
    // An image that one draw alone has.
    let draw = |seed: u32| {
        let file = json_file(&sandbox.path(&format!("first/draws/colours-1-{seed}.json")));
        file["train"].as_object().unwrap().values().map(|ids| ids[0].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (first, second) = (draw(1), draw(2));
    let bad = first.iter().find(|id| !second.contains(id)).unwrap();
    sandbox.write(&format!("colours/{bad}"), "no image");
    let args = ["--data", "colours", "--methods", "linear", "--shots", "1", "--seeds", "1,2", "--epochs", "2"];
    let args = [&["bench", "few-shot", "--backbone", &clip, "--out", "second"], &args[..]].concat();
    let run = sandbox.vpt(&args);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("failed: colours-linear-1-1: ") && run.stdout.contains(bad), "{run:#?}");
    assert!(run.stderr.ends_with("error: failed jobs: 1; the same command tries them again\n"), "{run:#?}");
    let error = fs::read_to_string(sandbox.path("second/work/colours-linear-1-1/error.txt")).unwrap();
    assert!(error.contains(bad), "{error}");
    assert_eq!(files(&sandbox.path("second/jobs")), ["colours-linear-1-2.json"]);
    let merged = sandbox.vpt(&["bench", "merge", "second"]);
    assert_eq!(merged.code, Some(1), "{merged:#?}");
}

#[test]
fn merge_writes_the_same_again_and_results_are_json() {
    let (sandbox, clip) = (sandbox(), fixture("clip"));
    let json = sandbox.vpt(&[&grid(&clip, "out", "2")[..], &["--json", "--quiet"]].concat()).ok();
    assert_eq!(json.stderr, "");
    assert_eq!(keys(&json.json()), ["grid", "protocol", "means", "differences", "failures", "jobs"]);
    let names = ["results.json", "results.csv", "table.md", "table.tex", "curves.svg", "report.html"];
    let read = || names.map(|name| fs::read(sandbox.path("out").join(name)).unwrap());
    let before = read();
    for name in names {
        fs::remove_file(sandbox.path("out").join(name)).unwrap();
    }
    let merged = sandbox.vpt(&["bench", "merge", "out", "--json"]).ok();
    assert_eq!(merged.json(), json.json());
    assert!(read() == before);
    #[cfg(target_os = "linux")]
    for job in json.json()["jobs"].as_array().unwrap() {
        assert!(job["peak_rss_bytes"].as_u64().unwrap() > 1 << 20, "{job:#}");
    }
}

#[test]
fn what_makes_no_grid_is_refused() {
    let (sandbox, clip) = (sandbox(), fixture("clip"));
    let vit = fixture("vit");
    let base = ["bench", "few-shot", "--backbone", &clip, "--data", "colours", "--out", "out"];
    let refuse = |args: &[&str], parts: &[&str]| {
        sandbox.vpt(&[&base[..], args].concat()).refuses(parts);
    };
    refuse(&[], &["--methods"]);
    refuse(&["--methods", "linaer"], &["--methods", "did you mean linear?"]);
    refuse(&["--methods", "linear,linear"], &["--methods: linear is named twice"]);
    refuse(&["--methods", "linear", "--shots", "0"], &["--shots"]);
    refuse(&["--methods", "linear", "--shard", "3/2"], &["--shard"]);
    refuse(&["--methods", "linear", "--base-to-new"], &["--base-to-new: method linear"]);
    refuse(&["--methods", "linear", "--cross", "shapes"], &["--cross: method linear"]);
    refuse(&["--methods", "linear", "--classnames", "names.txt"], &["--classnames", "tells classes by their names"]);
    refuse(&["--methods", "linear", "--epochs", "0"], &["--epochs"]);
    let vit = ["bench", "few-shot", "--backbone", &vit, "--data", "colours", "--out", "out", "--methods", "zero-shot"];
    sandbox.vpt(&vit).refuses(&["--methods: zero-shot needs a CLIP backbone"]);
    sandbox.vpt(&["bench", "merge", "colours"]).fails(&["colours", "holds no grid"]);
    assert!(!sandbox.path("out/jobs").exists());
}

#[test]
fn backbones_are_compared_on_the_same_images_and_one_that_cannot_be_opened_is_told() {
    let (sandbox, clip, vit) = (sandbox(), fixture("clip"), fixture("vit"));
    let both = format!("{clip},{vit}");
    let base = ["bench", "backbones", "--data", "colours", "--out", "which", "--shots", "2", "--threads", "1"];
    let table = sandbox.vpt(&[&base[..], &["--backbones", &both, "--json"]].concat()).ok().json();
    assert_eq!(table, json_file(&sandbox.path("which/backbones.json")));
    let rows = table["backbones"].as_array().unwrap();
    let methods = |row: &Value| -> Vec<String> {
        let scores = row["scores"].as_array().unwrap();
        scores.iter().map(|score| score["method"].as_str().unwrap().to_owned()).collect()
    };
    for row in rows {
        let expected: &[&str] =
            if row["backbone"] == "clip" { &["ncm", "linear", "zero-shot"] } else { &["ncm", "linear"] };
        assert_eq!(methods(row), expected, "{row:#}");
        assert!(row["ms_per_image"].as_f64().unwrap() > 0. && row["image_size"] == 32, "{row:#}");
    }
    // One of the two is the best of a column, and the difference to it is what the means differ by.
    for column in 0..2 {
        let score = |row: &Value| row["scores"][column].clone();
        let (best, other): (Vec<Value>, Vec<Value>) = rows.iter().map(score).partition(|s| s["less_best"].is_null());
        assert_eq!((best.len(), other.len()), (1, 1), "{table:#}");
        let mean = |score: &Value| score["acc1"]["mean"].as_f64().unwrap();
        let less = other[0]["less_best"]["difference"].as_f64().unwrap();
        assert!(less <= 0. && (mean(&other[0]) - mean(&best[0]) - less).abs() < 1e-9, "{table:#}");
    }
    let draws = files(&sandbox.path("which/draws"));
    assert_eq!(draws.len(), 3, "the seeds' draws, which both share: {draws:?}");

    // What is there is not done again, and what cannot be opened does not stop the rest.
    let missing = format!("{both},missing");
    let run = sandbox.vpt(&[&base[..], &["--backbones", &missing]].concat());
    for words in ["7 jobs, 7 done already", "failed: 1"] {
        assert!(run.stderr.contains(words), "{run:#?}");
    }
    assert!(run.code == Some(1) && run.stdout.contains("failed: missing: --backbone"), "{run:#?}");

    let alone = ["--backbones", &vit, "--methods", "zero-shot"];
    let run = sandbox.vpt(&[&base[..], &alone].concat());
    assert!(run.code == Some(1) && run.stdout.contains("--methods: none that does without texts"), "{run:#?}");
    sandbox.vpt(&[&base[..], &["--backbones", &both, "--shots", "0"]].concat()).refuses(&["--shots"]);
    let twice = format!("{clip},{clip}");
    sandbox.vpt(&[&base[..], &["--backbones", &twice]].concat()).refuses(&["--backbones", "both called clip"]);
    sandbox.vpt(&["bench", "backbones", "--data", "nowhere", "--backbones", &vit, "--out", "new"]).fails(&["nowhere"]);
}

#[test]
fn all_methods_are_those_that_the_backbone_can_do() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 12);
    let vit = fixture("vit");
    let args = ["bench", "few-shot", "--backbone", &vit, "--data", "colours", "--methods", "all", "--shots", "1"];
    let more = ["--seeds", "1", "--epochs", "1", "--threads", "2", "--out", "table", "--no-cache", "--json"];
    let run = sandbox.vpt(&[&args[..], &more].concat()).ok();
    assert!(run.stderr.contains("left out: zero-shot, "), "{run:#?}");
    let left = run.stderr.lines().find(|line| line.contains("left out: ")).unwrap();
    for (method, is_left) in
        [("zs-lp", true), ("coop", true), ("promptsrc", true), ("lora", false), ("vpt-deep", false)]
    {
        assert_eq!(left.contains(method), is_left, "{left}");
    }
    let json = run.json();
    let jobs = json["jobs"].as_array().unwrap();
    assert!(
        jobs.iter().any(|job| job["method"] == "lora") && json["failures"].as_array().unwrap().is_empty(),
        "{json}"
    );
    assert!(jobs.len() > 8, "{json}");
}
