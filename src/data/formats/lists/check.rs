//! Lists of images and labels, entry by entry: what a run would stop at, all of it, and what it would not notice.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::IgnoredAny;

use crate::data::Split;
use crate::data::check::finding::{FindingKind, Findings};
use crate::data::check::listed::Listed;
use crate::data::check::text;
use crate::data::formats::lists::{Form, Lists, Pair, pairs, parse, split_line};
use crate::data::formats::table::MAX_BYTES;
use crate::data::formats::table::check::{Row, Tables};
use crate::data::formats::zhou::image_folder;
use crate::files::read_limited;

/// Images that are looked for to find the folder they are in.
const PROBES: usize = 32;

/// An entry with its line.
type Entry = (u64, String, String);

/// The images that `lists` hold.
pub(in crate::data) fn check(lists: &Lists, out: &mut Findings) -> Vec<Listed> {
    let read: Vec<(Option<Split>, &PathBuf, Vec<Entry>)> =
        lists.files.iter().map(|(split, file)| (*split, file, entries(file, lists.form, out))).collect();
    let folder = lists.files[0].1.parent().unwrap_or(Path::new(""));
    let all = read.iter().flat_map(|(_, _, entries)| entries);
    let images = all.take(PROBES).find_map(|(_, path, _)| image_folder(folder, path).ok().flatten());
    let mut tables = Tables::of_images_in(images.unwrap_or_else(|| folder.to_path_buf()));
    for (split, file, entries) in read {
        let source: Arc<Path> = file.as_path().into();
        for (line, path, label) in entries {
            tables.add(split, &source, line, &Row { path, label, split: None, name: None }, out);
        }
    }
    tables.listed
}

fn entries(file: &Path, form: Form, out: &mut Findings) -> Vec<Entry> {
    let bytes = match read_limited(file, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => {
            out.refused(FindingKind::NoAccess, file, &error);
            return Vec::new();
        }
    };
    text::check(file, &bytes, form == Form::Text, out);
    let content = String::from_utf8_lossy(&bytes);
    let content = content.trim_start_matches('\u{feff}');
    match form {
        Form::Json => of_json(file, content, out),
        Form::Text => of_text(file, content, out),
    }
}

fn of_json(file: &Path, text: &str, out: &mut Findings) -> Vec<Entry> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        out.error(FindingKind::MalformedFile, file, error.line() as u64, error.to_string());
        return Vec::new();
    }
    let mut found = Vec::new();
    for Pair { line, key, value } in pairs(text.as_bytes()) {
        match parse(key, value) {
            Ok((path, label)) => found.push((line, path, label)),
            Err(message) => out.error(FindingKind::MissingValue, file, line, message),
        }
    }
    found
}

fn of_text(file: &Path, text: &str, out: &mut Findings) -> Vec<Entry> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            out.warning(FindingKind::BlankRow, file, number, "an empty line");
        } else if let Some((path, label)) = split_line(line) {
            found.push((number, path.to_owned(), label.to_owned()));
        } else {
            out.error(FindingKind::ShortRow, file, number, "no label");
        }
    }
    found
}
