//! What a monitor saw before the stop, out of the file's note into the report.

use scx_postmortem_format::capture::{Series, Timeline, series};
use scx_postmortem_format::report::{
    EventCounter, EventCounterSample, Hex, History, HistoryScheduler, HistorySeries,
};

use crate::bytes::to_u64;
use crate::walk::{Remarks, events};

/// Samples that a report shows.
const MAX_SHOWN: usize = 240;
/// Series that a report shows: those of 20 CPUs, or of more with little on them.
const MAX_SERIES: usize = 1024;

/// The report's own section, and the contract's timeline: one row for each sample whose counters
/// could be read on all CPUs. Samples end where the guest had been up for `until_ns`, when the image
/// was taken.
pub fn read(
    timeline: &Timeline,
    until_ns: Option<u64>,
    remarks: &mut Remarks,
) -> (History, Vec<EventCounterSample>) {
    let names = timeline.series();
    let place = |name: &str| names.iter().position(|s| s.0 == name && s.1.is_none());
    let (uptime, scheduler) = (place(series::UPTIME_NS), place(series::SCHEDULER));
    let mut held = 0;
    let mut later = false;
    timeline.walk(|_, values| {
        let at = uptime.and_then(|place| values.get(place).copied().flatten());
        let at = at.and_then(|ns| u64::try_from(ns).ok());
        later |= at.zip(until_ns).is_some_and(|(at, until)| at > until);
        held += usize::from(!later);
    });
    let shown = shown(held);
    let after = timeline.len().saturating_sub(held);
    let mut history = History {
        interval_ms: timeline.interval_ms(),
        // Samples are thinned out only when they are a minute old, and an early image is not that
        // much earlier.
        taken: timeline.taken().saturating_sub(to_u64(after)),
        held: to_u64(held),
        ..History::default()
    };
    let sums = Sums::new(names);
    let known = timeline.schedulers();
    // Whether a scheduler is attached is in its own list.
    let left_out = [uptime, scheduler];
    let mut columns: Vec<Vec<Option<i64>>> = vec![Vec::new(); names.len()];
    let mut totals: Vec<Vec<Option<i64>>> = vec![Vec::new(); sums.counters.len()];
    let mut rows = Vec::new();
    let mut spans: Vec<Option<(u64, u64)>> = vec![None; known.len()];
    let mut number = 0;
    // Most series of most guests are 0 all the time: they take no room.
    let mut used = vec![false; names.len()];
    let mut seen = 0;
    timeline.walk(|_, values| {
        seen += 1;
        if seen > held {
            return;
        }
        for (used, value) in used.iter_mut().zip(values) {
            *used |= value.is_some_and(|value| value != 0);
        }
    });
    for series in left_out.into_iter().flatten() {
        if let Some(used) = used.get_mut(series) {
            *used = false;
        }
    }
    let wanted = used.iter().filter(|used| **used).count();
    if wanted > MAX_SERIES {
        remarks.limit("history.series", MAX_SERIES, Some(wanted));
        let mut room = MAX_SERIES;
        for used in &mut used {
            *used &= room > 0;
            room -= usize::from(*used);
        }
    }
    timeline.walk(|at_ms, values| {
        number += 1;
        if number > held {
            return;
        }
        let of = |place: Option<usize>| place.and_then(|at| values.get(at).copied().flatten());
        let attached = of(scheduler).and_then(|n| usize::try_from(n).ok());
        let attached = attached.and_then(|n| n.checked_sub(1));
        if let Some(span) = attached.and_then(|n| spans.get_mut(n)) {
            let first = span.map_or(at_ms, |(first, _)| first);
            *span = Some((first, at_ms));
        }
        if !shown(number - 1) {
            return;
        }
        history.at_ms.push(at_ms);
        let uptime_ms = of(uptime).and_then(|ns| u64::try_from(ns).ok());
        let uptime_ms = uptime_ms.map(|ns| ns / 1_000_000);
        history.uptime_ms.push(uptime_ms);
        for ((column, value), used) in columns.iter_mut().zip(values).zip(&used) {
            if *used {
                column.push(*value);
            }
        }
        let sum = sums.of(values);
        for (index, total) in totals.iter_mut().enumerate() {
            total.push(sum.as_ref().and_then(|sum| sum.get(index)).map(|c| c.value));
        }
        if let (Some(uptime_ms), Some(sum)) = (uptime_ms, sum) {
            rows.push(events::sample(&sum, uptime_ms));
        }
    });
    let spans = known.iter().zip(spans);
    history.schedulers = spans
        .filter_map(|(scheduler, span)| {
            let (first_ms, last_ms) = span?;
            Some(HistoryScheduler {
                name: scheduler.name.clone(),
                sched_kva: Hex(scheduler.kva),
                first_ms,
                last_ms,
            })
        })
        .collect();
    let totals = sums
        .counters
        .iter()
        .zip(totals)
        .map(|(name, values)| (Series(name.clone(), None, None), values));
    let columns = names.iter().cloned().zip(columns);
    let mut all: Vec<HistorySeries> = totals
        .chain(columns)
        .filter(|(_, values)| values.iter().any(|value| value.is_some_and(|v| v != 0)))
        .map(|(Series(name, cpu, id), values)| HistorySeries {
            counter: name.starts_with(series::EVENT)
                || name.ends_with("_total_ns")
                || name == series::CLOCK_NS,
            cpu,
            dsq_id: id.filter(|_| name == series::USER_DSQ).map(Hex),
            node: id
                .filter(|_| name == series::GLOBAL_DSQ)
                .and_then(|node| u32::try_from(node).ok()),
            name,
            values,
        })
        .collect();
    all.sort_by_key(|s| {
        (
            rank(&s.name),
            s.dsq_id,
            s.node,
            s.cpu.is_some(),
            s.name.clone(),
            s.cpu,
        )
    });
    history.series = all;
    (history, rows)
}

/// Which samples are shown: so many that they are evenly spread, the last one always.
fn shown(held: usize) -> impl Fn(usize) -> bool {
    let step = held.div_ceil(MAX_SHOWN).max(1);
    let phase = held.saturating_sub(1) % step;
    move |number| number % step == phase
}

/// What a person asks first comes first.
fn rank(name: &str) -> u8 {
    match name {
        series::OLDEST_MS | series::OLDEST_PID | series::WAITING => 0,
        series::EXIT_KIND | series::BYPASS_DEPTH => 1,
        series::USER_DSQ => 2,
        series::GLOBAL_DSQ => 3,
        name if name.starts_with(series::PSI) => 5,
        name if name.starts_with(series::EVENT) => 6,
        series::CLOCK_NS => 7,
        _ => 4,
    }
}

/// The event counters' names, and the series of each.
struct Sums {
    counters: Vec<String>,
    places: Vec<Vec<usize>>,
}

impl Sums {
    fn new(names: &[Series]) -> Self {
        let mut this = Self {
            counters: Vec::new(),
            places: Vec::new(),
        };
        for (at, series) in names.iter().enumerate() {
            if !series.0.starts_with(series::EVENT) || series.1.is_none() {
                continue;
            }
            let known = this.counters.iter().position(|name| *name == series.0);
            match known.and_then(|known| this.places.get_mut(known)) {
                Some(places) => places.push(at),
                // As many as a kernel could have; a note that names more is not the monitor's.
                None if this.counters.len() < 256 => {
                    this.counters.push(series.0.clone());
                    this.places.push(vec![at]);
                }
                None => {}
            }
        }
        this
    }

    /// The sums over the CPUs; `None` when one of them is not known: a partial sum would look
    /// like a counter that went back.
    fn of(&self, values: &[Option<i64>]) -> Option<Vec<EventCounter>> {
        if self.counters.is_empty() {
            return None;
        }
        let counters = self
            .counters
            .iter()
            .zip(&self.places)
            .map(|(name, places)| {
                let mut value = 0i64;
                for &place in places {
                    value = value.saturating_add(values.get(place).copied().flatten()?);
                }
                Some(EventCounter {
                    name: name.clone(),
                    value,
                    per_cpu: Vec::new(),
                })
            });
        counters.collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::sync::Arc;

    use scx_postmortem_format::capture::{Attached, CpuSample, DsqSample, Sample, SeenScheduler};

    use super::*;

    fn timeline(count: u64) -> Timeline {
        let mut timeline = Timeline::new(100);
        for i in 0..count {
            let counter = i64::try_from(i).unwrap();
            let cpu = |cpu| CpuSample {
                cpu,
                nr_running: Some(2),
                local_dsq: Some(0),
                // The second CPU's were torn in every tenth sample.
                events: (cpu == 0 || i % 10 != 5).then(|| vec![counter, 0]),
                ..CpuSample::default()
            };
            timeline.push(&Sample {
                at_ms: i * 100,
                uptime_ns: (i % 10 != 7).then_some((5000 + i * 90) * 1_000_000),
                attached: if i < 3 {
                    Attached::Nothing
                } else {
                    Attached::Scheduler(SeenScheduler {
                        name: if i < 8 { "first" } else { "second" }.into(),
                        kva: 0x1000 + i / 8,
                        enable_seq: 0,
                    })
                },
                events: Arc::new([
                    "SCX_EV_ENQ_SLICE_DFL".into(),
                    "SCX_EV_BYPASS_ACTIVATE".into(),
                ]),
                cpus: vec![cpu(0), cpu(1)],
                dsqs: Some(vec![DsqSample::Global(0, 1), DsqSample::User(7, 3)]),
                ..Sample::default()
            });
        }
        timeline
    }

    #[test]
    fn an_early_image_has_no_samples_from_after_it() {
        // The fifth sample is from 5360 ms; the second scheduler came with the ninth.
        let until = Some(5_400_000_000);
        let (history, rows) = read(&timeline(20), until, &mut Remarks::default());
        assert_eq!(history.at_ms, [0, 100, 200, 300, 400]);
        assert_eq!((history.held, history.taken), (5, 5));
        assert!(rows.iter().all(|row| row.elapsed_ms <= 5400), "{rows:?}");
        assert_eq!(history.schedulers.len(), 1);
        assert_eq!(history.schedulers[0].last_ms, 400);
        let all = history.series.iter().all(|series| series.values.len() == 5);
        assert!(all, "{:?}", history.series);
        let (none, rows) = read(&timeline(20), Some(1), &mut Remarks::default());
        assert_eq!((none.at_ms.len(), none.held, rows.len()), (0, 0, 0));
    }

    #[test]
    fn a_short_run_is_shown_whole() {
        let mut remarks = Remarks::default();
        let (history, rows) = read(&timeline(9), None, &mut remarks);
        assert_eq!(history.at_ms, (0..9).map(|i| i * 100).collect::<Vec<_>>());
        assert_eq!(history.uptime_ms[6..], [Some(5540), None, Some(5720)]);
        // Sample 5 lacks a CPU's counters, sample 7 its time.
        let times: Vec<u64> = rows.iter().map(|row| row.elapsed_ms).collect();
        assert_eq!(times, [5000, 5090, 5180, 5270, 5360, 5540, 5720]);
        assert_eq!(rows[6].refill_slice_dfl, 16);
        let schedulers: Vec<_> = history
            .schedulers
            .iter()
            .map(|s| (s.name.as_str(), s.first_ms, s.last_ms))
            .collect();
        assert_eq!(schedulers, [("first", 300, 700), ("second", 800, 800)]);
        let series: Vec<_> = history
            .series
            .iter()
            .map(|s| (s.name.as_str(), s.cpu, s.counter))
            .collect();
        assert_eq!(
            series,
            [
                ("user_dsq", None, false),
                ("global_dsq", None, false),
                ("nr_running", Some(0), false),
                ("nr_running", Some(1), false),
                ("SCX_EV_ENQ_SLICE_DFL", None, true),
                ("SCX_EV_ENQ_SLICE_DFL", Some(0), true),
                ("SCX_EV_ENQ_SLICE_DFL", Some(1), true),
            ]
        );
        let sum = &history.series[4].values;
        assert_eq!(sum[3..7], [Some(6), Some(8), None, Some(12)]);
        assert_eq!(history.series[0].dsq_id, Some(Hex(7)));
        assert!(remarks.limits.is_empty());
    }

    #[test]
    fn a_long_run_is_thinned_evenly_and_ends_with_its_last_sample() {
        let (history, rows) = read(&timeline(2411), None, &mut Remarks::default());
        assert!(history.at_ms.len() <= MAX_SHOWN, "{}", history.at_ms.len());
        assert!(history.at_ms.len() > MAX_SHOWN / 2);
        assert_eq!(history.at_ms.last(), Some(&241_000));
        assert_eq!(history.held, 2411);
        assert!(rows.len() <= history.at_ms.len());
        for series in &history.series {
            assert_eq!(series.values.len(), history.at_ms.len(), "{}", series.name);
        }
    }
}
