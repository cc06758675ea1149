//! Data sets of images that a program has in memory: with a class each, with any number of classes, or with boxes. Parts that
//! are missing are split off as those of data sets on disk are, and what learns from them sees no difference.

use super::boxes::{BoxDataset, BoxImage, Category, Object, Rect, placed, renumber};
use super::container::ImageSource;
use super::dataset::{Dataset, Layout, Sample, Split};
use super::multilabel::MultilabelDataset;
use super::open::{LabeledSet, Parts};
use super::split::{MadeParts, complete, complete_parts};
use vpt_base::{Error, Result};

/// Images with what is known of each, in one to three parts.
///
/// `L` is a class (`u32`, an index into `classes`), the classes of an image (`Vec<u32>`) or its objects
/// (`Vec<(u32, Rect)>`: class, and where it is in pixels).
#[derive(Clone, Debug)]
pub struct MemorySet<L> {
    /// A short name, for results and messages.
    pub name: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// What is learned from; all there is, where the other parts are empty.
    pub train: Vec<(ImageSource, L)>,
    /// What chooses epochs and hyperparameters; split off if it is empty.
    pub val: Vec<(ImageSource, L)>,
    /// What is looked at once, at the end; split off if it is empty.
    pub test: Vec<(ImageSource, L)>,
}

impl<L> MemorySet<L> {
    /// Images to learn from, of these classes; parts for validation and test are split off.
    pub fn new<S: ToString>(classes: &[S], train: Vec<(ImageSource, L)>) -> Self {
        let classes = classes.iter().map(ToString::to_string).collect();
        Self { name: "memory".to_owned(), classes, train, val: Vec::new(), test: Vec::new() }
    }

    /// The same with images that choose epochs and hyperparameters.
    #[must_use]
    pub fn with_val(self, val: Vec<(ImageSource, L)>) -> Self {
        Self { val, ..self }
    }

    /// The same with images that are looked at once, at the end.
    #[must_use]
    pub fn with_test(self, test: Vec<(ImageSource, L)>) -> Self {
        Self { test, ..self }
    }

    /// Its parts, with each image as `made` makes it of its id, and the names of the classes.
    fn parts<M>(
        self,
        mut made: impl FnMut(String, ImageSource, L) -> Result<M>,
    ) -> Result<(String, Vec<String>, Parts<M>)> {
        let Self { name, classes, train, val, test } = self;
        if classes.is_empty() {
            return Err(Error::invalid("classes", "there are none"));
        }
        if train.is_empty() {
            return Err(Error::invalid("images", "there are none to learn from"));
        }
        let is_whole = val.is_empty() && test.is_empty();
        let mut part = |split: Split, images: Vec<(ImageSource, L)>| {
            let called = if is_whole { "images" } else { split.name() };
            let one = |(i, (image, label))| made(format!("{called}:{i}"), image, label);
            images.into_iter().enumerate().map(one).collect::<Result<Vec<M>>>()
        };
        let train = part(Split::Train, train)?;
        let [val, test] = [part(Split::Val, val)?, part(Split::Test, test)?];
        let given = |part: Vec<M>| Some(part).filter(|part| !part.is_empty());
        let parts = match (given(val), given(test)) {
            (None, None) => Parts::Unsplit(train),
            (val, test) => Parts::Split { train, val, test },
        };
        Ok((name, classes, parts))
    }
}

/// Fails unless `class` is one of `classes`.
fn check_class(id: &str, class: u32, classes: usize) -> Result<()> {
    if class as usize >= classes {
        return Err(Error::invalid("labels", format!("{id}: class {class} where there are {classes}")));
    }
    Ok(())
}

impl MemorySet<u32> {
    /// As a data set of one class an image, with missing parts split off by `seed`.
    ///
    /// # Errors
    /// A label is none, a class has no training image, there are fewer than two classes, or too few images.
    pub fn dataset(self, seed: u64) -> Result<Dataset> {
        let count = self.classes.len();
        let (name, classes, samples) = self.parts(|id, image, label| {
            check_class(&id, label, count)?;
            Ok(Sample { image, label, id })
        })?;
        let set = complete(name, Layout::MEMORY, LabeledSet { classes, samples }, seed, MadeParts::All)?;
        let lacking = (0..count).find(|&class| !set.train.iter().any(|sample| sample.label as usize == class));
        match lacking {
            Some(class) => {
                let message = format!("no training image is of class {class} ('{}')", set.classes[class]);
                Err(Error::invalid("labels", message))
            }
            None => Ok(set),
        }
    }
}

impl MemorySet<Vec<u32>> {
    /// As a data set of any number of classes an image, with missing parts split off by `seed`.
    ///
    /// # Errors
    /// A label is none, no training image has a class, or there are too few images.
    pub fn multilabel(self, seed: u64) -> Result<MultilabelDataset> {
        let whole = |image: &BoxImage| Rect { x: 0., y: 0., width: image.width as f64, height: image.height as f64 };
        let boxes =
            self.boxed(seed, |labels, image| Ok(labels.into_iter().map(|class| (class, whole(image))).collect()))?;
        let mut set = MultilabelDataset::new(&boxes)?;
        set.dataset.layout = Layout::MEMORY;
        Ok(set)
    }
}

impl MemorySet<Vec<(u32, Rect)>> {
    /// As a data set of boxes, with missing parts split off by `seed`.
    ///
    /// # Errors
    /// A class is none, a box is empty, reaches out of its image or is no number, no training image has a box, or there are too
    /// few images.
    pub fn boxes(self, seed: u64) -> Result<BoxDataset> {
        let set = self.boxed(seed, |objects, image| {
            let check = |(i, (class, rect)): (usize, (u32, Rect))| {
                let rect = placed([rect.x, rect.y, rect.width, rect.height], [image.width, image.height])
                    .map_err(|why| Error::invalid("boxes", format!("{}: box {i}: {why}", image.name)))?;
                Ok((class, rect))
            };
            objects.into_iter().enumerate().map(check).collect()
        })?;
        if set.train.iter().all(|image| image.objects.is_empty()) {
            return Err(Error::invalid("boxes", "no training image has one"));
        }
        Ok(set)
    }
}

impl<L> MemorySet<L> {
    /// As a data set of the boxes that `objects` makes of what is known of an image.
    fn boxed(self, seed: u64, objects: impl Fn(L, &BoxImage) -> Result<Vec<(u32, Rect)>>) -> Result<BoxDataset> {
        let count = self.classes.len();
        let (name, classes, parts) = self.parts(|id, image, label| {
            let mut image = BoxImage::unlabelled(id, image)?;
            for (class, rect) in objects(label, &image)? {
                check_class(&image.name, class, count)?;
                let category = class as usize;
                image.objects.push(Object { id: 0, category, rect, area: rect.area(), crowd: false });
            }
            Ok(image)
        })?;
        let (mut parts, split_note) = complete_parts(&name, parts, &["images".to_owned()], seed, MadeParts::All)?;
        for part in &mut parts {
            renumber(part);
        }
        let categories = classes.into_iter().zip(1..).map(|(name, id)| Category { id, name }).collect();
        let [train, val, test] = parts;
        let (layout, given, problems) = (Layout::MEMORY, [None; 3], Vec::new());
        Ok(BoxDataset { name, layout, categories, train, val, test, split_note, given, problems, draw: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_image::Rgb8;

    /// Images of 8 x 6 pixels with these labels.
    fn images<L: Clone>(labels: &[L]) -> Vec<(ImageSource, L)> {
        labels.iter().map(|label| (Rgb8::new(8, 6).into(), label.clone())).collect()
    }

    fn set<L>(train: Vec<(ImageSource, L)>) -> MemorySet<L> {
        let classes = vec!["a".to_owned(), "b".to_owned()];
        MemorySet { name: "mine".to_owned(), classes, train, val: Vec::new(), test: Vec::new() }
    }

    #[test]
    fn one_part_is_split_in_three_by_class() {
        let labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
        let data = set(images(&labels)).dataset(1).unwrap();
        assert_eq!([data.train.len(), data.val.len(), data.test.len()], [28, 6, 6]);
        assert!(data.train.iter().all(|sample| sample.id.starts_with("images:") && sample.load().is_ok()));
        let test: Vec<_> = data.test.iter().map(|sample| sample.id.clone()).collect();
        let again = set(images(&labels)).dataset(1).unwrap();
        assert_eq!(test, again.test.iter().map(|sample| sample.id.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn parts_that_are_given_are_kept() {
        let data = MemorySet { val: images(&[0, 1]), test: images(&[1]), ..set(images(&[0, 1, 1])) };
        let data = data.dataset(1).unwrap();
        assert_eq!([data.train.len(), data.val.len(), data.test.len()], [3, 2, 1]);
        assert_eq!(data.split_note, "train, val and test as given");
    }

    #[test]
    fn labels_that_cannot_be_are_refused_by_their_place() {
        let refusal = |set: MemorySet<u32>| set.dataset(1).unwrap_err().to_string();
        assert_eq!(refusal(set(images(&[0, 1, 2]))), "labels: images:2: class 2 where there are 2");
        assert_eq!(refusal(set(images(&[0; 20]))), "labels: no training image is of class 1 ('b')");
        assert_eq!(refusal(set(Vec::new())), "images: there are none to learn from");
        assert!(refusal(set(images(&[0, 1]))).contains("too few images"));
        assert_eq!(refusal(MemorySet { classes: Vec::new(), ..set(images(&[0])) }), "classes: there are none");
    }

    #[test]
    fn several_classes_become_sets() {
        let labels: Vec<Vec<u32>> = (0..30).map(|i| [vec![], vec![1, 0], vec![1]][i % 3].clone()).collect();
        let data = set(images(&labels)).multilabel(1).unwrap();
        assert_eq!(data.dataset.classes, ["a", "b"]);
        assert_eq!(data.sets.counts(&data.dataset.train).iter().sum::<usize>(), {
            let of = |sample: &Sample| data.sets.set(sample.label).unwrap().len();
            data.dataset.train.iter().map(of).sum::<usize>()
        });
        let mut kinds: Vec<&[u32]> = (0..3).map(|label| data.sets.set(label).unwrap()).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [&[][..], &[0, 1], &[1]]);
    }

    #[test]
    fn boxes_must_lie_in_their_images() {
        let rect = |x, width| Rect { x, y: 1., width, height: 2. };
        let labels = vec![vec![(1, rect(0., 8.)), (0, rect(2., 1.5))]; 20];
        let data = set(images(&labels)).boxes(1).unwrap();
        assert_eq!([data.train.len(), data.val.len(), data.test.len()], [14, 3, 3]);
        assert_eq!(data.train[1].objects[0].id, 3);
        assert_eq!(data.categories[1], Category { id: 2, name: "b".to_owned() });
        for (bad, why) in [
            ((0, rect(5., 4.)), "boxes: images:0: box 0: a box that reaches 1.0 pixels past the border"),
            ((0, rect(f64::NAN, 4.)), "boxes: images:0: box 0: a box of [NaN"),
            ((0, rect(1., 0.)), "boxes: images:0: box 0: a box of 0 x 2 pixels"),
            ((2, rect(1., 1.)), "labels: images:0: class 2 where there are 2"),
        ] {
            let message = set(images(&[vec![bad]])).boxes(1).unwrap_err().to_string();
            assert!(message.starts_with(why), "{message}");
        }
        let message = set(images(&vec![vec![]; 20])).boxes(1).unwrap_err().to_string();
        assert_eq!(message, "boxes: no training image has one");
    }

    #[test]
    fn a_broken_image_is_an_error_and_no_panic() {
        let broken = Rgb8 { width: 9, height: 9, pixels: vec![0; 5] };
        assert!(ImageSource::from(broken.clone()).load().is_err());
        let all = vec![(ImageSource::from(broken), vec![(0, Rect { x: 0., y: 0., width: 1., height: 1. })])];
        assert!(set(all).boxes(1).unwrap_err().to_string().contains("243 values, not 5"));
    }
}
