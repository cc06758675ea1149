//! Makes the parts that a data set lacks, and writes down which image went where.
//!
//! * train and val only: val becomes test, and a tenth of train becomes val;
//! * train and test only: a tenth of train becomes val;
//! * neither: 70 % train, 15 % val, 15 % test.
//!
//! The choice is made class by class (images with boxes: all together), by the seed and the samples' ids alone.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::path::Path;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::boxes::BoxDataset;
use super::dataset::{Dataset, Layout, Sample, Split};
use super::open::{LabeledSet, Parts};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result, random};

/// Name of the split file in a run folder.
const SPLIT_FILE: &str = "split.json";

/// Most images, or boxes, a class that a few-shot draw gives to validation, whatever the shots.
pub const MAX_VAL_SHOTS: usize = 4;

/// Longest split file, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// A member of a part.
pub(super) trait Member {
    /// Its id, unique in the data set.
    fn id(&self) -> &str;

    /// The group it is drawn from: a position in the list of groups' names.
    fn group(&self) -> usize;
}

impl Member for Sample {
    fn id(&self) -> &str {
        &self.id
    }

    fn group(&self) -> usize {
        self.label as usize
    }
}

/// Which parts are made where a data set lacks them.
#[derive(Clone, Copy, Debug)]
pub enum MadeParts<'a> {
    /// All three.
    All,
    /// No val: what would be it is learned from.
    NoVal,
    /// None, if all that there is can be measured: a data set that is held out as a whole is the part that is measured.
    Measured(MeasuredPart<'a>),
}

impl<'a> MadeParts<'a> {
    /// The part that is measured, where nothing is learned.
    pub(super) fn measured(self) -> Option<MeasuredPart<'a>> {
        match self {
            Self::Measured(measured) => Some(measured),
            Self::All | Self::NoVal => None,
        }
    }
}

/// The part of a data set that is measured, where nothing is learned from it.
#[derive(Clone, Copy, Debug)]
pub struct MeasuredPart<'a> {
    /// The part.
    pub split: Split,
    /// The parts of the data set that the task was learned from, if they are known.
    pub learned: Option<&'a SplitFile>,
}

/// Fills in those of the parts that `found` lacks that are to be `made`.
pub(super) fn complete(
    name: String,
    layout: Layout,
    found: LabeledSet,
    seed: u64,
    made: MadeParts<'_>,
) -> Result<Dataset> {
    let LabeledSet { classes, samples } = found;
    if let ([class], MadeParts::All | MadeParts::NoVal) = (&classes[..], made) {
        let message = format!("only one class ('{class}'); there is nothing to tell apart");
        return Err(Error::invalid(format!("data set {name}"), message));
    }
    let ([train, val, test], split_note) = complete_parts(&name, samples, &classes, seed, made)?;
    Ok(Dataset { name, layout, classes, train, val, test, split_note })
}

/// Makes the parts that `given` lacks, group by group, and says in a sentence where all three come from. `name` is the data
/// set's, for errors.
pub(super) fn complete_parts<M: Member>(
    name: &str,
    given: Parts<M>,
    groups: &[String],
    seed: u64,
    made: MadeParts<'_>,
) -> Result<([Vec<M>; 3], String)> {
    let given = match made {
        MadeParts::Measured(measured) => match measured.whole(name, given) {
            Ok(found) => return Ok(found),
            Err(given) => given,
        },
        MadeParts::All | MadeParts::NoVal => given,
    };
    let no_val = matches!(made, MadeParts::NoVal);
    if let Parts::Split { train, val, test } = &given
        && train.is_empty()
        && (val.is_some() || test.is_some())
    {
        let names = [("val", val.is_some()), ("test", test.is_some())].into_iter().filter(|(_, is_given)| *is_given);
        let names = names.map(|(name, _)| name).collect::<Vec<_>>().join(" and ");
        let message = format!("no train among its parts ({names} alone): there is nothing to learn from");
        return Err(Error::invalid(format!("data set {name}"), message));
    }
    let (parts, note) = match given {
        Parts::Split { train, val: Some(val), test: Some(test) } => {
            ([train, val, test], "train, val and test as given".to_string())
        }
        Parts::Split { train, val: None, test: Some(test) } if no_val => {
            ([train, Vec::new(), test], "train and test as given; there is no val".to_owned())
        }
        Parts::Split { train, val: Some(test), test: None } if no_val => {
            ([train, Vec::new(), test], "there is no test: val is used as test; there is no val".to_owned())
        }
        Parts::Split { train, val: None, test: None } | Parts::Unsplit(train) if no_val => {
            let parts = draw(train, groups, seed, |n| [0, share(n, 15, 100)]);
            (parts, format!("no parts given: 85 % train, 15 % test by seed {seed}; there is no val"))
        }
        Parts::Split { train, val: None, test: Some(test) } => {
            let (train, val) = tenth(train, groups, seed);
            let note = format!("test as given; val is a tenth of train by seed {seed} ({} images)", val.len());
            ([train, val, test], note)
        }
        Parts::Split { train, val: Some(test), test: None } => {
            let (train, val) = tenth(train, groups, seed);
            let note = format!(
                "there is no test: val is used as test, and val is a tenth of train by seed {seed} ({} images)",
                val.len()
            );
            ([train, val, test], note)
        }
        Parts::Split { train, val: None, test: None } | Parts::Unsplit(train) => {
            let parts = draw(train, groups, seed, |n| [share(n, 15, 100), share(n, 15, 100)]);
            (parts, format!("no parts given: 70 % train, 15 % val, 15 % test by seed {seed}"))
        }
    };
    for (split, part) in Split::ALL.into_iter().zip(&parts) {
        if part.is_empty() && !(no_val && split == Split::Val) {
            let message = format!("no images for {split} ({note}); too few images");
            return Err(Error::invalid(format!("data set {name}"), message));
        }
    }
    Ok((parts, note))
}

impl MeasuredPart<'_> {
    /// All that `given` has as the part to measure, if it is held out as a whole: it has no train, or has no parts and is not
    /// what was learned from. Else it as it was.
    fn whole<M: Member>(self, name: &str, given: Parts<M>) -> Result<([Vec<M>; 3], String), Parts<M>> {
        let (all, note) = match given {
            Parts::Unsplit(all) if self.learned.is_some_and(|learned| !learned.holds(name, &all)) => {
                let note =
                    format!("no parts given, and not what was learned from: all {} images are measured", all.len());
                (all, note)
            }
            Parts::Split { train, val, test } if train.is_empty() => {
                let others = [(Split::Test, test), (Split::Val, val)];
                let mut given: Vec<_> = others.into_iter().filter_map(|(split, part)| Some((split, part?))).collect();
                given.sort_by_key(|(split, _)| *split != self.split);
                match given.into_iter().next() {
                    Some((split, all)) if split == self.split => (all, format!("{split} as given; there is no train")),
                    Some((split, all)) => {
                        let note =
                            format!("{split} is given and no {}: all {} images are measured", self.split, all.len());
                        (all, note)
                    }
                    None => return Err(Parts::Split { train, val: None, test: None }),
                }
            }
            given => return Err(given),
        };
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        parts[self.split as usize] = all;
        Ok((parts, note))
    }
}

/// `percent` hundredths of `n`, rounded, at least one.
fn share(n: usize, part: usize, whole: usize) -> usize {
    ((n * part + whole / 2) / whole).max(1)
}

fn tenth<M: Member>(train: Vec<M>, groups: &[String], seed: u64) -> (Vec<M>, Vec<M>) {
    let [train, val, _] = draw(train, groups, seed, |n| [share(n, 1, 10), 0]);
    (train, val)
}

/// Distributes `samples` over train, val and test. `counts` says how many of a group of `n` go to val and test; a group
/// always keeps one for train, and test comes before val if there are too few for both. Each part keeps the order of
/// `samples`.
fn draw<M: Member>(samples: Vec<M>, groups: &[String], seed: u64, counts: impl Fn(usize) -> [usize; 2]) -> [Vec<M>; 3] {
    let mut place = vec![Split::Train; samples.len()];
    for (members, group) in by_class(&samples, groups.len()).into_iter().zip(groups) {
        let [val, test] = counts(members.len());
        let test = test.min(members.len().saturating_sub(1));
        let val = val.min(members.len().saturating_sub(1 + test));
        let order = shuffled(&samples, members, seed, &format!("split {group}"));
        order[..test].iter().for_each(|&i| place[i] = Split::Test);
        order[test..test + val].iter().for_each(|&i| place[i] = Split::Val);
    }
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    for (sample, split) in samples.into_iter().zip(place) {
        parts[split as usize].push(sample);
    }
    parts
}

/// For each class, or other group, the positions of its samples.
pub(super) fn by_class<M: Member>(samples: &[M], classes: usize) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); classes];
    for (i, sample) in samples.iter().enumerate() {
        members[sample.group()].push(i);
    }
    members
}

/// `members`, which are positions in `samples`, in an order that depends on the seed, the purpose and the ids only.
pub(super) fn shuffled<M: Member>(samples: &[M], mut members: Vec<usize>, seed: u64, purpose: &str) -> Vec<usize> {
    // Images in one file by their position: `train-images:9` comes before `train-images:10`.
    let position = |id: &str| id.rsplit_once(':').and_then(|(_, number)| number.parse::<u64>().ok());
    members.sort_by(|&a, &b| {
        let (a, b) = (samples[a].id(), samples[b].id());
        position(a).zip(position(b)).map_or(Ordering::Equal, |(a, b)| a.cmp(&b)).then_with(|| a.cmp(b))
    });
    members.shuffle(&mut random::stream(seed, purpose, 0, 0));
    members
}

/// The content of `split.json`: which sample was in which part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitFile {
    /// The data set's name.
    pub data: String,
    /// Where the parts come from.
    pub note: String,
    /// Names of the classes or categories in the order of the labels.
    pub classes: Vec<String>,
    /// Ids of the samples learned from.
    pub train: Vec<String>,
    /// Ids of the samples that chose the epoch.
    pub val: Vec<String>,
    /// Ids of the samples looked at at the end.
    pub test: Vec<String>,
}

impl SplitFile {
    /// Split file of `dataset`.
    pub fn new(dataset: &Dataset) -> Self {
        let Dataset { name, split_note, classes, .. } = dataset;
        Self::of(name, split_note, classes.clone(), |split| dataset.part(split))
    }

    /// Split file of a data set of boxes.
    pub fn of_boxes(dataset: &BoxDataset) -> Self {
        Self::of(&dataset.name, &dataset.split_note, dataset.names(), |split| dataset.part(split))
    }

    /// Split file of a data set with these parts.
    pub(super) fn of<'a, M: Member + 'a>(
        name: &str,
        note: &str,
        classes: Vec<String>,
        part: impl Fn(Split) -> &'a [M],
    ) -> Self {
        let [train, val, test] = Split::ALL.map(|split| part(split).iter().map(|m| m.id().to_owned()).collect());
        Self { data: name.to_owned(), note: note.to_owned(), classes, train, val, test }
    }

    /// The split file of the run that `model`, a run folder or a file in one, is of.
    pub fn of_run(model: &Path) -> Option<Self> {
        let folder = if model.is_dir() { model } else { model.parent()? };
        let bytes = read_limited(&folder.join(SPLIT_FILE), MAX_BYTES).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Whether `members` of the data set called `name` are those of this file.
    fn holds<M: Member>(&self, name: &str, members: &[M]) -> bool {
        let own: HashSet<&str> =
            [&self.train, &self.val, &self.test].into_iter().flatten().map(String::as_str).collect();
        let shared = members.iter().filter(|member| own.contains(member.id())).count();
        (shared == own.len() && shared == members.len()) || (self.data == name && shared > 0)
    }

    /// As JSON, ending with a new line.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::dataset::ImageSource;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use vpt_image::decode::Rgb8;

    /// `counts[c]` samples of class `c`.
    fn samples(counts: &[usize]) -> Vec<Sample> {
        let image = ImageSource::Memory(Arc::new(Rgb8::new(1, 1)));
        let all = counts.iter().enumerate().flat_map(|(c, &n)| (0..n).map(move |i| (c, i)));
        all.map(|(c, i)| Sample { image: image.clone(), label: c as u32, id: format!("{c}/{i}") }).collect()
    }

    fn completed(parts: Parts<Sample>, classes: usize, seed: u64) -> Result<Dataset> {
        let classes = (0..classes).map(|c| format!("c{c}")).collect();
        complete("set".into(), Layout::FOLDER, LabeledSet { classes, samples: parts }, seed, MadeParts::All)
    }

    fn ids(samples: &[Sample]) -> BTreeSet<String> {
        samples.iter().map(|s| s.id.clone()).collect()
    }

    #[test]
    fn without_parts_it_is_70_15_15_in_each_class() {
        let data = completed(Parts::Unsplit(samples(&[100, 20])), 2, 1).unwrap();
        let count = |part: &[Sample], label| part.iter().filter(|s| s.label == label).count();
        assert_eq!([count(&data.train, 0), count(&data.val, 0), count(&data.test, 0)], [70, 15, 15]);
        assert_eq!([count(&data.train, 1), count(&data.val, 1), count(&data.test, 1)], [14, 3, 3]);
    }

    #[test]
    fn a_missing_val_is_a_tenth_of_train() {
        let test = samples(&[3, 0]);
        let given = Parts::Split { train: samples(&[40, 4]), val: None, test: Some(test.clone()) };
        let data = completed(given, 2, 1).unwrap();
        assert_eq!((data.train.len(), data.val.len(), ids(&data.test)), (39, 5, ids(&test)));
        // Without test, val takes its place.
        let given = Parts::Split { train: samples(&[40, 4]), val: Some(test.clone()), test: None };
        let other = completed(given, 2, 1).unwrap();
        assert_eq!((ids(&other.val), ids(&other.test)), (ids(&data.val), ids(&test)));
        assert!(other.split_note.contains("val is used as test"), "{}", other.split_note);
    }

    #[test]
    fn a_val_that_is_not_wanted_is_learned_from() {
        let open = |parts| {
            let classes = (0..2).map(|c| format!("c{c}")).collect();
            complete("set".into(), Layout::FOLDER, LabeledSet { classes, samples: parts }, 1, MadeParts::NoVal).unwrap()
        };
        let sizes = |data: &Dataset| [data.train.len(), data.val.len(), data.test.len()];
        let data = open(Parts::Split { train: samples(&[40, 4]), val: None, test: Some(samples(&[3])) });
        assert_eq!((sizes(&data), &*data.split_note), ([44, 0, 3], "train and test as given; there is no val"));
        let data = open(Parts::Split { train: samples(&[40, 4]), val: Some(samples(&[3])), test: None });
        assert_eq!(sizes(&data), [44, 0, 3]);
        assert_eq!(sizes(&open(Parts::Unsplit(samples(&[100, 20])))), [102, 0, 18]);
        let data = open(Parts::Split { train: samples(&[4, 4]), val: Some(samples(&[3])), test: Some(samples(&[4])) });
        assert_eq!(sizes(&data), [8, 3, 4], "what is given is left alone");
    }

    #[test]
    fn parts_that_are_given_are_left_alone() {
        let given = Parts::Split { train: samples(&[1, 1]), val: Some(samples(&[3])), test: Some(samples(&[4])) };
        let data = completed(given, 2, 1).unwrap();
        assert_eq!((data.train.len(), data.val.len(), data.test.len()), (2, 3, 4));
    }

    #[test]
    fn a_single_class_is_an_error() {
        let message = completed(Parts::Unsplit(samples(&[9])), 1, 1).unwrap_err().to_string();
        assert!(message.contains("only one class ('c0')"), "{message}");
    }

    #[test]
    fn too_few_images_are_an_error() {
        let message = completed(Parts::Unsplit(samples(&[1, 1])), 2, 1).unwrap_err().to_string();
        assert!(message.contains("too few images"), "{message}");
    }

    #[test]
    fn a_set_that_is_held_out_is_measured_as_a_whole() {
        let measure = |given: Parts<Sample>, split, learned: Option<&SplitFile>| {
            let set = LabeledSet { classes: vec!["c0".into(), "c1".into()], samples: given };
            let measured = Some(MeasuredPart { split, learned });
            complete("set".into(), Layout::FOLDER, set, 1, measured.map_or(MadeParts::All, MadeParts::Measured))
                .map(|data| (data.part(split).len(), data.split_note))
        };
        let all = || samples(&[10, 10]);
        let held_out = |val, test| Parts::Split { train: Vec::new(), val, test };
        assert_eq!(measure(held_out(None, Some(all())), Split::Test, None).unwrap().0, 20);
        assert_eq!(measure(held_out(Some(samples(&[3, 0])), Some(all())), Split::Test, None).unwrap().0, 20);
        let (count, note) = measure(held_out(Some(all()), None), Split::Test, None).unwrap();
        assert!(count == 20 && note.contains("val is given and no test"), "{note}");
        assert!(completed(held_out(None, Some(all())), 2, 1).unwrap_err().to_string().contains("no train"));
        // Without parts it is what was learned from, or another set.
        let learned = SplitFile::new(&completed(Parts::Unsplit(all()), 2, 1).unwrap());
        assert_eq!(measure(Parts::Unsplit(all()), Split::Test, Some(&learned)).unwrap().0, learned.test.len());
        let other = SplitFile { data: "other".into(), ..learned.clone() };
        let (count, note) = measure(Parts::Unsplit(samples(&[10, 12])), Split::Test, Some(&other)).unwrap();
        assert!(count == 22 && note.contains("all 22 images"), "{note}");
        // Where nothing is known of the run, images that it learned from might be measured.
        assert!(measure(Parts::Unsplit(all()), Split::Test, None).unwrap().0 < 20);
        // Parts that are given stay.
        let given = Parts::Split { train: all(), val: None, test: Some(samples(&[4, 4])) };
        assert_eq!(measure(given, Split::Test, Some(&other)).unwrap().0, 8);
    }

    #[test]
    fn the_split_file_lists_every_id() {
        let data = completed(Parts::Unsplit(samples(&[10, 10])), 2, 3).unwrap();
        let file = SplitFile::new(&data);
        assert_eq!(file.train.len() + file.val.len() + file.test.len(), 20);
        assert_eq!(serde_json::from_slice::<SplitFile>(&file.to_json()).unwrap(), file);
    }

    proptest! {
        #[test]
        fn every_sample_goes_to_one_part_whatever_the_order(counts in prop::collection::vec(1_usize..12, 1..5), seed: u64) {
            let all = samples(&counts);
            let classes: Vec<String> = (0..counts.len()).map(|c| c.to_string()).collect();
            let split = |samples: Vec<Sample>| draw(samples, &classes, seed, |n| [share(n, 15, 100), share(n, 15, 100)]).map(|p| ids(&p));
            let parts = split(all.clone());
            prop_assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), all.len());
            prop_assert_eq!(parts.iter().flatten().collect::<BTreeSet<_>>().len(), all.len());
            for (class, _) in counts.iter().enumerate() {
                let prefix = format!("{class}/");
                prop_assert!(parts[0].iter().any(|id| id.starts_with(&prefix)));
            }
            prop_assert_eq!(split(all.into_iter().rev().collect()), parts);
        }
    }
}
