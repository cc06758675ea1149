//! COCO's objects as the pixels that they cover: polygons, and runs in a list or packed into text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::file::{self, MAX_BYTES};
use super::{Annotations, CocoFiles, agree, image_folder, twice_called};
use crate::Split;
use crate::boxes::{Category, normal, parts};
use crate::open::{Parts, relative_id};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// How a file tells the pixels of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ObjectShape {
    /// Corners of its pieces, `x, y` by turns.
    Polygons(Vec<Vec<f64>>),
    /// Lengths of runs in an image of this width and height.
    Counts([usize; 2], Vec<u32>),
    /// The same packed into text.
    Text([usize; 2], String),
    /// Lengths of runs along the rows of a rectangle: left, top, width and height.
    Rows([usize; 4], Vec<u32>),
    /// In no form that is known.
    Unknown(String),
}

/// An image with the objects in it.
pub(crate) struct SegmentedImage {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The file that says so.
    pub(crate) source: Arc<Path>,
    /// Width and height as the file has them.
    pub(crate) declared: Option<[usize; 2]>,
    /// Positions of categories, and pixels.
    pub(crate) objects: Vec<(usize, ObjectShape)>,
}

/// A data set in COCO's layout as the pixels of its objects.
pub(crate) struct CocoSegments {
    pub(crate) root: PathBuf,
    pub(crate) names: Vec<String>,
    pub(crate) parts: Parts<SegmentedImage>,
}

#[derive(Deserialize)]
struct RawSegments {
    annotations: Vec<RawSegment>,
}

#[derive(Deserialize)]
struct RawSegment {
    segmentation: Option<RawShape>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawShape {
    Polygons(Vec<Vec<f64>>),
    Runs { size: [usize; 2], counts: RawCounts },
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawCounts {
    Text(String),
    List(Vec<u32>),
}

impl From<RawShape> for ObjectShape {
    fn from(raw: RawShape) -> Self {
        match raw {
            RawShape::Polygons(pieces) => Self::Polygons(pieces),
            RawShape::Runs { size: [height, width], counts: RawCounts::Text(text) } => {
                Self::Text([width, height], text)
            }
            RawShape::Runs { size: [height, width], counts: RawCounts::List(counts) } => {
                Self::Counts([width, height], counts)
            }
            RawShape::Other(_) => Self::Unknown("a segmentation that is neither polygons nor runs".to_owned()),
        }
    }
}

/// The objects of the data set at `path`, if it is one in COCO's layout.
///
/// # Errors
/// A file cannot be read, no object of it has polygons or runs, or parts contradict each other.
pub(crate) fn segments(path: &Path) -> Result<Option<CocoSegments>> {
    let Some(CocoFiles { root, files, .. }) = CocoFiles::in_or_at(path) else { return Ok(None) };
    let root = normal(&root);
    let mut known: Option<(Vec<Category>, PathBuf)> = None;
    let parts = match &files[..] {
        [file] if file.part != Some(Split::Train) => Parts::Unsplit(read(&root, file, &mut known)?),
        _ => {
            let mut given = [None, None, None];
            for file in &files {
                let Some(split) = file.part else { continue };
                if given[split as usize].is_some() {
                    return Err(Error::data(&file.path, format!("a second file for {split} beside others")));
                }
                given[split as usize] = Some(read(&root, file, &mut known)?);
            }
            parts(&root, given)?
        }
    };
    let names = known.unwrap_or_default().0.into_iter().map(|category| category.name).collect();
    Ok(Some(CocoSegments { root, names, parts }))
}

fn read(root: &Path, file: &Annotations, known: &mut Option<(Vec<Category>, PathBuf)>) -> Result<Vec<SegmentedImage>> {
    let path = file.path.as_path();
    let read = file::read(path)?;
    let bytes = read_limited(path, MAX_BYTES)?;
    let content = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let raw: RawSegments = serde_json::from_slice(content).map_err(|error| Error::data(path, error.to_string()))?;
    let categories: Vec<Category> = read.categories.into_iter().map(|category| category.category).collect();
    let mut names: Vec<&str> = categories.iter().map(|category| category.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(twice_called(path, pair[0]));
    }
    if let Some((known, first)) = known {
        agree(path, &categories, first, known)?;
    }
    if read.images.is_empty() {
        return Err(Error::data(path, "it lists no images"));
    }
    if !raw.annotations.is_empty()
        && raw.annotations.iter().all(|annotation| is_empty(annotation.segmentation.as_ref()))
    {
        return Err(Error::data(path, "its objects have boxes alone, neither polygons nor runs (segmentation)"));
    }
    let place: HashMap<u64, usize> = categories.iter().zip(0..).map(|(category, at)| (category.id, at)).collect();
    let folder = image_folder(root, file, &read.images)?;
    let source: Arc<Path> = path.into();
    let mut by_id = HashMap::new();
    let mut images = Vec::with_capacity(read.images.len());
    for image in read.images {
        if by_id.insert(image.id, images.len()).is_some() {
            return Err(Error::data(path, format!("two images with the id {}", image.id)));
        }
        let path = normal(&folder.join(&image.file_name));
        let name = relative_id(root, &path);
        images.push(SegmentedImage { name, path, source: source.clone(), declared: image.size, objects: Vec::new() });
    }
    for (n, (annotation, segment)) in read.annotations.into_iter().zip(raw.annotations).enumerate() {
        let at = |what: String| Error::data(path, format!("annotations, entry {}: {what}", n + 1));
        let image = annotation.image.ok().and_then(|id| by_id.get(&id).copied());
        let image = image.ok_or_else(|| at("image_id is that of no image".to_owned()))?;
        let category = annotation.category.ok().and_then(|id| place.get(&id).copied());
        let category = category.ok_or_else(|| at("category_id is that of no category".to_owned()))?;
        let Some(shape) = segment.segmentation else {
            return Err(at("an object without a segmentation, in a file that has them".to_owned()));
        };
        images[image].objects.push((category, shape.into()));
    }
    known.get_or_insert_with(|| (categories, path.to_path_buf()));
    Ok(images)
}

fn is_empty(shape: Option<&RawShape>) -> bool {
    match shape {
        None => true,
        Some(RawShape::Polygons(pieces)) => pieces.is_empty(),
        Some(_) => false,
    }
}
