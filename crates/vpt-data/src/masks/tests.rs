//! Data sets of masks as they lie on disk, and what is wrong with them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::check::FindingKind;

/// A folder in which files are made.
struct Set(TempDir);

impl Set {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A picture, each another.
    fn picture(&self, name: &str, width: u32, height: u32) {
        let value = blake3::hash(name.as_bytes()).as_bytes()[0];
        let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([value, x as u8 * 5, y as u8 * 9]));
        let path = self.file(name, b"");
        image.save(path).unwrap();
    }

    fn mask(&self, name: &str, width: usize, height: usize, values: &[u16]) {
        let classes = values.iter().copied().cycle().take(width * height).collect();
        let indices: Vec<u16> = (0..1000).map(|i| if i < 256 { i } else { 255 }).collect();
        self.file(name, ClassMask { width, height, classes }.to_png(&indices[..256]).unwrap());
    }

    fn pairs(&self, images: &str, masks: &str, names: &[&str], values: &[u16]) {
        for name in names {
            self.picture(&format!("{images}/{name}.jpg"), 12, 8);
            self.mask(&format!("{masks}/{name}.png"), 12, 8, values);
        }
    }

    fn open(&self) -> MaskDataset {
        MaskDataset::open(self.path(), 1).unwrap()
    }

    fn refused(&self) -> String {
        let message = match MaskDataset::open(self.path(), 1) {
            Ok(set) => set.refuse_faults(false).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(!message.contains('\n'), "{message}");
        message
    }

    fn kinds(&self) -> Vec<FindingKind> {
        let report = check_masks(self.path(), false, &mut |_, _| {}).unwrap();
        report.findings.iter().map(|finding| finding.kind).collect()
    }
}

#[test]
fn folders_of_images_and_masks_are_pairs_with_parts_inside_around_or_none() {
    for (images, masks) in [("images/{}", "masks/{}"), ("{}/images", "{}/masks"), ("img_dir/{}", "ann_dir/{}")] {
        let set = Set::new();
        for (part, names) in [("train", &["a", "b", "c"][..]), ("val", &["d", "e"]), ("test", &["f", "g"])] {
            set.pairs(&images.replace("{}", part), &masks.replace("{}", part), names, &[0, 1, 2, 255]);
        }
        let found = set.open();
        assert_eq!([found.train.len(), found.val.len(), found.test.len()], [3, 2, 2]);
        assert_eq!(
            (found.layout, &found.classes.names[..]),
            (Layout::MASK_PAIRS, &["0", "1", "2"].map(String::from)[..])
        );
        assert_eq!(found.train[0].pixels, [(0, 24), (1, 24), (2, 24), (IGNORED, 24)]);
        assert_eq!(found.train[0].mask().unwrap().classes[..5], [0, 1, 2, IGNORED, 0]);
    }
    let set = Set::new();
    let names: Vec<String> = (0..20).map(|i| format!("n{i:02}")).collect();
    for name in &names {
        set.picture(&format!("images/{name}.png"), 12, 8);
        set.mask(&format!("masks/{name}_mask.png"), 12, 8, &[0, 255]);
    }
    set.file("classes.txt", "sky\nroad\n");
    let found = set.open();
    assert_eq!([found.train.len(), found.val.len(), found.test.len()], [14, 3, 3]);
    assert!(
        found.split_note.contains("no parts given") && found.split_note.ends_with("classes are those of classes.txt")
    );
    let summary = found.summary();
    assert_eq!(
        (summary.classes.len(), summary.classes[1].name.as_str(), summary.ignored.to_bits()),
        (2, "road", 0.5_f64.to_bits())
    );
    assert_eq!(set.kinds(), [FindingKind::ClassNotInTrain]);
    assert_ne!(found.fingerprint(), {
        set.mask("masks/n00_mask.png", 12, 8, &[0, 1]);
        set.open().fingerprint()
    });
}

#[test]
fn pascal_voc_goes_by_its_lists_and_ade20k_by_its_folders() {
    let set = Set::new();
    set.pairs("VOC2012/JPEGImages", "VOC2012/SegmentationClass", &["a", "b", "c", "d"], &[0, 15, 255]);
    set.picture("VOC2012/JPEGImages/other.jpg", 5, 5);
    set.file("VOC2012/ImageSets/Segmentation/train.txt", "a\nb\n");
    set.file("VOC2012/ImageSets/Segmentation/val.txt", "c\n\n");
    let found = MaskDataset::open(set.path().join("VOC2012"), 1).unwrap();
    // Train is two, of which one becomes val; val is test.
    assert_eq!([found.train.len(), found.val.len(), found.test.len()], [1, 1, 1]);
    assert_eq!((found.layout, found.classes.names[15].as_str(), found.faults.len()), (Layout::VOC_MASKS, "person", 0));
    assert_eq!(found.test[0].mask().unwrap().classes[..3], [0, 15, IGNORED]);

    let set = Set::new();
    for (part, names) in [("training", &["a", "b", "c", "d"][..]), ("validation", &["e"])] {
        set.pairs(&format!("images/{part}"), &format!("annotations/{part}"), names, &[0, 1, 2, 2]);
    }
    set.file(
        "objectInfo150.txt",
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0\t0\t0\t0\twall\n2\t0\t0\t0\t0\tbuilding, edifice\n",
    );
    let found = set.open();
    assert_eq!((found.layout, &found.classes.names[..]), (Layout::ADE20K, &["wall", "building"].map(String::from)[..]));
    assert_eq!(found.test[0].mask().unwrap().classes[..4], [IGNORED, 0, 1, 1]);
    assert_eq!(found.classes.indices(), [1, 2]);
    assert!(set.kinds().is_empty(), "{:?}", set.kinds());
}

#[test]
fn cocos_polygons_and_runs_are_painted_with_the_smaller_object_on_top() {
    let set = Set::new();
    let annotations = |images: &[(u32, &str)]| {
        let listed: Vec<_> = images
            .iter()
            .map(|(id, name)| serde_json::json!({"id": id, "file_name": name, "width": 6, "height": 4}))
            .collect();
        let objects = images.iter().flat_map(|(id, _)| {
            [
                serde_json::json!({"id": id * 10 + 1, "image_id": id, "category_id": 7, "iscrowd": 1, "bbox": [0, 0, 2, 4],
                    "segmentation": {"size": [4, 6], "counts": [0, 8, 16]}}),
                serde_json::json!({"id": id * 10 + 2, "image_id": id, "category_id": 3, "bbox": [0, 0, 1, 2],
                    "segmentation": [[0, 0, 1, 0, 1, 2, 0, 2]]}),
            ]
        });
        let objects: Vec<_> = objects.collect();
        let categories = serde_json::json!([{"id": 7, "name": "sky"}, {"id": 3, "name": "cat"}]);
        serde_json::json!({"images": listed, "annotations": objects, "categories": categories}).to_string()
    };
    for (part, images) in
        [("train", &[(1, "a.png"), (2, "b.png")][..]), ("val", &[(3, "c.png")]), ("test", &[(4, "d.png")])]
    {
        for (_, name) in images {
            set.picture(&format!("{part}/{name}"), 6, 4);
        }
        set.file(&format!("annotations/instances_{part}.json"), annotations(images));
    }
    let found = set.open();
    assert_eq!(
        (found.layout, &found.classes.names[..]),
        (Layout::COCO, &["background", "cat", "sky"].map(String::from)[..])
    );
    let mask = found.test[0].mask().unwrap();
    assert_eq!(mask.classes[..6], [1, 2, 0, 0, 0, 0]);
    assert_eq!(mask.classes[18..], [2, 2, 0, 0, 0, 0]);
    assert_eq!(found.test[0].pixels, [(0, 16), (1, 2), (2, 6)]);

    // Runs of another size, and objects that have boxes alone.
    let path = set.path().join("annotations/instances_val.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"size\":[4,6]", "\"size\":[6,4]")).unwrap();
    assert!(set.refused().contains("a mask of 4x6 pixels of an image of 6x4"), "{}", set.refused());
    fs::write(&path, text.replace("[[0,0,1,0,1,2,0,2]]", "[[0,0,1,0]]")).unwrap();
    assert!(set.refused().contains("a polygon of 4 numbers"), "{}", set.refused());
    let boxes = text.replace("\"segmentation\"", "\"other\"");
    fs::write(&path, boxes).unwrap();
    assert!(set.refused().contains("boxes alone"), "{}", set.refused());
}

/// What CVAT writes of pictures that are there, with these shapes in the first and a box in each of the others.
fn cvat(set: &Set, shapes: &str) {
    let mut xml =
        "<annotations><meta><task><labels><label><name>sky</name></label><label><name>sea</name></label>".to_owned();
    xml += "<label><name>background</name></label></labels></task></meta>";
    for (i, name) in ["a", "b", "c", "d", "e", "f", "g", "h"].iter().enumerate() {
        set.picture(&format!("images/{name}.png"), 6, 4);
        let own = if i == 0 { shapes } else { "<box label='sky' xtl='0' ytl='0' xbr='3' ybr='3'/>" };
        _ = write!(xml, "<image id='{i}' name='{name}.png' width='6' height='4'>{own}</image>");
    }
    set.file("annotations.xml", xml + "</annotations>");
}

/// The mask of the picture `a`, a row of numbers for each row of pixels.
fn rows_of_first(set: &MaskDataset) -> Vec<String> {
    let mut all = Split::ALL.into_iter().flat_map(|split| set.part(split));
    let mask = all.find(|image| image.name.ends_with("a.png")).unwrap().mask().unwrap();
    let row =
        |row: &[u16]| row.iter().map(|class| if *class == IGNORED { "-".into() } else { class.to_string() }).collect();
    mask.classes.chunks_exact(mask.width).map(row).collect()
}

#[test]
fn shapes_of_cvat_lie_on_each_other_by_layer_and_then_by_place() {
    let set = Set::new();
    cvat(
        &set,
        "<polygon label='sea' points='0,0;6,0;6,2;0,2' z_order='1'/><box label='sky' xtl='1' ytl='0' xbr='3' ybr='4' z_order='0'/>\
         <mask label='sky' rle='1, 1, 1, 1' left='4' top='2' width='2' height='2'/>\
         <polygon label='background' points='0,0;1,0;1,1;0,1' z_order='1'/><points label='sea' points='3,3;4,3'/>\
         <polyline label='sea' points='0,3;6,3'/>",
    );
    let found = set.open();
    assert_eq!(
        (found.layout, &found.classes.names[..]),
        (Layout::CVAT, &["background", "sky", "sea"].map(String::from)[..])
    );
    assert_eq!(rows_of_first(&found), ["022222", "222222", "011001", "011001"]);
    let notes: Vec<&str> = found.notes.iter().map(|note| note.detail.as_str()).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("2 lines, points or the like that cover no pixels"), "{notes:?}");
    assert!(found.split_note.contains("of objects that overlap the upper one is seen"), "{}", found.split_note);
    for (shape, why) in [
        ("<polygon label='sky' points='0,0;1,1'/>", "4 numbers"),
        ("<polygon label='sky' points='0,0;1,1;x'/>", "no points of which a box can be made"),
        ("<polygon label='sky' points='0,0;1,NaN;2,2'/>", "NaN"),
        ("<polygon label='sky' points='0,0;1,1e300;2,2'/>", "corner at"),
        ("<polygon label='hill' points='0,0;5,0;5,3'/>", "'hill' is not among"),
        ("<mask label='sky' rle='99' left='0' top='0' width='2' height='2'/>", "99 pixels"),
        ("<mask label='sky' rle='4' left='5' top='0' width='2' height='2'/>", "at 5, 0"),
        (
            "<mask label='sky' rle='4294967295,4294967295' left='0' top='0' width='4294967295' height='2'/>",
            "whole numbers",
        ),
        ("<mask label='sky' rle='a' left='0' top='0' width='2' height='2'/>", "whole numbers"),
        ("<mask label='sky' rle='4' left='0.5' top='0' width='2' height='2'/>", "whole numbers"),
        ("<ellipse label='sky' cx='1e9' cy='0' rx='1' ry='1'/>", "corner at"),
    ] {
        cvat(&set, shape);
        assert!(set.refused().contains(why), "{shape}: {}", set.refused());
    }
}

#[test]
fn shapes_of_labelme_lie_on_each_other_in_their_order() {
    let set = Set::new();
    let file = |shapes: &str| {
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            set.picture(&format!("{name}.png"), 6, 4);
            let sky = r#"{"label": "sky", "points": [[0, 0], [3, 3]], "shape_type": "rectangle"}"#;
            let own = if name == "a" { shapes } else { sky };
            set.file(&format!("{name}.json"), format!("{{\"shapes\": [{own}], \"imagePath\": \"{name}.png\"}}"));
        }
    };
    let shape = |label: &str, form: &str, points: &str| {
        format!("{{\"label\": \"{label}\", \"points\": {points}, \"shape_type\": \"{form}\"}}")
    };
    let all = [
        shape("sky", "polygon", "[[0,0],[6,0],[6,4],[0,4]]"),
        shape("_background_", "rectangle", "[[2,1],[4,3]]"),
        shape("__ignore__", "rectangle", "[[5,0],[6,4]]"),
        shape("sky", "line", "[[0,0],[6,4]]"),
    ];
    file(&all.join(","));
    let found = set.open();
    assert_eq!(
        (found.layout, &found.classes.names[..]),
        (Layout::LABELME, &["background", "sky"].map(String::from)[..])
    );
    assert_eq!(rows_of_first(&found), ["11111-", "11001-", "11001-", "11111-"]);
    for (bad, why) in [
        (shape("sky", "mask", "[[0,0],[6,4]]"), "base64"),
        (shape("sky", "spline", "[[0,0],[6,4]]"), "spline of 2 points"),
        (shape("sky", "circle", "[[0,0],[6,4],[1,1]]"), "circle of 3 points"),
        (shape("sky", "polygon", "[[0,0],[6,4]]"), "4 numbers"),
        (shape("sky", "polygon", "[[0,0],[6,\"x\"]]"), "shape 1"),
        (shape("sky", "circle", "[[0,0],[1e9,4]]"), "corner at"),
    ] {
        file(&bad);
        assert!(set.refused().contains(why), "{bad}: {}", set.refused());
    }
}

#[test]
fn samples_of_masks_have_the_same_masks() {
    let mut all = Vec::new();
    for (name, layout) in [
        ("voc-masks", Layout::VOC_MASKS),
        ("ade20k", Layout::ADE20K),
        ("mask-pairs", Layout::MASK_PAIRS),
        ("coco-masks", Layout::COCO),
        ("cvat-masks", Layout::CVAT),
        ("labelme-masks", Layout::LABELME),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets").join(name);
        let report = check_masks(&path, false, &mut |_, _| {}).unwrap();
        assert_eq!((report.images, &report.findings[..]), (10, &[][..]), "{name}");
        let set = MaskDataset::open(&path, 1).unwrap();
        assert_eq!(
            (set.layout, &set.classes.names[..]),
            (layout, &["background", "bar", "disc"].map(String::from)[..])
        );
        let masks = Split::ALL.into_iter().flat_map(|split| set.part(split)).map(|image| image.mask().unwrap());
        all.push(masks.collect::<Vec<_>>());
    }
    let drawn = all.pop().unwrap();
    assert!(all.iter().all(|masks| *masks == all[0]));
    // Bars are polygons here too; discs are circles, not the discs of the program that drew them.
    for (drawn, own) in drawn.iter().zip(&all[0]) {
        let apart = drawn.classes.iter().zip(&own.classes).filter(|(a, b)| a != b).count();
        assert!(apart <= if own.classes.contains(&1) { 0 } else { 16 }, "{apart}");
    }
    assert!(all[0].iter().all(|mask| mask.classes.iter().any(|class| *class > 0)));
}

#[test]
fn what_is_wrong_with_masks_is_found_named_and_refused_in_one_line() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let made = || {
        let set = Set::new();
        set.pairs("images", "masks", &names, &[0, 1, 1]);
        set.file("classes.txt", "no\nyes\n");
        assert_eq!((set.kinds(), set.open().faults.len()), (Vec::new(), 0));
        set
    };
    let set = made();
    set.mask("masks/b.png", 8, 12, &[0, 1]);
    assert!(set.refused().ends_with("masks/b.png: a mask of 8x12 pixels of an image of 12x8"), "{}", set.refused());
    assert_eq!(set.kinds(), [FindingKind::SizeMismatch]);

    let set = made();
    set.mask("masks/c.png", 12, 8, &[0, 1, 0, 7]);
    let expected = "masks/c.png: index 7 at column 3, row 0 is none of the 2 classes";
    assert!(set.refused().ends_with(expected), "{}", set.refused());
    assert_eq!(set.kinds(), [FindingKind::UnknownIndex]);

    let set = made();
    fs::remove_file(set.path().join("masks/d.png")).unwrap();
    assert!(set.refused().contains("images/d.jpg: no mask for it: there is no "), "{}", set.refused());
    assert_eq!(set.kinds(), [FindingKind::MissingMask]);
    let found = set.open();
    assert_eq!((found.refuse_faults(true).unwrap(), found.train.len() + found.val.len() + found.test.len()), (1, 7));

    let set = made();
    fs::remove_file(set.path().join("images/e.jpg")).unwrap();
    assert_eq!((set.open().notes.len(), set.kinds()), (1, vec![FindingKind::OrphanLabels]));

    for (bytes, part) in [
        (&b"\xff\xd8\xff\xe0 jpeg"[..], "as JPEG"),
        (b"nothing", "no PNG"),
        (b"", "no PNG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\x01\0\0\0\x01\0\0\x08\0\0\0\0", ""),
    ] {
        let set = made();
        set.file("masks/f.png", bytes);
        assert!(set.refused().contains("masks/f.png: ") && set.refused().contains(part), "{}", set.refused());
        assert_eq!(set.kinds(), [FindingKind::UnreadableMask], "{part}");
    }

    let set = made();
    image::RgbImage::from_fn(12, 8, |x, _| image::Rgb([x as u8, 3, 0])).save(set.path().join("masks/g.png")).unwrap();
    assert!(set.refused().contains("labelmap.txt"), "{}", set.refused());
    assert_eq!(set.kinds(), [FindingKind::Refused]);

    let set = made();
    set.picture("images/h.jpg", 200, 4);
    set.mask("masks/h.png", 200, 4, &[0]);
    assert!(set.refused().contains("16 times"), "{}", set.refused());
    assert_eq!(set.kinds(), [FindingKind::ExtremeAspectRatio]);

    let set = made();
    fs::write(set.path().join("images/a.jpg"), b"nothing").unwrap();
    assert_eq!(set.kinds(), [FindingKind::UnreadableImage]);

    let set = Set::new();
    set.pairs("images", "masks", &names, &[255]);
    assert!(set.refused().contains("nothing to learn from"), "{}", set.refused());
    assert!(MaskDataset::open(set.path().join("images"), 1).unwrap_err().to_string().contains("no data set of masks"));
}
