//! Data sets of boxes: which objects are where in an image, for detection and multi-label classification.
//!
//! Coordinates are pixels of the image as it lies on disk, real numbers counted from its upper left corner: the first pixel
//! spans 0 to 1 in both directions.

mod augment;
mod check;
mod convert;
mod crops;
mod examine;
mod loader;
mod open;
mod problem;
mod shots;
#[cfg(test)]
mod tests;
mod tiles;
mod view;

pub use augment::BoxAugment;
pub(super) use check::{AnnotatedImage, AnnotatedObject, BoxExtent, placed, thousandth, verify};
pub use convert::{BoxLayout, Converted, Lost, convert, convert_parts};
pub(super) use convert::{Conversion, create_folder_of, link_or_copy, own_area};
pub use examine::{BoxSummary, CategorySummary, ProblemCount, Sizes};
pub use loader::{BoxBatch, BoxLoader, BoxLoaderOptions};
pub(super) use open::{AnnotatedSet, normal, parts, renumber, several_classes};
pub use problem::{PlaceInFile, Problem, ProblemKind, Remedy};
pub use shots::{BoxShots, own_shots};
pub use tiles::{MAX_TILES, Tile, TiledImages};
pub use view::{BoxInput, Fit, MIN_SEEN, Target, View, Viewed};

use std::path::Path;

use serde::{Deserialize, Serialize};
use vpt_base::{Error, Result};
use vpt_image::Rgb8;

use super::{ImageSource, Layout, Split, SplitFile};

/// A rectangle with sides along the axes, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rect {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// From left to right.
    pub width: f64,
    /// From top to bottom.
    pub height: f64,
}

impl Rect {
    /// Square pixels.
    pub fn area(self) -> f64 {
        self.width * self.height
    }

    /// Right edge.
    pub fn right(self) -> f64 {
        self.x + self.width
    }

    /// Lower edge.
    pub fn bottom(self) -> f64 {
        self.y + self.height
    }

    /// Square pixels that both cover.
    pub fn intersection(self, other: Self) -> f64 {
        let width = self.right().min(other.right()) - self.x.max(other.x);
        let height = self.bottom().min(other.bottom()) - self.y.max(other.y);
        if width > 0. && height > 0. { width * height } else { 0. }
    }

    /// Intersection over union; 0 where both are empty.
    pub fn iou(self, other: Self) -> f64 {
        let both = self.intersection(other);
        let any = self.area() + other.area() - both;
        if any > 0. { both / any } else { 0. }
    }
}

/// One object in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// The annotation's id in its file, above 0; where the format has none, counted from 1 through the part.
    pub id: u64,
    /// Index into [`BoxDataset::categories`].
    pub category: usize,
    /// Where it is.
    pub rect: Rect,
    /// The area that decides whether it is small, medium or large: the annotation's own, else the rectangle's.
    pub area: f64,
    /// Many objects in one rectangle, not to be told apart: nothing to learn from, and no fault to find or to miss.
    pub crowd: bool,
}

/// An image with its objects.
#[derive(Clone, Debug, PartialEq)]
pub struct BoxImage {
    /// Its number in result files: COCO's image id; where the format has none, counted from 1 through the part.
    pub id: u64,
    /// What the image is called in split files, unique in the data set: its path relative to the data set's folder with `/`
    /// between the parts.
    pub name: String,
    /// Where its pixels are.
    pub image: ImageSource,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// What is in it.
    pub objects: Vec<Object>,
}

impl BoxImage {
    /// An image called `name` of which nothing is known but its size, which is looked up.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn unlabelled(name: String, image: ImageSource) -> Result<Self> {
        let [width, height] = image.size()?;
        Ok(Self { id: 0, name, image, width, height, objects: Vec::new() })
    }

    /// The file to name when something is wrong with the image: the one that holds it, else its name.
    pub fn file(&self) -> &Path {
        self.image.file().unwrap_or(Path::new(&self.name))
    }

    /// Its pixels.
    pub(super) fn load_checked(&self) -> Result<Rgb8> {
        let pixels = self.image.load()?;
        if (pixels.width, pixels.height) != (self.width, self.height) {
            let (w, h) = (pixels.width, pixels.height);
            let message = format!("{w}x{h} pixels, but its annotation is for {}x{}", self.width, self.height);
            return Err(Error::image(self.file(), message));
        }
        Ok(pixels)
    }
}

/// What an object can be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// Its number in result files: COCO's category id; where the format has none, counted from 1.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// Images with objects, in three parts. Images are in the order of their file names.
#[derive(Clone, Debug)]
pub struct BoxDataset {
    /// A short name: the folder's or file's.
    pub name: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// What objects can be, in COCO's order of ids, YOLO's order, VOC's `classes.txt` or else by name.
    pub categories: Vec<Category>,
    /// What is learned from.
    pub train: Vec<BoxImage>,
    /// What chooses epochs and hyperparameters.
    pub val: Vec<BoxImage>,
    /// What is looked at once, at the end.
    pub test: Vec<BoxImage>,
    /// Where the three parts come from, as a sentence for the user.
    pub split_note: String,
    /// The part on disk that each of train, val and test was taken from; none where there are no parts.
    pub given: [Option<Split>; 3],
    /// What was wrong with it and what was done about it.
    pub problems: Vec<Problem>,
    /// The boxes that train and val are limited to, where some were drawn.
    pub draw: Option<BoxShots>,
}

impl BoxDataset {
    /// Images to learn from and no others.
    pub fn of_train(name: &str, layout: Layout, categories: Vec<Category>, train: Vec<BoxImage>) -> Self {
        Self {
            name: name.to_owned(),
            layout,
            categories,
            train,
            val: Vec::new(),
            test: Vec::new(),
            split_note: String::new(),
            given: [None; 3],
            problems: Vec::new(),
            draw: None,
        }
    }

    /// The content of `split.json`: which image was in which part.
    pub fn split_file(&self) -> SplitFile {
        SplitFile::of_boxes(self)
    }

    /// BLAKE3 over parts, categories and objects, as 64 hexadecimal digits: it changes with anything that training or
    /// evaluation sees but the pixels themselves.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for Category { id, name } in &self.categories {
            text(&format!("{id} {name}"));
        }
        for split in Split::ALL {
            text(&format!("{split} {}", self.part(split).len()));
            for image in self.part(split) {
                let BoxImage { id, name, width, height, objects, .. } = image;
                text(&format!("{id} {width} {height} {} {name}", objects.len()));
                for Object { id, category, rect, area, crowd } in objects {
                    let Rect { x, y, width, height } = rect;
                    text(&format!("{id} {category} {x} {y} {width} {height} {area} {crowd}"));
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Refuses a data set in which there is nothing to learn.
    ///
    /// # Errors
    /// No image of train has an object.
    pub fn refuse_without_objects(&self) -> Result<()> {
        match self.problems.iter().find(|problem| problem.remedy == Remedy::NothingToLearn) {
            Some(Problem { file, detail, remedy, .. }) => Err(Error::data(file, format!("{detail}; {remedy}"))),
            None => Ok(()),
        }
    }

    /// The categories' names.
    pub fn names(&self) -> Vec<String> {
        self.categories.iter().map(|category| category.name.clone()).collect()
    }

    /// The images of one part.
    pub fn part(&self, split: Split) -> &[BoxImage] {
        split.of([&self.train, &self.val, &self.test])
    }

    /// The images of one part.
    pub fn part_mut(&mut self, split: Split) -> &mut Vec<BoxImage> {
        split.of([&mut self.train, &mut self.val, &mut self.test])
    }
}
