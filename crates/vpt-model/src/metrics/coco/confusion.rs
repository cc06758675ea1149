//! The confusion matrix of detections: what objects were taken for, missed, or seen where there is nothing.

use crate::metrics::Confusion;
use crate::metrics::coco::matching::{overlap, threshold};
use crate::metrics::coco::{Detection, falling, sort};
use vpt_base::Result;
use vpt_data::boxes::{BoxImage, Category, Object};

/// The name of the class behind the last: as true class of what was seen where there is nothing, as predicted class of
/// objects that were missed.
pub const BACKGROUND: &str = "background";

/// The matrix of the detections that score at least `confidence`: the categories in their order, then [`BACKGROUND`].
///
/// In the order of their scores, detections take the object of their own category that they overlap most, at an IoU of at
/// least .5, as the COCO metric does: the diagonal holds its true positives. Those left over take an object of another
/// category likewise, which are the confusions. What lies in a crowd of its category counts nowhere.
///
/// # Errors
/// As [`evaluate`](crate::metrics::coco::evaluate).
pub fn confusion(
    images: &[BoxImage],
    categories: &[Category],
    detections: &[Detection],
    confidence: f64,
) -> Result<Confusion> {
    let sorted = sort(images, categories, detections)?;
    let mut scenes: Vec<ImageObjects> = images.iter().map(|_| ImageObjects::default()).collect();
    for (index, category) in sorted.categories.iter().enumerate() {
        for pair in category.pairs() {
            for &(place, object) in pair.objects {
                scenes[place].objects.push((index, object));
            }
            for &(place, detection) in pair.kept().iter().filter(|(_, detection)| detection.score >= confidence) {
                scenes[place].detections.push((index, detection));
            }
        }
    }
    let mut confusion = Confusion::new(categories.len() + 1);
    for scene in scenes {
        scene.count(&mut confusion);
    }
    Ok(confusion)
}

/// One image: what is in it and what was found, each beside the index of its category.
#[derive(Default)]
struct ImageObjects<'a> {
    objects: Vec<(usize, &'a Object)>,
    detections: Vec<(usize, &'a Detection)>,
}

impl ImageObjects<'_> {
    fn count(mut self, confusion: &mut Confusion) {
        let background = confusion.classes() - 1;
        self.detections.sort_by(|a, b| falling(a.1.score, b.1.score));
        let mut taken = vec![false; self.objects.len()];
        let mut left = Vec::new();
        for &(category, detection) in &self.detections {
            if let Some(object) = self.nearest(detection, &taken, |other| other == category) {
                taken[object] = true;
                confusion.add(category, category);
            } else if !self.in_crowd(category, detection) {
                left.push((category, detection));
            }
        }
        for (category, detection) in left {
            let object = self.nearest(detection, &taken, |_| true);
            if let Some(object) = object {
                taken[object] = true;
            }
            confusion.add(object.map_or(background, |object| self.objects[object].0), category);
        }
        for ((category, object), taken) in self.objects.iter().zip(taken) {
            if !taken && !object.crowd {
                confusion.add(*category, background);
            }
        }
    }

    /// The object that `detection` overlaps most, if enough, among those that are not taken and whose category is `wanted`. Of
    /// equal ones the last.
    fn nearest(&self, detection: &Detection, taken: &[bool], wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let free = self.objects.iter().zip(taken).enumerate();
        let free = free.filter(|(_, ((category, object), taken))| !**taken && !object.crowd && wanted(*category));
        free.map(|(i, ((_, object), _))| (i, overlap(detection.rect, object)))
            .filter(|(_, overlap)| *overlap >= threshold(0))
            .reduce(|best, next| if next.1 >= best.1 { next } else { best })
            .map(|(i, _)| i)
    }

    fn in_crowd(&self, category: usize, detection: &Detection) -> bool {
        let mut crowds = self.objects.iter().filter(|(other, object)| object.crowd && *other == category);
        crowds.any(|(_, object)| overlap(detection.rect, object) >= threshold(0))
    }
}
