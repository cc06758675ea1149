//! What of a configuration cannot be, or is said to a method or task that has no use for it.

use super::{DENSE, RunConfig, Task};
use vpt_backbone::Engine;
use vpt_base::{Error, Message, Result};
use vpt_model::{
    head::HeadKind,
    methods::{HeadInit, Method, help, settings::Settings},
};

impl RunConfig {
    /// Checks what can be checked without backbone and data, so that a wrong field is told before anything is read.
    pub fn validate(&self) -> Result<()> {
        self.check_values()?;
        if self.options.cache.alpha.is_some() != self.options.cache.beta.is_some() {
            let given = if self.options.cache.alpha.is_some() { "alpha" } else { "beta" };
            return Err(Error::setting(given, Message::naming("{alpha} and {beta} are given together or not at all")));
        }
        for spec in self.method.specs() {
            (spec.check)(&self.options, self.head)?;
        }
        if self.max_memory.is_some() && self.method.specs().any(|spec| !spec.limits_memory) {
            let message = format!(
                "not with method {}, whose weights, gradients and moments take what they take; see {{micro_batch}}",
                self.method
            );
            return Err(Error::setting("max_memory", Message::naming(&message)));
        }
        self.check_engine()?;
        if self.shots.is_some() && self.draw.is_some() {
            let message = Message::naming("its file says which images are learned from; leave out {shots}");
            return Err(Error::setting("draw", message));
        }
        self.check_texts()?;
        self.refuse_other_methods_fields()
    }

    /// What the engine does not do is told before anything is read.
    fn check_engine(&self) -> Result<()> {
        let compute = self.compute();
        compute.check()?;
        if compute.engine == Engine::Native {
            return Ok(());
        }
        let refuse = |name, message: String| Err(Error::setting(name, Message::naming(&message)));
        if self.method.tunes_weights() {
            let message =
                format!("{} tunes no weights of the backbone, as method {} does", compute.engine, self.method);
            return refuse("engine", format!("{message}; native does"));
        }
        if self.max_memory.is_some() {
            return refuse(
                "max_memory",
                format!("not with {{engine}} {}, which keeps to no limit; see {{micro_batch}}", compute.engine),
            );
        }
        Ok(())
    }

    /// A field that the method does not use is a mistake, not something to pass over.
    fn refuse_other_methods_fields(&self) -> Result<()> {
        let method = self.method;
        let lacking = |name: &'static str, what: &str| {
            let message = Message::from(format!("method {method} has no ")).text(Message::naming(what));
            Err(Error::setting(name, message))
        };
        for setting in Self::all() {
            if !setting.lacking.is_empty() && self.is_given(setting.name) && !method.has_option(setting.name) {
                return lacking(setting.name, setting.lacking);
            }
        }
        if let Some(map) = self.label_map {
            if method.specs().count() > 1 {
                let message = format!("not with method {method}, which learns more than prompt pixels");
                return Err(Error::setting("label_map", message));
            }
            for name in ["head", "head_lr", "head_init", "keep_better"] {
                if self.is_given(name) {
                    let message = Message::from("not with ").field("label_map");
                    return Err(Error::setting(name, message.text(format!(" {map}, which takes the place of a head"))));
                }
            }
        }
        if let (Some(own), Some(head)) = (method.own_head(), self.head)
            && own != head
        {
            let message = format!("{head} is not for method {method}, which has a head of its own");
            return Err(Error::setting("head", message));
        }
        if self.ema.is_some() {
            let message = match self.label_map {
                _ if method.tied_to().is_some() => {
                    format!("method {method} has its own average, over epochs, of what it learns")
                }
                Some(map) => format!("not with {{label_map}} {map}, whose counts no average is made of"),
                None => String::new(),
            };
            if !message.is_empty() {
                return Err(Error::setting("ema", Message::naming(&message)));
            }
        }
        self.check_head_init()?;
        if self.is_solved() { self.refuse_fields_of_steps() } else { Ok(()) }
    }

    /// A head begins as what is of its own form, and stands beside a probe of it.
    fn check_head_init(&self) -> Result<()> {
        let head = self.head_kind();
        let refuse = |name, message: String| Err(Error::setting(name, Message::naming(&message)));
        match self.head_init {
            Some(HeadInit::Probe) if head != HeadKind::Linear => {
                return refuse("head_init", format!("the probe is a linear head, not {{head}} {head}"));
            }
            Some(HeadInit::Text) if head != HeadKind::Text => {
                return refuse("head_init", format!("text is for {{head}} text, not {head}"));
            }
            Some(HeadInit::Random) if head == HeadKind::Text => {
                return refuse("head_init", "{head} text begins as the texts; take {head} cosine".to_owned());
            }
            _ => {}
        }
        if self.keep_better == Some(true) && head == HeadKind::Cosine {
            return refuse("keep_better", "the probe is a linear head, not {head} cosine".to_owned());
        }
        Ok(())
    }

    /// Nothing that says how to take steps makes sense where none are taken.
    fn refuse_fields_of_steps(&self) -> Result<()> {
        let given = Self::all().into_iter().find(|setting| setting.steps && self.is_given(setting.name));
        let Some(setting) = given else { return Ok(()) };
        let message = match self.options.probe.solver {
            Some(solver) => Message::from("not with ").field("solver").text(format!(" {solver}")),
            None => format!("method {} learns nothing in steps", self.method).into(),
        };
        Err(Error::setting(setting.name, message))
    }

    /// A field that is for another task is a mistake too; `task` is never [`Task::Auto`].
    pub(crate) fn refuse_other_tasks_fields(&self, task: Task) -> Result<()> {
        let of_task = match task {
            Task::Detect => "detection",
            Task::Segment => "segmentation",
            Task::Multilabel => "multi-label classification",
            _ => "classification",
        };
        for setting in Self::all() {
            if self.is_given(setting.name) && !setting.tasks.contains(&task) {
                let message = match setting.tasks {
                    [Task::Detect] => "only for detection, from data with boxes",
                    [Task::Segment] => "only for segmentation, from data with masks",
                    tasks if tasks == DENSE => "only for detection and segmentation, from data with boxes or masks",
                    _ => &format!("not for {of_task}"),
                };
                return Err(Error::setting(setting.name, message));
            }
        }
        let is_dense = DENSE.contains(&task);
        if !is_dense && self.method.on_features() {
            let random = ["random_resized_crop", "augment"].into_iter().find(|name| self.is_given(name));
            if let Some(name) = Some("flip").filter(|_| self.flip == Some(true)).or(random) {
                let message = Message::from(format!("method {} computes the features of an image once, ", self.method));
                let how =
                    if self.method.views().is_some() { "from {views} augmented views" } else { "without augmentation" };
                return Err(Error::setting(name, message.text(Message::naming(how))));
            }
        }
        if let Some(solver) = self.options.probe.solver.filter(|_| task != Task::Classify) {
            return Err(Error::setting("solver", format!("{solver} is not for {of_task}")));
        }
        if self.method.specs().any(|spec| !spec.tasks.contains(&task)) {
            let mut message = format!("{} is not for {of_task}", self.method);
            if self.method.own_head().is_none() {
                let able = Method::ALL.iter().filter(|method| method.specs().all(|spec| spec.tasks.contains(&task)));
                let able: Vec<_> = able.map(|method| method.leading().name).collect();
                message = format!("{message}; take {}", help::listed(&able, "or"));
            }
            return Err(Error::setting("method", message));
        }
        if let Some(head) = self.head.filter(|&head| is_dense && head != HeadKind::Linear) {
            let mut message = Message::from(format!("{head} is not for {of_task}, which has a head of its own"));
            if head == HeadKind::Text && task == Task::Detect {
                message = message.text("; see ").field("open_vocabulary");
            }
            return Err(Error::setting("head", message));
        }
        Ok(())
    }
}
