//! Work in parallel, results in order, a bounded number of them in memory.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::bytes::{to_u64, to_usize};

/// Runs `work` for `0..units` on the current rayon pool and hands the results to `sink` in
/// order. `sink` runs while the next batch is being worked on. Stops at the first error, in
/// order of units.
pub(super) fn ordered<T: Send, E: Send>(
    units: u64,
    work: impl Fn(u64) -> Result<T, E> + Sync,
    mut sink: impl FnMut(T) -> Result<(), E> + Send,
) -> Result<(), E> {
    let batch = to_u64(rayon::current_num_threads().max(1)) * 32;
    let mut ready: Vec<Result<T, E>> = Vec::new();
    let mut next = 0;
    loop {
        let end = units.min(next + batch);
        let (drained, made) = rayon::join(
            || ready.drain(..).try_for_each(|result| sink(result?)),
            || {
                let count = to_usize(end - next);
                let units = (0..count).into_par_iter().with_max_len(1);
                units.map(|i| work(next + to_u64(i))).collect()
            },
        );
        drained?;
        ready = made;
        if ready.is_empty() {
            return Ok(());
        }
        next = end;
    }
}

/// Things that are dear to make, lent to one worker at a time.
#[derive(Debug)]
pub(super) struct Spares<T>(Mutex<Vec<T>>);

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T> Spares<T> {
    pub(super) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn give(&self, spare: T) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(spare);
    }
}
