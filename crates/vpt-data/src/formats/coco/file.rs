//! COCO's JSON as tools write it: ids that are text, numbers in quotes or with a fraction, `NaN`. What is meant is taken;
//! what cannot be is an error that names list, entry and field.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::boxes::Category;
use crate::check::json;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Longest file that is read, in bytes. COCO's own are half a gigabyte.
pub(super) const MAX_BYTES: u64 = 1 << 32;

/// What a file says.
pub(super) struct CocoFile {
    pub(super) images: Vec<CocoImage>,
    pub(super) annotations: Vec<CocoAnnotation>,
    /// In the order of their ids.
    pub(super) categories: Vec<CocoCategory>,
    /// The first id of an image that is text, if there is one: images are numbered then.
    pub(super) text_id: Option<String>,
}

pub(super) struct CocoImage {
    pub(super) id: u64,
    /// Empty where there is an address alone.
    pub(super) file_name: String,
    pub(super) coco_url: Option<String>,
    /// Whether LVIS' categories that are known not to be in the image are listed.
    pub(super) has_negatives: bool,
    /// Width and height, where they are those of an image.
    pub(super) size: Option<[usize; 2]>,
}

pub(super) struct CocoCategory {
    pub(super) category: Category,
    pub(super) supercategory: Option<String>,
}

pub(super) struct CocoAnnotation {
    pub(super) id: Option<u64>,
    /// The image's id, or the one in the file that no image has.
    pub(super) image: Result<u64, String>,
    /// The category's id, likewise.
    pub(super) category: Result<u64, String>,
    /// Left, top, width, height in pixels. What is not a number is written as null by some.
    pub(super) bbox: Option<Vec<f64>>,
    pub(super) area: Option<f64>,
    pub(super) crowd: bool,
}

#[derive(Deserialize)]
struct RawFile {
    images: Vec<RawImage>,
    annotations: Vec<RawAnnotation>,
    categories: Vec<RawCategory>,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default)]
    id: Scalar,
    #[serde(default)]
    file_name: Scalar,
    coco_url: Option<String>,
    neg_category_ids: Option<IgnoredAny>,
    #[serde(default)]
    width: Scalar,
    #[serde(default)]
    height: Scalar,
}

#[derive(Deserialize)]
struct RawAnnotation {
    #[serde(default)]
    id: Scalar,
    #[serde(default)]
    image_id: Scalar,
    #[serde(default)]
    category_id: Scalar,
    #[serde(default)]
    bbox: Scalar,
    #[serde(default)]
    area: Scalar,
    #[serde(default)]
    iscrowd: Scalar,
}

#[derive(Deserialize)]
struct RawCategory {
    #[serde(default)]
    id: Scalar,
    #[serde(default)]
    name: Scalar,
    #[serde(default)]
    supercategory: Scalar,
}

/// A value of JSON whose type says little of what is meant.
#[derive(Default)]
enum Scalar {
    #[default]
    Missing,
    Null,
    Flag(bool),
    Whole(u64),
    Number(f64),
    Text(String),
    List(Vec<Scalar>),
    Object,
}

/// An id as a file has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RawId {
    Number(u64),
    Text(String),
}

impl fmt::Display for RawId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "'{}'", shortened(text)),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Null => f.write_str("null"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "the text '{}'", shortened(text)),
            Self::List(_) => f.write_str("a list"),
            Self::Object => f.write_str("an object"),
        }
    }
}

fn shortened(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    if start.len() < text.len() { start + "…" } else { start }
}

impl Scalar {
    /// A number, which may be in quotes.
    fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A number, or that it is none, which is not a number.
    fn number_or_nan(&self) -> Option<f64> {
        match self {
            Self::Null => Some(f64::NAN),
            other => other.number(),
        }
    }

    /// A whole number, which may be in quotes or end with `.0`, or a text.
    fn id(&self) -> Result<RawId, String> {
        let whole = |number: f64| number.fract() == 0. && (0. ..9e15).contains(&number);
        match self {
            Self::Whole(number) => Ok(RawId::Number(*number)),
            Self::Number(number) if whole(*number) => Ok(RawId::Number(*number as u64)),
            Self::Text(text) => {
                let text = text.trim();
                match (text.parse::<u64>(), text.parse::<f64>()) {
                    (Ok(number), _) => Ok(RawId::Number(number)),
                    (_, Ok(number)) if whole(number) => Ok(RawId::Number(number as u64)),
                    _ if text.is_empty() => Err("an empty text".to_owned()),
                    _ => Ok(RawId::Text(text.to_owned())),
                }
            }
            other => Err(other.to_string()),
        }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Missing | Self::Null)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Scalar, E> {
        Ok(Scalar::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar::Whole(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
        Ok(u64::try_from(number).map_or(Scalar::Number(number as f64), Scalar::Whole))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Scalar::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Object)
    }
}

/// Numbers for ids of which some may be text.
struct Numbering(HashMap<RawId, u64>);

impl Numbering {
    /// Numbers stay; texts get those that are free, in their order.
    fn of<'a>(ids: impl Iterator<Item = &'a RawId> + Clone) -> Self {
        let used: HashSet<u64> =
            ids.clone().filter_map(|id| if let RawId::Number(n) = id { Some(*n) } else { None }).collect();
        let mut free = (1..).filter(|number| !used.contains(number));
        let mut numbers = HashMap::new();
        for id in ids {
            let number = match id {
                RawId::Number(number) => *number,
                RawId::Text(_) if numbers.contains_key(id) => continue,
                RawId::Text(_) => free.next().unwrap_or_default(),
            };
            numbers.insert(id.clone(), number);
        }
        Self(numbers)
    }

    fn number(&self, id: &RawId) -> Result<u64, String> {
        self.0.get(id).copied().ok_or_else(|| id.to_string())
    }
}

/// Reads `path`.
///
/// # Errors
/// It is no JSON, lacks a list, or a value is none that can be meant.
pub(super) fn read(path: &Path) -> Result<CocoFile> {
    let bytes = read_limited(path, MAX_BYTES)?;
    let content = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let raw: RawFile = serde_json::from_slice(content).map_err(|error| {
        let message = not_a_number(content, &error).unwrap_or_else(|| error.to_string());
        Error::data(path, message)
    })?;
    drop(bytes);
    resolve(raw).map_err(|message| Error::data(path, message))
}

fn resolve(raw: RawFile) -> Result<CocoFile, String> {
    let at = |list: &str, number: usize, what: String| format!("{list}, entry {}: {what}", number + 1);
    let id = |list: &str, number: usize, field: &str, value: &Scalar| {
        value.id().map_err(|found| {
            at(list, number, format!("{field} is {found}; a whole number from 0 or a text is expected"))
        })
    };
    let ids = raw.images.iter().enumerate().map(|(n, image)| id("images", n, "id", &image.id));
    let image_ids = ids.collect::<Result<Vec<RawId>, _>>()?;
    let ids = raw.categories.iter().enumerate().map(|(n, category)| id("categories", n, "id", &category.id));
    let category_ids = ids.collect::<Result<Vec<RawId>, _>>()?;
    let (image_numbers, category_numbers) = (Numbering::of(image_ids.iter()), Numbering::of(category_ids.iter()));
    let text_id = image_ids.iter().find_map(|id| if let RawId::Text(text) = id { Some(text.clone()) } else { None });

    let mut images = Vec::with_capacity(raw.images.len());
    for (n, (image, id)) in raw.images.into_iter().zip(&image_ids).enumerate() {
        let file_name = match image.file_name {
            Scalar::Text(name) => name,
            Scalar::Missing | Scalar::Null if image.coco_url.is_some() => String::new(),
            other => return Err(at("images", n, format!("file_name is {other}; a path is expected"))),
        };
        // Tools that know no size write 0 or -1.
        let side = |value: &Scalar| value.number().filter(|side| *side >= 1.).map(|side| side as usize);
        let size = side(&image.width).zip(side(&image.height)).map(|(width, height)| [width, height]);
        let (id, has_negatives) = (image_numbers.number(id)?, image.neg_category_ids.is_some());
        images.push(CocoImage { id, file_name, coco_url: image.coco_url, has_negatives, size });
    }
    let mut categories = Vec::with_capacity(raw.categories.len());
    for (n, (category, id)) in raw.categories.into_iter().zip(&category_ids).enumerate() {
        let name = match category.name {
            Scalar::Text(name) => name,
            Scalar::Whole(number) => number.to_string(),
            other => return Err(at("categories", n, format!("name is {other}; a text is expected"))),
        };
        let supercategory = if let Scalar::Text(name) = category.supercategory { Some(name) } else { None };
        categories.push(CocoCategory { category: Category { id: category_numbers.number(id)?, name }, supercategory });
    }
    categories.sort_by_key(|category| category.category.id);
    let annotations = raw.annotations.into_iter().enumerate().map(|(n, annotation)| {
        let at = |what: String| at("annotations", n, what);
        let number = |field: &str, value: &Scalar| {
            let found = value.number();
            if found.is_none() && !value.is_absent() {
                return Err(at(format!("{field} is {value}; a number is expected")));
            }
            Ok(found)
        };
        let own = match annotation.id.id() {
            _ if annotation.id.is_absent() => None,
            Ok(RawId::Number(number)) => Some(number),
            // Nothing refers to it.
            Ok(RawId::Text(_)) => None,
            Err(found) => return Err(at(format!("id is {found}; a whole number from 0 is expected"))),
        };
        let bbox = match &annotation.bbox {
            value if value.is_absent() => None,
            Scalar::List(values) => {
                let read = |value: &Scalar| {
                    value.number_or_nan().ok_or_else(|| at(format!("bbox holds {value}; four numbers are expected")))
                };
                Some(values.iter().map(read).collect::<Result<Vec<f64>, _>>()?)
            }
            other => return Err(at(format!("bbox is {other}; a list of left, top, width and height is expected"))),
        };
        let crowd = match &annotation.iscrowd {
            Scalar::Flag(flag) => *flag,
            value => number("iscrowd", value)?.is_some_and(|flag| flag != 0.),
        };
        Ok(CocoAnnotation {
            id: own,
            image: image_numbers.number(&id("annotations", n, "image_id", &annotation.image_id)?),
            category: category_numbers.number(&id("annotations", n, "category_id", &annotation.category_id)?),
            bbox,
            area: number("area", &annotation.area)?,
            crowd,
        })
    });
    let annotations = annotations.collect::<Result<Vec<_>, String>>()?;
    Ok(CocoFile { images, annotations, categories, text_id })
}

/// The entry and field in which `text` has a number that JSON does not have, if that is what `error` is about.
fn not_a_number(text: &[u8], error: &serde_json::Error) -> Option<String> {
    if !error.is_syntax() {
        return None;
    }
    let line = text
        .split(|&byte| byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(|line| line.len() + 1)
        .sum::<usize>();
    let near = (line + error.column()).min(text.len());
    let words = ["NaN", "-Infinity", "Infinity"];
    let starts = || (near.saturating_sub(10)..(near + 2).min(text.len())).rev();
    let (at, word) =
        starts().find_map(|at| words.iter().find(|w| text[at..].starts_with(w.as_bytes())).map(|w| (at, w)))?;
    let start = text.as_ptr() as usize;
    let mut numbers: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut place = String::new();
    for entry in json::entries(text) {
        let number = numbers.entry(entry.key.to_vec()).or_default();
        *number += 1;
        let from = entry.text.as_ptr() as usize - start;
        if (from..from + entry.text.len()).contains(&at) {
            place = format!("{}, entry {number}: ", String::from_utf8_lossy(entry.key));
            break;
        }
    }
    // The field is the last name before it.
    let before = String::from_utf8_lossy(&text[at.saturating_sub(1 << 12)..at]).into_owned();
    let field = before.rsplit_once("\":").and_then(|(rest, _)| rest.rsplit('"').next().map(str::to_owned));
    let field = field.unwrap_or_else(|| "a value".to_owned());
    Some(format!("{place}{field} holds {word}, which is no number of JSON (line {})", error.line()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<CocoFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.json");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn file(image: &str, category: &str, annotation: &str) -> String {
        format!(
            r#"{{"images": [{{"file_name": "a.png", {image}}}], "categories": [{{"name": "cat", {category}}}],
                "annotations": [{{"id": 1, {annotation}}}]}}"#
        )
    }

    #[test]
    fn ids_are_numbers_in_any_form_or_text() {
        for id in ["1", "1.0", "\"1\"", "\" 1.0 \"", "1e0"] {
            let other = "\"image_id\": 1, \"category_id\": 1, \"bbox\": [1, \"2.5\", 3.0, 4]";
            let found = read_text(&file(&format!("\"id\": {id}"), &format!("\"id\": {id}"), other)).unwrap();
            assert_eq!((found.images[0].id, found.categories[0].category.id), (1, 1), "{id}");
            let annotation = &found.annotations[0];
            assert_eq!((annotation.image.clone(), annotation.category.clone()), (Ok(1), Ok(1)));
            assert_eq!(annotation.bbox, Some(vec![1., 2.5, 3., 4.]));
        }
        let other = "\"image_id\": \"a0\", \"category_id\": \"c\", \"bbox\": [1, 2, 3, 4]";
        let found = read_text(&file("\"id\": \"a0\"", "\"id\": \"c\"", other)).unwrap();
        assert_eq!((found.annotations[0].image.clone(), found.text_id.as_deref()), (Ok(1), Some("a0")));
        let other = "\"image_id\": \"b\", \"category_id\": 7, \"bbox\": null";
        let found = read_text(&file("\"id\": \"a0\"", "\"id\": \"c\"", other)).unwrap();
        assert_eq!(found.annotations[0].image, Err("'b'".to_owned()));
        assert_eq!(found.annotations[0].category, Err("7".to_owned()));
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_list_entry_and_field() {
        let good = ("\"id\": 1", "\"id\": 1", "\"image_id\": 1, \"category_id\": 1, \"bbox\": [1, 2, 3, 4]");
        for (image, category, annotation, expected) in [
            ("\"id\": 1.5", good.1, good.2, "images, entry 1: id is 1.5"),
            ("\"id\": -1", good.1, good.2, "images, entry 1: id is -1"),
            ("\"id\": null", good.1, good.2, "images, entry 1: id is null"),
            ("\"x\": 1", good.1, good.2, "images, entry 1: id is missing"),
            (good.0, "\"id\": []", good.2, "categories, entry 1: id is a list"),
            (good.0, good.1, "\"image_id\": {}, \"category_id\": 1", "annotations, entry 1: image_id is an object"),
            (good.0, good.1, "\"image_id\": 1", "annotations, entry 1: category_id is missing"),
            (
                good.0,
                good.1,
                "\"image_id\": 1, \"category_id\": 1, \"bbox\": {\"x\": 1}",
                "annotations, entry 1: bbox is an object; a list of left",
            ),
            (
                good.0,
                good.1,
                "\"image_id\": 1, \"category_id\": 1, \"bbox\": [1, 2, \"three\", 4]",
                "annotations, entry 1: bbox holds the text 'three'",
            ),
            (
                good.0,
                good.1,
                "\"image_id\": 1, \"category_id\": 1, \"bbox\": [1, 2, NaN, 4]",
                "annotations, entry 1: bbox holds NaN, which is no number of JSON (line 2)",
            ),
            (
                good.0,
                good.1,
                "\"image_id\": 1, \"category_id\": 1, \"area\": -Infinity, \"bbox\": []",
                "annotations, entry 1: area holds ",
            ),
            (good.0, good.1, "\"image_id\": 1, \"category_id\": 1, \"iscrowd\": \"no\"", "iscrowd is the text 'no'"),
        ] {
            let message = read_text(&file(image, category, annotation)).err().unwrap().to_string();
            assert!(message.contains("train.json: ") && message.contains(expected), "{expected}: {message}");
        }
        let message = read_text(r#"{"images": [{"id": 1}], "annotations": [], "categories": []}"#).err().unwrap();
        assert!(message.to_string().contains("images, entry 1: file_name is missing"), "{message}");
    }
}
