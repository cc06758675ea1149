//! `WebDataset`: tar archives in which the files of a sample follow each other under one name, `0001.jpg` and `0001.cls`.
//!
//! The name of a sample is the path up to the first dot of the file's name. Its class is in a file `.cls`, in a field of a
//! file `.json`, or in a file `.txt`, unless texts are captions. Numbers are names by the lines of a `classnames.txt` in the
//! folder. Pictures are read where they lie in the archive.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::samples::{SampleFault, ShardSample, ShardSamples};
use super::shards::{ClassShards, HIDDEN, ShardContent, ShardPicture, Shards};
use super::text_file::read_text;
use super::{Candidate, Format, Layout, Recognition};
use crate::check::FindingKind;
use crate::container::{Container, ImageSource, Stored};
use vpt_base::contain::contain;
use vpt_base::{Error, Result};
use vpt_image::decode::{EXTENSIONS, MAX_FILE_BYTES, has_image_extension};

impl Layout {
    /// Archives of pictures and their classes.
    pub const WEBDATASET: Self = Self::new("webdataset", "WebDataset");
}

/// Archives of pictures and their classes.
pub(super) const FORMAT: Format = Format { has_boxes: false, recognize };

/// Longest class or metadata of a sample, in bytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Longest list of names of classes.
const MAX_LIST_BYTES: u64 = 1 << 24;

/// Fields of a JSON file that say the class.
const FIELDS: [&str; 8] = ["label", "cls", "class", "class_name", "category", "target", "class_id", "label_name"];

/// The file of names beside archives.
const NAMES_FILE: &str = "classnames.txt";

fn recognize(candidate: &Candidate<'_>) -> Result<Recognition> {
    let Some(shards) = Shards::find(candidate.path, "tar", holds_samples)? else { return Ok(Recognition::No) };
    let names_file = shards.root.join(NAMES_FILE);
    let names = names_file.is_file().then_some(names_file);
    let read = move |path: &Path| read(path, names.as_deref());
    Ok(Recognition::of_classes(Layout::WEBDATASET, Some(ClassShards { shards, read: Box::new(read) })))
}

/// Whether a picture is among the first files in the archive `path`, or the archive cannot be read so far: what is wrong is said
/// on opening.
fn holds_samples(path: &Path) -> bool {
    let mut samples = SamplesSeen::default();
    let found = visit(path, &mut |member, _| {
        samples.count += 1;
        samples.has_picture |= has_image_extension(Path::new(&member.name));
        Ok(samples.count < 64 && !samples.has_picture)
    });
    samples.has_picture || found.is_err()
}

#[derive(Default)]
struct SamplesSeen {
    count: usize,
    has_picture: bool,
}

/// A file in an archive.
struct TarMember {
    name: String,
    offset: u64,
    size: u64,
}

/// Calls `tell` with the plain files of the archive `path` until it says no, and with the archive to read them from.
fn visit(path: &Path, tell: &mut dyn FnMut(TarMember, &mut File) -> Result<bool>) -> Result<()> {
    let file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let mut content = File::open(path).map_err(Error::io(path))?;
    let mut archive = tar::Archive::new(file);
    let walk = || -> Result<()> {
        let broken = |error: std::io::Error| Error::data(path, format!("not a tar archive, or a damaged one: {error}"));
        for entry in archive.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(Error::data(path, format!("truncated: {name} is cut off")));
            }
            if !tell(TarMember { name, offset, size }, &mut content)? {
                break;
            }
        }
        Ok(())
    };
    contain(walk).unwrap_or_else(|panic| Err(Error::data(path, format!("the tar reader failed: {panic}"))))
}

/// The content of a small member.
fn text(path: &Path, member: &TarMember, archive: &mut File) -> Result<String> {
    if member.size > MAX_TEXT_BYTES {
        return Err(Error::data(path, format!("{}: {} bytes, where a class is expected", member.name, member.size)));
    }
    let mut bytes = Vec::new();
    let read =
        archive.seek(SeekFrom::Start(member.offset)).and_then(|_| archive.take(member.size).read_to_end(&mut bytes));
    read.map_err(Error::io(path))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::data(path, format!("{}: not UTF-8 text", member.name)))?;
    Ok(text.trim_start_matches('\u{feff}').trim().to_owned())
}

/// What an archive says of a sample.
#[derive(Default)]
struct TarSample {
    picture: Option<usize>,
    cls: Option<String>,
    json: Option<String>,
    txt: Option<String>,
}

/// What an archive holds.
struct TarIndex {
    /// Name, place and length of each picture.
    pictures: Vec<(String, u64, u64)>,
    samples: BTreeMap<String, TarSample>,
    /// Endings of files that are not read.
    others: BTreeSet<String>,
}

/// A file of a sample that cannot be used.
enum TarFault {
    /// The sample has a picture already.
    Picture(Error),
    /// Its class or metadata cannot be read, or are there twice.
    Text(Error),
}

impl TarFault {
    fn error(self) -> Error {
        let (Self::Picture(error) | Self::Text(error)) = self;
        error
    }
}

/// Looks into the archive `path`; `fault` is told of what cannot be used, with the sample's name, and says whether that ends it.
fn index(path: &Path, fault: &mut dyn FnMut(&str, TarFault) -> Result<()>) -> Result<TarIndex> {
    let mut pictures: Vec<(String, u64, u64)> = Vec::new();
    let mut samples: BTreeMap<String, TarSample> = BTreeMap::new();
    let mut others = BTreeSet::new();
    visit(path, &mut |member, archive| {
        let (folder, file) = member.name.rsplit_once('/').unwrap_or(("", &member.name));
        let Some((stem, extension)) = file.split_once('.').filter(|(stem, _)| !stem.is_empty()) else {
            return Ok(true);
        };
        let key = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
        let extension = extension.to_ascii_lowercase();
        let last = extension.rsplit('.').next().unwrap_or_default();
        let twice = |what: &str| Error::data(path, format!("{}: the sample {key} has {what} already", member.name));
        if EXTENSIONS.contains(&last) {
            let sample = samples.entry(key.clone()).or_default();
            if sample.picture.is_some() {
                return fault(&key, TarFault::Picture(twice("a picture"))).map(|()| true);
            }
            sample.picture = Some(pictures.len());
            pictures.push((member.name, member.offset, member.size));
            return Ok(true);
        }
        let sample = samples.entry(key.clone()).or_default();
        let place = match extension.as_str() {
            "cls" => &mut sample.cls,
            "json" => &mut sample.json,
            "txt" => &mut sample.txt,
            _ => {
                others.insert(extension);
                return Ok(true);
            }
        };
        if place.is_some() {
            return fault(&key, TarFault::Text(twice("such a file"))).map(|()| true);
        }
        match text(path, &member, archive) {
            Ok(text) => *place = Some(text),
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => fault(&key, TarFault::Text(error))?,
        }
        Ok(true)
    })?;
    Ok(TarIndex { pictures, samples, others })
}

/// The pictures of the archive `path` in their order, with captions and metadata, whatever their classes.
pub(super) fn pictures(path: &Path) -> Result<ShardSamples> {
    let mut out = ShardSamples::default();
    let (faults, notes) = (&mut out.faults, &mut out.notes);
    let TarIndex { pictures, samples, .. } = index(path, &mut |key, fault| {
        match fault {
            TarFault::Picture(error) => faults.push(SampleFault::new(key, error)),
            TarFault::Text(error) => notes.push(SampleFault::new(key, error)),
        }
        Ok(())
    })?;
    let container: Arc<dyn Container> = Arc::new(TarPictures { path: path.into(), members: pictures });
    let mut found = Vec::with_capacity(samples.len());
    for (key, TarSample { picture, json, txt, .. }) in samples {
        let Some(index) = picture else {
            out.faults.push(SampleFault { key, error: "the sample has no picture".to_owned() });
            continue;
        };
        let facts = match json.as_deref().map(serde_json::from_str::<Value>) {
            None => Map::new(),
            Some(Ok(Value::Object(facts))) => facts,
            Some(_) => {
                out.notes
                    .push(SampleFault { key: key.clone(), error: "its .json file holds no JSON object".to_owned() });
                Map::new()
            }
        };
        let image = ImageSource::Member { container: container.clone(), index };
        found.push((index, ShardSample { key, image, caption: txt, facts }));
    }
    found.sort_by_key(|(index, _)| *index);
    out.samples = found.into_iter().map(|(_, sample)| sample).collect();
    Ok(out)
}

/// The samples in the archive `path`.
fn read(path: &Path, names_file: Option<&Path>) -> Result<ShardContent> {
    let names: Option<Vec<String>> = names_file
        .map(|file| {
            let text = read_text(file, MAX_LIST_BYTES)?;
            Ok::<_, Error>(text.lines().map(|line| line.trim().to_owned()).collect())
        })
        .transpose()?;
    let TarIndex { pictures: places, samples, others } = index(path, &mut |_, fault| Err(fault.error()))?;
    let mut notes: Vec<(FindingKind, String)> = others
        .into_iter()
        .map(|extension| {
            (FindingKind::UnsupportedFile, format!(".{extension} files of samples are not read; passed over"))
        })
        .collect();
    let mut order: Vec<(usize, String, TarSample)> = Vec::with_capacity(places.len());
    for (key, sample) in samples {
        match sample.picture {
            Some(index) => order.push((index, key, sample)),
            None => notes.push((FindingKind::MissingFile, format!("the sample {key} has no picture; passed over"))),
        }
    }
    order.sort_by_key(|(index, ..)| *index);
    let source = ClassSource::of(path, &order.iter().map(|(_, _, sample)| sample))?;
    let container: Arc<dyn Container> = Arc::new(TarPictures { path: path.into(), members: places });
    let mut known: HashMap<String, Option<Arc<str>>> = HashMap::new();
    let mut pictures = Vec::with_capacity(order.len());
    for (index, key, sample) in order {
        let text = source.class(&sample).map_err(|message| Error::data(path, format!("{key}: {message}")))?;
        let label = if let Some(label) = known.get(&text) {
            label.clone()
        } else {
            let name = match (&names, text.parse::<usize>()) {
                _ if text == HIDDEN => None,
                (Some(names), Ok(number)) => {
                    let found = names.get(number).filter(|name| !name.is_empty());
                    let message = || format!("{key}: class {number}, and {NAMES_FILE} has no such line");
                    Some(found.ok_or_else(|| Error::data(path, message()))?.clone())
                }
                _ => Some(text.clone()),
            };
            let name = name.map(Arc::from);
            known.insert(text, name.clone());
            name
        };
        pictures.push(ShardPicture { image: ImageSource::Member { container: container.clone(), index }, label });
    }
    Ok(ShardContent { pictures, notes })
}

/// Where the classes of an archive are.
#[derive(Clone, Copy)]
enum ClassSource {
    Cls,
    Json(&'static str),
    Txt,
}

impl ClassSource {
    /// By what most samples have.
    fn of<'a>(path: &Path, samples: &(impl Iterator<Item = &'a TarSample> + Clone)) -> Result<Self> {
        let count = samples.clone().count();
        if samples.clone().any(|sample| sample.cls.is_some()) {
            return Ok(Self::Cls);
        }
        let first = samples.clone().find_map(|sample| sample.json.as_deref());
        if let Some(fields) = first.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
            if !fields.is_object() {
                return Ok(Self::Json(""));
            }
            if let Some(field) = FIELDS.into_iter().find(|field| is_class(fields.get(field))) {
                return Ok(Self::Json(field));
            }
        }
        if samples.clone().any(|sample| sample.txt.is_some()) {
            let texts: HashSet<&str> = samples.clone().filter_map(|sample| sample.txt.as_deref()).collect();
            // Sentences that hardly ever repeat are no classes.
            if count >= 4 && texts.len() * 2 > count {
                let message = format!(
                    "{} different texts in the .txt files of {count} samples: captions, not classes; a .cls file a sample says the class",
                    texts.len()
                );
                return Err(Error::data(path, message));
            }
            return Ok(Self::Txt);
        }
        let fields = FIELDS[..3].join(", ");
        Err(Error::data(
            path,
            format!("no classes: neither .cls nor .txt files, nor .json files with a field {fields} or the like"),
        ))
    }

    /// The class of `sample`.
    fn class(self, sample: &TarSample) -> Result<String, String> {
        let (text, kind) = match self {
            Self::Cls => (&sample.cls, "cls"),
            Self::Json(_) => (&sample.json, "json"),
            Self::Txt => (&sample.txt, "txt"),
        };
        let text = text.as_ref().ok_or_else(|| format!("no .{kind} file, which other samples have"))?;
        let class = match self {
            Self::Json(field) => {
                let all: Value = serde_json::from_str(text).map_err(|error| format!("its .json file: {error}"))?;
                let value = if field.is_empty() { Some(&all) } else { all.get(field) };
                match value {
                    Some(Value::String(name)) => name.trim().to_owned(),
                    Some(Value::Number(number)) => number.to_string(),
                    _ => return Err(format!("no {field} in its .json file that is a name or a number")),
                }
            }
            _ => text.clone(),
        };
        if class.is_empty() { Err(format!("nothing in its .{kind} file")) } else { Ok(class) }
    }
}

fn is_class(value: Option<&Value>) -> bool {
    matches!(value, Some(Value::String(_) | Value::Number(_)))
}

/// The pictures of an archive.
struct TarPictures {
    path: PathBuf,
    /// Name, place and length of each.
    members: Vec<(String, u64, u64)>,
}

impl fmt::Debug for TarPictures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TarPictures").field("path", &self.path).field("members", &self.members.len()).finish()
    }
}

impl Container for TarPictures {
    fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self, index: usize) -> String {
        self.members.get(index).map_or_else(|| format!("member {index}"), |(name, ..)| name.clone())
    }

    fn read(&self, index: usize) -> Result<Stored<'_>> {
        let Some((name, offset, size)) = self.members.get(index) else {
            return Err(Error::data(&self.path, format!("there is no member {index}")));
        };
        if *size > MAX_FILE_BYTES {
            return Err(Error::image(
                &self.path,
                format!("{name}: {size} bytes, more than the limit of {MAX_FILE_BYTES}"),
            ));
        }
        let mut file = File::open(&self.path).map_err(Error::io(&self.path))?;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(*offset)).map_err(Error::io(&self.path))?;
        file.take(*size).read_to_end(&mut bytes).map_err(Error::io(&self.path))?;
        Ok(Stored::Encoded(Cow::Owned(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Dataset;
    use crate::check::{check, notes};

    fn picture(seed: u32) -> Vec<u8> {
        let pixel = |x, y| image::Rgb([(x * 9 + seed) as u8, (y * 7 + seed * 31) as u8, (x * y) as u8]);
        let mut out = std::io::Cursor::new(Vec::new());
        image::RgbImage::from_fn(24, 20, pixel).write_to(&mut out, image::ImageFormat::Png).unwrap();
        out.into_inner()
    }

    fn archive(path: &Path, members: &[(String, Vec<u8>)]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, &content[..]).unwrap();
        }
        archive.finish().unwrap();
    }

    /// Samples of two classes, told as `class` says.
    fn samples(seed: u32, count: u32, class: impl Fn(u32) -> (&'static str, String)) -> Vec<(String, Vec<u8>)> {
        let sample = |i: u32| {
            let (extension, text) = class(i % 2);
            [(format!("{i:04}.png"), picture(seed + i)), (format!("{i:04}.{extension}"), text.into_bytes())]
        };
        (0..count).flat_map(sample).collect()
    }

    /// How the class of a sample is told: the ending of a file and its content.
    type ToldClass = fn(u32) -> (&'static str, String);

    const NAMES: [&str; 2] = ["owl", "cat"];

    #[test]
    fn archives_are_the_same_set_as_the_folder_however_classes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let parts = [("train", 0, 12), ("val", 40, 6), ("test", 80, 6)];
        for (part, seed, count) in parts {
            for i in 0..count {
                let folder = dir.path().join("folder").join(part).join(NAMES[i as usize % 2]);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(format!("{i}.png")), picture(seed + i)).unwrap();
            }
        }
        let hash = Dataset::open(dir.path().join("folder"), 1).unwrap().content_hash().unwrap();
        let forms: [(&str, ToldClass); 4] = [
            ("cls", |class| ("cls", class.to_string())),
            ("txt", |class| ("txt", format!("{}\n", NAMES[class as usize]))),
            ("json", |class| ("json", format!(r#"{{"width": 24, "label": "{}"}}"#, NAMES[class as usize]))),
            ("number", |class| ("json", format!(r#"{{"label": {class}}}"#))),
        ];
        for (form, told) in forms {
            let root = dir.path().join(form);
            for (part, seed, count) in parts {
                let members = samples(seed, count, told);
                let (first, second) = members.split_at(members.len() / 2);
                archive(&root.join(format!("{part}-000000.tar")), first);
                archive(&root.join(format!("{part}-000001.tar")), second);
            }
            fs::write(root.join("classnames.txt"), "owl\ncat\n").unwrap();
            let data = Dataset::open(&root, 1).unwrap();
            assert_eq!((data.layout, data.content_hash().unwrap()), (Layout::WEBDATASET, hash.clone()), "{form}");
            assert_eq!(data.test[0].id, "test-000000.tar/0000.png");
            let report = check(&root, false, &mut |_, _| {}).unwrap();
            assert_eq!(
                (report.layout, report.images, &report.findings[..]),
                (Some("webdataset"), 24, &[][..]),
                "{form}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = |class: u32| ("cls", class.to_string());
        archive(&dir.path().join("train/00000.tar"), &samples(0, 12, told));
        let mut members = samples(20, 12, told);
        members.remove(0);
        members.push(("0003.depth.npy".into(), b"x".to_vec()));
        archive(&dir.path().join("train/00002.tar"), &members);
        let lines = notes(dir.path()).join("\n");
        for expected in ["1 file is missing beside it", "the sample 0000 has no picture", ".depth.npy files of samples"]
        {
            assert!(lines.contains(expected), "{lines}");
        }
        for (text, expected) in [
            ("jpg.json", "no .cls file, which other samples have"),
            ("cls", "the sample 0001 has such a file already"),
            ("png", "the sample 0001 has a picture already"),
        ] {
            let mut members = samples(0, 4, told);
            if text == "jpg.json" {
                members.pop();
            } else {
                members.push((format!("0001.{text}"), picture(99)));
            }
            archive(&dir.path().join("train/00002.tar"), &members);
            let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn captions_are_no_classes() {
        let dir = tempfile::tempdir().unwrap();
        let mut members = samples(0, 8, |_| ("txt", String::new()));
        for (i, (_, content)) in members.iter_mut().enumerate().filter(|(i, _)| i % 2 == 1) {
            *content = format!("a photo of thing number {i}").into_bytes();
        }
        archive(&dir.path().join("00000.tar"), &members);
        let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
        assert!(message.contains("8 different texts in the .txt files of 8 samples: captions"), "{message}");
    }

    #[test]
    fn a_damaged_archive_is_one_line_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.tar");
        archive(&path, &samples(0, 6, |class| ("cls", class.to_string())));
        let whole = fs::read(&path).unwrap();
        let open = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let _ = check(&path, true, &mut |_, _| {});
            Dataset::open(&path, 1).and_then(|data| data.content_hash()).map_err(|error| error.to_string())
        };
        for cut in (700..whole.len() - 2048).step_by(311) {
            if let Err(message) = open(&whole[..cut]) {
                assert_eq!(message.lines().count(), 1, "{message}");
            }
        }
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x81;
            if let Err(message) = open(&bytes) {
                assert_eq!(message.lines().count(), 1, "{message}");
            }
        }
        // A file that claims to be longer than the archive.
        let mut bytes = whole.clone();
        bytes[124..136].copy_from_slice(b"77777777777\0");
        let sum: u32 = bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..512]).map(|b| u32::from(*b)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let message = open(&bytes).unwrap_err();
        assert!(message.contains("truncated: 0000.png is cut off"), "{message}");
    }
}
