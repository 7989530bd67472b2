//! Names of dispatch queues, as text and findings write them: the id and what it means.

use std::fmt;

use super::hex::Hex;
use super::postmortem::DsqInfo;

/// `SCX_DSQ_FLAG_BUILTIN` and `SCX_DSQ_FLAG_LOCAL_ON` (include/linux/sched/ext.h): a task that is
/// on its way to the local queue of the CPU in the low half. No queue has such an id.
const LOCAL_ON: u64 = 3 << 62;

/// The id of a dispatch queue with what it means behind it: `0x42 (user)`,
/// `0x8000000000000002 (LOCAL, local cpu 1)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DsqName {
    id: Hex,
    words: String,
}

impl DsqName {
    /// The name of a queue.
    #[must_use]
    pub fn of(dsq: &DsqInfo) -> Self {
        let name = match dsq.name.as_str() {
            "" => &dsq.origin,
            name => name,
        };
        let words = if name == "user" || *name == dsq.origin {
            dsq.origin.clone()
        } else {
            format!("{name}, {}", dsq.origin)
        };
        Self { id: dsq.id, words }
    }

    /// What the id in a task on `cpu` means. All CPUs' local queues have the same id.
    #[must_use]
    pub fn find(dsqs: &[DsqInfo], id: Hex, cpu: Option<u32>) -> Self {
        let mut all = dsqs.iter().filter(|dsq| dsq.id == id);
        let Some(first) = all.next() else {
            let words = match id.0 & LOCAL_ON {
                LOCAL_ON => format!("LOCAL_ON, cpu {}", id.0 & u64::from(u32::MAX)),
                _ => String::new(),
            };
            return Self { id, words };
        };
        if all.next().is_none() {
            return Self::of(first);
        }
        let local = cpu.map(|cpu| format!("local cpu {cpu}"));
        let own = (dsqs.iter()).find(|dsq| dsq.id == id && Some(&dsq.origin) == local.as_ref());
        own.map_or_else(
            || Self {
                id,
                words: first.name.clone(),
            },
            Self::of,
        )
    }
}

impl fmt::Display for DsqName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        if !self.words.is_empty() {
            write!(f, " ({})", super::text::Escaped(&self.words))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_named_by_its_queue_and_the_tasks_cpu() {
        let queue = |id, name: &str, origin: &str| DsqInfo {
            id: Hex(id),
            name: name.into(),
            origin: origin.into(),
            ..DsqInfo::default()
        };
        let local = 0x8000_0000_0000_0002;
        let dsqs = [
            queue(local, "LOCAL", "local cpu 0"),
            queue(local, "LOCAL", "local cpu 1"),
            queue(0x8000_0000_0000_0001, "GLOBAL", "global node 0"),
            queue(0x42, "user", "user"),
        ];
        let name = |id, cpu| DsqName::find(&dsqs, Hex(id), cpu).to_string();
        assert_eq!(
            name(local, Some(1)),
            "0x8000000000000002 (LOCAL, local cpu 1)"
        );
        assert_eq!(name(local, Some(7)), "0x8000000000000002 (LOCAL)");
        assert_eq!(name(local, None), "0x8000000000000002 (LOCAL)");
        assert_eq!(
            name(0x8000_0000_0000_0001, Some(1)),
            "0x8000000000000001 (GLOBAL, global node 0)"
        );
        assert_eq!(name(0x42, Some(0)), "0x42 (user)");
        assert_eq!(
            name(0xc000_0000_0000_0005, Some(0)),
            "0xc000000000000005 (LOCAL_ON, cpu 5)"
        );
        assert_eq!(name(0x43, Some(0)), "0x43");
        assert_eq!(name(0x8000_0000_0000_0009, None), "0x8000000000000009");
    }
}
