//! What a run has left, as files.
//!
//! | early image | late image | files |
//! |---|---|---|
//! | none | sound or degraded | the late one, under the output's name |
//! | sound | sound | one dual capture, under the output's name; the late one alone where both do not fit |
//! | none was due, the late one is as old | sound | one dual capture of the late one twice |
//! | sound | sound, of another scheduler | the late one under the output's name; the early one, tagged `early-only-late-never-fired` |
//! | sound | degraded | the early one, tagged `early-pre-late-degraded`; the late one under the output's name |
//! | degraded | any | the early one, tagged `early-degraded`; the late one under the output's name |
//! | any | none | the early one, tagged `early-only-late-never-fired` or `…-suppressed` |
//!
//! An image that does not fit by itself is written once more without the pages that no report needs.
//!
//! Tags are those of the report format's section 1.4.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use scx_postmortem_analyze::analysis::PERF_COUNTERS;
use scx_postmortem_analyze::exclude::{self, Rules};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_format::capture::{
    Abandoned, AtomicFile, CaptureSpec, EarlyInfo, EarlySpec, Excluded, Existing, Manifest,
    MissingItem, Note, Run, SourceInfo, Summary, ToolInfo, Trigger, WriteError, WriteOptions,
    WriteProgress, note_types, write_capture,
};
use scx_postmortem_format::report::{
    SNAPSHOT_TAG_EARLY_DEGRADED, SNAPSHOT_TAG_EARLY_ONLY_LATE_NEVER_FIRED,
    SNAPSHOT_TAG_EARLY_ONLY_LATE_SUPPRESSED, SNAPSHOT_TAG_EARLY_PRE_LATE_DEGRADED, reasons,
    tagged_snapshot_path,
};

use crate::coordinator::{Early, Outcome, Snapshot};
use crate::machine::{Cause, Frozen};
use crate::signals::Writing;
use crate::watch::Found;

/// What a manifest says is missing when no pages could be left out.
const EXCLUSION: &str = "exclusion of pages";
/// `SCX_EXIT_ERROR_STALL`.
const STALL: i64 = 1026;
/// Causes of a degraded capture, in words, where the contract has none.
const NO_REGISTERS: &str = "the vCPUs stopped, and their registers could not be taken";
const ENDED: &str = "the guest ended before its vCPUs could be stopped";
const SILENT: &str = "the guest's machine did not answer before its vCPUs were stopped";
const REFUSED: &str =
    "the guest's machine did not do what it was asked before its vCPUs were stopped";
/// What the highest age that was seen may lack.
const UNSEEN: &str = "; not of all tasks: more were runnable than one look takes (2048), and an older one may be among the rest";
/// All that a report can do without.
const ALL: Rules = Rules {
    free: true,
    user: true,
    cache: true,
};
/// Why two images of a run are not compared.
const APART: &str =
    "the early image is of another scheduler, which was replaced; see the tagged file beside";

/// What is the same for all images of a guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guest {
    /// The backend and its details.
    pub(crate) machine: (&'static str, String),
    pub(crate) tool: &'static str,
    pub(crate) vcpus: u32,
    /// The kernel, or why it was not found.
    pub(crate) kernel: Option<Found>,
    pub(crate) why_not: String,
    /// The end of the console's output.
    pub(crate) console: Vec<u8>,
    /// Further notes.
    pub(crate) notes: Vec<Note>,
    /// A scheduler went with an exit kind that is no failure.
    pub(crate) suppressed: bool,
    /// The guest's first process is ours, and tells how it went.
    pub(crate) own_init: bool,
}

/// Where to and how.
pub(crate) struct Target<'a> {
    pub(crate) output: &'a Path,
    pub(crate) existing: Existing,
    pub(crate) level: i32,
    /// Pages to leave out.
    pub(crate) exclude: Option<Rules>,
    /// Largest file that is wanted, bytes.
    pub(crate) max_size: Option<u64>,
    pub(crate) show: &'a (dyn Fn(WriteProgress) + Sync),
    /// Told to write no further.
    pub(crate) writing: &'a Writing,
}

/// A file that was written.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    pub(crate) path: PathBuf,
    pub(crate) summary: Summary,
    /// It holds an image that is less than it should be.
    pub(crate) degraded: bool,
    /// What it lacks of what was asked for, and why: the early image, or pages.
    pub(crate) less: Option<String>,
}

/// What could not be written, and what there is instead.
#[derive(Debug, Clone)]
pub(crate) struct NotSaved {
    pub(crate) sentence: String,
}

/// Writes all that a run has left. What can be written is, whatever fails beside it.
pub(crate) fn save(
    guest: &Guest,
    outcome: &Outcome,
    target: &Target<'_>,
) -> (Vec<Saved>, Vec<NotSaved>) {
    let (mut saved, mut failed) = (Vec::new(), Vec::new());
    let mut keep = |result: Result<Saved, NotSaved>| match result {
        Ok(file) => saved.push(file),
        Err(why) => failed.push(why),
    };
    let stalled = outcome.late.as_ref().and_then(|late| late.fired.exit_kind) == Some(STALL);
    let skipped = match outcome.apart {
        true => Some(APART.to_owned()),
        false => skipped(&outcome.early, stalled, guest),
    };
    let mut promoted = None;
    let early = match &outcome.early {
        Early::Taken {
            snapshot,
            age,
            threshold,
            ..
        } => Some((snapshot.as_ref(), *age, *threshold)),
        &Early::Promoted { age, threshold } => {
            promoted = Some((age, threshold));
            None
        }
        _ => None,
    };
    match (early, &outcome.late) {
        (None, Some(late)) => keep(match promoted {
            Some(ages) => dual(guest, late, ages, late, target),
            None => single(guest, late, target.output, target, skipped),
        }),
        (Some((early, ..)), Some(late)) if outcome.apart => {
            keep(single(guest, late, target.output, target, skipped));
            let tag = if early.is_degraded() {
                SNAPSHOT_TAG_EARLY_DEGRADED
            } else {
                SNAPSHOT_TAG_EARLY_ONLY_LATE_NEVER_FIRED
            };
            let path = tagged(target.output, tag);
            keep(single(guest, early, &path, target, None));
        }
        (Some((early, age, threshold)), Some(late))
            if !early.is_degraded() && !late.is_degraded() =>
        {
            keep(dual(guest, early, (age, threshold), late, target));
        }
        (Some((early, ..)), Some(late)) => {
            let tag = if early.is_degraded() {
                SNAPSHOT_TAG_EARLY_DEGRADED
            } else {
                SNAPSHOT_TAG_EARLY_PRE_LATE_DEGRADED
            };
            keep(single(guest, late, target.output, target, skipped));
            keep(single(
                guest,
                early,
                &tagged(target.output, tag),
                target,
                None,
            ));
        }
        (Some((early, ..)), None) => {
            let tag = if guest.suppressed {
                SNAPSHOT_TAG_EARLY_ONLY_LATE_SUPPRESSED
            } else {
                SNAPSHOT_TAG_EARLY_ONLY_LATE_NEVER_FIRED
            };
            keep(single(
                guest,
                early,
                &tagged(target.output, tag),
                target,
                None,
            ));
        }
        (None, None) => {}
    }
    (saved, failed)
}

/// Why there is no early image beside a late one, in the contract's words (section 3.5).
fn skipped(early: &Early, stalled: bool, guest: &Guest) -> Option<String> {
    match early {
        Early::NotWanted | Early::Promoted { .. } => None,
        Early::Failed(why) => Some(format!("early capture failed: {why}")),
        Early::Taken { snapshot, .. } => {
            let faults = snapshot.frozen.faults.join("; ");
            snapshot
                .is_degraded()
                .then(|| reasons::early_degraded(&faults))
        }
        Early::Waiting {
            peak,
            threshold,
            cut,
        } => Some(match &guest.kernel {
            None => reasons::early_prerequisites(&guest.why_not),
            Some(kernel) => match &kernel.no_ages {
                Some(why) => reasons::early_prerequisites(why),
                // A stall that the kernel's own tick has seen, with no task that waited.
                None if stalled && *peak == 0 && !cut => reasons::EARLY_TICK_STALL.to_owned(),
                None => {
                    let never = reasons::early_never_crossed(*peak, *threshold);
                    let unseen = if *cut { UNSEEN } else { "" };
                    format!("{never}{unseen}")
                }
            },
        }),
    }
}

/// `foo.core.zst` with a tag is `foo.snapshot.TAG.core.zst`: our ending has two parts.
fn tagged(output: &Path, tag: &str) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    match name.strip_suffix(".core.zst") {
        Some(stem) => output.with_file_name(format!("{stem}.snapshot.{tag}.core.zst")),
        None => tagged_snapshot_path(output, tag),
    }
}

fn trigger(snapshot: &Snapshot) -> Trigger {
    let fired = &snapshot.fired;
    let mut trigger = Trigger {
        kind: fired.kind.into(),
        detail: Some(fired.detail.clone()),
        ..Trigger::default()
    };
    let mut put = |name: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            trigger.extra.insert(name.into(), value);
        }
    };
    put("by", fired.by.map(Into::into));
    put("exit_kind", fired.exit_kind.map(Into::into));
    let nanos = |d: std::time::Duration| u64::try_from(d.as_nanos()).ok();
    put(
        "exit_kind_set_ns_before",
        fired.exit_age.and_then(nanos).map(Into::into),
    );
    put(
        "exit_kind_unset_ns_before",
        fired.exit_age_at_most.and_then(nanos).map(Into::into),
    );
    put("freeze_ns", nanos(snapshot.freeze).map(Into::into));
    put("copied_bytes", snapshot.copied.map(Into::into));
    if fired.kind == "scx_exit" {
        put("watchpoint_hit", Some(fired.watchpoint_hit.into()));
    }
    trigger
}

fn manifest(guest: &Guest, snapshot: &Snapshot) -> Manifest {
    let (kind, detail) = &guest.machine;
    let mut degraded = Vec::new();
    let mut abandoned = None;
    if snapshot.is_degraded() {
        let (cause, prefix) = match snapshot.frozen.cause {
            Cause::Gone => ("killed", reasons::REASON_DEGRADED_KILL_DURING_RENDEZVOUS),
            Cause::Late => ("timeout", reasons::REASON_DEGRADED_RENDEZVOUS_TIMEOUT),
            Cause::Registers => (NO_REGISTERS, NO_REGISTERS),
            Cause::Ended => (ENDED, ENDED),
            Cause::Silent => (SILENT, SILENT),
            Cause::Refused => (REFUSED, REFUSED),
        };
        let total = usize::try_from(guest.vcpus).unwrap_or(usize::MAX);
        let elapsed = u64::try_from(snapshot.freeze.as_millis()).unwrap_or(u64::MAX);
        let parked = snapshot.frozen.vcpus.len();
        degraded.push(reasons::degraded(prefix, elapsed, parked, total));
        degraded.extend(snapshot.frozen.faults.iter().cloned());
        abandoned = Some(Abandoned {
            cause: cause.into(),
            elapsed_ms: elapsed,
            watchpoint_hit: snapshot.fired.watchpoint_hit,
            bss_latch_state: snapshot.fired.latch.map(|latch| latch.as_str().into()),
            exit_kind: snapshot
                .fired
                .exit_kind
                .and_then(|kind| u32::try_from(kind).ok()),
            ..Abandoned::default()
        });
    }
    let kernel = guest.kernel.is_none().then_some(("kernel", &guest.why_not));
    let counters = snapshot.frozen.no_counters.as_ref();
    let missing = kernel.into_iter();
    let missing = missing.chain(counters.map(|why| (PERF_COUNTERS, why)));
    let missing = missing.map(|(what, reason)| MissingItem {
        what: what.into(),
        reason: reason.clone(),
    });
    Manifest {
        version: 1,
        tool: ToolInfo {
            name: guest.tool.into(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        source: SourceInfo {
            kind: (*kind).into(),
            detail: Some(detail.clone()),
            ..SourceInfo::default()
        },
        kernel_release: guest.kernel.as_ref().map(|kernel| kernel.release.clone()),
        cpus: guest.vcpus,
        trigger: Some(trigger(snapshot)),
        timings: Some(snapshot.timings.clone()),
        degraded,
        abandoned,
        missing: missing.collect(),
        ..Manifest::default()
    }
}

/// The registers as stock tools look for them, and in full.
fn registers(frozen: &Frozen) -> Vec<Note> {
    let vcpus = &frozen.vcpus;
    let stock = vcpus.iter().flat_map(|v| {
        let xstate = (!v.xsave.is_empty()).then(|| Note::xstate(v.xsave.clone()));
        std::iter::once(Note::prstatus(v.to_prstatus())).chain(xstate)
    });
    let qemu = vcpus.iter().filter_map(|v| v.to_qemu().map(Note::qemu));
    let own = vcpus.iter().filter_map(|v| {
        let json = serde_json::to_vec(v).ok()?;
        Some(Note::scxpm(note_types::VCPU_STATE, json))
    });
    let counters = &frozen.counters;
    let counters = (!counters.is_empty()).then(|| serde_json::to_vec(counters).ok());
    let counters = counters.flatten();
    let counters = counters.map(|json| Note::scxpm(note_types::PERF_COUNTERS, json));
    stock.chain(qemu).chain(own).chain(counters).collect()
}

fn notes(guest: &Guest, snapshot: &Snapshot) -> Vec<Note> {
    let mut notes = registers(&snapshot.frozen);
    let kernel = guest.kernel.as_ref();
    notes.extend(kernel.map(|kernel| Note::vmcoreinfo(kernel.vmcoreinfo.clone())));
    notes
}

fn spec<'a>(guest: &Guest, snapshot: &Snapshot) -> CaptureSpec<'a> {
    let mut notes = notes(guest, snapshot);
    notes.push(Note::scxpm(note_types::CONSOLE, guest.console.clone()));
    notes.extend(guest.notes.iter().cloned());
    CaptureSpec {
        memory: snapshot.memory.extents(),
        manifest: manifest(guest, snapshot),
        notes,
        ..CaptureSpec::default()
    }
}

fn single(
    guest: &Guest,
    snapshot: &Snapshot,
    path: &Path,
    target: &Target<'_>,
    early_skipped: Option<String>,
) -> Result<Saved, NotSaved> {
    let mut spec = spec(guest, snapshot);
    if let Some(why) = early_skipped {
        let extra = &mut spec.manifest.extra;
        extra.insert("early_skipped_reason".into(), why.into());
    }
    exclude(guest, &[snapshot], target.exclude, &mut spec);
    let (file, error) = match try_write(&spec, snapshot, path, target)? {
        Written::Whole(saved) => return Ok(saved),
        Written::Partly(file, error) => (file, error),
    };
    if !is_too_large(&error, target) || target.exclude == Some(ALL) {
        return Err(keep_part(file, &error, &spec, snapshot, path, target));
    }
    // What no report needs is most of a guest's memory, and what is cut off may be what all depends
    // on.
    let before = spec.manifest.missing.len();
    exclude(guest, &[snapshot], Some(ALL), &mut spec);
    if spec.manifest.missing.len() > before || spec.excluded.runs().is_empty() {
        return Err(keep_part(file, &error, &spec, snapshot, path, target));
    }
    drop(file);
    let why = why_not(&error, target);
    let saved = write(&spec, snapshot, path, target)?;
    let less = format!(
        "pages that no report needs (free, of processes, cached files) are left out, since the file with them {why}"
    );
    Ok(Saved {
        less: Some(less),
        ..saved
    })
}

fn dual(
    guest: &Guest,
    early: &Snapshot,
    (age, threshold): (u64, u64),
    late: &Snapshot,
    target: &Target<'_>,
) -> Result<Saved, NotSaved> {
    let mut spec = spec(guest, late);
    exclude(guest, &[late, early], target.exclude, &mut spec);
    let before = late.taken.saturating_duration_since(early.taken);
    let mut trigger = trigger(early);
    if std::ptr::eq(early, late) {
        // Nobody saw it before; the late image shows it.
        trigger.kind = "runnable_age".into();
        trigger.detail = Some(format!(
            "a task was runnable for {age} jiffies at the late image, which stands for both"
        ));
        trigger.extra.clear();
    }
    let extra = &mut trigger.extra;
    extra.insert("max_age_jiffies".into(), age.into());
    extra.insert("threshold_jiffies".into(), threshold.into());
    spec.manifest.early = Some(EarlyInfo {
        trigger: Some(trigger.clone()),
        timings: Some(early.timings.clone()),
        before_late_ns: u64::try_from(before.as_nanos()).ok(),
        ..EarlyInfo::default()
    });
    spec.early = Some(EarlySpec {
        source: early.memory.source(),
        manifest: Manifest {
            trigger: Some(trigger),
            ..manifest(guest, early)
        },
        notes: notes(guest, early),
    });
    let (file, error) = match try_write(&spec, late, target.output, target)? {
        Written::Whole(saved) => return Ok(saved),
        Written::Partly(file, error) => (file, error),
    };
    if !is_too_large(&error, target) {
        return Err(keep_part(file, &error, &spec, late, target.output, target));
    }
    // The late one alone may fit, and is worth more than a part of both. The file that there is by
    // now makes room for it.
    drop(file);
    let why = format!(
        "not kept, since a file with both {}",
        why_not(&error, target)
    );
    let skipped = format!("early capture failed: {why}");
    let saved = single(guest, late, target.output, target, Some(skipped))?;
    // The same image twice loses nothing.
    let dropped = (!std::ptr::eq(early, late)).then(|| format!("the early image was {why}"));
    let less = [dropped, saved.less.clone()];
    let less: Vec<String> = less.into_iter().flatten().collect();
    Ok(Saved {
        less: (!less.is_empty()).then(|| less.join("; ")),
        ..saved
    })
}

/// Whether a smaller file may be possible.
fn is_too_large(error: &WriteError, target: &Target<'_>) -> bool {
    match error {
        WriteError::Cancelled { .. } => !target.writing.is_over(),
        WriteError::Output { cause, .. } => matches!(
            cause.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        ),
        _ => false,
    }
}

/// Leaves pages out that all of the images can do without. Without a kernel to ask, or with one
/// that is not understood, nothing is left out, and the manifest says so.
fn exclude(guest: &Guest, images: &[&Snapshot], rules: Option<Rules>, spec: &mut CaptureSpec<'_>) {
    let Some(rules) = rules else {
        return;
    };
    let plans = images.iter().map(|image| {
        let kernel = guest.kernel.as_ref().ok_or(&guest.why_not)?;
        let memory = image.memory.physical().map_err(|e| e.to_string())?;
        let image = Image::live(memory, kernel.vmcoreinfo.clone());
        let kernel = Kernel::find(image, &Overrides::default())?;
        exclude::plan(&kernel, rules).map_err(|e| e.to_string())
    });
    let plans: Result<Vec<Excluded>, String> = plans.collect();
    match plans {
        Ok(plans) => spec.excluded = plans.into_iter().reduce(both).unwrap_or_default(),
        Err(reason) => spec.manifest.missing.push(MissingItem {
            what: EXCLUSION.into(),
            reason,
        }),
    }
}

/// What both leave out, by the rules of the first.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a fold")]
fn both(one: Excluded, other: Excluded) -> Excluded {
    let mut out = Excluded::default();
    let mut rest = other.runs();
    for run in one.runs() {
        let end = run.gpa.saturating_add(run.bytes);
        while let Some((first, behind)) = rest.split_first() {
            let first_end = first.gpa.saturating_add(first.bytes);
            let from = run.gpa.max(first.gpa);
            let to = end.min(first_end);
            if from < to {
                out.push(Run {
                    gpa: from,
                    bytes: to - from,
                    rule: run.rule,
                });
            }
            if first_end > end {
                break;
            }
            rest = behind;
        }
    }
    out
}

/// What became of a file.
enum Written {
    Whole(Saved),
    /// There is a part of it.
    Partly(AtomicFile, WriteError),
}

/// Writes a file as far as that is possible.
fn try_write(
    spec: &CaptureSpec<'_>,
    snapshot: &Snapshot,
    path: &Path,
    target: &Target<'_>,
) -> Result<Written, NotSaved> {
    let failed = |cause: &dyn std::fmt::Display| NotSaved {
        sentence: format!("{}: {cause}", path.display()),
    };
    let mut file = AtomicFile::create(path, target.existing).map_err(|e| failed(&e))?;
    let most = target.max_size.unwrap_or(u64::MAX);
    let show = |progress: WriteProgress| {
        (target.show)(progress);
        if progress.file_bytes > most || target.writing.is_over() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let options = WriteOptions {
        level: target.level,
        progress: Some(&show),
        ..WriteOptions::default()
    };
    let summary = match write_capture(file.file(), spec, snapshot.memory.source(), &options) {
        Ok(summary) => summary,
        Err(error) => return Ok(Written::Partly(file, error)),
    };
    if let Err((error, kept)) = file.commit_or_keep() {
        return Err(failed(&match kept {
            Ok(partial) => format!("{error}; the whole capture is in {}", partial.display()),
            Err(why) => format!("{error}; nothing was kept ({why})"),
        }));
    }
    Ok(Written::Whole(Saved {
        path: path.to_owned(),
        summary,
        degraded: snapshot.is_degraded(),
        less: None,
    }))
}

/// Why a file was not written to its end, for people.
fn why_not(error: &WriteError, target: &Target<'_>) -> String {
    match error {
        WriteError::Cancelled { .. } if target.writing.is_over() => {
            "a second signal came while it was written".into()
        }
        WriteError::Cancelled { .. } => format!(
            "became larger than {} MiB (--max-size)",
            target.max_size.unwrap_or_default() >> 20
        ),
        other => other.to_string(),
    }
}

/// Keeps what there is of a file, if `analyze` can open that, and says what it is good for: the
/// guest's kernel may be in what was not written.
fn keep_part(
    file: AtomicFile,
    error: &WriteError,
    spec: &CaptureSpec<'_>,
    snapshot: &Snapshot,
    path: &Path,
    target: &Target<'_>,
) -> NotSaved {
    let (path, why) = (path.display(), why_not(error, target));
    let more = || {
        let more = [left_out(spec), needs(error, spec, snapshot, target)];
        let more = more.into_iter().flatten().map(|more| format!("; {more}"));
        more.collect::<String>()
    };
    if Image::open(file.temporary_path()).is_err() {
        let sentence = format!(
            "{path}: {why}; nothing was kept, for what there is of it is too little to be opened{}",
            more()
        );
        return NotSaved { sentence };
    }
    let kept = file.keep_partial().and_then(|partial| {
        let bytes = std::fs::metadata(&partial)?.len();
        Ok((partial, bytes))
    });
    let sentence = match kept {
        Ok((partial, bytes)) => {
            let found = Image::open(&partial)
                .map_err(|e| e.to_string())
                .and_then(|image| Kernel::find(image, &Overrides::default()));
            let use_ = match found {
                Ok(_) => "`analyze --best-effort` makes a report of what there is",
                Err(_) => {
                    "`analyze info` opens it, but no report can be made of it, for the guest's kernel cannot be found in so much of its memory"
                }
            };
            let kb = bytes >> 10;
            format!(
                "{path}: {why}; its first {kb} KiB are in {}; {use_}{}",
                partial.display(),
                more()
            )
        }
        Err(kept) => format!("{path}: {why}; nothing was kept ({kept})"),
    };
    NotSaved { sentence }
}

/// Which pages had been left out of a file that is too large all the same, or why none were.
fn left_out(spec: &CaptureSpec<'_>) -> Option<String> {
    let rules = spec.excluded.by_rule();
    let names: Vec<&str> = rules.iter().map(|(rule, ..)| rule.name()).collect();
    match names.split_last() {
        Some((only, [])) => Some(format!("{only} pages had been left out already")),
        Some((last, names)) => Some(format!(
            "{} and {last} pages had been left out already",
            names.join(", ")
        )),
        None => {
            let mut missing = spec.manifest.missing.iter();
            let why = missing.find(|item| item.what == EXCLUSION)?;
            Some(format!("no pages could be left out ({})", why.reason))
        }
    }
}

/// What a file that is too large would need: it is made once more, to be measured.
fn needs(
    error: &WriteError,
    spec: &CaptureSpec<'_>,
    snapshot: &Snapshot,
    target: &Target<'_>,
) -> Option<String> {
    if !is_too_large(error, target) {
        return None;
    }
    let show = |_| match target.writing.is_over() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let options = WriteOptions {
        level: target.level,
        progress: Some(&show),
        ..WriteOptions::default()
    };
    let memory = snapshot.memory.source();
    let bytes = write_capture(&mut Nowhere::default(), spec, memory, &options)
        .ok()?
        .file_bytes;
    let mib = bytes.div_ceil(1 << 20);
    Some(match error {
        WriteError::Cancelled { .. } => format!("the whole of it needs --max-size {mib}M or more"),
        _ => format!(
            "the whole of it needs {bytes} bytes ({mib} MiB) there, those of the part included"
        ),
    })
}

/// Takes what is written and keeps nothing.
#[derive(Default)]
struct Nowhere {
    at: u64,
}

impl io::Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.at = self.at.saturating_add(more);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Seek for Nowhere {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.at = match to {
            io::SeekFrom::Start(at) => at,
            io::SeekFrom::Current(by) => self.at.saturating_add_signed(by),
            io::SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.at)
    }
}

fn write(
    spec: &CaptureSpec<'_>,
    snapshot: &Snapshot,
    path: &Path,
    target: &Target<'_>,
) -> Result<Saved, NotSaved> {
    match try_write(spec, snapshot, path, target)? {
        Written::Whole(saved) => Ok(saved),
        Written::Partly(file, error) => Err(keep_part(file, &error, spec, snapshot, path, target)),
    }
}

/// Whether an output can be written to, before a guest is run for it; with `early` also what an
/// early image may be kept as.
pub(crate) fn check(path: &Path, existing: Existing, early: bool) -> io::Result<()> {
    let tags = [
        SNAPSHOT_TAG_EARLY_DEGRADED,
        SNAPSHOT_TAG_EARLY_PRE_LATE_DEGRADED,
        SNAPSHOT_TAG_EARLY_ONLY_LATE_NEVER_FIRED,
        SNAPSHOT_TAG_EARLY_ONLY_LATE_SUPPRESSED,
    ];
    let tagged = tags.iter().filter(|_| early).map(|tag| tagged(path, tag));
    // Created and dropped: that is the check.
    std::iter::once(path.to_owned())
        .chain(tagged)
        .try_for_each(|path| AtomicFile::create(&path, existing).map(drop))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use scx_postmortem_format::capture::{Rule, Timings, VcpuState};

    use super::*;
    use crate::coordinator::{End, Fired, Memory};
    use crate::machine::{GuestMemory, Mapping};

    /// An image of 4 MiB that do not compress, and the like for each seed.
    fn snapshot(seed: u64) -> Snapshot {
        let file: File = tempfile::tempfile().unwrap();
        let bytes = 4 << 20;
        let mut state = seed;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            state.to_le_bytes()[7]
        })
        .take(bytes)
        .collect();
        file.write_all_at(&content, 0).unwrap();
        let map = vec![Mapping {
            gpa: 0,
            bytes: 4 << 20,
            offset: 0,
        }];
        Snapshot {
            fired: Fired::default(),
            frozen: Frozen::default(),
            memory: Memory::Own(GuestMemory::new(file, map)),
            timings: Timings::default(),
            taken: Instant::now(),
            freeze: Duration::ZERO,
            copied: None,
        }
    }

    fn outcome(early: Option<Snapshot>, late: Option<Snapshot>) -> Outcome {
        let early = early.map(|snapshot| Early::Taken {
            snapshot: Box::new(snapshot),
            age: 2500,
            threshold: 2000,
            of: 1,
        });
        Outcome {
            end: End::Late,
            early: early.unwrap_or_default(),
            late,
            apart: false,
        }
    }

    /// What is saved below a directory, and the names of the files there.
    fn saved(
        dir: &Path,
        outcome: Outcome,
        max_size: Option<u64>,
        writing: &Writing,
    ) -> (Vec<Saved>, Vec<NotSaved>, Vec<String>) {
        let target = Target {
            output: &dir.join("x.core.zst"),
            existing: Existing::Refuse,
            level: 1,
            exclude: None,
            max_size,
            show: &|_| (),
            writing,
        };
        let guest = Guest {
            vcpus: 2,
            ..Guest::default()
        };
        let (saved, failed) = save(&guest, &outcome, &target);
        let names = std::fs::read_dir(dir).unwrap();
        let names = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        (saved, failed, names)
    }

    #[test]
    fn a_second_signal_leaves_a_part_that_is_named_and_the_first_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let late = || outcome(None, Some(snapshot(1)));
        let (done, failed, names) = saved(dir.path(), late(), None, &Writing::after(2));
        assert!(done.is_empty());
        assert_eq!(names, ["x.core.zst.partial"]);
        let why = &failed[0].sentence;
        assert!(
            why.contains("a second signal") && why.contains("x.core.zst.partial"),
            "{why}"
        );
        let (done, failed, names) = saved(dir.path(), late(), None, &Writing::after(1));
        assert!(done.len() == 1 && failed.is_empty());
        assert_eq!(names, ["x.core.zst", "x.core.zst.partial"]);
    }

    #[test]
    fn a_late_image_that_fits_alone_is_kept_without_the_early_one() {
        let dir = tempfile::tempdir().unwrap();
        let both = || outcome(Some(snapshot(1)), Some(snapshot(2)));
        let writing = Writing::after(0);
        let (done, failed, names) = saved(dir.path(), both(), Some(6 << 20), &writing);
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(names, ["x.core.zst"], "and no part of both");
        let why = "not kept, since a file with both became larger than 6 MiB (--max-size)";
        assert_eq!(
            done[0].less.as_deref(),
            Some(format!("the early image was {why}").as_str())
        );
        let image = Image::open(&done[0].path).unwrap();
        assert!(!image.early);
        let manifest = image.manifest.unwrap();
        let reason = format!("early capture failed: {why}");
        assert_eq!(manifest.extra["early_skipped_reason"], reason.as_str());

        // Neither fits: the part that is kept is the late one's.
        let dir = tempfile::tempdir().unwrap();
        let (done, failed, names) = saved(dir.path(), both(), Some(2 << 20), &writing);
        assert!(done.is_empty());
        assert_eq!(names, ["x.core.zst.partial"]);
        // What to do about it is said, and is enough.
        let why = &failed[0].sentence;
        for part in [
            "larger than 2 MiB",
            "no report can be made of it",
            "no pages could be left out",
            "the whole of it needs --max-size 5M or more",
        ] {
            assert!(why.contains(part), "{part}: {why}");
        }
        assert!(!why.contains("--vmlinux"), "{why}");
        let late = || outcome(None, Some(snapshot(2)));
        for (most, fits) in [(4 << 20, false), (5 << 20, true)] {
            let dir = tempfile::tempdir().unwrap();
            let (done, ..) = saved(dir.path(), late(), Some(most), &writing);
            assert_eq!(!done.is_empty(), fits, "{most}");
        }

        // Both fit.
        let dir = tempfile::tempdir().unwrap();
        let (done, _, names) = saved(dir.path(), both(), Some(9 << 20), &writing);
        assert_eq!(names, ["x.core.zst"]);
        assert!(done[0].less.is_none());
        assert!(Image::open(&done[0].path).unwrap().early);

        // A second signal is no reason to begin anew.
        let dir = tempfile::tempdir().unwrap();
        let (_, failed, names) = saved(dir.path(), both(), None, &Writing::after(2));
        assert!(failed[0].sentence.contains("a second signal"));
        assert_eq!(names, ["x.core.zst.partial"]);
    }

    #[test]
    fn only_what_both_leave_out_is_left_out() {
        let of = |runs: &[(u64, u64)], rule: Rule| {
            let mut excluded = Excluded::default();
            for &(gpa, bytes) in runs {
                excluded.push(Run { gpa, bytes, rule });
            }
            excluded
        };
        let late = of(&[(0, 0x3000), (0x8000, 0x4000)], Rule::Free);
        let early = of(
            &[(0x1000, 0x8000), (0xa000, 0x1000), (0xb000, 0x9000)],
            Rule::User,
        );
        let both = both(late, early);
        let runs: Vec<_> = both
            .runs()
            .iter()
            .map(|r| (r.gpa, r.bytes, r.rule))
            .collect();
        assert_eq!(
            runs,
            [
                (0x1000, 0x2000, Rule::Free),
                (0x8000, 0x1000, Rule::Free),
                (0xa000, 0x2000, Rule::Free),
            ]
        );
    }

    #[test]
    fn an_age_that_was_never_seen_is_no_fact_when_tasks_were_left_out() {
        let guest = Guest {
            kernel: Some(Found::default()),
            ..Guest::default()
        };
        let why = |peak, cut| {
            let early = Early::Waiting {
                peak,
                threshold: 2000,
                cut,
            };
            skipped(&early, true, &guest).unwrap()
        };
        assert!(!why(1200, false).contains("not of all tasks"));
        assert!(why(1200, true).contains("not of all tasks"));
        assert_eq!(why(0, false), reasons::EARLY_TICK_STALL);
        assert!(why(0, true).contains("not of all tasks"));
    }

    #[test]
    fn vector_registers_are_behind_the_note_of_their_own_vcpu() {
        let of = |vcpu, xsave| VcpuState {
            vcpu,
            xsave,
            ..VcpuState::default()
        };
        let frozen = Frozen {
            vcpus: vec![of(0, vec![1; 576]), of(1, Vec::new()), of(2, vec![3; 832])],
            ..Frozen::default()
        };
        let notes = registers(&frozen);
        let stock = notes
            .iter()
            .map(|n| (n.name.as_str(), n.kind, n.desc.len()));
        let stock: Vec<_> = stock.filter(|(name, ..)| *name != "SCXPM").collect();
        let expected = [
            ("CORE", 1, 336),
            ("LINUX", 0x202, 576),
            ("CORE", 1, 336),
            ("CORE", 1, 336),
            ("LINUX", 0x202, 832),
        ];
        assert_eq!(stock, expected);
        let json = notes.iter().find(|n| n.name == "SCXPM").unwrap();
        assert!(!String::from_utf8_lossy(&json.desc).contains("xsave"));
    }

    #[test]
    fn a_tag_goes_before_both_parts_of_the_ending() {
        let path = tagged(Path::new("out/foo.core.zst"), SNAPSHOT_TAG_EARLY_DEGRADED);
        assert_eq!(path, Path::new("out/foo.snapshot.early-degraded.core.zst"));
        let path = tagged(Path::new("foo"), SNAPSHOT_TAG_EARLY_DEGRADED);
        assert_eq!(path, Path::new("foo.snapshot.early-degraded"));
    }
}
