//! LPM_TRIE: keys are a prefix length and data.
//!
//! Reads `struct lpm_trie` and `struct lpm_trie_node` (kernel/bpf/lpm_trie.c). A node that only
//! joins two branches is marked as intermediate and holds no entry.

use std::collections::HashSet;

use scx_postmortem_format::report::{FailureDumpEntry, hex_string};

use super::{Found, Map};
use crate::addr::Kva;
use crate::error::{Error, Result};

/// `LPM_TREE_NODE_FLAG_IM`.
const INTERMEDIATE: u32 = 1;
/// `LPM_DATA_SIZE_MAX`.
const MAX_DATA: u64 = 256;

/// Entries from the root down: a shorter prefix before those that it holds, bit 0 before bit 1.
pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let trie = map.cast("struct lpm_trie")?;
    let data_size = trie.member("data_size")?.u64()?;
    if data_size > MAX_DATA {
        return Err(Error::Implausible {
            what: format!("lpm_trie.data_size of the map at {}", map.kva),
            found: data_size.to_string(),
            why: "at most 256",
        });
    }
    let mut todo = vec![trie.member("root")?.ptr()?];
    let mut seen = HashSet::new();
    // Intermediate nodes are fewer than entries.
    let most = map.limit.saturating_mul(2);
    while let Some(at) = todo.pop() {
        if at.is_null() {
            continue;
        }
        if !seen.insert(at) {
            found.lost(format_args!("the node at {at} is in the trie twice"));
            continue;
        }
        if seen.len() > most || found.shared.entries.len() >= map.limit {
            found.error(format!("the first {} entries are shown", map.limit));
            return Ok(());
        }
        match node(map, at, data_size) {
            Ok((children, entry)) => {
                found.shared.entries.extend(entry);
                let [zero, one] = children;
                todo.extend([one, zero]);
            }
            Err(error) => found.lost(format_args!("the node at {at}: {error}")),
        }
    }
    found.count(found.shared.entries.len());
    Ok(())
}

fn node(map: &Map<'_>, at: Kva, data_size: u64) -> Result<([Kva; 2], Option<FailureDumpEntry>)> {
    let node = map.kernel.object("struct lpm_trie_node", at)?;
    let child = node.member("child")?;
    let children = [child.index(0)?.ptr()?, child.index(1)?.ptr()?];
    if node.member("flags")?.u32()? & INTERMEDIATE != 0 {
        return Ok((children, None));
    }
    let data = node.member("data")?.address();
    let mut key = node.member("prefixlen")?.u32()?.to_le_bytes().to_vec();
    key.extend(map.kernel.read_bytes(data, data_size)?);
    let value_at = data.add(data_size);
    let value = map.kernel.read_bytes(value_at, u64::from(map.value_size))?;
    let entry = FailureDumpEntry {
        key: map.key(&key),
        key_hex: hex_string(&key),
        value: map.value(&value, value_at),
        value_hex: hex_string(&value),
        payload: None,
    };
    Ok((children, Some(entry)))
}
