//! Optimisers over flat tensors: SGD with momentum and AdamW, with their state open to the checkpoint.

pub mod schedule;

use vpt_base::{
    Error, Result,
    choice::choice,
    params::{Group, Param},
};

/// Decay of AdamW's first and second moments, and the term that keeps its division finite: PyTorch's defaults.
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
/// See [`Rates::epsilon`].
pub const EPSILON: f64 = 1e-8;
/// SGD's momentum, as in VPT and CoOp.
const MOMENTUM: f32 = 0.9;

/// Learning rate and weight decay of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Peak learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
}

/// Rates of what is learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// Of each part of the model: prompt tokens or pixels, or weights of the backbone, whose biases and norms have no decay.
    pub parts: Vec<Rate>,
    /// Weights of the head; biases and scales share the learning rate and have no decay.
    pub head: Rate,
    /// Epsilon of AdamW, added to its denominator: PyTorch's default is [`EPSILON`].
    pub epsilon: f64,
}

impl Rates {
    fn of(&self, group: Group) -> Rate {
        match group {
            Group::Part(place) => self.of_part(place),
            Group::PartBias(place) => Rate { decay: 0., ..self.of_part(place) },
            Group::Head => self.head,
            Group::HeadBias => Rate { lr: self.head.lr, decay: 0. },
            Group::Fixed => Rate { lr: 0., decay: 0. },
        }
    }

    /// A part that no rate is for learns like the one before it.
    fn of_part(&self, place: usize) -> Rate {
        self.parts.get(place).or(self.parts.last()).copied().unwrap_or(self.head)
    }
}

choice! {
    /// Which optimiser.
    #[derive(Default)]
    pub enum OptimizerKind for "optimizer" {
        /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
        #[default]
        Adamw = "adamw",
        /// Stochastic gradient descent with momentum 0.9; weight decay is added to the gradient, as PyTorch does.
        Sgd = "sgd",
    }
}

/// An optimiser and what it remembers of the steps before.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    kind: OptimizerKind,
    /// Steps taken.
    step: u64,
    /// Momentum (SGD) or first moment (AdamW) of each tensor.
    first: Vec<Vec<f32>>,
    /// Second moment of each tensor; empty vectors for SGD.
    second: Vec<Vec<f32>>,
}

impl Optimizer {
    /// An optimiser for `params` that has taken no step yet.
    pub fn new(kind: OptimizerKind, params: &[Param]) -> Self {
        let zeros: Vec<Vec<f32>> = params.iter().map(|p| vec![0.; p.values.len()]).collect();
        let second = match kind {
            OptimizerKind::Adamw => zeros.clone(),
            OptimizerKind::Sgd => vec![Vec::new(); params.len()],
        };
        Self { kind, step: 0, first: zeros, second }
    }

    /// Steps taken, first and second moments: what a checkpoint keeps.
    pub fn state(&self) -> (u64, &[Vec<f32>], &[Vec<f32>]) {
        (self.step, &self.first, &self.second)
    }

    /// Takes up a state saved by [`Self::state`]; fails when its tensors have other lengths.
    pub fn restore(&mut self, step: u64, first: Vec<Vec<f32>>, second: Vec<Vec<f32>>) -> Result<()> {
        let lengths = |moments: &[Vec<f32>]| moments.iter().map(Vec::len).collect::<Vec<_>>();
        if lengths(&first) != lengths(&self.first) || lengths(&second) != lengths(&self.second) {
            return Err(Error::invalid("optimizer", "the saved moments do not fit the learned tensors"));
        }
        (self.step, self.first, self.second) = (step, first, second);
        Ok(())
    }

    /// One step along `gradients` (one for each of `params`), with learning rates times `factor`.
    pub fn update(&mut self, params: &mut [Param], gradients: &[Vec<f32>], rates: &Rates, factor: f64) {
        self.step += 1;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((param, gradient), (first, second)) in params.iter_mut().zip(gradients).zip(moments) {
            let rate = rates.of(param.group);
            let lr = rate.lr * factor;
            match self.kind {
                OptimizerKind::Sgd => sgd(&mut param.values, gradient, first, lr, rate.decay),
                OptimizerKind::Adamw => {
                    adamw(&mut param.values, gradient, first, second, self.step, lr, rate.decay, rates.epsilon);
                }
            }
        }
    }
}

fn sgd(values: &mut [f32], gradient: &[f32], momentum: &mut [f32], lr: f64, decay: f64) {
    for ((v, g), m) in values.iter_mut().zip(gradient).zip(momentum) {
        *m = MOMENTUM * *m + (g + decay as f32 * *v);
        *v -= lr as f32 * *m;
    }
}

#[allow(clippy::too_many_arguments)] // a formula with as many symbols
fn adamw(
    values: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: u64,
    lr: f64,
    decay: f64,
    epsilon: f64,
) {
    let unbiased1 = 1. - BETA1.powf(step as f64);
    let unbiased2 = 1. - BETA2.powf(step as f64);
    for (((v, g), m), s) in values.iter_mut().zip(gradient).zip(first).zip(second) {
        let g = f64::from(*g);
        let m1 = BETA1 * f64::from(*m) + (1. - BETA1) * g;
        let m2 = BETA2 * f64::from(*s) + (1. - BETA2) * g * g;
        (*m, *s) = (m1 as f32, m2 as f32);
        let move_by = m1 / unbiased1 / ((m2 / unbiased2).sqrt() + epsilon);
        *v = (f64::from(*v) * (1. - lr * decay) - lr * move_by) as f32;
    }
}

/// The length of all gradients taken as one vector.
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

/// Scales all gradients together so that their [`global_norm`] is at most `max`; returns the norm before.
pub fn clip_global_norm(gradients: &mut [Vec<f32>], max: f64) -> f64 {
    let norm = global_norm(gradients);
    if norm > max {
        let scale = (max / norm) as f32;
        gradients.iter_mut().flatten().for_each(|g| *g *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use crate::optim::*;

    fn params() -> Vec<Param> {
        vec![
            Param::new("prompt.tokens", &[2], vec![1., -2.], Group::Part(0)).unwrap(),
            Param::new("head.weight", &[1], vec![0.5], Group::Head).unwrap(),
            Param::new("head.bias", &[1], vec![0.5], Group::HeadBias).unwrap(),
        ]
    }

    fn rates() -> Rates {
        Rates { parts: vec![Rate { lr: 0.1, decay: 0. }], head: Rate { lr: 0.01, decay: 0.1 }, epsilon: EPSILON }
    }

    fn gradients() -> Vec<Vec<f32>> {
        vec![vec![0.5, -1.], vec![2.], vec![2.]]
    }

    fn values(params: &[Param]) -> Vec<f32> {
        params.iter().flat_map(|p| p.values.clone()).collect()
    }

    #[track_caller]
    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{found:?} {expected:?}");
    }

    /// Values from torch 2 (`SGD(momentum=.9)`, `AdamW`), two steps with the same gradient.
    #[test]
    fn two_steps_equal_pytorch() {
        let mut p = params();
        let mut sgd = Optimizer::new(OptimizerKind::Sgd, &p);
        for _ in 0..2 {
            sgd.update(&mut p, &gradients(), &rates(), 1.);
        }
        assert_close(&values(&p), &[0.855, -1.71, 0.440_570_5, 0.442]);
        let mut p = params();
        let mut adamw = Optimizer::new(OptimizerKind::Adamw, &p);
        adamw.update(&mut p, &gradients(), &rates(), 1.);
        let other: Vec<Vec<f32>> = gradients().iter().map(|g| g.iter().map(|g| 1. - g).collect()).collect();
        adamw.update(&mut p, &other, &rates(), 1.);
        assert_close(&values(&p), &[0.8, -1.936_610_3, 0.486_347_14, 0.487_336_64]);
    }

    #[test]
    fn a_restored_optimizer_goes_on_as_the_first_would() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let mut straight = params();
            let mut optimizer = Optimizer::new(kind, &straight);
            optimizer.update(&mut straight, &gradients(), &rates(), 0.5);
            let (step, first, second) = optimizer.state();
            let mut restored = Optimizer::new(kind, &straight);
            restored.restore(step, first.to_vec(), second.to_vec()).unwrap();
            let mut resumed = straight.clone();
            optimizer.update(&mut straight, &gradients(), &rates(), 0.4);
            restored.update(&mut resumed, &gradients(), &rates(), 0.4);
            assert_eq!(values(&straight), values(&resumed));
            assert!(restored.restore(1, vec![vec![0.]; 3], vec![vec![0.]; 3]).is_err());
        }
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_length() {
        let mut g = vec![vec![3., 0.], vec![4.]];
        assert!((clip_global_norm(&mut g, 10.) - 5.).abs() < 1e-12);
        assert_eq!(g, [vec![3., 0.], vec![4.]]);
        clip_global_norm(&mut g, 1.);
        assert!((global_norm(&g) - 1.).abs() < 1e-6);
        assert!((g[0][0] / g[1][0] - 0.75).abs() < 1e-6);
    }
}
