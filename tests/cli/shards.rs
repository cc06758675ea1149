//! `vpt embed --input` and `vpt predict --input`: archives in, folders out; broken images, kills, several processes, launchers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use half::f16;
use serde_json::Value;

use crate::util::{Sandbox, files, finish, fixture, json_file};

const LIMIT: Duration = Duration::from_secs(120);

/// A picture of `side` pixels, another for every number.
fn picture(number: u32, side: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32| image::Rgb([x * 9 + number * 5, y * 7 + number * 31, x * y + number].map(|v| v as u8));
    let mut out = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(side, side - 4, pixel).write_to(&mut out, image::ImageFormat::Png).unwrap();
    out.into_inner()
}

fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &content[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

/// `shards` archives of `each` samples of picture, caption and facts, in each the picture of one sample broken.
fn shards(sandbox: &Sandbox, shards: u32, each: u32) {
    for shard in 0..shards {
        let mut members = Vec::new();
        for i in 0..each {
            let number = shard * each + i;
            let broken = i == shard % each;
            let content = if broken { b"no picture".to_vec() } else { picture(number, 20 + number % 7) };
            members.push((format!("{number:05}.png"), content));
            members.push((format!("{number:05}.txt"), format!("picture {number}").into_bytes()));
            members.push((format!("{number:05}.json"), format!("{{\"width\": {number}}}").into_bytes()));
        }
        sandbox.write(&format!("shards/{shard:03}.tar"), archive(&members));
    }
}

/// All files below `folder` with their contents.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !there() {
        assert!(begin.elapsed() < LIMIT, "no {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn begin(sandbox: &Sandbox, args: &[&str]) -> Child {
    sandbox.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for success.
fn ended(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The rows of an `.npy` of 16 or 32 bits.
fn rows(path: &Path, width: usize) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let values: Vec<f32> = if String::from_utf8_lossy(&bytes[..128]).contains("'<f2'") {
        bytes[128..].chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    } else {
        bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    values.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

#[test]
fn rows_are_those_of_embed_and_what_cannot_be_read_is_listed() {
    let sandbox = Sandbox::new();
    shards(&sandbox, 2, 5);
    let clip = fixture("clip");
    let embed = ["embed", "--backbone", &clip, "--input", "shards/{000..001}.tar", "--layout", "clip-retrieval"];
    let embed = [&embed[..], &["--out", "e", "--json"]].concat();
    let run = sandbox.vpt(&embed);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stderr.contains("2 of 10 images could not be read; listed in e/stats"), "{run:#?}");
    let said = sandbox.vpt(&[&embed[..], &["--skip-bad-images"]].concat()).ok().json();
    assert_eq!((&said["all"]["images"], &said["all"]["failures"]), (&8.into(), &2.into()));
    assert_eq!((&said["done"]["shards"], &said["shards"]), (&0.into(), &2.into()), "nothing is done twice");
    let width = said["width"].as_u64().unwrap() as usize;

    let stats = json_file(&sandbox.path("e/stats/1.json"));
    assert_eq!((&stats["samples"], &stats["images"]), (&5.into(), &4.into()));
    assert_eq!(stats["failures"][0]["key"], "00006");
    assert!(stats["failures"][0]["error"].as_str().unwrap().starts_with("00006.png: not an image"), "{stats:#}");

    // The same images by themselves.
    for number in [5, 7, 8, 9] {
        sandbox.write(&format!("{number}.png"), picture(number, 20 + number % 7));
    }
    let alone = ["embed", "--backbone", &clip, "--normalize", "--out", "a.npy", "5.png", "7.png", "8.png", "9.png"];
    sandbox.vpt(&alone).ok();
    let short = |row: Vec<f32>| row.into_iter().map(|v| f16::from_f32(v).to_f32()).collect::<Vec<_>>();
    let expected: Vec<Vec<f32>> = rows(&sandbox.path("a.npy"), width).into_iter().map(short).collect();
    assert_eq!(rows(&sandbox.path("e/img_emb/img_emb_1.npy"), width), expected);
    assert_eq!(files(&sandbox.path("e/metadata")), ["metadata_0.parquet", "metadata_1.parquet"]);
    assert_eq!(files(&sandbox.path("e")), ["embed.json", "img_emb", "metadata", "stats"]);

    // Other layouts hold the same rows, here as they are.
    let plain = ["embed", "--backbone", &clip, "--input", "shards", "--skip-bad-images", "--layout"];
    sandbox.vpt(&[&plain[..], &["npy", "--normalize", "--out", "n"]].concat()).ok();
    assert_eq!(rows(&sandbox.path("n/1.npy"), width), rows(&sandbox.path("a.npy"), width));
    let names = fs::read_to_string(sandbox.path("n/1.jsonl")).unwrap();
    assert_eq!(names.lines().next().unwrap(), r#"{"key":"00005","caption":"picture 5","width":5}"#);
    sandbox.vpt(&[&plain[..], &["safetensors", "--dtype", "f16", "--normalize", "--out", "s"]].concat()).ok();
    let bytes = fs::read(sandbox.path("s/1.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("image_embeds").unwrap();
    let values = tensor.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
    assert_eq!((tensor.shape(), values.collect::<Vec<_>>()), (&[4, width][..], expected.concat()));
}

#[test]
fn killed_and_shared_by_three_a_folder_holds_the_same_bytes() {
    let sandbox = Sandbox::new();
    shards(&sandbox, 12, 30);
    let clip = fixture("clip");
    let embed = |out: &'static str| {
        let how = ["--input", "shards/*.tar", "--layout", "clip-retrieval", "--skip-bad-images", "--threads", "1"];
        [&["embed", "--out", out, "--backbone", &clip][..], &how].concat()
    };
    sandbox.vpt(&embed("whole")).ok();
    let whole = content(&sandbox.path("whole"));
    assert_eq!(whole.len(), 3 * 12 + 1);

    // Killed after every third shard.
    let out = sandbox.path("killed");
    for count in [1, 4, 7] {
        let mut child = begin(&sandbox, &embed("killed"));
        wait_for("shards", || fs::read_dir(out.join("stats")).is_ok_and(|stats| stats.count() >= count));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // What was being made when a process was killed: a shard without what tells of it, and one whose file is cut off.
    let left = files(&out.join("stats"));
    fs::remove_file(out.join("stats").join(&left[0])).unwrap();
    fs::write(out.join("img_emb").join(format!("img_emb_{}.npy", left[1].trim_end_matches(".json"))), "cut").unwrap();
    let three: Vec<Child> = (0..3).map(|_| begin(&sandbox, &embed("killed"))).collect();
    three.into_iter().for_each(ended);
    assert!(content(&out) == whole, "{:?}", content(&out).keys());

    // As shares, by number and by what launchers say.
    for (index, count) in [(0, 3), (2, 3)] {
        let mut command = sandbox.command(&[&embed("shares")[..], &["--shard", "auto"]].concat());
        command.env("SLURM_ARRAY_TASK_ID", (index + 4).to_string()).env("SLURM_ARRAY_TASK_COUNT", count.to_string());
        command.env("SLURM_ARRAY_TASK_MIN", "4").env("SLURM_CPUS_ON_NODE", "1");
        finish(command, &["embed", "--shard", "auto"]).ok();
    }
    assert_eq!(files(&sandbox.path("shares/stats")).len(), 8);
    sandbox.vpt(&[&embed("shares")[..], &["--shard", "2/3"]].concat()).ok();
    assert!(content(&sandbox.path("shares")) == whole);
}

#[test]
fn shards_that_cannot_be_read_are_named_and_the_others_are_done() {
    let sandbox = Sandbox::new();
    shards(&sandbox, 3, 4);
    let vit = fixture("vit");
    let bytes = fs::read(sandbox.path("shards/001.tar")).unwrap();
    sandbox.write("shards/001.tar", &bytes[..600]);
    let embed = ["embed", "--backbone", &vit, "--input", "shards/{000..003}.tar", "--out", "e", "--skip-bad-images"];
    let run = sandbox.vpt(&[&embed[..], &["--json"]].concat());
    assert_eq!(run.code, Some(1), "{run:#?}");
    let said = run.json();
    let failed: Vec<String> = said["failed"].as_array().unwrap().iter().map(|f| f["error"].to_string()).collect();
    assert_eq!((said["all"]["shards"].as_u64(), failed.len()), (Some(2), 2), "{said:#}");
    assert!(failed[0].contains("shards/001.tar: truncated") && failed[1].contains("shards/003.tar"), "{failed:?}");
    assert!(run.stderr.contains("error: failed shards: 2; the same command tries them again"), "{run:#?}");
    sandbox.write("shards/001.tar", &bytes);
    sandbox.write("shards/003.tar", archive(&[("x.png".to_owned(), picture(1, 20))]));
    let said = sandbox.vpt(&[&embed[..], &["--json"]].concat()).ok().json();
    assert_eq!((said["all"]["shards"].as_u64(), said["done"]["shards"].as_u64()), (Some(4), Some(2)));
    // A shard that has changed is done again.
    sandbox.write(
        "shards/003.tar",
        archive(&[("x.png".to_owned(), picture(1, 20)), ("y.png".to_owned(), picture(2, 20))]),
    );
    let said = sandbox.vpt(&[&embed[..], &["--json"]].concat()).ok().json();
    assert_eq!((said["all"]["shards"].as_u64(), said["done"]["images"].as_u64()), (Some(4), Some(2)));
}

#[test]
#[cfg(unix)]
fn what_a_command_writes_is_a_shard_and_only_the_command_line_may_ask_for_it() {
    let sandbox = Sandbox::new();
    shards(&sandbox, 2, 3);
    let vit = fixture("vit");
    let embed = |input: &'static str, out: &'static str| {
        ["embed", "--backbone", &vit, "--skip-bad-images", "--layout", "npy", "--input", input, "--out", out]
            .map(str::to_owned)
    };
    let run = |input, out| {
        let args = embed(input, out);
        sandbox.vpt(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    run("shards", "files").ok();
    run("pipe:cat shards/{000..001}.tar", "pipes").ok();
    for file in ["0.npy", "1.npy", "0.jsonl", "1.jsonl"] {
        assert_eq!(
            fs::read(sandbox.path("pipes").join(file)).unwrap(),
            fs::read(sandbox.path("files").join(file)).unwrap()
        );
    }
    let failed = run("pipe:cat shards/000.tar; exit 3", "bad");
    assert!(
        failed.code == Some(1) && failed.stderr.contains("exit 3 failed: pipe:cat shards/000.tar; exit 3: ended with"),
        "{failed:#?}"
    );
    let failed = run("pipe:head -c 600 shards/001.tar", "short");
    assert!(failed.code == Some(1) && failed.stderr.contains("truncated"), "{failed:#?}");
    sandbox.write("list", "shards/000.tar\npipe:touch made\n");
    run("list", "list-out").fails(&["line 2", "only the command line"]);
    assert!(!sandbox.path("made").exists());
}

#[test]
#[cfg(unix)]
fn a_signal_ends_it_between_batches() {
    let sandbox = Sandbox::new();
    shards(&sandbox, 1, 3);
    let vit = fixture("vit");
    let input = ["--input", "pipe:cat shards/000.tar", "pipe:exec sleep 60"];
    let args = [&["embed", "--backbone", &vit, "--out", "e", "--skip-bad-images"][..], &input].concat();
    let child = begin(&sandbox, &args);
    wait_for("shard", || sandbox.path("e/stats/0.json").exists());
    let kill = format!("kill -TERM {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.ends_with("error: interrupted; the same command goes on with the shards\n"), "{said}");
    assert_eq!(files(&sandbox.path("e/stats")), ["0.json"]);
}

#[test]
fn a_task_embeds_and_predicts_shards_as_it_does_images() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "2"]);
    shards(&sandbox, 2, 4);
    let input = ["--input", "shards", "--skip-bad-images", "--model", "run", "--out"];
    let said = sandbox.vpt(&[&["predict"][..], &input, &["p", "--json"]].concat()).ok().json();
    assert_eq!((said["all"]["images"].as_u64(), &said["width"]), (Some(6), &Value::Null));
    let lines: Vec<Value> = fs::read_to_string(sandbox.path("p/0.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let keys: Vec<&str> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["00001", "00002", "00003"]);
    sandbox.write("1.png", picture(1, 21));
    let alone = sandbox.vpt(&["predict", "--model", "run", "1.png", "--json"]).ok().json();
    for field in ["label", "probability", "top5"] {
        assert_eq!(lines[0][field], alone["predictions"][0][field], "{field}");
    }
    sandbox.vpt(&[&["predict"][..], &input, &["t", "--layout", "parquet"]].concat()).ok();
    assert_eq!(fs::read(sandbox.path("t/0.parquet")).unwrap()[..4], *b"PAR1");
    sandbox.vpt(&[&["predict"][..], &input, &["t"]].concat()).fails(&["t: was begun with another layout"]);
    sandbox.vpt(&[&["embed"][..], &input, &["e", "--layout", "npy"]].concat()).ok();
    sandbox.vpt(&["embed", "--model", "run", "--out", "1.npy", "1.png"]).ok();
    let width = 32;
    assert_eq!(rows(&sandbox.path("e/0.npy"), width)[0], rows(&sandbox.path("1.npy"), width)[0]);
    // A folder is of one task.
    sandbox.trained("other", &["--epochs", "1", "--seed", "2"]);
    let other = ["embed", "--input", "shards", "--model", "other", "--layout", "npy", "--out", "e"];
    sandbox.vpt(&other).fails(&["e: was begun with another task; give another --out"]);
}

#[test]
fn a_detector_looks_at_shards_as_it_does_at_images() {
    let sandbox = Sandbox::new();
    sandbox.boxes("boxes", 24);
    sandbox.vpt(&["train", "--data", "boxes", "--epochs", "1", "--out", "run"]).ok();
    let kept = ["--min-score", "0.01", "--max-detections", "3", "--nms", "all"];
    let alone = sandbox.vpt(&[&["predict", "--model", "run", "boxes/val", "--json"][..], &kept].concat()).ok().json();
    let alone = alone["predictions"].as_array().unwrap();
    let names: Vec<&str> = alone.iter().map(|image| image["image"].as_str().unwrap()).collect();
    let mut members: Vec<(String, Vec<u8>)> =
        names.iter().enumerate().map(|(i, name)| (format!("{i}.png"), fs::read(sandbox.path(name)).unwrap())).collect();
    members.push(("broken.png".to_owned(), b"no picture".to_vec()));
    sandbox.write("shards/0.tar", archive(&members));
    let input = ["predict", "--model", "run", "--input", "shards", "--skip-bad-images", "--out"];
    sandbox.vpt(&[&input, &["p"][..], &kept].concat()).ok();
    let text = fs::read_to_string(sandbox.path("p/0.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), names.is_empty()), (names.len(), false));
    assert!(lines.iter().any(|line| !line["boxes"].as_array().unwrap().is_empty()), "{text}");
    for (i, (line, image)) in lines.iter().zip(alone).enumerate() {
        assert_eq!(line["key"], i.to_string());
        for field in ["width", "height", "boxes"] {
            assert_eq!(line[field], image[field], "{i}: {field}");
        }
    }
    let stats = json_file(&sandbox.path("p/stats/0.json"));
    assert_eq!(stats["failures"][0]["key"], "broken");
    sandbox.vpt(&[&input, &["t", "--layout", "parquet"][..], &kept].concat()).ok();
    assert_eq!(fs::read(sandbox.path("t/0.parquet")).unwrap()[..4], *b"PAR1");
    // What is kept is part of what a folder is.
    sandbox.vpt(&[&input, &["p", "--min-score", "0.02"][..]].concat()).fails(&["p: was begun with another task"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let sandbox = Sandbox::new();
    shards(&sandbox, 1, 3);
    sandbox.write("full/own.txt", "mine");
    let vit = fixture("vit");
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--input", "shards", "--out", "e", "a.png"], &["--input", "IMAGE"]),
        (&["--out", "e", "--shard", "1/2", "a.png"], &["--input"]),
        (&["--input", "shards", "--out", "e", "--shard", "3/2"], &["--shard", "3/2"]),
        (&["--input", "shards", "--out", "e", "--shard", "auto"], &["--shard", "no variable of a launcher"]),
        (&["--input", "shards", "--out", "shards/000.tar"], &["--out", "is a file"]),
        (&["--input", "shards", "--out", "e", "--dtype", "f8"], &["--dtype", "f8"]),
        (&["--input", "shards", "--out", "e", "--shard-size", "0"], &["--shard-size"]),
    ];
    for (flags, parts) in cases {
        let args = [&["embed", "--backbone", &vit], flags].concat();
        sandbox.holds(&flags.join(" "), || drop(sandbox.vpt(&args).refuses(parts)));
    }
    sandbox.vpt(&["embed", "--backbone", &vit, "--input", "shards", "--out", "full"]).fails(&["full: is not empty"]);
    sandbox.vpt(&["embed", "--backbone", &vit, "--input", "gone", "--out", "e"]).fails(&["gone: no such file"]);
    sandbox.vpt(&["predict", "--model", "run", "--input", "shards"]).refuses(&["--out"]);
    sandbox.vpt(&["predict", "--model", "run", "--layout", "parquet", "a.png"]).refuses(&["--layout is for --input"]);
}
