//! `--engine`: what candle computes beside what the native engine does, and what either refuses.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::util::{Sandbox, fixture, json_file, number};

/// Training losses of the epochs of a run.
fn losses(run: &Path) -> Vec<f64> {
    let lines = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    lines.lines().map(|line| number(&serde_json::from_str::<Value>(line).unwrap(), "/train_loss")).collect()
}

fn embeddings(path: &Path) -> Vec<f32> {
    let tensors: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors["image_embeds"].flatten_all().unwrap().to_vec1().unwrap()
}

fn relative(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

#[cfg(feature = "candle")]
#[test]
fn both_engines_learn_the_same_and_runs_say_which_it_was() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let (vit, clip) = (fixture("vit"), fixture("clip"));
    for (method, more) in [
        ("vpt-deep", &["--head-init", "random"][..]),
        ("vpt-deep", &["--prompt-layers", "last:1", "--lr", "1e-3", "--precision", "bf16"]),
        ("vpt-shallow", &["--head", "cosine"]),
        ("vp-pad", &["--pad", "4"]),
        ("vp-frame,vpt-shallow", &["--augment", "trivial"]),
        ("e2vpt", &["--micro-batch", "3", "--lr", "1e-3"]),
        ("linear", &[]),
        ("coop", &["--backbone", &clip]),
    ] {
        sandbox.holds(&format!("{method} {more:?}"), || {
            let backbone = if more.contains(&"--backbone") { &[][..] } else { &["--backbone", &vit] };
            let train = |engine: &str, out: &str| {
                let args = ["train", "--data", "colours", "--method", method, "--epochs", "4", "--seed", "3"];
                let out = ["--engine", engine, "--out", out, "--no-cache", "--keep-better", "false"];
                let out = if method == "linear" || method == "coop" { &out[..5] } else { &out[..] };
                sandbox.vpt(&[&args[..], backbone, more, out].concat()).ok();
            };
            let name = format!("{method}-{}", more.len());
            let runs = ["native", "candle"].map(|engine| format!("{engine}-{name}"));
            train("native", &runs[0]);
            train("candle", &runs[1]);
            let [native, candle] = runs.map(|run| sandbox.path(&run));
            // Rounding differs, and grows from step to step.
            let bound = if more.contains(&"bf16") { 3e-2 } else { 1e-4 };
            for (epoch, (a, b)) in losses(&native).iter().zip(losses(&candle)).enumerate() {
                assert!((a - b).abs() < bound * a.abs().max(1.), "epoch {}: losses {a} and {b}", epoch + 1);
            }
            let results = [&native, &candle].map(|run| json_file(&run.join("results.json")));
            assert_eq!((&results[0]["engine"], &results[1]["engine"]), (&Value::Null, &Value::from("candle")));
            let gap = number(&results[0], "/test/acc1") - number(&results[1], "/test/acc1");
            assert!(gap.abs() < 0.1, "{results:#?}");
            let config = |run: &Path| std::fs::read_to_string(run.join("config.toml")).unwrap();
            assert!(!config(&native).contains("engine") && config(&candle).contains("engine = \"candle\""));
        });
    }

    // A task is evaluated on the engine that it was learned on, and may be on the other.
    let run = "candle-vpt-shallow-2";
    let eval = |engine: &[&str]| {
        let args = ["eval", "--model", run, "--data", "colours", "--seed", "3", "--json"];
        number(&sandbox.vpt(&[&args[..], engine].concat()).ok().json(), "/metrics/loss")
    };
    let (own, native) = (eval(&[]), eval(&["--engine", "native"]));
    assert!((own - native).abs() < 1e-4, "{own} and {native}");
    assert_eq!(own, number(&json_file(&sandbox.path(run).join("results.json")), "/test/loss"));
    let image = "colours/green/001.png";
    for engine in ["native", "candle"] {
        let args = ["predict", "--model", run, "--engine", engine, "--json", image];
        let said = sandbox.vpt(&args).ok().json();
        assert!(said.to_string().contains("green"), "{said}");
    }
    // The configuration repeats the run, with its engine.
    sandbox.vpt(&["train", "--config", &format!("{run}/config.toml"), "--out", "again", "--no-cache"]).ok();
    let best = |run: &str| std::fs::read(sandbox.path(run).join("best.safetensors")).unwrap();
    assert!(best(run) == best("again"));
    sandbox.vpt(&["train", "--resume", run, "--engine", "native"]).refuses(&["--resume", "nothing else"]);
}

#[cfg(feature = "candle")]
#[test]
fn candle_detects_as_the_native_engine_does() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    let clip = fixture("clip");
    for engine in ["native", "candle"] {
        let args = ["train", "--backbone", &clip, "--data", "boxes", "--epochs", "4", "--image-size", "32"];
        sandbox.vpt(&[&args[..], &["--prompt-layers", "last:2", "--engine", engine, "--out", engine]].concat()).ok();
    }
    let [native, candle] = ["native", "candle"].map(|run| losses(&sandbox.path(run)));
    for (epoch, (a, b)) in native.iter().zip(&candle).enumerate() {
        assert!((a - b).abs() < 1e-3 * a.abs().max(1.), "epoch {}: losses {a} and {b}", epoch + 1);
    }
    assert_ne!(native, candle, "the same engine");
}

#[cfg(feature = "candle")]
#[test]
fn both_engines_embed_alike_and_classify_alike_without_training() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    for family in ["clip", "vit", "dinov2", "dinov2-registers", "siglip", "deit", "mae"] {
        let backbone = fixture(family);
        for engine in ["native", "candle"] {
            let out = format!("{engine}.safetensors");
            let args = ["embed", "--backbone", &backbone, "--engine", engine, "--out", &out];
            sandbox.vpt(&[&args[..], &["colours/green", "colours/blue"]].concat()).ok();
        }
        let [native, candle] = ["native", "candle"].map(|e| embeddings(&sandbox.path(&format!("{e}.safetensors"))));
        let error = relative(&candle, &native);
        assert!(error < 1e-5, "{family}: off by {error:e}");
    }
    let clip = fixture("clip");
    let [native, candle] = ["native", "candle"].map(|engine| {
        let args = ["zero-shot", "--backbone", &clip, "--data", "colours", "--engine", engine, "--json"];
        number(&sandbox.vpt(&args).ok().json(), "/metrics/loss")
    });
    assert!((native - candle).abs() < 1e-5, "{native} and {candle}");
}

#[cfg(feature = "candle")]
#[test]
fn a_step_is_timed_on_either_engine() {
    let sandbox = Sandbox::new();
    let vit = fixture("vit");
    for engine in ["native", "candle"] {
        let args = ["bench", "step", "--backbone", &vit, "--batch-size", "6", "--repeats", "1", "--engine", engine];
        let report = sandbox.vpt(&[&args[..], &["--json"]].concat()).ok().json();
        assert_eq!((&report["engine"], &report["recompute"]), (&engine.into(), &false.into()));
        assert!(number(&report, "/median_s") > 0.);
        let text = sandbox.vpt(&args).ok().stdout;
        assert_eq!(text.contains("engine candle"), engine == "candle", "{text}");
    }
}

#[cfg(feature = "candle")]
#[test]
fn what_candle_does_not_do_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let vit = fixture("vit");
    let train = |more: &[&str]| {
        sandbox.vpt(&[&["train", "--backbone", &vit, "--data", "colours", "--engine", "candle"], more].concat())
    };
    for method in ["lora", "full", "bias", "norm", "vpt-deep,lora"] {
        train(&["--method", method]).refuses(&["--engine: candle", method, "native does"]);
    }
    train(&["--max-memory", "1GB"]).refuses(&["--max-memory: not with --engine candle"]);
    train(&["--device", "cuda:0"]).refuses(&["--device", "CUDA is not built in this version"]);
    sandbox.vpt(&["bench", "kernels", "--engine", "candle"]).refuses(&["--engine", "native engine"]);
    sandbox.vpt(&["data", "info", "colours", "--engine", "candle"]).refuses(&["--engine"]);
    assert!(!sandbox.path("runs").exists(), "nothing was begun");
}

#[cfg(not(feature = "candle"))]
#[test]
fn a_build_without_candle_says_so() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let vit = fixture("vit");
    sandbox
        .vpt(&["train", "--backbone", &vit, "--data", "colours", "--engine", "candle"])
        .refuses(&["--engine: candle is not built in this version"]);
}

#[test]
fn engines_have_names() {
    let sandbox = Sandbox::new();
    sandbox.vpt(&["train", "--engine", "torch"]).refuses(&["--engine", "native", "candle"]);
}
