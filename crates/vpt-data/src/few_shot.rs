//! Few-shot draws: k images a class, as the CoOp protocol has it, written down so that others can repeat them.
//!
//! A draw depends on the seed, the class's name and the samples' ids alone, so neither the order in which a folder is read
//! nor any other random number changes it, and the draw for k images contains the one for fewer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Sample, Split};
use super::draw_file::{read_draw, write_draw};
use super::split::{MAX_VAL_SHOTS, by_class, shuffled};
use vpt_base::{Error, Result};

/// Which images of a data set are learned from and validated on. The test part stays whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// The data set's name.
    pub data: String,
    /// Images a class that were asked for.
    pub shots: usize,
    /// The seed of the draw.
    pub seed: u64,
    /// For each class the ids of the images to learn from.
    pub train: BTreeMap<String, Vec<String>>,
    /// For each class the ids of the images to validate on: up to [`MAX_VAL_SHOTS`].
    pub val: BTreeMap<String, Vec<String>>,
}

impl FewShot {
    /// Draws `shots` images of each class for training and `min(shots, 4)` for validation. A class that has fewer gives what
    /// it has; [`short_classes`](Self::short_classes) names it.
    ///
    /// # Errors
    /// `shots` is 0.
    pub fn draw(dataset: &Dataset, shots: usize, seed: u64) -> Result<Self> {
        if shots == 0 {
            return Err(Error::setting("shots", "0 images a class leave nothing to learn from"));
        }
        let draw = |split: Split, count: usize| {
            let samples = dataset.part(split);
            let members = by_class(samples, dataset.classes.len());
            let drawn = dataset.classes.iter().zip(members).map(|(class, members)| {
                let order = shuffled(samples, members, seed, &format!("few-shot {split} {class}"));
                let mut ids: Vec<_> = order.iter().take(count).map(|&i| samples[i].id.clone()).collect();
                ids.sort();
                (class.clone(), ids)
            });
            drawn.collect()
        };
        Ok(Self {
            data: dataset.name.clone(),
            shots,
            seed,
            train: draw(Split::Train, shots),
            val: draw(Split::Val, shots.min(MAX_VAL_SHOTS)),
        })
    }

    /// The classes that have fewer images to learn from than were asked for.
    pub fn short_classes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.train.iter().filter(|(_, ids)| ids.len() < self.shots).map(|(class, ids)| (class.as_str(), ids.len()))
    }

    /// `dataset` with only the drawn images in train and val, in the data set's own order. Where the draw names a part of the
    /// classes, the others are left out of all three parts.
    ///
    /// # Errors
    /// An image or class of the draw is not in `dataset`, or an image has another class there.
    pub fn apply(&self, dataset: &Dataset) -> Result<Dataset> {
        if let Some(class) = self.train.keys().chain(self.val.keys()).find(|&class| !dataset.classes.contains(class)) {
            return Err(self.mismatch(dataset, &format!("no class '{class}'")));
        }
        let dataset = &dataset.of_classes(|class| self.train.contains_key(class));
        let pick = |split: Split, drawn: &BTreeMap<String, Vec<String>>| -> Result<Vec<Sample>> {
            let mut wanted = BTreeSet::new();
            for (class, ids) in drawn {
                wanted.extend(ids.iter().map(|id| (class.as_str(), id.as_str())));
            }
            let name = |s: &Sample| dataset.classes.get(s.label as usize).map_or("", String::as_str);
            let samples = dataset.part(split).iter();
            let picked: Vec<_> = samples.filter(|s| wanted.remove(&(name(s), s.id.as_str()))).cloned().collect();
            if let Some((class, id)) = wanted.first() {
                return Err(self.mismatch(dataset, &format!("no image {id} of class '{class}' in {split}")));
            }
            Ok(picked)
        };
        let (train, val) = (pick(Split::Train, &self.train)?, pick(Split::Val, &self.val)?);
        let mut split_note = format!("{}; {} images a class by seed {}", dataset.split_note, self.shots, self.seed);
        let short = self.short_classes().count();
        if short > 0 {
            split_note = format!("{split_note} ({short} of {} classes have fewer)", self.train.len());
        }
        Ok(Dataset { train, val, split_note, ..dataset.clone() })
    }

    fn mismatch(&self, dataset: &Dataset, message: &str) -> Error {
        Error::invalid(format!("few-shot draw of {}", self.data), format!("data set {} has {message}", dataset.name))
    }

    /// Whether it is what it says it is; the error says why not.
    fn check(&self) -> Result<(), String> {
        if let Some((class, ids)) = self.train.iter().find(|(_, ids)| ids.len() > self.shots) {
            let message = format!("has {} images to learn from, more than its {} shots", ids.len(), self.shots);
            return Err(format!("class '{class}' {message}"));
        }
        for (part, drawn) in [("train", &self.train), ("val", &self.val)] {
            let mut seen = BTreeSet::new();
            if let Some(id) = drawn.values().flatten().find(|id| !seen.insert(id.as_str())) {
                return Err(format!("image {id} is drawn twice in {part}"));
            }
        }
        Ok(())
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
        let draw: Self = read_draw(path)?.map_err(|e| Error::data(path, e.to_string()))?;
        if draw.shots == 0 || draw.train.values().all(Vec::is_empty) {
            return Err(Error::data(path, "the draw holds no images to learn from"));
        }
        draw.check().map_err(|message| Error::data(path, message))?;
        Ok(draw)
    }
}

#[cfg(test)]
mod tests {
    use super::super::dataset::{ImageSource, Layout};
    use super::*;
    use std::sync::Arc;
    use vpt_image::decode::Rgb8;

    fn dataset(counts: &[(usize, usize)]) -> Dataset {
        let image = ImageSource::Memory(Arc::new(Rgb8::new(1, 1)));
        let samples = |split: &str, count: fn(&(usize, usize)) -> usize| {
            let all = counts.iter().enumerate().flat_map(|(c, n)| (0..count(n)).map(move |i| (c, i)));
            let sample = |(c, i)| Sample { image: image.clone(), label: c as u32, id: format!("{split}/{c}/{i}.png") };
            all.map(sample).collect::<Vec<_>>()
        };
        Dataset {
            name: "set".into(),
            layout: Layout::FOLDER,
            classes: (0..counts.len()).map(|c| format!("class {c}")).collect(),
            train: samples("train", |n| n.0),
            val: samples("val", |n| n.1),
            test: samples("test", |n| n.1),
            split_note: "as given".into(),
        }
    }

    fn sizes(draw: &BTreeMap<String, Vec<String>>) -> Vec<usize> {
        draw.values().map(Vec::len).collect()
    }

    #[test]
    fn k_for_train_and_at_most_four_for_val() {
        let data = dataset(&[(30, 9), (30, 9)]);
        for (shots, val) in [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4)] {
            let draw = FewShot::draw(&data, shots, 1).unwrap();
            assert_eq!((sizes(&draw.train), sizes(&draw.val)), (vec![shots; 2], vec![val; 2]));
            let picked = draw.apply(&data).unwrap();
            assert_eq!(
                (picked.train.len(), picked.val.len(), picked.test.len()),
                (2 * shots, 2 * val, data.test.len())
            );
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_ids_only() {
        let data = dataset(&[(30, 9), (12, 3)]);
        let draw = FewShot::draw(&data, 5, 1).unwrap();
        let mut turned = data.clone();
        turned.train.reverse();
        turned.val.reverse();
        assert_eq!(FewShot::draw(&turned, 5, 1).unwrap(), draw);
        // Nor on which other classes there are.
        let alone = dataset(&[(30, 9)]);
        assert_eq!(FewShot::draw(&alone, 5, 1).unwrap().train["class 0"], draw.train["class 0"]);
        assert_ne!(FewShot::draw(&data, 5, 2).unwrap().train, draw.train);
    }

    #[test]
    fn more_shots_contain_fewer() {
        let data = dataset(&[(30, 9)]);
        let ids = |shots| FewShot::draw(&data, shots, 3).unwrap().train["class 0"].clone();
        assert!(ids(4).iter().all(|id| ids(16).contains(id)));
    }

    #[test]
    fn a_class_with_fewer_gives_what_it_has_and_is_named() {
        let data = dataset(&[(30, 9), (3, 0)]);
        let draw = FewShot::draw(&data, 8, 1).unwrap();
        assert_eq!(draw.short_classes().collect::<Vec<_>>(), [("class 1", 3)]);
        assert!(draw.apply(&data).unwrap().split_note.contains("1 of 2 classes have fewer"));
        assert!(FewShot::draw(&data, 0, 1).unwrap_err().to_string().starts_with("shots"));
    }

    #[test]
    fn a_draw_of_some_classes_leaves_the_others_out() {
        let data = dataset(&[(30, 9), (12, 3), (7, 5)]);
        let mut draw = FewShot::draw(&data, 2, 1).unwrap();
        draw.train.remove("class 1");
        draw.val.remove("class 1");
        let picked = draw.apply(&data).unwrap();
        assert_eq!(picked.classes, ["class 0", "class 2"]);
        assert_eq!((picked.train.len(), picked.val.len(), picked.test.len()), (4, 4, 14));
        let second = picked.test.iter().filter(|s| s.label == 1);
        assert!(second.clone().count() == 5 && second.clone().all(|s| s.id.contains("/2/")));
        draw.val.insert("class 1".into(), vec!["val/1/0.png".into()]);
        assert!(draw.apply(&data).unwrap_err().to_string().contains("no image val/1/0.png of class 'class 1'"));
    }

    #[test]
    fn a_draw_that_is_not_what_it_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("draw.json");
        let draw = FewShot::draw(&dataset(&[(30, 9), (12, 3)]), 2, 1).unwrap();
        let refused = |change: &dyn Fn(&mut FewShot)| {
            let mut draw = draw.clone();
            change(&mut draw);
            draw.write(&path).unwrap();
            FewShot::read(&path).unwrap_err().to_string()
        };
        let message = refused(&|draw| draw.shots = 1);
        assert!(message.contains("class 'class 0' has 2 images to learn from, more than its 1 shots"), "{message}");
        let again = |ids: &mut Vec<String>| ids[1] = ids[0].clone();
        for part in ["train", "val"] {
            let change = |draw: &mut FewShot| {
                let drawn = if part == "train" { &mut draw.train } else { &mut draw.val };
                again(drawn.get_mut("class 1").unwrap());
            };
            let message = refused(&change);
            assert!(message.contains(&format!("is drawn twice in {part}")), "{message}");
        }
        let other = |draw: &mut FewShot| draw.train.get_mut("class 1").unwrap()[0] = draw.train["class 0"][0].clone();
        assert!(refused(&other).contains("is drawn twice in train"));
    }

    #[test]
    fn a_written_draw_is_read_back_and_must_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shots.json");
        let data = dataset(&[(30, 9), (12, 3)]);
        let draw = FewShot::draw(&data, 4, 1).unwrap();
        draw.write(&path).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains(dir.path().to_str().unwrap()));
        let read = FewShot::read(&path).unwrap();
        assert_eq!(read, draw);
        let other = dataset(&[(2, 9), (2, 3)]);
        assert!(read.apply(&other).unwrap_err().to_string().contains("no image"));
        let other = dataset(&[(30, 9)]);
        assert!(read.apply(&other).unwrap_err().to_string().contains("no class 'class 1'"));
        for text in ["{}", "[1]", "{\"data\":\"x\",\"shots\":0,\"seed\":1,\"train\":{},\"val\":{}}"] {
            std::fs::write(&path, text).unwrap();
            assert!(FewShot::read(&path).unwrap_err().to_string().contains("shots.json"), "{text}");
        }
    }
}
