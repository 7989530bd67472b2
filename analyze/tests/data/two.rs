// The report that the examples of `analyze::snapshot` look at: a scheduler that was loaded twice
// from one file. Written by hand, with a member that this version does not know.

#[allow(dead_code)]
pub const JSON: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/two.report.json"
));

#[allow(dead_code)]
pub fn report() -> scx_postmortem_format::report::FailureDumpReport {
    use scx_postmortem_format::report::FailureDumpReportAny;
    match FailureDumpReportAny::parse(JSON) {
        Ok(FailureDumpReportAny::Single(report)) => *report,
        other => panic!("{other:?}"),
    }
}

#[allow(dead_code)]
pub fn report_without_active() -> scx_postmortem_format::report::FailureDumpReport {
    scx_postmortem_format::report::FailureDumpReport {
        active_map_kvas: Vec::new(),
        ..report()
    }
}
