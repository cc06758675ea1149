//! COCO, YOLO and Pascal VOC.

use image::ImageFormat::{Jpeg, Png};

use super::*;
use FindingKind as Kind;

const TRAIN: &str = "annotations/instances_train.json";
const VAL: &str = "annotations/instances_val.json";

/// A COCO file, a line an entry: images from line 3, annotations from line 8, categories from line 13.
fn coco_json(part: &str) -> String {
    let lines = |entry: &dyn Fn(usize) -> String| (1..=4).map(entry).collect::<Vec<_>>().join(",\n");
    let image = |i| format!("{{\"id\": {i}, \"file_name\": \"{part}{i}.png\", \"width\": 24, \"height\": 20}}");
    let object = |i| {
        let category = i % 2 + 1;
        format!(
            "{{\"id\": {i}, \"image_id\": {i}, \"category_id\": {category}, \"bbox\": [{i}, 2, 9, 8], \"iscrowd\": 0}}"
        )
    };
    format!(
        "{{\n\"images\": [\n{}],\n\"annotations\": [\n{}],\n\"categories\": [\n{},\n{}]}}\n",
        lines(&image),
        lines(&object),
        "{\"id\": 1, \"name\": \"cat\"}",
        "{\"id\": 2, \"name\": \"dog\"}"
    )
}

fn coco() -> Set {
    let set = Set::new();
    for (number, part) in [(0, "train"), (10, "val")] {
        for i in 1..=4 {
            set.write(&format!("{part}/{part}{i}.png"), picture(number + i, Png));
        }
        set.write(&format!("annotations/instances_{part}.json"), coco_json(part));
    }
    set
}

fn edited(file: &str, part: &str, from: &str, to: &str) -> Set {
    let set = coco();
    let text = coco_json(part);
    assert!(text.contains(from), "{from}");
    set.write(file, text.replacen(from, to, 1));
    set
}

#[test]
fn annotations_of_coco_are_told_with_their_line() {
    coco().holds(&[]);
    for (from, to, kind, line) in [
        ("train3.png", "gone.png", Kind::MissingFile, 5),
        ("\"width\": 24", "\"width\": 25", Kind::SizeMismatch, 3),
        ("{\"id\": 4, \"image_id\": 4", "{\"id\": 2, \"image_id\": 4", Kind::DuplicateAnnotationId, 11),
        ("{\"id\": 3, \"image_id\"", "{\"id\": 0, \"image_id\"", Kind::ZeroAnnotationId, 10),
        ("{\"id\": 3, \"image_id\"", "{\"image_id\"", Kind::ZeroAnnotationId, 10),
        ("\"image_id\": 4", "\"image_id\": 9", Kind::UnknownImage, 11),
        ("\"category_id\": 2", "\"category_id\": 9", Kind::UnknownCategory, 8),
        ("[3, 2, 9, 8]", "[3, 2, 9]", Kind::UnreadableObject, 10),
        ("[3, 2, 9, 8]", "[3, null, 9, 8]", Kind::BoxNotFinite, 10),
        ("[3, 2, 9, 8]", "[3, 2, 0, 8]", Kind::EmptyBox, 10),
        ("[3, 2, 9, 8]", "[20, 2, 9, 8]", Kind::BoxOutsideImage, 10),
        ("\"file_name\": \"train4.png\"", "\"file_name\": \"train3.png\"", Kind::ListedTwice, 6),
        ("{\"id\": 4, \"file_name\"", "{\"id\": 3, \"file_name\"", Kind::DuplicateImageId, 6),
        (
            "\"image_id\": 3, \"category_id\": 2, \"bbox\": [3",
            "\"image_id\": 1, \"category_id\": 2, \"bbox\": [1",
            Kind::DuplicateBox,
            10,
        ),
        ("}],\n\"categories\"", "}]\n\"categories\"", Kind::MalformedFile, 12),
    ] {
        let found = edited(TRAIN, "train", from, to).found(false);
        assert!(found.contains(&(kind, TRAIN.into(), Some(line))), "{kind}: {found:?}");
    }
    edited(TRAIN, "train", "{\n\"images\"", "\u{feff}{\n\"images\"").holds(&[(Kind::ByteOrderMark, TRAIN, Some(1))]);
    // No fault.
    edited(TRAIN, "train", "\"iscrowd\": 0", "\"iscrowd\": 1").holds(&[]);
}

#[test]
fn parts_of_coco_are_compared_and_read_to_the_end() {
    for (from, to, kind) in [
        ("{\"id\": 2, \"name\": \"dog\"}", "{\"id\": 2, \"name\": \"cow\"}", Kind::LabelNameMismatch),
        ("{\"id\": 2, \"name\": \"dog\"}", "{\"id\": 7, \"name\": \"owl\"}", Kind::ClassNotInTrain),
    ] {
        let set = edited(VAL, "val", from, to);
        set.write(TRAIN, coco_json("train").replace("[3, 2, 9, 8]", "[3, 2, 0, 8]")).write("train/train2.png", "");
        let found = set.found(false);
        for expected in [(kind, VAL, Some(14)), (Kind::EmptyBox, TRAIN, Some(10)), (Kind::EmptyFile, TRAIN, Some(4))] {
            assert!(found.contains(&(expected.0, expected.1.into(), expected.2)), "{expected:?}: {found:?}");
        }
    }
    let set = coco();
    set.write("val/val1.png", picture(2, Png)).holds(&[(Kind::DuplicateOtherLabel, "val/val1.png", None)]);
    set.write("val/val1.png", picture(1, Png)).holds(&[(Kind::DuplicateAcrossSplits, "val/val1.png", None)]);
    let set = edited(TRAIN, "train", "\"dog\"", "\"Cat\"");
    set.write(VAL, coco_json("val").replace("\"dog\"", "\"Cat\"")).holds(&[(Kind::SimilarClassNames, TRAIN, None)]);
}

#[test]
fn images_of_coco_are_looked_at() {
    let set = coco();
    let whole = picture(77, Png);
    set.write("train/train1.png", &whole[..whole.len() / 2]).write("val/val2.png", picture(78, Jpeg));
    set.holds(&[(Kind::TruncatedImage, "train/train1.png", None), (Kind::WrongExtension, "val/val2.png", None)]);
    set.write("val/val2.png", "text");
    let found = set.found(false);
    assert!(found.contains(&(Kind::UnreadableImage, VAL.into(), Some(4))), "{found:?}");
}

fn yolo() -> Set {
    let set = Set::new();
    for (number, part) in [(0, "train"), (10, "val")] {
        for i in 1..=4 {
            set.write(&format!("{part}/images/{i}.png"), picture(number + i, Png));
            set.write(&format!("{part}/labels/{i}.txt"), "0 0.5 0.5 0.2 0.2\n1 0.4 0.4 0.2 0.2\n");
        }
    }
    set.write("data.yaml", "train: train/images\nval: val/images\nnames: [cat, dog]\n");
    set
}

#[test]
fn labels_of_yolo_are_told_with_their_line() {
    const FILE: &str = "train/labels/2.txt";
    yolo().holds(&[]);
    for (text, kind, line) in [
        ("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n", Kind::UnknownCategory, 2),
        ("0 0.5 0.5 0.2\n", Kind::UnreadableObject, 1),
        ("0 0.5 0.5 0.2 0.2\n0 0.95 0.5 0.2 0.2\n", Kind::BoxOutsideImage, 2),
        ("0 0.5 0.5 0.2 0.2\r\n", Kind::CrlfLineEnds, 1),
        ("\u{feff}0 0.5 0.5 0.2 0.2\n", Kind::ByteOrderMark, 1),
        ("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n", Kind::DuplicateBox, 3),
    ] {
        let found = yolo().write(FILE, text).found(false);
        assert!(found.contains(&(kind, FILE.into(), Some(line))), "{kind}: {found:?}");
    }
    // Lists are read by line, other texts beside them are nobody's business.
    let set = yolo();
    set.write("data.yaml", "train: list.txt\nval: val/images\nnames: [cat, dog]\n").write("README.txt", "a\r\n");
    set.write("list.txt", "train/images/1.png\r\ntrain/images/2.png\ntrain/images/3.png\ntrain/images/1.png\n");
    set.holds(&[(Kind::CrlfLineEnds, "list.txt", Some(1)), (Kind::ListedTwice, "list.txt", Some(4))]);
    // One file that stops a run hides none behind it.
    let set = yolo();
    set.write("data.yaml", "train: train/images\r\nval: nowhere\r\nnames: [cat, dog]\r\n");
    let found = set.write(FILE, "9 0.5 0.5 0.2 0.2\n").write("train/images/3.png", "text").found(false);
    for expected in [
        (Kind::CrlfLineEnds, "data.yaml", Some(1)),
        (Kind::Refused, "data.yaml", None),
        (Kind::UnknownCategory, FILE, Some(1)),
        (Kind::UnreadableImage, "train/images/3.png", None),
    ] {
        assert!(found.contains(&(expected.0, expected.1.into(), expected.2)), "{expected:?}: {found:?}");
    }
}

fn voc_xml(name: &str, xmin: &str) -> String {
    format!(
        "<annotation>\n<filename>{name}</filename>\n<size><width>24</width><height>20</height></size>\n<object>\n\
         <name>cat</name>\n<bndbox><xmin>{xmin}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>\n</object>\n\
         </annotation>\n"
    )
}

fn voc() -> Set {
    let set = Set::new();
    for i in 1..=8 {
        set.write(&format!("JPEGImages/{i}.png"), picture(i, Png));
        set.write(&format!("Annotations/{i}.xml"), voc_xml(&format!("{i}.png"), "2"));
    }
    set.write("ImageSets/Main/train.txt", "1\n2\n3\n4\n").write("ImageSets/Main/val.txt", "5\n6\n7\n8\n");
    set
}

#[test]
fn annotations_of_voc_are_told_with_their_line() {
    const LIST: &str = "ImageSets/Main/train.txt";
    voc().holds(&[]);
    voc().write(LIST, "1\n2\n3\n9\n").holds(&[(Kind::MissingAnnotation, LIST, Some(4))]);
    voc().write(LIST, "1\n2\n3\n5\n").holds(&[(Kind::ImageInTwoSplits, "JPEGImages/5.png", None)]);
    voc()
        .write(LIST, "1\r\n2\r\n3\n3\n")
        .holds(&[(Kind::CrlfLineEnds, LIST, Some(1)), (Kind::ListedTwice, LIST, Some(4))]);
    let xml = "Annotations/3.xml";
    voc().write(xml, voc_xml("3.png", "x")).holds(&[(Kind::UnreadableObject, xml, Some(4))]);
    voc().write(xml, voc_xml("3.png", "0")).holds(&[(Kind::CountsFromZero, xml, Some(4))]);
    let set = voc();
    set.write(xml, "<annotation>\n<object>\n").write("Annotations/5.xml", "<other/>").write("JPEGImages/6.png", "");
    let found = set.found(false);
    for expected in
        [(Kind::MalformedFile, xml), (Kind::MalformedFile, "Annotations/5.xml"), (Kind::EmptyFile, "JPEGImages/6.png")]
    {
        assert!(found.iter().any(|(kind, path, _)| (*kind, path.as_str()) == expected), "{expected:?}: {found:?}");
    }
}
