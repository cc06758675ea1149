//! Text towers in a graph: texts to embeddings, and texts of each image's own (CoCoOp).

use crate::block::{BlockContext, BlockReader, block, plain_linear};
use crate::graph::{Attr, Element, Graph, Value};
use crate::head::EPSILON;
use vpt_backbone::{
    spec::{TextPool, TextSpec},
    text::{PlainTextEnds, PlainTextTower},
    vit::PlainLayer,
};
use vpt_base::{Error, Result};
use vpt_model::model::constants::ImageTexts;

/// What is added to the score of a token that is not seen.
fn unseen(element: Element) -> f32 {
    if element == Element::F16 { -6e4 } else { -1e9 }
}

/// A text tower that is being put into a graph.
pub(crate) struct TextGraph<'a> {
    pub(crate) tower: &'a PlainTextTower<'a>,
    pub(crate) blocks: &'a BlockReader<'a>,
}

impl<'a> TextGraph<'a> {
    fn spec(&self) -> &'a TextSpec {
        self.tower.spec()
    }

    /// Sequences `[N, T, D]` through all blocks.
    fn blocks(&self, graph: &mut Graph<'a>, mut x: Value, rows: usize) -> Value {
        let spec = self.spec();
        let mask = spec.causal.then(|| {
            let seen = |at: usize| if at % rows > at / rows { unseen(graph.element) } else { 0. };
            let mask: Vec<f32> = (0..rows * rows).map(seen).collect();
            graph.floats("mask", &[rows, rows], mask)
        });
        for index in 0..spec.tower.depth {
            graph.scope(format!("text.{index}"));
            let seen = BlockContext { mask: mask.as_ref(), ..BlockContext::default() };
            x = block(graph, self.blocks, &spec.tower, index, &x, seen);
        }
        graph.scope("text");
        x
    }

    /// Embeddings `[.., E]` of the rows `[.., D]` that hold the texts.
    fn projected(&self, graph: &mut Graph<'a>, x: &Value, ends: &PlainTextEnds) -> Value {
        let (d, eps) = (self.spec().tower.width, self.spec().tower.eps);
        let [scale, shift] = &ends.final_norm;
        let norm = [graph.floats("norm.weight", &[d], scale.clone()), graph.floats("norm.bias", &[d], shift.clone())];
        let n = graph.layer_norm(x, d, Some(norm), eps);
        plain_linear(graph, "projection", &n, &ends.projection)
    }

    /// Embeddings `[B, E]` of texts given as token ids `[B, context]`, padded behind their end token.
    ///
    /// # Errors
    /// The checkpoint cannot be read any more.
    pub(crate) fn embeddings(&self, graph: &mut Graph<'a>, ids: &Value) -> Result<Value> {
        let spec = self.spec();
        let (d, context) = (spec.tower.width, spec.context);
        let mut ends = self.tower.ends()?;
        graph.scope("text");
        let tokens = graph.floats("tokens", &[spec.vocab, d], std::mem::take(&mut ends.tokens));
        let positions = graph.floats("positions", &[context, d], std::mem::take(&mut ends.positions));
        let x = graph.node_with("Gather", &[&tokens, ids], vec![("axis", Attr::Int(0))]);
        let x = graph.add(&x, &positions);
        let x = self.blocks(graph, x, context);
        let row = match spec.pool {
            TextPool::LastPosition => {
                let last = graph.slice(&x, 1, context - 1, context);
                graph.reshape(&last, &[-1, d as i64])
            }
            TextPool::End => {
                // The old mistake in CLIP's configurations, see `TextSpec::read_len`: the largest id is meant.
                let marks = if spec.eos_token_id == 2 {
                    ids.clone()
                } else {
                    let end = graph.ints(&[i64::from(spec.eos_token_id)]);
                    let marks = graph.node("Equal", &[ids, &end]);
                    graph.cast(&marks, Element::I64)
                };
                let last = vec![("axis", Attr::Int(-1)), ("keepdims", Attr::Int(1))];
                let place = graph.node_with("ArgMax", &[&marks], last);
                graph.node_with("GatherND", &[&x, &place], vec![("batch_dims", Attr::Int(1))])
            }
        };
        Ok(self.projected(graph, &row, &ends))
    }

    /// Logits `[B, C]` of images' embeddings `[B, E]` by texts of each image's own, divided by `temperature`.
    ///
    /// # Errors
    /// The checkpoint cannot be read any more, or tokens see what comes after them.
    pub(crate) fn image_texts(
        &self,
        graph: &mut Graph<'a>,
        embeds: &Value,
        own: &ImageTexts,
        temperature: f64,
    ) -> Result<Value> {
        let spec = self.spec();
        let d = spec.tower.width;
        if !spec.causal {
            let message =
                "texts of each image's own, in a tower whose tokens see what comes after them, are not exported";
            return Err(Error::setting("model", message));
        }
        let ends = self.tower.ends()?;
        let (count, tails) = (own.vectors.values.len() / d, own.texts.tails());
        let classes = tails.len();
        let rows = 1 + count + tails.iter().map(Vec::len).max().unwrap_or(0);
        // Start token, vectors and the classes' own tokens, with positions; and which rows are read.
        let (mut base, mut read) = (vec![0.; classes * rows * d], vec![0.; classes * rows]);
        for (class, tail) in tails.iter().enumerate() {
            let token = |id: u32| &ends.tokens[id as usize * d..][..d];
            let vectors = own.vectors.values.chunks_exact(d);
            let all = std::iter::once(token(own.texts.start())).chain(vectors).chain(tail.iter().map(|&id| token(id)));
            let places = base[class * rows * d..].chunks_exact_mut(d).zip(ends.positions.chunks_exact(d));
            for ((to, position), from) in places.zip(all) {
                to.iter_mut().zip(position.iter().zip(from)).for_each(|(to, (p, v))| *to = p + v);
            }
            read[class * rows + count + tail.len()] = 1.;
        }
        graph.scope("meta");
        let unit = graph.unit_rows(embeds, EPSILON);
        let [w1, b1, w2, b2] = own.network;
        let layer = |weight: &vpt_base::params::Param, bias: &vpt_base::params::Param| PlainLayer {
            weight: weight.values.clone(),
            bias: bias.values.clone(),
        };
        let hidden = plain_linear(graph, "fc1", &unit, &layer(w1, b1));
        let hidden = graph.node("Relu", &[&hidden]);
        let shift = plain_linear(graph, "fc2", &hidden, &layer(w2, b2));
        let shift = graph.reshape(&shift, &[-1, 1, 1, d as i64]);
        let shifted: Vec<f32> = (0..rows).map(|row| if (1..=count).contains(&row) { 1. } else { 0. }).collect();
        let shifted = graph.floats("shifted", &[1, 1, rows, 1], shifted);
        let shift = graph.mul(&shift, &shifted);
        let base = graph.floats("texts", &[1, classes, rows, d], base);
        let x = graph.add(&base, &shift);
        let x = graph.reshape(&x, &[-1, rows as i64, d as i64]);
        let x = self.blocks(graph, x, rows);
        let x = graph.reshape(&x, &[-1, classes as i64, rows as i64, d as i64]);
        let read = graph.floats("read", &[1, classes, rows, 1], read);
        let x = graph.mul(&x, &read);
        let x = graph.reduce_sum(&x, 2);
        let x = graph.reshape(&x, &[-1, classes as i64, d as i64]);
        let texts = self.projected(graph, &x, &ends);
        let texts = graph.unit_rows(&texts, EPSILON);
        let width = spec.projection as i64;
        let column = graph.reshape(&unit, &[-1, width, 1]);
        let cosine = graph.matmul(&texts, &column);
        let cosine = graph.reshape(&cosine, &[-1, classes as i64]);
        Ok(graph.scaled(&cosine, (f64::from(own.scale) / temperature) as f32))
    }
}
