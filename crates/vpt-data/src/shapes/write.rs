//! Writes drawn data sets as an image folder or in the COCO layout.

use std::fs;
use std::path::Path;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde::Serialize;

use super::scene::{Colour, Shape};
use super::set::{Categories, ShapesConfig};
use super::{draw, name};
use crate::class_mask::ClassMask;
use crate::{MaskSetWriter, Split};
use vpt_base::files::whole;
use vpt_base::{Error, Result};
use vpt_image::Rgb8;

/// Writes the classification set as `out/{train,val,test}/CLASS/NUMBER.png`. Returns how many images each part has.
///
/// # Errors
/// `out` exists and is not an empty folder, cannot be written, or the configuration has a number out of range. Nothing is
/// left in `out` then.
pub fn write_folder(out: &Path, config: &ShapesConfig) -> Result<[usize; 3]> {
    config.check()?;
    let mut counts = [0; 3];
    whole(out, |folder| {
        for item in config.items() {
            let path = folder.join(&item.id);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(Error::io(parent))?;
            }
            write_png(&path, &draw(&item.scene, config.size).image)?;
            counts[item.split as usize] += 1;
        }
        Ok(())
    })?;
    Ok(counts)
}

#[derive(Serialize)]
struct Coco {
    info: SetInfo,
    licenses: [(); 0],
    images: Vec<ImageEntry>,
    annotations: Vec<AnnotationEntry>,
    categories: Vec<CategoryEntry>,
}

#[derive(Serialize)]
struct SetInfo {
    description: String,
}

#[derive(Serialize)]
struct ImageEntry {
    id: u64,
    file_name: String,
    width: usize,
    height: usize,
}

#[derive(Serialize)]
struct AnnotationEntry {
    id: u64,
    image_id: u64,
    category_id: u64,
    /// Left, top, width, height in pixels.
    bbox: [usize; 4],
    area: usize,
    iscrowd: u8,
}

#[derive(Serialize)]
struct CategoryEntry {
    id: u64,
    name: String,
    supercategory: &'static str,
}

/// Writes the detection set as `out/{train,val,test}/NUMBER.png` and `out/annotations/instances_{train,val,test}.json`.
/// Ids of images and boxes count from 1 through all parts. Boxes hold exactly the pixels that an object
/// covers by at least a half. Returns how many images each part has.
///
/// # Errors
/// As [`write_folder`].
pub fn write_coco(out: &Path, config: &ShapesConfig) -> Result<[usize; 3]> {
    config.check()?;
    let mut counts = [0; 3];
    whole(out, |folder| {
        let mut sets = Split::ALL.map(|split| empty_set(config, split));
        for split in Split::ALL {
            let part = folder.join(split.name());
            fs::create_dir(&part).map_err(Error::io(&part))?;
        }
        let mut boxes = 0;
        for (index, (split, scene)) in config.scenes().enumerate() {
            let drawing = draw(&scene, config.size);
            let set = &mut sets[split as usize];
            let id = index as u64 + 1;
            let file_name = format!("{id:06}.png");
            write_png(&folder.join(split.name()).join(&file_name), &drawing.image)?;
            set.images.push(ImageEntry { id, file_name, width: config.size, height: config.size });
            for (object, extent) in scene.objects.iter().zip(drawing.extents) {
                boxes += 1;
                set.annotations.push(AnnotationEntry {
                    id: boxes,
                    image_id: id,
                    category_id: config.categories.id(object.colour, object.shape),
                    bbox: [extent.x, extent.y, extent.width, extent.height],
                    area: extent.area,
                    iscrowd: 0,
                });
            }
            counts[split as usize] += 1;
        }
        let annotations = folder.join("annotations");
        fs::create_dir(&annotations).map_err(Error::io(&annotations))?;
        for (split, set) in Split::ALL.into_iter().zip(sets) {
            let path = annotations.join(format!("instances_{split}.json"));
            let json = serde_json::to_vec(&set).map_err(|error| Error::data(&path, error.to_string()))?;
            fs::write(&path, json).map_err(Error::io(&path))?;
        }
        Ok(())
    })?;
    Ok(counts)
}

/// Writes the segmentation set, the scenes of the detection set, in the layout of Pascal VOC: `JPEGImages/NUMBER.png`,
/// `SegmentationClass/NUMBER.png`, `ImageSets/Segmentation/{train,val,test}.txt` and `classes.txt`. A pixel is of an object that
/// covers it by at least a half. Returns how many images each part has.
///
/// # Errors
/// As [`write_folder`].
pub fn write_masks(out: &Path, config: &ShapesConfig) -> Result<[usize; 3]> {
    config.check()?;
    let categories = empty_set(config, Split::Train).categories;
    let names: Vec<String> =
        std::iter::once("background".to_owned()).chain(categories.iter().map(|c| c.name.clone())).collect();
    let mut counts = [0; 3];
    MaskSetWriter::fill(out, &names, &Split::ALL, |set| {
        for (index, (split, scene)) in config.scenes().enumerate() {
            let drawing = draw(&scene, config.size);
            let class = |owner: &u16| {
                let object = usize::from(*owner).checked_sub(1).map(|at| &scene.objects[at]);
                let id = object.map(|object| config.categories.id(object.colour, object.shape));
                id.and_then(|id| categories.iter().position(|category| category.id == id)).map_or(0, |at| at as u16 + 1)
            };
            let classes = drawing.owners.iter().map(class).collect();
            let mask = ClassMask { width: config.size, height: config.size, classes };
            let name = format!("{:06}.png", index + 1);
            set.add(split, Path::new(&name), &mask, |to| write_png(to, &drawing.image))?;
            counts[split as usize] += 1;
        }
        Ok(())
    })?;
    Ok(counts)
}

fn empty_set(config: &ShapesConfig, split: Split) -> Coco {
    let category = |(colour, shape): (Colour, Shape)| {
        let name = match config.categories {
            Categories::Shapes => shape.word().to_owned(),
            Categories::Pairs => name(colour, shape),
        };
        CategoryEntry { id: config.categories.id(colour, shape), name, supercategory: "shape" }
    };
    let objects = match config.categories {
        Categories::Shapes => Shape::ALL.map(|shape| (Colour::ALL[0], shape)).to_vec(),
        Categories::Pairs => config.pairs.list(),
    };
    let mut categories: Vec<CategoryEntry> = objects.into_iter().map(category).collect();
    categories.sort_by_key(|category| category.id);
    Coco {
        info: SetInfo { description: format!("drawn shapes, {split}, seed {}", config.seed) },
        licenses: [],
        images: Vec::new(),
        annotations: Vec::new(),
        categories,
    }
}

/// Writes `image` as PNG.
pub(crate) fn write_png(path: &Path, image: &Rgb8) -> Result<()> {
    let mut bytes = Vec::new();
    let (width, height) = (image.width as u32, image.height as u32);
    PngEncoder::new(&mut bytes)
        .write_image(&image.pixels, width, height, ExtendedColorType::Rgb8)
        .map_err(|error| Error::data(path, error.to_string()))?;
    fs::write(path, bytes).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;
    use crate::masks::MaskDataset;
    use crate::shapes::{Pairs, ShapesTask, dataset};
    use vpt_image::decode;

    #[test]
    fn a_folder_holds_the_images_of_the_set_in_memory() {
        let config = ShapesConfig { images: 64, pairs: Pairs::Unseen, ..ShapesConfig::default() };
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/shapes");
        assert_eq!(write_folder(&out, &config).unwrap(), [32, 16, 16]);
        let set = dataset(&config).unwrap();
        for sample in Split::ALL.into_iter().flat_map(|part| set.part(part)) {
            assert_eq!(decode(&out.join(&sample.id)).unwrap(), sample.load().unwrap(), "{}", sample.id);
        }
        // Nothing temporary is left beside it, and it is not written over.
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
        assert!(write_folder(&out, &config).unwrap_err().to_string().contains("not empty"));
    }

    #[test]
    fn masks_cover_what_the_boxes_are_around() {
        let config = ShapesConfig { images: 16, task: ShapesTask::Segment, ..ShapesConfig::default() };
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("masks");
        assert_eq!(write_masks(&out, &config).unwrap(), [10, 2, 4]);
        let set = MaskDataset::open(&out, 1).unwrap();
        assert_eq!((set.layout, set.faults.len(), set.notes.len()), (Layout::VOC_MASKS, 0, 0));
        assert_eq!((set.classes.names.len(), set.classes.names[0].as_str()), (9, "background"));
        let scenes: Vec<_> = config.scenes().collect();
        let all: Vec<_> = Split::ALL.into_iter().flat_map(|split| set.part(split)).collect();
        for (image, (_, scene)) in all.into_iter().zip(&scenes) {
            let drawing = draw(scene, config.size);
            assert_eq!(image.image.load().unwrap(), drawing.image);
            let mask = image.mask().unwrap();
            for (object, extent) in scene.objects.iter().zip(&drawing.extents) {
                let class = object.shape as u16 + 1;
                let own = (extent.y..extent.y + extent.height)
                    .flat_map(|y| (extent.x..extent.x + extent.width).map(move |x| y * config.size + x))
                    .filter(|at| mask.classes[*at] == class);
                assert!(own.count() * 10 >= extent.area * 9, "{object:?}");
            }
            let covered = mask.classes.iter().filter(|class| **class != 0).count();
            assert_eq!(covered, drawing.owners.iter().filter(|owner| **owner != 0).count());
        }
    }

    #[test]
    fn coco_files_describe_the_scenes() {
        let config = ShapesConfig { images: 40, task: ShapesTask::Detect, ..ShapesConfig::default() };
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write_coco(dir.path(), &config).unwrap(), [25, 5, 10]);
        let (mut images, mut boxes) = (Vec::new(), Vec::new());
        for split in Split::ALL {
            let path = dir.path().join(format!("annotations/instances_{split}.json"));
            let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            assert_eq!(json["categories"].as_array().unwrap().len(), 8);
            for image in json["images"].as_array().unwrap() {
                let file = dir.path().join(split.name()).join(image["file_name"].as_str().unwrap());
                assert_eq!(decode(&file).unwrap().width as u64, image["width"].as_u64().unwrap());
                images.push(image["id"].as_u64().unwrap());
            }
            for annotation in json["annotations"].as_array().unwrap() {
                assert!(images.contains(&annotation["image_id"].as_u64().unwrap()));
                let [x, y, w, h] = [0, 1, 2, 3].map(|i| annotation["bbox"][i].as_u64().unwrap());
                let area = annotation["area"].as_u64().unwrap();
                assert!(w > 0 && h > 0 && x + w <= 64 && y + h <= 64 && area <= w * h && area > w * h / 8);
                boxes.push(annotation["id"].as_u64().unwrap());
            }
        }
        assert_eq!(images, (1..=40).collect::<Vec<_>>());
        assert_eq!(boxes, (1..=boxes.len() as u64).collect::<Vec<_>>());
        assert!(boxes.len() > 60);
    }

    #[test]
    fn categories_can_be_pairs_with_the_same_ids_in_all_sets() {
        let read = |pairs| {
            let (task, categories) = (ShapesTask::Detect, Categories::Pairs);
            let config = ShapesConfig { images: 40, task, categories, pairs, ..ShapesConfig::default() };
            let dir = tempfile::tempdir().unwrap();
            write_coco(dir.path(), &config).unwrap();
            let json = fs::read(dir.path().join("annotations/instances_train.json")).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let id = |category: &serde_json::Value| (category["id"].as_u64().unwrap(), category["name"].to_string());
            let listed: Vec<_> = json["categories"].as_array().unwrap().iter().map(id).collect();
            let used = json["annotations"].as_array().unwrap().iter().map(|a| a["category_id"].as_u64().unwrap());
            assert!(used.into_iter().all(|used| listed.iter().any(|(id, _)| *id == used)));
            listed
        };
        let (all, unseen) = (read(Pairs::All), read(Pairs::Unseen));
        assert_eq!((all.len(), unseen.len()), (64, 16));
        assert!(unseen.iter().all(|category| all.contains(category)));
    }
}
