//! Texts as open_clip cleans them before its own tokenizer: `ftfy.fix_text` (6.3), HTML unescaped twice, single spaces, lower case.
//!
//! Of what `ftfy` mends this does all but one thing: text that was decoded by the wrong table (`sÃ£o`) is taken as it is.

use html_escape::NAMED_ENTITIES;
use tokenizers::normalizers::{NFC, NFKC};
use tokenizers::{NormalizedString, Normalizer};

/// Entities that count without a semicolon behind them, too, and where more letters follow.
const WITHOUT_SEMICOLON: [&str; 106] = [
    "AElig", "AMP", "Aacute", "Acirc", "Agrave", "Aring", "Atilde", "Auml", "COPY", "Ccedil", "ETH", "Eacute", "Ecirc",
    "Egrave", "Euml", "GT", "Iacute", "Icirc", "Igrave", "Iuml", "LT", "Ntilde", "Oacute", "Ocirc", "Ograve", "Oslash",
    "Otilde", "Ouml", "QUOT", "REG", "THORN", "Uacute", "Ucirc", "Ugrave", "Uuml", "Yacute", "aacute", "acirc",
    "acute", "aelig", "agrave", "amp", "aring", "atilde", "auml", "brvbar", "ccedil", "cedil", "cent", "copy",
    "curren", "deg", "divide", "eacute", "ecirc", "egrave", "eth", "euml", "frac12", "frac14", "frac34", "gt",
    "iacute", "icirc", "iexcl", "igrave", "iquest", "iuml", "laquo", "lt", "macr", "micro", "middot", "nbsp", "not",
    "ntilde", "oacute", "ocirc", "ograve", "ordf", "ordm", "oslash", "otilde", "ouml", "para", "plusmn", "pound",
    "quot", "raquo", "reg", "sect", "shy", "sup1", "sup2", "sup3", "szlig", "thorn", "times", "uacute", "ucirc",
    "ugrave", "uml", "uuml", "yacute", "yen", "yuml",
];
/// What Windows-1252 has in the places 0x80 to 0x9f; where it has nothing, what stands there.
const C1: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}', '\u{2c6}', '\u{2030}',
    '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}', '\u{8f}', '\u{90}', '\u{2018}', '\u{2019}', '\u{201c}',
    '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}', '\u{2dc}', '\u{2122}', '\u{161}', '\u{203a}', '\u{153}', '\u{9d}',
    '\u{17e}', '\u{178}',
];
/// Most times that a text is mended again, since what one mend makes another may mend; far more than any text takes.
const MOST_ROUNDS: usize = 64;

/// `text` as open_clip's `_clean_lower` leaves it.
pub(super) fn clean_lower(text: &str) -> String {
    // Once a line has a `<` in it, it and those behind it are taken for HTML, whose entities have a reason.
    let mut unescapes = true;
    let mut fixed = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        unescapes = unescapes && !line.contains('<');
        fixed.push_str(&fix_line(line, unescapes));
    }
    let plain = unescape(&unescape(&fixed));
    plain.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// A line as `ftfy` leaves it.
fn fix_line(line: &str, unescapes: bool) -> String {
    let mut text = line.to_owned();
    for _ in 0..MOST_ROUNDS {
        let unescaped = if unescapes { unescape_sure(&text) } else { text.clone() };
        let mut plain = String::with_capacity(unescaped.len());
        without_escapes(&unescaped).chars().for_each(|character| push_plain(character, &mut plain));
        let composed = normalized(&NFC, plain);
        if composed == text {
            break;
        }
        text = composed;
    }
    text
}

fn normalized(form: &impl Normalizer, text: String) -> String {
    let mut normalized = NormalizedString::from(text.as_str());
    // It cannot fail; a text that it leaves alone is still a text.
    match form.normalize(&mut normalized) {
        Ok(()) => normalized.get().to_owned(),
        Err(_) => text,
    }
}

/// Adds what `ftfy` makes of a character.
fn push_plain(character: char, out: &mut String) {
    let character = match character as u32 {
        code @ 0x80..=0x9f => C1[code as usize - 0x80],
        _ => character,
    };
    match character {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
        '\u{201c}'..='\u{201f}' => out.push('"'),
        '\u{132}' => out.push_str("IJ"),
        '\u{133}' => out.push_str("ij"),
        '\u{149}' => out.push_str("'n"),
        '\u{1c4}' => out.push_str("D\u{17d}"),
        '\u{1c5}' => out.push_str("D\u{17e}"),
        '\u{1c6}' => out.push_str("d\u{17e}"),
        '\u{1c7}' => out.push_str("LJ"),
        '\u{1c8}' => out.push_str("Lj"),
        '\u{1c9}' => out.push_str("lj"),
        '\u{1ca}' => out.push_str("NJ"),
        '\u{1cb}' => out.push_str("Nj"),
        '\u{1cc}' => out.push_str("nj"),
        '\u{1f1}' => out.push_str("DZ"),
        '\u{1f2}' => out.push_str("Dz"),
        '\u{1f3}' => out.push_str("dz"),
        '\u{fb00}' => out.push_str("ff"),
        '\u{fb01}' => out.push_str("fi"),
        '\u{fb02}' => out.push_str("fl"),
        '\u{fb03}' => out.push_str("ffi"),
        '\u{fb04}' => out.push_str("ffl"),
        '\u{fb05}' => out.push_str("\u{17f}t"),
        '\u{fb06}' => out.push_str("st"),
        '\u{3000}' => out.push(' '),
        '\r' | '\u{2028}' | '\u{2029}' => out.push('\n'),
        // Half and full width.
        '\u{ff01}'..='\u{ffef}' => out.push_str(&normalized(&NFKC, character.to_string())),
        '\0'..='\u{8}'
        | '\u{b}'
        | '\u{e}'..='\u{1f}'
        | '\u{7f}'
        | '\u{206a}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffc}' => {}
        other => out.push(other),
    }
}

/// `text` without what colours a terminal, `ESC [ 1 ; 31 m`.
fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        let behind = &rest[at + 2..];
        let end = behind.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(behind.len());
        let letter = behind[end..].chars().next().filter(char::is_ascii_alphabetic);
        let kept = if letter.is_some() { at } else { at + 2 };
        out.push_str(&rest[..kept]);
        rest = if letter.is_some() { &behind[end + 1..] } else { behind };
    }
    out.push_str(rest);
    out
}

/// The character or characters that the entity `name`, with its semicolon, stands for.
fn entity(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix(';')?.as_bytes();
    NAMED_ENTITIES.binary_search_by_key(&name, |(name, _)| *name).ok().map(|at| NAMED_ENTITIES[at].1)
}

/// [`entity`] of a name that needs no semicolon, and has none.
fn entity_without_semicolon(name: &str) -> Option<&'static str> {
    WITHOUT_SEMICOLON.binary_search(&name).ok()?;
    entity(&format!("{name};"))
}

/// `text` with every `&` taken for what `reference` makes of what stands behind it: how much of that it takes, and what for.
fn with_references(text: &str, reference: impl Fn(&str) -> Option<(usize, String)>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        if let Some((taken, stands_for)) = reference(behind) {
            out.push_str(&stands_for);
            rest = &behind[taken..];
        } else {
            out.push('&');
            rest = behind;
        }
    }
    out.push_str(rest);
    out
}

/// Python's `html.unescape`.
fn unescape(text: &str) -> String {
    with_references(text, reference)
}

/// See [`with_references`]: what Python's `html.unescape` makes of it.
fn reference(behind: &str) -> Option<(usize, String)> {
    if let Some(number) = behind.strip_prefix('#') {
        let (marks, digits, radix) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (2, digits, 16),
            None => (1, number, 10),
        };
        let length = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        if length == 0 {
            return None;
        }
        // One too long for a number is too large for a character.
        let code = u32::from_str_radix(&digits[..length], radix).unwrap_or(u32::MAX);
        let semicolon = usize::from(digits[length..].starts_with(';'));
        return Some((marks + length + semicolon, of_code(code)));
    }
    let is_part = |c: char| !['\t', '\n', '\u{c}', ' ', '<', '&', '#', ';'].contains(&c);
    let name = behind.char_indices().take(32).take_while(|(_, c)| is_part(*c)).last();
    let length = name.map(|(at, last)| at + last.len_utf8())?;
    let whole = if behind[length..].starts_with(';') { length + 1 } else { length };
    let found = entity(&behind[..whole]).or_else(|| entity_without_semicolon(&behind[..whole]));
    if let Some(found) = found {
        return Some((whole, found.to_owned()));
    }
    // The longest beginning of at least two letters that is one.
    let starts = behind[..whole].char_indices().map(|(at, _)| at).filter(|&at| at > 1).collect::<Vec<_>>();
    let beginning = starts.into_iter().rev().find_map(|at| Some((at, entity_without_semicolon(&behind[..at])?)));
    beginning.map(|(at, found)| (at, found.to_owned()))
}

/// What a number stands for in HTML.
fn of_code(code: u32) -> String {
    let is_none = matches!(code, 1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef) || code & 0xfffe == 0xfffe;
    match code {
        0 => "\u{fffd}".to_owned(),
        0x80..=0x9f => C1[code as usize - 0x80].to_string(),
        _ if code > 0x0010_ffff => "\u{fffd}".to_owned(),
        _ if is_none => String::new(),
        _ => char::from_u32(code).unwrap_or('\u{fffd}').to_string(),
    }
}

/// `text` with the entities that are surely meant: those with a semicolon, and names in capitals of those in small letters.
fn unescape_sure(text: &str) -> String {
    with_references(text, |behind| {
        let number = behind.strip_prefix('#');
        let inner = number.unwrap_or(behind);
        let length = inner.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(inner.len());
        if !(1..=24).contains(&length) || !inner[length..].starts_with(';') {
            return None;
        }
        let whole = behind.len() - inner.len() + length + 1;
        let name = &behind[..whole];
        if number.is_some() {
            let (taken, stands_for) = reference(name)?;
            return (taken == whole && !stands_for.contains(';')).then_some((whole, stands_for));
        }
        if let Some(found) = entity(name) {
            return Some((whole, found.to_owned()));
        }
        let in_capitals = name.bytes().all(|byte| !byte.is_ascii_lowercase()) && reference(name).is_none();
        let small = entity(&name.to_ascii_lowercase()).filter(|_| in_capitals)?;
        Some((whole, small.to_uppercase()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // By ftfy 6.3 and Python 3.11, `" ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()`.
    #[test]
    fn texts_are_cleaned_as_by_open_clip() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/clean-texts.json");
        let texts: Vec<(String, String)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(texts.len() > 100);
        for (text, expected) in texts {
            assert_eq!(clean_lower(&text), expected, "{text:?}");
        }
    }

    #[test]
    fn tables_are_in_order() {
        assert!(WITHOUT_SEMICOLON.is_sorted() && NAMED_ENTITIES.is_sorted_by_key(|(name, _)| *name));
        assert!(WITHOUT_SEMICOLON.iter().all(|name| entity_without_semicolon(name).is_some()));
    }
}
