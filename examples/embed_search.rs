//! Embeds images and texts, keeps the features for NumPy, and searches images by text and by image.
//!
//! `cargo run --release --example embed_search`

use vpt::{FrozenBackbone, ndarray::Array2, ndarray::Ix2, normalized, read_npy, shapes, write_npy};

/// The row of `rows` that is nearest to `query`, all of length 1.
fn nearest(rows: &Array2<f32>, query: &Array2<f32>) -> Option<usize> {
    let cosines = rows.dot(&query.row(0));
    (0..cosines.len()).max_by(|&a, &b| cosines[a].total_cmp(&cosines[b]))
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let photos = shapes::dataset(&shapes::ShapesConfig { images: 512, ..Default::default() })?;
    let images: Vec<_> = photos.train.iter().map(|sample| sample.image.clone()).collect();
    let class = |place: usize| photos.classes[photos.train[place].label as usize].as_str();
    let backbone = FrozenBackbone::open("clip-nano")?;

    let index = normalized(backbone.embed_images(images.as_slice())?);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("index.npy");
    write_npy(&file, &index)?;
    let index: Array2<f32> = read_npy::<f32, Ix2>(&file)?;
    println!("{} images, {} values each", index.nrows(), index.ncols());

    for text in ["a blue star", "a photo of a yellow heart."] {
        let query = normalized(backbone.embed_texts(&[text])?);
        println!("{text}: {}", nearest(&index, &query).map_or("nothing", class));
    }
    let other = photos.of_classes(|name| name == "pink cross").test[0].image.clone();
    let query = normalized(backbone.embed_images(vec![other])?);
    println!("another pink cross: {}", nearest(&index, &query).map_or("nothing", class));
    Ok(())
}
