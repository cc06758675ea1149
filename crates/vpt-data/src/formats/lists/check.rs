//! Lists of images and labels, entry by entry: what a run would stop at, all of it, and what it would not notice.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ListFiles, ListLine, Syntax, entries_of};
use crate::Split;
use crate::check::{FindingKind, Findings, ListedImage, text};
use crate::formats::table::{ImageRow, ListedRows, MAX_BYTES};
use crate::formats::zhou::image_folder;
use vpt_base::files::read_limited;

/// Images that are looked for to find the folder they are in.
const PROBES: usize = 32;

/// The images that `lists` hold.
pub(super) fn check(lists: &ListFiles, out: &mut Findings) -> Vec<ListedImage> {
    let read: Vec<(Option<Split>, &PathBuf, Vec<ImageRow>)> =
        lists.files.iter().map(|(split, file)| (*split, file, rows(file, lists.syntax, out))).collect();
    let folder = lists.files[0].1.parent().unwrap_or(Path::new(""));
    let all = read.iter().flat_map(|(_, _, rows)| rows);
    let images = all.take(PROBES).find_map(|row| image_folder(folder, &row.path).ok().flatten());
    let mut listed = ListedRows::of_images_in(images.unwrap_or_else(|| folder.to_path_buf()));
    for (split, file, rows) in read {
        let source: Arc<Path> = file.as_path().into();
        for row in rows {
            listed.add(split, &source, &row, out);
        }
    }
    listed.listed
}

fn rows(file: &Path, syntax: Syntax, out: &mut Findings) -> Vec<ImageRow> {
    let bytes = match read_limited(file, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => {
            out.refused(FindingKind::NoAccess, file, &error);
            return Vec::new();
        }
    };
    text::check(file, &bytes, syntax == Syntax::Text, out);
    let entries = match entries_of(&String::from_utf8_lossy(&bytes), syntax) {
        Ok(entries) => entries,
        Err(error) => {
            out.error(FindingKind::MalformedFile, file, error.line() as u64, error.to_string());
            return Vec::new();
        }
    };
    let mut rows = Vec::new();
    for entry in entries {
        match entry {
            ListLine::Row(row) => rows.push(row),
            ListLine::Blank { line } => out.warning(FindingKind::BlankRow, file, line, "an empty line"),
            ListLine::Unusable { line, kind, message } => out.error(kind, file, line, message),
        }
    }
    rows
}
