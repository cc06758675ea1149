use super::*;
use crate::{ImageSource, Split};
use proptest::prelude::*;
use serde_json::Value;

/// Part, name, size and objects of an image.
type KeptImage = (Split, String, [usize; 2], Vec<Object>);

/// Everything that a layout is to keep: names of categories; name, size and objects of each image.
fn content(data: &BoxDataset) -> (Vec<&str>, Vec<KeptImage>) {
    let image = |split, image: &BoxImage| {
        let name = image.name.rsplit('/').next().unwrap().to_owned();
        let objects = image.objects.iter().map(|object| Object { id: 0, ..*object }).collect();
        (split, name, [image.width, image.height], objects)
    };
    let images = Split::ALL.into_iter().flat_map(|split| data.part(split).iter().map(move |i| image(split, i)));
    (data.categories.iter().map(|c| c.name.as_str()).collect(), images.collect())
}

fn to(data: &BoxDataset, layout: BoxLayout, out: &Path) -> (Converted, BoxDataset) {
    let converted = convert(data, layout, out).unwrap();
    assert_eq!(BoxDataset::recognize(out).unwrap().name(), layout.name());
    let data = BoxDataset::open(out, 1).unwrap();
    assert_eq!(data.split_note, "train, val and test as given");
    (converted, data)
}

/// A COCO set whose parts have `counts` images with `boxes` in turn: category, left, top, right, bottom in thousandths of
/// an image of 1000 x 1000, area and crowd.
fn drawn(counts: [usize; 3], boxes: &[(u8, [u32; 4], Option<u32>, bool)]) -> tempfile::TempDir {
    let sizes = [(1, 1), (37, 23), (640, 480), (3, 1999)];
    let dir = tempfile::tempdir().unwrap();
    let mut next = 0;
    for (split, count) in Split::ALL.into_iter().zip(counts) {
        let (mut images, mut annotations) = (Vec::<Value>::new(), Vec::<Value>::new());
        fs::create_dir(dir.path().join(split.name())).unwrap();
        for i in 0..count {
            let (width, height) = sizes[(i + next) % 4];
            let name = format!("{split} & <{i}>.png");
            image::GrayImage::new(width, height).save(dir.path().join(split.name()).join(&name)).unwrap();
            images.push(json!({"id": i + 1, "file_name": name, "width": width, "height": height}));
            for &(category, corners, area, crowd) in boxes.iter().skip(next).step_by(count) {
                let [a, b, c, d] = corners.map(|v| f64::from(v % 1_000_000) / 1e6);
                let (width, height) = (f64::from(width), f64::from(height));
                let bbox = [a.min(c) * width, b.min(d) * height, (a - c).abs() * width, (b - d).abs() * height];
                annotations.push(json!({
                    "id": annotations.len() + 1,
                    "image_id": i + 1,
                    "category_id": category % 4 + 1,
                    "bbox": bbox,
                    "area": area.map(f64::from),
                    "iscrowd": u8::from(crowd),
                }));
            }
            next += 1;
        }
        let names = ["z & <zebra>", "a \"b\": 'c'", "été #1", "no objects"];
        let categories: Vec<Value> = (1..).zip(names).map(|(id, name)| json!({"id": id, "name": name})).collect();
        let all = json!({"images": images, "annotations": annotations, "categories": categories});
        fs::create_dir_all(dir.path().join("annotations")).unwrap();
        fs::write(dir.path().join(format!("annotations/instances_{split}.json")), all.to_string()).unwrap();
    }
    dir
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn there_and_back_is_the_same(
        counts in [1_usize..6, 1..4, 1..4],
        boxes in prop::collection::vec((0_u8..3, any::<[u32; 4]>(), prop::option::of(1_u32..1000), any::<bool>()), 0..40),
    ) {
        let dir = drawn(counts, &boxes);
        let data = BoxDataset::open(dir.path(), 1).unwrap();
        let out = |name: &str| dir.path().join("out").join(name);
        let (converted, voc) = to(&data, BoxLayout::Voc, &out("voc"));
        prop_assert_eq!(content(&voc), content(&data));
        prop_assert_eq!((converted.lost.crowds, converted.lost.areas, converted.lost.category_ids), (0, 0, false));
        let (_, back) = to(&voc, BoxLayout::Coco, &out("voc-coco"));
        prop_assert_eq!(content(&back), content(&data));
        let (converted, again) = to(&data, BoxLayout::Coco, &out("coco"));
        prop_assert_eq!(converted.lost, Lost::default());
        prop_assert_eq!(content(&again), content(&data));

        // What YOLO holds, and the rest counted.
        let (converted, yolo) = to(&data, BoxLayout::Yolo, &out("yolo"));
        let mut plain = data.clone();
        let (mut crowds, mut areas) = (0, 0);
        for split in Split::ALL {
            for image in plain.part_mut(split) {
                crowds += image.objects.iter().filter(|o| o.crowd).count();
                image.objects.retain(|o| !o.crowd);
                for object in &mut image.objects {
                    areas += usize::from((object.area - object.rect.area()).abs() > 1e-6 * object.area);
                    object.area = object.rect.area();
                }
            }
        }
        prop_assert_eq!((converted.lost.crowds, converted.lost.areas), (crowds, areas));
        prop_assert_eq!(content(&yolo), content(&plain));
        let (_, back) = to(&yolo, BoxLayout::Coco, &out("yolo-coco"));
        prop_assert_eq!(content(&back), content(&plain));
    }
}

#[test]
fn folders_below_the_parts_are_kept_and_equal_names_told_apart() {
    let [train, val, test] = [["1/a.png", "2/a.png"], ["1/a.png", "3/b.png"], ["c.png", "d.png"]]
        .map(|[a, b]| coco(&[(5, a), (6, b)], &[(7, 5, 9, [1., 2., 3., 4.])]));
    let files = [("train.json", train.as_str()), ("val.json", &val), ("test.json", &test)];
    let images = ["train/1/a.png", "train/2/a.png", "val/1/a.png", "val/3/b.png", "test/c.png", "test/d.png"];
    let dir = set(&files, &images);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let (converted, voc) = to(&data, BoxLayout::Voc, &dir.path().join("voc"));
    assert!(converted.lost.category_ids && converted.lost.ids);
    let kept = ["JPEGImages/train/1/a.png", "JPEGImages/train/2/a.png"];
    assert_eq!(names(&voc.train), kept);
    assert_eq!(names(&voc.val), ["JPEGImages/val/1/a.png", "JPEGImages/val/3/b.png"]);
    let (_, yolo) = to(&data, BoxLayout::Yolo, &dir.path().join("yolo"));
    assert_eq!(names(&yolo.train), ["images/train/1/a.png", "images/train/2/a.png"]);
    for other in [&voc, &yolo] {
        assert_eq!(content(other), content(&data));
    }
    // An image keeps its bytes, and the original is not touched by the copy's end.
    let bytes = fs::read(dir.path().join("train/1/a.png")).unwrap();
    assert_eq!(fs::read(dir.path().join("yolo/images/train/1/a.png")).unwrap(), bytes);
    fs::remove_dir_all(dir.path().join("yolo")).unwrap();
    assert_eq!(fs::read(dir.path().join("train/1/a.png")).unwrap(), bytes);
}

#[cfg(unix)]
#[test]
fn images_that_are_links_are_followed() {
    let json = coco(&[(1, "1.png"), (2, "2.png"), (3, "3.png")], &[]);
    let dir = set(&[("set/train.json", &json)], &["elsewhere/1.png", "set/2.png", "set/3.png"]);
    std::os::unix::fs::symlink("../elsewhere/1.png", dir.path().join("set/1.png")).unwrap();
    let data = BoxDataset::open(dir.path().join("set"), 1).unwrap();
    let (_, yolo) = to(&data, BoxLayout::Yolo, &dir.path().join("deep/er/yolo"));
    assert_eq!(content(&yolo), content(&data));
}

#[test]
fn what_a_layout_cannot_hold_is_refused_and_nothing_is_left() {
    let json = coco(&[(1, "a.png"), (2, "a.bmp"), (3, "b.png"), (4, "c.png")], &[]);
    let dir = set(&[("train.json", &json)], &["a.png", "a.bmp", "b.png", "c.png"]);
    let mut data = BoxDataset::open(dir.path(), 1).unwrap();
    let all: Vec<BoxImage> = [&data.train[..], &data.val, &data.test].concat();
    data.train = all.iter().filter(|image| image.name.starts_with('a')).cloned().collect();
    let out = dir.path().join("out");
    for layout in [BoxLayout::Yolo, BoxLayout::Voc] {
        let message = convert(&data, layout, &out).unwrap_err().to_string();
        assert!(message.contains("one place for this image and another one"), "{message}");
        assert!(!out.exists());
    }
    data.train.pop();
    data.categories[0].name = "two\nlines".into();
    let message = convert(&data, BoxLayout::Voc, &out).unwrap_err().to_string();
    assert!(message.contains("cannot hold this name of a category"), "{message}");
    // YOLO can.
    assert_eq!(to(&data, BoxLayout::Yolo, &out).1.categories[0].name, "two\nlines");
    assert!(convert(&data, BoxLayout::Coco, &out).unwrap_err().to_string().contains("not empty"));
    data.train[0].image = ImageSource::File(dir.path().join("gone.png"));
    let message = convert(&data, BoxLayout::Coco, &dir.path().join("new")).unwrap_err().to_string();
    assert!(message.contains("gone.png") && !dir.path().join("new").exists(), "{message}");
}

#[test]
fn a_summary_counts_images_objects_and_problems() {
    let boxes = [(1, 1, 9, [0., 0., 10., 10.]), (2, 1, 9, [0., 0., 50., 50.]), (3, 2, 4, [0., 0., 100., 50.])];
    let train = coco(&[(1, "1.png"), (2, "2.png")], &boxes);
    let (before, after) = train.rsplit_once("\"iscrowd\":0").unwrap();
    let train = format!("{before}\"iscrowd\":1{after}");
    let val = coco(&[(1, "3.png")], &[(1, 1, 4, [0., 0., 100., 200.])]);
    let files = [("train.json", train.as_str()), ("val.json", &val), ("test.json", &coco(&[(1, "4.png")], &[]))];
    let dir = set(&files, &["1.png", "2.png", "3.png", "4.png"]);
    // The same pixels under another name.
    fs::copy(dir.path().join("1.png"), dir.path().join("4.png")).unwrap();
    let bytes = fs::read(dir.path().join("3.png")).unwrap();
    fs::write(dir.path().join("3.png"), &bytes[..bytes.len() - 20]).unwrap();
    let mut data = BoxDataset::open(dir.path(), 1).unwrap();
    let summary = data.summary();
    let json = serde_json::to_value(&summary).unwrap();
    let counts = |train: u8, val: u8, test: u8| json!({"train": train, "val": val, "test": test});
    assert_eq!(
        (&json["layout"], &json["images"], &json["objects"]),
        (&json!("coco"), &counts(2, 1, 1), &counts(2, 1, 0))
    );
    assert_eq!((&json["crowds"], &json["empty_images"]), (&counts(1, 0, 0), &counts(0, 0, 1)));
    assert_eq!(
        json["categories"][1],
        json!({"id": 9, "name": "cat", "images": counts(1, 0, 0), "objects": counts(2, 0, 0)})
    );
    assert_eq!(json["sizes"], json!({"small": 1, "medium": 2, "large": 0}));
    assert_eq!((summary.width, summary.box_width), (Some([100, 100]), Some([10., 50., 100.])));
    assert_eq!(summary.unreadable.len(), 1);
    assert_eq!(summary.unreadable[0].id, "3.png");
    let mut found: Vec<_> = summary.problem_counts.iter().map(|c| (c.kind, c.remedy, c.count)).collect();
    found.sort_by_key(|(kind, ..)| kind.name());
    let expected = [
        (ProblemKind::Crowd, Remedy::Kept, 1),
        (ProblemKind::ImageInTwoParts, Remedy::Kept, 1),
        (ProblemKind::NoObjects, Remedy::NothingToMeasure, 1),
        (ProblemKind::OutsideImage, Remedy::Clipped, 1),
    ];
    assert_eq!(found, expected);
    let message = data.clone().leave_out_unreadable(false).unwrap_err().to_string();
    assert!(message.contains("1 unreadable image: ") && message.contains("3.png"), "{message}");
    assert!(data.leave_out_unreadable(true).unwrap_err().to_string().contains("no image of val"));
}
