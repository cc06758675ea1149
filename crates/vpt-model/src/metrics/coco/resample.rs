//! AP of a part in which images count as often as one likes: what a bootstrap over images needs.
//!
//! Which detection finds which object is a matter of one image, so it is settled once; only precision and recall are of all images
//! together. An image that counts n times is n images with the same objects and detections.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::accumulate::{RECALLS, THRESHOLDS};
use super::{Category, Detection, InCategory, Pair, falling, sort};
use vpt_base::{Error, Result};
use vpt_data::boxes::BoxImage;

/// Detections of a part and what each of them found, image by image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchedDetections {
    /// Number of images.
    pub images: usize,
    /// Each category by its id.
    categories: Vec<MatchedCategory>,
}

/// One category in all images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CategoryText", into = "CategoryText")]
struct MatchedCategory {
    /// Images, by their place in the order of ids, and how many objects to be found each has.
    objects: Vec<(u32, u32)>,
    /// By falling score, up to the last that is right at any threshold.
    detections: Vec<MatchedDetection>,
}

/// A detection. Bit t of a set is threshold t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MatchedDetection {
    image: u32,
    /// Thresholds at which it found an object that was to be found.
    right: u16,
    /// Thresholds at which it is neither right nor wrong.
    ignored: u16,
}

/// A category as files have it: `IMAGE:OBJECTS …` and `IMAGE:RIGHT[:IGNORED] …`, sets in hexadecimal digits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CategoryText {
    objects: String,
    detections: String,
}

impl From<MatchedCategory> for CategoryText {
    fn from(category: MatchedCategory) -> Self {
        let objects: Vec<String> = category.objects.iter().map(|(image, count)| format!("{image}:{count}")).collect();
        let detection = |found: &MatchedDetection| match *found {
            MatchedDetection { image, right, ignored: 0 } => format!("{image}:{right:x}"),
            MatchedDetection { image, right, ignored } => format!("{image}:{right:x}:{ignored:x}"),
        };
        let detections: Vec<String> = category.detections.iter().map(detection).collect();
        Self { objects: objects.join(" "), detections: detections.join(" ") }
    }
}

impl TryFrom<CategoryText> for MatchedCategory {
    type Error = Error;

    fn try_from(text: CategoryText) -> Result<Self> {
        let wrong =
            |entry: &str| Error::invalid("matched detections", format!("'{}' is no entry", entry.escape_debug()));
        let set = |digits: &str| u16::from_str_radix(digits, 16).ok().filter(|set| set >> THRESHOLDS == 0);
        let object = |entry: &str| {
            let (image, count) = entry.split_once(':')?;
            Some((u32::from_str(image).ok()?, u32::from_str(count).ok().filter(|count| *count > 0)?))
        };
        let detection = |entry: &str| {
            let (image, sets) = entry.split_once(':')?;
            let (right, ignored) = sets.split_once(':').unwrap_or((sets, "0"));
            Some(MatchedDetection { image: u32::from_str(image).ok()?, right: set(right)?, ignored: set(ignored)? })
        };
        let entries = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        Ok(Self {
            objects: entries(&text.objects).iter().map(|e| object(e).ok_or_else(|| wrong(e))).collect::<Result<_>>()?,
            detections: entries(&text.detections)
                .iter()
                .map(|e| detection(e).ok_or_else(|| wrong(e)))
                .collect::<Result<_>>()?,
        })
    }
}

impl MatchedDetections {
    /// What `detections` find in `images`, whose objects are of `categories`: matched as [`evaluate`](super::evaluate) does, objects of all
    /// sizes, a hundred detections of a category in an image.
    ///
    /// # Errors
    /// As there.
    pub fn new(images: &[BoxImage], categories: &[Category], detections: &[Detection]) -> Result<Self> {
        let sorted = sort(images, categories, detections)?;
        let mut order: Vec<usize> = (0..categories.len()).collect();
        order.sort_by_key(|&category| categories[category].id);
        let categories = order.into_iter().map(|category| MatchedCategory::new(&sorted.categories[category])).collect();
        Ok(Self { images: images.len(), categories })
    }

    /// Whether every place is one of its images.
    ///
    /// # Errors
    /// One is not.
    pub fn check(&self) -> Result<()> {
        let places = self.categories.iter().flat_map(|category| {
            let objects = category.objects.iter().map(|(image, _)| *image);
            objects.chain(category.detections.iter().map(|detection| detection.image))
        });
        match places.max().filter(|last| *last as usize >= self.images) {
            Some(last) => {
                Err(Error::invalid("matched detections", format!("image {last} of {} (from 0)", self.images)))
            }
            None => Ok(()),
        }
    }

    /// AP and AP50 where the image at each place, in the order of ids, counts so many times; `None` where nothing is to be found. With every
    /// image once these are [`CocoMetrics`](super::CocoMetrics)', to the last bit.
    pub fn precision(&self, times: &[u32]) -> Option<[f64; 2]> {
        let (mut all, mut at_half, mut count) = (0., 0., 0.);
        for category in &self.categories {
            let objects: u64 = category
                .objects
                .iter()
                .map(|(image, count)| u64::from(times[*image as usize]) * u64::from(*count))
                .sum();
            if objects == 0 {
                continue;
            }
            for threshold in 0..THRESHOLDS {
                let precision = category.precision(threshold, objects, times);
                all += precision;
                at_half += if threshold == 0 { precision } else { 0. };
            }
            count += 1.;
        }
        (count > 0.).then(|| [all / (count * THRESHOLDS as f64), at_half / count])
    }
}

impl MatchedCategory {
    fn new(category: &InCategory<'_>) -> Self {
        let (mut objects, mut scored) = (Vec::new(), Vec::new());
        for pair in category.pairs() {
            let Some(place) = pair.place() else { continue };
            let matches = Pair::matches(&pair);
            let all = &matches.areas[0];
            if all.objects > 0 {
                objects.push((place, all.objects as u32));
            }
            for ((&score, &found), &ignored) in matches.scores.iter().zip(&all.found).zip(&all.ignored) {
                scored.push((score, MatchedDetection { image: place, right: found & !ignored, ignored }));
            }
        }
        scored.sort_by(|a, b| falling(a.0, b.0));
        // What comes after the last that is right lowers no precision that is read.
        let last = scored.iter().rposition(|(_, detection)| detection.right != 0).map_or(0, |last| last + 1);
        Self { objects, detections: scored[..last].iter().map(|(_, detection)| *detection).collect() }
    }

    /// Precision at a threshold, mean over recalls.
    fn precision(&self, threshold: usize, objects: u64, times: &[u32]) -> f64 {
        let bit = 1 << threshold;
        let (mut right, mut wrong) = (0_u64, 0_u64);
        // Recall and precision behind each image's right detection; what is wrong only lowers the precision of the next.
        let mut curve: Vec<(f64, f64)> = Vec::new();
        for detection in &self.detections {
            let times = u64::from(times[detection.image as usize]);
            if detection.right & bit != 0 {
                right += times;
                if times > 0 {
                    let precision = right as f64 / (right as f64 + wrong as f64 + f64::EPSILON);
                    curve.push((right as f64 / objects as f64, precision));
                }
            } else if detection.ignored & bit == 0 {
                wrong += times;
            }
        }
        for i in (1..curve.len()).rev() {
            curve[i - 1].1 = f64::max(curve[i - 1].1, curve[i].1);
        }
        let mut at = 0;
        let mut sum = 0.;
        for step in 0..RECALLS {
            while curve.get(at).is_some_and(|(recall, _)| *recall < step as f64 * 0.01) {
                at += 1;
            }
            sum += curve.get(at).map_or(0., |(_, precision)| *precision);
        }
        sum / RECALLS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Object, Rect, evaluate};
    use super::*;
    use rand::Rng;
    use vpt_base::random::stream;
    use vpt_data::ImageSource;

    /// Random images with objects and crowds of three categories, and detections of which many are near objects; scores with ties.
    fn drawn(seed: u64, ties: bool) -> (Vec<BoxImage>, Vec<Category>, Vec<Detection>) {
        let mut rng = stream(seed, "resample", 0, 0);
        let categories: Vec<Category> =
            [9, 4, 7].iter().map(|&id| Category { id, name: format!("class {id}") }).collect();
        let (mut images, mut detections) = (Vec::new(), Vec::new());
        for id in [3, 8, 5, 20, 13, 1] {
            let mut objects = Vec::new();
            for number in 0..rng.random_range(0..6) {
                let [x, y, width, height] = [(); 4].map(|()| rng.random_range(4.0..60.0));
                let (rect, category) = (Rect { x, y, width, height }, rng.random_range(0..3));
                let crowd = rng.random_bool(0.15);
                objects.push(Object { id: id * 100 + number + 1, category, rect, area: rect.area(), crowd });
                for _ in 0..rng.random_range(0..4) {
                    let [a, b] = [(); 2].map(|()| rng.random_range(-6.0..6.0));
                    let score = if ties { f64::from(rng.random_range(0..12)) / 12. } else { rng.random() };
                    let category = categories[if rng.random_bool(0.8) { category } else { 0 }].id;
                    detections.push(Detection {
                        image: id,
                        category,
                        rect: Rect { x: x + a, y: y + b, ..rect },
                        score,
                    });
                }
            }
            let image = ImageSource::File("none".into());
            images.push(BoxImage { id, name: format!("{id}.png"), image, width: 128, height: 128, objects });
        }
        (images, categories, detections)
    }

    #[test]
    fn with_every_image_once_it_is_the_metric_to_the_last_bit() {
        for seed in 0..40 {
            let (images, categories, detections) = drawn(seed, true);
            let metrics = evaluate(&images, &categories, &detections).unwrap().metrics;
            let matched = MatchedDetections::new(&images, &categories, &detections).unwrap();
            let [ap, ap50] = matched.precision(&[1; 6]).unwrap();
            assert_eq!((ap.to_bits(), ap50.to_bits()), (metrics.ap.to_bits(), metrics.ap50.to_bits()), "{seed}");
        }
    }

    #[test]
    fn an_image_that_counts_twice_is_two_images() {
        for seed in 0..40 {
            let (images, categories, detections) = drawn(seed, false);
            let mut rng = stream(seed, "times", 0, 0);
            let times: Vec<u32> = images.iter().map(|_| rng.random_range(0..4)).collect();
            let matched = MatchedDetections::new(&images, &categories, &detections).unwrap();
            let mut order: Vec<usize> = (0..images.len()).collect();
            order.sort_by_key(|&i| images[i].id);
            let (mut many, mut found) = (Vec::new(), Vec::new());
            for (&i, &times) in order.iter().zip(&times) {
                for _ in 0..times {
                    let id = many.len() as u64 + 1;
                    found.extend(
                        detections.iter().filter(|d| d.image == images[i].id).map(|d| Detection { image: id, ..*d }),
                    );
                    many.push(BoxImage { id, ..images[i].clone() });
                }
            }
            let expected = evaluate(&many, &categories, &found).unwrap().metrics;
            match matched.precision(&times) {
                Some([ap, ap50]) => {
                    assert!((ap - expected.ap).abs() < 1e-12, "{seed}: {ap} {expected:?}");
                    assert!((ap50 - expected.ap50).abs() < 1e-12, "{seed}: {ap50} {expected:?}");
                }
                None => assert!(expected.ap < 0.),
            }
        }
    }

    #[test]
    fn a_file_has_all_of_it_and_bad_ones_are_refused() {
        let (images, categories, detections) = drawn(3, true);
        let matched = MatchedDetections::new(&images, &categories, &detections).unwrap();
        let json = serde_json::to_string(&matched).unwrap();
        assert_eq!(serde_json::from_str::<MatchedDetections>(&json).unwrap(), matched);
        matched.check().unwrap();
        let file = |objects: &str, detections: &str| {
            let json =
                format!(r#"{{"images": 2, "categories": [{{"objects": "{objects}", "detections": "{detections}"}}]}}"#);
            serde_json::from_str::<MatchedDetections>(&json).map_err(|e| e.to_string())
        };
        assert!(file("0:1 1:2", "1:3ff 0:0:1").is_ok());
        for (objects, detections) in [("0", ""), ("0:0", ""), ("x:1", ""), ("", "0:400"), ("", "0:1:fff"), ("", "-1:1")]
        {
            let message = file(objects, detections).unwrap_err();
            assert!(message.contains("is no entry"), "{message}");
        }
        assert!(file("2:1", "").unwrap().check().is_err() && file("", "7:1").unwrap().check().is_err());
    }
}
