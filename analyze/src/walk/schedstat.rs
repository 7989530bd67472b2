//! Scheduler statistics of each run queue, and its scheduling domains.
//!
//! Mirrors `show_schedstat()` (kernel/sched/stats.c): members of `struct rq`, its
//! `rq_sched_info`, and the `struct sched_domain`s from `rq.sd` up (`for_each_domain()`). The
//! kernel counts while the static key `sched_schedstats` is on; times and `pcount` are always kept.

use std::collections::BTreeSet;

use scx_postmortem_format::report::{
    CpuSchedStats, NamedCount, SchedDomain, SchedStats, Unavailable, UnavailableCode,
};

use super::{Members, Remarks, static_key};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, cpu_list};
use crate::object::Object;

/// Domains of a CPU: SMT, cluster, MC, package, and a dozen levels of NUMA.
const MAX_DOMAINS: usize = 32;
/// Longest name of a domain.
const MAX_NAME: usize = 64;
/// How the names of a domain's counters begin.
const COUNTERS: [&str; 5] = ["lb_", "alb_", "sbe_", "sbf_", "ttwu_"];
const SECTION: &str = "schedstats";

/// The statistics of the online CPUs; `None` when this kernel keeps none.
pub fn read(kernel: &Kernel, remarks: &mut Remarks) -> Option<SchedStats> {
    let rq = kernel.btf.find("struct rq");
    let has = rq.and_then(|rq| kernel.field(rq, "rq_sched_info"));
    remarks.ok(SECTION, has)?;
    // Without CONFIG_SCHEDSTATS there is no key, and there are no counters.
    let counting = remarks.ok(
        "schedstats.counting",
        static_key(kernel, "sched_schedstats"),
    );
    if counting == Some(false) {
        remarks.unavailable.push(Unavailable {
            section: SECTION.to_owned(),
            code: UnavailableCode::NotApplicable,
            reason: NOT_COUNTING.to_owned(),
        });
    }
    let online = kernel
        .symbol("__cpu_online_mask")
        .and_then(|at| kernel.cpu_mask(at));
    let online = remarks.ok(SECTION, online)?;
    let cpus = online.into_iter().filter_map(|cpu| {
        let rq = kernel.per_cpu_object("runqueues", "struct rq", cpu);
        let rq = remarks.ok(SECTION, rq)?;
        Some(read_cpu(cpu, &rq, remarks))
    });
    let cpus = cpus.collect();
    Some(SchedStats { counting, cpus })
}

const NOT_COUNTING: &str = "the static key sched_schedstats is off (kernel.sched_schedstats): counts that are 0 say nothing, only times and pcount are kept";

fn read_cpu(cpu: u32, rq: &Object<'_>, remarks: &mut Remarks) -> CpuSchedStats {
    let domains = domains(cpu, rq, remarks);
    let members = &mut Members::of(SECTION, *rq, remarks);
    CpuSchedStats {
        cpu,
        yld_count: members.u64("yld_count"),
        sched_count: members.u64("sched_count"),
        sched_goidle: members.u64("sched_goidle"),
        ttwu_count: members.u64("ttwu_count"),
        ttwu_local: members.u64("ttwu_local"),
        rq_cpu_time_ns: members.u64("rq_cpu_time"),
        run_delay_ns: members.u64("rq_sched_info.run_delay"),
        pcount: members.u64("rq_sched_info.pcount"),
        domains,
    }
}

fn domains(cpu: u32, rq: &Object<'_>, remarks: &mut Remarks) -> Vec<SchedDomain> {
    let mut found = Vec::new();
    let mut next = rq.member("sd");
    loop {
        let Some(pointer) = remarks.ok("schedstats.domains", next) else {
            return found;
        };
        match pointer.ptr() {
            Ok(at) if at.is_null() => return found,
            _ if found.len() >= MAX_DOMAINS => {
                let what = format!("more than {MAX_DOMAINS} scheduling domains of CPU {cpu}");
                remarks.anomaly("schedstats.domains", Some(pointer.address()), what);
                return found;
            }
            _ => {}
        }
        let Some(domain) = remarks.ok("schedstats.domains", pointer.deref()) else {
            return found;
        };
        let counters = counters(&domain);
        let counters = remarks
            .ok("schedstats.domains", counters)
            .unwrap_or_default();
        let members = &mut Members::of("schedstats.domains", domain, remarks);
        found.push(SchedDomain {
            // CONFIG_SCHED_DEBUG before 6.15.
            name: members.get("name", |name| name.string(MAX_NAME)).flatten(),
            span: members
                .ok("span", span(&domain))
                .map(|cpus| cpu_list(&cpus)),
            counters,
        });
        next = domain.member("parent");
    }
}

/// `sched_domain_span()`.
fn span(domain: &Object<'_>) -> Result<Vec<u32>> {
    let kernel = domain.kernel();
    match domain.member("span") {
        Err(error) if error.is_absent() => {}
        span => return kernel.cpu_mask(span?.address()),
    }
    // The types of 7.0 no longer say where it is; its groups, a ring, cover it.
    let first = domain.member("groups")?.deref()?;
    let mut group = first;
    let mut cpus = BTreeSet::new();
    for _ in 0..=kernel.nr_cpus() {
        cpus.extend(kernel.cpu_mask(group.member("cpumask")?.address())?);
        group = group.member("next")?.deref()?;
        if group.address() == first.address() {
            return Ok(cpus.into_iter().collect());
        }
    }
    Err(Error::Implausible {
        what: "the ring sched_domain.groups".into(),
        found: "more groups than CPUs".into(),
        why: "each has a CPU of its own",
    })
}

/// The counters of a domain that are not 0.
fn counters(domain: &Object<'_>) -> Result<Vec<NamedCount>> {
    let kernel = domain.kernel();
    let idle_type = kernel.btf.find("enum cpu_idle_type").ok();
    let mut found = Vec::new();
    for member in kernel.btf.members(domain.ty()) {
        if !COUNTERS
            .iter()
            .any(|prefix| member.name.starts_with(prefix))
        {
            continue;
        }
        let at = domain.address().add(u64::from(member.bit_offset / 8));
        let object = Object::new(kernel, member.ty, at);
        let values = match object.array_len() {
            Ok(len) => object.u64s(len.min(8))?,
            Err(_) => vec![object.u64()?],
        };
        let is_array = object.array_len().is_ok();
        for (index, value) in (0i64..).zip(values) {
            if value == 0 {
                continue;
            }
            let kind = idle_type.and_then(|ty| kernel.btf.enumerator_name(ty, index));
            let kind = kind.map_or_else(|| index.to_string(), str::to_owned);
            let name = match is_array {
                true => format!("{}[{kind}]", member.name),
                false => member.name.to_owned(),
            };
            found.push(NamedCount { name, value });
        }
    }
    Ok(found)
}
