//! Which backbone suits a data set: the same methods on the same draws with each of several backbones, and what an image costs.
//!
//! Each backbone is a grid of its own ([`few_shot`](crate::few_shot)) in a folder of its own, with draws that all of them share. So
//! what is done is never done again, and images are compared one by one.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::few_shot::{Failure, GridConfig, GridMethod, GridOutcome, JobResult, Spread, Summary, Worker, compare, run};
use crate::step::{StepOptions, step};
use vpt_backbone::info::{self, BackboneInfo};
use vpt_backbone::{Backbone, OpenOptions};
use vpt_base::files::write_atomic;
use vpt_base::{Error, Result};
use vpt_model::methods::Method;
use vpt_model::metrics::bootstrap::Interval;
use vpt_train::config::RunConfig;
use vpt_train::report::table;
use vpt_train::train::run_folder;

/// Images of a forward pass that is timed, and how often.
const TIMED: (usize, usize) = (8, 3);

/// Draws that all backbones share.
const DRAWS: &str = "draws";
/// The table in the folder, in both forms.
const TABLES: [&str; 2] = ["backbones.json", "backbones.md"];

/// What is compared.
#[derive(Debug, Clone)]
pub struct BackbonesConfig {
    /// Known names, or folders.
    pub backbones: Vec<String>,
    /// The data set, methods, shots, seeds and folder; the backbone of its runs is set here. A method that needs texts is left out
    /// for a backbone without a text tower.
    pub grid: GridConfig,
}

/// How a call ended.
#[derive(Debug)]
pub enum BackbonesOutcome {
    /// All is done or has failed.
    Finished(Box<BackbonesTable>),
    /// It was told to stop; the same call goes on.
    Interrupted,
}

/// The JSON of `vpt bench backbones`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackbonesTable {
    /// The data set.
    pub data: String,
    /// Test images.
    pub test_images: usize,
    /// Images a class that is learned from.
    pub shots: usize,
    /// Seeds of draws and training.
    pub seeds: Vec<u64>,
    /// The backbones, by what the last of the methods that learn says of them, the best first.
    pub backbones: Vec<BackboneScores>,
    /// What failed.
    pub failures: Vec<Failure>,
}

/// A backbone in the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackboneScores {
    /// Its name.
    pub backbone: String,
    /// The folder it was found in, or `bundled`.
    pub path: String,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Its parameters, all towers together.
    pub parameters: u64,
    /// What methods reach on it.
    pub scores: Vec<MethodScore>,
    /// Milliseconds of the forward pass of one image, all threads at work.
    pub ms_per_image: f64,
    /// Most memory that one of its jobs held, in bytes.
    pub peak_rss_bytes: Option<u64>,
}

/// A method on a backbone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodScore {
    /// The method.
    pub method: GridMethod,
    /// Accuracy on the test images, over the seeds.
    pub acc1: Spread,
    /// Accuracy less that of the method on the backbone that is best for it, paired image by image; none of that one.
    pub less_best: Option<Interval>,
}

/// A backbone whose jobs are done.
struct Compared {
    info: BackboneInfo,
    image_size: usize,
    jobs: Vec<JobResult>,
    ms_per_image: f64,
}

impl Compared {
    /// The jobs of a method, by seed.
    fn of(&self, method: GridMethod) -> Vec<&JobResult> {
        self.jobs.iter().filter(|job| job.method == method).collect()
    }

    fn acc1(&self, method: GridMethod) -> Option<Spread> {
        let parts = self.of(method).into_iter().filter_map(|job| job.part("test"));
        let values: Vec<f64> = parts.map(|part| part.metrics.main()).collect();
        (!values.is_empty()).then(|| Spread::of(&values))
    }
}

/// Does the jobs that are not done yet, and compares backbones by them. The table is written to the folder, too.
///
/// # Errors
/// No backbone or several data sets; two backbones of one name; data, draws or texts that cannot be read. A backbone that cannot be
/// opened, and jobs that fail, are in the table.
pub fn backbones(config: &BackbonesConfig, worker: &mut dyn Worker) -> Result<BackbonesOutcome> {
    let BackbonesConfig { backbones, grid } = config;
    let ([data], [shots]) = (&grid.data[..], &grid.shots[..]) else {
        return Err(Error::setting("data", "backbones are compared on one data set and with one number of shots"));
    };
    grid.check()?;
    if backbones.is_empty() {
        return Err(Error::setting("backbones", "names nothing to compare"));
    }
    let (mut compared, mut failures): (Vec<Compared>, Vec<Failure>) = (Vec::new(), Vec::new());
    let mut names: Vec<(String, &str)> = Vec::new();
    for given in backbones {
        if worker.stop() {
            return Ok(BackbonesOutcome::Interrupted);
        }
        let failed =
            |error: &Error, worker: &dyn Worker| Failure { job: given.clone(), error: worker.words(&error.into()) };
        let base = RunConfig { backbone: given.clone(), ..grid.base.clone() };
        let known = info::info(given, base.weights_dir.as_deref());
        let (info, (image_size, ms_per_image)) = match known.and_then(|info| Ok((info, timed(&base)?))) {
            Ok(found) => found,
            Err(error) => {
                failures.push(failed(&error, worker));
                continue;
            }
        };
        let folder = run_folder::file_name(&info.name);
        if let Some((_, other)) = names.iter().find(|(name, _)| *name == folder) {
            let message = format!("{other} and {given} are both called {folder}; folders are named by it");
            return Err(Error::setting("backbones", message));
        }
        names.push((folder.clone(), given));
        let can = |method: &&GridMethod| info.spec.text.is_some() || !method.needs_texts();
        let own = GridConfig {
            base,
            methods: grid.methods.iter().filter(can).copied().collect(),
            draws: Some(grid.draws.clone().unwrap_or_else(|| grid.out.join(DRAWS))),
            out: grid.out.join(&folder),
            ..grid.clone()
        };
        if own.methods.is_empty() {
            let error = Error::setting("methods", "none that does without texts, and this backbone reads none");
            failures.push(failed(&error, worker));
            continue;
        }
        let GridOutcome::Finished { summary, .. } = run(&own, None, worker)? else {
            return Ok(BackbonesOutcome::Interrupted);
        };
        let Summary { jobs, failures: of_jobs, .. } = *summary;
        failures.extend(of_jobs.into_iter().map(|f| Failure { job: format!("{given}: {}", f.job), ..f }));
        // What the folder holds of other methods, shots or seeds is not asked for here.
        let is_asked = |job: &JobResult| {
            let learned = job.shots == *shots && own.seeds.contains(&job.seed);
            own.methods.contains(&job.method) && (learned || job.shots == 0)
        };
        let jobs: Vec<JobResult> = jobs.into_iter().filter(is_asked).collect();
        if !jobs.is_empty() {
            compared.push(Compared { info, image_size, jobs, ms_per_image });
        }
    }
    let table = BackbonesTable {
        data: compared.first().map_or_else(|| data.clone(), |first| first.jobs[0].dataset.clone()),
        test_images: compared.first().and_then(|first| first.jobs[0].part("test")).map_or(0, |part| part.images),
        shots: *shots,
        seeds: grid.seeds.clone(),
        backbones: rows(compared, &grid.methods, *shots)?,
        failures,
    };
    write(&table, &grid.out)?;
    Ok(BackbonesOutcome::Finished(Box::new(table)))
}

/// Side of the images, and milliseconds of the forward pass of one.
fn timed(base: &RunConfig) -> Result<(usize, f64)> {
    let options = OpenOptions {
        weights_dir: base.weights_dir.clone(),
        image_size: base.image_size,
        precision: base.precision,
        max_memory: base.max_memory,
        compute: base.compute(),
    };
    let (batch, repeats) = TIMED;
    let config = RunConfig {
        backbone: base.backbone.clone(),
        method: Method::VPT_SHALLOW,
        batch_size: Some(batch),
        seed: base.seed,
        threads: base.threads,
        ..RunConfig::default()
    }
    .with_options(|o| o.tokens.prompt_tokens = Some(1));
    let options_of_step = StepOptions { repeats, classes: 2, forward: true };
    let report = step(&config, Backbone::open(&base.backbone, &options)?, &options_of_step, &mut |_| {})?;
    Ok((report.image_size, 1e3 / report.img_per_s))
}

/// The rows of the table, the best first.
fn rows(mut compared: Vec<Compared>, methods: &[GridMethod], shots: usize) -> Result<Vec<BackboneScores>> {
    // Which of the methods says it: the last one that learns, since the probe stands behind the class means.
    let leading = methods.iter().rev().find(|method| **method != GridMethod::ZeroShot).or(methods.last());
    let score = |one: &Compared, method: GridMethod| one.acc1(method).map_or(-1., |acc1| acc1.mean);
    if let Some(&leading) = leading {
        compared.sort_by(|a, b| score(b, leading).total_cmp(&score(a, leading)));
    }
    let best = |method: GridMethod| {
        let all = compared.iter().enumerate().filter(|(_, one)| one.acc1(method).is_some());
        all.max_by(|(i, a), (j, b)| score(a, method).total_cmp(&score(b, method)).then(j.cmp(i))).map(|(i, _)| i)
    };
    let mut out = Vec::with_capacity(compared.len());
    for (i, one) in compared.iter().enumerate() {
        let mut scores = Vec::new();
        for &method in methods {
            let (Some(acc1), Some(best)) = (one.acc1(method), best(method)) else { continue };
            let differences =
                if best == i { Vec::new() } else { compare(shots, &one.of(method), &compared[best].of(method))? };
            let less_best = differences.into_iter().find(|d| d.part == "test").map(|d| d.interval);
            scores.push(MethodScore { method, acc1, less_best });
        }
        out.push(BackboneScores {
            backbone: one.info.name.clone(),
            path: one.info.path.clone(),
            image_size: one.image_size,
            parameters: one.info.parameters,
            scores,
            ms_per_image: one.ms_per_image,
            peak_rss_bytes: one.jobs.iter().filter_map(|job| job.peak_rss_bytes).max(),
        });
    }
    Ok(out)
}

impl BackbonesTable {
    /// The methods, in the order of the columns.
    fn methods(&self) -> Vec<GridMethod> {
        let mut methods = Vec::new();
        for score in self.backbones.iter().flat_map(|one| &one.scores) {
            if !methods.contains(&score.method) {
                methods.push(score.method);
            }
        }
        methods
    }

    /// What it is a table of.
    fn title(&self) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        format!(
            "{}: {} images a class, seeds {}, {} test images; accuracy ± standard deviation over seeds, and the difference to \
             the best of the column with its paired 95 % interval",
            self.data,
            self.shots,
            seeds.join(", "),
            self.test_images
        )
    }

    fn header(&self) -> Vec<String> {
        let methods = self.methods().into_iter().map(|method| method.name().into_owned());
        let first = ["backbone", "pixels", "parameters"].map(str::to_owned);
        first.into_iter().chain(methods).chain(["ms/image", "memory"].map(str::to_owned)).collect()
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let methods = self.methods();
        let row = |one: &BackboneScores| {
            let score = |method: &GridMethod| {
                let Some(score) = one.scores.iter().find(|score| score.method == *method) else {
                    return "-".to_owned();
                };
                let percent = |share: f64| table::percent(share);
                let mut text = percent(score.acc1.mean);
                if let Some(sd) = score.acc1.sd {
                    _ = write!(text, " ± {:.1}", 100. * sd);
                }
                if let Some(Interval { difference, low, high }) = score.less_best {
                    _ = write!(text, " ({:+.1} [{:+.1}, {:+.1}])", 100. * difference, 100. * low, 100. * high);
                }
                text
            };
            let mut cells = vec![one.backbone.clone(), one.image_size.to_string(), table::count(one.parameters)];
            cells.extend(methods.iter().map(score));
            cells.push(format!("{:.1}", one.ms_per_image));
            cells.push(one.peak_rss_bytes.map_or_else(|| "-".to_owned(), table::bytes));
            cells
        };
        self.backbones.iter().map(row).collect()
    }

    /// The table as the console shows it.
    pub fn console(&self) -> String {
        let header = self.header();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let mut text = format!("{}\n{}", self.title(), table::columns(&header, &self.cells()));
        for failure in &self.failures {
            _ = writeln!(text, "failed: {}: {}", failure.job, failure.error);
        }
        text
    }

    fn markdown(&self) -> String {
        let header = self.header();
        let mut text = format!("{}\n\n| {} |\n|{}\n", self.title(), header.join(" | "), "---|".repeat(header.len()));
        for row in self.cells() {
            let row: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            _ = writeln!(text, "| {} |", row.join(" | "));
        }
        for failure in &self.failures {
            _ = writeln!(text, "\nFailed: {}: {}", failure.job, failure.error);
        }
        text
    }
}

fn write(table: &BackbonesTable, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let [json, markdown] = TABLES.map(|name| out.join(name));
    let mut bytes = serde_json::to_vec_pretty(table).map_err(|error| Error::file(&json, error.to_string()))?;
    bytes.push(b'\n');
    write_atomic(&json, &bytes)?;
    write_atomic(&markdown, table.markdown().as_bytes())
}
