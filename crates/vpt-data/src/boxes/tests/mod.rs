//! Data sets in every layout, whole and damaged.

mod coco_files;
mod converted;
mod named_files;
mod not_meant;
mod voc_files;
mod yolo_files;

use super::*;
use crate::{MadeParts, MeasuredPart};
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::formats::testing::folder_with_images;

/// A folder of files; what ends like an image's is an image of 100 x 50 pixels.
fn set(files: &[(&str, &str)], images: &[&str]) -> tempfile::TempDir {
    folder_with_images(files, images, [100, 50])
}

/// Rectangles in the order of images and objects.
fn rects(part: &[BoxImage]) -> Vec<Rect> {
    part.iter().flat_map(|image| &image.objects).map(|object| object.rect).collect()
}

fn names(part: &[BoxImage]) -> Vec<&str> {
    part.iter().map(|image| image.name.as_str()).collect()
}

/// Problems but for parts without objects or labels.
fn kinds(data: &BoxDataset) -> Vec<(ProblemKind, Remedy)> {
    let problems = data.problems.iter().filter(|p| !matches!(p.kind, ProblemKind::NoObjects | ProblemKind::NoLabels));
    problems.map(|p| (p.kind, p.remedy)).collect()
}

fn error(dir: &tempfile::TempDir) -> String {
    let message = BoxDataset::open(dir.path(), 1).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

fn rect(x: f64, y: f64, width: f64, height: f64) -> Rect {
    Rect { x, y, width, height }
}

/// A COCO file: images by id and name, annotations by id, image, category and box.
fn coco(images: &[(u64, &str)], annotations: &[(u64, u64, u64, [f64; 4])]) -> String {
    let image = |(id, name): &(u64, &str)| json!({"id": id, "file_name": name, "width": 100, "height": 50});
    let annotation = |(id, image, category, bbox): &(u64, u64, u64, [f64; 4])| json!({"id": id, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0});
    json!({
        "images": images.iter().map(image).collect::<Vec<_>>(),
        "annotations": annotations.iter().map(annotation).collect::<Vec<_>>(),
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog", "supercategory": "animal"}],
    })
    .to_string()
}

#[test]
fn other_folders_are_not_recognised() {
    let dir =
        set(&[("train.json", r#"{"images_of_mine": 3}"#), ("readme.md", "")], &["train/a/1.png", "train/b/1.png"]);
    assert_eq!(BoxDataset::recognize(dir.path()), None);
    assert_eq!(BoxDataset::recognize(dir.path().join("nowhere")), None);
    assert!(error(&dir).contains("no data set of boxes found"));
}

#[test]
fn the_fingerprint_changes_with_what_is_learned() {
    let json = coco(&[(1, "1.png"), (2, "2.png"), (3, "3.png")], &[(1, 1, 4, [1., 2., 3., 4.])]);
    let dir = set(&[("train.json", &json)], &["1.png", "2.png", "3.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let print = data.fingerprint();
    assert_eq!(BoxDataset::open(dir.path(), 1).unwrap().fingerprint(), print);
    let mut others = vec![data.clone(), data.clone(), data.clone()];
    others[0].categories[0].name.push('s');
    others[1].train[0].name.push('s');
    let image = others[2].val.pop().unwrap();
    others[2].train.push(image);
    for (from, to) in [("[1.0,2.0,3.0,4.0]", "[1.0,2.0,3.0,4.001]"), ("\"iscrowd\":0", "\"iscrowd\":1")] {
        assert!(json.contains(from), "{json}");
        fs::write(dir.path().join("train.json"), json.replace(from, to)).unwrap();
        others.push(BoxDataset::open(dir.path(), 1).unwrap());
    }
    for other in others {
        assert_ne!(other.fingerprint(), print);
    }
    let split = data.split_file();
    assert_eq!((split.classes, split.train.len()), (vec!["dog".to_owned(), "cat".to_owned()], 1));
}
