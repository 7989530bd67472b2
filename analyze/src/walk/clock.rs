//! The guest's clocks: `jiffies` with HZ, and the time since boot.
//!
//! Reads `jiffies` (kernel/time/timer.c), what tells HZ, and the core timekeeper
//! (`struct tk_data`, kernel/time/timekeeping.c) with the TSC that it was last read at
//! (`clocksource_tsc`, arch/x86/kernel/tsc.c).

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::object::Object;

/// The moment of the stop, as the scheduler counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// `jiffies_64`.
    pub jiffies: u64,
    /// Jiffies per second.
    pub hz: u64,
    /// What told HZ.
    pub hz_source: &'static str,
}

impl Clock {
    /// Reads the clock.
    ///
    /// # Errors
    /// When `jiffies` or HZ cannot be had.
    pub fn read(kernel: &Kernel) -> Result<Self> {
        let (hz, hz_source) = kernel.hz()?;
        Ok(Self {
            jiffies: jiffies(kernel)?,
            hz,
            hz_source,
        })
    }

    /// Jiffies since `then`; 0 for a moment in the future. Unsigned wrap is the kernel's own
    /// (`time_after`): half of the range counts as future.
    #[must_use]
    pub const fn since(&self, then: u64) -> u64 {
        let age = self.jiffies.wrapping_sub(then);
        if age > u64::MAX / 2 { 0 } else { age }
    }

    /// Jiffies as milliseconds, rounded down.
    #[must_use]
    pub fn to_ms(&self, jiffies: u64) -> u64 {
        let ms = u128::from(jiffies) * 1000 / u128::from(self.hz.max(1));
        u64::try_from(ms).unwrap_or(u64::MAX)
    }
}

/// `jiffies_64`.
///
/// # Errors
/// When it cannot be read.
pub fn jiffies(kernel: &Kernel) -> Result<u64> {
    let at = kernel
        .symbol("jiffies_64")
        .or_else(|_| kernel.symbol("jiffies"))?;
    kernel.read_u64(at)
}

/// The clock of timers in ns, without suspend, as of the last timer tick (`ktime_get()` without
/// the cycles since that tick).
///
/// # Errors
/// When this kernel's timekeeper cannot be found or makes no sense.
pub fn monotonic_ns(kernel: &Kernel) -> Result<i64> {
    let (monotonic, _) = timekeeper(kernel)?;
    i64::try_from(monotonic).map_err(|_| implausible(monotonic))
}

/// Time since boot in ns, suspend included, as of the last timer tick: what `/proc/uptime` shows
/// (`ktime_get_boottime()` without the cycles since that tick).
///
/// # Errors
/// When this kernel's timekeeper cannot be found or makes no sense.
pub fn uptime_ns(kernel: &Kernel) -> Result<u64> {
    let (monotonic, offset) = timekeeper(kernel)?;
    let boottime = monotonic + offset;
    u64::try_from(boottime).map_err(|_| implausible(boottime))
}

fn implausible(ns: i128) -> Error {
    Error::Implausible {
        what: "the time since boot".into(),
        found: format!("{ns} ns"),
        why: "not negative, less than 584 years",
    }
}

/// Time since the timekeeper was last brought up to date, ns: `timekeeping_get_delta()` with the
/// TSC of the vCPU that has the latest. Some CPU does that at each tick, unless none takes one.
/// `None` without a TSC in the file, or with another clock source.
///
/// # Errors
/// When this kernel's timekeeper cannot be found or makes no sense.
pub fn timekeeping_age_ns(kernel: &Kernel) -> Result<Option<u64>> {
    let vcpus = kernel.image.vcpus.iter().flatten();
    let Some(tsc) = vcpus.filter_map(|regs| regs.tsc).max() else {
        return Ok(None);
    };
    let base = core_timekeeper(kernel)?.member("tkr_mono")?;
    if base.member("clock")?.ptr()? != kernel.symbol("clocksource_tsc")? {
        return Ok(None);
    }
    let mult = base.member("mult")?.u32()?;
    let shift = base.member("shift")?.u32()?;
    // One vCPU's may be a little behind what another one left there.
    let cycles = tsc.saturating_sub(base.member("cycle_last")?.u64()?);
    let ns = (u128::from(cycles) * u128::from(mult)).checked_shr(shift);
    Ok(ns.and_then(|ns| u64::try_from(ns).ok()))
}

fn core_timekeeper(kernel: &Kernel) -> Result<Object<'_>> {
    // 6.17 made it the first of an array, for auxiliary clocks.
    let data = kernel
        .global("timekeeper_data", "struct tk_data")
        .or_else(|_| kernel.global("tk_core", "struct tk_data"))?;
    data.member("timekeeper")
}

/// The monotonic clock, and by how much the time since boot is ahead of it.
fn timekeeper(kernel: &Kernel) -> Result<(i128, i128)> {
    let tk = core_timekeeper(kernel)?;
    let shift = tk.member("tkr_mono.shift")?.u32()?;
    let nsec = tk.member("tkr_mono.xtime_nsec")?.u64()?.checked_shr(shift);
    let nsec = nsec.ok_or_else(|| Error::Implausible {
        what: "the timekeeper's shift".into(),
        found: shift.to_string(),
        why: "below 64",
    })?;
    let seconds = tk.member("xtime_sec")?.i64()?;
    let to_monotonic = tk.member("wall_to_monotonic")?;
    let total = |seconds: i64, nsec: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nsec);
    let monotonic = total(seconds, nsec.cast_signed())
        + total(
            to_monotonic.member("tv_sec")?.i64()?,
            to_monotonic.member("tv_nsec")?.i64()?,
        );
    Ok((monotonic, i128::from(tk.member("offs_boot")?.i64()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_cross_the_wrap_of_the_low_half_and_never_go_negative() {
        let clock = Clock {
            jiffies: 0x1_0000_0010,
            hz: 250,
            hz_source: "a test",
        };
        assert_eq!(clock.since(0xffff_fff0), 0x20);
        assert_eq!(clock.to_ms(0x20), 128);
        assert_eq!(clock.since(0x1_0000_0011), 0);
    }
}
