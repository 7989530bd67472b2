//! Paths of cgroups, as `kernfs_path()` builds them.
//!
//! Reads `struct cgroup.kn` and `struct kernfs_node` (fs/kernfs/dir.c) up to the root.

use super::Kernel;
use crate::error::{Error, Result};
use crate::object::Object;

/// Deeper than any hierarchy: `CGROUP_ANCESTORS` never gets near.
const MAX_DEPTH: usize = 256;
/// `NAME_MAX`, and the NUL.
const MAX_NAME: usize = 256;

impl Kernel {
    /// The path of a `struct cgroup` from the root of its hierarchy, `/` for the root.
    ///
    /// # Errors
    /// When a node cannot be read, or there are more levels than can be.
    pub fn cgroup_path(&self, cgroup: &Object<'_>) -> Result<String> {
        let mut node = cgroup.member("kn")?;
        let mut names = Vec::new();
        for _ in 0..MAX_DEPTH {
            let this = node.deref()?;
            // 6.14 renamed the parent, which RCU protects since.
            let parent = this.first_of(&["__parent", "parent"])?;
            if parent.ptr()?.is_null() {
                names.reverse();
                return Ok(format!("/{}", names.join("/")));
            }
            names.push(this.member("name")?.string(MAX_NAME)?.unwrap_or_default());
            node = parent;
        }
        Err(Error::Implausible {
            what: format!("the cgroup at {}", cgroup.address()),
            found: format!("more than {MAX_DEPTH} ancestors"),
            why: "a hierarchy has fewer",
        })
    }
}
