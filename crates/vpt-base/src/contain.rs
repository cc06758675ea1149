//! Keeps panics of third-party code away from the user.
//!
//! Image decoders and the tokenizer crate are known to panic on crafted files. A panic there says that the file is bad,
//! not that the program is, so it becomes an error like any other, and nothing of it reaches the terminal.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// How many [`contain`] calls this thread is inside of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs `f`; a panic in it becomes `Err` with the panic's message on one line, and is not printed.
///
/// `f` must not leave shared state half changed when it unwinds; a decoder that owns everything it works on does not.
/// The first call replaces the process's panic hook by one that is silent inside `contain` and otherwise passes on to the
/// hook that was there.
///
/// # Errors
/// The panic's message.
pub fn contain<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // `try_with`: a panic while the thread is being torn down must not panic again.
            if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                previous(info);
            }
        }));
    });
    DEPTH.set(DEPTH.get() + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        message.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_on_one_line() {
        assert_eq!(contain(|| 3), Ok(3));
        assert_eq!(contain(|| -> u8 { panic!("broken\n {} file", 7) }), Err("broken 7 file".into()));
        assert_eq!(contain(|| contain(|| -> u8 { panic!("inner") })), Ok(Err("inner".into())));
    }
}
