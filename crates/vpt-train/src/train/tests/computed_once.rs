//! Features and tokens that are kept change no byte, and save passes.

use super::*;
use crate::feature_cache::FeatureCache;
use vpt_model::{methods::Solver, prompt::tokens::PromptLayers};

/// Every method on frozen features, and the ways to fit a linear probe.
fn on_features(dir: &TempDir) -> Vec<RunConfig> {
    let methods = Method::ALL.iter().filter(|method| method.on_features());
    let mut configs: Vec<RunConfig> = methods.map(|&method| config(dir, method)).collect();
    for config in configs.iter_mut().filter(|config| config.method.views().is_some()) {
        config.options.views.views = Some(2);
    }
    let fitted = RunConfig { epochs: None, batch_size: None, ..config(dir, Method::LINEAR) };
    configs.push(fitted.with_options(|o| o.probe.solver = Some(Solver::Lbfgs)));
    configs
}

#[test]
fn a_cache_of_features_changes_no_byte_and_saves_every_pass() {
    let dir = workplace();
    let cache = FeatureCache::new(dir.path().join("cache"), crate::feature_cache::LIMIT);
    for config in on_features(&dir) {
        let method = config.method;
        let (without, _) = finish(&config, &dir);
        let cached = RunConfig { cache_dir: Some(cache.root().to_owned()), ..config.clone() };
        let (first, results) = finish(&cached, &dir);
        let held = cache.contents().unwrap();
        // Fewer images and another number of threads find the same features.
        finish(&RunConfig { shots: Some(3), threads: Some(1), ..cached.clone() }, &dir);
        let more = cache.contents().unwrap();
        // Tip-Adapter-F's views are numbered by epoch, and so the same.
        assert_eq!(held, more, "{method}: nothing was computed again");
        let (second, again) = finish(&cached, &dir);
        for folder in [&first, &second] {
            assert_eq!(content(folder), content(&without), "{method}");
        }
        assert_eq!(results.test, again.test);
        assert_eq!(cache.contents().unwrap(), held);
    }
    // Half of it damaged, the other half lost: the same result, and all of it written again.
    let config = config(&dir, Method::LINEAR);
    let cached = RunConfig { cache_dir: Some(cache.root().to_owned()), ..config.clone() };
    for space in fs::read_dir(cache.root()).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for (i, file) in fs::read_dir(space.path()).unwrap().flatten().enumerate() {
            let mut bytes = fs::read(file.path()).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..].fill(0xff);
            if i % 2 == 0 { fs::write(file.path(), bytes).unwrap() } else { fs::remove_file(file.path()).unwrap() }
        }
    }
    let without = content(&finish(&config, &dir).0);
    for _ in 0..2 {
        assert_eq!(content(&finish(&cached, &dir).0), without);
    }
}

#[test]
fn a_cached_image_that_became_unreadable_is_still_told() {
    let dir = workplace();
    let cache_dir = Some(dir.path().join("cache"));
    let config = RunConfig { cache_dir, ..config(&dir, Method::NCM) };
    finish(&config, &dir);
    fs::write(dir.path().join("data/val/red/1.png"), "no image").unwrap();
    let error = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("skip_bad_images") && error.contains("1.png"), "{error}");
    let (_, results) = finish(&RunConfig { skip_bad_images: true, ..config }, &dir);
    assert_eq!(results.train_images, 20);
}

/// Counts how often all images of a part were gone through before the first step.
#[derive(Default)]
struct Passes(usize);

impl Observer for Passes {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Reading { done, total, .. } = event {
            self.0 += usize::from(done == total);
        }
    }

    fn stop(&self) -> bool {
        false
    }
}

#[test]
fn what_comes_before_the_first_prompt_is_computed_once_and_changes_no_byte() {
    let dir = workplace();
    let deep = config(&dir, Method::VPT_DEEP);
    let base = deep.clone().with_options(|o| o.tokens.prompt_layers = Some(PromptLayers::Last(1)));
    // With a limit on memory, nothing is kept.
    let limited = RunConfig { max_memory: Some(1 << 40), ..base.clone() };
    let flipped = RunConfig { flip: Some(true), ..base.clone() };
    let from_the_first = deep;
    // All three parts are read; then the tokens of training and validation are made, or of validation alone.
    let [kept, again, ..] = [(&base, 5), (&limited, 3), (&flipped, 4), (&from_the_first, 3)].map(|(config, passes)| {
        let mut counted = Passes::default();
        let (folder, _) = finished(run(config, &dir.path().join("runs"), &mut counted));
        assert_eq!(counted.0, passes, "{config:?}");
        content(&folder)
    });
    assert_eq!(kept, again);
    let outcome = run(&base, &dir.path().join("runs"), &mut Cut::after(7)).unwrap();
    let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{outcome:?}") };
    assert_eq!(content(&finished(resume(&folder, &mut Silent)).0), kept, "resumed");
}
