//! Detections as a file: the JSON list that COCO's evaluation server and pycocotools read,
//! `[{"image_id": …, "category_id": …, "bbox": [x, y, width, height], "score": …}, …]`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::metrics::coco::{Detection, falling};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
use vpt_data::boxes::Rect;

/// Longest file that is read, in bytes: a hundred detections in each of 80 000 images.
const MAX_BYTES: u64 = 1 << 30;

/// A detection as the file has it. Other fields, which some tools add, are passed over.
#[derive(Serialize, Deserialize)]
struct Item {
    image_id: u64,
    category_id: u64,
    bbox: [f64; 4],
    score: f64,
}

/// `detections` as a results file, a line each, unrounded: by image, then by falling score; equal ones keep their order, so
/// that the file has the same metric.
///
/// # Errors
/// A score or a box that is not finite, which JSON cannot hold.
pub fn results_json(detections: &[Detection]) -> Result<Vec<u8>> {
    let mut sorted: Vec<&Detection> = detections.iter().collect();
    sorted.sort_by(|a, b| a.image.cmp(&b.image).then(falling(a.score, b.score)));
    let mut json = Vec::with_capacity(sorted.len() * 128);
    json.push(b'[');
    for (i, detection) in sorted.into_iter().enumerate() {
        json.extend_from_slice(if i == 0 { b"\n" } else { b",\n" });
        let Detection { image, category, rect, score } = *detection;
        let bbox = [rect.x, rect.y, rect.width, rect.height];
        if bbox.iter().chain([&score]).any(|value| !value.is_finite()) {
            return Err(Error::invalid(format!("a detection in image {image}"), "its box or score is not finite"));
        }
        serde_json::to_writer(&mut json, &Item { image_id: image, category_id: category, bbox, score })
            .map_err(|error| Error::invalid("detections", error.to_string()))?;
    }
    json.extend_from_slice(b"\n]\n");
    Ok(json)
}

/// The detections of the results file `path`, in its order.
///
/// # Errors
/// It cannot be read, is no list of detections, or has a box with a negative side.
pub fn read_results(path: &Path) -> Result<Vec<Detection>> {
    let bytes = read_limited(path, MAX_BYTES)?;
    let items: Vec<Item> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(path, format!("not a list of COCO detections: {error}")))?;
    let detection = |(i, item): (usize, Item)| {
        let [x, y, width, height] = item.bbox;
        if width < 0. || height < 0. {
            let message = format!("detection {}: bbox [{x}, {y}, {width}, {height}] has a negative side", i + 1);
            return Err(Error::file(path, message));
        }
        let rect = Rect { x, y, width, height };
        Ok(Detection { image: item.image_id, category: item.category_id, rect, score: item.score })
    };
    items.into_iter().enumerate().map(detection).collect()
}

#[cfg(test)]
mod tests {
    use crate::metrics::coco::results::*;
    use std::fs;

    fn detection(image: u64, score: f64) -> Detection {
        Detection { image, category: 7, rect: Rect { x: 0.1, y: 1. / 3., width: 1e-7, height: 123_456.789 }, score }
    }

    #[test]
    fn a_file_comes_back_to_the_last_bit_by_image_and_score() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("detections.json");
        let detections = [detection(9, 0.1), detection(2, 0.3), detection(9, 0.2 + 0.1), detection(9, 1. / 7.)];
        fs::write(&path, results_json(&detections).unwrap()).unwrap();
        let expected = [detections[1], detections[2], detections[3], detections[0]];
        assert_eq!(read_results(&path).unwrap(), expected);
        assert_eq!(results_json(&[]).unwrap(), b"[\n]\n");
        fs::write(&path, "[\n]\n").unwrap();
        assert_eq!(read_results(&path).unwrap(), []);
        assert!(results_json(&[detection(1, f64::NAN)]).is_err());
    }

    #[test]
    fn files_of_other_tools_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("detections.json");
        let json = r#"[{"score": 1, "segmentation": [[1, 2]], "bbox": [1, 2, 3, 4], "image_id": 5, "category_id": 6}]"#;
        fs::write(&path, json).unwrap();
        let rect = Rect { x: 1., y: 2., width: 3., height: 4. };
        assert_eq!(read_results(&path).unwrap(), [Detection { image: 5, category: 6, rect, score: 1. }]);
    }

    #[test]
    fn bad_files_are_one_line_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("detections.json");
        let item = |bbox: &str, score: &str| {
            format!(r#"[{{"image_id": 1, "category_id": 2, "bbox": {bbox}, "score": {score}}}]"#)
        };
        for (json, expected) in [
            (String::new(), "EOF"),
            ("{}".into(), "expected a sequence"),
            (r#"[{"image_id": 1, "category_id": 2, "score": 1}]"#.into(), "missing field `bbox`"),
            (r#"[{"image_id": -1, "category_id": 2, "score": 1}]"#.into(), "integer `-1`"),
            (item("[1, 2, 3]", "1"), "invalid length 3"),
            (item("[1, 2, 3, 4, 5]", "1"), "trailing characters"),
            (item("[1, 2, -3, 4]", "1"), "detection 1: bbox [1, 2, -3, 4] has a negative side"),
            (item("[1, 2, 3, 1e999]", "1"), "number out of range"),
            (item("[1, 2, 3, 4]", "null"), "invalid type: null"),
            (item("[1, 2, 3, 4]", "NaN"), "expected"),
            (item("[1, 2, 3, 4]", "1")[..40].to_owned(), "EOF"),
            (format!("[{}", r#"{"x":["#.repeat(100_000)), "line 1"),
        ] {
            fs::write(&path, &json).unwrap();
            let message = read_results(&path).unwrap_err().to_string();
            assert!(message.starts_with(&path.display().to_string()) && message.contains(expected), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
