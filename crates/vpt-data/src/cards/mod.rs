//! Cards of public data sets: classes, parts, metric, licence, how to lay a set out, and the texts that the field names its classes by.
//!
//! A card is a file in `cards` (`datasets/cards` in the whole project), compiled in; it is called as its file is.

mod recognize;

pub use recognize::{CardClue, CardMatch, CardTexts, NO_CARD};

use std::fmt;

use serde::{Deserialize, Serialize};

use vpt_base::{Error, Result, suggest};

/// What is known of a public data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// What `vpt data info` knows it by.
    #[serde(skip_deserializing)]
    pub name: String,
    /// Its name in writing.
    pub title: String,
    /// What is learned from it.
    pub task: CardTask,
    /// Benchmarks that it belongs to.
    #[serde(default)]
    pub part_of: Vec<String>,
    /// What folders that hold it are called, beside [`name`](Self::name).
    #[serde(default)]
    pub folders: Vec<String>,
    /// How many classes there are; `None` for a collection of sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Images in all parts.
    pub images: u64,
    /// What is reported.
    pub metric: String,
    /// On what terms it is given.
    pub licence: String,
    /// Where it comes from.
    pub home: String,
    /// Where the facts on the card come from.
    pub source: String,
    /// How to lay it out, so that it is read. Settings stand in braces, as `{shots}`: see [`Card::written`].
    pub layout: String,
    /// What else there is to know, with settings in braces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Texts with `{}` for the class name, as in CLIP's table of zero-shot results.
    #[serde(default)]
    pub templates: Vec<String>,
    /// A name in words for each class, in class order; none where the field has no list, or none that could be checked.
    #[serde(default)]
    pub names: Vec<String>,
    /// What the set's own folders or lists call the classes, in class order, where that is neither a name nor a number.
    #[serde(default)]
    pub ids: Vec<String>,
    /// The sets of a collection.
    #[serde(default)]
    pub sets: Vec<String>,
    /// The parts as the field uses them.
    #[serde(default)]
    pub splits: Vec<CardSplit>,
    /// Texts of few-shot tables, where these have others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot: Option<FewShotTexts>,
}

/// What is learned from a public data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CardTask {
    /// One class an image.
    Classify,
    /// Any number of classes an image.
    Multilabel,
    /// Boxes.
    Detect,
    /// A class for each pixel.
    Segment,
}

impl fmt::Display for CardTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classify => "classify",
            Self::Multilabel => "multilabel",
            Self::Detect => "detect",
            Self::Segment => "segment",
        })
    }
}

/// A part of a public data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardSplit {
    /// What it is called.
    pub name: String,
    /// Images in it.
    pub images: u64,
    /// What there is to know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Texts of few-shot tables (CoOp's and those that followed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShotTexts {
    /// A name for each class, where they are others than the card's.
    #[serde(default)]
    pub names: Vec<String>,
    /// Texts with `{}` for the class name.
    pub templates: Vec<String>,
}

/// Names and contents of files in `cards`.
macro_rules! cards {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../cards/", $name, ".toml")))),*]
    };
}

/// All cards, in the order in which they are listed and looked through.
const CARDS: &[(&str, &str)] = cards![
    "imagenet",
    "caltech101",
    "oxford-pets",
    "stanford-cars",
    "oxford-flowers",
    "food101",
    "fgvc-aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "cifar10",
    "cifar100",
    "mnist",
    "fashion-mnist",
    "kmnist",
    "qmnist",
    "emnist-letters",
    "emnist-digits",
    "emnist-balanced",
    "fgvc-cub",
    "fgvc-nabirds",
    "fgvc-flowers",
    "fgvc-dogs",
    "fgvc-cars",
    "vtab-caltech101",
    "vtab-cifar100",
    "vtab-dtd",
    "vtab-flowers",
    "vtab-pets",
    "vtab-svhn",
    "vtab-sun397",
    "vtab-camelyon",
    "vtab-eurosat",
    "vtab-resisc45",
    "vtab-retinopathy",
    "vtab-clevr-count",
    "vtab-clevr-distance",
    "vtab-dmlab",
    "vtab-kitti",
    "vtab-dsprites-location",
    "vtab-dsprites-orientation",
    "vtab-smallnorb-azimuth",
    "vtab-smallnorb-elevation",
    "coco",
    "lvis",
    "voc2007",
    "voc2012",
    "rf100-vl",
    "ade20k",
    "pathmnist",
    "chestmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
];

impl Card {
    /// All cards, in the order in which they are listed.
    ///
    /// # Errors
    /// A card cannot be read, which a test rules out.
    pub fn all() -> Result<Vec<Self>> {
        CARDS.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }

    /// The names of all cards.
    pub fn all_names() -> impl Iterator<Item = &'static str> {
        CARDS.iter().map(|(name, _)| *name)
    }

    /// The card called `name`, whatever its spaces, dashes and capitals are.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self> {
        if let Some((name, text)) = CARDS.iter().find(|(known, _)| plain(known) == plain(name)) {
            return Self::parse(name, text);
        }
        let hint = suggest::hint(name, Self::all_names());
        Err(Error::invalid(name.to_owned(), format!("no card has this name; `vpt data list` lists them{hint}")))
    }

    /// The card with the settings that its texts name written by `field`.
    #[must_use]
    pub fn written(self, field: impl Fn(&str) -> String) -> Self {
        let written = |text: String| with_settings(&text, &field);
        Self { layout: written(self.layout), note: self.note.map(written), ..self }
    }

    /// Whether a card is called so.
    pub fn exists(name: &str) -> bool {
        Self::all_names().any(|known| plain(known) == plain(name))
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let card: Self = toml::from_str(text).map_err(|error| Error::invalid(name.to_owned(), error.to_string()))?;
        let trimmed = |text: String| text.trim().to_owned();
        Ok(Self {
            name: name.to_owned(),
            source: trimmed(card.source),
            layout: trimmed(card.layout),
            note: card.note.map(trimmed),
            ..card
        })
    }
}

/// `text` with what stands in braces and can be a setting written by `field`.
fn with_settings(text: &str, field: impl Fn(&str) -> String) -> String {
    let is_setting = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let (mut written, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('{') {
        written.push_str(before);
        rest = match after.split_once('}') {
            Some((name, behind)) if is_setting(name) => {
                written.push_str(&field(name));
                behind
            }
            _ => {
                written.push('{');
                after
            }
        };
    }
    written + rest
}

/// Letters and digits of a name, in lower case: spellings that differ in nothing else are one.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_is_a_card_and_every_card_is_whole() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cards");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let files: BTreeSet<String> =
            files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        let cards = Card::all().unwrap();
        assert_eq!(cards.iter().map(|card| card.name.clone()).collect::<BTreeSet<_>>(), files);
        assert_eq!(cards.len(), files.len(), "a name is there twice");
        for card in &cards {
            let name = &card.name;
            if !card.splits.is_empty() {
                assert_eq!(card.splits.iter().map(|split| split.images).sum::<u64>(), card.images, "{name}");
            }
            let few_shot = card.few_shot.clone().unwrap_or(FewShotTexts { names: Vec::new(), templates: Vec::new() });
            for list in [&card.names, &card.ids, &few_shot.names] {
                assert!(list.is_empty() || Some(list.len()) == card.classes, "{name}: {} names", list.len());
                assert!(list.iter().all(|text| text.trim() == text && !text.is_empty()), "{name}");
                let different: BTreeSet<&String> = list.iter().collect();
                // CLIP calls two pairs of classes alike.
                let twice = if name == "imagenet" { 2 } else { 0 };
                assert!(different.len() + twice >= list.len(), "{name}: names are there twice");
            }
            for template in card.templates.iter().chain(&few_shot.templates) {
                assert_eq!(template.matches("{}").count(), 1, "{name}: {template}");
            }
            let texts = [&card.title, &card.metric, &card.licence, &card.home, &card.source, &card.layout];
            assert!(texts.iter().all(|text| !text.trim().is_empty()), "{name}");
            assert!(!card.names.is_empty() || card.note.is_some(), "{name}: it does not say why there are no names");
            assert!(card.classes.is_some() || !card.sets.is_empty(), "{name}");
        }
    }

    #[test]
    fn sets_of_benchmarks_are_all_there() {
        let cards = Card::all().unwrap();
        let count = |benchmark: &str| cards.iter().filter(|card| card.part_of.iter().any(|p| p == benchmark)).count();
        assert_eq!(["CoOp", "VTAB-1k", "FGVC", "MedMNIST"].map(count), [11, 19, 5, 12]);
        assert_eq!(["VTAB natural", "VTAB specialized", "VTAB structured"].map(count), [7, 4, 8]);
        assert_eq!(Card::named("rf100-vl").unwrap().sets.len(), 100);
        for name in ["coco", "voc2007", "lvis", "ade20k", "mnist", "fashion-mnist"] {
            assert!(Card::named(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_name_is_found_in_other_spellings_and_a_slip_is_told() {
        assert_eq!(Card::named("Oxford_Pets").unwrap().name, "oxford-pets");
        assert!(Card::exists("VOC-2007") && !Card::exists("photos"));
        let message = Card::named("oxford-pest").unwrap_err().to_string();
        assert!(message.ends_with("lists them; did you mean oxford-pets?"), "{message}");
    }

    #[test]
    fn settings_are_written_as_asked_and_other_braces_stay() {
        let text = "awk '{print $1}' x{}; vpt train {data} . {open_vocabulary}, {";
        let written = with_settings(text, |name| format!("<{name}>"));
        assert_eq!(written, "awk '{print $1}' x{}; vpt train <data> . <open_vocabulary>, {");
        let card = Card::named("dtd").unwrap().written(str::to_uppercase);
        assert!(card.layout.ends_with("vpt train DATA dtd SHOTS 16"), "{}", card.layout);
    }

    #[test]
    fn a_field_that_is_not_known_is_refused() {
        let (name, text) = CARDS[0];
        assert!(Card::parse(name, &format!("colour = 1\n{text}")).unwrap_err().to_string().contains("colour"));
        assert!(Card::parse(name, &format!("name = \"x\"\n{text}")).is_err());
    }
}
