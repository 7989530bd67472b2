//! `analyze shell`.

use std::path::PathBuf;

use clap::Args;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use scx_postmortem_analyze::query::Session;

use super::query::{help, with_session};
use super::{Failure, InputArgs, exit, print};

/// Lines that are remembered.
const HISTORY: usize = 1000;

/// What `analyze shell` is given.
#[derive(Args)]
pub(super) struct ShellArgs {
    /// A capture, an ELF core, or a report's JSON.
    file: PathBuf,
    /// Of a dual capture or report, ask the early half.
    #[arg(long)]
    early: bool,
    /// Keep the history of lines in this file, from one time to the next.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
}

/// Completion by what the session knows.
struct Names<'s>(&'s Session<'s>);

impl Completer for Names<'_> {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.0.complete(line.get(..at).unwrap_or(line)))
    }
}

impl Hinter for Names<'_> {
    type Hint = String;
}

impl Highlighter for Names<'_> {}
impl Validator for Names<'_> {}
impl Helper for Names<'_> {}

pub(super) fn run(args: &ShellArgs) -> Result<u8, Failure> {
    let opened = args.input.open(&args.file, args.early)?;
    let code = opened.warn(&args.file);
    with_session(opened, &args.input, args.early, |session| {
        talk(session, args)
    })?;
    Ok(code)
}

fn talk(session: &Session<'_>, args: &ShellArgs) -> Result<(), Failure> {
    let broken = |e: ReadlineError| Failure(exit::OUTPUT, format!("the terminal: {e}"));
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .auto_add_history(true);
    let config = config.max_history_size(HISTORY).map_err(broken)?.build();
    let mut editor: Editor<Names<'_>, FileHistory> = Editor::with_config(config).map_err(broken)?;
    editor.set_helper(Some(Names(session)));
    if let Some(history) = args.history.as_ref().filter(|path| path.exists()) {
        editor.load_history(history).map_err(broken)?;
    }
    loop {
        match editor.readline("> ") {
            Ok(line) => match line.trim() {
                "" => {}
                "quit" | "exit" => break,
                "help" | "?" => print(&[&help()])?,
                expression => match session.ask(expression) {
                    Ok(answer) => print(&[&answer.value.to_string(), "\n"])?,
                    Err(error) => print(&[&error.show(expression), "\n"])?,
                },
            },
            // Control-C drops the line, control-D ends.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(other) => return Err(broken(other)),
        }
    }
    if let Some(history) = &args.history {
        editor.save_history(history).map_err(broken)?;
    }
    Ok(())
}
