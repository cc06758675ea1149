//! CVAT for images: one `annotations.xml` with all images and their shapes, and the labels of the task.
//!
//! Boxes are edges counted from 0. Of polygons, polylines, ellipses and masks the box around them is taken, which is said; for masks
//! of classes their pixels are, a higher `z_order` over a lower one, and in one what comes later over what came before. Images
//! of a subset are in `images/SUBSET/` or beside the file; subsets called like parts are the parts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use roxmltree::Node;

use super::coco::ObjectShape;
use super::labelme::{around, around_shapes, circle};
use super::named_boxes::{
    AnnotationSource, DescribedPicture, DescribedSet, DrawnShape, NamedBoxes, NamedObject, PictureFolders, alone,
    called,
};
use super::text_file::{beginning, parse_xml, read_text};
use super::{Candidate, Format, Layout, Recognition};
use crate::Split;
use crate::boxes::{BoxExtent, PlaceInFile, normal};
use vpt_base::{Error, Result};

impl Layout {
    /// CVAT's file of all images.
    pub const CVAT: Self = Self::new("cvat", "CVAT for images");
}

/// CVAT's file of all images.
pub(super) const FORMAT: Format =
    Format { has_boxes: true, recognize: |candidate| Ok(Recognition::of_boxes(Layout::CVAT, find(candidate))) };

/// Longest XML file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 28;

/// Most elements, texts and the like of it.
const MAX_NODES: u32 = 1 << 24;

pub(super) fn find(candidate: &Candidate<'_>) -> Option<NamedBoxes> {
    let Candidate { path, is_folder } = *candidate;
    let (root, sources): (&Path, Vec<AnnotationSource>) = if is_folder {
        (path, called(path, "annotations.xml").into_iter().filter(|(_, file)| is_one(file)).collect())
    } else {
        (path.parent().unwrap_or(Path::new("")), alone(path, is_one(path)))
    };
    NamedBoxes::found(root, sources, read)
}

fn is_one(path: &Path) -> bool {
    beginning(path, "xml", 4096).is_some_and(|text| text.contains("<annotations>"))
}

fn read(root: &Path, source: &AnnotationSource) -> Result<DescribedSet> {
    let (_, path) = source;
    let text = read_text(path, MAX_BYTES)?;
    let document = parse_xml(path, &text, MAX_NODES)?;
    let top = document.root_element();
    if top.children().any(|node| node.has_tag_name("track")) {
        let message = "tracks of objects through a video; export the task as CVAT for images";
        return Err(Error::data(path, message));
    }
    let images: Vec<Node<'_, '_>> = top.children().filter(|node| node.has_tag_name("image")).collect();
    if images.is_empty() {
        return Err(Error::data(path, "it lists no images"));
    }
    let names: Vec<&str> = images.iter().filter_map(|image| image.attribute("name")).collect();
    let folders = PictureFolders::of(root, source);
    let folder = folders.best(path, &names.iter().copied()).or_else(|error| {
        let subset = images.iter().find_map(|image| image.attribute("subset")).unwrap_or_default();
        let places = [root.join("images").join(subset), root.join(subset)];
        places.into_iter().find(|folder| names.iter().any(|name| folder.join(name).is_file())).ok_or(error)
    })?;
    let labels: Vec<String> = top
        .descendants()
        .filter(|node| node.has_tag_name("label") && node.parent_element().is_some_and(|up| up.has_tag_name("labels")))
        .filter_map(|label| label.children().find(|child| child.has_tag_name("name"))?.text())
        .map(|name| name.trim().to_owned())
        .collect();
    let shared: Arc<Path> = path.as_path().into();
    let mut found = DescribedSet { names: Some(labels).filter(|labels| !labels.is_empty()), ..DescribedSet::default() };
    let (mut shapes, mut tags) = (0, 0);
    for image in images {
        let line =
            |node: Node<'_, '_>| Some(PlaceInFile::Line(u64::from(document.text_pos_at(node.range().start).row)));
        let Some(name) = image.attribute("name") else {
            return Err(Error::data(path, format!("image {} has no name", image.attribute("id").unwrap_or("?"))));
        };
        let subset = image.attribute("subset");
        let split = subset.and_then(Split::from_name);
        let side = |key: &str| image.attribute(key)?.parse::<f64>().ok().filter(|v| *v >= 1.).map(|v| v as usize);
        let mut objects = Vec::new();
        for shape in image.children().filter(Node::is_element) {
            if shape.has_tag_name("tag") {
                tags += 1;
                continue;
            }
            let place = line(shape);
            match object(shape) {
                Ok((name, extent)) => {
                    shapes += usize::from(!shape.has_tag_name("box"));
                    let (extent, shape) = (BoxExtent::Pixels(extent), drawn(shape, extent));
                    objects.push(NamedObject { name, place, extent, crowd: false, shape });
                }
                Err(detail) => found.drop_object(path, place, detail),
            }
        }
        let declared = side("width").zip(side("height")).map(|(w, h)| [w, h]);
        let file = place_of(&folder, root, subset, name);
        let (source, place) = (shared.clone(), line(image));
        found.pictures.push(DescribedPicture { path: file, declared, source, place, split, objects });
    }
    if shapes > 0 {
        found.problems.push(around_shapes(path, shapes));
    }
    if tags > 0 {
        found.drop_object(path, None, format!("{tags} tags of whole images, where boxes are read"));
    }
    Ok(found)
}

/// Where an image is: in the folder of the others, or in its subset's.
fn place_of(folder: &Path, root: &Path, subset: Option<&str>, name: &str) -> PathBuf {
    let subset = subset.unwrap_or_default();
    let places = [folder.join(name), root.join("images").join(subset).join(name), root.join(subset).join(name)];
    let found = places.iter().find(|path| path.is_file()).unwrap_or(&places[0]);
    normal(found)
}

fn object(shape: Node<'_, '_>) -> Result<(String, [f64; 4]), String> {
    let label = shape.attribute("label").ok_or_else(|| format!("a <{}> without a label", shape.tag_name().name()))?;
    let number = |key: &str| {
        let value = shape.attribute(key).and_then(|value| value.trim().parse::<f64>().ok());
        value.ok_or_else(|| format!("'{label}' has no number {key}"))
    };
    let extent = match shape.tag_name().name() {
        "box" => {
            let [left, top, right, bottom] = [number("xtl")?, number("ytl")?, number("xbr")?, number("ybr")?];
            let turn = shape.attribute("rotation").and_then(|turn| turn.parse::<f64>().ok()).unwrap_or(0.);
            turned([left, top, right, bottom], turn)
        }
        "ellipse" => {
            let [x, y, rx, ry] = [number("cx")?, number("cy")?, number("rx")?, number("ry")?];
            [x - rx, y - ry, 2. * rx, 2. * ry]
        }
        "mask" => [number("left")?, number("top")?, number("width")?, number("height")?],
        _ => {
            let extent = points(shape).as_deref().and_then(around);
            extent.ok_or_else(|| format!("'{label}' has no points of which a box can be made"))?
        }
    };
    Ok((label.to_owned(), extent))
}

/// The points of a shape.
fn points(shape: Node<'_, '_>) -> Option<Vec<[f64; 2]>> {
    let text = shape.attribute("points").unwrap_or_default();
    let point = |point: &str| {
        let (x, y) = point.split_once(',')?;
        Some([x.trim().parse().ok()?, y.trim().parse().ok()?])
    };
    text.split(';').filter(|point| !point.is_empty()).map(point).collect()
}

/// The pixels of a shape with this box around it; none where it has no area.
fn drawn(shape: Node<'_, '_>, extent: [f64; 4]) -> Option<DrawnShape> {
    let number = |key: &str| shape.attribute(key).and_then(|value| value.trim().parse::<f64>().ok());
    let turn = number("rotation").unwrap_or(0.);
    let polygon = |points: Vec<[f64; 2]>| ObjectShape::Polygons(vec![points.concat()]);
    let pixels = match shape.tag_name().name() {
        "box" => {
            let [left, top, right, bottom] = [number("xtl")?, number("ytl")?, number("xbr")?, number("ybr")?];
            let corners = vec![[left, top], [right, top], [right, bottom], [left, bottom]];
            polygon(about(corners, [f64::midpoint(left, right), f64::midpoint(top, bottom)], turn))
        }
        "ellipse" => {
            let middle = [number("cx")?, number("cy")?];
            polygon(about(circle(middle, [number("rx")?, number("ry")?]), middle, turn))
        }
        "polygon" => polygon(points(shape)?),
        "mask" => match (extent.map(whole), lengths(shape.attribute("rle").unwrap_or_default())) {
            ([Some(left), Some(top), Some(width), Some(height)], Some(counts)) => {
                ObjectShape::Rows([left, top, width, height], counts)
            }
            _ => ObjectShape::Unknown("a mask without whole numbers of pixels".to_owned()),
        },
        _ => return None,
    };
    let layer = shape.attribute("z_order").and_then(|layer| layer.trim().parse().ok()).unwrap_or(0);
    Some(DrawnShape { layer, pixels })
}

fn whole(value: f64) -> Option<usize> {
    ((0. ..=1e9).contains(&value) && value.fract() == 0.).then_some(value as usize)
}

/// Lengths of runs with commas between them.
fn lengths(text: &str) -> Option<Vec<u32>> {
    text.split(',').map(|length| length.trim().parse().ok()).collect()
}

/// `points` turned about `middle` by `degrees`.
fn about(points: Vec<[f64; 2]>, [x, y]: [f64; 2], degrees: f64) -> Vec<[f64; 2]> {
    if degrees % 360. == 0. {
        return points;
    }
    let (sin, cos) = degrees.to_radians().sin_cos();
    let turn = |[px, py]: [f64; 2]| {
        let (dx, dy) = (px - x, py - y);
        [x + dx * cos - dy * sin, y + dx * sin + dy * cos]
    };
    points.into_iter().map(turn).collect()
}

/// The box around one that is turned about its centre by `degrees`.
fn turned([left, top, right, bottom]: [f64; 4], degrees: f64) -> [f64; 4] {
    let (width, height) = (right - left, bottom - top);
    if degrees % 360. == 0. {
        return [left, top, width, height];
    }
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (w, h) = (width * cos.abs() + height * sin.abs(), width * sin.abs() + height * cos.abs());
    let (x, y) = (left + width / 2., top + height / 2.);
    [x - w / 2., y - h / 2., w, h]
}
