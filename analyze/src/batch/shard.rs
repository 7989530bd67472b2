//! Which part of a run this process does.
//!
//! Engines that start one job many times tell each which one it is, by variables of the
//! environment. An input belongs to exactly one part, by a hash of its name, so that parts need not
//! know of each other, and an input stays in its part when others come or go.

use xxhash_rust::xxh3::xxh3_64;

/// One part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Its number, from 1.
    pub number: u64,
    /// How many there are.
    pub total: u64,
}

impl Shard {
    /// All of a run.
    pub const WHOLE: Self = Self {
        number: 1,
        total: 1,
    };

    /// `2/8` is the second of eight.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let parts =
            parts.and_then(|(number, total)| Some((number.parse().ok()?, total.parse().ok()?)));
        let (number, total) =
            parts.ok_or_else(|| format!("expected I/N as in 2/8, found {text:?}"))?;
        Self::new(number, total).map_err(|why| format!("{text}: {why}"))
    }

    fn new(number: u64, total: u64) -> Result<Self, String> {
        if (1..=total).contains(&number) {
            Ok(Self { number, total })
        } else {
            Err(format!(
                "expected a number from 1 to {total}, found {number}"
            ))
        }
    }

    /// What the environment tells, and who tells it. `None` outside of such a job.
    ///
    /// # Errors
    /// A sentence, when a variable is set and another one that belongs to it is missing or makes
    /// no sense: to do all of the work in each of many jobs helps nobody.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<(Self, &'static str)>, String> {
        let number = |name: &str| -> Result<Option<u64>, String> {
            let Some(text) = variable(name).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            let number = text.parse().map_err(|_| {
                format!("{name} is {text:?}, expected a number; --shard I/N says it without")
            })?;
            Ok(Some(number))
        };
        let needs = |set: &str, missing: &str| {
            format!(
                "{set} is set and {missing} is not; set it to the number of jobs, or use --shard I/N (1/1 for all of the work)"
            )
        };
        let shard = |number, total, from: &'static str| {
            let shard = Self::new(number, total).map_err(|why| format!("{from}: {why}"))?;
            Ok(Some((shard, from)))
        };
        if let Some(index) = number("JOB_COMPLETION_INDEX")? {
            // Kubernetes gives the index alone; a manifest can set what its `completions` are.
            let total = number("JOB_COMPLETIONS")?;
            let total = total.ok_or_else(|| needs("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"))?;
            return shard(index.saturating_add(1), total, "JOB_COMPLETION_INDEX");
        }
        if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
            let total = number("SLURM_ARRAY_TASK_COUNT")?;
            let total =
                total.ok_or_else(|| needs("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))?;
            let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
            let index = id.checked_sub(first).filter(|at| at % step == 0);
            let index = index.ok_or_else(|| {
                format!(
                    "SLURM_ARRAY_TASK_ID is {id}, expected {first} and steps of {step} from there"
                )
            })?;
            return shard(
                (index / step).saturating_add(1),
                total,
                "SLURM_ARRAY_TASK_ID",
            );
        }
        if let Some(index) = number("CI_NODE_INDEX")? {
            let total = number("CI_NODE_TOTAL")?;
            let total = total.ok_or_else(|| needs("CI_NODE_INDEX", "CI_NODE_TOTAL"))?;
            return shard(index, total, "CI_NODE_INDEX");
        }
        Ok(None)
    }

    /// Whether an input of that name belongs to it.
    #[must_use]
    pub fn has(&self, name: &[u8]) -> bool {
        xxh3_64(name) % self.total.max(1) == self.number.saturating_sub(1)
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.number, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<(Shard, &'static str)>, String> {
        Shard::from_environment(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_engine_is_understood() {
        for (variables, number, total) in [
            (
                &[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "8")][..],
                1,
                8,
            ),
            (&[("CI_NODE_INDEX", "1"), ("CI_NODE_TOTAL", "5")], 1, 5),
            (
                &[
                    ("SLURM_ARRAY_TASK_ID", "0"),
                    ("SLURM_ARRAY_TASK_COUNT", "4"),
                ],
                1,
                4,
            ),
            (
                &[
                    ("SLURM_ARRAY_TASK_ID", "14"),
                    ("SLURM_ARRAY_TASK_COUNT", "3"),
                    ("SLURM_ARRAY_TASK_MIN", "10"),
                    ("SLURM_ARRAY_TASK_STEP", "2"),
                ],
                3,
                3,
            ),
        ] {
            let (shard, from) = of(variables).unwrap().unwrap();
            assert_eq!((shard.number, shard.total), (number, total));
            assert_eq!(from, variables[0].0);
        }
        assert_eq!(of(&[]), Ok(None));
    }

    #[test]
    fn half_of_the_variables_is_an_error_and_not_the_whole_work() {
        for variables in [
            &[("JOB_COMPLETION_INDEX", "3")][..],
            &[("CI_NODE_INDEX", "3")],
            &[("SLURM_ARRAY_TASK_ID", "3")],
            &[("JOB_COMPLETION_INDEX", "8"), ("JOB_COMPLETIONS", "8")],
            &[("CI_NODE_INDEX", "0"), ("CI_NODE_TOTAL", "8")],
            &[("CI_NODE_INDEX", "x"), ("CI_NODE_TOTAL", "8")],
        ] {
            assert!(of(variables).is_err(), "{variables:?}");
        }
    }

    #[test]
    fn an_input_is_in_one_part() {
        let names: Vec<String> = (0..1000)
            .map(|i| format!("captures/{i}.core.zst"))
            .collect();
        let mut counts = [0; 7];
        for name in &names {
            let parts = (1..=7).filter(|&number| Shard { number, total: 7 }.has(name.as_bytes()));
            let parts: Vec<u64> = parts.collect();
            assert_eq!(parts.len(), 1, "{name}: {parts:?}");
            counts[usize::try_from(parts[0]).unwrap() - 1] += 1;
            assert!(Shard::WHOLE.has(name.as_bytes()));
        }
        assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
    }

    #[test]
    fn a_part_is_written_as_two_numbers() {
        assert_eq!(
            Shard::parse("2/8"),
            Ok(Shard {
                number: 2,
                total: 8
            })
        );
        for wrong in ["", "2", "0/8", "9/8", "1/0", "a/b", "1/2/3"] {
            assert!(Shard::parse(wrong).is_err(), "{wrong}");
        }
    }
}
