//! Ring buffers that nobody empties.
//!
//! `bpf_ringbuf.producer_pos` less `consumer_pos` is what user space has not read. When the next
//! record does not fit, `bpf_ringbuf_reserve()` fails, and whatever the scheduler leaves to user
//! space is not done.

use super::{Case, Confidence, Draft, listed, name, waited};

/// Callbacks that decide where a task goes: a record of theirs that is lost may be a task that is.
const DECIDE: [&str; 3] = ["select_cpu", "enqueue", "dispatch"];

/// Bytes of a record's header.
const HEADER: u64 = 8;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    // A full buffer alone is no failure: many only collect what somebody may want to see.
    let Some((index, longest)) = case.starved().next() else {
        return Vec::new();
    };
    let names: Vec<String> = case.starved().map(|(_, task)| name(task)).collect();
    let maps = case.shared_maps.iter().enumerate();
    maps.filter_map(|(at, map)| {
        let ring = map.ringbuf.as_ref()?;
        let used = case.used_by_scheduler(map.map_kva)?;
        // In this mode old records give way to new ones.
        let flags = used.flags.as_ref()?;
        if flags.names.iter().any(|flag| flag.contains("OVERWRITE")) {
            return None;
        }
        // The last record that came is as good a guess at the next one as any.
        let next = used.records.last().map(|record| u64::from(record.len) + HEADER)?;
        let free = ring.capacity.checked_sub(ring.pending_bytes)?;
        if free >= next.next_multiple_of(8) {
            return None;
        }
        let (confidence, consumer) = if ring.consumer_pos == 0 {
            (Confidence::Possible, "nobody has ever read it".to_owned())
        } else {
            let read = ring.consumer_pos;
            // Else it only tells of what happened, to whoever wants to see it.
            let sure = if case.used_by_callback(used, &DECIDE) {
                Confidence::Likely
            } else {
                Confidence::Possible
            };
            (sure, format!("its consumer stopped after {read} bytes"))
        };
        Some(
            Draft::new(
                confidence,
                format!(
                    "ring buffer {} is full ({} of {} bytes), so nothing more reaches user space: {consumer}; {} waited up to {}",
                    used.name,
                    ring.pending_bytes,
                    ring.capacity,
                    listed(&names),
                    waited(longest.runnable_age_ms)
                ),
            )
            .advice("look at why the scheduler's program in user space does not read it; a task must not depend on a record that may be lost")
            .rests_on_shared(format_args!("maps/{at}/ringbuf/pending_bytes"), ring.pending_bytes)
            .rests_on_shared(format_args!("maps/{at}/ringbuf/capacity"), ring.capacity)
            .rests_on_shared(format_args!("maps/{at}/ringbuf/consumer_pos"), ring.consumer_pos)
            .rests_on(format_args!("starved/{index}/runnable_age_ms"), longest.runnable_age_ms),
        )
    })
    .collect()
}
