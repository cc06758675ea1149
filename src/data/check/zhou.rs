//! `split_zhou_*.json`: every entry with its line, numbers of classes against their names.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::de::IgnoredAny;

use super::finding::{FindingKind, Findings};
use super::json;
use super::listed::Listed;
use super::text;
use crate::data::Split;
use crate::data::boxes::normal;
use crate::data::formats::table::check::leads_out;
use crate::data::formats::zhou::{Item, MAX_BYTES, image_folder};
use crate::data::open::relative_id;
use crate::files::read_limited;

/// Images that are looked for to find the folder they are in.
const PROBES: usize = 32;

/// The images that `file` lists.
pub(super) fn check(file: &Path, out: &mut Findings) -> Vec<Listed> {
    let bytes = match read_limited(file, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => {
            out.refused(FindingKind::NoAccess, file, &error);
            return Vec::new();
        }
    };
    text::check(file, &bytes, false, out);
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(&bytes) {
        out.error(FindingKind::MalformedFile, file, error.line() as u64, error.to_string());
        return Vec::new();
    }
    let mut items: Vec<(Split, u64, Item)> = Vec::new();
    for entry in json::entries(&bytes) {
        let keys: [&[u8]; 3] = [b"train", b"val", b"test"];
        let Some(split) = Split::ALL.into_iter().zip(keys).find(|(_, key)| *key == entry.key) else { continue };
        if let Ok(item) = serde_json::from_slice::<Item>(entry.text) {
            items.push((split.0, entry.line, item));
        } else {
            let message = "not a list of path, label and class name";
            out.error(FindingKind::MalformedFile, file, entry.line, message);
        }
    }
    // Train says what the classes are, wherever it stands in the file.
    items.sort_by_key(|(split, ..)| *split);
    let folder = file.parent().unwrap_or(Path::new(""));
    let probes = items.iter().take(PROBES).find_map(|(_, _, (path, ..))| image_folder(folder, path).ok().flatten());
    let images = probes.unwrap_or_else(|| folder.to_path_buf());
    let (mut names, mut numbers): (HashMap<u32, String>, HashMap<String, u32>) = (HashMap::new(), HashMap::new());
    let mut seen: HashMap<String, u64> = HashMap::new();
    let source: Arc<Path> = file.into();
    let mut listed = Vec::new();
    for (split, line, (path, number, name)) in items {
        let known_name = names.get(&number).filter(|known| **known != name);
        let known_number = numbers.get(&name).filter(|known| **known != number);
        if let Some(known) = known_name {
            let message = format!("{path}: label {number} is '{name}' here and '{known}' before");
            out.error(FindingKind::LabelNameMismatch, file, line, message);
        } else if let Some(known) = known_number {
            let message = format!("{path}: class '{name}' has the label {number} here and {known} before");
            out.error(FindingKind::LabelNameMismatch, file, line, message);
        }
        names.entry(number).or_insert_with(|| name.clone());
        numbers.entry(name.clone()).or_insert(number);
        if leads_out(&path) {
            let message = format!("{path} leads out of the data set's folder");
            out.warning(FindingKind::OutsideFolder, file, line, message);
        }
        let file_of_it = images.join(&path);
        let id = relative_id(folder, &normal(&file_of_it));
        if let Some(first) = seen.get(&id) {
            let message = format!("{path} is listed already, in line {first}");
            out.error(FindingKind::ListedTwice, file, line, message);
            continue;
        }
        seen.insert(id, line);
        let (path, label, place) = (file_of_it.into(), name.as_str().into(), (source.clone(), Some(line)));
        listed.push((number, Listed { path, number: None, split: Some(split), label, place }));
    }
    let mut first = std::collections::BTreeMap::new();
    for (number, image) in listed.iter().filter(|(_, image)| image.split == Some(Split::Train)) {
        first.entry(i64::from(*number)).or_insert_with(|| image.place.clone());
    }
    super::classes::gaps(&first, out);
    listed.into_iter().map(|(_, image)| image).collect()
}
