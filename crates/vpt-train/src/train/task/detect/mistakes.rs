//! The page of a detector's worst validation images: those with the most objects that were missed, taken for another, or
//! seen where there is nothing.

use std::fmt::Write;

use super::Boxes;
use crate::report::{self, BoxTile, CardLine, ConfusedPair, DrawnBox, MistakePart, PictureCard};
use vpt_base::{Error, Result};
use vpt_data::boxes::BoxImage;
use vpt_image::decode::decode_bytes;
use vpt_model::metrics::{
    Confusion,
    coco::{self, Detection},
};

/// Images on the page.
const SHOWN: usize = 24;
/// Confused pairs in the table.
const PAIRS: usize = 10;

/// The page; boxes count that score at least `confidence`. `names` are those of the categories.
pub(super) fn page(
    task: &Boxes,
    title: &str,
    found: &[Detection],
    confidence: f64,
    names: &[String],
) -> Result<String> {
    let dataset = &task.dataset;
    let mut rows = names.to_vec();
    rows.push(coco::BACKGROUND.to_owned());
    let mut wrong: Vec<(u64, usize, Confusion)> = Vec::new();
    for (i, image) in dataset.val.iter().enumerate() {
        let own: Vec<Detection> = found.iter().filter(|found| found.image == image.id).copied().collect();
        let confusion = coco::confusion(std::slice::from_ref(image), &dataset.categories, &own, confidence)?;
        let errors = errors(&confusion).map(|(_, _, count)| count).sum();
        if errors > 0 {
            wrong.push((errors, i, confusion));
        }
    }
    wrong.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let all: u64 = wrong.iter().map(|(errors, ..)| errors).sum();
    let (count, total, shown) = (wrong.len(), dataset.val.len(), wrong.len().min(SHOWN));
    let mut summary = format!("{all} mistakes in {count} of {total} images");
    if shown < count {
        let _ = write!(summary, "; the {shown} with the most are shown");
    }
    summary.push('.');
    let mistakes = wrong.into_iter().take(SHOWN).map(|(_, i, confusion)| {
        let image = &dataset.val[i];
        let sheet = report::box_sheet_jpeg(&[tile(task, image, found, confidence)?], names)?;
        let sheet = decode_bytes(&sheet).map_err(|message| Error::invalid("mistakes.html", message))?;
        let lines = errors(&confusion).map(|(truth, predicted, count)| line(&rows, truth, predicted, count)).collect();
        Ok(PictureCard { image: sheet, path: image.name.clone(), lines })
    });
    let part = MistakePart {
        heading: "Validation images".to_owned(),
        summary,
        folded: false,
        pairs: pairs(task, found, confidence, &rows)?,
        mistakes: mistakes.collect::<Result<_>>()?,
    };
    let intro = format!(
        "The images with the most objects that were missed, taken for another class, or seen where there is nothing, at \
         scores of {confidence:.2} and above and an overlap (IoU) of at least one half. Left the truth, right what was found."
    );
    report::mistakes_html(title, &intro, &[part], true)
}

/// An image with the boxes that are in it, and those found that score at least `confidence`.
pub(super) fn tile(task: &Boxes, image: &BoxImage, found: &[Detection], confidence: f64) -> Result<BoxTile> {
    let predicted = found.iter().filter(|f| f.image == image.id && f.score >= confidence).filter_map(|found| {
        let category = task.dataset.categories.iter().position(|c| c.id == found.category)?;
        Some(DrawnBox { rect: found.rect, category, score: Some(found.score), crowd: false })
    });
    Ok(BoxTile {
        image: image.image.load()?,
        truth: image.objects.iter().map(DrawnBox::from).collect(),
        predicted: predicted.collect(),
    })
}

/// Pairs of classes that were confused, and how often.
fn errors(confusion: &Confusion) -> impl Iterator<Item = (usize, usize, u64)> {
    let classes = confusion.classes();
    (0..classes).flat_map(move |truth| {
        let counted = move |predicted: usize| (truth, predicted, confusion.count(truth, predicted));
        (0..classes).filter(move |&predicted| predicted != truth).map(counted).filter(|(_, _, count)| *count > 0)
    })
}

fn line(rows: &[String], truth: usize, predicted: usize, count: u64) -> CardLine {
    let background = rows.len() - 1;
    let (truth_name, predicted_name) = (&rows[truth], &rows[predicted]);
    let text = if predicted == background {
        format!("{count} missed: {truth_name}")
    } else if truth == background {
        format!("{count} where there is nothing: {predicted_name}")
    } else {
        format!("{count} {truth_name} taken for {predicted_name}")
    };
    CardLine { text, probability: None, right: Some(false) }
}

/// Over all validation images, most frequent first.
fn pairs(task: &Boxes, found: &[Detection], confidence: f64, rows: &[String]) -> Result<Vec<ConfusedPair>> {
    let confusion = coco::confusion(&task.dataset.val, &task.dataset.categories, found, confidence)?;
    let background = rows.len() - 1;
    let mut all: Vec<_> = errors(&confusion).collect();
    all.sort_by_key(|&(truth, predicted, count)| (std::cmp::Reverse(count), truth, predicted));
    let pair = |(truth, predicted, count): (usize, usize, u64)| ConfusedPair {
        truth: if truth == background { "(nothing)".to_owned() } else { rows[truth].clone() },
        predicted: if predicted == background { "(missed)".to_owned() } else { rows[predicted].clone() },
        count,
        of: if truth == background { 0 } else { confusion.row(truth).iter().sum() },
    };
    Ok(all.into_iter().take(PAIRS).map(pair).collect())
}
