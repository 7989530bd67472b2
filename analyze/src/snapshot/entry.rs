//! One entry of a map.

use scx_postmortem_format::report::{
    FailureDumpEntry, FailureDumpPercpuEntry, FailureDumpPercpuHashEntry, RenderedValue,
};

use super::field::walk;
use super::{SnapshotError, SnapshotField, SnapshotResult};

/// An entry of a map, or why there is none.
#[derive(Clone, Debug)]
pub enum SnapshotEntry<'a> {
    /// Of a hash map or of local storage.
    Hash(&'a FailureDumpEntry),
    /// Of a per-CPU array.
    Percpu(&'a FailureDumpPercpuEntry),
    /// Of a per-CPU hash map.
    PercpuHash(&'a FailureDumpPercpuHashEntry),
    /// The value of a map that holds one, or one CPU's value of an entry.
    Value(&'a RenderedValue),
    /// Nothing.
    Missing(SnapshotError),
}

/// What messages call the map, which an entry does not know.
const ENTRY: &str = "<entry>";

impl<'a> SnapshotEntry<'a> {
    /// Whether there is an entry.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("task_ctx").unwrap();
    /// assert!(map.at(0).is_present());
    /// assert!(!map.at(99).is_present());
    /// ```
    #[must_use]
    pub const fn is_present(&self) -> bool {
        !matches!(self, Self::Missing(_))
    }

    /// The member of the value at a dotted path; the whole value for an empty one.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.map("task_ctx").unwrap().at(0).get("vtime").as_u64(), Ok(700));
    /// // A value for each CPU: one has to be chosen.
    /// let stats = snapshot.map("cpu_stats").unwrap();
    /// assert_eq!(
    ///     stats.at(0).get("ran").error().unwrap().to_string(),
    ///     "map '<percpu-array>': per-CPU entry without a CPU narrow — call .cpu(N) first"
    /// );
    /// assert_eq!(stats.cpu(1).at(0).get("ran").as_u64(), Ok(20));
    /// ```
    #[must_use]
    pub fn get(&self, path: &str) -> SnapshotField<'a> {
        let not_narrowed = |map: &str| {
            SnapshotField::Missing(SnapshotError::PerCpuNotNarrowed {
                map: map.to_owned(),
            })
        };
        match self {
            Self::Hash(entry) => side(entry.value.as_ref(), "value", path),
            Self::Percpu(_) => not_narrowed("<percpu-array>"),
            Self::PercpuHash(_) => not_narrowed("<percpu-hash>"),
            Self::Value(value) => walk(value, "", path),
            Self::Missing(error) => SnapshotField::Missing(error.clone()),
        }
    }

    /// The member of the key at a dotted path; the whole key for an empty one.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.map("task_ctx").unwrap().at(1).key("").as_u64(), Ok(1633));
    /// assert_eq!(snapshot.map("cpu_stats").unwrap().at(0).key("").as_u64(), Ok(0));
    /// let raw = snapshot.map("untyped").unwrap().at(0).key("");
    /// assert_eq!(
    ///     raw.error().unwrap().to_string(),
    ///     "map '<entry>': key has no rendered structure (no BTF type at capture time)"
    /// );
    /// ```
    #[must_use]
    pub fn key(&self, path: &str) -> SnapshotField<'a> {
        let mismatch = |expected: &str, actual: &str| {
            SnapshotField::Missing(SnapshotError::TypeMismatch {
                expected: expected.to_owned(),
                actual: actual.to_owned(),
                requested: path.to_owned(),
            })
        };
        match self {
            Self::Hash(entry) => side(entry.key.as_ref(), "key", path),
            Self::PercpuHash(entry) => side(entry.key.as_ref(), "key", path),
            Self::Percpu(entry) if path.is_empty() => SnapshotField::PercpuKey { key: entry.key },
            Self::Percpu(_) => mismatch("Struct", "PercpuKey"),
            Self::Value(_) => mismatch("key", "Value"),
            Self::Missing(error) => SnapshotField::Missing(error.clone()),
        }
    }

    /// The sum over all CPUs that have a value. It stops at the largest number there is.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_sum_u64("ran"), Ok(30)); // CPU 2 has none
    /// // No CPU has a value: that is not 0.
    /// assert_eq!(
    ///     map.at(1).cpu_sum_u64("ran").unwrap_err().to_string(),
    ///     "map '<Percpu>': cpu_sum_u64 matched no entries (map is empty)"
    /// );
    /// ```
    ///
    /// # Errors
    /// [`SnapshotError::NoMatch`] when no CPU has a value, [`SnapshotError::TypeMismatch`] for an
    /// entry that is not per CPU; the first value's that does not convert.
    pub fn cpu_sum_u64(&self, path: &str) -> SnapshotResult<u64> {
        self.fold("cpu_sum_u64", path, |f| f.as_u64(), u64::saturating_add)
    }

    /// The sum over all CPUs as a signed number.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_sum_i64("lag"), Ok(-1));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_sum_i64(&self, path: &str) -> SnapshotResult<i64> {
        self.fold("cpu_sum_i64", path, |f| f.as_i64(), i64::saturating_add)
    }

    /// The sum over all CPUs as a floating-point number.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_sum_f64("ran"), Ok(30.0));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_sum_f64(&self, path: &str) -> SnapshotResult<f64> {
        self.fold("cpu_sum_f64", path, |f| f.as_f64(), |a, b| a + b)
    }

    /// The largest number of any CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_max_u64("ran"), Ok(20));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_max_u64(&self, path: &str) -> SnapshotResult<u64> {
        self.fold("cpu_max_u64", path, |f| f.as_u64(), u64::max)
    }

    /// The largest signed number of any CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_max_i64("lag"), Ok(3));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_max_i64(&self, path: &str) -> SnapshotResult<i64> {
        self.fold("cpu_max_i64", path, |f| f.as_i64(), i64::max)
    }

    /// The largest floating-point number of any CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_max_f64("ran"), Ok(20.0));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_max_f64(&self, path: &str) -> SnapshotResult<f64> {
        self.fold("cpu_max_f64", path, |f| f.as_f64(), f64::max)
    }

    /// The smallest number of any CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_min_u64("ran"), Ok(10));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_min_u64(&self, path: &str) -> SnapshotResult<u64> {
        self.fold("cpu_min_u64", path, |f| f.as_u64(), u64::min)
    }

    /// The smallest signed number of any CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_min_i64("lag"), Ok(-4));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_min_i64(&self, path: &str) -> SnapshotResult<i64> {
        self.fold("cpu_min_i64", path, |f| f.as_i64(), i64::min)
    }

    /// The smallest floating-point number of any CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// assert_eq!(map.at(0).cpu_min_f64("ran"), Ok(10.0));
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64).
    pub fn cpu_min_f64(&self, path: &str) -> SnapshotResult<f64> {
        self.fold("cpu_min_f64", path, |f| f.as_f64(), f64::min)
    }

    /// Calls `visit` with each CPU that has a value, and the member of it at a dotted path.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let map = Snapshot::new(&report).map("cpu_stats").unwrap();
    /// let mut seen = Vec::new();
    /// map.at(0)
    ///     .cpu_each("ran", |cpu, ran| seen.push((cpu, ran.as_u64().unwrap())))
    ///     .unwrap();
    /// assert_eq!(seen, [(0, 10), (1, 20)]);
    /// ```
    ///
    /// # Errors
    /// As [`cpu_sum_u64`](Self::cpu_sum_u64), but for values that do not convert: they are
    /// visited as they are.
    pub fn cpu_each(
        &self,
        path: &str,
        mut visit: impl FnMut(u32, SnapshotField<'a>),
    ) -> SnapshotResult<()> {
        for (cpu, value) in self.slots("cpu_each", path)? {
            visit(cpu, walk(value, "", path));
        }
        Ok(())
    }

    /// The CPUs that have a value, with it.
    fn slots(&self, op: &'static str, path: &str) -> SnapshotResult<Vec<(u32, &'a RenderedValue)>> {
        let (map, slots) = match self {
            Self::Percpu(entry) => ("<Percpu>", &entry.per_cpu),
            Self::PercpuHash(entry) => ("<PercpuHash>", &entry.per_cpu),
            Self::Missing(error) => return Err(error.clone()),
            Self::Hash(_) | Self::Value(_) => {
                let actual = match self {
                    Self::Hash(_) => "Hash",
                    _ => "Value",
                };
                return Err(SnapshotError::TypeMismatch {
                    expected: "Percpu / PercpuHash".to_owned(),
                    actual: actual.to_owned(),
                    requested: path.to_owned(),
                });
            }
        };
        let there: Vec<_> = (0u32..)
            .zip(slots)
            .filter_map(|(cpu, slot)| Some((cpu, slot.as_ref()?)))
            .collect();
        if there.is_empty() {
            return Err(SnapshotError::NoMatch {
                map: map.to_owned(),
                op: op.to_owned(),
                len: 0,
                available_keys: Vec::new(),
            });
        }
        Ok(there)
    }

    fn fold<T>(
        &self,
        op: &'static str,
        path: &str,
        convert: impl Fn(&SnapshotField<'a>) -> SnapshotResult<T>,
        combine: impl Fn(T, T) -> T,
    ) -> SnapshotResult<T> {
        let mut all = None;
        for (_, value) in self.slots(op, path)? {
            let value = convert(&walk(value, "", path))?;
            all = Some(match all {
                None => value,
                Some(all) => combine(all, value),
            });
        }
        // `slots` gives at least one.
        all.ok_or_else(|| SnapshotError::NoMatch {
            map: ENTRY.to_owned(),
            op: op.to_owned(),
            len: 0,
            available_keys: Vec::new(),
        })
    }
}

fn side<'a>(value: Option<&'a RenderedValue>, side: &'static str, path: &str) -> SnapshotField<'a> {
    match value {
        Some(value) => walk(value, "", path),
        None => SnapshotField::Missing(SnapshotError::NoRendered {
            map: ENTRY.to_owned(),
            side: side.to_owned(),
        }),
    }
}
