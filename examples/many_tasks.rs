//! Many tasks on one backbone: each is a small file, and the weights are in memory once.
//!
//! `cargo run --release --example many_tasks`

use std::sync::Arc;

use vpt::{FrozenBackbone, LearnedTask, Trainer, shapes};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let all = shapes::dataset(&shapes::ShapesConfig { images: 512, ..Default::default() })?;
    let dir = tempfile::tempdir()?;
    let backbone = FrozenBackbone::open("clip-nano")?;

    // One task for the red shapes, one for the blue ones, one for everything round.
    let kinds = [("red", vec!["red"]), ("blue", vec!["blue"]), ("round", vec!["circle", "moon"])];
    let mut tasks = Vec::new();
    for (name, words) in kinds {
        let data = all.of_classes(|class| words.iter().any(|word| class.contains(word)));
        let run = Trainer::new("clip-nano").method("linear")?.threads(2).train(data)?;
        let file = dir.path().join(name).with_extension("safetensors");
        run.save(&file)?;
        let kilobytes = std::fs::metadata(&file)?.len() / 1000;
        tasks.push((name, LearnedTask::on(&backbone, &file)?));
        println!("{name}: accuracy {:.2}, {kilobytes} kB", run.test().main());
    }

    let image = all.of_classes(|name| name == "red circle").test[0].image.clone();
    for (name, task) in &tasks {
        let answers = task.predict(std::slice::from_ref(&image))?;
        println!("{name} says: {}", answers[0].best().map_or("nothing", |(class, _)| class));
    }
    let shared = tasks.iter().all(|(_, task)| Arc::ptr_eq(task.engine().backbone(), backbone.engine()));
    println!("weights are shared: {shared}");
    Ok(())
}
