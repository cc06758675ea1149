use serde_json::json;

use super::*;

/// One image and box in each part.
fn parts() -> [String; 3] {
    [1, 2, 3].map(|i| coco(&[(i, &format!("{i}.png"))], &[(10 + i, i, 4, [1., 2., 3., 4.])]))
}

#[test]
fn official_roboflow_and_plain_files_say_the_same() {
    let [train, val, test] = &parts();
    let official = [
        ("annotations/instances_train2017.json", train.as_str()),
        ("annotations/instances_val2017.json", val),
        ("annotations/instances_test2017.json", test),
    ];
    let roboflow = [
        ("train/_annotations.coco.json", train.as_str()),
        ("valid/_annotations.coco.json", val),
        ("test/_annotations.coco.json", test),
    ];
    let plain = [("train.json", train.as_str()), ("val.json", val), ("test.json", test)];
    for (files, images) in [
        (&official, ["train2017/1.png", "val2017/2.png", "test2017/3.png"]),
        (&official, ["images/train2017/1.png", "images/val2017/2.png", "images/test2017/3.png"]),
        (&official, ["train/1.png", "val/2.png", "test/3.png"]),
        (&official, ["images/1.png", "images/2.png", "images/3.png"]),
        (&roboflow, ["train/1.png", "valid/2.png", "test/3.png"]),
        (&plain, ["1.png", "2.png", "3.png"]),
        (&plain, ["images/1.png", "images/2.png", "images/3.png"]),
        (&plain, ["train/1.png", "val/2.png", "test/3.png"]),
    ] {
        let dir = set(files, &images);
        assert_eq!(BoxDataset::recognize(dir.path()), Some(Layout::COCO));
        let data = BoxDataset::open(dir.path(), 1).unwrap();
        assert_eq!(data.split_note, "train, val and test as given");
        assert_eq!(data.problems, []);
        let ids: Vec<_> = data.categories.iter().map(|c| (c.id, c.name.as_str())).collect();
        assert_eq!(ids, [(4, "dog"), (9, "cat")]);
        for ((split, name), id) in crate::Split::ALL.into_iter().zip(images).zip(1..) {
            let [image] = data.part(split) else { panic!("{images:?}") };
            assert_eq!((image.name.as_str(), image.id, image.width, image.height), (name, id, 100, 50));
            let object = Object { id: 10 + id, category: 0, rect: rect(1., 2., 3., 4.), area: 12., crowd: false };
            assert_eq!(image.objects, [object]);
        }
    }
}

#[test]
fn images_are_in_the_order_of_names_and_names_may_have_folders() {
    let json = coco(&[(1, "b/2.png"), (2, "a.png"), (3, "b/10.png")], &[]);
    let dir = set(
        &[("train.json", &json), ("val.json", &coco(&[(4, "c.png")], &[]))],
        &["images/a.png", "images/b/2.png", "images/b/10.png", "images/c.png"],
    );
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    // A tenth of train, at least one, is val; val is test.
    assert_eq!((data.train.len(), data.val.len(), names(&data.test)), (2, 1, vec!["images/c.png"]));
    let mut all = [names(&data.train), names(&data.val)].concat();
    assert!(names(&data.train).is_sorted());
    all.sort_unstable();
    assert_eq!(all, ["images/a.png", "images/b/10.png", "images/b/2.png"]);
}

#[test]
fn a_single_file_is_split_by_seed() {
    let images: Vec<_> = (0..20).map(|i| (i, format!("{i}.png"))).collect();
    let listed: Vec<_> = images.iter().map(|(i, name)| (*i, name.as_str())).collect();
    let files: Vec<_> = listed.iter().map(|(_, name)| *name).collect();
    for name in ["annotations/instances_default.json", "result.json", "val.json"] {
        let dir = set(&[(name, &coco(&listed, &[]))], &files);
        for path in [dir.path().to_path_buf(), dir.path().join(name)] {
            let data = BoxDataset::open(&path, 3).unwrap();
            assert_eq!((data.train.len(), data.val.len(), data.test.len()), (14, 3, 3));
            assert_eq!(names(&data.test), names(&BoxDataset::open(&path, 3).unwrap().test));
            assert_ne!(names(&data.test), names(&BoxDataset::open(&path, 4).unwrap().test));
        }
    }
}

#[test]
fn problems_are_mended_and_named() {
    let train = json!({
        "images": [
            {"id": 0, "file_name": "0.png", "width": 100, "height": 50},
            {"id": 1, "file_name": "1.png", "width": 50, "height": 100},
            {"id": 7, "file_name": "2.png"},
            {"id": 7, "file_name": "3.png"},
            {"id": 3, "file_name": "0.png"},
            {"id": 4, "file_name": "gone.png"},
            {"id": 5, "file_name": "v.png"},
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 4, "bbox": [1, 2, 3, 4], "area": 5.5},
            {"id": 2, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            {"id": 2, "image_id": 0, "category_id": 9, "bbox": [95, 2, 10, 4], "iscrowd": false},
            {"id": 4, "image_id": 77, "category_id": 9, "bbox": [1, 2, 3, 4]},
            {"id": 5, "image_id": 0, "category_id": 77, "bbox": [1, 2, 3, 4]},
            {"id": 6, "image_id": 0, "category_id": 9, "bbox": [1, 2, null, 4]},
            {"id": 7, "image_id": 0, "category_id": 9, "bbox": []},
            {"image_id": 0, "category_id": 9, "bbox": [1, 2, 3, 0]},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
    });
    let val = coco(&[(8, "v.png")], &[]);
    let files =
        [("train.json", train.to_string()), ("val.json", val.clone()), ("test.json", coco(&[(8, "t.png")], &[]))];
    let files: Vec<_> = files.iter().map(|(name, json)| (*name, json.as_str())).collect();
    let dir = set(&files, &["0.png", "1.png", "2.png", "v.png", "t.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(names(&data.train), ["0.png", "1.png"]);
    assert_eq!((data.train[1].width, data.train[1].height), (100, 50));
    let objects: Vec<_> = data.train[0].objects.iter().map(|o| (o.id, o.category, o.rect, o.crowd)).collect();
    let expected =
        [(1, 0, rect(1., 2., 3., 4.), false), (2, 1, rect(1., 2., 3., 4.), true), (3, 1, rect(95., 2., 5., 4.), false)];
    assert_eq!(objects, expected);
    assert!((data.train[0].objects[0].area - 5.5).abs() < 1e-9);
    let mut found = kinds(&data);
    found.sort_by_key(|(kind, _)| ProblemKind::ALL.iter().position(|k| k == kind));
    let expected = [
        (ProblemKind::MissingImage, Remedy::ImageDropped),
        (ProblemKind::SizeMismatch, Remedy::FileHolds),
        (ProblemKind::DuplicateImageId, Remedy::ImageDropped),
        (ProblemKind::DuplicateImageId, Remedy::ImageDropped),
        (ProblemKind::DuplicateImage, Remedy::Joined),
        (ProblemKind::ImageInTwoParts, Remedy::DroppedHere),
        (ProblemKind::DuplicateAnnotationId, Remedy::Renumbered),
        (ProblemKind::ZeroAnnotationId, Remedy::Renumbered),
        (ProblemKind::ZeroAnnotationId, Remedy::Renumbered),
        (ProblemKind::UnknownImage, Remedy::ObjectDropped),
        (ProblemKind::UnknownCategory, Remedy::ObjectDropped),
        (ProblemKind::UnreadableObject, Remedy::ObjectDropped),
        (ProblemKind::NotFinite, Remedy::ObjectDropped),
        (ProblemKind::EmptyBox, Remedy::ObjectDropped),
        (ProblemKind::OutsideImage, Remedy::Clipped),
        (ProblemKind::Crowd, Remedy::Kept),
    ];
    assert_eq!(found, expected);
    let lines: Vec<String> = data.problems.iter().map(ToString::to_string).collect();
    for part in ["train.json, annotation 5: category 77", "train.json, entry 8 of annotations: it has no id"] {
        assert!(lines.iter().any(|line| line.contains(part)), "{lines:#?}");
    }
}

#[test]
fn what_cannot_be_used_is_an_error_that_names_the_place() {
    let good = coco(&[(1, "1.png")], &[]);
    let with = |train: &str, val: &str| error(&set(&[("train.json", train), ("val.json", val)], &["1.png"]));
    for (train, expected) in [
        ("{\"images\": [{\"id\": 1,\n \"file_name\": }", "line 2 column 15"),
        (&good.replacen("\"id\":1", "\"id\":-1", 1), "images, entry 1: id is -1"),
        (r#"{"images": [], "categories": []}"#, "missing field `annotations`"),
        (&coco(&[], &[]), "no images"),
        (&coco(&[(1, "2.png")], &[]), "no images: 2.png is neither beside it"),
        (&good.replace("\"id\":9", "\"id\":4"), "category 4 is listed twice"),
        (&good.replace("cat\"", "dog\""), "two categories are called"),
    ] {
        let message = with(train, &good);
        assert!(message.contains("train.json: ") && message.contains(expected), "{message}");
    }
    for (val, expected) in [
        (good.replace("\"cat\"", "\"cow\""), "category 9 is 'cow' here and 'cat' in "),
        (good.replace("\"id\":9", "\"id\":8"), "category 8 ('cat') does not occur in "),
    ] {
        let message = with(&good, &val);
        assert!(message.contains("val.json: ") && message.contains(expected), "{message}");
    }
    let two =
        [("annotations/instances_train2014.json", good.as_str()), ("annotations/instances_train2017.json", &good)];
    assert!(error(&set(&two, &["1.png"])).contains("a second file for train"));
    let two = [("annotations/instances_a.json", good.as_str()), ("annotations/instances_b.json", &good)];
    assert!(error(&set(&two, &["1.png"])).contains("instances_a.json: this file and others"));
    let gone = coco(&[(1, "1.png")], &[]);
    let val = coco(&[(2, "2.png"), (3, "3.png")], &[]);
    let dir = set(&[("train.json", &gone), ("val.json", &val)], &["1.png", "2.png", "3.png"]);
    fs::write(dir.path().join("1.png"), "text").unwrap();
    assert!(error(&dir).contains("no images for train"), "{}", error(&dir));
}

#[test]
fn boxes_by_their_corners_are_refused() {
    let corners = [[60., 20., 90., 40.], [50., 10., 80., 45.], [10., 30., 20., 44.], [70., 5., 99., 30.]];
    let boxes = |all: &[[f64; 4]]| {
        let objects: Vec<_> = (1..).zip(all).map(|(id, sides)| (id, 1, 4, *sides)).collect();
        let [_, val, test] = &parts();
        let files = [("train.json", &*coco(&[(1, "1.png")], &objects)), ("val.json", val), ("test.json", test)];
        let dir = set(&files, &["1.png", "2.png", "3.png"]);
        BoxDataset::open(dir.path(), 1).map(|data| data.train[0].objects.len()).map_err(|error| error.to_string())
    };
    let message = boxes(&corners).unwrap_err();
    assert!(message.contains("all fit as left, top, right and bottom ([60.0, 20.0, 90.0, 40.0])"), "{message}");
    assert_eq!(boxes(&[corners[0], [1., 1., 9., 9.], [40., 20., 5., 5.], [1., 1., 2., 2.]]), Ok(4));
}

#[test]
fn parts_that_are_held_out_are_measured_without_a_train() {
    let [_, val, test] = &parts();
    let files = [("annotations/instances_val2017.json", val.as_str()), ("annotations/instances_test2017.json", test)];
    let dir = set(&files, &["val2017/2.png", "test2017/3.png"]);
    let message = BoxDataset::open(dir.path(), 1).unwrap_err().to_string();
    assert!(message.contains("val and test without train"), "{message}");
    for (split, id) in [(Split::Val, 2), (Split::Test, 3)] {
        let data =
            BoxDataset::open_with(dir.path(), 1, MadeParts::Measured(MeasuredPart { split, learned: None })).unwrap();
        assert_eq!((data.part(split).len(), data.part(split)[0].id, &data.problems[..]), (1, id, &[][..]));
    }
}
