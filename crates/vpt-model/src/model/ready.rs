//! Tasks made ready to answer beside others: one pass of the backbone for images of many tasks, each with its own prompts and head.
//!
//! What does not depend on an image is made once: heads when a task is made ready, keys and values of its prompts when it is
//! first asked, until they are let go of. An answer is to the last bit that of the task alone, whatever it was mixed with: features do
//! not depend on what else is in a pass, and heads are given one image at a time.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    AnyTask, SegmentTask, TaskModel,
    detect_task::{Found, ReadyDetector},
    predict::{AnswerOptions, ImageAnswer},
    segment_task::tells_pixels,
    task_file::TaskMeta,
    text::BoundClassifier,
};
use crate::{head::segment::BoundSegmentHead, model::segment::TokenInput, prompt::pixels::Places};
use vpt_backbone::{
    Backbone,
    vit::{MixedRow, PromptSet, Readout},
};
use vpt_base::{Error, Result, parallel, params::Param};
use vpt_data::{
    boxes::{BoxInput, View},
    masks::{ClassMask, MaskInput},
};
use vpt_image::{Preprocess, Rgb8};

/// A task, and what of it is made once for many images.
#[derive(Debug)]
pub struct ReadyTask {
    task: AnyTask,
    head: ReadyHead,
    /// Whether prompts, of whatever kind, go into the image tower.
    is_prompted: bool,
    prompts: Mutex<Option<Arc<PromptSet>>>,
}

#[derive(Debug)]
enum ReadyHead {
    Classes(BoundClassifier),
    Boxes(Box<ReadyDetector>),
    Pixels(Box<BoundSegmentHead>),
}

/// How an image becomes what a task is asked of: of two tasks for which it is equal, one image need be prepared only once.
#[derive(Debug, Clone, PartialEq)]
pub enum InputKind {
    /// Resized, cropped and normalized.
    Image(Preprocess),
    /// The whole image in a square, with where it lies in it.
    Boxed(BoxInput),
    /// In windows.
    Windowed(MaskInput),
}

/// An image as tasks of one [`InputKind`] are given it.
#[derive(Debug, Clone)]
pub struct TaskInput {
    /// `[3, S, S]`, or `[W, 3, S, S]` of its windows.
    pixels: Vec<f32>,
    /// Where the image lies, and which tokens are of it.
    boxed: Option<(View, Option<Vec<bool>>)>,
    /// Width and height of an image that is seen in windows.
    windowed: Option<[usize; 2]>,
}

/// One image that one task, or the backbone itself, is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who is asked; the backbone itself if `None`, for embeddings.
    pub task: Option<&'a ReadyTask>,
    /// The image. Questions about one image share what they can if this is the same value.
    pub input: &'a TaskInput,
    /// Whether the image's embedding is asked for.
    pub embeds: bool,
}

/// The answer to a [`Question`], before it is put into words.
#[derive(Debug, Clone, PartialEq)]
pub enum RawAnswer {
    /// Logits of the classes.
    Logits(Vec<f32>),
    /// Boxes, best first.
    Boxes(Vec<Found>),
    /// The class of each pixel.
    Mask(ClassMask),
    /// The image's embedding, not normalized.
    Embedding(Vec<f32>),
}

impl InputKind {
    /// `image`, prepared.
    ///
    /// # Errors
    /// It cannot be: it is too long and thin.
    pub fn prepare(&self, image: &Rgb8) -> Result<TaskInput> {
        match self {
            Self::Image(preprocess) => Ok(TaskInput::of_pixels(preprocess.apply(image)?)),
            Self::Boxed(input) => {
                let viewed = input.view(image, &[]);
                let valid = viewed.valid_tokens(input.grid);
                let pixels = input.normalised(&viewed);
                Ok(TaskInput { boxed: Some((viewed.view, valid)), ..TaskInput::of_pixels(pixels) })
            }
            Self::Windowed(input) => {
                let pixels = input.views(image)?;
                Ok(TaskInput { windowed: Some([image.width, image.height]), ..TaskInput::of_pixels(pixels) })
            }
        }
    }
}

impl TaskInput {
    /// An image `[3, S, S]` that is resized and normalized already.
    pub fn of_pixels(pixels: Vec<f32>) -> Self {
        Self { pixels, boxed: None, windowed: None }
    }

    /// Where the image lies, and which tokens are of it, for a detector.
    fn lies(&self) -> Result<(&View, Option<&[bool]>)> {
        let (view, valid) = self.boxed.as_ref().ok_or_else(|| Error::invalid("image", "prepared for another task"))?;
        Ok((view, valid.as_deref()))
    }

    /// Values of the image.
    pub fn len(&self) -> usize {
        self.pixels.len()
    }

    /// Whether there is no pixel.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }
}

impl ReadyTask {
    /// Makes a task ready.
    ///
    /// # Errors
    /// Its head cannot be made.
    pub fn new(task: AnyTask) -> Result<Self> {
        let (head, is_prompted) = match &task {
            AnyTask::Classify(task) | AnyTask::Multilabel(task) => {
                let head = ReadyHead::Classes(task.model().bind_classifier(task.params())?);
                (head, !tunes_weights(task) && task.model().puts_prompts_in())
            }
            AnyTask::Detect(task) if task.tiles() > 1 => return Err(in_tiles()),
            AnyTask::Detect(task) => (ReadyHead::Boxes(Box::new(task.ready()?)), task.is_prompted()),
            AnyTask::Segment(task) if task.input().tiles > 1 => return Err(in_tiles()),
            // Its passes are its alone, and make their prompts themselves.
            AnyTask::Segment(task) => (ReadyHead::Pixels(Box::new(task.segmenter().bind(task.params())?)), false),
        };
        Ok(Self { task, head, is_prompted, prompts: Mutex::default() })
    }

    /// The task.
    pub fn task(&self) -> &AnyTask {
        &self.task
    }

    /// What its file says.
    pub fn meta(&self) -> &TaskMeta {
        self.task.meta()
    }

    /// Whether a pass is its alone: it has weights of its own, or looks at images in windows.
    fn is_alone(&self) -> bool {
        self.is_tuned() || matches!(self.head, ReadyHead::Pixels(_))
    }

    /// Whether it has weights of its own.
    pub fn is_tuned(&self) -> bool {
        match &self.task {
            AnyTask::Classify(task) | AnyTask::Multilabel(task) => tunes_weights(task),
            AnyTask::Detect(task) => task.is_tuned(),
            AnyTask::Segment(task) => task.segmenter().reader().shapes().weights().is_some(),
        }
    }

    /// Bytes of what was learned, twice for the head, of which there is a copy.
    pub fn bytes(&self) -> usize {
        let of = |params: &[Param]| params.iter().map(|param| param.values.len()).sum::<usize>() * size_of::<f32>();
        match &self.task {
            AnyTask::Classify(task) | AnyTask::Multilabel(task) => {
                let own = task.params();
                of(own) + of(&own[task.model().part_tensors().min(own.len())..])
            }
            AnyTask::Detect(task) => 2 * of(task.params()),
            AnyTask::Segment(task) => 2 * of(task.params()),
        }
    }

    /// Bytes of the keys and values of its prompts, where they are made.
    pub fn prompt_bytes(&self) -> usize {
        self.lock().as_ref().map_or(0, |prompts| prompts.bytes())
    }

    /// Lets go of the keys and values of its prompts, which are made again when they are needed.
    pub fn forget_prompts(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<PromptSet>>> {
        self.prompts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys and values of its prompts, if it has any.
    ///
    /// # Errors
    /// The learned values are not of the task's prompts.
    pub fn prompts(&self, threads: usize) -> Result<Option<Arc<PromptSet>>> {
        if !self.is_prompted {
            return Ok(None);
        }
        let mut kept = self.lock();
        if kept.is_none() {
            *kept = match &self.task {
                AnyTask::Classify(task) | AnyTask::Multilabel(task) => {
                    task.model().prompt_set(task.params(), threads)?.map(Arc::new)
                }
                AnyTask::Detect(task) => task.prompt_set(threads)?.map(Arc::new),
                AnyTask::Segment(task) => task.segmenter().reader().prompt_set(task.params(), threads)?.map(Arc::new),
            };
        }
        Ok(kept.clone())
    }

    /// How images are prepared for it.
    pub fn input(&self) -> InputKind {
        match &self.task {
            AnyTask::Classify(task) | AnyTask::Multilabel(task) => InputKind::Image(task.preprocess().clone()),
            AnyTask::Detect(task) => InputKind::Boxed(task.input().clone()),
            AnyTask::Segment(task) => InputKind::Windowed(task.input().clone()),
        }
    }

    /// An answer of this task in words.
    pub fn told(&self, answer: &RawAnswer, options: &AnswerOptions) -> ImageAnswer {
        match (&self.task, answer) {
            (AnyTask::Classify(task), RawAnswer::Logits(logits)) => {
                ImageAnswer::Class(task.guesses_of(logits, options.top))
            }
            (AnyTask::Multilabel(task), RawAnswer::Logits(logits)) => {
                ImageAnswer::Classes(task.guesses_of(logits, options.top))
            }
            (AnyTask::Detect(task), RawAnswer::Boxes(found)) => {
                ImageAnswer::Boxes(task.boxes_of(found.clone(), &task.thresholds(options.min_score)))
            }
            (AnyTask::Segment(task), RawAnswer::Mask(mask)) => ImageAnswer::Regions(task.shares(mask)),
            // Not this task's.
            _ => ImageAnswer::Boxes(Vec::new()),
        }
    }

    /// `input` with its prompt pixels on it, if it has any.
    fn pixels<'a>(&self, input: &'a TaskInput) -> Result<Cow<'a, [f32]>> {
        if let AnyTask::Classify(task) | AnyTask::Multilabel(task) = &self.task
            && let Some((prompt, values)) = task.model().pixels(task.params())?
        {
            return Ok(prompt.apply(values, &input.pixels, &Places::Same)?.into());
        }
        Ok((&input.pixels).into())
    }

    /// The answer of a task whose pass is its alone.
    fn answer_alone(&self, question: &Question) -> Result<RawAnswer> {
        let input = question.input;
        match (&self.task, &self.head) {
            (AnyTask::Classify(task) | AnyTask::Multilabel(task), _) if question.embeds => {
                Ok(RawAnswer::Embedding(task.model().embed(task.params(), &input.pixels)?))
            }
            (AnyTask::Classify(task) | AnyTask::Multilabel(task), _) => {
                Ok(RawAnswer::Logits(task.logits(&input.pixels)?))
            }
            (AnyTask::Detect(task), _) if question.embeds => Ok(RawAnswer::Embedding(task.embed(&input.pixels)?)),
            (AnyTask::Detect(task), ReadyHead::Boxes(detector)) => {
                let (view, valid) = input.lies()?;
                Ok(RawAnswer::Boxes(task.found_alone(detector, &input.pixels, view, valid)?))
            }
            (AnyTask::Segment(_), _) if question.embeds => Err(tells_pixels("embedding")),
            (AnyTask::Segment(task), ReadyHead::Pixels(head)) => told_apart(task, head, input),
            _ => Err(Error::invalid("task", "has no answer that is served")),
        }
    }
}

/// What a task is refused with that looks at images in tiles.
fn in_tiles() -> Error {
    Error::invalid("task", "looks at images in tiles, which are not served; `vpt predict` does")
}

/// The class of each pixel of an image.
fn told_apart(task: &SegmentTask, head: &BoundSegmentHead, input: &TaskInput) -> Result<RawAnswer> {
    let size = input.windowed.ok_or_else(|| Error::invalid("image", "prepared for another task"))?;
    let windows = input.pixels.len() / (3 * task.input().side.pow(2));
    let seen = TokenInput::Images(&input.pixels);
    let masks = task.segmenter().masks(head, Some(task.params()), seen, &[windows], &[size], task.input())?;
    masks.into_iter().next().map(RawAnswer::Mask).ok_or_else(|| Error::invalid("pass", "no answer"))
}

/// Whether the task has weights of the image tower, or of what is behind it, of its own.
fn tunes_weights(task: &TaskModel) -> bool {
    task.model().parts().weights().is_some()
}

/// The answers to `questions` about images on `backbone`, in their order: in one pass, but for tasks with weights of their own and those that
/// look at images in windows.
/// Where one cannot be answered, the others are.
pub fn answer_together(backbone: &Backbone, questions: &[Question], threads: usize) -> Vec<Result<RawAnswer>> {
    let is_alone = |question: &Question| question.task.is_some_and(ReadyTask::is_alone);
    let mut answers: Vec<Option<Result<RawAnswer>>> = questions
        .iter()
        .map(|question| question.task.filter(|_| is_alone(question)).map(|task| task.answer_alone(question)))
        .collect();
    // What is asked, with what goes into the pass for it.
    let mut entries = Vec::new();
    for (place, question) in questions.iter().enumerate().filter(|(_, question)| !is_alone(question)) {
        let ready = || -> Result<_> {
            if question.task.is_none() && !question.embeds {
                return Err(Error::invalid("task", "the backbone itself tells no classes"));
            }
            let pixels = question
                .task
                .map_or_else(|| Ok((&question.input.pixels).into()), |task| task.pixels(question.input))?;
            let (wanted, side) = (3 * backbone.vit.image_size().pow(2), backbone.vit.image_size());
            if pixels.len() != wanted {
                let message = format!("{} values are no image of 3 x {side} x {side}", pixels.len());
                return Err(Error::invalid("image", message));
            }
            Ok((pixels, question.task.map(|task| task.prompts(threads)).transpose()?.flatten()))
        };
        match ready() {
            Ok((pixels, prompts)) => entries.push((place, pixels, prompts)),
            Err(error) => answers[place] = Some(Err(error)),
        }
    }
    let mut images: Vec<&[f32]> = Vec::new();
    let rows: Vec<MixedRow> = entries
        .iter()
        .map(|(place, pixels, prompts)| {
            let own: &[f32] = pixels;
            let image = images.iter().position(|known| std::ptr::eq(*known, own));
            let image = image.unwrap_or_else(|| {
                images.push(own);
                images.len() - 1
            });
            MixedRow { image, prompts: prompts.as_deref(), readout: questions[*place].readout() }
        })
        .collect();
    match backbone.vit.read_mixed(&images, &rows, threads) {
        Ok(read) => {
            let has_boxes = rows.iter().any(|row| matches!(row.readout, Readout::Tokens(_)));
            let told = parallel::shares(read.len(), if has_boxes { threads } else { 1 }, |range| {
                let told = |i: usize| questions[entries[i].0].answer(backbone, &read[i]);
                range.map(told).collect::<Vec<_>>()
            });
            for ((place, ..), told) in entries.iter().zip(told.into_iter().flatten()) {
                answers[*place] = Some(told);
            }
        }
        Err(error) => {
            let message = error.to_string();
            for (place, ..) in &entries {
                answers[*place] = Some(Err(Error::invalid("pass", message.clone())));
            }
        }
    }
    let none = || Err(Error::invalid("pass", "no answer"));
    answers.into_iter().map(|answer| answer.unwrap_or_else(none)).collect()
}

impl Question<'_> {
    /// What is read of the image for it.
    fn readout(&self) -> Readout<'_> {
        match self.task.map(|task| (&task.task, &task.head)) {
            Some((AnyTask::Classify(task) | AnyTask::Multilabel(task), _)) if !self.embeds => {
                task.model().readout_of_pass()
            }
            Some((_, ReadyHead::Boxes(detector))) if !self.embeds => Readout::Tokens(detector.reads()),
            _ => Readout::Features,
        }
    }

    /// What is made of what was read.
    fn answer(&self, backbone: &Backbone, read: &[f32]) -> Result<RawAnswer> {
        match self.task.map(|task| (&task.task, &task.head)) {
            Some((AnyTask::Classify(task) | AnyTask::Multilabel(task), ReadyHead::Classes(head))) if !self.embeds => {
                let model = task.model();
                let features = model.readout(read.to_vec());
                Ok(RawAnswer::Logits(model.classify(head, task.params(), &features)?))
            }
            Some((AnyTask::Detect(task), ReadyHead::Boxes(detector))) if !self.embeds => {
                let (view, valid) = self.input.lies()?;
                Ok(RawAnswer::Boxes(task.found_in(detector, read, view, valid)))
            }
            _ => Ok(RawAnswer::Embedding(backbone.project(read.to_vec()))),
        }
    }
}
