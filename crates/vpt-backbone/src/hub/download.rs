//! One file from the hub into the cache: what is there is kept, what is missing is fetched from where it broke off, and
//! nothing gets its name before its length and hash are right.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use super::cache::{HubCache, linked};
use super::client::{Answer, Client, Request, RequestFailure};
use super::digest::{self, FileDigest};
use super::{FetchEvent, FileOrigin};
use vpt_base::{Error, Result};

/// Tries in a row that bring nothing new, and tries in all.
const FRUITLESS: u32 = 4;
const TRIES: u32 = 1000;
/// Before the second try; each further one waits twice as long.
const PAUSE: Duration = Duration::from_millis(250);
const CHUNK: usize = 1 << 16;

/// Fetches the files of a repository's revision.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a HubCache,
    pub(super) repo: &'a str,
    /// The revision asked for; from the first answer on, the commit it stands for.
    pub(super) revision: String,
    pub(super) tell: &'a mut dyn FnMut(FetchEvent<'_>),
}

/// A file that is in the cache now.
pub(super) struct Cached {
    pub(super) tag: String,
    pub(super) bytes: u64,
    pub(super) source: FileOrigin,
}

impl Download<'_> {
    /// Brings `file` into the cache, without giving it a place in the snapshot; `None` if the repository has no such file.
    /// A file of more than `limit` bytes is refused.
    pub(super) fn content(&mut self, file: &str, limit: u64) -> Result<Option<Cached>, FetchFailure> {
        let answer = match self.ask(file, 0, Tries::default()) {
            Ok((answer, _)) => answer,
            Err(FetchFailure::Hub(RequestFailure::Absent)) => return Ok(None),
            Err(other) => return Err(other),
        };
        // Once the commit is known, it is the commit that is asked for.
        let settled = matches!(self.revision.len(), 40 | 64) && self.revision.bytes().all(|b| b.is_ascii_hexdigit());
        if settled && !self.revision.eq_ignore_ascii_case(&answer.commit) {
            return Err(refused(format!("the hub answered with another commit than {}", self.revision)));
        }
        self.revision.clone_from(&answer.commit);
        let (tag, bytes) = (answer.tag.clone(), answer.size);
        if bytes > limit {
            return Err(refused(format!("{bytes} bytes are too many for this file")));
        }
        let blob = self.cache.blob(&tag);
        if is_whole(&blob, &tag)? {
            return Ok(Some(Cached { tag, bytes, source: FileOrigin::Cache }));
        }
        // Whoever waits here for another process does not keep a connection open.
        let begun = fs::metadata(self.cache.incomplete(&tag)).is_ok_and(|m| m.len() > 0);
        let mut answer = if begun { None } else { Some(answer) };
        let tell = &mut *self.tell;
        let lock = self.cache.lock(&tag, || {
            answer = None;
            tell(FetchEvent::Waiting { file });
        })?;
        if is_whole(&blob, &tag)? {
            return Ok(Some(Cached { tag, bytes, source: FileOrigin::Cache }));
        }
        self.transfer(file, &tag, bytes, answer)?;
        drop(lock);
        Ok(Some(Cached { tag, bytes, source: FileOrigin::Hub }))
    }

    /// [`Self::content`], in its place in the snapshot.
    pub(super) fn file(&mut self, file: &str, limit: u64) -> Result<Option<Cached>, FetchFailure> {
        if let Some(cached) = self.present(file)? {
            return Ok(Some(cached));
        }
        let cached = self.content(file, limit)?;
        if let Some(Cached { tag, bytes, source }) = &cached {
            self.cache.link(&self.revision, file, tag)?;
            (self.tell)(FetchEvent::Finished { file, bytes: *bytes, source: *source });
        }
        Ok(cached)
    }

    /// `file`, if it lies in the snapshot of the commit and is whole: a commit never changes.
    pub(super) fn present(&mut self, file: &str) -> Result<Option<Cached>, FetchFailure> {
        let path = self.cache.snapshot(&self.revision).join(file);
        let (Some(tag), Ok(meta)) = (linked(&path), fs::metadata(&path)) else { return Ok(None) };
        if !is_whole(&path, &tag)? {
            return Ok(None);
        }
        (self.tell)(FetchEvent::Finished { file, bytes: meta.len(), source: FileOrigin::Cache });
        Ok(Some(Cached { tag, bytes: meta.len(), source: FileOrigin::Cache }))
    }

    /// Asks for `file` from byte `from` on, again and again while that may help.
    fn ask(&mut self, file: &str, from: u64, mut tries: Tries) -> Result<(Answer, Tries), FetchFailure> {
        loop {
            let request = Request { repo: self.repo, revision: &self.revision, file, from };
            match self.client.get(request) {
                Ok(answer) => return Ok((answer, tries)),
                Err(RequestFailure::Broken(why)) => self.pause(file, &why, &mut tries)?,
                Err(other) => return Err(FetchFailure::Hub(other)),
            }
        }
    }

    fn pause(&mut self, file: &str, why: &str, tries: &mut Tries) -> Result<(), FetchFailure> {
        tries.fruitless += 1;
        tries.all += 1;
        if tries.fruitless > FRUITLESS || tries.all > TRIES {
            let why = format!("gave up after {} tries: {why}", tries.all);
            let never = !self.client.has_answered();
            return Err(FetchFailure::Hub(if never {
                RequestFailure::Unreachable(why)
            } else {
                RequestFailure::Refused(why)
            }));
        }
        (self.tell)(FetchEvent::Retry { file, why });
        std::thread::sleep(PAUSE * 2u32.pow(tries.fruitless - 1));
        Ok(())
    }

    /// Fetches the content `tag` of `size` bytes. `answer` is the beginning of it, unless part of it is there already.
    fn transfer(&mut self, file: &str, tag: &str, size: u64, mut answer: Option<Answer>) -> Result<(), FetchFailure> {
        let path = self.cache.incomplete(tag);
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut part = PartialFile { file: open.map_err(Error::io(&path))?, digest: None, at: 0 };
        let mut resumed = part.resume(tag, size).map_err(Error::io(&path))?;
        let (mut tries, mut best) = (Tries::default(), part.at);
        loop {
            while part.at < size {
                let (next, so_far) = match answer.take() {
                    Some(answer) => (answer, tries),
                    None => self.ask(file, part.at, tries)?,
                };
                tries = so_far;
                if (next.tag.as_str(), next.size) != (tag, size) {
                    return Err(refused("the hub changed its mind about the file; fetch it again".to_owned()));
                }
                if next.from != part.at {
                    part.restart(tag, size).map_err(Error::io(&path))?;
                    resumed = false;
                }
                let broken = match part.take(next.body, size, |at| {
                    (self.tell)(FetchEvent::Progress { file, done: at, total: size });
                }) {
                    Ok(()) => continue,
                    Err(Broken::Disk(error)) => return Err(Error::io(&path)(error).into()),
                    Err(Broken::TooLong) => {
                        // None of it can be right.
                        let _ = fs::remove_file(&path);
                        return Err(refused(format!("more than the {size} bytes that were announced came")));
                    }
                    Err(Broken::Network(why)) => why,
                };
                if part.at > best {
                    (best, tries.fruitless) = (part.at, 0);
                }
                self.pause(file, &broken, &mut tries)?;
            }
            if part.is_right(tag, size) {
                break;
            }
            if !resumed {
                let _ = fs::remove_file(&path);
                let message = "its hash is not the one the hub announced; it was damaged on the way, fetch it again";
                return Err(refused(message.to_owned()));
            }
            // What was there before may be what is wrong.
            (self.tell)(FetchEvent::Retry { file, why: "what was there of it is damaged" });
            part.restart(tag, size).map_err(Error::io(&path))?;
            resumed = false;
            best = 0;
        }
        part.file.sync_all().map_err(Error::io(&path))?;
        let blob = self.cache.blob(tag);
        fs::rename(&path, &blob).map_err(Error::io(&blob))?;
        Ok(())
    }
}

/// How often something was tried.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    fruitless: u32,
    all: u32,
}

/// Why a file did not come.
pub(super) enum FetchFailure {
    /// The hub's answer, or that there was none.
    Hub(RequestFailure),
    /// It could not be kept.
    Local(Error),
}

impl From<Error> for FetchFailure {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

/// Whether `path` is there and what its name says.
fn is_whole(path: &Path, tag: &str) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    Ok(digest::matches(path, tag).map_err(Error::io(path))? == Some(true))
}

fn refused(why: String) -> FetchFailure {
    FetchFailure::Hub(RequestFailure::Refused(why))
}

/// The beginning of a file.
struct PartialFile {
    file: File,
    /// Of the bytes that are there.
    digest: Option<FileDigest>,
    at: u64,
}

enum Broken {
    Disk(std::io::Error),
    Network(String),
    TooLong,
}

impl PartialFile {
    /// Goes on behind what is in the file; returns whether there is anything.
    fn resume(&mut self, tag: &str, size: u64) -> std::io::Result<bool> {
        let len = self.file.metadata()?.len();
        if len == 0 || len > size {
            self.restart(tag, size)?;
            return Ok(false);
        }
        let mut digest = FileDigest::like(tag, size);
        if let Some(digest) = &mut digest {
            digest.read(&mut self.file, len)?;
        }
        (self.digest, self.at) = (digest, len);
        Ok(true)
    }

    fn restart(&mut self, tag: &str, size: u64) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.digest, self.at) = (FileDigest::like(tag, size), 0);
        Ok(())
    }

    /// Appends what comes, until the file has `size` bytes.
    fn take(&mut self, mut body: impl Read, size: u64, mut progress: impl FnMut(u64)) -> Result<(), Broken> {
        let mut buffer = vec![0; CHUNK];
        progress(self.at);
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) if self.at == size => return Ok(()),
                Ok(0) => {
                    return Err(Broken::Network(format!("the connection ended after {} of {size} bytes", self.at)));
                }
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // All of it is there; how the connection ends is no matter.
                Err(_) if self.at == size => return Ok(()),
                Err(error) => return Err(Broken::Network(format!("{error} after {} of {size} bytes", self.at))),
            };
            if n as u64 > size - self.at {
                return Err(Broken::TooLong);
            }
            self.file.write_all(&buffer[..n]).map_err(Broken::Disk)?;
            if let Some(digest) = &mut self.digest {
                digest.update(&buffer[..n]);
            }
            self.at += n as u64;
            progress(self.at);
        }
    }

    fn is_right(&mut self, tag: &str, size: u64) -> bool {
        self.at == size && self.digest.take().is_some_and(|digest| digest.finish() == tag)
    }
}
