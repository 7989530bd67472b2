//! A report asked by name: the maps and variables of a scheduler, typed, for tests.
//!
//! A [`Snapshot`] looks at one report, be it made now ([`analysis::analyze`](crate::analysis)) or
//! read from a file, also one that another tool with this format wrote. It copies nothing.
//! Questions that have no answer give a [`SnapshotError`] that says what there was instead; nothing
//! panics.
//!
//! ```
//! # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
//! use scx_postmortem_analyze::snapshot::Snapshot;
//! use scx_postmortem_format::report::FailureDumpReportAny;
//!
//! # let json = two::JSON;
//! let FailureDumpReportAny::Single(report) = FailureDumpReportAny::parse(json)? else {
//!     panic!("one image was captured");
//! };
//! let snapshot = Snapshot::new(&report);
//! // The scheduler was loaded twice, and has two `.bss`: this is the running one's.
//! assert_eq!(snapshot.var("nr_enqueued").as_u64()?, 4100);
//! let task = snapshot.map("task_ctx")?.find(|task| task.key("").as_u64() == Ok(1632));
//! assert_eq!(task.get("vtime").as_u64()?, 700);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Names and meaning are those of the view that the live tool has over the same reports (section 7
//! of the shared format's description).

mod entry;
mod error;
mod field;
mod map;
pub mod pickers;

use std::collections::HashMap;

use scx_postmortem_format::report::{
    CgroupPsiStat, DsqState, EventCounterSample, FailureDumpMap, FailureDumpReport,
    PerCpuTimeStats, PerNodeNumaStats, ProbeBssCounters, ProgRuntimeStats, RqScxState,
    ScxSchedState, TaskEnrichment,
};

pub use self::entry::SnapshotEntry;
pub use self::error::{ExcludedMap, MissingStatsReason, SnapshotError, SnapshotResult};
pub use self::field::SnapshotField;
pub use self::map::SnapshotMap;

/// How the names of maps with global variables end.
const SECTIONS: [&str; 3] = [".bss", ".data", ".rodata"];

/// A view of one report, of all its maps or of the running scheduler's.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot<'a> {
    report: &'a FailureDumpReport,
    active: Option<Filter<'a>>,
}

/// The maps of one scheduler.
#[derive(Clone, Copy, Debug)]
struct Filter<'a> {
    object: &'a str,
    /// Addresses of its maps; empty: the name alone decides.
    maps: &'a [u64],
}

impl Filter<'_> {
    fn admits(&self, map: &FailureDumpMap) -> bool {
        object_of(&map.name) == self.object
            && (self.maps.is_empty() || (map.map_kva != 0 && self.maps.contains(&map.map_kva)))
    }
}

/// The object's name in a map's.
fn object_of(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

fn is_section(map: &FailureDumpMap) -> bool {
    SECTIONS.iter().any(|suffix| map.name.ends_with(suffix))
}

impl<'a> Snapshot<'a> {
    /// A view of every map of `report`.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # let report = two::report();
    /// use scx_postmortem_analyze::snapshot::Snapshot;
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.map_count(), report.maps.len());
    /// ```
    #[must_use]
    pub const fn new(report: &'a FailureDumpReport) -> Self {
        Self {
            report,
            active: None,
        }
    }

    /// The report: for what has no accessor here, such as the vCPUs' registers.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).report().schema, "single");
    /// ```
    #[must_use]
    pub const fn report(&self) -> &'a FailureDumpReport {
        self.report
    }

    fn maps(&self) -> impl Iterator<Item = &'a FailureDumpMap> + use<'a> {
        let filter = self.active;
        let maps = self.report.maps.iter();
        maps.filter(move |map| filter.is_none_or(|filter| filter.admits(map)))
    }

    /// Whether the view has this map.
    pub(crate) fn admits(&self, map: &FailureDumpMap) -> bool {
        self.active.is_none_or(|filter| filter.admits(map))
    }

    fn sections(&self) -> impl Iterator<Item = &'a FailureDumpMap> + use<'a> {
        self.maps().filter(|map| is_section(map))
    }

    fn not_a_placeholder(&self) -> SnapshotResult<()> {
        if self.report.is_placeholder {
            return Err(SnapshotError::PlaceholderSnapshot { tag: None });
        }
        Ok(())
    }

    /// The filter has addresses, the object has maps, and none of them is at one of these.
    fn excluded(&self, requested: &str) -> Option<SnapshotError> {
        let filter = self.active.filter(|filter| !filter.maps.is_empty())?;
        let all = self.report.maps.iter();
        let of_object: Vec<_> = all
            .filter(|map| object_of(&map.name) == filter.object)
            .collect();
        if of_object.is_empty() || of_object.iter().any(|map| filter.admits(map)) {
            return None;
        }
        let excluded = of_object.iter().map(|map| ExcludedMap {
            name: map.name.clone(),
            map_kva: map.map_kva,
        });
        Some(SnapshotError::ActiveFilterExcludedMaps {
            requested: requested.to_owned(),
            active_obj: filter.object.to_owned(),
            excluded_maps: excluded.collect(),
            whitelist_kvas: filter.maps.to_vec(),
        })
    }

    /// The first map of that name.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report).active().unwrap();
    /// assert_eq!(snapshot.map("two.bss").unwrap().raw().map_kva, 0xffff888000002000);
    /// assert_eq!(
    ///     snapshot.map("two.bzz").unwrap_err().to_string(),
    ///     "snapshot has no map 'two.bzz' (captured maps: [\"two.bss\", \"two.data\"])"
    /// );
    /// ```
    ///
    /// # Errors
    /// [`SnapshotError::PlaceholderSnapshot`], [`SnapshotError::ActiveFilterExcludedMaps`],
    /// [`SnapshotError::MapNotFound`].
    pub fn map(&self, name: &str) -> SnapshotResult<SnapshotMap<'a>> {
        self.not_a_placeholder()?;
        if let Some(map) = self.maps().find(|map| map.name == name) {
            return Ok(SnapshotMap::new(map));
        }
        Err(self
            .excluded(name)
            .unwrap_or_else(|| SnapshotError::MapNotFound {
                requested: name.to_owned(),
                available: self.maps().map(|map| map.name.clone()).collect(),
            }))
    }

    /// The global variable of that name. Where several sections have it, and it can be told which
    /// scheduler runs, that scheduler's.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// let report = two::report();
    /// assert_eq!(Snapshot::new(&report).var("nr_enqueued").as_u64(), Ok(4100));
    /// // The same report, without what tells the two copies apart.
    /// let report = two::report_without_active();
    /// let error = Snapshot::new(&report).var("nr_enqueued");
    /// assert!(
    ///     error.error().unwrap().to_string().starts_with(
    ///         "snapshot global 'nr_enqueued' is ambiguous (found in [\"two.bss\", \"two.bss\"])"
    ///     )
    /// );
    /// ```
    ///
    /// Missing with [`SnapshotError::PlaceholderSnapshot`], [`SnapshotError::AmbiguousVar`],
    /// [`SnapshotError::ActiveFilterExcludedMaps`], [`SnapshotError::MapRenderIncomplete`] when a
    /// section could not be read, or [`SnapshotError::VarNotFound`].
    #[must_use]
    pub fn var(&self, name: &str) -> SnapshotField<'a> {
        if let Err(error) = self.not_a_placeholder() {
            return SnapshotField::Missing(error);
        }
        let mut hits: Vec<_> = self.vars(name).collect();
        if hits.len() > 1 {
            if self.active.is_none()
                && let Ok(active) = self.active()
            {
                return active.var(name);
            }
            return SnapshotField::Missing(SnapshotError::AmbiguousVar {
                requested: name.to_owned(),
                found_in: hits.iter().map(|(map, _)| (*map).to_owned()).collect(),
            });
        }
        if let Some((_, field)) = hits.pop() {
            return field;
        }
        if let Some(error) = self.excluded(name) {
            return SnapshotField::Missing(error);
        }
        let mut unread = self.sections().filter(|map| map.value.is_none());
        if let Some((map, error)) = unread.find_map(|map| Some((map, map.error.as_ref()?))) {
            return SnapshotField::Missing(SnapshotError::MapRenderIncomplete {
                map: map.name.clone(),
                error: error.clone(),
            });
        }
        let values = self.sections().filter_map(|map| map.value.as_ref());
        let mut available: Vec<String> = values.flat_map(variables).map(str::to_owned).collect();
        available.sort_unstable();
        available.dedup();
        SnapshotField::Missing(SnapshotError::VarNotFound {
            requested: name.to_owned(),
            available,
        })
    }

    /// Every copy of the global variable of that name, with the section's name, in the captured
    /// order.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// let copies: Vec<u64> = snapshot
    ///     .vars("nr_enqueued")
    ///     .map(|(_, field)| field.as_u64().unwrap())
    ///     .collect();
    /// assert_eq!(copies, [85, 4100]);
    /// assert_eq!(snapshot.active().unwrap().vars("nr_enqueued").count(), 1);
    /// ```
    pub fn vars(&self, name: &str) -> impl Iterator<Item = (&'a str, SnapshotField<'a>)> {
        let maps = self.sections().filter(|_| !self.report.is_placeholder);
        maps.filter_map(move |map| {
            let value = map.value.as_ref()?.member(name)?;
            Some((map.name.as_str(), SnapshotField::new(value, name)))
        })
    }

    /// The view of the running scheduler's maps alone: those with its object's name, and, where the
    /// report has their addresses, at these.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::{Snapshot, SnapshotError};
    /// let report = two::report();
    /// assert_eq!(Snapshot::new(&report).active().unwrap().map_count(), 2);
    /// let report = two::report_without_active();
    /// let Err(SnapshotError::NoActiveScheduler { reason }) = Snapshot::new(&report).active() else {
    ///     panic!("one of two was chosen");
    /// };
    /// assert!(reason.starts_with(
    ///     "snapshot has multiple same-name copies of two's global-section maps (two.bss × 2) and"
    /// ));
    /// ```
    ///
    /// # Errors
    /// [`SnapshotError::PlaceholderSnapshot`]; [`SnapshotError::NoActiveScheduler`] when there are
    /// no global sections, or those of several schedulers and nothing says which one runs.
    pub fn active(&self) -> SnapshotResult<Self> {
        self.not_a_placeholder()?;
        // By object, how often it has each section, in the order in which they were found.
        let mut objects: Vec<(&'a str, [usize; 3])> = Vec::new();
        let mut places: HashMap<&'a str, usize> = HashMap::new();
        for map in self.report.maps.iter().filter(|map| is_section(map)) {
            let object = object_of(&map.name);
            if object.is_empty() {
                continue;
            }
            let place = *places.entry(object).or_insert_with(|| {
                objects.push((object, [0; 3]));
                objects.len() - 1
            });
            let counts = objects.get_mut(place).map(|(_, counts)| counts);
            let suffix = map.name.get(object.len()..).unwrap_or_default();
            for (section, count) in SECTIONS.iter().zip(counts.into_iter().flatten()) {
                *count += usize::from(suffix == *section);
            }
        }
        let view = |object: &'a str, maps: &'a [u64]| Self {
            report: self.report,
            active: Some(Filter { object, maps }),
        };
        let refuse = |reason: String| Err(SnapshotError::NoActiveScheduler { reason });
        let by_name = |object: &'a str, counts: &[usize; 3]| {
            if counts.iter().any(|&count| count > 1) {
                refuse(several_copies(object, counts))
            } else {
                Ok(view(object, &[]))
            }
        };
        let named = self.report.active_obj_name.as_deref();
        let known = named.and_then(|name| objects.iter().find(|(object, _)| *object == name));
        if let Some((object, counts)) = known {
            return match self.report.active_map_kvas.as_slice() {
                [] => by_name(object, counts),
                maps => Ok(view(object, maps)),
            };
        }
        match objects.as_slice() {
            [] => refuse("snapshot has no global-section BPF maps (no scheduler attached, or capture did not include bss/data/rodata)".to_owned()),
            [(object, counts)] => by_name(object, counts),
            several => {
                let names: Vec<&str> = several.iter().map(|(object, _)| *object).collect();
                refuse(format!(
                    "snapshot has {} BPF objects with global-section maps ({}) and the principled target-free prog_idr walker could not identify the active obj at capture time",
                    names.len(),
                    names.join(", ")
                ))
            }
        }
    }

    /// The running scheduler's variable of that name. For arithmetic on several, use
    /// [`live_vars_via`](Self::live_vars_via), which takes all from one copy.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).live_var("nr_direct").as_u64(), Ok(12));
    /// ```
    ///
    /// Missing as [`active`](Self::active) or [`var`](Self::var) say.
    #[must_use]
    pub fn live_var(&self, name: &str) -> SnapshotField<'a> {
        match self.active() {
            Ok(active) => active.var(name),
            Err(error) => SnapshotField::Missing(error),
        }
    }

    /// The copy of a variable that `picker` chooses, by its position among all of them.
    /// [`pickers`] has some.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report_without_active();
    /// let snapshot = Snapshot::new(&report);
    /// let first = snapshot.live_var_via("nr_enqueued", |copies| (copies.len() == 2).then_some(0));
    /// assert_eq!(first.as_u64(), Ok(85));
    /// assert_eq!(
    ///     snapshot.live_var_via("nr_enqueued", |_| Some(7)).error().unwrap().to_string(),
    ///     "projection failed: live_var_via picker returned index 7 out of range (candidate count \
    ///      = 2)"
    /// );
    /// ```
    ///
    /// Missing with [`SnapshotError::PlaceholderSnapshot`],
    /// [`SnapshotError::ActiveFilterExcludedMaps`], [`SnapshotError::VarNotFound`] with the
    /// sections that there are, or [`SnapshotError::ProjectionFailed`].
    #[must_use]
    pub fn live_var_via(
        &self,
        name: &str,
        picker: impl FnOnce(&[(&'a str, SnapshotField<'a>)]) -> Option<usize>,
    ) -> SnapshotField<'a> {
        if let Err(error) = self.not_a_placeholder() {
            return SnapshotField::Missing(error);
        }
        let mut copies: Vec<_> = self.vars(name).collect();
        if copies.is_empty() {
            return SnapshotField::Missing(self.no_copy(name.to_owned()));
        }
        let reason = match picker(&copies) {
            Some(chosen) if chosen < copies.len() => return copies.swap_remove(chosen).1,
            Some(chosen) => out_of_range("live_var_via", chosen, copies.len()),
            None => nothing_chosen("live_var_via", name),
        };
        SnapshotField::Missing(SnapshotError::ProjectionFailed { reason })
    }

    /// Several variables out of the one section that `picker` chooses, in the order of `names`.
    /// Only sections that have all of them are candidates, so all have to be of one kind of
    /// section.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report_without_active();
    /// let snapshot = Snapshot::new(&report);
    /// let names = ["nr_direct", "nr_enqueued"];
    /// let last = snapshot.live_vars_via(&names, |rows| rows.len().checked_sub(1)).unwrap();
    /// assert_eq!((last[0].as_u64(), last[1].as_u64()), (Ok(12), Ok(4100)));
    /// // One is in .bss, the other in .data.
    /// let error = snapshot.live_vars_via(&["nr_direct", "config"], |_| Some(0)).unwrap_err();
    /// assert!(error.to_string().contains("'[nr_direct, config]'"));
    /// ```
    ///
    /// # Errors
    /// Those of [`live_var_via`](Self::live_var_via); [`SnapshotError::ProjectionFailed`] also for
    /// no names.
    pub fn live_vars_via<P>(
        &self,
        names: &[&str],
        picker: P,
    ) -> SnapshotResult<Vec<SnapshotField<'a>>>
    where
        P: FnOnce(&[(&'a str, Vec<SnapshotField<'a>>)]) -> Option<usize>,
    {
        self.not_a_placeholder()?;
        if names.is_empty() {
            return Err(SnapshotError::ProjectionFailed {
                reason: "live_vars_via called with an empty names slice — co-pick requires at least one name".to_owned(),
            });
        }
        let row = |map: &'a FailureDumpMap| {
            let value = map.value.as_ref()?;
            let field = |name: &&str| Some(SnapshotField::new(value.member(name)?, *name));
            let fields: Option<Vec<_>> = names.iter().map(field).collect();
            Some((map.name.as_str(), fields?))
        };
        let mut rows: Vec<_> = self.sections().filter_map(row).collect();
        let joined = format!("[{}]", names.join(", "));
        if rows.is_empty() {
            return Err(self.no_copy(joined));
        }
        let reason = match picker(&rows) {
            Some(chosen) if chosen < rows.len() => return Ok(rows.swap_remove(chosen).1),
            Some(chosen) => out_of_range("live_vars_via", chosen, rows.len()),
            None => nothing_chosen("live_vars_via", &joined),
        };
        Err(SnapshotError::ProjectionFailed { reason })
    }

    fn no_copy(&self, requested: String) -> SnapshotError {
        self.excluded(&requested)
            .unwrap_or_else(|| SnapshotError::VarNotFound {
                requested,
                available: self.sections().map(|map| map.name.clone()).collect(),
            })
    }

    /// How many maps the view has.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.map_count(), 11);
    /// assert_eq!(snapshot.active().unwrap().map_count(), 2);
    /// ```
    #[must_use]
    pub fn map_count(&self) -> usize {
        self.maps().count()
    }

    /// Nothing was captured: empty lists say nothing.
    ///
    /// ```
    /// use scx_postmortem_analyze::snapshot::Snapshot;
    /// use scx_postmortem_format::report::FailureDumpReport;
    /// let report = FailureDumpReport::placeholder("the guest did not stop");
    /// let snapshot = Snapshot::new(&report);
    /// assert!(snapshot.is_placeholder());
    /// assert_eq!(
    ///     snapshot.map("two.bss").unwrap_err().to_string(),
    ///     "snapshot is a placeholder — the freeze-rendezvous path could not capture real data; no \
    ///      maps to walk"
    /// );
    /// ```
    #[must_use]
    pub const fn is_placeholder(&self) -> bool {
        self.report.is_placeholder
    }

    /// The event counters over time, the oldest first.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).event_counter_timeline()[0].dispatch_keep_last, 9);
    /// ```
    #[must_use]
    pub fn event_counter_timeline(&self) -> &'a [EventCounterSample] {
        &self.report.event_counter_timeline
    }

    /// The sched_ext part of each run queue.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).rq_scx_states()[0].nr_running, 2);
    /// ```
    #[must_use]
    pub fn rq_scx_states(&self) -> &'a [RqScxState] {
        &self.report.rq_scx_states
    }

    /// The dispatch queues.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).dsq_states()[0].nr, 1);
    /// ```
    #[must_use]
    pub fn dsq_states(&self) -> &'a [DsqState] {
        &self.report.dsq_states
    }

    /// The scheduler's root object.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).scx_sched_state().unwrap().exit_kind, 1026);
    /// ```
    #[must_use]
    pub const fn scx_sched_state(&self) -> Option<&'a ScxSchedState> {
        self.report.scx_sched_state.as_ref()
    }

    /// CPU time and interrupts of each CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).per_cpu_time().len(), 1);
    /// ```
    #[must_use]
    pub fn per_cpu_time(&self) -> &'a [PerCpuTimeStats] {
        &self.report.per_cpu_time
    }

    /// CPU time and interrupts of that CPU.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.per_cpu_time_at(1).unwrap().cpu, 1);
    /// assert!(snapshot.per_cpu_time_at(0).is_none());
    /// ```
    #[must_use]
    pub fn per_cpu_time_at(&self, cpu: u32) -> Option<&'a PerCpuTimeStats> {
        self.report.per_cpu_time.iter().find(|row| row.cpu == cpu)
    }

    /// Pressure of the workload's cgroups.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert!(Snapshot::new(&report).cgroup_psi().is_empty());
    /// ```
    #[must_use]
    pub fn cgroup_psi(&self) -> &'a [CgroupPsiStat] {
        &self.report.cgroup_psi
    }

    /// Counters of each NUMA node.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert!(Snapshot::new(&report).per_node_numa().is_empty());
    /// ```
    #[must_use]
    pub fn per_node_numa(&self) -> &'a [PerNodeNumaStats] {
        &self.report.per_node_numa
    }

    /// Counters of that NUMA node.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert!(Snapshot::new(&report).per_node_numa_at(0).is_none());
    /// ```
    #[must_use]
    pub fn per_node_numa_at(&self, node: u32) -> Option<&'a PerNodeNumaStats> {
        self.report
            .per_node_numa
            .iter()
            .find(|row| row.node == node)
    }

    /// Who the tasks are.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).task_enrichments().len(), 1);
    /// ```
    #[must_use]
    pub fn task_enrichments(&self) -> &'a [TaskEnrichment] {
        &self.report.task_enrichments
    }

    /// The task with that thread id.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let task = Snapshot::new(&report).task_enrichment_by_pid(1632).unwrap();
    /// assert_eq!(task.comm, "worker");
    /// ```
    #[must_use]
    pub fn task_enrichment_by_pid(&self, pid: i32) -> Option<&'a TaskEnrichment> {
        let mut tasks = self.report.task_enrichments.iter();
        tasks.find(|task| task.pid == pid)
    }

    /// How often each of the scheduler's programs ran.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).prog_runtime_stats().len(), 1);
    /// ```
    #[must_use]
    pub fn prog_runtime_stats(&self) -> &'a [ProgRuntimeStats] {
        &self.report.prog_runtime_stats
    }

    /// How often the program of that name ran.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let program = Snapshot::new(&report).prog_runtime_stats_by_name("two_enqueue").unwrap();
    /// assert_eq!(program.cnt, 4100);
    /// ```
    #[must_use]
    pub fn prog_runtime_stats_by_name(&self, name: &str) -> Option<&'a ProgRuntimeStats> {
        let mut programs = self.report.prog_runtime_stats.iter();
        programs.find(|program| program.name == name)
    }

    /// What the probe program counted.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert!(Snapshot::new(&report).probe_counters().is_none());
    /// ```
    #[must_use]
    pub const fn probe_counters(&self) -> Option<&'a ProbeBssCounters> {
        self.report.probe_counters.as_ref()
    }

    /// Why the run queues, dispatch queues and the root object are missing or incomplete.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).scx_walker_unavailable(), None);
    /// ```
    #[must_use]
    pub fn scx_walker_unavailable(&self) -> Option<&'a str> {
        self.report.scx_walker_unavailable.as_deref()
    }

    /// Why there are no tasks.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).task_enrichments_unavailable(), None);
    /// ```
    #[must_use]
    pub fn task_enrichments_unavailable(&self) -> Option<&'a str> {
        self.report.task_enrichments_unavailable.as_deref()
    }

    /// Why there are no programs.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).prog_runtime_stats_unavailable(), None);
    /// ```
    #[must_use]
    pub fn prog_runtime_stats_unavailable(&self) -> Option<&'a str> {
        self.report.prog_runtime_stats_unavailable.as_deref()
    }

    /// Why there are no NUMA counters.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).per_node_numa_unavailable(), Some("no NUMA walker"));
    /// ```
    #[must_use]
    pub fn per_node_numa_unavailable(&self) -> Option<&'a str> {
        self.report.per_node_numa_unavailable.as_deref()
    }

    /// Why there are no allocators.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).sdt_alloc_unavailable(), None);
    /// ```
    #[must_use]
    pub fn sdt_alloc_unavailable(&self) -> Option<&'a str> {
        self.report.sdt_alloc_unavailable.as_deref()
    }
}

/// The names at the top level of a section.
fn variables(section: &scx_postmortem_format::report::RenderedValue) -> impl Iterator<Item = &str> {
    use scx_postmortem_format::report::RenderedValue;
    let members = match section {
        RenderedValue::Struct { members, .. } => members.as_slice(),
        RenderedValue::Truncated { partial, .. } => match &**partial {
            RenderedValue::Struct { members, .. } => members.as_slice(),
            _ => &[],
        },
        _ => &[],
    };
    members.iter().map(|member| member.name.as_str())
}

fn several_copies(object: &str, counts: &[usize; 3]) -> String {
    let copies = SECTIONS.iter().zip(counts).filter(|&(_, &count)| count > 1);
    let copies: Vec<String> = copies
        .map(|(section, count)| format!("{object}{section} × {count}"))
        .collect();
    format!(
        "snapshot has multiple same-name copies of {object}'s global-section maps ({}) and the principled target-free prog_idr walker did not publish an active_map_kvas whitelist to disambiguate; use Snapshot::live_var_via or Snapshot::live_vars_via with pickers::max_by_sum_u64 to choose by activity",
        copies.join(", ")
    )
}

fn out_of_range(call: &str, chosen: usize, candidates: usize) -> String {
    format!("{call} picker returned index {chosen} out of range (candidate count = {candidates})")
}

fn nothing_chosen(call: &str, requested: &str) -> String {
    format!(
        "{call} picker for '{requested}' returned None (no candidate matched the supplied disambiguator)"
    )
}
