//! Few-shot draws of boxes: k boxes a class, as few-shot detection has it, written down so that others can repeat them.
//!
//! The draw is that of "Frustratingly Simple Few-Shot Object Detection" (Wang et al., ICML 2020), which RF100-VL's few-shot sets follow: class by
//! class, images in random order are added whole, with all boxes that they have of the class, as long as these fit into what is left of
//! k. Where no image is left whose boxes fit, the next one gives as many as are wanted. What else is in the drawn images, boxes of other
//! classes and those above k, is treated as crowds are: nothing is learned there, neither that it is an object nor that it is background. (The
//! original takes it for background.)

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{BoxDataset, BoxImage, Object};
use crate::Split;
use crate::draw_file::{read_draw, write_draw};
use crate::split::{MAX_VAL_SHOTS, shuffled};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Boxes a class that the training images of RF100-VL's few-shot sets have.
const RF100_VL_SHOTS: usize = 10;

/// What names RF100-VL's few-shot sets, and the part of them that a challenge took: workspaces of Roboflow, and the folders that the tool which
/// fetches them is told to fill in its examples.
const RF100_VL: [&str; 2] = ["rf100-vl-fsod", "rf20-vl-fsod"];

/// The pages that Roboflow puts beside the parts of a set.
const ROBOFLOW_PAGES: [&str; 2] = ["README.dataset.txt", "README.roboflow.txt"];

/// Longest such page that is looked at, in bytes.
const MAX_PAGE: u64 = 1 << 20;

/// Which boxes a class are drawn: by the name of the image, the ids of the annotations.
type DrawnBoxes = BTreeMap<String, BTreeMap<String, Vec<u64>>>;

/// Which boxes of a data set are learned from and validated on. The test part stays whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxShots {
    /// The data set's name.
    pub data: String,
    /// Boxes a class that were asked for.
    pub shots: usize,
    /// The seed of the draw.
    pub seed: u64,
    /// Whether the training part is used as it is, because the data set comes as a few-shot set with so many boxes a class.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_split: bool,
    /// For each class the boxes to learn from.
    pub train: DrawnBoxes,
    /// For each class the boxes to validate on: up to [`MAX_VAL_SHOTS`].
    pub val: DrawnBoxes,
}

/// Boxes a class in the training part of the data set at `path`, where that is known to be one of RF100-VL's few-shot sets: by a page of Roboflow
/// in it, or by the name of its folder or of the one around it.
pub fn own_shots(path: &Path) -> Option<usize> {
    let is_named = |name: &str| RF100_VL.iter().any(|known| name.contains(known));
    let mut names = path.ancestors().take(2).filter_map(|folder| folder.file_name()?.to_str());
    let own = path.file_name().and_then(|name| name.to_str());
    let by_name = names.any(is_named) || own.is_some_and(|name| name.contains("-fsod-"));
    let by_page = || {
        ROBOFLOW_PAGES.iter().any(|page| {
            let bytes = read_limited(&path.join(page), MAX_PAGE).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            RF100_VL.iter().any(|name| text.contains(&format!("universe.roboflow.com/{name}/")))
        })
    };
    (by_name || by_page()).then_some(RF100_VL_SHOTS)
}

impl BoxShots {
    /// Draws `shots` boxes of each class for training and `min(shots, 4)` for validation. A class that has fewer gives what it has;
    /// [`short_classes`](Self::short_classes) names it. The training part of a set that comes with so many boxes a class
    /// ([`own_shots`]), from `path`, is taken as it is.
    ///
    /// # Errors
    /// `shots` is 0, or no class has a box.
    pub fn draw(dataset: &BoxDataset, path: &Path, shots: usize, seed: u64) -> Result<Self> {
        if shots == 0 {
            return Err(Error::setting("shots", "0 boxes a class leave nothing to learn from"));
        }
        let own_split = own_shots(path) == Some(shots);
        let draw = |split: Split, count: usize| {
            let classes = dataset.categories.iter().enumerate();
            let drawn = classes.map(|(class, category)| {
                let images = dataset.part(split);
                let members = (0..images.len()).filter(|&i| boxes(&images[i], class).next().is_some()).collect();
                let purpose = format!("few-shot boxes {split} {}", category.name);
                let order = shuffled(images, members, seed, &purpose);
                (category.name.clone(), choose(images, &order, class, count))
            });
            drawn.collect()
        };
        let train: DrawnBoxes = draw(Split::Train, if own_split { usize::MAX } else { shots });
        if train.values().all(BTreeMap::is_empty) {
            return Err(Error::invalid(format!("data set {}", dataset.name), "no training image has a box to draw"));
        }
        Ok(Self {
            data: dataset.name.clone(),
            shots,
            seed,
            own_split,
            train,
            val: draw(Split::Val, shots.min(MAX_VAL_SHOTS)),
        })
    }

    /// The classes that have fewer boxes to learn from than were asked for.
    pub fn short_classes(&self) -> impl Iterator<Item = (&str, usize)> {
        let counts =
            self.train.iter().map(|(class, images)| (class.as_str(), images.values().map(Vec::len).sum::<usize>()));
        counts.filter(|&(_, boxes)| boxes < self.shots)
    }

    /// `dataset` with only the drawn images in train and val, in the data set's own order; what else is in them is neither to be learned nor
    /// to be found.
    ///
    /// # Errors
    /// A class, image or box of the draw is not in `dataset`, or a box has another class there.
    pub fn apply(&self, dataset: &BoxDataset) -> Result<BoxDataset> {
        let names = dataset.names();
        if let Some(class) = self.train.keys().chain(self.val.keys()).find(|&class| !names.contains(class)) {
            return Err(self.mismatch(dataset, &format!("no class '{class}'")));
        }
        let pick = |split: Split, drawn: &DrawnBoxes| -> Result<Vec<BoxImage>> {
            let mut wanted: HashSet<(&str, &str, u64)> = HashSet::new();
            for (class, images) in drawn {
                for (image, ids) in images {
                    wanted.extend(ids.iter().map(|&id| (class.as_str(), image.as_str(), id)));
                }
            }
            let drawn: HashSet<&str> = wanted.iter().map(|(_, image, _)| *image).collect();
            let whole = self.own_split && split == Split::Train;
            let mut picked = Vec::new();
            for given in dataset.part(split).iter().filter(|image| whole || drawn.contains(image.name.as_str())) {
                let mut image = given.clone();
                for object in image.objects.iter_mut().filter(|object| !object.crowd) {
                    object.crowd = !wanted.remove(&(&names[object.category], &given.name, object.id)) && !whole;
                }
                picked.push(image);
            }
            if let Some((class, image, id)) = wanted.iter().min() {
                let what = format!("no box {id} of class '{class}' in image {image} of {split}");
                return Err(self.mismatch(dataset, &what));
            }
            Ok(picked)
        };
        let (train, mut val) = (pick(Split::Train, &self.train)?, pick(Split::Val, &self.val)?);
        let given = &dataset.split_note;
        let mut split_note = if self.own_split {
            format!("{given}; its own train of {} boxes a class", self.shots)
        } else {
            format!("{given}; {} boxes a class by seed {}, in {} images", self.shots, self.seed, train.len())
        };
        if val.is_empty() {
            val.clone_from(&dataset.val);
            split_note = format!("{split_note}; val has no box to draw and stays as it is");
        }
        let short = self.short_classes().count();
        if short > 0 {
            split_note = format!("{split_note} ({short} of {} classes have fewer)", self.train.len());
        }
        Ok(BoxDataset { train, val, split_note, draw: Some(self.clone()), ..dataset.clone() })
    }

    fn mismatch(&self, dataset: &BoxDataset, message: &str) -> Error {
        Error::invalid(format!("few-shot draw of {}", self.data), format!("data set {} has {message}", dataset.name))
    }

    /// Writes the draw to `path` as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_draw(path, self)
    }

    /// Reads a draw that [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// The file cannot be read or is not such a draw.
    pub fn read(path: &Path) -> Result<Self> {
        let draw: Self =
            read_draw(path)?.map_err(|error| Error::data(path, format!("not a draw of boxes: {error}")))?;
        if draw.shots == 0 || draw.train.values().all(BTreeMap::is_empty) {
            return Err(Error::data(path, "the draw holds no boxes to learn from"));
        }
        for (part, drawn) in [("train", &draw.train), ("val", &draw.val)] {
            let mut seen = HashSet::new();
            for (class, images) in drawn {
                let count: usize = images.values().map(Vec::len).sum();
                if count > draw.shots && !(draw.own_split && part == "train") {
                    let message =
                        format!("class '{class}' has {count} boxes in {part}, more than its {} shots", draw.shots);
                    return Err(Error::data(path, message));
                }
                let mut ids = images.iter().flat_map(|(image, ids)| ids.iter().map(move |id| (image, id)));
                if let Some((image, id)) = ids.find(|place| !seen.insert(*place)) {
                    return Err(Error::data(path, format!("box {id} of image {image} is drawn twice in {part}")));
                }
            }
        }
        Ok(draw)
    }
}

/// The boxes of a class in an image, but crowds.
fn boxes(image: &BoxImage, class: usize) -> impl Iterator<Item = &Object> {
    image.objects.iter().filter(move |object| object.category == class && !object.crowd)
}

/// `count` boxes of `class`, of the images at `order`: whole images first, as long as their boxes fit, then parts of the others.
fn choose(images: &[BoxImage], order: &[usize], class: usize, count: usize) -> BTreeMap<String, Vec<u64>> {
    let mut chosen = BTreeMap::new();
    let mut left = count;
    for whole in [true, false] {
        for image in order.iter().map(|&i| &images[i]) {
            let ids: Vec<u64> = boxes(image, class).map(|object| object.id).collect();
            if left == 0 || chosen.contains_key(&image.name) || (whole && ids.len() > left) {
                continue;
            }
            let taken = ids.len().min(left);
            left -= taken;
            chosen.insert(image.name.clone(), ids[..taken].to_vec());
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::{Category, Rect};
    use crate::{ImageSource, Layout};
    use std::sync::Arc;
    use vpt_image::decode::Rgb8;

    /// Images of train and val, each with so many boxes of each of three classes, and a crowd.
    fn dataset(train: &[[usize; 3]], val: &[[usize; 3]]) -> BoxDataset {
        let part = |split: &str, counts: &[[usize; 3]]| {
            let image = |(number, counts): (usize, &[usize; 3])| {
                let all = counts.iter().enumerate().flat_map(|(class, &n)| std::iter::repeat_n((class, false), n));
                let rect = Rect { x: 1., y: 2., width: 3., height: 4. };
                let object = |(id, (category, crowd))| Object { id, category, rect, area: rect.area(), crowd };
                BoxImage {
                    id: number as u64 + 1,
                    name: format!("{split}/{number}.png"),
                    image: ImageSource::Memory(Arc::new(Rgb8::new(9, 9))),
                    width: 9,
                    height: 9,
                    objects: (1..).zip(all.chain([(0, true)])).map(object).collect(),
                }
            };
            counts.iter().enumerate().map(image).collect::<Vec<_>>()
        };
        let names = ["cat", "dog", "owl"].into_iter().zip(1..);
        let categories = names.map(|(name, id)| Category { id, name: name.into() }).collect();
        BoxDataset {
            val: part("val", val),
            test: part("test", val),
            split_note: "as given".into(),
            ..BoxDataset::of_train("set", Layout::COCO, categories, part("train", train))
        }
    }

    fn counts(drawn: &DrawnBoxes) -> Vec<usize> {
        drawn.values().map(|images| images.values().map(Vec::len).sum()).collect()
    }

    fn draw(data: &BoxDataset, shots: usize, seed: u64) -> BoxShots {
        BoxShots::draw(data, Path::new("set"), shots, seed).unwrap()
    }

    /// Boxes to be learned in a part, of each class.
    fn learned(part: &[BoxImage]) -> [usize; 3] {
        [0, 1, 2].map(|class| part.iter().map(|image| boxes(image, class).count()).sum())
    }

    const MANY: [[usize; 3]; 8] =
        [[1, 0, 0], [2, 3, 0], [0, 1, 1], [4, 0, 2], [1, 1, 0], [0, 2, 1], [3, 0, 0], [1, 1, 1]];

    #[test]
    fn each_class_has_k_boxes_and_all_else_in_the_images_is_ignored() {
        let data = dataset(&MANY, &MANY);
        for shots in 1..=5 {
            for seed in 1..=20 {
                let draw = draw(&data, shots, seed);
                assert_eq!(counts(&draw.train), [shots; 3]);
                assert_eq!(counts(&draw.val), [shots.min(4); 3]);
                let few = draw.apply(&data).unwrap();
                assert_eq!((learned(&few.train), learned(&few.val)), ([shots; 3], [shots.min(4); 3]));
                assert_eq!((&few.test, few.draw.as_ref()), (&data.test, Some(&draw)));
                // Nothing is lost: what is not drawn is a crowd, and the crowds of the data stay what they are.
                for image in &few.train {
                    let whole = data.train.iter().find(|other| other.name == image.name).unwrap();
                    assert_eq!(image.objects.len(), whole.objects.len());
                    assert!(image.objects.last().unwrap().crowd);
                    assert!(image.objects.iter().any(|object| !object.crowd), "an image that nothing is learned of");
                }
            }
        }
    }

    #[test]
    fn images_are_added_whole_where_their_boxes_fit() {
        // Two of the three boxes of the second image would do, but the others fit.
        let data = dataset(&[[1, 0, 0], [3, 0, 0], [1, 0, 0]], &[[1, 0, 0]]);
        for seed in 1..=20 {
            let draw = draw(&data, 2, seed);
            assert_eq!(draw.train["cat"].keys().collect::<Vec<_>>(), ["train/0.png", "train/2.png"]);
        }
        // Where none fits, one gives a part.
        let data = dataset(&[[3, 0, 0]], &[[1, 0, 0]]);
        assert_eq!(draw(&data, 2, 1).train["cat"]["train/0.png"], [1, 2]);
    }

    #[test]
    fn images_of_val_without_a_box_stay() {
        let data = dataset(&MANY, &[[0, 0, 0], [0, 0, 0]]);
        let few = draw(&data, 2, 1).apply(&data).unwrap();
        assert_eq!(few.val, data.val);
        assert!(few.split_note.ends_with("val has no box to draw and stays as it is"), "{}", few.split_note);
    }

    #[test]
    fn a_draw_depends_on_seed_class_and_names_only() {
        let data = dataset(&MANY, &MANY);
        let first = draw(&data, 3, 1);
        let mut turned = data.clone();
        turned.train.reverse();
        turned.val.reverse();
        assert_eq!(draw(&turned, 3, 1), first);
        assert!((2..10).any(|seed| draw(&data, 3, seed).train != first.train));
    }

    #[test]
    fn a_class_with_fewer_gives_what_it_has_and_is_named() {
        let data = dataset(&[[5, 1, 0], [2, 1, 0]], &[[1, 0, 0]]);
        let draw = draw(&data, 4, 1);
        assert_eq!(draw.short_classes().collect::<Vec<_>>(), [("dog", 2), ("owl", 0)]);
        assert!(draw.apply(&data).unwrap().split_note.ends_with("(2 of 3 classes have fewer)"));
        let none = dataset(&[[0, 0, 0]], &[[1, 0, 0]]);
        assert!(BoxShots::draw(&none, Path::new("set"), 4, 1).unwrap_err().to_string().contains("no training image"));
        assert!(BoxShots::draw(&data, Path::new("set"), 0, 1).unwrap_err().to_string().starts_with("shots"));
    }

    #[test]
    fn the_few_shot_sets_of_rf100_vl_are_known_and_taken_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        assert_eq!(own_shots(&at("rf100-vl-fsod/bees")), Some(10));
        assert_eq!(own_shots(&at("x/x-ray-id-zfisb-fsod-dyjv")), Some(10));
        assert_eq!(own_shots(&at("rf100-vl/bees")), None);
        let paged = at("mine/bees");
        let page =
            |address: &str| std::fs::write(paged.join("README.dataset.txt"), format!("# bees\n{address}\n")).unwrap();
        page("https://universe.roboflow.com/rf100-vl/bees-abc");
        assert_eq!(own_shots(&paged), None);
        page("https://universe.roboflow.com/rf20-vl-fsod/bees-fsod-abc");
        assert_eq!(own_shots(&paged), Some(10));
        // Of the two seeds the training images are the same, all of them with all of their boxes.
        let data = dataset(&[[11, 10, 3], [0, 0, 0]], &MANY);
        for seed in [1, 2] {
            let draw = BoxShots::draw(&data, &paged, 10, seed).unwrap();
            assert!(draw.own_split);
            let few = draw.apply(&data).unwrap();
            assert_eq!((&few.train, learned(&few.val)), (&data.train, [4; 3]));
            assert!(few.split_note.contains("its own train of 10 boxes a class (1 of 3 classes have fewer)"));
        }
        let fewer = BoxShots::draw(&data, &paged, 5, 1).unwrap();
        assert_eq!((fewer.own_split, counts(&fewer.train)), (false, vec![5, 5, 3]));
    }

    #[test]
    fn a_written_draw_is_read_back_and_must_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("draw.json");
        let data = dataset(&MANY, &MANY);
        let drawn = draw(&data, 3, 1);
        drawn.write(&path).unwrap();
        assert_eq!(BoxShots::read(&path).unwrap(), drawn);
        let message = drawn.apply(&dataset(&MANY[..2], &MANY)).unwrap_err().to_string();
        assert!(message.contains("few-shot draw of set: data set set has no box "), "{message}");
        let other = BoxDataset { categories: data.categories[..2].to_vec(), ..dataset(&[[1, 1, 0]], &[[1, 1, 0]]) };
        assert!(drawn.apply(&other).unwrap_err().to_string().contains("no class 'owl'"));
        let refused = |change: &dyn Fn(&mut BoxShots)| {
            let mut draw = drawn.clone();
            change(&mut draw);
            draw.write(&path).unwrap();
            BoxShots::read(&path).unwrap_err().to_string()
        };
        assert!(refused(&|draw| draw.shots = 2).contains("class 'cat' has 3 boxes in train, more than its 2 shots"));
        assert!(refused(&|draw| draw.train.clear()).contains("holds no boxes to learn from"));
        let twice = |draw: &mut BoxShots| {
            let ids = draw.val.get_mut("dog").unwrap().values_mut().next().unwrap();
            *ids = vec![7, 7];
        };
        assert!(refused(&twice).contains("is drawn twice in val") || refused(&twice).contains("more than its 3 shots"));
        for text in
            ["{}", "[1]", "{\"data\": \"x\", \"shots\": 1, \"seed\": 1, \"train\": {\"a\": [\"b\"]}, \"val\": {}}"]
        {
            std::fs::write(&path, text).unwrap();
            let message = BoxShots::read(&path).unwrap_err().to_string();
            assert!(message.contains("draw.json") && message.contains("not a draw of boxes"), "{message}");
        }
    }
}
