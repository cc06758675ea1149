//! `id2label` of a `config.json`: what the classes of a published classifier are called.

use std::path::Path;

use serde_json::Value;

use super::Spec;
use vpt_base::{Error, Result};

/// Longest name that is kept, in bytes: ImageNet's lists of synonyms are below 150.
const MAX_NAME: usize = 1000;

impl Spec {
    /// Names of the classes of a classifier beside the backbone, in their order, from the bytes of the `config.json` at `path`;
    /// `None` where it has none.
    ///
    /// # Errors
    /// `id2label` is no object of names by the numbers from 0 on, without a gap.
    pub fn class_names(bytes: &[u8], path: &Path) -> Result<Option<Vec<String>>> {
        let bad = |message: &str| Error::weights(path, format!("id2label: {message}"));
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| Error::weights(path, format!("not a JSON file: {error}")))?;
        let map = match value.get("id2label") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(bad("must be an object of names by class numbers")),
        };
        let mut names: Vec<Option<String>> = vec![None; map.len()];
        for (key, name) in map {
            let slot = key.parse().ok().and_then(|i: usize| names.get_mut(i)).filter(|slot| slot.is_none());
            let (Some(slot), Some(name)) = (slot, name.as_str().filter(|name| name.len() <= MAX_NAME)) else {
                return Err(bad("must hold a name for each number from 0 on, and nothing else"));
            };
            *slot = Some(name.to_owned());
        }
        // As many as there are numbers, each once: none is missing.
        Ok(Some(names.into_iter().flatten().collect()))
    }

    /// As [`Spec::class_names`] in timm's form, the list `label_names`.
    ///
    /// # Errors
    /// It is no list of names.
    pub(crate) fn label_names(bytes: &[u8], path: &Path) -> Result<Option<Vec<String>>> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| Error::weights(path, format!("not a JSON file: {error}")))?;
        let found = value.get("label_names").or_else(|| value.get("pretrained_cfg")?.get("label_names"));
        let list = match found {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(Error::weights(path, "label_names: must be a list of names")),
        };
        let name = |name: &Value| name.as_str().filter(|name| name.len() <= MAX_NAME).map(str::to_owned);
        let names = list.iter().map(name).collect::<Option<Vec<_>>>();
        names.map(Some).ok_or_else(|| Error::weights(path, "label_names: must hold names and nothing else"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<Vec<String>>> {
        Spec::class_names(json.as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn names_come_in_the_order_of_their_numbers() {
        let json = r#"{"id2label": {"10": "k", "1": "b", "0": "a", "2": "c", "3": "d", "4": "e", "5": "f", "6": "g", "7": "h", "8": "i", "9": "j"}}"#;
        assert_eq!(read(json).unwrap().unwrap().concat(), "abcdefghijk");
        assert_eq!(read("{}").unwrap(), None);
        assert_eq!(read(r#"{"id2label": null}"#).unwrap(), None);
    }

    #[test]
    fn whatever_else_it_is_is_refused() {
        let long = format!(r#"{{"id2label": {{"0": "{}"}}}}"#, "x".repeat(2000));
        for json in [
            r#"{"id2label": []}"#,
            r#"{"id2label": {"0": "a", "2": "c"}}"#,
            r#"{"id2label": {"0": "a", "00": "c"}}"#,
            r#"{"id2label": {"-1": "a"}}"#,
            r#"{"id2label": {"99999999999999999999999": "a"}}"#,
            r#"{"id2label": {"0": 7}}"#,
            r#"{"id2label": {"x": "a"}}"#,
            &long,
        ] {
            let message = read(json).expect_err(json).to_string();
            assert!(message.starts_with("config.json: id2label: must "), "{message}");
        }
    }

    #[test]
    fn timms_are_a_list() {
        let read = |json: &str| Spec::label_names(json.as_bytes(), Path::new("config.json"));
        assert_eq!(read(r#"{"label_names": ["a", "b"]}"#).unwrap().unwrap(), ["a", "b"]);
        assert_eq!(read(r#"{"pretrained_cfg": {"label_names": ["c"]}}"#).unwrap().unwrap(), ["c"]);
        assert_eq!(read(r#"{"pretrained_cfg": {}, "label_names": null}"#).unwrap(), None);
        for json in [r#"{"label_names": {}}"#, r#"{"label_names": [1]}"#] {
            assert!(read(json).unwrap_err().to_string().starts_with("config.json: label_names: must "), "{json}");
        }
    }
}
