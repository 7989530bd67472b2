//! Samples a guest that runs, for the test of the monitor (`tests/guest/live.py`).
//!
//! `monitor MEMORY OUT`: MEMORY is the file behind the guest's memory, whose offsets are physical
//! addresses. Samples every 100 ms until a line comes on standard input, then once more; writes the
//! timeline to OUT and prints one JSON object: what the samples cost, the last one's values, and the
//! states that the probe's latch went through.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test's helper may stop"
)]

use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use scx_postmortem_analyze::addr::Gpa;
use scx_postmortem_analyze::error::Error;
use scx_postmortem_analyze::kernel::vmcoreinfo::Vmcoreinfo;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::monitor::Sampler;
use scx_postmortem_analyze::probe::Latch;
use scx_postmortem_analyze::source::{Image, PhysicalMemory, Region};
use scx_postmortem_format::capture::{Attached, Timeline};

const INTERVAL: Duration = Duration::from_millis(100);

struct Memory {
    file: File,
    regions: Vec<Region>,
}

impl Memory {
    fn open(path: &str) -> Self {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        let start = Gpa(0);
        Self {
            file,
            regions: vec![Region { start, len }],
        }
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        let read = self.file.read_exact_at(buf, gpa.0);
        read.map_err(|_| Error::Hole(gpa))
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

fn find(path: &str) -> Option<Kernel> {
    let memory = Memory::open(path);
    for candidate in Vmcoreinfo::scan(&memory) {
        let own = Box::new(Memory::open(path));
        let image = Image::live(own, candidate.text().as_bytes().to_vec());
        if let Ok(kernel) = Kernel::find(image, &Overrides::default()) {
            return Some(kernel);
        }
    }
    None
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (memory, out) = args.next().zip(args.next()).expect("monitor MEMORY OUT");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        let _ = tell.send(());
    });
    let kernel = loop {
        if let Some(kernel) = find(&memory) {
            break kernel;
        }
        std::thread::sleep(INTERVAL * 5);
    };
    let began = Instant::now();
    let mut sampler = Sampler::new(&kernel).unwrap();
    let made = began.elapsed();
    let mut timeline = Timeline::new(100);
    let (mut sampling, mut pushing) = (Vec::new(), Duration::ZERO);
    let mut torn = [0u32; 5];
    // The probe is loaded some time after the boot.
    let mut latch = None;
    let mut found = Duration::ZERO;
    let mut latched = Vec::new();
    let mut looking = Vec::new();
    // The scheduler that was attached last, which may be gone at the end.
    let mut scheduler = None;
    let last = loop {
        let ended = told.recv_timeout(INTERVAL).is_ok();
        let start = Instant::now();
        let at_ms = u64::try_from((start - began).as_millis()).unwrap();
        let sample = sampler.sample(&kernel, at_ms);
        sampling.push(start.elapsed());
        if let Attached::Scheduler(seen) = &sample.attached {
            scheduler = Some(seen.clone());
        }
        let start = Instant::now();
        latch = latch.or_else(|| Latch::find(&kernel));
        if let Some(latch) = &latch {
            let start = Instant::now();
            let state = latch.state(&kernel).as_str();
            looking.push(start.elapsed());
            if latched.last() != Some(&state) {
                latched.push(state);
            }
        }
        let finding = start.elapsed();
        let start = Instant::now();
        timeline.push(&sample);
        pushing += start.elapsed();
        found = found.max(finding);
        let lost = [
            sample.uptime_ns.is_none(),
            sample.cpus.iter().any(|cpu| cpu.clock_ns.is_none()),
            sample.waiting.is_none_or(|waiting| !waiting.all),
            sample.exit_kind.is_some() && sample.dsqs.is_none(),
            sample.exit_kind.is_some() && sample.cpus.iter().any(|cpu| cpu.events.is_none()),
        ];
        for (count, lost) in torn.iter_mut().zip(lost) {
            *count += u32::from(lost);
        }
        if ended {
            break sample;
        }
    };
    let content = timeline.encode();
    std::fs::write(out, &content).unwrap();
    sampling.sort();
    looking.sort();
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap();
    let part = |of: usize| us(sampling[(sampling.len() - 1) * of / 100]);
    let result = serde_json::json!({
        "samples": sampling.len(),
        "resolve_us": us(made),
        "median_us": part(50),
        "p99_us": part(99),
        "most_us": part(100),
        "push_us_each": us(pushing) / u64::try_from(sampling.len()).unwrap(),
        "bytes": content.len(),
        "missing": sampler.missing(),
        "torn": { "uptime": torn[0], "clock": torn[1], "waiting": torn[2], "queues": torn[3], "events": torn[4] },
        "latch": latched,
        "latch_ns": latch.as_ref().and_then(|latch| latch.last_trigger_ns(&kernel)),
        "latch_median_ns": looking.get(looking.len() / 2).map(|t| u64::try_from(t.as_nanos()).unwrap()),
        "latch_find_us": us(found),
        "scheduler": scheduler.map(|s| serde_json::json!({ "name": s.name, "kva": s.kva })),
        "uptime_ns": last.uptime_ns,
        "attached": format!("{:?}", last.attached),
        "exit_kind": last.exit_kind,
        "events": last.events.to_vec(),
        "cpus": last.cpus.iter().map(|cpu| serde_json::json!({
            "nr_running": cpu.nr_running,
            "scx_nr_running": cpu.scx_nr_running,
            "local_dsq": cpu.local_dsq,
            "clock_ns": cpu.clock_ns,
            "events": cpu.events,
        })).collect::<Vec<_>>(),
        "queues": last.dsqs.map(|dsqs| dsqs.iter().map(|dsq| format!("{dsq:?}")).collect::<Vec<_>>()),
        "waiting": last.waiting.map(|w| serde_json::json!({
            "tasks": w.tasks, "oldest_ms": w.oldest_ms, "oldest_pid": w.oldest_pid,
        })),
        "psi": last.psi.iter().map(|p| (p.what, p.total_ns)).collect::<std::collections::BTreeMap<_, _>>(),
    });
    println!("{result}");
}
