//! What a monitor saw before the stop, as rows of bars.

use super::super::history::{History, HistorySeries};
use super::escape::Escaped;
use super::postmortem::{SHOWN_ROWS, more};
use super::sparkline::sparkline;

/// Bars of one row: each stands for an equal part of the time.
const BARS: usize = 60;
const LABEL_WIDTH: usize = 40;

/// A line about the samples, the schedulers, then a row for each series.
pub(super) fn history(history: &History) -> Vec<String> {
    let (Some(&first), Some(&last)) = (history.at_ms.first(), history.at_ms.last()) else {
        return Vec::new();
    };
    let span = last.saturating_sub(first);
    let mut lines = vec![format!(
        "{} samples, one each {} ms, over {} of the host's time; {} are in the file",
        history.taken,
        history.interval_ms,
        seconds(span),
        history.held
    )];
    for scheduler in history.schedulers.iter().take(SHOWN_ROWS) {
        lines.push(format!(
            "scheduler {} from {} to {}",
            Escaped(&scheduler.name),
            seconds(scheduler.first_ms.saturating_sub(first)),
            seconds(scheduler.last_ms.saturating_sub(first))
        ));
    }
    lines.extend(more(history.schedulers.len(), SHOWN_ROWS));
    let shown: Vec<&HistorySeries> = history
        .series
        .iter()
        .filter(|series| worth_a_row(series))
        .collect();
    for series in shown.iter().take(SHOWN_ROWS) {
        let bars = bars(history, series, first, span);
        let known = || series.values.iter().flatten();
        let end = known().last().copied().unwrap_or(0);
        let most = known().max().copied().unwrap_or(0);
        let end = match series.values.last() {
            Some(None) => format!("last known {end}"),
            _ => format!("last {end}"),
        };
        let facts = if series.counter {
            format!("{end}, bars are what it grew by")
        } else {
            format!("{end}, most {most}")
        };
        lines.push(format!(
            "{:>LABEL_WIDTH$}  {bars}  ({facts})",
            label(series)
        ));
    }
    lines.extend(more(shown.len(), SHOWN_ROWS));
    lines
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// Sums, queues and what waits; clocks and the counters of single CPUs are in the JSON.
fn worth_a_row(series: &HistorySeries) -> bool {
    let name = series.name.as_str();
    let per_cpu = series.cpu.is_some();
    let plain = matches!(name, "waiting" | "oldest_ms" | "bypass_depth" | "exit_kind");
    plain
        || matches!(
            name,
            "nr_running" | "local_dsq" | "bypass_dsq" | "user_dsq" | "global_dsq"
        )
        || (series.counter && !per_cpu && name.starts_with("SCX_EV_"))
        || name.ends_with("_avg10_raw")
}

fn label(series: &HistorySeries) -> String {
    let name = Escaped(&series.name).to_string();
    match (series.cpu, series.dsq_id, series.node) {
        (Some(cpu), ..) => format!("{name} cpu {cpu}"),
        (_, Some(dsq), _) => format!("{name} {dsq}"),
        (_, _, Some(node)) => format!("{name} node {node}"),
        _ => name,
    }
}

/// Of a depth the most in each part of the time, of a counter its growth; a part without a value
/// is a space.
fn bars(history: &History, series: &HistorySeries, first: u64, span: u64) -> String {
    let count = BARS.min(history.at_ms.len());
    let mut parts: Vec<Option<i64>> = vec![None; count];
    let mut before: Option<i64> = None;
    for (at, value) in history.at_ms.iter().zip(&series.values) {
        let passed = u128::from(at.saturating_sub(first)) * (count as u128);
        let part = passed.checked_div(u128::from(span) + 1).unwrap_or(0);
        let Some(slot) = usize::try_from(part)
            .ok()
            .and_then(|part| parts.get_mut(part))
        else {
            continue;
        };
        let Some(value) = *value else {
            continue;
        };
        let bar = if series.counter {
            // A new scheduler counts from 0 again.
            let grown = before.map_or(0, |before| value.checked_sub(before).unwrap_or(0));
            before = Some(value);
            slot.unwrap_or(0).saturating_add(grown.max(0))
        } else {
            slot.map_or(value, |most| most.max(value))
        };
        *slot = Some(bar);
    }
    let known: Vec<i64> = parts.iter().flatten().copied().collect();
    let glyphs = sparkline(known);
    let mut glyphs = glyphs.chars();
    let drawn = parts.iter().map(|part| match part {
        Some(_) => glyphs.next().unwrap_or(' '),
        None => ' ',
    });
    drawn.collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::history::HistoryScheduler;
    use super::*;
    use crate::report::Hex;

    fn series(name: &str, counter: bool, values: &[Option<i64>]) -> HistorySeries {
        HistorySeries {
            name: name.into(),
            counter,
            values: values.to_vec(),
            ..HistorySeries::default()
        }
    }

    #[test]
    fn rows_show_depths_growth_and_gaps() {
        let some = |values: [i64; 8]| values.map(Some);
        let mut queue = series("user_dsq", false, &some([0, 1, 2, 3, 4, 5, 6, 7]));
        queue.dsq_id = Some(Hex(0xdead5));
        let mut torn = series("nr_running", false, &[Some(1); 8]);
        torn.values[2] = None;
        torn.values[7] = None;
        torn.cpu = Some(3);
        let text = history(&History {
            interval_ms: 100,
            taken: 20,
            held: 8,
            at_ms: (0..8).map(|i| 5000 + i * 100).collect(),
            uptime_ms: vec![None; 8],
            schedulers: vec![HistoryScheduler {
                name: "de\nmo".into(),
                sched_kva: Hex(1),
                first_ms: 5000,
                last_ms: 5700,
            }],
            series: vec![
                queue,
                torn,
                // Reset by the scheduler that came fifth.
                series("SCX_EV_A", true, &some([5, 5, 6, 13, 0, 0, 7, 7])),
                series("clock_ns", true, &some([1; 8])),
            ],
        });
        let pad = |label: &str| format!("{label:>40}");
        assert_eq!(
            text,
            [
                "20 samples, one each 100 ms, over 0.7 s of the host's time; 8 are in the file"
                    .to_owned(),
                "scheduler de\\nmo from 0.0 s to 0.7 s".into(),
                format!("{}  ▁▂▃▄▅▆▇█  (last 7, most 7)", pad("user_dsq 0xdead5")),
                format!(
                    "{}  ▅▅ ▅▅▅▅   (last known 1, most 1)",
                    pad("nr_running cpu 3")
                ),
                format!(
                    "{}  ▁▁▂█▁▁█▁  (last 7, bars are what it grew by)",
                    pad("SCX_EV_A")
                ),
            ]
        );
        assert_eq!(history(&History::default()), Vec::<String>::new());
    }
}
