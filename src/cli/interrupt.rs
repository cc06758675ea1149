//! Ctrl-C, and the signal by which systems end a program: a run is given the time to save, unless it is told twice.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long saving may take once SIGTERM came, where that is limited.
static GRACE: OnceLock<Duration> = OnceLock::new();

/// From now on SIGTERM ends the process within so many seconds. What is on disk is whole at any time, so what was not saved by then is
/// done once more another time.
pub(crate) fn end_within(seconds: u32) {
    let _ = GRACE.set(Duration::from_secs(seconds.into()));
}

/// Whether a signal has asked the program to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt {
    /// The first signal that came, or 0.
    signal: Arc<AtomicI32>,
}

impl Interrupt {
    /// From here on the first SIGINT or SIGTERM is noted and `told` called, on a thread of its own; the second ends the
    /// process as if there were nobody listening. Elsewhere than on Unix systems a signal ends the process.
    #[cfg(unix)]
    pub(crate) fn listen(told: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        use signal_hook::{iterator::Signals, low_level};

        let interrupt = Self::default();
        let signal = interrupt.signal.clone();
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for number in signals.forever() {
                if signal.swap(number, Ordering::SeqCst) == 0 {
                    if number == SIGTERM {
                        end_in_time();
                    }
                    told();
                } else if low_level::emulate_default_handler(number).is_err() {
                    low_level::exit(128 + number);
                }
            }
        })?;
        Ok(interrupt)
    }

    #[cfg(not(unix))]
    pub(crate) fn listen(_: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        Ok(Self::default())
    }

    /// Whether a signal came.
    pub(crate) fn came(&self) -> bool {
        self.signal.load(Ordering::SeqCst) != 0
    }

    /// Exit code by a shell's convention for the signal: 130 for Ctrl-C, 143 for SIGTERM.
    pub(crate) fn exit_code(&self) -> u8 {
        128 + self.signal.load(Ordering::SeqCst) as u8
    }
}

/// Ends the process when its time is over, whatever it does then.
#[cfg(unix)]
fn end_in_time() {
    let Some(&grace) = GRACE.get() else { return };
    let end = move || {
        std::thread::sleep(grace);
        super::output::message(&format!(
            "error: interrupted; not all was saved within {} seconds, and the same command does that again",
            grace.as_secs()
        ));
        signal_hook::low_level::exit(75);
    };
    // Where the system has no thread to give, saving takes the time that it needs.
    let _ = std::thread::Builder::new().name("grace".to_owned()).spawn(end);
}
