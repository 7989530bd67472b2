//! One map.

use scx_postmortem_format::report::{
    ArenaSnapshot, FailureDumpFdArray, FailureDumpMap, FailureDumpRingbuf, FailureDumpStackTrace,
    RenderedValue,
};

use super::error::KEY_SAMPLES;
use super::{SnapshotEntry, SnapshotError};

/// Characters of a key that a message shows.
const KEY_CHARS: usize = 80;

/// A BPF map of the report.
///
/// Positions are those of the captured order, not keys; in per-CPU arrays they are the same. The
/// entries of an array with more than one are not reached this way: they are
/// `raw().array_entries`.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotMap<'a> {
    map: &'a FailureDumpMap,
    cpu: Option<u32>,
}

impl<'a> SnapshotMap<'a> {
    pub(super) const fn new(map: &'a FailureDumpMap) -> Self {
        Self { map, cpu: None }
    }

    /// Its name.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).map("task_ctx").unwrap().name(), "task_ctx");
    /// ```
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.map.name
    }

    /// The report's own record of it.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).map("task_ctx").unwrap().raw().max_entries, 64);
    /// ```
    #[must_use]
    pub const fn raw(&self) -> &'a FailureDumpMap {
        self.map
    }

    /// Why its contents are missing or incomplete.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.map("task_ctx").unwrap().map_error(), None);
    /// assert_eq!(snapshot.map("broken").unwrap().map_error(), Some("buckets unreadable"));
    /// ```
    #[must_use]
    pub fn map_error(&self) -> Option<&'a str> {
        self.map.error.as_deref()
    }

    /// The positions of a ring buffer.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("events").unwrap();
    /// assert_eq!(map.ringbuf().unwrap().pending_bytes, 64);
    /// ```
    #[must_use]
    pub const fn ringbuf(&self) -> Option<&'a FailureDumpRingbuf> {
        self.map.ringbuf.as_ref()
    }

    /// The pages of an arena.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("arena").unwrap();
    /// assert_eq!(map.arena().unwrap().pages.len(), 1);
    /// ```
    #[must_use]
    pub const fn arena(&self) -> Option<&'a ArenaSnapshot> {
        self.map.arena.as_ref()
    }

    /// The slots of a map that holds descriptors.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("tail_calls").unwrap();
    /// assert_eq!(map.fd_array().unwrap().indices, [0, 3]);
    /// ```
    #[must_use]
    pub const fn fd_array(&self) -> Option<&'a FailureDumpFdArray> {
        self.map.fd_array.as_ref()
    }

    /// The buckets of a stack-trace map.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("stacks").unwrap();
    /// assert_eq!(map.stack_trace().unwrap().entries[0].nr, 2);
    /// ```
    #[must_use]
    pub const fn stack_trace(&self) -> Option<&'a FailureDumpStackTrace> {
        self.map.stack_trace.as_ref()
    }

    /// The same map with one CPU chosen: entries that have a value for each CPU become that CPU's
    /// value. In other maps it changes nothing.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let stats = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(stats.cpu(0).at(0).get("ran").as_u64(), Ok(10));
    /// assert_eq!(
    ///     stats.cpu(2).at(0).get("ran").error().unwrap().to_string(),
    ///     "map 'cpu_stats': cpu 2 per-CPU slot is unmapped (None)"
    /// );
    /// assert_eq!(
    ///     stats.cpu(8).at(0).get("ran").error().unwrap().to_string(),
    ///     "map 'cpu_stats': cpu 8 out of range (have 3 per-CPU slots)"
    /// );
    /// ```
    #[must_use]
    pub const fn cpu(&self, cpu: u32) -> Self {
        Self {
            map: self.map,
            cpu: Some(cpu),
        }
    }

    /// The entry at a position.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::{Snapshot, SnapshotEntry};
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// let map = snapshot.map("task_ctx").unwrap();
    /// assert_eq!(map.at(1).get("comm").raw().unwrap().to_string(), "\"worker\"");
    /// let SnapshotEntry::Missing(error) = map.at(2) else { panic!() };
    /// assert_eq!(error.to_string(), "map 'task_ctx': index 2 out of range (length 2)");
    /// // A map that could not be read says so instead.
    /// let SnapshotEntry::Missing(error) = snapshot.map("broken").unwrap().at(0) else { panic!() };
    /// assert_eq!(
    ///     error.to_string(),
    ///     "map 'broken' contents unavailable (render failed at capture): buckets unreadable"
    /// );
    /// ```
    #[must_use]
    pub fn at(&self, index: usize) -> SnapshotEntry<'a> {
        self.entry(index).unwrap_or_else(|| {
            SnapshotEntry::Missing(match (self.len(), self.incomplete()) {
                (0, Some(error)) => error,
                (len, _) => SnapshotError::IndexOutOfRange {
                    map: self.map.name.clone(),
                    index,
                    len,
                },
            })
        })
    }

    /// The first entry that `matches`.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::{Snapshot, SnapshotEntry};
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("task_ctx").unwrap();
    /// let task = map.find(|entry| entry.key("").as_u64() == Ok(1633));
    /// assert_eq!(task.get("vtime").as_u64(), Ok(900));
    /// let SnapshotEntry::Missing(error) = map.find(|entry| entry.key("").as_u64() == Ok(1)) else {
    ///     panic!()
    /// };
    /// assert_eq!(
    ///     error.to_string(),
    ///     "map 'task_ctx': find matched none of 2 entries (first 2: [\"1632\", \"1633\"])"
    /// );
    /// ```
    #[must_use]
    pub fn find(&self, matches: impl Fn(&SnapshotEntry<'a>) -> bool) -> SnapshotEntry<'a> {
        let found = self.entries().find(|entry| matches(entry));
        found.unwrap_or_else(|| SnapshotEntry::Missing(self.no_match("find")))
    }

    /// Every entry that `matches`, in the captured order.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("task_ctx").unwrap();
    /// let late = map.filter(|entry| entry.get("vtime").as_u64().is_ok_and(|vtime| vtime > 800));
    /// assert_eq!(late.len(), 1);
    /// ```
    pub fn filter(&self, matches: impl Fn(&SnapshotEntry<'a>) -> bool) -> Vec<SnapshotEntry<'a>> {
        self.entries().filter(|entry| matches(entry)).collect()
    }

    /// The entry for which `measure` gives the most; of equals the first.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("task_ctx").unwrap();
    /// let last = map.max_by(|entry| entry.get("vtime").as_u64().unwrap_or(0));
    /// assert_eq!(last.key("").as_u64(), Ok(1633));
    /// ```
    #[must_use]
    pub fn max_by<T: PartialOrd>(
        &self,
        measure: impl Fn(&SnapshotEntry<'a>) -> T,
    ) -> SnapshotEntry<'a> {
        let mut best: Option<(T, SnapshotEntry<'a>)> = None;
        for entry in self.entries() {
            let value = measure(&entry);
            if best.as_ref().is_none_or(|(most, _)| value > *most) {
                best = Some((value, entry));
            }
        }
        match best {
            Some((_, entry)) => entry,
            None => SnapshotEntry::Missing(self.no_match("max_by")),
        }
    }

    fn entries(&self) -> impl Iterator<Item = SnapshotEntry<'a>> {
        let this = *self;
        (0..this.len()).filter_map(move |i| this.entry(i))
    }

    /// Entries of the first kind that the map has.
    const fn len(&self) -> usize {
        let map = self.map;
        if !map.percpu_entries.is_empty() {
            map.percpu_entries.len()
        } else if !map.percpu_hash_entries.is_empty() {
            map.percpu_hash_entries.len()
        } else if !map.entries.is_empty() {
            map.entries.len()
        } else {
            map.value.is_some() as usize
        }
    }

    fn entry(&self, index: usize) -> Option<SnapshotEntry<'a>> {
        let map = self.map;
        if !map.percpu_entries.is_empty() {
            let entry = map.percpu_entries.get(index)?;
            return Some(match self.cpu {
                Some(cpu) => self.slot(cpu, &entry.per_cpu),
                None => SnapshotEntry::Percpu(entry),
            });
        }
        if !map.percpu_hash_entries.is_empty() {
            let entry = map.percpu_hash_entries.get(index)?;
            return Some(match self.cpu {
                Some(cpu) => self.slot(cpu, &entry.per_cpu),
                None => SnapshotEntry::PercpuHash(entry),
            });
        }
        if !map.entries.is_empty() {
            return map.entries.get(index).map(SnapshotEntry::Hash);
        }
        let value = map.value.as_ref().filter(|_| index == 0);
        value.map(SnapshotEntry::Value)
    }

    fn slot(&self, cpu: u32, slots: &'a [Option<RenderedValue>]) -> SnapshotEntry<'a> {
        let slot = usize::try_from(cpu).ok().and_then(|cpu| slots.get(cpu));
        match slot {
            Some(Some(value)) => SnapshotEntry::Value(value),
            _ => SnapshotEntry::Missing(SnapshotError::PerCpuSlot {
                map: self.map.name.clone(),
                cpu,
                len: slots.len(),
                unmapped: slot.is_some(),
            }),
        }
    }

    fn incomplete(&self) -> Option<SnapshotError> {
        let error = self.map.error.clone()?;
        Some(SnapshotError::MapRenderIncomplete {
            map: self.map.name.clone(),
            error,
        })
    }

    fn no_match(&self, op: &'static str) -> SnapshotError {
        match (self.len(), self.incomplete()) {
            (0, Some(error)) => error,
            (len, _) => SnapshotError::NoMatch {
                map: self.map.name.clone(),
                op: op.to_owned(),
                len,
                available_keys: self.key_samples(),
            },
        }
    }

    fn key_samples(&self) -> Vec<String> {
        let map = self.map;
        let text = |key: &Option<RenderedValue>, hex: &str| match key {
            Some(key) => short(key.to_string()),
            None => short(format!("hex:{hex}")),
        };
        if !map.percpu_entries.is_empty() {
            let keys = map.percpu_entries.iter().map(|e| e.key.to_string());
            keys.take(KEY_SAMPLES).collect()
        } else if !map.percpu_hash_entries.is_empty() {
            let entries = map.percpu_hash_entries.iter();
            let keys = entries.map(|e| text(&e.key, &e.key_hex));
            keys.take(KEY_SAMPLES).collect()
        } else {
            let keys = map.entries.iter().map(|e| text(&e.key, &e.key_hex));
            keys.take(KEY_SAMPLES).collect()
        }
    }
}

fn short(text: String) -> String {
    if text.chars().count() <= KEY_CHARS {
        return text;
    }
    let mut short: String = text.chars().take(KEY_CHARS - 1).collect();
    short.push('…');
    short
}
