//! Looks into every image: which cannot be read, how large they are, and a hash of all that a data set says.

use rayon::prelude::*;
use serde::Serialize;

use super::dataset::{Dataset, Layout, Sample, Split};
use vpt_base::{Error, Message, Result};
use vpt_image::decode::Rgb8;

/// Most unreadable images that an error lists.
const LISTED: usize = 5;

/// An image that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The part it belongs to.
    pub split: Split,
    /// The sample's id.
    pub id: String,
    /// What is wrong, with the file's path.
    pub error: String,
}

/// What a data set is, for `vpt data info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetSummary {
    /// The data set's name.
    pub name: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// Where the parts come from.
    pub split_note: String,
    /// Images in each part.
    pub images: SplitCounts,
    /// Images of each class, in the order of the labels.
    pub classes: Vec<ClassCounts>,
    /// Least and greatest width of the readable images, in pixels.
    pub width: Option<[usize; 2]>,
    /// Least and greatest height.
    pub height: Option<[usize; 2]>,
    /// Images that cannot be decoded.
    pub unreadable: Vec<Unreadable>,
    /// [`Dataset::content_hash`]; none if an image cannot be decoded.
    pub content_hash: Option<String>,
}

/// Images in each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SplitCounts {
    /// In train.
    pub train: usize,
    /// In val.
    pub val: usize,
    /// In test.
    pub test: usize,
}

/// Images of a class in each part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCounts {
    /// The class.
    pub name: String,
    /// Its images.
    #[serde(flatten)]
    pub images: SplitCounts,
}

/// What is learned from decoding one image.
struct MeasuredImage {
    width: usize,
    height: usize,
    digest: Digest,
}

impl Dataset {
    /// Decodes every image that is in a file, and takes those that cannot be decoded out of the data set if `skip` says so.
    /// The rest of a run then never meets one, and its batches are as large as without them. Returns what was taken out.
    ///
    /// # Errors
    /// Images cannot be decoded and `skip` is false: the error names the first few. Or nothing is left of a part, or of a
    /// class in train.
    pub fn leave_out_unreadable(&mut self, skip: bool) -> Result<Vec<Unreadable>> {
        let mut unreadable = Vec::new();
        for split in Split::ALL {
            let check = |s: &Sample| if s.image.is_decoded() { None } else { s.load().err() };
            let errors: Vec<_> = self.part(split).par_iter().map(check).collect();
            let mut errors = errors.into_iter();
            self.part_mut(split).retain(|sample| match errors.next().flatten() {
                None => true,
                Some(error) => {
                    unreadable.push(Unreadable { split, id: sample.id.clone(), error: error.to_string() });
                    false
                }
            });
        }
        let what = || format!("data set {}", self.name);
        if !unreadable.is_empty() && !skip {
            let errors: Vec<&str> = unreadable.iter().map(|u| u.error.as_str()).collect();
            return Err(unreadable_error(what(), &errors));
        }
        if unreadable.is_empty() {
            return Ok(unreadable);
        }
        for split in Split::ALL {
            if self.part(split).is_empty() {
                return Err(Error::invalid(what(), format!("no image of {split} can be read")));
            }
        }
        for (label, class) in self.classes.iter().enumerate() {
            if !self.train.iter().any(|s| s.label as usize == label) {
                return Err(Error::invalid(what(), format!("no image of class '{class}' in train can be read")));
            }
        }
        Ok(unreadable)
    }

    /// The content hash of the data set, for which every image is decoded.
    ///
    /// # Errors
    /// An image cannot be decoded.
    pub fn content_hash(&self) -> Result<String> {
        let mut hash = ContentHash::new(&self.classes);
        for split in Split::ALL {
            let samples = self.part(split);
            let digests =
                samples.par_iter().map(|s| s.load().map(|image| digest(&image))).collect::<Result<Vec<_>>>()?;
            hash.part(split, samples.iter().zip(digests).map(|(s, digest)| (std::slice::from_ref(&s.label), digest)));
        }
        Ok(hash.finish())
    }

    /// Decodes every image and sums the data set up.
    pub fn summary(&self) -> DatasetSummary {
        let mut unreadable = Vec::new();
        let (mut width, mut height): (Option<[usize; 2]>, Option<[usize; 2]>) = (None, None);
        let mut hash = ContentHash::new(&self.classes);
        for split in Split::ALL {
            let samples = self.part(split);
            let results: Vec<_> = samples.par_iter().map(examine).collect();
            let mut readable = Vec::with_capacity(results.len());
            for (sample, result) in samples.iter().zip(results) {
                match result {
                    Ok(e) => {
                        widen(&mut width, e.width);
                        widen(&mut height, e.height);
                        readable.push(([sample.label], e.digest));
                    }
                    Err(error) => {
                        unreadable.push(Unreadable { split, id: sample.id.clone(), error: error.to_string() });
                    }
                }
            }
            hash.part(split, readable.iter().map(|(label, digest)| (&label[..], *digest)));
        }
        let content_hash = unreadable.is_empty().then(|| hash.finish());
        let mut counts = vec![SplitCounts { train: 0, val: 0, test: 0 }; self.classes.len()];
        self.train.iter().for_each(|s| counts[s.label as usize].train += 1);
        self.val.iter().for_each(|s| counts[s.label as usize].val += 1);
        self.test.iter().for_each(|s| counts[s.label as usize].test += 1);
        DatasetSummary {
            name: self.name.clone(),
            layout: self.layout,
            split_note: self.split_note.clone(),
            images: SplitCounts { train: self.train.len(), val: self.val.len(), test: self.test.len() },
            classes: self
                .classes
                .iter()
                .zip(counts)
                .map(|(name, images)| ClassCounts { name: name.clone(), images })
                .collect(),
            width,
            height,
            unreadable,
            content_hash,
        }
    }
}

fn examine(sample: &Sample) -> Result<MeasuredImage> {
    let image = sample.load()?;
    Ok(MeasuredImage { width: image.width, height: image.height, digest: digest(&image) })
}

/// BLAKE3 of the pixels of `image`, and of its size.
pub fn digest(image: &Rgb8) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for number in [image.width, image.height] {
        hasher.update(&(number as u64).to_le_bytes());
    }
    hasher.update(&image.pixels);
    hasher.finalize().into()
}

/// What stands for the pixels of an image.
pub type Digest = [u8; 32];

/// BLAKE3 over all that training sees of a data set: the names of the classes in the order of their labels, and for each part
/// the decoded images with the labels of each.
///
/// Names of files, their format and their order do not enter, so a data set that is stored losslessly in another layout has the
/// same hash; and two with the same hash give the same result.
pub struct ContentHash(blake3::Hasher);

impl ContentHash {
    /// The hash of a data set with these `classes`, of which no part is known yet.
    pub fn new(classes: &[String]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for class in classes {
            hasher.update(&(class.len() as u64).to_le_bytes());
            hasher.update(class.as_bytes());
        }
        Self(hasher)
    }

    /// Takes in the images of a part, each with the labels that it has.
    pub fn part<'a>(&mut self, split: Split, images: impl Iterator<Item = (&'a [u32], Digest)>) {
        let mut images: Vec<_> = images.collect();
        images.sort_unstable();
        self.0.update(split.name().as_bytes());
        self.0.update(&(images.len() as u64).to_le_bytes());
        for (labels, digest) in images {
            self.0.update(&(labels.len() as u64).to_le_bytes());
            for label in labels {
                self.0.update(&label.to_le_bytes());
            }
            self.0.update(&digest);
        }
    }

    /// 64 hexadecimal digits.
    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// Says of the data set `what` that images cannot be read, with the first few of `errors`.
pub(super) fn unreadable_error(what: String, errors: &[&str]) -> Error {
    let count = errors.len();
    let mut message = format!("{count} unreadable image{}: ", if count == 1 { "" } else { "s" });
    message += &errors[..count.min(LISTED)].join("; ");
    if count > LISTED {
        message += "; …";
    }
    Error::invalid(what, Message::from(message + " (").field("skip_bad_images").text(" leaves them out)"))
}

/// Makes `range` hold `value`.
pub(super) fn widen(range: &mut Option<[usize; 2]>, value: usize) {
    *range = Some(range.map_or([value; 2], |[least, greatest]| [least.min(value), greatest.max(value)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn png(path: &Path, width: u32, height: u32, seed: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let pixel = |x: u32, y: u32| image::Luma([(x * 3 + y * 5) as u8 ^ seed]);
        image::GrayImage::from_fn(width, height, pixel).save(path).unwrap();
    }

    /// Two classes, `3` and `7`, with four images each: one of each for val and for test.
    fn image_folder(root: &Path) {
        for (i, part) in ["train", "train", "val", "test"].into_iter().enumerate() {
            for class in ["3", "7"] {
                let seed = i as u8 * 40 + class.as_bytes()[0];
                png(&root.join(format!("{part}/{class}/{i}.png")), 5, 4, seed);
            }
        }
    }

    #[test]
    fn the_hash_is_that_of_the_content_and_not_of_the_layout() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        image_folder(&folder);
        let data = Dataset::open(&folder, 1).unwrap();
        let hash = data.content_hash().unwrap();

        let mut table = "image,label,split\n".to_string();
        let mut idx: Vec<(&str, Vec<u8>, Vec<u8>)> = Vec::new();
        for split in Split::ALL {
            let name = if split == Split::Test { "t10k" } else { split.name() };
            let (mut pixels, mut labels) = (Vec::new(), Vec::new());
            for sample in data.part(split).iter().rev() {
                let class = &data.classes[sample.label as usize];
                table.extend(["folder/", &sample.id, ",", class, ",", split.name(), "\n"]);
                pixels.extend(sample.load().unwrap().pixels.chunks(3).map(|p| p[0]));
                labels.push(class.parse::<u8>().unwrap());
            }
            idx.push((name, pixels, labels));
        }
        fs::write(dir.path().join("labels.csv"), table).unwrap();
        assert_eq!(Dataset::open(dir.path().join("labels.csv"), 1).unwrap().content_hash().unwrap(), hash);

        let idx_folder = dir.path().join("idx");
        fs::create_dir(&idx_folder).unwrap();
        for (name, pixels, labels) in idx {
            let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
            let count = labels.len() as u32;
            let images = [numbers(&[0x803, count, 4, 5]), pixels].concat();
            fs::write(idx_folder.join(format!("{name}-images-idx3-ubyte")), images).unwrap();
            let labels = [numbers(&[0x801, count]), labels].concat();
            fs::write(idx_folder.join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
        }
        assert_eq!(Dataset::open(&idx_folder, 1).unwrap().content_hash().unwrap(), hash);

        // Another class, another order of classes or another part is another data set.
        let mut renamed = data.clone();
        renamed.classes.swap(0, 1);
        assert_ne!(renamed.content_hash().unwrap(), hash);
        let mut swapped = data.clone();
        swapped.train[0].label = 1;
        assert_ne!(swapped.content_hash().unwrap(), hash);
        let mut moved = data;
        let sample = moved.train.pop().unwrap();
        moved.val.push(sample);
        assert_ne!(moved.content_hash().unwrap(), hash);
    }

    #[test]
    fn a_summary_counts_and_measures() {
        let dir = tempfile::tempdir().unwrap();
        image_folder(dir.path());
        png(&dir.path().join("train/7/wide.png"), 30, 2, 1);
        let summary = Dataset::open(dir.path(), 1).unwrap().summary();
        assert_eq!(summary.images, SplitCounts { train: 5, val: 2, test: 2 });
        assert_eq!(summary.classes[1].images, SplitCounts { train: 3, val: 1, test: 1 });
        assert_eq!((summary.width, summary.height), (Some([5, 30]), Some([2, 4])));
        assert!(summary.unreadable.is_empty() && summary.content_hash.is_some());
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["classes"][0], serde_json::json!({"name": "3", "train": 2, "val": 1, "test": 1}));
    }

    #[test]
    fn unreadable_images_stop_or_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        image_folder(dir.path());
        let whole = fs::read(dir.path().join("train/7/0.png")).unwrap();
        fs::write(dir.path().join("train/7/cut.png"), &whole[..whole.len() / 2]).unwrap();
        fs::write(dir.path().join("val/3/text.jpg"), "no image").unwrap();
        let data = Dataset::open(dir.path(), 1).unwrap();
        let message = data.clone().leave_out_unreadable(false).unwrap_err().to_string();
        for part in ["2 unreadable images", "cut.png: ", "text.jpg: not an image", "skip_bad_images"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(message.lines().count(), 1);
        let mut kept = data.clone();
        let left_out = kept.leave_out_unreadable(true).unwrap();
        let ids: Vec<_> = left_out.iter().map(|u| (u.split, u.id.as_str())).collect();
        assert_eq!(ids, [(Split::Train, "train/7/cut.png"), (Split::Val, "val/3/text.jpg")]);
        assert_eq!((kept.train.len(), kept.val.len(), kept.test.len()), (4, 2, 2));
        assert_eq!(data.summary().unreadable, left_out);
        assert_eq!(data.summary().content_hash, None);
        assert_eq!(kept.leave_out_unreadable(false).unwrap(), []);
    }

    #[test]
    fn nothing_left_of_a_class_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        image_folder(dir.path());
        for name in ["0.png", "1.png"] {
            fs::write(dir.path().join("train/7").join(name), "").unwrap();
        }
        let message = Dataset::open(dir.path(), 1).unwrap().leave_out_unreadable(true).unwrap_err().to_string();
        assert!(message.contains("class '7'"), "{message}");
    }
}
