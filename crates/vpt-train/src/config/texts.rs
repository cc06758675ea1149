//! The texts that name the classes: templates and class names, which `config.toml` keeps word for word, so that a run can be repeated
//! without the files they came from.

use super::RunConfig;
use vpt_backbone::class_texts::{Prompts, without_place};
use vpt_base::{Error, Message, Result};
use vpt_model::methods::Method;

/// Bytes of templates, or of class names, that a configuration can hold.
const MAX_TEXTS: usize = 400_000;

/// Something that methods may be.
type Fact = fn(Method) -> bool;

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
                return Err(Error::setting("classnames", message));
            }
            prompts.classnames.clone_from(names);
        }
        Ok(prompts)
    }

    /// Checks the texts that a text head, or the head of a method, begins with or is learned from.
    pub(super) fn check_texts(&self) -> Result<()> {
        let ties = |method: Method| method.tied_to().is_some() || method.prefers_texts();
        let names = |method: Method| method.has_texts() || method.prefers_texts();
        let fields: [(_, _, Fact); 2] = [("templates", &self.templates, ties), ("classnames", &self.classnames, names)];
        for (field, texts, also) in fields {
            let Some(texts) = texts else { continue };
            if !self.reads_texts() && !also(self.method) {
                let own = self.method.own_head().is_some();
                let not = if own { self.method.name() } else { self.head_kind().name().into() };
                let (readers, others): (Vec<_>, Vec<_>) =
                    Method::ALL.iter().copied().filter(|m| m.reads_texts() || also(*m)).partition(|m| m.reads_texts());
                let able: Vec<_> = readers.into_iter().chain(others).map(Method::name).collect();
                let message = Message::from("only for ").field("head");
                let message = message.text(format!(" text and {}, not {not}", able.join(", ")));
                return Err(Error::setting(field, message));
            }
            if texts.is_empty() || texts.iter().any(|text| text.trim().is_empty()) {
                return Err(Error::setting(field, "a list that is empty or holds an empty text"));
            }
            // They are kept in config.toml, which must be readable again.
            if texts.iter().map(|text| text.len() + 4).sum::<usize>() > MAX_TEXTS {
                return Err(Error::setting(field, format!("more than {} kB of texts", MAX_TEXTS / 1000)));
            }
        }
        match self.templates.as_deref().and_then(without_place) {
            Some(message) => Err(Error::setting("templates", message)),
            None => Ok(()),
        }
    }
}
