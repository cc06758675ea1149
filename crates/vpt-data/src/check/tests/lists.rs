//! Lists in JSON and in text.

use image::ImageFormat::Png;

use super::*;
use FindingKind as Kind;

/// Eight pictures `0.png` to `7.png` in `images`, and lists.
fn lists(files: &[(&str, &[u8])]) -> Set {
    let set = Set::new();
    for i in 0..8 {
        set.write(&format!("images/{i}.png"), picture(i, Png));
    }
    for (name, text) in files {
        set.write(name, text);
    }
    set
}

#[test]
fn json_lists_are_checked_pair_by_pair() {
    let val: (&str, &[u8]) = ("val.json", b"{\"4.png\": 0, \"5.png\": 1}");
    let test: (&str, &[u8]) = ("test.json", b"{\"6.png\": 0, \"7.png\": 1}");
    let train = |text: &str| lists(&[("train.json", text.as_bytes()), val, test]);
    train("{\"0.png\": 0,\n\"1.png\": 0,\n\"2.png\": 1, \"3.png\": 1}").holds(&[]);
    for (text, kind, line) in [
        ("{\"0.png\": 0,\n\"1.png\": 0,\n\"2.png\": 1, \"3.png\": 1,\n\"gone.png\": 1}", Kind::MissingFile, Some(4)),
        ("{\"0.png\": 0,\n\"1.png\": 0,\n\"2.png\": 1, \"3.png\": 1,\n\"./3.png\": 0}", Kind::ListedTwice, Some(4)),
        ("{\"0.png\": 0,\n\"1.png\": 0,\n\"2.png\": 1, \"3.png\": [1]}", Kind::MissingValue, Some(3)),
        ("{\"0.png\": 0,\n\"1.png\": 0,\n\"2.png\": 1, \"3.png\": 1,\n", Kind::MalformedFile, Some(4)),
        ("\u{feff}{\"0.png\": 0, \"1.png\": 0,\"2.png\": 1, \"3.png\": 1}", Kind::ByteOrderMark, Some(1)),
        ("{\"0.png\": 0, \"1.png\": 0,\"2.png\": 1, \"3.png\": 1,\n\"../x.png\": 1}", Kind::OutsideFolder, Some(2)),
    ] {
        let found = train(text).found(false);
        assert!(found.contains(&(kind, "train.json".into(), line)), "{kind}: {found:?}");
    }
    assert_eq!(check(train("{\"0.png\": 0}").path(), true, &mut |_, _| {}).unwrap().layout, Some("fgvc"));
}

#[test]
fn text_lists_are_checked_line_by_line() {
    let val: (&str, &[u8]) = ("val.txt", b"4.png 0\n5.png 1\n");
    let test: (&str, &[u8]) = ("test.txt", b"6.png 0\n7.png 1\n");
    let train = |text: &[u8]| lists(&[("train.txt", text), val, test]);
    train(b"0.png 0\n1.png 0\n2.png 1\n3.png 1\n").holds(&[]);
    for (text, kind, line) in [
        (&b"0.png 0\n1.png 0\n2.png 1\n3.png\n"[..], Kind::ShortRow, 4),
        (b"0.png 0\n1.png 0\n2.png 1\n\n3.png 1\n", Kind::BlankRow, 4),
        (b"0.png 0\n1.png 0\n2.png 1\r\n3.png 1\r\n", Kind::CrlfLineEnds, 3),
        (b"0.png 0\n1.png 0\n2.png 1\n3.png 1\n\xff.png 1\n", Kind::NotUtf8Text, 5),
        (b"0.png 0\n1.png 0\n2.png 1\n3.png 1\n0.png 0\n", Kind::ListedTwice, 5),
        (b"0.png 0\n1.png 0\n2.png 1\n3.png 3\n", Kind::LabelGap, 4),
        (b"0.png 0\n1.png 0\ngone.png 1\n3.png 1\n", Kind::MissingFile, 3),
    ] {
        let set = train(text);
        let found = set.found(false);
        assert!(found.contains(&(kind, "train.txt".into(), Some(line))), "{kind}: {found:?}");
        assert_eq!(set.found(true), found, "fast");
    }
    let found =
        lists(&[("train.txt", b"0.png 0\n1.png 0\n2.png 1\n3.png 1\n"), val, ("test.txt", b"6.png 0\n7.png 2\n")]);
    assert!(found.found(false).contains(&(Kind::ClassNotInTrain, "test.txt".into(), Some(2))));
    // What only opening the set can tell.
    let set = train(b"0.png 0\n1.png 0\n2.png 1\n3.png 1\n");
    set.write("classes.txt", "cat\n").holds(&[(Kind::Refused, "classes.txt", None)]);
}
