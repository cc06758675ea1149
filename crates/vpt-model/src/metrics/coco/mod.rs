//! The COCO box metric, number for number that of pycocotools: average precision and recall over ten IoU thresholds, by
//! object size and by the number of detections allowed.
//!
//! Its details decide the third digit (which of two equal scores comes first, what an ignored object does to a detection,
//! at which index a recall is reached), so they are followed as they are rather than improved. Beside the twelve numbers
//! stand those of each category, and what the curves and the confusion matrix of detections need.

mod accumulate;
mod confusion;
mod matching;
mod resample;
mod results;
#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests;

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use confusion::{BACKGROUND, confusion};
pub use resample::MatchedDetections;
pub use results::{read_results, results_json};

use accumulate::{CategoryScore, THRESHOLDS};
use matching::Pair;

use vpt_base::{Error, Result};
use vpt_data::boxes::{BoxImage, Category, Object, Rect};

/// A box that a detector found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// The image's id in the data set's file.
    pub image: u64,
    /// The category's id in the data set's file.
    pub category: u64,
    /// Where the object is said to be.
    pub rect: Rect,
    /// How sure the detector is; only the order counts for the metric.
    pub score: f64,
}

/// The twelve numbers, named as the field writes them. Fractions of one; -1 where there is no object to find.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoMetrics {
    /// Average precision, mean over IoU thresholds .5, .55, … .95 and categories.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// The same at IoU .5 only.
    #[serde(rename = "AP50")]
    pub ap50: f64,
    /// The same at IoU .75 only.
    #[serde(rename = "AP75")]
    pub ap75: f64,
    /// `AP` of objects up to 32² pixels.
    #[serde(rename = "APs")]
    pub ap_small: f64,
    /// `AP` of objects from 32² to 96² pixels.
    #[serde(rename = "APm")]
    pub ap_medium: f64,
    /// `AP` of objects from 96² pixels.
    #[serde(rename = "APl")]
    pub ap_large: f64,
    /// Share of objects found with one detection an image and category, mean over thresholds and categories.
    #[serde(rename = "AR1")]
    pub ar1: f64,
    /// The same with ten detections.
    #[serde(rename = "AR10")]
    pub ar10: f64,
    /// The same with a hundred detections.
    #[serde(rename = "AR100")]
    pub ar100: f64,
    /// `AR100` of objects up to 32² pixels.
    #[serde(rename = "ARs")]
    pub ar_small: f64,
    /// `AR100` of objects from 32² to 96² pixels.
    #[serde(rename = "ARm")]
    pub ar_medium: f64,
    /// `AR100` of objects from 96² pixels.
    #[serde(rename = "ARl")]
    pub ar_large: f64,
}

impl CocoMetrics {
    /// The twelve, in the order of the fields, which is that of pycocotools.
    pub fn values(&self) -> [f64; 12] {
        let &Self { ap, ap50, ap75, ap_small, ap_medium, ap_large, .. } = self;
        let &Self { ar1, ar10, ar100, ar_small, ar_medium, ar_large, .. } = self;
        [ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium, ar_large]
    }
}

impl From<[f64; 12]> for CocoMetrics {
    /// Of what [`values`](CocoMetrics::values) gives.
    fn from(values: [f64; 12]) -> Self {
        let [ap, ap50, ap75, ap_small, ap_medium, ap_large, recalls @ ..] = values;
        let [ar1, ar10, ar100, ar_small, ar_medium, ar_large] = recalls;
        Self { ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium, ar_large }
    }
}

/// Objects from which on a category has a confidence of its own.
pub const ENOUGH: usize = 10;

/// How well one category is detected.
#[derive(Clone, Debug, PartialEq)]
pub struct CategoryEval {
    /// Objects to be found: all but crowds.
    pub objects: usize,
    /// `AP` of this category.
    pub ap: f64,
    /// `AP50` of this category.
    pub ap50: f64,
    /// Precision at IoU .5 for the recalls 0, .01, … 1: `[101]`, falling; 0 for recalls that are not reached.
    pub precision: Vec<f64>,
    /// F1 at IoU .5 of the detections that score at least [`CocoEval::confidences`]: as many values.
    pub f1: Vec<f64>,
}

/// What a detector found in a part of a data set, and how good that is.
#[derive(Debug, Clone)]
pub struct Detected {
    /// What was found, with the ids of the data set.
    pub detections: Vec<Detection>,
    /// How good it is.
    pub eval: CocoEval,
}

/// The outcome of [`evaluate`].
#[derive(Clone, Debug, PartialEq)]
pub struct CocoEval {
    /// The twelve numbers.
    pub metrics: CocoMetrics,
    /// Each category in the order it was given; `None` for one without objects to find, which counts nowhere.
    pub categories: Vec<Option<CategoryEval>>,
    /// The confidences at which F1 is known: 0, .001, … 1.
    pub confidences: Vec<f64>,
    /// Detections of categories that the data set does not have. As in pycocotools they count nowhere.
    pub unknown: usize,
}

impl CocoEval {
    /// Precision at IoU .5 for the recalls 0, .01, … 1, mean over the categories with objects; empty if there are none.
    pub fn mean_precision(&self) -> Vec<f64> {
        mean(self.categories.iter().flatten().map(|category| &category.precision[..]))
    }

    /// F1 at IoU .5 for [`Self::confidences`], mean over the categories with objects; empty if there are none.
    pub fn mean_f1(&self) -> Vec<f64> {
        mean(self.categories.iter().flatten().map(|category| &category.f1[..]))
    }

    /// The confidence with the best mean F1 and that F1: of equal ones the lowest. `None` if no category has objects.
    pub fn best_confidence(&self) -> Option<(f64, f64)> {
        let f1 = self.mean_f1();
        self.confidences.iter().copied().zip(f1).reduce(|best, point| if point.1 > best.1 { point } else { best })
    }

    /// For each category the confidence with its best F1, of equal ones the lowest; that of [`Self::best_confidence`] where it has fewer
    /// than [`ENOUGH`] objects. `None` if no category has objects.
    pub fn best_confidences(&self) -> Option<Vec<f64>> {
        let (shared, _) = self.best_confidence()?;
        let best = |category: &Option<CategoryEval>| {
            let Some(category) = category.as_ref().filter(|category| category.objects >= ENOUGH) else { return shared };
            let points = self.confidences.iter().copied().zip(category.f1.iter().copied());
            points.reduce(|best, point| if point.1 > best.1 { point } else { best }).map_or(shared, |point| point.0)
        };
        Some(self.categories.iter().map(best).collect())
    }
}

fn mean<'a>(curves: impl Iterator<Item = &'a [f64]>) -> Vec<f64> {
    let (mut sum, mut count) = (Vec::<f64>::new(), 0.);
    for curve in curves {
        sum.resize(curve.len(), 0.);
        sum.iter_mut().zip(curve).for_each(|(sum, value)| *sum += value);
        count += 1.;
    }
    sum.into_iter().map(|sum| sum / count).collect()
}

/// Compares `detections` with what is in `images`, whose objects are of `categories`.
///
/// Of the detections of one image and category the 100 that score highest count. Those that are left over are false also in
/// images without objects. Equal scores keep the order in which they are given.
///
/// # Errors
/// Image or category ids that occur twice; an object with annotation id 0, which pycocotools takes for "not found", or of a
/// category that is not given; a detection in an unknown image, or whose score or box is not finite.
pub fn evaluate(images: &[BoxImage], categories: &[Category], detections: &[Detection]) -> Result<CocoEval> {
    let sorted = sort(images, categories, detections)?;
    let confidences: Vec<f64> = (0..=1000).map(|i| f64::from(i) / 1000.).collect();
    let scores: Vec<CategoryScore> = sorted
        .categories
        .par_iter()
        .map(|category| {
            // One category in many images is as much work as many categories.
            let pairs = category.pairs();
            let matches: Vec<_> = pairs.par_iter().with_min_len(16).map(Pair::matches).collect();
            CategoryScore::new(&matches, &confidences)
        })
        .collect();
    // Sums go through categories by their ids, whatever order they are given in.
    let mut order: Vec<usize> = (0..categories.len()).collect();
    order.sort_by_key(|&category| categories[category].id);
    let by_id: Vec<&CategoryScore> = order.iter().map(|&category| &scores[category]).collect();
    let [all, small, medium, large] = [0, 1, 2, 3];
    let every = 0..THRESHOLDS;
    let metrics = CocoMetrics {
        ap: accumulate::precision(&by_id, all, every.clone()),
        ap50: accumulate::precision(&by_id, all, 0..1),
        ap75: accumulate::precision(&by_id, all, 5..6),
        ap_small: accumulate::precision(&by_id, small, every.clone()),
        ap_medium: accumulate::precision(&by_id, medium, every.clone()),
        ap_large: accumulate::precision(&by_id, large, every),
        ar1: accumulate::recall(&by_id, all, 0),
        ar10: accumulate::recall(&by_id, all, 1),
        ar100: accumulate::recall(&by_id, all, 2),
        ar_small: accumulate::recall(&by_id, small, 2),
        ar_medium: accumulate::recall(&by_id, medium, 2),
        ar_large: accumulate::recall(&by_id, large, 2),
    };
    let categories = scores.into_iter().map(CategoryScore::finish).collect();
    Ok(CocoEval { metrics, categories, confidences, unknown: sorted.unknown })
}

/// Ground truth and detections of one category, each beside its image's place in the order of ids. Sorted by image;
/// detections in one image by falling score.
#[derive(Default)]
struct InCategory<'a> {
    objects: Vec<(usize, &'a Object)>,
    detections: Vec<(usize, &'a Detection)>,
}

impl<'a> InCategory<'a> {
    /// One pair for each image that has objects or detections, in the order of image ids.
    fn pairs(&self) -> Vec<Pair<'_, 'a>> {
        let (mut objects, mut detections) = (&self.objects[..], &self.detections[..]);
        let mut pairs = Vec::new();
        while let Some(image) = objects.first().map(|o| o.0).into_iter().chain(detections.first().map(|d| d.0)).min() {
            let (here, later) = objects.split_at(objects.iter().take_while(|o| o.0 == image).count());
            let (found, rest) = detections.split_at(detections.iter().take_while(|d| d.0 == image).count());
            pairs.push(Pair { objects: here, detections: found });
            (objects, detections) = (later, rest);
        }
        pairs
    }
}

/// Objects and detections by category, checked.
struct Sorted<'a> {
    /// In the order they were given.
    categories: Vec<InCategory<'a>>,
    unknown: usize,
}

fn sort<'a>(images: &'a [BoxImage], categories: &[Category], detections: &'a [Detection]) -> Result<Sorted<'a>> {
    let mut ids: Vec<u64> = images.iter().map(|image| image.id).collect();
    ids.sort_unstable();
    if let Some([twice, _]) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::invalid("image id", format!("{twice} occurs twice")));
    }
    let places: HashMap<u64, usize> = ids.into_iter().zip(0..).collect();
    let mut seen = HashSet::new();
    if let Some(twice) = categories.iter().find(|category| !seen.insert(category.id)) {
        return Err(Error::invalid("category id", format!("{} occurs twice", twice.id)));
    }
    let indices: HashMap<u64, usize> = categories.iter().map(|category| category.id).zip(0..).collect();

    let mut sorted: Vec<InCategory> = categories.iter().map(|_| InCategory::default()).collect();
    for image in images {
        for object in &image.objects {
            let at = |message: String| Error::invalid(format!("image {}, annotation {}", image.id, object.id), message);
            if object.id == 0 {
                return Err(at("annotation ids must be above 0".into()));
            }
            let Some(category) = sorted.get_mut(object.category) else {
                return Err(at(format!("category index {} of {}", object.category, categories.len())));
            };
            category.objects.push((places[&image.id], object));
        }
    }
    let mut unknown = 0;
    for (i, detection) in detections.iter().enumerate() {
        let Detection { image, rect, score, .. } = detection;
        let at = |message: String| Error::invalid(format!("detection {} (image {image})", i + 1), message);
        let Some(&place) = places.get(image) else { return Err(at("the data set has no image with this id".into())) };
        if !score.is_finite() {
            return Err(at(format!("score {score} is not finite")));
        }
        if [rect.x, rect.y, rect.width, rect.height].iter().any(|side| !side.is_finite()) {
            return Err(at("the box is not finite".into()));
        }
        match indices.get(&detection.category) {
            Some(&category) => sorted[category].detections.push((place, detection)),
            None => unknown += 1,
        }
    }
    sorted.par_iter_mut().for_each(|category| {
        // Stable sorts: what is equal stays in the order of the files.
        category.objects.sort_by_key(|object| object.0);
        category.detections.sort_by(|a, b| a.0.cmp(&b.0).then(falling(a.1.score, b.1.score)));
    });
    Ok(Sorted { categories: sorted, unknown })
}

/// The order of finite scores, highest first; 0 and -0 are equal.
fn falling(a: f64, b: f64) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal)
}
