//! The commands that need no training, and the form of what they print.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::util::{Sandbox, files, fixture, json_file, keys, number};

const METRICS: [&str; 4] = ["acc1", "acc5", "mean_per_class_recall", "loss"];
const IMAGES: [&str; 2] = ["images/a.png", "images/b.png"];

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn relative(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

#[test]
fn embeddings_equal_transformers_in_the_order_given() {
    let sandbox = Sandbox::new();
    let images = IMAGES.map(fixture);
    let texts: Vec<String> = serde_json::from_slice(&fs::read(fixture("prompted.json")).unwrap()).unwrap();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for family in ["clip", "vit", "dinov2", "dinov2-registers"] {
        let expected = tensors(&Path::new(&fixture(family)).join("expected.safetensors"));
        let backbone = fixture(family);
        let mut args = vec!["embed", "--backbone", &backbone, "--out", "e.safetensors", &images[0], &images[1]];
        if family == "clip" {
            args.push("--texts");
            args.extend(&texts);
        }
        sandbox.vpt(&args).ok();
        let found = tensors(&sandbox.path("e.safetensors"));
        let count = if family == "clip" { 2 } else { 1 };
        assert_eq!(found.len(), count, "{family}: {:?}", found.keys());
        for (name, tensor) in &found {
            assert_eq!(tensor.dims(), expected[name].dims(), "{family} {name}");
            let error = relative(&values(tensor), &values(&expected[name]));
            assert!(error < 1e-5, "{family} {name}: {error:e}");
        }
    }
    let backbone = fixture("vit");
    let swapped = ["embed", "--backbone", &backbone, "--out", "s.safetensors", &images[1], &images[0]];
    sandbox.vpt(&swapped).ok();
    let plain =
        [&["embed", "--backbone", &backbone, "--out", "n.safetensors", "--normalize"][..], &[&images[1]]].concat();
    let json = sandbox.vpt(&[&plain[..], &["--json"]].concat()).ok().json();
    assert_eq!(
        keys(&json),
        ["out", "backbone", "model", "images", "texts", "width", "normalized", "skipped", "passed_by", "energy"]
    );
    let expected = values(&tensors(&Path::new(&backbone).join("expected.safetensors"))["image_embeds"]);
    let swapped = values(&tensors(&sandbox.path("s.safetensors"))["image_embeds"]);
    assert!(relative(&swapped[..32], &expected[32..]) < 1e-5 && relative(&swapped[32..], &expected[..32]) < 1e-5);
    let normal = values(&tensors(&sandbox.path("n.safetensors"))["image_embeds"]);
    let length = expected[32..].iter().map(|v| v * v).sum::<f32>().sqrt();
    let scaled: Vec<f32> = expected[32..].iter().map(|v| v / length).collect();
    assert!(relative(&normal, &scaled) < 1e-5);
}

#[test]
fn zero_shot_says_which_texts_it_used() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let clip = fixture("clip");
    let zero_shot = |more: &[&str]| {
        let args = ["zero-shot", "--backbone", &clip, "--data", "colours", "--split", "train"];
        sandbox.vpt(&[&args, more].concat())
    };
    let json = zero_shot(&["--json"]).ok().json();
    assert_eq!(keys(&json), ["backbone", "data", "split", "images", "classnames", "templates", "metrics", "energy"]);
    assert_eq!(keys(&json["metrics"]), METRICS);
    assert_eq!(json["classnames"], serde_json::json!(["blue", "dark red", "green"]));
    assert_eq!(json["templates"], serde_json::json!(["a photo of a {}."]));

    sandbox.write("names.txt", "sky\nwine\ngrass\n");
    sandbox.write("templates.json", r#"["a {} thing", "it is {c}"]"#);
    let texts = ["--classnames", "names.txt", "--templates", "templates.json"];
    let json = zero_shot(&[&texts[..], &["--json"]].concat()).ok().json();
    assert_eq!(json["classnames"], serde_json::json!(["sky", "wine", "grass"]));
    let text = zero_shot(&texts).ok().stdout;
    for part in ["\"sky\", \"wine\", \"grass\"; from names.txt", "\"a {} thing\", \"it is {c}\"; from templates.json"] {
        assert!(text.contains(part), "{text}");
    }

    sandbox.write("names.txt", "sky\nwine\n");
    zero_shot(&texts).fails(&["names.txt: 2 class names for 3 classes"]);
    let vit = fixture("vit");
    sandbox.vpt(&["zero-shot", "--backbone", &vit, "--data", "colours"]).refuses(&["--backbone", "text tower"]);
}

#[test]
fn what_a_backbone_does_in_another_way_is_said() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let (naflex, siglip) = (fixture("siglip2"), fixture("siglip"));
    let picture = fixture("images/a.png");
    let said = "siglip2: images that are not square become so here";
    let embed = |backbone: &str| {
        sandbox.vpt(&["embed", "--backbone", backbone, "--out", "e.safetensors", &picture]).ok().stderr
    };
    assert!(embed(&naflex).contains(said) && !embed(&siglip).contains("square"));
    let zero_shot = sandbox.vpt(&["zero-shot", "--backbone", &naflex, "--data", "colours"]).ok();
    assert!(zero_shot.stderr.contains(said), "{}", zero_shot.stderr);
    let args = ["train", "--backbone", &naflex, "--data", "colours", "--method", "ncm", "--out", "run"];
    assert!(sandbox.vpt(&args).ok().stderr.contains(said));
    assert!(sandbox.vpt(&["backbones", "info", &naflex]).ok().stdout.contains("not square"));
}

#[test]
fn sigmoids_tell_each_class_by_itself() {
    fn sorted(json: &Value) -> Vec<&str> {
        let mut keys = keys(json);
        keys.sort_by_key(|key| key.to_lowercase());
        keys
    }

    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let siglip = fixture("siglip");
    let zero_shot = |backbone: &str, data: &str, more: &[&str]| {
        let args = ["zero-shot", "--backbone", backbone, "--data", data, "--split", "train", "--scores", "sigmoid"];
        sandbox.vpt(&[&args, more].concat())
    };
    let scores = ["exact_match", "loss", "macro_f1", "mAP", "micro_f1"];
    let json = zero_shot(&siglip, "colours", &["--json"]).ok().json();
    assert_eq!(sorted(&json["metrics"]), scores);
    assert_eq!(json["classnames"], serde_json::json!(["blue", "dark red", "green"]));
    assert!(zero_shot(&siglip, "colours", &[]).ok().stdout.contains("mAP"));
    // Of the same texts and images, softmax makes one class an image.
    let plain = ["zero-shot", "--backbone", &siglip, "--data", "colours", "--json"];
    assert_eq!(keys(&sandbox.vpt(&plain).ok().json()["metrics"]), METRICS);

    sandbox.vpt(&["data", "make", "shapes", "--task", "detect", "--images", "192", "--out", "boxes"]).ok();
    let json = zero_shot(&siglip, "boxes", &["--json"]).ok().json();
    assert_eq!(sorted(&json["metrics"]), scores);
    zero_shot(&fixture("clip"), "colours", &[]).refuses(&["--scores", "sigmoid is for backbones", "clip"]);
    zero_shot(&fixture("vit"), "colours", &[]).refuses(&["--backbone", "text tower"]);
}

#[test]
fn bench_step_prints_every_field() {
    let sandbox = Sandbox::new();
    let vit = fixture("vit");
    let args = ["bench", "step", "--backbone", &vit, "--batch-size", "6", "--prompt-tokens", "5", "--repeats", "2"];
    let json = sandbox.vpt(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!(
        keys(&json),
        [
            "method",
            "backbone",
            "precision",
            "engine",
            "forward",
            "batch_size",
            "micro_batch",
            "recompute",
            "prompt_tokens",
            "image_size",
            "threads",
            "repeats",
            "median_s",
            "img_per_s",
            "gflop",
            "gflop_per_s",
            "peak_rss_bytes",
        ]
    );
    assert_eq!((&json["method"], &json["precision"]), (&Value::from("vpt-deep"), &Value::from("f32")));
    assert_eq!([number(&json, "/batch_size"), number(&json, "/prompt_tokens")], [6., 5.]);
    assert!((number(&json, "/img_per_s") * number(&json, "/median_s") / 6. - 1.).abs() < 1e-9);
    let forward = sandbox.vpt(&[&args[..], &["--json", "--forward"]].concat()).ok().json();
    assert_eq!((&json["forward"], &forward["forward"]), (&Value::from(false), &Value::from(true)));
    let share = number(&forward, "/gflop") / number(&json, "/gflop");
    assert!((0.3..0.7).contains(&share), "{share} of a step's work");
    for method in ["linear", "vpt-shallow", "vp-pad", "vp-patch", "vp-full", "vp-frame", "vpt-shallow,lora"] {
        let step = ["bench", "step", "--backbone", &vit, "--batch-size", "2", "--repeats", "1", "--method", method];
        assert_eq!(
            number(&sandbox.vpt(&[&step[..], &["--json"]].concat()).ok().json(), "/prompt_tokens") > 0.,
            method.starts_with("vpt-shallow")
        );
    }
}

#[test]
fn data_info_describes_every_layout_alike() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 10);
    let rows: String = ["blue", "dark_red", "green"]
        .iter()
        .flat_map(|class| (0..10).map(move |i| format!("colours/{class}/{i:03}.png,{class}\n")))
        .collect();
    sandbox.write("table.csv", format!("path,label\n{rows}"));
    let info = |data: &str| sandbox.vpt(&["data", "info", data, "--json"]).ok().json();
    let (folder, table) = (info("colours"), info("table.csv"));
    assert_eq!(
        keys(&folder),
        ["name", "layout", "split_note", "images", "classes", "width", "height", "unreadable", "content_hash"]
    );
    assert_eq!(folder["layout"], "folder");
    assert_eq!(table["layout"], "csv");
    assert_eq!(["train", "val", "test"].map(|part| number(&folder["images"], &format!("/{part}"))), [18., 6., 6.]);
    assert_eq!(folder["width"], serde_json::json!([24, 24]));
    assert_eq!(folder["classes"][1]["name"], "dark_red");
    let text = sandbox.vpt(&["data", "info", "colours"]).ok().stdout;
    assert!(text.contains("30 (") && text.contains("dark_red"), "{text}");

    sandbox.write("colours/green/broken.jpg", b"\xff\xd8\xff");
    let run = sandbox.vpt(&["data", "info", "colours"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stdout.contains("broken.jpg") && run.stderr.contains("1 unreadable image"), "{run:#?}");
}

#[test]
fn shapes_are_drawn_by_the_seed_and_can_be_trained_on() {
    let sandbox = Sandbox::new();
    let make = |out: &str, more: &[&str]| {
        sandbox.vpt(&[&["data", "make", "shapes", "--images", "200", "--size", "16", "--out", out], more].concat())
    };
    let json = make("a", &["--json"]).ok().json();
    assert_eq!(keys(&json), ["out", "task", "images", "size", "style", "pairs", "seed"]);
    let hash = |data: &str| {
        let info = sandbox.vpt(&["data", "info", data, "--json"]).ok().json();
        assert_eq!((&info["images"], info["classes"].as_array().unwrap().len()), (&json["images"], 64));
        info["content_hash"].clone()
    };
    make("b", &["--seed", "1"]).ok();
    make("c", &["--seed", "2"]).ok();
    make("d", &["--style", "shifted"]).ok();
    assert_eq!(hash("a"), hash("b"));
    assert!(hash("a") != hash("c") && hash("a") != hash("d"));
    make("a", &[]).fails(&["a:", "empty"]);
    make("e", &["--images", "3"]).refuses(&["--images"]);

    let boxes = make("boxes", &["--task", "detect", "--json"]).ok().json();
    assert_eq!(files(&sandbox.path("boxes")), ["annotations", "test", "train", "val"]);
    let train = json_file(&sandbox.path("boxes/annotations/instances_train.json"));
    assert_eq!(train["images"].as_array().unwrap().len() as f64, number(&boxes, "/images/train"));

    let vit = fixture("vit");
    sandbox
        .vpt(&["train", "--backbone", &vit, "--data", "a", "--epochs", "1", "--method", "linear", "--out", "run"])
        .ok();
}

#[test]
fn backbones_are_listed_and_described() {
    let sandbox = Sandbox::new();
    let list = sandbox.vpt(&["backbones", "list", "--json"]).ok().json();
    let names: Vec<&str> = list["backbones"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!(&names[..2], ["clip-nano", "clip-vit-b32"]);
    assert_eq!(keys(&list["backbones"][0]), ["name", "family", "repo", "revision", "found", "path"]);
    let info = sandbox.vpt(&["backbones", "info", &fixture("dinov2-registers"), "--json"]).ok().json();
    assert_eq!(keys(&info), ["name", "repo", "path", "hash", "identity", "parameters", "dtypes", "files", "spec"]);
    assert_eq!(info["spec"]["family"], "dinov2_with_registers");
    assert_eq!(info["hash"].as_str().unwrap().len(), 64);
    let text = sandbox.vpt(&["backbones", "info", &fixture("clip")]).ok().stdout;
    assert!(text.contains("text tower") && text.contains("3 blocks, width 32, 4 heads"), "{text}");
}

#[test]
fn help_has_an_example_for_every_command() {
    let sandbox = Sandbox::new();
    let top = sandbox.vpt(&["--help"]).ok().stdout;
    for command in [
        "train",
        "eval",
        "predict",
        "embed",
        "zero-shot",
        "bench step",
        "data list",
        "data info",
        "data check",
        "data audit",
        "data convert",
        "backbones list",
        "backbones info",
        "backbones fetch",
        "backbones verify",
        "serve",
        "export",
    ] {
        assert!(top.contains(command.split(' ').next().unwrap()), "{command} is not in {top}");
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = sandbox.vpt(&args).ok().stdout;
        assert!(help.contains(&format!("\n  vpt {command}")) && help.contains("Example"), "{command}: {help}");
        assert!(help.contains("--seed") && help.contains("--json"), "{command}: {help}");
    }
    assert!(sandbox.vpt(&["--version"]).ok().stdout.starts_with("vpt 0."));
}

#[test]
fn what_commands_took_is_told_and_kept_in_codecarbons_columns() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1", "--method", "linear", "--energy-csv", "emissions.csv"]);
    let eval = ["eval", "--model", "run", "--data", "colours", "--country", "FRA", "--energy-csv", "emissions.csv"];
    let json = sandbox.vpt(&[&eval[..], &["--json"]].concat()).ok().json();
    assert_eq!((&json["co2"]["country"], &json["co2"]["intensity"]), (&"FRA".into(), &56.0.into()));
    assert!(json["energy"]["wall_seconds"].as_f64().unwrap() > 0., "{json:#}");
    assert!(sandbox.vpt(&eval).ok().stdout.contains("56 g/kWh, FRA"));
    let table = fs::read_to_string(sandbox.path("emissions.csv")).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((rows.len(), rows[0].len()), (4, 38), "{table}");
    let column = |name: &str| rows[0].iter().position(|column| *column == name).unwrap();
    assert!(rows.iter().all(|row| row.len() == 38), "{table}");
    assert_eq!(rows[1][column("emissions")], "", "no country, no CO2");
    assert_eq!((rows[2][column("country_iso_code")], rows[2][column("run_id")]), ("FRA", "run"));
    sandbox.vpt(&["eval", "--model", "run", "--data", "colours", "--pue", "2"]).refuses(&["--pue", "--country"]);
}
