//! Names of dispatch queues, as text and findings write them: the id and what it means.

use std::collections::BTreeMap;
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

    /// What the id in a task on `cpu` means, see [`DsqNames::find`], for whoever asks but once.
    #[must_use]
    pub fn find(dsqs: &[DsqInfo], id: Hex, cpu: Option<u32>) -> Self {
        DsqNames::among(dsqs.iter().filter(|dsq| dsq.id == id)).find(id, cpu)
    }
}

/// The names of all queues, for many look-ups.
#[derive(Debug, Default)]
pub(super) struct DsqNames<'a> {
    /// By id: a queue, and whether it is the only one.
    by_id: BTreeMap<Hex, (&'a DsqInfo, bool)>,
    by_origin: BTreeMap<(Hex, &'a str), &'a DsqInfo>,
}

impl<'a> DsqNames<'a> {
    pub(super) fn among(dsqs: impl IntoIterator<Item = &'a DsqInfo>) -> Self {
        let mut names = Self::default();
        for dsq in dsqs {
            let known = names.by_id.entry(dsq.id);
            known
                .and_modify(|(_, only)| *only = false)
                .or_insert((dsq, true));
            names.by_origin.entry((dsq.id, &dsq.origin)).or_insert(dsq);
        }
        names
    }

    /// What the id in a task on `cpu` means. All CPUs' local queues have the same id.
    pub(super) fn find(&self, id: Hex, cpu: Option<u32>) -> DsqName {
        let (first, only) = match self.by_id.get(&id) {
            Some(&found) => found,
            None => {
                let words = match id.0 & LOCAL_ON {
                    LOCAL_ON => format!("LOCAL_ON, cpu {}", id.0 & u64::from(u32::MAX)),
                    _ => String::new(),
                };
                return DsqName { id, words };
            }
        };
        if only {
            return DsqName::of(first);
        }
        let local = cpu.map_or(String::new(), |cpu| format!("local cpu {cpu}"));
        match self.by_origin.get(&(id, &*local)) {
            Some(own) => DsqName::of(own),
            None => DsqName {
                id,
                words: first.name.clone(),
            },
        }
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
