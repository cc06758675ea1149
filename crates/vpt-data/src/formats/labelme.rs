//! labelme: a JSON file for each image, with shapes. Rectangles are boxes; of polygons, circles, lines and masks the box around
//! them is taken, which is said. For masks of classes their pixels are, what comes later over what came before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::coco::ObjectShape;
use super::image_folder::files;
use super::named_boxes::{
    AnnotationSource, DescribedPicture, DescribedSet, DrawnShape, NamedBoxes, NamedObject, by_stem, unreadable_object,
};
use super::text_file::beginning;
use super::{Candidate, Format, Layout, Recognition};
use crate::Split;
use crate::boxes::{BoxExtent, PlaceInFile, Problem, ProblemKind, Remedy, normal};
use crate::open::entries;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

impl Layout {
    /// labelme's file for each image.
    pub const LABELME: Self = Self::new("labelme", "labelme");
}

/// A JSON file for each image.
pub(super) const FORMAT: Format =
    Format { has_boxes: true, recognize: |candidate| Ok(Recognition::of_boxes(Layout::LABELME, find(candidate))) };

/// Longest file, in bytes: the image may be in it.
const MAX_BYTES: u64 = 1 << 28;

/// Corners of the polygon that stands for a circle.
const ROUND: usize = 64;

/// Files that are looked at to know the format.
const PROBES: usize = 8;

pub(super) fn find(candidate: &Candidate<'_>) -> Option<NamedBoxes> {
    let root = candidate.path;
    let folders: Vec<(String, PathBuf)> =
        entries(root).unwrap_or_default().into_iter().filter(|(_, path)| path.is_dir()).collect();
    let parts = Split::of_names(folders.iter().map(|(name, _)| name.as_str()));
    let mut sources: Vec<AnnotationSource> = parts
        .into_iter()
        .zip(&folders)
        .filter(|(split, (_, folder))| split.is_some() && holds_annotations(folder))
        .map(|(split, (_, folder))| (split, folder.clone()))
        .collect();
    if sources.is_empty() && candidate.is_folder {
        let usual = ["annotations", "labels", "json", "jsons", "images"];
        let own = std::iter::once(root.to_path_buf()).chain(usual.map(|name| root.join(name)));
        sources.extend(own.filter(|folder| holds_annotations(folder)).map(|folder| (None, folder)).take(1));
    }
    NamedBoxes::found(root, sources, read)
}

/// Whether one of the first JSON files in `folder`, or in `Annotations`-like folders of it, is of this format.
fn holds_annotations(folder: &Path) -> bool {
    let all = if folder.is_dir() { entries(folder).unwrap_or_default() } else { Vec::new() };
    all.iter().filter(|(_, path)| is_json(path) && path.is_file()).take(PROBES).any(|(_, path)| is_one(path))
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
}

fn is_one(path: &Path) -> bool {
    // The shapes may come behind an image in the file, so that not all keys are at its beginning.
    let text = beginning(path, "json", 1 << 16).unwrap_or_default();
    let has = |key: &str| text.contains(key);
    has("\"shapes\"") && (has("\"imagePath\"") || has("\"imageData\"") || has("\"points\""))
}

#[derive(Deserialize)]
struct LabelmeFile {
    #[serde(default)]
    shapes: Vec<serde_json::Value>,
    #[serde(rename = "imagePath")]
    image_path: Option<String>,
    #[serde(rename = "imageHeight")]
    height: Option<f64>,
    #[serde(rename = "imageWidth")]
    width: Option<f64>,
}

#[derive(Deserialize)]
struct LabelmeShape {
    label: String,
    points: Vec<[f64; 2]>,
    /// A polygon if nothing is said.
    #[serde(rename = "shape_type")]
    form: Option<String>,
}

fn read(root: &Path, source: &AnnotationSource) -> Result<DescribedSet> {
    let (_, folder) = source;
    let all: Vec<PathBuf> =
        files(folder, "", &is_json)?.into_iter().map(|(_, path)| path).filter(|p| is_one(p)).collect();
    let beside = by_stem(folder)?;
    let elsewhere = by_stem(&root.join("images")).unwrap_or_default();
    let read: Vec<_> = all.par_iter().map(|file| read_file(folder, file, &beside, &elsewhere)).collect();
    let mut found = DescribedSet::default();
    let (mut shapes, mut first) = (0, None);
    for file in read {
        let (picture, problems, others) = file?;
        if others > 0 {
            shapes += others;
            first.get_or_insert_with(|| picture.source.clone());
        }
        found.pictures.push(picture);
        found.problems.extend(problems);
    }
    if let Some(file) = first {
        found.problems.push(around_shapes(&file, shapes));
    }
    Ok(found)
}

/// Says that boxes were made of `count` shapes, the first of which is in `file`.
pub(super) fn around_shapes(file: &Path, count: usize) -> Problem {
    let s = if count == 1 { "" } else { "s" };
    Problem {
        kind: ProblemKind::OtherShape,
        remedy: Remedy::BoxAround,
        file: file.into(),
        place: None,
        detail: format!(
            "{count} polygon{s} or other shape{s} that {} no boxes, here or in files after it",
            if count == 1 { "is" } else { "are" }
        ),
    }
}

type ReadFile = (DescribedPicture, Vec<Problem>, usize);

fn read_file(
    folder: &Path,
    file: &Path,
    beside: &std::collections::HashMap<String, PathBuf>,
    elsewhere: &std::collections::HashMap<String, PathBuf>,
) -> Result<ReadFile> {
    let bytes = read_limited(file, MAX_BYTES)?;
    let content = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let LabelmeFile { shapes, image_path, height, width } =
        serde_json::from_slice(content).map_err(|error| Error::data(file, error.to_string()))?;
    let name = image_path.unwrap_or_default().replace('\\', "/");
    let own = file.parent().unwrap_or(folder);
    let named = [own.join(&name), own.join(name.rsplit('/').next().unwrap_or_default())];
    let named = named.into_iter().find(|path| !name.is_empty() && path.is_file());
    let stem = file.with_extension("");
    let stem = stem.strip_prefix(folder).unwrap_or(&stem).to_string_lossy().into_owned();
    let found = named.or_else(|| beside.get(&stem).or_else(|| elsewhere.get(&stem)).cloned());
    let path = found.unwrap_or_else(|| own.join(if name.is_empty() { format!("{stem}.jpg") } else { name }));
    let (mut objects, mut problems, mut others) = (Vec::new(), Vec::new(), 0);
    for (shape, number) in shapes.into_iter().zip(1..) {
        let place = Some(PlaceInFile::Shape(number));
        let read = serde_json::from_value::<LabelmeShape>(shape).map_err(|error| error.to_string());
        match read.and_then(|shape| extent(&shape).map(|extent| (shape, extent))) {
            Ok((shape, extent)) => {
                others += usize::from(shape.form.as_deref() != Some("rectangle"));
                let (extent, drawn) = (BoxExtent::Pixels(extent), drawn(&shape));
                objects.push(NamedObject { name: shape.label, place, extent, crowd: false, shape: drawn });
            }
            Err(detail) => problems.push(unreadable_object(file, place, detail)),
        }
    }
    let side = |side: Option<f64>| side.filter(|v| *v >= 1.).map(|v| v as usize);
    let declared = side(width).zip(side(height)).map(|(w, h)| [w, h]);
    let source: Arc<Path> = file.into();
    Ok((
        DescribedPicture { path: normal(&path), declared, source, place: None, split: None, objects },
        problems,
        others,
    ))
}

/// The box around a shape.
fn extent(shape: &LabelmeShape) -> Result<[f64; 4], String> {
    let points = &shape.points;
    if let (Some("circle"), [[x, y], [x1, y1]]) = (shape.form.as_deref(), &points[..]) {
        let radius = (x1 - x).hypot(y1 - y);
        return Ok([x - radius, y - radius, 2. * radius, 2. * radius]);
    }
    around(points).ok_or_else(|| format!("'{}' has {} points, of which no box can be made", shape.label, points.len()))
}

/// The pixels of a shape; none where it has no area.
fn drawn(LabelmeShape { label, points, form }: &LabelmeShape) -> Option<DrawnShape> {
    let polygon = |points: &[[f64; 2]]| ObjectShape::Polygons(vec![points.concat()]);
    let pixels = match (form.as_deref().unwrap_or("polygon"), &points[..]) {
        ("polygon" | "oriented_rectangle", points) => polygon(points),
        ("rectangle", [[x0, y0], [x1, y1]]) => polygon(&[[*x0, *y0], [*x1, *y0], [*x1, *y1], [*x0, *y1]]),
        ("circle", [[x, y], [x1, y1]]) => polygon(&circle([*x, *y], [(x1 - x).hypot(y1 - y); 2])),
        ("line" | "linestrip" | "point" | "points", _) => return None,
        ("mask", _) => ObjectShape::Unknown(format!("'{label}' is a mask in base64, which is not read; draw polygons")),
        (other, points) => {
            let other = other.escape_debug();
            ObjectShape::Unknown(format!("'{label}' is a {other} of {} points, which is not read", points.len()))
        }
    };
    Some(DrawnShape { layer: 0, pixels })
}

/// Corners of the polygon that stands for a circle or ellipse.
pub(super) fn circle([x, y]: [f64; 2], [across, down]: [f64; 2]) -> Vec<[f64; 2]> {
    let corner = |i: usize| {
        let (sin, cos) = (std::f64::consts::TAU * i as f64 / ROUND as f64).sin_cos();
        [x + across * cos, y + down * sin]
    };
    (0..ROUND).map(corner).collect()
}

/// The box around at least two points.
pub(super) fn around(points: &[[f64; 2]]) -> Option<[f64; 4]> {
    if points.len() < 2 {
        return None;
    }
    let range = |axis: usize| {
        let values = || points.iter().map(move |point| point[axis]);
        // A number that is none must not be lost among others.
        if values().any(f64::is_nan) {
            return [f64::NAN; 2];
        }
        [values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)]
    };
    let ([left, right], [top, bottom]) = (range(0), range(1));
    Some([left, top, right - left, bottom - top])
}
