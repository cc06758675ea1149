//! `data.yaml`: the parts, the classes, and where the images are.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::boxes::{Category, normal};
use crate::formats::text_file::read_text;
use vpt_base::contain::contain;
use vpt_base::{Error, Result};

/// Longest `data.yaml` that is read, in bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 23;

#[derive(Deserialize)]
pub(super) struct Config {
    path: Option<String>,
    pub(super) train: Option<Sources>,
    #[serde(alias = "valid", alias = "validation")]
    pub(super) val: Option<Sources>,
    pub(super) test: Option<Sources>,
    nc: Option<usize>,
    names: Option<ClassNames>,
    /// There for poses: five numbers of a box come before the points.
    pub(super) kpt_shape: Option<IgnoredAny>,
    /// What the labels are for.
    task: Option<String>,
}

impl Config {
    /// Whether it says that labels are polygons.
    pub(super) fn has_polygons(&self) -> bool {
        self.task.as_deref().is_some_and(|task| ["segment", "obb"].contains(&task))
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "train, val and test are a path or a list of paths")]
pub(super) enum Sources {
    One(String),
    Many(Vec<String>),
}

impl Sources {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(source) => std::slice::from_ref(source),
            Self::Many(sources) => sources,
        }
    }
}

/// Class names, as a list or as a map from 0, 1, ….
pub(super) struct ClassNames(Vec<String>);

impl<'de> Deserialize<'de> for ClassNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = ClassNames;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or a map of class names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ClassNames, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element()? {
            names.push(name);
        }
        Ok(ClassNames(names))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ClassNames, A::Error> {
        let mut names = Vec::new();
        while let Some(entry) = map.next_entry::<u64, String>()? {
            names.push(entry);
        }
        names.sort();
        match names.iter().zip(0..).find(|((class, _), expected)| class != expected) {
            Some((_, missing)) => Err(de::Error::custom(format!("names: there is no class {missing} between others"))),
            None => Ok(ClassNames(names.into_iter().map(|(_, name)| name).collect())),
        }
    }
}

/// The folders that paths in `file` are relative to, first of all the one that it names.
pub(super) fn bases(file: &Path, config: &Config) -> Vec<PathBuf> {
    let folder = normal(file.parent().unwrap_or(Path::new("")));
    let named = config.path.as_deref().filter(|path| !path.is_empty()).map(|path| normal(&folder.join(path)));
    named.into_iter().chain([folder]).collect()
}

/// The lists of images that `file` names.
pub(super) fn lists(file: &Path) -> Vec<PathBuf> {
    let Ok(config) = read_config(file) else { return Vec::new() };
    let bases = bases(file, &config);
    let sources = [&config.train, &config.val, &config.test].into_iter().flatten().flat_map(Sources::as_slice);
    sources.filter_map(|source| resolve(&bases, source)).map(|(_, path)| path).filter(|path| path.is_file()).collect()
}

pub(super) fn read_config(file: &Path) -> Result<Config> {
    let text = read_text(file, MAX_CONFIG_BYTES)?;
    let parsed = contain(|| serde_saphyr::from_str(&text).map_err(|e| e.without_snippet().to_string()));
    parsed
        .unwrap_or_else(|panic| Err(format!("the YAML reader failed: {panic}")))
        .map_err(|message| Error::data(file, message.split_whitespace().collect::<Vec<_>>().join(" ")))
}

pub(super) fn categories(file: &Path, config: &Config) -> Result<Vec<Category>> {
    let names = match (&config.names, config.nc) {
        (Some(ClassNames(names)), Some(nc)) if names.len() != nc => {
            return Err(Error::data(file, format!("nc is {nc}, but there are {} names", names.len())));
        }
        (Some(ClassNames(names)), _) => names.clone(),
        (None, Some(nc @ 1..=100_000)) => (0..nc).map(|i| format!("class_{i}")).collect(),
        (None, _) => Vec::new(),
    };
    if names.is_empty() {
        return Err(Error::data(file, "it names no classes (`names:`)"));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(Error::data(file, format!("names: two classes are called '{twice}'")));
    }
    Ok((1..).zip(names).map(|(id, name)| Category { id, name }).collect())
}

/// Where `source` is, and from which of `bases`. Like Ultralytics, a leading `../` that leads nowhere is left out: Roboflow
/// writes one too many.
pub(super) fn resolve<'a>(bases: &'a [PathBuf], source: &str) -> Option<(&'a PathBuf, PathBuf)> {
    let forms = |base: &'a PathBuf| {
        let without = source.strip_prefix("../").map(|rest| (base, normal(&base.join(rest))));
        std::iter::once((base, normal(&base.join(source)))).chain(without)
    };
    bases.iter().flat_map(forms).find(|(_, path)| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_as_ultralytics_does() {
        let dir = tempfile::tempdir().unwrap();
        let set = dir.path().join("set");
        std::fs::create_dir_all(set.join("train/images")).unwrap();
        let bases = [set.join("moved"), set.clone()];
        let resolved = |source: &str| resolve(&bases, source).map(|(_, path)| path);
        let images = Some(set.join("train/images"));
        assert_eq!(resolved("train/images"), images);
        assert_eq!(resolved("../train/images"), images);
        assert_eq!(resolved(set.join("train/images").to_str().unwrap()), images);
        assert_eq!(resolved("val/images"), None);
    }
}
