//! Images with prompts of their own each, in one pass: what serves many tasks on one backbone.
//!
//! The products of a block are of rows, whoever's they are; prompts come in at attention, which goes an image at a time. So a pass
//! may mix prompt sets of any number and depth at no cost, and what it reads is to the last bit what [`Vit::read`] reads of each
//! image with its prompts alone.
//!
//! What several prompt sets share of an image is computed once: its tokens are one *stream* up to the first block that prompts
//! change, where each prompt set goes its own way, and all that is read without prompts is read of that one stream.

use std::ops::Range;

use super::block::{PromptRows, Queries, Sequences};
use super::encoder::TowerWorkspace;
use super::pool::PooledRows;
use super::prompts::{KeyValuePrompts, PreparedPrompts, TokenPrompts};
use super::{Pass, ROWS, Readout, Vit};
use crate::spec::Pool;
use vpt_base::{Error, Result, parallel};
use vpt_kernel::{Grow, Mat, row_stride, with_team};

/// Rows that an image with several prompt sets may come to before it is taken as two; what they share is then computed twice.
const MOST_ROWS: usize = 4 * ROWS;

/// The prompts of one task as the blocks of a tower see them, computed once for all passes that they are in.
pub struct PromptSet {
    prepared: PreparedPrompts,
    /// The first block that they change.
    start: usize,
    /// Depth and width of the tower.
    shape: [usize; 2],
}

/// What is read of one image with the prompts of one task.
#[derive(Clone, Copy, Debug)]
pub struct MixedRow<'a> {
    /// Which image.
    pub image: usize,
    /// With which prompts.
    pub prompts: Option<&'a PromptSet>,
    /// What.
    pub readout: Readout<'a>,
}

/// An image and what is read of it on one thread.
struct Unit {
    image: usize,
    /// Positions among the rows of the pass.
    rows: Vec<usize>,
}

/// Tokens of one image in a micro-batch: without prompts, or with those of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stream {
    /// Position of the unit in the micro-batch.
    unit: usize,
    /// The row whose prompts these tokens have seen.
    row: Option<usize>,
}

/// A pass that is under way.
struct MixedJob<'a> {
    images: &'a [&'a [f32]],
    rows: &'a [MixedRow<'a>],
}

impl PromptSet {
    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.prepared.bytes()
    }
}

impl std::fmt::Debug for PromptSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PromptSet {{ start: {}, bytes: {} }}", self.start, self.bytes())
    }
}

impl MixedRow<'_> {
    /// The first block that its prompts change; none without prompts.
    fn start(&self) -> usize {
        self.prompts.map_or(usize::MAX, |prompts| prompts.start)
    }
}

impl Unit {
    /// Streams where there are most of them.
    fn streams(&self, job: &MixedJob) -> usize {
        let prompted = self.rows.iter().filter(|&&row| job.rows[row].prompts.is_some()).count();
        prompted + usize::from(prompted < self.rows.len())
    }
}

impl Vit {
    /// Makes prompts ready for [`Self::read_mixed`].
    ///
    /// # Errors
    /// There are none, or they do not fit the tower.
    pub fn prepare(
        &self,
        prompts: Option<TokenPrompts>,
        keys_values: Option<KeyValuePrompts>,
        threads: usize,
    ) -> Result<PromptSet> {
        let pass = Pass { prompts, keys_values, ..Pass::forward(&[], threads) };
        self.check(&pass)?;
        if self.other.is_some() {
            return Err(self.native_only("mixes tasks in one pass"));
        }
        let prepared = PreparedPrompts::new(&pass, &self.tower);
        let mut prepared = prepared.ok_or_else(|| Error::invalid("prompts", "there are none"))?.without_tape();
        if let Some((0, tokens)) = &mut prepared.inserted
            && let Some((_, _, scaled)) = self.tower.embedding.pre_norm(tokens)
        {
            *tokens = scaled;
        }
        Ok(PromptSet { start: prepared.first_block(), prepared, shape: [self.depth(), self.width()] })
    }

    /// What `rows` read of `images` `[3, S, S]`, row by row, as [`Self::read`] would of each alone, to the last bit.
    ///
    /// # Errors
    /// An image is of another size, a row is of no image, or its prompts or readout do not fit the tower.
    pub fn read_mixed(&self, images: &[&[f32]], rows: &[MixedRow], threads: usize) -> Result<Vec<Vec<f32>>> {
        if self.other.is_some() {
            return Err(self.native_only("mixes tasks in one pass"));
        }
        let (pixels, size) = (self.tower.embedding.pixels(), self.image_size());
        if let Some(image) = images.iter().find(|image| image.len() != pixels) {
            return Err(Error::invalid(
                "images",
                format!("{} values are no image of 3 x {size} x {size}", image.len()),
            ));
        }
        for row in rows {
            self.check_readout(row.readout, false)?;
            if row.image >= images.len() {
                return Err(Error::invalid("images", format!("there is none at {}", row.image)));
            }
            if row.prompts.is_some_and(|prompts| prompts.shape != [self.depth(), self.width()]) {
                return Err(Error::invalid("prompts", "made ready for another tower"));
            }
        }
        let threads = threads.max(1);
        let job = MixedJob { images, rows };
        let shares = self.deal(&job, threads);
        let team = threads / shares.len().max(1);
        let most = self.memory_plan(&Pass::forward(&[], threads), rows.len())?.micro_batch * self.tokens();
        let read = parallel::with_shares(shares, |units: Vec<Unit>| {
            let mut workspace = self.take_workspace();
            let read = with_team(team, || {
                let parts = self.micro_batches(&job, &units, most).into_iter();
                parts.flat_map(|part| self.forward_mixed(&job, &units[part], &mut workspace)).collect::<Vec<_>>()
            });
            self.keep_workspace(workspace);
            read
        });
        let mut found = vec![Vec::new(); rows.len()];
        read.into_iter().flatten().for_each(|(row, features)| found[row] = features);
        Ok(found)
    }

    /// Blocks that the tokens of a unit go through without prompts.
    fn plain_blocks(&self, job: &MixedJob, unit: &Unit) -> usize {
        let blocks = unit.rows.iter().map(|&row| &job.rows[row]);
        blocks.map(|row| row.start().min(self.last_run(row.readout))).max().unwrap_or(0)
    }

    /// Blocks that all streams of a unit go through.
    fn work(&self, job: &MixedJob, unit: &Unit) -> usize {
        let own = unit.rows.iter().map(|&row| &job.rows[row]);
        let own = own.map(|row| self.last_run(row.readout).saturating_sub(row.start())).sum::<usize>();
        own + self.plain_blocks(job, unit)
    }

    /// The images with what is read of them, dealt out to threads by the work that they are.
    fn deal(&self, job: &MixedJob, threads: usize) -> Vec<Vec<Unit>> {
        let mut units: Vec<Unit> = (0..job.images.len()).map(|image| Unit { image, rows: Vec::new() }).collect();
        for (position, row) in job.rows.iter().enumerate() {
            units[row.image].rows.push(position);
        }
        units.retain(|unit| !unit.rows.is_empty());
        for unit in &mut units {
            unit.rows.sort_by_key(|&row| job.rows[row].start());
        }
        let mut at = 0;
        while at < units.len() {
            let is_large = units[at].streams(job) * self.tokens() > MOST_ROWS;
            if is_large && units[at].streams(job) > 1 {
                let other = halve(&mut units[at]);
                units.push(other);
            } else {
                at += 1;
            }
        }
        // Threads without an image take over prompt sets of another's, where that pays.
        while units.len() < threads {
            let Some(largest) = units.iter_mut().max_by_key(|unit| self.work(job, unit)) else { break };
            let before = self.work(job, largest);
            if largest.rows.len() < 2 {
                break;
            }
            let other = halve(largest);
            if self.work(job, largest).max(self.work(job, &other)) * 4 > before * 3 {
                largest.rows.extend(other.rows);
                break;
            }
            units.push(other);
        }
        let total: usize = units.iter().map(|unit| self.work(job, unit)).sum();
        let count = threads.min(units.len()).max(1);
        let mut shares: Vec<Vec<Unit>> = vec![Vec::new()];
        let mut done = 0;
        for unit in units {
            let work = self.work(job, &unit);
            // A share ends where the middle of its last unit is past the share's part of the whole.
            let is_full = (2 * done + work) * count > 2 * total * shares.len();
            if is_full && shares.len() < count && shares.last().is_some_and(|share| !share.is_empty()) {
                shares.push(Vec::new());
            }
            done += work;
            if let Some(share) = shares.last_mut() {
                share.push(unit);
            }
        }
        shares
    }

    /// Consecutive units that go through the tower together: about `most` rows.
    fn micro_batches(&self, job: &MixedJob, units: &[Unit], most: usize) -> Vec<Range<usize>> {
        let rows = |unit: &Unit| unit.streams(job) * self.tokens();
        let total: usize = units.iter().map(rows).sum();
        let portion = total.div_ceil(total.div_ceil(most.max(1)).max(1));
        let (mut parts, mut start, mut taken) = (Vec::new(), 0, 0);
        for (i, unit) in units.iter().enumerate() {
            if i > start && taken + rows(unit) > portion.max(most) {
                parts.push(start..i);
                (start, taken) = (i, 0);
            }
            taken += rows(unit);
            if taken >= portion {
                parts.push(start..i + 1);
                (start, taken) = (i + 1, 0);
            }
        }
        if start < units.len() {
            parts.push(start..units.len());
        }
        parts
    }

    /// One micro-batch: what each row of `units` reads, beside its position.
    fn forward_mixed(&self, job: &MixedJob, units: &[Unit], workspace: &mut TowerWorkspace) -> Vec<(usize, Vec<f32>)> {
        let (tower, d, depth) = (&self.tower, self.width(), self.depth());
        let stride = row_stride(d);
        let TowerWorkspace { x, widened, starts, pool: pool_tape, scratch, embed_scratch, .. } = workspace;
        let pixels: Vec<f32> = units.iter().flat_map(|unit| job.images[unit.image]).copied().collect();
        tower.embedding.forward(&pixels, &[], x, None, embed_scratch);
        let mut now: Vec<Stream> = (0..units.len()).map(|unit| Stream { unit, row: None }).collect();
        starts.clear();
        starts.extend((0..=units.len()).map(|i| i * self.tokens()));

        let rows: Vec<(usize, usize)> =
            units.iter().enumerate().flat_map(|(at, unit)| unit.rows.iter().map(move |&row| (at, row))).collect();
        let mut found: Vec<(usize, Vec<f32>)> = rows
            .iter()
            .map(|&(_, row)| match job.rows[row].readout {
                readout @ Readout::Tokens(_) => (row, vec![0.0; self.feature_rows(readout) * d]),
                _ => (row, Vec::new()),
            })
            .collect();
        let last = rows.iter().map(|&(_, row)| self.last_run(job.rows[row].readout)).max().unwrap_or(0);
        for i in 0..=last {
            // Reads come before what enters here: prompts are not read.
            for (&(unit, row), (_, features)) in rows.iter().zip(&mut found) {
                for (begin, read) in self.reads(job.rows[row].readout, i) {
                    let Some(place) = place_of(&now, job, unit, row, i) else { continue };
                    let from = x[(starts[place] + read.start) * stride..].chunks_exact(stride).take(read.len());
                    for (to, from) in features[begin * d..].chunks_exact_mut(d).zip(from) {
                        to.copy_from_slice(&from[..d]);
                    }
                }
            }
            let Some(block) = tower.blocks[..last].get(i) else { break };
            let next = self.live(job, units, i);
            rebuild((x, widened, starts), &now, &next, job, i, d);
            now = next;
            let own: Vec<Option<Mat>> = now
                .iter()
                .map(|stream| job.rows[stream.row?].prompts.and_then(|prompts| prompts.prepared.keys_values(i, d)))
                .collect();
            let sequences = Sequences { starts, causal: false, turn: tower.turn.as_deref() };
            let class_only = |row: &MixedRow| self.pool_of(row.readout) == Some(Pool::ClassToken);
            let of_last = |&(_, row): &(usize, usize)| self.last_run(job.rows[row].readout) == depth;
            let first =
                i + 1 == depth && rows.iter().filter(|row| of_last(row)).all(|&(_, row)| class_only(&job.rows[row]));
            let queries = if first { Queries::First } else { Queries::All };
            block.forward(x, sequences, PromptRows::Each(&own), queries, None, scratch);
            if first {
                starts.clear();
                starts.extend(0..=now.len());
            }
        }
        pool_tape.keep_inputs(false);
        for (&(unit, row), (_, features)) in rows.iter().zip(&mut found) {
            let Some(pool) = self.pool_of(job.rows[row].readout) else { continue };
            let Some(place) = place_of(&now, job, unit, row, depth) else { continue };
            let each = if pool == Pool::ClassToken { 1 } else { starts[place + 1] - starts[place] };
            let pooled = PooledRows { images: 1, each, own: each.min(self.tokens()) };
            *features = tower.pool(pool, &x[starts[place] * stride..], pooled, pool_tape);
        }
        found
    }

    /// The streams that go through block `i`.
    fn live(&self, job: &MixedJob, units: &[Unit], i: usize) -> Vec<Stream> {
        let of_unit = |(at, unit): (usize, &Unit)| {
            let plain = (i < self.plain_blocks(job, unit)).then_some(Stream { unit: at, row: None });
            let prompted = unit
                .rows
                .iter()
                .filter(|&&row| (job.rows[row].start()..self.last_run(job.rows[row].readout)).contains(&i));
            let prompted: Vec<Stream> = prompted.map(|&row| Stream { unit: at, row: Some(row) }).collect();
            plain.into_iter().chain(prompted)
        };
        units.iter().enumerate().flat_map(of_unit).collect()
    }
}

/// Takes the second half of what is read of an image away.
fn halve(unit: &mut Unit) -> Unit {
    Unit { image: unit.image, rows: unit.rows.split_off(unit.rows.len() / 2) }
}

/// The stream behind `after` blocks that `row` of the unit is read of.
fn place_of(streams: &[Stream], job: &MixedJob, unit: usize, row: usize, after: usize) -> Option<usize> {
    let row = (after > job.rows[row].start()).then_some(row);
    streams.iter().position(|stream| *stream == Stream { unit, row })
}

/// Lays the tokens out for block `i`: those of streams that begin there are those of their image without prompts, and prompts that
/// enter as tokens come behind.
fn rebuild(
    (x, widened, starts): (&mut Vec<f32>, &mut Vec<f32>, &mut Vec<usize>),
    now: &[Stream],
    next: &[Stream],
    job: &MixedJob,
    i: usize,
    d: usize,
) {
    let stride = row_stride(d);
    let inserted = |stream: &Stream| {
        let prompts = job.rows[stream.row?].prompts?;
        prompts.prepared.inserted.as_ref().filter(|(at, _)| *at == i).map(|(_, tokens)| tokens.as_slice())
    };
    let source = |stream: &Stream| {
        let own = now.iter().position(|other| other == stream);
        own.or_else(|| now.iter().position(|other| *other == Stream { unit: stream.unit, row: None }))
            .unwrap_or_default()
    };
    let sources: Vec<(usize, Option<&[f32]>)> = next.iter().map(|stream| (source(stream), inserted(stream))).collect();
    if sources.iter().map(|(from, _)| *from).eq(0..now.len()) && sources.iter().all(|(_, tokens)| tokens.is_none()) {
        return;
    }
    let mut ends = vec![0];
    for (from, tokens) in &sources {
        let rows = starts[from + 1] - starts[*from] + tokens.map_or(0, |tokens| tokens.len() / d);
        ends.push(ends[ends.len() - 1] + rows);
    }
    let to = widened.grow(ends[next.len()] * stride);
    for ((from, tokens), end) in sources.iter().zip(&ends) {
        let rows = &x[starts[*from] * stride..starts[from + 1] * stride];
        let to = &mut to[end * stride..];
        to[..rows.len()].copy_from_slice(rows);
        let behind = to[rows.len()..].chunks_exact_mut(stride);
        for (to, token) in behind.zip(tokens.unwrap_or_default().chunks_exact(d)) {
            to[..d].copy_from_slice(token);
        }
    }
    std::mem::swap(x, widened);
    *starts = ends;
}
