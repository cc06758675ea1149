//! Task files, configurations of runs, checkpoints, and run folders that are none.

use std::fs;

use serde_json::{Value, json};

use super::{copied, deep, entry, parts, refused, safetensors};
use crate::util::{Sandbox, fixture};

/// A safetensors file as `whole`, with another metadata text or other entries.
fn rewritten(whole: &[u8], change: &dyn Fn(&mut Value, &mut Value)) -> Vec<u8> {
    let (mut header, data) = parts(whole);
    let key = header["__metadata__"].as_object().unwrap().keys().next().unwrap().clone();
    let mut meta: Value = serde_json::from_str(header["__metadata__"][&key].as_str().unwrap()).unwrap();
    change(&mut header, &mut meta);
    if header["__metadata__"][&key].is_string() {
        header["__metadata__"][&key] = json!(meta.to_string());
    }
    safetensors(&header.to_string(), data)
}

/// The same with `value` at `at` of the metadata.
fn with_meta(whole: &[u8], at: &str, value: &Value) -> Vec<u8> {
    rewritten(whole, &|_, meta| {
        let (parent, key) = at.rsplit_once('/').unwrap();
        meta.pointer_mut(parent).unwrap()[key] = value.clone();
    })
}

#[test]
fn task_files() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1", "--prompt-tokens", "4", "--keep-better", "false"]);
    let whole = fs::read(sandbox.path("run/best.safetensors")).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let header = |change: &dyn Fn(&mut Value)| rewritten(&whole, &|header, _| change(header));
    let raw_meta = |text: String| {
        let (mut header, data) = parts(&whole);
        header["__metadata__"]["vpt"] = json!(text);
        safetensors(&header.to_string(), data)
    };
    let nan = {
        let mut bytes = whole.clone();
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    };
    let infinite = [&whole[..whole.len() - 4], &f32::INFINITY.to_le_bytes()].concat();
    let mut cases: Vec<(String, Vec<u8>, &str)> = [
        ("empty", vec![], ""),
        ("text", b"a task".to_vec(), ""),
        ("cut-in-the-header", whole[..200].to_vec(), ""),
        ("cut-by-a-byte", whole[..whole.len() - 1].to_vec(), ""),
        ("a-byte-too-long", [&whole[..], b"x"].concat(), ""),
        ("header-beyond", [&u64::MAX.to_le_bytes(), &whole[8..]].concat(), ""),
        ("header-short", [&(length - 9).to_le_bytes(), &whole[8..]].concat(), ""),
        ("nan", nan, "not finite"),
        ("infinite", infinite, "not finite"),
        ("no-metadata", header(&|h| drop(h.as_object_mut().unwrap().remove("__metadata__"))), "no key `vpt`"),
        ("metadata-no-json", raw_meta("{".to_owned()), ""),
        ("metadata-a-number", raw_meta("7".to_owned()), "no format number"),
        ("metadata-nested", raw_meta(deep(100_000)), "recursion limit"),
        (
            "a-tensor-missing",
            header(&|h| {
                let moved = h.as_object_mut().unwrap().remove("head.weight").unwrap();
                h["head.other"] = moved;
            }),
            "head.weight",
        ),
        ("a-tensor-more", header(&|h| h["more"] = entry("F32", &json!([0]), [0, 0])), "no place"),
        (
            "half-precision",
            header(&|h| {
                let shape = h["head.bias"]["shape"][0].as_u64().unwrap();
                h["head.bias"]["dtype"] = json!("F16");
                h["head.bias"]["shape"] = json!([2 * shape]);
            }),
            "F16",
        ),
        (
            "other-shape",
            header(&|h| {
                let shape = h["prompt.tokens"]["shape"].as_array().unwrap().clone();
                h["prompt.tokens"]["shape"] = json!([shape[2], shape[1], shape[0]]);
            }),
            "shape",
        ),
        (
            "flat-weight",
            header(&|h| {
                let shape: u64 =
                    h["head.weight"]["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
                h["head.weight"]["shape"] = json!([shape]);
            }),
            "head.weight",
        ),
    ]
    .map(|(name, bytes, part)| (name.to_owned(), bytes, part))
    .into();
    for (at, value, part) in [
        ("/format", json!(0), "format 0"),
        ("/format", json!(2), "learned parts in a file of format 2"),
        ("/format", json!(3), "a newer version"),
        ("/format", json!("1"), "no format number"),
        ("/format", json!(u64::MAX), "format 18446744073709551615"),
        ("/method", json!("vpt-deeper"), "vpt-deeper"),
        ("/method", json!("m".repeat(1 << 20)), "task metadata"),
        ("/method", Value::Null, "task metadata"),
        ("/prompt", json!({"input": "pixels"}), "task metadata"),
        ("/prompt/tokens", json!(0), "without tokens"),
        ("/prompt/tokens", json!(1_u64 << 60), "shape"),
        ("/prompt/layers", json!(u64::MAX), "shape"),
        ("/prompt/start", json!(u64::MAX), "block"),
        ("/prompt/start", json!(3), "block"),
        ("/prompt", json!({"input": "none"}), "no place"),
        ("/head", json!("detector"), "task metadata"),
        ("/backbone", json!({"name": "vit"}), "hash"),
        ("/backbone/identity/hash", json!("0".repeat(64)), "the task was learned on"),
        ("/backbone/identity/parts", json!({"tensors": 1}), "task metadata"),
        ("/backbone/identity", json!([1]), "task metadata"),
        ("/backbone/name", json!("../../../../etc"), ""),
        ("/classes", json!([]), "0 classes"),
        ("/classes", json!(["x"]), "shape"),
        ("/classes", json!(vec!["x"; 2_000_000]), "2000000 classes"),
        ("/classes", json!([1, 2, 3]), "task metadata"),
        ("/image_size", json!(0), "image size 0"),
        ("/image_size", json!(1_u64 << 40), "image size"),
        ("/image_size", json!(33), "33"),
        ("/image_size", json!(-1), "task metadata"),
        ("/preprocess", json!({}), "task metadata"),
        ("/preprocess/rescale", json!(0), "rescale"),
        ("/preprocess/std", json!([0, 0, 0]), "std"),
        ("/preprocess/resize", json!("huge"), "task metadata"),
        ("/metrics/epoch", json!(-1), "task metadata"),
        ("/temperature", json!(0), "temperature"),
        ("/temperature", json!(-1), "temperature"),
        ("/temperature", json!(1e300), "temperature"),
        ("/detect", json!({}), "task metadata"),
        ("/unknown", json!(1), "unknown"),
    ] {
        let name = format!("{}-{}", at[1..].replace('/', "-"), cases.len());
        cases.push((name, with_meta(&whole, at, &value), part));
    }
    // The task of another backbone.
    copied(&sandbox, "vit", "folder-of-vit");
    let image = fixture("images/a.png");
    let vit = fixture("vit");
    for (name, bytes, part) in cases {
        let file = format!("{name}.safetensors");
        sandbox.write(&file, bytes);
        let args = ["predict", "--model", &file, "--backbone", &vit, &image];
        if name.starts_with("backbone-name") {
            // Where the backbone is given, what the file calls it does not matter.
            sandbox.holds(&name, || drop(sandbox.vpt_within_limits(&args).ok()));
            refused(&sandbox, &["predict", "--model", &file, &image], &[]);
            continue;
        }
        refused(&sandbox, &args, &[&file, part]);
        sandbox.holds(&name, || drop(sandbox.vpt_within_limits(&["task", "info", &file])));
    }
    for backbone in ["clip", "deit", "dinov2"] {
        let args = ["predict", "--model", "run", "--backbone", &fixture(backbone), &image];
        refused(&sandbox, &args, &["run: --backbone: the task was learned on vit", backbone]);
    }
    // A gigabyte of zeros that takes no room.
    let file = fs::File::create(sandbox.path("zeros.safetensors")).unwrap();
    file.set_len(1 << 30).unwrap();
    refused(&sandbox, &["predict", "--model", "zeros.safetensors", &image], &["zeros.safetensors"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/dev/zero", sandbox.path("endless.safetensors")).unwrap();
        refused(&sandbox, &["predict", "--model", "endless.safetensors", &image], &["endless.safetensors"]);
    }
}

#[test]
fn configurations_of_runs() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 6);
    let texts: Vec<(&str, Vec<u8>, &str)> = vec![
        ("binary", vec![0, 1, 2, 255], ""),
        ("not-utf-8", b"data = \"\xff\"".to_vec(), "not UTF-8"),
        ("garbage", b"data = = 3".to_vec(), "line 1"),
        ("open-text", b"seed = 1\ndata = \"colours".to_vec(), "line 2"),
        ("json", b"{\"data\": \"colours\"}".to_vec(), "line 1"),
        ("unknown-field", b"seed = 1\n\nepoch = 3\n".to_vec(), "line 3"),
        ("unknown-table", b"[train]\nepochs = 3\n".to_vec(), "line 1"),
        ("twice", b"seed = 1\nseed = 2\n".to_vec(), "line 2"),
        ("nested", [b"data = ".to_vec(), b"[".repeat(100_000)].concat(), ""),
        ("nested-tables", [b"[".to_vec(), b"a.".repeat(50_000), b"a]\n".to_vec()].concat(), ""),
        ("large", vec![b'#'; 2 << 20], "limit"),
        ("a-name-of-half-a-megabyte", [b"a".repeat(500_000), b" = 1\n".to_vec()].concat(), ""),
        ("a-method-of-half-a-megabyte", [b"method = \"".to_vec(), b"a".repeat(500_000), b"\"\n".to_vec()].concat(), ""),
    ];
    let fields = [
        ("seed = -1", "line 1"),
        ("seed = 1.5", "line 1"),
        ("seed = \"one\"", "line 1"),
        ("epochs = 0", "--epochs"),
        ("epochs = -3", "line 1"),
        ("epochs = 9223372036854775807", "--epochs"),
        ("epochs = 99999999999999999999999", "line 1"),
        ("batch_size = 0", "--batch-size"),
        ("micro_batch = 0", "--micro-batch"),
        ("lr = nan", "--lr"),
        ("lr = inf", "--lr"),
        ("lr = -1.0", "--lr"),
        ("lr = \"fast\"", "line 1"),
        ("lr = true", "line 1"),
        ("head_lr = nan", "--head-lr"),
        ("weight_decay = -1.0", "--weight-decay"),
        ("weight_decay = inf", "--weight-decay"),
        ("warmup = 1.5", "--warmup"),
        ("warmup = nan", "--warmup"),
        ("clip_norm = 0.0", "--clip-norm"),
        ("label_smoothing = 1.0", "--label-smoothing"),
        ("label_smoothing = nan", "--label-smoothing"),
        ("prompt_tokens = 0", "--prompt-tokens"),
        ("prompt_tokens = 100000000", "--prompt-tokens"),
        ("prompt_layers = \"middle\"", "line 1"),
        ("prompt_layers = \"first:0\"", "--prompt-layers"),
        ("prompt_layers = \"last:99999999999\"", "--prompt-layers"),
        ("prompt_dropout = 2.0", "--prompt-dropout"),
        ("prompt_dropout = nan", "--prompt-dropout"),
        ("method = 3", "line 1"),
        ("method = \"vp-pad\"\npad = 0", "--pad"),
        ("method = \"vp-pad\"\npad = 1000000000000", "--pad"),
        ("method = \"vp-patch\"\npatch_size = 0", "--patch-size"),
        ("method = \"vp-patch\"\npatch_size = 9223372036854775807", "--patch-size"),
        ("method = \"vp-frame\"\ninner_size = 0", "--inner-size"),
        ("method = \"vp-frame\"\ninner_size = 9223372036854775807", "--inner-size"),
        ("image_size = 0", "--image-size"),
        ("image_size = 33", "--image-size"),
        ("image_size = 9223372036854775807", "--image-size"),
        ("threads = 0", "--threads"),
        ("threads = 1000000000", "--threads"),
        ("shots = 0", "--shots"),
        ("patience = 0", "--patience"),
        ("random_resized_crop = [0.5]", "line 1"),
        ("random_resized_crop = [nan, 1.0]", "--random-resized-crop"),
        ("random_resized_crop = [0.9, 0.1]", "--random-resized-crop"),
        ("ema = 1.5", "--ema"),
        ("mosaic = 0.5", "--mosaic"),
        ("backbone = \"nowhere\"", "--backbone"),
        ("backbone = \"\"", ""),
        ("data = \"\"", ""),
        ("data = \"nowhere\"", "nowhere"),
        ("data = 3", "line 1"),
        ("task = \"detect\"", ""),
        ("select = \"first\"", "line 1"),
        ("weights_dir = \"nowhere\"\nbackbone = \"clip-vit-b32\"", "clip-vit-b32"),
    ];
    for (name, bytes, part) in texts {
        let file = format!("{name}.toml");
        sandbox.write(&file, bytes);
        refused(&sandbox, &["train", "--config", &file, "--out", "run"], &[&file, part]);
    }
    for (number, (line, part)) in fields.into_iter().enumerate() {
        let file = format!("field-{number}.toml");
        let data = if line.contains("data = ") { "" } else { "data = \"colours\"\n" };
        let backbone =
            if line.contains("backbone = ") { String::new() } else { format!("backbone = {:?}\n", fixture("vit")) };
        let text = format!("{line}\n{data}{backbone}");
        sandbox.write(&file, text);
        let run = sandbox.vpt_within_limits(&["train", "--config", &file, "--out", "run"]);
        // What only shows at the backbone or the data is said of the flag that would set it.
        if run.code == Some(2) {
            run.refuses(&[part])
        } else {
            run.fails(&[part])
        };
        let _ = fs::remove_dir_all(sandbox.path("run"));
    }
    for name in ["missing.toml", "colours", "/dev/zero"] {
        refused(&sandbox, &["train", "--config", name, "--out", "run"], &[name]);
    }
}

#[test]
fn checkpoints() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "2"]);
    fs::remove_file(sandbox.path("run/results.json")).unwrap();
    let file = "run/checkpoint.safetensors";
    let whole = fs::read(sandbox.path(file)).unwrap();
    let best = fs::read(sandbox.path("run/best.safetensors")).unwrap();
    let shape = |at: usize, value: u64| {
        rewritten(&whole, &|header, _| {
            let (_, entry) =
                header.as_object_mut().unwrap().iter_mut().find(|(name, _)| name.starts_with("value/")).unwrap();
            entry["shape"][at] = json!(value);
        })
    };
    let mut nan = whole.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], ""),
        (b"garbage".to_vec(), ""),
        (whole[..whole.len() / 2].to_vec(), ""),
        (whole[..whole.len() - 1].to_vec(), ""),
        ([&whole[..], b"x"].concat(), ""),
        ([&(1_u64 << 50).to_le_bytes(), &whole[8..]].concat(), ""),
        (best, "no key `vpt-checkpoint`"),
        (nan, "not finite"),
        (shape(0, 1 << 40), ""),
        (
            rewritten(&whole, &|header, _| {
                let map = header.as_object_mut().unwrap();
                let name = map.keys().find(|name| name.starts_with("second/")).unwrap().clone();
                let moved = map.remove(&name).unwrap();
                map.insert("third".to_owned(), moved);
            }),
            "has no tensor `second/",
        ),
    ];
    for (at, value, part) in [
        ("/format", json!(2), "format"),
        ("/format", json!("x"), ""),
        ("/run", json!("another"), "another configuration"),
        ("/optimizer_steps", json!(-1), ""),
        ("/progress", Value::Null, ""),
        ("/progress/history/0/epoch", json!(99), "do not follow one another"),
        ("/progress/history/1/epoch", json!(0), "do not follow one another"),
        ("/progress/history", json!([{}]), ""),
        ("/progress/history", json!("x".repeat(1 << 20)), ""),
        ("/progress/lr", json!("x"), ""),
        ("/more", json!(1), "more"),
    ] {
        cases.push((with_meta(&whole, at, &value), part));
    }
    for (number, (bytes, part)) in cases.into_iter().enumerate() {
        sandbox.write(file, bytes);
        sandbox.holds(&format!("case {number}"), || {
            sandbox.vpt_within_limits(&["train", "--resume", "run"]).fails(&[file, part]);
            assert!(!sandbox.path("run/results.json").exists());
        });
        let _ = fs::remove_file(sandbox.path("run/results.json"));
    }
    sandbox.write(file, &whole);
    sandbox.vpt_within_limits(&["train", "--resume", "run"]).ok();
}

#[test]
fn run_folders() {
    let sandbox = Sandbox::new();
    sandbox.trained("runs/x", &["--epochs", "1", "--method", "linear"]);
    sandbox.write("file", "");
    sandbox.write("photos/cat/1.png", "");
    sandbox.write("a-folder-for-a-file/config.toml/x", "");
    sandbox.write("broken/config.toml", "what = 1\n");
    for (args, part) in [
        (vec!["train", "--resume", "file"], "file"),
        (vec!["train", "--resume", "missing"], "missing: no such file or folder"),
        (vec!["train", "--resume", "photos"], "not a run folder"),
        (vec!["train", "--resume", "a-folder-for-a-file"], "not a run folder"),
        (vec!["train", "--resume", "broken"], "broken/config.toml"),
        (vec!["runs", "show", "file"], "file"),
        (vec!["runs", "show", "photos"], "photos"),
        (vec!["runs", "show", "missing"], "missing"),
        (vec!["runs", "show", ""], "run"),
        (vec!["runs", "show", "../../etc"], "etc"),
        (vec!["runs", "rm", "file", "--yes"], "file"),
        (vec!["runs", "rm", "photos", "--yes"], "photos"),
        (vec!["runs", "rm", ".", "--yes"], "."),
        (vec!["runs", "rm", "/", "--yes"], "/"),
        (vec!["runs", "rm", "runs", "--yes"], "runs"),
        (vec!["runs", "list", "file"], "file"),
        (vec!["runs", "list", "missing"], "missing"),
        (vec!["runs", "compare", "x", "photos"], "photos"),
        (vec!["task", "info", "photos"], "photos"),
        (vec!["task", "info", "file"], "file"),
        (vec!["eval", "--model", "photos", "--data", "colours"], "photos"),
        (vec!["predict", "--model", "photos", "photos/cat/1.png"], "photos"),
        (vec!["embed", "--model", "photos", "--out", "e", "photos/cat/1.png"], "photos"),
    ] {
        refused(&sandbox, &args, &[part]);
    }
    assert!(sandbox.path("photos/cat/1.png").exists() && sandbox.path("runs/x/config.toml").exists());
    // What is in a finished run's folder is damaged one by one.
    for (file, content) in [
        ("results.json", "{"),
        ("results.json", "[]"),
        ("split.json", "{"),
        ("metrics.jsonl", "\0\0"),
        ("environment.json", "x"),
        ("config.toml", "seed = \"\"\n"),
    ] {
        let path = format!("runs/x/{file}");
        let whole = fs::read(sandbox.path(&path)).unwrap();
        sandbox.write(&path, content);
        sandbox.holds(file, || {
            sandbox.vpt_within_limits(&["runs", "list"]).ok();
            sandbox.vpt_within_limits(&["runs", "show", "x"]).ok();
            let run = sandbox.vpt_within_limits(&["train", "--resume", "runs/x"]);
            assert!(matches!(run.code, Some(0 | 1)), "{run:#?}");
            if run.code == Some(1) {
                run.fails(&[&path]);
            }
        });
        sandbox.write(&path, whole);
    }
}
