//! Learned parameters: a handful of named f32 tensors, kept flat on the CPU.
//!
//! Prompts and heads hand their values out in this one form, so that the optimiser, the checkpoint and the task file each
//! need a single loop and know nothing of methods.

use std::borrow::Borrow;

use crate::{Error, Result};

/// Which learning rate and weight decay a tensor gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// The part of the model at this place: prompt tokens or pixels, or weights of the backbone.
    Part(usize),
    /// Biases and norms of that part: its learning rate, never decayed.
    PartBias(usize),
    /// Weights of the head.
    Head,
    /// Biases and scales of the head: the head's learning rate, never decayed.
    HeadBias,
    /// Part of the head, but not learned: it has no gradient, no step changes it, and it is not counted.
    Fixed,
}

impl Group {
    /// The same of the part at `place`.
    #[must_use]
    pub fn of_part(self, place: usize) -> Self {
        match self {
            Self::Part(_) => Self::Part(place),
            Self::PartBias(_) => Self::PartBias(place),
            other => other,
        }
    }
}

/// One learned tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// Its name in task files and checkpoints, such as `prompt.tokens`.
    pub name: String,
    /// Its shape; the product is `values.len()`.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
    /// Learning rate group.
    pub group: Group,
}

impl Param {
    /// A tensor called `name`; fails when the number of values is not the product of `shape`.
    pub fn new(name: &str, shape: &[usize], values: Vec<f32>, group: Group) -> Result<Self> {
        if element_count(shape) != Some(values.len()) {
            return Err(Error::invalid(name, format!("{} values do not fill shape {shape:?}", values.len())));
        }
        Ok(Self { name: name.to_owned(), shape: shape.to_vec(), values, group })
    }
}

/// The product of `shape`, or `None` when it does not fit a `usize`.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))
}

/// Number of learned values in all.
pub fn count(params: &[Param]) -> usize {
    params.iter().filter(|p| p.group != Group::Fixed).map(|p| p.values.len()).sum()
}

/// The tensor called `name`; fails when there is none, which only a damaged file can bring about.
pub fn find<'a>(params: &'a [Param], name: &str) -> Result<&'a Param> {
    params.iter().find(|p| p.name == name).ok_or_else(|| Error::invalid(name, "no such tensor among the learned ones"))
}

/// Fails unless `params` are the `expected` tensors, by name and shape and in this order.
pub fn check<P: Borrow<Param>, N: AsRef<str>>(params: &[P], expected: &[(N, Vec<usize>)]) -> Result<()> {
    for (i, (name, shape)) in expected.iter().enumerate() {
        let name = name.as_ref();
        let found = params.get(i).map(Borrow::borrow).filter(|param: &&Param| param.name == name);
        if found.is_none_or(|param| param.shape != *shape) {
            let found = found.map_or_else(|| "nothing".to_owned(), |param| format!("{:?}", param.shape));
            return Err(Error::invalid(name, format!("found {found} where {shape:?} is expected")));
        }
    }
    match params.get(expected.len()) {
        Some(other) => Err(Error::invalid(&other.borrow().name, "has no place in this model")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_does_not_fit_its_values_is_refused() {
        assert!(Param::new("x", &[2, 3], vec![0.; 6], Group::Head).is_ok());
        let error = Param::new("head.weight", &[2, 3], vec![0.; 5], Group::Head).unwrap_err().to_string();
        assert_eq!(error, "head.weight: 5 values do not fill shape [2, 3]");
        assert!(Param::new("x", &[usize::MAX, 2], vec![], Group::Head).is_err());
    }
}
