//! The largest of many, and boxes without their duplicates.

use super::{Node, Tensor};

/// The largest values along the last dimension, falling, of equals the first; and where they are.
pub(super) fn top_k(node: &Node, x: &Tensor, k: &Tensor) -> Result<Vec<Tensor>, String> {
    let width = x.shape.last().copied().unwrap_or(0);
    let k = k.as_ints()?.first().and_then(|&k| usize::try_from(k).ok()).ok_or("without a number")?;
    if x.axis(node.int("axis", -1))? + 1 != x.shape.len() || k > width || width == 0 {
        return Err(format!("{k} of {:?}", x.shape));
    }
    let (mut values, mut places) = (Vec::new(), Vec::new());
    for row in x.as_floats()?.chunks_exact(width) {
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        values.extend(order[..k].iter().map(|&i| row[i]));
        places.extend(order[..k].iter().map(|&i| i as i64));
    }
    let mut shape = x.shape.clone();
    shape.pop();
    shape.push(k);
    Ok(vec![Tensor::floats(&shape, values), Tensor::ints(&shape, places)])
}

/// Overlap of two boxes by their corners over what both cover.
fn iou(a: &[f32], b: &[f32]) -> f32 {
    let side = |i: usize| (a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.);
    let area = |r: &[f32]| (r[2] - r[0]) * (r[3] - r[1]);
    let both = side(0) * side(1);
    let any = area(a) + area(b) - both;
    if any > 0. { both / any } else { 0. }
}

/// Rows (image, class, box) of boxes `[B, T, 4]`, by corners, with scores `[B, K, T]`: those above a score that no better one of
/// their class covers too much.
pub(super) fn suppress(given: &[&Tensor]) -> Result<Tensor, String> {
    let [boxes, scores, most, overlap, least] = given else { return Err("without its limits".to_owned()) };
    let &[batch, classes, tokens] = &*scores.shape else { return Err("scores of other dimensions".to_owned()) };
    if boxes.shape != [batch, tokens, 4] {
        return Err(format!("boxes {:?} for scores {:?}", boxes.shape, scores.shape));
    }
    let most = most.as_ints()?.first().copied().unwrap_or(0).max(0) as usize;
    let first = |limit: &Tensor| limit.as_floats().map(|limit| limit.first().copied().unwrap_or(0.));
    let (overlap, least) = (first(overlap)?, first(least)?);
    let (boxes, scores) = (boxes.as_floats()?, scores.as_floats()?);
    let mut rows: Vec<i64> = Vec::new();
    for image in 0..batch {
        let rect = |token: usize| &boxes[(image * tokens + token) * 4..][..4];
        for class in 0..classes {
            let own = &scores[(image * classes + class) * tokens..][..tokens];
            let mut order: Vec<usize> = (0..tokens).filter(|&t| own[t] > least).collect();
            order.sort_by(|&a, &b| own[b].total_cmp(&own[a]).then(a.cmp(&b)));
            let mut kept: Vec<usize> = Vec::new();
            for token in order {
                if kept.len() == most {
                    break;
                }
                if kept.iter().all(|&other| iou(rect(token), rect(other)) <= overlap) {
                    kept.push(token);
                }
            }
            rows.extend(kept.iter().flat_map(|&token| [image as i64, class as i64, token as i64]));
        }
    }
    Ok(Tensor::ints(&[rows.len() / 3, 3], rows))
}
