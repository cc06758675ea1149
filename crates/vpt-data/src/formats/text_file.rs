//! Text files as layouts look at them and read them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use roxmltree::{Document, ParsingOptions};

use vpt_base::contain::contain;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// The first bytes of `path`, at most `count`.
pub(crate) fn first_bytes(path: &Path, count: u64) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(count).read_to_end(&mut start)?;
    Ok(start)
}

/// The first `count` bytes of `path` as text without a byte order mark, if it is a file with that ending.
pub(super) fn beginning(path: &Path, ending: &str, count: u64) -> Option<String> {
    // A pipe would never begin.
    let is_one = path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)) && path.is_file();
    let start = if is_one { first_bytes(path, count).ok()? } else { return None };
    Some(String::from_utf8_lossy(&start).trim_start_matches('\u{feff}').to_owned())
}

/// The text of `path`, without a byte order mark.
///
/// # Errors
/// As [`read_limited`], or it is not UTF-8.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let mut bytes = read_limited(path, limit)?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|_| Error::data(path, "not UTF-8 text"))
}

/// The XML document that `text`, of `path`, is. Entities are not expanded; `max_nodes` bounds elements, texts and the like.
///
/// # Errors
/// It is not XML, or has more nodes.
pub(super) fn parse_xml<'t>(path: &Path, text: &'t str, max_nodes: u32) -> Result<Document<'t>> {
    let options = ParsingOptions { nodes_limit: max_nodes, ..ParsingOptions::default() };
    let parsed = contain(|| Document::parse_with_options(text, options).map_err(|error| error.to_string()));
    parsed
        .unwrap_or_else(|panic| Err(format!("the XML reader failed: {panic}")))
        .map_err(|message| Error::data(path, message))
}
