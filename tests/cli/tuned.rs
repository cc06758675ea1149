//! Methods that tune weights of the backbone: trained, stopped, resumed, and used.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::util::{Sandbox, files, fixture, number};

/// The command `train` of the second of `runs` is killed as soon as `is_there`, taken up again, and leaves what the first has.
fn goes_on_to_the_same_bytes(sandbox: &Sandbox, runs: [&str; 2], train: &[&str], is_there: impl Fn() -> bool) {
    let mut child = sandbox.command(train).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while !is_there() && child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    child.wait().unwrap();
    sandbox.vpt(&["train", "--resume", runs[1]]).ok();
    for file in ["best.safetensors", "last.safetensors", "config.toml"] {
        let [one, other] = runs.map(|run| fs::read(sandbox.path(run).join(file)).unwrap());
        assert!(one == other, "{}: {file} differs", runs[0]);
    }
}

#[test]
fn weights_are_tuned_stopped_resumed_and_used() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let (clip, vit) = (fixture("clip"), fixture("vit"));
    // A CLIP's texts tell its classes; a head does on any other backbone.
    for (run, backbone, method, told) in [
        ("bias", &vit, "bias", "the biases of the image tower are tuned"),
        ("norm", &vit, "norm", "scales and shifts of the layer norms of the image tower are tuned"),
        ("lora", &clip, "lora", "changes of rank 2 to queries, keys and values of both towers, times 0.7071"),
        ("lora-vit", &vit, "lora", "changes of rank 2 to queries, keys and values of the image tower, times 0.7071"),
        ("full", &vit, "full", "every weight of the image tower is tuned"),
    ] {
        let train = ["train", "--backbone", backbone, "--data", "colours", "--method", method, "--threads", "2"];
        // What is learned is looked at, though a probe may be better.
        let kept: &[&str] = if run == "lora" { &[] } else { &["--keep-better", "false"] };
        let train = |out| [&train[..], &["--shots", "4", "--epochs", "6", "--quiet", "--out", out], kept].concat();
        let results = sandbox.vpt(&[&train(run)[..], &["--json"]].concat()).ok().json();
        assert_eq!(results["method"], method);

        // The same run, killed as soon as there is something, and taken up again.
        let killed = format!("{run}-killed");
        let metrics = sandbox.path(&killed).join("metrics.jsonl");
        goes_on_to_the_same_bytes(&sandbox, [run, &killed], &train(&killed), || metrics.exists());

        let eval = sandbox.vpt(&["eval", "--model", run, "--data", "colours", "--json"]).ok().json();
        assert_eq!(eval["metrics"], results["test"], "{run}: a task file scores what its run did");
        let predict = sandbox.vpt(&["predict", "--model", run, "colours/green/001.png", "--json"]).ok().json();
        assert_eq!(predict["predictions"][0]["top5"].as_array().unwrap().len(), 3);
        let info = sandbox.vpt(&["task", "info", run]).ok().stdout;
        assert!(info.contains(told), "{info}");
        let info = sandbox.vpt(&["task", "info", run, "--json"]).ok().json();
        assert_eq!(number(&info, "/trainable_params"), number(&results, "/trainable_params"), "{run}");
        let embed = ["embed", "--model", run, "--out", "e.safetensors", "colours/green/001.png"];
        sandbox.vpt(&embed).ok();
        if run == "lora" {
            sandbox.vpt(&[&embed[..], &["--texts", "green"]].concat()).ok();
        }
        // Weights are of one backbone and no other.
        let other = if backbone == &vit { &clip } else { &vit };
        sandbox.vpt(&["predict", "--model", run, "--backbone", other, "colours/green/001.png"]).fails(&["learned on"]);
    }
    // What a run is can be said again, and what it cannot be is refused.
    sandbox.vpt(&["train", "--config", "lora/config.toml", "--out", "again"]).ok();
    let read = |run: &str| fs::read(sandbox.path(run).join("best.safetensors")).unwrap();
    assert!(read("lora") == read("again"), "config.toml repeats the run");
    let train = ["train", "--data", "colours", "--backbone"];
    for (more, about) in [
        (vec![&vit[..], "--method", "lora", "--lora-towers", "both"], ["--lora-towers", "no text tower"]),
        (vec![&vit, "--method", "bias", "--lora-rank", "2"], ["--lora-rank", "bias"]),
        (vec![&clip, "--method", "full", "--max-memory", "1GB"], ["--max-memory", "full"]),
        (vec![&clip, "--method", "lorra"], ["--method", "lora"]),
        (vec![&clip, "--method", "lora", "--lora-rank", "1000"], ["--lora-rank", "1000"]),
    ] {
        sandbox.vpt(&[&train[..], &more].concat()).refuses(&about);
    }
}

#[test]
fn weights_are_tuned_beside_heads_on_patch_tokens_stopped_resumed_and_used() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    sandbox.masks("masks", 24);
    let clip = fixture("clip");
    for (run, data, method, told) in [
        ("bias", "boxes", "bias", "the biases of the image tower are tuned"),
        ("both", "boxes", "vpt-deep,lora", "changes of rank 2 to queries, keys and values of the image tower"),
        ("full", "boxes", "full", "every weight of the image tower is tuned"),
        ("masks-bias", "masks", "vpt-deep,bias", "the biases of the image tower are tuned"),
    ] {
        let task = if data == "boxes" { "detect" } else { "segment" };
        let train = ["train", "--backbone", &clip, "--data", data, "--method", method, "--image-size", "32"];
        let more = ["--task", task, "--epochs", "4", "--keep-better", "false", "--threads", "2", "--quiet"];
        let train = |out| [&train[..], &more, &["--out", out]].concat();
        let results = sandbox.vpt(&[&train(run)[..], &["--json"]].concat()).ok().json();
        assert_eq!(results["method"], method);
        assert!(results["head_only"]["test"].is_object());

        // In the stage in which weights learn.
        let killed = format!("{run}-killed");
        let metrics = sandbox.path(&killed).join("metrics.jsonl");
        let is_there = || fs::read_to_string(&metrics).is_ok_and(|lines| lines.contains("tuned"));
        goes_on_to_the_same_bytes(&sandbox, [run, &killed], &train(&killed), is_there);

        let eval = sandbox.vpt(&["eval", "--model", run, "--data", data, "--json"]).ok().json();
        assert_eq!(eval["metrics"], results["test"], "{run}: a task file scores what its run did");
        let info = sandbox.vpt(&["task", "info", run]).ok().stdout;
        assert!(info.contains(told), "{info}");
        let image = &format!("boxes/test/{}", files(&sandbox.path("boxes/test"))[0]);
        if data == "boxes" {
            let predict = ["predict", "--model", run, image, "--min-score", "0", "--json"];
            assert!(!sandbox.vpt(&predict).ok().json()["predictions"][0]["boxes"].as_array().unwrap().is_empty());
        }
        let export = ["export", "--model", run, "--out", "m.onnx", "--json", "--verify", image];
        let parity = sandbox.vpt(&export).ok().json()["parity"].clone();
        assert_eq!(parity["agree"], parity["of_total"], "{run}: {parity}");
    }
    let train = ["train", "--data", "boxes", "--backbone", &clip, "--method"];
    for (more, about) in [
        (vec!["lora", "--lora-towers", "both"], ["--lora-towers", "a head of its own does not read"]),
        (vec!["full,vpt-deep"], ["--method", "full learns alone"]),
        (vec!["bias", "--head-init", "probe"], ["--head-init", "detection"]),
        (vec!["bias", "--head-epochs", "4", "--epochs", "4"], ["--head-epochs", "leave none"]),
    ] {
        sandbox.vpt(&[&train[..], &more].concat()).refuses(&about);
    }
}
