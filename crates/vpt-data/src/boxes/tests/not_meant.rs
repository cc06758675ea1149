//! Boxes that are not what they look like, and labels and images that do not meet.

use super::*;
use crate::check::{FindingKind, check};

const YAML: &str = "train: images/train\nval: images/val\nnames: [cat, dog]\n";

/// A YOLO set with these files of labels, and images a to d in train and v in val.
fn yolo(labels: &[(&str, &str)]) -> tempfile::TempDir {
    let files: Vec<(&str, &str)> = [("data.yaml", YAML)].into_iter().chain(labels.iter().copied()).collect();
    let images = ["a", "b", "c", "d"].map(|name| format!("images/train/{name}.png"));
    let images: Vec<&str> = images.iter().map(String::as_str).chain(["images/val/v.png"]).collect();
    set(&files, &images)
}

fn kinds_of_check(dir: &tempfile::TempDir) -> Vec<FindingKind> {
    check(dir.path(), true, &mut |_, _| {}).unwrap().findings.iter().map(|finding| finding.kind).collect()
}

const LINE: &str = "0 0.5 0.5 0.2 0.4\n";

#[test]
fn labels_in_a_folder_of_another_name_are_an_error_with_the_path() {
    let dir = yolo(&[("label/train/a.txt", LINE), ("label/val/v.txt", LINE)]);
    let message = error(&dir);
    for part in ["data.yaml: none of the 5 images", "labels/train/a.txt", "there is", "label/train/a.txt"] {
        assert!(message.contains(part), "{message}");
    }
    // In val alone they are not enough.
    let message = error(&yolo(&[("labels/val/v.txt", LINE)]));
    assert!(message.contains("no image of train has a file of labels"), "{message}");
}

#[test]
fn labels_without_images_and_images_without_labels_are_counted() {
    let good = [("labels/train/a.txt", LINE), ("labels/train/b.txt", ""), ("labels/val/v.txt", LINE)];
    let one = [&good[..], &[("labels/train/gone.txt", LINE), ("labels/train/classes.txt", "cat\ndog\n")]].concat();
    let dir = yolo(&one);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let line = data.problems.iter().find(|p| p.kind == ProblemKind::OrphanLabels).unwrap().to_string();
    for part in ["1 of 4 files of labels are of no image", "images/train/gone.*", "2 of 4 images have no file", "c.png"]
    {
        assert!(line.contains(part), "{line}");
    }
    assert!(kinds_of_check(&dir).contains(&FindingKind::OrphanLabels));
    // Half of them is too much.
    let other = [("labels/train/x1.txt", LINE), ("labels/train/x2.txt", LINE), ("labels/train/x3.txt", LINE)];
    let message = error(&yolo(&[&good[..], &other].concat()));
    assert!(message.contains("3 of 6 files of labels are of no image"), "{message}");
    // Images without objects are as they should be, with a file or without.
    let some = [&good[..], &[("labels/train/c.txt", LINE)]].concat();
    assert_eq!(BoxDataset::open(yolo(&some).path(), 1).unwrap().problems, []);
}

#[test]
fn a_part_without_labels_says_why_it_cannot_be_measured() {
    let dir = yolo(
        &["a", "b", "c", "d"]
            .map(|name| (format!("labels/train/{name}.txt"), LINE))
            .each_ref()
            .map(|(n, l)| (n.as_str(), *l)),
    );
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let lines: Vec<String> = data.problems.iter().map(ToString::to_string).collect();
    assert!(
        lines.iter().any(|line| line.contains("val: 1 of 1 images") && line.contains("labels/val/v.txt")),
        "{lines:?}"
    );
    let found = kinds_of_check(&dir);
    assert!(found.contains(&FindingKind::NoLabels) && found.contains(&FindingKind::NoObjects), "{found:?}");
    data.refuse_without_objects().unwrap();
    let empty = coco(&[(1, "1.png"), (2, "2.png"), (3, "3.png")], &[]);
    let data = BoxDataset::open(set(&[("train.json", &empty)], &["1.png", "2.png", "3.png"]).path(), 1).unwrap();
    let message = data.refuse_without_objects().unwrap_err().to_string();
    assert!(message.contains("none of the 3 images of train has an object"), "{message}");
}

#[test]
fn a_byte_order_mark_before_labels_is_no_matter() {
    let marked = ["\u{feff}", LINE].concat();
    let plain = yolo(&[("labels/train/a.txt", LINE), ("labels/train/b.txt", LINE), ("labels/val/v.txt", LINE)]);
    let dir = yolo(&[("labels/train/a.txt", &marked), ("labels/train/b.txt", &marked), ("labels/val/v.txt", &marked)]);
    let [found, expected] = [&dir, &plain].map(|dir| BoxDataset::open(dir.path(), 1).unwrap());
    assert_eq!((rects(&found.train), rects(&found.val)), (rects(&expected.train), rects(&expected.val)));
    assert_eq!(found.problems, []);
}

#[test]
fn keypoints_without_kpt_shape_are_asked_for() {
    let pose = "0 0.5 0.5 0.2 0.2 0.42 0.42 0.58 0.45 0.5 0.58\n";
    let labels = [("labels/train/a.txt", pose), ("labels/train/b.txt", pose), ("labels/val/v.txt", pose)];
    let dir = yolo(&labels);
    let message = error(&dir);
    assert!(message.contains("data.yaml: ") && message.contains("kpt_shape: [3, 2]"), "{message}");
    fs::write(dir.path().join("data.yaml"), format!("{YAML}kpt_shape: [3, 2]\n")).unwrap();
    assert_eq!(rects(&BoxDataset::open(dir.path(), 1).unwrap().test), [rect(40., 20., 20., 10.)]);
    fs::write(dir.path().join("data.yaml"), format!("{YAML}task: segment\n")).unwrap();
    assert!(BoxDataset::open(dir.path(), 1).is_ok());
}

#[test]
fn supercategories_that_own_nothing_are_left_out_and_said() {
    let file = |image: &str| {
        json!({
            "images": [{"id": 1, "file_name": image, "width": 100, "height": 50}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
            "categories": [
                {"id": 0, "name": "cell", "supercategory": "none"},
                {"id": 1, "name": "cell", "supercategory": "cell"},
                {"id": 2, "name": "nucleus", "supercategory": "cell"},
            ],
        })
        .to_string()
    };
    let files = [("train/_annotations.coco.json", file("1.png")), ("valid/_annotations.coco.json", file("2.png"))];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let dir = set(&files, &["train/1.png", "valid/2.png"]);
    fs::copy(dir.path().join("train/1.png"), dir.path().join("train/3.png")).unwrap();
    let mut more: serde_json::Value = serde_json::from_str(&file("1.png")).unwrap();
    more["images"].as_array_mut().unwrap().push(json!({"id": 9, "file_name": "3.png"}));
    fs::write(dir.path().join("train/_annotations.coco.json"), more.to_string()).unwrap();
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(data.names(), ["cell", "nucleus"]);
    assert_eq!((data.categories[0].id, data.test[0].objects[0].category), (1, 0));
    assert!(kinds(&data).contains(&(ProblemKind::Heading, Remedy::CategoryDropped)), "{:?}", kinds(&data));
    assert!(kinds_of_check(&dir).contains(&FindingKind::HeadingCategory));
}

#[test]
fn a_class_that_only_val_has_is_told() {
    let train = coco(&[(1, "1.png"), (2, "2.png")], &[(1, 1, 4, [1., 2., 3., 4.])]);
    let val = coco(&[(3, "3.png")], &[(1, 3, 9, [1., 2., 3., 4.])]);
    let dir = set(&[("train.json", &train), ("val.json", &val)], &["1.png", "2.png", "3.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let line = data.problems.iter().find(|p| p.kind == ProblemKind::NotInTrain).unwrap().to_string();
    assert!(line.contains("class 'cat' has 1 objects in val and none in train"), "{line}");
    assert!(kinds_of_check(&dir).contains(&FindingKind::ClassNotInTrain));
}

#[test]
fn boxes_of_an_id_that_several_images_have_are_dropped() {
    let listed = [(1, "1.png"), (1, "2.png"), (3, "3.png"), (4, "4.png"), (5, "5.png")];
    let boxes = [(1, 1, 4, [1., 2., 3., 4.]), (2, 3, 4, [1., 2., 3., 4.])];
    let dir = set(&[("train.json", &coco(&listed, &boxes))], &["1.png", "2.png", "3.png", "4.png", "5.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let all = [names(&data.train), names(&data.val), names(&data.test)].concat();
    assert_eq!((all.len(), all.contains(&"1.png") || all.contains(&"2.png")), (3, false));
    let found: Vec<_> = kinds(&data).into_iter().filter(|(kind, _)| *kind == ProblemKind::DuplicateImageId).collect();
    let expected = [Remedy::ImageDropped, Remedy::ImageDropped, Remedy::ObjectDropped];
    assert_eq!(found, expected.map(|remedy| (ProblemKind::DuplicateImageId, remedy)));
}

#[test]
fn a_file_that_lists_fewer_categories_means_the_same_ones() {
    let train = coco(&[(1, "1.png"), (2, "2.png")], &[(1, 1, 4, [1., 2., 3., 4.]), (2, 1, 9, [2., 2., 3., 4.])]);
    let val = coco(&[(3, "3.png")], &[(1, 3, 9, [1., 2., 3., 4.])]);
    let mut fewer: serde_json::Value = serde_json::from_str(&val).unwrap();
    fewer["categories"].as_array_mut().unwrap().retain(|category| category["id"] == 9);
    let files = [("train.json", train.as_str()), ("val.json", &fewer.to_string())];
    let data = BoxDataset::open(set(&files, &["1.png", "2.png", "3.png"]).path(), 1).unwrap();
    assert_eq!(data.names()[data.test[0].objects[0].category], "cat");
}

#[test]
fn boxes_in_shares_and_boxes_of_another_size_are_refused() {
    let listed = [(1, "1.png"), (2, "2.png"), (3, "3.png")];
    let shares = coco(&listed, &[(1, 1, 4, [0.25, 0.25, 0.5, 0.5]), (2, 2, 4, [0., 0., 1., 1.])]);
    let message = error(&set(&[("train.json", &shares)], &["1.png", "2.png", "3.png"]));
    assert!(message.contains("train.json: all boxes lie between 0 and 1"), "{message}");
    // One may be smaller than a pixel.
    let one = coco(&listed, &[(1, 1, 4, [0.25, 0.25, 0.5, 0.5])]);
    assert!(BoxDataset::open(set(&[("train.json", &one)], &["1.png", "2.png", "3.png"]).path(), 1).is_ok());
    let boxes = [(1, 1, 4, [1., 2., 3., 4.]), (2, 2, 4, [1., 2., 3., 4.])];
    let twice = coco(&listed, &boxes).replace("100", "200").replace("\"height\":50", "\"height\":100");
    let message = error(&set(&[("train.json", &twice)], &["1.png", "2.png", "3.png"]));
    assert!(message.contains("boxes of images of 200x100 pixels, but ") && message.contains("has 100x50"), "{message}");
}

#[test]
fn paths_of_another_machine_are_named_with_file_and_line() {
    let dir = yolo(&[("labels/train/a.txt", LINE), ("labels/val/v.txt", LINE)]);
    fs::write(dir.path().join("data.yaml"), YAML.replace("images/val", "val.txt")).unwrap();
    fs::write(dir.path().join("val.txt"), "/content/drive/set/v.png\n").unwrap();
    let message = error(&dir);
    assert!(message.contains("val.txt: line 1: /content/drive/set/v.png is not there; no images for val"), "{message}");
    let back = coco(&[(1, "images\\1.png")], &[]);
    let message = error(&set(&[("result.json", &back)], &["images/1.png"]));
    assert!(message.contains("write paths with /"), "{message}");
}

#[test]
fn images_and_files_that_are_not_used_are_told() {
    let good = |image: u64| coco(&[(image, &format!("{image}.png"))], &[(1, image, 4, [1., 2., 3., 4.])]);
    let [train, val, other] = [1, 2, 3].map(good);
    let files = [
        ("annotations/instances_train.json", train.as_str()),
        ("annotations/instances_val.json", &val),
        ("annotations/instances_extra.json", &other),
    ];
    let dir = set(&files, &["train/1.png", "train/9.png", "val/2.png", "extra/3.png"]);
    let mut third: serde_json::Value = serde_json::from_str(&train).unwrap();
    third["images"].as_array_mut().unwrap().push(json!({"id": 7, "file_name": "8.png"}));
    fs::write(dir.path().join("annotations/instances_train.json"), third.to_string()).unwrap();
    fs::copy(dir.path().join("train/1.png"), dir.path().join("train/8.png")).unwrap();
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let lines: Vec<String> =
        data.problems.iter().filter(|p| p.kind == ProblemKind::NotUsed).map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("instances_extra.json: named after no part"), "{lines:?}");
    assert!(lines[1].contains("1 images in ") && lines[1].contains("9.png"), "{lines:?}");
}
