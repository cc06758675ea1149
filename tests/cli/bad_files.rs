//! Files that cannot be used: exit code 1, one line that names the file, no panic.

use std::fs;
use std::path::Path;

use crate::util::{Sandbox, fixture};

#[test]
fn data_that_cannot_be_used_is_named() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.write("text.txt", "hello");
    sandbox.write("header.csv", "path,label\n");
    let row = |i| format!("colours/blue/00{i}.png,cat\ncolours/green/00{i}.png,dog\n");
    let rows: Vec<String> = (0..8).map(row).collect();
    sandbox.write("gone.csv", format!("path,label\n{}nowhere.png,cat\n", rows.concat()));
    sandbox.write("one/cat/only.txt", "not an image");
    sandbox.write("idx/train-images-idx3-ubyte", b"\x00\x00\x08\x03\x7f\xff\xff\xff\x7f\xff\xff\xff\x7f\xff\xff\xff");
    sandbox.write("idx/train-labels-idx1-ubyte", b"\x00\x00\x08\x01\x7f\xff\xff\xff");
    let (vit, clip) = (fixture("vit"), fixture("clip"));
    for data in ["nowhere", "empty", "text.txt", "header.csv", "gone.csv", "one", "idx"] {
        let name = if data == "gone.csv" { "nowhere.png" } else { data };
        for args in [
            vec!["train", "--backbone", &vit, "--out", "run", "--epochs", "1", "--data", data],
            vec!["zero-shot", "--backbone", &clip, "--data", data],
        ] {
            if args[0] == "zero-shot" && data == "gone.csv" {
                // The missing image may not be among those of test.
                continue;
            }
            let run = sandbox.vpt(&args);
            run.fails(&[name]);
        }
        let _ = fs::remove_dir_all(sandbox.path("run"));
    }
}

/// A copy of the ViT fixture's folder that can be damaged.
fn checkpoint(sandbox: &Sandbox, family: &str, name: &str) {
    let to = sandbox.path(name);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(fixture(family)).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn damaged_backbones_are_named() {
    type Damage = fn(&Path);
    let damages: [(&str, &str, Damage); 12] = [
        ("no-config", "no-config", |d| fs::remove_file(d.join("config.json")).unwrap()),
        ("config-garbage", "config.json", |d| fs::write(d.join("config.json"), b"{\"model_type\":").unwrap()),
        ("config-family", "config.json", |d| fs::write(d.join("config.json"), br#"{"model_type": "bert"}"#).unwrap()),
        ("config-absurd", "config.json", |d| {
            let absurd = br#"{"model_type": "clip", "vision_config": {"hidden_size": 18446744073709551615}}"#;
            fs::write(d.join("config.json"), absurd).unwrap();
        }),
        ("no-weights", "model.safetensors", |d| fs::remove_file(d.join("model.safetensors")).unwrap()),
        ("empty-weights", "model.safetensors", |d| fs::write(d.join("model.safetensors"), b"").unwrap()),
        ("long-header", "model.safetensors", |d| {
            fs::write(d.join("model.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
        }),
        ("cut-weights", "model.safetensors", |d| {
            let bytes = fs::read(d.join("model.safetensors")).unwrap();
            fs::write(d.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("other-shapes", "model.safetensors", |d| {
            let config = fs::read_to_string(d.join("config.json")).unwrap();
            fs::write(d.join("config.json"), config.replace("\"hidden_size\": 32", "\"hidden_size\": 64")).unwrap();
        }),
        ("preprocessor-garbage", "preprocessor_config.json", |d| {
            fs::write(d.join("preprocessor_config.json"), b"[]").unwrap();
        }),
        ("tokenizer-garbage", "tokenizer.json", |d| fs::write(d.join("tokenizer.json"), b"{\"model\": 3}").unwrap()),
        ("no-tokenizer", "tokenizer", |d| {
            for file in ["tokenizer.json", "vocab.json", "merges.txt"] {
                let _ = fs::remove_file(d.join(file));
            }
        }),
    ];
    let sandbox = Sandbox::new();
    for (name, culprit, damage) in damages {
        checkpoint(&sandbox, "clip", name);
        damage(&sandbox.path(name));
        let args =
            ["embed", "--backbone", name, "--out", "e.safetensors", &fixture("images/a.png"), "--texts", "a dog"];
        sandbox.vpt(&args).fails(&[name, culprit]);
        assert!(!sandbox.path("e.safetensors").exists());
    }
}

#[test]
fn damaged_task_files_and_runs_are_named() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1"]);
    let whole = fs::read(sandbox.path("run/best.safetensors")).unwrap();
    let image = fixture("images/a.png");
    sandbox.write("cut.safetensors", &whole[..whole.len() - 5]);
    sandbox.write("empty.safetensors", "");
    sandbox.write("text.safetensors", "this is not a task file");
    let newer = String::from_utf8_lossy(&whole[8..]).contains("\\\"format\\\":1");
    assert!(newer, "the next case depends on how the format number is written");
    let at = whole.windows(12).position(|w| w == b"\\\"format\\\":1").unwrap();
    let mut future = whole.clone();
    future[at + 11] = b'9';
    sandbox.write("future.safetensors", future);
    for (file, why) in [("cut", ""), ("empty", ""), ("text", ""), ("future", "format 9"), ("missing", "no such file")] {
        let name = format!("{file}.safetensors");
        sandbox.vpt(&["predict", "--model", &name, &image]).fails(&[&name, why]);
    }
    fs::create_dir(sandbox.path("folder")).unwrap();
    sandbox.vpt(&["eval", "--model", "folder", "--data", "colours"]).fails(&["folder/best.safetensors"]);
    sandbox.vpt(&["train", "--resume", "folder"]).fails(&["folder", "not a run folder"]);
    sandbox.vpt(&["train", "--config", "nowhere.toml"]).fails(&["nowhere.toml"]);
    sandbox.write("bad.toml", "seed = 1\nepoch = 3\n");
    sandbox.vpt(&["train", "--config", "bad.toml"]).fails(&["bad.toml", "line 2", "`epoch`"]);

    // The same value is wrong usage where it was typed, and a bad file where it was read.
    sandbox.write("value.toml", "epochs = 0\n");
    sandbox.vpt(&["train", "--config", "value.toml"]).fails(&["value.toml: --epochs: must be at least 1"]);
    sandbox.vpt(&["train", "--epochs", "0"]).refuses(&["error: --epochs: must be at least 1"]);
    let config = fs::read_to_string(sandbox.path("run/config.toml")).unwrap();
    let deeper = config.replace("prompt_layers = \"all\"", "prompt_layers = \"first:9\"");
    sandbox.write("edited/config.toml", deeper);
    sandbox.vpt(&["train", "--resume", "edited"]).fails(&["edited/config.toml: --prompt-layers"]);

    // A run whose checkpoint is damaged must not start over in silence.
    fs::remove_file(sandbox.path("run/results.json")).unwrap();
    sandbox.write("run/checkpoint.safetensors", "garbage");
    sandbox.vpt(&["train", "--resume", "run"]).fails(&["run/checkpoint.safetensors"]);
}

#[test]
fn unreadable_images_are_named() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1"]);
    sandbox.write("text.png", "hello");
    let good = fixture("images/a.png");
    let bytes = fs::read(&good).unwrap();
    sandbox.write("cut.png", &bytes[..bytes.len() / 2]);
    fs::create_dir(sandbox.path("folder.png")).unwrap();
    for bad in ["text.png", "cut.png", "missing.png"] {
        // The others are answered.
        let predict = ["predict", "--model", "run", &good, bad, &good, "--json"];
        let run = sandbox.vpt(&predict);
        assert!(run.code == Some(1) && run.stderr.contains(bad), "{run:#?}");
        let json = run.json();
        assert_eq!(json["predictions"].as_array().map(Vec::len), Some(2), "{json}");
        assert_eq!((json["skipped"].as_array().map(Vec::len), &json["skipped"][0]["image"]), (Some(1), &bad.into()));
        let run = sandbox.vpt(&[&predict[..], &["--skip-bad-images"]].concat()).ok();
        assert!(run.stderr.contains(bad), "{run:#?}");
        let vit = fixture("vit");
        let run = sandbox.vpt(&["embed", "--backbone", &vit, "--out", "e.safetensors", &good, bad, "--json"]);
        assert!(run.code == Some(1) && run.stderr.contains(bad), "{run:#?}");
        assert_eq!(run.json()["images"], 1);
        fs::remove_file(sandbox.path("e.safetensors")).unwrap();
        // Nothing is left where no image can be read.
        sandbox.vpt(&["predict", "--model", "run", bad]).fails(&[bad]);
        sandbox.vpt(&["embed", "--backbone", &vit, "--out", "e.safetensors", bad]).fails(&[bad]);
        assert!(!sandbox.path("e.safetensors").exists());
    }
    sandbox.vpt(&["predict", "--model", "run", &good, "folder.png"]).fails(&["folder.png"]);
}

#[test]
#[cfg(unix)]
fn results_that_cannot_be_written_are_errors() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    sandbox.write("file", "");
    let (vit, image) = (fixture("vit"), fixture("images/a.png"));
    sandbox
        .vpt(&["embed", "--backbone", &vit, "--out", "nowhere/e.safetensors", &image])
        .fails(&["nowhere/e.safetensors"]);
    let args = ["train", "--backbone", &vit, "--data", "colours", "--out", "file/run"];
    sandbox.vpt(&args).fails(&["file/run"]);
    // Every write fails there, even for the superuser.
    if Path::new("/dev/full").exists() {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = sandbox.command(&["backbones", "list"]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: stdout: "));
    }
}
