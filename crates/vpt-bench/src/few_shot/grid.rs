//! From what a user asks for to the list of jobs: data sets and backbone opened, draws read or made, every run resolved, so
//! that what is wrong with any of them is said before the first one begins.

mod check;
mod file;
mod jobs;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

pub use self::file::GridFile;
use self::jobs::JobMaker;
use super::{GridMethod, data::GridData, job::Job};
use vpt_backbone::{Backbone, OpenOptions, class_texts::Prompts, registry};
use vpt_base::{Error, Result, choice::choice};
use vpt_data::cards::{Card, CardMatch, CardTexts};
use vpt_train::{
    config::{RunConfig, Task},
    train::{run_folder, working_size},
};

/// How often an image goes through the backbone in a run of the quick schedule, at most.
pub const QUICK_PASSES: usize = 2000;
choice! {
    /// What a grid asks.
    #[derive(Default)]
    pub enum Mode for "mode" {
        /// How well methods learn from few images a class.
        #[default]
        FewShot = "few-shot",
        /// How well they tell classes that they have not learned.
        BaseToNew = "base-to-new",
        /// How well they do on other data sets.
        Cross = "cross",
    }
}

choice! {
    /// How long methods learn.
    #[derive(Default)]
    pub enum GridSchedule for "schedule" {
        /// As long as their defaults say.
        #[default]
        Published = "published",
        /// At most [`QUICK_PASSES`] image passes a job, but one epoch at least.
        Quick = "quick",
    }
}

/// A file of texts, for one data set or for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// The data set's name; all of them if `None`.
    pub data: Option<String>,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for TextFile {
    type Err = Error;

    /// Reads `DATA=FILE` or `FILE`.
    fn from_str(s: &str) -> Result<Self> {
        Ok(match s.split_once('=') {
            Some((data, path)) => Self { data: Some(data.to_owned()), path: path.into() },
            None => Self { data: None, path: s.into() },
        })
    }
}

/// A grid as the user asks for it.
#[derive(Debug, Clone)]
pub struct GridConfig {
    /// What all runs have in common: task, backbone, epochs, rates, threads. Data, method, shots, draw, seed and folder are the
    /// grid's to set; its seed is that of the parts that data lacks. Without a task it is one class an image.
    pub base: RunConfig,
    /// The data sets.
    pub data: Vec<String>,
    /// The methods.
    pub methods: Vec<GridMethod>,
    /// Images a class, or boxes or masks.
    pub shots: Vec<usize>,
    /// Seeds of draws and training.
    pub seeds: Vec<u64>,
    /// What the grid asks.
    pub mode: Mode,
    /// With [`Mode::Cross`]: the data sets that the others are tried on.
    pub targets: Vec<String>,
    /// How long methods learn.
    pub schedule: GridSchedule,
    /// Class names.
    pub classnames: Vec<TextFile>,
    /// Templates.
    pub templates: Vec<TextFile>,
    /// Where draws are read from, and written to where there is none yet; a folder in `out` if `None`.
    pub draws: Option<PathBuf>,
    /// The folder of the grid.
    pub out: PathBuf,
    /// Whether run folders are kept.
    pub keep_runs: bool,
}

/// A data set of the grid.
struct Opened {
    /// Its name as files use it.
    name: String,
    path: String,
    dataset: GridData,
    /// Stands for ids and labels of all parts.
    hash: String,
    prompts: Prompts,
    /// The card that these are from.
    card: Option<String>,
}

/// A backbone, and what runs need to know of it.
struct GridBackbone {
    name: String,
    hash: String,
    depth: usize,
    text_depth: Option<usize>,
    image_size: usize,
}

impl GridConfig {
    /// The jobs, in the order they are numbered, and what the folder is to say of them. Draws that do not exist yet are
    /// written.
    ///
    /// # Errors
    /// A setting makes no sense or no job; data, backbone, draws or texts cannot be read or do not fit.
    pub fn jobs(&self) -> Result<(GridFile, Vec<Job>)> {
        self.check()?;
        let image_size = match self.task() {
            Task::Detect | Task::Segment if self.base.image_size.is_none() => {
                Some(working_size(&self.base.backbone, self.base.weights_dir.as_deref())?)
            }
            _ => self.base.image_size,
        };
        let options = OpenOptions {
            weights_dir: self.base.weights_dir.clone(),
            image_size,
            precision: self.base.precision,
            max_memory: self.base.max_memory,
            compute: self.base.compute(),
        };
        let backbone = Backbone::open(&self.base.backbone, &options)?;
        if let Some(method) = self.methods.iter().find(|method| method.needs_texts())
            && !backbone.has_text_tower()
        {
            let message = format!("{method} needs a CLIP backbone, which {} is not", backbone.name);
            return Err(Error::setting("methods", message));
        }
        let frozen = GridBackbone {
            name: backbone.name.clone(),
            hash: backbone.hash()?.to_owned(),
            depth: backbone.vit.depth(),
            text_depth: backbone
                .text_spec()
                .ok()
                .map(|text| text.tower.depth)
                .filter(|_| self.task() == Task::Classify),
            image_size: backbone.vit.image_size(),
        };
        let mapped = self.base.label_map.map(|_| backbone.classifier()).transpose()?.map(|source| source.classes());
        drop(backbone);
        let sources = self.open_all(&self.data, "data")?;
        if let (Some(found), Some(data)) =
            (mapped, sources.iter().find(|data| mapped.is_some_and(|found| found < data.dataset.classes().len())))
        {
            let message = format!(
                "{} has {} classes, where the backbone's classifier has {found}",
                data.name,
                data.dataset.classes().len()
            );
            return Err(Error::setting("label_map", message));
        }
        let targets = self.open_all(&self.targets, "targets")?;
        self.check_texts(sources.iter().chain(&targets))?;
        let grid = GridFile {
            mode: self.mode,
            schedule: self.schedule,
            task: Some(self.task()).filter(|task| *task != Task::Classify),
            backbone: frozen.name.clone(),
            backbone_hash: frozen.hash.clone(),
            targets: targets.iter().map(|target| target.name.clone()).collect(),
            cards: sources
                .iter()
                .chain(&targets)
                .filter_map(|data| Some((data.name.clone(), data.card.clone()?)))
                .collect(),
        };
        let mut jobs = Vec::new();
        for source in &sources {
            let maker = JobMaker { grid: self, frozen: &frozen, source, targets: &targets };
            for &method in &self.methods {
                let GridMethod::Learned(learned) = method else {
                    jobs.push(maker.zero_shot());
                    continue;
                };
                for &shots in &self.shots {
                    for &seed in &self.seeds {
                        jobs.push(maker.learned(learned, shots, seed)?);
                    }
                }
            }
        }
        Ok((grid, jobs))
    }

    /// The same without the methods that the backbone cannot do, and these: those that need texts where it reads none.
    ///
    /// # Errors
    /// The backbone is nowhere, or its configuration cannot be read.
    pub fn of_able_methods(self) -> Result<(Self, Vec<GridMethod>)> {
        let spec = registry::locate(&self.base.backbone, self.base.weights_dir.as_deref())?.spec()?;
        if spec.text.is_some() {
            return Ok((self, Vec::new()));
        }
        let (unable, methods) = self.methods.iter().copied().partition(|method| method.needs_texts());
        Ok((Self { methods, ..self }, unable))
    }

    /// What is learned.
    fn task(&self) -> Task {
        if self.base.task == Task::Auto { Task::Classify } else { self.base.task }
    }

    fn open_all(&self, paths: &[String], field: &'static str) -> Result<Vec<Opened>> {
        let mut opened: Vec<Opened> = Vec::new();
        for path in paths {
            let dataset = GridData::open(self.task(), path, self.base.seed_of_parts())?;
            let name = run_folder::file_name(dataset.name());
            if let Some(other) = opened.iter().find(|other| other.name == name) {
                let message = format!("{} and {path} are both called {name}; files are named by it", other.path);
                return Err(Error::setting(field, message));
            }
            if self.mode == Mode::BaseToNew && dataset.classes().len() < 2 {
                return Err(Error::setting("base_to_new", format!("{name} has less than two classes")));
            }
            let mut prompts = Prompts::of_names(&dataset.classes());
            let card = self.card(&name, &dataset)?;
            if let Some(found) = &card {
                let CardTexts { names, templates } = found.texts(true);
                prompts.classnames = names;
                if !templates.is_empty() {
                    prompts.templates = templates;
                }
            }
            if let Some(file) = text_file(&self.classnames, &name) {
                prompts.classnames = Prompts::read_classnames(file, &name, &dataset.classes())?;
            }
            if let Some(file) = text_file(&self.templates, &name) {
                prompts.templates = Prompts::read_templates(file, Some(&name))?;
            }
            let card = card.map(|found| found.card.name);
            opened.push(Opened { hash: dataset.hash(), name, path: path.clone(), dataset, prompts, card });
        }
        Ok(opened)
    }

    /// The card whose texts name the classes of `dataset`, unless files do, or no method reads any.
    fn card(&self, name: &str, dataset: &GridData) -> Result<Option<CardMatch>> {
        let said = [&self.classnames, &self.templates].iter().all(|files| text_file(files, name).is_some());
        if said || !self.methods.iter().any(|method| method.reads_names()) {
            return Ok(None);
        }
        Card::choose(self.base.dataset_card.as_deref(), dataset.name(), &dataset.classes())
    }
}

/// The file for the data set `name`: its own, else the one for all.
fn text_file<'a>(files: &'a [TextFile], name: &str) -> Option<&'a Path> {
    let own = files.iter().find(|file| file.data.as_deref() == Some(name));
    own.or_else(|| files.iter().find(|file| file.data.is_none())).map(|file| file.path.as_path())
}
