//! Classes across parts: which are missing where, and which are hardly two.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::finding::{FindingKind, Findings, Severity};
use super::listed::{ListedImage, PartPlaces};
use crate::Split;

/// Classes that a message names.
const NAMED: usize = 5;

/// A class that a part is known to lack.
pub(crate) type Absent = (Option<Split>, String);

/// Where something is said.
type Mention = (Arc<Path>, Option<u64>);

/// A class in a part: how many images it has, and where it first occurs.
type ClassCount<'a> = (usize, &'a Mention);

/// Compares the classes of parts. What is in `known_absent` was told already.
pub(crate) fn check(listed: &[ListedImage], places: &PartPlaces, known_absent: &HashSet<Absent>, out: &mut Findings) {
    let mut parts: BTreeMap<Option<Split>, BTreeMap<&str, ClassCount<'_>>> = BTreeMap::new();
    for image in listed {
        let part = parts.entry(image.split).or_default();
        part.entry(&image.label).or_insert((0, &image.place)).0 += 1;
    }
    let is_given = parts.keys().any(Option::is_some);
    let train = parts.get(&is_given.then_some(Split::Train));
    if let Some(train) = train {
        let absent = |name: &str| known_absent.contains(&(is_given.then_some(Split::Train), name.to_owned()));
        if let (1, Some(name)) = (train.len(), train.keys().next()) {
            // A second class whose folder is empty has been told, and would be there when it is mended.
            if !known_absent.iter().any(|(split, _)| split.is_none_or(|split| split == Split::Train)) {
                let message = format!("only one class ('{name}'); there is nothing to tell apart");
                out.error(FindingKind::SingleClass, &places.whole, None, message);
            }
        }
        few_images(train, places, out);
        for split in [Split::Val, Split::Test] {
            let Some(part) = parts.get(&Some(split)) else { continue };
            let known: HashSet<String> = train.keys().filter_map(|name| plain(name)).collect();
            let only_here = part.iter().filter(|(name, _)| !train.contains_key(*name) && !absent(name));
            for (name, (_, place)) in only_here.filter(|(name, _)| plain(name).is_none_or(|p| !known.contains(&p))) {
                let message = format!("class '{name}' occurs in {split} and not in train");
                out.error(FindingKind::ClassNotInTrain, &place.0, place.1, message);
            }
            let here: HashSet<String> = part.keys().filter_map(|name| plain(name)).collect();
            let is_missing = |name: &&&str| {
                !part.contains_key(**name)
                    && plain(name).is_none_or(|plain| !here.contains(&plain))
                    && !known_absent.contains(&(Some(split), (**name).to_owned()))
            };
            let missing: Vec<&str> = train.keys().filter(is_missing).copied().collect();
            if !missing.is_empty() {
                let message = format!("no image of {} of train is in {split}", named(&missing));
                out.warning(FindingKind::ClassNotInSplit, places.part(split), None, message);
            }
        }
    }
    similar(parts.iter().flat_map(|(split, part)| part.iter().map(|(name, (_, place))| (*split, *name, *place))), out);
}

fn few_images(train: &BTreeMap<&str, ClassCount<'_>>, places: &PartPlaces, out: &mut Findings) {
    let single: Vec<_> = train.iter().filter(|(_, (count, _))| *count == 1).collect();
    if train.len() > 1 && single.len() == train.len() {
        let message = "every class has one image to learn from";
        out.warning(FindingKind::OneImageClass, &places.whole, None, message);
        return;
    }
    for (name, (_, place)) in single {
        let message = format!("class '{name}' has one image to learn from");
        out.warning(FindingKind::OneImageClass, &place.0, place.1, message);
    }
}

/// Names that differ by case, spaces or what stands for spaces alone. `classes` come part by part.
fn similar<'a>(classes: impl Iterator<Item = (Option<Split>, &'a str, &'a Mention)>, out: &mut Findings) {
    let mut first: HashMap<String, (&str, &Mention)> = HashMap::new();
    let mut reported = HashSet::new();
    for (split, name, place) in classes {
        let Some(plain) = plain(name) else { continue };
        let (known, at) = *first.entry(plain).or_insert((name, place));
        if known != name && reported.insert((known, name)) {
            // Within a part they are two classes; across parts the second is unknown.
            let is_refused = split.is_some_and(|split| split != Split::Train);
            let severity = if is_refused { Severity::Error } else { Severity::Warning };
            let line = at.1.map(|line| format!(":{line}")).unwrap_or_default();
            let message = format!("class '{name}' here, '{known}' in {}{line}: one class or two?", at.0.display());
            out.add(FindingKind::SimilarClassNames, severity, &place.0, place.1, message);
        }
    }
}

/// Names in one list, which stands in `source`, that differ by case or spaces alone.
pub(crate) fn similar_names<'a>(names: impl Iterator<Item = &'a str>, source: &Path, out: &mut Findings) {
    let place: Mention = (source.into(), None);
    similar(names.map(|name| (None, name, &place)), out);
}

/// `name` without what people vary by accident; none where case or signs may be all that tells classes apart.
fn plain(name: &str) -> Option<String> {
    let name = name.trim();
    if name.chars().count() < 2 || !name.chars().any(char::is_alphabetic) {
        return None;
    }
    let words = name.split(|c: char| c.is_whitespace() || c == '_' || c == '-').filter(|word| !word.is_empty());
    Some(words.collect::<Vec<_>>().join(" ").to_lowercase())
}

/// Numbers of classes that leave some out, where they otherwise count from 0 or 1.
pub(crate) fn gaps(numbers: &BTreeMap<i64, Mention>, out: &mut Findings) {
    let (Some((&first @ 0..=1, _)), Some((&last, _))) = (numbers.first_key_value(), numbers.last_key_value()) else {
        return;
    };
    // More holes than numbers: years, prices or ids, not a count.
    if (last - first) as usize >= 2 * numbers.len() {
        return;
    }
    let mut before = first - 1;
    for (&number, place) in numbers {
        let missing = match number - before - 1 {
            0 => None,
            1 => Some(format!("there is no class {} before class {number}", before + 1)),
            _ => Some(format!("there are no classes {} to {} before class {number}", before + 1, number - 1)),
        };
        if let Some(message) = missing {
            out.warning(FindingKind::LabelGap, &place.0, place.1, message);
        }
        before = number;
    }
}

/// The classes of train, or of all, as numbers with the place where each first occurs; nothing if some are names.
pub(crate) fn numbers(listed: &[ListedImage]) -> BTreeMap<i64, Mention> {
    let mut out = BTreeMap::new();
    for image in listed.iter().filter(|image| image.split.is_none_or(|split| split == Split::Train)) {
        match image.label.parse() {
            Ok(number) => out.entry(number).or_insert_with(|| image.place.clone()),
            Err(_) => return BTreeMap::new(),
        };
    }
    out
}

fn named(classes: &[&str]) -> String {
    let quoted: Vec<String> = classes.iter().take(NAMED).map(|name| format!("'{name}'")).collect();
    let more = if classes.len() > NAMED { ", …" } else { "" };
    match classes.len() {
        1 => format!("class {}", quoted[0]),
        n => format!("{n} classes ({}{more})", quoted.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_similar_by_case_and_spaces_only() {
        assert_eq!(plain(" T-Shirt "), plain("t shirt"));
        assert_ne!(plain("cat"), plain("cats"));
        // Letters and numbers are classes of their own.
        assert_eq!([plain("a"), plain("A"), plain("-1")], [None, None, None]);
    }

    #[test]
    fn a_gap_is_a_hole_in_a_count() {
        let gaps = |numbers: &[i64]| {
            let place: Mention = (Path::new("t.csv").into(), Some(2));
            let mut out = Findings::default();
            super::gaps(&numbers.iter().map(|&n| (n, place.clone())).collect(), &mut out);
            out.0.into_iter().map(|f| f.message).collect::<Vec<_>>()
        };
        assert_eq!(gaps(&[0, 1, 3]), ["there is no class 2 before class 3"]);
        assert_eq!(gaps(&[1, 2, 3, 4, 5, 9]), ["there are no classes 6 to 8 before class 9"]);
        for good in [&[0, 1, 2][..], &[1, 2, 3], &[1990, 1991, 1995], &[1, 2, 5, 10, 20, 50], &[-1, 0, 2], &[]] {
            assert_eq!(gaps(good), [""; 0], "{good:?}");
        }
        // As far apart as numbers can be.
        assert_eq!(gaps(&[0, i64::MAX]), [""; 0]);
    }
}
