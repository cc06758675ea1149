//! Operators that treat values one by one.

use super::{Node, Tensor, Values};
use crate::graph::Element;
use vpt_kernel::Activation;

/// The shape that two make by repeating dimensions of 1.
pub(super) fn joint_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], i: usize| {
        let missing = rank - shape.len();
        if i < missing { 1 } else { shape[i - missing] }
    };
    let joint = |i: usize| match (dim(a, i), dim(b, i)) {
        (m, n) if m == n || n == 1 => Ok(m),
        (1, n) => Ok(n),
        _ => Err(format!("shapes {a:?} and {b:?}")),
    };
    (0..rank).map(joint).collect()
}

/// The positions in `shape` that the positions of `joint` stand for, in their order.
pub(super) fn repeated(shape: &[usize], joint: &[usize]) -> Box<dyn Iterator<Item = usize>> {
    let count: usize = joint.iter().product();
    let own: usize = shape.iter().product();
    if own == 1 {
        return Box::new(std::iter::repeat_n(0, count));
    }
    let plain: Vec<usize> = shape.iter().copied().skip_while(|&n| n == 1).collect();
    if joint.ends_with(&plain) {
        // Whole copies one behind the other.
        return Box::new((0..count).map(move |i| i % own));
    }
    let rank = joint.len();
    let missing = rank - shape.len();
    let mut strides = vec![0; rank];
    let mut stride = 1;
    for i in (missing..rank).rev() {
        if shape[i - missing] > 1 {
            strides[i] = stride;
        }
        stride *= shape[i - missing];
    }
    let joint = joint.to_vec();
    let mut at = vec![0; rank];
    let mut place = 0;
    Box::new((0..count).map(move |_| {
        let now = place;
        for i in (0..rank).rev() {
            at[i] += 1;
            place += strides[i];
            if at[i] < joint[i] {
                break;
            }
            place -= strides[i] * joint[i];
            at[i] = 0;
        }
        now
    }))
}

fn zip<T: Copy, U>(
    a: (&[usize], &[T]),
    b: (&[usize], &[T]),
    f: impl Fn(T, T) -> U,
) -> Result<(Vec<usize>, Vec<U>), String> {
    let joint = joint_shape(a.0, b.0)?;
    if a.0 == b.0 {
        return Ok((joint, a.1.iter().zip(b.1).map(|(&a, &b)| f(a, b)).collect()));
    }
    let places = repeated(a.0, &joint).zip(repeated(b.0, &joint));
    let values = places.map(|(i, j)| f(a.1[i], b.1[j])).collect();
    Ok((joint, values))
}

pub(super) fn pair(op: &str, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    let (shape, values) = match (&a.values, &b.values) {
        (Values::Floats(x), Values::Floats(y)) => {
            let (x, y) = ((&*a.shape, &**x), (&*b.shape, &**y));
            let truth = |(shape, values)| (shape, Values::Ints(values));
            let floats = |(shape, values)| (shape, Values::Floats(values));
            match op {
                "Add" => floats(zip(x, y, |a, b| a + b)?),
                "Sub" => floats(zip(x, y, |a, b| a - b)?),
                "Mul" => floats(zip(x, y, |a, b| a * b)?),
                "Div" => floats(zip(x, y, |a, b| a / b)?),
                "GreaterOrEqual" => truth(zip(x, y, |a, b| i64::from(a >= b))?),
                _ => return Err("of floats".to_owned()),
            }
        }
        (Values::Ints(x), Values::Ints(y)) => {
            let (x, y) = ((&*a.shape, &**x), (&*b.shape, &**y));
            if matches!(op, "Div" | "Mod") && y.1.iter().any(|&b| b <= 0) {
                return Err("by no number above 0".to_owned());
            }
            let (shape, values) = match op {
                "Add" => zip(x, y, i64::wrapping_add)?,
                "Sub" => zip(x, y, i64::wrapping_sub)?,
                "Mul" => zip(x, y, i64::wrapping_mul)?,
                "Div" => zip(x, y, |a, b| a / b)?,
                "Mod" => zip(x, y, i64::rem_euclid)?,
                "Equal" => zip(x, y, |a, b| i64::from(a == b))?,
                _ => return Err("of integers".to_owned()),
            };
            (shape, Values::Ints(values))
        }
        _ => return Err("of floats and integers".to_owned()),
    };
    Ok(Tensor { shape, values })
}

/// The error function, by the GELU that the kernels are held against: `x Φ(x) = x (1 + erf(x/√2)) / 2`.
fn erf(x: f64) -> f64 {
    let scaled = x * std::f64::consts::SQRT_2;
    if scaled == 0. { 0. } else { 2. * Activation::Gelu.reference(scaled).0 / scaled - 1. }
}

pub(super) fn each(node: &Node, x: &Tensor) -> Result<Tensor, String> {
    let f: Box<dyn Fn(f64) -> f64> = match &*node.op {
        "Erf" => Box::new(erf),
        "Exp" => Box::new(f64::exp),
        "Sqrt" => Box::new(f64::sqrt),
        "Tanh" => Box::new(f64::tanh),
        "Relu" => Box::new(|x| x.max(0.)),
        "Sigmoid" => Box::new(|x| 1. / (1. + (-x).exp())),
        "Gelu" if node.text("approximate") == "tanh" => Box::new(|x| Activation::GeluTanh.reference(x).0),
        _ => Box::new(|x| Activation::Gelu.reference(x).0),
    };
    let values = x.as_floats()?.iter().map(|&v| f(f64::from(v)) as f32).collect();
    Ok(Tensor::floats(&x.shape, values))
}

pub(super) fn clip(x: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor, String> {
    let (Some(&low), Some(&high)) = (low.as_floats()?.first(), high.as_floats()?.first()) else {
        return Err("without its ends".to_owned());
    };
    Ok(Tensor::floats(&x.shape, x.as_floats()?.iter().map(|v| v.max(low).min(high)).collect()))
}

pub(super) fn choose(condition: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    let joint = joint_shape(&condition.shape, &joint_shape(&a.shape, &b.shape)?)?;
    let (c, x, y) = (condition.as_ints()?, a.as_floats()?, b.as_floats()?);
    let places = repeated(&condition.shape, &joint).zip(repeated(&a.shape, &joint).zip(repeated(&b.shape, &joint)));
    let values = places.map(|(i, (j, k))| if c[i] != 0 { x[j] } else { y[k] }).collect();
    Ok(Tensor { shape: joint, values: Values::Floats(values) })
}

pub(super) fn cast(x: &Tensor, to: i64) -> Tensor {
    let values = match &x.values {
        Values::Floats(values) if to == Element::F16 as i64 => {
            Values::Floats(values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect())
        }
        Values::Floats(values) if to == Element::F32 as i64 => Values::Floats(values.clone()),
        Values::Floats(values) => Values::Ints(values.iter().map(|&v| v as i64).collect()),
        Values::Ints(values) if to == Element::I64 as i64 || to == Element::Bool as i64 => Values::Ints(values.clone()),
        Values::Ints(values) => Values::Floats(values.iter().map(|&v| v as f32).collect()),
    };
    Tensor { shape: x.shape.clone(), values }
}
