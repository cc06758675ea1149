//! Operators that move values and change none.

use super::elementwise::{joint_shape, repeated};
use super::{MOST_VALUES, Node, Tensor, Values};

/// The same values in another order.
fn picked(x: &Tensor, shape: Vec<usize>, places: impl Iterator<Item = usize>) -> Tensor {
    let values = match &x.values {
        Values::Floats(values) => Values::Floats(places.map(|i| values[i]).collect()),
        Values::Ints(values) => Values::Ints(places.map(|i| values[i]).collect()),
    };
    Tensor { shape, values }
}

pub(super) fn shape(node: &Node, x: &Tensor) -> Tensor {
    let rank = x.shape.len() as i64;
    let from = node.int("start", 0).clamp(0, rank) as usize;
    let to = node.int("end", rank).clamp(from as i64, rank) as usize;
    let dims: Vec<i64> = x.shape[from..to].iter().map(|&n| n as i64).collect();
    Tensor::ints(&[dims.len()], dims)
}

pub(super) fn reshape(x: &Tensor, shape: &Tensor) -> Result<Tensor, String> {
    let mut dims = Vec::new();
    let mut open = None;
    for (i, &dim) in shape.as_ints()?.iter().enumerate() {
        dims.push(match dim {
            0 => x.dim(i)?,
            -1 => {
                open = Some(i);
                1
            }
            dim => usize::try_from(dim).map_err(|_| format!("to a side of {dim}"))?,
        });
    }
    let known: usize = dims.iter().product();
    if let Some(open) = open {
        dims[open] = x.count().checked_div(known).unwrap_or(0);
    }
    if dims.iter().product::<usize>() != x.count() {
        return Err(format!("{:?} to {dims:?}", x.shape));
    }
    Ok(Tensor { shape: dims, values: x.values.clone() })
}

pub(super) fn transpose(node: &Node, x: &Tensor) -> Result<Tensor, String> {
    let order = node.ints("perm").ok_or("has no order")?;
    let rank = x.shape.len();
    let order: Vec<usize> = order.iter().map(|&i| x.axis(i)).collect::<Result<_, _>>()?;
    if order.len() != rank || (0..rank).any(|i| !order.contains(&i)) {
        return Err(format!("order {order:?} of {rank} dimensions"));
    }
    let mut strides = vec![1; rank];
    for i in (0..rank.saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * x.shape[i + 1];
    }
    let shape: Vec<usize> = order.iter().map(|&i| x.shape[i]).collect();
    let strides: Vec<usize> = order.iter().map(|&i| strides[i]).collect();
    let (mut at, mut place, count) = (vec![0; rank], 0, x.count());
    let sides = shape.clone();
    let places = (0..count).map(move |_| {
        let now = place;
        for i in (0..rank).rev() {
            at[i] += 1;
            place += strides[i];
            if at[i] < sides[i] {
                break;
            }
            place -= strides[i] * sides[i];
            at[i] = 0;
        }
        now
    });
    Ok(picked(x, shape, places))
}

pub(super) fn concat(node: &Node, parts: &[&Tensor]) -> Result<Tensor, String> {
    let first = parts.first().ok_or("of nothing")?;
    let axis = first.axis(node.int("axis", 0))?;
    let mut shape = first.shape.clone();
    shape[axis] = 0;
    for part in parts {
        let fits =
            part.shape.len() == shape.len() && (0..shape.len()).all(|i| i == axis || part.shape[i] == first.shape[i]);
        if !fits {
            return Err(format!("{:?} and {:?}", first.shape, part.shape));
        }
        shape[axis] += part.shape[axis];
    }
    let [outer, ..] = first.around(axis);
    let each: Vec<usize> = parts.iter().map(|part| part.count().checked_div(outer).unwrap_or(0)).collect();
    let ints = matches!(first.values, Values::Ints(_));
    let values = if ints {
        let all: Vec<&[i64]> = parts.iter().map(|part| part.as_ints()).collect::<Result<_, _>>()?;
        Values::Ints(woven(&all, &each, outer))
    } else {
        let all: Vec<&[f32]> = parts.iter().map(|part| part.as_floats()).collect::<Result<_, _>>()?;
        Values::Floats(woven(&all, &each, outer))
    };
    Ok(Tensor { shape, values })
}

fn woven<T: Copy>(all: &[&[T]], each: &[usize], outer: usize) -> Vec<T> {
    let row = |i: usize| all.iter().zip(each).flat_map(move |(values, &n)| values[i * n..(i + 1) * n].iter().copied());
    (0..outer).flat_map(row).collect()
}

/// Rows `from..to` along `axis`.
fn part(x: &Tensor, axis: usize, from: usize, to: usize) -> Tensor {
    let [outer, own, inner] = x.around(axis);
    let mut shape = x.shape.clone();
    shape[axis] = to - from;
    let rows = (0..outer).flat_map(move |i| (i * own + from) * inner..(i * own + to) * inner);
    picked(x, shape, rows)
}

pub(super) fn slice(given: &[&Tensor]) -> Result<Tensor, String> {
    let [x, from, to, axes] = given else { return Err("without ends or axes".to_owned()) };
    let mut x = (*x).clone();
    for ((&from, &to), &axis) in from.as_ints()?.iter().zip(to.as_ints()?).zip(axes.as_ints()?) {
        let axis = x.axis(axis)?;
        let n = x.dim(axis)? as i64;
        let place = |i: i64| if i < 0 { i.saturating_add(n) } else { i }.clamp(0, n) as usize;
        x = part(&x, axis, place(from), place(to).max(place(from)));
    }
    Ok(x)
}

pub(super) fn split(node: &Node, x: &Tensor, sizes: &Tensor) -> Result<Vec<Tensor>, String> {
    let axis = x.axis(node.int("axis", 0))?;
    let mut from = 0;
    let mut parts = Vec::new();
    for &size in sizes.as_ints()? {
        let to = from + usize::try_from(size).map_err(|_| "a negative size".to_owned())?;
        if to > x.dim(axis)? {
            return Err(format!("{to} of {}", x.dim(axis)?));
        }
        parts.push(part(x, axis, from, to));
        from = to;
    }
    Ok(parts)
}

pub(super) fn expand(x: &Tensor, shape: &Tensor) -> Result<Tensor, String> {
    let dims: Result<Vec<usize>, _> = shape.as_ints()?.iter().map(|&n| usize::try_from(n)).collect();
    let dims = dims.map_err(|_| "to a negative side".to_owned())?;
    let joint = joint_shape(&x.shape, &dims)?;
    if joint.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim)).is_none_or(|n| n > MOST_VALUES) {
        return Err(format!("to {joint:?}"));
    }
    let places = repeated(&x.shape, &joint);
    Ok(picked(x, joint, places))
}

/// Zeros around.
pub(super) fn pad(x: &Tensor, pads: &Tensor) -> Result<Tensor, String> {
    let pads: Result<Vec<usize>, _> = pads.as_ints()?.iter().map(|&n| usize::try_from(n)).collect();
    let pads = pads.map_err(|_| "by a negative number".to_owned())?;
    let rank = x.shape.len();
    if pads.len() != 2 * rank || pads.iter().any(|&n| n > 1 << 20) {
        return Err(format!("{pads:?} around {rank} dimensions"));
    }
    let shape: Vec<usize> = (0..rank).map(|i| x.shape[i] + pads[i] + pads[rank + i]).collect();
    let mut out = vec![0.; shape.iter().product()];
    let mut at = vec![0; rank];
    for &value in x.as_floats()? {
        let place = (0..rank).fold(0, |place, i| place * shape[i] + at[i] + pads[i]);
        out[place] = value;
        for i in (0..rank).rev() {
            at[i] += 1;
            if at[i] < x.shape[i] {
                break;
            }
            at[i] = 0;
        }
    }
    Ok(Tensor { shape, values: Values::Floats(out) })
}

pub(super) fn gather(node: &Node, x: &Tensor, indices: &Tensor) -> Result<Tensor, String> {
    let axis = x.axis(node.int("axis", 0))?;
    let [outer, own, inner] = x.around(axis);
    let mut places = Vec::new();
    for outer in 0..outer {
        for &index in indices.as_ints()? {
            let index = usize::try_from(index).ok().filter(|&i| i < own).ok_or(format!("row {index} of {own}"))?;
            places.extend((outer * own + index) * inner..(outer * own + index + 1) * inner);
        }
    }
    let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
    Ok(picked(x, shape, places.into_iter()))
}

/// Where rows of `k` indices point in the dimensions of `shape` from `skip` on, and how many values each stands for.
fn pointed(shape: &[usize], skip: usize, row: &[i64]) -> Result<usize, String> {
    let mut place = 0;
    for (i, &index) in row.iter().enumerate() {
        let n = *shape.get(skip + i).ok_or("too many indices")?;
        let index = usize::try_from(index).ok().filter(|&i| i < n).ok_or(format!("row {index} of {n}"))?;
        place = place * n + index;
    }
    Ok(place * shape[skip + row.len()..].iter().product::<usize>())
}

pub(super) fn gather_nd(node: &Node, x: &Tensor, indices: &Tensor) -> Result<Tensor, String> {
    let batch = node.int("batch_dims", 0).clamp(0, x.shape.len() as i64) as usize;
    let (&k, lead) = indices.shape.split_last().ok_or("without indices")?;
    if batch + k > x.shape.len() || k == 0 || lead.get(..batch) != Some(&x.shape[..batch]) {
        return Err(format!("{:?} by {:?}", x.shape, indices.shape));
    }
    let each: usize = x.shape[batch..].iter().product();
    let per_batch: usize = lead[batch..].iter().product();
    let inner: usize = x.shape[batch + k..].iter().product();
    let mut places = Vec::new();
    for (i, row) in indices.as_ints()?.chunks_exact(k).enumerate() {
        let from = i / per_batch.max(1) * each + pointed(&x.shape, batch, row)?;
        places.extend(from..from + inner);
    }
    let shape = [lead, &x.shape[batch + k..]].concat();
    Ok(picked(x, shape, places.into_iter()))
}

pub(super) fn scatter_nd(x: &Tensor, indices: &Tensor, updates: &Tensor) -> Result<Tensor, String> {
    let k = *indices.shape.last().ok_or("without indices")?;
    if k == 0 || k > x.shape.len() {
        return Err(format!("{:?} by {:?}", x.shape, indices.shape));
    }
    let inner: usize = x.shape[k..].iter().product();
    let mut values = x.as_floats()?.to_vec();
    let rows = indices.as_ints()?.chunks_exact(k).zip(updates.as_floats()?.chunks_exact(inner.max(1)));
    for (row, update) in rows {
        let from = pointed(&x.shape, 0, row)?;
        values[from..from + inner].copy_from_slice(update);
    }
    Ok(Tensor::floats(&x.shape, values))
}
