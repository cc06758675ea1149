//! Methods that tune weights of the backbone: trained, stopped, resumed, and used.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::util::{Sandbox, fixture, number};

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
        let mut child = sandbox.command(&train(&killed)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        let metrics = sandbox.path(&killed).join("metrics.jsonl");
        while !metrics.exists() && child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        child.wait().unwrap();
        sandbox.vpt(&["train", "--resume", &killed]).ok();
        for file in ["best.safetensors", "last.safetensors", "config.toml"] {
            let read = |run: &str| fs::read(sandbox.path(run).join(file)).unwrap();
            assert!(read(run) == read(&killed), "{run}: {file} differs");
        }

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
