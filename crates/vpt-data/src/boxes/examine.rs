//! Sums a data set of boxes up, and reads every image to find those that cannot be read.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Serialize;

use super::problem::{Problem, ProblemKind, Remedy};
use super::{BoxDataset, BoxImage, Object};
use crate::examine::{SplitCounts, Unreadable, unreadable_error, widen};
use crate::{Layout, Split};
use vpt_base::{Error, Result};

/// Areas in square pixels up to which COCO calls an object small and medium.
const SMALL_AND_MEDIUM: [f64; 2] = [32. * 32., 96. * 96.];

/// Facts about a data set of boxes, for `vpt data info`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BoxSummary {
    /// The data set's name.
    pub name: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// Where the parts come from.
    pub split_note: String,
    /// Images in each part.
    pub images: SplitCounts,
    /// Images without objects.
    pub empty_images: SplitCounts,
    /// Objects, crowds aside.
    pub objects: SplitCounts,
    /// Boxes around crowds.
    pub crowds: SplitCounts,
    /// Each category's share, in their order.
    pub categories: Vec<CategorySummary>,
    /// Least and greatest width of the images, in pixels.
    pub width: Option<[usize; 2]>,
    /// Least and greatest height.
    pub height: Option<[usize; 2]>,
    /// Objects by area.
    pub sizes: Sizes,
    /// Least, median and greatest width of the objects' boxes, in pixels.
    pub box_width: Option<[f64; 3]>,
    /// Least, median and greatest height.
    pub box_height: Option<[f64; 3]>,
    /// How often each kind of problem occurs, commonest first.
    pub problem_counts: Vec<ProblemCount>,
    /// Faults, and how they were mended.
    pub problems: Vec<Problem>,
    /// Images whose header can be read and whose pixels cannot.
    pub unreadable: Vec<Unreadable>,
    /// [`BoxDataset::fingerprint`].
    pub fingerprint: String,
}

/// Images and objects of a category.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CategorySummary {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Images with at least one object of it, crowds aside.
    pub images: SplitCounts,
    /// Its objects, crowds aside.
    pub objects: SplitCounts,
}

/// Objects by area, as the COCO metric tells them apart; crowds aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Below 32 x 32 pixels.
    pub small: usize,
    /// From there below 96 x 96.
    pub medium: usize,
    /// From there on.
    pub large: usize,
}

/// How often a kind of problem occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProblemCount {
    /// The kind.
    pub kind: ProblemKind,
    /// How it was mended.
    #[serde(rename = "mend")]
    pub remedy: Remedy,
    /// How often.
    pub count: usize,
}

impl BoxDataset {
    /// Decodes every image, and takes those that cannot be decoded out of the data set if `skip` says so. Returns what was
    /// taken out; images that were left out on opening, because they are missing or have no header, are not among them.
    ///
    /// # Errors
    /// Images cannot be decoded, or were left out on opening, and `skip` is false: the error names the first few. Or nothing
    /// is left of a part.
    pub fn leave_out_unreadable(&mut self, skip: bool) -> Result<Vec<Unreadable>> {
        let mut unreadable = Vec::new();
        for split in Split::ALL {
            let errors: Vec<_> = self.part(split).par_iter().map(|image| image.image.load().err()).collect();
            let mut errors = errors.into_iter();
            self.part_mut(split).retain(|image| match errors.next().flatten() {
                None => true,
                Some(error) => {
                    unreadable.push(Unreadable { split, id: image.name.clone(), error: error.to_string() });
                    false
                }
            });
        }
        let what = || format!("data set {}", self.name);
        if !skip {
            let lost =
                self.problems.iter().filter(|problem| problem.loses_image()).map(|problem| problem.detail.as_str());
            let all: Vec<&str> = lost.chain(unreadable.iter().map(|u| u.error.as_str())).collect();
            if !all.is_empty() {
                return Err(unreadable_error(what(), &all));
            }
        }
        // A val that was not made has nothing to lose.
        let was_there = |split: Split| split != Split::Val || unreadable.iter().any(|u| u.split == split);
        match Split::ALL.into_iter().find(|&split| self.part(split).is_empty() && was_there(split)) {
            Some(split) => Err(Error::invalid(what(), format!("no image of {split} can be read"))),
            None => Ok(unreadable),
        }
    }

    /// Decodes every image and sums the data set up. Images with the same pixels in two parts are among the problems.
    pub fn summary(&self) -> BoxSummary {
        let mut problems = self.problems.clone();
        let mut unreadable = Vec::new();
        let mut seen: HashMap<blake3::Hash, (Split, &str)> = HashMap::new();
        // What is learned from must not be what is tested on: the fault is train's, which therefore comes last.
        for split in [Split::Test, Split::Val, Split::Train] {
            let part = self.part(split);
            let hashes: Vec<_> = part.par_iter().map(pixels_hash).collect();
            for (image, hash) in part.iter().zip(hashes) {
                match hash {
                    Err(error) => {
                        unreadable.push(Unreadable { split, id: image.name.clone(), error: error.to_string() });
                    }
                    Ok(hash) => {
                        let (other, name) = *seen.entry(hash).or_insert((split, &image.name));
                        if other != split {
                            let (kind, remedy) = (ProblemKind::ImageInTwoParts, Remedy::Kept);
                            let detail = format!("in {split}, with the same pixels as {name} in {other}");
                            problems.push(Problem {
                                kind,
                                remedy,
                                file: image.file().to_path_buf(),
                                place: None,
                                detail,
                            });
                        }
                    }
                }
            }
        }
        unreadable.sort_by(|a, b| (a.split, &a.id).cmp(&(b.split, &b.id)));
        let (mut width, mut height, mut sizes) = (None, None, Sizes::default());
        let (mut widths, mut heights) = (Vec::new(), Vec::new());
        for image in Split::ALL.into_iter().flat_map(|split| self.part(split)) {
            widen(&mut width, image.width);
            widen(&mut height, image.height);
            for object in single(image) {
                *sizes.of(object.area) += 1;
                widths.push(object.rect.width);
                heights.push(object.rect.height);
            }
        }
        BoxSummary {
            name: self.name.clone(),
            layout: self.layout,
            split_note: self.split_note.clone(),
            images: self.count(|_| 1),
            empty_images: self.count(|image| usize::from(image.objects.is_empty())),
            objects: self.count(|image| single(image).count()),
            crowds: self.count(|image| image.objects.len() - single(image).count()),
            categories: self.category_summaries(),
            width,
            height,
            sizes,
            box_width: range(widths),
            box_height: range(heights),
            problem_counts: count_kinds(&problems),
            problems,
            unreadable,
            fingerprint: self.fingerprint(),
        }
    }

    fn count(&self, of: impl Fn(&BoxImage) -> usize) -> SplitCounts {
        let [train, val, test] = Split::ALL.map(|split| self.part(split).iter().map(&of).sum());
        SplitCounts { train, val, test }
    }

    fn category_summaries(&self) -> Vec<CategorySummary> {
        let mut images = vec![[0; 3]; self.categories.len()];
        let mut objects = images.clone();
        for split in Split::ALL {
            for image in self.part(split) {
                let mut found: Vec<usize> = single(image).map(|object| object.category).collect();
                for &category in &found {
                    objects[category][split as usize] += 1;
                }
                found.sort_unstable();
                found.dedup();
                for category in found {
                    images[category][split as usize] += 1;
                }
            }
        }
        let counts = |[train, val, test]: [usize; 3]| SplitCounts { train, val, test };
        let all = self.categories.iter().zip(images.into_iter().zip(objects));
        all.map(|(category, (images, objects))| CategorySummary {
            id: category.id,
            name: category.name.clone(),
            images: counts(images),
            objects: counts(objects),
        })
        .collect()
    }
}

impl Sizes {
    fn of(&mut self, area: f64) -> &mut usize {
        match area {
            a if a < SMALL_AND_MEDIUM[0] => &mut self.small,
            a if a < SMALL_AND_MEDIUM[1] => &mut self.medium,
            _ => &mut self.large,
        }
    }
}

/// The objects that are no crowds.
fn single(image: &BoxImage) -> impl Iterator<Item = &Object> {
    image.objects.iter().filter(|object| !object.crowd)
}

fn pixels_hash(image: &BoxImage) -> Result<blake3::Hash> {
    let image = image.image.load()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(image.width as u64).to_le_bytes());
    hasher.update(&image.pixels);
    Ok(hasher.finalize())
}

/// Least, median and greatest.
fn range(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

fn count_kinds(problems: &[Problem]) -> Vec<ProblemCount> {
    let mut counts: HashMap<(ProblemKind, Remedy), usize> = HashMap::new();
    for problem in problems {
        *counts.entry((problem.kind, problem.remedy)).or_default() += 1;
    }
    let mut counts: Vec<_> =
        counts.into_iter().map(|((kind, remedy), count)| ProblemCount { kind, remedy, count }).collect();
    counts.sort_by_key(|c| (std::cmp::Reverse(c.count), c.kind.name(), c.remedy.name()));
    counts
}
