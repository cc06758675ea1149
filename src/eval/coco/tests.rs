//! pycocotools' numbers (`scripts/make_coco_fixture.py`), hotcoco's on random sets, and cases by hand.

use super::*;

fn image(id: u64, objects: Vec<Object>) -> BoxImage {
    let name = format!("{id}.jpg");
    BoxImage { id, path: name.clone().into(), name, width: 640, height: 480, objects }
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

fn numbers(m: &CocoMetrics) -> [f64; 12] {
    [
        m.ap,
        m.ap50,
        m.ap75,
        m.ap_small,
        m.ap_medium,
        m.ap_large,
        m.ar1,
        m.ar10,
        m.ar100,
        m.ar_small,
        m.ar_medium,
        m.ar_large,
    ]
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f64::max)
}

/// A case of `coco.json`.
#[derive(Deserialize)]
struct Fixture {
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

impl Fixture {
    fn all() -> Vec<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/coco.json");
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
    for fixture in Fixture::all() {
        let eval = evaluate(&fixture.images(), &categories(&fixture.categories), &fixture.detections()).unwrap();
        let found = numbers(&eval.metrics);
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
    for fixture in Fixture::all() {
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
