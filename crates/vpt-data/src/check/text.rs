//! Text files that other systems wrote: their encoding and their line ends, and where in them something is.

use std::path::Path;

use super::finding::{FindingKind, Findings};
use vpt_base::files::read_limited;

/// Longest text that is looked at, in bytes.
const MAX_BYTES: u64 = 1 << 32;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where the lines of a text begin.
pub(crate) struct Lines(Vec<usize>);

impl Lines {
    pub(crate) fn new(text: &[u8]) -> Self {
        let after = text.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1);
        Self(std::iter::once(0).chain(after).collect())
    }

    /// The line, from 1, of the byte at `at`.
    pub(crate) fn of(&self, at: usize) -> u64 {
        self.0.partition_point(|&start| start <= at) as u64
    }
}

/// Looks for a mark at the beginning, and says whether it leaves UTF-8 possible.
pub(crate) fn check_start(path: &Path, bytes: &[u8], out: &mut Findings) -> bool {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        out.error(FindingKind::NotUtf8Text, path, 1, "UTF-16 text; save it as UTF-8");
        return false;
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        out.warning(FindingKind::ByteOrderMark, path, 1, "begins with a byte order mark");
    }
    true
}

/// Looks at encoding and, in files that are `read_by_line`, at line ends.
pub(crate) fn check(path: &Path, bytes: &[u8], read_by_line: bool, out: &mut Findings) {
    if !check_start(path, bytes, out) {
        return;
    }
    if let Err(error) = std::str::from_utf8(bytes) {
        let line = Lines::new(bytes).of(error.valid_up_to());
        out.error(FindingKind::NotUtf8Text, path, line, "not valid UTF-8");
    }
    if !read_by_line {
        return;
    }
    let lines = || bytes.split(|&b| b == b'\n');
    if let Some(first) = lines().position(|line| line.ends_with(b"\r")) {
        let windows = lines().filter(|line| line.ends_with(b"\r")).count();
        let message = match windows {
            1 => "the line ends with CR LF, as on Windows".to_owned(),
            _ => format!("{windows} lines end with CR LF, as on Windows; this is the first"),
        };
        out.warning(FindingKind::CrlfLineEnds, path, first as u64 + 1, message);
    }
}

/// Looks at the text `path`, which is read line by line.
pub(crate) fn check_file(path: &Path, out: &mut Findings) {
    match read_limited(path, MAX_BYTES) {
        Ok(bytes) => check(path, &bytes, true, out),
        Err(error) => out.refused(FindingKind::NoAccess, path, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8]) -> Vec<(FindingKind, Option<u64>)> {
        let mut out = Findings::default();
        check(Path::new("t.csv"), bytes, true, &mut out);
        out.0.into_iter().map(|f| (f.kind, f.line)).collect()
    }

    #[test]
    fn encodings_and_line_ends_are_told_with_their_line() {
        assert_eq!(found("path,label\nä.png,x\n".as_bytes()), []);
        assert_eq!(found(b"a\nb\r\nc\r\n"), [(FindingKind::CrlfLineEnds, Some(2))]);
        assert_eq!(found(b"\xef\xbb\xbfa\n"), [(FindingKind::ByteOrderMark, Some(1))]);
        assert_eq!(found(b"a\nb\n\xe4\n"), [(FindingKind::NotUtf8Text, Some(3))]);
        assert_eq!(found(b"\xff\xfea\0\n\0"), [(FindingKind::NotUtf8Text, Some(1))]);
    }

    #[test]
    fn a_byte_is_in_the_line_that_holds_it() {
        let lines = Lines::new(b"ab\n\nc");
        assert_eq!([0, 2, 3, 4, 9].map(|at| lines.of(at)), [1, 1, 2, 3, 3]);
    }
}
