//! From what a user asks for to the list of jobs: data sets and backbone opened, draws read or made, every run resolved, so
//! that what is wrong with any of them is said before the first one begins.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    GridMethod,
    data::{GridData, GridDraw, check_task},
    job::{Half, Identity, Job, TestPart, create_parent},
};
use vpt_backbone::{Backbone, OpenOptions, class_texts::Prompts, registry};
use vpt_base::{
    Error, Message, Result,
    choice::choice,
    files::{self, write_atomic},
};
use vpt_data::{
    Split,
    cards::{Card, CardMatch, CardTexts, NO_CARD},
};
use vpt_model::{
    head::{HeadKind, LabelMap},
    methods::Method,
};
use vpt_train::{
    config::{Plan, RunConfig, RunContext, Task},
    train::{features, run_folder, working_size},
};

/// What says which grid a folder holds.
const GRID: &str = "grid.json";
/// The folder of draws, unless another one is given.
const DRAWS: &str = "draws";
/// How often an image goes through the backbone in a run of the quick schedule, at most.
pub const QUICK_PASSES: usize = 2000;
/// Fields of a configuration that say where and how fast a run is computed, or that others of the identity stand for.
const ELSEWHERE: [&str; 10] = [
    "backbone",
    "weights_dir",
    "data",
    "draw",
    "split_seed",
    "threads",
    "micro_batch",
    "cache_dir",
    "out",
    "dataset_card",
];

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
    /// Images a class, or boxes.
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

/// What all jobs of a folder have in common: `grid.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridFile {
    /// What the grid asks.
    pub mode: Mode,
    /// How long methods learn.
    pub schedule: GridSchedule,
    /// What is learned, unless it is one class an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// The backbone's name.
    pub backbone: String,
    /// What stands for everything that decides its outputs ([`vpt_backbone::BackboneIdentity`]).
    pub backbone_hash: String,
    /// With [`Mode::Cross`]: the data sets that the others are tried on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// The cards of public data sets that texts were taken from, by data set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cards: BTreeMap<String, String>,
}

impl GridFile {
    /// What is learned.
    pub fn task(&self) -> Task {
        self.task.unwrap_or(Task::Classify)
    }

    /// Reads the grid of the folder `out`.
    ///
    /// # Errors
    /// There is none.
    pub fn load(out: &Path) -> Result<Self> {
        let path = out.join(GRID);
        if !path.is_file() {
            let message =
                Message::from(format!("holds no grid: there is no {GRID}; `vpt bench few-shot ")).field("out");
            return Err(Error::file(out, message.text(" DIR` makes one")));
        }
        let bytes = files::read_limited(&path, 1 << 20)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::file(&path, Message::from("not a grid: ").text(Message::of_reader(&error))))
    }

    /// Makes `out` the folder of this grid.
    ///
    /// # Errors
    /// It is another grid's.
    pub(super) fn claim(&self, out: &Path) -> Result<()> {
        let path = out.join(GRID);
        if path.is_file() {
            let there = Self::load(out)?;
            if there == *self {
                return Ok(());
            }
            let name = |grid: &Self| {
                let hash = grid.backbone_hash.get(..8).unwrap_or_default();
                let what: Vec<&str> =
                    std::iter::once(grid.mode.name()).chain(grid.targets.iter().map(String::as_str)).collect();
                let task = grid.task.map_or_else(String::new, |task| format!(" of {task}"));
                format!("{}{task} on {} ({hash}), {} schedule", what.join(" "), grid.backbone, grid.schedule)
            };
            let message = format!("holds another grid: {}, not {}; give another ", name(&there), name(self));
            return Err(Error::file(out, Message::from(message).field("out")));
        }
        create_parent(&path)?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        bytes.push(b'\n');
        write_atomic(&path, &bytes)
    }
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
            Task::Detect if self.base.image_size.is_none() => {
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
            for &method in &self.methods {
                let GridMethod::Learned(learned) = method else {
                    jobs.push(self.zero_shot(&frozen, source, &targets));
                    continue;
                };
                for &shots in &self.shots {
                    for &seed in &self.seeds {
                        jobs.push(self.learned(&frozen, source, &targets, learned, shots, seed)?);
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

    /// What can be said without opening anything.
    pub(crate) fn check(&self) -> Result<()> {
        let task = self.task();
        check_task(task)?;
        if let Some(method) = self.methods.iter().find(|method| !method.is_for(task)) {
            let able: Vec<_> = GridMethod::all_for(task).into_iter().map(GridMethod::name).collect();
            let message = format!("{method} is not for {}; take {}", said(task), able.join(", "));
            return Err(Error::setting("methods", message));
        }
        if task != Task::Classify && self.mode != Mode::FewShot {
            let field = if self.mode == Mode::Cross { "targets" } else { "base_to_new" };
            return Err(Error::setting(field, format!("not for {}", said(task))));
        }
        // It is said to the methods that have a use for it.
        RunConfig { label_map: None, head_init: None, keep_better: None, ..self.base.clone() }.validate()?;
        let given = [
            ("data", self.data.is_empty()),
            ("methods", self.methods.is_empty()),
            ("shots", self.shots.is_empty()),
            ("seeds", self.seeds.is_empty()),
        ];
        if let Some((field, _)) = given.iter().find(|(_, empty)| *empty) {
            return Err(Error::setting(*field, "names nothing to compare"));
        }
        if self.shots.contains(&0) {
            return Err(Error::setting("shots", "0 images a class leave nothing to learn from; zero-shot is a method"));
        }
        if self.base.label_map.is_some() && !self.methods.iter().any(|method| method.has_pixels()) {
            return Err(Error::setting("label_map", none_of_methods("learns prompt pixels")));
        }
        repeated("methods", &self.methods)?;
        repeated("shots", &self.shots)?;
        repeated("seeds", &self.seeds)?;
        if let Some(seed) = self.seeds.iter().find(|&&seed| i64::try_from(seed).is_err()) {
            return Err(Error::setting("seeds", format!("{seed} is larger than {}", i64::MAX)));
        }
        if !self.classnames.is_empty() && !self.methods.iter().any(|method| method.reads_names()) {
            return Err(Error::setting("classnames", none_of_methods("tells classes by their names")));
        }
        if !self.templates.is_empty() && !self.methods.iter().any(|method| method.reads_templates()) {
            return Err(Error::setting("templates", none_of_methods("reads templates")));
        }
        if self.mode == Mode::FewShot {
            return Ok(());
        }
        match self.methods.iter().find(|method| !method.names_unseen_classes()) {
            Some(method) => {
                let able: Vec<_> =
                    GridMethod::all().into_iter().filter(|m| m.names_unseen_classes()).map(GridMethod::name).collect();
                let message =
                    format!("method {method} knows the classes it has learned and no others; take {}", able.join(", "));
                Err(Error::setting(if self.mode == Mode::Cross { "targets" } else { "base_to_new" }, message))
            }
            None => Ok(()),
        }
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

    /// Texts for a data set that is not there are a mistake.
    fn check_texts<'a>(&self, opened: impl Iterator<Item = &'a Opened>) -> Result<()> {
        let names: Vec<&str> = opened.map(|opened| opened.name.as_str()).collect();
        for (field, files) in [("classnames", &self.classnames), ("templates", &self.templates)] {
            for name in files.iter().filter_map(|file| file.data.as_deref()) {
                if !names.contains(&name) {
                    let message = format!("no data set is called {name}; there is {}", names.join(", "));
                    return Err(Error::setting(field, message));
                }
            }
        }
        Ok(())
    }

    fn zero_shot(&self, frozen: &GridBackbone, source: &Opened, targets: &[Opened]) -> Job {
        let config = RunConfig {
            data: source.path.clone(),
            image_size: Some(frozen.image_size),
            dataset_card: Some(NO_CARD.to_owned()),
            ..self.base.clone()
        };
        let settings = json!({ "image_size": frozen.image_size });
        let name = format!("{}-{}", source.name, GridMethod::ZeroShot);
        self.job(
            frozen,
            source,
            targets,
            JobKey { name, method: GridMethod::ZeroShot, shots: 0, seed: 0 },
            config,
            settings,
            0,
        )
    }

    fn learned(
        &self,
        frozen: &GridBackbone,
        source: &Opened,
        targets: &[Opened],
        learned: Method,
        shots: usize,
        seed: u64,
    ) -> Result<Job> {
        let method = GridMethod::Learned(learned);
        let (path, draw) = self.draw(source, shots, seed)?;
        let train_images = source.dataset.train_images(&draw).map_err(|e| Error::file(&path, e))?;
        let task = self.task();
        let facts = RunContext {
            task,
            depth: frozen.depth,
            text_depth: frozen.text_depth,
            image_size: frozen.image_size,
            train_images,
            shots: Some(shots),
        };
        let mut config = RunConfig {
            data: source.path.clone(),
            task,
            draw: Some(path),
            seed,
            split_seed: Some(self.base.seed_of_parts()),
            // The texts are the grid's to choose.
            dataset_card: if task == Task::Classify {
                Some(NO_CARD.to_owned())
            } else {
                self.base.dataset_card.clone()
            },
            ..self.base.clone().with_method(learned)
        };
        if learned.reads_texts() || learned.may_read_texts() && frozen.text_depth.is_some() {
            let Prompts { classnames, templates } = source.prompts.clone();
            (config.classnames, config.templates) = (Some(classnames), Some(templates));
        }
        if learned.has_texts() && (source.card.is_some() || text_file(&self.classnames, &source.name).is_some()) {
            let labels = self.half().labels(source.dataset.classes().len());
            config.classnames = Some(source.prompts.classnames[labels].to_vec());
        }
        if config.is_solved() {
            config = config.without_steps();
        } else {
            // What `with_method` opens again was said for every method here.
            (config.epochs, config.batch_size, config.lr) = (self.base.epochs, self.base.batch_size, self.base.lr);
        }
        config.options.tokens.prompt_tokens = self.base.options.tokens.prompt_tokens.filter(|_| learned.has_tokens());
        config.label_map = self.base.label_map.filter(|_| learned.has_pixels());
        let by_texts = learned.prefers_texts() && frozen.text_depth.is_some();
        let has_head = learned.has_option("head_init") && !by_texts && config.label_map.is_none();
        config.head_init = self.base.head_init.filter(|_| has_head);
        config.keep_better = self.base.keep_better.filter(|_| has_head);
        let mut plan = config.resolve(&facts)?;
        // A method is to be seen for what it learns.
        if self.base.keep_better.is_none() && plan.keep_better {
            config.keep_better = Some(false);
            plan = config.resolve(&facts)?;
        }
        // An epoch of the head alone, and one of prompts and head, is the least that a detector learns.
        let least = if task == Task::Detect { 2 } else { 1 };
        let most = (QUICK_PASSES / train_images).max(least);
        let shorter = self.schedule == GridSchedule::Quick && !method.is_quick();
        // A method that has no epochs has nothing to shorten.
        if shorter && plan.config.epochs.is_some_and(|epochs| epochs > most) {
            config.epochs = Some(most);
            plan = config.resolve(&facts)?;
        }
        let often = match plan.config.method {
            _ if plan.dense.is_some() => dense_passes(&plan),
            method if method.on_features() => features::views(&plan).len(),
            _ if plan.has_constant_features(Split::Train) => 1,
            _ => plan.epochs,
        };
        // The first mapping takes a pass of its own, and so does the probe.
        let counted = usize::from(plan.config.label_map.is_some_and(LabelMap::counts));
        let alone = usize::from(plan.knows_head_alone() && plan.head == HeadKind::Linear);
        let passes = train_images * (often + counted + alone);
        let mut settings = serde_json::to_value(&plan.config).map_err(|e| Error::invalid("config", e.to_string()))?;
        if let Value::Object(fields) = &mut settings {
            fields.retain(|name, _| !ELSEWHERE.contains(&name.as_str()));
            let drawn = serde_json::to_string(&draw).map_err(|e| Error::invalid("draw", e.to_string()))?;
            fields.insert("draw".to_owned(), blake3::hash(drawn.as_bytes()).to_hex().as_str().into());
        }
        let name = format!("{}-{method}-{shots}-{seed}", source.name);
        let mut job =
            self.job(frozen, source, targets, JobKey { name, method, shots, seed }, plan.config, settings, passes);
        job.train_images = train_images;
        Ok(job)
    }

    /// A job of `config`, whose result depends on `settings` and on what is common to all of them.
    #[allow(clippy::too_many_arguments, reason = "two callers, next to it")]
    fn job(
        &self,
        frozen: &GridBackbone,
        source: &Opened,
        targets: &[Opened],
        setting: JobKey,
        config: RunConfig,
        settings: Value,
        image_passes: usize,
    ) -> Job {
        let JobKey { name, method, shots, seed } = setting;
        let parts = self.parts(source, targets, method);
        let hashes: BTreeMap<&str, &str> =
            std::iter::once(source).chain(targets).map(|data| (data.name.as_str(), data.hash.as_str())).collect();
        let mut identity: BTreeMap<String, Value> = match settings {
            Value::Object(fields) => fields.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        identity.insert("backbone".to_owned(), frozen.hash.clone().into());
        identity.insert("data".to_owned(), json!(hashes));
        for part in &parts {
            if let Some(prompts) = &part.prompts {
                identity.insert(format!("texts of {}", part.name), json!(prompts));
            }
        }
        Job {
            name,
            out: self.out.clone(),
            dataset: source.name.clone(),
            method,
            shots,
            seed,
            mode: self.mode,
            schedule: self.schedule,
            identity: Identity(identity),
            config,
            parts,
            train_images: 0,
            image_passes,
            keep_run: self.keep_runs,
        }
    }

    /// The classes that are learned.
    fn half(&self) -> Half {
        if self.mode == Mode::BaseToNew { Half::Base } else { Half::All }
    }

    /// What a job on `source` is measured on.
    fn parts(&self, source: &Opened, targets: &[Opened], method: GridMethod) -> Vec<TestPart> {
        let part = |name: &str, data: &Opened, half: Half| {
            let labels = half.labels(data.dataset.classes().len());
            let prompts = Prompts {
                classnames: data.prompts.classnames[labels].to_vec(),
                // Where texts are learned, vectors take the place of templates.
                templates: match method {
                    GridMethod::ZeroShot => data.prompts.templates.clone(),
                    GridMethod::Learned(_) => Vec::new(),
                },
            };
            let prompts = method.names_unseen_classes().then_some(prompts);
            TestPart { name: name.to_owned(), data: data.path.clone(), half, prompts }
        };
        match self.mode {
            Mode::FewShot => vec![part("test", source, Half::All)],
            Mode::BaseToNew => vec![part("base", source, Half::Base), part("new", source, Half::New)],
            Mode::Cross => {
                let others = targets.iter().map(|target| part(&target.name, target, Half::All));
                std::iter::once(part("test", source, Half::All)).chain(others).collect()
            }
        }
    }

    /// The draw that all methods share for these shots and this seed, and its file: read if it is there, else made.
    fn draw(&self, source: &Opened, shots: usize, seed: u64) -> Result<(PathBuf, GridDraw)> {
        let folder = self.draws.clone().unwrap_or_else(|| self.out.join(DRAWS));
        let half = if self.half() == Half::Base { "-base" } else { "" };
        let path = folder.join(format!("{}{half}-{shots}-{seed}.json", source.name));
        if path.is_file() {
            let draw = source.dataset.read_draw(&path)?;
            if draw.shots_and_seed() != (shots, seed) {
                let (own, by) = draw.shots_and_seed();
                let message = format!("a draw of {own} shots by seed {by}, not of {shots} by {seed}");
                return Err(Error::file(path, message));
            }
            return Ok((path, draw));
        }
        let draw = source.dataset.draw(self.half(), shots, seed)?;
        create_parent(&path)?;
        draw.write(&path)?;
        Ok((path, draw))
    }
}

/// What tells a job from the others of its data set.
struct JobKey {
    name: String,
    method: GridMethod,
    shots: usize,
    seed: u64,
}

/// How often an image goes through the backbone while a detector learns: once for what is computed of it and its mirrored form, or of each of its
/// views, and, where prompts or weights learn on new views, in each of their epochs.
fn dense_passes(plan: &Plan) -> usize {
    let Some(dense) = plan.dense else { return 0 };
    let beside_head = plan.epochs - dense.head_epochs;
    let looks = if dense.cached_views > 0 { dense.cached_views } else { 2 };
    let anew = dense.cached_views == 0 || plan.parts.weights().is_some();
    looks + if anew { beside_head } else { 0 }
}

/// What a task is called in a message.
fn said(task: Task) -> &'static str {
    if task == Task::Detect { "detection" } else { "classification" }
}

/// That no method of the grid `does` something.
fn none_of_methods(does: &str) -> Message {
    Message::from("none of ").field("methods").text(format!(" {does}"))
}

/// Nothing may be named twice.
fn repeated<T: PartialEq + ToString>(field: &'static str, values: &[T]) -> Result<()> {
    match values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)) {
        Some((_, value)) => Err(Error::setting(field, format!("{} is named twice", value.to_string()))),
        None => Ok(()),
    }
}

/// The file for the data set `name`: its own, else the one for all.
fn text_file<'a>(files: &'a [TextFile], name: &str) -> Option<&'a Path> {
    let own = files.iter().find(|file| file.data.as_deref() == Some(name));
    own.or_else(|| files.iter().find(|file| file.data.is_none())).map(|file| file.path.as_path())
}
