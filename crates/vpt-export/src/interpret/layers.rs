//! Products, norms and sums.

use super::elementwise::{joint_shape, repeated};
use super::shape::transpose;
use super::{Attribute, Node, Tensor, Values, elementwise};
use vpt_kernel::{Init, Mat, MatMut, Panels, matmul as product, with_team};

/// `a b` of rows: `[rows, k]` times `[k, n]`.
fn rows_times(a: &[f32], b: &Panels, out: &mut [f32], threads: usize) {
    let (k, n) = (b.k(), b.n());
    let rows = a.len() / k.max(1);
    with_team(threads, || product(Mat::new(a, rows, k, k), b, MatMut::new(out, rows, n, n), Init::Zero));
}

pub(super) fn matmul(a: &Tensor, b: &Tensor, threads: usize) -> Result<Tensor, String> {
    let (x, y) = (a.as_floats()?, b.as_floats()?);
    let ([.., rows, k], [.., depth, n]) = (&*a.shape, &*b.shape) else { return Err("of vectors".to_owned()) };
    let (rows, k, n) = (*rows, *k, *n);
    if k != *depth || k == 0 || n == 0 {
        return Err(format!("{:?} times {:?}", a.shape, b.shape));
    }
    let (lead_a, lead_b) = (&a.shape[..a.shape.len() - 2], &b.shape[..b.shape.len() - 2]);
    let lead = joint_shape(lead_a, lead_b)?;
    let count: usize = lead.iter().product();
    let mut out = vec![0.; count * rows * n];
    if lead_b.iter().product::<usize>() == 1 && lead_a.iter().product::<usize>() == count {
        rows_times(x, &Panels::pack(Mat::new(y, k, n, n)), &mut out, threads);
    } else {
        let places = repeated(lead_a, &lead).zip(repeated(lead_b, &lead));
        for ((i, j), out) in places.zip(out.chunks_exact_mut((rows * n).max(1))) {
            let panels = Panels::pack(Mat::new(&y[j * k * n..], k, n, n));
            rows_times(&x[i * rows * k..(i + 1) * rows * k], &panels, out, threads);
        }
    }
    Ok(Tensor { shape: [&lead[..], &[rows, n]].concat(), values: Values::Floats(out) })
}

/// A convolution of images by the patches that its kernel sees.
pub(super) fn conv(
    node: &Node,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    threads: usize,
) -> Result<Tensor, String> {
    let (&[batch, channels, height, width], &[outputs, of, kh, kw]) = (&*x.shape, &*weight.shape) else {
        return Err("not of images".to_owned());
    };
    let two = |name: &str, default: usize| match node.ints(name) {
        None => Ok([default; 2]),
        Some(&[a, b, ..]) if (0..1 << 12).contains(&a) && (0..1 << 12).contains(&b) => Ok([a as usize, b as usize]),
        Some(other) => Err(format!("{name} {other:?}")),
    };
    let ([sy, sx], [top, left]) = (two("strides", 1)?, two("pads", 0)?);
    let padded = [height + 2 * top, width + 2 * left];
    if of != channels || sy == 0 || sx == 0 || padded[0] < kh || padded[1] < kw {
        return Err(format!("{:?} by {:?}", x.shape, weight.shape));
    }
    let [rows, columns] = [(padded[0] - kh) / sy + 1, (padded[1] - kw) / sx + 1];
    let depth = channels * kh * kw;
    let source = x.as_floats()?;
    let panels = Panels::pack(Mat::new(weight.as_floats()?, outputs, depth, depth).t());
    let bias = bias.map(Tensor::as_floats).transpose()?;
    let mut out = vec![0.; batch * outputs * rows * columns];
    for (image, out) in out.chunks_exact_mut((outputs * rows * columns).max(1)).enumerate() {
        let mut seen = vec![0.; rows * columns * depth];
        for (place, seen) in seen.chunks_exact_mut(depth).enumerate() {
            let (y, x) = (place / columns * sy, place % columns * sx);
            for (i, value) in seen.iter_mut().enumerate() {
                let (c, dy, dx) = (i / (kh * kw), i / kw % kh, i % kw);
                let (y, x) = ((y + dy).wrapping_sub(top), (x + dx).wrapping_sub(left));
                if y < height && x < width {
                    *value = source[((image * channels + c) * height + y) * width + x];
                }
            }
        }
        let mut made = vec![0.; rows * columns * outputs];
        rows_times(&seen, &panels, &mut made, threads);
        for (place, row) in made.chunks_exact(outputs).enumerate() {
            for (c, value) in row.iter().enumerate() {
                out[c * rows * columns + place] = value + bias.map_or(0., |bias| bias.get(c).copied().unwrap_or(0.));
            }
        }
    }
    Ok(Tensor::floats(&[batch, outputs, rows, columns], out))
}

/// Rows along the last dimension.
fn by_row(x: &Tensor, mut f: impl FnMut(&mut [f32])) -> Result<Tensor, String> {
    let mut values = x.as_floats()?.to_vec();
    let width = x.shape.last().copied().unwrap_or(1).max(1);
    values.chunks_exact_mut(width).for_each(&mut f);
    Ok(Tensor::floats(&x.shape, values))
}

pub(super) fn softmax(x: &Tensor, axis: i64) -> Result<Tensor, String> {
    if x.axis(axis)? + 1 != x.shape.len() {
        return Err("not along the last dimension".to_owned());
    }
    by_row(x, |row| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0_f64;
        for v in row.iter_mut() {
            *v = (*v - max).exp();
            sum += f64::from(*v);
        }
        for v in row {
            *v = (f64::from(*v) / sum) as f32;
        }
    })
}

pub(super) fn layer_norm(node: &Node, x: &Tensor, scale: &Tensor, shift: Option<&Tensor>) -> Result<Tensor, String> {
    let width = x.shape.last().copied().unwrap_or(0);
    let scale = scale.as_floats()?;
    let shift = shift.map(Tensor::as_floats).transpose()?;
    if x.axis(node.int("axis", -1))? + 1 != x.shape.len() || scale.len() != width {
        return Err("not along the last dimension".to_owned());
    }
    let eps = f64::from(node.float("epsilon", 1e-5));
    by_row(x, |row| {
        normalize(row, eps);
        row.iter_mut().zip(scale).for_each(|(v, s)| *v *= s);
        if let Some(shift) = shift {
            row.iter_mut().zip(shift).for_each(|(v, s)| *v += s);
        }
    })
}

/// Mean 0 and variance 1.
fn normalize(row: &mut [f32], eps: f64) {
    let n = row.len() as f64;
    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1. / (variance + eps).sqrt();
    for v in row {
        *v = ((f64::from(*v) - mean) * inverse) as f32;
    }
}

pub(super) fn instance_norm(node: &Node, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor, String> {
    let (channels, scale, shift) = (x.dim(1)?, scale.as_floats()?, shift.as_floats()?);
    if scale.len() != channels || shift.len() != channels {
        return Err(format!("{} scales for {channels} channels", scale.len()));
    }
    let eps = f64::from(node.float("epsilon", 1e-5));
    let each = x.count() / (x.dim(0)? * channels).max(1);
    let mut values = x.as_floats()?.to_vec();
    for (i, row) in values.chunks_exact_mut(each.max(1)).enumerate() {
        normalize(row, eps);
        let c = i % channels;
        for v in row {
            *v = *v * scale[c] + shift[c];
        }
    }
    Ok(Tensor::floats(&x.shape, values))
}

/// Queries, keys and values `[B, H, T, d]`.
pub(super) fn attention(node: &Node, given: &[&Tensor], threads: usize) -> Result<Tensor, String> {
    let [q, k, v, rest @ ..] = given else { return Err("without queries, keys and values".to_owned()) };
    if q.shape.len() != 4 {
        return Err("not by heads".to_owned());
    }
    let default = 1. / (q.dim(3)? as f32).sqrt();
    let order = Attribute { ints: vec![0, 1, 3, 2], ..Attribute::default() };
    let exchange = Node { attributes: [("perm".to_owned(), order)].into(), ..Node::default() };
    let keys = transpose(&exchange, k)?;
    let scores = matmul(q, &keys, threads)?;
    let scale = Tensor::floats(&[], vec![node.float("scale", default)]);
    let mut scores = elementwise::pair("Mul", &scores, &scale)?;
    if let Some(mask) = rest.first() {
        scores = elementwise::pair("Add", &scores, mask)?;
    }
    matmul(&softmax(&scores, -1)?, v, threads)
}

pub(super) fn reduce(node: &Node, x: &Tensor, axes: Option<&Tensor>) -> Result<Tensor, String> {
    let axes = match axes {
        Some(axes) => axes.as_ints()?,
        None => node.ints("axes").ok_or("has no axes")?,
    };
    let &[axis] = axes else { return Err("over several axes".to_owned()) };
    let axis = x.axis(axis)?;
    let [outer, own, inner] = x.around(axis);
    let source = x.as_floats()?;
    let mut sums = vec![0_f64; outer * inner];
    for (i, &v) in source.iter().enumerate() {
        sums[i / (own * inner).max(1) * inner + i % inner.max(1)] += f64::from(v);
    }
    let count = if node.op == "ReduceMean" { own as f64 } else { 1. };
    let mut shape = x.shape.clone();
    if node.int("keepdims", 1) == 1 {
        shape[axis] = 1;
    } else {
        shape.remove(axis);
    }
    Ok(Tensor::floats(&shape, sums.into_iter().map(|v| (v / count) as f32).collect()))
}

/// The place of the largest, of equals the first, along a dimension.
pub(super) fn arg_max(node: &Node, x: &Tensor) -> Result<Tensor, String> {
    let axis = x.axis(node.int("axis", 0))?;
    let [outer, own, inner] = x.around(axis);
    if own == 0 {
        return Err("of nothing".to_owned());
    }
    let places = match &x.values {
        Values::Floats(values) => first_largest(values, outer, own, inner),
        Values::Ints(values) => first_largest(values, outer, own, inner),
    };
    let mut shape = x.shape.clone();
    if node.int("keepdims", 1) == 0 {
        shape.remove(axis);
    } else {
        shape[axis] = 1;
    }
    Ok(Tensor::ints(&shape, places))
}

fn first_largest<T: PartialOrd>(values: &[T], outer: usize, own: usize, inner: usize) -> Vec<i64> {
    let mut places = Vec::with_capacity(outer * inner);
    for of_outer in values.chunks_exact((own * inner).max(1)).take(outer) {
        for i in 0..inner {
            let at = |place: usize| &of_outer[place * inner + i];
            places.push((1..own).fold(0, |best, place| if at(place) > at(best) { place } else { best }) as i64);
        }
    }
    places
}

/// Images `[B, C, H, W]` at other sizes, as factors of the four dimensions say: between the four nearest values, by the middles of pixels.
pub(super) fn resize_by(node: &Node, x: &Tensor, factors: &Tensor) -> Result<Tensor, String> {
    let (mode, middles) = (node.text("mode"), node.text("coordinate_transformation_mode"));
    if (mode, middles) != ("linear", "half_pixel") {
        return Err(format!("{mode}, {middles}"));
    }
    let &[one, also, down, across] = factors.as_floats()? else { return Err("not by four factors".to_owned()) };
    if (one, also) != (1., 1.) || !(down > 0. && across > 0. && down.max(across) < 4096.) {
        return Err(format!("by {:?}", factors.as_floats()?));
    }
    let size = |axis: usize, factor: f32| x.dim(axis).map(|n| (n as f64 * f64::from(factor)).floor() as usize);
    resize(x, size(2, down)?, size(3, across)?)
}

/// Images `[B, C, H, W]` at another size.
pub(crate) fn resize(x: &Tensor, height: usize, width: usize) -> Result<Tensor, String> {
    let &[batch, channels, h, w] = &*x.shape else { return Err("not of images".to_owned()) };
    if h == 0 || w == 0 {
        return Err("of nothing".to_owned());
    }
    let taps = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let tap = |at: usize| {
            let place = ((at as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0., (from - 1) as f64);
            let first = place as usize;
            (first, (first + 1).min(from - 1), (place - first as f64) as f32)
        };
        (0..to).map(tap).collect()
    };
    let (rows, columns) = (taps(h, height), taps(w, width));
    let mut values = Vec::with_capacity(batch * channels * height * width);
    for plane in x.as_floats()?.chunks_exact(h * w) {
        for &(top, bottom, down) in &rows {
            let between = |column: usize| {
                let (a, b) = (plane[top * w + column], plane[bottom * w + column]);
                a + down * (b - a)
            };
            let line: Vec<f32> = (0..w).map(between).collect();
            values
                .extend(columns.iter().map(|&(left, right, across)| line[left] + across * (line[right] - line[left])));
        }
    }
    Ok(Tensor::floats(&[batch, channels, height, width], values))
}
