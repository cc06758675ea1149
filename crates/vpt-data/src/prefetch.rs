//! Items made on threads ahead of whoever takes them.
//!
//! An item depends on its index alone and is put in its place, whichever thread makes it and whenever.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vpt_base::contain::contain;
use vpt_base::{Error, Message, Result};

/// Makes the item with an index.
type MakeItem<T> = dyn Fn(usize) -> Result<T> + Send + Sync;

/// Items in a given order. Dropping it early stops its threads.
pub(super) struct Prefetch<T> {
    work: Arc<PrefetchWork<T>>,
    threads: Vec<JoinHandle<()>>,
    failed: bool,
}

/// What the threads share.
struct PrefetchWork<T> {
    make: Box<MakeItem<T>>,
    order: Vec<usize>,
    /// Items that may be made or wait at a time.
    window: usize,
    queue: Mutex<Queue<T>>,
    /// Signalled when an item is finished.
    finished: Condvar,
    /// Signalled when an item was taken out, or all is to stop.
    taken: Condvar,
}

/// A window over the order: items that are being made or wait to be taken out.
struct Queue<T> {
    /// The first position in the window.
    first: usize,
    /// Items from `first` on; `None` while one is being made.
    items: VecDeque<Option<Result<T>>>,
    stop: bool,
}

impl<T: Send + 'static> Prefetch<T> {
    /// The items with the indices in `order`, in that order, made by `make` on `threads` threads (at least one), of which
    /// `ahead` wait beside those being made. `make` must not panic.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn new(
        order: Vec<usize>,
        ahead: usize,
        threads: usize,
        make: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let wanted = threads.clamp(1, order.len().max(1));
        let queue = Mutex::new(Queue { first: 0, items: VecDeque::new(), stop: false });
        let (finished, taken) = (Condvar::new(), Condvar::new());
        let work =
            Arc::new(PrefetchWork { make: Box::new(make), order, window: ahead + wanted, queue, finished, taken });
        let mut ahead = Self { work, threads: Vec::with_capacity(wanted), failed: false };
        for _ in 0..wanted {
            let work = ahead.work.clone();
            match std::thread::Builder::new().name("vpt-data".into()).spawn(move || work.run()) {
                Ok(thread) => ahead.threads.push(thread),
                // Fewer threads give the same items.
                Err(_) if !ahead.threads.is_empty() => break,
                Err(e) => {
                    let threads = Message::new().field("threads");
                    return Err(Error::invalid(threads, format!("cannot start a thread: {e}")));
                }
            }
        }
        Ok(ahead)
    }
}

impl<T> Prefetch<T> {
    /// Number of items in all.
    pub(super) fn len(&self) -> usize {
        self.work.order.len()
    }

    /// The next `most` items with their indices, fewer before the end; none at the end and after an error.
    pub(super) fn batch(&mut self, most: usize) -> Option<Result<(Vec<usize>, Vec<T>)>> {
        if self.failed {
            return None;
        }
        let taken = self.take(most);
        self.failed = taken.is_err();
        Some(taken).filter(|taken| !matches!(taken, Ok((indices, _)) if indices.is_empty()))
    }

    /// Waits for the next items, at most `most` of them, and takes them out with their indices; none at the end.
    ///
    /// # Errors
    /// The first item among them that could not be made.
    fn take(&mut self, most: usize) -> Result<(Vec<usize>, Vec<T>)> {
        let mut queue = self.work.lock();
        let rest = &self.work.order[queue.first..];
        let indices = rest[..rest.len().min(most)].to_vec();
        let mut items = Vec::with_capacity(indices.len());
        while items.len() < indices.len() {
            if let Some(item) = queue.items.front_mut().and_then(Option::take) {
                items.push(item);
                queue.items.pop_front();
                queue.first += 1;
                self.work.taken.notify_all();
            } else {
                queue = self.work.finished.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(queue);
        Ok((indices, items.into_iter().collect::<Result<_>>()?))
    }
}

impl<T> fmt::Debug for Prefetch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetch")
            .field("items", &self.len())
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.work.lock().stop = true;
        self.work.taken.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl<T> PrefetchWork<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes items until there are no more or all is to stop.
    fn run(&self) {
        loop {
            let position = {
                let mut queue = self.lock();
                while !queue.stop && queue.items.len() >= self.window {
                    queue = self.taken.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                let position = queue.first + queue.items.len();
                if queue.stop || position >= self.order.len() {
                    return;
                }
                queue.items.push_back(None);
                position
            };
            let item = (self.make)(self.order[position]);
            let mut queue = self.lock();
            // It cannot have been taken out before it was there.
            let slot = position - queue.first;
            queue.items[slot] = Some(item);
            drop(queue);
            self.finished.notify_all();
        }
    }
}

/// Result of `make`; a failure in it, a panic too, is an error that names `path`. A panic on one of the threads
/// would leave the consumer waiting for ever.
pub fn blaming<T>(path: &Path, make: impl FnOnce() -> Result<T>) -> Result<T> {
    match contain(make) {
        Ok(Err(Error::Invalid { message, .. })) => Err(Error::image(path, message)),
        Ok(result) => result,
        Err(panic) => Err(Error::image(path, format!("cannot be made ready: {panic}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn squares(n: usize, threads: usize) -> Prefetch<usize> {
        Prefetch::new((0..n).collect(), 3, threads, |i| {
            // Later items may be finished first.
            std::thread::sleep(Duration::from_micros((i * 7919 % 13) as u64 * 50));
            Ok(i * i)
        })
        .unwrap()
    }

    #[test]
    fn items_come_in_order_and_end() {
        for threads in [1, 4, 50] {
            let mut ahead = squares(20, threads);
            assert_eq!(ahead.len(), 20);
            for from in [0, 8, 16] {
                let indices: Vec<_> = (from..(from + 8).min(20)).collect();
                let squares = indices.iter().map(|i| i * i).collect();
                assert_eq!(ahead.take(8).unwrap(), (indices, squares));
            }
            assert_eq!(ahead.take(8).unwrap(), (vec![], vec![]));
        }
    }

    #[test]
    fn no_more_is_made_than_the_window_holds() {
        let made = Arc::new(Mutex::new(0));
        let count = made.clone();
        let mut ahead = Prefetch::new((0..100).collect(), 5, 2, move |_| {
            *count.lock().unwrap() += 1;
            Ok(())
        })
        .unwrap();
        ahead.take(1).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(*made.lock().unwrap(), 1 + 5 + 2);
    }

    #[test]
    fn dropping_it_early_stops_its_threads() {
        let start = Instant::now();
        for taken in [0, 3] {
            let mut ahead = squares(10_000_000, 4);
            ahead.take(taken).unwrap();
            let work = Arc::downgrade(&ahead.work);
            drop(ahead);
            assert_eq!(work.strong_count(), 0);
        }
        // All of it would take many minutes.
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn whatever_goes_wrong_names_the_file() {
        let path = Path::new("a/b.png");
        let fails: [fn() -> Result<()>; 3] =
            [|| Err(Error::invalid("x", "too thin")), || panic!("odd\nbytes"), || Err(Error::image("a/b.png", "cut"))];
        let messages = fails.map(|f| blaming(path, f).unwrap_err().to_string());
        assert_eq!(messages, ["a/b.png: too thin", "a/b.png: cannot be made ready: odd bytes", "a/b.png: cut"]);
        assert_eq!(blaming(path, || Ok(3)).unwrap(), 3);
    }
}
