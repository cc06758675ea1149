//! The texts that name the classes: templates and class names, which `config.toml` keeps word for word, so that a run can be repeated
//! without the files they came from.

use super::RunConfig;
use crate::{Error, Result, config::Method, eval::zero_shot::without_place};

/// Bytes of templates, or of class names, that a configuration can hold.
const MAX_TEXTS: usize = 400_000;

impl RunConfig {
    /// Checks the texts that a text head, or the head of a method, begins with.
    pub(super) fn check_texts(&self) -> Result<()> {
        for (flag, texts) in [("--templates", &self.templates), ("--classnames", &self.classnames)] {
            let Some(texts) = texts else { continue };
            if !self.reads_texts() {
                let not = if self.method.own_head().is_none() { self.head_kind().name() } else { self.method.name() };
                let readers: Vec<_> = Method::ALL.iter().filter(|m| m.reads_texts()).map(|m| m.name()).collect();
                let message = format!("only for --head text and {}, not {not}", readers.join(", "));
                return Err(Error::flag(flag, message));
            }
            if texts.is_empty() || texts.iter().any(|text| text.trim().is_empty()) {
                return Err(Error::flag(flag, "a list that is empty or holds an empty text"));
            }
            // They are kept in config.toml, which must be readable again.
            if texts.iter().map(|text| text.len() + 4).sum::<usize>() > MAX_TEXTS {
                return Err(Error::flag(flag, format!("more than {} kB of texts", MAX_TEXTS / 1000)));
            }
        }
        match self.templates.as_deref().and_then(without_place) {
            Some(message) => Err(Error::flag("--templates", message)),
            None => Ok(()),
        }
    }
}
