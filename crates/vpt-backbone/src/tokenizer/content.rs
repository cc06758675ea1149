//! What a tokenizer says, however its files are written: its part of a backbone's identity.

use std::path::Path;

use serde_json::Value;

use super::{MAX_BYTES, MERGES, TOKENIZER, Tokenizer, VOCAB};
use crate::identity::of_json;
use vpt_base::Result;
use vpt_base::files::read_limited;

impl Tokenizer {
    /// Hash of what stands for the tokenizer in the folder `dir`, in hexadecimal; empty where there is none.
    ///
    /// Spaces and the order of fields make no difference, nor does what [`Tokenizer::from_bytes`] does not heed. A file that
    /// is no tokenizer is taken by its bytes: it fails whoever wants to read texts, and nobody else.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn content(dir: &Path) -> Result<String> {
        let path = dir.join(TOKENIZER);
        if path.is_file() {
            return Ok(Self::content_of(&read_limited(&path, MAX_BYTES)?));
        }
        let (vocab, merges) = (dir.join(VOCAB), dir.join(MERGES));
        if !vocab.is_file() || !merges.is_file() {
            return Ok(String::new());
        }
        let [first, second] = [read_limited(&vocab, MAX_BYTES)?, read_limited(&merges, MAX_BYTES)?];
        Ok(match Self::file_of_vocabulary(&first, &second, &vocab, &merges) {
            Ok(file) => of_json(&plain(file)),
            Err(_) => blake3::hash(&[first, second].concat()).to_hex().to_string(),
        })
    }

    /// [`Tokenizer::content`] of the bytes of a `tokenizer.json`.
    pub(crate) fn content_of(bytes: &[u8]) -> String {
        serde_json::from_slice(bytes)
            .map_or_else(|_| blake3::hash(bytes).to_hex().to_string(), |file| of_json(&plain(file)))
    }

    /// [`Tokenizer::content`] of [`Tokenizer::open_clip`].
    pub(crate) fn content_of_open_clip() -> String {
        blake3::hash(b"CLIP's own, texts cleaned as open_clip does").to_hex().to_string()
    }
}

/// `file` in the form of today: pairs of merges as lists, and nothing that is not heeded.
fn plain(mut file: Value) -> Value {
    let Some(fields) = file.as_object_mut() else { return file };
    for unheeded in ["version", "padding", "truncation", "decoder"] {
        fields.remove(unheeded);
    }
    if let Some(model) = fields.get_mut("model").and_then(Value::as_object_mut) {
        // What newer versions write out is off unless it is said to be on.
        model.retain(|_, value| *value != Value::Bool(false));
        for merge in model.get_mut("merges").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some((left, right)) = merge.as_str().and_then(|merge| merge.split_once(' ')) {
                *merge = Value::Array(vec![left.into(), right.into()]);
            }
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(json: &str) -> String {
        Tokenizer::content_of(json.as_bytes())
    }

    #[test]
    fn a_file_saved_anew_says_the_same() {
        let old = r#"{"version": "1.0", "truncation": {"max_length": 7}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}"#;
        let new = r#"{"model": {"merges": [["a", "b"]], "byte_fallback": false, "dropout": null,
            "vocab": {"b": 1, "a": 0}, "type": "BPE"}, "decoder": {"type": "ByteLevel"}, "padding": null}"#;
        assert_eq!(content(old), content(new));
        for other in [
            r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 2}, "merges": ["a b"]}}"#,
            r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["b a"]}}"#,
            r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}, "normalizer": {"type": "NFC"}}"#,
            r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"], "ignore_merges": true}}"#,
            "no tokenizer",
            "[]",
        ] {
            assert_ne!(content(other), content(old), "{other}");
        }
    }

    #[test]
    fn a_folder_without_one_has_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Tokenizer::content(dir.path()).unwrap(), "");
        std::fs::write(dir.path().join(VOCAB), "{").unwrap();
        std::fs::write(dir.path().join(MERGES), "").unwrap();
        let damaged = Tokenizer::content(dir.path()).unwrap();
        assert_eq!(damaged.len(), 64);
        std::fs::write(dir.path().join(MERGES), "a b").unwrap();
        assert_ne!(Tokenizer::content(dir.path()).unwrap(), damaged);
    }
}
