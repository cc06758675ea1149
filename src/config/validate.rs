//! What of a configuration cannot be, or is said to a method or task that has no use for it.

use super::{LearningRate, RunConfig, Task, defaults};
use crate::methods::{Method, Solver};
use crate::{Error, Result, data::AugmentPolicy, head::HeadKind, loss::class_weights::ClassWeights};

impl RunConfig {
    /// Checks what can be checked without backbone and data, so that a wrong flag is told before anything is read.
    pub fn validate(&self) -> Result<()> {
        at_least_one("--prompt-tokens", self.prompt_tokens)?;
        if self.prompt_tokens.is_some_and(|n| n > defaults::MAX_PROMPT_TOKENS) {
            return Err(Error::flag("--prompt-tokens", format!("more than {}", defaults::MAX_PROMPT_TOKENS)));
        }
        at_least_one("--shots", self.shots)?;
        at_least_one("--epochs", self.epochs)?;
        at_least_one("--batch-size", self.batch_size)?;
        at_least_one("--micro-batch", self.micro_batch)?;
        at_least_one("--patience", self.patience)?;
        at_least_one("--image-size", self.image_size)?;
        at_least_one("--threads", self.threads)?;
        if self.threads.is_some_and(|n| n > defaults::MAX_THREADS) {
            return Err(Error::flag("--threads", format!("more than {}", defaults::MAX_THREADS)));
        }
        if let Some(LearningRate::Value(lr)) = self.lr {
            positive("--lr", lr)?;
        }
        for (flag, value) in
            [("--head-lr", self.head_lr), ("--l2", self.l2), ("--alpha", self.alpha), ("--beta", self.beta)]
        {
            if let Some(value) = value {
                positive(flag, value)?;
            }
        }
        if self.views.is_some_and(|views| views > defaults::MAX_VIEWS) {
            return Err(Error::flag("--views", format!("more than {}", defaults::MAX_VIEWS)));
        }
        if self.alpha.is_some() != self.beta.is_some() {
            let flag = if self.alpha.is_some() { "--alpha" } else { "--beta" };
            return Err(Error::flag(flag, "--alpha and --beta are given together or not at all"));
        }
        if let Some(norm) = self.clip_norm {
            positive("--clip-norm", norm)?;
        }
        if let Some(decay) = self.weight_decay
            && !(decay.is_finite() && decay >= 0.)
        {
            return Err(Error::flag("--weight-decay", format!("{decay} is not a number of 0 or more")));
        }
        if let Some(warmup) = self.warmup
            && !(0. ..=1.).contains(&warmup)
        {
            return Err(Error::flag("--warmup", format!("{warmup} is not a share between 0 and 1")));
        }
        share("--label-smoothing", self.label_smoothing)?;
        share("--prompt-dropout", self.prompt_dropout.unwrap_or(0.))?;
        share("--lora-dropout", self.lora_dropout.unwrap_or(0.))?;
        self.lora(true).check()?;
        if self.method == Method::Full && self.max_memory.is_some() {
            let message =
                "not with method full, whose weights, gradients and moments take what they take; see --micro-batch";
            return Err(Error::flag("--max-memory", message));
        }
        if let Some([low, high]) = self.random_resized_crop
            && !(0. < low && low <= high && high <= 1.)
        {
            let message = format!("{low} to {high} are not shares of the area with 0 < least <= most <= 1");
            return Err(Error::flag("--random-resized-crop", message));
        }
        // TOML has no larger integers, and a run that cannot be saved cannot be repeated.
        for (flag, seed) in [("--seed", self.seed), ("--split-seed", self.split_seed.unwrap_or(0))] {
            if i64::try_from(seed).is_err() {
                return Err(Error::flag(flag, format!("{seed} is larger than {}", i64::MAX)));
            }
        }
        if self.shots.is_some() && self.draw.is_some() {
            return Err(Error::flag("--draw", "its file says which images are learned from; leave out --shots"));
        }
        self.check_texts()?;
        self.refuse_other_methods_fields()
    }

    /// A field that the method does not use is a mistake, not something to pass over.
    fn refuse_other_methods_fields(&self) -> Result<()> {
        let method = self.method;
        let fields = [
            (
                "--prompt-tokens",
                self.prompt_tokens.is_some(),
                method.has_tokens() || method.has_texts(),
                "prompt tokens",
            ),
            (
                "--prompt-layers",
                self.prompt_layers.is_some(),
                method == Method::VptDeep || method.has_deep_texts(),
                "choice of blocks",
            ),
            ("--context-init", self.context_init.is_some(), method.has_texts(), "words of texts to learn"),
            ("--prompt-dropout", self.prompt_dropout.is_some(), method.has_tokens(), "prompt tokens"),
            ("--pad", self.pad.is_some(), method == Method::VpPad, "border"),
            ("--patch-size", self.patch_size.is_some(), method == Method::VpPatch, "patch"),
            ("--patch-place", self.patch_place.is_some(), method == Method::VpPatch, "patch"),
            ("--inner-size", self.inner_size.is_some(), method == Method::VpFrame, "shrunk image"),
            (
                "--label-map",
                self.label_map.is_some(),
                method.has_pixels(),
                "prompt pixels in front of the backbone's own classifier: it learns a head; take vp-pad, vp-patch, vp-full or vp-frame",
            ),
            (
                "--head-lr",
                self.head_lr.is_some(),
                !method.on_features() && !method.has_texts(),
                "prompt beside its head: use --lr",
            ),
            ("--lora-rank", self.lora_rank.is_some(), method == Method::Lora, "low-rank change"),
            ("--lora-alpha", self.lora_alpha.is_some(), method == Method::Lora, "low-rank change"),
            ("--lora-dropout", self.lora_dropout.is_some(), method == Method::Lora, "low-rank change"),
            ("--lora-towers", self.lora_towers.is_some(), method == Method::Lora, "low-rank change"),
            ("--solver", self.solver.is_some(), method == Method::Linear, "choice of solvers"),
            ("--l2", self.l2.is_some(), self.solver == Some(Solver::Lbfgs), "such penalty without --solver lbfgs"),
            ("--views", self.views.is_some(), method.has_views(), "augmented views"),
            ("--alpha", self.alpha.is_some(), method.has_cache(), "cache"),
        ];
        for (flag, given, used, what) in fields {
            if given && !used {
                return Err(Error::flag(flag, format!("method {method} has no {what}")));
            }
        }
        if let Some(map) = self.label_map {
            for (flag, given) in [("--head", self.head.is_some()), ("--head-lr", self.head_lr.is_some())] {
                if given {
                    return Err(Error::flag(
                        flag,
                        format!("not with --label-map {map}, which takes the place of a head"),
                    ));
                }
            }
        }
        if let (Some(own), Some(head)) = (method.own_head(), self.head)
            && own != head
        {
            return Err(Error::flag(
                "--head",
                format!("{head} is not for method {method}, which has a head of its own"),
            ));
        }
        if let Some(head) = self.head.filter(|&head| self.solver == Some(Solver::Lbfgs) && head != HeadKind::Linear) {
            return Err(Error::flag("--head", format!("{head} is not for --solver lbfgs, which fits a linear head")));
        }
        if self.is_solved() { self.refuse_fields_of_steps() } else { Ok(()) }
    }

    /// Nothing that says how to take steps makes sense where none are taken.
    fn refuse_fields_of_steps(&self) -> Result<()> {
        let fields = [
            ("--epochs", self.epochs.is_some()),
            ("--batch-size", self.batch_size.is_some()),
            ("--micro-batch", self.micro_batch.is_some()),
            ("--lr", self.lr.is_some()),
            ("--optimizer", self.optimizer.is_some()),
            ("--weight-decay", self.weight_decay.is_some()),
            ("--warmup", self.warmup.is_some()),
            ("--clip-norm", self.clip_norm.is_some()),
            ("--label-smoothing", self.label_smoothing > 0.),
            ("--class-weights", self.class_weights != ClassWeights::None),
            ("--patience", self.patience.is_some()),
            ("--select", self.select.is_some()),
        ];
        match fields.iter().find(|(_, given)| *given) {
            Some((flag, _)) if self.method == Method::Linear => Err(Error::flag(*flag, "not with --solver lbfgs")),
            Some((flag, _)) => Err(Error::flag(*flag, format!("method {} learns nothing in steps", self.method))),
            None => Ok(()),
        }
    }

    /// A field that is for another task is a mistake too; `task` is never [`Task::Auto`].
    pub(crate) fn refuse_other_tasks_fields(&self, task: Task) -> Result<()> {
        let detects = task == Task::Detect;
        if task == Task::Multilabel {
            if self.head == Some(HeadKind::Text) {
                let message = "text is for one class an image: CLIP compares classes, it does not say which are there";
                return Err(Error::flag("--head", message));
            }
            let fields = [
                ("--label-map", self.label_map.is_some()),
                ("--shots", self.shots.is_some()),
                ("--draw", self.draw.is_some()),
                ("--label-smoothing", self.label_smoothing > 0.),
            ];
            for (flag, given) in fields {
                if given {
                    return Err(Error::flag(flag, "not for multi-label classification"));
                }
            }
        }
        let fields = [
            ("--head-epochs", self.head_epochs.is_some(), true),
            ("--ema", self.ema.is_some(), true),
            ("--fit", self.fit.is_some(), true),
            ("--scale-jitter", self.scale_jitter.is_some(), true),
            ("--box-crop", self.box_crop, true),
            ("--mosaic", self.mosaic.is_some(), true),
            ("--open-vocabulary", self.open_vocabulary, true),
            ("--shots", self.shots.is_some(), false),
            ("--draw", self.draw.is_some(), false),
            ("--random-resized-crop", self.random_resized_crop.is_some(), false),
            ("--augment", self.augment != AugmentPolicy::None, false),
            ("--label-smoothing", self.label_smoothing > 0., false),
            ("--class-weights", self.class_weights != ClassWeights::None, false),
            ("--patience", self.patience.is_some(), false),
            ("--lr", detects && self.lr == Some(LearningRate::Auto), false),
        ];
        for (flag, given, for_detection) in fields {
            if given && for_detection != detects {
                let message = if detects { "not for detection" } else { "only for detection, from data with boxes" };
                return Err(Error::flag(flag, message));
            }
        }
        if !detects && self.method.on_features() {
            let random = [
                ("--flip", self.flip == Some(true)),
                ("--random-resized-crop", self.random_resized_crop.is_some()),
                ("--augment", self.augment != AugmentPolicy::None),
            ];
            if let Some((flag, _)) = random.into_iter().find(|(_, given)| *given) {
                let how = if self.method.has_views() { "from --views augmented views" } else { "without augmentation" };
                let message = format!("method {} computes the features of an image once, {how}", self.method);
                return Err(Error::flag(flag, message));
            }
        }
        if task != Task::Classify && (self.method.own_head().is_some() || self.solver.is_some()) {
            let (flag, what) = match self.solver {
                Some(solver) => ("--solver", solver.to_string()),
                None => ("--method", self.method.to_string()),
            };
            let is = if detects { "detection" } else { "multi-label classification" };
            return Err(Error::flag(flag, format!("{what} is not for {is}")));
        }
        if detects && (self.method.has_pixels() || self.method.tunes_weights()) {
            let message = format!("{} is not for detection; take linear, vpt-shallow or vpt-deep", self.method);
            return Err(Error::flag("--method", message));
        }
        if let Some(head) = self.head.filter(|&head| detects && head != HeadKind::Linear) {
            let mend = if head == HeadKind::Text { "; see --open-vocabulary" } else { "" };
            let message = format!("{head} is not for detection, which has a head of its own{mend}");
            return Err(Error::flag("--head", message));
        }
        Ok(())
    }
}

fn at_least_one(flag: &str, value: Option<usize>) -> Result<()> {
    match value {
        Some(0) => Err(Error::flag(flag, "must be at least 1")),
        _ => Ok(()),
    }
}

fn positive(flag: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0. {
        return Ok(());
    }
    Err(Error::flag(flag, format!("{value} is not a number above 0")))
}

fn share(flag: &str, value: f32) -> Result<()> {
    if (0. ..1.).contains(&value) {
        return Ok(());
    }
    Err(Error::flag(flag, format!("{value} is not a share from 0 to below 1")))
}
