//! What a user says as a number, or leaves to the program with `auto`.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IntoDeserializer},
};

use vpt_base::{Error, Message, Result};
use vpt_model::methods::settings::{SettingValue, ValueKind};

/// A number, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OrAuto<T> {
    /// Left to the program.
    Auto,
    /// This one.
    Value(T),
}

/// A peak learning rate. `auto`: a few around the default are tried, and validation chooses.
pub type LearningRate = OrAuto<f64>;

/// Tiles along the shorter side of an image. `auto`: the training images choose.
pub type TileCount = OrAuto<usize>;

impl<T: SettingValue + FromStr> FromStr for OrAuto<T> {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::parse(s).map_err(|message| Error::invalid("value", message))
    }
}

impl<T: fmt::Display> fmt::Display for OrAuto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Value(value) => value.fmt(f),
        }
    }
}

impl<T: SettingValue + FromStr> SettingValue for OrAuto<T> {
    const KIND: ValueKind = ValueKind::Parsed;

    fn parse(text: &str) -> Result<Self, Message> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Value).map_err(|_| format!("`{text}` is neither a number nor auto").into())
    }
}

impl<T: Serialize> Serialize for OrAuto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrAuto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

struct Visitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
    type Value = OrAuto<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or \"auto\"")
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<OrAuto<T>, E> {
        T::deserialize(v.into_deserializer()).map(OrAuto::Value)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<OrAuto<T>, E> {
        T::deserialize(v.into_deserializer()).map(OrAuto::Value)
    }

    // Whole numbers of JSON, in which jobs are sent to processes.
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<OrAuto<T>, E> {
        T::deserialize(v.into_deserializer()).map(OrAuto::Value)
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<OrAuto<T>, E> {
        match v {
            "auto" => Ok(OrAuto::Auto),
            _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
        }
    }
}
