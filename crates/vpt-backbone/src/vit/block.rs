//! One pre-norm transformer block of any family: forward and VJP over the rows of some sequences.
//!
//! At load, the norms' scale and shift are folded into the layers behind them, layer scale into the layers before it and
//! attention's `1/√head_dim` into the queries. So a block is: normalise, three products, attention, product, normalise,
//! product with activation, product.

use super::fold::{Folded, Layer, fold_qkv, packed_bytes};
use super::grads::{BlockGrads, GradScratch, LearnedWeights, NormalizedRows};
use super::linear::Linear;
use super::mlp::{Mlp, MlpScratch, MlpTape};
use crate::spec::TowerSpec;
use vpt_kernel::attention::AttentionScratch;
use vpt_kernel::{
    Attention, AttentionVjp, DEPTH, Grow, Init, Kept, Mat, MatMut, Precision, Rotation, layer_norm, layer_norm_vjp,
    row_stride,
};

/// The weights of one block as the checkpoint has them, all `[out, in]` row-major, or the gradients of these.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockWeights {
    /// Scale and shift `[D]` of the norm before attention.
    pub norm1: [Vec<f32>; 2],
    /// Query, key and value weights `[D, D]` and biases `[D]`.
    pub qkv: [(Vec<f32>, Vec<f32>); 3],
    /// Output projection `[D, D]`, `[D]`.
    pub out: (Vec<f32>, Vec<f32>),
    /// Scale and shift `[D]` of the norm before the MLP.
    pub norm2: [Vec<f32>; 2],
    /// First MLP layer `[mlp, D]`, `[mlp]`; of a gated MLP twice as many rows, those behind the activation first.
    pub fc1: (Vec<f32>, Vec<f32>),
    /// Second MLP layer `[D, mlp]`, `[D]`.
    pub fc2: (Vec<f32>, Vec<f32>),
    /// Layer scale `[D]` of both branches (DINOv2).
    pub layer_scale: Option<[Vec<f32>; 2]>,
}

/// A block, ready to run. A copy shares the packed weights.
#[derive(Clone)]
pub(crate) struct Block {
    heads: usize,
    eps: f32,
    precision: Precision,
    q: Linear,
    kv: Linear,
    out: Linear,
    mlp: Mlp,
}

/// The sequences whose rows lie one behind the other: `starts[i]..starts[i + 1]` are the rows of sequence i.
#[derive(Clone, Copy)]
pub(crate) struct Sequences<'a> {
    pub starts: &'a [usize],
    pub causal: bool,
    /// How queries and keys of each are turned, if they are.
    pub turn: Option<&'a PatchTurn>,
}

/// Rotary positions: of each sequence, queries and keys of the patches are turned, and no others.
#[derive(Clone, Debug)]
pub(crate) struct PatchTurn {
    /// Tokens before the patches.
    pub prefix: usize,
    pub rotation: Rotation,
}

impl Sequences<'_> {
    /// Sequences without rotary positions.
    pub(crate) fn unturned(starts: &[usize], causal: bool) -> Sequences<'_> {
        Sequences { starts, causal, turn: None }
    }

    /// Turns the first D columns of the patches' rows of `x`, `[rows, width]` at stride `row_stride(width)`, or turns them back.
    fn turn(&self, x: &mut [f32], d: usize, stride: usize, back: bool) {
        let Some(PatchTurn { prefix, rotation }) = self.turn else { return };
        for start in &self.starts[..self.count()] {
            let patches = &mut x[(start + prefix) * stride..];
            rotation.turn(MatMut::new(patches, rotation.rows(), d, stride), back);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.starts.len() - 1
    }

    pub(crate) fn rows(&self) -> usize {
        self.starts[self.count()]
    }

    fn range(&self, i: usize) -> (usize, usize) {
        (self.starts[i], self.starts[i + 1] - self.starts[i])
    }

    /// Whether all are of one length.
    fn are_even(&self) -> bool {
        (1..self.count()).all(|i| self.range(i).1 == self.range(0).1)
    }

    /// The calls of the attention kernel that these sequences take. Its causal form knows no prompts: with `prompted`
    /// sequences each row is a call of its own, with the rows before it as keys. Such sequences are few rows long.
    fn calls(&self, queries: Queries, prompted: bool) -> impl Iterator<Item = Call> {
        let by_row = self.causal && prompted;
        (0..self.count()).flat_map(move |i| {
            let (start, len) = self.range(i);
            let call = Call { sequence: i, query: start, queries: len, start, keys: len, causal: self.causal };
            (0..if by_row { len } else { 1 }).map(move |row| match queries {
                _ if by_row => Call { query: start + row, queries: 1, keys: row + 1, causal: false, ..call },
                Queries::All => call,
                Queries::First => Call { query: i, queries: 1, ..call },
            })
        })
    }
}

/// The keys and values `[P, 2D]` (stride `row_stride(2D)`) that sequences see beside their own.
#[derive(Clone, Copy)]
pub(crate) enum PromptRows<'a> {
    /// The same for all, if there are any.
    Same(Option<Mat<'a>>),
    /// Those of each sequence, none of which is causal.
    Each(&'a [Option<Mat<'a>>]),
}

impl<'a> PromptRows<'a> {
    /// Those of the sequence at `index`.
    fn of(self, index: usize) -> Option<Mat<'a>> {
        match self {
            Self::Same(rows) => rows,
            Self::Each(rows) => rows[index],
        }
    }

    /// Whether all sequences see some.
    fn is_shared(self) -> bool {
        matches!(self, Self::Same(Some(_)))
    }
}

impl<'a> From<Option<Mat<'a>>> for PromptRows<'a> {
    fn from(rows: Option<Mat<'a>>) -> Self {
        Self::Same(rows)
    }
}

/// Rows of one call of the attention kernel.
#[derive(Clone, Copy)]
struct Call {
    /// Which sequence it is of.
    sequence: usize,
    /// First row of the queries.
    query: usize,
    queries: usize,
    /// First row of the keys and values.
    start: usize,
    keys: usize,
    causal: bool,
}

/// Which rows a block computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queries {
    /// Every row.
    All,
    /// The first row of each sequence (the class token): all that is read of the last block.
    First,
}

/// Activations that a block's VJP needs of its forward pass.
#[derive(Default)]
pub(crate) struct BlockTape {
    normalized1: Kept,
    inverse1: Vec<f32>,
    q: Kept,
    kv: Kept,
    probabilities: Kept,
    /// Output of attention in front of its projection, where that is tuned.
    mixed: Option<Kept>,
    normalized2: Kept,
    inverse2: Vec<f32>,
    mlp: MlpTape,
}

impl BlockTape {
    /// An empty tape that keeps values in `precision`.
    pub(crate) fn new(precision: Precision) -> Self {
        let kept = || Kept::new(precision);
        Self {
            normalized1: kept(),
            q: kept(),
            kv: kept(),
            probabilities: kept(),
            normalized2: kept(),
            mlp: MlpTape::new(precision),
            ..Self::default()
        }
    }

    /// Keeps, from the next forward pass on, what goes into every layer, or what the VJP needs without weights.
    pub(crate) fn keep_inputs(&mut self, keep: bool, precision: Precision) {
        if keep != self.mixed.is_some() {
            self.mixed = keep.then(|| Kept::new(precision));
        }
        self.mlp.keep_hidden(keep, precision);
    }

    /// A copy of the keys and values `[rows, 2D]`, at stride `row_stride(2D)`, of the sequences that the block has seen;
    /// `width` is D.
    pub(crate) fn keys_values(&self, rows: usize, width: usize) -> Vec<f32> {
        self.kv.read(0..rows * row_stride(2 * width), &mut Vec::new()).to_vec()
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct BlockScratch {
    pub(crate) attention: AttentionScratch,
    /// The tape of a block whose VJP is not wanted.
    unkept: BlockTape,
    /// Rows of width D. Forward: normalised rows and queries that are not kept as they are, and what attention gives. Back:
    /// see [`Block::vjp`].
    rows: [Vec<f32>; 3],
    /// Keys and values `[rows, 2D]` that are not kept as they are, and their gradients.
    kv: Vec<f32>,
    dkv: Vec<f32>,
    dkv_of_row: Vec<f32>,
    mlp: MlpScratch,
    grads: GradScratch,
}

/// How far the VJP of a block goes.
#[derive(Clone, Copy)]
pub(crate) enum Depth {
    /// Down to every input row.
    Rows,
    /// Down to the last `n` input rows of each sequence: the prompts that enter here as tokens.
    LastRows(usize),
    /// To the weights of queries, keys and values: no input row learns.
    Weights,
    /// To the keys and values of the prompts and no further.
    Prompts,
}

/// What the VJP of a block goes back through, and where its gradients go beside those of the rows.
pub(crate) struct BlockVjp<'a> {
    /// The sequences of the forward pass.
    pub(crate) sequences: Sequences<'a>,
    /// The prompts that its rows have seen, keys and values `[P, 2D]`.
    pub(crate) prompts: Option<Mat<'a>>,
    /// The rows that it went on with.
    pub(crate) queries: Queries,
    /// What it kept.
    pub(crate) tape: &'a BlockTape,
    /// How far down the gradient goes.
    pub(crate) depth: Depth,
    /// Where others have read keys and values of these sequences as prompts of theirs: the gradient that comes from there,
    /// `[rows, 2D]` at stride `row_stride(2D)`.
    pub(crate) d_read: Option<&'a [f32]>,
    /// The gradient of the prompts is added here, `[P, 2D]`.
    pub(crate) d_prompts: Option<&'a mut [f32]>,
    /// The weights that are learned, and what their gradients are added to.
    pub(crate) weights: Option<(&'a LearnedWeights, &'a mut BlockGrads)>,
}

impl<'a> BlockVjp<'a> {
    /// Down to every row of `sequences`, where nothing else learns.
    pub(crate) fn of(sequences: Sequences<'a>, tape: &'a BlockTape) -> Self {
        let (queries, depth) = (Queries::All, Depth::Rows);
        Self { sequences, prompts: None, queries, tape, depth, d_read: None, d_prompts: None, weights: None }
    }
}

impl Block {
    pub(crate) fn new(spec: &TowerSpec, weights: &BlockWeights, precision: Precision) -> Self {
        let Folded { q, kv, out, fc1, up, fc2 } = Folded::of(spec, weights, true);
        let linear = |Layer { weight, bias }| Linear::new(&weight, bias, precision);
        Self {
            heads: spec.heads,
            eps: spec.eps,
            precision,
            q: linear(q),
            kv: linear(kv),
            out: linear(out),
            mlp: Mlp::new(linear(fc1), up.map(linear), linear(fc2), spec.activation),
        }
    }

    /// The same with the biases of `weights`, shifts of norms included; all else is as it was.
    pub(crate) fn with_biases(&self, spec: &TowerSpec, weights: &BlockWeights) -> Self {
        let Folded { q, kv, out, fc1, up, fc2 } = Folded::of(spec, weights, false);
        Self {
            q: self.q.with_bias(q.bias),
            kv: self.kv.with_bias(kv.bias),
            out: self.out.with_bias(out.bias),
            mlp: self.mlp.with_biases(fc1.bias, up.map(|up| up.bias), fc2.bias),
            ..self.clone()
        }
    }

    /// The same with the queries, keys and values of `weights`; all else is as it was.
    pub(crate) fn with_qkv(&self, spec: &TowerSpec, weights: &BlockWeights) -> Self {
        let [q, kv] =
            fold_qkv(spec, weights, true).map(|Layer { weight, bias }| Linear::new(&weight, bias, self.precision));
        Self { q, kv, ..self.clone() }
    }

    fn width(&self) -> usize {
        self.q.inputs()
    }

    /// Bytes of the weights.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.q.bytes() + self.kv.bytes() + self.out.bytes() + self.mlp.weight_bytes()
    }

    /// Bytes of the tape of `rows` rows that see `keys` keys each.
    pub(crate) fn tape_bytes(&self, rows: usize, keys: usize) -> usize {
        let d = self.width();
        let probabilities = self.heads * rows * row_stride(keys);
        let values = rows * (3 * row_stride(d) + row_stride(2 * d)) + probabilities + self.mlp.kept(rows);
        values * self.precision.bytes() + 2 * rows * size_of::<f32>()
    }

    /// Bytes that the tape of `rows` rows takes more where it keeps what goes into every layer.
    pub(crate) fn input_bytes(&self, rows: usize) -> usize {
        rows * (row_stride(self.width()) + row_stride(self.mlp.hidden())) * self.precision.bytes()
    }

    /// Bytes of one thread's buffers beside the tape; `longest` is the number of rows of a sequence.
    pub(crate) fn scratch_bytes(&self, rows: usize, longest: usize, keys: usize) -> usize {
        let (stride, kv_stride) = (row_stride(self.width()), row_stride(2 * self.width()));
        let values = rows * (3 * stride + 2 * kv_stride) + 2 * longest * row_stride(keys) + rows * DEPTH;
        values * size_of::<f32>() + self.mlp.scratch_bytes(rows)
    }

    /// Bytes of one thread's copies of what goes into layers whose weights are tuned.
    pub(crate) fn packed_bytes(&self, rows: usize) -> usize {
        2 * packed_bytes(rows, self.width()) + packed_bytes(rows, DEPTH.min(self.mlp.hidden()))
    }

    pub(crate) fn eps(&self) -> f32 {
        self.eps
    }

    /// Heads of attention.
    pub(super) fn heads(&self) -> usize {
        self.heads
    }

    /// The layer that makes scaled queries `[.., D]` of normalised rows `[.., D]`.
    pub(super) fn queries(&self) -> &Linear {
        &self.q
    }

    /// The layer that makes keys and values `[.., 2D]` of normalised rows `[.., D]`.
    pub(crate) fn keys_values(&self) -> &Linear {
        &self.kv
    }

    /// Attention of the queries and keys of `rows` among all of the batch, `q` and `kv`.
    fn attention<'a>(&self, rows: &Call, q: &'a [f32], kv: &'a [f32], prompts: Option<Mat<'a>>) -> Attention<'a> {
        let d = self.width();
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        Attention {
            heads: self.heads,
            queries: Mat::new(&q[rows.query * stride..], rows.queries, d, stride),
            keys_values: Mat::new(&kv[rows.start * kv_stride..], rows.keys, 2 * d, kv_stride),
            prompts,
            causal: rows.causal,
            precision: self.precision,
        }
    }

    /// Runs the block over `x`, `[rows, D]` at stride [`row_stride`]`(D)`. With [`Queries::First`] the results are the first
    /// `count` rows of `x`. `tape` is filled if given; its VJP is of sequences of one length with the same `prompts`.
    pub(crate) fn forward<'a>(
        &self,
        x: &mut [f32],
        sequences: Sequences,
        prompts: impl Into<PromptRows<'a>>,
        queries: Queries,
        tape: Option<&mut BlockTape>,
        scratch: &mut BlockScratch,
    ) {
        let prompts = prompts.into();
        let d = self.width();
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        let rows = sequences.rows();
        let keep = tape.is_some();
        let BlockScratch { attention, unkept, rows: [buffer, q_buffer, mixed], kv: kv_buffer, mlp, .. } = scratch;
        let tape = tape.unwrap_or(unkept);

        let normalized = tape.normalized1.room(0..rows * stride, buffer);
        let inverse = tape.inverse1.grow(rows);
        layer_norm(Mat::new(x, rows, d, stride), self.eps, &mut MatMut::new(normalized, rows, d, stride), inverse);
        let kv = tape.kv.room(0..rows * kv_stride, kv_buffer);
        self.kv.apply(Mat::new(normalized, rows, d, stride), MatMut::new(kv, rows, 2 * d, kv_stride));
        sequences.turn(kv, d, kv_stride, false);

        // With `First`, rows of sequences of one length are read by their stride, others are gathered.
        let (query_rows, query_stride) = match queries {
            Queries::All => (rows, stride),
            Queries::First => (sequences.count(), rows / sequences.count() * stride),
        };
        let q = tape.q.room(0..query_rows * stride, q_buffer);
        let of_queries = if queries == Queries::All || sequences.are_even() {
            Mat::new(normalized, query_rows, d, query_stride)
        } else {
            let gathered = mixed.grow(query_rows * stride);
            for (to, start) in gathered.chunks_exact_mut(stride).zip(sequences.starts) {
                to.copy_from_slice(&normalized[start * stride..(start + 1) * stride]);
            }
            Mat::new(gathered, query_rows, d, stride)
        };
        self.q.apply(of_queries, MatMut::new(q, query_rows, d, stride));
        if queries == Queries::All {
            sequences.turn(q, d, stride, false);
        }
        tape.normalized1.keep(0..rows * stride, buffer);

        let mixed = mixed.grow(query_rows * stride);
        if keep {
            let shared = |call: &Call| prompts.of(call.sequence).map_or(0, |p| p.rows());
            let calls = sequences.calls(queries, prompts.is_shared());
            let rows = calls.map(|call| call.queries * row_stride(call.keys + shared(&call)));
            tape.probabilities.expect(self.heads * rows.sum::<usize>());
        }
        let mut kept = 0;
        for rows in sequences.calls(queries, prompts.is_shared()) {
            let call = self.attention(&rows, q, kv, prompts.of(rows.sequence));
            let out = &mut MatMut::new(&mut mixed[rows.query * stride..], rows.queries, d, stride);
            call.forward(out, keep.then_some((&mut tape.probabilities, kept)), attention);
            kept += call.probability_len();
        }
        tape.q.keep(0..query_rows * stride, q_buffer);
        tape.kv.keep(0..rows * kv_stride, kv_buffer);
        if let (Some(kept), true) = (&mut tape.mixed, keep) {
            kept.room(0..query_rows * stride, q_buffer).copy_from_slice(mixed);
            kept.keep(0..query_rows * stride, q_buffer);
        }

        if queries == Queries::First {
            for (i, start) in sequences.starts.iter().enumerate().take(query_rows).skip(1) {
                x.copy_within(start * stride..start * stride + d, i * stride);
            }
        }
        self.out.add(Mat::new(mixed, query_rows, d, stride), MatMut::new(x, query_rows, d, stride));

        let normalized = tape.normalized2.room(0..query_rows * stride, buffer);
        let inverse = tape.inverse2.grow(query_rows);
        let view = &mut MatMut::new(normalized, query_rows, d, stride);
        layer_norm(Mat::new(x, query_rows, d, stride), self.eps, view, inverse);
        self.mlp.forward(
            Mat::new(normalized, query_rows, d, stride),
            MatMut::new(x, query_rows, d, stride),
            keep.then_some(&mut tape.mlp),
            mlp,
        );
        tape.normalized2.keep(0..query_rows * stride, buffer);
    }

    /// Turns `dx`, the gradient of the block's output, into that of its input, in place, as far down as `pass` says.
    ///
    /// Layout as in [`Block::forward`]; with [`Queries::First`] the gradient comes in the first `count` rows and leaves in
    /// all rows.
    pub(crate) fn vjp(&self, dx: &mut Vec<f32>, pass: BlockVjp, scratch: &mut BlockScratch) {
        let BlockVjp { sequences, prompts, queries, tape, depth, d_read, mut d_prompts, mut weights } = pass;
        let d = self.width();
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        let rows = sequences.rows();
        let (query_rows, query_stride) = match queries {
            Queries::All => (rows, stride),
            Queries::First => (sequences.count(), rows / sequences.count() * stride),
        };
        let BlockScratch {
            attention,
            // Of each at most one thing is needed at a time: what is read of the tape; the gradient of the MLP's input, then
            // that of the queries; the gradient of what attention gave, then that of the block's normalised input.
            rows: [buffer, dq, gradient],
            kv: kv_buffer,
            dkv,
            dkv_of_row,
            mlp,
            grads: grad_scratch,
            ..
        } = scratch;

        // MLP
        let of_normalized = dq.grow(query_rows * stride);
        let view = MatMut::new(of_normalized, query_rows, d, stride);
        let of_mlp = weights.as_mut().and_then(|(_, grads)| grads.layers()).map(|layers| {
            let x = tape.normalized2.read(0..query_rows * stride, buffer);
            (layers, Mat::new(x, query_rows, d, stride))
        });
        self.mlp.vjp(Mat::new(dx, query_rows, d, stride), view, &tape.mlp, of_mlp, mlp);
        layer_norm_vjp(
            Mat::new(tape.normalized2.read(0..query_rows * stride, buffer), query_rows, d, stride),
            &tape.inverse2[..query_rows],
            Mat::new(of_normalized, query_rows, d, stride),
            &mut MatMut::new(dx, query_rows, d, stride),
        );

        // Attention
        if let Some(layers) = weights.as_mut().and_then(|(_, grads)| grads.layers()) {
            let inputs = tape.mixed.as_ref().map(|kept| kept.read(0..query_rows * stride, buffer));
            let inputs = inputs.map(|inputs| Mat::new(inputs, query_rows, d, stride));
            grad_scratch.add(&mut layers.out, Mat::new(dx, query_rows, d, stride), inputs, self.precision);
        }
        let gradient = gradient.grow(rows * stride);
        self.out.vjp(Mat::new(dx, query_rows, d, stride), MatMut::new(gradient, query_rows, d, stride), Init::Zero);
        let dq = dq.grow(query_rows * stride);
        let dkv = dkv.grow(rows * kv_stride);
        let prompt_rows = prompts.map_or(0, |p| p.rows());
        let q = tape.q.read(0..query_rows * stride, buffer);
        let kv = tape.kv.read(0..rows * kv_stride, kv_buffer);
        let tokens = !matches!(depth, Depth::Prompts);
        let by_row = sequences.causal && prompts.is_some();
        if by_row && tokens {
            dkv.fill(0.0);
        }
        let mut kept = 0;
        for rows in sequences.calls(queries, prompts.is_some()) {
            let call = self.attention(&rows, q, kv, prompts);
            let Call { query, queries, start, keys, .. } = rows;
            let probabilities = (&tape.probabilities, kept);
            kept += call.probability_len();
            let mut dq = MatMut::new(&mut dq[query * stride..], queries, d, stride);
            let whole = &mut dkv[start * kv_stride..(start + keys) * kv_stride];
            let written = if by_row { dkv_of_row.grow(keys * kv_stride) } else { &mut *whole };
            let mut view = MatMut::new(written, keys, 2 * d, kv_stride);
            let mut d_prompts = d_prompts.as_deref_mut().map(|g| MatMut::new(g, prompt_rows, 2 * d, kv_stride));
            let to = AttentionVjp { tokens: tokens.then_some((&mut dq, &mut view)), prompts: d_prompts.as_mut() };
            call.vjp(probabilities, Mat::new(&gradient[query * stride..], queries, d, stride), to, attention);
            if by_row && tokens {
                whole.iter_mut().zip(&*dkv_of_row).for_each(|(sum, part)| *sum += part);
            }
        }
        if let Some(d_read) = d_read {
            dkv.iter_mut().zip(d_read).for_each(|(sum, part)| *sum += part);
        }

        if tokens {
            sequences.turn(dkv, d, kv_stride, true);
            if queries == Queries::All {
                sequences.turn(dq, d, stride, true);
            }
        }

        // Queries, keys and values
        let normalized1 = match depth {
            Depth::Prompts => &[],
            _ => tape.normalized1.read(0..rows * stride, buffer),
        };
        if let Some((learned, grads)) = weights {
            let queries = Mat::new(normalized1, query_rows, d, query_stride);
            let x = NormalizedRows { queries, all: Mat::new(normalized1, rows, d, stride) };
            let (dq, dkv) = (Mat::new(dq, query_rows, d, stride), Mat::new(dkv, rows, 2 * d, kv_stride));
            grad_scratch.add_qkv(learned, grads, dq, dkv, x, self.precision);
        }
        match depth {
            Depth::Prompts | Depth::Weights => {}
            Depth::LastRows(n) => {
                for i in 0..sequences.count() {
                    let (start, len) = sequences.range(i);
                    let from = start + len - n;
                    let rows = from * stride..(from + n) * stride;
                    let normalized = Mat::new(&normalized1[rows.clone()], n, d, stride);
                    let gradient = &mut gradient[rows.clone()];
                    let dq = Mat::new(&dq[rows.clone()], n, d, stride);
                    let dkv = Mat::new(&dkv[from * kv_stride..], n, 2 * d, kv_stride);
                    self.kv.vjp(dkv, MatMut::new(gradient, n, d, stride), Init::Zero);
                    self.q.vjp(dq, MatMut::new(gradient, n, d, stride), Init::Add);
                    let inverse = &tape.inverse1[from..from + n];
                    let dx = &mut MatMut::new(&mut dx[rows], n, d, stride);
                    layer_norm_vjp(normalized, inverse, Mat::new(gradient, n, d, stride), dx);
                }
            }
            Depth::Rows => {
                let dkv = Mat::new(dkv, rows, 2 * d, kv_stride);
                self.kv.vjp(dkv, MatMut::new(gradient, rows, d, stride), Init::Zero);
                let dq = Mat::new(dq, query_rows, d, stride);
                self.q.vjp(dq, MatMut::new(gradient, query_rows, d, query_stride), Init::Add);
                if queries == Queries::First {
                    spread(dx, query_rows, query_stride, stride, rows * stride);
                }
                layer_norm_vjp(
                    Mat::new(normalized1, rows, d, stride),
                    &tape.inverse1[..rows],
                    Mat::new(gradient, rows, d, stride),
                    &mut MatMut::new(dx, rows, d, stride),
                );
            }
        }
    }
}

/// Moves row i to the place `i * query_stride` and sets all other rows to zero.
fn spread(dx: &mut Vec<f32>, count: usize, query_stride: usize, stride: usize, len: usize) {
    let dx = dx.grow(len);
    dx[count * stride..].fill(0.0);
    if query_stride > stride {
        // From the last to the first: a target lies behind every row still to be moved.
        for i in (1..count).rev() {
            dx.copy_within(i * stride..(i + 1) * stride, i * query_stride);
            dx[i * stride..(i + 1) * stride].fill(0.0);
        }
    }
}
