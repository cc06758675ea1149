//! The learning rate as the user says it: a number, or `auto`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use vpt_base::{Error, Message, Result};
use vpt_model::methods::settings::{self, SettingValue, ValueKind};

/// A peak learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LearningRate {
    /// Try a few around the default, choose by validation.
    Auto,
    /// This one.
    Value(f64),
}

impl FromStr for LearningRate {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if s == "auto" {
            return Ok(Self::Auto);
        }
        s.parse().map(Self::Value).map_err(|_| Error::setting("lr", format!("`{s}` is neither a number nor auto")))
    }
}

impl fmt::Display for LearningRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Value(lr) => write!(f, "{lr}"),
        }
    }
}

impl SettingValue for LearningRate {
    const KIND: ValueKind = ValueKind::Parsed;

    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(settings::bare)
    }
}

impl Serialize for LearningRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Value(lr) => serializer.serialize_f64(*lr),
        }
    }
}

impl<'de> Deserialize<'de> for LearningRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = LearningRate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or \"auto\"")
            }

            fn visit_f64<E: de::Error>(self, v: f64) -> Result<LearningRate, E> {
                Ok(LearningRate::Value(v))
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<LearningRate, E> {
                Ok(LearningRate::Value(v as f64))
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<LearningRate, E> {
                match v {
                    "auto" => Ok(LearningRate::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
