//! Prints the JSON schema of the report.

fn main() -> Result<(), scx_postmortem_format::report::ReportError> {
    print!("{}", scx_postmortem_format::report::json_schema_text()?);
    Ok(())
}
