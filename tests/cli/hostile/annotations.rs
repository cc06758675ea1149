//! Data sets of boxes: COCO, YOLO, Pascal VOC.

use serde_json::{Value, json};

use super::{deep, refused};
use crate::util::{Sandbox, fixture};

/// A folder `name` of images `a.png` to `h.png` in it, or in `images` below it.
fn images(sandbox: &Sandbox, name: &str) {
    let image = std::fs::read(fixture("images/a.png")).unwrap();
    for letter in 'a'..='h' {
        sandbox.write(&format!("{name}/{letter}.png"), &image);
    }
}

/// `data` is refused by `data info` and `train`.
fn refuse(sandbox: &Sandbox, data: &str, parts: &[&str]) {
    refused(sandbox, &["data", "info", data], parts);
    let clip = fixture("clip");
    let args = ["train", "--task", "detect", "--backbone", &clip, "--data", data, "--out", "run", "--epochs", "2"];
    refused(sandbox, &args, parts);
}

/// What `data check` finds in `data`: findings on stdout, one of which contains `parts`, and exit code 1 or 0.
fn found(sandbox: &Sandbox, data: &str, parts: &[&str]) {
    sandbox.holds(data, || {
        let run = sandbox.vpt_within_limits(&["data", "check", data]);
        assert!(matches!(run.code, Some(0 | 1)), "{run:#?}");
        let told = run.stdout.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(told, "no line with {parts:?} in {run:#?}");
        assert!(run.stdout.lines().all(|line| line.chars().count() <= 1000), "nobody reads that: {run:#?}");
    });
}

/// A COCO file of the images `a` to `h` with one box each.
fn coco() -> Value {
    let names = 'a'..='h';
    let images: Vec<Value> =
        names.zip(1..).map(|(name, id)| json!({"id": id, "file_name": format!("{name}.png")})).collect();
    let boxes: Vec<Value> = (1..=8)
        .map(|id| json!({"id": id, "image_id": id, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}))
        .collect();
    json!({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]})
}

fn changed(at: &str, value: Value) -> String {
    let mut coco = coco();
    *coco.pointer_mut(at).unwrap() = value;
    coco.to_string()
}

#[test]
fn coco_files() {
    let sandbox = Sandbox::new();
    let file = "annotations.json";
    let cases: Vec<(&str, String, &str)> = vec![
        ("cut", coco().to_string()[..300].to_owned(), "column"),
        ("no-images", json!({"annotations": [], "categories": [{"id": 1, "name": "x"}]}).to_string(), "images"),
        ("no-annotations", json!({"images": [], "categories": []}).to_string(), "annotations"),
        ("no-categories", json!({"images": [], "annotations": []}).to_string(), "categories"),
        ("images-empty", changed("/images", json!([])), "no images"),
        ("categories-empty", changed("/categories", json!([])), "no categories"),
        ("images-null", changed("/images", Value::Null), "invalid type"),
        ("images-a-map", changed("/images", json!({"a": 1})), "invalid type"),
        ("nested", changed("/annotations", json!(0)).replace(":0,", &format!(":{},", deep(100_000))), "column"),
        ("image-without-id", changed("/images/0", json!({"file_name": "a.png"})), "id"),
        ("image-without-name", changed("/images/0", json!({"id": 1})), "file_name"),
        ("image-id-negative", changed("/images/0/id", json!(-1)), "-1"),
        ("image-id-object", changed("/images/0/id", json!({})), "images, entry 1: id is an object"),
        ("box-without-image", changed("/annotations/0", json!({"id": 1, "category_id": 1})), "image_id"),
        ("box-without-category", changed("/annotations/0", json!({"id": 1, "image_id": 1})), "category_id"),
        ("box-text", changed("/annotations/0/bbox", json!("1 1 5 5")), "annotations, entry 1: bbox"),
        ("box-of-texts", changed("/annotations/0/bbox", json!(["a", "1", "5", "5"])), "annotations, entry 1: bbox"),
        ("crowd-text", changed("/annotations/0/iscrowd", json!("no")), "iscrowd"),
        ("category-twice", changed("/categories/1/id", json!(1)), "listed twice"),
        ("name-twice", changed("/categories/1/name", json!("x")), "two categories are called"),
        ("names-missing", changed("/images", json!([{"id": 1, "file_name": "../../../etc/passwd.png"}])), "no images"),
        ("nan", changed("/annotations/0/bbox", json!("@")).replace("\"@\"", "[NaN, 0, 1, 1]"), "bbox holds NaN"),
        ("infinite", changed("/annotations/0/bbox", json!("@")).replace("\"@\"", "[1e999, 0, 1, 1]"), "column"),
    ];
    for (name, text, part) in cases {
        images(&sandbox, name);
        sandbox.write(&format!("{name}/{file}"), text);
        refuse(&sandbox, name, &[file, part]);
    }
    // What can be lived with is found.
    let cases: Vec<(&str, String, &str)> = vec![
        ("negative", changed("/annotations/0/bbox", json!([-50, -50, 20, 20])), "box-outside-image"),
        ("negative-size", changed("/annotations/0/bbox", json!([5, 5, -3, 4])), "empty-box"),
        ("no-size", changed("/annotations/0/bbox", json!([5, 5, 0, 0])), "empty-box"),
        ("enormous", changed("/annotations/0/bbox", json!([0, 0, 1e300, 1e300])), "box-not-finite"),
        ("null", changed("/annotations/0/bbox", json!([null, 0, 1, 1])), "box-not-finite"),
        ("three-numbers", changed("/annotations/0/bbox", json!([0, 1, 1])), "unreadable-object"),
        ("unknown-image", changed("/annotations/0/image_id", json!(99)), "unknown-image"),
        ("unknown-category", changed("/annotations/0/category_id", json!(99)), "unknown-category"),
        ("id-twice", changed("/annotations/1/id", json!(1)), "duplicate-annotation-id"),
        ("image-missing", changed("/images/0/file_name", json!("gone.png")), "missing-file"),
        ("image-with-a-zero", changed("/images/0/file_name", json!("a\0.png")), "missing-file"),
        ("image-that-escapes", changed("/images/0/file_name", json!("../../../../etc/passwd")), "passwd"),
        ("image-twice", changed("/images/1/file_name", json!("a.png")), "listed-twice"),
        ("image-id-twice", changed("/images/1/id", json!(1)), "duplicate-image-id"),
        (
            "other-size",
            changed("/images/0", json!({"id": 1, "file_name": "a.png", "width": 7, "height": 1e30})),
            "size-mismatch",
        ),
    ];
    for (name, text, kind) in cases {
        images(&sandbox, name);
        sandbox.write(&format!("{name}/{file}"), text);
        found(&sandbox, name, &[name, kind]);
    }
}

#[test]
fn yolo_files() {
    let sandbox = Sandbox::new();
    let set = |name: &str, yaml: &str, labels: &[u8]| {
        images(&sandbox, &format!("{name}/images"));
        sandbox.write(&format!("{name}/data.yaml"), yaml);
        sandbox.write(&format!("{name}/labels/a.txt"), labels);
    };
    let aliases: Vec<String> = (1..40).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1)).collect();
    let aliases = aliases.concat();
    for (name, yaml, part) in [
        ("no-names", "train: images\nval: images\n", "names"),
        ("names-number", "train: images\nnames: 7\n", "names"),
        ("names-twice", "train: images\nnames: [x, x]\n", "two classes are called 'x'"),
        ("names-with-holes", "train: images\nnames: {0: x, 2: y}\n", "class 1"),
        ("names-negative", "train: images\nnames: {-1: x}\n", "data.yaml"),
        ("names-other-count", "train: images\nnc: 3\nnames: [x, y]\n", "nc is 3"),
        ("count-of-2-to-the-60", "train: images\nnc: 1152921504606846976\n", "names"),
        ("count-negative", "train: images\nnc: -1\nnames: [x]\n", "data.yaml"),
        ("train-missing", "train: nowhere\nnames: [x]\n", "nowhere is not there"),
        ("train-number", "train: 7\nnames: [x]\n", "a path or a list of paths"),
        ("train-map", "train: {a: b}\nnames: [x]\n", "data.yaml"),
        ("open-list", "train: [images\nnames: [x]\n", "data.yaml"),
        ("open-quote", "train: \"images\nnames: [x]\n", "data.yaml"),
        ("tab", "train:\timages\n\tnames: [x]\nnames: [y]", "data.yaml"),
        ("nested", &format!("train: {}\nnames: [x]\n", "[".repeat(100_000)), "data.yaml"),
        ("aliases", &format!("a0: &a0 [x, x, x, x]\n{aliases}train: images\nnames: *a39\n"), "data.yaml"),
        ("unknown-alias", "train: *images\nnames: [x]\n", "data.yaml"),
        ("tags", "train: !!python/object/apply:os.system [true]\nnames: [x]\n", "data.yaml"),
        ("two-documents", "train: images\nnames: [x]\n---\ntrain: images\nnames: [y]\n", "data.yaml"),
    ] {
        set(name, yaml, b"0 .5 .5 .5 .5\n");
        refuse(&sandbox, name, &[name, part]);
    }
    let good = "train: images\nnames: [x, y]\n";
    let unreadable = [
        ("text", &b"what is this\n"[..]),
        ("binary", &[0, 1, 2, 255, 254, b'\n']),
        ("few-numbers", b"0 .5 .5 .5\n"),
        ("polygon-of-odd-length", b"0 .1 .1 .5 .5 .2 .2 .3\n"),
    ];
    let classes =
        [("class-negative", "-1"), ("class-unknown", "2"), ("class-fraction", "0.5"), ("class-of-1e300", "1e300")];
    let boxes = [
        ("nan", "nan .5 .5 .5", "box-not-finite"),
        ("infinite", ".5 .5 inf .5", "box-not-finite"),
        ("overflow", "1e308 1e308 1e308 1e308", "box-not-finite"),
        ("negative-size", ".5 .5 -.5 .5", "empty-box"),
        ("no-size", ".5 .5 0 0", "empty-box"),
        ("outside", "3.5 .5 .5 .5", "box-outside-image"),
        ("pixels", "10 10 5 5", "as if they were in pixels"),
    ];
    let unreadable = unreadable.map(|(name, labels)| (name, labels.to_vec(), "unreadable-object"));
    let classes = classes.map(|(name, class)| (name, format!("{class} .5 .5 .5 .5\n").into(), "unknown-category"));
    let boxes = boxes.map(|(name, numbers, kind)| (name, format!("0 {numbers}\n").into(), kind));
    for (name, labels, kind) in unreadable.into_iter().chain(classes).chain(boxes) {
        set(name, good, &labels);
        found(&sandbox, name, &[&format!("{name}/labels/a.txt"), kind]);
    }
    set("long", good, &vec![b'7'; 5 << 20]);
    found(&sandbox, "long", &["long/labels/a.txt"]);
    let listed = ('a'..='h').map(|name| format!("images/{name}.png\n")).collect::<Vec<_>>().concat();
    sandbox.write("list/all.txt", listed + "\0\n/dev/zero\n../../../etc/passwd\nimages/a.png\n");
    set("list", "train: all.txt\nnames: [x, y]\n", b"");
    for line in ["list/all.txt:9: ", "list/all.txt:10: ", "list/all.txt:11: ", "list/all.txt:12: "] {
        found(&sandbox, "list", &[line]);
    }
}

#[test]
fn voc_files() {
    let sandbox = Sandbox::new();
    let whole = "<annotation><object><name>x</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>";
    let set = |name: &str, xml: &[u8]| {
        images(&sandbox, name);
        for letter in 'b'..='h' {
            sandbox.write(&format!("{name}/{letter}.xml"), whole);
        }
        sandbox.write(&format!("{name}/a.xml"), xml);
    };
    let entities: Vec<String> =
        (1..30).map(|i| format!("<!ENTITY e{i} \"&e{0};&e{0};&e{0};&e{0};\">", i - 1)).collect();
    let entities = entities.concat();
    for (name, xml, part) in [
        ("empty", Vec::new(), ""),
        ("text", b"hello".to_vec(), ""),
        ("cut", whole.as_bytes()[..60].to_vec(), ""),
        ("not-utf-8", b"<annotation>\xff\xfe</annotation>".to_vec(), "not UTF-8"),
        ("another-root", b"<html/>".to_vec(), "expected <annotation>"),
        ("crossed-tags", b"<annotation><a></annotation></a>".to_vec(), ""),
        ("nested", [b"<annotation>".to_vec(), b"<a>".repeat(200_000)].concat(), ""),
        ("many-nodes", [b"<annotation>".to_vec(), b"<a/>".repeat(2_000_000), b"</annotation>".to_vec()].concat(), ""),
        (
            "a-billion-laughs",
            format!("<!DOCTYPE a [<!ENTITY e0 \"ha\">{entities}]><annotation>&e29;</annotation>").into_bytes(),
            "",
        ),
        (
            "an-entity-of-the-system",
            b"<!DOCTYPE a [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><annotation>&e;</annotation>".to_vec(),
            "",
        ),
    ] {
        set(name, &xml);
        refuse(&sandbox, name, &[&format!("{name}/a.xml"), part]);
    }
    let corners = |corners: [&str; 4]| {
        let mut xml = whole.to_owned();
        for (from, to) in ["<xmin>2<", "<ymin>2<", "<xmax>9<", "<ymax>9<"].into_iter().zip(corners) {
            xml = xml.replace(from, &format!("{}{to}<", &from[..6]));
        }
        xml
    };
    for (name, xml, kind) in [
        ("nan", corners(["NaN", "2", "9", "9"]), "box-not-finite"),
        ("infinite", corners(["2", "2", "inf", "9"]), "box-not-finite"),
        ("enormous", corners(["2", "2", "1e300", "9"]), "box-not-finite"),
        ("words", corners(["left", "2", "9", "9"]), "unreadable-object"),
        ("negative", corners(["-90", "-90", "-50", "-50"]), "box-outside-image"),
        ("turned", corners(["9", "9", "2", "2"]), "empty-box"),
        ("outside", corners(["900", "900", "950", "950"]), "box-outside-image"),
        ("no-box", "<annotation><object><name>x</name></object></annotation>".to_owned(), "unreadable-object"),
        ("no-name", whole.replace("<name>x</name>", ""), "unreadable-object"),
        ("no-corner", whole.replace("<xmax>9</xmax>", ""), "unreadable-object"),
        (
            "other-size",
            whole.replace("<object>", "<size><width>7</width><height>1e30</height></size><object>"),
            "size-mismatch",
        ),
    ] {
        set(name, xml.as_bytes());
        found(&sandbox, name, &[&format!("{name}/a.xml"), kind]);
    }
    // The image that it names instead of the one beside it.
    set("elsewhere", whole.replace("<object>", "<filename>../../etc/passwd</filename><object>").as_bytes());
    std::fs::remove_file(sandbox.path("elsewhere/a.png")).unwrap();
    found(&sandbox, "elsewhere", &["elsewhere/passwd", "missing-file"]);
}
