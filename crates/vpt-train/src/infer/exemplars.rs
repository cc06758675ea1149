//! Examples of what a detector is to look for: boxes in images, each with the name of what it shows.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::name;
use vpt_base::{Error, Result, files::read_limited};
use vpt_data::ImageSource;
use vpt_data::boxes::{BoxImage, Object, Rect};

/// Longest file of examples.
const MAX_BYTES: u64 = 1 << 26;

/// Most examples.
const MAX_EXEMPLARS: usize = 10_000;

/// Images with boxes, and the names of what is in these.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplars {
    /// The images; an object's category is the position of its name.
    pub images: Vec<BoxImage>,
    /// The names, in the order in which they come first.
    pub names: Vec<String>,
}

/// One of them, as a file says it.
#[derive(Debug, Deserialize)]
struct Exemplar {
    image: PathBuf,
    /// Left, top, width and height in pixels.
    bbox: [f64; 4],
    label: String,
}

/// What `specs` say: each is a JSON file, a list of `{"image": …, "bbox": [left, top, width, height], "label": …}` with paths seen from
/// the file's folder, or `IMAGE:left,top,width,height=name`.
///
/// # Errors
/// One is neither, a file or image cannot be read, or a box has no pixel in its image.
pub fn read_exemplars(specs: &[String]) -> Result<Exemplars> {
    let mut all = Vec::new();
    for spec in specs {
        match of_text(spec) {
            Some(exemplar) => all.push((spec.clone(), exemplar)),
            None if Path::new(spec).extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) => {
                let file = Path::new(spec);
                let folder = file.parent().unwrap_or(Path::new(""));
                for (mut exemplar, number) in of_file(file)?.into_iter().zip(1..) {
                    exemplar.image = folder.join(&exemplar.image);
                    all.push((format!("{spec}: entry {number}"), exemplar));
                }
            }
            None => {
                let message = format!("{spec}: neither a JSON file nor IMAGE:left,top,width,height=name");
                return Err(Error::setting("exemplars", message));
            }
        }
    }
    if all.is_empty() || all.len() > MAX_EXEMPLARS {
        return Err(Error::setting("exemplars", format!("{} of them; 1 to {MAX_EXEMPLARS} are possible", all.len())));
    }
    let mut found = Exemplars { images: Vec::new(), names: Vec::new() };
    for ((place, exemplar), id) in all.into_iter().zip(1..) {
        found.add(exemplar, id).map_err(|message| match message {
            Refusal::Of(message) => Error::setting("exemplars", format!("{place}: {message}")),
            Refusal::Image(error) => error,
        })?;
    }
    Ok(found)
}

/// Why an example is none.
enum Refusal {
    Of(String),
    Image(Error),
}

impl Exemplars {
    fn add(&mut self, Exemplar { image: path, bbox, label }: Exemplar, id: u64) -> Result<(), Refusal> {
        let label = label.trim();
        if label.is_empty() {
            return Err(Refusal::Of("a name is empty".to_owned()));
        }
        let at = if let Some(at) = self.images.iter().position(|image| image.file() == path) {
            at
        } else {
            let image = BoxImage::unlabelled(name(&path), ImageSource::File(path)).map_err(Refusal::Image)?;
            self.images.push(image);
            self.images.len() - 1
        };
        let image = &mut self.images[at];
        let [x, y, width, height] = bbox;
        let rect = Rect { x, y, width, height };
        let whole = Rect { x: 0., y: 0., width: image.width as f64, height: image.height as f64 };
        if !bbox.iter().all(|v| v.is_finite()) || width <= 0. || height <= 0. || rect.intersection(whole) < 1. {
            let message = format!("{x},{y},{width},{height} is no box in {}x{} pixels", image.width, image.height);
            return Err(Refusal::Of(message));
        }
        let category = self.names.iter().position(|name| name == label).unwrap_or_else(|| {
            self.names.push(label.to_owned());
            self.names.len() - 1
        });
        image.objects.push(Object { id, category, rect, area: rect.area(), crowd: false });
        Ok(())
    }
}

/// `IMAGE:left,top,width,height=name`; paths and names may have colons and equals signs of their own.
fn of_text(spec: &str) -> Option<Exemplar> {
    spec.rmatch_indices(':').find_map(|(at, _)| {
        let (bbox, label) = spec[at + 1..].split_once('=')?;
        let numbers: Vec<f64> = bbox.split(',').map(|v| v.trim().parse().ok()).collect::<Option<_>>()?;
        let bbox = <[f64; 4]>::try_from(numbers).ok()?;
        (at > 0).then(|| Exemplar { image: PathBuf::from(&spec[..at]), bbox, label: label.to_owned() })
    })
}

fn of_file(file: &Path) -> Result<Vec<Exemplar>> {
    let bytes = read_limited(file, MAX_BYTES)?;
    let content = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    serde_json::from_slice(content).map_err(|error| {
        let message =
            format!("{error}; a list of {{\"image\": …, \"bbox\": [left, top, width, height], \"label\": …}}");
        Error::data(file, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_read_from_text_and_files_and_grouped_by_image() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a:b=c.png", "d.png"] {
            image::GrayImage::new(20, 10).save(at(name)).unwrap();
        }
        let json = r#"[{"image": "d.png", "bbox": [1, 2, 3, 4], "label": "cat", "score": 0.5},
                       {"image": "d.png", "bbox": [1.5, 2, 30, 4], "label": "a=b:c"}]"#;
        std::fs::write(at("boxes.json"), json).unwrap();
        let text = |spec: &str| format!("{}{spec}", dir.path().join("a:b=c.png").display());
        let specs = [text(":0,0,5,5=cat"), at("boxes.json").display().to_string(), text(": 1 ,1,2,2=a=b:c")];
        let Exemplars { images, names } = read_exemplars(&specs).unwrap();
        assert_eq!(names, ["cat", "a=b:c"]);
        let objects: Vec<Vec<(usize, f64)>> =
            images.iter().map(|image| image.objects.iter().map(|o| (o.category, o.rect.width)).collect()).collect();
        assert_eq!(objects, [vec![(0, 5.), (1, 2.)], vec![(0, 3.), (1, 30.)]]);

        let refused = |spec: String| read_exemplars(&[spec]).unwrap_err().to_string();
        for (spec, why) in [
            (text(":0,0,5=cat"), "neither a JSON file nor"),
            (text(":0,0,5,5= "), "a name is empty"),
            (text(":0,0,-5,5=cat"), "no box in 20x10"),
            (text(":20,0,5,5=cat"), "no box in 20x10"),
            (text(":NaN,0,5,5=cat"), "no box in 20x10"),
            ("gone.png:0,0,5,5=cat".to_owned(), "gone.png: "),
            ("gone.json".to_owned(), "gone.json: "),
            (":0,0,5,5=cat".to_owned(), "neither a JSON file nor"),
        ] {
            let message = refused(spec.clone());
            assert!(message.contains(why), "{spec}: {message}");
        }
        for bad in ["{}", "[{\"image\": \"d.png\"}]", "[", "[]"] {
            std::fs::write(at("bad.json"), bad).unwrap();
            let message = refused(at("bad.json").display().to_string());
            assert!(message.contains(if bad == "[]" { "0 of them" } else { "bad.json: " }), "{message}");
        }
    }
}
