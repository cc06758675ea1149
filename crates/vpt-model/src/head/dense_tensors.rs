//! The tensors of a head on patch tokens: sizes that one can have, first values, and one flat vector of all of them.

use std::ops::Range;

use rand::Rng;

use super::detect::GROUPS;
use vpt_base::{
    Error, Result,
    params::{self, Group, Param, element_count},
    random::normal,
};

/// Name and shape of a tensor.
type NamedShape = (String, Vec<usize>);

/// First values of a tensor.
pub(super) enum Fresh {
    /// All of them the same.
    All(f32),
    /// Normally distributed around 0, by this standard deviation.
    Normal(f32),
}

impl Fresh {
    /// After He et al. ("Delving Deep into Rectifiers", 2015), of a tensor whose outputs are made of so many inputs.
    pub(super) fn he(fan_in: f32) -> Self {
        Self::Normal((2. / fan_in).sqrt())
    }
}

/// Fails unless each size, of which there is a name and the most that it can be, is one that a head can have: a shape may
/// come out of a file.
pub(super) fn check_sizes(sizes: &[(&str, usize, usize)], channels: usize) -> Result<()> {
    for &(name, value, most) in sizes {
        if !(1..=most).contains(&value) {
            return Err(Error::invalid(format!("head.{name}"), format!("{value} is not in 1..={most}")));
        }
    }
    if !channels.is_multiple_of(GROUPS) {
        return Err(Error::invalid("head.channels", format!("{channels} is not a multiple of {GROUPS}")));
    }
    Ok(())
}

/// A parameter for each of `tensors`, with the values that `fresh` says by its name, shape and number of inputs.
pub(super) fn init(
    tensors: Vec<NamedShape>,
    rng: &mut impl Rng,
    fresh: impl Fn(&str, &[usize], f32) -> Fresh,
    group: impl Fn(&str, &[usize]) -> Group,
) -> Result<Vec<Param>> {
    let param = |(name, shape): NamedShape| {
        let n = element_count(&shape).ok_or_else(|| Error::invalid(&name, "too large"))?;
        let values = match fresh(&name, &shape, (n / shape[0]).max(1) as f32) {
            Fresh::All(value) => vec![value; n],
            Fresh::Normal(std) => (0..n).map(|_| std * normal(rng)).collect(),
        };
        Param::new(&name, &shape, values, group(&name, &shape))
    };
    tensors.into_iter().map(param).collect()
}

/// Where each tensor of a head lies when all are put one behind the other.
#[derive(Clone, Debug)]
pub(super) struct TensorRanges(Vec<Range<usize>>);

impl TensorRanges {
    /// Of `tensors`, in their order.
    pub(super) fn new(tensors: Vec<NamedShape>) -> Self {
        let mut end = 0;
        let ranges = tensors.into_iter().map(|(_, shape)| {
            let start = end;
            end += shape.iter().product::<usize>();
            start..end
        });
        Self(ranges.collect())
    }

    /// Values in all.
    pub(super) fn len(&self) -> usize {
        self.0.last().map_or(0, |range| range.end)
    }

    /// Every tensor's range, in order.
    pub(super) fn all(&self) -> &[Range<usize>] {
        &self.0
    }

    /// The range of tensor `i`.
    pub(super) fn at(&self, i: usize) -> Range<usize> {
        self.0[i].clone()
    }

    /// From the first value of tensor `i` to the last of the one behind it.
    pub(super) fn pair(&self, i: usize) -> Range<usize> {
        self.0[i].start..self.0[i + 1].end
    }

    /// The range of tensor `i` from the end, the last being 1.
    pub(super) fn at_end(&self, i: usize) -> Range<usize> {
        self.at(self.0.len() - i)
    }
}

/// The values of `tensors` among `params`, one behind the other.
///
/// # Errors
/// A tensor is missing or has another shape.
pub(super) fn values(params: &[Param], tensors: Vec<NamedShape>) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for (name, shape) in tensors {
        let param = params::find(params, &name)?;
        if param.shape != shape {
            return Err(Error::invalid(name, format!("shape {:?} where {shape:?} is expected", param.shape)));
        }
        values.extend_from_slice(&param.values);
    }
    Ok(values)
}
