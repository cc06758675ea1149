//! The tasks that a server has: found in folders, loaded when they are first asked, kept while there is room, exchanged when
//! their files change.
//!
//! A request holds the task it was answered by, so an exchange changes nothing that is under way. A file that cannot be loaded is
//! not tried again for some seconds unless it changes; if another version of it is loaded already, that one stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vpt_backbone::Backbone;
use vpt_base::{Result, suggest};
use vpt_model::head::detect::DecodeOptions;
use vpt_model::model::AnyTask;
use vpt_model::model::ready::ReadyTask;
use vpt_model::model::task_file::TaskFile;

use crate::config::ServeConfig;
use crate::cores::Cores;
use crate::error::ApiError;
use crate::metrics::{OfResult, ServerMetrics};
use crate::task_files::{self, Stamp};

/// How long a file that could not be loaded is left alone.
const REMEMBER_FAILURE: Duration = Duration::from_secs(5);
/// Most bytes of a task file that is looked at for its version.
const MOST_BYTES: u64 = 8 << 30;
/// Times that a file is read again which changes while it is read.
const TRIES: usize = 5;
/// Digits of a version.
const VERSION_DIGITS: usize = 16;

/// A task in memory.
#[derive(Debug)]
pub(crate) struct LoadedTask {
    pub(crate) name: String,
    pub(crate) ready: ReadyTask,
    /// The first digits of the BLAKE3 hash of its file.
    pub(crate) version: String,
    pub(crate) core: Arc<Backbone>,
    /// When it was asked last, by the store's clock.
    used: AtomicU64,
}

/// What is known of a task's file.
#[derive(Debug)]
struct KnownTask {
    path: PathBuf,
    stamp: Option<Stamp>,
    loaded: Option<Arc<LoadedTask>>,
    failed: Option<(Instant, String)>,
    /// Held by who loads it.
    loading: Arc<Mutex<()>>,
}

/// A task as it is listed.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) loaded: Option<Arc<LoadedTask>>,
    pub(crate) failed: Option<String>,
}

/// All tasks.
pub(crate) struct TaskStore {
    roots: Vec<PathBuf>,
    pub(crate) cores: Cores,
    memory: u64,
    allow_tuned: usize,
    boxes: DecodeOptions,
    threads: usize,
    clock: AtomicU64,
    known: Mutex<BTreeMap<String, KnownTask>>,
    metrics: Arc<ServerMetrics>,
    log: Box<dyn Fn(&str) + Send + Sync>,
}

impl TaskStore {
    /// The tasks below the folders that `config` names; nothing is loaded yet.
    pub(crate) fn new(
        config: &ServeConfig,
        cores: Cores,
        metrics: Arc<ServerMetrics>,
        log: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        let store = Self {
            roots: config.tasks.clone(),
            cores,
            memory: config.task_memory,
            allow_tuned: config.allow_tuned,
            boxes: config.boxes,
            threads: config.threads,
            clock: AtomicU64::new(1),
            known: Mutex::default(),
            metrics,
            log,
        };
        store.rescan();
        store
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, KnownTask>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder that tasks are put into, if tasks lie in one.
    pub(crate) fn folder(&self) -> Option<&PathBuf> {
        self.roots.iter().find(|root| root.is_dir())
    }

    /// Number of tasks, loaded or not.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Every task, by name.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let listed = |(name, known): (&String, &KnownTask)| Listed {
            name: name.clone(),
            path: known.path.clone(),
            loaded: known.loaded.clone(),
            failed: known.failed.as_ref().map(|(_, why)| why.clone()),
        };
        self.lock().iter().map(listed).collect()
    }

    /// The task if it is in memory, without waiting for anything.
    pub(crate) fn get_loaded(&self, name: &str) -> Option<Arc<LoadedTask>> {
        let loaded = self.lock().get(name)?.loaded.clone()?;
        self.touch(&loaded);
        Some(loaded)
    }

    /// The task, loaded if need be, which can take a while.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<LoadedTask>, ApiError> {
        if let Some(loaded) = self.get_loaded(name) {
            return Ok(loaded);
        }
        let loading = {
            let known = self.lock();
            let Some(task) = known.get(name) else {
                let hint = suggest::hint(name, known.keys().map(String::as_str));
                return Err(ApiError::not_found(format!("there is no task called '{}'{hint}", shown(name))));
            };
            task.loading.clone()
        };
        let _one_at_a_time = loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = self.get_loaded(name) {
            return Ok(loaded);
        }
        let path = {
            let known = self.lock();
            let Some(task) = known.get(name) else {
                return Err(ApiError::not_found(format!("there is no task called '{}' any more", shown(name))));
            };
            if let Some((when, why)) = &task.failed
                && let Some(left) = REMEMBER_FAILURE.checked_sub(when.elapsed())
            {
                return Err(ApiError::unavailable(why.clone(), left.as_secs() + 1));
            }
            task.path.clone()
        };
        match self.load(name, &path) {
            Ok((task, stamp)) => {
                let task = Arc::new(task);
                self.touch(&task);
                if let Some(known) = self.lock().get_mut(name) {
                    (known.loaded, known.stamp, known.failed) = (Some(task.clone()), Some(stamp), None);
                }
                self.make_room(Some(&task));
                Ok(task)
            }
            Err(error) => {
                if let Some(known) = self.lock().get_mut(name) {
                    known.failed = Some((Instant::now(), error.clone()));
                }
                (self.log)(&format!("task {name}: {error}"));
                Err(ApiError::unavailable(error, REMEMBER_FAILURE.as_secs()))
            }
        }
    }

    fn touch(&self, task: &LoadedTask) {
        task.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Reads the task's file, which may be exchanged meanwhile.
    fn load(&self, name: &str, path: &Path) -> std::result::Result<(LoadedTask, Stamp), String> {
        let loaded = self.read(name, path).map_err(|error| format!("task {name} cannot be used: {error}"));
        let result = if loaded.is_ok() { "ok" } else { "failed" };
        self.metrics.task_loads.get_or_create(&OfResult { result }).inc();
        loaded
    }

    fn read(&self, name: &str, path: &Path) -> Result<(LoadedTask, Stamp)> {
        let io = vpt_base::Error::io(path);
        let mut tries = 0;
        let (file, stamp, version) = loop {
            let stamp = Stamp::of(path).map_err(vpt_base::Error::io(path))?;
            let version = version_of(path)?;
            let file = TaskFile::open(path);
            // What was hashed is what was read if the file is still that one.
            let is_same =
                Stamp::of(path).is_ok_and(|now| now == stamp) && version_of(path).is_ok_and(|now| now == version);
            tries += 1;
            if is_same {
                break (file?, stamp, version);
            }
            if tries == TRIES {
                return Err(io(std::io::Error::other("changes all the time")));
            }
        };
        let core = self.cores.at(file.meta.image_size)?;
        let task = match AnyTask::with_backbone(file, core.clone(), self.threads)? {
            AnyTask::Detect(task) => AnyTask::Detect(task.with_decode(self.boxes)?),
            other => other,
        };
        let ready = ReadyTask::new(task)?;
        if ready.is_tuned() && self.allow_tuned == 0 {
            let message =
                "tunes weights of the backbone, so it shares no pass with others; such tasks are served where ";
            let message = vpt_base::Message::from(message).field("allow_tuned").text(" says how many may be kept");
            return Err(vpt_base::Error::invalid("task", message));
        }
        let used = AtomicU64::new(0);
        Ok((LoadedTask { name: name.to_owned(), ready, version, core, used }, stamp))
    }

    /// Lets go of what was asked longest ago until the rest keeps to its memory: of keys and values of prompts first, which are
    /// soon made again, then of tasks. `newest` stays.
    pub(crate) fn make_room(&self, newest: Option<&Arc<LoadedTask>>) {
        let mut known = self.lock();
        let mut loaded: Vec<Arc<LoadedTask>> = known.values().filter_map(|known| known.loaded.clone()).collect();
        loaded.sort_by_key(|task| task.used.load(Ordering::Relaxed));
        let is_newest = |task: &Arc<LoadedTask>| newest.is_some_and(|newest| Arc::ptr_eq(newest, task));
        let mut dropped = Vec::new();
        let tuned: Vec<&Arc<LoadedTask>> = loaded.iter().filter(|task| task.ready.is_tuned()).collect();
        dropped.extend(
            tuned.iter().take(tuned.len().saturating_sub(self.allow_tuned.max(1))).map(|task| task.name.clone()),
        );
        let bytes = |task: &LoadedTask| (task.ready.bytes() + task.ready.prompt_bytes()) as u64;
        let mut total: u64 = loaded.iter().map(|task| bytes(task)).sum();
        if total > self.memory {
            // A little more than needed, so that the next one need not look again.
            let goal = self.memory - self.memory / 16;
            for task in loaded.iter().filter(|task| !is_newest(task)) {
                if total <= goal {
                    break;
                }
                total -= task.ready.prompt_bytes() as u64;
                task.ready.forget_prompts();
            }
            for task in loaded.iter().filter(|task| !is_newest(task)) {
                if total <= goal {
                    break;
                }
                total = total.saturating_sub(bytes(task));
                dropped.push(task.name.clone());
            }
        }
        for name in &dropped {
            if let Some(known) = known.get_mut(name) {
                known.loaded = None;
            }
        }
        let count = known.values().filter(|known| known.loaded.is_some()).count();
        drop(known);
        self.metrics.tasks_loaded.set(count as i64);
        self.metrics.task_bytes.set(total as i64);
    }

    /// Looks at the files again: what is new is served, what is gone no longer, and what is loaded and has changed is loaded anew.
    pub(crate) fn rescan(&self) {
        let found = task_files::find(&self.roots);
        let mut changed = Vec::new();
        {
            let mut known = self.lock();
            known.retain(|name, task| found.tasks.get(name).is_some_and(|path| *path == task.path));
            for (name, path) in &found.tasks {
                let stamp = Stamp::of(path).ok();
                let fresh =
                    || KnownTask { path: path.clone(), stamp, loaded: None, failed: None, loading: Arc::default() };
                let task = known.entry(name.clone()).or_insert_with(fresh);
                if task.stamp != stamp {
                    task.stamp = stamp;
                    task.failed = None;
                    if task.loaded.is_some() {
                        changed.push((name.clone(), path.clone(), task.loading.clone()));
                    }
                }
            }
        }
        for (name, path, loading) in changed {
            let _one_at_a_time = loading.lock().unwrap_or_else(PoisonError::into_inner);
            let loaded = self.load(&name, &path);
            let mut known = self.lock();
            let Some(task) = known.get_mut(&name) else { continue };
            match loaded {
                Ok((fresh, stamp)) => {
                    self.touch(&fresh);
                    (self.log)(&format!("task {name}: version {} is served now", fresh.version));
                    (task.loaded, task.stamp, task.failed) = (Some(Arc::new(fresh)), Some(stamp), None);
                }
                Err(error) => {
                    (self.log)(&format!("{error}; the version before it is served on"));
                    task.failed = Some((Instant::now(), error));
                }
            }
        }
        self.make_room(None);
    }

    /// What below the folders is not served though it may be meant.
    pub(crate) fn passed_by(&self) -> Vec<String> {
        task_files::find(&self.roots).passed_by
    }
}

/// The version of a task file: the beginning of the BLAKE3 hash of its bytes.
pub(crate) fn version_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let bytes = vpt_base::files::read_limited(path, MOST_BYTES)?;
    hasher.update(&bytes);
    Ok(hasher.finalize().to_hex()[..VERSION_DIGITS].to_owned())
}

/// A name as somebody typed it, short and without what could steer a terminal.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(80).collect::<String>().escape_debug().to_string()
}

impl std::fmt::Debug for TaskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskStore").field("roots", &self.roots).field("cores", &self.cores).finish_non_exhaustive()
    }
}
