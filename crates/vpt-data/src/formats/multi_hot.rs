//! Tables of several classes an image: the image's path, and a column of 0 and 1 for each class. Roboflow's `_classes.csv`, and
//! the like. Where each image has exactly one class they are images with a label each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::named_boxes::{
    AnnotationSource, DescribedPicture, DescribedSet, NamedBoxes, NamedObject, PictureFolders, alone, by_stem, called,
    with_parts,
};
use super::{BoxFiles, Candidate, ClassFiles, Format, Layout, Recognition, Recognized, unread};
use crate::boxes::{AnnotatedImage, AnnotatedSet, BoxExtent, Category, PlaceInFile, normal};
use crate::check::{Checking, FindingKind, ListedImage, report_problems};
use crate::open::{LabeledSet, Parts, entries, sort_classes};
use crate::{Sample, Split};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

impl Layout {
    /// Tables with a column for each class.
    pub const MULTI_HOT: Self = Self::new("multi-hot", "multi-label CSV");
    /// The same where each image has one.
    pub const ONE_HOT: Self = Self::new("one-hot", "one-hot CSV");
}

/// Tables with a column for each class.
pub(super) const FORMAT: Format = Format {
    has_boxes: true,
    recognize: |candidate| {
        let Some(files) = find(candidate) else { return Ok(Recognition::No) };
        let Some(classes) = single_classes(&files) else {
            return Ok(Recognition::of_boxes(Layout::MULTI_HOT, Some(files)));
        };
        let boxes: Option<Box<dyn BoxFiles>> = find(candidate).map(|files| Box::new(files) as _);
        let classes: Option<Box<dyn ClassFiles>> = Some(Box::new(OneHotFiles { files, classes }));
        Ok(Recognition::Yes(Recognized { layout: Layout::ONE_HOT, classes, boxes }))
    },
};

/// Longest table, in bytes.
const MAX_BYTES: u64 = 1 << 28;

/// Names of the column of paths, and of one of parts.
const IMAGE: [&str; 9] =
    ["filename", "file_name", "file", "image", "image_path", "path", "img", "image_name", "image_id"];
const SPLIT: [&str; 4] = ["split", "set", "subset", "part"];

/// Lines that are looked at to know the format.
const PROBES: usize = 32;

/// The classes of train, if every image of `files` has exactly one, and those of other parts occur in train.
fn single_classes(files: &NamedBoxes) -> Option<Vec<String>> {
    let (mut learned, mut others) = (BTreeSet::new(), BTreeSet::new());
    for (split, path) in &files.sources {
        let MultiHotTable { names, rows } = MultiHotTable::read(path, None).ok()?;
        for row in rows {
            let [class] = row.classes[..] else { return None };
            let is_learned = split.or(row.split).is_none_or(|split| split == Split::Train);
            if is_learned { &mut learned } else { &mut others }.insert(names[class].clone());
        }
    }
    let all = learned.len() > 1 && others.is_subset(&learned);
    let mut classes: Vec<String> = learned.into_iter().collect();
    sort_classes(&mut classes);
    all.then_some(classes)
}

/// Tables in which every image has one class.
struct OneHotFiles {
    files: NamedBoxes,
    classes: Vec<String>,
}

impl OneHotFiles {
    /// The name of the one class of `image`.
    fn class<'a>(image: &AnnotatedImage, categories: &'a [Category]) -> Result<&'a str> {
        let first = image.objects.first().and_then(|object| categories.get(object.category));
        first.map(|category| category.name.as_str()).ok_or_else(|| Error::data(&*image.source, "an image has no class"))
    }
}

impl ClassFiles for OneHotFiles {
    fn open(&self) -> Result<LabeledSet> {
        let AnnotatedSet { root, categories, parts, .. } = self.files.open()?;
        let sample = |image: AnnotatedImage| -> Result<Sample> {
            let name = Self::class(&image, &categories)?;
            let label = self.classes.iter().position(|class| class == name).unwrap_or_default() as u32;
            let id = image.image.id(&root);
            Ok(Sample { image: image.image, label, id })
        };
        let all = |images: Vec<AnnotatedImage>| images.into_iter().map(sample).collect::<Result<Vec<_>>>();
        let samples = match parts {
            Parts::Unsplit(images) => Parts::Unsplit(all(images)?),
            Parts::Split { train, val, test } => {
                Parts::Split { train: all(train)?, val: val.map(all).transpose()?, test: test.map(all).transpose()? }
            }
        };
        Ok(LabeledSet { classes: self.classes.clone(), samples })
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        self.files.check_texts(check);
        let set = match self.files.open() {
            Ok(set) => set,
            Err(error) => {
                check.out.refused(FindingKind::MalformedFile, check.data, &error);
                return Vec::new();
            }
        };
        report_problems(&set.problems, &mut |_, _, _| None, &mut check.out);
        for name in set.categories.iter().map(|c| &c.name).filter(|name| !self.classes.contains(name)) {
            let table = &self.files.sources[0].1;
            check.out.warning(
                FindingKind::EmptyClass,
                table,
                None,
                format!("no image is of class '{name}'; it is no class"),
            );
        }
        let parts = match set.parts {
            Parts::Unsplit(images) => vec![(None, images)],
            Parts::Split { train, val, test } => {
                let all = [Some(train), val, test];
                Split::ALL.into_iter().zip(all).filter_map(|(split, part)| Some((Some(split), part?))).collect()
            }
        };
        let mut listed = Vec::new();
        for (split, images) in parts {
            for image in images {
                let Ok(label) = Self::class(&image, &set.categories) else { continue };
                let line = if let Some(PlaceInFile::Line(line)) = image.place { Some(line) } else { None };
                let (label, place) = (label.into(), (image.source.clone(), line));
                listed.push(ListedImage { image: image.image, split, label, place });
            }
        }
        listed
    }
}

fn find(candidate: &Candidate<'_>) -> Option<NamedBoxes> {
    let Candidate { path, is_folder } = *candidate;
    let (root, sources): (&Path, Vec<AnnotationSource>) = if is_folder {
        let named = called(path, "_classes.csv").into_iter().filter(|(_, file)| is_one(file)).collect::<Vec<_>>();
        let others = || {
            let all = entries(path).unwrap_or_default().into_iter().filter(|(_, path)| is_one(path));
            with_parts(all.filter_map(|(name, path)| Some((name.rsplit_once('.')?.0.to_owned(), path))).collect())
        };
        (path, if named.is_empty() { others() } else { named })
    } else {
        (path.parent().unwrap_or(Path::new("")), alone(path, is_one(path)))
    };
    NamedBoxes::found(root, sources, read).map(|files| NamedBoxes { are_whole: true, ..files.of_texts() })
}

/// Whether `path` is a table of 0 and 1 behind a column of paths.
fn is_one(path: &Path) -> bool {
    let is_csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv") || e.eq_ignore_ascii_case("tsv"));
    let table = || MultiHotTable::read(path, Some(PROBES)).ok().filter(|table| !table.rows.is_empty());
    is_csv && path.is_file() && table().is_some_and(|table| table.names.len() > 1)
}

/// A table.
struct MultiHotTable {
    names: Vec<String>,
    rows: Vec<MultiHotRow>,
}

struct MultiHotRow {
    line: u64,
    path: String,
    split: Option<Split>,
    /// Positions in the names.
    classes: Vec<usize>,
}

impl MultiHotTable {
    /// The table in `path`, or its first lines.
    fn read(path: &Path, most: Option<usize>) -> Result<Self> {
        let bytes = read_limited(path, MAX_BYTES)?;
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
        let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
        let delimiter = [b'\t', b';'].into_iter().find(|d| first.contains(d) && !first.contains(&b',')).unwrap_or(b',');
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .trim(csv::Trim::All)
            .from_reader(bytes);
        let broken = |error: csv::Error| Error::data(path, error.to_string());
        let mut records = reader.records();
        let header = records.next().transpose().map_err(broken)?.unwrap_or_default();
        if unread::has_box_sides(&header.iter().collect::<Vec<_>>()) {
            return Err(Error::data(path, "line 1: the columns are the sides of boxes, not classes"));
        }
        let find =
            |names: &[&str]| header.iter().position(|column| names.iter().any(|n| column.eq_ignore_ascii_case(n)));
        let image = find(&IMAGE).ok_or_else(|| Error::data(path, "line 1: no column of paths, such as filename"))?;
        let split = find(&SPLIT);
        let columns: Vec<usize> = (0..header.len()).filter(|i| *i != image && Some(*i) != split).collect();
        let names: Vec<String> = columns.iter().map(|i| header[*i].to_owned()).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| name.is_empty() || !seen.insert(name.as_str())) {
            return Err(Error::data(path, format!("line 1: two columns are called '{twice}', or one has no name")));
        }
        let mut rows = Vec::new();
        for record in records.take(most.unwrap_or(usize::MAX)) {
            let record = record.map_err(broken)?;
            let line = record.position().map_or(0, csv::Position::line);
            let at = |message: String| Error::data(path, format!("line {line}: {message}"));
            let name = record.get(image).filter(|name| !name.is_empty()).ok_or_else(|| at("no path".into()))?;
            let split = match split.and_then(|column| record.get(column)) {
                Some(word) => Some(
                    Split::from_name(word)
                        .ok_or_else(|| at(format!("split '{word}' is none of train, val and test")))?,
                ),
                None => None,
            };
            let mut classes = Vec::new();
            for (class, column) in columns.iter().enumerate() {
                match record.get(*column) {
                    Some("1" | "1.0") => classes.push(class),
                    Some("0" | "0.0") => {}
                    other => {
                        let value = other.unwrap_or_default();
                        return Err(at(format!("'{value}' for {}, where 0 or 1 is expected", names[class])));
                    }
                }
            }
            rows.push(MultiHotRow { line, path: name.to_owned(), split, classes });
        }
        Ok(Self { names, rows })
    }
}

fn read(root: &Path, source: &AnnotationSource) -> Result<DescribedSet> {
    let (_, path) = source;
    let MultiHotTable { names, rows } = MultiHotTable::read(path, None)?;
    if rows.is_empty() {
        return Err(Error::data(path, "the table lists no images"));
    }
    let folders = PictureFolders::of(root, source);
    // Some name images without their endings, as ISIC's challenges do.
    let are_stems = rows.iter().all(|row| !has_image_extension(Path::new(&row.path)));
    let with_endings =
        rows.iter().flat_map(|row| ["jpg", "png", "jpeg"].map(|ending| format!("{}.{ending}", row.path)));
    let (folder, by_stem) = if are_stems {
        let names: Vec<String> = with_endings.take(PROBES).collect();
        let folder = folders.best(path, &names.iter().map(String::as_str))?;
        let by_stem = by_stem(&folder)?;
        (folder, by_stem)
    } else {
        (folders.best(path, &rows.iter().map(|row| row.path.as_str()))?, HashMap::new())
    };
    let shared: Arc<Path> = path.as_path().into();
    let picture = |MultiHotRow { line, path, split, classes }: MultiHotRow| {
        let place = Some(PlaceInFile::Line(line));
        let object = |class: usize| NamedObject {
            name: names[class].clone(),
            place,
            extent: BoxExtent::Fractions([0., 0., 1., 1.]),
            crowd: false,
            shape: None,
        };
        let objects = classes.into_iter().map(object).collect();
        let path = by_stem.get(&path).cloned().unwrap_or_else(|| normal(&folder.join(path)));
        let source = shared.clone();
        DescribedPicture { path, declared: None, source, place, split, objects }
    };
    let pictures = rows.into_iter().map(picture).collect();
    Ok(DescribedSet { pictures, names: Some(names.clone()), ..DescribedSet::default() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::boxes::BoxDataset;
    use crate::check::check;
    use crate::formats::testing::folder_with_images;
    use crate::{Dataset, MultilabelDataset};

    fn set(files: &[(&str, &str)], images: &[&str]) -> tempfile::TempDir {
        folder_with_images(files, images, [20, 10])
    }

    #[test]
    fn a_column_a_class_makes_sets_of_classes_and_no_boxes() {
        let train = "filename, cat, dog, owl\na.jpg, 1, 1, 0\nb.jpg, 0, 1, 1\nc.jpg, 0, 0, 0\n";
        let files = [
            ("train/_classes.csv", train),
            ("valid/_classes.csv", "filename,cat,dog,owl\na.jpg,0,0,1\n"),
            ("test/_classes.csv", "filename,cat,dog,owl\na.jpg,1,0,0\n"),
        ];
        let images = ["train/a.jpg", "train/b.jpg", "train/c.jpg", "valid/a.jpg", "test/a.jpg"];
        let one = "path,x,y,split\n1.png,1,0,train\n2.png,1,1,train\n3.png,0,1,val\n4.png,0,0,test\n";
        let dir = set(&files, &images);
        let data = MultilabelDataset::open(dir.path(), 1, false).unwrap();
        assert_eq!(
            (data.dataset.layout, &data.dataset.classes[..]),
            (Layout::MULTI_HOT, &["cat".to_owned(), "dog".into(), "owl".into()][..])
        );
        let sets: Vec<&[u32]> = data.dataset.train.iter().map(|sample| data.sets.set(sample.label).unwrap()).collect();
        assert_eq!(sets, [&[0, 1][..], &[1, 2], &[]]);
        assert_eq!(BoxDataset::recognize(dir.path()), None);
        for message in [
            BoxDataset::open(dir.path(), 1).unwrap_err().to_string(),
            Dataset::open(dir.path(), 1).unwrap_err().to_string(),
        ] {
            assert!(message.contains("several classes an image"), "{message}");
        }
        let report = check(dir.path(), false, &mut |_, _| {}).unwrap();
        assert_eq!((report.layout, report.images, &report.findings[..]), (Some("multi-hot"), 5, &[][..]));
        let dir = set(&[("all.csv", one)], &["1.png", "2.png", "3.png", "4.png"]);
        let stems = one.replace(".png", "");
        fs::write(dir.path().join("all.csv"), &stems).unwrap();
        assert_eq!(MultilabelDataset::open(dir.path(), 1, false).unwrap().dataset.train[0].id, "1.png");
        fs::write(dir.path().join("all.csv"), one).unwrap();
        let data = MultilabelDataset::open(dir.path(), 1, false).unwrap();
        assert_eq!([data.dataset.train.len(), data.dataset.val.len(), data.dataset.test.len()], [2, 1, 1]);
    }

    #[test]
    fn with_one_class_an_image_it_is_a_set_of_single_labels() {
        let one = "path,owl,cat,none,split\n1.png,1,0,0,train\n2.png,0,1,0,train\n3.png,0,1,0,val\n4.png,1,0,0,test\n";
        let images = ["1.png", "2.png", "3.png", "4.png"];
        let dir = set(&[("all.csv", one)], &images);
        let data = Dataset::open(dir.path(), 1).unwrap();
        assert_eq!((data.layout, &data.classes[..]), (Layout::ONE_HOT, &["cat".to_owned(), "owl".into()][..]));
        assert_eq!((data.train[0].label, data.train[0].id.as_str(), data.val[0].label), (1, "1.png", 0));
        assert_eq!(MultilabelDataset::recognize(dir.path()), None);
        // Whoever wants several classes an image says so.
        assert!(MultilabelDataset::may_be(dir.path()));
        assert_eq!(MultilabelDataset::open(dir.path(), 1, false).unwrap().dataset.classes.len(), 3);
        let kinds = |dir: &Path| {
            let findings = check(dir, false, &mut |_, _| {}).unwrap().findings;
            findings.into_iter().map(|f| f.kind.name()).collect::<Vec<_>>()
        };
        let found = kinds(dir.path());
        let expected = ["class-not-in-split", "class-not-in-split", "one-image-class", "empty-class"];
        assert_eq!(found, expected);
        fs::remove_file(dir.path().join("2.png")).unwrap();
        assert!(kinds(dir.path()).contains(&"missing-file"));
        // A class that train lacks cannot be learned, and two classes are several.
        for other in [one.replace("4.png,1,0,0", "4.png,0,0,1"), one.replace("4.png,1,0,0", "4.png,1,1,0")] {
            fs::write(dir.path().join("all.csv"), other).unwrap();
            assert_eq!(MultilabelDataset::recognize(dir.path()), Some(Layout::MULTI_HOT));
        }
    }

    #[test]
    fn what_is_no_such_table_is_not_taken_for_one() {
        for text in [
            "path,label\na.png,1\nb.png,0\n",
            "filename,width,cat\na.png,20,1\n",
            "name,x,y\na.png,1,0\n",
            "filename,x,x\na.png,0,1\n",
            "path,label,x,y,w,h\na.png,1,1,1,1,1\n",
        ] {
            let dir = set(&[("table.csv", text)], &["a.png", "b.png"]);
            assert_eq!(MultilabelDataset::recognize(dir.path()), None, "{text}");
        }
        let rows: String = (0..40).fold(String::new(), |rows, i| rows + &format!("{i}.png,0,1\n"));
        let dir = set(&[("t.csv", &format!("filename,x,y\n{rows}a.png,0,2\n"))], &["a.png", "0.png"]);
        let message = MultilabelDataset::open(dir.path(), 1, false).unwrap_err().to_string();
        assert!(message.contains("t.csv: line 42: '2' for y, where 0 or 1 is expected"), "{message}");
    }
}
