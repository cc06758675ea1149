//! The results as tables: for the console, Markdown, LaTeX and programs that read CSV.

use std::fmt::Write;

use super::{
    GridMethod, GridSchedule, Mode,
    grid::{GridFile, QUICK_PASSES},
    job::JobResult,
    summary::{Cell, Spread, Summary, main_metric},
};
use vpt_base::{Error, Result};
use vpt_energy::amount as kwh;
use vpt_model::metrics::{Metrics, Scores, SegmentMetrics, coco::CocoMetrics};
use vpt_train::{config::Task, report::table};

/// A table of accuracies, or of AP or mIoU.
pub(super) struct Table {
    /// Title of the table.
    pub(super) title: String,
    /// Names of the columns.
    pub(super) header: Vec<String>,
    /// The cells; those of a column that are best of it are marked.
    pub(super) rows: Vec<Vec<Entry>>,
}

/// A cell of a table.
#[derive(Clone)]
pub(super) struct Entry {
    /// Its text.
    pub(super) text: String,
    /// Value it is sorted by.
    pub(super) value: Option<f64>,
    /// Whether none of its column is higher.
    pub(super) best: bool,
}

impl Entry {
    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None, best: false }
    }

    fn number(text: String, value: f64) -> Self {
        Self { text, value: Some(value), best: false }
    }
}

/// The protocol, in sentences.
pub(super) fn protocol(grid: &GridFile) -> String {
    let schedule = match grid.schedule {
        GridSchedule::Published => "each method learns as long as its defaults say".to_owned(),
        GridSchedule::Quick => format!(
            "quick schedule: at most {QUICK_PASSES} image passes a job (methods on features: one pass an image), so the \
             numbers may be lower than those of the published schedule"
        ),
    };
    let mode = match grid.mode {
        Mode::FewShot => "",
        Mode::BaseToNew => {
            " Learned on the first half of the labels (rounded up, base), measured on either half alone."
        }
        Mode::Cross => " Learned on one data set, measured on others.",
    };
    if grid.task() == Task::Detect {
        return format!(
            "Few-shot detection on {}: k boxes a class to learn from and min(k, 4) to validate on, the same for all methods, drawn image by \
             image as long as they fit into k; what else is in these images is neither learned nor taken for background; the whole test \
             set, the last step; {schedule}.",
            grid.backbone
        );
    }
    if grid.task() == Task::Segment {
        return format!(
            "Few-shot segmentation on {}: k images that show each class to learn from and min(k, 4) to validate on, the same for all methods, \
             drawn class by class, the rarest first, with the whole of their masks; the whole test set, the last step; {schedule}.",
            grid.backbone
        );
    }
    format!(
        "CoOp's protocol on {}: k images a class to learn from and min(k, 4) to validate on, the same for all methods, the \
         whole test set, the last step; {schedule}.{mode}",
        grid.backbone
    )
}

/// Accuracies or AP in percent, a table for each data set and one for their mean.
pub(super) fn tables(summary: &Summary) -> Vec<Table> {
    let table = |dataset: Option<&str>| {
        let name = dataset.map_or_else(|| format!("mean of {} data sets", summary.datasets().len() - 1), str::to_owned);
        let also = if summary.grid.task() == Task::Detect { ", AP50 behind it" } else { "" };
        let metric = main_metric(summary.grid.task());
        let title = format!("{name}: {metric} in percent, mean ± sd over seeds{also}");
        let (header, rows) = match summary.grid.mode {
            Mode::FewShot => by_shots(summary, dataset),
            Mode::BaseToNew | Mode::Cross => by_part(summary, dataset),
        };
        Table { title, header, rows: mark(rows) }
    };
    summary.datasets().into_iter().map(table).collect()
}

/// A row a method, a column for each number of shots.
fn by_shots(summary: &Summary, dataset: Option<&str>) -> (Vec<String>, Vec<Vec<Entry>>) {
    let shots = summary.shots();
    let most = most_seeds(summary);
    let mut header = vec!["method".to_owned()];
    header.extend(shots.iter().map(|shots| format!("{shots} shot{}", if *shots == 1 { "" } else { "s" })));
    let row = |method: GridMethod| {
        let cell = |shots: &usize| {
            let cell = summary.cells_of(dataset).find(|cell| cell.method == method && cell.shots == *shots);
            cell.map_or_else(|| Entry::text("-"), |cell| entry(cell, most))
        };
        std::iter::once(Entry::text(method.name())).chain(shots.iter().map(cell)).collect()
    };
    (header, summary.methods().into_iter().map(row).collect())
}

/// A row for each method and number of shots, a column a part.
fn by_part(summary: &Summary, dataset: Option<&str>) -> (Vec<String>, Vec<Vec<Entry>>) {
    let parts = summary.parts();
    let most = most_seeds(summary);
    let header = ["method", "shots"].map(str::to_owned).into_iter().chain(parts.iter().cloned()).collect();
    let mut rows = Vec::new();
    for method in summary.methods() {
        for shots in summary.shots() {
            let cells = summary.cells_of(dataset).filter(|cell| cell.method == method && cell.shots == shots);
            if cells.clone().next().is_none() {
                continue;
            }
            let part = |part: &String| {
                cells.clone().find(|cell| cell.part == *part).map_or_else(|| Entry::text("-"), |cell| entry(cell, most))
            };
            let head = [Entry::text(method.name()), Entry::text(shots.to_string())];
            rows.push(head.into_iter().chain(parts.iter().map(part)).collect());
        }
    }
    (header, rows)
}

fn most_seeds(summary: &Summary) -> usize {
    summary.cells.iter().map(|cell| cell.seeds.len()).max().unwrap_or(0)
}

/// Mean and deviation; the number of seeds too where others have more.
fn entry(cell: &Cell, most_seeds: usize) -> Entry {
    let mut text = spread(cell.main());
    if let Some(second) = cell.second() {
        let _ = write!(text, " / {}", spread(second));
    }
    if cell.shots > 0 && cell.seeds.len() < most_seeds {
        let _ = write!(text, " ({} of {most_seeds} seeds)", cell.seeds.len());
    }
    Entry::number(text, cell.main().mean)
}

/// A mean and its deviation in percent.
pub(super) fn spread(spread: &Spread) -> String {
    let mean = format!("{:.1}", spread.mean * 100.);
    spread.sd.map_or_else(|| mean.clone(), |sd| format!("{mean} ± {:.1}", sd * 100.))
}

/// Marks the best of each column of numbers.
fn mark(mut rows: Vec<Vec<Entry>>) -> Vec<Vec<Entry>> {
    for column in 0..rows.first().map_or(0, Vec::len) {
        let values = rows.iter().filter_map(|row| row[column].value);
        let best = values.clone().fold(f64::NEG_INFINITY, f64::max);
        if values.count() > 1 {
            for row in &mut rows {
                row[column].best = row[column].value.is_some_and(|value| value >= best);
            }
        }
    }
    rows
}

/// Differences between methods in percentage points; those that cannot be chance are marked.
pub(super) fn differences(summary: &Summary) -> Option<Table> {
    if summary.comparisons.is_empty() {
        return None;
    }
    let header = ["data", "shots", "part", "method", "less", "difference", "95 % interval", "seeds", "images"];
    let rows = summary.comparisons.iter().map(|c| {
        let points = |value: f64| format!("{:+.1}", value * 100.);
        let interval = format!("{} to {}", points(c.interval.low), points(c.interval.high));
        let clear = c.interval.low > 0. || c.interval.high < 0.;
        vec![
            Entry::text(&c.dataset),
            Entry::number(c.shots.to_string(), c.shots as f64),
            Entry::text(&c.part),
            Entry::text(c.method.name()),
            Entry::text(c.than.name()),
            Entry { text: points(c.interval.difference), value: Some(c.interval.difference), best: clear },
            Entry { text: interval, value: Some(c.interval.low), best: false },
            Entry::number(c.seeds.to_string(), c.seeds as f64),
            Entry::number(c.images.to_string(), c.images as f64),
        ]
    });
    Some(Table {
        title: format!(
            "differences{} in percentage points, with paired bootstrap intervals over images and seeds",
            match summary.grid.task() {
                Task::Detect => " of AP",
                Task::Segment => " of mIoU",
                _ => "",
            }
        ),
        header: header.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    })
}

/// Cost of a method: the mean over all jobs of a method and number of shots.
pub(super) fn costs(summary: &Summary) -> Table {
    let mut rows = Vec::new();
    for method in summary.methods() {
        for shots in summary.shots() {
            let jobs: Vec<_> = summary.jobs.iter().filter(|j| j.method == method && j.shots == shots).collect();
            let Some(most) = jobs.iter().map(|job| job.trainable_params).max() else { continue };
            let seconds = jobs.iter().map(|job| job.wall_s).sum::<f64>() / jobs.len() as f64;
            let memory = jobs.iter().filter_map(|job| job.peak_rss_bytes).max();
            let passes = jobs.iter().map(|job| job.image_passes).max().unwrap_or(0);
            let energy = MeanEnergy::of(&jobs);
            rows.push(vec![
                Entry::text(method.name()),
                Entry::number(shots.to_string(), shots as f64),
                Entry::number(table::count(most as u64), most as f64),
                Entry::number(passes.to_string(), passes as f64),
                Entry::number(table::seconds(seconds), seconds),
                memory.map_or_else(|| Entry::text("-"), |m| Entry::number(table::bytes(m), m as f64)),
                number_or_dash(energy.as_ref().map(|e| e.cpu_seconds)),
                energy.as_ref().map_or_else(|| Entry::text("-"), MeanEnergy::entry),
                number_or_dash(energy.as_ref().and_then(|e| e.accuracy_a_watt_hour(&jobs))),
                Entry::number(jobs.len().to_string(), jobs.len() as f64),
            ]);
        }
    }
    let header = [
        "method",
        "shots",
        "learned values",
        "image passes",
        "time a job",
        "peak memory",
        "core-seconds",
        "energy",
        match summary.grid.task() {
            Task::Detect => "AP a Wh",
            Task::Segment => "mIoU a Wh",
            _ => "accuracy a Wh",
        },
        "jobs",
    ];
    Table { title: "what a job costs".to_owned(), header: header.map(str::to_owned).to_vec(), rows }
}

/// What a job takes, in the mean of some: the middle of the range where it is an estimate.
struct MeanEnergy {
    cpu_seconds: f64,
    /// Least and most, in kWh.
    range: [f64; 2],
}

impl MeanEnergy {
    /// Of `jobs`, if all of them tell.
    fn of(jobs: &[&JobResult]) -> Option<Self> {
        let told = jobs.iter().map(|job| job.energy.as_ref()).collect::<Option<Vec<_>>>()?;
        let ranges = told.iter().map(|energy| energy.range_kwh()).collect::<Option<Vec<_>>>()?;
        let mean = |of: &dyn Fn(usize) -> f64| (0..told.len()).map(of).sum::<f64>() / told.len().max(1) as f64;
        let range = [0, 1].map(|end| mean(&|i| ranges[i][end]));
        Some(Self { cpu_seconds: mean(&|i| told[i].cpu_seconds), range })
    }

    fn entry(&self) -> Entry {
        let [low, high] = self.range;
        let text = if low < high { format!("{} to {}", kwh(low), kwh(high)) } else { kwh(low) };
        Entry::number(text, f64::midpoint(low, high))
    }

    /// Percent of the first part's test images that are right, or AP or mIoU in percent, for each watt-hour.
    fn accuracy_a_watt_hour(&self, jobs: &[&JobResult]) -> Option<f64> {
        let right = jobs.iter().map(|job| Some(job.parts.first()?.metrics.main())).collect::<Option<Vec<_>>>()?;
        let mean = right.iter().sum::<f64>() / right.len().max(1) as f64;
        let watt_hours = f64::midpoint(self.range[0], self.range[1]) * 1e3;
        (watt_hours > 0.).then(|| mean * 100. / watt_hours)
    }
}

fn number_or_dash(value: Option<f64>) -> Entry {
    let text = |value: f64| if value < 100. { format!("{value:.1}") } else { format!("{value:.0}") };
    value.map_or_else(|| Entry::text("-"), |value| Entry::number(text(value), value))
}

/// For the console.
pub fn console(summary: &Summary) -> String {
    let mut text = format!("{}\n\n", protocol(&summary.grid));
    for Table { title, header, rows } in tables(summary) {
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.into_iter().map(|e| e.text).collect()).collect();
        let _ = writeln!(text, "{title}\n{}", table::columns(&header, &rows));
    }
    for failure in &summary.failures {
        let _ = writeln!(text, "failed: {}: {}", failure.job, failure.error);
    }
    text
}

/// `table.md`.
pub(super) fn markdown(summary: &Summary) -> String {
    let mut text = format!("{}\n", protocol(&summary.grid));
    let escape = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;");
    for Table { title, header, rows } in tables(summary) {
        let header: Vec<String> = header.iter().map(|name| escape(name)).collect();
        let _ = writeln!(text, "\n{}\n\n| {} |\n|{}", escape(&title), header.join(" | "), "---|".repeat(header.len()));
        for row in rows {
            let cell = |e: &Entry| if e.best { format!("**{}**", escape(&e.text)) } else { escape(&e.text) };
            let _ = writeln!(text, "| {} |", row.iter().map(cell).collect::<Vec<_>>().join(" | "));
        }
    }
    if !summary.failures.is_empty() {
        text += "\nFailed:\n\n";
    }
    for failure in &summary.failures {
        let _ = writeln!(text, "* {}: {}", escape(&failure.job), escape(&failure.error));
    }
    text
}

/// `table.tex`: tables for the package booktabs.
pub(super) fn latex(summary: &Summary) -> String {
    let mut text = format!("% {}\n% Needs \\usepackage{{booktabs}}.\n", protocol(&summary.grid));
    for failure in &summary.failures {
        let _ = writeln!(text, "% failed: {}: {}", failure.job, failure.error.replace('\n', " "));
    }
    for Table { title, header, rows } in tables(summary) {
        let header: Vec<String> = header.iter().map(|name| escape_latex(name)).collect();
        let columns = "l".to_owned() + &"r".repeat(header.len() - 1);
        let _ = writeln!(
            text,
            "\n\\begin{{table}}\n\\caption{{{}}}\n\\centering\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{} \\\\\n\\midrule",
            escape_latex(&title),
            header.join(" & ")
        );
        for row in rows {
            let cell = |e: &Entry| match (escape_latex(&e.text), e.best) {
                (text, true) => format!("\\textbf{{{text}}}"),
                (text, false) => text,
            };
            let _ = writeln!(text, "{} \\\\", row.iter().map(cell).collect::<Vec<_>>().join(" & "));
        }
        text += "\\bottomrule\n\\end{tabular}\n\\end{table}\n";
    }
    text
}

fn escape_latex(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '\\' => out += "\\textbackslash{}",
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '±' => out += "$\\pm$",
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
        out
    })
}

/// `results.csv`: a row for each job and part.
pub(super) fn csv(summary: &Summary) -> Result<String> {
    let failed = |error: &dyn std::fmt::Display| Error::invalid("results.csv", error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    let task = summary.grid.task();
    let metrics: &[&str] = match task {
        Task::Detect => &["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "val_AP"],
        Task::Segment => &["mIoU", "pixel_acc", "mean_acc", "val_mIoU"],
        _ => &["acc1", "acc5", "mean_per_class_recall", "loss", "ece", "ece_with_temperature", "val_acc1"],
    };
    let first = ["dataset", "method", "shots", "seed", "part"];
    let others = [
        "best_epoch",
        "train_images",
        "test_images",
        "image_passes",
        "trainable_params",
        "wall_s",
        "peak_rss_bytes",
        "backbone",
        "schedule",
        "probe_acc1",
        "probe_better",
        "label_map",
    ];
    let header = first.iter().chain(metrics).chain(&others);
    writer.write_record(header).map_err(|e| failed(&e))?;
    let or_empty = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for job in &summary.jobs {
        for part in &job.parts {
            let val = job.val.as_ref().map(Scores::main);
            let metrics: Vec<Option<f64>> = match &part.metrics {
                Scores::Detect(CocoMetrics { ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100, .. }) => {
                    let all = [ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100];
                    all.map(|value| Some(*value)).into_iter().chain([val]).collect()
                }
                Scores::Segment(SegmentMetrics { miou, pixel_acc, mean_acc, .. }) => {
                    vec![Some(*miou), Some(*pixel_acc), Some(*mean_acc), val]
                }
                metrics => {
                    let classify = metrics.classify();
                    let of = |of: fn(&Metrics) -> Option<f64>| classify.and_then(of);
                    let all = [
                        of(|metrics| Some(metrics.acc1)),
                        of(|metrics| metrics.acc5),
                        of(|metrics| Some(metrics.mean_per_class_recall)),
                        of(|metrics| Some(metrics.loss)),
                        part.ece.map(|ece| ece.before),
                        part.ece.map(|ece| ece.after),
                    ];
                    all.into_iter().chain([val]).collect()
                }
            };
            let first = [
                job.dataset.clone(),
                job.method.to_string(),
                job.shots.to_string(),
                job.seed.to_string(),
                part.name.clone(),
            ];
            let others = [
                job.best_epoch.map_or_else(String::new, |epoch| epoch.to_string()),
                job.train_images.to_string(),
                part.images.to_string(),
                job.image_passes.to_string(),
                job.trainable_params.to_string(),
                job.wall_s.to_string(),
                job.peak_rss_bytes.map_or_else(String::new, |bytes| bytes.to_string()),
                summary.grid.backbone.clone(),
                summary.grid.schedule.to_string(),
                or_empty(job.probe.as_ref().map(|probe| probe.test.main())),
                job.probe.as_ref().map_or_else(String::new, |probe| probe.better.to_string()),
                job.identity.text("label_map"),
            ];
            let row = first.into_iter().chain(metrics.into_iter().map(or_empty)).chain(others);
            writer.write_record(row).map_err(|e| failed(&e))?;
        }
    }
    let bytes = writer.into_inner().map_err(|e| failed(&e))?;
    String::from_utf8(bytes).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_latex_reads_as_commands_is_escaped() {
        let text = escape_latex("50 % of a_b & c\\d ± 1");
        assert_eq!(text, "50 \\% of a\\_b \\& c\\textbackslash{}d $\\pm$ 1");
    }

    #[test]
    fn the_best_of_a_column_is_marked_unless_it_is_alone() {
        let row = |a: f64, b: Option<f64>| vec![Entry::number(String::new(), a), Entry { value: b, ..Entry::text("") }];
        let rows = mark(vec![row(1., Some(3.)), row(2., None), row(2., None)]);
        let marks: Vec<Vec<bool>> = rows.iter().map(|row| row.iter().map(|e| e.best).collect()).collect();
        assert_eq!(marks, [[false, false], [true, false], [true, false]]);
    }
}
