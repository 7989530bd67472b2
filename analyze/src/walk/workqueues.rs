//! Workqueues: pools of workers, what they do, and what waits for them.
//!
//! Mirrors `show_one_worker_pool()` and `show_pwq()` (kernel/workqueue.c): every `struct worker_pool`
//! of the idr `worker_pool_idr` with its `worklist` of `struct work_struct` and its `workers`; the
//! `inactive_works` of every `struct pool_workqueue` of the list `workqueues`. `scx_watchdog_work` is
//! the `struct delayed_work` that looks for starved tasks (kernel/sched/ext.c).

use std::collections::BTreeMap;

use scx_postmortem_format::report::{
    BusyWorker, DelayedWork, Hex, WorkItem, WorkerPool, WorkqueueInfo,
};

use super::clock::Clock;
use super::sched::named_flags;
use super::timers::{function, name, task_name};
use super::{Limits, Members, Remarks};
use crate::addr::Kva;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::object::Object;

/// Pools: four for each CPU of a very large machine, and the unbound ones.
const MAX_POOLS: usize = 1 << 16;
/// Workers of all pools, workqueues and their pools together: lists that share their nodes cost no
/// more than others.
const MAX_NODES: usize = 1 << 17;
/// `WQ_NAME_LEN`.
const MAX_NAME: u64 = 32;
const SECTION: &str = "workqueues";

/// What all pools share.
struct Walk<'a> {
    kernel: &'a Kernel,
    clock: Option<&'a Clock>,
    /// Works that may still be listed.
    left: usize,
    limit: usize,
    /// Other nodes that may still be visited.
    nodes: usize,
    /// Bits of `work_struct.data` below a `pool_workqueue`'s address, and the one that says that
    /// there is one.
    pwq_shift: u32,
    is_pwq: u64,
}

/// Reads all pools; `None` when there is no way to them.
pub fn read(
    kernel: &Kernel,
    clock: Option<&Clock>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Option<WorkqueueInfo> {
    let bits = (|| -> Result<_> {
        let shift = kernel.constant("enum work_bits", "WORK_STRUCT_PWQ_SHIFT")?;
        Ok((
            shift,
            kernel.constant("enum work_flags", "WORK_STRUCT_PWQ")?,
        ))
    })();
    let (shift, is_pwq) = remarks.ok(SECTION, bits)?;
    let mut walk = Walk {
        kernel,
        clock,
        left: limits.works,
        limit: limits.works,
        nodes: MAX_NODES,
        pwq_shift: u32::try_from(shift).unwrap_or(0).min(63),
        is_pwq: is_pwq.cast_unsigned(),
    };
    let pools = kernel
        .global("worker_pool_idr", "struct idr")
        .and_then(|idr| Ok((idr.address(), kernel.idr(&idr, MAX_POOLS)?)));
    let (at, pools) = remarks.ok(SECTION, pools)?;
    remarks.walk_end(SECTION, at, &pools.end);
    let mut inactive = inactive(&mut walk, remarks);
    let mut info = WorkqueueInfo::default();
    for (id, at) in pools.items {
        let pool = remarks.ok(SECTION, kernel.object("struct worker_pool", at))?;
        let mut pool = walk.pool(u32::try_from(id).unwrap_or(u32::MAX), &pool, remarks);
        pool.inactive = inactive.remove(&at).unwrap_or_default();
        info.pools.push(pool);
    }
    info.scx_watchdog = walk.scx_watchdog(&info.pools, remarks);
    Some(info)
}

/// Works that no pool has yet, by pool.
fn inactive(walk: &mut Walk<'_>, remarks: &mut Remarks) -> BTreeMap<Kva, Vec<WorkItem>> {
    let kernel = walk.kernel;
    let mut found: BTreeMap<Kva, Vec<WorkItem>> = BTreeMap::new();
    let Some(head) = remarks.ok("workqueues.inactive", kernel.symbol("workqueues")) else {
        return found;
    };
    for node in walk.list("workqueues.inactive", head, remarks) {
        let read = (|| -> Result<()> {
            let queue = kernel.entry("struct workqueue_struct", "list", node)?;
            let head = queue.member("pwqs")?.address();
            for node in walk.list("workqueues.inactive", head, remarks) {
                let pwq = kernel.entry("struct pool_workqueue", "pwqs_node", node)?;
                let works = walk.works(&pwq.member("inactive_works")?, remarks);
                if !works.is_empty() {
                    let pool = pwq.member("pool")?.ptr()?;
                    found.entry(pool).or_default().extend(works);
                }
            }
            Ok(())
        })();
        if let Err(error) = read {
            remarks.anomaly("workqueues.inactive", Some(node), format!("{error}"));
        }
    }
    found
}

impl Walk<'_> {
    fn pool(&mut self, id: u32, pool: &Object<'_>, remarks: &mut Remarks) -> WorkerPool {
        let kernel = self.kernel;
        let mut members = Members::of("workqueues.pools", *pool, remarks);
        let cpu = members.i32("cpu");
        let nice = pool.member("attrs").and_then(|attrs| {
            if attrs.ptr()?.is_null() {
                return Ok(None);
            }
            attrs.deref()?.member("nice")?.i32().map(Some)
        });
        let nice = members.ok("attrs", nice).flatten();
        let flags = members.u32("flags");
        let [nr_running, nr_workers, nr_idle] =
            ["nr_running", "nr_workers", "nr_idle"].map(|path| members.i32(path));
        // Renamed in 7.0.
        let progress = pool.first_of(&["last_progress_ts", "watchdog_ts"]);
        let progress = members.ok("last_progress_ts", progress.and_then(|ts| ts.u64()));
        let age = progress.zip(self.clock).map(|(ts, clock)| clock.since(ts));
        let workers = members.get("workers", |head| Ok(head.address()));
        let worklist = pool.member("worklist");
        let worklist = members.ok("worklist", worklist);
        let pending = worklist.map(|list| self.works(&list, remarks));
        let pending = pending.unwrap_or_default();
        let second = self.clock.map_or(u64::MAX, |clock| clock.hz);
        WorkerPool {
            id,
            kva: Hex(pool.address().0),
            cpu: cpu.and_then(|cpu| u32::try_from(cpu).ok()),
            nice,
            flags: flags
                .map(|bits| named_flags(kernel, "enum worker_pool_flags", "POOL_", bits.into())),
            nr_running,
            nr_workers,
            nr_idle,
            progress_age_jiffies: age,
            progress_age_ms: age.zip(self.clock).map(|(age, clock)| clock.to_ms(age)),
            overdue: !pending.is_empty() && age.is_some_and(|age| age >= second),
            busy: workers.map_or_else(Vec::new, |head| self.busy(head, remarks)),
            pending,
            inactive: Vec::new(),
        }
    }

    /// The workers of a pool that have a work.
    fn busy(&mut self, head: Kva, remarks: &mut Remarks) -> Vec<BusyWorker> {
        let mut busy = Vec::new();
        for node in self.list("workqueues.pools.workers", head, remarks) {
            match self.worker(node, remarks) {
                Ok(worker) => busy.extend(worker),
                Err(error) => {
                    remarks.anomaly("workqueues.pools.workers", Some(node), error.to_string());
                }
            }
        }
        busy
    }

    fn worker(&mut self, node: Kva, remarks: &mut Remarks) -> Result<Option<BusyWorker>> {
        let worker = self.kernel.entry("struct worker", "node", node)?;
        let work = worker.member("current_work")?.ptr()?;
        if work.is_null() {
            return Ok(None);
        }
        let pwq = worker.member("current_pwq")?;
        let workqueue = match pwq.ptr()?.is_null() {
            true => None,
            false => workqueue(&pwq.deref()?)?,
        };
        // Kept from 7.0 on.
        let since = match worker.member("current_start") {
            Ok(since) => Some(since.u64()?),
            Err(_) => None,
        };
        let age = since.zip(self.clock);
        Ok(Some(BusyWorker {
            task: task_name(&worker.member("task")?)?,
            work_kva: Hex(work.0),
            function: function(self.kernel, worker.member("current_func")?.ptr()?),
            workqueue,
            since_jiffies: since,
            running_ms: age.map(|(since, clock)| clock.to_ms(clock.since(since))),
            scheduled: self.works(&worker.member("scheduled")?, remarks),
        }))
    }

    /// The nodes of a list of something else than works.
    fn list(&mut self, section: &str, head: Kva, remarks: &mut Remarks) -> Vec<Kva> {
        let list = self.kernel.list(head, self.nodes);
        self.nodes = self.nodes.saturating_sub(list.items.len());
        remarks.walk_end(section, head, &list.end);
        list.items
    }

    /// The works on a list. One that cannot be read ends it.
    fn works(&mut self, head: &Object<'_>, remarks: &mut Remarks) -> Vec<WorkItem> {
        let head = head.address();
        let list = self.kernel.list(head, self.left);
        match list.end {
            crate::kernel::WalkEnd::Limit(_) => remarks.limit(SECTION, self.limit, None),
            ref end => {
                remarks.walk_end(SECTION, head, end);
            }
        }
        self.left = self.left.saturating_sub(list.items.len());
        let mut works = Vec::new();
        for node in list.items {
            match self.work(node) {
                Ok(work) => works.push(work),
                Err(error) => {
                    remarks.anomaly(SECTION, Some(node), error.to_string());
                    break;
                }
            }
        }
        works
    }

    fn work(&self, node: Kva) -> Result<WorkItem> {
        let work = self.kernel.entry("struct work_struct", "entry", node)?;
        // get_work_pwq(): the low bits are flags and colour.
        let data = work.member("data")?.u64()?;
        let pwq = data & self.is_pwq != 0;
        let workqueue = pwq.then(|| {
            let at = Kva(data >> self.pwq_shift << self.pwq_shift);
            workqueue(&self.kernel.object("struct pool_workqueue", at)?)
        });
        Ok(WorkItem {
            kva: Hex(work.address().0),
            function: function(self.kernel, work.member("func")?.ptr()?),
            workqueue: workqueue.transpose()?.flatten(),
        })
    }

    fn scx_watchdog(&self, pools: &[WorkerPool], remarks: &mut Remarks) -> Option<DelayedWork> {
        // A kernel without sched_ext has none.
        let at = self.kernel.symbol("scx_watchdog_work").ok()?;
        let read = (|| -> Result<_> {
            let work = self.kernel.object("struct delayed_work", at)?;
            let pending = work.member("work.data")?.u64()? & 1 != 0;
            // timer_pending(): a list's node has a predecessor.
            let set = !work.member("timer.entry.pprev")?.ptr()?.is_null();
            let expires = work.member("timer.expires")?.u64()?;
            let left = self.clock.filter(|_| set).map(|clock| {
                let left = expires.wrapping_sub(clock.jiffies).cast_signed();
                let ms = i128::from(left) * 1000 / i128::from(clock.hz.max(1));
                i64::try_from(ms).unwrap_or(i64::MAX)
            });
            let busy = pools.iter().flat_map(|pool| &pool.busy);
            let mut runs = busy.filter(|worker| worker.work_kva.0 == at.0);
            Ok(DelayedWork {
                kva: Hex(at.0),
                function: function(self.kernel, work.member("work.func")?.ptr()?),
                pending: Some(pending),
                expires_jiffies: set.then_some(expires),
                left_ms: left,
                runs_in: runs.next().and_then(|worker| worker.task.clone()),
            })
        })();
        remarks.ok("workqueues.scx_watchdog", read)
    }
}

/// The name of the workqueue that a `struct pool_workqueue` serves.
fn workqueue(pwq: &Object<'_>) -> Result<Option<String>> {
    let queue = pwq.member("wq")?;
    if queue.ptr()?.is_null() {
        return Ok(None);
    }
    name(&queue.deref()?.member("name")?, MAX_NAME).map(Some)
}
