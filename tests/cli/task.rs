//! `vpt task info`: what is said of task files, and which are refused.

use std::fs;

use crate::util::{Sandbox, fixture, keys, number};

#[test]
fn a_task_file_tells_what_it_is() {
    let sandbox = Sandbox::new();
    let prompts = ["--prompt-tokens", "4", "--prompt-layers", "last:2", "--keep-better", "false"];
    sandbox.trained("runs/classify/c", &[&["--epochs", "1"][..], &prompts].concat());
    let info = sandbox.vpt(&["task", "info", "runs/classify/c", "--json"]).ok().json();
    assert_eq!(
        keys(&info)[..8],
        ["file", "bytes", "format", "task", "method", "prompt", "head", "backbone"],
        "{info:#}"
    );
    assert_eq!(
        (&info["task"], &info["method"], number(&info, "/format")),
        (&"classify".into(), &"vpt-deep".into(), 1.)
    );
    assert_eq!(info["classes"], serde_json::json!(["blue", "dark_red", "green"]));
    assert_eq!(info["backbone"]["hash"].as_str().unwrap().len(), 64);
    let shapes: Vec<_> = info["tensors"].as_array().unwrap().iter().map(|t| t["shape"].to_string()).collect();
    assert_eq!(shapes, ["[2,4,32]", "[3,32]", "[3]"]);
    assert_eq!(number(&info, "/trainable_params"), 2. * 4. * 32. + 3. * 32. + 3.);
    for file in ["c", "classify/c", "runs/classify/c/best.safetensors"] {
        let text = sandbox.vpt(&["task", "info", file]).ok().stdout;
        for part in ["4 tokens at each of the 2 blocks 2 to 3", "prompt.tokens [2, 4, 32]", "acc1", "blue, dark_red"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}

#[test]
fn what_is_no_task_file_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--method", "linear", "--epochs", "1"]);
    sandbox.vpt(&["task", "info", "rum"]).fails(&["`rum`: neither a run folder nor the name of a run"]);
    sandbox.vpt(&["eval", "--model", "rum", "--data", "colours"]).fails(&["rum: no such file", "did you mean run?"]);
    sandbox.vpt(&["task", "info", "run/checkpoint.safetensors"]).fails(&["checkpoint.safetensors", "no key `vpt`"]);
    let weights = format!("{}/model.safetensors", fixture("deit"));
    sandbox.vpt(&["task", "info", &weights]).fails(&["not a task file"]);
    // The version is one digit of the metadata, which is JSON in a text of JSON.
    let bytes = fs::read(sandbox.path("run/best.safetensors")).unwrap();
    let version = br#"\"format\":1"#;
    let at = bytes.windows(version.len()).position(|part| part == version).unwrap() + version.len() - 1;
    let mut newer = bytes;
    newer[at] = b'3';
    sandbox.write("newer.safetensors", &newer);
    for args in [vec!["task", "info", "newer.safetensors"], vec!["predict", "--model", "newer.safetensors", "x.png"]] {
        sandbox
            .vpt(&args)
            .fails(&["newer.safetensors: is a task file of format 3", "a newer version of vpt is needed"]);
    }
}
