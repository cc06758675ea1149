//! `report.html`: everything a grid says on one page that needs no network: curves, tables that sort by a click, settings and
//! texts that were used.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write};

use super::{
    Mode,
    curves::{SCHEME, drawing, style},
    summary::Summary,
    tables::{Table, costs, differences, protocol, tables},
};
use vpt_model::metrics::{Scores, SegmentMetrics, coco::CocoMetrics};
use vpt_train::{config::Task, report::table};

const STYLE: &str = "\
html{color-scheme:light dark;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
body{max-width:1000px;margin:0 auto;padding:24px 20px 60px}h1{font-size:1.5em;margin:0 0 .3em}\
h2{font-size:1.15em;margin:2em 0 .5em}p{margin:.4em 0;max-width:75ch}.soft,caption{color:var(--soft)}\
.wide{overflow-x:auto;margin:0 0 1.2em}svg{max-width:100%;height:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}caption{text-align:left;padding:0 0 .4em}\
th,td{padding:4px 9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}\
th.left,td.left{text-align:left}thead th{border-bottom:1px solid var(--soft)}\
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid currentColor;outline-offset:2px}\
th[aria-sort=ascending] button::after{content:' \\2191'}th[aria-sort=descending] button::after{content:' \\2193'}\
td.best{font-weight:700;background:var(--mark)}details{margin:.6em 0}summary{cursor:pointer;font-weight:600}\
pre{overflow-x:auto;white-space:pre-wrap;font-size:13px;border-left:3px solid var(--line);padding-left:12px}\
.failed{border-left:4px solid #c62f3b;padding:2px 12px;margin:1em 0}";

/// Sorts a table by the column whose heading is pressed: numbers downwards first, text upwards first.
const SCRIPT: &str = "\
for(const b of document.querySelectorAll('th button'))b.addEventListener('click',()=>{\
const h=b.parentElement,t=h.closest('table'),i=h.cellIndex,r=[...t.tBodies[0].rows],\
v=x=>{const c=x.cells[i];return c.dataset.v===undefined?c.textContent:+c.dataset.v},\
n=r.some(x=>typeof v(x)==='number'),s=h.getAttribute('aria-sort'),\
d=s?(s==='ascending'?-1:1):(n?-1:1);\
for(const o of t.querySelectorAll('th'))o.removeAttribute('aria-sort');\
h.setAttribute('aria-sort',d>0?'ascending':'descending');\
r.sort((x,y)=>{const a=v(x),c=v(y);if(typeof a!==typeof c)return typeof a==='number'?-1:1;\
return d*(typeof a==='number'?a-c:a.localeCompare(c,undefined,{numeric:true}))});\
t.tBodies[0].append(...r)});";

/// `text` as content of an element or an attribute.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() && c != '\n' => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
        out
    })
}

/// The page.
pub(super) fn report(summary: &Summary) -> String {
    let grid = &summary.grid;
    let what = match grid.mode {
        Mode::FewShot => "Few-shot comparison",
        Mode::BaseToNew => "Base to new classes",
        Mode::Cross => "Across data sets",
    };
    let title = format!("{what} on {}", escape(&grid.backbone));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
         <style>{SCHEME}{STYLE}{}</style></head>\n<body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        style(),
        escape(&protocol(grid))
    );
    let datasets: Vec<&str> = summary.datasets().into_iter().flatten().collect();
    let _ = writeln!(
        page,
        "<p class=\"soft\">{} jobs done on {}; vpt {}, weights {}</p>",
        summary.jobs.len(),
        escape(&datasets.join(", ")),
        versions(summary),
        escape(grid.backbone_hash.get(..16).unwrap_or_default())
    );
    for failure in &summary.failures {
        let _ = writeln!(
            page,
            "<p class=\"failed\"><b>{}</b> failed: {}</p>",
            escape(&failure.job),
            escape(&failure.error)
        );
    }
    if !summary.jobs.is_empty() {
        let _ = writeln!(page, "<h2>Curves</h2>\n<div class=\"wide\">{}</div>", drawing(summary, ""));
        page += "<p class=\"soft\">Dots are means over seeds, bands one standard deviation. A dashed line across is a \
                 method that learns nothing.</p>\n";
        let heading = match grid.task() {
            Task::Detect => "Average precision",
            Task::Segment => "Mean IoU",
            _ => "Accuracy",
        };
        let _ = writeln!(page, "<h2>{heading}</h2>");
        for table in tables(summary) {
            add(&mut page, &table, 1);
        }
    }
    if let Some(table) = differences(summary) {
        let times = if [Task::Detect, Task::Segment].contains(&grid.task()) { 1000 } else { 2000 };
        let _ = writeln!(
            page,
            "<h2>Differences</h2>\n<p>Both methods learned from the same draws and answered for the same images; seeds and images were \
             resampled together {times} times (pigeonhole bootstrap). An interval without 0 is marked.</p>"
        );
        folded(&mut page, &table, 5, &format!("{} pairs", table.rows.len()), table.rows.len() <= 30);
    }
    if !summary.jobs.is_empty() {
        page += "<h2>Costs</h2>\n";
        add(&mut page, &costs(summary), 1);
        page += "<h2>Jobs</h2>\n";
        let jobs = jobs(summary);
        folded(&mut page, &jobs, 5, &format!("{} results", jobs.rows.len()), false);
        settings(&mut page, summary);
    }
    let _ = write!(page, "<script>{SCRIPT}</script>\n</body></html>\n");
    page
}

fn versions(summary: &Summary) -> String {
    let mut versions: Vec<&str> = summary.jobs.iter().map(|job| job.vpt.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.is_empty() { env!("CARGO_PKG_VERSION").to_owned() } else { escape(&versions.join(" and ")) }
}

/// A table inside something that can be folded away.
fn folded(page: &mut String, table: &Table, left: usize, name: &str, open: bool) {
    let open = if open { " open" } else { "" };
    let _ = writeln!(page, "<details{open}><summary>{}</summary>", escape(name));
    add(page, table, left);
    *page += "</details>\n";
}

/// A table whose first `left` columns are text.
fn add(page: &mut String, table: &Table, left: usize) {
    let class = |column: usize| if column < left { " class=\"left\"" } else { "" };
    let _ = write!(page, "<div class=\"wide\"><table><caption>{}</caption><thead><tr>", escape(&table.title));
    for (column, name) in table.header.iter().enumerate() {
        let _ = write!(page, "<th scope=\"col\"{}><button>{}</button></th>", class(column), escape(name));
    }
    *page += "</tr></thead><tbody>\n";
    for row in &table.rows {
        *page += "<tr>";
        for (column, cell) in row.iter().enumerate() {
            let class = match (column < left, cell.best) {
                (true, _) => " class=\"left\"",
                (false, true) => " class=\"best\"",
                (false, false) => "",
            };
            let value = cell.value.map_or_else(String::new, |value| format!(" data-v=\"{value}\""));
            let _ = write!(page, "<td{class}{value}>{}</td>", escape(&cell.text));
        }
        *page += "</tr>\n";
    }
    *page += "</tbody></table></div>\n";
}

/// A row for each job and part.
fn jobs(summary: &Summary) -> Table {
    use super::tables::Entry;
    let metrics = match summary.grid.task() {
        Task::Detect => ["AP", "AP50", "AP75"],
        Task::Segment => ["mIoU", "pixel acc", "mean acc"],
        _ => ["acc1", "per-class recall", "ECE"],
    };
    let first = ["data", "method", "shots", "seed", "part"];
    let header = first.into_iter().chain(metrics).chain(["epoch", "time", "memory"]);
    let mut rows = Vec::new();
    for job in &summary.jobs {
        for part in &job.parts {
            let text = |text: &str| Entry { text: text.to_owned(), value: None, best: false };
            let number = |text: String, value: f64| Entry { text, value: Some(value), best: false };
            let percent = |value: Option<f64>| {
                value.map_or_else(|| text("-"), |value| number(format!("{:.1}", value * 100.), value))
            };
            let [main, second, third] = match &part.metrics {
                Scores::Detect(CocoMetrics { ap, ap50, ap75, .. }) => [ap, ap50, ap75].map(|value| Some(*value)),
                Scores::Segment(SegmentMetrics { miou, pixel_acc, mean_acc, .. }) => {
                    [miou, pixel_acc, mean_acc].map(|value| Some(*value))
                }
                metrics => {
                    let recall = metrics.classify().map(|metrics| metrics.mean_per_class_recall);
                    [Some(metrics.main()), recall, part.ece.map(|ece| ece.before)]
                }
            };
            rows.push(vec![
                text(&job.dataset),
                text(&job.method.name()),
                number(job.shots.to_string(), job.shots as f64),
                number(job.seed.to_string(), job.seed as f64),
                text(&part.name),
                percent(main),
                percent(second),
                percent(third),
                job.best_epoch.map_or_else(|| text("-"), |epoch| number(epoch.to_string(), epoch as f64)),
                number(table::seconds(job.wall_s), job.wall_s),
                job.peak_rss_bytes.map_or_else(|| text("-"), |bytes| number(table::bytes(bytes), bytes as f64)),
            ]);
        }
    }
    Table { title: "results in percent".to_owned(), header: header.map(str::to_owned).collect(), rows }
}

/// The settings of each method and the texts of each data set.
fn settings(page: &mut String, summary: &Summary) {
    *page += "<h2>Settings</h2>\n";
    let mut shown: BTreeMap<(usize, Cow<str>, String), Vec<usize>> = BTreeMap::new();
    for job in &summary.jobs {
        // What is another one in every job, or shown elsewhere, would hide the rest.
        let fields = job.identity.0.iter().filter(|(name, _)| {
            let shown_elsewhere = ["draw", "seed", "data", "backbone", "method"].contains(&name.as_str());
            !shown_elsewhere && !name.starts_with("texts of")
        });
        let text = fields.map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join("\n");
        let shots = shown.entry((job.method.rank(), job.method.name(), text)).or_default();
        if !shots.contains(&job.shots) {
            shots.push(job.shots);
        }
    }
    for ((_, method, text), shots) in shown {
        let shots = shots.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let name = format!("{method}, {shots} shots");
        let _ = writeln!(page, "<details><summary>{}</summary><pre>{}</pre></details>", escape(&name), escape(&text));
    }
    let mut texts: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for job in &summary.jobs {
        for (part, prompts) in &job.prompts {
            let lines = [("templates", &prompts.templates), ("class names", &prompts.classnames)];
            let text = lines.map(|(name, list)| format!("{name}:\n  {}", list.join("\n  "))).join("\n");
            texts.insert((&job.dataset, part), text);
        }
    }
    for ((dataset, part), text) in texts {
        let name = format!("Class names and templates: {dataset}, {part}");
        let _ = writeln!(page, "<details><summary>{}</summary><pre>{}</pre></details>", escape(&name), escape(&text));
    }
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<b> & \"x\"\u{7}"), "&lt;b&gt; &amp; &quot;x&quot;\u{fffd}");
    }
}
