//! Features of images and texts, each computed once: looked up in the cache, computed where it is not there.

use crate::{
    feature_cache::{FeatureCache, FeatureKey, Space},
    train::{
        observer::{Event, Observer},
        process_group::ProcessGroup,
        task::images::{
            EVAL_BATCH,
            source::{ReadOutcome, ReadPart},
        },
    },
};
use vpt_backbone::{Backbone, Compute, Precision};
use vpt_base::{Error, Result, files::read_limited, parallel::shares, random::stream};
use vpt_data::{Augment, Digest, ImageSource, Sample, Split, blaming, digest};
use vpt_image::{
    Preprocess, Rgb8,
    decode::{MAX_FILE_BYTES, decode_bytes},
};

/// How an image is seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FeatureView {
    /// As it is.
    Plain,
    /// Cut and mirrored at random, by seed, number and content of the image.
    Augmented {
        /// Least and greatest share of the area.
        area: (f32, f32),
        seed: u64,
        number: usize,
    },
}

/// What makes features.
pub(crate) struct Extractor<'a> {
    /// The processes that share what is to be computed.
    pub(crate) group: ProcessGroup,
    pub(crate) backbone: &'a Backbone,
    pub(crate) preprocess: Preprocess,
    /// What the backbone computes in.
    pub(crate) precision: Precision,
    pub(crate) cache: Option<FeatureCache>,
    pub(crate) threads: usize,
}

/// What the features of the image with this digest, seen as `view`, are found by.
fn key(image: &Digest, view: FeatureView) -> FeatureKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(image);
    if let FeatureView::Augmented { area, seed, number } = view {
        hasher.update(format!("{area:?} {seed} {number}").as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The pixels `[3, S, S]` of one view of `image`.
fn pixels(image: &Rgb8, known: &Digest, view: FeatureView, preprocess: &Preprocess) -> Result<Vec<f32>> {
    let FeatureView::Augmented { area, seed, number } = view else { return preprocess.apply(image) };
    let augment = Augment { flip: true, random_resized_crop: Some(area), ..Augment::default() };
    let purpose = format!("view {}", blake3::Hash::from_bytes(*known));
    let mut rng = stream(seed, &purpose, number as u64, 0);
    let mut part = augment.pixels(image, preprocess, &mut rng)?;
    augment.flip(&mut part, &mut rng);
    let mut out = vec![0.; part.pixels.len()];
    preprocess.normalise_into(&part.pixels, &mut out);
    Ok(out)
}

/// A file of an image, and the hash of its bytes.
struct Raw {
    bytes: Vec<u8>,
    hash: FeatureKey,
}

impl Raw {
    /// The file of `sample`, if it has one.
    fn read(sample: &Sample) -> Result<Option<Self>> {
        let ImageSource::File(path) = &sample.image else { return Ok(None) };
        let bytes = read_limited(path, MAX_FILE_BYTES).map_err(|error| error.of_kind(Error::image))?;
        Ok(Some(Self { hash: *blake3::hash(&bytes).as_bytes(), bytes }))
    }

    fn decode(raw: Option<&Self>, sample: &Sample) -> Result<Rgb8> {
        match raw {
            Some(raw) => decode_bytes(&raw.bytes).map_err(|message| Error::image(sample.path(), message)),
            None => sample.load(),
        }
    }
}

impl Extractor<'_> {
    fn image_space(&self) -> Result<Option<Space>> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let preprocess =
            serde_json::to_vec(&self.preprocess).map_err(|error| Error::invalid("preprocessing", error.to_string()))?;
        let side = (self.backbone.vit.image_size() as u64).to_le_bytes();
        let format = match self.backbone.vit.compute() {
            compute if compute == Compute::default() => self.precision.to_string(),
            // Engines differ in the last digits.
            compute => format!("{} by {compute}", self.precision),
        };
        let parts = [b"images", self.backbone.hash()?.as_bytes(), format.as_bytes(), &preprocess, &side];
        Ok(Some(cache.space(&parts, self.backbone.vit.width())))
    }

    /// What `make` gives for each position below `count`.
    fn each<T: Send>(&self, count: usize, make: impl Fn(usize) -> T + Sync) -> Vec<T> {
        shares(count, self.threads, |range| range.map(&make).collect::<Vec<_>>()).into_iter().flatten().collect()
    }

    /// Reads every one of `samples` once, as [`PartImages::read`](crate::train::task::images::source::PartImages::read) does; those whose file the
    /// cache knows are not decoded. `None` when the observer asked to stop.
    pub(crate) fn read(
        &self,
        samples: &[Sample],
        split: Split,
        observer: &mut dyn Observer,
    ) -> Result<Option<ReadOutcome>> {
        // The pixels of a file depend on its bytes alone. A digest is kept as a value for each of its bytes.
        let mut space = self.cache.as_ref().map(|cache| cache.space(&[b"digests"], size_of::<Digest>()));
        let mut read = ReadOutcome { digests: Vec::with_capacity(samples.len()), unreadable: Vec::new() };
        let total = samples.len();
        let compute = |piece: usize| {
            let begin = piece * EVAL_BATCH;
            Ok(self.read_some(&samples[begin..total.min(begin + EVAL_BATCH)], begin, space.as_mut()))
        };
        let all = self.group.share(total.div_ceil(EVAL_BATCH), compute, |(digests, unreadable): ReadPart| {
            read.digests.extend(digests);
            read.unreadable.extend(unreadable);
            let done = read.digests.len() + read.unreadable.len();
            Ok(observer.goes_on(&Event::Reading { split, done, total }))
        })?;
        Ok(all.then_some(read))
    }

    /// Reads `samples`, the first of which is at `begin` among all, with the digests that are known by `space`.
    fn read_some(&self, samples: &[Sample], begin: usize, mut space: Option<&mut Space>) -> ReadPart {
        let raws = self.each(samples.len(), |i| blaming(samples[i].path(), || Raw::read(&samples[i])));
        let known: Vec<Option<Digest>> = raws
            .iter()
            .map(|raw| {
                let values = space.as_mut()?.get(&raw.as_ref().ok()?.as_ref()?.hash)?;
                let bytes: Vec<u8> = values.iter().map(|&value| value as u8).collect();
                bytes.try_into().ok()
            })
            .collect();
        let made = self.each(samples.len(), |i| match (&raws[i], known[i]) {
            (Err(_), _) => None,
            (_, Some(digest)) => Some(Ok(digest)),
            (Ok(raw), None) => {
                Some(blaming(samples[i].path(), || Raw::decode(raw.as_ref(), &samples[i]).map(|image| digest(&image))))
            }
        });
        let (mut digests, mut unreadable) = (Vec::with_capacity(samples.len()), Vec::new());
        for (i, (raw, made)) in raws.into_iter().zip(made).enumerate() {
            match (raw, made) {
                (Err(error), _) | (_, Some(Err(error))) => unreadable.push((begin + i, error.to_string())),
                (Ok(raw), Some(Ok(digest))) => {
                    digests.push(digest);
                    if let (Some(space), Some(raw), None) = (&mut space, raw, known[i]) {
                        space.put(raw.hash, &digest.map(f32::from));
                    }
                }
                (Ok(_), None) => {}
            }
        }
        (digests, unreadable)
    }

    /// Class tokens after the last norm, `[views, n, D]`, of `samples`, whose digests are `known`; `None` when the observer asked
    /// to stop.
    ///
    /// # Errors
    /// An image cannot be read any more, or is another one by now.
    pub(crate) fn images(
        &self,
        samples: &[Sample],
        known: &[Digest],
        views: &[FeatureView],
        split: Split,
        observer: &mut dyn Observer,
    ) -> Result<Option<Vec<f32>>> {
        let mut space = self.image_space()?;
        let width = self.backbone.vit.width();
        let total = samples.len() * views.len();
        let mut out = vec![0f32; total * width];
        if !self.group.is_alone() {
            let all = self.shared(samples, known, views, space.as_mut(), &mut out, &mut |done| {
                observer.goes_on(&Event::Features { split, done, total })
            })?;
            return Ok(all.then_some(out));
        }
        // Positions of an image and of a view, those of an image in a row.
        let mut missing = Vec::new();
        for (i, image) in known.iter().enumerate() {
            for (v, &view) in views.iter().enumerate() {
                match space.as_mut().and_then(|space| space.get(&key(image, view))) {
                    Some(values) => out[row(v * samples.len() + i, width)].copy_from_slice(&values),
                    None => missing.push((i, v)),
                }
            }
        }
        let mut done = total - missing.len();
        observer.event(&Event::Features { split, done, total });
        for jobs in missing.chunks(EVAL_BATCH) {
            if observer.stop() {
                return Ok(None);
            }
            let pixels = self.pixels(samples, known, views, jobs)?;
            let features = self.backbone.vit.features(&pixels, None, self.threads)?;
            for (&(i, v), values) in jobs.iter().zip(features.chunks_exact(width)) {
                out[row(v * samples.len() + i, width)].copy_from_slice(values);
                if let Some(space) = &mut space {
                    space.put(key(&known[i], views[v]), values);
                }
            }
            done += jobs.len();
            observer.event(&Event::Features { split, done, total });
        }
        Ok((!observer.stop()).then_some(out))
    }

    /// As [`Self::images`] where several ranks share them, each with what its own cache knows: fills `out`; `false` when `go_on`, asked with
    /// how many are done, says so.
    fn shared(
        &self,
        samples: &[Sample],
        known: &[Digest],
        views: &[FeatureView],
        mut space: Option<&mut Space>,
        out: &mut [f32],
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<bool> {
        let width = self.backbone.vit.width();
        let jobs: Vec<(usize, usize)> =
            (0..samples.len()).flat_map(|i| (0..views.len()).map(move |v| (i, v))).collect();
        let compute = |piece: usize| {
            let own = &jobs[piece * EVAL_BATCH..jobs.len().min((piece + 1) * EVAL_BATCH)];
            let mut rows: Vec<Option<Vec<f32>>> =
                own.iter().map(|&(i, v)| space.as_mut()?.get(&key(&known[i], views[v]))).collect();
            let missing: Vec<(usize, usize)> =
                own.iter().zip(&rows).filter(|(_, row)| row.is_none()).map(|(&job, _)| job).collect();
            if !missing.is_empty() {
                let pixels = self.pixels(samples, known, views, &missing)?;
                let features = self.backbone.vit.features(&pixels, None, self.threads)?;
                let made = missing.iter().zip(features.chunks_exact(width));
                for (row, (&(i, v), values)) in rows.iter_mut().filter(|row| row.is_none()).zip(made) {
                    if let Some(space) = &mut space {
                        space.put(key(&known[i], views[v]), values);
                    }
                    *row = Some(values.to_vec());
                }
            }
            Ok(rows.into_iter().flatten().flatten().collect::<Vec<f32>>())
        };
        let mut done = 0;
        self.group.share(jobs.len().div_ceil(EVAL_BATCH), compute, |rows: Vec<f32>| {
            for values in rows.chunks_exact(width) {
                let (i, v) = jobs[done];
                out[row(v * samples.len() + i, width)].copy_from_slice(values);
                done += 1;
            }
            Ok(go_on(done))
        })
    }

    /// The pixels of the views `jobs`, each an image and a view of it; an image is decoded once for its views in a row.
    fn pixels(
        &self,
        samples: &[Sample],
        known: &[Digest],
        views: &[FeatureView],
        jobs: &[(usize, usize)],
    ) -> Result<Vec<f32>> {
        let parts = shares(jobs.len(), self.threads, |range| -> Result<Vec<f32>> {
            let mut out = Vec::new();
            let mut decoded: Option<(usize, Rgb8)> = None;
            for &(i, v) in &jobs[range] {
                let sample = &samples[i];
                out.extend(blaming(sample.path(), || {
                    if decoded.as_ref().is_none_or(|(which, _)| *which != i) {
                        let image = sample.load()?;
                        if digest(&image) != known[i] {
                            return Err(Error::file(sample.path(), "has changed since the run began"));
                        }
                        decoded = Some((i, image));
                    }
                    let Some((_, image)) = &decoded else { return Ok(Vec::new()) };
                    pixels(image, &known[i], views[v], &self.preprocess)
                })?);
            }
            Ok(out)
        });
        Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// Text embeddings `[T, projection]`, not scaled to length 1.
    ///
    /// # Errors
    /// As [`Backbone::embed_texts`].
    pub(crate) fn texts(&self, texts: &[String]) -> Result<Vec<f32>> {
        let Some(cache) = self.cache.as_ref().filter(|_| self.backbone.has_text_tower()) else {
            return self.backbone.embed_texts(texts, self.threads);
        };
        let width = self.backbone.embedding_width();
        let precision = self.precision.name().as_bytes();
        let mut space = cache.space(&[b"texts", self.backbone.hash()?.as_bytes(), precision], width);
        let keys: Vec<FeatureKey> = texts.iter().map(|text| *blake3::hash(text.as_bytes()).as_bytes()).collect();
        let mut rows: Vec<Option<Vec<f32>>> = keys.iter().map(|key| space.get(key)).collect();
        let missing: Vec<usize> = (0..texts.len()).filter(|&i| rows[i].is_none()).collect();
        if !missing.is_empty() {
            let wanted: Vec<&String> = missing.iter().map(|&i| &texts[i]).collect();
            let made = self.backbone.embed_texts(&wanted, self.threads)?;
            for (&i, values) in missing.iter().zip(made.chunks_exact(width)) {
                space.put(keys[i], values);
                rows[i] = Some(values.to_vec());
            }
        }
        Ok(rows.into_iter().flatten().flatten().collect())
    }
}

/// The values of row `i`.
fn row(i: usize, width: usize) -> std::ops::Range<usize> {
    i * width..(i + 1) * width
}
