//! Prompt pixels in front of the classifier that the backbone was published with: a label mapping in the place of a head.
//!
//! The mapping is a constant of a step and part of the learned values all the same: it changes from epoch to epoch, belongs to
//! the prompt of its epoch, and has to be in checkpoints and task files with it. So are, while training, the votes that the
//! next mapping will follow from. Both are tensors of [`Group::Fixed`].

use std::sync::Arc;

use super::{LogitsKind, Model};
use crate::head::{
    BoundHead, Head, HeadKind,
    label_map::{self, LabelMap, MAP, VOTES, Vote},
};
use vpt_backbone::{
    Backbone,
    classifier::SourceClassifier,
    vit::{Pass, Readout},
};
use vpt_base::{
    Error, Result,
    params::{self, Group, Param},
    random::stream,
};

/// A mapping and what it maps from.
#[derive(Debug, Clone)]
pub(super) struct Mapped {
    kind: LabelMap,
    source: Arc<SourceClassifier>,
}

/// The classifier of `backbone`, whose classes `kind` maps to `classes` others, and the head that this makes.
///
/// # Errors
/// The backbone has no classifier, or one of fewer classes.
pub(super) fn mapped(backbone: &Backbone, kind: LabelMap, classes: usize) -> Result<(Mapped, Head)> {
    let source = backbone.classifier()?;
    let found = source.classes();
    if found < classes {
        let message = format!("{classes} classes of the data, where the backbone's classifier has {found}");
        return Err(Error::setting("label_map", message));
    }
    let head = Head { kind: HeadKind::Linear, width: source.width(), classes, keys: 0, logit_bias: false };
    Ok((Mapped { kind, source: Arc::new(source) }, head))
}

impl Mapped {
    /// Name and shape of the mapping's tensors while it is learned.
    pub(super) fn tensors(&self, classes: usize) -> Vec<(&'static str, Vec<usize>)> {
        [MAP, VOTES].map(|name| (name, vec![self.source.classes(), classes])).to_vec()
    }

    /// The mapping before anything was counted: nothing, or what is drawn at random.
    pub(super) fn init(&self, classes: usize, seed: u64) -> Result<Vec<Param>> {
        let sources = self.source.classes();
        let tensor = |(name, shape): (&str, Vec<usize>)| {
            let values = if name == MAP && self.kind == LabelMap::Rlm {
                label_map::random(sources, classes, &mut stream(seed, "label map", 0, 0))
            } else {
                vec![0.; sources * classes]
            };
            Param::new(name, &shape, values, Group::Fixed)
        };
        self.tensors(classes).into_iter().map(tensor).collect()
    }

    /// What images of a step count for the mapping of the next epoch, by what the head reads of them.
    pub(super) fn votes(&self, features: &[f32], labels: &[u32]) -> Vec<Vote> {
        if self.kind.follows_epochs() { self.count(features, labels) } else { Vec::new() }
    }

    fn count(&self, features: &[f32], labels: &[u32]) -> Vec<Vote> {
        self.kind.votes(&self.source.logits(features), self.source.classes(), labels)
    }
}

impl Model {
    fn mapped(&self) -> Option<&Mapped> {
        if let LogitsKind::LabelMap(mapped) = &self.output { Some(mapped) } else { None }
    }

    /// The kind of label mapping and the classifier it maps from, where there is one.
    pub fn label_map(&self) -> Option<(LabelMap, &SourceClassifier)> {
        self.mapped().map(|mapped| (mapped.kind, &*mapped.source))
    }

    /// The head with these learned values in it; a mapping of source classes becomes one.
    pub(super) fn bind(&self, params: &[Param]) -> Result<BoundHead> {
        let own = self.head_values(params);
        let Some(Mapped { source, .. }) = self.mapped() else { return self.head.bind(own) };
        let map = &params::find(own, MAP)?.values;
        self.head.bind(&label_map::fold(map, source.weight(), source.bias(), self.head.classes)?)
    }

    /// What a task file keeps of learned values: not the votes of the epoch under way.
    pub(super) fn without_votes(learned: &[Param]) -> Vec<Param> {
        learned.iter().filter(|param| param.name != VOTES).cloned().collect()
    }

    /// `pass`, made to read what the classifier reads.
    pub(super) fn mapped_pass<'a>(&self, pass: Pass<'a>) -> Pass<'a> {
        match self.readout_of_pass() {
            Readout::Features => pass,
            readout => Pass { readout, ..pass },
        }
    }

    /// What images `[B, 3, s, s]` with `labels` count, with the prompt of `params`: for the first mapping, of which no step has told the
    /// logits yet.
    pub fn votes_of(&self, params: &[Param], images: &[f32], labels: &[u32]) -> Result<Vec<Vote>> {
        let Some(mapped) = self.mapped() else { return Ok(Vec::new()) };
        Ok(mapped.count(&self.features(params, images)?, labels))
    }

    /// Adds what was counted to the votes among `params`.
    pub fn add_votes(&self, params: &mut [Param], votes: &[Vote]) {
        label_map::count(params, votes, self.head.classes);
    }

    /// Makes the mapping among `params` anew of their votes, if `first` or where it follows the epochs.
    pub fn renew_map(&self, params: &mut [Param], first: bool) {
        let renews = |kind: LabelMap| kind.follows_epochs() || first && kind.counts();
        if let Some(Mapped { kind, .. }) = self.mapped().filter(|mapped| renews(mapped.kind)) {
            label_map::renew(params, *kind, self.head.classes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        loss::Loss,
        model::{ClassifierSpec, StepInput},
        prompt::{PartShape, pixels::PixelShape},
    };
    use vpt_backbone::OpenOptions;
    use vpt_base::{params::find, tensor_file::Tensor};

    const FAMILIES: [&str; 3] = ["vit", "dinov2", "registers"];
    const INNER: usize = 20;

    fn folder(family: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/label-map").join(family)
    }

    fn backbone(family: &str) -> Arc<Backbone> {
        Arc::new(Backbone::open(folder(family).to_str().unwrap(), &OpenOptions::default()).unwrap())
    }

    fn model(family: &str, kind: LabelMap, classes: usize) -> Model {
        let prompt = PartShape::Pixels(PixelShape::Frame { inner: INNER }).into();
        Model::new(backbone(family), &prompt, ClassifierSpec::LabelMap(kind), classes, 2).unwrap()
    }

    /// What PyTorch made: `scripts/make_label_map_fixtures.py`.
    struct Expected(std::collections::HashMap<String, Tensor<'static>>, Vec<u32>);

    impl Expected {
        fn open(family: &str) -> Self {
            let bytes = std::fs::read(folder(family).join("expected.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let f32s = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let tensors = file.iter().filter(|(name, _)| *name != "labels").map(|(name, view)| {
                let values: Vec<f32> = f32s(view.data());
                (name.to_owned(), Tensor { name: name.to_owned(), shape: view.shape().to_vec(), values: values.into() })
            });
            let labels = file.tensor("labels").unwrap();
            let labels = labels.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            Self(tensors.collect(), labels)
        }

        fn get(&self, name: &str) -> &[f32] {
            &self.0[name].values
        }
    }

    /// Length of the difference over that of the expected.
    fn gap(found: &[f32], expected: &[f32]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let square = |v: f32| f64::from(v) * f64::from(v);
        let difference: f64 = found.iter().zip(expected).map(|(f, e)| square(f - e)).sum();
        (difference / expected.iter().map(|e| square(*e)).sum::<f64>()).sqrt()
    }

    #[test]
    fn maps_losses_and_gradients_equal_pytorch() {
        for family in FAMILIES {
            let expected = Expected::open(family);
            let (images, labels) = (expected.get("images"), &expected.1);
            for kind in [LabelMap::Flm, LabelMap::Ilm, LabelMap::Blm, LabelMap::BlmPlus] {
                let model = model(family, kind, 4);
                let name = if kind == LabelMap::Ilm { LabelMap::Flm } else { kind }.name();
                let mut params = model.init(1).unwrap();
                // In two parts, as batches come.
                let half = 6 * 3 * INNER * INNER;
                for (images, labels) in [(&images[..half], &labels[..6]), (&images[half..], &labels[6..])] {
                    let votes = model.votes_of(&params, images, labels).unwrap();
                    model.add_votes(&mut params, &votes);
                }
                model.renew_map(&mut params, true);
                let map = &find(&params, MAP).unwrap().values;
                assert!(gap(map, expected.get(&format!("{name}.map"))) < 1e-5, "{family} {kind}");
                for at in ["first", "later"] {
                    let mut params = params.clone();
                    if at == "later" {
                        params[0].values = expected.get("delta").to_vec();
                    }
                    let loss = Loss::new(None, 0., None);
                    let input = StepInput {
                        images,
                        blocks: 0,
                        labels,
                        drawn: &[],
                        loss: &loss,
                        frozen: None,
                        micro_batch: Some(3),
                    };
                    let output = model.step(&params, &input).unwrap();
                    let mean = output.loss / labels.len() as f64;
                    let of = |what: &str| expected.get(&format!("{name}.{at}.{what}"));
                    let off = (mean - f64::from(of("loss")[0])).abs() / mean;
                    assert!(off < 1e-5, "{family} {kind} {at}: loss {mean}, not {:?}", of("loss"));
                    let off = gap(&output.gradients[0], of("grad"));
                    assert!(off < 1e-4, "{family} {kind} {at}: gradient {off}");
                    model.add_votes(&mut params, &output.votes);
                    let before = params.clone();
                    model.renew_map(&mut params, false);
                    if kind == LabelMap::Flm {
                        assert_eq!(params, before, "counted once");
                    } else {
                        let map = &find(&params, MAP).unwrap().values;
                        assert!(gap(map, of("next")) < 1e-5, "{family} {kind} {at}: the next map");
                    }
                }
            }
        }
    }

    #[test]
    fn logits_of_images_are_source_logits_through_the_map() {
        for family in FAMILIES {
            let expected = Expected::open(family);
            let model = model(family, LabelMap::Rlm, 5);
            let params = model.init(3).unwrap();
            let found = model.logits(&params, expected.get("images")).unwrap();
            let chosen = label_map::leading(&params, 3).unwrap();
            for (row, source) in found.chunks(5).zip(expected.get("logits").chunks(12)) {
                for (logit, parts) in row.iter().zip(&chosen) {
                    let [(class, 1.)] = parts[..] else { panic!("{parts:?}") };
                    assert!((logit - source[class]).abs() < 1e-4, "{family}: {row:?} {source:?}");
                }
            }
            assert_ne!(params, model.init(4).unwrap(), "drawn by the seed");
            assert_eq!(model.label_map().unwrap().1.names().unwrap()[11], "source 11");
        }
    }

    #[test]
    fn a_backbone_that_cannot_be_mapped_from_is_refused_by_the_flag() {
        let refusal = |dir: &Path, classes| {
            let backbone = Arc::new(Backbone::open(dir.to_str().unwrap(), &OpenOptions::default()).unwrap());
            let (parts, spec) = (PartShape::Pixels(PixelShape::Full).into(), ClassifierSpec::LabelMap(LabelMap::Ilm));
            Model::new(backbone, &parts, spec, classes, 1).unwrap_err().to_string()
        };
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        assert_eq!(
            refusal(&folder("vit"), 13),
            "label_map: 13 classes of the data, where the backbone's classifier has 12"
        );
        for (name, why) in [
            ("clip", "CLIP tells classes by texts"),
            ("dinov2", "there is no tensor `classifier.weight`"),
            ("deit", "two of them are averaged"),
        ] {
            let message = refusal(&fixtures.join(name), 2);
            assert!(message.starts_with("label_map: ") && message.contains(why), "{message}");
        }
    }
}
