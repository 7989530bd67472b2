//! The monitor's sampler on captures of the corpus: what it reads in one go is what the report's
//! walkers read, and what cannot be right is absent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::Kernel;
use scx_postmortem_analyze::monitor::Sampler;
use scx_postmortem_format::capture::{Attached, DsqSample, Sample, Timeline};
use scx_postmortem_format::report::{FailureDumpReport, Hex, PostmortemReport};
use scx_postmortem_tests::{corpus, entry};

fn sample(kernel: &Kernel) -> Sample {
    Sampler::new(kernel).unwrap().sample(kernel, 0)
}

fn own(report: &FailureDumpReport) -> &PostmortemReport {
    report.postmortem.as_ref().unwrap()
}

#[test]
fn a_sample_of_a_capture_says_what_its_report_says() {
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        let mut sampler = Sampler::new(&kernel).unwrap();
        assert_eq!(sampler.missing(), [""; 0], "{}", entry.name);
        let sample = sampler.sample(&kernel, 5);
        let report = analysis::analyze(&kernel, &Options::default());
        let own = own(&report);
        let name = &entry.name;
        let uptime = own.kernel.as_ref().unwrap().uptime_ns;
        assert_eq!(sample.uptime_ns, uptime, "{name}");
        let scheduler = own.scheduler.as_ref().unwrap();
        let Attached::Scheduler(attached) = &sample.attached else {
            panic!("{name}: {:?}", sample.attached);
        };
        assert_eq!(Some(&attached.name), scheduler.ops_name.as_ref(), "{name}");
        assert_eq!(
            Some(attached.kva),
            scheduler.sched_kva.map(u64::from),
            "{name}"
        );
        assert_eq!(
            sample.exit_kind,
            scheduler.exit_kind.map(i64::from),
            "{name}"
        );
        assert_eq!(
            sample.bypass_depth,
            scheduler.bypass_depth.map(i64::from),
            "{name}"
        );

        let depth_of = |origin: &str| {
            let dsq = own.dsqs.iter().find(|d| d.origin == origin);
            dsq.map(|d| d.nr)
        };
        for (cpu, rq) in sample.cpus.iter().zip(&own.cpus) {
            assert_eq!(cpu.cpu, rq.cpu);
            assert_eq!(cpu.nr_running, rq.nr_running, "{name}");
            assert_eq!(cpu.scx_nr_running, rq.scx_nr_running, "{name}");
            assert_eq!(cpu.clock_ns, rq.clock_ns, "{name}");
            assert_eq!(
                cpu.local_dsq,
                depth_of(&format!("local cpu {}", cpu.cpu)),
                "{name}"
            );
            assert_eq!(
                cpu.bypass_dsq,
                depth_of(&format!("bypass cpu {}", cpu.cpu)),
                "{name}"
            );
            let events = cpu.events.as_ref().unwrap();
            assert_eq!(events.len(), own.event_counters.len(), "{name}");
            for ((value, event), counter) in
                events.iter().zip(&*sample.events).zip(&own.event_counters)
            {
                assert_eq!(*event, counter.name);
                let theirs = counter.per_cpu.iter().find(|c| c.cpu == cpu.cpu);
                assert_eq!(*value, theirs.map_or(0, |c| c.value), "{name} {event}");
            }
        }
        assert_eq!(sample.cpus.len(), own.cpus.len());

        let mut queues = Vec::new();
        for dsq in &own.dsqs {
            if let Some(node) = dsq.origin.strip_prefix("global node ") {
                queues.push(DsqSample::Global(node.parse().unwrap(), dsq.nr));
            } else if dsq.origin == "user" {
                queues.push(DsqSample::User(dsq.id.into(), dsq.nr));
            }
        }
        assert_eq!(sample.dsqs, Some(queues), "{name}");

        let waiting = sample.waiting.unwrap();
        let runnable = || own.cpus.iter().flat_map(|cpu| &cpu.runnable);
        assert_eq!(waiting.tasks, runnable().count() as u64, "{name}");
        let oldest = runnable().filter_map(|t| t.runnable_age_ms).max();
        assert_eq!(waiting.oldest_ms, oldest.unwrap_or(0), "{name}");
        if let Some(pid) = waiting.oldest_pid {
            let age = runnable().find(|t| t.pid == pid).unwrap().runnable_age_ms;
            assert_eq!(age, oldest, "{name}");
        }
        assert!(waiting.all);

        let system = own.psi.as_ref().unwrap().system.as_ref().unwrap();
        let cpu = system.cpu.as_ref().unwrap().some.as_ref().unwrap();
        let psi = sample.psi.iter().find(|p| p.what == "cpu_some").unwrap();
        assert_eq!(psi.total_ns, Some(cpu.total_ns), "{name}");
        let raw = psi.avg10_raw.unwrap();
        let shown = format!("{}.{:02}", raw >> 11, ((raw & 2047) * 100) >> 11);
        assert_eq!(shown, cpu.avg10, "{name}");

        // Nothing changes in a file: neither does a second look.
        let again = sampler.sample(&kernel, 5);
        assert_eq!(again, sample, "{name}");
    }
}

#[test]
fn each_cpu_has_its_share_of_what_a_sample_looks_at() {
    let entry = entry("stall-6.18").unwrap();
    let kernel = entry.kernel().unwrap();
    let single = analysis::analyze(&kernel, &Options::default());
    let cpus = single.postmortem.unwrap().cpus;
    let lengths: Vec<usize> = cpus.iter().map(|cpu| cpu.runnable.len()).collect();
    let all: usize = lengths.iter().sum();
    assert!(
        lengths.iter().filter(|&&length| length > 1).count() >= 2,
        "{lengths:?} tasks do not show it"
    );
    let sampler = Sampler::new(&kernel).unwrap();
    let oldest = sampler.oldest_age(&kernel).unwrap();
    assert!(oldest.jiffies > 0 && !oldest.cut);
    // The first task of each list, whichever comes first.
    let sampler = sampler.looking_at(lengths.len());
    for _ in 0..3 {
        assert!(sampler.oldest_age(&kernel).unwrap().cut);
    }
    let mut sampler = sampler;
    let waiting = sampler.sample(&kernel, 0).waiting.unwrap();
    assert_eq!((waiting.tasks, waiting.all), (2, false));
    // What one CPU leaves comes to the others.
    let mut sampler = sampler.looking_at(all);
    let waiting = sampler.sample(&kernel, 0).waiting.unwrap();
    assert!(waiting.tasks > 2, "{waiting:?}");
}

#[test]
fn the_stalled_task_of_the_stall_is_the_oldest() {
    let kernel = entry("stall-6.18").unwrap().kernel().unwrap();
    let sample = sample(&kernel);
    let waiting = sample.waiting.unwrap();
    assert_eq!((waiting.oldest_ms, waiting.oldest_pid), (9388, Some(188)));
    let user = DsqSample::User(0xdead5, 6);
    assert!(sample.dsqs.unwrap().contains(&user));
}

/// Two moments of one guest: the capture, and the same with some of its bytes changed.
fn moments(name: &str, bytes: impl Fn(&Kernel) -> Vec<(Kva, Vec<u8>)>) -> (Sample, Sample) {
    let entry = entry(name).unwrap();
    let first = entry.kernel().unwrap();
    let bytes = bytes(&first);
    let bytes: Vec<(Kva, &[u8])> = bytes.iter().map(|(at, b)| (*at, &b[..])).collect();
    let second = entry.patched(&bytes, &[]).unwrap();
    let mut sampler = Sampler::new(&first).unwrap();
    (sampler.sample(&first, 0), sampler.sample(&second, 100))
}

fn root(kernel: &Kernel) -> Kva {
    kernel.read_ptr(kernel.symbol("scx_root").unwrap()).unwrap()
}

fn stats(kernel: &Kernel, cpu: u32) -> Kva {
    let sched = kernel.object("struct scx_sched", root(kernel)).unwrap();
    let pcpu = sched.member("pcpu").unwrap().deref_per_cpu(cpu).unwrap();
    pcpu.member("event_stats").unwrap().address()
}

#[test]
fn a_counter_that_goes_back_is_torn_and_the_others_stay() {
    let (before, after) = moments("error-7.3", |kernel| {
        vec![(stats(kernel, 1).add(8 * 7), vec![0; 8])]
    });
    let reslices = before.cpus[1].events.as_ref().unwrap()[7];
    assert!(reslices > 0, "{before:?}");
    assert_eq!(after.cpus[1].events, None);
    assert_eq!(after.cpus[0], before.cpus[0]);
    let (_, negative) = moments("error-7.3", |kernel| {
        vec![(stats(kernel, 0), vec![0xff; 8])]
    });
    assert_eq!(negative.cpus[0].events, None);
}

#[test]
fn a_scheduler_that_goes_takes_its_values_along() {
    let (before, after) = moments("stall-6.18", |kernel| {
        vec![(kernel.symbol("scx_root").unwrap(), vec![0; 8])]
    });
    assert!(matches!(before.attached, Attached::Scheduler(_)));
    assert_eq!(after.attached, Attached::Nothing);
    assert_eq!((after.exit_kind, after.dsqs), (None, None));
    assert!(after.cpus.iter().all(|cpu| cpu.events.is_none()));
    // What belongs to the CPUs stays.
    assert_eq!(after.cpus[0].local_dsq, before.cpus[0].local_dsq);
    assert_eq!(after.waiting, before.waiting);
}

#[test]
fn another_scheduler_at_the_same_address_counts_from_the_start() {
    let (before, after) = moments("stall-6.18", |kernel| {
        let seq = kernel.symbol("scx_enable_seq").unwrap();
        let now = kernel.read_u64(seq).unwrap() + 1;
        let cpu = |cpu| (stats(kernel, cpu), vec![0; 72]);
        vec![(seq, now.to_le_bytes().to_vec()), cpu(0), cpu(1)]
    });
    let (Attached::Scheduler(one), Attached::Scheduler(two)) = (&before.attached, &after.attached)
    else {
        panic!("{:?} {:?}", before.attached, after.attached);
    };
    assert_eq!((one.kva, one.enable_seq + 1), (two.kva, two.enable_seq));
    assert!(
        before.cpus[0]
            .events
            .as_ref()
            .unwrap()
            .iter()
            .any(|&v| v > 0)
    );
    assert_eq!(after.cpus[0].events, Some(vec![0; 9]));
}

#[test]
fn lists_that_lead_nowhere_cost_no_more_than_their_own_values() {
    // The first CPU's runnable list leads into itself.
    let (before, after) = moments("stall-6.18", |kernel| {
        let rq = kernel.per_cpu_object("runqueues", "struct rq", 0).unwrap();
        let head = rq.member("scx.runnable_list").unwrap().address();
        let first = kernel.read_ptr(head).unwrap();
        vec![(first, first.0.to_le_bytes().to_vec())]
    });
    let waiting = after.waiting.unwrap();
    assert!(!waiting.all);
    assert!(waiting.tasks < before.waiting.unwrap().tasks);
    assert_eq!(after.dsqs, before.dsqs);
    // A pointer into nothing.
    let (_, after) = moments("stall-6.18", |kernel| {
        let rq = kernel.per_cpu_object("runqueues", "struct rq", 0).unwrap();
        let head = rq.member("scx.runnable_list").unwrap().address();
        vec![(head, 0xdead_0000_0000_0100u64.to_le_bytes().to_vec())]
    });
    assert!(!after.waiting.unwrap().all);
    // The user's queue says that it is a built-in one.
    let (_, after) = moments("stall-6.18", |kernel| {
        let sched = kernel.object("struct scx_sched", root(kernel)).unwrap();
        let table = sched.member("dsq_hash").unwrap();
        let node = kernel.rhashtable(&table, 10).unwrap().items[0];
        let dsq = kernel
            .entry("struct scx_dispatch_q", "hash_node", node)
            .unwrap();
        vec![(dsq.member("id").unwrap().address().add(7), vec![0x80])]
    });
    assert_eq!(after.dsqs, None);
    // A depth that no queue has, and a clock that has gone back.
    let (before, after) = moments("stall-6.18", |kernel| {
        let rq = kernel.per_cpu_object("runqueues", "struct rq", 1).unwrap();
        let at = |path| rq.member(path).unwrap().address();
        vec![
            (at("scx.local_dsq.nr"), vec![0xff; 4]),
            (at("clock"), vec![0; 8]),
        ]
    });
    assert_eq!(
        (after.cpus[1].local_dsq, after.cpus[1].clock_ns),
        (None, None)
    );
    assert_eq!(after.cpus[1].nr_running, before.cpus[1].nr_running);
}

#[test]
fn the_report_of_a_capture_with_samples_has_them_before_its_own() {
    let entry = entry("stall-6.18").unwrap();
    let mut kernel = entry.kernel().unwrap();
    let plain = analysis::analyze(&kernel, &Options::default());
    let mut sampler = Sampler::new(&kernel).unwrap();
    let mut timeline = Timeline::new(100);
    for i in 0..5 {
        timeline.push(&sampler.sample(&kernel, i * 100));
    }
    kernel.image.timeline = Some(timeline.encode());
    let report = analysis::analyze(&kernel, &Options::default());
    assert_eq!(plain.event_counter_timeline.len(), 1);
    assert_eq!(report.event_counter_timeline.len(), 6);
    let now = &plain.event_counter_timeline[0];
    assert!(report.event_counter_timeline.iter().all(|row| row == now));
    let history = own(&report).history.as_ref().unwrap();
    assert_eq!(history.at_ms, [0, 100, 200, 300, 400]);
    let depth = history
        .series
        .iter()
        .find(|s| s.dsq_id == Some(Hex(0xdead5)));
    let depth = depth.unwrap();
    assert_eq!(depth.values, [Some(6); 5]);
    let text = own(&report).to_string();
    assert!(
        text.contains("\nbefore the stop:\n  5 samples, one each 100 ms"),
        "{text}"
    );
    assert!(
        text.contains("user_dsq 0xdead5  ▅▅▅▅▅  (last 6, most 6)"),
        "{text}"
    );
    // Everything else is as it was.
    let mut without = report.clone();
    without.postmortem.as_mut().unwrap().history = None;
    without.event_counter_timeline.drain(..5);
    assert_eq!(without, plain);

    kernel.image.timeline = Some(b"{}".to_vec());
    let report = analysis::analyze(&kernel, &Options::default());
    let missing = &own(&report).unavailable;
    let missing = missing.iter().find(|u| u.section == "history").unwrap();
    assert!(
        missing
            .reason
            .starts_with("the note of the monitor: missing field `version`"),
        "{missing:?}"
    );
}
