//! Data sets of boxes as images with any number of classes each: an image is of a class if an object of it, or a crowd of
//! them, is in it.
//!
//! The different sets of classes that occur are listed once, and a sample's label is the position of its set in the list. So
//! loaders, caches and features that are computed once carry one number for an image, whatever that number stands for.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;

use super::boxes::{BoxDataset, BoxImage, Problem};
use super::dataset::{Dataset, Layout, Sample, Split};
use super::examine::{ClassCounts, ContentHash, DatasetSummary, SplitCounts, digest};
use super::formats::{self, Candidate, Recognized};
use super::split::MadeParts;
use vpt_base::{Error, Result};

/// The different sets of classes that images of a data set have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSets {
    classes: usize,
    sets: Vec<Vec<u32>>,
}

impl LabelSets {
    /// Sets of some of `classes` classes; an image's label is a position among them.
    ///
    /// # Errors
    /// A class is none.
    pub fn new(classes: usize, sets: Vec<Vec<u32>>) -> Result<Self> {
        if let Some(class) = sets.iter().flatten().find(|&&class| class as usize >= classes) {
            return Err(Error::invalid("labels", format!("class {class} where there are {classes}")));
        }
        Ok(Self { classes, sets })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The classes that an image with this label has, ascending.
    ///
    /// # Errors
    /// There is no such label.
    pub fn set(&self, label: u32) -> Result<&[u32]> {
        let message = || Error::invalid("labels", format!("set {label} where there are {}", self.sets.len()));
        self.sets.get(label as usize).map(Vec::as_slice).ok_or_else(message)
    }

    /// Whether an image with each of `labels` `[B]` has each class: `[B, classes]`.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn truth(&self, labels: &[u32]) -> Result<Vec<bool>> {
        let mut truth = vec![false; labels.len() * self.classes];
        for (row, &label) in truth.chunks_exact_mut(self.classes.max(1)).zip(labels) {
            self.set(label)?.iter().for_each(|&class| row[class as usize] = true);
        }
        Ok(truth)
    }

    /// How many of `samples` have each class.
    pub fn counts(&self, samples: &[Sample]) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        let sets = samples.iter().filter_map(|sample| self.sets.get(sample.label as usize));
        sets.flatten().for_each(|&class| counts[class as usize] += 1);
        counts
    }

    /// The names of the classes of an image with this label, with commas between them; `-` if it has none.
    pub fn names(&self, label: u32, classes: &[String]) -> Result<String> {
        Ok(join(self.set(label)?.iter().map(|&class| classes[class as usize].as_str())))
    }

    /// The same sets where class `i` is class `new[i]` of `classes`.
    pub fn renumbered(&self, new: &[u32], classes: usize) -> Result<Self> {
        let renumber = |set: &Vec<u32>| {
            let mut set: Vec<u32> = set.iter().map(|&class| new[class as usize]).collect();
            set.sort_unstable();
            set
        };
        Self::new(classes, self.sets.iter().map(renumber).collect())
    }
}

/// Names of classes as one text; `-` if there are none.
pub fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

/// Images with any number of classes each.
#[derive(Clone, Debug)]
pub struct MultilabelDataset {
    /// The images; a label is an index into [`Self::sets`].
    pub dataset: Dataset,
    /// The sets of classes.
    pub sets: LabelSets,
    /// Faults of the data set of boxes, and how they were mended.
    pub problems: Vec<Problem>,
}

impl MultilabelDataset {
    /// How the data set of several classes an image at `path` lies on disk; none if there is none, it holds boxes, or every image has
    /// one class.
    pub fn recognize(path: impl AsRef<Path>) -> Option<Layout> {
        Self::found(path.as_ref()).filter(|found| found.classes.is_none()).map(|found| found.layout)
    }

    /// Whether the data set at `path` says of images which classes they have, even if each has one.
    pub fn may_be(path: impl AsRef<Path>) -> bool {
        Self::found(path.as_ref()).is_some()
    }

    fn found(path: &Path) -> Option<Recognized> {
        let found = formats::recognize_boxes(&Candidate::at(path).ok()?).ok()??;
        Some(found).filter(|found| found.boxes.as_ref().is_some_and(|files| files.are_whole_images()))
    }

    /// Opens the data set of boxes, or of several classes an image, at `spec`. Images that are missing or cannot be read are left out if `skip_bad`.
    ///
    /// # Errors
    /// As [`BoxDataset::open`]; or there are no categories, no training image has one, or an image cannot be read and
    /// `skip_bad` is not set.
    pub fn open(spec: impl AsRef<Path>, seed: u64, skip_bad: bool) -> Result<Self> {
        Self::open_with(spec, seed, skip_bad, MadeParts::All)
    }

    /// As [`open`](Self::open), with no other parts made than `made` says.
    ///
    /// # Errors
    /// As [`open`](Self::open); where a part is measured, no image need have a class.
    pub fn open_with(spec: impl AsRef<Path>, seed: u64, skip_bad: bool, made: MadeParts<'_>) -> Result<Self> {
        let set = Self::read(spec.as_ref(), seed, skip_bad, made)?;
        if made.measured().is_none() {
            set.refuse_without_classes()?;
        }
        Ok(set)
    }

    fn read(path: &Path, seed: u64, skip_bad: bool, made: MadeParts<'_>) -> Result<Self> {
        let whole = Candidate::at(path).ok().and_then(|candidate| formats::recognize_boxes(&candidate).ok().flatten());
        let mut boxes = match whole {
            Some(Recognized { layout, boxes: Some(files), .. }) if files.are_whole_images() => {
                BoxDataset::of(path, layout, &*files, seed, made).map_err(|error| error.of_kind(Error::data))?
            }
            _ => BoxDataset::open_with(path, seed, made)?,
        };
        let left_out = boxes.leave_out_unreadable(skip_bad)?;
        if !left_out.is_empty() {
            let note = format!("; {} unreadable images left out", left_out.len());
            boxes.split_note.push_str(&note);
        }
        let mut made = Self::of(&boxes)?;
        if Self::may_be(path) {
            made.dataset.layout = boxes.layout;
        }
        Ok(made)
    }

    /// The images of `boxes` with the categories that occur in them.
    ///
    /// # Errors
    /// There are no categories, or no training image has one.
    pub fn new(boxes: &BoxDataset) -> Result<Self> {
        let made = Self::of(boxes)?;
        made.refuse_without_classes()?;
        Ok(made)
    }

    /// Refuses a data set from which no class can be learned.
    fn refuse_without_classes(&self) -> Result<()> {
        if self.train_counts().iter().all(|&count| count == 0) {
            let message = "no training image has an object, so there is no class to learn";
            return Err(Error::invalid(format!("data set {}", self.dataset.name), message));
        }
        Ok(())
    }

    fn of(boxes: &BoxDataset) -> Result<Self> {
        let mut known: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut sets = Vec::new();
        let mut sample = |image: &BoxImage| {
            let mut set: Vec<u32> = image.objects.iter().map(|object| object.category as u32).collect();
            set.sort_unstable();
            set.dedup();
            let label = *known.entry(set).or_insert_with_key(|set| {
                sets.push(set.clone());
                sets.len() as u32 - 1
            });
            Sample { image: image.image.clone(), label, id: image.name.clone() }
        };
        let [train, val, test] =
            Split::ALL.map(|split| boxes.part(split).iter().map(&mut sample).collect::<Vec<Sample>>());
        let dataset = Dataset {
            name: boxes.name.clone(),
            layout: Layout::BOXES,
            classes: boxes.names(),
            train,
            val,
            test,
            split_note: boxes.split_note.clone(),
        };
        let sets = LabelSets::new(dataset.classes.len(), sets)?;
        Ok(Self { sets, dataset, problems: boxes.problems.clone() })
    }

    /// Decodes every image and sums the data set up; an image counts for each class that it has.
    pub fn summary(&self) -> DatasetSummary {
        // Labels are positions among the sets, of which a summary of single labels knows nothing.
        let mut plain = self.dataset.clone();
        for split in Split::ALL {
            plain.part_mut(split).iter_mut().for_each(|sample| sample.label = 0);
        }
        let mut summary = plain.summary();
        let counts = Split::ALL.map(|split| self.sets.counts(self.dataset.part(split)));
        let classes = self.dataset.classes.iter().enumerate();
        summary.classes = classes
            .map(|(i, name)| ClassCounts {
                name: name.clone(),
                images: SplitCounts { train: counts[0][i], val: counts[1][i], test: counts[2][i] },
            })
            .collect();
        summary.content_hash = self.content_hash();
        summary
    }

    /// The hash over classes, parts and images with their sets of classes; none if an image cannot be decoded.
    fn content_hash(&self) -> Option<String> {
        let mut hash = ContentHash::new(&self.dataset.classes);
        for split in Split::ALL {
            let samples = self.dataset.part(split);
            let digests = samples.par_iter().map(|s| s.load().map(|image| digest(&image))).collect::<Result<Vec<_>>>();
            let sets = samples.iter().map(|sample| self.sets.set(sample.label)).collect::<Result<Vec<_>>>();
            hash.part(split, sets.ok()?.into_iter().zip(digests.ok()?));
        }
        Some(hash.finish())
    }

    /// Training images of each class.
    pub fn train_counts(&self) -> Vec<usize> {
        self.sets.counts(&self.dataset.train)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::ImageSource;

    use super::super::boxes::{Category, Object, Rect};
    use super::*;

    /// An image with an object of each of `categories`; the last is a crowd.
    fn image(id: u64, categories: &[usize]) -> BoxImage {
        let object = |(i, &category): (usize, &usize)| Object {
            id: i as u64 + 1,
            category,
            rect: Rect { x: 1., y: 1., width: 2., height: 2. },
            area: 4.,
            crowd: i + 1 == categories.len(),
        };
        let name = format!("{id}.png");
        let objects = categories.iter().enumerate().map(object).collect();
        BoxImage { id, image: ImageSource::File(PathBuf::from(&name)), name, width: 9, height: 9, objects }
    }

    fn boxes(train: Vec<BoxImage>) -> BoxDataset {
        let categories = ["cat", "dog", "owl"].map(|name| Category { id: 7, name: name.into() }).to_vec();
        BoxDataset {
            val: vec![image(8, &[1, 1])],
            test: vec![image(9, &[])],
            given: Split::ALL.map(Some),
            ..BoxDataset::of_train("set", Layout::COCO, categories, train)
        }
    }

    #[test]
    fn an_image_has_the_classes_of_its_objects_and_crowds_once_each() {
        let set = MultilabelDataset::new(&boxes(vec![image(1, &[2, 0, 2]), image(2, &[]), image(3, &[0, 2])])).unwrap();
        let Dataset { train, val, test, .. } = &set.dataset;
        assert_eq!(train[0].label, train[2].label, "equal sets are one");
        let labels = [train[0].label, train[1].label, val[0].label, test[0].label];
        let truth = set.sets.truth(&labels).unwrap();
        assert_eq!(
            truth.chunks(3).map(<[bool]>::to_vec).collect::<Vec<_>>(),
            [[true, false, true], [false; 3], [false, true, false], [false; 3],]
        );
        assert_eq!(set.train_counts(), [2, 0, 2]);
        assert_eq!(set.sets.names(labels[0], &set.dataset.classes).unwrap(), "cat, owl");
        assert_eq!(set.sets.names(labels[1], &set.dataset.classes).unwrap(), "-");
        assert_eq!(set.sets.renumbered(&[4, 3, 2], 5).unwrap().set(labels[0]).unwrap(), [2, 4]);
        assert!(set.sets.truth(&[9]).is_err());
        assert!(set.sets.renumbered(&[4, 3, 2], 4).is_err());
    }

    #[test]
    fn nothing_to_learn_is_an_error() {
        let message = MultilabelDataset::new(&boxes(vec![image(1, &[])])).unwrap_err().to_string();
        assert_eq!(message, "data set set: no training image has an object, so there is no class to learn");
    }
}
