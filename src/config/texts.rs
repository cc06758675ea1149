//! The texts that name the classes: templates and class names, which `config.toml` keeps word for word, so that a run can be repeated
//! without the files they came from.

use super::RunConfig;
use crate::{
    Error, Result,
    backbone::class_texts::{Prompts, without_place},
    methods::Method,
};

/// Bytes of templates, or of class names, that a configuration can hold.
const MAX_TEXTS: usize = 400_000;

impl RunConfig {
    /// The texts that are asked for: the run's own templates and class names, or those of [`Prompts::of_names`] for `classes`.
    ///
    /// # Errors
    /// The run does not name as many classes as there are.
    pub(crate) fn class_prompts(&self, classes: &[String]) -> Result<Prompts> {
        let mut prompts = Prompts::of_names(classes);
        if let Some(templates) = &self.templates {
            prompts.templates.clone_from(templates);
        }
        if let Some(names) = &self.classnames {
            if names.len() != classes.len() {
                let message = format!("{} class names for {} classes of the data", names.len(), classes.len());
                return Err(Error::flag("--classnames", message));
            }
            prompts.classnames.clone_from(names);
        }
        Ok(prompts)
    }

    /// Checks the texts that a text head, or the head of a method, begins with or is learned from, and the words that vectors
    /// begin as.
    pub(super) fn check_texts(&self) -> Result<()> {
        if self.context_init.as_ref().is_some_and(|words| words.trim().is_empty()) {
            return Err(Error::flag("--context-init", "holds no word"));
        }
        let learners = Method::ALL.iter().copied().filter(|m| m.has_texts() || *m == Method::Lora).collect();
        for (flag, texts, also) in [
            ("--templates", &self.templates, vec![Method::Promptsrc, Method::Lora]),
            ("--classnames", &self.classnames, learners),
        ] {
            let used = self.reads_texts() || also.contains(&self.method);
            let Some(texts) = texts else { continue };
            if !used {
                let not = if self.method.own_head().is_none() { self.head_kind().name() } else { self.method.name() };
                let readers = Method::ALL.iter().filter(|m| m.reads_texts()).chain(&also).map(|m| m.name());
                let readers: Vec<_> = readers.collect();
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
