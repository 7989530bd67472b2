//! `analyze query`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use scx_postmortem_analyze::query::{FUNCTIONS, QueryError, ROOTS, Session};
use scx_postmortem_format::report::FailureDumpReportAny;

use super::{Failure, InputArgs, Opened, exit, print};

/// What `analyze query` is given.
#[derive(Args)]
#[command(after_help = help())]
pub(super) struct QueryArgs {
    /// A capture, an ELF core, or a report's JSON.
    file: PathBuf,
    /// Expressions.
    #[arg(required = true, value_name = "EXPR")]
    expressions: Vec<String>,
    /// Print JSON: a list of an answer or an error for each expression.
    #[arg(long)]
    json: bool,
    /// Of a dual capture or report, ask the early half.
    #[arg(long)]
    early: bool,
    #[command(flatten)]
    input: InputArgs,
}

pub(super) fn help() -> String {
    let mut text = String::from("Expressions:\n");
    let mut line = |left: &str, right: &str| {
        let _ = writeln!(text, "  {left:<32} {right}");
    };
    for (name, what) in ROOTS {
        line(name, what);
    }
    for (_, usage, what) in FUNCTIONS {
        line(usage, what);
    }
    line("X.NAME, X->NAME", "a member; pointers are followed");
    line("X[N], X[*]", "an element, an entry; all of them");
    line("(TYPE *)X, *X, &X", "as in C, with the kernel's types");
    text.push_str(
        "\nA single answer is printed alone, several with their expressions. Exit code 2: an expression has no answer.\n",
    );
    text
}

/// What a file gives to ask.
pub(super) fn with_session<T>(
    opened: Opened,
    args: &InputArgs,
    early: bool,
    ask: impl FnOnce(&Session<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match opened {
        Opened::Kernel(kernel, _) => ask(&Session::of_kernel(&kernel, args.options())),
        Opened::Report(any) => {
            let report = match *any {
                FailureDumpReportAny::Single(report) if !early => *report,
                FailureDumpReportAny::Dual(dual) if early => match dual.early {
                    Some(report) => report,
                    None => {
                        let why = dual.early_skipped_reason.unwrap_or_default();
                        return Err(Failure(
                            exit::UNUSABLE_FILE,
                            format!("this dual report has no early half: {why}"),
                        ));
                    }
                },
                FailureDumpReportAny::Dual(dual) => dual.late,
                other => {
                    return Err(Failure(
                        exit::UNUSABLE_FILE,
                        format!(
                            "a {} report has {} to ask",
                            other.schema(),
                            if early { "no early half" } else { "nothing" }
                        ),
                    ));
                }
            };
            ask(&Session::of_report(report))
        }
    }
}

pub(super) fn run(args: &QueryArgs) -> Result<u8, Failure> {
    let opened = args.input.open(&args.file, args.early)?;
    let code = opened.warn(&args.file);
    let failed = with_session(opened, &args.input, args.early, |session| {
        if args.json {
            as_json(session, &args.expressions)
        } else {
            as_text(session, &args.expressions)
        }
    })?;
    Ok(if failed { 2 } else { code })
}

/// Prints the answers; errors go to standard error. Whether there was one.
fn as_text(session: &Session<'_>, expressions: &[String]) -> Result<bool, Failure> {
    let mut failed = false;
    for expression in expressions {
        match session.ask(expression) {
            Ok(answer) if expressions.len() == 1 => print(&[&answer.value.to_string(), "\n"])?,
            Ok(answer) => print(&[expression, " = ", &answer.value.to_string(), "\n"])?,
            Err(error) => {
                failed = true;
                eprintln!("{}", error.show(expression));
            }
        }
    }
    Ok(failed)
}

fn as_json(session: &Session<'_>, expressions: &[String]) -> Result<bool, Failure> {
    let mut failed = false;
    let cannot = |e| Failure(exit::OUTPUT, format!("cannot write an answer: {e}"));
    print(&["["])?;
    for (i, expression) in expressions.iter().enumerate() {
        let text = match session.ask(expression) {
            Ok(answer) => serde_json::to_string(&answer),
            Err(error) => {
                failed = true;
                serde_json::to_string(&error_json(expression, &error))
            }
        };
        print(&[if i == 0 { "" } else { ",\n " }, &text.map_err(cannot)?])?;
    }
    print(&["]\n"])?;
    Ok(failed)
}

fn error_json(expression: &str, error: &QueryError) -> serde_json::Value {
    serde_json::json!({
        "expr": expression,
        "error": {
            "message": error.message,
            "start": error.span.start,
            "end": error.span.end,
            "near": error.near,
        },
    })
}
