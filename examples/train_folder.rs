//! Trains on a folder of images, keeps what was learned in a file, and asks it about an image.
//!
//! `cargo run --release --example train_folder`

use vpt::{Event, LearnedTask, Trainer, shapes};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A folder for each class below train, val and test, as people have them: put your own path here.
    let dir = tempfile::tempdir()?;
    let photos = dir.path().join("photos");
    shapes::write_folder(&photos, &shapes::ShapesConfig { images: 512, ..Default::default() })?;

    let mut watch = |event: &Event<'_>| match event {
        Event::Start(start) => println!("{} classes, {} learned values", start.classes.len(), start.trainable_params),
        Event::Epoch { record, .. } => println!("epoch {}: loss {:.2}", record.epoch, record.train_loss),
        _ => {}
    };
    let trainer = Trainer::new("clip-nano").method("vpt-deep")?.set("prompt_tokens", 4)?.epochs(2).threads(2);
    let run = trainer.train_watched(&photos, &mut watch)?.ok_or("stopped")?;
    println!("accuracy on test: {:.2}", run.test().main());

    let file = dir.path().join("shapes.safetensors");
    run.save(&file)?;
    let task = LearnedTask::open(&file)?;
    let answer = task.predict(photos.join("test/green moon/000001.png").as_path())?;
    println!("the picture of a green moon: {}", answer[0].best().map_or("nothing", |(class, _)| class));
    Ok(())
}
