//! The texts that name the classes: templates and class names, which `config.toml` keeps word for word, so that a run can be repeated
//! without the files they came from.

use super::{Plan, RunConfig};
use vpt_backbone::class_texts::{Prompts, without_place};
use vpt_base::{Error, Message, Result};
use vpt_data::cards::{Card, CardMatch, CardTexts, NO_CARD};
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

    /// The same with the names and templates of the card of the data set `data` with these classes, where texts are read that the
    /// run does not say; and a line that says so. `kept` are the classes that are learned.
    ///
    /// # Errors
    /// The card that is asked for is not there, does not fit, or no texts are read.
    pub(crate) fn with_card(
        &self,
        plan: &Plan,
        data: &str,
        classes: &[String],
        kept: &[String],
    ) -> Result<(Self, Option<String>)> {
        let reads_templates = plan.told_by_texts() || self.reads_texts();
        let choice = self.dataset_card.as_deref();
        let unused = Self { dataset_card: self.dataset_card.clone().filter(|card| card == NO_CARD), ..self.clone() };
        if !reads_templates && !self.method.has_texts() {
            return match choice {
                Some(card) if card != "auto" && card != NO_CARD => {
                    let message = format!("{} reads no names of classes", self.method);
                    Err(Error::setting("dataset_card", message))
                }
                _ => Ok((unused, None)),
            };
        }
        let lacks_templates = reads_templates && self.templates.is_none();
        if self.classnames.is_some() && !lacks_templates {
            return Ok((self.clone(), None));
        }
        let Some(found) = Card::choose(choice, data, classes)? else { return Ok((unused, None)) };
        let found: CardMatch = found.of_classes(classes, kept);
        let CardTexts { mut names, mut templates } = found.texts(true);
        if self.classnames.is_some() {
            names.clear();
        }
        if !lacks_templates {
            templates.clear();
        }
        let taken = CardTexts { names, templates };
        let note = found.note(data, &taken);
        let config = Self {
            classnames: self.classnames.clone().or(Some(taken.names)),
            templates: self.templates.clone().or(Some(taken.templates).filter(|templates| !templates.is_empty())),
            dataset_card: Some(found.card.name),
            ..self.clone()
        };
        Ok((config, Some(note)))
    }

    /// The card whose texts the run has, if it has those of one.
    pub(crate) fn card_name(&self) -> Option<String> {
        self.dataset_card.clone().filter(|card| Card::exists(card))
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
