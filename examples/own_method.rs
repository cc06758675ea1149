//! A method of one's own, outside of the crate: prompt tokens that are the product of two small matrices, so that fewer values are
//! learned than with plain ones. It is a [`Part`]: it owns its tensors, joins a pass, and takes its own gradient.
//!
//! `cargo run --release --example own_method`

use std::sync::Arc;

use vpt::engine::{
    Draw, Drawn, EPSILON, Gradients, Group, HeadKind, Inputs, Loader, Loss, Model, Optimizer, OptimizerKind, Param,
    Part, Rate, Rates, RngCore, StepInput, TensorShape, TokenLayout, epoch_order,
};
use vpt::ndarray::{Array2, ArrayView2};
use vpt::{Error, FrozenBackbone, shapes};

/// Prompt tokens `[P, D] = left [P, R] right [R, D]` before the first block.
#[derive(Debug)]
struct LowRankPrompt {
    tensors: [TensorShape; 2],
}

impl LowRankPrompt {
    fn new(tokens: usize, rank: usize, width: usize) -> Self {
        Self { tensors: [("prompt.left".into(), vec![tokens, rank]), ("prompt.right".into(), vec![rank, width])] }
    }

    fn layout(&self) -> TokenLayout {
        TokenLayout { start: 0, layers: 1, tokens: self.tensors[0].1[0] }
    }
}

/// A learned tensor as the matrix that it is.
fn matrix(param: &Param) -> vpt::Result<ArrayView2<'_, f32>> {
    ArrayView2::from_shape((param.shape[0], param.shape[1]), &param.values)
        .map_err(|error| Error::invalid(&*param.name, error.to_string()))
}

fn values(matrix: &Array2<f32>) -> Vec<f32> {
    matrix.iter().copied().collect()
}

impl Part for LowRankPrompt {
    fn tensors(&self) -> &[TensorShape] {
        &self.tensors
    }

    fn init(&self, rng: &mut dyn RngCore) -> vpt::Result<Vec<Param>> {
        let mut uniform = || f32::from(rng.next_u32() as u16) / f32::from(u16::MAX) - 0.5;
        let fresh = |(name, shape): &TensorShape| {
            let values = (0..shape.iter().product()).map(|_| 0.2 * uniform()).collect();
            Param::new(name, shape, values, Group::Part(0))
        };
        self.tensors.iter().map(fresh).collect()
    }

    fn outline<'a>(&'a self, inputs: &mut Inputs<'a>) {
        inputs.tokens = Some((self.layout(), Vec::new().into()));
        inputs.want.tokens = true;
    }

    fn join<'a>(&'a self, learned: &'a [Param], _: &Drawn, inputs: &mut Inputs<'a>) -> vpt::Result<()> {
        self.outline(inputs);
        let tokens = matrix(&learned[0])?.dot(&matrix(&learned[1])?);
        inputs.tokens = Some((self.layout(), values(&tokens).into()));
        Ok(())
    }

    fn take_gradient(&self, learned: &[Param], _: &Drawn, gradients: &mut Gradients) -> vpt::Result<Vec<Vec<f32>>> {
        let (left, right) = (matrix(&learned[0])?, matrix(&learned[1])?);
        let of_tokens = gradients.of_pass.tokens.take().unwrap_or_default();
        let of_tokens = Array2::from_shape_vec((left.nrows(), right.ncols()), of_tokens)
            .map_err(|error| Error::invalid("gradient", error.to_string()))?;
        Ok(vec![values(&of_tokens.dot(&right.t())), values(&left.t().dot(&of_tokens))])
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let photos = shapes::dataset(&shapes::ShapesConfig { images: 1024, ..Default::default() })?;
    let backbone = FrozenBackbone::open("clip-nano")?.engine().clone();
    let (threads, classes) = (2, photos.classes.len());
    let part = Arc::new(LowRankPrompt::new(8, 2, backbone.vit.width()));
    let model = Model::of_parts(backbone, vec![part], HeadKind::Linear, classes, threads)?;
    let mut params = model.init(1)?;
    println!(
        "{} values beside the head, {} in plain prompts",
        {
            let own = &params[..model.part_tensors()];
            own.iter().map(|param| param.values.len()).sum::<usize>()
        },
        8 * model.backbone().vit.width()
    );

    let mut optimizer = Optimizer::new(OptimizerKind::Adamw, &params);
    let rate = Rate { lr: 0.01, decay: 0. };
    let rates = Rates { parts: vec![rate], head: rate, epsilon: EPSILON };
    let loss = Loss::new(None, 0., None);
    let preprocess = model.preprocess()?;
    for epoch in 1..=4 {
        let (mut sum, mut step) = (0., 0);
        let order = epoch_order(photos.train.len(), 1, epoch as u64);
        let shuffled = order.iter().map(|&i| photos.train[i].clone()).collect();
        for batch in Loader::plain(shuffled, &preprocess, 64, threads)? {
            let batch = batch?;
            let draw = Draw { seed: 1, epoch, step, indices: &batch.indices, dropout: 0., part: 0 };
            let drawn = model.draw(&draw, &[]);
            let input = StepInput {
                images: &batch.pixels,
                blocks: 0,
                labels: &batch.labels,
                drawn: &drawn,
                loss: &loss,
                frozen: None,
                micro_batch: None,
            };
            let output = model.step(&params, &input)?;
            optimizer.update(&mut params, &output.gradients, &rates, 1.);
            (sum, step) = (sum + output.loss, step + 1);
        }
        println!("epoch {epoch}: loss {:.2}", sum / photos.train.len() as f64);
    }

    let mut right = 0;
    for batch in Loader::plain(photos.test.clone(), &preprocess, 64, threads)? {
        let batch = batch?;
        let logits = model.logits(&params, &batch.pixels)?;
        for (row, &label) in logits.chunks_exact(classes).zip(&batch.labels) {
            right += usize::from((0..classes).all(|class| row[class] <= row[label as usize]));
        }
    }
    println!("accuracy on test: {:.2}", right as f64 / photos.test.len() as f64);
    Ok(())
}
