use super::*;

fn xml(objects: &[(&str, [f64; 4])]) -> String {
    let object = |(name, [xmin, ymin, xmax, ymax]): &(&str, [f64; 4])| {
        format!(
            "<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>\
             <xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>\n<part><name>head</name></part></object>\n"
        )
    };
    let objects: String = objects.iter().map(object).collect();
    format!(
        "<?xml version=\"1.0\"?>\n<annotation><filename>other.png</filename><size><width>100</width><height>50</height>\
         <depth>3</depth></size>\n{objects}</annotation>"
    )
}

/// Images a to d with one object each, in `Annotations` and `JPEGImages`, and lists.
fn devkit(lists: &[(&str, &str)]) -> tempfile::TempDir {
    let whole = [1., 1., 100., 50.];
    let xmls = [
        ("a", xml(&[("dog", whole)])),
        ("b", xml(&[("cat", [11., 6., 20., 15.])])),
        ("c", xml(&[("dog", whole), ("cat", whole)])),
        ("d", xml(&[("cat", whole)])),
    ];
    let paths: Vec<(String, &str)> =
        xmls.iter().map(|(id, xml)| (format!("Annotations/{id}.xml"), xml.as_str())).collect();
    let lists: Vec<(String, &str)> =
        lists.iter().map(|(name, text)| (format!("ImageSets/Main/{name}.txt"), *text)).collect();
    let files: Vec<(&str, &str)> = paths.iter().chain(&lists).map(|(path, text)| (path.as_str(), *text)).collect();
    set(&files, &["JPEGImages/a.png", "JPEGImages/b.png", "JPEGImages/c.png", "JPEGImages/d.png"])
}

#[test]
fn lists_make_parts_and_corners_count_from_one() {
    let dir = devkit(&[("train", "a\nb\n"), ("val", "c\n"), ("test", "d 1\n"), ("cat_train", "a -1\nb 1\n")]);
    assert_eq!(BoxDataset::recognize(dir.path()), Some(Layout::VOC));
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(data.problems, []);
    assert_eq!(names(&data.train), ["JPEGImages/a.png", "JPEGImages/b.png"]);
    assert_eq!((names(&data.val), names(&data.test)), (vec!["JPEGImages/c.png"], vec!["JPEGImages/d.png"]));
    assert_eq!(rects(&data.train), [rect(0., 0., 100., 50.), rect(10., 5., 10., 10.)]);
    let categories: Vec<_> = data.categories.iter().map(|c| (c.id, c.name.as_str())).collect();
    assert_eq!(categories, [(1, "cat"), (2, "dog")]);
    assert!(data.train.iter().flat_map(|i| &i.objects).all(|object| !object.crowd));

    let dir = devkit(&[("trainval", "a\nb\nc\n"), ("test", "d\n")]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!((data.train.len(), data.val.len(), names(&data.test)), (2, 1, vec!["JPEGImages/d.png"]));
    let data = BoxDataset::open(devkit(&[]).path(), 1).unwrap();
    assert_eq!((data.train.len(), data.val.len(), data.test.len()), (2, 1, 1));
}

#[test]
fn lists_may_be_called_as_people_call_parts() {
    let lists = [("Train", "a\nb\n"), ("Validation", "c\n"), ("Test_Set", "d\n"), ("trainval", "a\nb\nc\n")];
    let data = BoxDataset::open(devkit(&lists).path(), 1).unwrap();
    assert_eq!((names(&data.train).len(), names(&data.val)), (2, vec!["JPEGImages/c.png"]));
    assert_eq!(names(&data.test), ["JPEGImages/d.png"]);
    let message = BoxDataset::open(devkit(&[("train", "a\n"), ("val", "b\n"), ("dev", "c\n")]).path(), 1).unwrap_err();
    assert!(message.to_string().contains("val.txt: a second list for val beside"), "{message}");
}

#[test]
fn images_with_files_beside_them_are_read() {
    let [one, two] = [xml(&[("cat", [1., 1., 10., 10.])]), xml(&[("cat", [1., 1., 20., 10.])])];
    let files = [("train/1.xml", one.as_str()), ("valid/2.xml", &two), ("test/3.xml", &one)];
    let dir = set(&files, &["train/1.png", "valid/2.png", "test/3.png"]);
    assert_eq!(BoxDataset::recognize(dir.path()), Some(Layout::VOC));
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(rects(&data.val), [rect(0., 0., 20., 10.)]);
    let flat = [("1.xml", one.as_str()), ("2.xml", &two), ("3.xml", &one), ("4.xml", &one)];
    let dir = set(&flat, &["1.png", "2.png", "3.png", "other.png", "5.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    // The fourth names its image; the fifth is not annotated.
    assert_eq!(data.train.len() + data.val.len() + data.test.len(), 4);
    let without = (ProblemKind::MissingAnnotation, Remedy::ImageDropped);
    assert!(!data.problems[0].loses_image());
    assert_eq!(kinds(&data), [without; 2]);
}

#[test]
fn corners_below_one_count_from_zero() {
    let files = [("1.xml", xml(&[("cat", [0., 0., 100., 50.])])), ("2.xml", xml(&[("cat", [1., 1., 10., 10.5])]))];
    let files: Vec<_> = files.iter().map(|(name, xml)| (*name, xml.as_str())).collect();
    let dir = set(&[&files[..], &[("3.xml", &xml(&[]))]].concat(), &["1.png", "2.png", "3.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(kinds(&data), [(ProblemKind::CountsFromZero, Remedy::TakenAsEdges)]);
    let mut found = [rects(&data.train), rects(&data.val), rects(&data.test)].concat();
    found.sort_by(|a, b| a.x.total_cmp(&b.x));
    assert_eq!(found, [rect(0., 0., 100., 50.), rect(1., 1., 9., 9.5)]);
}

#[test]
fn categories_follow_classes_txt_and_must_occur_in_train() {
    let lists = [("train", "b\n"), ("val", "a\n"), ("test", "d\n")];
    let message = error(&devkit(&lists));
    assert!(
        message.contains("a.xml: line 3: 'dog' does not occur in train") && message.contains("classes.txt"),
        "{message}"
    );
    let dir = devkit(&lists);
    fs::write(dir.path().join("classes.txt"), "dog\n\nbird\r\ncat\n").unwrap();
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let found: Vec<_> = data.categories.iter().map(|c| (c.id, c.name.as_str())).collect();
    assert_eq!(found, [(1, "dog"), (2, "bird"), (3, "cat")]);
    assert_eq!(data.train[0].objects[0].category, 2);
    fs::write(dir.path().join("classes.txt"), "cat\nbird\n").unwrap();
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(kinds(&data), [(ProblemKind::UnknownCategory, Remedy::ObjectDropped)]);
    fs::write(dir.path().join("classes.txt"), "cat\ncat\n").unwrap();
    assert!(error(&dir).contains("classes.txt: 'cat' is listed twice"));
}

#[test]
fn problems_are_mended_and_named() {
    let dir = devkit(&[("train", "a\nb\nb\nnowhere\n"), ("val", "c\n"), ("test", "c\nd\n")]);
    let odd = xml(&[("dog", [90., 1., 120., 50.])])
        .replace("</annotation>", "<object><name>dog</name></object><object><name> </name></object></annotation>")
        .replace("<width>100", "<width>200");
    fs::write(dir.path().join("Annotations/a.xml"), odd).unwrap();
    fs::remove_file(dir.path().join("JPEGImages/b.png")).unwrap();
    let message = error(&dir);
    assert!(message.contains("no images for val") && message.contains("c.png"), "{message}");
    fs::write(dir.path().join("ImageSets/Main/test.txt"), "d\n").unwrap();
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let mut found = kinds(&data);
    found.sort_by_key(|(kind, _)| ProblemKind::ALL.iter().position(|k| k == kind));
    let expected = [
        (ProblemKind::MissingImage, Remedy::ImageDropped),
        (ProblemKind::MissingAnnotation, Remedy::ImageDropped),
        (ProblemKind::SizeMismatch, Remedy::FileHolds),
        (ProblemKind::DuplicateImage, Remedy::Joined),
        (ProblemKind::UnreadableObject, Remedy::ObjectDropped),
        (ProblemKind::UnreadableObject, Remedy::ObjectDropped),
        (ProblemKind::OutsideImage, Remedy::Clipped),
        // Of the cat in val and in test.
        (ProblemKind::NotInTrain, Remedy::NothingDone),
        (ProblemKind::NotInTrain, Remedy::NothingDone),
    ];
    assert_eq!(found, expected);
    assert_eq!(rects(&data.train), [rect(89., 0., 11., 50.)]);
}

#[test]
fn bad_xml_is_an_error_that_names_the_place() {
    let deep = "<a>".repeat(200_000);
    let entities = "<!DOCTYPE a [<!ENTITY x \"boom\">]><annotation>&x;</annotation>".to_owned();
    for (xml, expected) in [
        ("<annotation>\n<object></annotation>", "2:9"),
        ("<annotations/>", "expected <annotation>, found <annotations>"),
        ("", ""),
        (deep.as_str(), ""),
        (entities.as_str(), ""),
    ] {
        let dir = devkit(&[("train", "a\nb\n"), ("val", "c\n"), ("test", "d\n")]);
        fs::write(dir.path().join("Annotations/b.xml"), xml).unwrap();
        let message = error(&dir);
        assert!(message.contains("Annotations/b.xml: ") && message.contains(expected), "{message}");
    }
    let dir = devkit(&[]);
    fs::write(dir.path().join("Annotations/b.xml"), [0xff, 0xfe]).unwrap();
    assert!(error(&dir).contains("b.xml: not UTF-8"));
}
