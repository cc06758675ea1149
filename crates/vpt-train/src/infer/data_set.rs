//! Predictions as a data set to learn from: what a task is sure of, and a list of what a person should look at.
//!
//! A gate decides: boxes, classes and pixels below it are left out. What lies near it, on either side, is what the task may be wrong
//! about, so images are listed by that, the most doubtful first.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{detect::DetectPrediction, predict::Prediction, segment::SegmentPrediction};
use vpt_base::choice::choice;
use vpt_base::{Error, Message, Progress, Result};
use vpt_data::boxes::{BoxDataset, BoxImage, BoxLayout, Category, Object, Rect, convert_parts};
use vpt_data::masks::{IGNORED, MaskImage};
use vpt_data::{ImageSource, Layout, MaskSetWriter, Split, write_class_folders};
use vpt_model::model::SegmentTask;

choice! {
    /// A layout that predictions are written in.
    pub enum PredictedLayout for "to" {
        /// COCO: boxes in a JSON file.
        Coco = "coco",
        /// YOLO: boxes in a text file for each image, and `data.yaml`.
        Yolo = "yolo",
        /// Pascal VOC: boxes in an XML file for each image, or masks.
        Voc = "voc",
        /// A folder for each class.
        Folder = "folder",
    }
}

/// Least probability of a class, of an image or of a pixel, where no other is asked for.
pub const LEAST_PROBABILITY: f64 = 0.5;

/// Share of an image's pixels from which on it is listed.
const UNSURE_PIXELS: f64 = 0.05;

/// Boxes that are named of an image.
const NAMED: usize = 5;

/// Summary of what was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrittenSet {
    /// The folder.
    pub out: PathBuf,
    /// How it lies there.
    pub layout: PredictedLayout,
    /// Images in it.
    pub images: usize,
    /// Objects in it, where it has boxes.
    pub objects: Option<usize>,
    /// Images, or boxes, that were left out because the task was not sure enough.
    pub left_out: usize,
}

/// An image that a person should look at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReviewRow {
    /// Its path.
    pub image: String,
    /// How doubtful it is; the most doubtful are listed first.
    pub doubt: f64,
    /// Whether it is in the data set.
    pub written: bool,
    /// Why, in words.
    pub reason: String,
}

/// How near `score` lies to the gate `least`: 1 at it, falling to 0 at half of it and a quarter of the way from it to 1.
fn nearness(score: f64, least: f64) -> f64 {
    let reach = if score < least { least / 2. } else { (1. - least) / 4. };
    if reach > 0. { (1. - (score - least).abs() / reach).max(0.) } else { 0. }
}

/// Half of each of `thresholds`: boxes that are looked at, to tell what was almost found.
pub fn looked_at(thresholds: &[f64]) -> Vec<f64> {
    thresholds.iter().map(|threshold| threshold / 2.).collect()
}

/// Those of `predictions`, which hold what [`looked_at`] lets through, that score as much as the threshold of their class.
pub fn above(predictions: &[DetectPrediction], thresholds: &[f64]) -> Vec<DetectPrediction> {
    let keep = |prediction: &DetectPrediction| {
        let mut prediction = prediction.clone();
        prediction.boxes.retain(|found| thresholds.get(found.class).is_some_and(|&least| found.score >= least));
        prediction
    };
    predictions.iter().map(keep).collect()
}

/// Writes the boxes in `predictions` that score as much as the threshold of their class as a data set in the layout `to`: every image,
/// those without boxes too, all in train. `predictions` hold what [`looked_at`] lets through. `classes` are names and ids.
///
/// # Errors
/// The layout holds no boxes; those of [`vpt_data::boxes::convert`].
pub fn write_boxes(
    predictions: &[DetectPrediction],
    classes: Vec<Category>,
    thresholds: &[f64],
    to: PredictedLayout,
    out: &Path,
) -> Result<(WrittenSet, Vec<ReviewRow>)> {
    let layout = match to {
        PredictedLayout::Coco => BoxLayout::Coco,
        PredictedLayout::Yolo => BoxLayout::Yolo,
        PredictedLayout::Voc => BoxLayout::Voc,
        PredictedLayout::Folder => return Err(wrong_layout(to, "boxes", "coco, yolo or voc")),
    };
    let sure = above(predictions, thresholds);
    let mut ids = 1..;
    let mut image = |(prediction, id): (&DetectPrediction, u64)| {
        let objects = prediction.boxes.iter().filter_map(|found| {
            let rect = on_thousandths(found.bbox)?;
            Some(Object { id: ids.next()?, category: found.class, rect, area: rect.area(), crowd: false })
        });
        BoxImage {
            id,
            name: prediction.image.replace('\\', "/"),
            image: ImageSource::File(PathBuf::from(&prediction.image)),
            width: prediction.width,
            height: prediction.height,
            objects: objects.collect(),
        }
    };
    let train: Vec<BoxImage> = sure.iter().zip(1..).map(&mut image).collect();
    let objects = train.iter().map(|image| image.objects.len()).sum();
    let data = BoxDataset::of_train("predictions", Layout::MEMORY, classes, train);
    convert_parts(&data, layout, out, &[Split::Train])?;
    let looked: usize = predictions.iter().map(|prediction| prediction.boxes.len()).sum();
    let written = WrittenSet {
        out: out.to_path_buf(),
        layout: to,
        images: predictions.len(),
        objects: Some(objects),
        left_out: looked - objects,
    };
    Ok((written, sorted(predictions.iter().filter_map(|prediction| review_boxes(prediction, thresholds)))))
}

/// The box with edges at thousandths of a pixel, as data sets have them; none if nothing is left.
fn on_thousandths([x, y, width, height]: [f64; 4]) -> Option<Rect> {
    let round = |value: f64| (value * 1000.).round() / 1000.;
    let [left, top, right, bottom] = [x, y, x + width, y + height].map(round);
    let rect = Rect { x: left, y: top, width: round(right - left), height: round(bottom - top) };
    (rect.width > 0. && rect.height > 0.).then_some(rect)
}

/// Why the boxes of an image should be looked at, if they should.
fn review_boxes(prediction: &DetectPrediction, thresholds: &[f64]) -> Option<ReviewRow> {
    let near = |class: usize, score: f64| nearness(score, thresholds.get(class).copied().unwrap_or(1.));
    let mut doubtful: Vec<_> =
        prediction.boxes.iter().map(|found| (near(found.class, found.score), found)).filter(|d| d.0 > 0.).collect();
    doubtful.sort_by(|a, b| b.0.total_cmp(&a.0));
    let reason = if prediction.boxes.is_empty() {
        "nothing found".to_owned()
    } else if doubtful.is_empty() {
        return None;
    } else {
        let named = doubtful.iter().take(NAMED).map(|(_, found)| format!("{} {:.3}", found.label, found.score));
        let more = if doubtful.len() > NAMED { ", …" } else { "" };
        let s = if doubtful.len() == 1 { "" } else { "es" };
        format!("{} doubtful box{s}: {}{more}", doubtful.len(), named.collect::<Vec<_>>().join(", "))
    };
    let doubt = doubtful.iter().map(|(doubt, _)| doubt).sum();
    Some(ReviewRow { image: prediction.image.clone(), doubt, written: true, reason })
}

/// Writes the images whose class is at least as probable as `least` into folders of their classes.
///
/// # Errors
/// The layout is not that of folders; those of [`write_class_folders`].
pub fn write_folders(
    predictions: &[Prediction],
    classes: &[String],
    least: f64,
    to: PredictedLayout,
    out: &Path,
) -> Result<(WrittenSet, Vec<ReviewRow>)> {
    if to != PredictedLayout::Folder {
        return Err(wrong_layout(to, "one class an image", "folder"));
    }
    let class = |prediction: &Prediction| prediction.top5.first().map_or(0, |guess| guess.class);
    let is_sure = |prediction: &&Prediction| prediction.probability >= least;
    let images: Vec<(&Path, usize)> =
        predictions.iter().filter(is_sure).map(|p| (Path::new(&p.image), class(p))).collect();
    if images.is_empty() {
        let message = format!("{least}: no image is that sure to be of a class; nothing is written");
        return Err(Error::setting("min_score", message));
    }
    write_class_folders(out, &images, classes)?;
    let written = WrittenSet {
        out: out.to_path_buf(),
        layout: to,
        images: images.len(),
        objects: None,
        left_out: predictions.len() - images.len(),
    };
    let row = |prediction: &Prediction| {
        let is_doubtful = prediction.probability < least || nearness(prediction.probability, least) > 0.;
        let named = prediction.top5.iter().take(NAMED).map(|g| format!("{} {:.3}", g.label, g.probability));
        is_doubtful.then(|| ReviewRow {
            image: prediction.image.clone(),
            doubt: 1. - prediction.probability,
            written: prediction.probability >= least,
            reason: named.collect::<Vec<_>>().join(", "),
        })
    };
    Ok((written, sorted(predictions.iter().filter_map(row))))
}

/// Tells the pixels of `images` apart and writes images and masks in the layout of Pascal VOC. A pixel whose class is less probable
/// than the task was told to be sure of ([`SegmentTask::with_least_probability`]) is 255 in its mask, of no class.
///
/// # Errors
/// The layout has no masks, an image cannot be read, or those of [`MaskSetWriter`].
pub fn write_masks(
    task: &SegmentTask,
    images: &[PathBuf],
    to: PredictedLayout,
    out: &Path,
    progress: Progress,
) -> Result<(Vec<SegmentPrediction>, WrittenSet, Vec<ReviewRow>)> {
    if to != PredictedLayout::Voc {
        return Err(wrong_layout(to, "a class for each pixel", "voc"));
    }
    let open = |path: &PathBuf| MaskImage::unlabelled(super::name(path), ImageSource::File(path.clone()));
    let opened = images.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut predictions = Vec::with_capacity(images.len());
    let mut rows = Vec::new();
    MaskSetWriter::fill(out, &task.meta().classes, &[Split::Train], |set| {
        task.visit_masks(opened, progress, |image, mask| {
            set.add_file(Split::Train, image.file(), &mask)?;
            let none = mask.classes.iter().filter(|class| **class == IGNORED).count();
            let share = none as f64 / mask.classes.len().max(1) as f64;
            if share >= UNSURE_PIXELS {
                let reason = format!("{:.1} % of its pixels are of no class", 100. * share);
                rows.push(ReviewRow { image: image.name.clone(), doubt: share, written: true, reason });
            }
            predictions.push(SegmentPrediction {
                image: image.name.clone(),
                width: mask.width,
                height: mask.height,
                classes: task.shares(&mask),
                mask: None,
            });
            Ok(())
        })
    })?;
    let written =
        WrittenSet { out: out.to_path_buf(), layout: to, images: predictions.len(), objects: None, left_out: 0 };
    Ok((predictions, written, sorted(rows.into_iter())))
}

fn wrong_layout(to: PredictedLayout, what: &str, others: &str) -> Error {
    Error::setting("to", Message::from(format!("{to}: the task says {what}, which are written as {others}")))
}

/// The most doubtful first; of equal ones the order stays.
fn sorted(rows: impl Iterator<Item = ReviewRow>) -> Vec<ReviewRow> {
    let mut rows: Vec<ReviewRow> = rows.collect();
    rows.sort_by(|a, b| b.doubt.total_cmp(&a.doubt));
    rows
}

/// The list of images to look at as a table: image, doubt, written, reason.
///
/// # Errors
/// The writer of tables fails.
pub fn review_csv(rows: &[ReviewRow]) -> Result<Vec<u8>> {
    let bad = |error: String| Error::invalid("review", error);
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["image", "doubt", "written", "reason"]).map_err(|error| bad(error.to_string()))?;
    for ReviewRow { image, doubt, written, reason } in rows {
        let row = [image.clone(), format!("{doubt:.4}"), written.to_string(), reason.clone()];
        writer.write_record(row).map_err(|error| bad(error.to_string()))?;
    }
    writer.into_inner().map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use super::*;
    use vpt_model::predict::PredictedBox;

    fn found(label: &str, class: usize, score: f64) -> PredictedBox {
        PredictedBox { label: label.to_owned(), score, bbox: [1., 2., 3., 4.], class }
    }

    fn picture(image: &str, boxes: Vec<PredictedBox>) -> DetectPrediction {
        DetectPrediction { image: image.to_owned(), width: 20, height: 10, boxes }
    }

    #[test]
    fn doubt_is_highest_at_the_gate() {
        let near = |score| (1e6 * nearness(score, 0.4)).round() / 1e6;
        assert_eq!([0., 0.2, 0.3, 0.4, 0.475, 0.55, 1.].map(near), [0., 0., 0.5, 1., 0.5, 0., 0.]);
        // A gate that lets everything, or nothing, through.
        assert_eq!([nearness(0.1, 0.), nearness(1., 1.), nearness(0.9, 0.)], [0.6, 0., 0.]);
    }

    #[test]
    fn images_are_listed_by_what_lies_near_the_gate_of_its_class() {
        let thresholds = [0.4, 0.8];
        let all = [
            picture("sure", vec![found("a", 0, 0.9)]),
            picture("nothing", Vec::new()),
            picture("near", vec![found("b", 1, 0.79), found("a", 0, 0.5)]),
            picture("far", vec![found("a", 0, 0.25)]),
        ];
        let rows = sorted(all.iter().filter_map(|prediction| review_boxes(prediction, &thresholds)));
        let told: Vec<_> = rows.iter().map(|row| (row.image.as_str(), row.reason.as_str())).collect();
        let expected = [
            ("near", "2 doubtful boxes: b 0.790, a 0.500"),
            ("far", "1 doubtful box: a 0.250"),
            ("nothing", "nothing found"),
        ];
        assert_eq!(told, expected);
        let kept = above(&all, &thresholds);
        assert_eq!(kept.iter().map(|image| image.boxes.len()).collect::<Vec<_>>(), [1, 0, 1, 0]);
        assert_eq!(looked_at(&thresholds), [0.2, 0.4]);
        let text = String::from_utf8(review_csv(&rows).unwrap()).unwrap();
        assert!(text.starts_with("image,doubt,written,reason\nnear,"), "{text}");
        assert!(text.contains("true,\"2 doubtful boxes: b 0.790, a 0.500\"\n"), "{text}");
    }

    #[test]
    fn edges_stay_inside_when_they_are_rounded() {
        let rect = on_thousandths([0.0004, 3.0006, 19.9996, 6.9994]).unwrap();
        assert!((rect.right() - 20.).abs() < 1e-9 && rect.bottom() <= 10. && rect.x >= 0., "{rect:?}");
        assert_eq!(on_thousandths([1., 1., 0.0001, 5.]), None);
    }
}
