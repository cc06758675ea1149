//! pycocotools' numbers (`scripts/make_coco_fixture.py`), hotcoco's on random sets, and cases by hand.

use crate::metrics::coco::*;

fn image(id: u64, objects: Vec<Object>) -> BoxImage {
    let name = format!("{id}.jpg");
    BoxImage { id, image: vpt_data::ImageSource::File(name.clone().into()), name, width: 640, height: 480, objects }
}

fn categories(ids: &[u64]) -> Vec<Category> {
    ids.iter().map(|&id| Category { id, name: format!("category {id}") }).collect()
}

fn rect(x: f64, y: f64, width: f64, height: f64) -> Rect {
    Rect { x, y, width, height }
}

fn object(id: u64, category: usize, rect: Rect) -> Object {
    Object { id, category, rect, area: rect.area(), crowd: false }
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|value| value.is_finite()), "{a:?} {b:?}");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f64::max)
}

/// A case of `coco.json`.
#[derive(Deserialize)]
struct CocoFixture {
    images: Vec<u64>,
    categories: Vec<u64>,
    /// Id, image, category, x, y, width, height, area, crowd.
    objects: Vec<[f64; 9]>,
    /// Image, category, x, y, width, height, score.
    detections: Vec<[f64; 7]>,
    stats: [f64; 12],
    /// AP and AP50 of each category.
    classes: Vec<[Option<f64>; 2]>,
}

impl CocoFixture {
    fn all() -> Vec<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/coco.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn images(&self) -> Vec<BoxImage> {
        let mut images: Vec<BoxImage> = self.images.iter().map(|&id| image(id, Vec::new())).collect();
        for &[id, image, category, x, y, width, height, area, crowd] in &self.objects {
            let category = self.categories.iter().position(|&c| c == category as u64).unwrap();
            let rect = rect(x, y, width, height);
            let home = images.iter_mut().find(|i| i.id == image as u64).unwrap();
            home.objects.push(Object { id: id as u64, category, rect, area, crowd: crowd > 0. });
        }
        images
    }

    fn detections(&self) -> Vec<Detection> {
        let detection = |&[image, category, x, y, width, height, score]: &[f64; 7]| Detection {
            image: image as u64,
            category: category as u64,
            rect: rect(x, y, width, height),
            score,
        };
        self.detections.iter().map(detection).collect()
    }
}

#[test]
fn the_numbers_are_those_of_pycocotools() {
    for fixture in CocoFixture::all() {
        let eval = evaluate(&fixture.images(), &categories(&fixture.categories), &fixture.detections()).unwrap();
        let found = eval.metrics.values();
        assert!(largest_difference(&found, &fixture.stats) < 1e-9, "{found:?} {:?}", fixture.stats);
        let classes: Vec<[Option<f64>; 2]> =
            eval.categories.iter().map(|c| [c.as_ref().map(|c| c.ap), c.as_ref().map(|c| c.ap50)]).collect();
        for (found, expected) in classes.iter().flatten().zip(fixture.classes.iter().flatten()) {
            assert_eq!(found.is_some(), expected.is_some(), "{classes:?}");
            assert!((found.unwrap_or(0.) - expected.unwrap_or(0.)).abs() < 1e-9, "{classes:?}");
        }
    }
}

#[test]
fn the_order_of_images_and_categories_does_not_matter() {
    for fixture in CocoFixture::all() {
        let mut images = fixture.images();
        let before = evaluate(&images, &categories(&fixture.categories), &fixture.detections()).unwrap();
        images.reverse();
        let last = fixture.categories.len() - 1;
        images.iter_mut().flat_map(|i| &mut i.objects).for_each(|o| o.category = last - o.category);
        let turned: Vec<u64> = fixture.categories.iter().rev().copied().collect();
        let mut after = evaluate(&images, &categories(&turned), &fixture.detections()).unwrap();
        after.categories.reverse();
        assert_eq!(before, after);
    }
}

#[test]
fn without_objects_there_is_no_number_and_false_detections_count_in_empty_images() {
    let found = |image, score| Detection { image, category: 5, rect: rect(10., 10., 50., 50.), score };
    let empty = evaluate(&[image(1, vec![])], &categories(&[5]), &[found(1, 0.5)]).unwrap();
    assert_eq!(empty.metrics.values(), [-1.; 12]);
    assert_eq!((empty.categories, empty.unknown), (vec![None], 0));

    let images = [image(1, vec![object(1, 0, rect(10., 10., 50., 50.))]), image(2, vec![])];
    let ap = |detections: &[Detection]| evaluate(&images, &categories(&[5]), detections).unwrap().metrics.ap;
    assert!((ap(&[found(1, 0.5)]) - 1.).abs() < 1e-9);
    assert!((ap(&[found(1, 0.5), found(2, 0.6)]) - 0.5).abs() < 1e-9, "the false one comes first");
    assert_eq!(ap(&[]), 0.);

    let strange = Detection { category: 6, ..found(1, 0.9) };
    let eval = evaluate(&images, &categories(&[5]), &[found(1, 0.5), strange]).unwrap();
    assert!((eval.metrics.ap - 1.).abs() < 1e-9);
    assert_eq!(eval.unknown, 1);
}

#[test]
fn the_best_confidence_keeps_what_is_right_and_drops_what_is_wrong() {
    let boxes = [rect(0., 0., 40., 40.), rect(100., 0., 40., 40.)];
    let images = [image(1, vec![object(1, 0, boxes[0]), object(2, 0, boxes[1])])];
    let found = |rect, score| Detection { image: 1, category: 5, rect, score };
    let detections = [found(boxes[0], 0.9), found(boxes[1], 0.6), found(rect(300., 300., 9., 9.), 0.3004)];
    let eval = evaluate(&images, &categories(&[5]), &detections).unwrap();
    assert_eq!(eval.best_confidence(), Some((0.301, 1.)));
    let f1 = eval.mean_f1();
    assert_eq!([f1[300], f1[600], f1[601], f1[900], f1[901]], [0.8, 1., 2. / 3., 2. / 3., 0.]);
    assert_eq!(eval.mean_precision().len(), 101);
}

#[test]
fn each_category_with_objects_enough_has_a_best_confidence_of_its_own() {
    let place = |i: usize| rect(i as f64 * 50., 0., 40., 40.);
    let far = |i: usize| rect(i as f64 * 50., 500., 40., 40.);
    // Ten of the first category and three of the second; the third has none.
    let objects = (0..13).map(|i| object(i as u64 + 1, usize::from(i >= 10), place(i))).collect();
    let found = |category, rect, score| Detection { image: 1, category, rect, score };
    let mut detections: Vec<Detection> =
        (0..13).map(|i| found(if i < 10 { 1 } else { 2 }, place(i), if i < 10 { 0.8 } else { 0.2 })).collect();
    detections.extend((0..10).map(|i| found(1, far(i), 0.5)));
    let eval = evaluate(&[image(1, objects)], &categories(&[1, 2, 3]), &detections).unwrap();
    let (shared, f1) = eval.best_confidence().unwrap();
    assert_eq!((shared, f1), (0., f64::midpoint(2. / 3., 1.)));
    assert_eq!(eval.best_confidences(), Some(vec![0.501, shared, shared]));
    let none = evaluate(&[image(1, vec![])], &categories(&[1]), &[]).unwrap();
    assert_eq!(none.best_confidences(), None);
}

#[test]
fn confusion_by_hand() {
    let boxes: Vec<Rect> = (0..4).map(|i| rect(f64::from(i) * 100., 0., 40., 40.)).collect();
    let crowd = Object { crowd: true, ..object(4, 0, rect(0., 200., 400., 200.)) };
    let objects = vec![object(1, 0, boxes[0]), object(2, 0, boxes[1]), object(3, 1, boxes[2]), crowd];
    let found = |category, rect, score| Detection { image: 1, category, rect, score };
    let detections = [
        found(8, boxes[0], 0.9), // takes nothing that category 7 finds below
        found(7, boxes[0], 0.5),
        found(8, boxes[1], 0.5),                  // an object of category 7
        found(7, boxes[3], 0.4),                  // nothing
        found(7, rect(50., 250., 20., 20.), 0.8), // in a crowd
        found(8, boxes[2], 0.1),                  // too unsure
    ];
    let names = categories(&[7, 8]);
    let matrix = confusion(&[image(1, objects)], &names, &detections, 0.4).unwrap();
    assert_eq!([matrix.row(0), matrix.row(1), matrix.row(2)], [[1, 1, 0], [0, 0, 1], [1, 1, 0]]);
}

#[test]
fn what_cannot_be_compared_is_an_error_that_names_it() {
    let whole = rect(0., 0., 4., 4.);
    let found = Detection { image: 3, category: 5, rect: whole, score: 0.5 };
    let good = vec![image(3, vec![object(1, 0, whole)])];
    let one = categories(&[5]);
    for (images, categories, detection, expected) in [
        (vec![image(3, vec![]), image(3, vec![])], &one, found, "image id: 3 occurs twice"),
        (good.clone(), &categories(&[5, 5]), found, "category id: 5 occurs twice"),
        (vec![image(3, vec![object(0, 0, whole)])], &one, found, "image 3, annotation 0: "),
        (vec![image(3, vec![object(1, 1, whole)])], &one, found, "category index 1 of 1"),
        (good.clone(), &one, Detection { image: 4, ..found }, "detection 1 (image 4): the data set has no image"),
        (good.clone(), &one, Detection { score: f64::NAN, ..found }, "score NaN is not finite"),
        (good.clone(), &one, Detection { rect: rect(0., f64::INFINITY, 1., 1.), ..found }, "the box is not finite"),
    ] {
        let message = evaluate(&images, categories, &[detection]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(confusion(&images, categories, &[detection], 0.).is_err(), "{message}");
    }
}

mod random {
    use hotcoco::params::IouType;
    use hotcoco::types::{Annotation, Dataset};
    use hotcoco::{COCO, COCOeval};
    use proptest::prelude::*;

    use crate::metrics::coco::tests::*;

    /// Whole and few coordinates: equal overlaps occur.
    fn boxes() -> impl Strategy<Value = Rect> {
        let side = prop::sample::select(vec![20., 24., 40., 96., 110.]);
        (0..5u8, 0..5u8, side.clone(), side)
            .prop_map(|(x, y, width, height)| rect(f64::from(x) * 9., f64::from(y) * 9., width, height))
    }

    fn sets() -> impl Strategy<Value = (Vec<BoxImage>, Vec<Detection>)> {
        let objects = (0..4usize, 0..3usize, boxes(), prop::bool::weighted(0.15), prop::sample::select(vec![1., 0.6]));
        let detections = (0..4u64, 0..4u64, boxes(), 1..12u8);
        (prop::collection::vec(objects, 0..40), prop::collection::vec(detections, 0..120)).prop_map(
            |(objects, found)| {
                let mut images: Vec<BoxImage> = [40, 10, 30, 20].map(|id| image(id, Vec::new())).into();
                for (id, (home, category, rect, crowd, share)) in (1..).zip(objects) {
                    images[home].objects.push(Object { id, category, rect, area: rect.area() * share, crowd });
                }
                let detection = |(image, category, rect, score)| Detection {
                    image: 10 * (image + 1),
                    category: 3 * (category + 1),
                    rect,
                    score: f64::from(score) / 12.,
                };
                (images, found.into_iter().map(detection).collect())
            },
        )
    }

    /// The twelve numbers as hotcoco has them.
    fn reference(images: &[BoxImage], categories: &[Category], detections: &[Detection]) -> Vec<f64> {
        let bbox = |r: Rect| Some([r.x, r.y, r.width, r.height]);
        let annotations = images.iter().flat_map(|image| {
            image.objects.iter().map(|object| Annotation {
                id: object.id,
                image_id: image.id,
                category_id: categories[object.category].id,
                bbox: bbox(object.rect),
                area: Some(object.area),
                iscrowd: object.crowd,
                ..Default::default()
            })
        });
        let truth = COCO::from_dataset(Dataset {
            images: images.iter().map(|i| hotcoco::types::Image { id: i.id, ..Default::default() }).collect(),
            categories: categories
                .iter()
                .map(|c| hotcoco::types::Category { id: c.id, ..Default::default() })
                .collect(),
            annotations: annotations.collect(),
            ..Default::default()
        });
        let found = detections.iter().map(|d| Annotation {
            image_id: d.image,
            category_id: d.category,
            bbox: bbox(d.rect),
            score: Some(d.score),
            ..Default::default()
        });
        let found = truth.load_res_anns(found.collect()).unwrap();
        let mut eval = COCOeval::new(truth, found, IouType::Bbox);
        eval.run().unwrap();
        eval.stats().unwrap().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn the_numbers_are_those_of_hotcoco((images, detections) in sets()) {
            let categories = categories(&[3, 6, 9, 12]);
            let eval = evaluate(&images, &categories, &detections).unwrap();
            let expected = reference(&images, &categories, &detections);
            let found = eval.metrics.values();
            prop_assert!(largest_difference(&found, &expected) < 1e-9, "{:?} {:?}", found, expected);
        }

        #[test]
        fn a_results_file_has_the_same_metric((images, detections) in sets()) {
            let categories = categories(&[3, 6, 9, 12]);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), results_json(&detections).unwrap()).unwrap();
            let again = read_results(file.path()).unwrap();
            let eval = |detections| evaluate(&images, &categories, detections).unwrap();
            prop_assert_eq!(eval(&detections), eval(&again));
        }

        #[test]
        fn f1_follows_from_the_confusion_matrix((images, detections) in sets(), step in 0..1000usize) {
            let categories = categories(&[3, 6, 9, 12]);
            let eval = evaluate(&images, &categories, &detections).unwrap();
            let matrix = confusion(&images, &categories, &detections, eval.confidences[step]).unwrap();
            for (k, category) in eval.categories.iter().enumerate() {
                let Some(category) = category else { continue };
                let there: u64 = matrix.row(k).iter().sum();
                let predicted: u64 = (0..matrix.classes()).map(|truth| matrix.count(truth, k)).sum();
                prop_assert_eq!(there, category.objects as u64);
                let f1 = 2. * matrix.count(k, k) as f64 / (there + predicted) as f64;
                prop_assert!((f1 - category.f1[step]).abs() < 1e-12, "{} {}", f1, category.f1[step]);
            }
        }
    }
}
