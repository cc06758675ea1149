//! Pascal VOC: an XML file for each image. `Annotations/` beside `JPEGImages/`, with lists of the parts in
//! `ImageSets/Main/`; or images and XML files side by side, in `train`, `valid` and `test` or in one folder.
//!
//! Corners are pixels that belong to the object, counted from 1: `xmin` 1 and `xmax` 100 are a whole image of 100 columns.
//! So the left edge is `xmin` - 1 and the right edge is `xmax`, for integers as for the thousandths that `vpt data convert`
//! writes, and nothing is lost between the two. A data set with a corner from 0 to below 1 cannot have been meant so; there
//! all corners are taken as edges counted from 0.
//!
//! `difficult` objects are objects like others. Crowds and areas, which the format has no words for, are in the elements
//! `crowd` and `area` that `vpt data convert` adds.

mod write;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use roxmltree::Node;

pub(super) use self::write::write;
use super::image_folder::{files, images};
use super::{BoxFiles, Format, Layout, Recognition};
use crate::boxes::{
    AnnotatedImage, AnnotatedObject, AnnotatedSet, BoxDataset, BoxExtent, Category, PlaceInFile, Problem, ProblemKind,
    Remedy, normal, parts,
};
use crate::check::{Checking, FindingKind, Findings, ListedImage, repeated_boxes, text};
use crate::formats::named_boxes::unreadable_object;
use crate::formats::text_file::{beginning, parse_xml, read_text};
use crate::open::{Parts, entries};
use crate::{ImageSource, Split};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Longest XML file that is read, in bytes.
const MAX_XML_BYTES: u64 = 1 << 24;

/// Most elements, texts and the like of an XML file.
const MAX_NODES: u32 = 1 << 20;

/// Longest list of images or classes.
const MAX_LIST_BYTES: u64 = 1 << 28;

impl Layout {
    /// Pascal VOC: an XML file for each image.
    pub const VOC: Self = Self::new("voc", "Pascal VOC");
}

/// An XML file for each image.
pub(super) const FORMAT: Format = Format {
    has_boxes: true,
    recognize: |candidate| Ok(Recognition::of_boxes(Layout::VOC, VocFiles::at(candidate.path))),
};

/// Where a data set's files are.
enum VocFiles {
    /// `Annotations`, the folder of images and `ImageSets/Main` in this folder.
    Devkit { root: PathBuf, images: PathBuf },
    /// Images with XML files beside them, in folders of parts.
    Folders { root: PathBuf, parts: Vec<(Split, PathBuf)> },
    /// Images with XML files beside them, in one folder.
    Flat(PathBuf),
}

impl VocFiles {
    /// The data set's folder.
    fn root(&self) -> &Path {
        match self {
            Self::Devkit { root, .. } | Self::Folders { root, .. } | Self::Flat(root) => root,
        }
    }

    /// The files in the folder `path`.
    fn at(path: &Path) -> Option<Self> {
        if path.join("Annotations").is_dir() {
            let images =
                ["JPEGImages", "Images", "images"].map(|name| path.join(name)).into_iter().find(|f| f.is_dir());
            if let Some(images) = images {
                return Some(Self::Devkit { root: path.into(), images });
            }
        }
        let folders: Vec<_> = entries(path).ok()?.into_iter().filter(|(_, path)| path.is_dir()).collect();
        let named = Split::of_names(folders.iter().map(|(name, _)| name.as_str())).into_iter().zip(folders);
        let parts: Vec<_> = named
            .filter_map(|(part, (_, folder))| part.filter(|_| holds_annotations(&folder)).zip(Some(folder)))
            .collect();
        if !parts.is_empty() {
            return Some(Self::Folders { root: path.into(), parts });
        }
        holds_annotations(path).then(|| Self::Flat(path.into()))
    }
}

impl BoxFiles for VocFiles {
    fn open(&self) -> Result<AnnotatedSet> {
        open(self)
    }

    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>) {
        let all = match files(self.root(), "", &is_xml) {
            Ok(all) => all,
            Err(error) => return (Vec::new(), vec![error]),
        };
        let pair = |xml: PathBuf| XmlWithImage { image: None, folder: self.root().to_path_buf(), xml };
        (Vec::new(), all.into_par_iter().filter_map(|(_, xml)| read(pair(normal(&xml))).err()).collect())
    }

    fn check_texts(&self, check: &mut Checking<'_>) {
        let lists = entries(&self.root().join("ImageSets/Main")).unwrap_or_default().into_iter().map(|(_, path)| path);
        let is_list = |path: &PathBuf| path.extension().is_some_and(|e| e == "txt") && path.is_file();
        let classes = Some(self.root().join("classes.txt")).filter(|file| file.is_file());
        for file in lists.filter(is_list).chain(classes) {
            text::check_file(&file, &mut check.out);
        }
    }

    fn check_opened(&mut self, data: &BoxDataset, _listed: &[ListedImage], out: &mut Findings) {
        repeated_boxes(data, |image, object, _, _| {
            let message = format!("two equal boxes of '{}'", data.categories[object.category].name);
            out.warning(FindingKind::DuplicateBox, image.file(), None, message);
        });
    }
}

/// Files that are looked at to know the format: the first may be the one that is damaged.
const PROBES: usize = 8;

/// Whether one of the first XML files in `folder` is of this format.
fn holds_annotations(folder: &Path) -> bool {
    let all = if folder.is_dir() { entries(folder).unwrap_or_default() } else { Vec::new() };
    all.iter().filter(|(_, path)| is_xml(path) && path.is_file()).take(PROBES).any(|(_, path)| {
        let text = beginning(path, "xml", 4096).unwrap_or_default();
        // `<annotations>` is another format.
        ["<annotation>", "<annotation ", "<annotation\n", "<annotation\r"].iter().any(|tag| text.contains(tag))
    })
}

fn is_xml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("xml"))
}

/// An XML file and the image that it describes.
struct XmlWithImage {
    xml: PathBuf,
    /// None if there is no image of its name; the file may name one.
    image: Option<PathBuf>,
    /// The folder of the images.
    folder: PathBuf,
}

/// Opens the data set in `files`.
fn open(found: &VocFiles) -> Result<AnnotatedSet> {
    let mut problems = Vec::new();
    let (root, pairs) = match found {
        VocFiles::Devkit { root, images } => (root, devkit(root, images, &mut problems)?),
        VocFiles::Folders { root, parts: folders } => {
            let mut given = [None, None, None];
            for (split, folder) in folders {
                let part = &mut given[*split as usize];
                if part.is_some() {
                    return Err(Error::data(folder, format!("a second {split} folder beside others")));
                }
                *part = Some(side_by_side(folder, &mut problems)?);
            }
            (root, parts(root, given)?)
        }
        VocFiles::Flat(root) => (root, Parts::Unsplit(side_by_side(root, &mut problems)?)),
    };
    let described = match pairs {
        Parts::Unsplit(pairs) => Parts::Unsplit(read_all(pairs)?),
        Parts::Split { train, val, test } => Parts::Split {
            train: read_all(train)?,
            val: val.map(read_all).transpose()?,
            test: test.map(read_all).transpose()?,
        },
    };
    let categories = categories(root, &described)?;
    let all = || {
        let (first, second, third) = match &described {
            Parts::Unsplit(all) => (all, None, None),
            Parts::Split { train, val, test } => (train, val.as_ref(), test.as_ref()),
        };
        first.iter().chain(second.into_iter().flatten()).chain(third.into_iter().flatten())
    };
    let from_zero = all().find_map(|image| {
        let below_one = |o: &&DescribedObject| o.corners[..2].iter().any(|c| (0. ..1.).contains(c));
        image.objects.iter().find(below_one).map(|o| (image.xml.clone(), o.line))
    });
    let first = if from_zero.is_some() { 0. } else { 1. };
    if let Some((file, line)) = from_zero {
        problems.push(Problem {
            kind: ProblemKind::CountsFromZero,
            remedy: Remedy::TakenAsEdges,
            file: file.to_path_buf(),
            place: Some(PlaceInFile::Line(line)),
            detail: "a corner below 1 in a format that counts pixels from 1".into(),
        });
    }
    let index: HashMap<&str, usize> = categories.iter().zip(0..).map(|(c, i)| (c.name.as_str(), i)).collect();
    let mut finish = |images: Vec<DescribedImage>| -> Vec<AnnotatedImage> {
        images.into_iter().map(|image| image.finish(&index, first, &mut problems)).collect()
    };
    let parts = match described {
        Parts::Unsplit(all) => Parts::Unsplit(finish(all)),
        Parts::Split { train, val, test } => {
            Parts::Split { train: finish(train), val: val.map(&mut finish), test: test.map(&mut finish) }
        }
    };
    Ok(AnnotatedSet { root: normal(root), categories, parts, has_ids: false, problems, absent: Vec::new() })
}

/// The parts that the lists in `ImageSets/Main` say; without lists, all annotations.
fn devkit(root: &Path, folder: &Path, problems: &mut Vec<Problem>) -> Result<Parts<XmlWithImage>> {
    let annotations = root.join("Annotations");
    let by_stem = by_stem(folder)?;
    let pair = |id: &str| XmlWithImage {
        xml: normal(&annotations.join(format!("{id}.xml"))),
        image: by_stem.get(id).cloned(),
        folder: folder.to_path_buf(),
    };
    let given = lists(root)?;
    if given.iter().all(Option::is_none) {
        let all = files(&annotations, "", &is_xml)?;
        let ids = all.iter().filter_map(|(name, _)| Some(name.rsplit_once('.')?.0));
        return Ok(Parts::Unsplit(ids.map(pair).collect()));
    }
    let mut listed = |path: PathBuf| -> Result<Vec<XmlWithImage>> {
        let bytes = read_limited(&path, MAX_LIST_BYTES)?;
        let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
        for (line, n) in String::from_utf8_lossy(&bytes).lines().zip(1..) {
            let line = line.trim();
            let mut report = |kind, remedy, detail| {
                let (file, place) = (path.clone(), Some(PlaceInFile::Line(n)));
                problems.push(Problem { kind, remedy, file, place, detail });
            };
            // Lists of one class have a second column.
            let forms = [line, line.split_whitespace().next().unwrap_or_default()];
            let Some(pair) = forms.into_iter().map(pair).find(|pair| pair.xml.is_file()) else {
                if !line.is_empty() {
                    let detail = format!("there is no Annotations/{line}.xml");
                    report(ProblemKind::MissingAnnotation, Remedy::ImageDropped, detail);
                }
                continue;
            };
            if seen.insert(pair.xml.clone()) {
                out.push(pair);
            } else {
                report(ProblemKind::DuplicateImage, Remedy::Joined, format!("{line} is listed already"));
            }
        }
        Ok(out)
    };
    let mut read = [None, None, None];
    for (part, list) in read.iter_mut().zip(given) {
        *part = list.map(&mut listed).transpose()?;
    }
    parts(root, read)
}

/// The lists of train, val and test in `ImageSets/Main`, or in `ImageSets`. Lists of one class, `cat_train.txt`, are none.
fn lists(root: &Path) -> Result<[Option<PathBuf>; 3]> {
    let mut given = [None, None, None];
    let folders = ["ImageSets/Main", "ImageSets"].map(|folder| root.join(folder));
    let Some(folder) = folders.into_iter().find(|folder| folder.is_dir()) else { return Ok(given) };
    let is_list = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) && path.is_file();
    let all: Vec<PathBuf> = entries(&folder)?.into_iter().map(|(_, path)| path).filter(|p| is_list(p)).collect();
    let stems: Vec<_> = all.iter().map(|path| path.file_stem().unwrap_or_default().to_string_lossy()).collect();
    for (part, path) in Split::of_names(stems.iter().map(AsRef::as_ref)).into_iter().zip(all) {
        let Some(split) = part else { continue };
        if let Some(first) = &given[split as usize] {
            let message = format!("a second list for {split} beside {}", Path::new(first).display());
            return Err(Error::data(path, message));
        }
        given[split as usize] = Some(path);
    }
    Ok(given)
}

/// Images under `folder` by their path in it without the ending.
fn by_stem(folder: &Path) -> Result<HashMap<String, PathBuf>> {
    let all = images(folder, "")?.into_iter();
    Ok(all.filter_map(|(name, path)| Some((name.rsplit_once('.')?.0.to_owned(), normal(&path)))).collect())
}

/// XML files in `folder` with the images beside them.
fn side_by_side(folder: &Path, problems: &mut Vec<Problem>) -> Result<Vec<XmlWithImage>> {
    let mut by_stem = by_stem(folder)?;
    let mut pairs = Vec::new();
    for (name, xml) in files(folder, "", &is_xml)? {
        let image = name.rsplit_once('.').and_then(|(stem, _)| by_stem.remove(stem));
        let beside = xml.parent().unwrap_or(folder).to_path_buf();
        pairs.push(XmlWithImage { xml: normal(&xml), image, folder: beside });
    }
    let mut left: Vec<PathBuf> = by_stem.into_values().collect();
    left.sort();
    problems.extend(left.into_iter().map(|file| Problem {
        kind: ProblemKind::MissingAnnotation,
        remedy: Remedy::ImageDropped,
        file,
        place: None,
        detail: "there is no XML file beside it".into(),
    }));
    Ok(pairs)
}

/// An image as its XML file describes it.
struct DescribedImage {
    xml: Arc<Path>,
    path: PathBuf,
    size: Option<[usize; 2]>,
    objects: Vec<DescribedObject>,
    problems: Vec<Problem>,
}

/// An object as an XML file describes it.
struct DescribedObject {
    line: u64,
    name: String,
    /// Left, top, right, bottom.
    corners: [f64; 4],
    area: Option<f64>,
    crowd: bool,
}

fn read_all(pairs: Vec<XmlWithImage>) -> Result<Vec<DescribedImage>> {
    pairs.into_par_iter().map(read).collect()
}

fn read(pair: XmlWithImage) -> Result<DescribedImage> {
    let XmlWithImage { xml, image, folder } = pair;
    let text = read_text(&xml, MAX_XML_BYTES)?;
    let document = parse_xml(&xml, &text, MAX_NODES)?;
    let top = document.root_element();
    if top.tag_name().name() != "annotation" {
        return Err(Error::data(&xml, format!("expected <annotation>, found <{}>", top.tag_name().name())));
    }
    let path = image.unwrap_or_else(|| {
        // Some write whole paths, of the machine where the image was annotated.
        let name = text_of(top, "filename").and_then(|name| name.rsplit(['/', '\\']).next()).unwrap_or_default();
        if name.is_empty() { xml.with_extension("jpg") } else { normal(&folder.join(name)) }
    });
    let size = child(top, "size");
    let side = |name| size.and_then(|size| number(size, name)).filter(|v| *v >= 1.).map(|v| v as usize);
    let size = side("width").zip(side("height")).map(|(w, h)| [w, h]);
    let source: Arc<Path> = xml.as_path().into();
    let mut image = DescribedImage { xml: source, path, size, objects: Vec::new(), problems: Vec::new() };
    for node in top.children().filter(|node| node.has_tag_name("object")) {
        let line = u64::from(document.text_pos_at(node.range().start).row);
        match object(node, line) {
            Ok(object) => image.objects.push(object),
            Err(detail) => {
                image.problems.push(unreadable_object(&xml, Some(PlaceInFile::Line(line)), detail));
            }
        }
    }
    Ok(image)
}

fn object(node: Node<'_, '_>, line: u64) -> Result<DescribedObject, String> {
    let name = text_of(node, "name").filter(|name| !name.is_empty()).ok_or("an object without a name")?;
    let corners = child(node, "bndbox").ok_or_else(|| format!("'{name}' has no bndbox"))?;
    let corner = |key| number(corners, key).ok_or_else(|| format!("the bndbox of '{name}' has no number {key}"));
    Ok(DescribedObject {
        line,
        name: name.to_owned(),
        corners: [corner("xmin")?, corner("ymin")?, corner("xmax")?, corner("ymax")?],
        area: number(node, "area"),
        crowd: number(node, "crowd").is_some_and(|flag| flag > 0.),
    })
}

fn child<'a, 'b>(node: Node<'a, 'b>, name: &str) -> Option<Node<'a, 'b>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn text_of<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name)?.text().map(str::trim)
}

fn number(node: Node<'_, '_>, name: &str) -> Option<f64> {
    text_of(node, name)?.parse().ok()
}

/// The classes in `classes.txt`, else those that occur, by name. What occurs in another part must occur in train.
fn categories(root: &Path, described: &Parts<DescribedImage>) -> Result<Vec<Category>> {
    let file = root.join("classes.txt");
    let names: Vec<String> = if file.is_file() {
        let bytes = read_limited(&file, MAX_LIST_BYTES)?;
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).filter(|n| !n.is_empty()).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(Error::data(&file, format!("'{twice}' is listed twice")));
        }
        names
    } else {
        let (train, others) = match described {
            Parts::Unsplit(all) => (all, [None, None]),
            Parts::Split { train, val, test } => (train, [val.as_ref(), test.as_ref()]),
        };
        let names: BTreeSet<&str> = train.iter().flat_map(|i| &i.objects).map(|o| o.name.as_str()).collect();
        for image in others.into_iter().flatten().flatten() {
            if let Some(object) = image.objects.iter().find(|object| !names.contains(object.name.as_str())) {
                let message = format!(
                    "line {}: '{}' does not occur in train; a classes.txt in {} with all names would settle it",
                    object.line,
                    object.name,
                    root.display()
                );
                return Err(Error::data(&image.xml, message));
            }
        }
        names.into_iter().map(str::to_owned).collect()
    };
    if names.is_empty() {
        return Err(Error::data(root, "there are no objects, and no classes.txt says what they could be"));
    }
    Ok((1..).zip(names).map(|(id, name)| Category { id, name }).collect())
}

impl DescribedImage {
    /// With categories by `index`, and corners that count from `first`.
    fn finish(self, index: &HashMap<&str, usize>, first: f64, problems: &mut Vec<Problem>) -> AnnotatedImage {
        let Self { xml, path, size, objects, problems: own } = self;
        problems.extend(own);
        let mut out = Vec::with_capacity(objects.len());
        for DescribedObject { line, name, corners: [left, top, right, bottom], area, crowd } in objects {
            let place = Some(PlaceInFile::Line(line));
            let Some(&category) = index.get(name.as_str()) else {
                problems.push(Problem {
                    kind: ProblemKind::UnknownCategory,
                    remedy: Remedy::ObjectDropped,
                    file: xml.to_path_buf(),
                    place,
                    detail: format!("'{name}' is not in classes.txt"),
                });
                continue;
            };
            let (x, y) = (left - first, top - first);
            let extent = BoxExtent::Pixels([x, y, right - x, bottom - y]);
            out.push(AnnotatedObject { id: 0, place, category, extent, area, crowd });
        }
        AnnotatedImage { id: 0, image: ImageSource::File(path), declared: size, source: xml, place: None, objects: out }
    }
}
