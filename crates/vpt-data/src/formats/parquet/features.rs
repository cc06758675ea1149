//! What the library `datasets` says of a table's columns, in JSON under the key `huggingface`: which are classes, and what the
//! classes are called.

use serde_json::Value;

/// Longest text that is parsed, in bytes.
const MAX_BYTES: usize = 1 << 26;

/// The features of the columns.
pub(super) struct HubFeatures(Value);

impl HubFeatures {
    /// The features in the remark `text`; none if there are none or nothing can be read.
    pub(super) fn parse(text: Option<&str>) -> Self {
        let parsed =
            text.filter(|text| text.len() <= MAX_BYTES).and_then(|text| serde_json::from_str::<Value>(text).ok());
        Self(parsed.and_then(|all| all.get("info")?.get("features").cloned()).unwrap_or(Value::Null))
    }

    /// The names of the classes in the column with these names, from the outermost on, by their numbers.
    pub(super) fn class_names(&self, column: &[&str]) -> Option<Vec<String>> {
        names(column.iter().try_fold(&self.0, |at, name| inside(at).get(*name))?)
    }

    /// The columns of one class a row, by name.
    pub(super) fn class_columns(&self) -> Vec<&str> {
        let all = self.0.as_object().into_iter().flatten();
        all.filter(|(_, feature)| feature.get("_type") == Some(&"ClassLabel".into()))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

/// What `feature` is a list of; itself, if it is no list.
fn inside(feature: &Value) -> &Value {
    let inner = match feature {
        Value::Array(of) => of.first(),
        Value::Object(of)
            if matches!(of.get("_type").and_then(Value::as_str), Some("Sequence" | "List" | "LargeList")) =>
        {
            of.get("feature")
        }
        _ => None,
    };
    inner.map_or(feature, inside)
}

fn names(feature: &Value) -> Option<Vec<String>> {
    let names = inside(feature).get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_every_form_of_lists() {
        let label = r#"{"names": ["cat", "dog"], "_type": "ClassLabel"}"#;
        let features = |objects: &str| {
            let text = format!(r#"{{"info": {{"features": {{"label": {label}, "objects": {objects}}}}}}}"#);
            HubFeatures::parse(Some(&text))
        };
        for objects in [
            format!(r#"{{"feature": {{"category": {label}}}, "_type": "Sequence"}}"#),
            format!(r#"{{"category": {{"feature": {label}, "_type": "List"}}}}"#),
            format!(r#"[{{"category": {label}}}]"#),
            format!(r#"{{"category": [{label}]}}"#),
        ] {
            let found = features(&objects);
            assert_eq!(found.class_names(&["objects", "category"]).unwrap(), ["cat", "dog"], "{objects}");
            assert_eq!(found.class_columns(), ["label"]);
            assert_eq!(found.class_names(&["objects", "other"]), None);
        }
        for text in [None, Some("no JSON"), Some("{}"), Some(r#"{"info": {"features": [3]}}"#)] {
            assert_eq!(HubFeatures::parse(text).class_names(&["label"]), None);
        }
    }
}
