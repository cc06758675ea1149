//! Data sets of one class an image: folders, tables, IDX files, CoOp's splits; lists of texts.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use super::{deep, refused};
use crate::util::{Sandbox, fixture};

/// `data` is refused by training and by `data info`, with a line that contains `parts`.
fn refuse(sandbox: &Sandbox, data: &str, parts: &[&str]) {
    let vit = fixture("vit");
    refused(sandbox, &["train", "--backbone", &vit, "--data", data, "--out", "run", "--epochs", "1"], parts);
    sandbox.holds(data, || {
        let entries = fs::read_dir(sandbox.path("run")).into_iter().flatten();
        let left = entries.filter(|entry| entry.as_ref().unwrap().file_name() != ".lock").count();
        assert_eq!(left, 0, "nothing was begun");
        // It says what there is even where some of it cannot be used.
        let run = sandbox.vpt_within_limits(&["data", "info", data]);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(
            run.code == Some(1) && run.stderr.starts_with("error: ") && run.stderr.lines().count() == 1,
            "{run:#?}"
        );
        assert!(parts.iter().all(|part| said.contains(part)), "no {parts:?} in {run:#?}");
    });
    let _ = fs::remove_dir_all(sandbox.path("run"));
}

/// Twelve good images of two classes below `name`.
fn good(sandbox: &Sandbox, name: &str) {
    sandbox.colours(name, 6);
    fs::remove_dir_all(sandbox.path(name).join("dark_red")).unwrap();
}

#[test]
fn folders() {
    let sandbox = Sandbox::new();
    let folder = |name: &str| fs::create_dir_all(sandbox.path(name)).unwrap();
    let image = fs::read(fixture("images/a.png")).unwrap();
    let put = |name: &str| drop(sandbox.write(name, &image));
    folder("nothing");
    sandbox.write("no-images/a/a.txt", "text");
    good(&sandbox, "empty-class");
    folder("empty-class/owl");
    sandbox.colours("one-class", 6);
    for class in ["green", "blue"] {
        fs::remove_dir_all(sandbox.path("one-class").join(class)).unwrap();
    }
    for name in ["too-few/a/1.png", "too-few/b/1.png", "loose/1.png", "loose/2.png"] {
        put(name);
    }
    good(&sandbox, "unknown-class/train");
    put("unknown-class/test/owl/1.png");
    good(&sandbox, "two-vals/train");
    for name in ["two-vals/val/blue/1.png", "two-vals/valid/blue/1.png"] {
        put(name);
    }
    good(&sandbox, "test-of-nothing");
    fs::rename(sandbox.path("test-of-nothing"), sandbox.path("train")).unwrap();
    folder("test-of-nothing");
    fs::rename(sandbox.path("train"), sandbox.path("test-of-nothing/test")).unwrap();
    sandbox.write("a-file", "text");
    for (data, part) in [
        ("nothing", "nothing"),
        ("no-images", "no-images"),
        ("empty-class", "empty-class/owl"),
        ("one-class", "only one class"),
        ("too-few", "too few images"),
        ("loose", "loose"),
        ("unknown-class", "owl"),
        ("two-vals", "a second val folder"),
        ("a-file", "a-file"),
        ("a-file/in-it", "a-file/in-it"),
        ("missing", "missing: no such file or folder"),
    ] {
        refuse(&sandbox, data, &[part]);
    }
    let long = "x".repeat(5000);
    refuse(&sandbox, &long, &["xxxx"]);
}

#[test]
#[cfg(unix)]
fn links() {
    use std::os::unix::fs::symlink;

    let sandbox = Sandbox::new();
    symlink("loop", sandbox.path("loop")).unwrap();
    symlink("nowhere", sandbox.path("broken")).unwrap();
    symlink("loop.csv", sandbox.path("loop.csv")).unwrap();
    for data in ["loop", "broken", "loop.csv"] {
        refuse(&sandbox, data, &[data]);
    }
    // A class that is a link to nothing, and one that holds itself.
    good(&sandbox, "holed");
    symlink("nowhere", sandbox.path("holed/gone")).unwrap();
    sandbox.vpt_within_limits(&["data", "info", "holed"]).ok();
    good(&sandbox, "endless");
    symlink("..", sandbox.path("endless/blue/up")).unwrap();
    symlink(".", sandbox.path("endless/green/self")).unwrap();
    let run = sandbox.vpt_within_limits(&["data", "check", "endless"]);
    assert!(run.code == Some(1) || run.code == Some(0), "{run:#?}");
    good(&sandbox, "holes");
    symlink("nowhere", sandbox.path("holes/blue/gone.png")).unwrap();
    symlink("self.png", sandbox.path("holes/blue/self.png")).unwrap();
    refuse(&sandbox, "holes", &["holes/blue/"]);
    // A table that never ends, and one that never begins.
    symlink("/dev/zero", sandbox.path("endless.csv")).unwrap();
    refuse(&sandbox, "endless.csv", &["endless.csv"]);
    assert!(std::process::Command::new("mkfifo").arg(sandbox.path("pipe.csv")).status().unwrap().success());
    refuse(&sandbox, "pipe.csv", &["pipe.csv"]);
}

#[test]
fn tables() {
    let sandbox = Sandbox::new();
    good(&sandbox, "set");
    let rows: Vec<String> = (0..6).map(|i| format!("blue/00{i}.png,blue\ngreen/00{i}.png,green\n")).collect();
    let rows = rows.concat();
    let header = format!("path,label\n{rows}");
    let text = |text: String| text.into_bytes();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty.csv", vec![], &[]),
        ("blank.csv", b"\n\n\n".to_vec(), &[]),
        ("header.csv", b"path,label\n".to_vec(), &["lists no images"]),
        ("no-label.csv", text(header.replace("label", "colour")), &["no column called label"]),
        ("no-path.csv", text(header.replace("path", "where")), &["no column called path"]),
        ("one-column.csv", text(rows.replace(",blue", "").replace(",green", "")), &["line 1"]),
        ("four-columns.csv", text(rows.replace(",blue", ",blue,1,2").replace(",green", ",green,1,2")), &["line 1"]),
        ("short-row.csv", text(format!("{header}blue/9.png\n")), &["line 14", "no label"]),
        ("empty-label.csv", text(format!("{header}blue/9.png,\n")), &["line 14", "no label"]),
        ("empty-path.csv", text(format!("{header},blue\n")), &["line 14", "no path"]),
        ("duplicate.csv", text(format!("{header}blue/000.png,blue\n")), &["line 14", "listed already, in line 2"]),
        ("duplicate-by-dots.csv", text(format!("{header}./blue//000.png,blue\n")), &["line 14", "listed already"]),
        ("two-labels.csv", text(format!("{header}blue/000.png,green\n")), &["line 14", "listed already"]),
        ("one-class.csv", text(header.replace(",green", ",blue")), &["only one class"]),
        ("split.csv", text(format!("path,label,split\n{}", rows.replace("blue\n", "blue,extra\n"))), &["'extra'"]),
        ("no-split.csv", text(format!("path,label,split\n{rows}")), &["line 2", "no split"]),
        (
            "no-train.csv",
            text(format!(
                "path,label,split\n{}",
                rows.replace("blue\n", "blue,test\n").replace("green\n", "green,test\n")
            )),
            &["no train among its parts"],
        ),
        (
            "unknown-label.csv",
            text(format!(
                "path,label,split\n{}blue/9.png,owl,test\n",
                rows.replace("blue\n", "blue,train\n").replace("green\n", "green,train\n")
            )),
            &["line 14", "owl"],
        ),
        ("zeros.csv", vec![0; 4096], &[]),
        ("zero-in-a-path.csv", text(format!("{header}blue/\0.png,blue\n")), &[]),
        ("not-utf-8.csv", [header.as_bytes(), b"blue/\xff\xfe.png,blue\n"].concat(), &["line 14"]),
        ("utf-16.csv", header.encode_utf16().flat_map(u16::to_le_bytes).collect(), &[]),
        ("open-quote.csv", text(format!("path,label\n\"{rows}")), &[]),
        ("a-line-of-10-megabytes.csv", vec![b'x'; 10 << 20], &["line 1"]),
        ("a-million-columns.csv", text(format!("{}\n", "a,".repeat(1_000_000))), &["line 1"]),
        (
            "a-label-of-a-megabyte.csv",
            text(format!("path,label,split\na.png,x,train\nb.png,{},test\n", "y".repeat(1 << 20))),
            &["line 3"],
        ),
        ("tabs.csv", text(header.replace(',', "\t")), &["line 1"]),
        ("commas.tsv", text(header.clone()), &["line 1"]),
        ("missing-images.csv", text(header.replace("00", "99")), &["990.png"]),
        (
            "images-of-the-system.csv",
            text(format!("{header}/etc/passwd,blue\n/dev/zero,blue\n")),
            &["set/images-of-the-system.csv"],
        ),
    ];
    for (name, bytes, parts) in cases {
        let path = format!("set/{name}");
        sandbox.write(&path, bytes);
        let own: &[&str] = match name {
            "missing-images.csv" | "one-class.csv" | "no-train.csv" => &[],
            "images-of-the-system.csv" => {
                refuse(&sandbox, &path, &["/etc/passwd"]);
                continue;
            }
            "zero-in-a-path.csv" => &["set/blue/"],
            _ => &[&path],
        };
        refuse(&sandbox, &path, &[own, parts].concat());
    }
    // Tables of parts that do not agree.
    sandbox.write("parts/train.csv", "a.png,x\nb.png,y\n");
    sandbox.write("parts/test.csv", "c.png,z\n");
    refuse(&sandbox, "parts", &["parts/test.csv", "line 1", "'z'"]);
    sandbox.write("parts/test.csv", "a.png,x\n");
    refuse(&sandbox, "parts", &["parts/test.csv", "listed already, in line 1 of parts/train.csv"]);
    sandbox.write("parts/test.tsv", "c.png\tx\n");
    refuse(&sandbox, "parts", &["parts/test.tsv", "a second table for test"]);
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_files() {
    let sandbox = Sandbox::new();
    let header = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
    let images = |count: u32, height: u32, width: u32, pixels: usize| {
        [header(&[0x803, count, height, width]), vec![7; pixels]].concat()
    };
    let labels = |count: u32, values: &[u8]| [header(&[0x801, count]), values.to_vec()].concat();
    let some = [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1];
    let (whole, marks) = (images(12, 2, 2, 48), labels(12, &some));
    let most = u32::MAX;
    let cases: Vec<(&str, Vec<u8>, Vec<u8>, &str)> = vec![
        ("empty", vec![], vec![], "train-images"),
        ("no-labels", whole.clone(), vec![], "train-labels"),
        ("cut-in-the-header", whole[..9].to_vec(), marks.clone(), "truncated"),
        ("cut-in-the-pixels", whole[..40].to_vec(), marks.clone(), "more than the file holds"),
        ("cut-in-the-labels", whole.clone(), marks[..12].to_vec(), "train-labels"),
        ("too-long", [&whole[..], b"x"].concat(), marks.clone(), "more than the 48 bytes"),
        ("labels-too-long", whole.clone(), [&marks[..], b"x"].concat(), "train-labels"),
        ("magic", [&[1, 2, 3, 4], &whole[4..]].concat(), marks.clone(), "not an IDX file"),
        ("swapped", marks.clone(), whole.clone(), "not an IDX file"),
        ("floats", [&[0, 0, 0x0d, 3], &whole[4..]].concat(), marks.clone(), "not an IDX file"),
        ("other-dimensions", [&[0, 0, 8, 2], &whole[4..]].concat(), marks.clone(), "not an IDX file"),
        ("no-images", images(0, 2, 2, 0), labels(0, &[]), "0 images"),
        ("no-pixels", images(12, 0, 2, 0), marks.clone(), "12 images of 2x0"),
        ("fewer-labels", whole.clone(), labels(11, &some[..11]), "11 labels for the 12 images"),
        ("product-of-2-to-the-96", images(most, most, most, 48), marks.clone(), "more than the file holds"),
        ("product-that-wraps", images(1 << 16, 1 << 16, 1 << 31, 48), marks.clone(), "more than the file holds"),
        ("one-class", whole.clone(), labels(12, &[3; 12]), "only one class"),
        ("4-billion-labels", whole.clone(), labels(most, &some), "train-labels"),
    ];
    for (name, images, labels, part) in cases {
        for compress in [false, true] {
            let (folder, end) = if compress { (format!("{name}-gz"), ".gz") } else { (name.to_owned(), "") };
            let pack = |bytes: &[u8]| if compress { packed(bytes) } else { bytes.to_vec() };
            sandbox.write(&format!("{folder}/train-images-idx3-ubyte{end}"), pack(&images));
            sandbox.write(&format!("{folder}/train-labels-idx1-ubyte{end}"), pack(&labels));
            let part = if compress && part.starts_with("more than the file") { "train-images" } else { part };
            refuse(&sandbox, &folder, &[&folder, part]);
        }
    }
    let archive = packed(&whole);
    let mut damaged = archive.clone();
    let checksum = damaged.len() - 6;
    damaged[checksum] ^= 1;
    for (name, bytes) in [
        ("gz-cut", archive[..archive.len() / 2].to_vec()),
        ("gz-checksum", damaged),
        ("gz-no-gz", whole.clone()),
        ("gz-empty", vec![]),
    ] {
        sandbox.write(&format!("{name}/train-images-idx3-ubyte.gz"), bytes);
        sandbox.write(&format!("{name}/train-labels-idx1-ubyte"), &marks);
        refuse(&sandbox, name, &["train-images-idx3-ubyte.gz"]);
    }
    sandbox.write("alone/train-images-idx3-ubyte", &whole);
    refuse(&sandbox, "alone", &["no labels file"]);
    sandbox.write("both/train-images-idx3-ubyte", &whole);
    sandbox.write("both/train-images-idx3-ubyte.gz", &archive);
    refuse(&sandbox, "both", &["keep one"]);
    sandbox.write("unknown/train-images-idx3-ubyte", &whole);
    sandbox.write("unknown/train-labels-idx1-ubyte", &marks);
    sandbox.write("unknown/t10k-images-idx3-ubyte", images(1, 2, 2, 4));
    sandbox.write("unknown/t10k-labels-idx1-ubyte", labels(1, &[9]));
    refuse(&sandbox, "unknown", &["t10k-labels", "label 9"]);
}

#[test]
fn splits_of_coop() {
    let sandbox = Sandbox::new();
    let item = |path: &str, label: Value, class: &str| json!([path, label, class]);
    let train: Vec<Value> = (0..6)
        .flat_map(|i| {
            [item(&format!("blue/00{i}.png"), json!(0), "blue"), item(&format!("green/00{i}.png"), json!(1), "green")]
        })
        .collect();
    let escaping = [&[item("/etc/passwd", json!(0), "blue")], &train[1..]].concat();
    let split = |more: Value| {
        let mut split = json!({"train": train, "val": [], "test": []});
        split.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        split.to_string()
    };
    let without = |key: &str| {
        let mut split = json!({"train": train, "val": [], "test": []});
        split.as_object_mut().unwrap().remove(key);
        split.to_string()
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("empty", String::new(), "line 1"),
        ("garbage", "{\"train\": [[".to_owned(), "line 1"),
        ("list", "[]".to_owned(), "line 1"),
        ("nested", deep(100_000), "train"),
        ("nested-lists", format!("{{\"train\": {}", "[".repeat(1_000_000)), "line 1"),
        ("no-train", without("train"), "train"),
        ("no-val", without("val"), "val"),
        ("no-test", without("test"), "test"),
        ("train-null", split(json!({"train": null})), "line 1"),
        ("train-empty", split(json!({"train": []})), "train lists no images"),
        ("item-of-two", split(json!({"val": [["blue/9.png", 0]]})), "line 1"),
        ("item-of-four", split(json!({"val": [["blue/9.png", 0, "blue", 1]]})), "line 1"),
        ("label-negative", split(json!({"val": [item("blue/9.png", json!(-1), "blue")]})), "-1"),
        ("label-fraction", split(json!({"val": [item("blue/9.png", json!(0.5), "blue")]})), "0.5"),
        ("label-text", split(json!({"val": [item("blue/9.png", json!("0"), "blue")]})), "line 1"),
        ("label-of-2-to-the-60", split(json!({"val": [item("blue/9.png", json!(1_u64 << 60), "blue")]})), "line 1"),
        ("path-number", split(json!({"val": [[7, 0, "blue"]]})), "line 1"),
        ("class-null", split(json!({"val": [["blue/9.png", 0, null]]})), "line 1"),
        ("unknown-class", split(json!({"test": [item("blue/9.png", json!(0), "owl")]})), "owl"),
        ("unknown-label", split(json!({"test": [item("blue/9.png", json!(7), "blue")]})), "blue/9.png"),
        ("twice", split(json!({"test": [item("blue/000.png", json!(0), "blue")]})), "listed twice"),
        ("escapes", split(json!({"test": [item("../../outside.png", json!(0), "blue")]})), "../../outside.png"),
        ("escapes-by-a-path", split(json!({"test": [item("/etc/passwd", json!(0), "blue")]})), "/etc/passwd"),
        ("escapes-in-train", split(json!({"train": escaping})), "/etc/passwd"),
        ("with-a-zero", split(json!({"test": [item("a\0b.png", json!(0), "blue")]})), "b.png"),
    ];
    for (name, text, part) in cases {
        good(&sandbox, name);
        sandbox.write(&format!("{name}/split_zhou_Set.json"), text);
        refuse(&sandbox, name, &[part]);
    }
    sandbox.write("empty/split_zhou_Other.json", "{}");
    refuse(&sandbox, "empty", &["a second file of this kind"]);
}

#[test]
fn texts() {
    let sandbox = Sandbox::new();
    good(&sandbox, "set");
    let clip = fixture("clip");
    let names = "blue\ngreen\n";
    fs::create_dir(sandbox.path("folder")).unwrap();
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("blank", b"\n \n\t\n".to_vec()),
        ("not-utf-8", b"blue\xff\ngreen\n".to_vec()),
        ("utf-16", names.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("one", b"blue\n".to_vec()),
        ("three", b"blue\ngreen\nred\n".to_vec()),
        ("list-open", b"[\"blue\", ".to_vec()),
        ("list-of-numbers", b"[1, 2]".to_vec()),
        ("list-nested", b"[".repeat(200_000)),
        ("list-with-nothing", b"[\"blue\", \" \"]".to_vec()),
        ("list-empty", b"[]".to_vec()),
        ("long", vec![b'x'; 17 << 20]),
    ] {
        sandbox.write(name, bytes);
        let args = ["zero-shot", "--backbone", &clip, "--data", "set", "--classnames", name];
        refused(&sandbox, &args, &[name]);
        if !["one", "three"].contains(&name) {
            let args = ["zero-shot", "--backbone", &clip, "--data", "set", "--templates", name];
            refused(&sandbox, &args, &[name]);
        }
    }
    for (name, text) in [("no-place", "a photo\n".to_owned()), ("second", format!("a {{}}\n{}\n", "b".repeat(1 << 20)))]
    {
        sandbox.write(name, text);
        refused(
            &sandbox,
            &["zero-shot", "--backbone", &clip, "--data", "set", "--templates", name],
            &[name, "template"],
        );
    }
    for name in ["folder", "missing"] {
        for flag in ["--classnames", "--templates"] {
            refused(&sandbox, &["zero-shot", "--backbone", &clip, "--data", "set", flag, name], &[name]);
        }
    }
    // Texts that no vocabulary foresees are texts.
    let image = fixture("images/a.png");
    for text in ["", "\u{202e}\u{0}x", &"\u{1f600}".repeat(5000), &"a ".repeat(50_000)] {
        let args = ["embed", "--backbone", &clip, "--out", "e.safetensors", &image, "--texts", text];
        if !text.contains('\0') {
            sandbox.vpt_within_limits(&args).ok();
        }
    }
}
