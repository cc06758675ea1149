//! Objects in images by a learned detector.

use std::path::PathBuf;

use serde::Serialize;

use super::name;
use vpt_base::Progress;
use vpt_base::{Error, Result};
use vpt_data::ImageSource;
use vpt_data::boxes::BoxImage;
use vpt_image::decode;
use vpt_model::model::{DetectTask, Found};

/// Detections in one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectPrediction {
    /// The image's path as it was given.
    pub image: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Boxes, best first.
    pub boxes: Vec<PredictedBox>,
}

/// An object found in an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PredictedBox {
    /// Its class.
    pub label: String,
    /// How sure the detector is, 0 to 1.
    pub score: f64,
    /// Left, top, width, height in pixels.
    pub bbox: [f64; 4],
    /// Index into the task's classes.
    #[serde(skip)]
    pub class: usize,
}

/// Looks for objects in `images`, in their order, and keeps those with a score of at least `min_score`.
///
/// # Errors
/// An image cannot be read; the error names it.
pub fn predict_boxes(
    task: &DetectTask,
    images: &[PathBuf],
    min_score: f64,
    progress: Progress,
) -> Result<Vec<DetectPrediction>> {
    let open = |path: &PathBuf| -> Result<BoxImage> {
        let [width, height] = decode::size(path)?;
        Ok(BoxImage {
            id: 0,
            name: name(path),
            image: ImageSource::File(path.clone()),
            width,
            height,
            objects: Vec::new(),
        })
    };
    let opened = images.iter().map(open).collect::<Result<Vec<_>>>()?;
    let sizes: Vec<[usize; 2]> = opened.iter().map(|image| [image.width, image.height]).collect();
    let all = task.detect(opened, progress)?;
    let classes = &task.meta().classes;
    let found = |found: &Found| PredictedBox {
        label: classes.get(found.class).cloned().unwrap_or_default(),
        score: found.score,
        bbox: [found.rect.x, found.rect.y, found.rect.width, found.rect.height],
        class: found.class,
    };
    let predictions = images.iter().zip(sizes).zip(all).map(|((path, [width, height]), boxes)| DetectPrediction {
        image: name(path),
        width,
        height,
        boxes: boxes.iter().filter(|b| b.score >= min_score).map(found).collect(),
    });
    Ok(predictions.collect())
}

/// Image files that an argument stands for: a file, a folder of images (not the folders
/// in it), or a pattern with `*`, `?` or `[`, for where no shell has filled it in.
///
/// # Errors
/// A folder or a pattern has no images, or a pattern makes no sense.
pub fn expand(images: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in images {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
            let mut files: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|file| decode::has_image_extension(file) && file.is_file())
                .collect();
            if files.is_empty() {
                return Err(Error::file(path, "the folder holds no images"));
            }
            files.sort();
            all.append(&mut files);
            continue;
        }
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']) && !path.exists());
        let Some(pattern) = pattern else {
            all.push(path.clone());
            continue;
        };
        let matches = glob::glob(pattern).map_err(|error| Error::file(path, format!("not a pattern: {error}")))?;
        let before = all.len();
        all.extend(matches.filter_map(std::result::Result::ok).filter(|file| file.is_file()));
        if all.len() == before {
            return Err(Error::file(path, "no such file, and no file that fits it as a pattern"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_patterns_stand_for_the_images_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        for name in ["b.png", "a.JPG", "notes.txt", "[x].png"] {
            std::fs::write(file(name), b"").unwrap();
        }
        std::fs::create_dir(file("in.png")).unwrap();
        assert_eq!(expand(&[dir.path().into()]).unwrap(), [file("[x].png"), file("a.JPG"), file("b.png")]);
        assert_eq!(expand(&[file("[ab].*"), file("c.png")]).unwrap(), [file("a.JPG"), file("b.png"), file("c.png")]);
        // A file that is there is meant as it is called.
        assert_eq!(expand(&[file("[x].png")]).unwrap(), [file("[x].png")]);
        assert!(expand(&[file("*.bmp")]).unwrap_err().to_string().contains("no file that fits"));
        assert!(expand(&[file("in.png")]).unwrap_err().to_string().contains("no images"));
    }
}
