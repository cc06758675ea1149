//! Procedurally drawn scenes with captions: what `clip-nano` was pre-trained on, and data sets that need no download.
//! Every scene follows from (seed, index) alone.

mod caption;
mod draw;
mod scene;
mod set;
mod write;

pub use caption::{Caption, name};
pub use draw::{Drawing, Extent, draw};
pub use scene::{
    Background, Colour, DrawnObject, Fill, ObjectSize, Pairs, Pattern, Scene, Shape, Style, Tone, held_out, rng,
};
pub use set::{Categories, ShapesConfig, ShapesTask, dataset};
pub(super) use write::write_png;
pub use write::{write_coco, write_folder, write_masks};

use rand::Rng;
use rand::seq::IndexedRandom;

/// Purposes of [`rng`]; pre-training measures itself with 2.
const PURPOSE_PRETRAIN: u64 = 1;
const PURPOSE_CLASSIFY: u64 = 3;
const PURPOSE_DETECT: u64 = 4;

/// How much pre-training scenes and captions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curriculum {
    /// One solid object, not small, on a plain background; short captions.
    Easy,
    /// One object; every size, fill and background; one caption in two is short.
    Single,
    /// A quarter of the scenes hold several objects, half of these alike.
    Full,
}

/// Scene and caption number `index` of pre-training. Only pairs of [`Pairs::Seen`] are shown or named.
pub fn pretraining_item(seed: u64, index: u64, stage: Curriculum) -> (Scene, Caption) {
    let mut rng = rng(seed, PURPOSE_PRETRAIN, index);
    let pairs = Pairs::Seen.list();
    let &(colour, shape) = pairs.choose(&mut rng).unwrap_or(&pairs[0]);
    let scene = if stage == Curriculum::Easy {
        Scene::easy(&mut rng, colour, shape)
    } else if stage == Curriculum::Single || rng.random_bool(0.75) {
        Scene::single(&mut rng, Style::Plain, colour, shape)
    } else if rng.random_bool(0.5) {
        Scene::repeated(&mut rng, Style::Plain, colour, shape)
    } else {
        let count = rng.random_range(2..=3);
        Scene::several(&mut rng, Style::Plain, Pairs::Seen, count)
    };
    let short = stage == Curriculum::Easy || rng.random_bool(0.5);
    let caption = Caption::new(&scene, short, &mut rng);
    (scene, caption)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_item_follows_from_seed_and_index() {
        let (scene, caption) = pretraining_item(7, 123, Curriculum::Full);
        assert_eq!(pretraining_item(7, 123, Curriculum::Full), (scene.clone(), caption));
        assert_eq!(draw(&scene, 64), draw(&scene, 64));
        assert_ne!(pretraining_item(7, 124, Curriculum::Full).0, scene);
        assert_ne!(pretraining_item(8, 123, Curriculum::Full).0, scene);
    }

    #[test]
    fn sixteen_pairs_are_held_out_evenly() {
        let unseen = Pairs::Unseen.list();
        assert_eq!((unseen.len(), Pairs::Seen.list().len(), Pairs::All.list().len()), (16, 48, 64));
        for colour in Colour::ALL {
            assert_eq!(unseen.iter().filter(|pair| pair.0 == colour).count(), 2);
        }
        for shape in Shape::ALL {
            assert_eq!(unseen.iter().filter(|pair| pair.1 == shape).count(), 2);
        }
    }

    #[test]
    fn pretraining_neither_shows_nor_names_a_held_out_pair() {
        let mut seen = HashSet::new();
        for index in 0..6000 {
            let (scene, caption) = pretraining_item(1, index, Curriculum::Full);
            for object in &scene.objects {
                assert!(!held_out(object.colour, object.shape), "{object:?}");
                seen.insert((object.colour, object.shape));
            }
            // A colour and the shape said right after it, or with more words between them, of one object.
            for (colour, shape) in Pairs::Unseen.list() {
                for named in [name(colour, shape), format!("{} {}", colour.word(), shape.plural())] {
                    assert!(!caption.text.contains(&named), "{caption:?}");
                }
            }
        }
        assert_eq!(seen.len(), 48);
    }

    #[test]
    fn captions_use_the_forms_people_ask_with() {
        let captions: HashSet<String> =
            (0..20_000).map(|index| pretraining_item(1, index, Curriculum::Single).1.text).collect();
        for form in
            ["a red circle", "red circle", "a photo of a red circle.", "an orange star", "a circle", "a red shape"]
        {
            assert!(captions.contains(form), "{form}");
        }
        assert!(!captions.iter().any(|caption| caption.contains(" a o") || caption.contains("an r")));
    }

    #[test]
    fn a_caption_holds_of_its_scene_and_not_of_others() {
        let items: Vec<_> = (0..400).map(|index| pretraining_item(2, index, Curriculum::Full)).collect();
        for (scene, caption) in &items {
            assert_eq!(caption.holds(scene), Some(true), "{caption:?} of {scene:?}");
        }
        let (scene, _) = items.iter().find(|(scene, _)| scene.objects.len() == 1).unwrap();
        let object = scene.objects[0];
        let words = [object.colour.word(), object.shape.word()];
        for (_, caption) in &items {
            if caption.holds(scene) == Some(true) {
                assert!(words.iter().any(|word| caption.text.contains(word)), "{caption:?}");
            }
        }
    }

    #[test]
    fn scenes_show_one_object_whole() {
        for index in 0..200 {
            let mut rng = rng(1, 99, index);
            let scene = Scene::single(&mut rng, Style::Plain, Colour::Red, Shape::ALL[index as usize % 8]);
            let side = 64;
            let extent = draw(&scene, side).extents[0];
            assert!(extent.area > 40, "{scene:?}");
            assert!(extent.x > 0 && extent.y > 0, "{scene:?}");
            assert!(extent.x + extent.width < side && extent.y + extent.height < side, "{scene:?}");
        }
    }

    #[test]
    fn extents_are_tight() {
        // An object alone on a plain black background: what is bright is the object.
        for index in 0..64 {
            let (colour, shape) = Pairs::All.list()[index as usize];
            let mut scene = Scene::single(&mut rng(3, 99, index), Style::Plain, colour, shape);
            scene.background.level = 0.0;
            scene.background.pattern = Pattern::Plain;
            scene.objects[0].fill = Fill::Solid;
            let drawing = draw(&scene, 96);
            let most = scene.objects[0].rgb.into_iter().fold(0.0, f32::max) * 255.0;
            let (mut left, mut top, mut right, mut bottom, mut area) = (96, 96, 0, 0, 0);
            for (at, pixel) in drawing.image.pixels.chunks_exact(3).enumerate() {
                if f32::from(pixel.iter().copied().max().unwrap()) >= most / 2.0 - 0.6 {
                    let (x, y) = (at % 96, at / 96);
                    (left, top, right, bottom) = (left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1));
                    area += 1;
                }
            }
            let extent = drawing.extents[0];
            let edges = [extent.x, extent.y, extent.x + extent.width, extent.y + extent.height];
            // A pixel covered by just a half may fall on either side of the threshold on its brightness.
            for (edge, bright) in edges.into_iter().zip([left, top, right, bottom]) {
                assert!(edge.abs_diff(bright) <= 1, "{shape:?}: {edges:?}, bright {left} {top} {right} {bottom}");
            }
            assert!(extent.area.abs_diff(area) <= 6, "{shape:?}: {} and {area}", extent.area);
        }
    }

    #[test]
    fn a_shifted_scene_has_the_contents_of_the_plain_one() {
        let scene = |style| Scene::single(&mut rng(5, 99, 1), style, Colour::Blue, Shape::Star);
        let (plain, shifted) = (scene(Style::Plain), scene(Style::Shifted));
        assert_eq!(plain.background, shifted.background);
        assert_eq!(plain.objects[0].centre, shifted.objects[0].centre);
        assert_ne!(draw(&plain, 64).image, draw(&shifted, 64).image);
    }
}
