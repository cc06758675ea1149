//! Image folders and the images in them.

use std::fs;

use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};

use super::*;
use FindingKind as Kind;
use vpt_image::testing::png_header;

#[test]
fn images_that_cannot_be_decoded_are_told_apart() {
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    for (name, content, kind) in [
        ("x.png", b"hello, this is text".to_vec(), Kind::UnreadableImage),
        ("x.jpg", b"<html>not found</html>".to_vec(), Kind::UnreadableImage),
        ("x.jpg", Vec::new(), Kind::EmptyFile),
        ("x.png", png_header(60_000, 60_000), Kind::AbsurdSize),
        ("x.jpg", cut(picture(99, Jpeg)), Kind::TruncatedImage),
        ("x.png", cut(picture(99, Png)), Kind::TruncatedImage),
        ("x.webp", cut(picture(99, WebP)), Kind::TruncatedImage),
        ("x.gif", cut(picture(99, Gif)), Kind::TruncatedImage),
        ("x.bmp", cut(picture(99, Bmp)), Kind::TruncatedImage),
        ("x.tif", cut(picture(99, Tiff)), Kind::TruncatedImage),
    ] {
        let set = Set::classes(&["train", "val"]);
        let path = format!("train/cat/{name}");
        set.write(&path, &content).holds(&[(kind, &path, None)]);
        assert_eq!(severities(&set), [Severity::Error]);
        // In headers the same shows, unless it is behind them.
        let fast = set.found(true);
        assert!(fast == [(kind, path, None)] || (fast.is_empty() && kind == Kind::TruncatedImage), "{name}: {fast:?}");
    }
}

/// A PNG of 16 bits a value up to `most`.
fn deep(most: u16) -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    let pixel = |x, y| image::Luma([((x * 24 + y) * u32::from(most) / (23 * 24 + 19)) as u16]);
    image::ImageBuffer::from_fn(24, 20, pixel).write_to(&mut out, Png).unwrap();
    out.into_inner()
}

/// A photo as phones write them.
fn heic() -> Vec<u8> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    std::fs::read(fixtures.join("decode/heic-444.heic")).unwrap()
}

#[test]
fn images_of_little_use_are_told_apart() {
    for (name, content, kind) in [
        ("x.png", sized(7, 30, 9, Png), Kind::TinyImage),
        ("x.png", sized(9, 200, 9, Png), Kind::ExtremeAspectRatio),
        ("x.png", picture(99, Jpeg), Kind::WrongExtension),
        ("x.JPG", picture(99, WebP), Kind::WrongExtension),
        ("x.jpg", heic(), Kind::WrongExtension),
        ("x.heic", picture(99, Jpeg), Kind::WrongExtension),
        ("x.png", deep(4095), Kind::UnusedBits),
        ("x.avif", b"whatever".to_vec(), Kind::UnsupportedFile),
        ("x.bin", b"whatever".to_vec(), Kind::UnsupportedFile),
        ("x.jfif", picture(99, Jpeg), Kind::ImageNotSeen),
        ("x", picture(99, Png), Kind::ImageNotSeen),
    ] {
        let set = Set::classes(&["train", "val"]);
        let path = format!("train/cat/{name}");
        set.write(&path, &content).holds(&[(kind, &path, None)]);
        assert_eq!(severities(&set), [Severity::Warning], "{name}");
        assert_eq!(set.found(true), [(kind, path, None)], "fast");
    }
    let set = Set::classes(&["train", "val"]);
    set.write("val/dog/x.png", {
        let mut out = std::io::Cursor::new(Vec::new());
        RgbImage::from_pixel(24, 20, image::Rgb([0, 0, 7])).write_to(&mut out, Png).unwrap();
        out.into_inner()
    });
    set.holds(&[(Kind::BlankImage, "val/dog/x.png", None)]);
    Set::classes(&["train", "val"]).write("val/dog/x.png", deep(u16::MAX)).holds(&[]);
    // Huge by its header; the pixels are missing too.
    let set = Set::classes(&["train", "val"]);
    set.write("val/dog/x.png", png_header(9000, 8000));
    assert_eq!(set.found(true), [(Kind::HugeImage, "val/dog/x.png".to_owned(), None)]);
}

#[test]
fn what_is_no_fault_is_not_told() {
    let set = Set::classes(&["train", "val", "test"]);
    for name in ["train/cat/.DS_Store", "train/cat/Thumbs.db", "train/cat/desktop.ini", "train/.cache/x.png"] {
        set.write(name, "clutter");
    }
    for name in ["train/README.md", "train/cat/LICENSE", "train/cat/notes.txt", "train/cat/._1.png", "__MACOSX/x.png"] {
        set.write(name, "clutter");
    }
    for (name, format) in [("a.jpe", Jpeg), ("b.TIFF", Tiff), ("c.gif", Gif), ("d.bmp", Bmp), ("e.jpeg", Jpeg)] {
        set.write(&format!("train/dog/deep/er/{name}"), picture(u32::from(name.as_bytes()[0]), format));
    }
    set.holds(&[]);
}

#[test]
fn equal_content_is_told_by_where_it_is() {
    let copy = |set: &Set, from: &str, to: &str| {
        fs::copy(set.path().join(from), set.path().join(to)).unwrap();
    };
    for (to, kind, severity) in [
        ("train/cat/copy.png", Kind::DuplicateImage, Severity::Warning),
        ("test/cat/copy.png", Kind::DuplicateAcrossSplits, Severity::Error),
        ("train/dog/copy.png", Kind::DuplicateOtherLabel, Severity::Error),
        ("val/dog/copy.png", Kind::DuplicateOtherLabel, Severity::Error),
    ] {
        let set = Set::classes(&["train", "val", "test"]);
        copy(&set, "train/cat/1.png", to);
        set.holds(&[(kind, to, None)]);
        assert_eq!(severities(&set), [severity]);
        assert_eq!(set.found(true), [], "contents are not read");
    }
    let set = Set::classes(&[""]);
    copy(&set, "cat/1.png", "cat/2.png");
    set.holds(&[(Kind::DuplicateImage, "cat/2.png", None)]);
    let report = check(set.path(), false, &mut |_, _| {}).unwrap();
    assert!(report.findings[0].message.contains("cat/1.png; the two may be drawn into train and test"));
}

#[test]
fn classes_are_compared_across_parts() {
    let set = Set::classes(&["train", "val", "test"]);
    set.write("val/owl/1.png", picture(101, Png)).write("val/owl/2.png", picture(102, Png));
    fs::remove_dir_all(set.path().join("test/dog")).unwrap();
    set.write("train/cow/1.png", picture(103, Png));
    set.holds(&[
        (Kind::ClassNotInSplit, "test", None),
        (Kind::OneImageClass, "train/cow", None),
        (Kind::ClassNotInSplit, "val", None),
        (Kind::ClassNotInTrain, "val/owl", None),
    ]);

    let set = Set::classes(&["train", "val"]);
    for i in 0..2 {
        set.write(&format!("train/Cat/{i}.png"), picture(110 + i, Png));
        set.write(&format!("val/Dog/{i}.png"), picture(120 + i, Png));
    }
    set.holds(&[(Kind::SimilarClassNames, "train/cat", None), (Kind::SimilarClassNames, "val/Dog", None)]);
    assert_eq!(severities(&set), [Severity::Warning, Severity::Error]);
}

#[test]
fn classes_that_cannot_be_learned_are_told() {
    let set = Set::classes(&[""]);
    fs::create_dir(set.path().join("owl")).unwrap();
    set.holds(&[(Kind::EmptyClass, "owl", None)]);
    let set = Set::classes(&["train", "val"]);
    fs::create_dir(set.path().join("train/owl")).unwrap();
    set.write("val/cow/readme.txt", "no images");
    set.holds(&[(Kind::EmptyClass, "train/owl", None), (Kind::EmptyClass, "val/cow", None)]);
    assert_eq!(severities(&set), [Severity::Error, Severity::Warning]);
    // A part without anything is not taken for a class.
    let set = Set::classes(&["val"]);
    fs::create_dir_all(set.path().join("train/cat")).unwrap();
    set.holds(&[(Kind::EmptyClass, "train/cat", None)]);

    let set = Set::classes(&[""]);
    fs::remove_dir_all(set.path().join("dog")).unwrap();
    set.holds(&[(Kind::SingleClass, "", None)]);

    let set = Set::new();
    for (number, class) in ["0", "1", "3", "4"].into_iter().enumerate() {
        for i in 0..4 {
            set.write(&format!("{class}/{i}.png"), picture(number as u32 * 10 + i, Png));
        }
    }
    set.holds(&[(Kind::LabelGap, "3", None)]);

    let set = Set::classes(&[""]);
    for class in ["cat", "dog"] {
        (2..=4).for_each(|i| fs::remove_file(set.path().join(format!("{class}/{i}.png"))).unwrap());
    }
    let found = set.found(false);
    assert!(found.contains(&(Kind::OneImageClass, String::new(), None)), "{found:?}");
}

#[test]
fn folders_of_parts_are_found_out() {
    let set = Set::classes(&["train", "val", "valid"]);
    set.holds(&[(Kind::AmbiguousSplit, "valid", None)]);
    let set = Set::classes(&["val", "test"]);
    let found = set.found(false);
    assert!(found.contains(&(Kind::NoTrain, String::new(), None)), "{found:?}");
    let set = Set::classes(&["train", "val"]);
    set.write("train/1.png", picture(99, Png)).holds(&[(Kind::StrayImage, "train/1.png", None)]);
}

#[test]
fn all_is_found_at_once() {
    let set = Set::classes(&["train", "val"]);
    set.write("train/cat/a.png", "").write("train/owl/x.avif", "").write("val/cow/1.png", picture(200, Jpeg));
    set.holds(&[
        (Kind::EmptyFile, "train/cat/a.png", None),
        (Kind::EmptyClass, "train/owl", None),
        (Kind::UnsupportedFile, "train/owl/x.avif", None),
        (Kind::ClassNotInTrain, "val/cow", None),
        (Kind::WrongExtension, "val/cow/1.png", None),
    ]);
}

#[cfg(unix)]
#[test]
fn links_and_odd_files_are_told() {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    let set = Set::classes(&["train", "val"]);
    let at = |name: &str| set.path().join(name);
    symlink("nowhere.png", at("train/cat/broken.png")).unwrap();
    symlink("itself.png", at("train/cat/itself.png")).unwrap();
    symlink(".", at("train/cat/loop")).unwrap();
    fs::create_dir(at("train/dog/deep")).unwrap();
    symlink("deep", at("train/dog/twice")).unwrap();
    let _socket = UnixListener::bind(at("val/cat/socket.png")).unwrap();
    set.holds(&[
        (Kind::BrokenLink, "train/cat/broken.png", None),
        (Kind::LinkLoop, "train/cat/itself.png", None),
        (Kind::LinkLoop, "train/cat/loop", None),
        (Kind::LinkedTwice, "train/dog/twice", None),
        (Kind::SpecialFile, "val/cat/socket.png", None),
    ]);
}

#[cfg(unix)]
#[test]
fn links_between_many_folders_do_not_multiply() {
    let set = Set::classes(&[""]);
    let at = |name: String| set.path().join(name);
    for i in 0..12 {
        fs::create_dir(at(format!("cat/{i}"))).unwrap();
        (0..12).for_each(|j| std::os::unix::fs::symlink(format!("../{j}"), at(format!("cat/{i}/{j}"))).unwrap());
    }
    let found = set.found(false);
    assert!(found.len() <= 12 * 12 && found.iter().any(|(kind, ..)| *kind == Kind::LinkedTwice), "{}", found.len());
}

#[cfg(unix)]
#[test]
fn names_are_looked_at() {
    use std::os::unix::ffi::OsStrExt;
    let set = Set::classes(&["train", "val"]);
    let folder = set.path().join("train/cat");
    fs::write(folder.join(std::ffi::OsStr::from_bytes(b"caf\xe9.png")), picture(99, Png)).unwrap();
    fs::write(folder.join("line\nbreak.png"), picture(98, Png)).unwrap();
    set.write("train/cow /1.png", picture(97, Png)).write("train/cow /2.png", picture(96, Png));
    set.write("val/cow /1.png", picture(95, Png));
    set.holds(&[
        (Kind::NonUtf8Name, "train/cat/caf\u{fffd}.png", None),
        (Kind::OddName, "train/cat/line\nbreak.png", None),
        (Kind::OddName, "train/cow ", None),
        (Kind::OddName, "val/cow ", None),
    ]);
    let report = check(set.path(), false, &mut |_, _| {}).unwrap();
    assert!(serde_json::to_string(&report).unwrap().contains("caf\u{fffd}.png"), "such a name is no reason to fail");
}
