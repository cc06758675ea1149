//! CSV, TSV and `split_zhou` files.

use image::ImageFormat::{Jpeg, Png};

use super::*;
use FindingKind as Kind;

/// Eight pictures `0.png` to `7.png`, and a table.
fn table(name: &str, text: impl AsRef<[u8]>) -> Set {
    let set = Set::new();
    (0..8).for_each(|i| {
        set.write(&format!("{i}.png"), picture(i, Png));
    });
    set.write(name, text);
    set
}

/// A good table: a header in line 1, and eight rows, labels in turn.
fn rows() -> Vec<String> {
    let row = |i: usize| format!("{i}.png,{}", ["cat", "dog"][i % 2]);
    std::iter::once("path,label".to_owned()).chain((0..8).map(row)).collect()
}

fn with(change: impl FnOnce(&mut Vec<String>)) -> Set {
    let mut rows = rows();
    change(&mut rows);
    table("t.csv", rows.join("\n") + "\n")
}

#[test]
fn rows_are_told_with_their_line() {
    with(|_| ()).holds(&[]);
    for (change, kind, line) in [
        ((|r| r.insert(3, String::new())) as fn(&mut Vec<String>), Kind::BlankRow, 4),
        (|r| r.insert(5, " , ".into()), Kind::BlankRow, 6),
        (|r| r[4] = "3.png".into(), Kind::ShortRow, 5),
        (|r| r[4] += ",extra", Kind::LongRow, 5),
        (|r| r[4] = "3.png,".into(), Kind::MissingValue, 5),
        (|r| r[4] = ",dog".into(), Kind::MissingValue, 5),
        (|r| r.push("3.png,dog".into()), Kind::ListedTwice, 10),
        (|r| r.push("./3.png,cat".into()), Kind::ListedTwice, 10),
        (|r| r.push("gone.png,cat".into()), Kind::MissingFile, 10),
        (|r| r.push("sub\\gone.png,cat".into()), Kind::MissingFile, 10),
        (|r| r.push(".,cat".into()), Kind::SpecialFile, 10),
        (|r| r[7] += "s", Kind::OneImageClass, 8),
        (|r| r[0] = "path,kind".into(), Kind::MalformedFile, 1),
        // Behind an empty line, too.
        (|r| r.extend([String::new(), "gone.png,cat".into()]), Kind::MissingFile, 11),
    ] {
        let set = with(change);
        let found = set.found(false);
        assert!(found.contains(&(kind, "t.csv".into(), Some(line))), "{kind}: {found:?}");
        assert!(found.len() == 1 || kind == Kind::MissingFile, "{found:?}");
        assert_eq!(set.found(true), found, "fast");
    }
}

#[test]
fn a_path_may_not_lead_out() {
    let set = Set::new();
    set.write("other.png", picture(99, Png));
    (0..8).for_each(|i| {
        set.write(&format!("set/{i}.png"), picture(i, Png));
    });
    let text = rows().join("\n") + "\n../other.png,cat\n";
    set.write("set/t.csv", text);
    let report = check(&set.path().join("set"), false, &mut |_, _| {}).unwrap();
    let [finding] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!((finding.kind, finding.line, finding.severity), (Kind::OutsideFolder, Some(10), Severity::Warning));
}

#[test]
fn encodings_and_line_ends_are_told() {
    let text = rows().join("\n") + "\n";
    for (bytes, kind, line) in [
        (text.replace('\n', "\r\n").into_bytes(), Kind::CrlfLineEnds, 1),
        (text.replacen("1.png,dog\n", "1.png,dog\r\n", 1).into_bytes(), Kind::CrlfLineEnds, 3),
        (["\u{feff}", &text].concat().into_bytes(), Kind::ByteOrderMark, 1),
        ([text.trim_end_matches("dog\n").as_bytes(), b"caf\xe9\n"].concat(), Kind::NotUtf8Text, 9),
    ] {
        let found = table("t.csv", &bytes).found(false);
        assert!(found.contains(&(kind, "t.csv".into(), Some(line))), "{found:?}");
        assert!(found.len() == 1 || kind == Kind::NotUtf8Text, "{found:?}");
    }
    // Empty lines of a Windows file are where they are.
    let windows = text.replacen("1.png,dog\n", "1.png,dog\n\n", 1).replace('\n', "\r\n");
    table("t.csv", windows).holds(&[(Kind::CrlfLineEnds, "t.csv", Some(1)), (Kind::BlankRow, "t.csv", Some(4))]);
}

#[test]
fn pictures_that_no_row_speaks_of_are_counted() {
    let set = with(|rows| rows.truncate(7));
    let report = check(set.path(), false, &mut |_, _| {}).unwrap();
    let [finding] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!((finding.kind, finding.severity), (Kind::NotUsed, Severity::Warning));
    assert!(finding.message.starts_with("nothing is said of 2 pictures in "), "{}", finding.message);
    assert!(finding.message.ends_with("such as 6.png"), "{}", finding.message);
}

#[test]
fn parts_and_labels_of_tables_are_compared() {
    let split = |rows: &str| {
        let set = table("t.csv", format!("path,label,split\n{rows}"));
        for name in ["6.png", "7.png"].into_iter().filter(|name| !rows.contains(*name)) {
            std::fs::remove_file(set.path().join(name)).unwrap();
        }
        set
    };
    let good = "0.png,0,train\n1.png,1,train\n2.png,0,train\n3.png,1,train\n4.png,0,val\n5.png,1,val\n";
    split(good).holds(&[]);
    split(&format!("{good}6.png,0,extra\n")).holds(&[(Kind::UnknownSplit, "t.csv", Some(8))]);
    split(&format!("{good}6.png,7,val\n")).holds(&[(Kind::ClassNotInTrain, "t.csv", Some(8))]);
    split(&format!("{good}6.png,3,train\n7.png,3,train\n"))
        .holds(&[(Kind::ClassNotInSplit, "t.csv", None), (Kind::LabelGap, "t.csv", Some(8))]);
    // A copy under another name.
    let set = split(&format!("{good}6.png,0,test\n7.png,1,test\n"));
    set.write("6.png", picture(2, Png)).holds(&[(Kind::DuplicateAcrossSplits, "6.png", None)]);

    let two = "path,label,class_name\n0.png,0,cat\n1.png,1,dog\n2.png,0,cat\n3.png,1,dog\n4.png,0,cat\n5.png,1,dog\n";
    let more = "6.png,0,cat\n7.png,1,dog\n";
    table("t.csv", format!("{two}{more}")).holds(&[]);
    table("t.csv", format!("{two}{}", more.replace("1,dog", "1,cow"))).holds(&[(
        Kind::LabelNameMismatch,
        "t.csv",
        Some(9),
    )]);

    let set = table("train.csv", "0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n");
    set.write("val.csv", "4.png,cat\n5.png,dog\n3.png,dog\n").write("valid.tsv", "6.png\tcat\n7.png\tdog\n");
    set.write("test.csv", "path,label,split\n8.png,Cat,train\n").write("8.png", picture(8, Png));
    let found = set.found(false);
    for expected in [
        (Kind::ListedTwice, "val.csv", Some(3)),
        (Kind::AmbiguousSplit, "valid.tsv", None),
        (Kind::UnknownSplit, "test.csv", Some(2)),
        (Kind::SimilarClassNames, "test.csv", Some(2)),
        (Kind::ClassNotInSplit, "test.csv", None),
    ] {
        assert!(found.contains(&(expected.0, expected.1.to_owned(), expected.2)), "{expected:?}: {found:?}");
    }
}

#[test]
fn images_of_a_table_are_looked_at() {
    let set = with(|_| ());
    set.write("2.png", "").write("3.png", picture(77, Jpeg));
    set.holds(&[(Kind::EmptyFile, "2.png", None), (Kind::WrongExtension, "3.png", None)]);
}

/// A good `split_zhou` file, a line an entry: train from line 2, val from line 7, test from line 10.
fn zhou(change: impl Fn(String) -> String) -> Set {
    let entry = |i: usize| format!("[\"{i}.png\", {}, \"{}\"]", i % 2, ["cat", "dog"][i % 2]);
    let part = |range: std::ops::Range<usize>| range.map(entry).collect::<Vec<_>>().join(",\n");
    let text =
        format!("{{\"train\": [\n{}],\n\"val\": [\n{}],\n\"test\": [\n{}]}}\n", part(0..4), part(4..6), part(6..8));
    table("split_zhou_Set.json", change(text))
}

#[test]
fn entries_of_split_zhou_are_told_with_their_line() {
    const FILE: &str = "split_zhou_Set.json";
    zhou(|text| text).holds(&[]);
    for (from, to, kind, line) in [
        ("[\"3.png\", 1, \"dog\"]", "[\"3.png\", 1, \"cow\"]", Kind::LabelNameMismatch, 5),
        ("[\"5.png\", 1, \"dog\"]", "[\"5.png\", 0, \"dog\"]", Kind::LabelNameMismatch, 8),
        ("[\"5.png\", 1, \"dog\"]", "[\"5.png\", 7, \"cow\"]", Kind::ClassNotInTrain, 8),
        ("\"5.png\"", "\"0.png\"", Kind::ListedTwice, 8),
        ("\"5.png\"", "\"gone.png\"", Kind::MissingFile, 8),
        ("[\"5.png\", 1, \"dog\"]", "[\"5.png\", \"dog\"]", Kind::MalformedFile, 8),
        ("[\"4.png\", 0, \"cat\"],", "[\"4.png\", 0, \"cat\"]", Kind::MalformedFile, 8),
    ] {
        let found = zhou(|text| text.replacen(from, to, 1)).found(false);
        assert!(found.contains(&(kind, FILE.into(), Some(line))), "{to}: {found:?}");
        assert!(
            found.iter().all(|(other, ..)| *other == kind
                || *other == Kind::ClassNotInSplit
                || *other == Kind::OneImageClass
                || *other == Kind::ClassNotInTrain),
            "{to}: {found:?}"
        );
    }
    zhou(|text| text.replace(", 1,", ", 2,")).holds(&[(Kind::LabelGap, FILE, Some(3))]);
}
