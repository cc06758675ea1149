//! Boxes as images of their own, a class each: what a data set of boxes is to whoever looks at images with labels.

use std::path::Path;
use std::sync::Arc;

use super::{BoxDataset, BoxImage, Object, Rect};
use crate::container::{Container, ImageSource, Stored};
use crate::{Dataset, Layout, Sample, Split};
use vpt_base::Result;
use vpt_image::resize::crop;

/// What is cut out of one image.
#[derive(Debug)]
struct BoxCrops {
    image: BoxImage,
    /// The objects, in the order of the image.
    rects: Vec<Rect>,
}

/// The pixels that a box touches: left, top, width and height, within an image of this size.
fn pixels(rect: Rect, width: usize, height: usize) -> [usize; 4] {
    let range = |from: f64, to: f64, size: usize| {
        let from = (from.floor().max(0.) as usize).min(size.saturating_sub(1));
        (from, (to.ceil().max(0.) as usize).clamp(from + 1, size.max(from + 1)) - from)
    };
    let ((left, width), (top, height)) = (range(rect.x, rect.right(), width), range(rect.y, rect.bottom(), height));
    [left, top, width, height]
}

impl Container for BoxCrops {
    fn path(&self) -> &Path {
        self.image.file()
    }

    fn name(&self, index: usize) -> String {
        format!("box {}", index + 1)
    }

    fn read(&self, index: usize) -> Result<Stored<'_>> {
        let image = self.image.image.load()?;
        let Some(rect) = self.rects.get(index) else { return Ok(Stored::Decoded(image)) };
        let [left, top, width, height] = pixels(*rect, image.width, image.height);
        Ok(Stored::Decoded(crop(&image, left as isize, top as isize, width, height)))
    }
}

impl BoxDataset {
    /// Every object with sides of at least `least` pixels as an image of its category, and where each is, by part; crowds are left
    /// out. Beside them how many were smaller.
    pub fn crops(&self, least: f64) -> (Dataset, [Vec<Rect>; 3], usize) {
        let mut smaller = 0;
        let mut places: [Vec<Rect>; 3] = Default::default();
        let mut part = |split: Split| -> Vec<Sample> {
            let mut samples = Vec::new();
            for image in self.part(split) {
                let objects: Vec<&Object> = image.objects.iter().filter(|object| !object.crowd).collect();
                let rects: Vec<Rect> = objects.iter().map(|object| object.rect).collect();
                let crops: Arc<dyn Container> = Arc::new(BoxCrops { image: image.clone(), rects });
                for (index, object) in objects.into_iter().enumerate() {
                    if object.rect.width.min(object.rect.height) < least {
                        smaller += 1;
                        continue;
                    }
                    let id = format!("{}#{}", image.name, index + 1);
                    let image = ImageSource::Member { container: crops.clone(), index };
                    samples.push(Sample { image, label: object.category as u32, id });
                    places[split as usize].push(object.rect);
                }
            }
            samples
        };
        let [train, val, test] = Split::ALL.map(&mut part);
        let dataset = Dataset {
            name: self.name.clone(),
            layout: Layout::BOXES,
            classes: self.names(),
            train,
            val,
            test,
            split_note: self.split_note.clone(),
        };
        (dataset, places, smaller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::Category;
    use vpt_image::decode::Rgb8;

    #[test]
    fn boxes_become_images_of_the_pixels_that_they_touch() {
        let pixels = (0..6 * 4 * 3).map(|i| (i / 3) as u8).collect();
        let whole = Rgb8 { width: 6, height: 4, pixels };
        let object = |id, x, y, width, height, crowd| Object {
            id,
            category: 1,
            rect: Rect { x, y, width, height },
            area: width * height,
            crowd,
        };
        let image = BoxImage {
            id: 1,
            name: "a.png".into(),
            image: ImageSource::Memory(Arc::new(whole)),
            width: 6,
            height: 4,
            objects: vec![
                object(1, 1.5, 1., 2., 2., false),
                object(2, 0., 0., 6., 4., true),
                object(3, 3., 0., 0.5, 4., false),
                object(4, 4.2, 2.9, 1.8, 1.1, false),
            ],
        };
        let categories = ["a", "b"].map(|name| Category { id: 1, name: name.into() }).to_vec();
        let data = BoxDataset::of_train("set", Layout::COCO, categories, vec![image]);
        let (crops, places, smaller) = data.crops(1.);
        assert_eq!((crops.train.len(), places[0].len(), smaller), (2, 2, 1));
        let first = crops.train[0].load().unwrap();
        assert_eq!((first.width, first.height, first.pixels[0]), (3, 2, 7));
        let last = crops.train[1].load().unwrap();
        assert_eq!((last.width, last.height, last.pixels[0]), (2, 2, 16));
        assert_eq!((crops.train[1].label, crops.train[1].id.as_str()), (1, "a.png#3"));
    }
}
