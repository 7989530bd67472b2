//! Many captures at once: a report of each, and one table of all.
//!
//! Below the folder of results:
//!
//! - `reports/KEY.json`: the report of a capture, as `analyze --format json` writes it;
//! - `done/KEY.json`: what the capture was when it was looked at, by which version and with which
//!   settings, and its rows. It is written after the report, so that a capture without one is not
//!   done;
//! - `index.ndjson`, and with the feature `parquet` also `index.parquet`: the table, made of these
//!   when all is done. A part of a run writes `index-2-of-8.…`.
//!
//! Whatever ends a run, the next one goes on where it was: files appear under their names only when
//! they are complete, and what is done is not done again unless the capture, the analyzer or the
//! settings are others. Nothing in the results depends on when or in what order they came.

pub mod input;
mod row;
mod shard;
mod table;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use scx_postmortem_format::report::{FailureDumpReportAny, SCHEMA_DEGRADED};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use self::input::{Identity, Input};
pub use self::row::{CaptureRow, Cell, FindingRow};
pub use self::shard::Shard;
use self::table::{Lines, Table};
use crate::analysis::{ANALYZER, Options};
use crate::bytes::to_u64;
use crate::error::OpenError;
use crate::folder;
use crate::golden;
use crate::source::{Image, Traffic, read_whole};
#[cfg(feature = "object-store")]
use crate::source::{RangedFile, Stores};

/// The version of the table's columns. It grows when a column changes its meaning or goes, not when
/// one is added.
pub const TABLE_VERSION: u32 = 1;
/// The version of the files in `done/`.
const RECORD_VERSION: u32 = 1;
/// Inputs that are named with a signature.
const SHOWN: usize = 3;
/// Runs that may end in the middle of an input before one passes over it. More than one: whoever
/// ends a run from outside does so in the middle of some input.
const MAX_ENDS: u32 = 3;

/// What to do.
#[derive(Debug)]
pub struct Run {
    /// Where the results go.
    pub out: PathBuf,
    /// Which part of the inputs is this process's.
    pub shard: Shard,
    /// For captures that were reduced without the kernel's tables: of all kernels that there are.
    pub kernel_tables: Vec<PathBuf>,
    /// How reports are made.
    pub options: Options,
    /// Also what is done already.
    pub again: bool,
    /// Captures that are looked at at the same time.
    pub jobs: usize,
    /// Where inputs are that are no files.
    #[cfg(feature = "object-store")]
    pub stores: Option<Stores>,
}

/// What was fetched from stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Captures.
    pub objects: u64,
    /// Their length.
    pub of_bytes: u64,
    /// What came of it.
    pub traffic: Traffic,
}

/// What a capture's file in `done/` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Absent when there is no report for a reason that can pass: that is tried again.
    identity: Option<Identity>,
    settings: String,
    /// Length of the report's file.
    report_bytes: Option<u64>,
    /// Why the last look at the capture came to nothing, where that may be otherwise next time. All
    /// else is of the look before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passing: Option<String>,
    row: CaptureRow,
    findings: Vec<FindingRow>,
}

/// Captures with one signature.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// The signature.
    pub signature: String,
    /// How many captures have it.
    pub captures: usize,
    /// What the first of them has.
    pub first: CaptureRow,
    /// The first of them by name.
    pub inputs: Vec<String>,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Inputs of this part.
    pub inputs: usize,
    /// Those of them that were done before.
    pub kept: usize,
    /// Those of which there is a report.
    pub reports: usize,
    /// Those of which there is none: their names, and why.
    pub failed: Vec<(String, String)>,
    /// Reports that show no failure.
    pub healthy: usize,
    /// Captures that were given up, whose reports cannot show one.
    pub degraded: usize,
    /// Failures, the most frequent first.
    pub groups: Vec<Group>,
    /// The tables that were written.
    pub tables: Vec<PathBuf>,
    /// What was fetched from stores.
    pub fetched: Fetched,
    /// What the run had to do without. Each a sentence.
    pub warnings: Vec<String>,
}

/// Why an input has no report.
#[derive(Clone)]
struct Failure {
    why: String,
    /// It may be otherwise next time, with the same bytes.
    passing: bool,
}

/// Does a run. `done` is told how many inputs are finished, of how many.
///
/// # Errors
/// A sentence, when results cannot be written. What is wrong with an input is in its row.
pub fn run(
    run: &Run,
    inputs: &[Input],
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Outcome, String> {
    let (places, unlocked) = Places::prepare(run)?;
    let mine: Vec<&Input> = inputs.iter().filter(|i| run.shard.has(i.name())).collect();
    // What was begun when a run ended comes last, one at a time: if one of them ends this run as
    // well, it is known which.
    let (begun, fresh): (Vec<&Input>, Vec<&Input>) =
        mine.iter().partition(|input| places.ends(&input.key()) > 0);
    let settings = run.settings();
    let finished = AtomicUsize::new(0);
    let kept = AtomicUsize::new(0);
    let unwritable: Mutex<Option<String>> = Mutex::new(None);
    let fetched = Mutex::new(Fetched::default());
    for (inputs, jobs) in [(&fresh, run.jobs), (&begun, 1)] {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, inputs.len().max(1)) {
                scope.spawn(|| {
                    // One thread for the walkers: captures are what runs in parallel here.
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                    while let Some(input) = inputs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let work = || one(run, &places, input, &settings, &fetched);
                        let outcome = match &pool {
                            Ok(pool) => pool.install(work),
                            Err(_) => work(),
                        };
                        match outcome {
                            Ok(true) => {
                                kept.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(false) => {}
                            Err(why) => {
                                // A full disk fails every one of them: the first is enough.
                                next.store(usize::MAX / 2, Ordering::Relaxed);
                                if let Ok(mut first) = unwritable.lock() {
                                    first.get_or_insert(why);
                                }
                            }
                        }
                        done(finished.fetch_add(1, Ordering::Relaxed) + 1, mine.len());
                    }
                });
            }
        });
        // A full disk fails the others as well.
        if unwritable.lock().is_ok_and(|why| why.is_some()) {
            break;
        }
    }
    if let Some(why) = unwritable.into_inner().unwrap_or_default() {
        return Err(why);
    }
    let mut outcome = places.index(run.shard, &mine)?;
    outcome.kept = kept.into_inner();
    outcome.warnings.extend(unlocked);
    outcome.fetched = fetched.into_inner().unwrap_or_default();
    Ok(outcome)
}

impl Run {
    /// What else a report depends on: with other settings it is made again.
    fn settings(&self) -> String {
        let tables = self.kernel_tables.iter().map(|path| {
            let identity = Input::identity_of_file(path).unwrap_or_default();
            format!("{}:{}", identity.bytes, identity.changed)
        });
        let mut tables: Vec<String> = tables.collect();
        tables.sort();
        format!("{:?} tables {tables:?} program {}", self.options, program())
    }
}

/// What tells this build of the analyzer from others of its version. Where its file cannot be read
/// that is the version alone.
fn program() -> String {
    let digest = || {
        // Also when another build has taken its place meanwhile.
        let mut file = File::open("/proc/self/exe")?;
        let mut digest = Xxh3::new();
        let mut part = vec![0; 1 << 16];
        let mut len = 0_u64;
        loop {
            let read = file.read(&mut part)?;
            if read == 0 {
                return Ok::<_, std::io::Error>(format!("{len} {:016x}", digest.digest()));
            }
            digest.update(part.get(..read).unwrap_or_default());
            len = len.saturating_add(to_u64(read));
        }
    };
    digest().unwrap_or_else(|_| ANALYZER.to_owned())
}

/// Looks at one input, unless it is done. Whether it was.
fn one(
    run: &Run,
    places: &Places,
    input: &Input,
    settings: &str,
    fetched: &Mutex<Fetched>,
) -> Result<bool, String> {
    let key = input.key();
    let identity = identity(run, input);
    let old = places.record(&key).ok();
    let old = old.filter(|record| record.row.input == input.shown());
    if let (false, Ok(identity), Some(record)) = (run.again, &identity, &old)
        && record.identity.as_ref() == Some(identity)
        && record.settings == settings
        && record.row.analyzer == ANALYZER
        && places.report_bytes(&key) == record.report_bytes
    {
        if record.passing.is_some() {
            // It can be read again, and is what it was.
            let record = Record {
                passing: None,
                ..record.clone()
            };
            places.write_record(&key, &record)?;
        }
        places.unmark(&key);
        return Ok(true);
    }
    let mut row = CaptureRow {
        input: input.shown(),
        analyzer: ANALYZER.to_owned(),
        ..CaptureRow::default()
    };
    let mut record = Record {
        version: RECORD_VERSION,
        settings: settings.to_owned(),
        ..Record::default()
    };
    // It goes when the record is written.
    let mut mark = None;
    let made = match &identity {
        Ok(identity) => {
            row.file_bytes = i64::try_from(identity.bytes).ok();
            let begun = places.mark(&key)?;
            let made = match begun.ends {
                MAX_ENDS.. => Err(Failure::passing(format!(
                    "{}: {MAX_ENDS} runs ended while they were at work on it, so this one passed over it, and the next one tries again; look at it alone with `analyze FILE`: it may be cut off or rewritten meanwhile, on a bad disk, or need more memory than there is",
                    input.shown()
                ))),
                _ => report(run, input, identity, fetched),
            };
            mark = Some(begun);
            made
        }
        Err(failure) => Err(failure.clone()),
    };
    let identity = identity.ok();
    match made {
        Ok(report) => {
            row.take_report(&report);
            row.report = Some(format!("reports/{key}.json"));
            row.cut();
            record.findings = row::findings(&report, &row);
            record.identity = identity;
            let mut text = report.to_json().map_err(|e| e.to_string())?;
            text.push('\n');
            drop(report);
            record.report_bytes = u64::try_from(text.len()).ok();
            places.write("reports", &key, text.as_bytes())?;
        }
        // What is known of the capture stays, unless that was another one.
        Err(failure)
            if failure.passing
                && old.as_ref().is_some_and(|old| {
                    let same = identity.is_none() || old.identity == identity;
                    old.identity.is_some() && same && places.report_bytes(&key) == old.report_bytes
                }) =>
        {
            let record = Record {
                passing: Some(failure.why),
                ..old.unwrap_or_default()
            };
            places.write_record(&key, &record)?;
            return Ok(false);
        }
        Err(failure) => {
            row.error = Some(failure.why);
            record.identity = identity.filter(|_| !failure.passing);
            // An older report would stand beside the error.
            let _ = std::fs::remove_file(places.path("reports", &key));
        }
    }
    row.cut();
    record.row = row;
    places.write_record(&key, &record)?;
    drop(mark);
    Ok(false)
}

fn identity(run: &Run, input: &Input) -> Result<Identity, Failure> {
    let work = || match input {
        // What was found in a folder that can be read is among the inputs instead of it.
        Input::File(path) if path.is_dir() => Err(folder::unread(path)),
        Input::File(path) => {
            Input::identity_of_file(path).map_err(|e| format!("{}: {e}", path.display()))
        }
        Input::Object(address) => run.object(address),
    };
    let found = golden::guarded(&input.shown(), work).and_then(|found| found);
    found.map_err(Failure::passing)
}

/// Whether this build reads object stores.
pub const READS_OBJECTS: bool = cfg!(feature = "object-store");
/// Why addresses are refused.
pub const NO_STORES: &str = "this analyze cannot read object stores; build it with `--features archive`, or copy the object to a file";

/// The report of an input. A fault of ours that a capture leads to costs that capture alone.
fn report(
    run: &Run,
    input: &Input,
    identity: &Identity,
    fetched: &Mutex<Fetched>,
) -> Result<FailureDumpReportAny, Failure> {
    let work = || match input {
        Input::File(path) if golden::is_json(path) => {
            golden::read_report(path).map_err(Failure::from)
        }
        Input::File(path) => {
            let open = |early| match early {
                false => Image::open(path),
                true => Image::open_early(path),
            };
            run.report(input, &open)
        }
        Input::Object(address) => run.fetch(input, address, identity, fetched),
    };
    golden::guarded(&input.shown(), work).unwrap_or_else(|why| Err(Failure::lasting(why)))
}

#[cfg(not(feature = "object-store"))]
impl Run {
    #[expect(clippy::unused_self, reason = "with stores it is used")]
    fn object(&self, address: &str) -> Result<Identity, String> {
        Err(format!("{address}: {NO_STORES}"))
    }

    #[expect(clippy::unused_self, reason = "with stores it is used")]
    fn fetch(
        &self,
        _: &Input,
        address: &str,
        _: &Identity,
        _: &Mutex<Fetched>,
    ) -> Result<FailureDumpReportAny, Failure> {
        Err(Failure::lasting(format!("{address}: {NO_STORES}")))
    }
}

#[cfg(feature = "object-store")]
impl Run {
    fn stores(&self, address: &str) -> Result<&Stores, String> {
        let stores = self.stores.as_ref();
        stores.ok_or_else(|| format!("{address}: no stores were opened"))
    }

    fn object(&self, address: &str) -> Result<Identity, String> {
        let stores = self.stores(address)?;
        if address.ends_with('/') {
            // What was found in one that can be listed is among the inputs instead of it.
            stores.list(address, input::MAX_INPUTS)?;
            return Err(format!(
                "{address}: it could not be listed before; run again"
            ));
        }
        let facts = stores.facts(address)?;
        Ok(Identity {
            bytes: facts.bytes,
            changed: facts.changed,
            etag: facts.etag,
        })
    }

    fn fetch(
        &self,
        input: &Input,
        address: &str,
        identity: &Identity,
        fetched: &Mutex<Fetched>,
    ) -> Result<FailureDumpReportAny, Failure> {
        let facts = crate::source::ObjectFacts {
            bytes: identity.bytes,
            changed: identity.changed.clone(),
            etag: identity.etag.clone(),
        };
        let stores = self.stores(address).map_err(Failure::passing)?;
        let file: RangedFile = stores.file(address, &facts).map_err(Failure::passing)?;
        let made = self.report(input, &|early| Image::open_ranged(&file, address, early));
        if let Ok(mut sum) = fetched.lock() {
            let traffic = file.traffic();
            sum.objects += 1;
            sum.of_bytes += identity.bytes;
            sum.traffic.requests += traffic.requests;
            sum.traffic.bytes += traffic.bytes;
        }
        // What a report lacks because the line was cut is not what the capture lacks.
        match file.failure() {
            Some(why) => Err(Failure::passing(format!("{address}: {why}"))),
            None => made,
        }
    }
}

impl Run {
    fn report(
        &self,
        input: &Input,
        open: &dyn Fn(bool) -> Result<Image, OpenError>,
    ) -> Result<FailureDumpReportAny, Failure> {
        let tables: Vec<&Path> = self.kernel_tables.iter().map(PathBuf::as_path).collect();
        let file = match input {
            Input::File(path) => Some(path.as_path()),
            Input::Object(_) => None,
        };
        let made = golden::report_from(&input.shown(), file, open, &tables, &self.options);
        made.map_err(Failure::from)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self {
            // Tables can come later, beside the capture too.
            passing: matches!(error, OpenError::Io { .. } | OpenError::Tables(_)),
            why: error.to_string(),
        }
    }
}

impl Failure {
    const fn passing(why: String) -> Self {
        Self { why, passing: true }
    }

    fn lasting(why: String) -> Self {
        Self {
            why,
            passing: false,
        }
    }
}

/// How often and how far apart a lock that another has is asked for: 2 seconds in all.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// What a folder without a lock means: a warning where it cannot have one, as some network file
/// systems cannot, else the end.
fn unlocked(why: rustix::io::Errno, out: &Path) -> Result<String, String> {
    use rustix::io::Errno;
    let out = out.display();
    match why {
        Errno::WOULDBLOCK => Err(format!(
            "{out}: another analyze batch is at work there; let it end, or use another folder or --shard"
        )),
        Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK => Ok(format!(
            "{out}: it cannot be locked ({why}), so take care that no other analyze batch is at work there"
        )),
        _ => Err(format!("{out}: it cannot be locked: {why}")),
    }
}

/// The mark of an input that this run is at work on. It goes with this, unless the process ends.
struct Mark {
    path: PathBuf,
    /// How many runs have ended there before.
    ends: u32,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The folders of a run's results.
struct Places {
    out: PathBuf,
    /// Where files are until they are complete. Its lock keeps it this process's.
    unfinished: PathBuf,
    _lock: File,
}

impl Places {
    /// Also a warning, where two runs at once would not be noticed.
    fn prepare(run: &Run) -> Result<(Self, Option<String>), String> {
        let part = match run.shard {
            Shard::WHOLE => "unfinished".to_owned(),
            shard => format!("unfinished-{}-of-{}", shard.number, shard.total),
        };
        let places = |lock| Self {
            out: run.out.clone(),
            unfinished: run.out.join(&part),
            _lock: lock,
        };
        let say = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
        for folder in ["reports", "done", part.as_str()] {
            let path = run.out.join(folder);
            std::fs::create_dir_all(&path).map_err(|e| say(&path, e))?;
        }
        let path = run.out.join(&part).join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| say(&path, e))?;
        let take =
            || rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        let mut locked = take();
        // A run that was killed has its lock until its memory is gone, which takes a moment.
        for _ in 0..LOCK_TRIES {
            if locked != Err(rustix::io::Errno::WOULDBLOCK) {
                break;
            }
            std::thread::sleep(LOCK_PAUSE);
            locked = take();
        }
        let warning = match locked {
            Ok(()) => None,
            Err(why) => Some(unlocked(why, &run.out)?),
        };
        Ok((places(lock), warning))
    }

    fn mark_path(&self, key: &str) -> PathBuf {
        self.unfinished.join(format!("begun-{key}"))
    }

    /// How many runs have ended in the middle of an input.
    fn ends(&self, key: &str) -> u32 {
        let mark = read_whole(&self.mark_path(key)).unwrap_or_default();
        let count = std::str::from_utf8(&mark).ok();
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Marks an input as begun. A file that is cut off while it is mapped, or that lies on a bad
    /// sector, ends the process with SIGBUS, which nothing here can catch; so can a lack of memory.
    fn mark(&self, key: &str) -> Result<Mark, String> {
        let path = self.mark_path(key);
        let ends = self.ends(key);
        let written = std::fs::write(&path, ends.saturating_add(1).to_string());
        written.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Mark { path, ends })
    }

    fn unmark(&self, key: &str) {
        let _ = std::fs::remove_file(self.mark_path(key));
    }

    fn path(&self, folder: &str, key: &str) -> PathBuf {
        self.out.join(folder).join(format!("{key}.json"))
    }

    fn report_bytes(&self, key: &str) -> Option<u64> {
        let meta = std::fs::metadata(self.path("reports", key));
        meta.ok().map(|meta| meta.len())
    }

    fn record(&self, key: &str) -> Result<Record, String> {
        let path = self.path("done", key);
        let bytes = read_whole(&path)?;
        let say = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| say(&e))?;
        match record.version {
            RECORD_VERSION => Ok(record),
            found => Err(say(&format!("version {found}, expected {RECORD_VERSION}"))),
        }
    }

    fn write_record(&self, key: &str, record: &Record) -> Result<(), String> {
        let text = serde_json::to_vec(record).map_err(|e| e.to_string())?;
        self.write("done", key, &text)
    }

    /// Begins a file that has its name only after [`publish`](Self::publish).
    fn begin(&self, name: &str) -> Result<(File, PathBuf), String> {
        let path = self.unfinished.join(name);
        // One that a run has left behind: it was cut off.
        let _ = std::fs::remove_file(&path);
        let file = File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok((file, path))
    }

    fn publish(file: &File, from: &Path, to: &Path) -> Result<(), String> {
        let done = file.sync_data().and_then(|()| std::fs::rename(from, to));
        done.map_err(|e| format!("{}: {e}", to.display()))
    }

    fn write(&self, folder: &str, key: &str, bytes: &[u8]) -> Result<(), String> {
        let (mut file, path) = self.begin(&format!("{folder}-{key}"))?;
        let written = file.write_all(bytes);
        written.map_err(|e| format!("{}: {e}", path.display()))?;
        Self::publish(&file, &path, &self.path(folder, key))
    }

    /// Makes the tables of all records, one record at a time.
    fn index(&self, shard: Shard, inputs: &[&Input]) -> Result<Outcome, String> {
        let stem = match shard {
            Shard::WHOLE => "index".to_owned(),
            shard => format!("index-{}-of-{}", shard.number, shard.total),
        };
        let mut outcome = Outcome {
            inputs: inputs.len(),
            ..Outcome::default()
        };
        let lines = format!("{stem}.ndjson");
        let (file, path) = self.begin(&lines)?;
        let again = |file: &File| file.try_clone().map_err(|e| e.to_string());
        let mut written = Vec::from([(lines, again(&file)?, path)]);
        let mut tables: Vec<Box<dyn Table>> = vec![Box::new(Lines(BufWriter::new(file)))];
        if cfg!(feature = "parquet") {
            let columns = format!("{stem}.parquet");
            let (file, path) = self.begin(&columns)?;
            written.push((columns, again(&file)?, path));
            tables.push(table::columns(BufWriter::new(file))?);
        }
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for input in inputs {
            let mut record = self.record(&input.key()).unwrap_or_else(|why| Record {
                row: CaptureRow {
                    input: input.shown(),
                    analyzer: ANALYZER.to_owned(),
                    error: Some(format!("what is known of it cannot be read again: {why}")),
                    ..CaptureRow::default()
                },
                ..Record::default()
            });
            if let Some(why) = record.passing.take() {
                record.row.error = Some(why);
                record.row.cut();
            }
            for table in &mut tables {
                table.add(&record.row, &record.findings)?;
            }
            outcome.add(record.row, &mut groups);
        }
        for table in &mut tables {
            table.finish()?;
        }
        drop(tables);
        for (name, file, path) in written {
            let to = self.out.join(name);
            Self::publish(&file, &path, &to)?;
            outcome.tables.push(to);
        }
        outcome.groups = groups.into_values().collect();
        outcome.groups.sort_by(|a, b| {
            let order = b.captures.cmp(&a.captures);
            order.then_with(|| a.signature.cmp(&b.signature))
        });
        Ok(outcome)
    }
}

impl Outcome {
    fn add(&mut self, row: CaptureRow, groups: &mut BTreeMap<String, Group>) {
        if let Some(why) = row.error {
            self.failed.push((row.input, why));
            return;
        }
        self.reports += 1;
        let Some(signature) = row.signature.clone() else {
            match row.schema.as_deref() {
                Some(SCHEMA_DEGRADED) => self.degraded += 1,
                _ => self.healthy += 1,
            }
            return;
        };
        let group = groups.entry(signature.clone()).or_insert_with(|| Group {
            signature,
            first: row.clone(),
            ..Group::default()
        });
        group.captures += 1;
        if group.inputs.len() < SHOWN {
            group.inputs.push(row.input);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_lock_that_another_has_is_told_from_one_that_cannot_be() {
        let said = |why| unlocked(why, Path::new("out"));
        let another = said(Errno::WOULDBLOCK).unwrap_err();
        assert!(another.contains("another analyze batch"), "{another}");
        let other = said(Errno::IO).unwrap_err();
        assert!(other.starts_with("out: it cannot be locked: "), "{other}");
        assert!(!other.contains("another"), "{other}");
        for none in [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK] {
            assert!(said(none).unwrap().contains("take care that no other"));
        }
    }

    #[test]
    fn a_capture_that_was_given_up_is_not_one_without_a_failure() {
        let mut outcome = Outcome::default();
        for schema in ["single", "degraded", "dual", "degraded", "degraded"] {
            let row = CaptureRow {
                schema: Some(schema.to_owned()),
                ..CaptureRow::default()
            };
            outcome.add(row, &mut BTreeMap::new());
        }
        assert_eq!(
            (outcome.reports, outcome.healthy, outcome.degraded),
            (5, 2, 3)
        );
    }
}
