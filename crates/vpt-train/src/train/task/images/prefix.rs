//! The blocks before the first prompt never change: where images come as they are, their output is computed once a
//! run and goes in their place. Results are the same to the last bit.

use std::sync::Arc;

use super::{
    EVAL_BATCH,
    setup::Setup,
    source::{Features, LabelledBatch, PartSource},
};
use crate::train::{
    observer::{Event, Observer},
    process_group::ProcessGroup,
};
use vpt_base::Result;
use vpt_data::Split;
use vpt_model::model::Model;

/// Memory for it in bytes, training and validation images together.
const ROOM: usize = 1 << 30;

/// Puts tokens in the place of training and validation images where there is room; `false` when the observer asked to stop.
pub(super) fn keep(setup: &mut Setup, observer: &mut dyn Observer) -> Result<bool> {
    let blocks = setup.model.prefix_blocks();
    // A limit on memory is kept by taking less, not by keeping more.
    if blocks == 0 || setup.plan.config.max_memory.is_some() {
        return Ok(true);
    }
    let mut room = ROOM / size_of::<f32>();
    for split in [Split::Train, Split::Val] {
        let source = if split == Split::Train { &mut setup.train } else { &mut setup.val };
        let wanted = source.len().saturating_mul(setup.model.prefix_len());
        if wanted > room || !source.is_constant() {
            continue;
        }
        room -= wanted;
        let Some(tokens) = tokens(&setup.model, &setup.group, source, split, observer)? else { return Ok(false) };
        *source = Arc::new(PartSource::Tokens { blocks, tokens });
    }
    Ok(true)
}

fn tokens(
    model: &Model,
    group: &ProcessGroup,
    source: &PartSource,
    split: Split,
    observer: &mut dyn Observer,
) -> Result<Option<Features>> {
    let own = group.own_images(&(0..source.len()).collect::<Vec<_>>(), EVAL_BATCH);
    let batches = source.batches(&own, 0, EVAL_BATCH)?;
    let mut tokens = Features { views: 1, ..Features::default() };
    let go_on = &mut |done, total| observer.goes_on(&Event::Reading { split, done, total });
    let compute = |batch: LabelledBatch| Ok((model.prefix(&batch.values)?, batch.labels));
    let all = group.visit(batches, (source.len(), EVAL_BATCH), go_on, compute, |(values, labels)| {
        tokens.values.extend(values);
        tokens.labels.extend(labels);
        Ok(())
    })?;
    Ok(all.then_some(tokens))
}
