//! Methods: what is learned beside the head, and what follows from it.
//!
//! A method is a file: a [`MethodSpec`] with its name, its options, its defaults and the part that it learns. The table below is
//! the only list of them; command line, help, configuration, few-shot grid and the README's table follow it. To add a method, add its
//! file and a line here; what it learns that no other method does is a part of its own (see `prompt`).

mod after_probe;
mod bias;
mod clap;
mod cocoop;
mod coop;
mod dense;
mod e2vpt;
mod features;
mod full;
pub mod help;
mod ivlp;
mod linear;
mod lora;
mod maple;
mod ncm;
mod norm;
mod pixels;
mod promptsrc;
pub mod settings;
mod spec;
mod task;
#[cfg(test)]
mod tests;
mod texts;
mod tip_adapter;
mod tokens;
mod vp_frame;
mod vp_full;
mod vp_pad;
mod vp_patch;
mod vpt_deep;
mod vpt_shallow;
mod weights;
mod zero_shot;
mod zs_lp;

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::settings::{SettingValue, ValueKind, settings};
pub use self::{
    after_probe::HeadInit,
    e2vpt::KeyValueOptions,
    features::ViewOptions,
    linear::{ProbeOptions, Solver},
    lora::LoraOptions,
    spec::{
        Defaults, Epochs, HeadStart, Learns, MethodFamily, MethodHead, MethodPart, MethodRequest, MethodSpec,
        RunContext, Texts, Views, Warmup,
    },
    task::Task,
    texts::{RANDOM, TextOptions},
    tip_adapter::CacheOptions,
    tokens::{PromptInit, TokenOptions},
    vp_frame::FrameOptions,
    vp_pad::PadOptions,
    vp_patch::PatchOptions,
};
use crate::loss::class_weights::ClassWeights;
use crate::{
    head::{HeadKind, LabelMap, segment::DecodeHead},
    optim::OptimizerKind,
    prompt::{pixels::PatchPlace, weights::LoraTowers},
};
use vpt_backbone::{Device, Engine, Precision};
use vpt_base::{Error, Message, Result, suggest};
use vpt_data::{AugmentPolicy, boxes::Fit};

/// Makes the table: a constant for each method, their order, their names.
macro_rules! table {
    ($($name:ident = $module:ident :: $spec:ident,)+) => {
        /// Places in the table.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "named as the constants")]
        enum Place {
            $($name),+
        }

        /// Every method, in the order of tables.
        const TABLE: &[&MethodSpec] = &[$(&$module::$spec),+];

        impl Method {
            $(
                #[doc = concat!("The method of `methods/", stringify!($module), ".rs`.")]
                pub const $name: Self = Self(1 << Place::$name as u8);
            )+
            /// Every method, in the order it is documented.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            /// The names of [`Self::ALL`].
            pub const NAMES: &'static [&'static str] = &[$($module::$spec.name),+];
        }
    };
}
table! {
    LINEAR = linear::METHOD,
    ZERO_SHOT = zero_shot::METHOD,
    NCM = ncm::METHOD,
    ZS_LP = zs_lp::METHOD,
    CLAP = clap::METHOD,
    TIP_ADAPTER = tip_adapter::METHOD,
    TIP_ADAPTER_F = tip_adapter::FINE_TUNED,
    VPT_SHALLOW = vpt_shallow::METHOD,
    VPT_DEEP = vpt_deep::METHOD,
    E2VPT = e2vpt::METHOD,
    VP_PAD = vp_pad::METHOD,
    VP_PATCH = vp_patch::METHOD,
    VP_FULL = vp_full::METHOD,
    VP_FRAME = vp_frame::METHOD,
    COOP = coop::METHOD,
    COCOOP = cocoop::METHOD,
    IVLP = ivlp::METHOD,
    MAPLE = maple::METHOD,
    PROMPTSRC = promptsrc::METHOD,
    BIAS = bias::METHOD,
    NORM = norm::METHOD,
    LORA = lora::METHOD,
    FULL = full::METHOD,
}

settings! {
    /// The options of all methods. What is open is for the method to fill in.
    pub struct MethodOptions {
        .. {
            /// Of `linear`.
            probe: ProbeOptions,
            /// Of methods on frozen features.
            views: ViewOptions,
            /// Of `tip-adapter` and `tip-adapter-f`.
            cache: CacheOptions,
            /// Of methods with prompt tokens, or with vectors in texts.
            tokens: TokenOptions,
            /// Of `e2vpt`.
            keys_values: KeyValueOptions,
            /// Of methods that learn texts.
            texts: TextOptions,
            /// Of `vp-pad`.
            pad: PadOptions,
            /// Of `vp-patch`.
            patch: PatchOptions,
            /// Of `vp-frame`.
            frame: FrameOptions,
            /// Of `lora`.
            lora: LoraOptions,
        }
    }
}

/// What is learned beside the head: a method of the table, or several that learn at once. Their order does not count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(u64);

impl Method {
    /// The method called `name`.
    fn named(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|method| method.leading().name == name).ok_or_else(|| {
            let hint = suggest::hint(name, Self::NAMES.iter().copied());
            let message = format!("`{}` is not one of {}{hint}", name.escape_debug(), Self::NAMES.join(", "));
            Error::setting("method", message)
        })
    }

    /// Both at once: prompt tokens, prompt pixels and tuned weights, one of each kind.
    ///
    /// # Errors
    /// They do not learn at once.
    pub fn and(self, other: Self) -> Result<Self> {
        for (one, two) in self.specs().flat_map(|one| other.specs().map(move |two| (one, two))) {
            let refuse = |message: String| Err(Error::setting("method", message));
            if let Some(alone) = [one, two].into_iter().find(|spec| !spec.combines) {
                let able: Vec<_> =
                    Self::ALL.iter().map(|method| method.leading()).filter(|spec| spec.combines).collect();
                let able: Vec<_> = able.iter().map(|spec| spec.name).collect();
                return refuse(format!("{} learns alone; {} learn together", alone.name, help::listed(&able, "and")));
            }
            if one.learns.kind() == two.learns.kind() {
                let (one, two, kind) = (one.name, two.name, one.learns.kind());
                return refuse(format!("{one} and {two} both learn {kind}; take one of them"));
            }
        }
        Ok(Self(self.0 | other.0))
    }

    /// What its methods say of themselves, in the order of the table.
    pub fn specs(self) -> impl Iterator<Item = &'static MethodSpec> {
        TABLE.iter().enumerate().filter(move |(place, _)| self.0 & 1 << place != 0).map(|(_, spec)| *spec)
    }

    /// What the first of its methods says, which the training of all follows.
    pub fn leading(self) -> &'static MethodSpec {
        TABLE[self.0.trailing_zeros() as usize]
    }

    /// The name as settings and files spell it: of several methods all names, with commas between.
    pub fn name(self) -> Cow<'static, str> {
        if self.0.is_power_of_two() {
            return self.leading().name.into();
        }
        self.specs().map(|spec| spec.name).collect::<Vec<_>>().join(",").into()
    }

    /// Whether something of this kind is learned.
    pub fn learns(self, what: Learns) -> bool {
        self.specs().any(|spec| spec.learns == what)
    }

    /// Whether prompt tokens are learned.
    pub fn has_tokens(self) -> bool {
        self.learns(Learns::Tokens)
    }

    /// Whether prompt pixels are learned.
    pub fn has_pixels(self) -> bool {
        self.learns(Learns::Pixels)
    }

    /// Whether weights of the backbone are tuned.
    pub fn tunes_weights(self) -> bool {
        self.learns(Learns::Changes) || self.tunes_in_place()
    }

    /// Whether weights of the backbone itself are learned, which are frozen no longer.
    pub fn tunes_in_place(self) -> bool {
        self.learns(Learns::Weights)
    }

    /// Whether texts of the classes are learned.
    pub fn has_texts(self) -> bool {
        self.learns(Learns::Texts)
    }

    /// Templates that learned texts are tied to, if they are.
    pub fn tied_to(self) -> Option<&'static [&'static str]> {
        self.specs().find_map(|spec| match spec.texts {
            Texts::Learned { tied_to } if !tied_to.is_empty() => Some(tied_to),
            _ => None,
        })
    }

    /// Whether nothing but a head on the images' features is learned, so that each is computed once.
    pub fn on_features(self) -> bool {
        self.specs().all(|spec| spec.learns == Learns::Nothing)
    }

    /// Whether features are image embeddings (of CLIP the projected class token) instead of the class token after the last
    /// norm, which is what is wanted where they are compared with texts or with one another.
    pub fn on_embeddings(self) -> bool {
        self.head_start().is_some()
    }

    /// What a head on image embeddings begins as.
    pub fn head_start(self) -> Option<HeadStart> {
        self.specs().find_map(|spec| match spec.head {
            MethodHead::Embeddings(start) => Some(start),
            _ => None,
        })
    }

    /// Whether the texts that name the classes have a part in the head.
    pub fn reads_texts(self) -> bool {
        self.specs().any(|spec| spec.texts == Texts::Head)
    }

    /// Whether they tell the classes, instead of a head, where there is a text tower and no head is asked for.
    pub fn prefers_texts(self) -> bool {
        self.specs().any(|spec| spec.texts == Texts::HeadIfAny)
    }

    /// Whether they have a part in the head where the backbone has a text tower.
    pub fn may_read_texts(self) -> bool {
        self.reads_texts() || self.prefers_texts()
    }

    /// Whether the head holds a cache of the training images.
    pub fn has_cache(self) -> bool {
        matches!(self.head_start(), Some(HeadStart::Cache { .. }))
    }

    /// The augmented views of a training image, if it is seen as such.
    pub fn views(self) -> Option<Views> {
        self.specs().find_map(|spec| spec.views)
    }

    /// The head that belongs to the method, where it leaves no choice.
    pub fn own_head(self) -> Option<HeadKind> {
        self.specs().any(|spec| spec.head != MethodHead::Any).then_some(HeadKind::Cosine)
    }

    /// Whether there is nothing to learn in steps.
    pub fn is_solved(self, options: &MethodOptions) -> bool {
        self.specs().all(|spec| (spec.solved)(options))
    }

    /// Whether it has the setting `name`, which not all methods have.
    pub fn has_option(self, name: &str) -> bool {
        self.specs().any(|spec| spec.options.iter().any(|group| group.contains(&name)))
    }
}

impl Default for Method {
    fn default() -> Self {
        Self::VPT_DEEP
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    /// Reads a name, or several with commas between.
    fn from_str(s: &str) -> Result<Self> {
        s.split(',').try_fold(Self(0), |several, name| several.and(Self::named(name)?))
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

settings::choices!(
    Task,
    HeadInit,
    PromptInit,
    Solver,
    HeadKind,
    DecodeHead,
    LabelMap,
    PatchPlace,
    LoraTowers,
    OptimizerKind,
    ClassWeights,
    AugmentPolicy,
    Fit,
    Precision,
    Engine
);

impl SettingValue for Device {
    const KIND: ValueKind = ValueKind::Parsed;

    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(settings::bare)
    }
}

impl SettingValue for Method {
    const KIND: ValueKind = ValueKind::Choices(Self::NAMES);

    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(settings::bare)
    }
}
