//! From one layout to another. What both can hold comes out as it went in: parts, their order, names, boxes to a thousandth
//! of a pixel, categories with and without objects. What the target cannot hold is counted.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::check::thousandth;
use super::{BoxDataset, BoxImage, BoxLayout, Object, Rect};
use crate::data::Split;
use crate::data::examine::Counts;
use crate::data::formats::yolo::label_path;
use crate::files::whole;
use crate::image::decode::has_image_extension;
use crate::{Error, Result};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// Images in each part.
    pub images: Counts,
    /// Objects in each part.
    pub objects: Counts,
    /// Categories, those without objects too.
    pub categories: usize,
    /// What the layout cannot hold.
    pub lost: Lost,
}

/// What a layout cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Boxes around crowds, which are left out: a layout without a word for them would make objects of them.
    pub crowds: usize,
    /// Areas that are not those of the boxes.
    pub areas: usize,
    /// Whether ids of categories, other than 1, 2, …, are lost.
    pub category_ids: bool,
    /// Whether ids of images and objects, other than 1, 2, … through a part, are lost.
    pub ids: bool,
}

/// Writes `data` to the new or empty folder `out` in the layout `to`. Images are hard links to the originals where the file
/// system has them, else copies.
///
/// COCO: `{train,val,test}/` and `annotations/instances_{train,val,test}.json`. YOLO: `data.yaml`, `images/` and `labels/`
/// with the parts in them. Pascal VOC: `JPEGImages/`, `Annotations/`, `ImageSets/Main/` and `classes.txt`. Images keep their
/// path below the folder that all images of their part share.
///
/// # Errors
/// `out` exists and is not an empty folder, or a file cannot be written; or the layout cannot hold a name: of two images in
/// one folder that differ in their ending only, or of a category that takes more than a line. Nothing is left in `out` then.
pub fn convert(data: &BoxDataset, to: BoxLayout, out: &Path) -> Result<Converted> {
    let names = stored_names(data, to)?;
    let count = |of: fn(&BoxImage) -> usize| Split::ALL.map(|split| data.part(split).iter().map(of).sum::<usize>());
    let (crowds, areas) = (count(|i| i.objects.iter().filter(|o| o.crowd).count()), count(own_areas));
    let objects = count(|i| i.objects.len());
    let mut lost = Lost::default();
    if to != BoxLayout::Coco {
        lost.category_ids = !data.categories.iter().zip(1..).all(|(category, id)| category.id == id);
        lost.ids = !Split::ALL.into_iter().all(|split| is_numbered(data.part(split)));
    }
    if to == BoxLayout::Yolo {
        lost.crowds = crowds.iter().sum();
        lost.areas = areas.iter().sum();
    }
    whole(out, |folder| {
        match to {
            BoxLayout::Coco => write_coco(data, &names, folder),
            BoxLayout::Yolo => write_yolo(data, &names, folder),
            BoxLayout::Voc => write_voc(data, &names, folder),
        }
        // The folder has another name while it is filled.
        .map_err(|error| match error {
            Error::Io { path, source } => {
                let path = path.strip_prefix(folder).map(|inner| out.join(inner)).unwrap_or(path.clone());
                Error::Io { path, source }
            }
            other => other,
        })
    })?;
    let counts = |[train, val, test]: [usize; 3]| Counts { train, val, test };
    let written = if to == BoxLayout::Yolo { [0, 1, 2].map(|i| objects[i] - crowds[i]) } else { objects };
    Ok(Converted { images: counts(count(|_| 1)), objects: counts(written), categories: data.categories.len(), lost })
}

/// Objects, crowds aside, whose area is not the box's.
fn own_areas(image: &BoxImage) -> usize {
    image.objects.iter().filter(|object| !object.crowd && own_area(object).is_some()).count()
}

fn own_area(object: &Object) -> Option<f64> {
    Some(object.area).filter(|area| (area - object.rect.area()).abs() > 1e-6 * area)
}

/// Whether ids are those that a layout without ids would give.
fn is_numbered(part: &[BoxImage]) -> bool {
    let mut objects = part.iter().flat_map(|image| &image.objects).zip(1..);
    part.iter().zip(1..).all(|(image, id)| image.id == id) && objects.all(|(object, id)| object.id == id)
}

/// What images are called in each part: paths with `/` between the parts.
type Names = [Vec<String>; 3];

fn stored_names(data: &BoxDataset, to: BoxLayout) -> Result<Names> {
    let mut names = Split::ALL.map(|split| below_shared_folder(data.part(split)));
    let refuse =
        |name: &str, why: &str| Err(Error::invalid(format!("data set {}", data.name), format!("{name}: {why}")));
    let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned();
    if to == BoxLayout::Voc {
        // One folder holds all parts.
        let mut seen = HashSet::new();
        if !names.iter().flatten().all(|name| seen.insert(stem(name))) {
            for (split, part) in Split::ALL.into_iter().zip(&mut names) {
                for name in part {
                    *name = format!("{split}/{name}");
                }
            }
        }
        let is_line = |name: &str| !name.is_empty() && name.trim() == name && !name.contains(char::is_control);
        if let Some(category) = data.categories.iter().find(|category| !is_line(&category.name)) {
            return refuse(&category.name, "Pascal VOC cannot hold this name of a category");
        }
        if let Some(name) = names.iter().flatten().find(|name| !is_line(&stem(name))) {
            return refuse(name, "Pascal VOC cannot hold this name of an image");
        }
    }
    let mut seen = HashSet::new();
    for (split, name) in
        Split::ALL.into_iter().zip(&names).flat_map(|(split, part)| part.iter().map(move |n| (split, n)))
    {
        let is_found = has_image_extension(Path::new(name)) && !name.split('/').any(|part| part.starts_with('.'));
        if to != BoxLayout::Coco && !is_found {
            return refuse(name, &format!("{} finds images by their ending, and none that are hidden", to.title()));
        }
        let key = if to == BoxLayout::Coco { name.clone() } else { stem(name) };
        if !seen.insert((split, key)) {
            return refuse(name, &format!("{} has one place for this image and another one; rename one", to.title()));
        }
    }
    Ok(names)
}

/// Names of images without the folders that all of them begin with, and without what could lead out of a folder.
fn below_shared_folder(part: &[BoxImage]) -> Vec<String> {
    let plain = |name: &str| -> Vec<String> {
        let parts = name.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | ".."));
        parts.map(|part| part.replace(':', "_")).collect()
    };
    let mut names: Vec<Vec<String>> = part.iter().map(|image| plain(&image.name)).collect();
    let folders = |name: &[String]| name.len().saturating_sub(1);
    let mut shared = names.first().map_or(0, |first| folders(first));
    for name in &names {
        let same = name.iter().zip(&names[0]).take_while(|(a, b)| a == b).count();
        shared = shared.min(same).min(folders(name));
    }
    names.iter_mut().map(|name| name.split_off(shared).join("/")).collect()
}

fn create_folder_of(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io(folder)))
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    create_folder_of(path)?;
    fs::write(path, content).map_err(Error::io(path))
}

fn place_image(from: &Path, to: &Path) -> Result<()> {
    create_folder_of(to)?;
    // A link to a symbolic link would point elsewhere from its new place.
    let from = fs::canonicalize(from).map_err(Error::io(from))?;
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to).map_err(Error::io(&from))?;
    }
    Ok(())
}

fn write_coco(data: &BoxDataset, names: &Names, out: &Path) -> Result<()> {
    let category = |c: &super::Category| json!({ "id": c.id, "name": c.name, "supercategory": "none" });
    let categories: Vec<_> = data.categories.iter().map(category).collect();
    for (split, names) in Split::ALL.into_iter().zip(names) {
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        for (image, name) in data.part(split).iter().zip(names) {
            place_image(&image.path, &out.join(split.name()).join(name))?;
            let BoxImage { id, width, height, .. } = image;
            images.push(json!({ "id": id, "file_name": name, "width": width, "height": height }));
            for Object { id, category, rect: Rect { x, y, width, height }, area, crowd } in &image.objects {
                annotations.push(json!({
                    "id": id,
                    "image_id": image.id,
                    "category_id": data.categories[*category].id,
                    "bbox": [x, y, width, height],
                    "area": area,
                    "iscrowd": u8::from(*crowd),
                }));
            }
        }
        let info = json!({ "description": format!("{}, {split}", data.name) });
        let all = json!({
            "info": info,
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        });
        write(&out.join(format!("annotations/instances_{split}.json")), all.to_string())?;
    }
    Ok(())
}

fn write_yolo(data: &BoxDataset, names: &Names, out: &Path) -> Result<()> {
    // Without `path:`, other paths are seen from the file's own folder.
    let mut yaml = String::new();
    for split in Split::ALL {
        _ = writeln!(yaml, "{split}: images/{split}");
    }
    _ = writeln!(yaml, "nc: {}\nnames:", data.categories.len());
    for (i, category) in data.categories.iter().enumerate() {
        // A string of JSON is one of YAML.
        _ = writeln!(yaml, "  {i}: {}", json!(category.name));
    }
    write(&out.join("data.yaml"), yaml)?;
    for (split, names) in Split::ALL.into_iter().zip(names) {
        for (image, name) in data.part(split).iter().zip(names) {
            let path = out.join("images").join(split.name()).join(name);
            place_image(&image.path, &path)?;
            let mut lines = String::new();
            let (width, height) = (image.width as f64, image.height as f64);
            for object in image.objects.iter().filter(|object| !object.crowd) {
                let Rect { x, y, width: w, height: h } = object.rect;
                let numbers = [(x + w / 2.) / width, (y + h / 2.) / height, w / width, h / height];
                let numbers =
                    numbers.map(|v| format!("{v:.12}").trim_end_matches('0').trim_end_matches('.').to_owned());
                _ = writeln!(lines, "{} {}", object.category, numbers.join(" "));
            }
            write(&label_path(&path), lines)?;
        }
    }
    Ok(())
}

fn write_voc(data: &BoxDataset, names: &Names, out: &Path) -> Result<()> {
    let classes: Vec<&str> = data.categories.iter().map(|category| category.name.as_str()).collect();
    write(&out.join("classes.txt"), classes.join("\n") + "\n")?;
    for (split, names) in Split::ALL.into_iter().zip(names) {
        let mut list = String::new();
        for (image, name) in data.part(split).iter().zip(names) {
            let id = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
            place_image(&image.path, &out.join("JPEGImages").join(name))?;
            write(&out.join("Annotations").join(format!("{id}.xml")), xml(image, name, &classes))?;
            _ = writeln!(list, "{id}");
        }
        write(&out.join(format!("ImageSets/Main/{split}.txt")), list)?;
    }
    Ok(())
}

fn xml(image: &BoxImage, name: &str, classes: &[&str]) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    let mut out = "<annotation>\n  <folder>JPEGImages</folder>\n".to_owned();
    _ = writeln!(out, "  <filename>{}</filename>", escaped(file));
    _ = write!(out, "  <size><width>{}</width><height>{}</height>", image.width, image.height);
    out += "<depth>3</depth></size>\n  <segmented>0</segmented>\n";
    for object in &image.objects {
        let Object { category, rect, crowd, .. } = object;
        _ = write!(out, "  <object>\n    <name>{}</name>\n    <pose>Unspecified</pose>\n", escaped(classes[*category]));
        // Programs that know nothing of crowds do not count difficult objects.
        _ = writeln!(out, "    <truncated>0</truncated>\n    <difficult>{}</difficult>", u8::from(*crowd));
        let corners = [rect.x + 1., rect.y + 1., rect.right(), rect.bottom()].map(thousandth);
        let corners = ["xmin", "ymin", "xmax", "ymax"].into_iter().zip(corners);
        let corners: Vec<String> = corners.map(|(key, v)| format!("<{key}>{v}</{key}>")).collect();
        _ = writeln!(out, "    <bndbox>{}</bndbox>", corners.concat());
        if let Some(area) = own_area(object) {
            _ = writeln!(out, "    <area>{area}</area>");
        }
        if *crowd {
            out += "    <crowd>1</crowd>\n";
        }
        out += "  </object>\n";
    }
    out + "</annotation>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
