//! The samples in `datasets/`: each is read by its layout, nothing is wrong with it, and they are one set.

use std::path::{Path, PathBuf};

use super::check;
use crate::boxes::{BoxDataset, ProblemKind};
use crate::{Dataset, MultilabelDataset, Split};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets").join(name)
}

#[track_caller]
fn is_good(name: &str, layout: &str, images: usize) {
    let report = check(&sample(name), false, &mut |_, _| {}).unwrap();
    assert_eq!((report.layout, report.images, &report.findings[..]), (Some(layout), images, &[][..]), "{name}");
}

#[test]
fn samples_of_classes_have_one_hash() {
    let mut hashes = Vec::new();
    for (name, layout) in [
        ("image-folder", "folder"),
        ("csv", "csv"),
        ("split-zhou", "split_zhou"),
        ("fgvc-json", "fgvc"),
        ("list-txt", "list"),
        ("parquet", "parquet"),
        ("webdataset", "webdataset"),
        ("metadata", "metadata"),
        ("one-hot", "one-hot"),
    ] {
        is_good(name, layout, 10);
        hashes.push(Dataset::open(sample(name), 1).unwrap().content_hash().unwrap());
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    is_good("multi-hot", "multi-hot", 10);
    let data = MultilabelDataset::open(sample("multi-hot"), 1, false).unwrap();
    assert_eq!((data.dataset.classes.join(" "), data.train_counts()), ("bar disc red".to_owned(), vec![3, 3, 3]));
    let summary = data.summary();
    assert_eq!((summary.classes[1].images.train, summary.images.test), (3, 2));
    is_good("idx", "idx", 8);
    assert_eq!(Dataset::open(sample("idx"), 1).unwrap().test.len(), 2);
}

#[test]
fn samples_of_boxes_have_the_same_boxes() {
    let mut all = Vec::new();
    for (name, layout) in [
        ("coco", "coco"),
        ("roboflow-coco", "coco"),
        ("yolo", "yolo"),
        ("voc", "voc"),
        ("parquet-boxes", "parquet"),
        ("metadata-boxes", "metadata"),
        ("roboflow-csv", "box-csv"),
        ("open-images", "box-csv"),
        ("createml", "createml"),
        ("labelme", "labelme"),
        ("cvat", "cvat"),
        ("darknet", "darknet"),
        ("yolov4-txt", "box-txt"),
    ] {
        is_good(name, layout, 10);
        let data = BoxDataset::open(sample(name), 1).unwrap();
        assert_eq!(data.problems, [], "{name}");
        let found: Vec<_> = Split::ALL
            .into_iter()
            .flat_map(|split| data.part(split))
            .flat_map(|image| &image.objects)
            .map(|object| (object.category, object.rect))
            .collect();
        all.push((name, data.names(), found));
    }
    for (name, names, found) in &all {
        assert_eq!((names, found), (&all[0].1, &all[0].2), "{name}");
        assert_eq!(found.len(), 10);
    }
}

#[test]
fn samples_of_lvis_and_of_coco_are_read_with_their_ids() {
    let lvis = BoxDataset::open(sample("lvis"), 1).unwrap();
    assert!(lvis.problems.iter().all(|problem| problem.kind == ProblemKind::FederatedSet), "{:?}", lvis.problems);
    assert_eq!(check(&sample("lvis"), true, &mut |_, _| {}).unwrap().kinds["federated-set"], 2);
    is_good("coco-subset", "coco", 32);
    let subset = BoxDataset::open(sample("coco-subset"), 1).unwrap();
    let ids: Vec<_> = subset.categories.iter().map(|category| (category.id, category.name.as_str())).collect();
    assert_eq!(ids, [(13, "stop sign"), (37, "sports ball"), (38, "kite")]);
}
