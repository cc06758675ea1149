//! Few-shot draws of masks: k images that show each class, written down so that others can repeat them.
//!
//! Class by class, that of the fewest images first, images in random order are added until k of those that are drawn show the class; an image
//! counts for every class that it shows, so common classes come with the rare ones. Masks are learned from as a whole: whoever draws one
//! marks all of the picture.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{MaskDataset, MaskImage};
use crate::Split;
use crate::draw_file::{read_draw, write_draw};
use crate::split::{MAX_VAL_SHOTS, shuffled};
use vpt_base::{Error, Result};

/// By class, the names of the drawn images that show it.
type DrawnImages = BTreeMap<String, Vec<String>>;

/// Which images of a data set are learned from and validated on. The test part stays whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskShots {
    /// The data set's name.
    pub data: String,
    /// Images a class that were asked for.
    pub shots: usize,
    /// The seed of the draw.
    pub seed: u64,
    /// For each class the images to learn from that show it.
    pub train: DrawnImages,
    /// For each class the images to validate on that show it: up to [`MAX_VAL_SHOTS`] are drawn for it.
    pub val: DrawnImages,
}

impl MaskShots {
    /// Draws `shots` images of each class for training and `min(shots, 4)` for validation. A class that has fewer gives what it has;
    /// [`short_classes`](Self::short_classes) names it.
    ///
    /// # Errors
    /// `shots` is 0.
    pub fn draw(dataset: &MaskDataset, shots: usize, seed: u64) -> Result<Self> {
        if shots == 0 {
            return Err(Error::setting("shots", "0 images a class leave nothing to learn from"));
        }
        let draw = |split: Split, count: usize| {
            let (images, names) = (dataset.part(split), &dataset.classes.names);
            let members = |class: usize| (0..images.len()).filter(move |&i| shows(&images[i], class));
            let mut classes: Vec<usize> = (0..names.len()).collect();
            classes.sort_by_key(|&class| members(class).count());
            let mut chosen = BTreeSet::new();
            for class in classes {
                let have = members(class).filter(|i| chosen.contains(i)).count();
                let rest = members(class).filter(|i| !chosen.contains(i)).collect();
                let order = shuffled(images, rest, seed, &format!("few-shot masks {split} {}", names[class]));
                chosen.extend(order.into_iter().take(count.saturating_sub(have)));
            }
            let of_class = |class: usize| {
                let own = members(class).filter(|i| chosen.contains(i)).map(|i| images[i].name.clone());
                (names[class].clone(), own.collect())
            };
            (0..names.len()).map(of_class).collect::<DrawnImages>()
        };
        let (train, val) = (draw(Split::Train, shots), draw(Split::Val, shots.min(MAX_VAL_SHOTS)));
        Ok(Self { data: dataset.name.clone(), shots, seed, train, val })
    }

    /// The classes that fewer images to learn from show than were asked for.
    pub fn short_classes(&self) -> impl Iterator<Item = (&str, usize)> {
        let counts = self.train.iter().map(|(class, images)| (class.as_str(), images.len()));
        counts.filter(|&(_, images)| images < self.shots)
    }

    /// `dataset` with only the drawn images in train and val, in the data set's own order.
    ///
    /// # Errors
    /// A class or image of the draw is not in `dataset`.
    pub fn apply(&self, dataset: &MaskDataset) -> Result<MaskDataset> {
        let names = &dataset.classes.names;
        let mismatch = |message: String| {
            let message = format!("data set {} has {message}", dataset.name);
            Err(Error::invalid(format!("few-shot draw of {}", self.data), message))
        };
        if let Some(class) = self.train.keys().chain(self.val.keys()).find(|&class| !names.contains(class)) {
            return mismatch(format!("no class '{class}'"));
        }
        let mut parts = Vec::new();
        for (split, drawn) in [(Split::Train, &self.train), (Split::Val, &self.val)] {
            let mut wanted: HashSet<&str> = drawn.values().flatten().map(String::as_str).collect();
            let images = dataset.part(split).iter().filter(|image| wanted.remove(image.name.as_str()));
            parts.push(images.cloned().collect::<Vec<_>>());
            if let Some(image) = wanted.iter().min() {
                return mismatch(format!("no image {image} in {split}"));
            }
        }
        let (mut val, train) = (parts.pop().unwrap_or_default(), parts.pop().unwrap_or_default());
        let (given, shots, seed) = (&dataset.split_note, self.shots, self.seed);
        let mut split_note = format!("{given}; {shots} images a class by seed {seed}, {} in all", train.len());
        if val.is_empty() {
            val.clone_from(&dataset.val);
            split_note += "; val has none to draw and stays as it is";
        }
        let short = self.short_classes().count();
        if short > 0 {
            split_note = format!("{split_note} ({short} of {} classes have fewer)", self.train.len());
        }
        Ok(MaskDataset { train, val, split_note, draw: Some(self.clone()), ..dataset.clone() })
    }

    /// Writes the draw to `path` as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_draw(path, self)
    }

    /// Reads a draw that [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// The file cannot be read or is not such a draw.
    pub fn read(path: &Path) -> Result<Self> {
        let draw: Self =
            read_draw(path)?.map_err(|error| Error::data(path, format!("not a draw of masks: {error}")))?;
        if draw.shots == 0 || draw.train.values().all(Vec::is_empty) {
            return Err(Error::data(path, "the draw holds no images to learn from"));
        }
        Ok(draw)
    }
}

/// Whether any pixel of an image is of a class.
fn shows(image: &MaskImage, class: usize) -> bool {
    image.pixels.iter().any(|&(own, count)| usize::from(own) == class && count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{ShapesConfig, ShapesTask, write_masks};

    fn shapes() -> (tempfile::TempDir, MaskDataset) {
        let dir = tempfile::tempdir().unwrap();
        let config = ShapesConfig { images: 200, size: 32, task: ShapesTask::Segment, ..ShapesConfig::default() };
        write_masks(dir.path(), &config).unwrap();
        let set = MaskDataset::open(dir.path(), 1).unwrap();
        (dir, set)
    }

    #[test]
    fn each_class_is_shown_by_k_of_few_images_and_the_draw_can_be_repeated() {
        let (dir, set) = shapes();
        let classes = set.classes.names.len();
        for shots in [1, 2, 4] {
            for seed in 1..=5 {
                let draw = MaskShots::draw(&set, shots, seed).unwrap();
                assert_eq!(draw, MaskShots::draw(&set, shots, seed).unwrap());
                assert_eq!((draw.train.len(), draw.short_classes().count()), (classes, 0));
                let few = draw.apply(&set).unwrap();
                assert!(few.train.len() >= shots && few.train.len() <= shots * classes, "{}", few.train.len());
                for (class, name) in set.classes.names.iter().enumerate() {
                    let own = few.train.iter().filter(|image| shows(image, class)).count();
                    assert_eq!(own, draw.train[name].len(), "{name}");
                }
                assert_eq!((few.test.len(), few.draw.as_ref()), (set.test.len(), Some(&draw)));
                let path = dir.path().join("draw.json");
                draw.write(&path).unwrap();
                assert_eq!(MaskShots::read(&path).unwrap(), draw);
            }
        }
        let draws: Vec<_> = (1..=3).map(|seed| MaskShots::draw(&set, 1, seed).unwrap().train).collect();
        assert!(draws[0] != draws[1] && draws[1] != draws[2]);
        let all = MaskShots::draw(&set, 1000, 1).unwrap();
        assert_eq!((all.apply(&set).unwrap().train.len(), all.short_classes().count()), (set.train.len(), classes));
    }

    #[test]
    fn what_is_no_draw_of_the_data_is_refused() {
        let (dir, set) = shapes();
        assert!(MaskShots::draw(&set, 0, 1).is_err());
        let draw = MaskShots::draw(&set, 1, 1).unwrap();
        let refused = |change: &dyn Fn(&mut MaskShots)| {
            let mut other = draw.clone();
            change(&mut other);
            other.apply(&set).unwrap_err().to_string()
        };
        let of_class = refused(&|draw| drop(draw.train.insert("cat".into(), Vec::new())));
        assert!(of_class.contains("no class 'cat'"), "{of_class}");
        let of_image = refused(&|draw| draw.val.values_mut().for_each(|images| images.push("gone.png".into())));
        assert!(of_image.contains("no image gone.png in val"), "{of_image}");
        let path = dir.path().join("draw.json");
        for text in ["", "{}", "{\"data\":\"d\",\"shots\":1,\"seed\":1,\"train\":{\"a\":[]},\"val\":{}}"] {
            std::fs::write(&path, text).unwrap();
            assert!(MaskShots::read(&path).is_err(), "{text}");
        }
    }
}
