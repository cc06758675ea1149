//! The head alone on frozen features: what a head beside prompts or tuned weights begins as, and what it is held against.

use std::sync::Arc;

use super::{
    setup::Setup,
    source::{Features, PartSource},
};
use crate::{
    config::Plan,
    train::{
        features::{
            self,
            logistic::{self, Trial},
        },
        observer::{Event, Observer},
        progress::ProbeChoice,
    },
};
use vpt_base::{Result, params::Param};
use vpt_data::Split;
use vpt_model::{
    head::HeadKind,
    methods::{HeadInit, Method},
    model::{
        ClassifierSpec, Model,
        task_file::{BackboneId, TaskMeta, TaskMetrics},
    },
    prompt::PartShapes,
};

/// The head alone.
pub(crate) struct HeadAlone {
    /// The frozen backbone with the head and nothing else.
    pub(crate) model: Model,
    /// Its values and what was chosen for them; `None` where a checkpoint holds them.
    pub(crate) start: Option<(Vec<Param>, ProbeChoice)>,
}

impl HeadAlone {
    /// The head alone of the run `setup`, if it has to do with one. If the run is `fresh`, its values are computed: those of
    /// texts are among the `initial` ones. `None` when the observer asked to stop.
    ///
    /// A fold takes the penalty of the run: what is held out would choose one that suits it, and be told from better than it is.
    pub(crate) fn new(
        setup: &Setup,
        initial: &[Param],
        fresh: bool,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let Setup { plan, model, dataset, penalty, .. } = setup;
        let classifier = ClassifierSpec::Head(plan.head);
        let backbone = model.backbone().clone();
        let alone = Model::new(backbone, &PartShapes::NONE, classifier, dataset.classes.len(), plan.threads)?;
        if !fresh {
            return Ok(Some(Self { model: alone, start: None }));
        }
        if plan.head == HeadKind::Text {
            let values = initial[model.part_tensors()..].to_vec();
            return Ok(Some(Self { model: alone, start: Some((values, ProbeChoice::default())) }));
        }
        let Some(train) = features::frozen(setup, &alone, Split::Train, observer)? else { return Ok(None) };
        let Some(val) = features::frozen(setup, &alone, Split::Val, observer)? else { return Ok(None) };
        let (train, val) = (train.labelled(), val.labelled());
        let found = logistic::search(train, val, dataset.classes.len(), *penalty, &|| observer.stop())?;
        let Some((probe, l2, trials)) = found else { return Ok(None) };
        let chosen = trials.iter().find(|trial| trial.l2.total_cmp(&l2).is_eq());
        let chosen = chosen.map(|Trial { val, calibrated_loss, .. }| {
            let loss = calibrated_loss.map(|loss| format!(", a loss of {loss:.3} after temperature scaling"));
            format!(": {:.1} % right where it has not learned{}", 100. * val.acc1, loss.unwrap_or_default())
        });
        let begins = if plan.head_init == Some(HeadInit::Probe) { "; the head begins as it" } else { "" };
        let note = format!("probe on frozen features: L2 penalty {l2:.3e}{}{begins}", chosen.unwrap_or_default());
        observer.event(&Event::Note(&note));
        Ok(Some(Self { model: alone, start: Some((probe.params()?, ProbeChoice { l2: Some(l2), trials })) }))
    }

    /// Features of the images of `split`; `None` when the observer asked to stop.
    pub(crate) fn source(
        &self,
        setup: &Setup,
        split: Split,
        observer: &mut dyn Observer,
    ) -> Result<Option<Arc<PartSource>>> {
        let features: Option<Features> = features::frozen(setup, &self.model, split, observer)?;
        Ok(features.map(|features| Arc::new(PartSource::Features(features))))
    }

    /// Metadata of its task file.
    pub(crate) fn task_meta(&self, setup: &Setup, metrics: TaskMetrics) -> Result<TaskMeta> {
        let Plan { head, .. } = setup.plan;
        let backbone = self.model.backbone();
        Ok(TaskMeta::new(
            Method::LINEAR,
            PartShapes::NONE,
            head,
            BackboneId::of(backbone)?,
            setup.dataset.classes.clone(),
            backbone.vit.image_size(),
            self.model.preprocess()?,
            metrics,
        ))
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "equal means equal here")]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        config::{LearningRate, RunConfig},
        train::{
            Outcome, Results,
            observer::Silent,
            resume, run, run_folder,
            tests::{Cut, bytes, config, content, finish, finished, workplace},
        },
    };
    use vpt_base::Error;
    use vpt_model::{
        methods::{PromptInit, Solver, settings::Settings},
        metrics::Scores,
        model::{TaskModel, TaskOptions, task_file::TaskFile},
    };

    /// Nothing that is learned in steps moves.
    fn still(config: RunConfig) -> RunConfig {
        RunConfig { lr: Some(LearningRate::Value(1e-30)), head_lr: Some(1e-30), ..config }
    }

    /// The linear probe by its own method.
    fn probe(dir: &tempfile::TempDir) -> (std::path::PathBuf, Results) {
        let config = RunConfig { epochs: None, batch_size: None, ..config(dir, Method::LINEAR) };
        finish(&config.with_options(|o| o.probe.solver = Some(Solver::Lbfgs)), dir)
    }

    #[test]
    fn a_head_begins_as_the_probe_and_is_held_against_it() {
        let dir = workplace();
        let (linear, expected) = probe(&dir);
        // Of a frame's image, which is shrunk, the probe sees what the others see.
        for method in [Method::VPT_DEEP, Method::BIAS, Method::VP_FRAME] {
            let (folder, results) = finish(&still(config(&dir, method)), &dir);
            let found = results.probe.as_ref().unwrap();
            assert_eq!((&found.val, &found.test), (&expected.val, &expected.test), "{method}");
            assert_eq!(found.l2, Some(expected.chosen["l2"]));
            assert_eq!(bytes(&folder, run_folder::L2_SEARCH), bytes(&linear, run_folder::L2_SEARCH));
            let last = TaskFile::open(&folder.join(run_folder::LAST)).unwrap();
            let head = TaskFile::open(&linear).unwrap().params;
            let n = last.params.len();
            assert_eq!(last.params[n - 2..], head, "{method}: what does not move stays the probe");
            let right = |scores: &Scores| scores.classify().unwrap().acc1;
            let moved = right(&found.learned.test) - right(&found.test);
            assert!((found.moved.difference - moved).abs() < 1e-12, "{found:?}");
            assert!(found.moved.low <= moved && moved <= found.moved.high, "{found:?}");
        }
    }

    #[test]
    fn where_it_is_better_on_validation_the_probe_is_the_result() {
        let dir = workplace();
        let (linear, expected) = probe(&dir);
        // A random head that does not move.
        let ruin = RunConfig { head_init: Some(HeadInit::Random), ..still(config(&dir, Method::VP_PAD)) };
        let (folder, results) = finish(&ruin, &dir);
        let found = results.probe.as_ref().unwrap();
        assert!(found.better && found.kept, "{found:?}");
        assert_eq!((&results.val, &results.test, results.best_epoch), (&expected.val, &expected.test, 0));
        let (kept, other) = (TaskFile::open(&folder).unwrap(), TaskFile::open(&linear).unwrap());
        assert_eq!((kept.params, kept.meta.method), (other.params, Method::LINEAR));
        assert_eq!(kept.meta.metrics.test, Some(results.test.clone()));
        let last = TaskFile::open(&folder.join(run_folder::LAST)).unwrap();
        assert_eq!(last.meta.method, Method::VP_PAD, "what was learned is there, too");
        assert!(!folder.join(run_folder::PROMPT).exists(), "a picture of what the task file does not hold");
        let model = TaskModel::open(&folder, &TaskOptions::default()).unwrap();
        assert_eq!(model.meta().parts, PartShapes::NONE);

        // Unless it is not to be: a head that begins as the probe is held against it all the same, one that does not is not.
        let learned = RunConfig { keep_better: Some(false), ..ruin };
        for head_init in [HeadInit::Probe, HeadInit::Random] {
            let (folder, results) = finish(&RunConfig { head_init: Some(head_init), ..learned.clone() }, &dir);
            assert_eq!(results.probe.is_some(), head_init == HeadInit::Probe);
            if let Some(found) = &results.probe {
                assert!(!found.kept, "{found:?}");
                assert_eq!((&results.test, results.best_epoch), (&found.learned.test, found.learned.best_epoch));
            }
            assert!(results.best_epoch > 0);
            assert_eq!(TaskFile::open(&folder).unwrap().meta.method, Method::VP_PAD);
        }
    }

    #[test]
    fn with_a_probe_a_run_stopped_anywhere_ends_with_the_same_bytes() {
        let dir = workplace();
        for config in [
            config(&dir, Method::VPT_DEEP),
            RunConfig { head_init: Some(HeadInit::Random), ..still(config(&dir, Method::VP_PAD)) },
            RunConfig { ema: Some(0.9), ..config(&dir, Method::VPT_SHALLOW) }
                .with_options(|o| o.tokens.prompt_init = Some(PromptInit::Patches)),
        ] {
            let (whole, results) = finish(&config, &dir);
            // Two passes for features, three epochs of four steps with a validation each, the looks at the end.
            for stop in [1, 2, 3, 4, 6, 7, 8, 13, 16, 17, 18, 19, 20] {
                let folder = match run(&config, &dir.path().join("runs"), &mut Cut::after(stop)).unwrap() {
                    Outcome::Interrupted { folder: Some(folder) } => folder,
                    Outcome::Interrupted { folder: None } => continue,
                    Outcome::Finished { .. } => break,
                };
                let (_, again) = finished(resume(&folder, &mut Silent));
                assert_eq!(content(&folder), content(&whole), "stopped after {stop} batches");
                assert_eq!((&again.probe, &again.test), (&results.probe, &results.test));
                assert_eq!(bytes(&folder, run_folder::L2_SEARCH), bytes(&whole, run_folder::L2_SEARCH));
            }
        }
    }

    #[test]
    fn configurations_of_earlier_versions_begin_at_random_and_nothing_is_kept_back() {
        let dir = workplace();
        let random = RunConfig {
            head_init: Some(HeadInit::Random),
            keep_better: Some(false),
            ..config(&dir, Method::VPT_SHALLOW)
        };
        let (folder, results) = finish(&random, &dir);
        assert_eq!(results.probe, None);
        let text = fs::read_to_string(folder.join(run_folder::CONFIG)).unwrap();
        let earlier: String = text
            .lines()
            .filter(|l| !l.starts_with("head_init") && !l.starts_with("keep_better"))
            .fold(String::new(), |text, line| text + line + "\n");
        assert!(earlier.len() < text.len());
        let path = dir.path().join("earlier.toml");
        fs::write(&path, earlier).unwrap();
        let read = RunConfig::load(&path).unwrap();
        assert_eq!((read.head_init, read.keep_better), (Some(HeadInit::Random), Some(false)));
        let (again, _) = finish(&read, &dir);
        assert_eq!(content(&again), content(&folder));
        // What somebody wrote by hand says less.
        fs::write(&path, "method = \"vpt-shallow\"\nhead = \"linear\"\n").unwrap();
        assert_eq!(RunConfig::load(&path).unwrap().head_init, None);
    }

    #[test]
    fn heads_of_another_form_and_methods_without_one_have_no_probe() {
        let dir = workplace();
        let refusal = |change: fn(&mut RunConfig), method| {
            let mut config = config(&dir, method);
            change(&mut config);
            run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err()
        };
        let cosine =
            refusal(|c| (c.head, c.head_init) = (Some(HeadKind::Cosine), Some(HeadInit::Probe)), Method::VPT_DEEP);
        assert_eq!(cosine.to_string(), "head_init: the probe is a linear head, not head cosine");
        let kept = refusal(|c| (c.head, c.keep_better) = (Some(HeadKind::Cosine), Some(true)), Method::VPT_DEEP);
        assert!(matches!(&kept, Error::Setting { field, .. } if field == "keep_better"), "{kept}");
        let texts = refusal(|c| c.head_init = Some(HeadInit::Text), Method::BIAS);
        assert_eq!(texts.to_string(), "head_init: text is for head text, not linear");
        for method in [Method::LINEAR, Method::COOP] {
            let none = refusal(|c| c.head_init = Some(HeadInit::Random), method);
            let expected = format!("head_init: method {method} has no head that it learns beside something else");
            assert_eq!(none.to_string(), expected);
        }
        let by_texts = refusal(|c| c.keep_better = Some(true), Method::LORA);
        assert_eq!(by_texts.to_string(), "keep_better: texts tell the classes, so there is no head beside");
        let cosine = RunConfig { head: Some(HeadKind::Cosine), ..config(&dir, Method::VPT_SHALLOW) };
        assert_eq!(finish(&cosine, &dir).1.probe, None);
        assert!(RunConfig::all().iter().any(|setting| setting.name == "head_init"));
    }

    #[test]
    fn a_text_head_is_held_against_the_texts_alone() {
        let dir = workplace();
        let text = RunConfig { head: Some(HeadKind::Text), ..config(&dir, Method::VPT_SHALLOW) };
        let (_, results) = finish(&text, &dir);
        let (_, zero_shot) = finish(&config(&dir, Method::ZERO_SHOT), &dir);
        let found = results.probe.unwrap();
        let right = |scores: &Scores| scores.classify().unwrap().acc1;
        assert_eq!((found.l2, right(&found.test)), (None, right(&zero_shot.test)));
    }
}
