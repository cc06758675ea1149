//! Which public data set a data set is, by its folder's name or by its classes, and what its classes are called then.

use std::collections::HashMap;

use super::{Card, FewShotTexts, plain};
use vpt_base::{Error, Result};

/// Classes from which on their names alone tell a data set: fewer may be alike by chance.
const TELLING: usize = 10;

/// What is said where a card is to be recognised.
const AUTO: &str = "auto";
/// What is said where no card is to be used.
pub const NO_CARD: &str = "none";

/// How it was seen that a data set is the one on a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CardClue {
    /// It was said.
    Said,
    /// Its folder is called so, and its classes are those of the card.
    Folder,
    /// Its classes are called as those of the card.
    Classes,
    /// Its classes are ids of `WordNet`, as `n01440764`, and on the card.
    WordNet,
}

/// A card, and which of its classes those of a data set are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardMatch {
    /// The card.
    pub card: Card,
    /// How it was found.
    pub clue: CardClue,
    /// For each class of the data its position on the card.
    pub classes: Vec<usize>,
}

/// What a card says of the classes of a data set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardTexts {
    /// A name for each class.
    pub names: Vec<String>,
    /// Texts with `{}` for the name; none where the field has none of its own.
    pub templates: Vec<String>,
}

impl Card {
    /// The card of the data set called `data` with these classes, if there is one. Cards without names of classes are of no use
    /// here, and left out.
    ///
    /// # Errors
    /// As [`Card::all`].
    pub fn recognize(data: &str, classes: &[String]) -> Result<Option<CardMatch>> {
        let mut by_classes = None;
        for card in Self::all()? {
            let called = std::iter::once(&card.name).chain(&card.folders).any(|folder| plain(folder) == plain(data));
            let whole = card.classes == Some(classes.len());
            let spelled = card.spelled(classes);
            let found = if classes.iter().all(|class| is_wordnet_id(class)) {
                // Of these a part of the classes will do: no other set has them.
                spelled.map(|classes| (CardClue::WordNet, classes))
            } else if called && whole {
                spelled.or_else(|| numbered(classes)).map(|classes| (CardClue::Folder, classes))
            } else if whole && classes.len() >= TELLING && !classes.iter().all(|class| is_number(class)) {
                spelled.map(|classes| (CardClue::Classes, classes))
            } else {
                None
            };
            match found {
                Some((clue, classes)) if called => return Ok(Some(CardMatch { card, clue, classes })),
                Some((clue, classes)) if by_classes.is_none() => by_classes = Some(CardMatch { card, clue, classes }),
                _ => {}
            }
        }
        Ok(by_classes)
    }

    /// The card that `choice` means for the data set called `data`: the one that is recognised if nothing or `auto` is said, none,
    /// or the one that is named.
    ///
    /// # Errors
    /// There is no card of that name, or it does not [fit](Self::fit).
    pub fn choose(choice: Option<&str>, data: &str, classes: &[String]) -> Result<Option<CardMatch>> {
        match choice {
            None | Some(AUTO) => Self::recognize(data, classes),
            Some(NO_CARD) => Ok(None),
            Some(name) => {
                let card = Self::named(name).map_err(|error| Error::setting("dataset_card", error.to_string()))?;
                card.fit(classes).map(Some)
            }
        }
    }

    /// This card for a data set with these classes: they are names or ids on it, or numbers, and then as many as on the card.
    ///
    /// # Errors
    /// The card has no names of classes, or a class is not on it.
    pub fn fit(self, classes: &[String]) -> Result<CardMatch> {
        if self.names.is_empty() {
            let message = format!("the card {} has no names of classes", self.name);
            return Err(Error::setting("dataset_card", message));
        }
        let numbers = || numbered(classes).filter(|_| self.classes == Some(classes.len()));
        if let Some(classes) = self.spelled(classes).or_else(numbers) {
            return Ok(CardMatch { card: self, clue: CardClue::Said, classes });
        }
        let known = self.spellings();
        let other = classes.iter().find(|class| !matches!(known.get(&plain(class)), Some(Some(_))));
        let other = other.map_or_else(String::new, |class| format!(": '{class}' is not on it"));
        let message = format!("the card {} has other classes than the data{other}", self.name);
        Err(Error::setting("dataset_card", message))
    }

    /// Positions of classes by their [`plain`] spellings; `None` for a spelling that two classes have.
    fn spellings(&self) -> HashMap<String, Option<usize>> {
        let mut positions: HashMap<String, Option<usize>> = HashMap::new();
        let few_shot = self.few_shot.iter().flat_map(|texts| texts.names.iter().enumerate());
        for (i, name) in self.ids.iter().enumerate().chain(self.names.iter().enumerate()).chain(few_shot) {
            let position = positions.entry(plain(name)).or_insert(Some(i));
            if *position != Some(i) {
                *position = None;
            }
        }
        positions
    }

    /// Where these classes stand on the card, if they all do, each at a place of its own.
    fn spelled(&self, classes: &[String]) -> Option<Vec<usize>> {
        if self.names.is_empty() {
            return None;
        }
        let known = self.spellings();
        let places: Vec<usize> =
            classes.iter().map(|class| known.get(&plain(class)).copied().flatten()).collect::<Option<_>>()?;
        let mut taken = vec![false; self.names.len()];
        places.iter().all(|&place| !std::mem::replace(&mut taken[place], true)).then_some(places)
    }
}

impl CardMatch {
    /// The texts of zero-shot tables, or those of few-shot tables where the card has such.
    pub fn texts(&self, few_shot: bool) -> CardTexts {
        let Card { names, templates, .. } = &self.card;
        let (names, templates) = match &self.card.few_shot {
            Some(FewShotTexts { names: own, templates }) if few_shot => {
                (if own.is_empty() { names } else { own }, templates)
            }
            _ => (names, templates),
        };
        let names = self.classes.iter().map(|&class| names[class].clone()).collect();
        CardTexts { names, templates: templates.clone() }
    }

    /// The same for the classes `kept` of those that it was found for.
    #[must_use]
    pub fn of_classes(self, all: &[String], kept: &[String]) -> Self {
        let place = |class: &String| all.iter().position(|one| one == class).map(|i| self.classes[i]);
        Self { classes: kept.iter().filter_map(place).collect(), ..self.clone() }
    }

    /// A line for the user: which set `data` was taken for, why, and which `texts` come of it.
    pub fn note(&self, data: &str, texts: &CardTexts) -> String {
        let why = match self.clue {
            CardClue::Said => "as was said",
            CardClue::Folder => "by its name and classes",
            CardClue::Classes => "by its classes",
            CardClue::WordNet => "by the WordNet ids of its classes",
        };
        let templates = match &texts.templates[..] {
            [] => None,
            [one] => Some(format!("the template \"{one}\"")),
            several => Some(format!("{} templates", several.len())),
        };
        let names = (!texts.names.is_empty()).then(|| "class names".to_owned());
        let what = names.into_iter().chain(templates).collect::<Vec<_>>().join(" and ");
        format!("{data} is taken for {}, {why}: {what} of the card {}", self.card.title, self.card.name)
    }
}

/// Whether `class` is an id of `WordNet`: an n and eight digits.
fn is_wordnet_id(class: &str) -> bool {
    class.strip_prefix('n').is_some_and(|digits| digits.len() == 8 && is_number(digits))
}

fn is_number(class: &str) -> bool {
    !class.is_empty() && class.bytes().all(|byte| byte.is_ascii_digit())
}

/// Places of classes that are called by the numbers from 0 on, or from 1 on.
fn numbered(classes: &[String]) -> Option<Vec<usize>> {
    let numbers: Vec<usize> =
        classes.iter().map(|class| class.parse().ok().filter(|_| is_number(class))).collect::<Option<_>>()?;
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    let first = *sorted.first().filter(|&&first| first <= 1)?;
    let all = sorted.iter().copied().eq(first..first + numbers.len());
    all.then(|| numbers.iter().map(|number| number - first).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn found(data: &str, classes: &[&str]) -> Option<(String, CardClue, CardTexts)> {
        let found = Card::recognize(data, &strings(classes)).unwrap()?;
        Some((found.card.name.clone(), found.clue, found.texts(false)))
    }

    const EUROSAT: [&str; 10] = [
        "AnnualCrop",
        "Forest",
        "HerbaceousVegetation",
        "Highway",
        "Industrial",
        "Pasture",
        "PermanentCrop",
        "Residential",
        "River",
        "SeaLake",
    ];

    #[test]
    fn ids_of_wordnet_become_words_in_any_choice_and_order() {
        let (card, clue, texts) = found("photos", &["n01443537", "n01440764"]).unwrap();
        assert_eq!((card.as_str(), clue), ("imagenet", CardClue::WordNet));
        assert_eq!(texts.names, ["goldfish", "tench"]);
        assert_eq!(texts.templates.len(), 80);
        assert_eq!(found("photos", &["n01443537", "cat"]), None);
        assert_eq!(found("photos", &["n01443537", "n00000001"]), None, "it is in no card");
    }

    #[test]
    fn classes_of_a_set_tell_it_where_they_are_many() {
        let (card, clue, texts) = found("photos", &EUROSAT).unwrap();
        assert_eq!((card.as_str(), clue), ("eurosat", CardClue::Classes));
        assert_eq!((texts.names[2].as_str(), texts.templates.len()), ("brushland or shrubland", 3));
        assert_eq!(found("photos", &EUROSAT[..9]), None, "a part of them is another set");
        assert_eq!(found("photos", &["normal", "pneumonia"]), None, "two names say little");
        assert_eq!(found("pneumoniamnist", &["normal", "pneumonia"]).unwrap().1, CardClue::Folder);
    }

    #[test]
    fn the_name_of_the_folder_chooses_among_sets_and_numbers_are_told_by_it_alone() {
        assert_eq!(found("vtab-eurosat", &EUROSAT).unwrap().0, "vtab-eurosat");
        let digits = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        assert_eq!(found("photos", &digits), None);
        assert_eq!(found("Fashion_MNIST", &digits).unwrap().2.names[9], "Ankle boot");
        let (card, _, texts) = found("mnist", &digits).unwrap();
        assert_eq!((card.as_str(), &texts.names[..]), ("mnist", &strings(&digits)[..]));
        assert_eq!(found("fashion-mnist", &digits[..9]), None);
        let letters: Vec<String> = (1..=26).map(|i| i.to_string()).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(found("emnist-letters", &letters).unwrap().2.names[25], "z");
        assert_eq!(found("vtab-dsprites-location", &digits), None, "a card without names");
    }

    #[test]
    fn few_shot_tables_have_texts_of_their_own() {
        let found = Card::recognize("eurosat", &strings(&EUROSAT)).unwrap().unwrap();
        let texts = found.texts(true);
        let note = found.note("eurosat", &texts);
        let CardTexts { names, templates } = texts;
        assert_eq!(
            (names[9].as_str(), &templates[..]),
            ("Sea or Lake", &strings(&["a centered satellite photo of {}."])[..])
        );
        let end = "class names and the template \"a centered satellite photo of {}.\" of the card eurosat";
        assert_eq!(note, format!("eurosat is taken for EuroSAT, by its name and classes: {end}"));
        let aircraft = Card::named("fgvc-aircraft").unwrap();
        let classes = aircraft.names.clone();
        assert_eq!(aircraft.fit(&classes).unwrap().texts(true).names, classes);
    }

    #[test]
    fn a_card_that_was_said_must_have_the_classes() {
        let fit = |card: &str, classes: &[&str]| Card::named(card).unwrap().fit(&strings(classes));
        assert_eq!(fit("eurosat", &["River", "Forest"]).unwrap().classes, [8, 1]);
        let message = |card: &str, classes: &[&str]| fit(card, classes).unwrap_err().to_string();
        let other = "dataset_card: the card eurosat has other classes than the data: 'Sea' is not on it";
        assert_eq!(message("eurosat", &["River", "Sea"]), other);
        let classes = strings(&["River", "Forest"]);
        let chosen = |choice: Option<&str>| Card::choose(choice, "photos", &classes);
        assert_eq!(chosen(Some("EuroSAT")).unwrap().unwrap().of_classes(&classes, &classes[1..]).classes, [1]);
        assert_eq!(
            (chosen(None).unwrap(), chosen(Some("auto")).unwrap(), chosen(Some("none")).unwrap()),
            (None, None, None)
        );
        let wrong = chosen(Some("eurosta")).unwrap_err().to_string();
        assert!(wrong.starts_with("dataset_card: ") && wrong.ends_with("did you mean eurosat?"), "{wrong}");
        assert_eq!(message("fgvc-nabirds", &["1"]), "dataset_card: the card fgvc-nabirds has no names of classes");
        assert_eq!(
            message("mnist", &["1", "01"]),
            "dataset_card: the card mnist has other classes than the data: '01' is not on it"
        );
    }
}
