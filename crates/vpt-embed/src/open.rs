//! Shards brought near, one ahead of the one that is computed: claimed, what a command writes put into a file, names and places of its
//! pictures read.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::folder::{OutFolder, ShardStats};
use crate::input::{ShardInput, ShardSource};
use vpt_base::{Error, Result};
use vpt_cluster::WorkClaim;
use vpt_data::ShardSamples;

/// How often a command is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A shard at hand.
pub(crate) struct ShardAtHand {
    pub(crate) index: usize,
    pub(crate) claim: WorkClaim,
    pub(crate) bytes: Option<u64>,
    pub(crate) samples: ShardSamples,
}

/// What became of bringing a shard near.
pub(crate) enum ShardFound {
    /// It is this process's now.
    Ready(Box<ShardAtHand>),
    /// Another process has it.
    Busy(usize),
    /// It is done, by another process since this one looked.
    Done(Box<ShardStats>),
    /// It cannot be read.
    Failed(usize, Error),
}

/// Brings shard `index` near, unless `stop` says not to wait for a command.
pub(crate) fn fetch(folder: &OutFolder, input: &ShardInput, index: usize, stop: &AtomicBool) -> ShardFound {
    match try_fetch(folder, input, index, stop) {
        Ok(found) => found,
        Err(error) => ShardFound::Failed(index, error),
    }
}

fn try_fetch(folder: &OutFolder, input: &ShardInput, index: usize, stop: &AtomicBool) -> Result<ShardFound> {
    let bytes = input.bytes();
    let done = || Ok::<_, Error>(folder.done(index, bytes)?.map(|stats| ShardFound::Done(Box::new(stats))));
    if let Some(done) = done()? {
        return Ok(done);
    }
    let claim = match folder.take(index) {
        Ok(Some(claim)) => claim,
        Ok(None) => return Ok(ShardFound::Busy(index)),
        // Cleared away, while this process reached for it, by the one that has finished it.
        Err(error) => return done()?.ok_or(error),
    };
    // Another process may have finished it since this one looked.
    if let Some(done) = done()? {
        return Ok(done);
    }
    let samples = match &input.source {
        ShardSource::File(path) => ShardSamples::open(path)?,
        ShardSource::Images(paths) => ShardSamples::of_files(paths),
        ShardSource::Command(command) => {
            let file = folder.work(index).join("input");
            run_command(command, &file, stop)?;
            ShardSamples::open(&file).map_err(|error| Error::invalid(input.name.clone(), without(&file, &error)))?
        }
    };
    Ok(ShardFound::Ready(Box::new(ShardAtHand { index, claim, bytes, samples })))
}

/// What `error` says of the file, whose name nobody knows.
fn without(file: &Path, error: &Error) -> String {
    let text = error.to_string();
    let name = format!("{}: ", file.display());
    text.strip_prefix(&name).map_or(text.clone(), str::to_owned)
}

/// Runs `command` by the shell and puts what it writes into `file`.
fn run_command(command: &str, file: &Path, stop: &AtomicBool) -> Result<()> {
    let failed = |why: String| Error::invalid(format!("pipe:{command}"), why);
    let out = File::create(file).map_err(Error::io(file))?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(out);
    #[cfg(unix)]
    {
        // A group of its own, so that what it has started can be ended with it.
        use std::os::unix::process::CommandExt;
        shell.process_group(0);
    }
    let mut child = shell.spawn().map_err(|error| failed(format!("cannot be started: {error}")))?;
    loop {
        if stop.load(Ordering::SeqCst) {
            if cfg!(unix) {
                let _ = Command::new("kill").args(["-TERM", "--", &format!("-{}", child.id())]).status();
            }
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("stopped".to_owned()));
        }
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(format!("ended with {status}"))),
            Ok(None) => thread::sleep(LOOK),
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}
