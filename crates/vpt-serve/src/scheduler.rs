//! One queue for all tasks, and the threads that take what waits through the backbone, oldest first, a batch at a time.
//!
//! A batch mixes tasks as they come, so none can keep another waiting, and there is no delay unless one is asked for: what waits
//! while batches are under way goes into the next ones. Each core has a batch of its own, so nobody waits for a core that is done;
//! where there is less to do than there are cores, several of them work on one batch. Who has gone, or has waited too long, is
//! passed over.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use vpt_backbone::Backbone;
use vpt_base::contain::contain;
use vpt_model::model::ready::{Question, RawAnswer, TaskInput, answer_together};

use crate::error::ApiError;
use crate::metrics::{OfTask, ServerMetrics};
use crate::pace::{self, Pace};
use crate::store::{LoadedTask, TaskStore};

/// One image that one task, or the backbone, is asked about.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) core: Arc<Backbone>,
    pub(crate) task: Option<Arc<LoadedTask>>,
    pub(crate) input: Arc<TaskInput>,
    pub(crate) embeds: bool,
    pub(crate) deadline: Instant,
    pub(crate) queued: Instant,
    pub(crate) reply: oneshot::Sender<Reply>,
    /// Its place among those that may wait; given back when it is answered.
    pub(crate) place: Arc<OwnedSemaphorePermit>,
}

/// What comes back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) answer: Result<RawAnswer, ApiError>,
    /// How long it waited.
    pub(crate) queue: Duration,
    /// How long its batch took.
    pub(crate) batch: Duration,
}

/// How batches are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchOptions {
    /// Images times tasks of a batch; `None`: by [`Pace`].
    pub(crate) most: Option<usize>,
    pub(crate) delay: Duration,
    pub(crate) threads: usize,
    pub(crate) count_tasks: bool,
}

/// What waits, and how the threads that take it are doing.
#[derive(Debug)]
struct WaitingLine {
    waiting: VecDeque<Waiting>,
    /// Batches under way.
    busy: usize,
    pace: Pace,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Scheduler {
    line: Mutex<WaitingLine>,
    wake: Condvar,
    places: Arc<Semaphore>,
    all_places: usize,
    options: BatchOptions,
    store: Arc<TaskStore>,
    metrics: Arc<ServerMetrics>,
}

impl Scheduler {
    /// Starts the threads that compute.
    ///
    /// # Errors
    /// The system gives not as many.
    pub(crate) fn start(
        max_queue: usize,
        options: BatchOptions,
        store: Arc<TaskStore>,
        metrics: Arc<ServerMetrics>,
    ) -> std::io::Result<Arc<Self>> {
        let places = Arc::new(Semaphore::new(max_queue));
        let scheduler = Arc::new(Self {
            line: Mutex::new(WaitingLine { waiting: VecDeque::new(), busy: 0, pace: Pace::default() }),
            wake: Condvar::new(),
            places,
            all_places: max_queue,
            options,
            store,
            metrics,
        });
        for _ in 0..options.threads.max(1) {
            let own = scheduler.clone();
            std::thread::Builder::new().name("engine".to_owned()).spawn(move || own.work())?;
        }
        Ok(scheduler)
    }

    /// Places in the queue for all of a request at once, or none.
    pub(crate) fn places(&self, count: usize) -> Result<Arc<OwnedSemaphorePermit>, ApiError> {
        if count > self.all_places {
            let message = format!("{count} images times tasks in one request, where {} may wait", self.all_places);
            return Err(ApiError::too_large(message));
        }
        match self.places.clone().try_acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX)) {
            Ok(permit) => Ok(Arc::new(permit)),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
                self.metrics.reject("queue_full");
                Err(ApiError::busy(format!("{} images times tasks wait already", self.all_places)))
            }
        }
    }

    /// Whether there is no place left.
    pub(crate) fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// Whether nothing waits or is worked on.
    pub(crate) fn is_idle(&self) -> bool {
        self.places.available_permits() == self.all_places
    }

    /// Lines up.
    pub(crate) fn push(&self, waiting: impl IntoIterator<Item = Waiting>) {
        let mut line = self.lock();
        line.waiting.extend(waiting);
        self.metrics.queue_images.set(line.waiting.len() as i64);
        drop(line);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, WaitingLine> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut line = self.lock();
            while line.waiting.is_empty() {
                line = self.wake.wait(line).unwrap_or_else(PoisonError::into_inner);
            }
            if !self.options.delay.is_zero() {
                line = self.fill(line);
            }
            let share = BatchShare::of(images_in(&line.waiting), line.busy, self.options.threads.max(1));
            let room = if let Some(most) = self.options.most {
                Room { images: most.min(share.images), most }
            } else {
                let most = line.pace.most(share.threads);
                Room { images: most.min(share.images), most: pace::MOST.max(most) }
            };
            let batch = take_batch(&mut line.waiting, room, Instant::now(), |gone| {
                let reason = if gone { "client_gone" } else { "timeout" };
                self.metrics.reject(reason);
            });
            self.metrics.queue_images.set(line.waiting.len() as i64);
            if !line.waiting.is_empty() {
                self.wake.notify_one();
            }
            line.busy += usize::from(!batch.is_empty());
            drop(line);
            if !batch.is_empty() {
                let count = batch.len();
                let took = self.answer(batch, share.threads);
                let mut line = self.lock();
                line.busy -= 1;
                line.pace.learn(count, took, share.threads);
            }
        }
    }

    /// Waits for more, up to a batch, for no longer than the delay after the oldest came.
    fn fill<'a>(&self, mut line: MutexGuard<'a, WaitingLine>) -> MutexGuard<'a, WaitingLine> {
        let most = self.options.most.unwrap_or(pace::MOST);
        while let Some(oldest) = line.waiting.front().filter(|_| line.waiting.len() < most) {
            let Some(left) = self.options.delay.checked_sub(oldest.queued.elapsed()).filter(|left| !left.is_zero())
            else {
                break;
            };
            line = self.wake.wait_timeout(line, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        line
    }

    /// Takes a batch through the backbone and sends its answers; returns how long the backbone took.
    fn answer(&self, batch: Vec<Waiting>, threads: usize) -> Duration {
        let begin = Instant::now();
        let questions: Vec<Question> = batch
            .iter()
            .map(|waiting| Question {
                task: waiting.task.as_ref().map(|task| &task.ready),
                input: &waiting.input,
                embeds: waiting.embeds,
            })
            .collect();
        let core = &batch[0].core;
        let answers = contain(|| answer_together(core, &questions, threads));
        drop(questions);
        let took = begin.elapsed();
        self.metrics.batch_seconds.observe(took.as_secs_f64());
        self.metrics.batch_images.observe(batch.len() as f64);
        self.metrics.images.inc_by(batch.len() as u64);
        let mut tasks: Vec<&Arc<LoadedTask>> = batch.iter().filter_map(|waiting| waiting.task.as_ref()).collect();
        tasks.sort_by_key(|task| Arc::as_ptr(task));
        tasks.dedup_by_key(|task| Arc::as_ptr(task));
        self.metrics.batch_tasks.observe(tasks.len() as f64);
        let newest = batch.iter().rev().find_map(|waiting| waiting.task.clone());
        let mut answers = match answers {
            Ok(answers) => answers.into_iter().map(|answer| answer.map_err(ApiError::from)).collect(),
            Err(panic) => {
                let fault = ApiError::fault(format!("internal fault: {panic}"));
                (0..batch.len()).map(|_| Err(fault.clone())).collect::<Vec<_>>()
            }
        }
        .into_iter();
        for Waiting { reply, queued, task, place, .. } in batch {
            let queue = begin.duration_since(queued);
            self.metrics.queue_seconds.observe(queue.as_secs_f64());
            if let (true, Some(task)) = (self.options.count_tasks, task) {
                self.metrics.of_tasks.get_or_create(&OfTask { task: task.name.clone() }).inc();
            }
            let answer = answers.next().unwrap_or_else(|| Err(ApiError::fault("no answer")));
            // The place is free before the client can ask again.
            drop(place);
            let _ = reply.send(Reply { answer, queue, batch: took });
        }
        if let Some(newest) = newest {
            self.store.make_room(Some(&newest));
        }
        took
    }
}

/// What one batch takes of the images that wait and of the threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchShare {
    images: usize,
    threads: usize,
}

impl BatchShare {
    /// With `waiting` images and `busy` batches under way: an equal part for each thread that has nothing to do, and where images
    /// are fewer than threads, several threads for each.
    fn of(waiting: usize, busy: usize, threads: usize) -> Self {
        let parts = threads.saturating_sub(busy).min(waiting).max(1);
        Self { images: waiting.div_ceil(parts).max(1), threads: (threads / (busy + parts)).max(1) }
    }
}

/// Images among what waits; the tasks of one lie side by side.
fn images_in(waiting: &VecDeque<Waiting>) -> usize {
    let others = waiting.iter().zip(waiting.iter().skip(1)).filter(|(a, b)| !Arc::ptr_eq(&a.input, &b.input)).count();
    others + usize::from(!waiting.is_empty())
}

/// How large a batch may be.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// No further image is begun from here on; the tasks of one image stay together, as they share work.
    images: usize,
    /// Images times tasks.
    most: usize,
}

/// The oldest that waits, and those with it, as far as there is room, that are for the same backbone at the same size, in their order. Those whose
/// client has gone, or whose time is up, are dropped, and `dropped` is told which of the two.
fn take_batch(queue: &mut VecDeque<Waiting>, room: Room, now: Instant, dropped: impl Fn(bool)) -> Vec<Waiting> {
    let mut batch: Vec<Waiting> = Vec::new();
    let mut others = VecDeque::new();
    while let Some(waiting) = queue.pop_front() {
        let is_next_image = batch.last().is_none_or(|last| !Arc::ptr_eq(&last.input, &waiting.input));
        if batch.len() >= room.most || (is_next_image && batch.len() >= room.images) {
            queue.push_front(waiting);
            break;
        }
        if waiting.reply.is_closed() || waiting.deadline <= now {
            dropped(waiting.reply.is_closed());
            continue;
        }
        let fits = batch.first().is_none_or(|first| Arc::ptr_eq(&first.core, &waiting.core));
        if fits {
            batch.push(waiting);
        } else {
            others.push_back(waiting);
        }
    }
    others.append(queue);
    *queue = others;
    batch
}

#[cfg(test)]
mod tests {
    use super::BatchShare;

    #[test]
    fn idle_threads_share_what_waits_and_help_one_another_where_it_is_little() {
        let share = |waiting, busy, threads| {
            let BatchShare { images, threads } = BatchShare::of(waiting, busy, threads);
            (images, threads)
        };
        assert_eq!(share(1, 0, 2), (1, 2), "alone: both");
        assert_eq!(share(2, 0, 2), (1, 1));
        assert_eq!(share(5, 0, 2), (3, 1), "the other takes two");
        assert_eq!(share(5, 1, 2), (5, 1));
        assert_eq!(share(3, 0, 8), (1, 2));
        assert_eq!(share(1, 3, 8), (1, 2));
        assert_eq!(share(40, 0, 8), (5, 1));
        assert_eq!(share(0, 0, 1), (1, 1), "what waits may have gone");
        assert_eq!(share(4, 2, 1), (4, 1), "more batches than threads");
    }
}
