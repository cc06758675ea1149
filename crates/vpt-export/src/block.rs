//! A transformer's block in a graph, of image towers and text towers.

use std::cell::RefCell;

use crate::graph::{Attr, Element, Graph, Opset, Value, transposed};
use vpt_backbone::{
    spec::TowerSpec,
    vit::{PlainBlock, PlainLayer},
};
use vpt_base::Result;
use vpt_kernel::Activation;

/// Gives the blocks of a tower, and keeps the last: weights are written in their order.
pub(crate) struct BlockReader<'a> {
    read: Box<dyn Fn(usize) -> Result<PlainBlock> + 'a>,
    last: RefCell<Option<(usize, PlainBlock)>>,
}

impl<'a> BlockReader<'a> {
    pub(crate) fn new(read: impl Fn(usize) -> Result<PlainBlock> + 'a) -> Self {
        Self { read: Box::new(read), last: RefCell::new(None) }
    }

    fn with<T>(&self, index: usize, f: impl Fn(&PlainBlock) -> T) -> Result<T> {
        let mut last = self.last.borrow_mut();
        if let Some((at, block)) = &*last
            && *at == index
        {
            return Ok(f(block));
        }
        // One at a time in memory.
        *last = None;
        let block = (self.read)(index)?;
        let made = f(&block);
        *last = Some((index, block));
        Ok(made)
    }
}

/// A layer of a block.
type LayerOf = fn(&PlainBlock) -> Option<&PlainLayer>;

/// What a block sees beside the rows of its sequences.
#[derive(Clone, Copy, Default)]
pub(crate) struct BlockContext<'v> {
    /// Keys `[1, H, d, R]` and values `[1, H, R, d]` that all sequences share, and R.
    pub(crate) shared: Option<(&'v [Value; 2], usize)>,
    /// Tables `[T, d]` that queries and keys are turned by: cosines, and sines with their sign.
    pub(crate) turn: Option<&'v [Value; 2]>,
    /// What is added to the scores `[T, T]`.
    pub(crate) mask: Option<&'v Value>,
    /// Whether only the first row of each sequence goes on.
    pub(crate) first_only: bool,
}

/// Block `index` of the tower over `x` `[B, T, D]`.
pub(crate) fn block<'a>(
    graph: &mut Graph<'a>,
    blocks: &'a BlockReader<'a>,
    spec: &TowerSpec,
    index: usize,
    x: &Value,
    seen: BlockContext,
) -> Value {
    let (d, mlp, heads) = (spec.width, spec.mlp, spec.heads);
    let n = graph.layer_norm(x, d, None, spec.eps);
    let of = |graph: &mut Graph<'a>, name: &str, x: &Value, shape: [usize; 2], layer: LayerOf| {
        linear(graph, blocks, index, name, x, shape, layer)
    };
    let row = if seen.first_only { graph.slice(&n, 1, 0, 1) } else { n.clone() };
    let q = of(graph, "q", &row, [d, d], |block| Some(&block.q));
    let k = of(graph, "k", &n, [d, d], |block| Some(&block.k));
    let v = of(graph, "v", &n, [d, d], |block| Some(&block.v));
    let mixed = attention(graph, [q, k, v], heads, d, seen);
    let out = of(graph, "out", &mixed, [d, d], |block| Some(&block.out));
    let residual = if seen.first_only { graph.slice(x, 1, 0, 1) } else { x.clone() };
    let x = graph.add(&residual, &out);
    let n = graph.layer_norm(&x, d, None, spec.eps);
    let hidden = of(graph, "fc1", &n, [d, mlp], |block| Some(&block.fc1));
    let mut hidden = activation(graph, &hidden, spec.activation);
    if spec.gated {
        let up = of(graph, "up", &n, [d, mlp], |block| block.up.as_ref());
        hidden = graph.mul(&hidden, &up);
    }
    let y = of(graph, "fc2", &hidden, [mlp, d], |block| Some(&block.fc2));
    graph.add(&x, &y)
}

/// A layer of block `index`: `x` `[.., inputs]` to `[.., outputs]`.
fn linear<'a>(
    graph: &mut Graph<'a>,
    blocks: &'a BlockReader<'a>,
    index: usize,
    name: &str,
    x: &Value,
    [inputs, outputs]: [usize; 2],
    layer: LayerOf,
) -> Value {
    let weight = graph.later(&format!("{name}.weight"), &[inputs, outputs], move || {
        blocks.with(index, |block| layer(block).map_or_else(Vec::new, |layer| transposed(&layer.weight, inputs)))
    });
    let bias = graph.later(&format!("{name}.bias"), &[outputs], move || {
        blocks.with(index, |block| layer(block).map_or_else(Vec::new, |layer| layer.bias.clone()))
    });
    let y = graph.matmul(x, &weight);
    graph.add(&y, &bias)
}

/// A layer whose values are at hand.
pub(crate) fn plain_linear(graph: &mut Graph, name: &str, x: &Value, layer: &PlainLayer) -> Value {
    let outputs = layer.bias.len();
    let inputs = layer.weight.len() / outputs;
    let weight = graph.floats(&format!("{name}.weight"), &[inputs, outputs], transposed(&layer.weight, inputs));
    let bias = graph.floats(&format!("{name}.bias"), &[outputs], layer.bias.clone());
    let y = graph.matmul(x, &weight);
    graph.add(&y, &bias)
}

/// Attention of queries over keys and values, all `[B, T, D]`.
pub(crate) fn attention(graph: &mut Graph, [q, k, v]: [Value; 3], heads: usize, d: usize, seen: BlockContext) -> Value {
    let head_dim = d / heads;
    let split = |graph: &mut Graph, x: &Value, order: &[i64]| {
        let x = graph.reshape(x, &[0, 0, heads as i64, head_dim as i64]);
        graph.transpose(&x, order)
    };
    let mut q = split(graph, &q, &[0, 2, 1, 3]);
    let fused = graph.opset == Opset::V23;
    // The scores' product wants keys with rows and columns exchanged, the operator as they are.
    let by_row = fused || seen.turn.is_some();
    let mut k = split(graph, &k, if by_row { &[0, 2, 1, 3] } else { &[0, 2, 3, 1] });
    let mut v = split(graph, &v, &[0, 2, 1, 3]);
    if let Some(tables) = seen.turn {
        if !seen.first_only {
            q = turned(graph, &q, head_dim, tables);
        }
        k = turned(graph, &k, head_dim, tables);
        if !fused {
            k = graph.transpose(&k, &[0, 1, 3, 2]);
        }
    }
    if let Some(([keys, values], rows)) = seen.shared {
        let mut keys = graph.for_each_image(keys, &[heads, head_dim, rows]);
        if fused {
            keys = graph.transpose(&keys, &[0, 1, 3, 2]);
        }
        let values = graph.for_each_image(values, &[heads, rows, head_dim]);
        k = graph.concat(&[&k, &keys], if fused { 2 } else { 3 });
        v = graph.concat(&[&v, &values], 2);
    }
    let mixed = if fused {
        let scale = ("scale", Attr::Float(1.));
        match seen.mask {
            Some(mask) => graph.node_with("Attention", &[&q, &k, &v, mask], vec![scale]),
            None => graph.node_with("Attention", &[&q, &k, &v], vec![scale]),
        }
    } else {
        let mut scores = graph.matmul(&q, &k);
        if let Some(mask) = seen.mask {
            scores = graph.add(&scores, mask);
        }
        let weights = graph.softmax(&scores);
        graph.matmul(&weights, &v)
    };
    let mixed = graph.transpose(&mixed, &[0, 2, 1, 3]);
    graph.reshape(&mixed, &[0, 0, d as i64])
}

/// Queries or keys `[B, H, T, d]` turned by tables of cosines and signed sines `[T, d]`: with a and b the halves of a head,
/// `[a, b] cos + [b, a] sin`.
fn turned(graph: &mut Graph, x: &Value, head_dim: usize, [cos, sin]: &[Value; 2]) -> Value {
    let half = (head_dim / 2) as i64;
    let sizes = graph.ints(&[half, half]);
    let [a, b] = graph.nodes_with("Split", &[x, &sizes], vec![("axis", Attr::Int(-1))]);
    let other = graph.concat(&[&b, &a], -1);
    let (x, other) = (graph.mul(x, cos), graph.mul(&other, sin));
    graph.add(&x, &other)
}

/// The MLP's non-linearity, in the form that runtimes know as one operator.
pub(crate) fn activation(graph: &mut Graph, x: &Value, activation: Activation) -> Value {
    let gelu = |graph: &mut Graph, form| graph.node_with("Gelu", &[x], vec![("approximate", Attr::Text(form))]);
    match activation {
        Activation::Gelu if graph.opset == Opset::V23 => gelu(graph, "none"),
        Activation::GeluTanh if graph.opset == Opset::V23 => gelu(graph, "tanh"),
        Activation::Gelu => {
            let root = graph.scalar(std::f32::consts::SQRT_2);
            let scaled = graph.node("Div", &[x, &root]);
            let erf = graph.node("Erf", &[&scaled]);
            let one = graph.scalar(1.);
            let sum = graph.add(&erf, &one);
            let product = graph.mul(x, &sum);
            graph.scaled(&product, 0.5)
        }
        Activation::GeluTanh => {
            let square = graph.mul(x, x);
            let cube = graph.mul(x, &square);
            let cube = graph.scaled(&cube, 0.044_715);
            let inner = graph.add(x, &cube);
            let inner = graph.scaled(&inner, (2. / std::f32::consts::PI).sqrt());
            let tanh = graph.node("Tanh", &[&inner]);
            let one = graph.scalar(1.);
            let sum = graph.add(&tanh, &one);
            let product = graph.mul(x, &sum);
            graph.scaled(&product, 0.5)
        }
        Activation::QuickGelu => {
            let scaled = graph.scaled(x, 1.702);
            let gate = graph.node("Sigmoid", &[&scaled]);
            graph.mul(x, &gate)
        }
        Activation::Silu => {
            let gate = graph.node("Sigmoid", &[x]);
            graph.mul(x, &gate)
        }
    }
}

/// Floats of the tower's format as f32, for what stands behind it.
pub(crate) fn leave_tower(graph: &mut Graph, x: Value) -> Value {
    if graph.element == Element::F32 {
        return x;
    }
    graph.element = Element::F32;
    graph.cast(&x, Element::F32)
}
