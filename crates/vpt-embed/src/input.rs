//! Which shards are meant: files, folders, lists, patterns, and numbers in braces as `WebDataset` has them, `shards/{00000..09999}.tar`.

use std::path::{Path, PathBuf};

use vpt_base::{Error, Result, files::read_limited};
use vpt_data::ShardSamples;
use vpt_image::decode::has_image_extension;
use vpt_train::infer::inputs;

/// What a command's output is told by, as `WebDataset` does.
const PIPE: &str = "pipe:";
/// Most shards.
const MAX_SHARDS: usize = 10_000_000;
/// Longest list, in bytes.
const MAX_LIST: u64 = 4 << 30;

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInput {
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub source: ShardSource,
}

/// Where a shard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardSource {
    /// In a file: a tar archive, or a table in Parquet's form.
    File(PathBuf),
    /// In what this command of the shell writes.
    Command(String),
    /// In image files of their own.
    Images(Vec<PathBuf>),
}

impl ShardInput {
    /// What must stay the same for the shard to be the same one. Files may lie in another folder on another machine.
    pub(crate) fn identity(&self) -> String {
        match &self.source {
            ShardSource::File(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            ShardSource::Command(command) => command.clone(),
            ShardSource::Images(paths) => {
                let mut hasher = blake3::Hasher::new();
                for path in paths {
                    hasher.update(path.as_os_str().as_encoded_bytes());
                    hasher.update(&[0]);
                }
                hasher.finalize().to_hex().to_string()
            }
        }
    }

    /// Its length in bytes, where that says whether it was changed.
    pub(crate) fn bytes(&self) -> Option<u64> {
        match &self.source {
            ShardSource::File(path) => Some(std::fs::metadata(path).ok()?.len()),
            _ => None,
        }
    }
}

/// Shards that are meant, and what is to be said of them.
#[derive(Debug, Clone, Default)]
pub struct ShardInputs {
    /// In their order.
    pub shards: Vec<ShardInput>,
    /// What was passed over, in sentences.
    pub notes: Vec<String>,
}

/// The shards that `inputs` stand for: archives and tables, folders of them, patterns with `*`, `?` or `[`, `{000..123}` and `{a,b}`, text
/// files with one of these a line, and `pipe:` with a command of the shell, which no list may hold. Image files, folders and lists
/// of them become shards of `images` each.
///
/// # Errors
/// One is not there, is empty, makes no sense, or shards are mixed with images.
pub fn expand_shards(inputs: &[String], images: usize) -> Result<ShardInputs> {
    if images == 0 {
        return Err(Error::setting("shard_size", "0 images a shard"));
    }
    let mut found = FoundInputs::default();
    for input in inputs {
        if let Some(command) = input.strip_prefix(PIPE) {
            for command in braces(command)? {
                let command = command.trim().to_owned();
                if command.is_empty() {
                    return Err(Error::setting("input", format!("{PIPE} without a command")));
                }
                let name = format!("{PIPE}{command}");
                found.shards.push(ShardInput { name, source: ShardSource::Command(command) });
            }
        } else if Path::new(input).exists() {
            found.path(Path::new(input), true)?;
        } else {
            for text in braces(input)? {
                found.text(&text, true)?;
            }
        }
    }
    let FoundInputs { mut shards, images: files, notes } = found;
    match (shards.is_empty(), files.is_empty()) {
        (false, false) => {
            let message = "archives or tables and single images; give one kind at a time";
            return Err(Error::setting("input", message));
        }
        (true, true) => return Err(Error::setting("input", "no shards and no images in it")),
        _ => {}
    }
    for (number, paths) in files.chunks(images).enumerate() {
        let name = format!("images {} to {}", number * images + 1, number * images + paths.len());
        shards.push(ShardInput { name, source: ShardSource::Images(paths.to_vec()) });
    }
    if shards.len() > MAX_SHARDS {
        return Err(too_many());
    }
    Ok(ShardInputs { shards, notes })
}

fn too_many() -> Error {
    Error::setting("input", format!("more than {MAX_SHARDS} shards"))
}

#[derive(Default)]
struct FoundInputs {
    shards: Vec<ShardInput>,
    images: Vec<PathBuf>,
    notes: Vec<String>,
}

impl FoundInputs {
    /// A path or a pattern, without braces.
    fn text(&mut self, text: &str, may_be_list: bool) -> Result<()> {
        let path = Path::new(text);
        if !text.contains(['*', '?', '[']) || path.exists() {
            return self.path(path, may_be_list);
        }
        // Hidden files are named, or not meant.
        let visible = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        let matches =
            glob::glob_with(text, visible).map_err(|error| Error::file(path, format!("not a pattern: {error}")))?;
        let mut files: Vec<PathBuf> =
            matches.filter_map(std::result::Result::ok).filter(|file| file.is_file()).collect();
        files.sort();
        if files.is_empty() {
            return Err(Error::file(path, "no file fits it as a pattern"));
        }
        files.iter().try_for_each(|file| self.path(file, may_be_list))
    }

    fn path(&mut self, path: &Path, may_be_list: bool) -> Result<()> {
        if path.is_dir() {
            return self.folder(path);
        }
        if ShardSamples::is_shard(path) {
            // One that is not there fails by itself, and the others are done.
            let source = ShardSource::File(path.to_path_buf());
            self.shards.push(ShardInput { name: path.display().to_string(), source });
            return Ok(());
        }
        if has_image_extension(path) {
            self.images.push(path.to_path_buf());
            return Ok(());
        }
        std::fs::metadata(path).map_err(Error::typed(path))?;
        if may_be_list { self.list(path) } else { Err(Error::file(path, "neither an archive or a table nor an image")) }
    }

    /// Archives in a folder, or else tables, or else images.
    fn folder(&mut self, folder: &Path) -> Result<()> {
        let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io(folder))?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden && path.is_file() && ShardSamples::is_shard(&path) {
                paths.push(path);
            }
        }
        paths.sort();
        let is_archive = |path: &PathBuf| path.extension().is_some_and(|own| own.eq_ignore_ascii_case("tar"));
        let (archives, tables): (Vec<PathBuf>, Vec<PathBuf>) = paths.into_iter().partition(is_archive);
        if !archives.is_empty() && !tables.is_empty() {
            // img2dataset puts a table of what it knows beside each archive.
            let count = tables.len();
            self.notes.push(format!("{}: {count} tables beside archives are not read", folder.display()));
        }
        let chosen = if archives.is_empty() { tables } else { archives };
        if !chosen.is_empty() {
            return chosen.iter().try_for_each(|path| self.path(path, false));
        }
        let files = inputs::expand(&[folder.to_path_buf()])?;
        self.notes.extend(files.passed_by.iter().map(|file| format!("{}: {}", file.image, file.error)));
        self.images.extend(files.images);
        Ok(())
    }

    /// One a line, relative to the folder of the list.
    fn list(&mut self, list: &Path) -> Result<()> {
        let text = String::from_utf8(read_limited(list, MAX_LIST)?).map_err(|_| {
            Error::file(list, "neither an archive, a table nor an image by its name, and no list in UTF-8")
        })?;
        let folder = list.parent().unwrap_or(Path::new(""));
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let at = |message: String| Error::file(list, format!("line {}: {message}", number + 1));
            if line.starts_with(PIPE) {
                return Err(at(format!("{PIPE} runs a command, which only the command line itself may ask for")));
            }
            for text in braces(line).map_err(|error| at(error.message().to_string()))? {
                let path = folder.join(text);
                let text = path.to_str().unwrap_or_default();
                self.text(text, false).map_err(|error| at(error.to_string()))?;
            }
        }
        Ok(())
    }
}

/// What braces in `text` stand for: `{3..12}`, `{003..012}` with as many digits as the longer end, `{0..10..5}`, `{a,b}`, in each other and
/// after each other; other braces stand for themselves.
fn braces(text: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    add_braces("", text, &mut all)?;
    Ok(all)
}

fn add_braces(before: &str, text: &str, all: &mut Vec<String>) -> Result<()> {
    let push = |all: &mut Vec<String>, text: String| {
        all.push(text);
        if all.len() > MAX_SHARDS { Err(too_many()) } else { Ok(()) }
    };
    for (open, _) in text.match_indices('{') {
        let Some((inner, rest)) = matching(&text[open + 1..]) else { continue };
        let parts = parts_of(inner);
        let choices = if parts.len() == 1 {
            let Some(numbers) = range(inner)? else { continue };
            numbers
        } else {
            parts.into_iter().map(braces).collect::<Result<Vec<_>>>()?.concat()
        };
        for choice in choices {
            add_braces(&format!("{before}{}{choice}", &text[..open]), rest, all)?;
        }
        return Ok(());
    }
    push(all, format!("{before}{text}"))
}

/// What is before the brace that closes, and what is behind it.
fn matching(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some((&text[..at], &text[at + 1..])),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What stands between commas that are in no braces of their own.
fn parts_of(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// The numbers of `first..last` or `first..last..step`; none of other texts.
fn range(text: &str) -> Result<Option<Vec<String>>> {
    let ends: Vec<&str> = text.split("..").collect();
    let ([first, last] | [first, last, _]) = ends[..] else { return Ok(None) };
    let digits = |text: &str| !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !ends.iter().all(|text| digits(text)) {
        return Ok(None);
    }
    let width = if [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0')) {
        first.len().max(last.len())
    } else {
        0
    };
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let step = ends.get(2).map_or(1, |step| number(step)).max(1);
    let (from, to) = (number(first), number(last));
    if from.abs_diff(to) / step >= MAX_SHARDS as u64 {
        return Err(too_many());
    }
    let count = from.abs_diff(to) / step;
    let at = |i: u64| if from <= to { from + i * step } else { from - i * step };
    Ok(Some((0..=count).map(|i| format!("{:0width$}", at(i))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn braces_are_those_of_shells_and_of_webdataset() {
        let is = |text: &str, expected: &[&str]| assert_eq!(braces(text).unwrap(), expected, "{text}");
        is("a/{008..011}.tar", &["a/008.tar", "a/009.tar", "a/010.tar", "a/011.tar"]);
        is("{2..1}{a,b}", &["2a", "2b", "1a", "1b"]);
        is("{0..10..5}", &["0", "5", "10"]);
        is("{x{1..2},y}", &["x1", "x2", "y"]);
        is("{plain}{} {a..b} {", &["{plain}{} {a..b} {"]);
        is("{one}{1..2}", &["{one}1", "{one}2"]);
        is("", &[""]);
        assert!(braces("{0..99999999}").unwrap_err().to_string().contains("more than"));
    }

    fn names(inputs: &[&str], size: usize) -> Result<Vec<String>> {
        let inputs: Vec<String> = inputs.iter().map(|&input| input.to_owned()).collect();
        expand_shards(&inputs, size).map(|found| found.shards.into_iter().map(|shard| shard.name).collect())
    }

    #[test]
    fn shards_are_named_one_by_one_in_folders_in_lists_and_by_patterns() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for name in ["b.tar", "a.tar", "a.parquet", ".hidden.tar", "a_stats.json"] {
            fs::write(path(name), "").unwrap();
        }
        assert_eq!(names(&[&path("")], 9).unwrap(), [path("a.tar"), path("b.tar")]);
        assert_eq!(names(&[&path("*.tar")], 9).unwrap(), [path("a.tar"), path("b.tar")]);
        assert_eq!(names(&[&path("{b,gone}.tar")], 9).unwrap(), [path("b.tar"), path("gone.tar")]);
        fs::write(path("list"), "{a,b}.tar\n\n a.parquet \n").unwrap();
        assert_eq!(names(&[&path("list")], 9).unwrap(), [path("a.tar"), path("b.tar"), path("a.parquet")]);
        fs::write(path("list"), "a.tar\npipe:rm -rf /\n").unwrap();
        let message = names(&[&path("list")], 9).unwrap_err().to_string();
        assert!(message.contains("line 2: pipe: runs a command"), "{message}");
        assert_eq!(names(&["pipe:cat {1..2}.tar"], 9).unwrap(), ["pipe:cat 1.tar", "pipe:cat 2.tar"]);
        assert!(names(&["pipe: "], 9).is_err() && names(&[&path("gone")], 9).is_err());
        assert!(names(&[&path("z*.tar")], 9).unwrap_err().to_string().contains("no file fits"));
    }

    #[test]
    fn images_become_shards_of_a_size() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..5 {
            fs::write(dir.path().join(format!("{i}.png")), "").unwrap();
        }
        let folder = dir.path().to_str().unwrap().to_owned();
        assert_eq!(names(&[&folder], 2).unwrap(), ["images 1 to 2", "images 3 to 4", "images 5 to 5"]);
        let tar = dir.path().join("x.tar").to_str().unwrap().to_owned();
        fs::write(dir.path().join("list.txt"), "0.png\n1.png\n").unwrap();
        let list = dir.path().join("list.txt").to_str().unwrap().to_owned();
        assert_eq!(names(&[&list], 2).unwrap(), ["images 1 to 2"]);
        assert!(names(&[&list, &tar], 2).unwrap_err().to_string().contains("one kind at a time"));
        assert!(names(&[&list], 0).is_err());
    }
}
