//! A piece of work that one process at a time has in hand, among all that see a folder.
//!
//! A claim is two things. A lock of the system on `.lock`, which dies with its process and is sure among the processes of one kernel;
//! network file systems may refuse it, or grant it to each machine by itself. And a file `.claim` that is made where none is, which
//! holds on every file system, with the name of the machine in it, written anew every so often while its process lives. A claim of
//! another machine that was not written for a while is that of a process that is no more. Its age is told by the clock of the file
//! system, which is the same for all.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use vpt_base::{Error, Result};

/// Locked while a process has the claim.
const LOCK: &str = ".lock";
/// Says who has it.
const CLAIM: &str = ".claim";
/// A look at a lock holds it for less than this; a process that has the claim holds it on.
const LOOK: Duration = Duration::from_millis(50);
/// How often a claim is written anew.
const BEAT: Duration = Duration::from_secs(20);
/// A claim of another machine that is older than this is nobody's.
const STALE: Duration = Duration::from_secs(120);

/// A claim on a folder, for as long as this value lives.
#[derive(Debug)]
pub struct WorkClaim {
    file: PathBuf,
    beat: Option<(Sender<()>, JoinHandle<()>)>,
    /// Let go of last.
    _lock: Option<File>,
}

impl WorkClaim {
    /// The claim on `folder`, which is made if need be; `None` if another process has it.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn take(folder: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let path = folder.join(LOCK);
        if path.exists() && !path.is_file() {
            return Err(Error::file(&path, "not a regular file"));
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
        let mut taken = lock.try_lock();
        if matches!(taken, Err(TryLockError::WouldBlock)) {
            thread::sleep(LOOK);
            taken = lock.try_lock();
        }
        let locked = match taken {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Ok(None),
            // A file system without locks: the other half has to do.
            Err(TryLockError::Error(_)) => false,
        };
        let file = folder.join(CLAIM);
        let own = Owner::this();
        let mut took_over = false;
        loop {
            match OpenOptions::new().create_new(true).write(true).open(&file) {
                Ok(mut new) => {
                    new.write_all(own.text().as_bytes()).and_then(|()| new.sync_all()).map_err(Error::io(&file))?;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&file)(error)),
            }
            if !is_over(folder, &file, locked) {
                return Ok(None);
            }
            // Whoever renames it first has it out of the way.
            let aside = folder.join(format!("{CLAIM}.{}", std::process::id()));
            if fs::rename(&file, &aside).is_ok() {
                let _ = fs::remove_file(&aside);
            }
            took_over = true;
        }
        if took_over && !locked {
            // Two that took over at once: the one whose file was renamed by the other sees it now.
            thread::sleep(2 * LOOK);
            if fs::read_to_string(&file).ok().and_then(|text| Owner::parse(&text)).as_ref() != Some(own) {
                return Ok(None);
            }
        }
        let beat = beat(file.clone(), own.text());
        Ok(Some(Self { file, beat, _lock: locked.then_some(lock) }))
    }

    /// Whether a file of this name in a folder belongs to the claim on it.
    pub fn is_own(name: &OsStr) -> bool {
        name.to_str().is_some_and(|name| name == LOCK || name.starts_with(CLAIM))
    }

    /// Whether a process has the claim on `folder`.
    pub fn is_held(folder: &Path) -> bool {
        let (lock, file) = (folder.join(LOCK), folder.join(CLAIM));
        // Opening a pipe could block.
        if !lock.is_file() {
            return false;
        }
        let locked = match File::open(&lock).map(|lock| lock.try_lock_shared()) {
            Ok(Err(TryLockError::WouldBlock)) => return true,
            Ok(taken) => taken.is_ok(),
            Err(_) => false,
        };
        file.exists() && !is_over(folder, &file, locked)
    }
}

impl Drop for WorkClaim {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.beat.take() {
            drop(end);
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.file);
    }
}

/// Whether the claim in `file` is that of a process that is no more; `locked`: the system's lock on it could be had.
fn is_over(folder: &Path, file: &Path, locked: bool) -> bool {
    let Ok(text) = fs::read_to_string(file) else {
        // Gone meanwhile, or being written.
        return !file.exists();
    };
    let this = Owner::this();
    if Owner::parse(&text).is_some_and(|owner| owner.kernel == this.kernel) && locked {
        // A lock of this kernel would have been seen.
        return true;
    }
    age(folder, file).is_some_and(|age| age > STALE)
}

/// How long ago `file` was written, by the clock of the file system.
fn age(folder: &Path, file: &Path) -> Option<Duration> {
    let written = fs::metadata(file).and_then(|meta| meta.modified()).ok()?;
    let now = tempfile::Builder::new().prefix(".vpt-").suffix(".tmp").tempfile_in(folder);
    let now = now.and_then(|mut probe| {
        probe.write_all(b"x")?;
        probe.as_file().sync_all()?;
        probe.as_file().metadata()?.modified()
    });
    now.unwrap_or_else(|_| SystemTime::now()).duration_since(written).ok()
}

/// Writes the claim anew every so often until the sender is dropped. Without a thread, where the system has none to give, it ages.
fn beat(file: PathBuf, text: String) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (end, ended) = mpsc::channel();
    let run = move || {
        while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
            // Not made anew: what was taken away is another's.
            if let Ok(mut claim) = OpenOptions::new().write(true).open(&file) {
                let _ = claim.seek(SeekFrom::Start(0)).and_then(|_| claim.write_all(text.as_bytes()));
                let _ = claim.sync_all();
            }
        }
    };
    let thread = thread::Builder::new().name("claim".to_owned()).spawn(run).ok()?;
    Some((end, thread))
}

/// Who has a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    /// The kernel whose locks it sees, from one start to the next.
    kernel: String,
    host: String,
    process: u32,
}

impl Owner {
    /// This process.
    fn this() -> &'static Self {
        static THIS: OnceLock<Owner> = OnceLock::new();
        THIS.get_or_init(|| {
            let word = |path: &str| {
                let text = fs::read_to_string(path).unwrap_or_default();
                text.split_whitespace().next().unwrap_or("-").to_owned()
            };
            Self {
                kernel: word("/proc/sys/kernel/random/boot_id"),
                host: word("/proc/sys/kernel/hostname"),
                process: std::process::id(),
            }
        })
    }

    fn text(&self) -> String {
        format!("{} {} {}\n", self.kernel, self.host, self.process)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (kernel, host) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Self { kernel, host, process: words.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a process of another machine would have left, written `ago`.
    fn foreign(folder: &Path, ago: Duration) {
        fs::write(folder.join(CLAIM), "another-kernel node7 42\n").unwrap();
        let claim = OpenOptions::new().write(true).open(folder.join(CLAIM)).unwrap();
        claim.set_modified(SystemTime::now() - ago).unwrap();
    }

    #[test]
    fn one_has_it_until_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("job");
        assert!(!WorkClaim::is_held(&folder));
        let claim = WorkClaim::take(&folder).unwrap().unwrap();
        assert!(WorkClaim::is_held(&folder));
        assert!(WorkClaim::take(&folder).unwrap().is_none());
        let text = fs::read_to_string(folder.join(CLAIM)).unwrap();
        assert_eq!(Owner::parse(&text).as_ref(), Some(Owner::this()));
        drop(claim);
        assert!(!WorkClaim::is_held(&folder) && !folder.join(CLAIM).exists());
        assert!(WorkClaim::take(&folder).unwrap().is_some());
    }

    #[test]
    fn what_a_killed_process_of_this_machine_left_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "").unwrap();
        fs::write(dir.path().join(CLAIM), Owner { process: 1, ..Owner::this().clone() }.text()).unwrap();
        assert!(!WorkClaim::is_held(dir.path()));
        let claim = WorkClaim::take(dir.path()).unwrap();
        assert!(claim.is_some());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn a_process_of_another_machine_has_it_while_it_writes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "").unwrap();
        foreign(dir.path(), STALE / 2);
        assert!(WorkClaim::is_held(dir.path()));
        assert!(WorkClaim::take(dir.path()).unwrap().is_none());
        foreign(dir.path(), STALE * 2);
        assert!(!WorkClaim::is_held(dir.path()));
        assert!(WorkClaim::take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn of_many_threads_one_has_it_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, inside) = (dir.path().join("job"), std::sync::atomic::AtomicUsize::new(0));
        let taken: usize = thread::scope(|scope| {
            let work = || {
                let mut taken = 0;
                for _ in 0..20 {
                    if let Ok(Some(_claim)) = WorkClaim::take(&folder) {
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        taken += 1;
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                }
                taken
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(taken > 0);
    }
}
