//! The signals that end `capture`.
//!
//! While a guest is followed the first one ends that, and the second one ends us at once. Once there
//! is something to write, nothing ends us at once: what was taken would be lost with us. The second
//! signal of all then ends the writing, and what there is of the file is kept. (A CI system that
//! cancels a job sends SIGINT, then SIGTERM a few seconds later.)

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

const ENDING: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];
/// As many signals end the writing.
const ENOUGH: usize = 2;

/// While a guest is followed.
pub(crate) struct Signals {
    told: Arc<AtomicBool>,
    at_once: Vec<SigId>,
}

impl Signals {
    /// Sets `told` when one of them comes.
    pub(crate) fn new(told: Arc<AtomicBool>) -> io::Result<Self> {
        let mut at_once = Vec::new();
        for signal in ENDING {
            // The second one; the guest goes with us.
            let armed = Arc::clone(&told);
            at_once.push(flag::register_conditional_shutdown(
                signal,
                128 + SIGTERM,
                armed,
            )?);
            flag::register(signal, Arc::clone(&told))?;
        }
        Ok(Self { told, at_once })
    }

    /// There is something to write.
    pub(crate) fn writing(self) -> Writing {
        for id in self.at_once {
            low_level::unregister(id);
        }
        Writing {
            told: self.told,
            times: AtomicUsize::new(0),
        }
    }
}

/// While files are written.
pub(crate) struct Writing {
    told: Arc<AtomicBool>,
    /// How many signals have come.
    times: AtomicUsize,
}

impl Writing {
    /// Whether to write no further. Once it is so, it stays so.
    pub(crate) fn is_over(&self) -> bool {
        if self.told.swap(false, Ordering::Relaxed) {
            self.times.fetch_add(1, Ordering::Relaxed);
        }
        self.times.load(Ordering::Relaxed) >= ENOUGH
    }

    /// One that no signal reaches, for tests.
    #[cfg(test)]
    pub(crate) fn after(times: usize) -> Self {
        Self {
            told: Arc::default(),
            times: AtomicUsize::new(times),
        }
    }
}

#[cfg(test)]
mod tests {
    use signal_hook::low_level::raise;

    use super::*;

    #[test]
    fn the_second_signal_ends_the_writing_and_not_us() {
        let told = Arc::new(AtomicBool::new(false));
        let signals = Signals::new(Arc::clone(&told)).unwrap();
        raise(SIGINT).unwrap();
        assert!(told.load(Ordering::Relaxed), "the guest is followed on");
        let writing = signals.writing();
        assert!(!writing.is_over(), "it ended the following");
        // This process is still there after it.
        raise(SIGTERM).unwrap();
        assert!(writing.is_over() && writing.is_over());
    }
}
