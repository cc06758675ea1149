//! Pages of pictures with a few words below each, and tables of numbers between them.
//!
//! A page holds everything it shows, pictures among it, and no script, so it can be mailed, and opened without a network.

use std::fmt::Write;

use image::codecs::jpeg::JpegEncoder;

use super::{label, table};
use vpt_base::{Error, Result};
use vpt_image::decode::Rgb8;
use vpt_image::resize::{Filter, resize};

/// Longest side of a picture, in pixels.
const SIDE: usize = 224;
/// Quality of the pictures: small ones.
const QUALITY: u8 = 82;
/// Letters of a class name.
const NAME: usize = 60;

/// A part of a page.
#[derive(Debug, Clone, Default)]
pub struct PagePart {
    /// Its heading.
    pub heading: String,
    /// A sentence below it.
    pub summary: String,
    /// Whether it is folded up when the page is opened.
    pub folded: bool,
    /// Whether its pictures are pairs of pictures.
    pub wide: bool,
    /// A table above the pictures.
    pub table: Option<PageTable>,
    /// The pictures.
    pub cards: Vec<PictureCard>,
}

/// A table: two columns of names, then columns of numbers.
#[derive(Debug, Clone)]
pub struct PageTable {
    /// What the columns are.
    pub header: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// A picture and what is said of it.
#[derive(Debug, Clone)]
pub struct PictureCard {
    /// The image, any size.
    pub image: Rgb8,
    /// Where it is.
    pub path: String,
    /// What is said, line by line.
    pub lines: Vec<CardLine>,
}

/// A line below a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct CardLine {
    /// A class, or what is wrong.
    pub text: String,
    /// Its probability, drawn as a bar.
    pub probability: Option<f64>,
    /// Whether this is true, where that is known.
    pub right: Option<bool>,
}

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fff;--fg:#1c1c1e;--dim:#63636b;--card:#f5f5f7;--line:#d9d9de;--wrong:#b4430a;--right:#006e4e;--bar:#dcdce1;--barwrong:#ecc7b1;--barright:#b5dccd}
@media(prefers-color-scheme:dark){:root{--bg:#16171a;--fg:#e8e8ea;--dim:#a0a1a8;--card:#212328;--line:#3a3c43;--wrong:#ff9d66;--right:#5fd3a8;--bar:#35373e;--barwrong:#5a3a28;--barright:#1f4f3f}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:76rem;background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.45rem;margin:0 0 .2rem}
h2,summary{font-size:1.15rem;font-weight:600;margin:2.2rem 0 .3rem}
summary{cursor:pointer}
p{margin:.2rem 0 1rem;color:var(--dim)}
table{border-collapse:collapse;margin:.6rem 0 1.6rem}
th,td{text-align:left;padding:.25rem 1.2rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:baseline;overflow-wrap:anywhere}
th{font-weight:600;color:var(--dim)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
ol{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
ol.wide{grid-template-columns:repeat(auto-fill,minmax(26rem,1fr))}
li{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.75rem;min-width:0}
img{display:block;width:100%;height:14rem;object-fit:contain;background:var(--bg);border-radius:4px;margin-bottom:.6rem}
ol.wide img{height:auto}
img.tiny{image-rendering:pixelated}
.l{position:relative;display:flex;justify-content:space-between;gap:.8rem;padding:.1rem .4rem;margin:.15rem 0;border-radius:3px;overflow:hidden}
.l i{position:absolute;inset:0 auto 0 0;background:var(--bar)}
.l.right i{background:var(--barright)}
.l.wrong i{background:var(--barwrong)}
.l span{position:relative;overflow-wrap:anywhere}
.l span+span{white-space:nowrap;font-variant-numeric:tabular-nums}
.wrong .w{color:var(--wrong);font-weight:600}
.right .w{color:var(--right);font-weight:600}
.right .w::before{content:'✓ '}
.wrong .w::before{content:'✗ '}
code{display:block;margin-top:.5rem;color:var(--dim);font:12px/1.35 ui-monospace,monospace;overflow-wrap:anywhere}
";

/// The page of `what` called `title`, with `parts` one below the other.
///
/// # Errors
/// If the JPEG encoder refuses a picture.
pub fn picture_page(what: &str, title: &str, intro: &str, parts: &[PagePart]) -> Result<String> {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{what}: {0}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{what}: {0}</h1>\n<p>{1}</p>\n",
        escape(title),
        escape(intro)
    );
    for part in parts {
        let (open, close) =
            if part.folded { ("<details>\n<summary>", "</summary>") } else { ("<section>\n<h2>", "</h2>") };
        let _ = writeln!(page, "{open}{}{close}", escape(&part.heading));
        let _ = writeln!(page, "<p>{}</p>", escape(&part.summary));
        if let Some(table) = &part.table {
            rows(&mut page, table);
        }
        page += if part.wide { "<ol class=\"wide\">\n" } else { "<ol>\n" };
        for picture in &part.cards {
            card(&mut page, picture, part.wide)?;
        }
        page += "</ol>\n";
        page += if part.folded { "</details>\n" } else { "</section>\n" };
    }
    page += "</body>\n</html>\n";
    Ok(page)
}

/// The first two columns are names, the others numbers.
fn rows(page: &mut String, PageTable { header, rows }: &PageTable) {
    let class = |column: usize| if column < 2 { "" } else { " class=\"n\"" };
    *page += "<table>\n<tr>";
    for (column, text) in header.iter().enumerate() {
        let _ = write!(page, "<th{}>{}</th>", class(column), escape(text));
    }
    *page += "</tr>\n";
    for row in rows {
        *page += "<tr>";
        for (column, text) in row.iter().enumerate() {
            let _ = write!(page, "<td{}>{}</td>", class(column), escape(&label(text, NAME)));
        }
        *page += "</tr>\n";
    }
    *page += "</table>\n";
}

fn card(page: &mut String, picture: &PictureCard, wide: bool) -> Result<()> {
    let longest = picture.image.width.max(picture.image.height);
    let class = if longest <= SIDE / 3 { " class=\"tiny\"" } else { "" };
    let uri = data_uri(&picture.image, if wide { 4 * SIDE } else { SIDE })?;
    let _ = writeln!(page, "<li><img{class} loading=\"lazy\" alt=\"\" src=\"{uri}\">");
    for line in &picture.lines {
        let class = match line.right {
            Some(true) => "l right",
            Some(false) => "l wrong",
            None => "l",
        };
        let share = line.probability.map(|p| p.clamp(0., 1.));
        let bar = share.map(|p| format!("<i style=\"width:{:.1}%\"></i>", p * 100.)).unwrap_or_default();
        let percent = share.map(|p| format!("<span>{}</span>", table::percent(p))).unwrap_or_default();
        let text = escape(&label(&line.text, NAME));
        let _ = writeln!(page, "<div class=\"{class}\">{bar}<span class=\"w\">{text}</span>{percent}</div>");
    }
    let _ = writeln!(page, "<code>{}</code></li>", escape(&label(&picture.path, 200)));
    Ok(())
}

/// `image`, scaled down to `side` pixels at its longest, as a JPEG file in the text of a link.
fn data_uri(image: &Rgb8, side: usize) -> Result<String> {
    let longest = image.width.max(image.height).max(1);
    let fit = |length: usize| (length * side).div_ceil(longest).clamp(1, side);
    let scaled = (longest > side).then(|| resize(image, fit(image.width), fit(image.height), Filter::Bicubic));
    let image = scaled.as_ref().unwrap_or(image);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&image.pixels, image.width as u32, image.height as u32, image::ExtendedColorType::Rgb8)
        .map_err(|error| Error::invalid("a picture of a page", error.to_string()))?;
    Ok(format!("data:image/jpeg;base64,{}", base64(&jpeg)))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0u32, |bits, (i, &byte)| bits | u32::from(byte) << (16 - 8 * i));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// `text` for HTML, between tags or in quotes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c if c.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
