//! How fast the TSC of a guest under software emulation runs: QEMU's `cpu_get_tsc()` gives it the
//! host's (`cpu_get_host_ticks()`, include/qemu/timer.h), which goes on while the emulator does not.
//!
//! A guest's kernel measures that speed against an emulated timer, and on a busy host it may come
//! out wrong by a factor of ten and more, and its clock with it.
#![allow(unsafe_code)]

use std::thread;
use std::time::{Duration, Instant};

/// How long is measured, twice.
const LONG: Duration = Duration::from_millis(25);
/// A busy host disturbs one or the other.
const TRIES: u32 = 8;
/// Slower and faster ones are no TSC of an x86 CPU, in kHz.
const PLAUSIBLE: std::ops::RangeInclusive<u64> = 100_000..=20_000_000;

/// What the guest's kernel is told, with a space behind; nothing where that is not known.
pub(super) fn early_khz() -> String {
    let found = (0..TRIES).find_map(|_| agreed((khz(), khz())));
    found.map_or_else(String::new, |khz| format!("tsc_early_khz={khz} "))
}

/// Two measurements that differ by less than a thousandth.
fn agreed((one, other): (Option<u64>, Option<u64>)) -> Option<u64> {
    let (one, other) = (one?, other?);
    let near = one.abs_diff(other) < one / 1000;
    (near && PLAUSIBLE.contains(&one)).then_some(one.midpoint(other))
}

/// The host's TSC in kHz.
fn khz() -> Option<u64> {
    let (start, from) = (Instant::now(), ticks()?);
    thread::sleep(LONG);
    let (to, end) = (ticks()?, start.elapsed());
    let ticks = u128::from(to.checked_sub(from)?);
    u64::try_from(ticks * 1_000_000 / end.as_nanos().max(1)).ok()
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::unnecessary_wraps, reason = "not every CPU has one")]
fn ticks() -> Option<u64> {
    // SAFETY: RDTSC has no operands and touches no memory. Linux lets every process execute it unless
    // that has forbidden it to itself (PR_SET_TSC), which this one does not.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

/// QEMU gives a guest what its host has instead, which is no TSC's speed.
#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_have_to_agree() {
        assert_eq!(agreed((Some(2_596_000), Some(2_596_200))), Some(2_596_100));
        assert_eq!(agreed((Some(2_596_000), Some(2_500_000))), None);
        assert_eq!(agreed((Some(67), Some(67))), None, "no TSC is as slow");
        assert_eq!(agreed((None, Some(2_596_000))), None);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_hosts_tsc_is_measured() {
        let found = (0..5 * TRIES).find_map(|_| agreed((khz(), khz())));
        assert!(
            found.is_some_and(|khz| PLAUSIBLE.contains(&khz)),
            "{found:?}"
        );
    }
}
