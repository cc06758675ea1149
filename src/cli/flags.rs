//! Settings are flags here: what the library says of a setting is written with the flag that sets it.

use vpt::Message;

/// The flag that sets `field`.
pub(crate) fn flag(field: &str) -> String {
    format!("--{}", field.replace('_', "-"))
}

/// `message` as users of the command line read it.
pub(crate) fn words(message: &Message) -> String {
    message.write(flag)
}
