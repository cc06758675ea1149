//! Tables as the hub has them, written here, whole and damaged.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use image::{ImageFormat, RgbImage};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::boxes::{BoxDataset, BoxLayout, ProblemKind, convert};
use crate::check::{FindingKind, check};
use crate::{Dataset, Layout, Split};

const CLASS_SCHEMA: &str =
    "message schema { optional group image { optional binary bytes; optional binary path (STRING); }
     optional int64 label; }";
const CLASS_FEATURES: &str = r#"{"info": {"features": {"image": {"_type": "Image"},
     "label": {"names": ["owl", "cat"], "_type": "ClassLabel"}}}}"#;
const BOX_SCHEMA: &str =
    "message schema { optional group image { optional binary bytes; optional binary path (STRING); }
     optional group objects { optional group bbox (LIST) { repeated group list { optional group element (LIST) {
     repeated group list { optional float element; } } } }
     optional group category (LIST) { repeated group list { optional int64 element; } } } }";

fn picture(seed: u32) -> Vec<u8> {
    let pixel = |x, y| image::Rgb([(x * 9 + seed) as u8, (y * 7 + seed * 31) as u8, (x * y) as u8]);
    let mut out = std::io::Cursor::new(Vec::new());
    RgbImage::from_fn(24, 20, pixel).write_to(&mut out, ImageFormat::Png).unwrap();
    out.into_inner()
}

/// A table of pictures in groups of five rows, called by `path` if it says so, whose other columns `write` writes for the rows
/// of a group.
fn table(
    path: &Path,
    (schema, features): (&str, &str),
    pictures: &[Vec<u8>],
    name: impl Fn(usize) -> Option<String>,
    mut write: impl FnMut(usize, &mut parquet::file::writer::SerializedColumnWriter<'_>, std::ops::Range<usize>),
) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let remark = KeyValue { key: "huggingface".into(), value: Some(features.into()) };
    let properties = WriterProperties::builder()
        .set_key_value_metadata(Some(vec![remark]))
        .set_compression(Compression::SNAPPY)
        .set_data_page_row_count_limit(2)
        .set_write_batch_size(1)
        .build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for start in (0..pictures.len()).step_by(5) {
        let rows = start..(start + 5).min(pictures.len());
        let mut group = file.next_row_group().unwrap();
        let mut number = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            let texts = match number {
                0 => Some(rows.clone().map(|row| Some(ByteArray::from(pictures[row].clone()))).collect::<Vec<_>>()),
                1 => Some(rows.clone().map(|row| name(row).map(|name| ByteArray::from(name.as_str()))).collect()),
                _ => None,
            };
            if let Some(texts) = texts {
                let defs: Vec<i16> = texts.iter().map(|text| if text.is_some() { 2 } else { 1 }).collect();
                let values: Vec<ByteArray> = texts.into_iter().flatten().collect();
                column.typed::<ByteArrayType>().write_batch(&values, Some(&defs), None).unwrap();
            } else {
                write(number, &mut column, rows.clone());
            }
            column.close().unwrap();
            number += 1;
        }
        group.close().unwrap();
    }
    file.close().unwrap();
}

/// A table of one class a picture, all different pictures from `seed` on.
fn classes(path: &Path, seed: u32, labels: &[i64]) {
    let pictures: Vec<Vec<u8>> = (0..labels.len() as u32).map(|i| picture(seed + i)).collect();
    table(
        path,
        (CLASS_SCHEMA, CLASS_FEATURES),
        &pictures,
        |row| Some(format!("a/{row}.png")),
        |_, column, rows| {
            let defs = vec![1; rows.len()];
            column.typed::<Int64Type>().write_batch(&labels[rows], Some(&defs), None).unwrap();
        },
    );
}

/// A set of three files, and the same in folders.
fn set(dir: &Path) {
    for (part, seed, count) in [("train", 0, 12), ("validation", 40, 6), ("test", 80, 7)] {
        let labels: Vec<i64> = (0..count).map(|i| i % 2).collect();
        classes(&dir.join(format!("table/data/{part}-00000-of-00001.parquet")), seed, &labels);
        for (i, label) in labels.iter().enumerate() {
            let folder = dir.join("folder").join(part).join(["owl", "cat"][*label as usize]);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("{i}.png")), picture(seed + i as u32)).unwrap();
        }
    }
}

#[test]
fn a_table_is_the_same_set_as_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path());
    let (table, folder) = (dir.path().join("table"), dir.path().join("folder"));
    let data = Dataset::open(&table, 1).unwrap();
    assert_eq!((data.layout, &data.classes[..]), (Layout::PARQUET, &["cat".to_owned(), "owl".into()][..]));
    assert_eq!(data.test[6].id, "data/test-00000-of-00001.parquet/6.png");
    let hash = data.content_hash().unwrap();
    assert_eq!(hash, Dataset::open(folder, 1).unwrap().content_hash().unwrap());
    // Backwards, so that pages are not asked for in their order.
    for (row, sample) in data.train.iter().enumerate().rev() {
        let expected = vpt_image::decode::decode_bytes(&picture(row as u32)).unwrap();
        assert_eq!(sample.load().unwrap(), expected, "row {row}");
    }
    let report = check(&table, false, &mut |_, _| {}).unwrap();
    assert_eq!((report.layout, report.images, &report.findings[..]), (Some("parquet"), 25, &[][..]));
}

#[test]
fn parts_whose_labels_are_kept_back_and_missing_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    classes(&dir.path().join("default/train/0000.parquet"), 0, &[0, 1, 0, 1, 0, 1, 0, 1]);
    classes(&dir.path().join("default/train/0002.parquet"), 20, &[0, 1, 0, 1, 0, 1, 0, 1]);
    classes(&dir.path().join("default/test/0000.parquet"), 40, &[-1, -1, -1]);
    let data = Dataset::open(dir.path(), 1).unwrap();
    assert_eq!([&data.train, &data.val, &data.test].map(Vec::len).iter().sum::<usize>(), 16);
    let found = check(dir.path(), false, &mut |_, _| {}).unwrap().findings;
    let kinds: Vec<_> = found.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::MissingValue, FindingKind::MissingFile], "{found:?}");
    assert!(found[1].message.contains("1 file is missing beside it"), "{}", found[1].message);
    // One of a part with labels has none.
    classes(&dir.path().join("default/test/0000.parquet"), 40, &[1, -1, 0]);
    let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
    assert!(message.contains("0000.parquet: 1.png: no class"), "{message}");
    classes(&dir.path().join("default/test/0000.parquet"), 40, &[1, 7]);
    let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
    assert!(message.contains("row 1, label: class 7 of 2"), "{message}");
}

/// A set whose picture `row` has `row % 3` boxes; those of row 4 reach past the border.
fn boxed(path: &Path, rows: usize) {
    let pictures: Vec<Vec<u8>> = (0..rows as u32).map(picture).collect();
    let features =
        r#"{"info": {"features": {"objects": {"feature": {"category": {"names": ["x", "y"]}}, "_type": "Sequence"}}}}"#;
    table(
        path,
        (BOX_SCHEMA, features),
        &pictures,
        |_| None,
        |number, column, rows| {
            let (mut defs, mut reps) = (Vec::new(), Vec::new());
            let (mut corners, mut ids) = (Vec::new(), Vec::new());
            for row in rows {
                let count = row % 3;
                let values = if number == 2 { 4 } else { 1 };
                if count == 0 {
                    defs.push(1);
                    reps.push(0);
                }
                for object in 0..count {
                    ids.push(object as i64);
                    corners.extend([1., 2., if row == 4 { 90. } else { 5. }, 3. + object as f32]);
                    for value in 0..values {
                        defs.push(if number == 2 { 6 } else { 4 });
                        reps.push(if value > 0 { 2 } else { i16::from(object > 0) });
                    }
                }
            }
            if number == 2 {
                column.typed::<FloatType>().write_batch(&corners, Some(&defs), Some(&reps)).unwrap();
            } else {
                column.typed::<Int64Type>().write_batch(&ids, Some(&defs), Some(&reps)).unwrap();
            }
        },
    );
}

#[test]
fn boxes_are_read_and_converted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("set");
    boxed(&path.join("data/train-00000-of-00001.parquet"), 12);
    boxed(&path.join("data/test-00000-of-00001.parquet"), 4);
    let data = BoxDataset::open(&path, 1).unwrap();
    assert_eq!((data.layout, data.names()), (Layout::PARQUET, vec!["x".to_owned(), "y".into()]));
    assert!(Dataset::open(&path, 1).unwrap_err().to_string().contains("a Parquet data set of boxes"));
    let objects = |image: &crate::boxes::BoxImage| {
        image.objects.iter().map(|o| (o.category, o.rect.x, o.rect.width, o.rect.height)).collect::<Vec<_>>()
    };
    assert_eq!(objects(&data.test[2]), [(0, 1., 5., 3.), (1, 1., 5., 4.)]);
    assert_eq!(data.test[0].objects.len(), 0);
    let clipped: Vec<_> = data.problems.iter().filter(|p| p.kind == ProblemKind::OutsideImage).collect();
    assert_eq!(clipped.len(), 1);
    assert!(
        clipped[0].to_string().contains("train-00000-of-00001.parquet, row 4: a box that reaches"),
        "{}",
        clipped[0]
    );
    let out = dir.path().join("out");
    convert(&data, BoxLayout::Yolo, &out).unwrap();
    let again = BoxDataset::open(&out, 1).unwrap();
    for split in Split::ALL {
        let both = data.part(split).iter().zip(again.part(split));
        assert!(both.into_iter().all(|(a, b)| objects(a) == objects(b)), "{split}");
    }
}

#[test]
fn what_is_damaged_is_one_line_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    classes(&path, 0, &[0, 1, 0, 1, 0, 1]);
    let whole = fs::read(&path).unwrap();
    assert!(Dataset::open(&path, 1).is_ok());
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let _ = check(&path, false, &mut |_, _| {});
        Dataset::open(&path, 1).and_then(|data| data.content_hash()).map_err(|error| error.to_string())
    };
    for cut in (1..whole.len()).step_by(whole.len() / 40) {
        let message = open(&whole[..cut]).unwrap_err();
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    // Wherever a byte is another one: the footer, headers of pages, pictures.
    for at in (4..whole.len()).step_by(13) {
        for bits in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= bits;
            if let Err(message) = open(&bytes) {
                assert_eq!(message.lines().count(), 1, "{message}");
            }
        }
    }
}

#[test]
fn a_table_without_pictures_or_classes_is_no_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let schema = "message schema { optional group image { optional binary bytes; optional binary path (STRING); }
         optional int64 width; }";
    table(
        &path,
        (schema, "{}"),
        &[picture(1), picture(2)],
        |_| None,
        |_, column, _| {
            column.typed::<Int64Type>().write_batch(&[3, 4], Some(&[1, 1]), None).unwrap();
        },
    );
    let found = check(&path, false, &mut |_, _| {}).unwrap();
    let message = &found.findings[0].message;
    assert!(
        message.contains("no column of one class a picture, such as label (the columns are: image, width)"),
        "{message}"
    );
    let schema = "message schema { optional group text { optional binary part; optional binary path (STRING); } }";
    table(&path, (schema, "{}"), &[b"a".to_vec()], |_| None, |_, _, _| ());
    assert!(Dataset::open(&path, 1).unwrap_err().to_string().contains("not a data set"));
}

/// `scripts/make_parquet_fixtures.py` makes these with pyarrow: compressed by snappy and zstd, pages of both forms.
#[test]
fn tables_by_the_hubs_own_writer_are_read() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parquet");
    let data = Dataset::open(fixtures.join("classes.parquet"), 1).unwrap();
    let mut all: Vec<_> = [&data.train, &data.val, &data.test].into_iter().flatten().collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!((&data.classes[..], all.len()), (&["cat".to_owned(), "owl".into()][..], 8));
    for (i, sample) in all.into_iter().enumerate() {
        let image = sample.load().unwrap();
        let i = i as u8;
        assert_eq!((sample.label, [image.width, image.height]), (u32::from(i.is_multiple_of(2)), [12, 10]));
        assert_eq!(image.pixels[..3], [i * 20, 255 - i * 20, 40]);
        assert_eq!(sample.id, format!("classes.parquet/{i}.png"));
    }
    let data = BoxDataset::open(fixtures.join("boxes.parquet"), 1).unwrap();
    let mut all: Vec<_> = [&data.train, &data.val, &data.test].into_iter().flatten().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    for (i, image) in all.into_iter().enumerate() {
        let found: Vec<_> = image.objects.iter().map(|o| (o.category, o.rect.width, o.area)).collect();
        let expected: Vec<_> = (0..i % 3).map(|k| (k % 2, 3. + k as f64, 7.)).collect();
        assert_eq!(found, expected, "{}", image.name);
    }
}

#[test]
fn a_footer_that_claims_too_much_is_refused_before_it_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    // Version, then the list of columns: each a name and a number of columns in it.
    let file = |columns: &[(u32, usize)]| {
        let mut footer = vec![0x15, 2, 0x19, 0xfc];
        let varint = |mut value: usize, out: &mut Vec<u8>| {
            while value >= 0x80 {
                out.push(value as u8 | 0x80);
                value >>= 7;
            }
            out.push(value as u8);
        };
        varint(columns.iter().map(|(_, times)| times).sum(), &mut footer);
        for (children, times) in columns {
            for _ in 0..*times {
                footer.extend([0x48, 1, b'a', 0x15]);
                varint(*children as usize * 2, &mut footer);
                footer.push(0);
            }
        }
        footer.extend([0x16, 0, 0x19, 0x0c, 0]);
        let length = (footer.len() as u32).to_le_bytes();
        [b"PAR1", &footer[..], &length, b"PAR1"].concat()
    };
    for (columns, expected) in [
        (&[(1, 100_000), (0, 1)][..], "groups of columns more than 32 deep"),
        (&[(0x7fff_ffff, 1), (0, 1)], "a group of 2147483647 columns where there are 2"),
    ] {
        fs::write(&path, file(columns)).unwrap();
        let message = Dataset::open(&path, 1).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn lists_that_claim_more_than_a_file_holds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    // A box that is not there, four million times.
    let count = 1 << 22;
    table(
        &path,
        (BOX_SCHEMA, "{}"),
        &[picture(1)],
        |_| None,
        |number, column, _| {
            let mut reps = vec![1; count];
            reps[0] = 0;
            let defs = vec![3; count];
            if number == 2 {
                column.typed::<FloatType>().write_batch(&[], Some(&defs), Some(&reps)).unwrap();
            } else {
                column.typed::<Int64Type>().write_batch(&[], Some(&defs), Some(&reps)).unwrap();
            }
        },
    );
    assert!(fs::metadata(&path).unwrap().len() < 100_000);
    let message = BoxDataset::open(&path, 1).unwrap_err().to_string();
    assert!(message.contains("it claims 4194304 values in 1 rows and"), "{message}");
}
