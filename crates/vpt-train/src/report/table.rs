//! Text tables for the console.

use std::time::{SystemTime, UNIX_EPOCH};

/// Aligns `rows` below `header`, two spaces apart. A column whose cells are all numbers is flush right, any other flush
/// left; missing cells of a short row are empty.
pub fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: usize, column: usize| -> &str {
        if row == 0 { header[column] } else { rows[row - 1].get(column).map_or("", String::as_str) }
    };
    let width = |text: &str| text.chars().count();
    let mut lines = vec![String::new(); rows.len() + 1];
    for column in 0..header.len() {
        let widest = (0..=rows.len()).map(|row| width(cell(row, column))).max().unwrap_or(0);
        let numbers = (1..=rows.len()).all(|row| is_number(cell(row, column)));
        for (row, line) in lines.iter_mut().enumerate() {
            let text = cell(row, column);
            let space = " ".repeat(widest - width(text));
            if column > 0 {
                line.push_str("  ");
            }
            *line += &if numbers { space + text } else { text.to_owned() + &space };
        }
    }
    lines.iter().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// Aligns `rows` of a name and a value.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let widest = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:widest$}  {value}\n")).collect();
    lines.concat()
}

/// A fraction of one as a percentage; a dash for none.
pub fn percent(share: impl Into<Option<f64>>) -> String {
    share.into().map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.))
}

/// A number of bytes in a unit that suits it.
pub fn bytes(count: u64) -> String {
    let (unit, name) = match count {
        0..1_000 => return format!("{count} B"),
        1_000..1_000_000 => (1e3, "kB"),
        1_000_000..1_000_000_000 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    format!("{:.1} {name}", count as f64 / unit)
}

/// A count in a unit that suits it, as parameters are given: 85.8 M.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// Seconds as a person says them: 0.83 s, 12 s, 3 min 5 s, 2 h 1 min.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 10. => format!("{seconds:.2} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Date and time of day in UTC: 2026-11-24 18:56:27.
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years from March on, so that a leap day is the last day of its year, in cycles of 400 years.
    let day = days + 719_468;
    let (cycle, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = 400 * cycle + year + next;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// A curve in one line of at most `width` characters, from its lowest to its highest value; points that share a character are
/// averaged.
pub fn sparkline(values: &[f64], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let points = values.len().min(width);
    let mean = |i: usize| {
        let part = &values[i * values.len() / points..(i + 1) * values.len() / points];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..points).map(mean).collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    let range = means.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
    let level =
        |value: &f64| LEVELS[if range > 0. { ((value - least) / range * 7.).round() as usize } else { 0 }.min(7)];
    means.iter().map(level).collect()
}

/// Digits, perhaps with a point, a sign or a percent sign; a dash and nothing stand for a missing number.
fn is_number(text: &str) -> bool {
    let text = text.strip_suffix('%').unwrap_or(text).trim_end();
    text.is_empty() || text == "-" || text.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_flush_right_and_text_flush_left() {
        let rows = [vec!["a".to_owned(), "3".to_owned(), "x".to_owned()], vec!["büro".to_owned(), "12.5 %".to_owned()]];
        assert_eq!(columns(&["class", "images", ""], &rows), "class  images\na           3  x\nbüro   12.5 %\n");
        assert_eq!(pairs(&[("a", "1".to_owned()), ("long", "2".to_owned())]), "a     1\nlong  2\n");
    }

    #[test]
    fn quantities_are_short() {
        assert_eq!((percent(0.8312), percent(None)), ("83.1 %".to_owned(), "-".to_owned()));
        assert_eq!([0, 999, 1_500, 62_000_000].map(bytes), ["0 B", "999 B", "1.5 kB", "62.0 MB"]);
        assert_eq!([9_999, 85_800_000].map(count), ["9999", "85.8 M"]);
        assert_eq!([0.834, 12.4, 185., 7262.].map(seconds), ["0.83 s", "12 s", "3 min 5 s", "2 h 1 min"]);
    }
    // By `date -u -d @N`.
    #[test]
    fn dates_are_the_calendars() {
        let at = |seconds| utc(UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_795_546_587), "2026-11-24 18:56:27");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00");
    }

    #[test]
    fn curves_fit_into_a_line() {
        assert_eq!(sparkline(&[0., 1., 0.5], 10), "▁█▅");
        assert_eq!(sparkline(&[0., 2., 7., 7.], 2), "▁█");
        assert_eq!((sparkline(&[], 5), sparkline(&[3.; 4], 3)), (String::new(), "▁▁▁".to_owned()));
        assert_eq!(sparkline(&[f64::NAN, f64::INFINITY], 4).chars().count(), 2);
    }
}
