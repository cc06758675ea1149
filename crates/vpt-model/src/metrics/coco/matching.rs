//! Which detection finds which object, at every IoU threshold and for every range of object sizes.

use crate::metrics::coco::Detection;
use crate::metrics::coco::accumulate::{MOST, THRESHOLDS};
use vpt_data::boxes::{Object, Rect};

/// Square pixels from and to, both inclusive: all, small, medium, large.
const AREAS: [(f64, f64); 4] = [(0., 1e10), (0., 1024.), (1024., 9216.), (9216., 1e10)];

/// Ground truth and detections of one category in one image. Detections by falling score.
pub(super) struct Pair<'p, 'a> {
    pub(super) objects: &'p [(usize, &'a Object)],
    pub(super) detections: &'p [(usize, &'a Detection)],
}

/// Matches of the detections of one [`Pair`], highest score first.
pub(super) struct Matches {
    /// `[detections]`
    pub(super) scores: Vec<f64>,
    /// For each range of sizes.
    pub(super) areas: [AreaMatches; AREAS.len()],
}

/// [`Matches`] in one range of sizes. Bit t of a set is threshold t.
#[derive(Default)]
pub(super) struct AreaMatches {
    /// Objects to be found.
    pub(super) objects: usize,
    /// At which thresholds a detection found an object: `[detections]`.
    pub(super) found: Vec<u16>,
    /// At which thresholds a detection neither is right nor wrong: `[detections]`.
    pub(super) ignored: Vec<u16>,
}

/// .5, .55, … .95 with the rounding of numpy's `linspace`.
pub(super) fn threshold(index: usize) -> f64 {
    if index + 1 == THRESHOLDS { 0.95 } else { index as f64 * ((0.95 - 0.5) / 9.) + 0.5 }
}

/// The share of a detection that a crowd covers, else intersection over union.
pub(super) fn overlap(detection: Rect, object: &Object) -> f64 {
    if object.crowd { detection.intersection(object.rect) / detection.area() } else { detection.iou(object.rect) }
}

/// Whether `area` lies outside the range.
fn outside(area: f64, (from, to): (f64, f64)) -> bool {
    area < from || area > to
}

impl<'a> Pair<'_, 'a> {
    /// The detections that count.
    pub(super) fn kept(&self) -> &[(usize, &'a Detection)] {
        &self.detections[..self.detections.len().min(MOST)]
    }

    /// The place of its image in the order of ids.
    pub(super) fn place(&self) -> Option<u32> {
        let place = self.objects.first().map(|o| o.0).or(self.detections.first().map(|d| d.0))?;
        u32::try_from(place).ok()
    }

    pub(super) fn matches(&self) -> Matches {
        let detections = self.kept();
        // Below the lowest threshold nothing matches: few objects are left for each detection.
        let near: Vec<Vec<(usize, f64)>> = detections
            .iter()
            .map(|(_, detection)| {
                let overlaps = self.objects.iter().map(|(_, object)| overlap(detection.rect, object));
                overlaps.enumerate().filter(|(_, overlap)| *overlap >= threshold(0)).collect()
            })
            .collect();
        Matches {
            scores: detections.iter().map(|(_, detection)| detection.score).collect(),
            areas: AREAS.map(|range| self.in_range(range, &near)),
        }
    }

    /// `near`: the objects that each detection overlaps, and how much.
    fn in_range(&self, range: (f64, f64), near: &[Vec<(usize, f64)>]) -> AreaMatches {
        let ignored: Vec<bool> = self.objects.iter().map(|(_, o)| o.crowd || outside(o.area, range)).collect();
        let mut area =
            AreaMatches { objects: ignored.iter().filter(|ignored| !**ignored).count(), ..Default::default() };
        // The thresholds at which an object has been found.
        let mut taken = vec![0u16; self.objects.len()];
        let mut candidates = Vec::new();
        for (near, (_, detection)) in near.iter().zip(self.detections) {
            candidates.clone_from(near);
            candidates.sort_by_key(|(object, _)| ignored[*object]);
            let beyond = outside(detection.rect.area(), range);
            let (mut found, mut neither) = (0, 0);
            for t in 0..THRESHOLDS {
                let bit = 1 << t;
                let mut best = threshold(t).min(1. - 1e-10);
                let mut object = None;
                for &(candidate, overlap) in &candidates {
                    if taken[candidate] & bit != 0 && !self.objects[candidate].1.crowd {
                        continue;
                    }
                    // An object to be found goes before any that is ignored.
                    if ignored[candidate] && object.is_some_and(|o: usize| !ignored[o]) {
                        break;
                    }
                    // Of equal overlaps the later object wins.
                    if overlap >= best {
                        (best, object) = (overlap, Some(candidate));
                    }
                }
                if let Some(object) = object {
                    taken[object] |= bit;
                    found |= bit;
                }
                if object.map_or(beyond, |object| ignored[object]) {
                    neither |= bit;
                }
            }
            area.found.push(found);
            area.ignored.push(neither);
        }
        area
    }
}
