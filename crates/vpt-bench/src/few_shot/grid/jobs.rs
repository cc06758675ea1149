//! Jobs on one data set of a grid: what is run, what its result depends on, what it is measured on.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Value, json};

use super::{
    super::{
        GridMethod,
        data::GridDraw,
        job::{Half, Identity, Job, TestPart, create_parent},
    },
    GridBackbone, GridConfig, GridSchedule, Mode, Opened, QUICK_PASSES, text_file,
};
use vpt_backbone::class_texts::Prompts;
use vpt_base::{Error, Result};
use vpt_data::{Split, cards::NO_CARD};
use vpt_model::{
    head::{HeadKind, LabelMap},
    methods::Method,
};
use vpt_train::{
    config::{Plan, RunConfig, RunContext, Task},
    train::features,
};

/// The folder of draws, unless another one is given.
const DRAWS: &str = "draws";
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

/// What the jobs on one data set are made of.
pub(super) struct JobMaker<'a> {
    /// The grid.
    pub(super) grid: &'a GridConfig,
    pub(super) frozen: &'a GridBackbone,
    /// The data set that is learned from.
    pub(super) source: &'a Opened,
    /// The data sets that the others are tried on.
    pub(super) targets: &'a [Opened],
}

impl JobMaker<'_> {
    /// The zero-shot classifier.
    pub(super) fn zero_shot(&self) -> Job {
        let Self { grid, frozen, source, .. } = *self;
        let config = RunConfig {
            data: source.path.clone(),
            image_size: Some(frozen.image_size),
            dataset_card: Some(NO_CARD.to_owned()),
            ..grid.base.clone()
        };
        let settings = json!({ "image_size": frozen.image_size });
        let name = format!("{}-{}", source.name, GridMethod::ZeroShot);
        self.job(JobKey { name, method: GridMethod::ZeroShot, shots: 0, seed: 0 }, config, settings, 0)
    }

    /// A run of the method `learned` on a draw.
    ///
    /// # Errors
    /// The draw cannot be read or made, or the run makes no sense.
    pub(super) fn learned(&self, learned: Method, shots: usize, seed: u64) -> Result<Job> {
        let Self { grid, frozen, source, .. } = *self;
        let method = GridMethod::Learned(learned);
        let (path, draw) = self.draw(shots, seed)?;
        let train_images = source.dataset.train_images(&draw).map_err(|e| Error::file(&path, e))?;
        let task = grid.task();
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
            split_seed: Some(grid.base.seed_of_parts()),
            // The texts are the grid's to choose.
            dataset_card: if task == Task::Classify {
                Some(NO_CARD.to_owned())
            } else {
                grid.base.dataset_card.clone()
            },
            ..grid.base.clone().with_method(learned)
        };
        if learned.reads_texts() || learned.may_read_texts() && frozen.text_depth.is_some() {
            let Prompts { classnames, templates } = source.prompts.clone();
            (config.classnames, config.templates) = (Some(classnames), Some(templates));
        }
        if learned.has_texts() && (source.card.is_some() || text_file(&grid.classnames, &source.name).is_some()) {
            let labels = self.half().labels(source.dataset.classes().len());
            config.classnames = Some(source.prompts.classnames[labels].to_vec());
        }
        if config.is_solved() {
            config = config.without_steps();
        } else {
            // What `with_method` opens again was said for every method here.
            (config.epochs, config.batch_size, config.lr) = (grid.base.epochs, grid.base.batch_size, grid.base.lr);
        }
        config.options.tokens.prompt_tokens = grid.base.options.tokens.prompt_tokens.filter(|_| learned.has_tokens());
        config.label_map = grid.base.label_map.filter(|_| learned.has_pixels());
        let by_texts = learned.prefers_texts() && frozen.text_depth.is_some();
        let has_head = learned.has_option("head_init") && !by_texts && config.label_map.is_none();
        config.head_init = grid.base.head_init.filter(|_| has_head);
        config.keep_better = grid.base.keep_better.filter(|_| has_head);
        let mut plan = config.resolve(&facts)?;
        // A method is to be seen for what it learns.
        if grid.base.keep_better.is_none() && plan.keep_better {
            config.keep_better = Some(false);
            plan = config.resolve(&facts)?;
        }
        // An epoch of the head alone, and one of prompts and head, is the least that a head on patch tokens learns.
        let least = if plan.dense.is_some() { 2 } else { 1 };
        let most = (QUICK_PASSES / train_images).max(least);
        let shorter = grid.schedule == GridSchedule::Quick && !method.is_quick();
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
        let mut job = self.job(JobKey { name, method, shots, seed }, plan.config, settings, passes);
        job.train_images = train_images;
        Ok(job)
    }

    /// A job of `config`, whose result depends on `settings` and on what is common to all of them.
    fn job(&self, key: JobKey, config: RunConfig, settings: Value, image_passes: usize) -> Job {
        let Self { grid, frozen, source, targets } = *self;
        let JobKey { name, method, shots, seed } = key;
        let parts = self.parts(method);
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
            out: grid.out.clone(),
            dataset: source.name.clone(),
            method,
            shots,
            seed,
            mode: grid.mode,
            schedule: grid.schedule,
            identity: Identity(identity),
            config,
            parts,
            train_images: 0,
            image_passes,
            keep_run: grid.keep_runs,
        }
    }

    /// The classes that are learned.
    fn half(&self) -> Half {
        if self.grid.mode == Mode::BaseToNew { Half::Base } else { Half::All }
    }

    /// What a job on `source` is measured on.
    fn parts(&self, method: GridMethod) -> Vec<TestPart> {
        let Self { grid, source, targets, .. } = *self;
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
        match grid.mode {
            Mode::FewShot => vec![part("test", source, Half::All)],
            Mode::BaseToNew => vec![part("base", source, Half::Base), part("new", source, Half::New)],
            Mode::Cross => {
                let others = targets.iter().map(|target| part(&target.name, target, Half::All));
                std::iter::once(part("test", source, Half::All)).chain(others).collect()
            }
        }
    }

    /// The draw that all methods share for these shots and this seed, and its file: read if it is there, else made.
    fn draw(&self, shots: usize, seed: u64) -> Result<(PathBuf, GridDraw)> {
        let Self { grid, source, .. } = *self;
        let folder = grid.draws.clone().unwrap_or_else(|| grid.out.join(DRAWS));
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

/// How often an image goes through the backbone while a head on patch tokens learns: once for what is computed of it and its mirrored form, or of each of its
/// views, and, where prompts or weights learn on new views, in each of their epochs.
fn dense_passes(plan: &Plan) -> usize {
    let Some(dense) = plan.dense else { return 0 };
    let beside_head = plan.epochs - dense.head_epochs;
    let looks = if dense.cached_views > 0 { dense.cached_views } else { 2 };
    let anew = dense.cached_views == 0 || plan.parts.weights().is_some();
    looks + if anew { beside_head } else { 0 }
}
