//! Data sets of drawn scenes: which scenes they hold, and the classification set in memory.

use std::sync::Arc;

use rand::Rng;

use super::scene::{Colour, Pairs, Scene, Shape, Style, rng};
use super::{PURPOSE_CLASSIFY, PURPOSE_DETECT, draw, name};
use crate::{Dataset, ImageSource, Layout, Sample, Split};
use vpt_base::choice::choice;
use vpt_base::{Error, Result};

choice! {
    /// What a drawn data set is for.
    pub enum ShapesTask for "task" {
        /// One object in each image; classes are colour-shape pairs.
        Classify = "classify",
        /// Several objects in each image, with boxes; classes are shapes.
        Detect = "detect",
        /// The same images, with the class of each pixel: background, or a shape.
        Segment = "segment",
    }
}

choice! {
    /// What the categories of a drawn set of boxes or masks are.
    pub enum Categories for "categories" {
        /// The eight shapes, whatever their colour.
        Shapes = "shapes",
        /// Pairs of a colour and a shape: "red circle".
        Pairs = "pairs",
    }
}

impl Categories {
    /// The category of an object, from 1; pairs are numbered alike in all sets.
    pub(super) fn id(self, colour: Colour, shape: Shape) -> u64 {
        let shapes = Shape::ALL.len() as u64;
        match self {
            Self::Shapes => shape as u64 + 1,
            Self::Pairs => colour as u64 * shapes + shape as u64 + 1,
        }
    }
}

/// Which scenes a drawn data set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapesConfig {
    /// Images in all three parts together: about five eighths train, an eighth val, a quarter test.
    pub images: usize,
    /// Seed of everything that is decided by lot.
    pub seed: u64,
    /// How the scenes look.
    pub style: Style,
    /// Which colour-shape pairs occur.
    pub pairs: Pairs,
    /// What the set is for.
    pub task: ShapesTask,
    /// What the categories are, where it is for detection or segmentation.
    pub categories: Categories,
    /// Side of the square images, pixels.
    pub size: usize,
    /// Least and greatest diameter of the circles around objects, in pixels, where it is for detection or segmentation; a sixth of the
    /// image and more if `None`.
    pub object_size: Option<[usize; 2]>,
    /// Most objects in an image, where it is for detection or segmentation.
    pub objects: usize,
}

impl Default for ShapesConfig {
    /// 1024 plain 64-pixel images for classification: ten train, two val and four test images of each of 64 pairs.
    fn default() -> Self {
        Self {
            images: 1024,
            seed: 1,
            style: Style::Plain,
            pairs: Pairs::All,
            task: ShapesTask::Classify,
            categories: Categories::Shapes,
            size: 64,
            object_size: None,
            objects: 5,
        }
    }
}

/// Most bytes of pixels that [`dataset`] holds in memory.
const MAX_BYTES: usize = 4 << 30;

/// Most images of a set: file names have room for six digits.
const MAX_IMAGES: usize = 999_999;

/// Most objects in an image.
const MAX_OBJECTS: usize = 100;

/// How many of `n` images go into train, val and test; none is empty from 3 on.
fn parts(n: usize) -> [usize; 3] {
    let val = (n / 8).max(1);
    let test = (n / 4).max(1);
    [n.saturating_sub(val + test), val, test]
}

/// An image of a classification set, not yet drawn.
pub(super) struct DrawnItem {
    pub(super) split: Split,
    pub(super) label: usize,
    /// `train/red circle/0001.png`.
    pub(super) id: String,
    pub(super) scene: Scene,
}

impl ShapesConfig {
    /// Whether the numbers can be used; the error names the setting.
    pub(super) fn check(&self) -> Result<()> {
        if !(16..=1024).contains(&self.size) {
            return Err(Error::setting("size", format!("{} is not between 16 and 1024 pixels", self.size)));
        }
        if let Some([least, most]) = self.object_size
            && !(4 <= least && least <= most && most <= self.size / 2)
        {
            let message =
                format!("{least} to {most}; from 4 to {} pixels, half of the image, are possible", self.size / 2);
            return Err(Error::setting("object_size", message));
        }
        if !(1..=MAX_OBJECTS).contains(&self.objects) {
            return Err(Error::setting("objects", format!("{} is not between 1 and {MAX_OBJECTS}", self.objects)));
        }
        let least = if self.task == ShapesTask::Classify { 3 * self.pairs.list().len() } else { 3 };
        if !(least..=MAX_IMAGES).contains(&self.images) {
            let why = format!("{} is not between {least} and {MAX_IMAGES}", self.images);
            let each = if self.task == ShapesTask::Classify { "; every class needs one in each part" } else { "" };
            return Err(Error::setting("images", why + each));
        }
        Ok(())
    }

    /// The pairs with their class names, sorted by name.
    pub(super) fn classes(&self) -> Vec<(String, (Colour, Shape))> {
        let mut classes: Vec<_> =
            self.pairs.list().into_iter().map(|(colour, shape)| (name(colour, shape), (colour, shape))).collect();
        classes.sort();
        classes
    }

    /// The classification set's images, part by part, class by class. Classes differ by at most one image, in train.
    pub(super) fn items(&self) -> impl Iterator<Item = DrawnItem> + use<> {
        let config = *self;
        let classes = self.classes();
        let (base, more) = (self.images / classes.len(), self.images % classes.len());
        let [_, val, test] = parts(base);
        Split::ALL.into_iter().flat_map(move |split| {
            let classes = classes.clone();
            classes.into_iter().enumerate().flat_map(move |(label, (class, (colour, shape)))| {
                let train = base + usize::from(label < more) - val - test;
                let range = match split {
                    Split::Val => 0..val,
                    Split::Test => val..val + test,
                    Split::Train => val + test..val + test + train,
                };
                let first = range.start;
                range.map(move |k| {
                    let pair = colour as u64 * 8 + shape as u64;
                    let mut rng = rng(config.seed, PURPOSE_CLASSIFY, pair << 32 | k as u64);
                    let scene = Scene::single(&mut rng, config.style, colour, shape);
                    DrawnItem { split, label, id: format!("{split}/{class}/{:06}.png", k - first + 1), scene }
                })
            })
        })
    }

    /// The detection set's scenes by part, each with as many objects as are asked for at most, one in twenty with none.
    pub(super) fn scenes(&self) -> impl Iterator<Item = (Split, Scene)> + use<> {
        let config = *self;
        let [train, val, _] = parts(self.images);
        (0..self.images).map(move |index| {
            let split = match index {
                _ if index < train => Split::Train,
                _ if index < train + val => Split::Val,
                _ => Split::Test,
            };
            let mut rng = rng(config.seed, PURPOSE_DETECT, index as u64);
            let count = if rng.random_bool(0.05) { 0 } else { rng.random_range(1..=config.objects) };
            let radii = config.object_size.map(|sizes| sizes.map(|v| v as f32 / (2 * config.size) as f32));
            (split, Scene::scattered(&mut rng, config.style, config.pairs, count, radii))
        })
    }
}

/// The classification set, drawn into memory. Class names are "red circle" and the like, sorted; ids are the paths that
/// [`super::write_folder`] writes to.
///
/// # Errors
/// The configuration is for detection, has a number out of range, or asks for more pixels than memory should hold.
pub fn dataset(config: &ShapesConfig) -> Result<Dataset> {
    config.check()?;
    if config.task != ShapesTask::Classify {
        return Err(Error::setting(
            "task",
            "generated data for detection and segmentation must be written first: `vpt data make shapes`",
        ));
    }
    if config.images * config.size * config.size * 3 > MAX_BYTES {
        let remedy = "write the images with `vpt data make shapes` and train on the folder";
        return Err(Error::setting("images", format!("{} images do not fit into memory; {remedy}", config.images)));
    }
    let classes: Vec<String> = config.classes().into_iter().map(|(class, _)| class).collect();
    let split_note = format!(
        "generated: {} images of {} colour-shape pairs from seed {}",
        config.images,
        classes.len(),
        config.seed
    );
    let mut set = Dataset {
        name: "shapes".to_owned(),
        layout: Layout::GENERATED,
        classes,
        train: Vec::new(),
        val: Vec::new(),
        test: Vec::new(),
        split_note,
    };
    for item in config.items() {
        let image = ImageSource::Memory(Arc::new(draw(&item.scene, config.size).image));
        set.part_mut(item.split).push(Sample { image, label: item.label as u32, id: item.id });
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_sorted_and_balanced_in_every_part() {
        let set = dataset(&ShapesConfig::default()).unwrap();
        assert_eq!((set.classes.len(), set.classes[0].as_str()), (64, "blue circle"));
        assert!(set.classes.is_sorted());
        for (part, each) in Split::ALL.into_iter().zip([10, 2, 4]) {
            for label in 0..64 {
                assert_eq!(set.part(part).iter().filter(|sample| sample.label == label).count(), each, "{part}");
            }
        }
    }

    #[test]
    fn every_image_is_another() {
        let set = dataset(&ShapesConfig { images: 320, ..ShapesConfig::default() }).unwrap();
        let all: Vec<_> = Split::ALL.into_iter().flat_map(|part| set.part(part)).collect();
        assert_eq!(all.len(), 320);
        let ids: std::collections::HashSet<_> = all.iter().map(|sample| &sample.id).collect();
        let images: std::collections::HashSet<_> = all.iter().map(|sample| sample.load().unwrap().pixels).collect();
        assert_eq!((ids.len(), images.len()), (320, 320));
    }

    #[test]
    fn numbers_out_of_range_are_errors_that_name_the_flag() {
        let wrong = |config: ShapesConfig| dataset(&config).unwrap_err().to_string();
        let default = ShapesConfig::default();
        assert!(wrong(ShapesConfig { images: 191, ..default }).starts_with("images: 191"));
        assert!(wrong(ShapesConfig { images: usize::MAX, ..default }).starts_with("images: "));
        assert!(wrong(ShapesConfig { size: 1_000_000, ..default }).starts_with("size: "));
        let detect = ShapesConfig { task: ShapesTask::Detect, ..default };
        let refused = |config: ShapesConfig| config.check().unwrap_err().to_string();
        for sizes in [[3, 8], [9, 8], [8, 33]] {
            assert!(refused(ShapesConfig { object_size: Some(sizes), ..detect }).starts_with("object_size: "));
        }
        assert!(refused(ShapesConfig { objects: 0, ..detect }).starts_with("objects: 0"));
        assert!(wrong(ShapesConfig { images: 900_000, size: 1024, ..default }).contains("memory"));
    }

    #[test]
    fn objects_are_as_small_and_as_many_as_they_are_asked_to_be() {
        let config = ShapesConfig {
            images: 12,
            size: 256,
            task: ShapesTask::Detect,
            object_size: Some([8, 16]),
            objects: 30,
            ..ShapesConfig::default()
        };
        let scenes: Vec<Scene> = config.scenes().map(|(_, scene)| scene).collect();
        assert!(scenes.iter().any(|scene| scene.objects.len() > 15));
        for scene in scenes {
            for (object, extent) in scene.objects.iter().zip(draw(&scene, 256).extents) {
                assert!((8. ..=16.).contains(&(object.radius * 512.)), "{object:?}");
                let longest = extent.width.max(extent.height);
                assert!((5..=18).contains(&longest), "{object:?} {extent:?}");
            }
        }
    }

    #[test]
    fn no_part_is_empty() {
        for n in 3..200 {
            let parts = parts(n);
            assert!(parts.iter().all(|&part| part > 0), "{n}: {parts:?}");
            assert_eq!(parts.iter().sum::<usize>(), n);
        }
    }
}
