//! One value.

use scx_postmortem_format::report::RenderedValue;

use super::{SnapshotError, SnapshotResult};

/// Pointers that are followed between two components of a path.
const MAX_POINTERS: usize = 16;

/// A value of the report, or why there is none.
///
/// A path that leads nowhere gives [`Missing`](Self::Missing), and so does every further step, so
/// that a chain of calls ends in the first error.
#[derive(Clone, Debug)]
pub enum SnapshotField<'a> {
    /// A value.
    Value {
        /// It.
        value: &'a RenderedValue,
        /// How it was asked for, for messages.
        requested: String,
    },
    /// The key of a per-CPU array's entry.
    PercpuKey {
        /// The key.
        key: u32,
    },
    /// Nothing.
    Missing(SnapshotError),
}

impl<'a> SnapshotField<'a> {
    pub(super) fn new(value: &'a RenderedValue, requested: impl Into<String>) -> Self {
        Self::Value {
            value,
            requested: requested.into(),
        }
    }

    /// The member at a dotted path; the value itself for an empty one. Pointers that the report
    /// has followed are followed, at most 16 in a row; values that were cut are not looked into.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// let config = snapshot.var("config");
    /// assert_eq!(config.get("limits.slice_us").as_u64(), Ok(5000));
    /// // `owner` is a pointer to a struct.
    /// assert_eq!(config.get("owner.pid").as_i64(), Ok(-7));
    /// assert_eq!(
    ///     config.get("limits.slice").error().unwrap().to_string(),
    ///     "path 'config.limits.slice': component 'slice' (after walking 'config.limits') not \
    ///      found (members at this depth: [\"slice_us\", \"ratio\"])"
    /// );
    /// ```
    #[must_use]
    pub fn get(&self, path: &str) -> Self {
        match self {
            Self::Value { value, requested } => walk(value, requested, path),
            Self::PercpuKey { .. } if path.is_empty() => self.clone(),
            Self::PercpuKey { .. } => Self::Missing(SnapshotError::TypeMismatch {
                expected: "Struct".to_owned(),
                actual: "PercpuKey".to_owned(),
                requested: path.to_owned(),
            }),
            Self::Missing(error) => Self::Missing(error.clone()),
        }
    }

    /// Whether there is a value.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert!(Snapshot::new(&report).var("config").is_present());
    /// assert!(!Snapshot::new(&report).var("no_such_thing").is_present());
    /// ```
    #[must_use]
    pub const fn is_present(&self) -> bool {
        !matches!(self, Self::Missing(_))
    }

    /// The report's own record of the value.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// use scx_postmortem_analyze::snapshot::Snapshot;
    /// use scx_postmortem_format::report::RenderedValue;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// let raw = snapshot.live_var("nr_direct");
    /// assert_eq!(raw.raw(), Some(&RenderedValue::Uint { bits: 64, value: 12 }));
    /// ```
    #[must_use]
    pub const fn raw(&self) -> Option<&'a RenderedValue> {
        match self {
            Self::Value { value, .. } => Some(value),
            _ => None,
        }
    }

    /// Why there is no value.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// use scx_postmortem_analyze::snapshot::{Snapshot, SnapshotError};
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// let error = snapshot.var("nr_lost");
    /// assert!(matches!(error.error(), Some(SnapshotError::VarNotFound { .. })));
    /// assert!(snapshot.var("config").error().is_none());
    /// ```
    #[must_use]
    pub const fn error(&self) -> Option<&SnapshotError> {
        match self {
            Self::Missing(error) => Some(error),
            _ => None,
        }
    }

    /// An unsigned number: integers and signed enums that are not negative, unsigned enums by bit
    /// pattern, booleans, characters, addresses.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.live_var("nr_enqueued").as_u64(), Ok(4100));
    /// assert_eq!(
    ///     snapshot.var("config").get("owner.pid").as_u64().unwrap_err().to_string(),
    ///     "path 'config.owner.pid': cannot read as u64 — actual rendered variant is Int(negative)"
    /// );
    /// ```
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`], or why there is no value.
    pub fn as_u64(&self) -> SnapshotResult<u64> {
        match self {
            Self::PercpuKey { key } => Ok(u64::from(*key)),
            _ => self.convert("u64", RenderedValue::as_u64),
        }
    }

    /// A signed number: integers that fit, enums by bit pattern, booleans, characters.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).var("config").get("owner.pid").as_i64(), Ok(-7));
    /// ```
    ///
    /// # Errors
    /// As [`as_u64`](Self::as_u64).
    pub fn as_i64(&self) -> SnapshotResult<i64> {
        match self {
            Self::PercpuKey { key } => Ok(i64::from(*key)),
            _ => self.convert("i64", RenderedValue::as_i64),
        }
    }

    /// A truth value: booleans, and numbers, which are true unless 0.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).var("config").get("enabled").as_bool(), Ok(true));
    /// ```
    ///
    /// # Errors
    /// As [`as_u64`](Self::as_u64).
    pub fn as_bool(&self) -> SnapshotResult<bool> {
        match self {
            Self::PercpuKey { key } => Ok(*key != 0),
            _ => self.convert("bool", RenderedValue::as_bool),
        }
    }

    /// A floating-point number: floats, integers and enums.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).var("config").get("limits.ratio").as_f64(), Ok(0.5));
    /// ```
    ///
    /// # Errors
    /// As [`as_u64`](Self::as_u64).
    pub fn as_f64(&self) -> SnapshotResult<f64> {
        match self {
            Self::PercpuKey { key } => Ok(f64::from(*key)),
            _ => self.convert("f64", RenderedValue::as_f64),
        }
    }

    /// The name of an enum's value, if it has one.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// assert_eq!(Snapshot::new(&report).var("config").get("mode").as_str(), Ok("MODE_FAST"));
    /// ```
    ///
    /// # Errors
    /// As [`as_u64`](Self::as_u64).
    pub fn as_str(&self) -> SnapshotResult<&'a str> {
        match self {
            Self::Value {
                value:
                    RenderedValue::Enum {
                        variant: Some(name),
                        ..
                    },
                ..
            } => Ok(name),
            _ => self.convert("str", |_| None),
        }
    }

    /// Every element [as u64](Self::as_u64).
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let cpus = Snapshot::new(&report).var("config").get("per_cpu");
    /// assert_eq!(cpus.as_u64_array(), Ok(vec![1, 0, 3]));
    /// ```
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`], also when one element does not convert: all or nothing.
    pub fn as_u64_array(&self) -> SnapshotResult<Vec<u64>> {
        self.array("u64 array", |field| field.as_u64())
    }

    /// Every element as u32.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// assert_eq!(snapshot.var("config").get("per_cpu").as_u32_array(), Ok(vec![1, 0, 3]));
    /// assert!(snapshot.var("config").get("deadlines").as_u32_array().is_err()); // one is 2^40
    /// ```
    ///
    /// # Errors
    /// As [`as_u64_array`](Self::as_u64_array); also for an element that does not fit.
    pub fn as_u32_array(&self) -> SnapshotResult<Vec<u32>> {
        self.array("u32 array", |field| {
            let value = field.as_u64()?;
            u32::try_from(value).map_err(|_| SnapshotError::TypeMismatch {
                expected: "u32".to_owned(),
                actual: format!("Uint(overflow: {value})"),
                requested: String::new(),
            })
        })
    }

    /// Every element [as i64](Self::as_i64).
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let cpus = Snapshot::new(&report).var("config").get("per_cpu");
    /// assert_eq!(cpus.as_i64_array(), Ok(vec![1, 0, 3]));
    /// ```
    ///
    /// # Errors
    /// As [`as_u64_array`](Self::as_u64_array).
    pub fn as_i64_array(&self) -> SnapshotResult<Vec<i64>> {
        self.array("i64 array", |field| field.as_i64())
    }

    /// Every element [as f64](Self::as_f64).
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let cpus = Snapshot::new(&report).var("config").get("per_cpu");
    /// assert_eq!(cpus.as_f64_array(), Ok(vec![1.0, 0.0, 3.0]));
    /// ```
    ///
    /// # Errors
    /// As [`as_u64_array`](Self::as_u64_array).
    pub fn as_f64_array(&self) -> SnapshotResult<Vec<f64>> {
        self.array("f64 array", |field| field.as_f64())
    }

    /// Every element [as bool](Self::as_bool).
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let cpus = Snapshot::new(&report).var("config").get("per_cpu");
    /// assert_eq!(cpus.as_bool_array(), Ok(vec![true, false, true]));
    /// ```
    ///
    /// # Errors
    /// As [`as_u64_array`](Self::as_u64_array).
    pub fn as_bool_array(&self) -> SnapshotResult<Vec<bool>> {
        self.array("bool array", |field| field.as_bool())
    }

    /// The elements of an array, also of one behind a followed pointer or in a value that was cut;
    /// nothing for anything else.
    ///
    /// ```
    /// # mod two { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two.rs")); }
    /// # use scx_postmortem_analyze::snapshot::Snapshot;
    /// # let report = two::report();
    /// let snapshot = Snapshot::new(&report);
    /// let cpus = snapshot.var("config").get("per_cpu");
    /// let sum: u64 = cpus.iter_members().map(|cpu| cpu.as_u64().unwrap()).sum();
    /// assert_eq!(sum, 4);
    /// assert_eq!(snapshot.live_var("nr_direct").iter_members().count(), 0);
    /// ```
    pub fn iter_members(&self) -> impl Iterator<Item = SnapshotField<'a>> + use<'a> {
        let (elements, requested) = match self {
            Self::Value { value, requested } => {
                (value.elements().unwrap_or_default(), requested.clone())
            }
            _ => (Default::default(), String::new()),
        };
        elements
            .iter()
            .enumerate()
            .map(move |(i, element)| SnapshotField::new(element, format!("{requested}[{i}]")))
    }

    fn convert<T>(
        &self,
        expected: &str,
        convert: impl FnOnce(&'a RenderedValue) -> Option<T>,
    ) -> SnapshotResult<T> {
        let (value, requested) = match self {
            Self::Value { value, requested } => (*value, requested.as_str()),
            Self::Missing(error) => return Err(error.clone()),
            Self::PercpuKey { .. } => {
                return Err(SnapshotError::TypeMismatch {
                    expected: expected.to_owned(),
                    actual: "PercpuKey".to_owned(),
                    requested: String::new(),
                });
            }
        };
        convert(value).ok_or_else(|| SnapshotError::TypeMismatch {
            expected: expected.to_owned(),
            actual: match value {
                RenderedValue::Int { value, .. } if expected == "u64" && *value < 0 => {
                    "Int(negative)".to_owned()
                }
                other => kind(other),
            },
            requested: requested.to_owned(),
        })
    }

    fn array<T>(
        &self,
        expected: &'static str,
        convert: impl Fn(&Self) -> SnapshotResult<T>,
    ) -> SnapshotResult<Vec<T>> {
        let (value, requested) = match self {
            Self::Value { value, requested } => (*value, requested),
            _ => return self.convert(expected, |_| None),
        };
        let mismatch = |actual: String| SnapshotError::TypeMismatch {
            expected: expected.to_owned(),
            actual,
            requested: requested.clone(),
        };
        let elements = value.elements().ok_or_else(|| mismatch(kind(value)))?;
        let mut all = Vec::with_capacity(elements.len());
        for (i, element) in elements.iter().enumerate() {
            let field = SnapshotField::new(element, "");
            let converted = convert(&field).map_err(|error| {
                let found = match error {
                    SnapshotError::TypeMismatch { actual, .. } => actual,
                    _ => kind(element),
                };
                mismatch(format!("Array[{i}]={found}"))
            })?;
            all.push(converted);
        }
        Ok(all)
    }
}

/// The variant of a value, as messages name it.
fn kind(value: &RenderedValue) -> String {
    let name = match value {
        RenderedValue::Int { .. } => "Int",
        RenderedValue::Uint { .. } => "Uint",
        RenderedValue::Bool { .. } => "Bool",
        RenderedValue::Char { .. } => "Char",
        RenderedValue::Float { .. } => "Float",
        RenderedValue::Enum { .. } => "Enum",
        RenderedValue::Struct { .. } => "Struct",
        RenderedValue::Array { .. } => "Array",
        RenderedValue::CpuList { .. } => "CpuList",
        RenderedValue::Ptr { .. } => "Ptr",
        RenderedValue::Bytes { .. } => "Bytes",
        RenderedValue::Truncated { partial, .. } => {
            // What was cut can have been cut before: one level says enough.
            let inner = match &**partial {
                RenderedValue::Truncated { .. } => "Truncated".to_owned(),
                other => kind(other),
            };
            return format!("Truncated(partial={inner})");
        }
        RenderedValue::Unsupported { .. } => "Unsupported",
    };
    name.to_owned()
}

/// Follows a dotted path. `from` is how the value itself was asked for, for messages.
pub(super) fn walk<'a>(value: &'a RenderedValue, from: &str, path: &str) -> SnapshotField<'a> {
    let joined = |rest: &str| match (from, rest) {
        ("", rest) => rest.to_owned(),
        (from, "") => from.to_owned(),
        (from, rest) => format!("{from}.{rest}"),
    };
    let requested = joined(path);
    if path.is_empty() {
        return SnapshotField::new(value, requested);
    }
    let mut at = value;
    let mut walked = Vec::new();
    for component in path.split('.') {
        if component.is_empty() {
            return SnapshotField::Missing(SnapshotError::EmptyPathComponent { requested });
        }
        let mut followed = 0;
        while let RenderedValue::Ptr {
            deref: Some(target),
            ..
        } = at
            && followed < MAX_POINTERS
        {
            at = target;
            followed += 1;
        }
        let RenderedValue::Struct { members, .. } = at else {
            return SnapshotField::Missing(SnapshotError::NotAStruct {
                walked: joined(&walked.join(".")),
                requested,
                component: component.to_owned(),
                kind: kind(at),
            });
        };
        match members.iter().find(|member| member.name == component) {
            Some(member) => at = &member.value,
            None => {
                return SnapshotField::Missing(SnapshotError::FieldNotFound {
                    walked: joined(&walked.join(".")),
                    requested,
                    component: component.to_owned(),
                    available: members.iter().map(|member| member.name.clone()).collect(),
                });
            }
        }
        walked.push(component);
    }
    SnapshotField::new(at, requested)
}
