//! Learns to find objects from pictures and boxes in memory, and finds them in a new picture.
//!
//! `cargo run --release --example detect`

use vpt::{ImageSource, MemorySet, Rect, Rgb8, Trainer, pixels, shapes};

/// A picture of several shapes, with what is where: class and box in pixels.
fn scene(index: u64) -> (Rgb8, Vec<(u32, Rect)>) {
    let scene = shapes::Scene::several(&mut shapes::rng(1, 7, index), shapes::Style::Plain, shapes::Pairs::All, 3);
    let drawing = shapes::draw(&scene, 64);
    let boxes = scene.objects.iter().zip(&drawing.extents).map(|(object, extent)| {
        let [x, y, width, height] = [extent.x, extent.y, extent.width, extent.height].map(|v| v as f64);
        (object.shape as u32, Rect { x, y, width, height })
    });
    let boxes = boxes.collect();
    (drawing.image, boxes)
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let classes = shapes::Shape::ALL.map(shapes::Shape::word);
    let train = (0..160).map(scene).map(|(image, boxes)| (ImageSource::from(image), boxes)).collect();

    let trainer = Trainer::new("clip-nano").method("linear")?.epochs(8).threads(2);
    let run = trainer.train(MemorySet::new(&classes, train))?;
    let metrics = run.test().detect().ok_or("no boxes")?;
    println!("AP50 on test: {:.2}", metrics.ap50);

    let (image, there) = scene(1000);
    let found = run.task()?.boxes(&pixels(&image)?)?;
    println!("{} objects in the picture", there.len());
    if let Some(row) = found[0].rows().into_iter().next() {
        println!("surest of all: a {} at {:.1}, {:.1}", classes[row[5] as usize], row[0], row[1]);
    }
    Ok(())
}
