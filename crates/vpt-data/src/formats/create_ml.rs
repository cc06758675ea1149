//! Create ML: a JSON list of images, each with its annotations; a box is its centre, width and height in pixels.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::named_boxes::{
    AnnotationSource, DescribedPicture, DescribedSet, NamedBoxes, NamedObject, PictureFolders, alone, called,
    with_parts,
};
use super::text_file::beginning;
use super::{Candidate, Format, Layout, Recognition};
use crate::boxes::{BoxExtent, PlaceInFile, Problem, ProblemKind, Remedy, normal};
use crate::open::entries;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

impl Layout {
    /// Create ML's list of images.
    pub const CREATE_ML: Self = Self::new("createml", "Create ML");
}

/// A JSON list of images.
pub(super) const FORMAT: Format =
    Format { has_boxes: true, recognize: |candidate| Ok(Recognition::of_boxes(Layout::CREATE_ML, find(candidate))) };

/// Longest file, in bytes.
const MAX_BYTES: u64 = 1 << 30;

fn find(candidate: &Candidate<'_>) -> Option<NamedBoxes> {
    let Candidate { path, is_folder } = *candidate;
    let (root, sources) = if is_folder {
        let mut sources = called(path, "_annotations.createml.json");
        if sources.is_empty() {
            let all = entries(path).unwrap_or_default().into_iter().filter(|(_, path)| is_one(path));
            sources =
                with_parts(all.filter_map(|(name, path)| Some((name.rsplit_once('.')?.0.to_owned(), path))).collect());
        }
        if sources.is_empty() {
            sources = ["annotations.json", "annotation.json", "labels.json"]
                .into_iter()
                .map(|name| called(path, name).into_iter().filter(|(_, file)| is_one(file)).collect::<Vec<_>>())
                .find(|found| !found.is_empty())
                .unwrap_or_default();
        }
        (path, sources)
    } else {
        (path.parent().unwrap_or(Path::new("")), alone(path, is_one(path)))
    };
    NamedBoxes::found(root, sources, read).map(NamedBoxes::of_texts)
}

/// Whether `path` is JSON that begins as such a list does.
fn is_one(path: &Path) -> bool {
    let Some(text) = beginning(path, "json", 4096) else { return false };
    let text = text.trim_start();
    let has = |key: &str| text.contains(key);
    text.starts_with('[') && (has("\"image\"") || has("\"imagefilename\"")) && has("\"annotations\"")
        // Label Studio's.
        && !has("\"result\"")
}

#[derive(Deserialize)]
struct CreateMlImage {
    #[serde(alias = "imagefilename", alias = "filename")]
    image: String,
    #[serde(default, alias = "annotation")]
    annotations: Vec<Value>,
}

#[derive(Deserialize)]
struct CreateMlAnnotation {
    #[serde(alias = "class", alias = "name")]
    label: String,
    coordinates: CentredBox,
}

#[derive(Deserialize)]
struct CentredBox {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

fn read(root: &Path, source: &AnnotationSource) -> Result<DescribedSet> {
    let (_, path) = source;
    let bytes = read_limited(path, MAX_BYTES)?;
    let content = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let list: Vec<CreateMlImage> =
        serde_json::from_slice(content).map_err(|error| Error::data(path, error.to_string()))?;
    if list.is_empty() {
        return Err(Error::data(path, "it lists no images"));
    }
    let folder = PictureFolders::of(root, source).best(path, &list.iter().map(|entry| entry.image.as_str()))?;
    let shared: Arc<Path> = path.as_path().into();
    let mut found = DescribedSet::default();
    for (CreateMlImage { image, annotations }, number) in list.into_iter().zip(1..) {
        let place = Some(PlaceInFile::Image(number));
        let mut objects = Vec::with_capacity(annotations.len());
        for annotation in annotations {
            match serde_json::from_value::<CreateMlAnnotation>(annotation) {
                Ok(CreateMlAnnotation { label, coordinates: CentredBox { x, y, width, height } }) => {
                    let extent = BoxExtent::Pixels([x - width / 2., y - height / 2., width, height]);
                    objects.push(NamedObject { name: label, place, extent, crowd: false, shape: None });
                }
                Err(error) => found.problems.push(Problem {
                    kind: ProblemKind::UnreadableObject,
                    remedy: Remedy::ObjectDropped,
                    file: path.clone(),
                    place,
                    detail: format!("{image}: {error}"),
                }),
            }
        }
        let (path, source) = (normal(&folder.join(&image)), shared.clone());
        found.pictures.push(DescribedPicture { path, declared: None, source, place, split: None, objects });
    }
    Ok(found)
}
