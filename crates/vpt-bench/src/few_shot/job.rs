//! A job of the grid: one method on one draw of one data set. What it is, where its files lie, and what it leaves.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{GridMethod, GridSchedule, Mode};
use vpt_backbone::class_texts::Prompts;
use vpt_base::{
    Error, Message, Result,
    files::{self, write_atomic},
};
use vpt_data::Dataset;
use vpt_energy::Energy;
use vpt_model::metrics::{Ece, Scores, coco::MatchedDetections, segment::ClassPixels};
use vpt_train::{config::RunConfig, train::results::ProbeResults};

/// Longest result of a job that is read, in bytes: four bits of text an image of the test set.
const MAX_RESULT: u64 = 256 << 20;

/// The folder of the results of jobs.
const JOBS: &str = "jobs";
/// The folder of jobs under way, and of those that failed.
const WORK: &str = "work";
/// The folder of run folders that are kept.
const RUNS: &str = "runs";
/// Why a job failed, in its folder below `work`.
const ERROR: &str = "error.txt";

/// One method on one draw of one data set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The stem of its files' names.
    pub name: String,
    /// The folder of the grid.
    pub out: PathBuf,
    /// The data set's name.
    pub dataset: String,
    /// The method.
    pub method: GridMethod,
    /// Images, or boxes, a class it learns from; 0 where nothing is learned.
    pub shots: usize,
    /// Seed of draw and training; 0 where nothing is learned.
    pub seed: u64,
    /// What the grid asks.
    pub mode: Mode,
    /// How long methods learn.
    pub schedule: GridSchedule,
    /// Everything that its result depends on.
    pub identity: Identity,
    /// The run, with every default filled in.
    pub config: RunConfig,
    /// What it is measured on.
    pub parts: Vec<TestPart>,
    /// Images it learns from.
    pub train_images: usize,
    /// How often an image goes through the backbone to learn from it.
    pub image_passes: usize,
    /// Whether its run folder is kept.
    pub keep_run: bool,
}

/// Something that a job is measured on: the test images of a data set, or of half of its classes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TestPart {
    /// `test`, `base`, `new`, or the data set's name.
    pub name: String,
    /// The data set's folder or file.
    pub data: String,
    /// Which of its classes.
    pub half: Half,
    /// Names and templates, for methods that tell classes by their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Prompts>,
}

/// Which classes of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Half {
    /// All of them.
    All,
    /// The first half of the labels, rounded up.
    Base,
    /// The others.
    New,
}

impl Half {
    /// The labels of this half among `classes` labels.
    pub fn labels(self, classes: usize) -> std::ops::Range<usize> {
        let base = classes.div_ceil(2);
        match self {
            Self::All => 0..classes,
            Self::Base => 0..base,
            Self::New => base..classes,
        }
    }

    /// The part of `dataset` with the classes of this half.
    pub fn of(self, dataset: &Dataset) -> Dataset {
        let kept = &dataset.classes[self.labels(dataset.classes.len())];
        dataset.of_classes(|class| kept.iter().any(|kept| kept == class))
    }
}

/// Everything that the result of a job depends on, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity(pub(super) BTreeMap<String, Value>);

impl Identity {
    /// The names of what differs, with both values where they are short.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
        let differing = names.into_iter().filter(|&name| self.0.get(name) != now.0.get(name));
        let say = |name: &String| {
            let [before, now] = [self.0.get(name), now.0.get(name)].map(shown);
            if before.len() + now.len() > 60 { name.clone() } else { format!("{name} {before} there, {now} here") }
        };
        differing.map(say).collect()
    }

    /// What it says under `name`, if that is a text; empty otherwise.
    pub(super) fn text(&self, name: &str) -> String {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// A short text that stands for it.
    fn short(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        blake3::hash(text.as_bytes()).to_hex()[..8].to_owned()
    }
}

/// What a job leaves: `jobs/NAME.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobResult {
    /// The data set.
    pub dataset: String,
    /// The method.
    pub method: GridMethod,
    /// Images, or boxes, a class it learned from; 0 where nothing is learned.
    pub shots: usize,
    /// Seed of draw and training; 0 where nothing is learned.
    pub seed: u64,
    /// What it scored.
    pub parts: Vec<PartResult>,
    /// On the validation images, at the selected epoch.
    pub val: Option<Scores>,
    /// The epoch that counts, from 1.
    pub best_epoch: Option<usize>,
    /// What the logits are divided by before they become probabilities, fitted on the validation images.
    pub temperature: Option<f64>,
    /// BLAKE3 hash of what was learned.
    pub learned: Option<String>,
    /// What the probe on frozen features reached alone, where the head begins as it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeResults>,
    /// Images it learned from.
    pub train_images: usize,
    /// How often an image went through the backbone to learn from it.
    pub image_passes: usize,
    /// Learned values.
    pub trainable_params: usize,
    /// Wall time in seconds.
    pub wall_s: f64,
    /// Most memory that the job's process held, in bytes.
    pub peak_rss_bytes: Option<u64>,
    /// What the job took; nothing in results of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// Version of the program.
    pub vpt: String,
    /// Class names and templates by part, where classes are told by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, Prompts>,
    /// Everything that it depends on.
    pub identity: Identity,
}

/// What a job scored on one part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartResult {
    /// The part's name.
    pub name: String,
    /// Images of it.
    pub images: usize,
    /// The metrics.
    pub metrics: Scores,
    /// Expected calibration error, before and after the logits are divided by the temperature, where an image has one class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ece: Option<Ece>,
    /// BLAKE3 hash of the images' ids: what two results must share to be compared image by image.
    pub images_hash: String,
    /// A bit an image in their order, 1 if it is right, four to a hexadecimal digit, the first image highest; empty for boxes and masks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub correct: String,
    /// What was found in each image, for boxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<MatchedDetections>,
    /// The pixels of each class in each image, for masks: those that are told rightly, in truth and in prediction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels: Option<Vec<Vec<ClassPixels>>>,
}

impl Job {
    /// The file of its result.
    pub fn result_file(&self) -> PathBuf {
        self.out.join(JOBS).join(format!("{}.json", self.name))
    }

    /// The folder it works in, which is locked while it does.
    pub fn work_folder(&self) -> PathBuf {
        self.out.join(WORK).join(&self.name)
    }

    /// The run folder it works in. One that was begun with other settings is not taken up.
    pub(super) fn run_folder(&self) -> PathBuf {
        self.work_folder().join(format!("run-{}", self.identity.short()))
    }

    /// Where its run folder stays if it is to.
    pub(super) fn kept_run_folder(&self) -> PathBuf {
        self.out.join(RUNS).join(&self.name)
    }

    /// Why it failed, if it did.
    pub(super) fn error_file(&self) -> PathBuf {
        self.work_folder().join(ERROR)
    }

    /// Its result, if it has one.
    ///
    /// # Errors
    /// The file is no result, or one of other settings.
    pub fn result(&self) -> Result<Option<JobResult>> {
        let path = self.result_file();
        if !path.is_file() {
            return Ok(None);
        }
        let result = JobResult::load(&path)?;
        let differences = result.identity.differences(&self.identity);
        if differences.is_empty() {
            return Ok(Some(result));
        }
        let message =
            Message::from(format!("the result of other settings ({}); give another ", differences.join("; ")));
        Err(Error::file(path, message.field("out").text(", or remove this file to compute it again")))
    }
}

impl JobResult {
    /// Reads the result of a job.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = files::read_limited(path, MAX_RESULT)?;
        let result: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(path, Message::from("not a job's result: ").text(Message::of_reader(&e))))?;
        for part in &result.parts {
            let misfit = |field: &str| {
                let message = format!("`{field}` does not fit the number of images");
                Err(Error::invalid(format!("part {}", part.name), message))
            };
            match (&part.matched, &part.pixels) {
                (Some(matched), None) if matched.images == part.images => matched.check(),
                (Some(_), _) => misfit("matched"),
                (None, Some(pixels)) => {
                    let classes = pixels.first().map_or(0, Vec::len);
                    let fits = pixels.len() == part.images && pixels.iter().all(|image| image.len() == classes);
                    if fits { Ok(()) } else { misfit("pixels") }
                }
                (None, None) => part.correct().map(|_| ()),
            }
            .map_err(|error| Error::file(path, error))?;
        }
        Ok(result)
    }

    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| Error::file(path, e.to_string()))?;
        bytes.push(b'\n');
        create_parent(path)?;
        write_atomic(path, &bytes)
    }

    /// The part called `name`.
    pub fn part(&self, name: &str) -> Option<&PartResult> {
        self.parts.iter().find(|part| part.name == name)
    }
}

impl PartResult {
    /// Whether each image is right.
    ///
    /// # Errors
    /// The digits do not fit the number of images.
    pub fn correct(&self) -> Result<Vec<bool>> {
        let wrong = || Error::invalid(format!("part {}", self.name), "`correct` does not fit the number of images");
        if self.correct.len() != self.images.div_ceil(4) {
            return Err(wrong());
        }
        let mut bits = Vec::with_capacity(self.images + 3);
        for digit in self.correct.chars() {
            let digit = digit.to_digit(16).ok_or_else(wrong)?;
            bits.extend((0..4).rev().map(|bit| digit >> bit & 1 == 1));
        }
        if bits.drain(self.images..).any(|bit| bit) {
            return Err(wrong());
        }
        Ok(bits)
    }
}

/// [`PartResult::correct`] as it is written.
pub(super) fn digits(correct: &[bool]) -> String {
    let digit = |four: &[bool]| {
        let value = (0..4).fold(0, |value, i| value << 1 | u32::from(four.get(i) == Some(&true)));
        char::from_digit(value, 16).unwrap_or('0')
    };
    correct.chunks(4).map(digit).collect()
}

/// Every result in the folder `out`, by the name of its file.
pub(super) fn results(out: &Path) -> Result<Vec<JobResult>> {
    let mut paths = listing(&out.join(JOBS))?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
    paths.iter().map(|path| JobResult::load(path)).collect()
}

/// Name and reason of every job in the folder `out` that failed and was not done since.
pub(super) fn failures(out: &Path) -> Result<Vec<(String, String)>> {
    let mut failures = Vec::new();
    for folder in listing(&out.join(WORK))? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let error = folder.join(ERROR);
        if error.is_file() && !out.join(JOBS).join(format!("{name}.json")).exists() {
            let text = String::from_utf8_lossy(&files::read_limited(&error, 1 << 16)?).trim().to_owned();
            failures.push((name, text));
        }
    }
    Ok(failures)
}

/// What lies in a folder, by name; nothing if there is none.
fn listing(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder)(error)),
    };
    let mut paths = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(Error::io(folder))?;
    // Files half written by other processes begin with a dot.
    paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    paths.sort();
    Ok(paths)
}

/// Makes the folder that `path` lies in.
pub(super) fn create_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(Error::io(parent)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vpt_model::metrics::Metrics;

    fn part(images: usize, correct: &str) -> PartResult {
        let metrics = Scores::Classify(Metrics { acc1: 0., acc5: None, mean_per_class_recall: 0., loss: 0. });
        let (name, images_hash) = ("test".to_owned(), String::new());
        PartResult {
            name,
            images,
            metrics,
            ece: None,
            images_hash,
            correct: correct.to_owned(),
            matched: None,
            pixels: None,
        }
    }

    proptest! {
        #[test]
        fn bits_come_back_from_digits(bits: Vec<bool>) {
            prop_assert_eq!(part(bits.len(), &digits(&bits)).correct().unwrap(), bits);
        }
    }

    #[test]
    fn digits_that_do_not_fit_are_refused() {
        assert_eq!(part(5, "f8").correct().unwrap(), [true; 5]);
        for (images, text) in [(5, "f"), (5, "f8f"), (5, "fc"), (4, "g"), (0, "0"), (4, "é")] {
            assert!(part(images, text).correct().is_err(), "{images} {text}");
        }
    }

    #[test]
    fn the_first_half_is_rounded_up() {
        let halves = |classes| [Half::All, Half::Base, Half::New].map(|half| half.labels(classes));
        assert_eq!(halves(5), [0..5, 0..3, 3..5]);
        assert_eq!(halves(4), [0..4, 0..2, 2..4]);
    }

    #[test]
    fn what_differs_is_named() {
        let identity = |pairs: &[(&str, Value)]| {
            Identity(pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        let before = identity(&[("lr", 0.1.into()), ("data", "a".repeat(64).into()), ("seed", 1.into())]);
        let now = identity(&[("lr", 0.2.into()), ("data", "b".repeat(64).into()), ("flip", true.into())]);
        let expected =
            ["data", "flip nothing there, true here", "lr 0.1 there, 0.2 here", "seed 1 there, nothing here"];
        assert_eq!(before.differences(&now), expected);
        assert!(now.differences(&now).is_empty());
        assert_ne!(before.short(), now.short());
    }
}
