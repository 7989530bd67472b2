//! Dispatch queues: who waits where.
//!
//! Reads `struct scx_dispatch_q` wherever this kernel keeps one: in each `rq->scx` (local, and
//! by version bypass, reject, rescue), in each scheduler per node (global) and per CPU (bypass),
//! and the user DSQs in the scheduler's rhashtable. Ids are not unique: every CPU's local DSQ
//! has the same one, so queues are told apart by origin and address.

use scx_postmortem_format::report::{DsqInfo, DsqState, Hex};

use super::sched::Sched;
use super::tasks::Tasks;
use super::{Limits, Remarks};
use crate::addr::Kva;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::object::Object;

/// More NUMA nodes than `MAX_NUMNODES`.
const MAX_NODES: u32 = 1024;

/// Queues of all kinds together: 8192 CPUs have four each.
const MAX_PLACES: usize = 1 << 16;

/// Where a queue hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `rq->scx.local_dsq`.
    Local(u32),
    /// The queue that holds a CPU's tasks while the scheduler is bypassed.
    Bypass(u32),
    /// 7.3: tasks that the scheduler may not have.
    Reject(u32),
    /// 7.3: tasks that the kernel runs on a scheduler's behalf.
    Rescue(u32),
    /// A node's global queue.
    Global(u32),
    /// Created by the scheduler.
    User,
}

impl Origin {
    fn text(&self) -> String {
        match self {
            Self::Local(cpu) => format!("local cpu {cpu}"),
            Self::Bypass(cpu) => format!("bypass cpu {cpu}"),
            Self::Reject(cpu) => format!("reject cpu {cpu}"),
            Self::Rescue(cpu) => format!("rescue cpu {cpu}"),
            Self::Global(node) => format!("global node {node}"),
            Self::User => "user".to_owned(),
        }
    }

    /// Position of the kind in the report.
    const fn rank(&self) -> u8 {
        match self {
            Self::Local(_) => 0,
            Self::Bypass(_) => 1,
            Self::Reject(_) => 2,
            Self::Rescue(_) => 3,
            Self::Global(_) => 4,
            Self::User => 5,
        }
    }

    /// Whether the contract knows queues of this kind.
    const fn in_contract(&self) -> bool {
        !matches!(self, Self::Reject(_) | Self::Rescue(_))
    }
}

/// One queue, read.
pub struct Dsq {
    /// The contract's record; `None` for kinds of queues that it does not know.
    pub state: Option<DsqState>,
    /// Our own.
    pub info: DsqInfo,
    /// Queued tasks in order.
    pub tasks: Vec<Kva>,
    order: (u8, Option<usize>, u64),
}

/// A queue that is known to exist, not yet read.
struct Place<'k> {
    origin: Origin,
    object: Object<'k>,
    /// Index of the owning scheduler; none for queues of a run queue.
    sched: Option<usize>,
}

/// Reads every queue, ordered local, bypass, (reject, rescue,) global, user; within a kind by
/// scheduler, then CPU or node; user queues by id.
pub fn read_all<'k>(
    kernel: &'k Kernel,
    scheds: &[Sched<'k>],
    tasks: &Tasks<'k>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Vec<Dsq> {
    let mut places = Vec::new();
    for cpu in kernel.cpus() {
        let scx = kernel
            .per_cpu_object("runqueues", "struct rq", cpu)
            .and_then(|rq| rq.member("scx"));
        let Some(scx) = remarks.ok("dsq_states", scx) else {
            continue;
        };
        let mut add = |origin: Origin, path: &'static str| match scx.member(path) {
            Ok(object) => places.push(Place {
                origin,
                object,
                sched: None,
            }),
            // Each kernel has some of these.
            Err(e) if e.is_absent() => {}
            Err(e) => remarks.missing("dsq_states", &e),
        };
        add(Origin::Local(cpu), "local_dsq");
        // 6.19 and 7.0.
        add(Origin::Bypass(cpu), "bypass_dsq");
        // 7.3.
        add(Origin::Reject(cpu), "reject_dsq");
        add(Origin::Rescue(cpu), "rescue.dsq");
    }
    for (index, sched) in scheds.iter().enumerate() {
        let mut add = |origin, object| {
            places.push(Place {
                origin,
                object,
                sched: Some(index),
            })
        };
        // 7.1 and later.
        for cpu in kernel.cpus() {
            let pcpu = sched
                .object
                .member("pcpu")
                .and_then(|p| p.deref_per_cpu(cpu));
            match pcpu.and_then(|p| p.member("bypass_dsq")) {
                Ok(object) => add(Origin::Bypass(cpu), object),
                Err(e) if e.is_absent() => {}
                Err(e) => remarks.missing("dsq_states", &e),
            }
        }
        match globals(&sched.object) {
            Ok(queues) => {
                queues
                    .into_iter()
                    .for_each(|(node, object)| add(Origin::Global(node), object));
            }
            Err(e) => remarks.missing("dsq_states.global", &e),
        }
        match users(&sched.object, limits, remarks) {
            Ok(queues) => queues
                .into_iter()
                .for_each(|object| add(Origin::User, object)),
            Err(e) => remarks.missing("dsq_states.user", &e),
        }
    }

    if places.len() > MAX_PLACES {
        remarks.limit("dsq_states", MAX_PLACES, Some(places.len()));
        places.truncate(MAX_PLACES);
    }
    let limits = limits.shared_by(places.len());
    let mut queues: Vec<Dsq> = places
        .into_iter()
        .filter_map(|place| {
            let sched = place.sched.and_then(|index| scheds.get(index));
            let read = read(kernel, &place, sched, tasks, &limits, remarks);
            match read {
                Ok(dsq) => Some(dsq),
                Err(error) => {
                    let what = format!("{} queue: {error}", place.origin.text());
                    remarks.anomaly("dsq_states", Some(place.object.address()), what);
                    None
                }
            }
        })
        .collect();
    queues.sort_by_key(|dsq| dsq.order);
    queues
}

fn read<'k>(
    kernel: &'k Kernel,
    place: &Place<'_>,
    sched: Option<&Sched<'_>>,
    tasks: &Tasks<'k>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Result<Dsq> {
    let dsq = &place.object;
    let id = dsq.member("id")?.u64()?;
    let nr = dsq.member("nr")?.u32()?;
    let seq = dsq.member("seq")?.u32()?;
    let origin = place.origin.text();
    let flag = kernel.constant("enum scx_dsq_id_flags", "SCX_DSQ_FLAG_BUILTIN")?;
    let builtin = id & flag.cast_unsigned() != 0;
    if builtin == (place.origin == Origin::User) {
        return Err(Error::Implausible {
            what: "its id".into(),
            found: format!("{id:#x}"),
            why: "SCX_DSQ_FLAG_BUILTIN marks built-in queues and nothing else",
        });
    }

    let head = dsq.member("list")?.address();
    let walk = kernel.list(head, limits.list);
    let mut cut = remarks.walk_end(&format!("{origin} dsq {id:#x}"), head, &walk.end);
    let cursor = kernel.constant("enum scx_dsq_lnode_flags", "SCX_DSQ_LNODE_ITER_CURSOR")?;
    let mut queued = Vec::new();
    for node in walk.items {
        let lnode = kernel.entry("struct scx_dsq_list_node", "node", node)?;
        match lnode.member("flags")?.u64() {
            Ok(flags) if flags & cursor.cast_unsigned() != 0 => {}
            Ok(_) => queued.push(kernel.entry("struct task_struct", "scx.dsq_list.node", node)?),
            // The others stay.
            Err(error) => {
                let what = format!("{origin} dsq {id:#x}: {error}");
                remarks.anomaly("dsq_states", Some(node), what);
                cut = true;
            }
        }
    }
    if !cut && queued.len() != usize::try_from(nr).unwrap_or(usize::MAX) {
        let what = format!(
            "{origin} dsq {id:#x}: nr is {nr}, its list holds {}",
            queued.len()
        );
        remarks.anomaly("dsq_states", Some(dsq.address()), what);
    }
    // The tree is only used by queues that were filled by virtual time.
    let by_vtime = !kernel.read_ptr(dsq.member("priq")?.address())?.is_null();

    let kvas: Vec<Kva> = queued.iter().map(Object::address).collect();
    let info = DsqInfo {
        id: Hex(id),
        name: name(kernel, id, builtin),
        origin: origin.clone(),
        dsq_kva: Hex(dsq.address().0),
        sched_kva: sched.map(|s| Hex(s.object.address().0)),
        nr,
        seq,
        order: (!queued.is_empty()).then(|| if by_vtime { "vtime" } else { "fifo" }.to_owned()),
        tasks: queued
            .iter()
            .zip(0..)
            .filter_map(|(task, i)| tasks.queued(task, i, remarks))
            .collect(),
        truncated: cut,
    };
    let state = place.origin.in_contract().then(|| DsqState {
        id,
        origin,
        nr,
        seq,
        task_kvas: kvas.iter().map(|at| at.0).collect(),
        truncated: cut,
    });
    let position = match place.origin {
        Origin::Local(n)
        | Origin::Bypass(n)
        | Origin::Reject(n)
        | Origin::Rescue(n)
        | Origin::Global(n) => u64::from(n),
        Origin::User => id,
    };
    Ok(Dsq {
        state,
        info,
        tasks: kvas,
        order: (place.origin.rank(), place.sched, position),
    })
}

/// `LOCAL`, `GLOBAL` and so on for a built-in id, by this kernel's own enum.
fn name(kernel: &Kernel, id: u64, builtin: bool) -> String {
    if !builtin {
        return "user".to_owned();
    }
    let ty = kernel.btf.find("enum scx_dsq_id_flags").ok();
    let name = ty.and_then(|ty| kernel.btf.enumerator_name(ty, id.cast_signed()));
    name.map_or_else(
        || "built-in".to_owned(),
        |n| n.trim_start_matches("SCX_DSQ_").to_owned(),
    )
}

/// The global queues, one per node.
fn globals<'k>(sched: &Object<'k>) -> Result<Vec<(u32, Object<'k>)>> {
    let kernel = sched.kernel();
    // Without CONFIG_NUMA it is a macro for 1.
    let nodes = match kernel.symbol("nr_node_ids") {
        Ok(at) => kernel.read_u32(at)?.min(MAX_NODES),
        Err(_) => 1,
    };
    // An array of pointers, one per possible node; null for nodes without memory.
    let array = sched.first_of(&["pnode", "global_dsqs"])?;
    let base = array.ptr()?;
    let mut queues = Vec::new();
    for node in 0..nodes {
        let entry = kernel.read_ptr(base.add(u64::from(node) * 8))?;
        if entry.is_null() {
            continue;
        }
        let queue = if sched.has("pnode") {
            // 7.1 and later.
            kernel
                .object("struct scx_sched_pnode", entry)?
                .member("global_dsq")?
        } else {
            kernel.object("struct scx_dispatch_q", entry)?
        };
        queues.push((node, queue));
    }
    Ok(queues)
}

/// The queues that the scheduler created.
fn users<'k>(
    sched: &Object<'k>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Result<Vec<Object<'k>>> {
    let kernel = sched.kernel();
    let table = sched.member("dsq_hash")?;
    let walk = kernel.rhashtable(&table, limits.dsqs)?;
    remarks.walk_end("dsq_hash", table.address(), &walk.end);
    walk.items
        .into_iter()
        .map(|node| kernel.entry("struct scx_dispatch_q", "hash_node", node))
        .collect()
}
