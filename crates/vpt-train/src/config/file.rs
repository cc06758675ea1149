//! `config.toml`: a run's settings as one flat table, in the order in which they are declared.
//!
//! Fingerprints in checkpoints are of these bytes: a setting that is declared elsewhere, or renamed, keeps old runs from being
//! resumed.

use std::{collections::BTreeSet, fmt, path::Path};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeSeed, MapAccess, Visitor},
    ser::SerializeStruct,
};

use super::{DENSE, HeadInit, RunConfig, Task};
use vpt_base::{Error, Message, Result, files, suggest};
use vpt_model::{head::HeadKind, methods::settings::Settings};

impl RunConfig {
    /// Reads a `config.toml`.
    ///
    /// # Errors
    /// It cannot be read or is none, or a value in it makes no sense.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = files::read_limited(path, 1 << 20)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "not UTF-8 text"))?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            Error::file(path, Message::from(format!("line {line}: ")).text(Message::of_reader(&with_hint(message))))
        })?;
        config.validate().map_err(|error| error.in_file(path))?;
        let compute = config.compute();
        Ok(config.with_earlier_defaults().on(compute))
    }

    /// The same where it was filled in by a version that had no choice of something: what that version did.
    fn with_earlier_defaults(mut self) -> Self {
        if !self.is_filled_in() {
            return self;
        }
        if DENSE.contains(&self.task) {
            self.cached_views.get_or_insert(0);
        }
        if self.task == Task::Segment {
            self.scale_jitter.get_or_insert([1.; 2]);
        }
        let beside = self.head.is_some() && self.method.has_option("head_init");
        if self.task == Task::Classify && beside && self.head_init.is_none() {
            return Self { head_init: Some(self.earlier_head_init()), keep_better: Some(false), ..self };
        }
        if DENSE.contains(&self.task) && beside && self.keep_better.is_none() && self.head_epochs != Some(0) {
            return Self { keep_better: Some(false), ..self };
        }
        self
    }

    /// Whether it is the configuration of a run, with every default in it: says what hardly one says that was written by hand.
    pub(crate) fn is_filled_in(&self) -> bool {
        self.threads.is_some() && self.image_size.is_some() && self.flip.is_some()
    }

    /// What a head of this run began as before there was a choice.
    fn earlier_head_init(&self) -> HeadInit {
        if self.head == Some(HeadKind::Text) { HeadInit::Text } else { HeadInit::Random }
    }

    /// What stands for the run in the fingerprint of its checkpoints: [`Self::to_toml`] without what says what versions did
    /// that had no such setting, so that runs of these can be resumed.
    pub(crate) fn identity(&self) -> Result<String> {
        // The texts of a card stand in the file themselves.
        let cached_views = self.cached_views.filter(|views| *views > 0);
        let still = self.task == Task::Segment && self.method.on_features() && self.scale_jitter == Some([1.; 2]);
        let scale_jitter = self.scale_jitter.filter(|_| !still);
        let told = Self { dataset_card: None, cached_views, scale_jitter, ..self.clone() };
        let begins = DENSE.contains(&self.task) || self.head_init == Some(self.earlier_head_init());
        let earlier = begins && self.keep_better == Some(false);
        if !earlier {
            return told.to_toml();
        }
        Self { head_init: None, keep_better: None, ..told }.to_toml()
    }

    /// The content of a `config.toml`.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::invalid("config", error.to_string()))
    }
}

/// The parser's `message`; of a misspelt field not the list of all fields, if one of them may have been meant.
fn with_hint(message: String) -> String {
    let Some((given, known)) = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) else {
        return message;
    };
    match suggest::nearest(given, known.split('`').skip(1).step_by(2)) {
        Some(meant) => format!("unknown field `{given}`; did you mean {meant}?"),
        None => message,
    }
}

impl Serialize for RunConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RunConfig", Self::all().len())?;
        self.write(&mut fields)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for RunConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ConfigVisitor)
    }
}

struct ConfigVisitor;

impl<'de> Visitor<'de> for ConfigVisitor {
    type Value = RunConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("struct RunConfig")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RunConfig, A::Error> {
        let names: Vec<&str> = RunConfig::all().iter().map(|setting| setting.name).collect();
        let mut config = RunConfig::default();
        let mut seen = BTreeSet::new();
        while let Some(name) = map.next_key_seed(Name(&names))? {
            if !seen.insert(name) {
                return Err(de::Error::custom(format_args!("duplicate field `{name}`")));
            }
            map.next_value_seed(ValueSeed { config: &mut config, name })?;
        }
        Ok(config)
    }
}

/// One of these names.
struct Name<'a>(&'a [&'static str]);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("field identifier")
    }

    fn visit_str<E: de::Error>(self, given: &str) -> Result<&'static str, E> {
        self.0.iter().copied().find(|name| *name == given).ok_or_else(|| {
            E::custom(format_args!("unknown field `{given}`, expected one of `{}`", self.0.join("`, `")))
        })
    }
}

/// The value of `name`, which goes into `config`.
struct ValueSeed<'a> {
    config: &'a mut RunConfig,
    name: &'static str,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.config.read(self.name, deserializer).map(drop)
    }
}
