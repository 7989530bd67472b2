//! What tells one failure from another, whichever capture shows it.
//!
//! The same bug leaves many captures: of other boots, with other addresses, on other kernels, read
//! by other versions of the analyzer. A signature is made of what they have in common and of nothing
//! else: which scheduler, the kind of its exit, the BPF program and line that failed, the rule of
//! the first finding, and the functions that led there. Sentences of ours are never part of it, since
//! their wording changes. `docs/archive.md` has the definition; whoever changes it raises
//! [`VERSION`], so that signatures of two definitions are never taken for each other.

use scx_postmortem_format::report::{
    DualFailureDumpReport, FailureDumpReport, FailureDumpReportAny, Frame, PostmortemReport,
};
use xxhash_rust::xxh3::xxh3_64;

/// The version of the definition. It is the first part of every signature.
pub const VERSION: u32 = 1;

/// `SCX_EXIT_DONE`: below and at this, nothing has ended the scheduler.
const EXIT_DONE: i64 = 1;
/// `SCX_EXIT_ERROR`: from this on, an exit is a failure (`enum scx_exit_kind`).
const EXIT_ERROR: i64 = 1024;
/// `SCX_EXIT_ERROR_STALL`: raised by the watchdog, whose own stack says nothing about the failure.
const EXIT_STALL: i64 = 1026;
/// Kernel functions of a stack that count, where no BPF program is on it.
const KERNEL_FRAMES: usize = 3;
/// BPF programs of a stack that count.
const PROGRAM_FRAMES: usize = 8;
/// Characters of a message that count.
const MESSAGE_CHARS: usize = 200;

/// What a failure is known by. Parts that a report lacks are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    /// The scheduler's name without its version.
    pub scheduler: Option<String>,
    /// `scx_exit_info.kind`; 0 when the scheduler had not ended.
    pub exit_kind: i64,
    /// The BPF program that failed: that raised the error, or the callback that a CPU was met in.
    pub program: Option<String>,
    /// The line of it that raised the error. Absent where a program was only met somewhere on its
    /// way: the next capture meets it in another line.
    pub line: Option<String>,
    /// The rule of the first finding.
    pub verdict: Option<String>,
    /// The message of an error whose line is not known, without numbers and names of tasks.
    pub message: Option<String>,
    /// The functions that led to the failure, innermost first.
    pub stack: Vec<String>,
}

impl Signature {
    /// The signature of what a report shows, of a dual one what its late half does. `None` when
    /// that is no failure: a scheduler that runs, or that was unloaded, without any finding; and for
    /// a report that says no more than that a capture was given up.
    #[must_use]
    pub fn of(report: &FailureDumpReportAny) -> Option<Self> {
        Self::of_report(subject(report)?)
    }

    fn of_report(report: &FailureDumpReport) -> Option<Self> {
        let empty = PostmortemReport::default();
        let own = report.postmortem.as_deref().unwrap_or(&empty);
        let exit_kind = exit_kind(report);
        let finding = own.findings.first();
        if finding.is_none() && exit_kind < EXIT_ERROR {
            return None;
        }
        let scheduler = own.scheduler.as_ref().and_then(|s| s.ops_name.as_deref());
        let mut signature = Self {
            scheduler: scheduler.map(|name| without_version(name).to_owned()),
            exit_kind,
            ..Self::default()
        };
        // One failure, before and after the kernel has filled in the record of the exit.
        signature.verdict = finding.map(|finding| match finding.rule.as_str() {
            "error-exit" | "aborting" => "error".to_owned(),
            rule => rule.to_owned(),
        });
        let raised = signature.verdict.as_deref() == Some("error");
        let exit = own.exit_info.as_ref();
        let backtrace = exit.map_or(&[][..], |exit| &exit.backtrace);
        let of_error = exit_kind != EXIT_STALL && !backtrace.is_empty();
        let stack = if of_error {
            backtrace
        } else {
            stack_of_verdict(own).unwrap_or_default()
        };
        let mut programs = stack.iter().filter(|frame| program(frame).is_some());
        let frame = if of_error || raised {
            signature.stack = functions(stack);
            programs.next()
        } else {
            // How deep in its callback a CPU was met is chance.
            let callback = programs.next_back();
            signature.stack = callback
                .and_then(program)
                .map(str::to_owned)
                .into_iter()
                .collect();
            callback
        };
        signature.program = frame.and_then(program).map(str::to_owned);
        let line = frame.and_then(|frame| frame.source.as_deref());
        signature.line = line
            .filter(|_| raised)
            .map(|line| file_name(line).to_owned());
        if exit_kind >= EXIT_ERROR && exit_kind != EXIT_STALL && signature.line.is_none() {
            let message = exit.and_then(|exit| exit.msg.as_deref().or(exit.reason.as_deref()));
            signature.message = message.map(without_numbers).filter(|text| !text.is_empty());
        }
        Some(signature)
    }

    /// The text that is hashed: a line for each part, in this order, empty where it is absent.
    #[must_use]
    pub fn text(&self) -> String {
        let part = |part: &Option<String>| clean(part.as_deref().unwrap_or_default());
        let stack: Vec<String> = self.stack.iter().map(|name| clean(name)).collect();
        format!(
            "scx-failure-signature {VERSION}\nscheduler={}\nexit={}\nprogram={}\nline={}\nverdict={}\nmessage={}\nstack={}\n",
            part(&self.scheduler),
            self.exit_kind,
            part(&self.program),
            part(&self.line),
            part(&self.verdict),
            part(&self.message),
            stack.join("<")
        )
    }

    /// The signature as it is written: the version of the definition, and XXH3-64 of
    /// [`text`](Self::text).
    #[must_use]
    pub fn id(&self) -> String {
        format!("{VERSION}-{:016x}", xxh3_64(self.text().as_bytes()))
    }
}

/// The report that a failure is looked for in.
#[must_use]
pub fn subject(report: &FailureDumpReportAny) -> Option<&FailureDumpReport> {
    match report {
        FailureDumpReportAny::Single(report) => Some(report),
        FailureDumpReportAny::Dual(report) => {
            let report: &DualFailureDumpReport = report;
            Some(&report.late)
        }
        _ => None,
    }
}

/// The kind of the scheduler's exit: as its record has it, else as the scheduler was told before
/// the record was filled.
#[must_use]
pub fn exit_kind(report: &FailureDumpReport) -> i64 {
    let own = report.postmortem.as_deref();
    let of_record = own.and_then(|own| own.exit_info.as_ref().map(|exit| exit.kind));
    let of_scheduler = own.and_then(|own| own.scheduler.as_ref()?.exit_kind);
    let shared = report.scx_sched_state.as_ref().map(|state| state.exit_kind);
    let all = [of_record, of_scheduler, shared];
    let mut kinds = all.into_iter().flatten().map(i64::from);
    kinds.find(|&kind| kind > EXIT_DONE).unwrap_or(0)
}

/// The stack that the first finding rests on: evidence names it by its path.
fn stack_of_verdict(own: &PostmortemReport) -> Option<&[Frame]> {
    let evidence = &own.findings.first()?.evidence;
    evidence.iter().find_map(|fact| {
        let path = fact.path.strip_prefix("/postmortem/tasks/")?;
        let (task, member) = path.split_once('/')?;
        member.starts_with("stack/").then_some(())?;
        let task = own.tasks.get(task.parse::<usize>().ok()?)?;
        Some(task.stack.as_slice())
    })
}

/// `bpf_prog_0123456789abcdef_name+0x12/0x34` is `name`: the digits are a digest of its
/// instructions, which change with every build.
fn program(frame: &Frame) -> Option<&str> {
    let function = function(frame.symbol.as_deref()?);
    let (tag, name) = function.strip_prefix("bpf_prog_")?.split_once('_')?;
    let is_tag = tag.len() == 16 && tag.bytes().all(|c| c.is_ascii_hexdigit());
    is_tag.then_some(name)
}

/// A symbol without its offset, its module and what the compiler appends to the names of parts and
/// copies of functions (`.isra.0`, `.cold`).
fn function(symbol: &str) -> &str {
    let end = symbol.find(['+', ' ']).unwrap_or(symbol.len());
    let name = symbol.get(..end).unwrap_or(symbol);
    match name.split_once('.') {
        Some((start, _)) if !start.is_empty() => start,
        _ => name,
    }
}

/// The BPF programs on the stack of an error; without any, the kernel's functions from where it was
/// noticed on. Which functions of the kernel surround a program differs by kernel and by compiler,
/// and by who woke whom.
fn functions(stack: &[Frame]) -> Vec<String> {
    let programs = stack.iter().filter_map(program).take(PROGRAM_FRAMES);
    let programs: Vec<String> = programs.map(str::to_owned).collect();
    if !programs.is_empty() {
        return programs;
    }
    let names = stack.iter().filter_map(|frame| frame.symbol.as_deref());
    let names = names.map(function).skip_while(|name| is_exit(name));
    names.take(KERNEL_FRAMES).map(str::to_owned).collect()
}

/// Whether a function belongs to how sched_ext raises errors, `scx_exit()` and what it calls.
fn is_exit(name: &str) -> bool {
    name.starts_with("stack_trace_save")
        || (name.contains("scx_") && (name.contains("exit") || name.contains("error")))
}

/// `lavd_1.0.14_g4a5b_x86_64` is `lavd`.
fn without_version(name: &str) -> &str {
    let starts = name.match_indices('_').map(|(at, _)| at);
    for at in starts.filter(|&at| at > 0) {
        let rest = name.get(at + 1..).unwrap_or_default();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 && rest.as_bytes().get(digits) == Some(&b'.') {
            return name.get(..at).unwrap_or(name);
        }
    }
    name
}

/// The last part of a path: where a scheduler was built is not part of its failure.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A message with `#` for each number, `@` for each task (`comm[pid]`), and single spaces.
fn without_numbers(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        let (core, tail) = word.split_at(word.trim_end_matches([':', ',', '.', ')']).len());
        let pid = core
            .strip_suffix(']')
            .and_then(|word| word.rsplit_once('['));
        let is_task = pid.is_some_and(|(comm, pid)| {
            !comm.is_empty() && !pid.is_empty() && pid.bytes().all(|c| c.is_ascii_digit())
        });
        if is_task {
            format!("@{tail}")
        } else {
            numbers(word)
        }
    });
    let text = words.collect::<Vec<_>>().join(" ");
    text.chars().take(MESSAGE_CHARS).collect()
}

fn numbers(word: &str) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        let hexadecimal = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X"));
        let hexadecimal = hexadecimal.map(|digits| {
            let end = digits.find(|c: char| !c.is_ascii_hexdigit());
            digits
                .get(end.unwrap_or(digits.len())..)
                .unwrap_or_default()
        });
        let after = match hexadecimal {
            Some(after) => after,
            None if first.is_ascii_digit() => {
                rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            }
            None => {
                out.push(first);
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
                continue;
            }
        };
        out.push('#');
        rest = after;
    }
    out
}

/// Text that stays on its line.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use scx_postmortem_format::report::{ExitInfo, Finding, SchedulerInfo};

    use super::*;

    fn frame(symbol: &str, source: Option<&str>) -> Frame {
        Frame {
            symbol: Some(symbol.to_owned()),
            source: source.map(str::to_owned),
            ..Frame::default()
        }
    }

    fn report(
        kind: u32,
        msg: &str,
        backtrace: Vec<Frame>,
        rule: Option<&str>,
    ) -> FailureDumpReport {
        let mut own = PostmortemReport::new("test");
        own.scheduler = Some(SchedulerInfo {
            ops_name: Some("lavd_1.0.14_g4a5b_x86_64".into()),
            ..SchedulerInfo::default()
        });
        own.exit_info = Some(ExitInfo {
            kind,
            msg: Some(msg.into()),
            backtrace,
            ..ExitInfo::default()
        });
        own.findings.extend(rule.map(|rule| Finding {
            rule: rule.to_owned(),
            what: "a sentence that will be worded otherwise one day".into(),
            ..Finding::default()
        }));
        let mut report = FailureDumpReport::placeholder("");
        report.postmortem = Some(Box::new(own));
        report
    }

    #[test]
    fn numbers_and_tasks_go_out_of_texts_and_words_stay() {
        for (text, left) in [
            (
                "starve-0[187] failed to run for 9.320s",
                "@ failed to run for #s",
            ),
            (
                "cpu 3: DSQ 0xdead5 of kworker/u8:0[12], again",
                "cpu #: DSQ # of @, again",
            ),
            ("two  spaces\nand [12] x[y]", "two spaces and [#] x[y]"),
            ("", ""),
        ] {
            assert_eq!(without_numbers(text), left);
        }
    }

    #[test]
    fn names_lose_what_a_build_or_a_boot_adds() {
        assert_eq!(without_version("lavd_1.0.14_g4a5b_x86_64"), "lavd");
        assert_eq!(without_version("demo_2_stall"), "demo_2_stall");
        assert_eq!(function("do_exit.isra.0+0x1/0x2"), "do_exit");
        assert_eq!(function("fn_of [module]"), "fn_of");
        let symbol = "bpf_prog_0123456789abcdef_error_enqueue+0x12/0x34";
        assert_eq!(program(&frame(symbol, None)), Some("error_enqueue"));
        assert_eq!(program(&frame("bpf_prog_run+0x1/0x2", None)), None);
    }

    #[test]
    fn an_error_is_known_by_its_line_and_an_error_without_one_by_its_message() {
        let stack = |tag: &str, offset: u32, line: Option<&str>| {
            vec![
                frame("scx_exit+0x12/0x40", None),
                frame("scx_bpf_error_bstr+0x50/0x70", None),
                frame(&format!("bpf_prog_{tag}_fail+{offset:#x}/0x90"), line),
                frame("enqueue_task_scx+0x10/0x20", None),
            ]
        };
        let of = |report: &FailureDumpReport| Signature::of_report(report).unwrap();
        let one = of(&report(
            1025,
            "cpu 1 is wrong",
            stack("0123456789abcdef", 0x10, Some("/build/a/main.bpf.c:42")),
            Some("error-exit"),
        ));
        let other_boot = of(&report(
            1025,
            "cpu 7 is wrong",
            stack("fedcba9876543210", 0x20, Some("/home/b/main.bpf.c:42")),
            Some("error-exit"),
        ));
        assert_eq!(one, other_boot);
        assert_eq!(one.line.as_deref(), Some("main.bpf.c:42"));
        assert_eq!(one.stack, ["fail"]);
        assert_eq!(
            one.text(),
            "scx-failure-signature 1\nscheduler=lavd\nexit=1025\nprogram=fail\nline=main.bpf.c:42\nverdict=error\nmessage=\nstack=fail\n"
        );
        // The definition, to the byte: whoever changes it raises the version.
        assert_eq!(
            one.id(),
            format!("1-{:016x}", xxh3_64(one.text().as_bytes()))
        );
        let elsewhere = of(&report(
            1025,
            "cpu 1 is wrong",
            stack("0123456789abcdef", 0x10, Some("main.bpf.c:50")),
            Some("error-exit"),
        ));
        assert_ne!(one.id(), elsewhere.id());
        let no_line = |msg: &str| {
            let stack = stack("0123456789abcdef", 0x10, None);
            of(&report(1025, msg, stack, Some("error-exit")))
        };
        assert_eq!(
            no_line("cpu 1 is wrong").id(),
            no_line("cpu 9 is wrong").id()
        );
        assert_ne!(no_line("cpu 1 is wrong").id(), no_line("no such DSQ").id());
    }

    #[test]
    fn a_stall_has_neither_the_watchdogs_stack_nor_its_message() {
        let stall = |msg: &str, top: &str| {
            let stack = vec![frame(top, None)];
            let report = report(1026, msg, stack, Some("queue-never-consumed"));
            Signature::of_report(&report).unwrap()
        };
        let one = stall(
            "a[1] failed to run for 9.320s",
            "scx_watchdog_workfn+0x1/0x2",
        );
        let two = stall(
            "b[2] failed to run for 8.001s",
            "check_rq_for_timeouts+0x1/0x2",
        );
        assert_eq!(one.id(), two.id());
        assert!(one.stack.is_empty() && one.message.is_none());
    }

    #[test]
    fn what_is_no_failure_has_none() {
        let of = |kind, rule| Signature::of_report(&report(kind, "", Vec::new(), rule));
        assert_eq!(of(0, None), None);
        assert_eq!(of(64, None), None);
        assert_eq!(
            of(0, Some("idle-cpu-with-waiting-work")).unwrap().exit_kind,
            0
        );
        assert_eq!(of(1026, None).unwrap().verdict, None);
    }
}
