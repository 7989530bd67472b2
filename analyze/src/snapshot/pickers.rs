//! Ready-made answers to "which copy?", for [`Snapshot::live_var_via`](super::Snapshot::live_var_via)
//! and [`Snapshot::live_vars_via`](super::Snapshot::live_vars_via).
//!
//! Both go by counters, and so assume that these only grow and that a copy which is not in use has
//! counted less. Of equals they take the last, which is the youngest.

use super::SnapshotField;

/// The copy with the largest number. Copies without one are passed over.
///
/// ```
/// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
/// use scx_postmortem_analyze::snapshot::{Snapshot, pickers};
/// # let report = two::report_without_active();
/// let field = Snapshot::new(&report).live_var_via("nr_enqueued", pickers::max_by_counter_value);
/// assert_eq!(field.as_u64(), Ok(4100));
/// ```
#[must_use]
pub fn max_by_counter_value(copies: &[(&str, SnapshotField<'_>)]) -> Option<usize> {
    let values = copies.iter().map(|(_, field)| field.as_u64().ok());
    largest(values)
}

/// The row with the largest sum, which stops at the largest number there is. A row with anything
/// that is no number is passed over.
///
/// ```
/// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
/// use scx_postmortem_analyze::snapshot::{Snapshot, pickers};
/// # let report = two::report_without_active();
/// let fields = Snapshot::new(&report)
///     .live_vars_via(&["nr_enqueued", "nr_direct"], pickers::max_by_sum_u64)
///     .unwrap();
/// assert_eq!(fields[0].as_u64(), Ok(4100));
/// assert_eq!(fields[1].as_u64(), Ok(12));
/// ```
#[must_use]
pub fn max_by_sum_u64(rows: &[(&str, Vec<SnapshotField<'_>>)]) -> Option<usize> {
    let sums = rows.iter().map(|(_, fields)| {
        fields.iter().try_fold(0u64, |sum, field| {
            Some(sum.saturating_add(field.as_u64().ok()?))
        })
    });
    largest(sums)
}

fn largest(values: impl Iterator<Item = Option<u64>>) -> Option<usize> {
    let numbers = values
        .enumerate()
        .filter_map(|(i, value)| Some((value?, i)));
    // max_by_key gives the last of equals.
    numbers.max_by_key(|&(value, _)| value).map(|(_, i)| i)
}
