//! Names that may have been meant.

/// Names that one message lists.
const MAX_NAMES: usize = 5;
/// How like another a name has to be; 1 is the same.
const LIKENESS: f64 = 0.8;
/// Names that are compared: a kernel has some 300,000 symbols.
const MAX_COMPARED: usize = 1 << 19;
/// Longest name that is compared, which takes as long as the product of both lengths.
const MAX_LENGTH: usize = 64;

/// Those of `names` that are most like `name`, the closest first.
pub(crate) fn near(name: &str, names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    let wanted = name.to_lowercase();
    if wanted.is_empty() || wanted.len() > MAX_LENGTH {
        return Vec::new();
    }
    let mut found: Vec<(f64, String)> = Vec::new();
    for candidate in names.into_iter().take(MAX_COMPARED) {
        let candidate = candidate.as_ref();
        if candidate.is_empty() || candidate.len() > MAX_LENGTH {
            continue;
        }
        let lower = candidate.to_lowercase();
        let mut likeness = strsim::jaro_winkler(&wanted, &lower);
        if wanted.len() >= 3 && lower.contains(&wanted) {
            likeness = likeness.max(LIKENESS);
        }
        if likeness < LIKENESS || found.iter().any(|(_, name)| name == candidate) {
            continue;
        }
        found.push((likeness, candidate.to_owned()));
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        found.truncate(MAX_NAMES);
    }
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn the_closest_names_come_first() {
        let names = ["nr_running", "nr_rejected", "flags", "local_dsq", "nr_run"];
        assert_eq!(near("nr_runing", names)[0], "nr_running");
        assert_eq!(near("Flags", names), ["flags"]);
        assert_eq!(near("dsq", names), ["local_dsq"]);
        assert!(near("zzz", names).is_empty());
        assert!(near("", names).is_empty());
    }
}
