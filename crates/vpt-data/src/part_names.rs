//! Names of parts as people write them: one list for folders, tables, lists and the values of columns in every layout.
//!
//! A name is taken apart into words, at signs, between letters and digits, and at capitals. Numbers (years, counts) and words
//! that say nothing of a part (`set`, `data`, `images`) are left out; if what remains is a word for one part, that is meant:
//! `train2017`, `Training_Set`, `valid`, `devset`, `test-images`. Other words make it the name of something else, except where
//! the same other words stand beside two parts: `seg_train` and `seg_test`.

use super::Split;

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PartWord {
    Train,
    Val,
    Test,
    /// Train and val in one.
    TrainVal,
    /// Test, or val where there is a test beside it.
    Eval,
}

/// Words for parts.
const WORDS: [(&str, PartWord); 26] = [
    ("train", PartWord::Train),
    ("training", PartWord::Train),
    ("trn", PartWord::Train),
    ("val", PartWord::Val),
    ("valid", PartWord::Val),
    ("validation", PartWord::Val),
    ("validate", PartWord::Val),
    ("validating", PartWord::Val),
    ("dev", PartWord::Val),
    ("devel", PartWord::Val),
    ("development", PartWord::Val),
    ("test", PartWord::Test),
    ("tests", PartWord::Test),
    ("testing", PartWord::Test),
    ("tst", PartWord::Test),
    ("holdout", PartWord::Test),
    ("heldout", PartWord::Test),
    ("trainval", PartWord::TrainVal),
    ("traindev", PartWord::TrainVal),
    ("trainvalid", PartWord::TrainVal),
    ("trainvalidation", PartWord::TrainVal),
    ("testdev", PartWord::Test),
    ("eval", PartWord::Eval),
    ("evals", PartWord::Eval),
    ("evaluation", PartWord::Eval),
    ("evaluate", PartWord::Eval),
];

/// Words that say nothing of a part.
const FILLERS: [&str; 33] = [
    "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "picture", "pictures", "pic",
    "pics", "photo", "photos", "split", "splits", "part", "subset", "sub", "folder", "dir", "list", "lists", "file",
    "files", "sample", "samples", "jpg", "png", "final", "full", "new",
];

/// A name that holds a word for a part.
#[derive(Debug, PartialEq, Eq)]
struct PartName {
    part: PartWord,
    /// Words that say something else.
    others: String,
}

impl PartName {
    fn of(name: &str) -> Option<Self> {
        let (mut parts, mut others): (Vec<PartWord>, Vec<String>) = (Vec::new(), Vec::new());
        for word in words(name) {
            match meaning(&word) {
                Some(part) => parts.push(part),
                None if is_filler(&word) => {}
                None => others.push(word),
            }
        }
        let part = match parts[..] {
            [part] => part,
            // `train_val`, `test-dev`.
            [PartWord::Train, PartWord::Val] => PartWord::TrainVal,
            [PartWord::Test, PartWord::Val] => PartWord::Test,
            [first, second] if first == second => first,
            // `held_out` is two words.
            [] if others == ["held", "out"] || others == ["hold", "out"] => {
                others.clear();
                PartWord::Test
            }
            _ => return None,
        };
        Some(Self { part, others: others.join(" ") })
    }
}

/// The part that `word` means, alone or with a filler grown to it: `trainset`, `imgtest`.
fn meaning(word: &str) -> Option<PartWord> {
    let plain = |word: &str| WORDS.iter().find(|(known, _)| *known == word).map(|(_, part)| *part);
    plain(word).or_else(|| {
        FILLERS.iter().filter(|filler| filler.len() > 2).find_map(|filler| {
            let rest = word.strip_suffix(filler).or_else(|| word.strip_prefix(filler))?;
            plain(rest)
        })
    })
}

fn is_filler(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit()) || FILLERS.contains(&word)
}

/// The words of `name` in lower case, numbers among them.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut before = ' ';
    for c in name.chars() {
        let turns = (before.is_lowercase() && c.is_uppercase())
            || (before.is_numeric() != c.is_numeric() && before.is_alphanumeric());
        if !c.is_alphanumeric() || turns {
            words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

impl Split {
    /// The part that people call `name`, whatever stands beside it: `valid`, `Validation` and `dev_set` are val, `test2017`
    /// and `eval` are test, `trainval` is train.
    pub fn from_name(name: &str) -> Option<Self> {
        let PartName { part, others } = PartName::of(name)?;
        others.is_empty().then_some(match part {
            PartWord::Train | PartWord::TrainVal => Self::Train,
            PartWord::Val => Self::Val,
            PartWord::Test | PartWord::Eval => Self::Test,
        })
    }

    /// The parts that `names`, which stand beside each other, mean: none where a name is of something else. Of `trainval`
    /// beside a train and of nothing that is a part by its words alone is `None` said. `eval` is val beside a test.
    pub(crate) fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Option<Self>> {
        let found: Vec<Option<PartName>> = names.into_iter().map(PartName::of).collect();
        let family = family(&found).unwrap_or_default();
        let words: Vec<Option<PartWord>> =
            found.into_iter().map(|name| name.filter(|name| name.others == family).map(|name| name.part)).collect();
        let has = |part| words.contains(&Some(part));
        let (has_train, has_val, has_test) = (has(PartWord::Train), has(PartWord::Val), has(PartWord::Test));
        let part = |word: &Option<PartWord>| match (*word)? {
            PartWord::Train => Some(Self::Train),
            PartWord::Val => Some(Self::Val),
            PartWord::TrainVal => (!has_train).then_some(Self::Train),
            PartWord::Eval if has_test && !has_val => Some(Self::Val),
            PartWord::Test | PartWord::Eval => Some(Self::Test),
        };
        words.iter().map(part).collect()
    }
}

/// Whether `names`, which stand beside each other, say part and class in one: `cats_train`, `cats_test`, `dogs_train`, ….
pub(crate) fn are_parts_of_classes<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
    whole_families(&names.into_iter().map(PartName::of).collect::<Vec<_>>()).len() > 1
}

/// The words that the names of parts have beside them: none, if a name is that of a part alone; else those of the one family
/// of names that has a train and another part.
fn family(found: &[Option<PartName>]) -> Option<String> {
    match &whole_families(found)[..] {
        [family] => Some(family.clone()),
        _ => None,
    }
}

/// The words beside the names of parts that have a train and another part; none where names are those of parts alone.
fn whole_families(found: &[Option<PartName>]) -> Vec<String> {
    let mut families: Vec<&str> = found.iter().flatten().map(|name| name.others.as_str()).collect();
    families.sort_unstable();
    families.dedup();
    if families.first() == Some(&"") {
        return Vec::new();
    }
    let is_whole = |family: &&str| {
        let parts = || found.iter().flatten().filter(|name| name.others == *family).map(|name| name.part);
        let is_train = |part| matches!(part, PartWord::Train | PartWord::TrainVal);
        parts().any(is_train) && parts().any(|part| !is_train(part))
    };
    families.into_iter().filter(is_whole).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_part_may_have_affixes_years_and_capitals() {
        for (part, names) in [
            (
                Split::Train,
                &[
                    "train",
                    "Train",
                    "TRAINING",
                    "trainset",
                    "train_set",
                    "training-set",
                    "train2017",
                    "train 2017",
                    "train_images",
                    "TrainImages",
                    "imgs_train",
                    "train1",
                    "traindata",
                    "trainval",
                    "train_val",
                    "trainval2012",
                    "train-dev",
                    "train800val200",
                ][..],
            ),
            (
                Split::Val,
                &["val", "valid", "Validation", "validation_set", "dev", "devset", "val2017", "valset", "Valid1"],
            ),
            (
                Split::Test,
                &[
                    "test",
                    "tests",
                    "testing",
                    "Test_Set",
                    "testset",
                    "test2017",
                    "eval",
                    "evaluation",
                    "hold-out",
                    "held_out",
                    "test-dev2017",
                    "test images",
                ],
            ),
        ] {
            for name in names {
                assert_eq!(Split::from_name(name), Some(part), "{name}");
            }
        }
        for name in [
            "",
            "cat",
            "trains",
            "trainer",
            "test tube",
            "contest",
            "latest",
            "valley",
            "device",
            "evaluator",
            "testa",
            "2017",
            "images",
            "train_test",
            "aeroplane_train",
            "training shoe",
            "trainee",
            "unlabeled",
        ] {
            assert_eq!(Split::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn names_beside_each_other_tell_what_one_alone_does_not() {
        use Split::{Test, Train, Val};
        for (names, expected) in [
            (&["train", "trainval", "val"][..], &[Some(Train), None, Some(Val)][..]),
            (&["trainval", "test"], &[Some(Train), Some(Test)]),
            (&["train", "eval"], &[Some(Train), Some(Test)]),
            (&["train", "eval", "test"], &[Some(Train), Some(Val), Some(Test)]),
            (&["train", "dev", "eval"], &[Some(Train), Some(Val), Some(Test)]),
            // Other words are those of a family of parts, or of classes.
            (&["seg_pred", "seg_test", "seg_train"], &[None, Some(Test), Some(Train)]),
            (&["lvis_v1_train", "lvis_v1_val"], &[Some(Train), Some(Val)]),
            (&["cats_train", "cats_test", "dogs_train", "dogs_test"], &[None; 4]),
            (&["test tube", "beaker"], &[None; 2]),
            (&["train", "person_train", "person_val"], &[Some(Train), None, None]),
        ] {
            assert_eq!(Split::of_names(names.iter().copied()), expected, "{names:?}");
        }
    }

    #[test]
    fn part_and_class_in_one_name_are_told() {
        assert!(are_parts_of_classes(["cats_train", "cats_test", "dogs_train", "dogs_test"]));
        assert!(!are_parts_of_classes(["cats_train", "cats_test", "owls"]));
        assert!(!are_parts_of_classes(["train", "test", "test tube"]));
    }

    proptest::proptest! {
        #[test]
        fn no_name_makes_a_panic(name in "\\PC{0,20}") {
            let _ = Split::of_names([name.as_str(), "train"]);
        }
    }
}
