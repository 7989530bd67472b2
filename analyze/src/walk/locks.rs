//! What tasks wait for, and who has it.
//!
//! Reads `task_struct.pi_blocked_on`, `blocked_on` (6.17) and `blocker` (6.16, with
//! CONFIG_DETECT_HUNG_TASK_BLOCKER; include/linux/hung_task.h), and where these do not tell, the
//! waiter's own record on its kernel stack: `struct mutex_waiter`, `rwsem_waiter`,
//! `semaphore_waiter` or `futex_q`. Then the lock: `struct mutex` (kernel/locking/mutex.c),
//! `rw_semaphore` (rwsem.c), `semaphore` (semaphore.c), `rt_mutex_base` (rtmutex.c),
//! `futex_pi_state` (kernel/futex/pi.c).
//!
//! A pointer alone proves nothing, least of all one with type bits in it. A task waits for a
//! lock when the lock's own list of waiters has it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use scx_postmortem_format::report::{
    Hex, LockInfo, LockWait, NamedTask, TaskEnrichment, TaskInfo, Unavailable, UnavailableCode,
};

use super::Remarks;
use crate::addr::Kva;
use crate::bytes::{le_u64, to_u64};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, Walk};
use crate::object::Object;

/// Nodes of waiters' lists that are looked at for each task there is: a task waits in one list, which
/// is walked from its stack and again from the lock. More is memory that lies.
const NODES_PER_TASK: usize = 8;
/// The same on a machine with few tasks.
const MIN_NODES: usize = 4096;
/// Locks that one ring of waiters may look to be in.
const MAX_CANDIDATES: usize = 8;
/// `THREAD_SIZE`: what a task's stack has.
const STACK_SIZE: u64 = 1 << 14;
const SECTION: &str = "tasks.waits_for";

/// Flags in the low bits of owners (kernel/locking/mutex.h, rwsem.c, rtmutex_common.h).
mod flag {
    pub(super) const MUTEX: u64 = 7;
    pub(super) const RWSEM: u64 = 3;
    pub(super) const RWSEM_READER_OWNED: u64 = 1;
    pub(super) const RT_MUTEX: u64 = 1;
    /// `RWSEM_WRITER_LOCKED` and `RWSEM_READER_SHIFT` of a count, whose highest bit is a guard.
    pub(super) const RWSEM_WRITER: u64 = 1;
    pub(super) const RWSEM_READER_SHIFT: u32 = 8;
    /// `FUT_OFF_INODE`: the key is that of a page, not of an address.
    pub(super) const FUTEX_INODE: u32 = 1;
    pub(super) const FUTEX_MMSHARED: u32 = 2;
    /// `BLOCKER_TYPE_MASK`, and the types.
    pub(super) const BLOCKER: u64 = 3;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Mutex,
    Rwsem,
    Semaphore,
    RtMutex,
    PiFutex,
    Futex,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Mutex => "mutex",
            Self::Rwsem => "rwsem",
            Self::Semaphore => "semaphore",
            Self::RtMutex => "rt_mutex",
            Self::PiFutex => "pi_futex",
            Self::Futex => "futex",
        }
    }

    /// The lock and the record of one who waits for it, where these are in a list.
    const fn listed(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Mutex => Some(("struct mutex", "struct mutex_waiter")),
            Self::Rwsem => Some(("struct rw_semaphore", "struct rwsem_waiter")),
            Self::Semaphore => Some(("struct semaphore", "struct semaphore_waiter")),
            _ => None,
        }
    }
}

/// A lock slow path by the name of its function, without what a compiler appends.
fn slow_path(function: &str) -> Option<(Kind, Option<&'static str>)> {
    match function {
        "__mutex_lock"
        | "__mutex_lock_slowpath"
        | "__mutex_lock_killable_slowpath"
        | "__mutex_lock_interruptible_slowpath"
        | "__ww_mutex_lock" => Some((Kind::Mutex, Some("mutex_lock_slowpath"))),
        "rwsem_down_read_slowpath" => Some((Kind::Rwsem, Some("rwsem_down_read_slowpath"))),
        "rwsem_down_write_slowpath" => Some((Kind::Rwsem, Some("rwsem_down_write_slowpath"))),
        "___down_common"
        | "__down_common"
        | "__down"
        | "__down_interruptible"
        | "__down_killable"
        | "__down_timeout" => Some((Kind::Semaphore, None)),
        "futex_wait_queue"
        | "futex_do_wait"
        | "__futex_wait"
        | "futex_wait"
        | "futex_wait_requeue_pi" => Some((Kind::Futex, None)),
        _ => None,
    }
}

/// The functions of a stack, innermost first, without offsets and compilers' suffixes.
fn functions(task: &TaskInfo) -> impl Iterator<Item = &str> {
    let symbols = task.stack.iter().filter_map(|f| f.symbol.as_deref());
    symbols.map(|symbol| {
        let name = symbol.split_once('+').map_or(symbol, |(name, _)| name);
        name.split_once('.').map_or(name, |(name, _)| name)
    })
}

/// Fills the contract's `lock_slowpath_match` from the stacks: the innermost slow path that the
/// task is in.
pub fn match_slow_paths(enriched: &mut [TaskEnrichment], tasks: &[TaskInfo]) {
    // Both were made of the same list, unless a record failed.
    if enriched.len() != tasks.len() {
        return;
    }
    for (record, task) in enriched.iter_mut().zip(tasks) {
        let found = functions(task).find_map(|function| match function {
            "queued_spin_lock_slowpath"
            | "native_queued_spin_lock_slowpath"
            | "__pv_queued_spin_lock_slowpath" => Some("queued_spin_lock_slowpath"),
            function => slow_path(function)?.1,
        });
        record.lock_slowpath_match = found.map(str::to_owned);
    }
}

/// Where a task was found to wait.
#[derive(Debug, Clone)]
struct Wait {
    kind: Kind,
    address: Kva,
    found_by: &'static str,
    mode: Option<&'static str>,
    /// The process of a futex that is no other's.
    tgid: Option<i32>,
}

/// Says of each task what lock it waits for, and lists these locks by address.
pub fn read(kernel: &Kernel, tasks: &mut [TaskInfo], remarks: &mut Remarks) -> Vec<LockInfo> {
    let known: HashMap<Kva, NamedTask> = tasks
        .iter()
        .map(|task| {
            let named = NamedTask {
                pid: task.pid,
                comm: task.comm.clone(),
                kva: task.kva,
            };
            (Kva(task.kva.0), named)
        })
        .collect();
    let nodes = known.len().saturating_mul(NODES_PER_TASK);
    let reader = Reader {
        kernel,
        known,
        left: Cell::new(nodes.max(MIN_NODES)),
        lists: RefCell::default(),
        placed: RefCell::default(),
    };
    let waits: Vec<_> = tasks
        .iter()
        .map(|task| {
            let mut remarks = Remarks::default();
            let wait = reader.wait(task, &mut remarks);
            (wait, remarks)
        })
        .collect();
    let mut locks: BTreeMap<(Kva, Kind, Option<i32>), LockInfo> = BTreeMap::new();
    for (task, (wait, part)) in tasks.iter_mut().zip(waits) {
        remarks.absorb(part);
        let Some(wait) = wait else { continue };
        let key = (wait.address, wait.kind, wait.tgid);
        let lock = match locks.get_mut(&key) {
            Some(lock) => lock,
            None => match reader.lock(&wait) {
                Ok(lock) => locks.entry(key).or_insert(lock),
                Err(error) => {
                    remarks.anomaly("locks", Some(wait.address), error.to_string());
                    continue;
                }
            },
        };
        if wait.kind == Kind::Futex {
            lock.waiters
                .extend(reader.known.get(&Kva(task.kva.0)).cloned());
            lock.waiters.sort_by_key(|waiter| waiter.kva);
        }
        task.waits_for = Some(LockWait {
            kind: wait.kind.name().to_owned(),
            address: lock.address,
            mode: wait.mode.map(str::to_owned),
            found_by: wait.found_by.to_owned(),
            owner: lock.owner.clone(),
        });
    }
    locks.into_values().collect()
}

/// A lock's waiters and whether these are all.
struct Waiters {
    tasks: Vec<Kva>,
    /// The records of their waiting, in the same order.
    records: Vec<Kva>,
    complete: bool,
}

struct Reader<'k> {
    kernel: &'k Kernel,
    known: HashMap<Kva, NamedTask>,
    /// Nodes that may still be looked at.
    left: Cell<usize>,
    /// Lists that were read already: all their waiters ask for them.
    lists: RefCell<HashMap<(Kind, Kva), Rc<Waiters>>>,
    /// In which lock's list a task was seen.
    placed: RefCell<HashMap<Kva, (Kind, Kva)>>,
}

impl<'k> Reader<'k> {
    /// A walk out of the common budget.
    fn walk(&self, walk: impl FnOnce(usize) -> Walk<Kva>) -> Walk<Kva> {
        let left = self.left.get();
        let walk = walk(left);
        self.left.set(left.saturating_sub(walk.items.len().max(1)));
        walk
    }

    fn list(&self, head: Kva) -> Walk<Kva> {
        self.walk(|limit| self.kernel.list(head, limit))
    }

    /// What a task waits for, when a lock says so too.
    fn wait(&self, info: &TaskInfo, remarks: &mut Remarks) -> Option<Wait> {
        let kva = Kva(info.kva.0);
        let task = self.kernel.object("struct task_struct", kva).ok()?;
        for found in [self.pi_blocked_on(&task), self.pointer(&task)] {
            match found {
                Ok(Some(wait)) => return Some(wait),
                Ok(None) => {}
                Err(error) if error.is_absent() => remarks.missing(SECTION, &error),
                Err(error) => remarks.anomaly(SECTION, Some(kva), error.to_string()),
            }
        }
        // Running ones spin, and nobody has a record of them.
        let path = functions(info).find_map(slow_path);
        let (kind, _) = path.filter(|_| info.on_cpu == Some(false))?;
        let found = match kind {
            Kind::Futex => self.futex(&task, info.tgid),
            kind => self.on_stack(&task, kind),
        };
        match found {
            Ok(Some(wait)) => Some(wait),
            Ok(None) => {
                let reason = format!(
                    "{}[{}] is in the slow path of a {}, and nothing that it or its stack holds leads to one that has it among its waiters",
                    info.comm,
                    info.pid,
                    kind.name()
                );
                remarks.unavailable.push(Unavailable {
                    section: SECTION.to_owned(),
                    code: UnavailableCode::Unparsable,
                    reason,
                });
                None
            }
            Err(error) => {
                remarks.missing(SECTION, &error);
                None
            }
        }
    }

    /// An rt_mutex: the task's own record of waiting, which names both.
    fn pi_blocked_on(&self, task: &Object<'k>) -> Result<Option<Wait>> {
        // Without CONFIG_RT_MUTEXES nobody waits for one.
        if !task.has("pi_blocked_on") {
            return Ok(None);
        }
        let waiter = task.member("pi_blocked_on")?;
        if waiter.ptr()?.is_null() {
            return Ok(None);
        }
        let waiter = waiter.deref()?;
        let lock = waiter.member("lock")?.ptr()?;
        if waiter.member("task")?.ptr()? != task.address() || lock.is_null() {
            return Ok(None);
        }
        let waiters = self.waiters(Kind::RtMutex, lock)?;
        if !waiters.tasks.contains(&task.address()) {
            return Ok(None);
        }
        Ok(Some(Wait {
            kind: if self.pi_state(lock)?.is_some() {
                Kind::PiFutex
            } else {
                Kind::RtMutex
            },
            address: lock,
            found_by: "pi_blocked_on",
            mode: None,
            tgid: None,
        }))
    }

    /// A mutex, an rwsem or a semaphore that the task points to.
    fn pointer(&self, task: &Object<'k>) -> Result<Option<Wait>> {
        // 6.17 has the first for proxy execution, which need not be configured.
        if let Ok(mutex) = task.member("blocked_on") {
            let mutex = mutex.ptr()?;
            let found = (!mutex.is_null())
                .then(|| self.listed(task, Kind::Mutex, mutex, "blocked_on"))
                .transpose()?
                .flatten();
            if found.is_some() {
                return Ok(found);
            }
        }
        // An option of the kernel's configuration.
        if !task.has("blocker") {
            return Ok(None);
        }
        let word = task.member("blocker")?.u64()?;
        let lock = Kva(word & !flag::BLOCKER);
        if lock.is_null() {
            return Ok(None);
        }
        let kind = match word & flag::BLOCKER {
            0 => Kind::Mutex,
            1 => Kind::Semaphore,
            // For reading and for writing; since 6.17.
            _ => Kind::Rwsem,
        };
        self.listed(task, kind, lock, "blocker")
    }

    /// The lock at `address`, if the task is in its list.
    fn listed(
        &self,
        task: &Object<'k>,
        kind: Kind,
        address: Kva,
        found_by: &'static str,
    ) -> Result<Option<Wait>> {
        let waiters = self.waiters(kind, address)?;
        let mut pairs = waiters.tasks.iter().zip(&waiters.records);
        let Some((_, &record)) = pairs.find(|(waiter, _)| **waiter == task.address()) else {
            return Ok(None);
        };
        let mode = match kind {
            Kind::Rwsem => {
                let record = self.kernel.object("struct rwsem_waiter", record)?;
                match record.member("type")?.enum_name()? {
                    Some("RWSEM_WAITING_FOR_WRITE") => Some("write"),
                    Some("RWSEM_WAITING_FOR_READ") => Some("read"),
                    _ => None,
                }
            }
            _ => None,
        };
        Ok(Some(Wait {
            kind,
            address,
            found_by,
            mode,
            tgid: None,
        }))
    }

    /// The waiters in the list of a mutex, rwsem or semaphore.
    fn waiters(&self, kind: Kind, address: Kva) -> Result<Rc<Waiters>> {
        if let Some(known) = self.lists.borrow().get(&(kind, address)) {
            return Ok(Rc::clone(known));
        }
        let found = Rc::new(self.read_waiters(kind, address)?);
        let mut lists = self.lists.borrow_mut();
        lists.insert((kind, address), Rc::clone(&found));
        Ok(found)
    }

    fn read_waiters(&self, kind: Kind, address: Kva) -> Result<Waiters> {
        let Some((lock, waiter)) = kind.listed() else {
            return self.read_rt_waiters(address);
        };
        let lock = self.kernel.object(lock, address)?;
        // 7.1 did away with the head: the lock points to the first waiter, and these form a ring.
        let (nodes, complete) = match lock.member("first_waiter") {
            Ok(first) => match first.ptr()? {
                at if at.is_null() => (Vec::new(), true),
                _ => {
                    let node = first.deref()?.member("list")?.address();
                    let walk = self.list(node);
                    let complete = !walk.end.is_cut();
                    ([vec![node], walk.items].concat(), complete)
                }
            },
            Err(error) if error.is_absent() => {
                let walk = self.list(lock.member("wait_list")?.address());
                let complete = !walk.end.is_cut();
                (walk.items, complete)
            }
            Err(error) => return Err(error),
        };
        let mut found = Waiters {
            tasks: Vec::new(),
            records: Vec::new(),
            complete,
        };
        for node in nodes {
            let waiter = self.kernel.entry(waiter, "list", node)?;
            let task = waiter.member("task")?.ptr();
            match task {
                Ok(task) => {
                    found.tasks.push(task);
                    found.records.push(waiter.address());
                }
                // The list led out of memory: those before are in it all the same.
                Err(_) if !found.tasks.is_empty() => {
                    found.complete = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The waiters of a `struct rt_mutex_base`, the most urgent first.
    fn read_rt_waiters(&self, address: Kva) -> Result<Waiters> {
        let lock = self.kernel.object("struct rt_mutex_base", address)?;
        let root = lock.member("waiters.rb_root")?.address();
        let walk = self.walk(|limit| self.kernel.rbtree(root, limit));
        let mut found = Waiters {
            tasks: Vec::new(),
            records: Vec::new(),
            complete: !walk.end.is_cut(),
        };
        for node in walk.items {
            let waiter = self
                .kernel
                .entry("struct rt_mutex_waiter", "tree.entry", node)?;
            found.tasks.push(waiter.member("task")?.ptr()?);
            found.records.push(waiter.address());
        }
        Ok(found)
    }

    /// The futex that an rt_mutex belongs to: its owner's list of these has it.
    fn pi_state(&self, lock: Kva) -> Result<Option<Object<'k>>> {
        let owner = self.kernel.object("struct rt_mutex_base", lock)?;
        let owner = Kva(owner.member("owner")?.ptr()?.0 & !flag::RT_MUTEX);
        if !self.known.contains_key(&owner) {
            return Ok(None);
        }
        let state = self
            .kernel
            .entry("struct futex_pi_state", "pi_mutex", lock)?;
        let owner = self.kernel.object("struct task_struct", owner)?;
        // Moved in 7.2.
        let states = owner.first_of(&["futex.pi_state_list", "pi_state_list"])?;
        let states = self.list(states.address());
        let node = state.member("list")?.address();
        Ok(states.items.contains(&node).then_some(state))
    }

    /// The places on a task's stack that hold a pointer to the task itself, as the member `task`
    /// of a record of type `ty` there would.
    fn records(&self, task: &Object<'k>, ty: &str) -> Result<Vec<Object<'k>>> {
        let from = Kva(task.member("thread.sp")?.u64()?);
        let base = task.member("stack")?.ptr()?;
        let used = base.add(STACK_SIZE).0.checked_sub(from.0);
        let Some(used) = used.filter(|used| *used <= STACK_SIZE) else {
            return Err(Error::Implausible {
                what: "the saved stack pointer".into(),
                found: from.to_string(),
                why: "on the task's stack",
            });
        };
        let words = self.kernel.read_bytes(from, used)?;
        let mut found = Vec::new();
        for at in (0..words.len()).step_by(8) {
            if le_u64(&words, at) == Some(task.address().0) {
                let record = self.kernel.entry(ty, "task", from.add(to_u64(at)))?;
                if record.address() >= from {
                    found.push(record);
                }
            }
        }
        Ok(found)
    }

    /// The lock whose list leads to a record on the task's stack. Exactly one member of that ring
    /// has to be the head in a lock whose owner and waiters are tasks.
    fn on_stack(&self, task: &Object<'k>, kind: Kind) -> Result<Option<Wait>> {
        let Some((lock, waiter)) = kind.listed() else {
            return Ok(None);
        };
        // Another task of the same list led there.
        let placed = self.placed.borrow().get(&task.address()).copied();
        if let Some((_, lock)) = placed.filter(|(of, _)| *of == kind) {
            return self.listed(task, kind, lock, "stack");
        }
        let mut found: HashSet<Kva> = HashSet::new();
        for record in self.records(task, waiter)? {
            let ring = self.list(record.member("list")?.address());
            if ring.end.is_cut() {
                continue;
            }
            // 7.1 and later have no head in the ring, but pointers in the task.
            let mut candidates = Vec::new();
            for node in ring.items {
                let lock = self.kernel.entry(lock, "wait_list", node)?.address();
                if self.may_be_lock(kind, lock).unwrap_or(false) {
                    candidates.push(lock);
                }
            }
            if candidates.len() > MAX_CANDIDATES {
                continue;
            }
            for lock in candidates {
                if self.is_lock(kind, lock, task.address()).unwrap_or(false) {
                    found.insert(lock);
                }
            }
        }
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(lock), None) => {
                let waiters = self.waiters(kind, lock)?;
                let mut placed = self.placed.borrow_mut();
                placed.extend(waiters.tasks.iter().map(|&task| (task, (kind, lock))));
                self.listed(task, kind, lock, "stack")
            }
            _ => Ok(None),
        }
    }

    fn is_lock(&self, kind: Kind, address: Kva, task: Kva) -> Result<bool> {
        let waiters = self.waiters(kind, address)?;
        let all_known = waiters.tasks.iter().all(|at| self.known.contains_key(at));
        Ok(waiters.complete && all_known && waiters.tasks.contains(&task))
    }

    /// Whether the words of a lock beside its list are such as a lock has: cheap, since it is asked
    /// of every node in a ring.
    fn may_be_lock(&self, kind: Kind, address: Kva) -> Result<bool> {
        let owner = match kind {
            Kind::Mutex => {
                let mutex = self.kernel.object("struct mutex", address)?;
                mutex.member("owner")?.u64()? & !flag::MUTEX
            }
            Kind::Rwsem => {
                let sem = self.kernel.object("struct rw_semaphore", address)?;
                sem.member("owner")?.u64()? & !flag::RWSEM
            }
            // Its count is that of free places, of which there are none while somebody waits.
            _ => {
                let sem = self.kernel.object("struct semaphore", address)?;
                sem.member("count")?.u64()?
            }
        };
        Ok(owner == 0 || self.known.contains_key(&Kva(owner)))
    }

    /// A `futex_q` on the task's stack that is in its bucket's list.
    fn futex(&self, task: &Object<'k>, tgid: i32) -> Result<Option<Wait>> {
        let mm = task.member("mm")?.ptr()?;
        for record in self.records(task, "struct futex_q")? {
            let node = record.member("list.node_list")?;
            let linked = |next: &'static str, back: &'static str| -> Result<bool> {
                let other = node.member(next)?.deref()?;
                Ok(other.address() != node.address()
                    && other.member(back)?.ptr()? == node.address())
            };
            let queued = linked("next", "prev").unwrap_or(false)
                && linked("prev", "next").unwrap_or(false)
                && !record.member("lock_ptr")?.ptr()?.is_null();
            if !queued {
                continue;
            }
            let offset = record.member("key.private.offset")?.u32()?;
            if offset & flag::FUTEX_INODE != 0 || record.member("key.private.mm")?.ptr()? != mm {
                continue;
            }
            let flags = flag::FUTEX_INODE | flag::FUTEX_MMSHARED;
            let page = Kva(record.member("key.private.address")?.u64()?);
            return Ok(Some(Wait {
                kind: Kind::Futex,
                address: page.add(u64::from(offset & !flags)),
                found_by: "stack",
                mode: None,
                tgid: Some(tgid),
            }));
        }
        Ok(None)
    }

    fn named(&self, task: u64) -> Option<NamedTask> {
        self.known.get(&Kva(task)).cloned()
    }

    /// The lock that a task waits for.
    fn lock(&self, wait: &Wait) -> Result<LockInfo> {
        let mut lock = LockInfo {
            kind: wait.kind.name().to_owned(),
            address: Hex(wait.address.0),
            tgid: wait.tgid,
            ..LockInfo::default()
        };
        if wait.kind == Kind::Futex {
            lock.user_address = Some(Hex(wait.address.0));
            lock.owner_unknown =
                Some("the kernel does not know who has an ordinary futex".to_owned());
            return Ok(lock);
        }
        lock.symbol = self.variable(wait.address);
        let waiters = self.waiters(wait.kind, wait.address)?;
        lock.truncated = !waiters.complete;
        lock.waiters = (waiters.tasks.iter())
            .filter_map(|task| self.named(task.0))
            .collect();
        lock.truncated |= lock.waiters.len() != waiters.tasks.len();
        match wait.kind {
            Kind::Mutex => {
                let mutex = self.kernel.object("struct mutex", wait.address)?;
                let word = mutex.member("owner")?.u64()?;
                lock.word = Some(Hex(word));
                self.owner(&mut lock, word & !flag::MUTEX);
            }
            Kind::Rwsem => self.rwsem(&mut lock, wait.address)?,
            Kind::Semaphore => {
                let sem = self.kernel.object("struct semaphore", wait.address)?;
                lock.word = Some(Hex(u64::from(sem.member("count")?.u32()?)));
                // With CONFIG_DETECT_HUNG_TASK_BLOCKER.
                if let Ok(last) = sem.member("last_holder") {
                    lock.last_holder = self.named(last.u64()?);
                }
                lock.owner_unknown = Some("a semaphore has no owner".to_owned());
            }
            Kind::RtMutex | Kind::PiFutex | Kind::Futex => {
                let mutex = self.kernel.object("struct rt_mutex_base", wait.address)?;
                let word = mutex.member("owner")?.ptr()?.0;
                lock.word = Some(Hex(word));
                self.owner(&mut lock, word & !flag::RT_MUTEX);
                if let Some(state) = self.pi_state(wait.address)? {
                    let offset = state.member("key.private.offset")?.u32()?;
                    if offset & flag::FUTEX_INODE == 0 {
                        let flags = flag::FUTEX_INODE | flag::FUTEX_MMSHARED;
                        let page = Kva(state.member("key.private.address")?.u64()?);
                        lock.user_address = Some(Hex(page.add(u64::from(offset & !flags)).0));
                    }
                }
            }
        }
        Ok(lock)
    }

    fn owner(&self, lock: &mut LockInfo, owner: u64) {
        lock.owner = self.named(owner);
        if lock.owner.is_none() {
            lock.owner_unknown = Some(match owner {
                0 => "nobody has it: it was released, and the first waiter has yet to take it"
                    .to_owned(),
                owner => format!("its owner, {owner:#x}, is no task of this report"),
            });
        }
    }

    fn rwsem(&self, lock: &mut LockInfo, address: Kva) -> Result<()> {
        let sem = self.kernel.object("struct rw_semaphore", address)?;
        let count = sem.member("count")?.u64()?;
        let owner = sem.member("owner")?.u64()?;
        lock.word = Some(Hex(count));
        let readers = (count & (u64::MAX >> 1)) >> flag::RWSEM_READER_SHIFT;
        if count & flag::RWSEM_WRITER != 0 {
            self.owner(lock, owner & !flag::RWSEM);
        } else if readers > 0 {
            lock.readers = Some(readers);
            lock.owner_unknown =
                Some("readers have it, and the kernel keeps no list of them".to_owned());
            if owner & flag::RWSEM_READER_OWNED != 0 {
                lock.last_reader = self.named(owner & !flag::RWSEM);
            }
        } else {
            self.owner(lock, 0);
        }
        Ok(())
    }

    /// The variable that an address is in, if it is in the kernel's image.
    fn variable(&self, address: Kva) -> Option<String> {
        let start = self.kernel.symbol("_text").ok()?;
        let end = self.kernel.symbol("_end").ok()?;
        let inside = (start..end).contains(&address);
        inside.then(|| self.kernel.symbolize(address)).flatten()
    }
}
