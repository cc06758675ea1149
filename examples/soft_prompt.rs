//! The smallest of all, as articles on prompt tuning show it: the backbone is frozen, one soft prompt is learned, and an optimizer
//! knows of nothing else.
//!
//! `cargo run --release --example soft_prompt`

use vpt::engine::{
    EPSILON, Head, HeadKind, Loader, Loss, Optimizer, OptimizerKind, Pass, Rate, Rates, TokenLayout, TokenPrompts,
    Want, epoch_order, stream,
};
use vpt::{FrozenBackbone, normalized, shapes};

/// Soft prompt tokens.
const TOKENS: usize = 4;

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let photos =
        shapes::dataset(&shapes::ShapesConfig { images: 1024, style: shapes::Style::Shifted, ..Default::default() })?;
    let threads = 2;

    // Frozen: nothing here can be changed, and no gradient of a weight is ever computed.
    let frozen = FrozenBackbone::open("clip-nano")?;
    let backbone = frozen.engine();

    // Classes are told by their names, which nothing is learned of either.
    let names: Vec<String> = photos.classes.iter().map(|name| format!("a photo of a {name}.")).collect();
    let texts = normalized(frozen.embed_texts(&names)?);
    let head = Head { kind: HeadKind::Text, width: texts.ncols(), classes: names.len(), keys: 0, logit_bias: false };
    let scale = backbone.logit_scale().unwrap_or(1.);
    let head = head.bind(&head.of_texts(texts.into_raw_vec_and_offset().0, scale)?)?;

    // One soft prompt, and an optimizer on it alone.
    let layout = TokenLayout { start: 0, layers: 1, tokens: TOKENS };
    let mut prompt =
        vec![layout.init(backbone.vit.width(), backbone.spec.patch_size, &mut stream(1, "prompt", 0, 0))?];
    let mut optimizer = Optimizer::new(OptimizerKind::Adamw, &prompt);
    let rates = Rates { parts: vec![Rate { lr: 0.01, decay: 0. }], head: Rate { lr: 0., decay: 0. }, epsilon: EPSILON };
    let loss = Loss::new(None, 0., None);

    for epoch in 1..=3 {
        let (mut sum, mut right) = (0., 0);
        let order = epoch_order(photos.train.len(), 1, epoch);
        let shuffled = order.iter().map(|&i| photos.train[i].clone()).collect();
        for batch in Loader::plain(shuffled, &backbone.preprocess, 64, threads)? {
            let batch = batch?;
            let tokens = TokenPrompts { start: 0, layers: 1, tokens: TOKENS, data: &prompt[0].values };
            let want = Want { tokens: true, ..Want::default() };
            let pass = Pass { prompts: Some(tokens), want, ..Pass::forward(&batch.pixels, threads) };
            let total = batch.labels.len() as f64;
            let (gradients, losses) = backbone.vit.step(&pass, &|range, features| {
                let embeddings = backbone.project(features.to_vec());
                let loss = loss.gradients(&head, &embeddings, &batch.labels[range], total)?;
                Ok((backbone.project_vjp(loss.features), (loss.loss, loss.correct)))
            })?;
            optimizer.update(&mut prompt, &[gradients.tokens.unwrap_or_default()], &rates, 1.);
            for (loss, correct) in losses {
                (sum, right) = (sum + loss, right + correct);
            }
        }
        let images = photos.train.len() as f64;
        println!("epoch {epoch}: loss {:.2}, accuracy {:.2}", sum / images, right as f64 / images);
    }
    Ok(())
}
