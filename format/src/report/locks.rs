//! Locks that tasks wait for, and who has them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::omit::is_false;

/// A task, named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NamedTask {
    /// Its thread id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Address of its `task_struct`.
    pub kva: Hex,
}

/// What a task waits for. The lock itself, with its owner, is in `locks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LockWait {
    /// `mutex`, `rwsem`, `semaphore`, `rt_mutex`, `pi_futex` or `futex`.
    pub kind: String,
    /// Address of the lock in the kernel. For a `futex`, which has no object there, the address
    /// of its word in user space.
    pub address: Hex,
    /// `read` or `write`, for an `rwsem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// What led to the lock: `blocked_on`, `blocker` or `pi_blocked_on` (members of
    /// `task_struct`), or `stack` (the waiter's own record on its kernel stack).
    pub found_by: String,
    /// The task that has the lock, as far as the lock tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<NamedTask>,
}

/// A lock that somebody waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LockInfo {
    /// `mutex`, `rwsem`, `semaphore`, `rt_mutex`, `pi_futex` or `futex`.
    pub kind: String,
    /// Address of the lock in the kernel. For a `futex` the address of its word in user space.
    pub address: Hex,
    /// The variable that the lock is or is in: `cgroup_mutex+0x0/0x20`. Absent for one in memory
    /// that was allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// For futexes: address of the word in user space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_address: Option<Hex>,
    /// For a `futex`: the process (its thread group id) whose memory the word is in. Absent for
    /// one that processes share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tgid: Option<i32>,
    /// The task that has it. Of an `rwsem` only a writer is known for sure; see `last_reader`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<NamedTask>,
    /// Why there is no owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_unknown: Option<String>,
    /// Tasks that have an `rwsem` for reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers: Option<u64>,
    /// The task that took an `rwsem` for reading last, which may have left it since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reader: Option<NamedTask>,
    /// The task that took a `semaphore` last, which need not be the one that others wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_holder: Option<NamedTask>,
    /// The lock's first word: a mutex' `owner`, a semaphore's `count`, with their flags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub word: Option<Hex>,
    /// The tasks that wait for it, in the lock's own order; for a `futex` those that the report
    /// has, by address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiters: Vec<NamedTask>,
    /// The lock's list could not be read whole.
    #[serde(skip_serializing_if = "is_false")]
    pub truncated: bool,
}
