//! Ctrl-C, and the signal by which systems end a program: a run is given the time to save, unless it is told twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

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
