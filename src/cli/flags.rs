//! Settings are flags here: what the library says of a setting is written with the flag that sets it.

use std::str::FromStr;

use vpt::Message;

/// Settings whose flag has another name.
const RENAMED: [(&str, &str); 1] = [("targets", "--cross")];

/// The flag that sets `field`.
pub(crate) fn flag(field: &str) -> String {
    match RENAMED.iter().find(|(name, _)| *name == field) {
        Some((_, flag)) => (*flag).to_owned(),
        None => format!("--{}", field.replace('_', "-")),
    }
}

/// `message` as users of the command line read it.
pub(crate) fn words(message: &Message) -> String {
    message.write(flag)
}

/// A parser of flags' values for clap.
pub(crate) fn parsed<T: FromStr<Err = vpt::Error>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: vpt::Error| words(&error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt::Error;

    #[test]
    fn a_setting_is_written_as_its_flag() {
        let message = Message::from("use ").field("head_lr").text("; see ").field("targets");
        let error = Error::setting("prompt_tokens", message);
        assert_eq!(words(&error.message()), "--prompt-tokens: use --head-lr; see --cross");
        let error = error.in_file("run/config.toml");
        assert_eq!(words(&error.message()), "run/config.toml: --prompt-tokens: use --head-lr; see --cross");
        assert_eq!(words(&Error::invalid("data", "is --lr").message()), "data: is --lr");
    }
}
