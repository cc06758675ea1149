//! `mistakes.html`: the images a model is most sure of and wrong about, on one page.

use super::picture_page::{PagePart, PageTable, PictureCard, picture_page};
use super::table;
use vpt_base::Result;

/// The mistakes in one part of a data set.
#[derive(Debug, Clone)]
pub struct MistakePart {
    /// Name of the part, as a heading.
    pub heading: String,
    /// A sentence below it.
    pub summary: String,
    /// Whether it is folded up when the page is opened.
    pub folded: bool,
    /// Confused pairs of classes, most frequent first.
    pub pairs: Vec<ConfusedPair>,
    /// The images, worst first, with predictions line by line.
    pub mistakes: Vec<PictureCard>,
}

/// Images of one class that were taken for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfusedPair {
    /// Their class.
    pub truth: String,
    /// The class they were taken for.
    pub predicted: String,
    /// How many.
    pub count: u64,
    /// Of how many of the true class; 0 where that says nothing.
    pub of: u64,
}

/// The page, called `title`, with `parts` one below the other; `wide` if its pictures are pairs of pictures.
///
/// # Errors
/// If the JPEG encoder refuses a picture.
pub fn mistakes_html(title: &str, intro: &str, parts: &[MistakePart], wide: bool) -> Result<String> {
    let part = |part: &MistakePart| PagePart {
        heading: part.heading.clone(),
        summary: part.summary.clone(),
        folded: part.folded,
        wide,
        table: pairs(&part.pairs, if wide { "objects" } else { "images" }),
        cards: part.mistakes.clone(),
    };
    picture_page("Mistakes", title, intro, &parts.iter().map(part).collect::<Vec<_>>())
}

/// The table of what was taken for what; `things` are what is counted.
fn pairs(pairs: &[ConfusedPair], things: &str) -> Option<PageTable> {
    let row = |pair: &ConfusedPair| {
        let share = (pair.of > 0).then(|| pair.count as f64 / pair.of as f64);
        vec![pair.truth.clone(), pair.predicted.clone(), pair.count.to_string(), table::percent(share)]
    };
    let header = ["true class", "taken for", things, "of the true class"].map(str::to_owned).to_vec();
    (!pairs.is_empty()).then(|| PageTable { header, rows: pairs.iter().map(row).collect() })
}

#[cfg(test)]
mod tests {
    use super::super::picture_page::CardLine;
    use super::*;
    use vpt_image::decode::Rgb8;

    fn part(text: &str, image: Rgb8) -> MistakePart {
        let lines = vec![CardLine { text: text.into(), probability: Some(0.934), right: Some(false) }];
        MistakePart {
            heading: "Validation".into(),
            summary: text.into(),
            folded: false,
            pairs: vec![ConfusedPair { truth: text.into(), predicted: "b".into(), count: 3, of: 4 }],
            mistakes: vec![PictureCard { image, path: text.into(), lines }],
        }
    }

    #[test]
    fn names_from_folders_are_text_never_markup() {
        let hostile = "</style><script src='http://x'>\"&\u{1b}";
        let page = mistakes_html(hostile, hostile, &[part(hostile, Rgb8::new(3, 2))], false).unwrap();
        assert!(!page.contains("<script") && !page.contains('\u{1b}') && page.matches("</style>").count() == 1);
        assert!(page.contains("&lt;script src=&#39;http://x&#39;&gt;&quot;&amp;\u{fffd}"));
        assert!(page.contains("75.0 %") && page.contains("93.4 %") && page.contains("width:93.4%"));
    }

    #[test]
    fn pages_need_nothing_from_elsewhere_and_large_pictures_get_small() {
        let page = mistakes_html("run", "", &[part("a", Rgb8::new(3000, 40))], false).unwrap();
        for word in ["http", "url(", "<script", "<link", "@import"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.len() < 20_000, "{}", page.len());
        assert_eq!(
            page,
            mistakes_html("run", "", &[part("a", Rgb8::new(3000, 40))], false).unwrap(),
            "same bytes every time"
        );
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    }
}
