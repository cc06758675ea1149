//! `curves.svg`: accuracy or AP over shots, a panel for each data set, a line for each method, a band of one standard deviation.
//!
//! Drawn by hand, not by the library that draws other curves: colours are CSS classes, so that the same drawing follows the
//! reader's light or dark scheme, alone and inside the report.

use std::fmt::Write;

use super::{
    GridMethod,
    html::escape,
    summary::{Cell, Summary, main_metric},
    tables::spread,
};
use vpt_train::config::Task;

/// Colours of lines on light and on dark paper, again with dashes where they run out.
pub(super) const COLOURS: [(&str, &str); 8] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8a3d"),
    ("#008f68", "#2fc79c"),
    ("#b0529b", "#e08cc8"),
    ("#8a6d00", "#e6c229"),
    ("#4a4fb5", "#9ba0ff"),
    ("#a3333d", "#ff7a85"),
    ("#4d6b73", "#a7c4cc"),
];
/// Dashes of the methods beyond the first, second, third set of colours.
const DASHES: [&str; 3] = ["none", "7 4", "2 3"];
/// Space around a panel's axes: left, right, top, bottom.
const MARGIN: [f64; 4] = [52., 16., 34., 44.];
/// Height of a line of the legend.
const LINE: f64 = 22.;
/// Width of a letter, as much as fits any usual font.
const LETTER: f64 = 7.6;

/// The styles of a drawing.
pub(super) fn style() -> String {
    let mut css = String::from(
        "svg.curves{font:13px system-ui,sans-serif;fill:var(--ink)}svg.curves .grid{stroke:var(--line);stroke-width:1}\
         svg.curves .axis{stroke:var(--soft);stroke-width:1}svg.curves .name{font-weight:600}\
         svg.curves .soft{fill:var(--soft)}svg.curves .line{fill:none;stroke-width:2}\
         svg.curves .band{opacity:.13;stroke:none}svg.curves .base{stroke-width:1.5;fill:none}\
         svg.curves .dot{stroke:var(--paper);stroke-width:1}",
    );
    for (i, (light, _)) in COLOURS.iter().enumerate() {
        let _ = write!(css, "svg.curves .s{i}{{stroke:{light}}}svg.curves .f{i}{{fill:{light}}}");
    }
    css += "@media (prefers-color-scheme:dark){";
    for (i, (_, dark)) in COLOURS.iter().enumerate() {
        let _ = write!(css, "svg.curves .s{i}{{stroke:{dark}}}svg.curves .f{i}{{fill:{dark}}}");
    }
    css += "}";
    css
}

/// The colours of ink and paper, light and dark.
pub(super) const SCHEME: &str = ":root{--paper:#fff;--ink:#1c2024;--soft:#60676e;--line:#e2e5e9;--mark:#eef5ff}\
@media (prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e8eb;--soft:#9aa2ab;--line:#2c3138;--mark:#1d2a3a}}";

/// The drawing as a file of its own.
pub(super) fn standalone(summary: &Summary) -> String {
    let styles = format!("<style>{SCHEME}svg.curves{{background:var(--paper)}}{}</style>", style());
    drawing(summary, &styles)
}

/// The drawing, with `styles` inside.
pub(super) fn drawing(summary: &Summary, styles: &str) -> String {
    let panels: Vec<(String, Vec<&Cell>)> = summary
        .datasets()
        .into_iter()
        .flat_map(|dataset| summary.parts().into_iter().map(move |part| (dataset, part)))
        .map(|(dataset, part)| {
            let cells = summary.cells_of(dataset).filter(|cell| cell.part == part).collect();
            let name = dataset.unwrap_or("mean of the data sets");
            (if part == "test" { name.to_owned() } else { format!("{name}: {part}") }, cells)
        })
        .filter(|(_, cells): &(_, Vec<&Cell>)| !cells.is_empty())
        .collect();
    let columns = panels.len().clamp(1, 2);
    let (width, height) = if columns == 1 { (760., 400.) } else { (460., 300.) };
    let methods = summary.methods();
    let (legend, above) = legend(&methods, width * columns as f64);
    let total = (width * columns as f64, above + height * panels.len().div_ceil(columns) as f64);
    let mut svg = format!(
        "<svg class=\"curves\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" \
         aria-label=\"{2} over shots\">{styles}{legend}",
        total.0,
        total.1,
        quantity(summary.grid.task())
    );
    let shots = summary.shots();
    for (i, (name, cells)) in panels.iter().enumerate() {
        let (x, y) = ((i % columns) as f64 * width, above + (i / columns) as f64 * height);
        let _ = write!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, (name, summary.grid.task()), cells, &methods, &shots, (width, height));
        svg += "</g>";
    }
    svg + "</svg>\n"
}

/// The methods with their colours, in lines of at most `width`, and how high that is.
fn legend(methods: &[GridMethod], width: f64) -> (String, f64) {
    let (mut svg, mut x, mut y) = (String::new(), 16., 10.);
    for (i, method) in methods.iter().enumerate() {
        let wide = 52. + method.name().len() as f64 * LETTER;
        if x + wide > width && x > 16. {
            (x, y) = (16., y + LINE);
        }
        let middle = y + LINE / 2.;
        let _ = write!(
            svg,
            "<path class=\"line s{}\" stroke-dasharray=\"{}\" d=\"M{x} {middle}h28\"/><text x=\"{}\" y=\"{}\">{}</text>",
            colour(i),
            dashes(i),
            x + 34.,
            middle + 4.5,
            escape(&method.name())
        );
        x += wide;
    }
    (svg, y + LINE + 4.)
}

fn colour(method: usize) -> usize {
    method % COLOURS.len()
}

fn dashes(method: usize) -> &'static str {
    DASHES[method / COLOURS.len() % DASHES.len()]
}

/// What is drawn, in words.
fn quantity(task: Task) -> &'static str {
    if [Task::Detect, Task::Segment].contains(&task) { main_metric(task) } else { "accuracy" }
}

/// One data set: axes, then a band, a line and dots for each method; what learns nothing is a line across.
fn panel(
    svg: &mut String,
    (name, task): (&str, Task),
    cells: &[&Cell],
    methods: &[GridMethod],
    shots: &[usize],
    size: (f64, f64),
) {
    let [left, right, top, bottom] = MARGIN;
    let (x_end, y_end) = (size.0 - right, size.1 - bottom);
    let reach = |cell: &&Cell| {
        let sd = cell.main().sd.unwrap_or(0.);
        [cell.main().mean - sd, cell.main().mean + sd]
    };
    let ends = cells.iter().flat_map(reach).map(|value| value * 100.);
    let (low, high) = ends.fold((100f64, 0f64), |(low, high), end| (low.min(end), high.max(end)));
    let step = step(high - low);
    let (low, high) =
        ((low / step).floor() * step, ((high / step).ceil() * step).max((low / step).floor() * step + step));
    let at_x = |position: usize| {
        if shots.len() < 2 {
            f64::midpoint(left, x_end)
        } else {
            left + 14. + (x_end - left - 28.) * position as f64 / (shots.len() - 1) as f64
        }
    };
    let at_y = |percent: f64| y_end - (percent - low) / (high - low) * (y_end - top);
    let _ = write!(svg, "<text class=\"name\" x=\"{left}\" y=\"20\">{}</text>", escape(name));
    for tick in 0..=((high - low) / step).round() as usize {
        let value = low + tick as f64 * step;
        let y = at_y(value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{left} {y:.1}H{x_end}\"/><text class=\"soft\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            left - 7.,
            y + 4.5,
            if step < 1. { format!("{value:.1}") } else { format!("{value:.0}") }
        );
    }
    for (position, count) in shots.iter().enumerate() {
        let x = at_x(position);
        let _ = write!(
            svg,
            "<path class=\"axis\" d=\"M{x:.1} {y_end}v5\"/><text class=\"soft\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{count}</text>",
            y_end + 19.
        );
    }
    let _ = write!(
        svg,
        "<path class=\"axis\" d=\"M{left} {y_end}H{x_end}\"/><text class=\"soft\" text-anchor=\"middle\" x=\"{}\" y=\"{}\">{} a class; {} in percent</text>",
        f64::midpoint(left, x_end),
        y_end + 37.,
        if task == Task::Detect { "boxes" } else { "images" },
        quantity(task)
    );
    for (i, method) in methods.iter().enumerate() {
        let own: Vec<(f64, &Cell)> = cells
            .iter()
            .filter(|cell| cell.method == *method)
            .filter_map(|cell| Some((at_x(shots.iter().position(|s| *s == cell.shots)?), *cell)))
            .collect();
        let (colour, dashes, alone) = (colour(i), dashes(i), own.len() == 1);
        let point = |x: f64, share: f64| format!("{x:.1} {:.1}", at_y((share * 100.).clamp(low, high)));
        if !alone && !own.is_empty() {
            let upper = own.iter().map(|(x, cell)| point(*x, reach(cell)[1]));
            let lower = own.iter().rev().map(|(x, cell)| point(*x, reach(cell)[0]));
            let band: Vec<String> = upper.chain(lower).collect();
            let _ = write!(svg, "<path class=\"band f{colour}\" d=\"M{}Z\"/>", band.join("L"));
            let line: Vec<String> = own.iter().map(|(x, cell)| point(*x, cell.main().mean)).collect();
            let _ =
                write!(svg, "<path class=\"line s{colour}\" stroke-dasharray=\"{dashes}\" d=\"M{}\"/>", line.join("L"));
        }
        for (x, cell) in own {
            let y = at_y(cell.main().mean * 100.);
            if cell.shots == 0 && shots.len() > 1 {
                let _ = write!(
                    svg,
                    "<path class=\"base s{colour}\" stroke-dasharray=\"5 5\" d=\"M{x:.1} {y:.1}H{x_end}\"/>"
                );
            }
            // A band of one point would not be seen.
            if let Some(sd) = cell.main().sd.filter(|_| alone) {
                let (high, low) = (point(x, cell.main().mean + sd), point(x, cell.main().mean - sd));
                let _ = write!(svg, "<path class=\"base s{colour}\" opacity=\".5\" d=\"M{high}L{low}\"/>");
            }
            let _ = write!(
                svg,
                "<circle class=\"dot f{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}, {} shots: {} %</title></circle>",
                escape(&method.name()),
                cell.shots,
                spread(cell.main())
            );
        }
    }
}

/// The distance between lines of the grid, of 1, 2 or 5 times a power of ten, for some six of them in `range`.
fn step(range: f64) -> f64 {
    let rough = (range / 6.).max(0.1);
    let power = 10f64.powf(rough.log10().floor());
    [1., 2., 5., 10.].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(10. * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        let steps = [0.3, 1.9, 7., 35., 100.].map(step);
        for (step, expected) in steps.into_iter().zip([0.1, 0.5, 2., 10., 20.]) {
            assert!((step - expected).abs() < 1e-9, "{steps:?}");
        }
    }
}
