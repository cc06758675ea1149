//! What a run tells while it is under way: a bar on a terminal, plain lines where stderr is a file or a pipe (a line an
//! epoch, nothing for each batch; of long runs a line for the best epochs and for some of the others).

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vpt::Message;
use vpt::energy::Carbon;
use vpt::metrics::Scores;
use vpt::report::table;
use vpt::train::{EpochRecord, Event, Observer, Stage, Start};

use super::flags;
use super::interrupt::Interrupt;
use super::output;

/// Epochs that get a line each; of more only some do.
const MOST_LINES: usize = 20;

/// Shows progress on stderr, or nothing.
pub(crate) struct ProgressDisplay {
    quiet: bool,
    /// Whether every epoch gets a line.
    verbose: bool,
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    /// What the bar is showing.
    title: String,
    /// What stops a run.
    interrupt: Interrupt,
    /// What a kWh costs in CO2, where results are to say that.
    carbon: Option<Carbon>,
}

impl ProgressDisplay {
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = (!quiet && output::stderr_is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len}  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { quiet, verbose: false, bar, title: String::new(), interrupt: Interrupt::default(), carbon: None }
    }

    /// The same for something that saves and stops when a signal asks for it.
    pub(crate) fn interruptible(quiet: bool, verbose: bool) -> std::io::Result<Self> {
        let mut progress = Self::new(quiet);
        progress.verbose = verbose;
        let bar = progress.bar.clone();
        let told = move || {
            if !quiet {
                line(bar.as_ref(), "stopping after this step; a second time stops at once");
            }
        };
        progress.interrupt = Interrupt::listen(told)?;
        Ok(progress)
    }

    /// Has results tell CO2.
    pub(crate) fn set_carbon(&mut self, carbon: Option<Carbon>) {
        self.carbon = carbon;
    }

    /// What has stopped a run, or will.
    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        if !self.quiet {
            line(self.bar.as_ref(), text);
        }
    }

    /// How far something has come; shown on a terminal only.
    pub(crate) fn at(&mut self, title: &str, done: usize, total: usize, message: impl FnOnce() -> String) {
        let Some(bar) = &self.bar else { return };
        if self.title != title {
            title.clone_into(&mut self.title);
            bar.reset();
            bar.set_prefix(self.title.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(message());
    }

    /// Whether there is a line for this of so many epochs: a hundred of them would push what matters off the screen.
    fn tells(&self, epoch: usize, of: usize, best: bool) -> bool {
        let every = if of <= MOST_LINES { 1 } else { of.div_ceil(MOST_LINES) };
        self.verbose || epoch == 1 || epoch == of || epoch.is_multiple_of(every) || (best && of <= MOST_LINES * 10)
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Observer for ProgressDisplay {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Note(note) => self.line(note),
            Event::Reading { split, done, total } => self.at(&format!("reading {split}"), *done, *total, String::new),
            Event::Start(start) => self.line(&describe(start)),
            Event::Features { split, done, total } => {
                self.at(&format!("features of {split}"), *done, *total, String::new);
            }
            Event::Trial { lr, number, of } => self.line(&format!("trying learning rate {lr} ({number} of {of})")),
            Event::Chosen { lr } => self.line(&format!("learning rate {lr}")),
            Event::Step { epoch, step, steps, loss, acc1 } => {
                let message = || match acc1 {
                    Some(acc1) => format!("loss {loss:.3}, acc {}", table::percent(*acc1)),
                    None => format!("loss {loss:.3}"),
                };
                self.at(&format!("epoch {epoch}"), *step as usize, *steps as usize, message);
            }
            Event::Evaluating { split, done, total } => {
                self.at(&format!("evaluating {split}"), *done, *total, String::new);
            }
            Event::Epoch { record, of, best } if self.tells(record.epoch, *of, *best) => {
                self.line(&epoch(record, *of, *best));
            }
            Event::Finished(_) => self.clear(),
            _ => {}
        }
    }

    fn words(&self, message: &Message) -> String {
        flags::words(message)
    }

    fn carbon(&self) -> Option<&Carbon> {
        self.carbon.as_ref()
    }

    fn stop(&self) -> bool {
        self.interrupt.came()
    }
}

/// A line on stderr, above the bar if there is one.
fn line(bar: Option<&ProgressBar>, line: &str) {
    match bar {
        Some(bar) => bar.suspend(|| output::message(line)),
        None => output::message(line),
    }
}

fn describe(start: &Start<'_>) -> String {
    let [train, val, test] = start.images;
    let config = &start.plan.config;
    let resumed = match start.epochs_done {
        0 => String::new(),
        done => format!("; going on after epoch {done}"),
    };
    let course = if start.plan.solved {
        "no steps to take".to_owned()
    } else {
        format!("{} epochs of {} steps", start.plan.epochs, start.plan.steps_per_epoch())
    };
    format!(
        "{} on {}: {} classes, {train} train, {val} val, {test} test images; {} learned values on {} frozen ({}); \
         {course}; in {}{resumed}",
        config.method,
        start.data,
        start.classes.len(),
        table::count(start.trainable_params as u64),
        table::count(start.backbone_params),
        config.backbone,
        start.folder.display(),
    )
}

fn epoch(record: &EpochRecord, of: usize, best: bool) -> String {
    let val = record.val.as_ref();
    let scores = if let Some(val) = val.and_then(Scores::detect) {
        let (ap, ap50) = (table::percent(val.ap), table::percent(val.ap50));
        format!("train loss {:.4}  val AP {ap:>7} AP50 {ap50:>7}", record.train_loss)
    } else {
        let many = val.is_some_and(|val| val.multilabel().is_some());
        let (train, name) = if many { ("all right", "mAP") } else { ("acc", "acc") };
        let of_val = val.map(|val| {
            // Pixels are scored without a loss.
            let name = if matches!(val, Scores::Segment(_)) { "mIoU" } else { name };
            let loss = val.loss().map_or_else(String::new, |loss| format!(" loss {loss:.4}"));
            format!("  val{loss} {name} {:>7}", table::percent(val.main()))
        });
        let right = table::percent(record.train.values().next().copied());
        format!("train loss {:.4} {train} {right:>7}{}", record.train_loss, of_val.unwrap_or_default())
    };
    let stage = match record.stage {
        Stage::Whole => "",
        Stage::Head => "head  ",
        Stage::Prompts => "prompts  ",
        Stage::Tuned => "tuned  ",
        Stage::Unpruned => "unpruned  ",
        Stage::Pruned => "pruned  ",
    };
    format!(
        "epoch {:>width$}/{of}  {stage}{scores}  {:.1} s{}",
        record.epoch,
        record.train_seconds + record.val_seconds,
        if best && val.is_some() { "  best" } else { "" },
        width = of.to_string().len(),
    )
}
