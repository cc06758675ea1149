//! Doing one job: claim it, train or classify by names, write the result.
//!
//! A job's folder is claimed while a process works on it, and the claim ends with the process; so any number of processes, on
//! any number of machines that share the folder, can work on one grid. The result is written beside and renamed, so it is
//! there as a whole or not at all.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    GridMethod, boxes,
    job::{Job, JobResult, PartResult, TestPart, create_parent, digits},
    masks,
};
use vpt_backbone::{Backbone, OpenOptions};
use vpt_base::{
    Error, Message, Result,
    files::{self, write_atomic},
};
use vpt_cluster::WorkClaim;
use vpt_data::{Dataset, FewShot, Sample, Split, SplitFile, visit_batches};
use vpt_energy::EnergyMeter;
use vpt_model::{
    metrics::{Ece, Scores, calibration::Logits},
    model::{TaskModel, TaskOptions, task_file::TaskFile},
};
use vpt_train::{
    config::{RunConfig, Task},
    eval::zero_shot::ZeroShotPass,
    infer::batches,
    train::{self, Event, Observer, Outcome, Results, results::peak_rss_bytes, run_folder},
};

/// Longest list of images that is read, in bytes.
const MAX_SPLIT: u64 = 256 << 20;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Performed {
    /// Its result is there now.
    Done,
    /// Its result was there already: another process was faster.
    Found,
    /// Another process is working on it.
    Busy,
    /// The observer stopped it; the next call goes on.
    Interrupted,
}

/// Does `job`, or what is left of it.
///
/// # Errors
/// As [`train::run`]; the error is kept in the job's folder.
pub fn perform(job: &Job, observer: &mut dyn Observer) -> Result<Performed> {
    let folder = job.work_folder();
    let claim = match WorkClaim::take(&folder) {
        Ok(Some(claim)) => claim,
        Ok(None) => return Ok(Performed::Busy),
        // Cleared away, while this process reached for it, by the one that finished the job.
        Err(_) if job.result()?.is_some() => return Ok(Performed::Found),
        Err(error) => return Err(error),
    };
    // Another process may have finished it since this one looked.
    let found = job.result()?.is_some();
    if !found {
        let result = match job.method {
            GridMethod::ZeroShot => zero_shot(job, observer),
            GridMethod::Learned(_) => learn(job, observer),
        };
        match result {
            Ok(Some(result)) => result.save(&job.result_file())?,
            Ok(None) => return Ok(Performed::Interrupted),
            Err(error) => {
                keep_error(job, &observer.words(&error.message()));
                return Err(error);
            }
        }
    }
    drop(claim);
    // Whoever takes the job now finds its result; what cannot be removed is in nobody's way.
    let _ = fs::remove_dir_all(&folder);
    Ok(if found { Performed::Found } else { Performed::Done })
}

/// Keeps why `job` failed for those who look at it later. That this cannot be written is no reason to hide the error itself.
pub(super) fn keep_error(job: &Job, error: &str) {
    let file = job.error_file();
    let _ = create_parent(&file).and_then(|()| write_atomic(&file, format!("{error}\n").as_bytes()));
}

/// The result of a method that learns nothing; `None` when the observer asked to stop.
fn zero_shot(job: &Job, observer: &mut dyn Observer) -> Result<Option<JobResult>> {
    let meter = EnergyMeter::start();
    let config = &job.config;
    let options = OpenOptions {
        weights_dir: config.weights_dir.clone(),
        image_size: config.image_size,
        precision: config.precision,
        max_memory: config.max_memory,
        compute: config.compute(),
    };
    let backbone = Arc::new(Backbone::open(&config.backbone, &options)?);
    let mut parts = Vec::new();
    for part in &job.parts {
        let Some(result) = by_names(job, part, &backbone, observer)? else { return Ok(None) };
        parts.push(result);
    }
    let energy = meter.energy();
    Ok(Some(JobResult { wall_s: energy.wall_seconds, energy: Some(energy), ..result(job, parts) }))
}

/// What `part` scores when its classes are told by their names.
fn by_names(
    job: &Job,
    part: &TestPart,
    backbone: &Backbone,
    observer: &mut dyn Observer,
) -> Result<Option<PartResult>> {
    let Some(prompts) = &part.prompts else {
        return Err(Error::invalid(format!("part {}", part.name), "has no names for its classes"));
    };
    let dataset = part.half.of(&Dataset::open(&part.data, job.config.seed_of_parts())?);
    let mut go_on = |done, total| {
        observer.event(&Event::Evaluating { split: Split::Test, done, total });
        !observer.stop()
    };
    let pass = ZeroShotPass { backbone, dataset: &dataset, split: Split::Test, prompts, threads: threads(job) };
    let logits = pass.logits(&mut go_on)?;
    let ids = dataset.test.iter().map(|sample| sample.id.as_str());
    logits.map(|logits| score(&part.name, &logits, 1., ids)).transpose()
}

/// The result of a method that learns: its run is begun, or gone on with; `None` when the observer asked to stop.
fn learn(job: &Job, observer: &mut dyn Observer) -> Result<Option<JobResult>> {
    let (part, others) = match &job.parts[..] {
        [part, others @ ..] if others.is_empty() || job.method.names_unseen_classes() => (part, others),
        _ => return Err(Error::invalid(job.method.to_string(), "knows the classes it has learned and no others")),
    };
    let run = job.run_folder();
    let mut watch = Watch { inner: observer, tested: None };
    let outcome = if run.join(run_folder::CONFIG).is_file() {
        train::resume(&run, &mut watch)?
    } else {
        // What was begun before there was a configuration cannot be taken up.
        if run.exists() {
            fs::remove_dir_all(&run).map_err(Error::io(&run))?;
        }
        let config = RunConfig { out: Some(run.clone()), ..job.config.clone() };
        train::run(&config, &run, &mut watch)?
    };
    let Outcome::Finished { results, .. } = outcome else { return Ok(None) };
    let parts = match job.config.task {
        Task::Detect => Some(vec![boxes::found(job, &part.name, &run, results.test.clone())?]),
        Task::Segment => masks::told(job, &part.name, &run, watch.inner)?.map(|part| vec![part]),
        _ => classified(job, part, others, &run, watch, &results)?,
    };
    let Some(parts) = parts else { return Ok(None) };
    let task = TaskFile::open(&run.join(run_folder::BEST))?;
    let mut hasher = blake3::Hasher::new();
    for param in &task.params {
        hasher.update(format!("{} {:?}\n", param.name, param.shape).as_bytes());
        param.values.iter().for_each(|value| {
            hasher.update(&value.to_le_bytes());
        });
    }
    if job.keep_run {
        keep(&run, &job.kept_run_folder())?;
    }
    Ok(Some(JobResult {
        val: results.val,
        best_epoch: Some(results.best_epoch),
        temperature: results.temperature,
        learned: Some(hasher.finalize().to_hex().to_string()),
        probe: results.probe,
        trainable_params: results.trainable_params,
        wall_s: results.wall_s,
        peak_rss_bytes: results.peak_rss_bytes,
        energy: results.energy,
        ..result(job, parts)
    }))
}

/// What the finished run in the folder `run` makes of the images of `part` and `others`; `None` when the observer asked to stop.
fn classified(
    job: &Job,
    part: &TestPart,
    others: &[TestPart],
    run: &Path,
    watch: Watch<'_>,
    results: &Results,
) -> Result<Option<Vec<PartResult>>> {
    let split = run.join(run_folder::SPLIT);
    let split: SplitFile = serde_json::from_slice(&files::read_limited(&split, MAX_SPLIT)?)
        .map_err(|error| Error::file(&split, Message::of_reader(&error)))?;
    let logits = match watch.tested {
        Some(logits) => logits,
        None => match test_again(job, run, &split.test, watch.inner)? {
            Some(logits) => logits,
            None => return Ok(None),
        },
    };
    let temperature = results.temperature.unwrap_or(1.);
    let mut parts = vec![score(&part.name, &logits, temperature, split.test.iter().map(String::as_str))?];
    if !others.is_empty() {
        let task = open_task(job, run)?;
        for part in others {
            let Some(result) = by_learned_texts(job, part, &task, temperature, watch.inner)? else { return Ok(None) };
            parts.push(result);
        }
    }
    Ok(Some(parts))
}

/// What `part`, of whose classes nothing was learned, scores when texts with what `task` has learned tell its classes.
fn by_learned_texts(
    job: &Job,
    part: &TestPart,
    task: &TaskModel,
    temperature: f64,
    observer: &mut dyn Observer,
) -> Result<Option<PartResult>> {
    let dataset = part.half.of(&Dataset::open(&part.data, job.config.seed_of_parts())?);
    let names = part.prompts.as_ref().map(|prompts| prompts.classnames.clone());
    let task = task.with_named_classes(dataset.classes.clone(), names)?;
    let logits = task_logits(job, &task, dataset.test.clone(), observer)?;
    let ids = dataset.test.iter().map(|sample| sample.id.as_str());
    logits.map(|logits| score(&part.name, &logits, temperature, ids)).transpose()
}

/// The logits on test, in the order of `ids`, of a run whose process ended before the job's result was written.
fn test_again(job: &Job, run: &Path, ids: &[String], observer: &mut dyn Observer) -> Result<Option<Logits>> {
    let config = &job.config;
    let mut dataset = Dataset::open(&config.data, config.seed_of_parts())?;
    if let Some(draw) = &config.draw {
        dataset = FewShot::read(draw)?.apply(&dataset)?;
    }
    let by_id: HashMap<&str, &Sample> = dataset.test.iter().map(|sample| (sample.id.as_str(), sample)).collect();
    let gone =
        |id: &String| Error::invalid(format!("data set {}", dataset.name), format!("has no image {id} any more"));
    let test = ids.iter().map(|id| by_id.get(id.as_str()).copied().cloned().ok_or_else(|| gone(id)));
    task_logits(job, &open_task(job, run)?, test.collect::<Result<_>>()?, observer)
}

/// What the run in the folder `run` has learned.
fn open_task(job: &Job, run: &Path) -> Result<TaskModel> {
    TaskModel::open(run, &task_options(job))
}

/// How the tasks of `job` are opened.
pub(super) fn task_options(job: &Job) -> TaskOptions {
    let config = &job.config;
    TaskOptions {
        backbone: Some(config.backbone.clone()),
        weights_dir: config.weights_dir.clone(),
        threads: threads(job),
        precision: Some(config.precision),
        max_memory: config.max_memory,
        engine: config.engine,
        device: config.device,
    }
}

/// The logits of `task` on `samples`; `None` when the observer asked to stop.
fn task_logits(
    job: &Job,
    task: &TaskModel,
    samples: Vec<Sample>,
    observer: &mut dyn Observer,
) -> Result<Option<Logits>> {
    let mut logits = Logits::new(task.meta().classes.len());
    let total = samples.len();
    let batches = batches(samples, task.preprocess(), threads(job))?;
    let go_on = &mut |done, total| observer.goes_on(&Event::Evaluating { split: Split::Test, done, total });
    let all = visit_batches(batches, total, go_on, |batch| logits.add(&task.logits(&batch.pixels)?, &batch.labels))?;
    Ok(all.then_some(logits))
}

/// Moves the run folder `run` to `kept`, where it is out of the grid's way.
fn keep(run: &Path, kept: &PathBuf) -> Result<()> {
    create_parent(kept)?;
    if kept.exists() {
        fs::remove_dir_all(kept).map_err(Error::io(kept))?;
    }
    fs::rename(run, kept).map_err(Error::io(kept))
}

/// What every result of `job` says; times and sizes are left to be filled in.
fn result(job: &Job, parts: Vec<PartResult>) -> JobResult {
    let prompts = job.parts.iter().filter_map(|part| Some((part.name.clone(), part.prompts.clone()?)));
    JobResult {
        dataset: job.dataset.clone(),
        method: job.method,
        shots: job.shots,
        seed: job.seed,
        parts,
        val: None,
        best_epoch: None,
        temperature: None,
        learned: None,
        probe: None,
        train_images: job.train_images,
        image_passes: job.image_passes,
        trainable_params: 0,
        wall_s: 0.,
        peak_rss_bytes: peak_rss_bytes(),
        energy: None,
        vpt: env!("CARGO_PKG_VERSION").to_owned(),
        prompts: prompts.collect::<BTreeMap<_, _>>(),
        identity: job.identity.clone(),
    }
}

/// The scores of `logits`, which are of the images `ids`. Methods see images in orders of their own; those of what is right are
/// by id, so that methods can be compared image by image.
fn score<'a>(name: &str, logits: &Logits, temperature: f64, ids: impl Iterator<Item = &'a str>) -> Result<PartResult> {
    let correct = logits.correct();
    let ids: Vec<&str> = ids.collect();
    let count = ids.len();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&i| ids[i]);
    let mut hasher = blake3::Hasher::new();
    for &i in &order {
        hasher.update(format!("{}\n{}", ids[i].len(), ids[i]).as_bytes());
    }
    if count != correct.len() {
        let message = format!("{} predictions for {count} test images", correct.len());
        return Err(Error::invalid(format!("part {name}"), message));
    }
    Ok(PartResult {
        name: name.to_owned(),
        images: count,
        metrics: Scores::Classify(logits.metrics()?),
        ece: Some(Ece { before: logits.ece(1.), after: logits.ece(temperature) }),
        images_hash: hasher.finalize().to_hex()[..16].to_owned(),
        correct: digits(&order.iter().map(|&i| correct[i]).collect::<Vec<_>>()),
        matched: None,
        pixels: None,
    })
}

fn threads(job: &Job) -> usize {
    job.config.threads.unwrap_or_else(vpt_cluster::threads)
}

/// Passes everything on, and keeps what the run makes of the test images.
struct Watch<'a> {
    inner: &'a mut dyn Observer,
    tested: Option<Logits>,
}

impl Observer for Watch<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Tested(logits) = event {
            self.tested = Some((*logits).clone());
        }
        self.inner.event(event);
    }

    fn words(&self, message: &Message) -> String {
        self.inner.words(message)
    }

    fn stop(&self) -> bool {
        self.inner.stop()
    }
}
