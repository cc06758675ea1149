//! `audit.html`: what was found, with the pictures.

use super::{Audit, Audited, DuplicatePair, Likeness};
use crate::report::{CardLine, PagePart, PageTable, PictureCard, picture_page, table};
use vpt_base::Result;
use vpt_data::Sample;
use vpt_image::Rgb8;
use vpt_image::resize::{Filter, paste, resize};

/// Pictures of each kind that are shown.
const SHOWN: [usize; 3] = [100, 60, 40];
/// Most pixels of the height of two pictures side by side, and between them.
const HEIGHT: usize = 224;
const BETWEEN: usize = 8;

/// The page about `audit`, of `samples`.
pub(super) fn html(audit: &Audit, samples: &[&Sample]) -> Result<String> {
    let things = if audit.boxes { "boxes" } else { "images" };
    let intro = format!(
        "{} {things} of {} classes, looked at by {}. What stands here is an opinion of that backbone: look before you change \
         anything. {} has a row for each finding.",
        audit.images,
        audit.classes,
        audit.backbone,
        super::TABLE
    );
    let title = format!("{} by {}", audit.data, audit.backbone);
    picture_page(
        "Audit",
        &title,
        &intro,
        &[doubtful(audit, samples)?, twice(audit, samples)?, far(audit, samples)?, alike(audit)],
    )
}

fn count(found: usize, shown: usize, what: &str) -> String {
    let more = if found > shown { format!("; the first {shown} are shown") } else { String::new() };
    format!("{found} found{more}. {what}")
}

fn plain(text: String) -> CardLine {
    CardLine { text, probability: None, right: None }
}

/// Where an image is.
fn place(image: &Audited) -> String {
    let sides =
        image.bbox.map(|sides| format!(" box {}", sides.map(|side| side.to_string()).join(" "))).unwrap_or_default();
    format!("{}{sides} ({})", image.path, image.part)
}

fn doubtful(audit: &Audit, samples: &[&Sample]) -> Result<PagePart> {
    let card = |doubt: &super::DoubtfulLabel| {
        let line =
            |text: &str, p: f32, right| CardLine { text: text.to_owned(), probability: Some(f64::from(p)), right };
        let lines =
            vec![line(&doubt.image.label, doubt.given, Some(false)), line(&doubt.suggestion, doubt.likely, None)];
        Ok(PictureCard { image: samples[doubt.image.sample].load()?, path: place(&doubt.image), lines })
    };
    let what = "First the label, then what a probe that has not seen the image and the image's neighbours take it for.";
    Ok(PagePart {
        heading: "Doubtful labels".into(),
        summary: count(audit.doubtful.len(), SHOWN[0], what),
        cards: audit.doubtful.iter().take(SHOWN[0]).map(card).collect::<Result<_>>()?,
        ..PagePart::default()
    })
}

fn twice(audit: &Audit, samples: &[&Sample]) -> Result<PagePart> {
    let card = |pair: &DuplicatePair| {
        let image = beside(&samples[pair.first.sample].load()?, &samples[pair.second.sample].load()?);
        let how = match pair.likeness {
            Likeness::Equal => "the same pixels".to_owned(),
            Likeness::Mirrored => format!("mirrored, correlation {:.3}", pair.correlation),
            Likeness::Near => format!("correlation {:.3}", pair.correlation),
        };
        let mut lines = vec![plain(format!("{} and {}", pair.first.label, pair.second.label)), plain(how)];
        if pair.across_parts {
            let text = format!("in {} and in {}", pair.first.part, pair.second.part);
            lines.push(CardLine { text, probability: None, right: Some(false) });
        }
        if pair.other_label {
            lines.push(CardLine { text: "labels differ".into(), probability: None, right: Some(false) });
        }
        Ok(PictureCard { image, path: format!("{} | {}", place(&pair.first), place(&pair.second)), lines })
    };
    let across = audit.duplicates.iter().filter(|pair| pair.across_parts).count();
    let what = format!("{across} of them are in two parts: what is tested on was learned from.");
    let mut order: Vec<&DuplicatePair> = audit.duplicates.iter().collect();
    order.sort_by_key(|pair| !pair.across_parts);
    Ok(PagePart {
        heading: "Pictures that are there twice".into(),
        summary: count(audit.duplicates.len(), SHOWN[1], &what),
        wide: true,
        cards: order.into_iter().take(SHOWN[1]).map(card).collect::<Result<_>>()?,
        ..PagePart::default()
    })
}

fn far(audit: &Audit, samples: &[&Sample]) -> Result<PagePart> {
    let card = |outlier: &super::Outlier| {
        let lines = vec![plain(outlier.image.label.clone()), plain(format!("distance {:.3}", outlier.distance))];
        Ok(PictureCard { image: samples[outlier.image.sample].load()?, path: place(&outlier.image), lines })
    };
    let what = "Pictures unlike all others: of something else, broken, or the only ones of their kind.";
    Ok(PagePart {
        heading: "Outliers".into(),
        summary: count(audit.outliers.len(), SHOWN[2], what),
        cards: audit.outliers.iter().take(SHOWN[2]).map(card).collect::<Result<_>>()?,
        ..PagePart::default()
    })
}

fn alike(audit: &Audit) -> PagePart {
    let header = ["class", "class", "share"].map(str::to_owned).to_vec();
    let row = |pair: &super::AlikePair| {
        let [a, b] = pair.classes.clone();
        vec![a, b, table::percent(pair.share)]
    };
    let rows: Vec<Vec<String>> = audit.alike.iter().map(row).collect();
    PagePart {
        heading: "Most alike classes".into(),
        summary:
            "The share of an image's probability that goes to the other class, in the mean over the images of both."
                .into(),
        table: (!rows.is_empty()).then_some(PageTable { header, rows }),
        ..PagePart::default()
    }
}

/// Two images side by side, at one height.
fn beside(left: &Rgb8, right: &Rgb8) -> Rgb8 {
    let height = left.height.max(right.height).clamp(1, HEIGHT);
    let scaled = |image: &Rgb8| {
        let width = (image.width * height / image.height.max(1)).clamp(1, 4 * HEIGHT);
        resize(image, width, height, Filter::Bicubic)
    };
    let (left, right) = (scaled(left), scaled(right));
    let (at, width) = (left.width + BETWEEN, left.width + BETWEEN + right.width);
    let mut both = paste(left, 0, 0, (width, height), [255; 3]);
    for (into, from) in both.pixels.chunks_exact_mut(3 * width).zip(right.pixels.chunks_exact(3 * right.width)) {
        into[3 * at..].copy_from_slice(from);
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pictures_stand_side_by_side_at_one_height() {
        let grey = |width, height, value| Rgb8 { width, height, pixels: vec![value; width * height * 3] };
        let both = beside(&grey(10, 20, 50), &grey(20, 10, 200));
        assert_eq!((both.width, both.height), (10 + BETWEEN + 40, 20));
        assert_eq!([both.pixels[0], both.pixels[3 * 11], both.pixels[3 * (both.width - 1)]], [50, 255, 200]);
        assert!(beside(&grey(3000, 2, 1), &grey(1, 5000, 1)).width <= 8 * HEIGHT + BETWEEN);
    }
}
