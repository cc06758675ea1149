//! What all routes share: from images and names of tasks to answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use vpt_backbone::Backbone;
use vpt_base::Result;
use vpt_model::model::ready::{InputKind, RawAnswer, TaskInput};

use crate::config::ServeConfig;
use crate::decode::{DecodePool, DecodeWork};
use crate::error::ApiError;
use crate::metrics::ServerMetrics;
use crate::scheduler::{BatchOptions, Reply, Scheduler, Waiting};
use crate::store::{LoadedTask, TaskStore};

/// Tasks that one request may ask.
const MOST_TASKS: usize = 256;
/// Bodies that may be in memory at once, as many times the largest one, but no less than [`LEAST_UPLOADS`].
const UPLOADS: usize = 4;
const LEAST_UPLOADS: usize = 256 << 20;
/// Bodies are counted in pieces of this many bytes.
pub(crate) const PIECE: usize = 4096;

/// The server behind its routes.
pub(crate) struct Service {
    pub(crate) config: ServeConfig,
    pub(crate) store: Arc<TaskStore>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) metrics: Arc<ServerMetrics>,
    /// Pieces of bodies that may still come in.
    pub(crate) uploads: Arc<Semaphore>,
    /// Whose turn it is to look where a task looks.
    pub(crate) attention: Arc<Semaphore>,
    decoders: Arc<DecodePool>,
    draining: AtomicBool,
    requests: AtomicU64,
    /// Told apart from the numbers of a server before this one.
    started: u64,
    pub(crate) log: Arc<dyn Fn(&str) + Send + Sync>,
}

/// Who is asked.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// Tasks, for their answers.
    Tasks(Vec<Arc<LoadedTask>>),
    /// A task, for embeddings.
    TaskEmbedding(Arc<LoadedTask>),
    /// The backbone, for embeddings.
    BackboneEmbedding,
}

/// Images of a request.
#[derive(Debug)]
pub(crate) enum Images {
    /// Files.
    Encoded(Vec<Bytes>),
    /// Pixels `[3, S, S]` each, resized and normalized already.
    Pixels(Vec<Vec<f32>>),
}

/// Who is asked about each image, on which backbone, how the image is prepared, and whether its embedding is asked for.
type ImageQuery = (Option<Arc<LoadedTask>>, Arc<Backbone>, InputKind, bool);

/// What a request was answered with.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Of every image, by every task that was asked.
    pub(crate) by_image: Vec<Vec<RawAnswer>>,
    pub(crate) timing: Timing,
}

/// How long the parts of an answer took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timing {
    pub(crate) decode: Duration,
    pub(crate) queue: Duration,
    pub(crate) batch: Duration,
}

impl Images {
    fn len(&self) -> usize {
        match self {
            Self::Encoded(images) => images.len(),
            Self::Pixels(images) => images.len(),
        }
    }
}

impl Service {
    /// Everything but the listener.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn new(
        config: ServeConfig,
        store: Arc<TaskStore>,
        metrics: Arc<ServerMetrics>,
        log: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> std::io::Result<Self> {
        let options = BatchOptions {
            most: config.max_batch.map(|most| most.max(1)),
            delay: config.batch_delay,
            threads: config.threads,
            count_tasks: config.metrics_per_task,
        };
        let scheduler = Scheduler::start(config.max_queue, options, store.clone(), metrics.clone())?;
        let decoders = DecodePool::start(config.threads, config.max_pixels, metrics.clone())?;
        let uploads = (UPLOADS * config.max_body).max(LEAST_UPLOADS).div_ceil(PIECE).min(Semaphore::MAX_PERMITS);
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            uploads: Arc::new(Semaphore::new(uploads)),
            config,
            store,
            scheduler,
            metrics,
            attention: Arc::new(Semaphore::new(1)),
            decoders,
            draining: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            started: started.as_nanos() as u64,
            log,
        })
    }

    /// The backbone at its own size.
    pub(crate) fn core(&self) -> &Arc<Backbone> {
        self.store.cores.own()
    }

    /// Whether it was told to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Is no longer ready from here on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// A number for a request that brings none.
    pub(crate) fn request_id(&self) -> String {
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:08x}{count:08x}", (self.started >> 20) as u32)
    }

    /// The tasks of these names, loaded if need be.
    pub(crate) async fn tasks(self: &Arc<Self>, names: &[String]) -> Result<Vec<Arc<LoadedTask>>, ApiError> {
        if names.is_empty() {
            return Err(ApiError::malformed("no task is named"));
        }
        if names.len() > MOST_TASKS {
            return Err(ApiError::too_large(format!("{} tasks, where {MOST_TASKS} are accepted", names.len())));
        }
        let mut tasks = Vec::with_capacity(names.len());
        for name in names {
            if let Some(task) = self.store.get_loaded(name) {
                tasks.push(task);
                continue;
            }
            let (service, name) = (self.clone(), name.clone());
            let loaded = tokio::task::spawn_blocking(move || {
                let loaded = vpt_base::contain::contain(|| service.store.get(&name));
                loaded.unwrap_or_else(|panic| Err(ApiError::fault(format!("task {name}: {panic}"))))
            });
            tasks.push(loaded.await.unwrap_or_else(|_| Err(ApiError::fault("a task could not be loaded")))?);
        }
        Ok(tasks)
    }

    /// The answers to all of a request: each image by each task.
    pub(crate) async fn ask(&self, images: Images, asked: &Asked) -> Result<Answers, ApiError> {
        let deadline = Instant::now() + self.config.timeout;
        let count = images.len();
        if count == 0 {
            return Err(ApiError::malformed("no image"));
        }
        if count > self.config.max_images {
            let message = format!("{count} images, where {} are accepted", self.config.max_images);
            return Err(ApiError::too_large(message));
        }
        let entries: Vec<ImageQuery> = match asked {
            Asked::Tasks(tasks) => {
                tasks.iter().map(|task| (Some(task.clone()), task.core.clone(), task.ready.input(), false)).collect()
            }
            Asked::TaskEmbedding(task) => {
                vec![(Some(task.clone()), task.core.clone(), task.ready.input(), true)]
            }
            Asked::BackboneEmbedding => {
                let core = self.core();
                vec![(None, core.clone(), InputKind::Image(core.preprocess.clone()), true)]
            }
        };
        let place = self.scheduler.places(count * entries.len())?;
        let mut kinds: Vec<InputKind> = Vec::new();
        let kind_of: Vec<usize> = entries
            .iter()
            .map(|(_, _, kind, _)| {
                kinds.iter().position(|known| known == kind).unwrap_or_else(|| {
                    kinds.push(kind.clone());
                    kinds.len() - 1
                })
            })
            .collect();
        let begin = Instant::now();
        let prepared = match images {
            Images::Encoded(images) => {
                let decoded = self.decoders.prepare(DecodeWork { images, kinds });
                let left = deadline.saturating_duration_since(begin);
                tokio::time::timeout(left, decoded).await.map_err(|_| self.late())??
            }
            Images::Pixels(images) => {
                let input = |pixels| {
                    let input = Arc::new(TaskInput::of_pixels(pixels));
                    kinds.iter().map(|_| input.clone()).collect()
                };
                images.into_iter().map(input).collect()
            }
        };
        let decode = begin.elapsed();
        let queued = Instant::now();
        let (mut waiting, mut replies) = (Vec::new(), Vec::new());
        for inputs in &prepared {
            for ((task, core, _, embeds), kind) in entries.iter().zip(&kind_of) {
                let (reply, receiver) = oneshot::channel();
                replies.push(receiver);
                waiting.push(Waiting {
                    core: core.clone(),
                    task: task.clone(),
                    input: inputs[*kind].clone(),
                    embeds: *embeds,
                    deadline,
                    queued,
                    reply,
                    place: place.clone(),
                });
            }
        }
        drop((prepared, place));
        self.scheduler.push(waiting);
        let mut timing = Timing { decode, ..Timing::default() };
        let mut all = Vec::with_capacity(replies.len());
        for receiver in replies {
            let left = deadline.saturating_duration_since(Instant::now());
            // Dropped unanswered is what has waited too long.
            let reply = tokio::time::timeout(left, receiver).await;
            let Reply { answer, queue, batch } = reply.map_err(|_| self.late())?.map_err(|_| self.late())?;
            timing.queue = timing.queue.max(queue);
            timing.batch = timing.batch.max(batch);
            all.push(answer?);
        }
        let mut all = all.into_iter();
        let by_image = (0..count).map(|_| all.by_ref().take(entries.len()).collect()).collect();
        Ok(Answers { by_image, timing })
    }

    fn late(&self) -> ApiError {
        ApiError::timeout(self.config.timeout.as_secs_f64())
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("config", &self.config).field("store", &self.store).finish_non_exhaustive()
    }
}
