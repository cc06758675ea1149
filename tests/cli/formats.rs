//! One data set in every layout that holds images with one label each: one content hash, one result.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;

use image::GrayImage;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use crate::util::{Sandbox, fixture, json_file};

/// Classes, by number: 10 comes after 9 in every layout.
const CLASSES: [&str; 3] = ["2", "9", "10"];
const PARTS: [(&str, usize); 3] = [("train", 12), ("val", 6), ("test", 6)];

/// Image `i` of the part `part`.
fn picture(part: usize, i: usize) -> GrayImage {
    let (class, seed) = (i % 3, (part * 100 + i) as u32);
    GrayImage::from_fn(18, 18, |x, y| {
        let noise = (x * 31 + y * 57 + seed * 101 + x * y * 7) % 61;
        image::Luma([(class as u32 * 80 + noise) as u8])
    })
}

/// Writes the set in every layout, with other names and in another order each, and returns where.
fn write(sandbox: &Sandbox) -> Vec<&'static str> {
    let mut table = "file,label,split\n".to_owned();
    let mut zhou = json!({});
    for (number, (part, images)) in PARTS.into_iter().enumerate() {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        let (mut list, mut object, mut items) = (String::new(), json!({}), Vec::new());
        let (mut rows, mut metadata) = (Vec::new(), String::new());
        let mut one_hot = "filename,10,9,2\n".to_owned();
        for i in (0..images).rev() {
            let (image, class) = (picture(number, i), CLASSES[i % 3]);
            let name = format!("{part}/{class}/{i}.png");
            let save = |path: &str| {
                let path = sandbox.path(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                image.save(path).unwrap();
            };
            save(&format!("folder/{name}"));
            let other = (i * 7 + 3) % images;
            writeln!(table, "../folder/{name},{class},{part}").unwrap();
            save(&format!("zhou/photos/{part}-{other}.png"));
            items.push(json!([format!("{part}-{other}.png"), i % 3, class]));
            save(&format!("fgvc/images/{part}/{other:04}.png"));
            object[format!("{part}/{other:04}.png")] = class.parse::<u32>().unwrap().into();
            save(&format!("list/{i:02} {part}.png"));
            writeln!(list, "{i:02} {part}.png {}", i % 3).unwrap();
            let bytes = fs::read(sandbox.path(&format!("folder/{name}"))).unwrap();
            save(&format!("metadata/{part}/{other}.png"));
            writeln!(metadata, r#"{{"file_name": "{other}.png", "label": {class}}}"#).unwrap();
            save(&format!("one-hot/{part}/{other}.jpg.png"));
            let hot = [2, 1, 0].map(|class| u8::from(i % 3 == class));
            writeln!(one_hot, "{other}.jpg.png,{},{},{}", hot[0], hot[1], hot[2]).unwrap();
            rows.push((bytes, format!("{other:03}"), i % 3));
            pixels.extend(image.as_raw());
            labels.push(class.parse::<u8>().unwrap());
        }
        sandbox.write(&format!("metadata/{part}/metadata.jsonl"), metadata);
        sandbox.write(&format!("one-hot/{part}/_classes.csv"), one_hot);
        sandbox.write(&format!("parquet/data/{part}-00000-of-00001.parquet"), table_of(&rows));
        let (first, second) = rows.split_at(rows.len() / 2);
        sandbox.write(&format!("webdataset/{part}/0000.tar"), archive_of(first));
        sandbox.write(&format!("webdataset/{part}/0001.tar"), archive_of(second));
        zhou[part] = items.into();
        sandbox.write(&format!("fgvc/{part}.json"), object.to_string());
        sandbox.write(&format!("list/{part}.txt"), list);
        let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
        let name = if part == "test" { "t10k" } else { part };
        let count = labels.len() as u32;
        sandbox.write(&format!("idx/{name}-images-idx3-ubyte"), [numbers(&[0x803, count, 18, 18]), pixels].concat());
        sandbox.write(&format!("idx/{name}-labels-idx1-ubyte"), [numbers(&[0x801, count]), labels].concat());
    }
    sandbox.write("csv/all.csv", table);
    sandbox.write("zhou/split_zhou_Digits.json", zhou.to_string());
    sandbox.write("list/classes.txt", CLASSES.join("\n"));
    vec!["folder", "csv", "zhou", "fgvc", "list", "idx", "parquet", "webdataset", "metadata", "one-hot"]
}

/// The bytes of a picture, its name and the number of its class.
type Row = (Vec<u8>, String, usize);

/// A table as the hub has them.
fn table_of(rows: &[Row]) -> Vec<u8> {
    let schema = "message schema { optional group image { optional binary bytes; optional binary path (STRING); }
         optional int64 label; }";
    let names = CLASSES.map(|class| format!("\"{class}\"")).join(", ");
    let features = format!(r#"{{"info": {{"features": {{"label": {{"names": [{names}], "_type": "ClassLabel"}}}}}}}}"#);
    let remark = KeyValue { key: "huggingface".into(), value: Some(features) };
    let properties = WriterProperties::builder().set_key_value_metadata(Some(vec![remark])).build();
    let mut out = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut table = SerializedFileWriter::new(&mut out, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(4) {
        let mut group = table.next_row_group().unwrap();
        let pictures: Vec<ByteArray> = rows.iter().map(|(bytes, ..)| bytes.clone().into()).collect();
        let paths: Vec<ByteArray> = rows.iter().map(|(_, name, _)| format!("{name}.png").as_str().into()).collect();
        for texts in [pictures, paths] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&texts, Some(&vec![2; rows.len()]), None).unwrap();
            column.close().unwrap();
        }
        let labels: Vec<i64> = rows.iter().map(|(.., class)| *class as i64).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    table.close().unwrap();
    out
}

/// A tar archive of samples, each a picture and its class.
fn archive_of(rows: &[Row]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (bytes, name, class) in rows {
        for (ending, content) in [("png", &bytes[..]), ("cls", CLASSES[*class].as_bytes())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, format!("{name}.{ending}"), content).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

#[test]
fn one_set_has_one_hash_and_gives_one_result_in_every_layout() {
    let sandbox = Sandbox::new();
    let vit = fixture("vit");
    let mut first: Option<(Value, Vec<u8>)> = None;
    for layout in write(&sandbox) {
        let info = sandbox.vpt(&["data", "info", layout, "--json"]).ok().json();
        let settings = ["--epochs", "2", "--batch-size", "5", "--flip", "--augment", "trivial", "--threads", "2"];
        let args = ["train", "--backbone", &vit, "--data", layout, "--out", &format!("run-{layout}"), "-q"];
        sandbox.vpt(&[&args[..], &settings, &["--class-weights", "balanced"]].concat()).ok();
        let run = sandbox.path(&format!("run-{layout}"));
        let results = json_file(&run.join("results.json"));
        let numbers = json!([results["content_hash"], results["val"], results["test"], results["best_epoch"]]);
        assert_eq!(results["content_hash"], info["content_hash"], "{layout}");
        let values = fs::read(run.join("best.safetensors")).unwrap();
        match &first {
            None => first = Some((numbers, values)),
            Some((expected, bytes)) => {
                assert_eq!(numbers, *expected, "{layout}");
                assert!(values == *bytes, "{layout}: other values");
            }
        }
    }
}

#[test]
fn lists_are_described_and_checked_like_other_layouts() {
    let sandbox = Sandbox::new();
    write(&sandbox);
    for (layout, name) in [("fgvc", "fgvc"), ("list", "list")] {
        assert_eq!(sandbox.vpt(&["data", "info", layout, "--json"]).ok().json()["layout"], name);
        assert_eq!(sandbox.vpt(&["data", "check", layout, "--json"]).ok().json()["layout"], name);
    }
    sandbox.write("list/val.txt", "00 val.png 0\n01 val.png 1\n02 val.png 7\n");
    let check = sandbox.vpt(&["data", "check", "list"]);
    assert_eq!(check.code, Some(1));
    assert!(
        check.stdout.contains("val.txt:3: class '7' occurs in val and not in train [class-not-in-train]"),
        "{check:?}"
    );
    let train = sandbox.vpt(&["train", "--data", "list", "--out", "run"]);
    train.fails(&["val.txt", "line 3", "label '7' does not occur in train"]);
}

#[test]
fn weights_and_augmentation_are_refused_where_they_have_no_meaning() {
    let sandbox = Sandbox::new();
    let args = ["train", "--out", "run", "--method", "linear", "--augment", "trivial"];
    sandbox.vpt(&args).refuses(&["--augment", "once, without augmentation"]);
    sandbox.vpt(&["train", "--out", "run", "--augment", "trivia"]).refuses(&["--augment", "trivial"]);
    sandbox.boxes("boxes", 8);
    for flags in [["--augment", "trivial"], ["--class-weights", "balanced"]] {
        let args = [&["train", "--data", "boxes", "--out", "run"], &flags[..]].concat();
        sandbox.vpt(&args).refuses(&[flags[0], "not for detection"]);
    }
}
