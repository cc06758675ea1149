//! The loop over shards: the engine computes a batch while the next ones are decoded and the next shard is brought near.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::folder::{FolderIdentity, OutFolder, ShardStats, Totals, shards_hash};
use crate::input::ShardInput;
use crate::layout::ShardOutput;
use crate::open::{ShardAtHand, ShardFound, fetch};
use crate::write::{LineKind, ShardWriter};
use vpt_backbone::Backbone;
use vpt_base::linear_algebra::normalize_l2;
use vpt_base::{Error, Result, params::Param};
use vpt_cluster::Shard;
use vpt_data::{ImageSource, SampleBatch, SampleFault, SampleLoader, ShardSample, boxes::BoxImage};
use vpt_image::Rgb8;
use vpt_model::{
    model::{DetectTask, TaskModel, task_file::TaskMeta},
    predict::BATCH,
};
use vpt_train::infer::embed::EmbeddingSource;

/// How often a shard that another process works on is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Classes that a line of predictions names.
const TOP: usize = 5;
/// Pictures that are held at a time where they are wanted as they are, which may be large.
const PICTURES: usize = 16;

/// What is done with each image.
#[derive(Debug, Clone, Copy)]
pub enum ShardWork<'a> {
    /// Its embedding.
    Embed(EmbeddingSource<'a>),
    /// Its classes.
    Predict(&'a TaskModel),
    /// The objects in it.
    Detect(&'a ShardDetector),
}

/// A detector, and which of the boxes that it finds are told.
#[derive(Debug)]
pub struct ShardDetector {
    /// The detector.
    pub task: DetectTask,
    /// Least score of a box of each class.
    pub thresholds: Vec<f64>,
}

/// What to do, where.
#[derive(Debug, Clone)]
pub struct EmbedConfig {
    /// All shards, whoever does them.
    pub inputs: Vec<ShardInput>,
    /// The folder of outputs.
    pub out: PathBuf,
    /// What is written.
    pub output: ShardOutput,
    /// Which of the shards are this process's; all that others leave, without.
    pub shard: Option<Shard>,
    /// Threads to compute with, and as many to decode with.
    pub threads: usize,
}

/// Something that is worth showing.
#[derive(Debug)]
#[non_exhaustive]
pub enum EmbedEvent<'a> {
    /// It is known what there is to do.
    Planned {
        /// Shards in all.
        shards: usize,
        /// Those that are this process's.
        own: usize,
        /// Of these, those that are done already.
        done: usize,
    },
    /// Images of the shard in hand are done.
    Images {
        /// The shard.
        shard: &'a str,
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// A shard is done.
    Done {
        /// What it holds.
        stats: &'a ShardStats,
        /// Images a second; none of one that another process did.
        rate: Option<f64>,
    },
    /// A shard failed; the others go on.
    Failed {
        /// The shard.
        shard: &'a str,
        /// Why.
        error: &'a Error,
    },
    /// Nothing is left but shards that other processes work on.
    Waiting {
        /// How many.
        shards: usize,
    },
}

/// Is told of what happens, and says when to stop.
pub trait EmbedObserver {
    /// Called for everything that happens.
    fn event(&mut self, event: &EmbedEvent<'_>);

    /// Asked after every batch. Once it says yes the call ends as interrupted; the shard in hand is begun anew another time.
    fn stop(&self) -> bool;
}

/// A shard that cannot be read.
#[derive(Debug)]
pub struct FailedShard {
    /// What it is called.
    pub shard: String,
    /// Why.
    pub error: Error,
}

/// How a call ended.
#[derive(Debug, Default)]
pub struct EmbedOutcome {
    /// Whether it was told to stop; the same call goes on.
    pub interrupted: bool,
    /// Shards of this process's share.
    pub own: usize,
    /// What those of them hold that are done, whoever did them.
    pub all: Totals,
    /// What those hold that this call has done.
    pub done: Totals,
    /// Shards that cannot be read.
    pub failed: Vec<FailedShard>,
    /// Seconds from the first shard on.
    pub wall_s: f64,
    /// Of these, in which the engine waited for images.
    pub waiting_s: f64,
    /// Seconds in which the engine computed.
    pub engine_s: f64,
}

impl ShardWork<'_> {
    fn backbone(&self) -> &Backbone {
        match self {
            Self::Embed(source) => source.backbone(),
            Self::Predict(task) => task.model().backbone(),
            Self::Detect(detector) => detector.task.detector().backbone(),
        }
    }

    /// An iterator over `images` as the work takes them.
    fn loader(&self, images: Vec<ImageSource>, threads: usize) -> Result<SampleLoader> {
        match self {
            Self::Embed(source) => SampleLoader::of_samples(images, source.preprocess(), BATCH, threads),
            Self::Predict(task) => SampleLoader::of_samples(images, task.preprocess(), BATCH, threads),
            Self::Detect(_) => SampleLoader::of_pictures(images, PICTURES, threads),
        }
    }

    /// What was learned, and what of its answers is told, as a hash.
    fn task_hash(&self) -> Option<String> {
        match self {
            Self::Embed(EmbeddingSource::Backbone(_)) => None,
            Self::Embed(EmbeddingSource::Task(task)) | Self::Predict(task) => {
                Some(learned_hash(task.meta(), task.params(), ""))
            }
            Self::Detect(ShardDetector { task, thresholds }) => {
                // Vectors of classes are learned where they are of exemplars.
                let texts: Option<Vec<u32>> =
                    task.detector().texts().map(|texts| texts.iter().map(|value| value.to_bits()).collect());
                let told = format!("{thresholds:?}\n{:?}\n{}\n{texts:?}\n", task.detector().decode(), task.tiles());
                Some(learned_hash(task.meta(), task.params(), &told))
            }
        }
    }

    /// Values of a row; none of predictions and boxes.
    pub fn width(&self) -> Option<usize> {
        matches!(self, Self::Embed(_)).then(|| self.backbone().embedding_width())
    }

    /// What a line says of an image; of embeddings there are none.
    fn line_kind(&self) -> LineKind {
        match self {
            Self::Predict(task) if task.meta().multilabel => LineKind::SeveralClasses,
            Self::Detect(_) => LineKind::Boxes,
            _ => LineKind::OneClass,
        }
    }

    fn identity(&self, config: &EmbedConfig) -> Result<FolderIdentity> {
        let backbone = self.backbone();
        Ok(FolderIdentity {
            format: FolderIdentity::FORMAT,
            backbone: backbone.name.clone(),
            backbone_hash: backbone.hash()?.to_owned(),
            image_size: backbone.vit.image_size(),
            precision: backbone.vit.precision().to_string(),
            engine: backbone.vit.compute().engine.to_string(),
            task: self.task_hash(),
            width: self.width(),
            output: config.output,
            shards: config.inputs.len(),
            shards_hash: shards_hash(&config.inputs),
        })
    }

    /// Computes `batch`, whose images are those of `samples`, and writes what comes out.
    fn compute(
        &self,
        batch: SampleBatch,
        samples: &[ShardSample],
        writer: &mut ShardWriter,
        config: &EmbedConfig,
    ) -> Result<()> {
        if batch.readable.is_empty() {
            return Ok(());
        }
        let keys = batch.readable.iter().map(|&position| &samples[position].key);
        match self {
            Self::Embed(source) => {
                let mut rows = source.embed_pixels(&batch.pixels, config.threads)?;
                if matches!(config.output, ShardOutput::Embeddings { normalized: true, .. }) {
                    normalize_l2(&mut rows, source.backbone().embedding_width());
                }
                writer.rows(&rows)
            }
            Self::Predict(task) => {
                let logits = task.logits_by_image(&batch.pixels)?;
                for (key, row) in keys.zip(logits.chunks_exact(task.meta().classes.len())) {
                    let guesses = task.guesses_of(row, TOP);
                    let mut line = json!({"key": key});
                    if task.meta().multilabel {
                        line["labels"] = json!(guesses);
                    } else if let Some(best) = guesses.first() {
                        line["label"] = json!(best.label);
                        line["probability"] = json!(best.probability);
                        line["top5"] = json!(guesses);
                    }
                    writer.line(&line)?;
                }
                Ok(())
            }
            Self::Detect(ShardDetector { task, thresholds }) => {
                let open = |(key, picture): (&String, Rgb8)| {
                    BoxImage::unlabelled(key.clone(), ImageSource::Memory(Arc::new(picture)))
                };
                let images = keys.clone().zip(batch.pictures).map(open).collect::<Result<Vec<_>>>()?;
                let sizes: Vec<[usize; 2]> = images.iter().map(|image| [image.width, image.height]).collect();
                let found = task.boxes(images, thresholds, &mut |_, _| {})?;
                for ((key, [width, height]), boxes) in keys.zip(sizes).zip(found) {
                    writer.line(&json!({"key": key, "width": width, "height": height, "boxes": boxes}))?;
                }
                Ok(())
            }
        }
    }
}

/// A hash of a task's learned values, its classes, and what else it depends on.
fn learned_hash(meta: &TaskMeta, params: &[Param], more: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{}\n{:?}\n{more}", meta.method, meta.classes).as_bytes());
    for param in params {
        hasher.update(format!("{} {:?}\n", param.name, param.shape).as_bytes());
        param.values.iter().for_each(|value| {
            hasher.update(&value.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

/// Does the shards of `config`, or of this process's share of them, that are not done.
///
/// # Errors
/// The folder holds other things or cannot be written, or the engine fails. A shard that cannot be read is no error: it is in the outcome.
pub fn run(config: &EmbedConfig, work: &ShardWork<'_>, observer: &mut dyn EmbedObserver) -> Result<EmbedOutcome> {
    let folder = OutFolder::claim(&config.out, &work.identity(config)?)?;
    let is_own = |index: &usize| config.shard.is_none_or(|shard| shard.has(*index));
    let own: Vec<usize> = (0..config.inputs.len()).filter(is_own).collect();
    let mut outcome = EmbedOutcome { own: own.len(), ..EmbedOutcome::default() };
    let mut open = Vec::new();
    for &index in &own {
        match folder.done(index, config.inputs[index].bytes())? {
            Some(stats) => outcome.all.add(&stats),
            None => open.push(index),
        }
    }
    let planned = EmbedEvent::Planned { shards: config.inputs.len(), own: own.len(), done: outcome.all.shards };
    observer.event(&planned);
    let started = Instant::now();
    let mut waits = false;
    while !open.is_empty() && !outcome.interrupted {
        let mut pass = ShardPass {
            config,
            work,
            folder: &folder,
            observer: &mut *observer,
            outcome: &mut outcome,
            busy: Vec::new(),
        };
        pass.over(&open)?;
        open = pass.busy;
        if !open.is_empty() && !outcome.interrupted {
            if !waits {
                observer.event(&EmbedEvent::Waiting { shards: open.len() });
                waits = true;
            }
            thread::sleep(LOOK);
            outcome.interrupted = observer.stop();
        }
    }
    folder.tidy();
    outcome.wall_s = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Once over the shards that are not done.
struct ShardPass<'a> {
    config: &'a EmbedConfig,
    work: &'a ShardWork<'a>,
    folder: &'a OutFolder,
    observer: &'a mut dyn EmbedObserver,
    outcome: &'a mut EmbedOutcome,
    /// Those that other processes work on.
    busy: Vec<usize>,
}

/// A shard whose images are being decoded.
struct ShardInHand {
    at_hand: Box<ShardAtHand>,
    loader: SampleLoader,
    begun: Instant,
}

impl ShardPass<'_> {
    fn over(&mut self, open: &[usize]) -> Result<()> {
        let stop = AtomicBool::new(false);
        let (send, receive) = sync_channel(0);
        let (folder, inputs) = (self.folder, &self.config.inputs);
        thread::scope(|scope| {
            let stopped = &stop;
            scope.spawn(move || bring(folder, inputs, open, &send, stopped));
            let done = self.work_on(&receive);
            // Whoever brings shards is waited for: it ends with what it has in hand.
            stop.store(true, Ordering::SeqCst);
            drop(receive);
            done
        })
    }

    /// Takes shards as they come.
    fn work_on(&mut self, shards: &Receiver<ShardFound>) -> Result<()> {
        let mut next = None;
        loop {
            let waited = Instant::now();
            while next.is_none() {
                match shards.recv_timeout(LOOK) {
                    Ok(found) => next = self.begin(found)?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                if self.interrupted() {
                    return Ok(());
                }
            }
            self.outcome.waiting_s += waited.elapsed().as_secs_f64();
            let Some(shard) = next.take() else { continue };
            self.shard(shard, shards, &mut next)?;
            if self.outcome.interrupted {
                return Ok(());
            }
        }
    }

    /// Begins to decode what is at hand, and tells of what is not.
    fn begin(&mut self, found: ShardFound) -> Result<Option<ShardInHand>> {
        match found {
            ShardFound::Ready(at_hand) => {
                let images = at_hand.samples.samples.iter().map(|sample| sample.image.clone()).collect();
                let loader = self.work.loader(images, self.config.threads)?;
                Ok(Some(ShardInHand { at_hand, loader, begun: Instant::now() }))
            }
            ShardFound::Busy(index) => {
                self.busy.push(index);
                Ok(None)
            }
            ShardFound::Done(stats) => {
                self.outcome.all.add(&stats);
                self.observer.event(&EmbedEvent::Done { stats: &stats, rate: None });
                Ok(None)
            }
            ShardFound::Failed(index, error) => {
                self.failed(index, error);
                Ok(None)
            }
        }
    }

    fn failed(&mut self, index: usize, error: Error) {
        let shard = self.config.inputs[index].name.clone();
        self.observer.event(&EmbedEvent::Failed { shard: &shard, error: &error });
        self.outcome.failed.push(FailedShard { shard, error });
    }

    fn interrupted(&mut self) -> bool {
        self.outcome.interrupted |= self.observer.stop();
        self.outcome.interrupted
    }

    /// Computes a shard to its end. As soon as its last image is decoded, the next shard's are, if that is at hand.
    fn shard(
        &mut self,
        shard: ShardInHand,
        shards: &Receiver<ShardFound>,
        next: &mut Option<ShardInHand>,
    ) -> Result<()> {
        let ShardInHand { at_hand, mut loader, begun } = shard;
        let ShardAtHand { index, claim, bytes, mut samples } = *at_hand;
        let name = self.config.inputs[index].name.clone();
        let total = samples.samples.len();
        let width = self.work.width().unwrap_or(0);
        let work = self.folder.work(index);
        let mut writer = ShardWriter::begin(&work, self.config.output, width, self.work.line_kind())?;
        let mut failures = std::mem::take(&mut samples.faults);
        let mut readable: Vec<usize> = Vec::with_capacity(total);
        let mut taken = 0;
        loop {
            let waited = Instant::now();
            let batch = loader.next();
            self.outcome.waiting_s += waited.elapsed().as_secs_f64();
            let batch = match batch {
                None => break,
                Some(Ok(batch)) => batch,
                Some(Err(error)) => {
                    self.failed(index, error);
                    return Ok(());
                }
            };
            taken += batch.readable.len() + batch.unreadable.len();
            while taken >= total && next.is_none() {
                let Ok(found) = shards.try_recv() else { break };
                *next = self.begin(found)?;
            }
            readable.extend(&batch.readable);
            let fault = |(at, error): &(usize, String)| SampleFault {
                key: samples.samples[*at].key.clone(),
                error: error.clone(),
            };
            failures.extend(batch.unreadable.iter().map(fault));
            let computed = Instant::now();
            self.work.compute(batch, &samples.samples, &mut writer, self.config)?;
            self.outcome.engine_s += computed.elapsed().as_secs_f64();
            self.observer.event(&EmbedEvent::Images { shard: &name, done: taken, total });
            if self.interrupted() {
                return Ok(());
            }
        }
        drop(loader);
        let images = readable.len();
        if images < total {
            let mut place = 0;
            let mut kept = readable.into_iter().peekable();
            samples.samples.retain(|_| {
                place += 1;
                kept.next_if_eq(&(place - 1)).is_some()
            });
        }
        let (made, said) = writer.finish(&samples.samples, &self.folder.files(index))?;
        samples.notes.extend(said.map(|error| SampleFault { key: String::new(), error }));
        let stats = ShardStats {
            shard: name,
            index,
            bytes,
            samples: images + failures.len(),
            images,
            failures,
            notes: samples.notes,
            files: Vec::new(),
        };
        let stats = self.folder.finish(claim, stats, &made)?;
        self.outcome.all.add(&stats);
        self.outcome.done.add(&stats);
        let seconds = begun.elapsed().as_secs_f64().max(1e-9);
        self.observer.event(&EmbedEvent::Done { stats: &stats, rate: Some(images as f64 / seconds) });
        Ok(())
    }
}

/// Brings the shards `open` near one after another, until nobody takes them any more.
fn bring(folder: &OutFolder, inputs: &[ShardInput], open: &[usize], to: &SyncSender<ShardFound>, stop: &AtomicBool) {
    for &index in open {
        if stop.load(Ordering::SeqCst) || to.send(fetch(folder, &inputs[index], index, stop)).is_err() {
            return;
        }
    }
}
