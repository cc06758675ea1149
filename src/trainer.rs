//! Training: a method on a backbone, from data on disk or in memory to a learned task.

use std::{
    ffi::OsStr,
    fmt::Display,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{FrozenBackbone, LearnedTask};
use vpt_base::{Error, Result, suggest};
use vpt_data::{
    Dataset, MemorySet, MultilabelDataset,
    boxes::{BoxDataset, Rect},
};
use vpt_model::{
    methods::{Method, settings::Settings},
    metrics::Scores,
    model::task_file::TaskFile,
};
use vpt_train::{
    config::{LearningRate, RunConfig},
    train::{self, Observer, OpenData, Outcome, Results, Silent},
};

/// A run that is about to begin: what is learned, on which backbone, and how.
///
/// Whatever is not said is the method's default, as on the command line; [`Self::set`] takes every setting of `config.toml`.
#[derive(Debug, Clone, Default)]
pub struct Trainer {
    config: RunConfig,
    folder: Option<PathBuf>,
}

/// What a run learns from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TrainingData {
    /// A folder or file in any layout that is known, or `shapes`, which is drawn.
    Path(String),
    /// Images in memory with a class each.
    Classes(MemorySet<u32>),
    /// Images in memory with any number of classes each.
    Multilabel(MemorySet<Vec<u32>>),
    /// Images in memory with boxes.
    Boxes(MemorySet<Vec<(u32, Rect)>>),
    /// A data set that is open.
    Open(OpenData),
}

macro_rules! data_from {
    ($($from:ty => $make:expr,)*) => {
        $(impl From<$from> for TrainingData {
            fn from(data: $from) -> Self {
                $make(data)
            }
        })*
    };
}

data_from! {
    &str => |path: &str| Self::Path(path.to_owned()),
    String => Self::Path,
    &Path => |path: &Path| Self::Path(path.to_string_lossy().into_owned()),
    &PathBuf => |path: &PathBuf| Self::Path(path.to_string_lossy().into_owned()),
    MemorySet<u32> => Self::Classes,
    MemorySet<Vec<u32>> => Self::Multilabel,
    MemorySet<Vec<(u32, Rect)>> => Self::Boxes,
    Dataset => |set| Self::Open(OpenData::Classify(set)),
    MultilabelDataset => |set| Self::Open(OpenData::Multilabel(set)),
    BoxDataset => |set| Self::Open(OpenData::Detect(set)),
}

impl TrainingData {
    /// Where it is on disk, or the open data set, whose missing parts are split off by `seed`.
    fn open(self, seed: u64) -> Result<Result<String, OpenData>> {
        Ok(match self {
            Self::Path(path) => Ok(path),
            Self::Classes(set) => Err(OpenData::Classify(set.dataset(seed)?)),
            Self::Multilabel(set) => Err(OpenData::Multilabel(set.multilabel(seed)?)),
            Self::Boxes(set) => Err(OpenData::Detect(set.boxes(seed)?)),
            Self::Open(data) => Err(data),
        })
    }
}

impl Trainer {
    /// A run on the backbone `name_or_folder`, as [`FrozenBackbone::open`] finds it, with the default method, `vpt-deep`.
    pub fn new(name_or_folder: &str) -> Self {
        Self::from(RunConfig { backbone: name_or_folder.to_owned(), ..RunConfig::default() })
    }

    /// The method, by its name: `linear`, `vpt-deep`, `coop`, `vpt-deep,lora` for two at once, … The README's table has them all.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn method(mut self, name: &str) -> Result<Self> {
        self.config.method = name.parse::<Method>()?;
        Ok(self)
    }

    /// Any setting by its name in `config.toml` and its value as the command line takes it: `.set("prompt_tokens", 10)`,
    /// `.set("head", "cosine")`, `.set("flip", true)`.
    ///
    /// # Errors
    /// There is no such setting, or it cannot have that value.
    pub fn set(mut self, name: &str, value: impl Display) -> Result<Self> {
        if self.config.set(name, OsStr::new(&value.to_string()))? {
            return Ok(self);
        }
        let known: Vec<&str> = RunConfig::all().iter().map(|setting| setting.name).collect();
        let meant = suggest::nearest(name, known).map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        Err(Error::setting(name.to_owned(), format!("there is no such setting{meant}")))
    }

    /// Passes over the training images.
    #[must_use]
    pub fn epochs(mut self, epochs: usize) -> Self {
        self.config.epochs = Some(epochs);
        self
    }

    /// Images a step.
    #[must_use]
    pub fn batch_size(mut self, images: usize) -> Self {
        self.config.batch_size = Some(images);
        self
    }

    /// Peak learning rate.
    #[must_use]
    pub fn lr(mut self, rate: f64) -> Self {
        self.config.lr = Some(LearningRate::Value(rate));
        self
    }

    /// Images of each class to learn from, drawn by the seed.
    #[must_use]
    pub fn shots(mut self, images: usize) -> Self {
        self.config.shots = Some(images);
        self
    }

    /// Seed of everything that is drawn at random: the same seed on as many threads gives the same values to the last bit.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Threads; all cores unless said.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.config.threads = Some(threads);
        self
    }

    /// Keeps the run in this folder, which must not be there or be empty: its configuration, results, curves, checkpoint. Unless said
    /// it is a temporary one, which goes with the [`TrainedRun`].
    #[must_use]
    pub fn run_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// All settings.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Learns from `data`: a path, or images in memory.
    ///
    /// # Errors
    /// A setting makes no sense, or not for this data or backbone; something cannot be read or written; the loss is no longer finite.
    pub fn train(self, data: impl Into<TrainingData>) -> Result<TrainedRun> {
        let stopped = || Error::invalid("run", "was stopped, though nobody asked for it");
        self.train_watched(data, &mut Silent)?.ok_or_else(stopped)
    }

    /// As [`Self::train`], where `observer`, which may be a closure, is told what happens and may stop the run: then there is no
    /// result, and a run with a folder of its own can be gone on with, by [`resume`].
    ///
    /// # Errors
    /// As [`Self::train`].
    pub fn train_watched(
        self,
        data: impl Into<TrainingData>,
        observer: &mut dyn Observer,
    ) -> Result<Option<TrainedRun>> {
        let Self { mut config, folder } = self;
        config.validate()?;
        let (folder, kept) = if let Some(folder) = folder {
            (folder, None)
        } else {
            let kept = TempDir::with_prefix("vpt-run-").map_err(Error::io(std::env::temp_dir()))?;
            (kept.path().join("run"), Some(kept))
        };
        config.out = Some(folder.clone());
        let outcome = match data.into().open(config.seed_of_parts())? {
            Ok(path) => train::run(&RunConfig { data: path, ..config }, Path::new("runs"), observer),
            Err(data) => train::run_on(&config, data, Path::new("runs"), observer),
        }?;
        Ok(TrainedRun::of(outcome, kept))
    }
}

impl From<RunConfig> for Trainer {
    /// A run as a configuration says it, as [`RunConfig::load`] reads one; its `data` is not used, nor its `out`.
    fn from(config: RunConfig) -> Self {
        Self { config, folder: None }
    }
}

/// Goes on with the run in `folder` that was stopped or cut off, to the same bytes as if it had not been. A run on images in memory
/// needs these again; one on a path finds that by itself.
///
/// # Errors
/// As [`Trainer::train`]; or the folder holds no run, or configuration, data or backbone are no longer the same.
pub fn resume(
    folder: impl AsRef<Path>,
    data: Option<TrainingData>,
    observer: &mut dyn Observer,
) -> Result<Option<TrainedRun>> {
    let folder = folder.as_ref();
    let given = match data {
        None | Some(TrainingData::Path(_)) => None,
        Some(data) => {
            let config = RunConfig::load(&folder.join(train::run_folder::CONFIG))?;
            data.open(config.seed_of_parts())?.err()
        }
    };
    let outcome = match given {
        Some(data) => train::resume_on(folder, data, observer),
        None => train::resume(folder, observer),
    }?;
    Ok(TrainedRun::of(outcome, None))
}

/// A finished run.
#[derive(Debug)]
pub struct TrainedRun {
    folder: PathBuf,
    results: Box<Results>,
    /// The folder, where it goes with this.
    _kept: Option<TempDir>,
}

impl TrainedRun {
    fn of(outcome: Outcome, kept: Option<TempDir>) -> Option<Self> {
        match outcome {
            Outcome::Finished { folder, results } => Some(Self { folder, results, _kept: kept }),
            Outcome::Interrupted { .. } => None,
        }
    }

    /// What came out: scores on validation and test images, the epoch that counts, time, memory.
    pub fn results(&self) -> &Results {
        &self.results
    }

    /// Scores on the test images, which were looked at once.
    pub fn test(&self) -> &Scores {
        &self.results.test
    }

    /// The run folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The learned task, ready to answer.
    ///
    /// # Errors
    /// As [`LearnedTask::open`].
    pub fn task(&self) -> Result<LearnedTask> {
        LearnedTask::open(&self.folder)
    }

    /// The learned task on a backbone that is open already.
    ///
    /// # Errors
    /// As [`LearnedTask::on`].
    pub fn task_on(&self, backbone: &FrozenBackbone) -> Result<LearnedTask> {
        LearnedTask::on(backbone, &self.folder)
    }

    /// Writes the learned task to a file, about a megabyte, for [`LearnedTask::open`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        TaskFile::open(&self.folder)?.save(path.as_ref())
    }
}
