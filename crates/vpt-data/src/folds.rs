//! Folds of the training part: each in turn is validated on by what learns from the others.

use rand::seq::SliceRandom;

use super::boxes::BoxDataset;
use super::dataset::{Dataset, Sample};
use super::masks::MaskDataset;
use super::split::by_class;
use vpt_base::{Error, Result, random::stream};

impl Dataset {
    /// This data set `count` times, each time with another part of its training images as val and without a test. Every image of a
    /// class is held out once, class by class in an order that follows from `seed` and from that of the images; if `every_class` is to
    /// be learned from, one that is the only one of its class always is.
    ///
    /// # Errors
    /// There are fewer than two folds, or fewer images to hold out than folds.
    pub fn folds(&self, count: usize, seed: u64, every_class: bool) -> Result<Vec<Self>> {
        if count < 2 {
            return Err(Error::setting("folds", format!("{count} leave nothing to learn from or to validate on")));
        }
        let mut held_out = vec![None; self.train.len()];
        let mut next = 0;
        let labels = self.train.iter().map(|sample| sample.label as usize + 1).max().unwrap_or(0);
        for (class, mut members) in by_class(&self.train, labels).into_iter().enumerate() {
            if every_class && members.len() < 2 {
                continue;
            }
            members.shuffle(&mut stream(seed, "folds", class as u64, 0));
            for member in members {
                held_out[member] = Some(next % count);
                next += 1;
            }
        }
        if next < count {
            let message = format!("{count} for {next} of the {} training images of {}", self.train.len(), self.name);
            let why = if every_class { ": of a class with one image that one is always learned from" } else { "" };
            let message = format!("{message}{why}");
            return Err(Error::setting("folds", message));
        }
        let fold = |fold: usize| {
            let part = |is_val: bool| -> Vec<Sample> {
                let chosen = self.train.iter().zip(&held_out).filter(|(_, held)| (**held == Some(fold)) == is_val);
                chosen.map(|(sample, _)| sample.clone()).collect()
            };
            Self {
                train: part(false),
                val: part(true),
                test: Vec::new(),
                split_note: note((fold, count)),
                ..self.clone()
            }
        };
        Ok((0..count).map(fold).collect())
    }
}

impl BoxDataset {
    /// This data set with the `fold`th of so many folds of its training images as val and without a test: as many images in each, dealt
    /// out by `seed`.
    ///
    /// # Errors
    /// There are fewer than two folds, or fewer images than folds.
    pub fn fold(&self, fold: (usize, usize), seed: u64) -> Result<Self> {
        let [train, val] = dealt(&self.train, fold, seed, &self.name)?;
        Ok(Self { train, val, test: Vec::new(), split_note: note(fold), ..self.clone() })
    }
}

impl MaskDataset {
    /// As [`BoxDataset::fold`].
    ///
    /// # Errors
    /// As there.
    pub fn fold(&self, fold: (usize, usize), seed: u64) -> Result<Self> {
        let [train, val] = dealt(&self.train, fold, seed, &self.name)?;
        Ok(Self { train, val, test: Vec::new(), split_note: note(fold), ..self.clone() })
    }
}

fn note((fold, of): (usize, usize)) -> String {
    format!("fold {} of {of}", fold + 1)
}

/// What is learned from and what is held out in the `fold`th of so many folds of `images`, both in their order.
fn dealt<T: Clone>(images: &[T], (fold, of): (usize, usize), seed: u64, name: &str) -> Result<[Vec<T>; 2]> {
    if of < 2 {
        return Err(Error::setting("folds", format!("{of} leave nothing to learn from or to validate on")));
    }
    if images.len() < of {
        let message = format!("{of} for the {} training images of {name}", images.len());
        return Err(Error::setting("folds", message));
    }
    let mut order: Vec<usize> = (0..images.len()).collect();
    order.shuffle(&mut stream(seed, "folds", 0, 0));
    let mut held = vec![false; images.len()];
    order.into_iter().skip(fold).step_by(of).for_each(|image| held[image] = true);
    let part = |is_held: bool| {
        images.iter().zip(&held).filter(move |(_, held)| **held == is_held).map(|(image, _)| image.clone())
    };
    Ok([false, true].map(|is_held| part(is_held).collect()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::dataset::{ImageSource, Layout};
    use vpt_image::decode::Rgb8;

    /// `counts[c]` training images of class `c`.
    fn dataset(counts: &[usize]) -> Dataset {
        let image = ImageSource::Memory(Arc::new(Rgb8::new(1, 1)));
        let all = counts.iter().enumerate().flat_map(|(c, &n)| (0..n).map(move |i| (c, i)));
        let train: Vec<Sample> =
            all.map(|(c, i)| Sample { image: image.clone(), label: c as u32, id: format!("{c}/{i}") }).collect();
        Dataset {
            name: "set".into(),
            layout: Layout::FOLDER,
            classes: (0..counts.len()).map(|c| format!("c{c}")).collect(),
            val: Vec::new(),
            test: train.clone(),
            train,
            split_note: String::new(),
        }
    }

    fn ids(samples: &[Sample]) -> BTreeSet<&str> {
        samples.iter().map(|sample| sample.id.as_str()).collect()
    }

    proptest! {
        #[test]
        fn every_image_is_held_out_once_but_the_only_one_of_its_class(
            counts in prop::collection::vec(1usize..7, 2..6), count in 2usize..6, seed in 0u64..9,
        ) {
            let data = dataset(&counts);
            let several: usize = counts.iter().filter(|&&n| n > 1).sum();
            let folds = match data.folds(count, seed, true) {
                Ok(folds) => folds,
                Err(error) => {
                    prop_assert!(several < count, "{}", error);
                    return Ok(());
                }
            };
            let mut seen = BTreeSet::new();
            for fold in &folds {
                prop_assert!(fold.test.is_empty() && !fold.val.is_empty());
                prop_assert_eq!(fold.train.len() + fold.val.len(), data.train.len());
                prop_assert!(ids(&fold.train).is_disjoint(&ids(&fold.val)));
                for id in ids(&fold.val) {
                    prop_assert!(seen.insert(id));
                }
                // Nothing is validated on whose class is not learned, and folds are of about one size.
                let learned: BTreeSet<u32> = fold.train.iter().map(|sample| sample.label).collect();
                prop_assert_eq!(learned.len(), counts.len());
                prop_assert!(fold.val.len().abs_diff(several / count) <= 1);
            }
            prop_assert_eq!(seen.len(), several);
        }
    }

    #[test]
    fn folds_follow_from_the_seed_and_not_from_names() {
        let val = |data: &Dataset, seed| -> Vec<Vec<u32>> {
            let position = |sample: &Sample| data.train.iter().position(|other| other.id == sample.id).unwrap() as u32;
            data.folds(4, seed, true).unwrap().iter().map(|fold| fold.val.iter().map(position).collect()).collect()
        };
        let data = dataset(&[8, 8]);
        assert_eq!(val(&data, 1), val(&data, 1));
        assert_ne!(val(&data, 1), val(&data, 2));
        let mut renamed = data.clone();
        for (i, sample) in renamed.train.iter_mut().enumerate() {
            sample.id = format!("other-{}", 99 - i);
        }
        assert_eq!(val(&renamed, 1), val(&data, 1));
    }

    #[test]
    fn images_without_labels_are_dealt_out_evenly_and_held_out_once() {
        let images: Vec<usize> = (0..11).collect();
        let folds = |seed| [0, 1, 2].map(|fold| dealt(&images, (fold, 3), seed, "set").unwrap());
        let [first, again, other] = [1, 1, 2].map(folds);
        assert!(first == again && first != other);
        let mut seen: Vec<usize> = first.iter().flat_map(|[_, val]| val.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, images);
        for [train, val] in &first {
            assert!((3..=4).contains(&val.len()) && train.len() + val.len() == 11);
            assert!(train.is_sorted() && val.is_sorted() && val.iter().all(|image| !train.contains(image)));
        }
        let message = |of| dealt(&images, (0, of), 1, "set").unwrap_err().to_string();
        assert_eq!(message(12), "folds: 12 for the 11 training images of set");
        assert!(message(1).starts_with("folds: 1 leave nothing"));
    }

    #[test]
    fn too_few_images_are_told() {
        let message = |counts: &[usize], folds| dataset(counts).folds(folds, 1, true).unwrap_err().to_string();
        assert!(message(&[1, 1], 2).starts_with("folds: 2 for 0 of the 2 training images of set"));
        assert!(message(&[2, 1], 3).starts_with("folds: 3 for 2 of the 3 training images"));
        assert!(message(&[9, 9], 1).starts_with("folds: 1 leave nothing"));
        // Where what an image is labelled with need not be learned from, each is held out once.
        let held_out = |count: usize| -> usize {
            dataset(&[1, 1, 1, 2]).folds(count, 1, false).unwrap().iter().map(|fold| fold.val.len()).sum()
        };
        assert_eq!((held_out(2), held_out(5)), (5, 5));
        assert!(dataset(&[1, 1]).folds(3, 1, false).unwrap_err().to_string().ends_with("training images of set"));
    }
}
