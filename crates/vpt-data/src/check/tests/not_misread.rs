//! Folders that are something else than the image folders they look like: each must be refused, by a line that names what lies
//! there, and must not be opened.

use image::ImageFormat::Png;

use super::*;
use crate::dataset::Dataset;
use FindingKind as Kind;

/// Pictures at these names.
fn pictures(names: &[&str]) -> Set {
    let set = Set::new();
    for (name, seed) in names.iter().zip(300..) {
        set.write(name, picture(seed, Png));
    }
    set
}

/// Opening is refused by a line about `path` with all of `words`, and the check has an error there.
#[track_caller]
fn refused(set: &Set, path: &str, words: &[&str]) {
    let error = Dataset::open(set.path(), 1).expect_err("opened").to_string();
    let place = if path.is_empty() { set.path().to_path_buf() } else { set.path().join(path) };
    let start = format!("{}: ", place.display());
    assert!(error.starts_with(&start) && words.iter().all(|word| error.contains(word)), "{error}");
    let report = check(set.path(), false, &mut |_, _| {}).unwrap();
    let is_told = report.findings.iter().any(|f| f.severity == Severity::Error && f.path == place);
    assert!(is_told, "{:?}", report.findings);
}

#[test]
fn annotation_files_that_no_layout_reads_are_named() {
    let two = ["train/a0.png", "train/a1.png", "valid/b0.png", "valid/b1.png"];
    for (name, content, words) in [
        (
            "train/_boxes.csv",
            "filename,width,height,class,xmin,ymin,xmax,ymax\na0.png,24,20,cell,3,2,9,6\n",
            "table of boxes",
        ),
        ("train/marks.csv", "filename, cat, dog\na0.png, 1, 0\n", "column label"),
        (
            "train/_marks.json",
            r#"[{"image": "a0.png", "annotations": [{"label": "x", "coordinates": {"x": 1}}]}]"#,
            "annotations",
        ),
        ("train/boxes.txt", "a0.png 3,2,9,6,0 8,8,4,3,1\n", "list of images with boxes"),
        (
            "train/a0.png.json",
            r#"{"objects": [{"classTitle": "x", "points": {"exterior": [[1, 2]]}}]}"#,
            "boxes in a form",
        ),
        ("train/a0.txt", "0 0.5 0.5 0.2 0.2\n", "labels of YOLO"),
        ("dump.json", r#"{"a": {"filename": "a0.png", "regions": [{"shape_attributes": {"x": 1}}]}}"#, "VIA"),
        ("all.xml", "<annotations><image name=\"a0.png\"><box/></image></annotations>", "another kind than Pascal VOC"),
        ("labels.mat", "MATLAB 5.0", ".mat"),
        ("info.jsonl", "{\"file_name\": \"train/a0.png\", \"label\": 0}\n", "lists images"),
    ] {
        let set = pictures(&two);
        refused(set.write(name, content), name, &[words]);
    }
}

#[test]
fn files_that_say_nothing_of_the_pictures_are_no_matter() {
    let set = Set::classes(&["train", "val"]);
    set.write("README.md", "![cat](train/cat/1.png)")
        .write("classes.txt", "cat\ndog\n")
        .write("labels.txt", "0 cat\n1 dog\n");
    set.write("class_to_idx.json", r#"{"cat": 0, "dog": 1}"#).write("settings.yaml", "lr: 0.1\n");
    set.write("statistics.csv", "class,images\ncat,4\ndog,4\n").write("train/cat/1.txt", "a photo of a cat\n");
    set.holds(&[]);
}

#[test]
fn folders_of_parts_are_no_classes() {
    // Pictures of a part without labels, beside classes or alone.
    for (part, words) in
        [("test", "test"), ("Training", "train"), ("valid_images", "val"), ("dev", "val"), ("eval2", "test")]
    {
        let set = Set::classes(&[""]);
        for number in 0..3 {
            set.write(&format!("{part}/{number}.png"), picture(60 + number, Png));
        }
        refused(&set, part, &[&format!("called like a part ({words})"), "classes.txt"]);
        set.write("classes.txt", format!("cat\ndog\n{part}\n")).holds(&[]);
        assert_eq!(Dataset::open(set.path(), 1).unwrap().classes.len(), 3);
    }
    let set = pictures(&["train/0.png", "train/1.png", "test/0.png", "test/1.png"]);
    refused(&set, "test", &["called like a part"]);
    // Classes of a part beside classes without.
    let set = Set::classes(&["", "test"]);
    refused(&set, "test", &["put the class folders"]);
    // Parts of classes.
    let set = Set::classes(&["cat", "owl"]);
    for class in ["cat", "owl"] {
        std::fs::rename(set.path().join(class).join("cat"), set.path().join(class).join("train")).unwrap();
        std::fs::rename(set.path().join(class).join("dog"), set.path().join(class).join("test")).unwrap();
    }
    refused(&set, "cat", &["parts inside a class (test/, train/)"]);
    // A folder around the data set.
    for parts in [&["pets/train", "pets/val"][..], &["pets"]] {
        refused(&Set::classes(parts), "pets", &["open it itself, as"]);
    }
    // Several families of names for parts.
    let set = pictures(&["cats_train/0.png", "cats_test/1.png", "dogs_train/2.png", "dogs_test/3.png"]);
    refused(&set, "", &["say part and class in one"]);
}

#[test]
fn a_part_of_pictures_without_classes_is_no_part() {
    let set = Set::classes(&["train", "val"]);
    set.write("test/0.png", picture(70, Png)).write("test/1.png", picture(71, Png));
    refused(&set, "test", &["2 pictures and no class folders", "vpt predict"]);
}

#[test]
fn folders_of_pictures_and_their_partners_are_no_classes() {
    let set = pictures(&["images/0.png", "images/1.png", "masks/0.png", "masks/1.png"]);
    refused(&set, "", &["images/, masks/ are named for what they hold"]);
    let set = pictures(&["train/images/0.png", "train/labels/1.png", "val/images/2.png", "val/labels/3.png"]);
    refused(&set, "train", &["images/, labels/"]);
    let set = pictures(&["images/0.png", "images/1.png"]);
    refused(&set, "", &["images/ is named for what it holds"]);
    // Without pictures' folder beside them masks may be classes.
    let set = pictures(&["mask/0.png", "mask/1.png", "no mask/2.png", "no mask/3.png"]);
    assert_eq!(Dataset::open(set.path(), 1).err().map(|e| e.to_string()).filter(|e| e.contains("named for")), None);
}

#[test]
fn pictures_that_no_part_takes_in_are_counted() {
    let set = Set::classes(&["train", "val"]);
    set.write("unlabeled/1.png", picture(90, Png)).write("unlabeled/2.png", picture(91, Png));
    set.holds(&[(Kind::NotUsed, "unlabeled", None)]);
    let notes = notes(set.path());
    assert!(notes[0].contains("2 pictures that are not used"), "{notes:?}");
}

#[test]
fn what_systems_leave_behind_is_passed_by() {
    let set = Set::classes(&["", "train"]);
    fs::remove_dir_all(set.path().join("train")).unwrap();
    for name in [
        "@eaDir/x/SYNOPHOTO_THUMB_SM.jpg",
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg",
        "$RECYCLE.BIN/1.png",
        "#recycle/2.png",
        "cat/._1.png",
        "System Volume Information/3.png",
        "lost+found/4.png",
    ] {
        set.write(name, "no picture");
    }
    set.holds(&[]);
    assert_eq!(Dataset::open(set.path(), 1).unwrap().classes, ["cat", "dog"]);
}

#[test]
fn a_folder_of_a_part_in_a_folder_of_that_part_is_the_part() {
    let set = Set::classes(&["seg_train/seg_train", "seg_test/seg_test"]);
    set.write("seg_pred/seg_pred/1.png", picture(92, Png));
    set.holds(&[(Kind::NotUsed, "seg_pred", None)]);
    let data = Dataset::open(set.path(), 1).unwrap();
    assert_eq!((data.classes.len(), data.test.len()), (2, 8));
    assert_eq!(data.test[0].id, "seg_test/seg_test/cat/1.png");
}

#[test]
fn a_table_of_boxes_is_not_one_of_labels() {
    for header in ["filename,width,height,class,xmin,ymin,xmax,ymax", "image,label,x1,y1,x2,y2", "path,label,x,y,w,h"] {
        let set = pictures(&["a.png", "b.png"]);
        let values = ",1".repeat(header.matches(',').count());
        set.write("labels.csv", format!("{header}\na.png{values}\nb.png{values}\n"));
        let message = Dataset::open(set.path(), 1).err().unwrap().to_string();
        assert!(message.contains("boxes"), "{message}");
    }
}

#[test]
fn a_table_without_a_header_that_begins_with_a_picture_speaks_for_them() {
    let names: Vec<String> = (0..8).map(|number| format!("images/{number}.png")).collect();
    let set = pictures(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let rows: Vec<String> =
        names.iter().zip(["cat", "dog"].into_iter().cycle()).map(|(n, c)| format!("{n},{c}\n")).collect();
    set.write("labels.csv", rows.concat());
    assert_eq!(Dataset::open(set.path(), 1).unwrap().classes, ["cat", "dog"]);
    // Two leave no choice.
    std::fs::copy(set.path().join("labels.csv"), set.path().join("other.csv")).unwrap();
    refused(&set, "labels.csv", &["one of several tables"]);
}
