//! Settings: what a user can say of a run, each declared once.
//!
//! `settings!` makes of one declaration the field of a struct with its default, its line in `config.toml`, what a command line
//! needs for a flag (help, name of the value, choices), its check, and what it is said to in vain: methods and tasks that have no
//! use for it. A group may hold other groups; their settings are read and written as if they were its own.

use std::{ffi::OsStr, path::PathBuf};

use serde::{Deserializer, Serialize, de::DeserializeOwned, ser::SerializeStruct};

use super::Task;
use crate::prompt::tokens::PromptLayers;
use vpt_base::{Error, Message, Result};

/// Under which heading a command line lists a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heading {
    /// Backbone, data, and which of it.
    ModelAndData,
    /// The method and what belongs to it.
    Method,
    /// How steps are taken.
    Training,
    /// What only detection has.
    Detection,
    /// What only segmentation has.
    Segmentation,
    /// Where results go.
    Output,
    /// What every command takes: `train` has no flag of its own for it.
    Global,
}

impl Heading {
    /// The words of the heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::ModelAndData => "Model and data",
            Self::Method => "Method",
            Self::Training => "Training",
            Self::Detection => "Detection",
            Self::Segmentation => "Segmentation",
            Self::Output => "Output",
            Self::Global => "Global options",
        }
    }
}

/// How a value is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Any text.
    Text,
    /// A number; one with a minus is refused with its own message.
    Number,
    /// A number or a word, as the type reads it.
    Parsed,
    /// A file or folder.
    Path,
    /// One of these names.
    Choice(&'static [&'static str]),
    /// Names of these, separated by commas.
    Choices(&'static [&'static str]),
    /// On or off.
    Switch,
    /// Two numbers.
    Pair,
}

/// The default as a help text says it.
#[derive(Debug, Clone, Copy)]
pub enum DefaultText {
    /// None, or the help itself says it.
    Unsaid,
    /// These words.
    Words(&'static str),
    /// Words that are made of the values they tell.
    Made(fn() -> String),
}

/// A type of value that a setting can have.
pub trait SettingValue: PartialEq + Serialize + DeserializeOwned {
    /// How it is typed.
    const KIND: ValueKind;

    /// The value that `text` says.
    ///
    /// # Errors
    /// Why it says none.
    fn parse(text: &str) -> Result<Self, Message>;

    /// The value that a word of a command line says, which may be a path in no known encoding.
    ///
    /// # Errors
    /// Why it says none.
    fn parse_os(text: &OsStr) -> Result<Self, Message> {
        Self::parse(text.to_str().ok_or_else(|| Message::from("not UTF-8 text"))?)
    }
}

macro_rules! numbers {
    ($($type:ty)+) => { $(
        impl SettingValue for $type {
            const KIND: ValueKind = ValueKind::Number;

            fn parse(text: &str) -> Result<Self, Message> {
                text.parse().map_err(|error: <$type as std::str::FromStr>::Err| error.to_string().into())
            }
        }
    )+ };
}

numbers!(usize u64 f32 f64);

impl SettingValue for bool {
    const KIND: ValueKind = ValueKind::Switch;

    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(|error: std::str::ParseBoolError| error.to_string().into())
    }
}

impl SettingValue for String {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, Message> {
        Ok(text.to_owned())
    }
}

/// Texts are read from a file: [`SettingSpec::read`] says how.
impl SettingValue for Vec<String> {
    const KIND: ValueKind = ValueKind::Path;

    fn parse(text: &str) -> Result<Self, Message> {
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl SettingValue for PathBuf {
    const KIND: ValueKind = ValueKind::Path;

    fn parse(text: &str) -> Result<Self, Message> {
        Ok(text.into())
    }

    fn parse_os(text: &OsStr) -> Result<Self, Message> {
        Ok(text.into())
    }
}

impl SettingValue for [f32; 2] {
    const KIND: ValueKind = ValueKind::Pair;

    fn parse(text: &str) -> Result<Self, Message> {
        match text.split_whitespace().map(<f32 as SettingValue>::parse).collect::<Result<Vec<_>, _>>()?[..] {
            [least, most] => Ok([least, most]),
            _ => Err("expected two numbers".into()),
        }
    }
}

/// Makes types of `choice!` values of settings.
#[macro_export]
macro_rules! choices {
    ($($type:ty),+) => { $(
        impl $crate::methods::settings::SettingValue for $type {
            const KIND: $crate::methods::settings::ValueKind =
                $crate::methods::settings::ValueKind::Choice(<$type>::NAMES);

            fn parse(text: &str) -> Result<Self, vpt_base::Message> {
                text.parse().map_err($crate::methods::settings::bare)
            }
        }
    )+ };
}
pub use choices;

/// A parser's `error` without the name of the setting, which its reader knows.
pub fn bare(error: Error) -> Message {
    match error {
        Error::Setting { message, .. } => message,
        other => other.into(),
    }
}

impl SettingValue for PromptLayers {
    const KIND: ValueKind = ValueKind::Parsed;

    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(bare)
    }
}

/// The field of a setting: a value, or an open one.
pub trait Slot: PartialEq + Sized {
    /// The type of the value.
    type Value: SettingValue;

    /// The value, unless it is open.
    fn value(&self) -> Option<&Self::Value>;

    /// The field with a value.
    fn with(value: Self::Value) -> Self;

    /// Whether something was said, where nothing said is `default`.
    fn is_given(&self, default: &Self) -> bool;
}

impl<T: SettingValue> Slot for Option<T> {
    type Value = T;

    fn value(&self) -> Option<&T> {
        self.as_ref()
    }

    fn with(value: T) -> Self {
        Some(value)
    }

    fn is_given(&self, _: &Self) -> bool {
        self.is_some()
    }
}

impl<T: SettingValue> Slot for T {
    type Value = T;

    fn value(&self) -> Option<&T> {
        Some(self)
    }

    fn with(value: T) -> Self {
        value
    }

    fn is_given(&self, default: &Self) -> bool {
        self != default
    }
}

/// What is declared of a setting with values `T` beside name, type and help.
pub struct SettingSpec<T> {
    /// What a help calls the value; of a pair both names, with a space between.
    pub value: &'static str,
    /// The default as a help says it.
    pub default: DefaultText,
    /// The tasks that it is for.
    pub tasks: &'static [Task],
    /// What a method lacks that does not name it among its options; empty if every method takes it.
    pub lacking: &'static str,
    /// Whether it says how to take steps, and so nothing where none are taken.
    pub steps: bool,
    /// Why a value cannot be, if it cannot.
    pub check: fn(&T) -> Result<(), Message>,
    /// Reads the value of a file that a command line names; words are values themselves if `None`.
    pub read: Option<fn(&OsStr) -> Result<T>>,
}

impl<T: SettingValue> SettingSpec<T> {
    /// A setting for every method and task, of any value.
    pub const PLAIN: Self = Self {
        value: "",
        default: DefaultText::Unsaid,
        tasks: Task::ALL,
        lacking: "",
        steps: false,
        check: |_| Ok(()),
        read: None,
    };

    /// The value of `name` that a word of a command line says.
    ///
    /// # Errors
    /// It says none, or the file that it names cannot be read.
    pub fn value_of(&self, name: &str, text: &OsStr) -> Result<T> {
        match self.read {
            Some(read) => read(text),
            None => T::parse_os(text).map_err(|message| Error::setting(name.to_owned(), message)),
        }
    }
}

/// A setting as a command line, a check and a list of settings see it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name in files; flags have `-` for `_`.
    pub name: &'static str,
    /// Its help, by lines; an empty one ends the short form.
    pub help: &'static [&'static str],
    /// Under which heading it stands.
    pub heading: Heading,
    /// How its value is typed.
    pub kind: ValueKind,
    /// See [`SettingSpec::value`].
    pub value: &'static str,
    /// See [`SettingSpec::default`].
    pub default: DefaultText,
    /// See [`SettingSpec::tasks`].
    pub tasks: &'static [Task],
    /// See [`SettingSpec::lacking`].
    pub lacking: &'static str,
    /// See [`SettingSpec::steps`].
    pub steps: bool,
    /// Whether a word can be its value, as far as can be told without opening a file.
    pub look: fn(&OsStr) -> Result<(), Message>,
}

impl Setting {
    /// The setting that `spec` declares.
    pub const fn new<T: SettingValue>(
        name: &'static str,
        help: &'static [&'static str],
        heading: Heading,
        spec: &SettingSpec<T>,
    ) -> Self {
        Self {
            name,
            help,
            heading,
            kind: T::KIND,
            value: spec.value,
            default: spec.default,
            tasks: spec.tasks,
            lacking: spec.lacking,
            steps: spec.steps,
            look: if spec.read.is_some() { |_| Ok(()) } else { |text| T::parse_os(text).map(drop) },
        }
    }

    /// The default as a help says it.
    pub fn default_text(&self) -> Option<String> {
        match self.default {
            DefaultText::Unsaid => None,
            DefaultText::Words(words) => Some(words.to_owned()),
            DefaultText::Made(make) => Some(make()),
        }
    }
}

/// A group of settings, as `settings!` makes one.
pub trait Settings: Default {
    /// Every setting, in the order of files.
    fn all() -> Vec<Setting>;

    /// Sets what `name` names to what a word of a command line says; false if it is none of these.
    ///
    /// # Errors
    /// The word says no value of it.
    fn set(&mut self, name: &str, text: &OsStr) -> Result<bool>;

    /// Whether something was said of `name`.
    fn is_given(&self, name: &str) -> bool;

    /// Leaves open again what `name` names.
    fn clear(&mut self, name: &str);

    /// Checks every value by itself.
    ///
    /// # Errors
    /// The first that cannot be.
    fn check_values(&self) -> Result<()>;

    /// Reads the value of `name`; gives `deserializer` back if it is none of these.
    ///
    /// # Errors
    /// What comes is no value of it.
    fn read<'de, D: Deserializer<'de>>(&mut self, name: &str, deserializer: D) -> Result<Option<D>, D::Error>;

    /// Writes every value that is not open, in order.
    ///
    /// # Errors
    /// Those of `fields`.
    fn write<S: SerializeStruct>(&self, fields: &mut S) -> Result<(), S::Error>;
}

/// At least 1.
pub fn at_least_one(value: &usize) -> Result<(), Message> {
    if *value == 0 { Err("must be at least 1".into()) } else { Ok(()) }
}

/// A finite number above 0.
pub fn positive(value: &f64) -> Result<(), Message> {
    if value.is_finite() && *value > 0. { Ok(()) } else { Err(format!("{value} is not a number above 0").into()) }
}

/// From 0 to below 1.
pub fn share(value: &f32) -> Result<(), Message> {
    if (0. ..1.).contains(value) { Ok(()) } else { Err(format!("{value} is not a share from 0 to below 1").into()) }
}

/// Declares a group of settings: a struct, its default and its [`Settings`].
///
/// Sections of settings stand under headings; groups, if any, after `..`, where the files have their settings. A setting is
/// `name: type = default => { … }`: the documentation is its help, the braces hold what differs from [`SettingSpec::PLAIN`].
#[macro_export]
macro_rules! settings {
    (
        $(#[$meta:meta])*
        $vis:vis struct $type:ident {
            $($heading:ident { $(
                $(#[doc = $doc:literal])*
                $field:ident: $ty:ty $(= $default:expr)? => { $($spec:tt)* }
            )* })*
            $(.. { $( $(#[$group_meta:meta])* $group:ident: $group_ty:ty, )* }
            $($later_heading:ident { $(
                $(#[doc = $later_doc:literal])*
                $later:ident: $later_ty:ty $(= $later_default:expr)? => { $($later_spec:tt)* }
            )* })*)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $type {
            $($( $(#[doc = $doc])* pub $field: $ty, )*)*
            $( $( $(#[$group_meta])* pub $group: $group_ty, )*
            $($( $(#[doc = $later_doc])* pub $later: $later_ty, )*)* )?
        }

        impl Default for $type {
            fn default() -> Self {
                Self {
                    $($( $field: $crate::methods::settings::settings!(@default $($default)?), )*)*
                    $( $( $group: Default::default(), )*
                    $($( $later: $crate::methods::settings::settings!(@default $($later_default)?), )*)* )?
                }
            }
        }

        #[allow(dead_code, unused_imports, unused_variables, unreachable_code, reason = "a group may have no settings of its own")]
        const _: () = {
            use $crate::methods::settings::{Heading, Setting, Settings, Slot, SettingSpec};

            /// The declarations, named as the fields.
            struct Specs;

            #[allow(non_upper_case_globals, reason = "named as the fields")]
            impl Specs {
                $($(
                    const $field: SettingSpec<<$ty as Slot>::Value> = SettingSpec { $($spec)* ..SettingSpec::PLAIN };
                )*)*
                $($($(
                    const $later: SettingSpec<<$later_ty as Slot>::Value> = SettingSpec { $($later_spec)* ..SettingSpec::PLAIN };
                )*)*)?
            }

            /// The settings before the groups.
            const FIRST: &[Setting] = &[$($(
                Setting::new(stringify!($field), &[$($doc),*], Heading::$heading, &Specs::$field),
            )*)*];
            /// The settings after them.
            const LATER: &[Setting] = &[$($($(
                Setting::new(stringify!($later), &[$($later_doc),*], Heading::$later_heading, &Specs::$later),
            )*)*)?];

            impl Settings for $type {
                fn all() -> Vec<Setting> {
                    let mut all = FIRST.to_vec();
                    $( $( all.extend(<$group_ty as Settings>::all()); )* )?
                    all.extend_from_slice(LATER);
                    all
                }

                fn set(&mut self, name: &str, text: &std::ffi::OsStr) -> vpt_base::Result<bool> {
                    match name {
                        $($( stringify!($field) => self.$field = Slot::with(Specs::$field.value_of(name, text)?), )*)*
                        $($($(
                            stringify!($later) => self.$later = Slot::with(Specs::$later.value_of(name, text)?),
                        )*)*)?
                        _ => return Ok(false $( $( || self.$group.set(name, text)? )* )?),
                    }
                    Ok(true)
                }

                fn is_given(&self, name: &str) -> bool {
                    let default = Self::default();
                    match name {
                        $($( stringify!($field) => self.$field.is_given(&default.$field), )*)*
                        $($($( stringify!($later) => self.$later.is_given(&default.$later), )*)*)?
                        _ => false $( $( || self.$group.is_given(name) )* )?,
                    }
                }

                fn clear(&mut self, name: &str) {
                    match name {
                        $($( stringify!($field) => self.$field = Self::default().$field, )*)*
                        $($($( stringify!($later) => self.$later = Self::default().$later, )*)*)?
                        _ => { $( $( self.$group.clear(name); )* )? }
                    }
                }

                fn check_values(&self) -> vpt_base::Result<()> {
                    $($(
                        if let Some(value) = self.$field.value() {
                            (Specs::$field.check)(value).map_err(|m| vpt_base::Error::setting(stringify!($field), m))?;
                        }
                    )*)*
                    $( $( self.$group.check_values()?; )*
                    $($(
                        if let Some(value) = self.$later.value() {
                            (Specs::$later.check)(value).map_err(|m| vpt_base::Error::setting(stringify!($later), m))?;
                        }
                    )*)* )?
                    Ok(())
                }

                fn read<'de, D: serde::Deserializer<'de>>(&mut self, name: &str, de: D) -> Result<Option<D>, D::Error> {
                    match name {
                        $($( stringify!($field) => self.$field = serde::Deserialize::deserialize(de)?, )*)*
                        $($($( stringify!($later) => self.$later = serde::Deserialize::deserialize(de)?, )*)*)?
                        _ => {
                            $( $( let Some(de) = self.$group.read(name, de)? else { return Ok(None) }; )* )?
                            return Ok(Some(de));
                        }
                    }
                    Ok(None)
                }

                fn write<S: serde::ser::SerializeStruct>(&self, fields: &mut S) -> Result<(), S::Error> {
                    $($(
                        if let Some(value) = self.$field.value() {
                            fields.serialize_field(stringify!($field), value)?;
                        }
                    )*)*
                    $( $( self.$group.write(fields)?; )*
                    $($(
                        if let Some(value) = self.$later.value() {
                            fields.serialize_field(stringify!($later), value)?;
                        }
                    )*)* )?
                    Ok(())
                }
            }
        };
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
}
pub use settings;
