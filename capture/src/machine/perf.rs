//! Hardware counters of the vCPUs' threads, guest time alone: [`Counters`].
//!
//! Opened when the guest starts, read when it stands still. The contract's `VcpuPerfSample` says
//! which (section 2.10): cycles, instructions, cache misses, mispredicted branches, and the task clock
//! of the thread.

use std::io;

use perf_event::events::{Event, Hardware, Software};
use perf_event::{Builder, Counter, Group};
use scx_postmortem_format::report::VcpuPerfSample;

/// The counters of each vCPU, in the order of vCPUs.
pub(crate) struct Counters(Vec<Option<OfThread>>);

struct OfThread {
    group: Group,
    /// Cycles, instructions, cache misses, branch misses.
    counters: [Counter; 4],
    /// Not in the group: it counts the host's time for this thread, too.
    clock: Option<Counter>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counters").field(&self.0.len()).finish()
    }
}

impl Counters {
    /// Counts for these threads from now on, as long as they run a guest.
    ///
    /// # Errors
    /// A sentence, when this host has no such counters for any of them.
    pub(crate) fn of_guest(threads: &[i32]) -> Result<Self, String> {
        let events = [
            Hardware::CPU_CYCLES,
            Hardware::INSTRUCTIONS,
            Hardware::CACHE_MISSES,
            Hardware::BRANCH_MISSES,
        ];
        Self::open(threads, events, true)
    }

    fn open<E: Event + Copy>(threads: &[i32], events: [E; 4], guest: bool) -> Result<Self, String> {
        let mut why = None;
        let each = threads.iter().map(|&thread| {
            let opened = OfThread::open(thread, events, guest);
            opened.map_err(|error| why = Some(error)).ok()
        });
        let each: Vec<_> = each.collect();
        match why {
            Some(error) if each.iter().all(Option::is_none) => Err(format!(
                "this host has no hardware counters for a guest's vCPUs (perf_event_open: {error})"
            )),
            _ => Ok(Self(each)),
        }
    }

    /// What they have counted. `None` for a vCPU whose counters could not be opened or read.
    pub(crate) fn read(&mut self) -> Vec<Option<VcpuPerfSample>> {
        let each = self.0.iter_mut();
        each.map(|thread| thread.as_mut()?.read().ok()).collect()
    }
}

impl OfThread {
    fn open<E: Event + Copy>(thread: i32, events: [E; 4], guest: bool) -> io::Result<Self> {
        let mut group = Group::builder().observe_pid(thread).build_group()?;
        let mut add = |event: E| {
            let mut builder = Builder::new(event);
            builder.observe_pid(thread);
            if guest {
                builder.exclude_host(true).include_kernel();
            }
            group.add(&builder)
        };
        let [cycles, instructions, cache, branches] = events;
        let counters = [
            add(cycles)?,
            add(instructions)?,
            add(cache)?,
            add(branches)?,
        ];
        group.enable()?;
        let clock = Builder::new(Software::TASK_CLOCK)
            .observe_pid(thread)
            .build();
        let clock = clock.and_then(|mut clock| clock.enable().map(|()| clock));
        Ok(Self {
            group,
            counters,
            clock: clock.ok(),
        })
    }

    fn read(&mut self) -> io::Result<VcpuPerfSample> {
        let data = self.group.read()?;
        let value = |counter: &Counter| {
            let entry = data.get(counter).map(|entry| entry.value());
            entry.ok_or_else(|| io::Error::other("a counter is not in its group"))
        };
        let nanos = |time: Option<std::time::Duration>| {
            let nanos = time.and_then(|time| u64::try_from(time.as_nanos()).ok());
            nanos.ok_or_else(|| io::Error::other("the group does not tell its times"))
        };
        let [cycles, instructions, cache, branches] = &self.counters;
        Ok(VcpuPerfSample {
            cycles: value(cycles)?,
            instructions: value(instructions)?,
            cache_misses: value(cache)?,
            branch_misses: value(branches)?,
            time_enabled_ns: nanos(data.time_enabled())?,
            time_running_ns: nanos(data.time_running())?,
            task_clock_ns: self.clock.as_mut().and_then(|clock| clock.read().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This machine may have no hardware counters, so software events stand in for them: opening,
    /// grouping and reading are the same.
    #[test]
    fn counters_of_a_thread_are_read_in_their_order() {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let events = [
            Software::TASK_CLOCK,
            Software::DUMMY,
            Software::TASK_CLOCK,
            Software::DUMMY,
        ];
        let gone = i32::MAX;
        let mut counters = Counters::open(&[own, gone], events, false).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 5 {}
        let [own, gone] = counters.read().try_into().unwrap();
        assert_eq!(gone, None);
        let own = own.unwrap();
        assert_eq!((own.instructions, own.branch_misses), (0, 0));
        // Four milliseconds of them at least, on however busy a machine.
        assert!(own.cycles > 0 && own.cache_misses > 0);
        assert!(own.task_clock_ns.is_some_and(|ns| ns > 0));
        assert!(own.time_running_ns <= own.time_enabled_ns);
    }

    #[test]
    fn threads_without_counters_are_an_error_that_says_why() {
        let events = [Software::DUMMY; 4];
        let why = Counters::open(&[i32::MAX], events, false).unwrap_err();
        assert!(why.contains("perf_event_open: No such process"), "{why}");
    }
}
