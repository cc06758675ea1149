//! What can be said of a grid before its jobs are made.

use super::{
    super::{GridMethod, data::check_task},
    GridConfig, Mode, Opened,
};
use vpt_base::{Error, Message, Result};
use vpt_train::config::{RunConfig, Task};

impl GridConfig {
    /// What can be said without opening anything.
    pub(crate) fn check(&self) -> Result<()> {
        let task = self.task();
        check_task(task)?;
        if let Some(method) = self.methods.iter().find(|method| !method.is_for(task)) {
            let able: Vec<_> = GridMethod::all_for(task).into_iter().map(GridMethod::name).collect();
            let message = format!("{method} is not for {}; take {}", said(task), able.join(", "));
            return Err(Error::setting("methods", message));
        }
        if task != Task::Classify && self.mode != Mode::FewShot {
            let field = if self.mode == Mode::Cross { "targets" } else { "base_to_new" };
            return Err(Error::setting(field, format!("not for {}", said(task))));
        }
        // It is said to the methods that have a use for it.
        RunConfig { label_map: None, head_init: None, keep_better: None, ..self.base.clone() }.validate()?;
        let given = [
            ("data", self.data.is_empty()),
            ("methods", self.methods.is_empty()),
            ("shots", self.shots.is_empty()),
            ("seeds", self.seeds.is_empty()),
        ];
        if let Some((field, _)) = given.iter().find(|(_, empty)| *empty) {
            return Err(Error::setting(*field, "names nothing to compare"));
        }
        if self.shots.contains(&0) {
            return Err(Error::setting("shots", "0 images a class leave nothing to learn from; zero-shot is a method"));
        }
        if self.base.label_map.is_some() && !self.methods.iter().any(|method| method.has_pixels()) {
            return Err(Error::setting("label_map", none_of_methods("learns prompt pixels")));
        }
        repeated("methods", &self.methods)?;
        repeated("shots", &self.shots)?;
        repeated("seeds", &self.seeds)?;
        if let Some(seed) = self.seeds.iter().find(|&&seed| i64::try_from(seed).is_err()) {
            return Err(Error::setting("seeds", format!("{seed} is larger than {}", i64::MAX)));
        }
        if !self.classnames.is_empty() && !self.methods.iter().any(|method| method.reads_names()) {
            return Err(Error::setting("classnames", none_of_methods("tells classes by their names")));
        }
        if !self.templates.is_empty() && !self.methods.iter().any(|method| method.reads_templates()) {
            return Err(Error::setting("templates", none_of_methods("reads templates")));
        }
        if self.mode == Mode::FewShot {
            return Ok(());
        }
        match self.methods.iter().find(|method| !method.names_unseen_classes()) {
            Some(method) => {
                let able: Vec<_> =
                    GridMethod::all().into_iter().filter(|m| m.names_unseen_classes()).map(GridMethod::name).collect();
                let message =
                    format!("method {method} knows the classes it has learned and no others; take {}", able.join(", "));
                Err(Error::setting(if self.mode == Mode::Cross { "targets" } else { "base_to_new" }, message))
            }
            None => Ok(()),
        }
    }

    /// Texts for a data set that is not there are a mistake.
    pub(super) fn check_texts<'a>(&self, opened: impl Iterator<Item = &'a Opened>) -> Result<()> {
        let names: Vec<&str> = opened.map(|opened| opened.name.as_str()).collect();
        for (field, files) in [("classnames", &self.classnames), ("templates", &self.templates)] {
            for name in files.iter().filter_map(|file| file.data.as_deref()) {
                if !names.contains(&name) {
                    let message = format!("no data set is called {name}; there is {}", names.join(", "));
                    return Err(Error::setting(field, message));
                }
            }
        }
        Ok(())
    }
}

/// What a task is called in a message.
fn said(task: Task) -> &'static str {
    match task {
        Task::Detect => "detection",
        Task::Segment => "segmentation",
        _ => "classification",
    }
}

/// That no method of the grid `does` something.
fn none_of_methods(does: &str) -> Message {
    Message::from("none of ").field("methods").text(format!(" {does}"))
}

/// Nothing may be named twice.
fn repeated<T: PartialEq + ToString>(field: &'static str, values: &[T]) -> Result<()> {
    match values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)) {
        Some((_, value)) => Err(Error::setting(field, format!("{} is named twice", value.to_string()))),
        None => Ok(()),
    }
}
