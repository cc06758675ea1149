//! Where the entries of a JSON file are: parsers say what an entry holds, not in which line it stands.

use super::text::Lines;

/// An entry of a list that is the value of a key of the outermost object.
pub(crate) struct ListEntry<'a> {
    /// The key, as it is written.
    pub(crate) key: &'a [u8],
    /// The line that the entry begins in, from 1.
    pub(crate) line: u64,
    /// The entry.
    pub(crate) text: &'a [u8],
}

/// The entries of all such lists. What is not JSON makes no entries or odd ones; the caller parses them.
pub(crate) fn entries(text: &[u8]) -> Vec<ListEntry<'_>> {
    let lines = Lines::new(text);
    let mut out = Vec::new();
    let (mut depth, mut at) = (0_usize, 0);
    let mut key: &[u8] = b"";
    let mut in_list = false;
    let mut start = None;
    while let Some(&byte) = text.get(at) {
        if in_list && depth == 2 && start.is_none() && !byte.is_ascii_whitespace() && byte != b',' && byte != b']' {
            start = Some(at);
        }
        let ends = in_list && depth == 2 && matches!(byte, b',' | b']');
        if let Some(from) = start.take_if(|_| ends) {
            out.push(ListEntry { key, line: lines.of(from), text: text[from..at].trim_ascii_end() });
        }
        match byte {
            b'"' => {
                let from = at + 1;
                at = end_of_string(text, from);
                if depth == 1 {
                    key = text.get(from..at).unwrap_or_default();
                }
            }
            b'[' | b'{' => {
                in_list |= depth == 1 && byte == b'[';
                depth += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                in_list &= depth > 1;
            }
            _ => {}
        }
        at += 1;
    }
    out
}

/// The position of the quote that ends the string whose content begins at `at`.
fn end_of_string(text: &[u8], mut at: usize) -> usize {
    loop {
        match text.get(at) {
            Some(b'\\') => at += 2,
            Some(b'"') | None => return at,
            Some(_) => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_cut_out_with_key_and_line() {
        let text = br#"{"info": {"list": [1, 2]},
"train": [
  ["a,]\"}.jpg", 0, "x"], ["b",
   1, "y"],
  3 ], "val":[],"n": 4, "test": [{"id": [7]}]}"#;
        let found: Vec<_> = entries(text)
            .iter()
            .map(|e| {
                (String::from_utf8_lossy(e.key).into_owned(), e.line, String::from_utf8_lossy(e.text).into_owned())
            })
            .collect();
        let entry = |key: &str, line, text: &str| (key.to_owned(), line, text.to_owned());
        assert_eq!(
            found,
            [
                entry("train", 3, r#"["a,]\"}.jpg", 0, "x"]"#),
                entry("train", 3, "[\"b\",\n   1, \"y\"]"),
                entry("train", 5, "3"),
                entry("test", 5, r#"{"id": [7]}"#),
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_panic(text in r#"[\[\]{}",:\\a1 \n]{0,40}"#) {
            entries(text.as_bytes());
        }
    }
}
