use super::*;

const NAMES: &str = "nc: 2\nnames: [cat, dog]\n";

/// Three images with a box each at other places, and one without a file of labels.
fn labelled(yaml: &str, folders: [&str; 3]) -> tempfile::TempDir {
    let images = folders.map(|folder| format!("{folder}/a.png"));
    let label = |image: &str| image.replace("images/", "labels/").replace(".png", ".txt");
    let labels: Vec<_> = images.iter().map(|image| label(image)).collect();
    let mut files = vec![("data.yaml", yaml)];
    for (name, text) in labels.iter().zip(["1 0.5 0.5 0.2 0.4\n", "1 0.1 0.1 0.2 0.2", "1 0.1 0.2 0.3 0.2 0.2 0.9"]) {
        files.push((name.as_str(), text));
    }
    let empty = format!("{}/b.png", folders[0]);
    let images: Vec<&str> = images.iter().map(String::as_str).chain([empty.as_str()]).collect();
    set(&files, &images)
}

fn is_whole(dir: &tempfile::TempDir) {
    assert_eq!(BoxDataset::recognize(dir.path()), Some(Layout::YOLO));
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(data.problems, []);
    let categories: Vec<_> = data.categories.iter().map(|c| (c.id, c.name.as_str())).collect();
    assert_eq!(categories, [(1, "cat"), (2, "dog")]);
    assert_eq!((data.train.len(), data.train[0].objects[0].category, data.train[0].id), (2, 1, 1));
    assert_eq!((data.train[1].objects.len(), data.train[1].id), (0, 2));
    assert_eq!(rects(&data.train), [rect(40., 15., 20., 20.)]);
    assert_eq!(rects(&data.val), [rect(0., 0., 20., 10.)]);
    assert_eq!(rects(&data.test), [rect(10., 10., 20., 35.)]);
}

#[test]
fn folders_are_found_as_ultralytics_and_roboflow_name_them() {
    let ultralytics = ["images/train", "images/val", "images/test"];
    let roboflow = ["train/images", "valid/images", "test/images"];
    for (yaml, folders) in [
        ("path: ../moved/away\ntrain: images/train\nval: images/val\ntest: images/test\n", ultralytics),
        ("train: [images/train]\nvalidation: images/val\ntest:\n  - images/test\n", ultralytics),
        ("train: ../train/images\nval: ../valid/images\ntest: ../test/images\n", roboflow),
        ("train: train\nval: valid\ntest: test # a comment\nroboflow:\n  version: 1\n", roboflow),
    ] {
        is_whole(&labelled(&format!("{yaml}{NAMES}"), folders));
        is_whole(&labelled(&format!("{yaml}names:\n  1: dog\n  0: 'cat'\n"), folders));
    }
    let dir = labelled(&format!("path: inner\ntrain: t\nval: v\ntest: w\n{NAMES}"), ["inner/t", "inner/v", "inner/w"]);
    is_whole(&dir);
    // Under another name, and from outside through the file.
    fs::rename(dir.path().join("data.yaml"), dir.path().join("pets.yaml")).unwrap();
    is_whole(&dir);
    let data = BoxDataset::open(dir.path().join("pets.yaml"), 1).unwrap();
    assert_eq!((data.name.as_str(), names(&data.val)), ("pets", vec!["inner/v/a.png"]));
}

#[test]
fn what_looks_like_labels_of_another_kind_is_said() {
    let yaml = format!("train: images/train\nval: images/val\n{NAMES}");
    let images = ["images/train/a.png", "images/val/a.png"];
    let refused = |labels: &[(&str, &str)]| {
        let files: Vec<(&str, &str)> = labels.iter().copied().chain([("data.yaml", yaml.as_str())]).collect();
        BoxDataset::open(set(&files, &images).path(), 1).unwrap_err().to_string()
    };
    let message = refused(&[("labels/train/a.txt", "0 50 25 20 10\n"), ("labels/val/a.txt", "1 40 20 20 10\n")]);
    assert!(message.contains("labels/train/a.txt: all boxes are larger than their images"), "{message}");
    for other in ["labels/train/a.TXT", "labels/train/a.png.txt"] {
        let message = refused(&[(other, "0 .5 .5 .2 .2\n")]);
        assert!(message.contains("it would be") && message.ends_with(other), "{message}");
    }
}

#[test]
fn a_part_is_measured_where_the_others_are_not_there() {
    let yaml = format!("train: images/train\nval: images/val\ntest: images/test\n{NAMES}");
    let folders = ["images/train", "images/val", "images/test"];
    let measured = |dir: &tempfile::TempDir, split| {
        BoxDataset::open_with(dir.path(), 1, MadeParts::Measured(MeasuredPart { split, learned: None }))
    };
    let dir = labelled(&yaml, folders);
    fs::remove_dir_all(dir.path().join("images/train")).unwrap();
    let message = BoxDataset::open(dir.path(), 1).unwrap_err().to_string();
    assert!(message.contains("data.yaml: train: images/train is not there, seen from"), "{message}");
    let data = measured(&dir, Split::Test).unwrap();
    assert_eq!((rects(&data.test), data.train.len(), &data.problems[..]), (vec![rect(10., 10., 20., 35.)], 0, &[][..]));
    assert_eq!(rects(&measured(&dir, Split::Val).unwrap().val), [rect(0., 0., 20., 10.)]);
    fs::remove_dir_all(dir.path().join("images/val")).unwrap();
    assert_eq!(measured(&dir, Split::Test).unwrap().test.len(), 1);
    let message = measured(&dir, Split::Val).unwrap_err().to_string();
    assert!(message.contains("val: images/val is not there"), "{message}");
    // Train is there, but not val.
    let dir = labelled(&yaml, folders);
    fs::remove_dir_all(dir.path().join("images/val")).unwrap();
    assert!(BoxDataset::open(dir.path(), 1).unwrap_err().to_string().contains("val: images/val is not there"));
    assert_eq!(measured(&dir, Split::Test).unwrap().test.len(), 1);
}

#[test]
fn lists_name_images_and_missing_ones_are_problems() {
    let dir = labelled(
        &format!("train: train.txt\nval: lists/val.txt\ntest: images/test\n{NAMES}"),
        ["images/train", "images/val", "images/test"],
    );
    let absolute = dir.path().join("images/val/a.png");
    fs::create_dir(dir.path().join("lists")).unwrap();
    fs::write(dir.path().join("lists/val.txt"), absolute.to_str().unwrap()).unwrap();
    fs::write(dir.path().join("train.txt"), "./images/train/a.png\nimages/train/b.png\r\n\n").unwrap();
    is_whole(&dir);
    fs::write(dir.path().join("train.txt"), "images/train/a.png\nimages/train/a.png\nimages/gone.png\n").unwrap();
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let found = [(ProblemKind::DuplicateImage, Remedy::Joined), (ProblemKind::MissingImage, Remedy::ImageDropped)];
    assert_eq!(kinds(&data), found);
    assert!(data.problems[1].to_string().contains("train.txt, line 3: "), "{}", data.problems[1]);
}

#[test]
fn a_val_that_repeats_train_is_none() {
    let files = [("data.yaml", "train: images\nval: images\nnames: [a]\n"), ("labels/0.txt", "0 .5 .5 .1 .1\n")];
    let images: Vec<String> = (0..10).map(|i| format!("images/{i}.png")).collect();
    let dir = set(&files, &images.iter().map(String::as_str).collect::<Vec<_>>());
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(kinds(&data), [(ProblemKind::ImageInTwoParts, Remedy::PartIgnored)]);
    assert_eq!((data.train.len(), data.val.len(), data.test.len()), (6, 2, 2));
}

#[test]
fn lines_that_cannot_be_used_are_problems_with_their_place() {
    let dir = labelled(
        &format!("train: images/train\nval: images/val\ntest: images/test\n{NAMES}"),
        ["images/train", "images/val", "images/test"],
    );
    let lines = "1 0.5 0.5 0.1 0.1\n\n2 0.5 0.5 0.1 0.1\n1 0.5 0.5\nzero 1 1 1 1\n1 0.5 nan 0.1 0.1\n1 1 0.5 0.5 0.5\n";
    fs::write(dir.path().join("labels/train/a.txt"), lines).unwrap();
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    assert_eq!(rects(&data.train), [rect(45., 22.5, 10., 5.), rect(75., 12.5, 25., 25.)]);
    let mut found: Vec<_> = data.problems.iter().map(|p| (p.place, p.kind)).collect();
    found.sort_by_key(|(place, _)| format!("{place:?}"));
    let line = |n| Some(PlaceInFile::Line(n));
    let expected = [
        (line(3), ProblemKind::UnknownCategory),
        (line(4), ProblemKind::UnreadableObject),
        (line(5), ProblemKind::UnreadableObject),
        (line(6), ProblemKind::NotFinite),
        (line(7), ProblemKind::OutsideImage),
    ];
    assert_eq!(found, expected);
    assert!(data.problems.iter().all(|p| p.file.ends_with("labels/train/a.txt")));
    // Bytes that are no text are lines that cannot be read; then val and test have a class that train has not.
    fs::write(dir.path().join("labels/train/a.txt"), [0xff, 0xfe, 0, 10]).unwrap();
    let absent = (ProblemKind::NotInTrain, Remedy::NothingDone);
    assert_eq!(
        kinds(&BoxDataset::open(dir.path(), 1).unwrap()),
        [(ProblemKind::UnreadableObject, Remedy::ObjectDropped), absent, absent]
    );
}

#[test]
fn names_are_text_whatever_they_look_like() {
    let yaml = "train: images\nnames: [0, yes, 1.50, 'null', \"a: b\"]\n";
    let files = [("data.yaml", yaml), ("labels/1.txt", "0 .5 .5 .1 .1\n")];
    let dir = set(&files, &["images/1.png", "images/2.png", "images/3.png"]);
    let data = BoxDataset::open(dir.path(), 1).unwrap();
    let found: Vec<_> = data.categories.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(found, ["0", "yes", "1.50", "null", "a: b"]);
}

#[test]
fn a_bad_data_yaml_is_an_error_that_names_the_field() {
    let deep = format!("train: {}", "[".repeat(100_000));
    let many = "&a [x,x,x,x,x,x,x,x,x]".to_owned();
    let bomb = format!(
        "train: images\na: {many}\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
         d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
         g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nnames: *g\n"
    );
    for (yaml, expected) in [
        ("train: images\n", "names no classes"),
        ("train: images\nnames: {0: a, 2: b}\n", "no class 1"),
        ("train: images\nnames: [a, b]\nnc: 3\n", "nc is 3"),
        ("train: images\nnames: [a, a]\n", "two classes are called 'a'"),
        ("train: elsewhere\nnames: [a]\n", "train: elsewhere is not there"),
        ("val: images\ntest: images\nnames: [a]\n", ""),
        ("names: [a]\n", "no images are listed"),
        ("train: images\nnames: [a\n", "line"),
        ("- 1\n- 2\n", ""),
        ("", ""),
        ("train: images\nnames: [a]\nnames: [b]\n", "names"),
        (&deep, ""),
        (&bomb, ""),
    ] {
        let message = error(&set(&[("data.yaml", yaml)], &["images/1.png", "images/2.png"]));
        assert!(message.contains("data.yaml: ") || message.contains("data set"), "{message}");
        assert!(message.contains(expected) && message.len() < 400, "{expected}: {message}");
    }
}
