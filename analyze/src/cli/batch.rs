//! `analyze batch`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use scx_postmortem_analyze::analysis::Options;
#[cfg(feature = "object-store")]
use scx_postmortem_analyze::batch::input::MAX_INPUTS;
use scx_postmortem_analyze::batch::input::{Input, expand, of_list};
use scx_postmortem_analyze::batch::{self, Group, Outcome, Run, Shard};
use scx_postmortem_analyze::source;
#[cfg(feature = "object-store")]
use scx_postmortem_analyze::source::Stores;
use scx_postmortem_analyze::walk::Limits;
use scx_postmortem_format::report::Escaped;

use super::{Failure, Progress, exit, jobs, print};

/// What `analyze batch` is given.
#[derive(Args)]
pub(super) struct BatchArgs {
    /// Captures and cores, folders with them, and addresses of captures (s3://, gs://, az://,
    /// http://; one that ends with a slash is a folder).
    #[arg(value_name = "INPUT", required_unless_present = "list")]
    inputs: Vec<OsString>,
    /// Also those that this file names, one in a line. `-`: standard input.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// The folder for the results. One that has some already is completed.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Captures to look at at the same time. Default: as many as there are processors.
    #[arg(short, long)]
    jobs: Option<NonZeroUsize>,
    /// Do only part I of N, from 1. Default: what the variables of Kubernetes, Slurm or GitLab say,
    /// else all. See docs/archive.md.
    #[arg(long, value_name = "I/N", value_parser = Shard::parse)]
    shard: Option<Shard>,
    /// Also make reports again that are there and current.
    #[arg(long)]
    again: bool,
    /// For captures that were reduced without the kernel's tables. More than one can be given.
    #[arg(long, value_name = "FILE")]
    kernel_tables: Vec<PathBuf>,
    /// Raise every limit on list lengths to N.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Show integers as integers, also those that the scheduler keeps pointers in.
    #[arg(long)]
    no_casts: bool,
}

impl BatchArgs {
    fn shard(&self) -> Result<Shard, Failure> {
        if let Some(shard) = self.shard {
            return Ok(shard);
        }
        let found = Shard::from_environment(|name| std::env::var(name).ok());
        let Some((shard, from)) = found.map_err(|why| Failure(2, why))? else {
            return Ok(Shard::WHOLE);
        };
        eprintln!("analyze: part {shard}, as {from} says");
        Ok(shard)
    }

    fn inputs(
        &self,
        #[cfg(feature = "object-store")] stores: &mut Option<Stores>,
    ) -> Result<Vec<Input>, Failure> {
        let mut inputs: Vec<Input> = self.inputs.iter().map(|text| Input::of(text)).collect();
        if let Some(list) = &self.list {
            inputs.extend(of_list(list).map_err(|why| Failure(exit::UNUSABLE_FILE, why))?);
        }
        if !batch::READS_OBJECTS
            && let Some(Input::Object(address)) = inputs
                .iter()
                .find(|input| matches!(input, Input::Object(_)))
        {
            return Err(Failure(2, format!("{address}: {}", batch::NO_STORES)));
        }
        #[cfg(feature = "object-store")]
        let inputs = listed(inputs, stores)?;
        let inputs = expand(inputs).map_err(|why| Failure(2, why))?;
        if inputs.is_empty() {
            let why = "no capture is named by the arguments, and none is in the folders among them";
            return Err(Failure(exit::UNUSABLE_FILE, why.to_owned()));
        }
        Ok(inputs)
    }
}

/// The inputs with every folder in a store replaced by the captures below it. Stores are opened
/// when some input is in one.
#[cfg(feature = "object-store")]
fn listed(inputs: Vec<Input>, stores: &mut Option<Stores>) -> Result<Vec<Input>, Failure> {
    let mut all = Vec::new();
    for input in inputs {
        let Input::Object(address) = &input else {
            all.push(input);
            continue;
        };
        if stores.is_none() {
            let opened = Stores::new();
            *stores = Some(opened.map_err(|e| Failure(exit::OUTPUT, format!("no threads: {e}")))?);
        }
        if all.len() > MAX_INPUTS {
            // `expand` says so.
            break;
        }
        match stores.as_ref().filter(|_| address.ends_with('/')) {
            None => all.push(input),
            // One that cannot be listed stays, and becomes an error of its own.
            Some(stores) => match stores.list(address, MAX_INPUTS) {
                Ok(names) => all.extend(names.into_iter().map(Input::Object)),
                Err(_) => all.push(input),
            },
        }
    }
    Ok(all)
}

pub(super) fn run(args: &BatchArgs) -> Result<u8, Failure> {
    for path in &args.kernel_tables {
        source::open_regular(path)
            .map_err(|e| Failure(2, format!("--kernel-tables {}: {e}", path.display())))?;
    }
    let shard = args.shard()?;
    #[cfg(feature = "object-store")]
    let mut stores = None;
    let inputs = args.inputs(
        #[cfg(feature = "object-store")]
        &mut stores,
    )?;
    let limits = Limits::default();
    let run = Run {
        out: args.out.clone(),
        shard,
        kernel_tables: args.kernel_tables.clone(),
        options: Options {
            limits: args.limit.map_or(limits, |n| limits.raised_to(n)),
            no_casts: args.no_casts,
        },
        again: args.again,
        jobs: jobs(args.jobs),
        #[cfg(feature = "object-store")]
        stores,
    };
    let began = Instant::now();
    let progress = Progress::new("reports");
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let outcome = batch::run(&run, &inputs, &|done, of| {
        progress.show(count(done), count(of));
    });
    progress.clear();
    let outcome = outcome.map_err(|why| Failure(exit::OUTPUT, why))?;
    for warning in &outcome.warnings {
        eprintln!("analyze: {}", Escaped(warning));
    }
    print(&[&text(&outcome)])?;
    if std::io::stderr().is_terminal() {
        let seconds = began.elapsed().as_secs_f64();
        let made = outcome.inputs - outcome.kept;
        eprintln!("{seconds:.1} s, {:.1} a second", made as f64 / seconds);
    }
    Ok(if outcome.failed.is_empty() {
        exit::OK
    } else {
        exit::DEGRADED
    })
}

/// What came of a run, for people.
fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (input, why) in &outcome.failed {
        // The sentence mostly begins with the name.
        let why = why.strip_prefix(&format!("{input}: ")).unwrap_or(why);
        let _ = writeln!(text, "FAILED  {}: {}", Escaped(input), Escaped(why));
    }
    let kept = match outcome.kept {
        0 => String::new(),
        kept => format!(", {kept} of them done before"),
    };
    let _ = writeln!(
        text,
        "{} captures{kept}: {} reports, {} failed",
        outcome.inputs,
        outcome.reports,
        outcome.failed.len()
    );
    let fetched = &outcome.fetched;
    if fetched.objects > 0 {
        let _ = writeln!(
            text,
            "fetched {} of {} bytes ({:.1} %) in {} requests",
            fetched.traffic.bytes,
            fetched.of_bytes,
            fetched.traffic.bytes as f64 / fetched.of_bytes.max(1) as f64 * 100.0,
            fetched.traffic.requests
        );
    }
    for group in &outcome.groups {
        let _ = writeln!(
            text,
            "{:>6}  {}  {}",
            group.captures,
            group.signature,
            shown(group)
        );
        for input in &group.inputs {
            let _ = writeln!(text, "          {}", Escaped(input));
        }
        match group.captures.saturating_sub(group.inputs.len()) {
            0 => {}
            more => {
                let _ = writeln!(text, "          and {more} more");
            }
        }
    }
    if outcome.healthy > 0 {
        let _ = writeln!(text, "{:>6}  without a failure", outcome.healthy);
    }
    if outcome.degraded > 0 {
        let _ = writeln!(text, "{:>6}  given up while captured", outcome.degraded);
    }
    for table in &outcome.tables {
        let _ = writeln!(text, "{}", Escaped(&table.display().to_string()));
    }
    text
}

fn shown(group: &Group) -> String {
    let row = &group.first;
    let exit = match (&row.exit_kind_name, row.exit_kind) {
        (Some(name), _) => Some(name.clone()),
        (None, Some(kind)) if kind != 0 => Some(format!("exit kind {kind}")),
        _ => None,
    };
    let place = match (&row.program, &row.line) {
        (Some(program), Some(line)) => Some(format!("{program}() at {line}")),
        (Some(program), None) => Some(format!("{program}()")),
        _ => None,
    };
    let parts = [row.scheduler.clone(), exit, row.verdict.clone(), place];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    Escaped(&parts.join(", ")).to_string()
}
