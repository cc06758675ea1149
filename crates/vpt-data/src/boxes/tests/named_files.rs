//! Layouts whose annotations name the category of each object in place, and Darknet's: one set in all of them.

use super::*;
use crate::check::{FindingKind, check};
use crate::{Dataset, Split};

/// Files of a set whose part `train` has images a and b, `test` c: a dog in each, a cat in a. `b` has the corners 10, 5, 30, 45.
type Files = Vec<(String, String)>;

fn files(all: &[(&str, &str)]) -> Files {
    all.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// An image, and the categories and boxes in it.
type ListedBoxes<'a> = (&'a str, &'a [(&'a str, [f64; 4])]);

/// Every layout: its name, files, and folders of the images in the parts.
fn layouts() -> Vec<(&'static str, Files, [&'static str; 2])> {
    let csv = |rows: &str| format!("filename,width,height,class,xmin,ymin,xmax,ymax\n{rows}");
    let (train_rows, test_rows) = (
        "a.png,100,50,cat,1,2,4,8\na.png,100,50,dog,0,0,100,50\nb.png,100,50,dog,10,5,30,45\n",
        "c.png,100,50,dog,1,1,2,3\n",
    );
    let create_ml = |images: &[ListedBoxes]| {
        let annotation = |(label, [x, y, width, height]): &(&str, [f64; 4])| json!({"label": label, "coordinates": {"x": x, "y": y, "width": width, "height": height}});
        let image = |(name, all): &ListedBoxes| json!({"image": name, "annotations": all.iter().map(annotation).collect::<Vec<_>>()});
        serde_json::Value::from(images.iter().map(image).collect::<Vec<_>>()).to_string()
    };
    let labelme = |name: &str, shapes: serde_json::Value| {
        json!({"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": null,
               "imageHeight": 50, "imageWidth": 100})
        .to_string()
    };
    let shape = |label: &str, kind: &str, points: serde_json::Value| json!({"label": label, "points": points, "group_id": null, "shape_type": kind, "flags": {}});
    let cvat = r#"<?xml version="1.0"?><annotations><version>1.1</version><meta><task><labels>
<label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>
<image id="0" name="a.png" subset="Train" width="100" height="50"><box label="cat" xtl="1" ytl="2" xbr="4" ybr="8"/>
<polygon label="dog" points="0,0;100.0,0;100,50"/></image>
<image id="1" name="b.png" subset="Train" width="100" height="50"><box label="dog" xtl="10" ytl="5" xbr="30" ybr="45"/></image>
<image id="2" name="c.png" subset="Test" width="100" height="50"><box label="dog" xtl="1" ytl="1" xbr="2" ybr="3"/></image>
</annotations>"#;
    let open_images = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n";
    let meta = |all: &[ListedBoxes]| {
        let line = |(name, objects): &ListedBoxes| {
            let boxes: Vec<_> = objects.iter().map(|(_, bbox)| bbox).collect();
            let names: Vec<_> = objects.iter().map(|(name, _)| name).collect();
            json!({"file_name": name, "objects": {"bbox": boxes, "categories": names}}).to_string() + "\n"
        };
        all.iter().map(line).collect::<String>()
    };
    vec![
        (
            "box-csv",
            files(&[("train/_annotations.csv", &csv(train_rows)), ("test/_annotations.csv", &csv(test_rows))]),
            ["train", "test"],
        ),
        (
            "box-csv",
            files(&[("data/train_labels.csv", &csv(train_rows)), ("data/test_labels.csv", &csv(test_rows))]),
            ["images/train", "images/test"],
        ),
        (
            "box-csv",
            files(&[
                (
                    "train-annotations-bbox.csv",
                    &format!(
                        "{open_images}a,x,/m/1,1,0.01,0.04,0.04,0.16,0,0,0\na,x,/m/2,1,0,1,0,1,0,0,0\nb,x,/m/2,1,0.1,0.3,0.1,0.9,0,0,0\ngone,x,/m/2,1,0,1,0,1,0,0,0\n"
                    ),
                ),
                ("test-annotations-bbox.csv", &format!("{open_images}c,x,/m/2,1,0.01,0.02,0.02,0.06,0,0,0\n")),
                ("class-descriptions-boxable.csv", "/m/1,cat\n/m/2,dog\n"),
            ]),
            ["train", "test"],
        ),
        (
            "createml",
            files(&[
                (
                    "train/_annotations.createml.json",
                    &create_ml(&[
                        ("a.png", &[("cat", [2.5, 5., 3., 6.]), ("dog", [50., 25., 100., 50.])]),
                        ("b.png", &[("dog", [20., 25., 20., 40.])]),
                    ]),
                ),
                ("test/_annotations.createml.json", &create_ml(&[("c.png", &[("dog", [1.5, 2., 1., 2.])])])),
            ]),
            ["train", "test"],
        ),
        (
            "labelme",
            files(&[
                (
                    "train/a.json",
                    &labelme(
                        "a.png",
                        json!([
                            shape("cat", "rectangle", json!([[4, 8], [1, 2]])),
                            shape("dog", "polygon", json!([[0, 0], [100, 0], [100, 50]]))
                        ]),
                    ),
                ),
                (
                    "train/b.json",
                    &labelme("..\\x\\b.png", json!([shape("dog", "rectangle", json!([[10, 5], [30, 45]]))])),
                ),
                ("test/c.json", &labelme("c.png", json!([shape("dog", "rectangle", json!([[1, 1], [2, 3]]))]))),
            ]),
            ["train", "test"],
        ),
        ("cvat", files(&[("annotations.xml", cvat)]), ["images/Train", "images/Test"]),
        (
            "box-txt",
            files(&[
                ("train/_annotations.txt", "a.png 1,2,4,8,0 0,0,100,50,1\nb.png 10,5,30,45,1\n"),
                ("train/_classes.txt", "cat\ndog\n"),
                ("test/_annotations.txt", "c.png 1,1,2,3,1\n"),
                ("test/_classes.txt", "cat\ndog\n"),
            ]),
            ["train", "test"],
        ),
        (
            "darknet",
            files(&[
                (
                    "obj.data",
                    "classes = 2\ntrain = data/train.txt\ntest = data/test.txt\nnames = data/obj.names\nbackup = b/\n",
                ),
                ("obj.names", "cat\ndog\n"),
                ("train.txt", "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n"),
                ("test.txt", "data/obj_test_data/c.png\n"),
                ("obj_train_data/a.txt", "0 0.025 0.1 0.03 0.12\n1 0.5 0.5 1 1\n"),
                ("obj_train_data/b.txt", "1 0.2 0.5 0.2 0.8\n"),
                ("obj_test_data/c.txt", "1 0.015 0.04 0.01 0.04\n"),
            ]),
            ["obj_train_data", "obj_test_data"],
        ),
        (
            "metadata",
            files(&[
                (
                    "train/metadata.jsonl",
                    &meta(&[
                        ("a.png", &[("cat", [1., 2., 3., 6.]), ("dog", [0., 0., 100., 50.])]),
                        ("b.png", &[("dog", [10., 5., 20., 40.])]),
                    ]),
                ),
                ("test/metadata.jsonl", &meta(&[("c.png", &[("dog", [1., 1., 1., 2.])])])),
            ]),
            ["train", "test"],
        ),
    ]
}

/// The set in a layout.
fn written((_, files, [train, test]): &(&'static str, Files, [&'static str; 2])) -> tempfile::TempDir {
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let images = [format!("{train}/a.png"), format!("{train}/b.png"), format!("{test}/c.png")];
    let dir = set(&files, &images.each_ref().map(String::as_str));
    for (i, name) in images.iter().enumerate() {
        let pixel = |x: u32, y: u32| image::Luma([(x * 3 + y * 7) as u8 ^ i as u8]);
        image::GrayImage::from_fn(100, 50, pixel).save(dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn one_set_has_the_same_boxes_in_every_layout() {
    for layout in layouts() {
        let dir = written(&layout);
        let name = layout.0;
        let data = BoxDataset::open(dir.path(), 1).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((data.layout.name(), data.names()), (name, vec!["cat".to_owned(), "dog".into()]));
        let mut found: Vec<(String, usize, Rect)> = Split::ALL
            .into_iter()
            .flat_map(|split| data.part(split))
            .flat_map(|image| {
                let file = image.name.rsplit('/').next().unwrap().to_owned();
                image.objects.iter().map(move |o| (file.clone(), o.category, o.rect))
            })
            .collect();
        found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let expected = [
            ("a.png".to_owned(), 0, rect(1., 2., 3., 6.)),
            ("a.png".into(), 1, rect(0., 0., 100., 50.)),
            ("b.png".into(), 1, rect(10., 5., 20., 40.)),
            ("c.png".into(), 1, rect(1., 1., 1., 2.)),
        ];
        assert_eq!(found, expected, "{name}");
        assert_eq!(data.test.len(), 1, "{name}: {}", data.split_note);
        // Not an image folder, whatever its folders are called.
        let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
        assert!(
            message.contains("data set of boxes, where images with one label each are needed"),
            "{name}: {message}"
        );
        let report = check(dir.path(), false, &mut |_, _| {}).unwrap();
        assert_eq!(report.layout, Some(name));
        let expected: &[FindingKind] = match name {
            "labelme" | "cvat" => &[FindingKind::OtherShape],
            "box-csv" if report.kinds.contains_key("missing-file") => &[FindingKind::MissingFile],
            _ => &[],
        };
        let kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
        assert_eq!(kinds, expected, "{name}: {:?}", report.findings);
        let out = dir.path().join("out");
        convert(&data, BoxLayout::Yolo, &out).unwrap();
        let again = BoxDataset::open(&out, 1).unwrap();
        assert_eq!(rects(&again.test), rects(&data.test), "{name}");
    }
}

#[test]
fn damaged_files_are_one_line_and_no_panic() {
    for layout in layouts() {
        for (i, (name, text)) in layout.1.iter().enumerate() {
            let half = text.len() / 2;
            let half = (half..text.len()).find(|at| text.is_char_boundary(*at)).unwrap();
            let numbers = text.replace('1', "NaN").replace('2', "1e999").replace('5', "-7");
            for changed in [String::new(), text[..half].to_owned(), text.replace(['"', '<', ','], ";"), numbers] {
                let mut layout = (layout.0, layout.1.clone(), layout.2);
                layout.1[i].1 = changed;
                let dir = written(&layout);
                if let Err(error) = BoxDataset::open(dir.path(), 1) {
                    assert_eq!(error.to_string().lines().count(), 1, "{name}: {error}");
                }
                let _ = check(dir.path(), true, &mut |_, _| {});
            }
        }
    }
}

#[test]
fn what_is_lost_is_told() {
    let rows = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,100,50,cat,1,2,4,8\na.png,100,50,dog,5,x,9,9\n\
                b.png,100,50,dog,90,5,130,45\ngone.png,100,50,cat,1,2,3,4\nc.png,100,50,,,,,\nb.png,100,50,cat,NaN,2,3,4\n";
    let dir = set(&[("_annotations.csv", rows)], &["a.png", "b.png", "c.png", "other.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let mut found = kinds(&data);
    found.sort_by_key(|(kind, _)| kind.name());
    let expected = [
        (ProblemKind::MissingAnnotation, Remedy::ImageDropped),
        (ProblemKind::MissingImage, Remedy::ImageDropped),
        (ProblemKind::NotFinite, Remedy::ObjectDropped),
        (ProblemKind::OutsideImage, Remedy::Clipped),
        (ProblemKind::UnreadableObject, Remedy::ObjectDropped),
    ];
    assert_eq!(found, expected);
    let lost = data.problems.iter().find(|p| p.kind == ProblemKind::MissingAnnotation).unwrap().to_string();
    assert!(lost.contains("nothing is said of 1 picture in") && lost.contains("such as other.png"), "{lost}");
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let dir = set(&[("annotations.xml", "<annotations><track id=\"0\"/></annotations>")], &["images/a.png"]);
    assert!(error(&dir).contains("tracks of objects through a video"));
    let dir = set(&[("train/_annotations.txt", "a.png 1,2,4,8,0\n")], &["train/a.png"]);
    assert!(error(&dir).contains("there is no _classes.txt beside it"));
    let dir =
        set(&[("obj.data", "classes = 3\ntrain = train.txt\nnames = obj.names\n"), ("obj.names", "x\n")], &["a.png"]);
    assert!(error(&dir).contains("3 classes here and 1 names"));
    let rows = "filename,class,xmin,ymin,xmax,ymax\nnowhere.png,cat,1,2,4,8\n";
    let dir = set(&[("boxes.csv", rows)], &["a.png"]);
    assert!(error(&dir).contains("no images: nowhere.png is neither beside it nor in"));
    let line = "{\"file_name\": \"a.png\", \"objects\": {\"bbox\": [[1, 2, 3, 4]], \"category\": []}}\n";
    let dir = set(&[("metadata.jsonl", line)], &["a.png"]);
    assert!(error(&dir).contains("line 1: 1 boxes and 0 categories"));
}

#[test]
fn lvis_is_read_by_addresses_and_said() {
    let file = |part: &str, names: &[&str]| {
        let image = |(i, name): (usize, &&str)| {
            json!({"id": i + 1, "width": 100, "height": 50, "neg_category_ids": [], "not_exhaustive_category_ids": [],
                   "coco_url": format!("http://images.cocodataset.org/{part}2017/{name}")})
        };
        let annotation = json!({"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12});
        let images: Vec<_> = names.iter().enumerate().map(image).collect();
        json!({"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "cup"}]}).to_string()
    };
    let (train, val) = (file("train", &["1.png", "2.png", "3.png"]), file("val", &["4.png"]));
    let images = ["train2017/1.png", "train2017/2.png", "train2017/3.png", "val2017/4.png"];
    let dir = set(&[("lvis_v1_train.json", &train), ("lvis_v1_val.json", &val)], &images);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(data.layout.name(), "coco");
    assert_eq!((names(&data.test), rects(&data.test)), (vec!["val2017/4.png"], vec![rect(1., 2., 3., 4.)]));
    assert_eq!(kinds(&data), [(ProblemKind::FederatedSet, Remedy::Kept); 2]);
}
