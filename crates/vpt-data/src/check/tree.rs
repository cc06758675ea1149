//! Folders as they are on disk: links, names, files of other kinds. The same files are images here as when a data set is
//! opened.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::finding::{Finding, FindingKind, Findings, Severity};
use crate::formats::image_folder::MAX_DEPTH;
use crate::formats::text_file::first_bytes;
use crate::open::is_passed_by;
use vpt_base::{Error, Result};
use vpt_image::decode::{format_of, has_image_extension};

/// Ends of names of pictures, films and archives that are not read and were hardly meant to be passed over.
const OTHER_MEDIA: [&str; 38] = [
    "avif",
    "jp2",
    "j2k",
    "jxl",
    "svg",
    "psd",
    "eps",
    "pdf",
    "ico",
    "tga",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "hdr",
    "exr",
    "dds",
    "raw",
    "cr2",
    "cr3",
    "nef",
    "arw",
    "dng",
    "orf",
    "rw2",
    "npy",
    "npz",
    "mp4",
    "mov",
    "avi",
    "mkv",
    "webm",
    "zip",
    "tar",
    "gz",
    "7z",
    "part",
    "crdownload",
];

/// Those of photos that phones take.
const PHONE_PHOTOS: [&str; 2] = ["avif", "jxl"];

/// Ends of names of notes and annotations, which may lie anywhere.
const NOTES: [&str; 23] = [
    "txt", "md", "rst", "json", "jsonl", "csv", "tsv", "xml", "yaml", "yml", "toml", "html", "htm", "log", "ini",
    "cfg", "py", "sh", "ipynb", "db", "url", "tmp", "bak",
];

/// An entry of a folder.
pub(crate) struct FolderItem {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) is_folder: bool,
}

/// The entries of `folder` that are not hidden, by name. What is neither file nor folder is told and left out, except
/// images behind broken links, which a run would try to read.
pub(crate) fn items(folder: &Path, out: &mut Findings) -> Vec<FolderItem> {
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(error) => {
            out.error(FindingKind::NoAccess, folder, None, error.to_string());
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for entry in read {
        match entry {
            Ok(entry) => found.push(entry.path()),
            Err(error) => out.error(FindingKind::NoAccess, folder, None, error.to_string()),
        }
    }
    found.sort();
    let mut items = Vec::new();
    for path in found {
        let raw = path.file_name().unwrap_or_default();
        let name = raw.to_string_lossy().into_owned();
        if is_passed_by(&name) {
            continue;
        }
        check_name(raw, &name, &path, out);
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => items.push(FolderItem { name, path, is_folder: true }),
            Ok(meta) if meta.is_file() => items.push(FolderItem { name, path, is_folder: false }),
            Ok(_) => {
                let severity = if has_image_extension(&path) { Severity::Error } else { Severity::Warning };
                out.add(FindingKind::SpecialFile, severity, &path, None, "neither a file nor a folder");
            }
            Err(error) => unreachable_item(&path, &error, out),
        }
    }
    items
}

fn check_name(raw: &OsStr, name: &str, path: &Path, out: &mut Findings) {
    if raw.to_str().is_none() {
        out.warning(FindingKind::NonUtf8Name, path, None, "the name is not UTF-8; rename it");
    } else if name.chars().any(char::is_control) && name != "Icon\r" {
        out.warning(FindingKind::OddName, path, None, "the name holds control characters");
    } else if name.trim() != name && name != "Icon\r" {
        out.warning(FindingKind::OddName, path, None, format!("'{name}' begins or ends with a space"));
    }
}

fn unreachable_item(path: &Path, error: &std::io::Error, out: &mut Findings) {
    let severity = if has_image_extension(path) { Severity::Error } else { Severity::Warning };
    let target = fs::read_link(path);
    let (kind, message) = match (&target, error.kind()) {
        (Ok(target), ErrorKind::NotFound) => {
            (FindingKind::BrokenLink, format!("a link to {}, which is not there", target.display()))
        }
        (_, ErrorKind::PermissionDenied) => (FindingKind::NoAccess, error.to_string()),
        // The system gives up on links that lead to each other.
        (Ok(target), _) => (FindingKind::LinkLoop, format!("a link to {}: {error}", target.display())),
        _ => (FindingKind::NoAccess, error.to_string()),
    };
    out.add(kind, severity, path, None, message);
}

/// The images in `folder`, without those in folders in it, by name: the same files as those of a data set. Beside them what is passed
/// by and may be meant for an image.
///
/// # Errors
/// The folder cannot be read.
pub fn images_in(folder: &Path) -> Result<(Vec<PathBuf>, Vec<Finding>)> {
    let all = fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut out = Findings::default();
    let mut hidden: Vec<PathBuf> = all.filter_map(|entry| Some(entry.ok()?.path())).collect();
    hidden.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        is_passed_by(&name) && has_image_extension(path) && path.is_file()
    });
    hidden.sort();
    for path in hidden {
        out.warning(FindingKind::UnsupportedFile, path, None, "hidden; passed over");
    }
    let mut images = Vec::new();
    for FolderItem { name, path, is_folder } in items(folder, &mut out) {
        if is_folder {
            continue;
        }
        if has_image_extension(&path) {
            images.push(path);
        } else {
            other_file(&name, &path, &mut out);
        }
    }
    Ok((images, out.0))
}

/// The images under `folder`, by name.
pub(crate) fn images(folder: &Path, out: &mut Findings) -> Vec<PathBuf> {
    let mut images = Vec::new();
    if let Ok(real) = fs::canonicalize(folder) {
        walk(folder, &real, 0, &mut HashSet::from([real.clone()]), &mut images, out);
    }
    images.sort();
    images
}

fn walk(
    folder: &Path,
    real: &Path,
    depth: usize,
    seen: &mut HashSet<PathBuf>,
    images: &mut Vec<PathBuf>,
    out: &mut Findings,
) {
    for FolderItem { name, path, is_folder } in items(folder, out) {
        if !is_folder {
            if has_image_extension(&path) {
                images.push(path);
            } else {
                other_file(&name, &path, out);
            }
            continue;
        }
        let below = match fs::canonicalize(&path) {
            Ok(below) => below,
            Err(error) => {
                out.error(FindingKind::NoAccess, &path, None, error.to_string());
                continue;
            }
        };
        let is_loop = real.starts_with(&below);
        if is_loop {
            let message = format!("a link back to {}", below.display());
            out.warning(FindingKind::LinkLoop, &path, None, message);
        }
        if !seen.insert(below.clone()) {
            if !is_loop {
                let message = format!("a second way to {}; not followed again", below.display());
                out.warning(FindingKind::LinkedTwice, &path, None, message);
            }
        } else if depth + 1 >= MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} folders deep; what is in it is passed over");
            out.warning(FindingKind::TooDeep, &path, None, message);
        } else {
            walk(&path, &below, depth + 1, seen, images, out);
        }
    }
}

/// A file among images whose name does not end like an image's.
fn other_file(name: &str, path: &Path, out: &mut Findings) {
    let lower = name.to_ascii_lowercase();
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let is_note = NOTES.contains(&extension.as_str())
        || ["readme", "license", "licence", "notice", "copying", "authors"]
            .iter()
            .any(|start| lower.starts_with(start))
        || lower.ends_with('~')
        || lower.starts_with("~$")
        || name == "Icon\r";
    if is_note {
        return;
    }
    if OTHER_MEDIA.contains(&extension.as_str()) {
        let mend = if PHONE_PHOTOS.contains(&extension.as_str()) { "; convert them to JPEG or PNG" } else { "" };
        let message = format!(".{extension} files are not read; passed over{mend}");
        out.warning(FindingKind::UnsupportedFile, path, None, message);
        return;
    }
    if let Ok(start) = first_bytes(path, 64)
        && let Some((format, _)) = format_of(&start)
    {
        let message = format!("a {format} image whose name does not end like one; passed over");
        out.warning(FindingKind::ImageNotSeen, path, None, message);
    } else {
        out.warning(FindingKind::UnsupportedFile, path, None, "not an image; passed over");
    }
}
