//! Texts that name classes, and what CLIP makes of them: a class is the mean of the embeddings of texts that name it.
//!
//! As in Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021) and in
//! `CLIP_benchmark`: every template is filled with the class name and embedded, the embeddings are scaled to length 1,
//! averaged over the templates and scaled to length 1 again; logits are the cosines with the image's embedding times the
//! model's `exp(logit_scale)`. Other class names or templates than the published ones give other numbers, so results
//! name both.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Backbone;
use vpt_base::files::read_limited;
use vpt_base::linear_algebra::normalize_l2;
use vpt_base::{Error, Result};

/// The template used where none is given.
pub const TEMPLATE: &str = "a photo of a {}.";

/// Places for the class name in a template: `CLIP_benchmark` writes `{c}`.
const PLACES: [&str; 2] = ["{}", "{c}"];
/// A list of texts is short.
const MAX_BYTES: u64 = 16 << 20;
/// Texts that go through the text tower at a time.
const BATCH: usize = 256;
/// Names that a message lists at most.
const NAMED: usize = 5;

/// Class names and templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// A name for each class, in class order.
    pub classnames: Vec<String>,
    /// Texts with `{}` or `{c}` where the name goes.
    pub templates: Vec<String>,
}

impl Prompts {
    /// These names, with spaces for underscores, in [`TEMPLATE`].
    pub fn of_names(names: &[String]) -> Self {
        let classnames = names.iter().map(|name| name.replace('_', " ")).collect();
        Self { classnames, templates: vec![TEMPLATE.to_owned()] }
    }

    /// Reads class names: one a line, a JSON list, or the list of the data set `data` in a JSON object of such lists, the form
    /// that `CLIP_benchmark` has.
    ///
    /// # Errors
    /// The file cannot be read, a name is empty, or there is not one for each of `classes`.
    pub fn read_classnames(path: &Path, data: &str, classes: &[String]) -> Result<Vec<String>> {
        let names = read_list(path, Some(data))?;
        if names.len() != classes.len() {
            let message = format!("{} class names for {} classes of the data", names.len(), classes.len());
            return Err(Error::file(path, message));
        }
        Ok(names)
    }

    /// Reads class names, however many: one a line, or a JSON list.
    ///
    /// # Errors
    /// The file cannot be read, or a name is empty.
    pub fn read_names(path: &Path) -> Result<Vec<String>> {
        read_list(path, None)
    }

    /// Reads templates: one a line, a JSON list, or, for the data set `data` where that is known, its list in a JSON object of
    /// such lists.
    ///
    /// # Errors
    /// The file cannot be read, or a template has no place for the class name.
    pub fn read_templates(path: &Path, data: Option<&str>) -> Result<Vec<String>> {
        let templates = read_list(path, data)?;
        match without_place(&templates) {
            Some(message) => Err(Error::file(path, message)),
            None => Ok(templates),
        }
    }

    /// The texts of one class.
    pub fn texts(&self, class: usize) -> impl Iterator<Item = String> {
        let name = &self.classnames[class];
        self.templates
            .iter()
            .map(move |template| PLACES.iter().fold(template.clone(), |t, place| t.replace(place, name)))
    }
}

/// Error message for the first template that has no place for the class name.
pub fn without_place(templates: &[String]) -> Option<String> {
    let lacks = |template: &String| !PLACES.iter().any(|place| template.contains(place));
    let i = templates.iter().position(lacks)?;
    Some(format!("template {} ('{}') has no {{}} for the class name", i + 1, templates[i]))
}

/// Reads a list of texts: a JSON list, or that of the data set `data` in an object of them, or the lines that are not blank.
fn read_list(path: &Path, data: Option<&str>) -> Result<Vec<String>> {
    let bytes = read_limited(path, MAX_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "not UTF-8 text"))?;
    let text = text.trim_start_matches('\u{feff}');
    let not_texts = |error| Error::file(path, format!("not a JSON list of texts: {error}"));
    let list: Vec<String> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(not_texts)?
    } else if text.trim_start().starts_with('{') {
        // A line of text may begin so, too; no JSON is one.
        let by_data: serde_json::Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| Error::file(path, format!("not JSON, though it begins like an object: {error}")))?;
        let texts = of_data(&by_data, data).map_err(|message| Error::file(path, message))?;
        serde_json::from_value(texts.clone()).map_err(not_texts)?
    } else {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    if list.is_empty() {
        return Err(Error::file(path, "holds no text"));
    }
    match list.iter().position(|text| text.trim().is_empty()) {
        Some(i) => Err(Error::file(path, format!("text {} is empty", i + 1))),
        None => Ok(list),
    }
}

/// What `by_data` holds of the data set `data`.
fn of_data<'a>(by_data: &'a serde_json::Map<String, Value>, data: Option<&str>) -> Result<&'a Value, String> {
    // `CLIP_benchmark` calls the sets of VTAB `vtab/…`; hyphens and case are anyone's.
    let plain = |name: &str| -> String {
        let name = name.rsplit('/').next().unwrap_or(name);
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let named: Vec<&String> = by_data.keys().take(NAMED).collect();
    let more = if by_data.len() > NAMED { ", …" } else { "" };
    let named = format!("{}{more}", named.into_iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    let Some(data) = data else {
        return Err(format!("holds texts by the names of data sets ({named}): a list of texts is wanted here"));
    };
    let mut found = by_data.iter().filter(|(name, _)| plain(name) == plain(data));
    match (found.next(), found.next()) {
        (Some((_, texts)), None) => Ok(texts),
        (None, _) => Err(format!("holds texts for {named}, but none for a data set called {data}")),
        (Some(_), Some(_)) => Err(format!("holds texts for {data} more than once ({named})")),
    }
}

/// Unit vectors `[K, D]` that stand for classes with these names: the classifier of [`Prompts::of_names`].
///
/// # Errors
/// The backbone has no text tower.
pub fn class_embeddings(backbone: &Backbone, names: &[String], threads: usize) -> Result<Vec<f32>> {
    classifier(backbone, &Prompts::of_names(names), threads)
}

/// The classifier's weights `[C, D]`: a unit vector for each class, embedded with `threads` threads.
///
/// # Errors
/// The backbone has no text tower.
pub fn classifier(backbone: &Backbone, prompts: &Prompts, threads: usize) -> Result<Vec<f32>> {
    Ok(class_texts(prompts, |texts| backbone.embed_texts(texts, threads))?.unit)
}

/// Text embeddings of the classes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassTexts {
    /// Zero-shot weights `[C, D]`: the direction of the mean of a class's unit embeddings.
    pub unit: Vec<f32>,
    /// The mean of a class's embeddings as they are, `[C, D]`.
    pub mean: Vec<f32>,
}

/// The texts of each class, through `embed`, which makes `[T, D]` of T texts.
///
/// # Errors
/// Those of `embed`.
pub fn class_texts(prompts: &Prompts, mut embed: impl FnMut(&[String]) -> Result<Vec<f32>>) -> Result<ClassTexts> {
    let per_class = prompts.templates.len();
    let mut classes = ClassTexts { unit: Vec::new(), mean: Vec::new() };
    let mut add = |texts: &[String]| -> Result<()> {
        let mut embeds = embed(texts)?;
        let width = embeds.len() / texts.len();
        for class in embeds.chunks_exact(per_class * width) {
            classes.mean.extend(sum_rows(class, width).iter().map(|sum| sum / per_class as f32));
        }
        normalize_l2(&mut embeds, width);
        for class in embeds.chunks_exact(per_class * width) {
            classes.unit.extend(mean_row(class, width));
        }
        Ok(())
    };
    let mut texts = Vec::new();
    for class in 0..prompts.classnames.len() {
        texts.extend(prompts.texts(class));
        if texts.len() >= BATCH {
            add(&texts)?;
            texts.clear();
        }
    }
    if !texts.is_empty() {
        add(&texts)?;
    }
    Ok(classes)
}

/// The sum of the rows of `[n, width]`.
fn sum_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.; width];
    for row in rows.chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
    sum
}

/// The mean of the rows of `[n, width]`, scaled to length 1.
fn mean_row(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = sum_rows(rows, width);
    normalize_l2(&mut sum, width);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(content: &[u8], read: impl Fn(&Path) -> Result<Vec<String>>) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.txt");
        std::fs::write(&path, content).unwrap();
        read(&path)
    }

    #[test]
    fn lists_are_lines_or_json() {
        for content in ["a cat\nthe dog\n", "\u{feff}a cat\r\n\n  the dog  \r\n", " [\"a cat\",\n \"the dog\"]\n"] {
            assert_eq!(
                list(content.as_bytes(), |path| read_list(path, None)).unwrap(),
                ["a cat", "the dog"],
                "{content:?}"
            );
        }
        for (content, message) in [
            (&b""[..], "holds no text"),
            (b"[]", "holds no text"),
            (b"[\"a\", \" \"]", "text 2 is empty"),
            (b"[1]", "not a JSON list"),
            (b"\xff", "not UTF-8"),
        ] {
            assert!(
                list(content, |path| read_list(path, None)).unwrap_err().to_string().contains(message),
                "{message}"
            );
        }
    }

    // The form of `en_zeroshot_classification_templates.json`.
    #[test]
    fn an_object_holds_a_list_for_each_data_set() {
        let file = br#"{"cifar10": ["a {c}."], "vtab/flowers": ["b {c}.", "c {c}."], "x": {"cat": ["d"]}, "X": []}"#;
        let read =
            |data: Option<&str>| list(file, |path| Prompts::read_templates(path, data)).map_err(|e| e.to_string());
        assert_eq!(read(Some("CIFAR-10")).unwrap(), ["a {c}."]);
        assert_eq!(read(Some("flowers")).unwrap(), ["b {c}.", "c {c}."]);
        for (data, part) in [
            (Some("pets"), "holds texts for cifar10, vtab/flowers, x, X, but none for a data set called pets"),
            (Some("x"), "holds texts for x more than once"),
            (None, "holds texts by the names of data sets (cifar10, "),
        ] {
            let message = read(data).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        for (file, part) in [
            (&br#"{"a": {"cat": ["d"]}}"#[..], "not a JSON list of texts"),
            (br#"{"a": [1]}"#, "not a JSON list of texts"),
            (b"{} is seen\n", "not JSON, though it begins like an object"),
        ] {
            let message = list(file, |path| read_list(path, Some("a"))).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn counts_and_places_are_checked() {
        let classes = ["x".to_owned(), "y".to_owned()];
        let error = list(b"a\nb\nc", |path| Prompts::read_classnames(path, "set", &classes)).unwrap_err().to_string();
        assert!(error.ends_with("3 class names for 2 classes of the data"), "{error}");
        let error = list(b"a {}\na dog", |path| Prompts::read_templates(path, None)).unwrap_err().to_string();
        assert!(error.ends_with("template 2 ('a dog') has no {} for the class name"), "{error}");
    }

    #[test]
    fn templates_are_filled_in_class_order() {
        let prompts = Prompts {
            classnames: vec!["cat".into(), "dog".into()],
            templates: vec!["a {}.".into(), "{c} and {c}".into()],
        };
        assert_eq!(prompts.texts(1).collect::<Vec<_>>(), ["a dog.", "dog and dog"]);
    }

    #[test]
    fn a_class_is_the_mean_direction_of_its_texts() {
        assert_eq!(mean_row(&[1., 0., 0., 1.], 2), [0.5f32.sqrt(), 0.5f32.sqrt()]);
    }
}
