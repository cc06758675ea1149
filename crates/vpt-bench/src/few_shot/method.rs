//! What a grid can compare: every method that training knows, and the zero-shot classifier, which learns nothing.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use vpt_base::{Error, Result, suggest};
use vpt_model::methods::{Method, Task, settings::bare};

/// The name of the one that is no method of training.
const ZERO_SHOT: &str = "zero-shot";

/// A method of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GridMethod {
    /// CLIP's classifier by class names: one job a data set.
    ZeroShot,
    /// A method that learns: a job for each number of shots and each seed.
    Learned(Method),
}

impl GridMethod {
    /// Every method, in the order of tables.
    pub fn all() -> Vec<Self> {
        let learned = Method::ALL.iter().filter(|method| method.name() != ZERO_SHOT);
        std::iter::once(Self::ZeroShot).chain(learned.map(|&method| Self::Learned(method))).collect()
    }

    /// Those that `task` has, in the order of tables.
    pub fn all_for(task: Task) -> Vec<Self> {
        Self::all().into_iter().filter(|method| method.is_for(task)).collect()
    }

    /// Whether `task` has it.
    pub fn is_for(self, task: Task) -> bool {
        match self {
            Self::ZeroShot => task == Task::Classify,
            Self::Learned(method) => method.specs().all(|spec| spec.tasks.contains(&task)),
        }
    }

    /// Its name in settings, files and tables: of methods that learn at once all names, with a plus between, as commas separate
    /// methods.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::ZeroShot => ZERO_SHOT.into(),
            Self::Learned(method) => match method.name() {
                Cow::Owned(names) => names.replace(',', "+").into(),
                name @ Cow::Borrowed(_) => name,
            },
        }
    }

    /// Whether it can tell apart classes it has learned nothing about, by the text of their names. The modes `base-to-new` and
    /// `cross` are for such methods.
    pub fn names_unseen_classes(self) -> bool {
        match self {
            Self::ZeroShot => true,
            Self::Learned(method) => method.has_texts(),
        }
    }

    /// Whether all that is learned costs less than the one pass of each image through the backbone.
    pub(super) fn is_quick(self) -> bool {
        match self {
            Self::ZeroShot => true,
            Self::Learned(method) => method.on_features(),
        }
    }

    /// Whether texts with the names of the classes have a part in it.
    pub(super) fn reads_names(self) -> bool {
        self.reads_templates() || self.names_unseen_classes()
    }

    /// Whether templates have a part in it.
    pub(crate) fn reads_templates(self) -> bool {
        match self {
            Self::ZeroShot => true,
            Self::Learned(method) => method.may_read_texts(),
        }
    }

    /// Whether it does nothing on a backbone without a text tower.
    pub(crate) fn needs_texts(self) -> bool {
        match self {
            Self::ZeroShot => true,
            Self::Learned(method) => method.reads_texts() || method.has_texts(),
        }
    }

    /// Whether prompt pixels are learned.
    pub(super) fn has_pixels(self) -> bool {
        matches!(self, Self::Learned(method) if method.has_pixels())
    }

    /// Its place in tables.
    pub(super) fn rank(self) -> usize {
        let all = Self::all();
        let known = all.iter().position(|&method| method == self);
        known.unwrap_or_else(|| {
            let names = self.name();
            let part = |one: &Self| names.split('+').any(|name| name == one.name());
            all.len() + all.iter().enumerate().filter(|(_, one)| part(one)).map(|(i, _)| 1 << i).sum::<usize>()
        })
    }
}

impl fmt::Display for GridMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl FromStr for GridMethod {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if s.contains('+') {
            let several = s.replace('+', ",").parse().map(Self::Learned);
            return several.map_err(|error: Error| Error::setting("methods", bare(error)));
        }
        Self::all().into_iter().find(|method| method.name() == s).ok_or_else(|| {
            let all = Self::all();
            let names: Vec<Cow<str>> = all.into_iter().map(Self::name).collect();
            let hint = suggest::hint(s, names.iter().map(|name| &**name));
            let message = format!("`{}` is not one of all, {}{hint}", s.escape_debug(), names.join(", "));
            Error::setting("methods", message)
        })
    }
}

impl Serialize for GridMethod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for GridMethod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_there_once_and_is_found_by_its_name() {
        let all = GridMethod::all();
        for (i, method) in all.iter().enumerate() {
            assert_eq!(method.name().parse::<GridMethod>().unwrap(), *method);
            assert_eq!(method.rank(), i);
        }
        for method in Method::NAMES {
            assert_eq!(all.iter().filter(|m| m.name() == *method).count(), 1, "{method}");
        }
        let two: GridMethod = "bias+vpt-deep".parse().unwrap();
        assert_eq!((two.name().as_ref(), two.rank() > all.len()), ("vpt-deep+bias", true));
        let error = "vpt-deep+vpt-shallow".parse::<GridMethod>().unwrap_err().to_string();
        assert!(error.starts_with("methods: vpt-deep and vpt-shallow both learn"), "{error}");
        let message = "vpt-depp".parse::<GridMethod>().unwrap_err().to_string();
        assert!(message.starts_with("methods") && message.ends_with("did you mean vpt-deep?"), "{message}");
    }
}
