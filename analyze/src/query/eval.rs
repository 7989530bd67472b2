//! What the parts of an expression mean.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use scx_postmortem_format::report::{FailureDumpMap, Hex, MapInfo, RenderedValue, StorageOwner};
use serde_json::Value as Json;

use super::near::near;
use super::parse::{Node, What, Word};
use super::{Answer, QueryError, Session, Shown};
use crate::addr::Kva;
use crate::kernel::btf::Kind;
use crate::kernel::{Kernel, TypeId};
use crate::object::Object;
use crate::render::Scope;
use crate::snapshot::Snapshot;
use crate::walk::tasks::Tasks;
use crate::walk::{Remarks, sched};

/// Largest object that is read to be shown.
const MAX_BYTES: u64 = 1 << 20;
/// Members and elements of all values of one answer that are read to be shown.
const MAX_PARTS: usize = 1 << 16;
/// Elements of all `[*]` of one expression.
const MAX_ELEMENTS: usize = 1 << 14;
/// Longest key of a map's entry that a message shows.
const KEY_CHARS: usize = 40;
/// Keys that a message shows.
const KEYS: usize = 5;

/// The functions: how each is called, and what it gives.
pub const FUNCTIONS: [(&str, &str, &str); 9] = [
    ("map", "map(\"NAME\"|ID)", "a BPF map; [KEY] is an entry"),
    ("var", "var(\"NAME\")", "a global variable of the scheduler"),
    ("rq", "rq(CPU)", "struct rq of a CPU"),
    (
        "task",
        "task(PID|\"COMM\")",
        "struct task_struct of a thread",
    ),
    (
        "dsq",
        "dsq(ID)",
        "struct scx_dispatch_q of a queue that the scheduler made",
    ),
    ("sched", "sched()", "struct scx_sched of the scheduler"),
    ("symbol", "symbol(\"NAME\")", "a variable of the kernel"),
    (
        "per_cpu",
        "per_cpu(\"NAME\"|POINTER, CPU)",
        "a CPU's copy of a per-CPU variable",
    ),
    (
        "sizeof",
        "sizeof(\"TYPE\")",
        "the size of a kernel type, bytes",
    ),
];

/// The names that stand for something by themselves.
pub const ROOTS: [(&str, &str); 4] = [
    ("bss", "variables of the scheduler"),
    ("data", "variables of the scheduler with initial values"),
    ("rodata", "constants of the scheduler"),
    (
        "report",
        "the whole report; its members can be named directly",
    ),
];

/// Sections of a scheduler's variables, by root.
const SECTIONS: [(&str, &str); 3] = [("bss", ".bss"), ("data", ".data"), ("rodata", ".rodata")];

/// Members of `postmortem.maps` with what a map holds, or what belongs to it.
const CONTENTS: [&str; 6] = [
    "records",
    "targets",
    "owners",
    "stacks",
    "callbacks",
    "bloom",
];

/// What C sources say of variables that BTF has no type for: symbol, type, stars. Kernel BTF lists
/// per-CPU variables only.
const GLOBALS: [(&str, &str, usize); 16] = [
    ("jiffies", "long unsigned int", 0),
    ("jiffies_64", "u64", 0),
    ("nr_cpu_ids", "unsigned int", 0),
    ("init_task", "struct task_struct", 0),
    ("init_uts_ns", "struct uts_namespace", 0),
    ("init_pid_ns", "struct pid_namespace", 0),
    ("scx_root", "struct scx_sched", 1),
    ("scx_tasks", "struct list_head", 0),
    ("scx_watchdog_timeout", "long unsigned int", 0),
    ("scx_watchdog_timestamp", "long unsigned int", 0),
    ("map_idr", "struct idr", 0),
    ("prog_idr", "struct idr", 0),
    ("link_idr", "struct idr", 0),
    ("page_offset_base", "long unsigned int", 0),
    ("saved_command_line", "char", 1),
    ("psi_system", "struct psi_group", 0),
];

/// Something that an expression has come to.
#[derive(Clone)]
enum Value<'s> {
    Number(i128),
    /// A number of a kernel type.
    Typed(TypeId, u64),
    Text(String),
    Object(Object<'s>),
    /// A pointer, and what to; the type 0 is void.
    Pointer(TypeId, Kva),
    /// A symbol without a type.
    Symbol(String, Kva, Option<u64>),
    /// The base of a per-CPU variable.
    PerCpu(TypeId, Kva),
    /// A value of the report.
    Rendered(&'s RenderedValue),
    /// The values of an entry by CPU.
    Slots(&'s [Option<RenderedValue>]),
    Map(&'s FailureDumpMap),
    Json(&'s Json),
    List(Vec<Value<'s>>),
}

/// Answers a parsed expression.
pub(super) fn answer(
    session: &Session<'_>,
    expression: &str,
    node: &Node,
) -> Result<Answer, QueryError> {
    let eval = Eval {
        session,
        elements: Cell::new(0),
        parts: Cell::new(MAX_PARTS),
    };
    let value = eval.node(node)?;
    eval.shown(expression, &node.span, &value)
}

/// The names of the members of what a parsed expression comes to.
pub(super) fn members(session: &Session<'_>, node: &Node) -> Vec<String> {
    let eval = Eval {
        session,
        elements: Cell::new(0),
        parts: Cell::new(MAX_PARTS),
    };
    eval.node(node)
        .map_or_else(|_| Vec::new(), |value| names_in(session.kernel, &value))
}

fn names_in(kernel: Option<&Kernel>, value: &Value<'_>) -> Vec<String> {
    let mut names = Vec::new();
    let of_type = |btf: &crate::kernel::Btf, ty: TypeId, names: &mut Vec<String>| {
        member_names(btf, btf.pointee(ty).unwrap_or(ty), 0, names);
    };
    match value {
        Value::Object(object) => of_type(&object.kernel().btf, object.ty(), &mut names),
        Value::Pointer(ty, _) => {
            if let Some(kernel) = kernel {
                of_type(&kernel.btf, *ty, &mut names);
            }
        }
        Value::Rendered(value) => names = rendered_names(value),
        Value::Map(map) => names = map.value.as_ref().map(rendered_names).unwrap_or_default(),
        Value::Json(Json::Object(members)) => names.extend(members.keys().cloned()),
        Value::List(all) => {
            names = all
                .first()
                .map(|first| names_in(kernel, first))
                .unwrap_or_default()
        }
        _ => {}
    }
    names
}

pub(super) fn rendered_names(value: &RenderedValue) -> Vec<String> {
    let mut inner = value;
    while let RenderedValue::Ptr {
        deref: Some(next), ..
    }
    | RenderedValue::Truncated { partial: next, .. } = inner
    {
        inner = next;
    }
    match inner {
        RenderedValue::Struct { members, .. } => {
            members.iter().map(|member| member.name.clone()).collect()
        }
        _ => Vec::new(),
    }
}

struct Eval<'s> {
    session: &'s Session<'s>,
    /// Elements of `[*]` so far.
    elements: Cell<usize>,
    /// Parts that the answer may still have.
    parts: Cell<usize>,
}

type Found<'s> = Result<Value<'s>, QueryError>;

/// An error at a place, of whatever kind.
fn at(span: &Range<usize>, why: impl ToString) -> QueryError {
    QueryError::new(span.clone(), why.to_string())
}

fn with_near<T: AsRef<str>>(
    mut error: QueryError,
    name: &str,
    names: impl IntoIterator<Item = T>,
) -> QueryError {
    error.near = near(name, names);
    error
}

impl<'s> Eval<'s> {
    fn node(&self, node: &Node) -> Found<'s> {
        match &node.what {
            What::Number(n) => Ok(Value::Number(*n)),
            What::Text(text) => Ok(Value::Text(text.clone())),
            What::Name(name) => self.root(name, &node.span),
            What::Call(name, arguments) => self.call(name, arguments, &node.span),
            What::Member(of, word) => self.member(self.node(of)?, word),
            What::Index(of, index) => {
                let value = self.node(of)?;
                let key = self.node(index)?;
                self.index(&value, &key, &index.span)
            }
            What::All(of) => self.all(&self.node(of)?, &node.span),
            What::Cast(ty, stars, of) => self.cast(ty, *stars, &self.node(of)?, &of.span),
            What::Deref(of) => self.deref(&self.node(of)?, &node.span),
            What::Address(of) => self.address(&self.node(of)?, &node.span),
        }
    }

    fn kernel(&self, what: &str, span: &Range<usize>) -> Result<&'s Kernel, QueryError> {
        self.session.kernel.ok_or_else(|| {
            at(
                span,
                format!("{what} needs the guest's memory, and this file is a report; ask the capture that it was made of"),
            )
        })
    }

    // ---- names and calls ----

    fn root(&self, name: &str, span: &Range<usize>) -> Found<'s> {
        if let Some((_, suffix)) = SECTIONS.iter().find(|(root, _)| *root == name) {
            return self.section(suffix, span);
        }
        if name == "report" {
            return Ok(Value::Json(self.session.json()));
        }
        if let Some(value) = self.session.json().get(name) {
            return Ok(Value::Json(value));
        }
        if FUNCTIONS.iter().any(|(function, ..)| *function == name) {
            let (_, usage, _) = FUNCTIONS
                .iter()
                .find(|(function, ..)| *function == name)
                .copied()
                .unwrap_or_default();
            return Err(at(span, format!("{name} is a function: {usage}")));
        }
        let members = self.session.json().as_object();
        let names = ROOTS
            .iter()
            .map(|(root, _)| (*root).to_owned())
            .chain(FUNCTIONS.iter().map(|(name, ..)| (*name).to_owned()))
            .chain(members.into_iter().flat_map(|m| m.keys().cloned()));
        let variables: Vec<String> = SECTIONS
            .iter()
            .filter(|(_, suffix)| {
                let section = self.section(suffix, span);
                matches!(section, Ok(Value::Rendered(value)) if rendered_names(value).iter().any(|n| n == name))
            })
            .map(|(root, _)| format!("{root}.{name}"))
            .collect();
        if !variables.is_empty() {
            let mut error = at(
                span,
                format!("nothing has the name {name}, but a variable of the scheduler has"),
            );
            error.near = variables;
            return Err(error);
        }
        let error = at(
            span,
            format!(
                "nothing has the name {name}: expected bss, data, rodata, report, a member of the report, or a function ({})",
                FUNCTIONS.map(|(name, ..)| name).join(", ")
            ),
        );
        Err(with_near(error, name, names))
    }

    /// The scheduler's section, or the only one there is.
    fn section(&self, suffix: &str, span: &Range<usize>) -> Found<'s> {
        let report = self.session.report();
        let all = Snapshot::new(report);
        let sections = |view: &Snapshot<'s>| {
            let maps = view.report().maps.iter();
            let named: Vec<&'s FailureDumpMap> = maps
                .filter(|map| map.name.strip_suffix(suffix).is_some_and(|o| !o.is_empty()))
                .filter(|map| view.admits(map))
                .collect();
            named
        };
        let found = match all.active() {
            Ok(view) => sections(&view),
            Err(why) => match sections(&all).as_slice() {
                [only] => vec![*only],
                [] => Vec::new(),
                _ => return Err(at(span, why)),
            },
        };
        let Some(map) = found.first() else {
            let mut others = sections(&all);
            let whose = if others.is_empty() {
                others.extend(&report.maps);
                "the maps in the report"
            } else {
                "those of others"
            };
            let names = others.iter().take(KEYS * 2).map(|map| map.name.as_str());
            let names: Vec<&str> = names.collect();
            let more = match others.len().saturating_sub(names.len()) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let there = match names.as_slice() {
                [] => "the report has no maps at all".to_owned(),
                names => format!("{whose} are {}{more}", names.join(", ")),
            };
            return Err(at(
                span,
                format!(
                    "no {suffix} of the scheduler is in the report, so no variables of that kind; {there}"
                ),
            ));
        };
        self.value_of(map, span)
    }

    fn value_of(&self, map: &'s FailureDumpMap, span: &Range<usize>) -> Found<'s> {
        match (&map.value, &map.error) {
            (Some(value), _) => Ok(Value::Rendered(value)),
            (None, Some(why)) => Err(at(span, format!("map {} has no value: {why}", map.name))),
            (None, None) => Err(at(
                span,
                format!(
                    "map {} has no value of its own; give a key in brackets",
                    map.name
                ),
            )),
        }
    }

    fn call(&self, name: &str, arguments: &[Node], span: &Range<usize>) -> Found<'s> {
        let known = FUNCTIONS.iter().find(|(function, ..)| *function == name);
        let Some((_, usage, _)) = known else {
            let error = at(span, format!("there is no function {name}"));
            let names = FUNCTIONS.iter().map(|(name, ..)| *name);
            return Err(with_near(error, name, names));
        };
        let wrong = || at(span, format!("expected {usage}"));
        let values: Vec<Value<'s>> = arguments
            .iter()
            .map(|argument| self.node(argument))
            .collect::<Result<_, _>>()?;
        let first = arguments.first().map_or(span, |argument| &argument.span);
        match (name, values.as_slice()) {
            ("map", [Value::Text(name)]) => self.map_named(name, first),
            ("map", [id]) => self.map_with_id(self.number(id, first)?, first),
            ("var", [Value::Text(name)]) => self.variable(name, first),
            ("rq", [cpu]) => {
                let kernel = self.kernel("rq()", span)?;
                let cpu = self.cpu(kernel, cpu, first)?;
                let rq = kernel.per_cpu_object("runqueues", "struct rq", cpu);
                rq.map(Value::Object).map_err(|e| at(span, e))
            }
            ("task", [who]) => self.task(who, first, span),
            ("dsq", [id]) => self.dsq(self.number(id, first)?, first),
            ("sched", []) => {
                let kernel = self.kernel("sched()", span)?;
                let mut remarks = Remarks::default();
                let found = sched::find(kernel, &self.session.options.limits, &mut remarks);
                match found.subject() {
                    Some(sched) => Ok(Value::Object(sched.object)),
                    None => Err(at(
                        span,
                        "no sched_ext scheduler is attached, and none has left a trace",
                    )),
                }
            }
            ("symbol", [Value::Text(name)]) => self.symbol(name, first),
            ("per_cpu", [what, cpu]) => {
                let kernel = self.kernel("per_cpu()", span)?;
                let cpu_span = arguments.get(1).map_or(span, |argument| &argument.span);
                let cpu = self.cpu(kernel, cpu, cpu_span)?;
                let base = match what {
                    Value::Text(name) => self.symbol(name, first)?,
                    other => other.clone(),
                };
                self.per_cpu(kernel, &base, cpu, first)
            }
            ("sizeof", [Value::Text(name)]) => {
                let kernel = self.kernel("sizeof()", span)?;
                let ty = self.find_type(kernel, name, first)?;
                match kernel.btf.size_of(ty) {
                    Some(size) => Ok(Value::Number(i128::from(size))),
                    None => Err(at(first, format!("{name} has no size"))),
                }
            }
            _ => Err(wrong()),
        }
    }

    fn map_named(&self, name: &str, span: &Range<usize>) -> Found<'s> {
        let report = self.session.report();
        let named: Vec<_> = report.maps.iter().filter(|map| map.name == name).collect();
        match named.as_slice() {
            [] => {
                let error = at(span, format!("there is no map {name:?}"));
                let names = report.maps.iter().map(|map| map.name.as_str());
                let mut error = with_near(error, name, names.clone());
                if error.near.is_empty() {
                    error.near = names.take(KEYS).map(str::to_owned).collect();
                }
                Err(error)
            }
            [map] => Ok(Value::Map(map)),
            several => {
                let in_use: Vec<_> = several
                    .iter()
                    .filter(|map| report.active_map_kvas.contains(&map.map_kva))
                    .collect();
                if let [map] = in_use.as_slice() {
                    return Ok(Value::Map(map));
                }
                let ids: Vec<String> = several
                    .iter()
                    .map(|map| match self.map_id(map) {
                        Some(id) => format!("map({id})"),
                        None => format!("one at {:#x}", map.map_kva),
                    })
                    .collect();
                Err(at(
                    span,
                    format!(
                        "{} maps are named {name:?}, and it cannot be told which one the running scheduler uses: {}",
                        several.len(),
                        ids.join(", ")
                    ),
                ))
            }
        }
    }

    fn map_id(&self, map: &FailureDumpMap) -> Option<u32> {
        let own = self.session.report().postmortem.as_ref()?;
        let info = own.maps.iter().find(|info| info.kva.0 == map.map_kva)?;
        Some(info.id)
    }

    fn map_with_id(&self, id: i128, span: &Range<usize>) -> Found<'s> {
        let report = self.session.report();
        let own = report.postmortem.as_ref();
        let infos = own.map(|own| own.maps.as_slice()).unwrap_or_default();
        let Some(info) = infos.iter().find(|info| i128::from(info.id) == id) else {
            let ids: Vec<String> = infos
                .iter()
                .take(32)
                .map(|info| format!("{} {}", info.id, info.name))
                .collect();
            return Err(at(
                span,
                format!("no map has the id {id}; there are: {}", ids.join(", ")),
            ));
        };
        let map = report.maps.iter().find(|map| map.map_kva == info.kva.0);
        map.map(Value::Map).ok_or_else(|| {
            at(
                span,
                format!("map {id} ({}) is not among the report's", info.name),
            )
        })
    }

    fn variable(&self, name: &str, span: &Range<usize>) -> Found<'s> {
        let field = Snapshot::new(self.session.report()).var(name);
        match (field.raw(), field.error()) {
            (Some(value), _) => Ok(Value::Rendered(value)),
            (None, Some(crate::snapshot::SnapshotError::VarNotFound { available, .. })) => {
                let error = at(span, format!("no section has a variable {name:?}"));
                Err(with_near(error, name, available))
            }
            (None, Some(error)) => Err(at(span, error)),
            (None, None) => Err(at(span, format!("{name:?} has no value"))),
        }
    }

    fn cpu(
        &self,
        kernel: &Kernel,
        cpu: &Value<'s>,
        span: &Range<usize>,
    ) -> Result<u32, QueryError> {
        let n = self.number(cpu, span)?;
        let found = u32::try_from(n)
            .ok()
            .filter(|cpu| kernel.cpus().any(|c| c == *cpu));
        found.ok_or_else(|| {
            let all: Vec<u32> = kernel.cpus().collect();
            at(
                span,
                format!(
                    "there is no CPU {n}; possible are {}",
                    crate::kernel::cpu_list(&all)
                ),
            )
        })
    }

    fn task(&self, who: &Value<'s>, span: &Range<usize>, call: &Range<usize>) -> Found<'s> {
        let kernel = self.kernel("task()", call)?;
        let mut remarks = Remarks::default();
        let all = Tasks::new(kernel, None).collect(&[], &mut remarks);
        let name_of = |task: &Object<'s>| {
            let comm = task.member("comm").and_then(|comm| comm.text());
            comm.unwrap_or_default()
        };
        let pid_of = |task: &Object<'s>| {
            let pid = task.member("pid").and_then(|pid| pid.i64());
            pid.unwrap_or(-1)
        };
        let listed = |tasks: &[Object<'s>]| {
            let some = tasks.iter().take(KEYS * 2);
            let some: Vec<String> = some
                .map(|task| format!("{}[{}]", name_of(task), pid_of(task)))
                .collect();
            some.join(", ")
        };
        if let Value::Text(comm) = who {
            let named: Vec<_> = all
                .iter()
                .copied()
                .filter(|task| name_of(task) == *comm)
                .collect();
            return match named.as_slice() {
                [task] => Ok(Value::Object(*task)),
                [] => {
                    let error = at(span, format!("no task has the name {comm:?}"));
                    Err(with_near(error, comm, all.iter().map(name_of)))
                }
                several => Err(at(
                    span,
                    format!(
                        "{} tasks have the name {comm:?}, so give a thread id: {}",
                        several.len(),
                        listed(several)
                    ),
                )),
            };
        }
        let pid = self.number(who, span)?;
        // Every CPU's idle task has the id 0.
        let mut found: Vec<_> = all
            .iter()
            .copied()
            .filter(|task| i128::from(pid_of(task)) == pid)
            .collect();
        if found.len() > 1 {
            return Err(at(
                span,
                format!(
                    "{} tasks have the thread id {pid}: {}; take rq(CPU).idle or an address",
                    found.len(),
                    listed(&found)
                ),
            ));
        }
        if let Some(task) = found.pop() {
            return Ok(Value::Object(task));
        }
        let mut closest: Vec<Object<'s>> = all;
        closest.sort_by_key(|task| (i128::from(pid_of(task)) - pid).unsigned_abs());
        closest.truncate(KEYS);
        Err(at(
            span,
            format!(
                "no task has the thread id {pid}; near: {}",
                listed(&closest)
            ),
        ))
    }

    fn dsq(&self, id: i128, span: &Range<usize>) -> Found<'s> {
        let kernel = self.kernel("dsq()", span)?;
        let report = self.session.report();
        let own = report.postmortem.as_ref();
        let all = own.map(|own| own.dsqs.as_slice()).unwrap_or_default();
        // An id above 2^63 is written as it is, or as the negative number that it is in C.
        let wanted = u64::try_from(id).or_else(|_| i64::try_from(id).map(i64::cast_unsigned));
        let found: Vec<_> = all.iter().filter(|dsq| Ok(dsq.id.0) == wanted).collect();
        match found.as_slice() {
            [dsq] => self.object(kernel, "struct scx_dispatch_q", Kva(dsq.dsq_kva.0), span),
            [] => {
                let user = all.iter().filter(|dsq| dsq.origin == "user").take(32);
                let ids: Vec<String> = user.map(|dsq| dsq.id.to_string()).collect();
                Err(at(
                    span,
                    format!(
                        "no queue has the id {:#x}; those of the scheduler are {}",
                        wanted.unwrap_or_default(),
                        if ids.is_empty() {
                            "none".to_owned()
                        } else {
                            ids.join(", ")
                        }
                    ),
                ))
            }
            several => {
                let places: Vec<String> = several
                    .iter()
                    .map(|dsq| format!("{} at {}", dsq.origin, dsq.dsq_kva))
                    .collect();
                Err(at(
                    span,
                    format!(
                        "{} queues have this id: {}; take rq(CPU).scx.local_dsq or an address",
                        several.len(),
                        places.join(", ")
                    ),
                ))
            }
        }
    }

    fn object(&self, kernel: &'s Kernel, ty: &str, kva: Kva, span: &Range<usize>) -> Found<'s> {
        let object = kernel.object(ty, kva);
        object.map(Value::Object).map_err(|e| at(span, e))
    }

    fn symbol(&self, name: &str, span: &Range<usize>) -> Found<'s> {
        let kernel = self.kernel("symbol()", span)?;
        let Ok(kva) = kernel.symbol(name) else {
            let error = at(span, format!("this kernel has no symbol {name:?}"));
            let Some(table) = kernel.kallsyms() else {
                return Err(error);
            };
            let names = (0..table.len()).filter_map(|i| table.name(i));
            return Err(with_near(error, name, names));
        };
        let bound = |name: &str| kernel.symbol(name).map_or(0, |at| at.0);
        let typed = kernel.btf.variable(name);
        if let Some(ty) = typed {
            let per_cpu = bound("__per_cpu_start")..bound("__per_cpu_end");
            return Ok(if per_cpu.contains(&kva.0) {
                Value::PerCpu(ty, kva)
            } else {
                Value::Object(Object::new(kernel, ty, kva))
            });
        }
        if let Some((_, ty, stars)) = GLOBALS.iter().find(|(symbol, ..)| *symbol == name)
            && let Ok(ty) = kernel.btf.find(ty)
        {
            if *stars == 0 {
                return Ok(Value::Object(Object::new(kernel, ty, kva)));
            }
            let to = kernel.read_ptr(kva).map_err(|e| at(span, e))?;
            return Ok(Value::Pointer(ty, to));
        }
        let end = kernel.kallsyms().and_then(|table| table.end_of(kva));
        let size = end.and_then(|end| end.0.checked_sub(kva.0));
        Ok(Value::Symbol(name.to_owned(), kva, size))
    }

    fn per_cpu(
        &self,
        kernel: &'s Kernel,
        base: &Value<'s>,
        cpu: u32,
        span: &Range<usize>,
    ) -> Found<'s> {
        let (ty, base) = match base {
            Value::PerCpu(ty, base) | Value::Pointer(ty, base) => (*ty, *base),
            Value::Object(object) => match kernel.btf.pointee(object.ty()) {
                Some(ty) => (ty, object.ptr().map_err(|e| at(span, e))?),
                None => (object.ty(), object.address()),
            },
            other => {
                return Err(at(
                    span,
                    format!(
                        "expected a per-CPU variable or pointer, found {}",
                        kind(other)
                    ),
                ));
            }
        };
        let kva = kernel
            .per_cpu(base, cpu)
            .ok_or_else(|| at(span, format!("CPU {cpu} has no per-CPU area")))?;
        Ok(Value::Object(Object::new(kernel, ty, kva)))
    }

    fn find_type(
        &self,
        kernel: &Kernel,
        name: &str,
        span: &Range<usize>,
    ) -> Result<TypeId, QueryError> {
        let words: Vec<&str> = name.split_whitespace().collect();
        let name = words.join(" ");
        let name = canonical(&name);
        if name == "void" {
            return Ok(TypeId(0));
        }
        kernel.btf.find(name).map_err(|e| {
            let keyword = words.first().copied().unwrap_or_default();
            let wanted = name.rsplit(' ').next().unwrap_or(name);
            let btf = &kernel.btf;
            let same_kind = |kind: Kind| match keyword {
                "struct" => kind == Kind::Struct,
                "union" => kind == Kind::Union,
                "enum" => matches!(kind, Kind::Enum | Kind::Enum64),
                _ => matches!(kind, Kind::Typedef | Kind::Int | Kind::Struct),
            };
            let names = btf
                .own_ids()
                .filter_map(|id| btf.ty(id))
                .filter(|ty| same_kind(ty.kind))
                .map(|ty| btf.name(&ty).to_owned());
            // `struct rq` is what was meant by `rq`: the keyword is all that is missing.
            for keyword in ["struct", "union", "enum"] {
                let whole = format!("{keyword} {name}");
                if btf.find(&whole).is_ok() {
                    let mut error = at(span, e);
                    error.near = vec![whole];
                    return error;
                }
            }
            with_near(at(span, e), wanted, names)
        })
    }

    // ---- steps ----

    fn member(&self, of: Value<'s>, word: &Word) -> Found<'s> {
        let name = word.text.as_str();
        match of {
            Value::Object(object) => self.object_member(object, word),
            Value::Pointer(ty, to) => {
                let object = self.pointee(ty, to, &word.span)?;
                self.object_member(object, word)
            }
            Value::Rendered(value) => rendered_member(value, word),
            Value::Map(map) => match (&map.value, self.own_member(map, name)) {
                // A variable of that name goes before what the report says of the map.
                (Some(value), Some(own)) => rendered_member(value, word).or(Ok(Value::Json(own))),
                (Some(value), None) => rendered_member(value, word),
                (None, Some(own)) => Ok(Value::Json(own)),
                (None, None) => {
                    let places = self.other_contents(map);
                    let why = if places.is_empty() {
                        format!(
                            "map {} has entries: give a key in brackets before .{name}",
                            map.name
                        )
                    } else {
                        self.no_entries(map)
                    };
                    Err(at(&word.span, why))
                }
            },
            Value::Json(json) => json_member(json, word).map_err(|mut error| {
                // Most of what the report has is one level further down.
                let whole = self.session.json();
                let further = whole
                    .get("postmortem")
                    .filter(|_| std::ptr::eq(json, whole));
                if further.is_some_and(|further| further.get(name).is_some()) {
                    error.message = format!("the report has {name} in report.postmortem.{name}");
                    error.near = Vec::new();
                }
                error
            }),
            Value::List(all) => {
                let all = all.into_iter().map(|each| self.member(each, word));
                Ok(Value::List(all.collect::<Result<_, _>>()?))
            }
            Value::Slots(_) => Err(at(
                &word.span,
                format!("there is a value for each CPU: give one in brackets before .{name}"),
            )),
            Value::PerCpu(..) => Err(at(
                &word.span,
                format!("there is one for each CPU: give one in brackets before .{name}"),
            )),
            Value::Symbol(symbol, ..) => Err(at(
                &word.span,
                format!(
                    "the kernel has no type for {symbol}: say which, as in ((struct NAME *)&symbol({symbol:?})).{name}"
                ),
            )),
            other => Err(at(&word.span, format!("{} has no members", kind(&other)))),
        }
    }

    fn object_member(&self, object: Object<'s>, word: &Word) -> Found<'s> {
        let kernel = object.kernel();
        let btf = &kernel.btf;
        let target = match btf.pointee(object.ty()) {
            None => object,
            Some(to) if btf.pointee(to).is_some() => {
                return Err(at(
                    &word.span,
                    format!(
                        "this is a {}: put a star before it and brackets around both",
                        object.type_name()
                    ),
                ));
            }
            Some(to) => {
                let address = object.ptr().map_err(|e| at(&word.span, e))?;
                self.pointee(to, address, &word.span)?
            }
        };
        target
            .member_named(&word.text)
            .map(Value::Object)
            .map_err(|error| {
                let mut names = Vec::new();
                member_names(btf, target.ty(), 0, &mut names);
                if names.is_empty() {
                    return at(&word.span, format!("{} has no members", target.type_name()));
                }
                with_near(at(&word.span, error), &word.text, names)
            })
    }

    /// What a pointer leads to, which must be something.
    fn pointee(&self, ty: TypeId, to: Kva, span: &Range<usize>) -> Result<Object<'s>, QueryError> {
        let kernel = self.kernel("memory", span)?;
        if to.is_null() {
            return Err(at(
                span,
                format!("the {} * is NULL", kernel.btf.describe(ty)),
            ));
        }
        let peeled = kernel.btf.peel(ty);
        match kernel.btf.ty(peeled) {
            None => Err(at(
                span,
                format!(
                    "a void pointer ({to}) says nothing about what it leads to: cast it, as in (struct NAME *){to}"
                ),
            )),
            Some(found) if found.kind == Kind::Fwd => {
                // Another unit of the kernel may have it whole.
                let keyword = if found.is_union_forward() {
                    "union"
                } else {
                    "struct"
                };
                let name = format!("{keyword} {}", kernel.btf.name(&found));
                let ty = kernel.btf.find(&name).map_err(|e| at(span, e))?;
                Ok(Object::new(kernel, ty, to))
            }
            Some(_) => Ok(Object::new(kernel, ty, to)),
        }
    }

    fn index(&self, of: &Value<'s>, key: &Value<'s>, span: &Range<usize>) -> Found<'s> {
        match of {
            Value::Map(map) => self.entry(map, key, span),
            Value::Object(object) => {
                let n = self.number(key, span)?;
                let btf = &object.kernel().btf;
                if let Some(array) = btf.array(object.ty()) {
                    // Arrays of no or one element stand for as many as there are.
                    let inside = n >= 0 && (n < i128::from(array.len) || array.len <= 1);
                    let index = u64::try_from(n).ok().filter(|_| inside);
                    let index = index.ok_or_else(|| {
                        let name = object.type_name();
                        at(
                            span,
                            match array.len {
                                0 | 1 => format!("{name} has no elements before 0"),
                                len => format!("{name} has elements 0 to {}", len - 1),
                            },
                        )
                    })?;
                    return object
                        .index(index)
                        .map(Value::Object)
                        .map_err(|e| at(span, e));
                }
                let Some(to) = btf.pointee(object.ty()) else {
                    return Err(at(span, format!("{} has no elements", object.type_name())));
                };
                let base = object.ptr().map_err(|e| at(span, e))?;
                self.nth(to, base, n, span)
            }
            Value::Pointer(ty, base) => self.nth(*ty, *base, self.number(key, span)?, span),
            Value::PerCpu(..) => {
                let kernel = self.kernel("a per-CPU variable", span)?;
                let cpu = self.cpu(kernel, key, span)?;
                self.per_cpu(kernel, of, cpu, span)
            }
            Value::Slots(slots) => {
                let n = self.number(key, span)?;
                match usize::try_from(n).ok().and_then(|n| slots.get(n)) {
                    Some(Some(value)) => Ok(Value::Rendered(value)),
                    Some(None) => Err(at(span, format!("CPU {n} has no value here"))),
                    None => Err(at(
                        span,
                        format!(
                            "there are values for CPUs 0 to {}",
                            slots.len().saturating_sub(1)
                        ),
                    )),
                }
            }
            Value::Rendered(value) => {
                let n = self.number(key, span)?;
                let Some(elements) = value.elements() else {
                    return Err(at(
                        span,
                        format!("{} has no elements", rendered_kind(value)),
                    ));
                };
                let found = usize::try_from(n).ok().and_then(|n| elements.get(n));
                found.map(Value::Rendered).ok_or_else(|| {
                    at(
                        span,
                        format!(
                            "the report has elements 0 to {}",
                            elements.len().saturating_sub(1)
                        ),
                    )
                })
            }
            Value::Json(json) => {
                if let (Value::Text(name), Json::Object(_)) = (key, json) {
                    let word = Word {
                        text: name.clone(),
                        span: span.clone(),
                    };
                    return json_member(json, &word);
                }
                let n = self.number(key, span)?;
                let Json::Array(elements) = json else {
                    return Err(at(span, format!("{} has no elements", json_kind(json))));
                };
                let found = usize::try_from(n).ok().and_then(|n| elements.get(n));
                found
                    .map(Value::Json)
                    .ok_or_else(|| at(span, format!("the list has {} elements", elements.len())))
            }
            Value::List(all) => {
                let all = all.iter().map(|each| self.index(each, key, span));
                Ok(Value::List(all.collect::<Result<_, _>>()?))
            }
            other => Err(at(span, format!("{} has no elements", kind(other)))),
        }
    }

    /// The element behind a pointer.
    fn nth(&self, ty: TypeId, base: Kva, n: i128, span: &Range<usize>) -> Found<'s> {
        let first = self.pointee(ty, base, span)?;
        let size = first
            .size()
            .ok_or_else(|| at(span, format!("{} has no size", first.type_name())))?;
        let n = i64::try_from(n).map_err(|_| at(span, "the index is too large"))?;
        let offset = n.cast_unsigned().wrapping_mul(size);
        let address = first.address().add(offset);
        Ok(Value::Object(Object::new(
            first.kernel(),
            first.ty(),
            address,
        )))
    }

    /// What a map has under a key.
    fn entry(&self, map: &'s FailureDumpMap, key: &Value<'s>, span: &Range<usize>) -> Found<'s> {
        if let Some(value) = &map.value {
            return match self.number(key, span)? {
                0 => Ok(Value::Rendered(value)),
                n => Err(at(
                    span,
                    format!(
                        "map {} has one value, under the key 0; {n} is none of its keys",
                        map.name
                    ),
                )),
            };
        }
        if !map.array_entries.is_empty() {
            let n = self.number(key, span)?;
            let slot = map.array_entries.iter().find(|e| i128::from(e.key) == n);
            return match slot.map(|slot| &slot.value) {
                Some(Some(value)) => Ok(Value::Rendered(value)),
                Some(None) => Err(at(span, format!("the value under {n} could not be read"))),
                None => Err(at(
                    span,
                    format!(
                        "map {} has no slot {n} in the report: {} slots, {} of {} shown",
                        map.name,
                        map.max_entries,
                        map.array_entries.len(),
                        map.max_entries
                    ),
                )),
            };
        }
        if !map.percpu_entries.is_empty() {
            let n = self.number(key, span)?;
            let slot = map.percpu_entries.iter().find(|e| i128::from(e.key) == n);
            let slot = slot.ok_or_else(|| {
                at(
                    span,
                    format!(
                        "map {} has no slot {n}: {} slots",
                        map.name, map.max_entries
                    ),
                )
            })?;
            return Ok(Value::Slots(&slot.per_cpu));
        }
        if !map.percpu_hash_entries.is_empty() {
            let keys = map.percpu_hash_entries.iter();
            let found = keys
                .clone()
                .find(|e| self.is_key(&e.key, &e.key_hex, None, key));
            return match found {
                Some(entry) => Ok(Value::Slots(&entry.per_cpu)),
                None => {
                    let shown = keys.map(|e| listed_key(&e.key, &e.key_hex, None));
                    Err(self.no_key(map, key, shown, span))
                }
            };
        }
        let owners = self.owners(map);
        let keys = map.entries.iter().enumerate();
        let found = keys
            .clone()
            .find(|(i, e)| self.is_key(&e.key, &e.key_hex, owners.get(*i), key));
        match found {
            Some((_, entry)) => match &entry.value {
                Some(value) => Ok(Value::Rendered(value)),
                None => Err(at(
                    span,
                    format!(
                        "map {} has no type for its values; the bytes are {}",
                        map.name, entry.value_hex
                    ),
                )),
            },
            None => {
                let shown = keys.map(|(i, e)| listed_key(&e.key, &e.key_hex, owners.get(i)));
                Err(self.no_key(map, key, shown, span))
            }
        }
    }

    fn owners(&self, map: &FailureDumpMap) -> &'s [StorageOwner] {
        let own = self.session.report().postmortem.as_ref();
        let info = own.and_then(|own| own.maps.iter().find(|info| info.kva.0 == map.map_kva));
        info.map(|info| info.owners.as_slice())
            .filter(|owners| owners.len() == map.entries.len())
            .unwrap_or_default()
    }

    /// Whether an entry has this key: a number by value, or by the owner's id; a text by the
    /// owner's name, by the value's own text, or as bytes.
    fn is_key(
        &self,
        rendered: &Option<RenderedValue>,
        hex: &str,
        owner: Option<&StorageOwner>,
        key: &Value<'s>,
    ) -> bool {
        match key {
            Value::Text(text) => {
                let bytes = text.strip_prefix("hex:").map(str::trim);
                bytes == Some(hex)
                    || owner.is_some_and(|owner| owner.name.as_deref() == Some(text))
                    || rendered.as_ref().is_some_and(|key| {
                        let shown = key.to_string();
                        shown == *text || shown.trim_matches('"') == text
                    })
            }
            other => {
                let Some(n) = self.plain(other) else {
                    return false;
                };
                let of_owner = owner.is_some_and(|owner| {
                    owner.id.map(i128::from) == Some(n) || i128::from(owner.kva.0) == n
                });
                of_owner || (owner.is_none() && key_number(rendered, hex).contains(&Some(n)))
            }
        }
    }

    /// Why there is nothing under any key of a map: what it holds may not be entries.
    fn no_entries(&self, map: &FailureDumpMap) -> String {
        let name = &map.name;
        let places = self.other_contents(map);
        if !places.is_empty() {
            let places = places.join(", ");
            return format!("map {name} has no entries with keys; what it holds is in {places}");
        }
        if let Some(why) = &map.error {
            return format!("map {name} has no entries: {why}");
        }
        match self.info(map).and_then(|(_, info)| info.entries) {
            Some(n @ 1..) => format!("the report has none of the {n} entries of map {name}"),
            _ => format!("map {name} has no entries: it is empty"),
        }
    }

    /// The members of the report that have what a map holds, other than entries.
    fn other_contents(&self, map: &FailureDumpMap) -> Vec<String> {
        let mut places = Vec::new();
        if let Some((at, _)) = self.info(map) {
            let of_info = CONTENTS
                .iter()
                .filter(|name| self.own_member(map, name).is_some());
            places.extend(of_info.map(|name| format!("report.postmortem.maps[{at}].{name}")));
        }
        let maps = &self.session.report().maps;
        // The numbers alone are less than what was named above.
        if places.is_empty()
            && let Some(at) = maps.iter().position(|other| std::ptr::eq(other, map))
        {
            let members = [
                ("arena", map.arena.is_some()),
                ("ringbuf", map.ringbuf.is_some()),
                (
                    "stack_trace",
                    map.stack_trace.as_ref().is_some_and(|stacks| {
                        !stacks.entries.is_empty()
                            || stacks.truncated
                            || stacks.buckets_unreadable > 0
                    }),
                ),
                (
                    "fd_array",
                    map.fd_array.as_ref().is_some_and(|slots| {
                        slots.populated > 0 || slots.truncated || slots.unreadable > 0
                    }),
                ),
            ];
            let there = members.iter().filter(|(_, there)| *there);
            places.extend(there.map(|(name, _)| format!("report.maps[{at}].{name}")));
        }
        places
    }

    /// What the analyzer itself knows of a map, and where that is among the report's.
    fn info(&self, map: &FailureDumpMap) -> Option<(usize, &'s MapInfo)> {
        let own = self.session.report().postmortem.as_ref()?;
        let mut infos = own.maps.iter().enumerate();
        infos.find(|(_, info)| info.kva.0 == map.map_kva)
    }

    /// One of [`CONTENTS`] of a map, where the report has it.
    fn own_member(&self, map: &FailureDumpMap, name: &str) -> Option<&'s Json> {
        let (at, _) = self.info(map)?;
        let name = CONTENTS.iter().find(|known| **known == name)?;
        let maps = self.session.json().get("postmortem")?.get("maps")?;
        maps.get(at)?.get(name)
    }

    fn no_key(
        &self,
        map: &FailureDumpMap,
        key: &Value<'s>,
        keys: impl Iterator<Item = (String, Option<i128>)>,
        span: &Range<usize>,
    ) -> QueryError {
        let all: Vec<(String, Option<i128>)> = keys.collect();
        let wanted = match key {
            Value::Text(text) => text.clone(),
            other => self
                .plain(other)
                .map_or_else(String::new, |n| n.to_string()),
        };
        if all.is_empty() {
            return at(span, self.no_entries(map));
        }
        let number = self.plain(key);
        let mut shown = match number {
            Some(n) => {
                let of_key = |(text, of): &(String, Option<i128>)| {
                    Some((of.as_ref()?.abs_diff(n), text.clone()))
                };
                let mut by_distance: Vec<_> = all.iter().filter_map(of_key).collect();
                by_distance.sort();
                let closest = by_distance.into_iter().take(KEYS);
                closest.map(|(_, text)| text).collect()
            }
            None => near(&wanted, all.iter().map(|(text, _)| text)),
        };
        for (key, _) in all.iter().take(KEYS) {
            if shown.len() < KEYS && !shown.contains(key) {
                shown.push(key.clone());
            }
        }
        let mut error = at(
            span,
            format!(
                "map {} has no key {wanted:?} among its {} entries",
                map.name,
                all.len()
            ),
        );
        error.near = shown;
        error
    }

    fn all(&self, of: &Value<'s>, span: &Range<usize>) -> Found<'s> {
        let list: Vec<Value<'s>> = match of {
            Value::Json(Json::Array(elements)) => elements.iter().map(Value::Json).collect(),
            Value::Json(Json::Object(members)) => members.values().map(Value::Json).collect(),
            Value::Rendered(value) => match value.elements() {
                Some(elements) => elements.iter().map(Value::Rendered).collect(),
                None => {
                    return Err(at(
                        span,
                        format!("{} has no elements", rendered_kind(value)),
                    ));
                }
            },
            Value::Slots(slots) => slots.iter().flatten().map(Value::Rendered).collect(),
            Value::Map(map) => {
                let entries = map.entries.iter().filter_map(|e| e.value.as_ref());
                let slots = map.array_entries.iter().filter_map(|e| e.value.as_ref());
                let value = map.value.iter();
                let per_cpu = map.percpu_entries.iter().map(|e| &e.per_cpu);
                let per_cpu = per_cpu.chain(map.percpu_hash_entries.iter().map(|e| &e.per_cpu));
                let plain = value.chain(entries).chain(slots).map(Value::Rendered);
                let all: Vec<_> = plain
                    .chain(per_cpu.map(|slots| Value::Slots(slots)))
                    .collect();
                let elsewhere = map.error.is_some() || !self.other_contents(map).is_empty();
                if all.is_empty() && map.entries.is_empty() && elsewhere {
                    return Err(at(span, self.no_entries(map)));
                }
                all
            }
            Value::Object(object) => {
                let array = object.kernel().btf.array(object.ty());
                let array = array.ok_or_else(|| {
                    at(
                        span,
                        format!(
                            "{} has no elements that could be counted",
                            object.type_name()
                        ),
                    )
                })?;
                let len = u64::from(array.len).min(MAX_ELEMENTS as u64 + 1);
                let each =
                    (0..len).map(|i| object.index(i).map(Value::Object).map_err(|e| at(span, e)));
                each.collect::<Result<_, _>>()?
            }
            Value::PerCpu(..) => {
                let kernel = self.kernel("a per-CPU variable", span)?;
                let each = kernel.cpus().map(|cpu| self.per_cpu(kernel, of, cpu, span));
                each.collect::<Result<_, _>>()?
            }
            Value::List(all) => {
                let each = all.iter().map(|each| self.all(each, span));
                return Ok(Value::List(each.collect::<Result<_, _>>()?));
            }
            other => return Err(at(span, format!("{} has no elements", kind(other)))),
        };
        let so_far = self.elements.get().saturating_add(list.len());
        if so_far > MAX_ELEMENTS {
            return Err(at(
                span,
                format!("this has more than {MAX_ELEMENTS} elements; give an index"),
            ));
        }
        self.elements.set(so_far);
        Ok(Value::List(list))
    }

    fn cast(&self, ty: &Word, stars: usize, of: &Value<'s>, span: &Range<usize>) -> Found<'s> {
        let kernel = self.kernel("a cast", &ty.span)?;
        let id = self.find_type(kernel, &ty.text, &ty.span)?;
        let value = match of {
            Value::Object(object) if stars == 0 && kernel.btf.integer(id).is_none() => {
                return Err(at(
                    &ty.span,
                    format!(
                        "a {} cannot become a {}; cast its address: (…*)&…",
                        object.type_name(),
                        ty.text
                    ),
                ));
            }
            Value::Symbol(name, ..) => {
                return Err(at(
                    span,
                    format!(
                        "the kernel has no type for {name}, so it has no value; its address has: &symbol({name:?})"
                    ),
                ));
            }
            other => {
                let n = self.number(other, span)?;
                // As C does: the low 64 bits.
                u64::try_from(n & i128::from(u64::MAX)).unwrap_or(0)
            }
        };
        match stars {
            0 => match kernel.btf.integer(id) {
                Some(info) if (1..=8).contains(&info.size) => {
                    let unused = 64 - info.size * 8;
                    Ok(Value::Typed(id, value << unused >> unused))
                }
                _ => Err(at(
                    &ty.span,
                    format!(
                        "{} is no integer; memory is cast to a pointer: ({} *)",
                        ty.text, ty.text
                    ),
                )),
            },
            1 => Ok(Value::Pointer(id, Kva(value))),
            _ => Err(at(&ty.span, "only one star is understood in a cast")),
        }
    }

    fn deref(&self, of: &Value<'s>, span: &Range<usize>) -> Found<'s> {
        match of {
            Value::Pointer(ty, to) => self.pointee(*ty, *to, span).map(Value::Object),
            Value::Object(object) => {
                let kernel = object.kernel();
                let to = kernel
                    .btf
                    .pointee(object.ty())
                    .ok_or_else(|| at(span, format!("{} is no pointer", object.type_name())))?;
                let address = object.ptr().map_err(|e| at(span, e))?;
                self.pointee(to, address, span).map(Value::Object)
            }
            Value::Rendered(RenderedValue::Ptr {
                deref: Some(to), ..
            }) => Ok(Value::Rendered(to)),
            Value::Rendered(value @ RenderedValue::Ptr { .. }) => {
                Err(at(span, not_followed(value)))
            }
            Value::List(all) => {
                let all = all.iter().map(|each| self.deref(each, span));
                Ok(Value::List(all.collect::<Result<_, _>>()?))
            }
            other => Err(at(span, format!("{} is no pointer", kind(other)))),
        }
    }

    fn address(&self, of: &Value<'s>, span: &Range<usize>) -> Found<'s> {
        match of {
            Value::Object(object) if object.bit_width().is_some() => {
                Err(at(span, "a bit field has no address"))
            }
            Value::Object(object) => Ok(Value::Pointer(object.ty(), object.address())),
            Value::Symbol(_, kva, _) => Ok(Value::Pointer(TypeId(0), *kva)),
            Value::Map(map) if map.map_kva != 0 => {
                let kernel = self.kernel("an address", span)?;
                let ty = kernel.btf.find("struct bpf_map").map_err(|e| at(span, e))?;
                Ok(Value::Pointer(ty, Kva(map.map_kva)))
            }
            Value::List(all) => {
                let all = all.iter().map(|each| self.address(each, span));
                Ok(Value::List(all.collect::<Result<_, _>>()?))
            }
            other => Err(at(span, format!("{} has no address", kind(other)))),
        }
    }

    // ---- numbers ----

    fn number(&self, value: &Value<'s>, span: &Range<usize>) -> Result<i128, QueryError> {
        if let Value::Object(object) = value {
            return object_number(object).map_err(|e| at(span, e));
        }
        self.plain(value)
            .ok_or_else(|| at(span, format!("expected a number, found {}", kind(value))))
    }

    /// A number, if it is one.
    fn plain(&self, value: &Value<'s>) -> Option<i128> {
        match value {
            Value::Number(n) => Some(*n),
            Value::Typed(ty, raw) => {
                let info = self.session.kernel?.btf.integer(*ty)?;
                let unused = 64 - info.size.clamp(1, 8) * 8;
                Some(if info.signed {
                    i128::from((raw << unused).cast_signed() >> unused)
                } else {
                    i128::from(*raw)
                })
            }
            Value::Pointer(_, kva) => Some(i128::from(kva.0)),
            Value::Object(object) => object_number(object).ok(),
            Value::Rendered(value) => {
                let unsigned = value.as_u64().map(i128::from);
                unsigned.or_else(|| value.as_i64().map(i128::from))
            }
            Value::Json(Json::Number(n)) => {
                let unsigned = n.as_u64().map(i128::from);
                unsigned.or_else(|| n.as_i64().map(i128::from))
            }
            Value::Json(Json::String(text)) => {
                let hex = text.strip_prefix("0x")?;
                u64::from_str_radix(hex, 16).ok().map(i128::from)
            }
            _ => None,
        }
    }

    // ---- the answer ----

    /// Renders within what the answer may still have.
    fn scoped(
        &self,
        kernel: &Kernel,
        render: impl FnOnce(&Scope<'_>) -> RenderedValue,
    ) -> RenderedValue {
        if self.parts.get() == 0 {
            return RenderedValue::Unsupported {
                reason: format!("the answer has more than {MAX_PARTS} parts"),
            };
        }
        let scope = Scope::new(kernel, Arc::clone(&kernel.btf), None).with_parts(self.parts.get());
        let value = render(&scope);
        self.parts
            .set(self.parts.get().saturating_sub(scope.used()));
        value
    }

    fn render(&self, object: &Object<'_>) -> crate::Result<RenderedValue> {
        let kernel = object.kernel();
        if let Some(bits) = object.bit_width() {
            let info = kernel.btf.integer(object.ty());
            return Ok(if info.is_some_and(|info| info.signed) {
                RenderedValue::Int {
                    bits,
                    value: object.i64()?,
                }
            } else {
                RenderedValue::Uint {
                    bits,
                    value: object.u64()?,
                }
            });
        }
        let size = object.size().ok_or_else(|| crate::Error::WrongType {
            what: format!("the object at {}", object.address()),
            expected: "something that has a size",
            found: object.type_name(),
        })?;
        let bytes = kernel.read_bytes(object.address(), size.min(MAX_BYTES))?;
        let mut value = self.scoped(kernel, |scope| {
            scope.render_at(object.ty(), &bytes, object.address().0)
        });
        if let RenderedValue::Ptr { value, symbol, .. } = &mut value
            && symbol.is_none()
            && *value != 0
        {
            *symbol = kernel.symbolize(Kva(*value));
        }
        Ok(value)
    }

    fn shown(
        &self,
        expression: &str,
        span: &Range<usize>,
        value: &Value<'s>,
    ) -> Result<Answer, QueryError> {
        let (ty, address) = match value {
            Value::Object(object) => (
                Some(object.type_name()),
                object
                    .bit_width()
                    .is_none()
                    .then(|| Hex(object.address().0)),
            ),
            Value::Pointer(ty, _) => (
                self.session
                    .kernel
                    .map(|k| format!("{} *", k.btf.describe(*ty))),
                None,
            ),
            Value::Typed(ty, _) => (self.session.kernel.map(|k| k.btf.describe(*ty)), None),
            Value::Symbol(_, kva, _) | Value::PerCpu(_, kva) => (None, Some(Hex(kva.0))),
            Value::Map(map) => (None, (map.map_kva != 0).then_some(Hex(map.map_kva))),
            _ => (None, None),
        };
        Ok(Answer {
            expr: expression.to_owned(),
            r#type: ty,
            address,
            value: self.show(span, value)?,
        })
    }

    fn show(&self, span: &Range<usize>, value: &Value<'s>) -> Result<Shown, QueryError> {
        Ok(match value {
            Value::Number(n) => Shown::Json(number_json(*n)),
            Value::Text(text) => Shown::Json(Json::String(text.clone())),
            Value::Object(object) => Shown::Rendered(self.render(object).map_err(|e| at(span, e))?),
            Value::Typed(ty, raw) => {
                let kernel = self.kernel("a type", span)?;
                let size = kernel.btf.size_of(*ty).unwrap_or(8).min(8);
                let bytes = raw.to_le_bytes();
                let bytes = bytes.get(..crate::bytes::to_usize(size)).unwrap_or(&bytes);
                Shown::Rendered(self.scoped(kernel, |scope| scope.render(*ty, bytes)))
            }
            Value::Pointer(_, to) => Shown::Rendered(RenderedValue::Ptr {
                value: to.0,
                deref: None,
                deref_skipped_reason: None,
                cast_annotation: None,
                symbol: self.session.kernel.and_then(|k| k.symbolize(*to)),
            }),
            Value::Symbol(name, kva, size) => Shown::Json(Json::String(match size {
                Some(size) => format!(
                    "{kva}, of no known type, {size} bytes to the next symbol: give one, as in *(u64 *)&symbol({name:?})"
                ),
                None => {
                    format!("{kva}, of no known type: give one, as in *(u64 *)&symbol({name:?})")
                }
            })),
            Value::PerCpu(ty, _) => {
                let kernel = self.kernel("a per-CPU variable", span)?;
                return Err(at(
                    span,
                    format!(
                        "there is a {} for each CPU: give one in brackets, or [*] for all",
                        kernel.btf.describe(*ty)
                    ),
                ));
            }
            Value::Rendered(value) => Shown::Rendered((*value).clone()),
            Value::Slots(slots) => Shown::List(
                slots
                    .iter()
                    .map(|slot| match slot {
                        Some(value) => Shown::Rendered(value.clone()),
                        None => Shown::Json(Json::Null),
                    })
                    .collect(),
            ),
            Value::Map(map) => Shown::Map(Box::new((*map).clone())),
            Value::Json(json) => Shown::Json((*json).clone()),
            Value::List(all) => {
                let all = all.iter().map(|each| self.show(span, each));
                Shown::List(all.collect::<Result<_, _>>()?)
            }
        })
    }
}

fn number_json(n: i128) -> Json {
    match (u64::try_from(n), i64::try_from(n)) {
        (Ok(n), _) => Json::from(n),
        (_, Ok(n)) => Json::from(n),
        _ => Json::String(n.to_string()),
    }
}

fn object_number(object: &Object<'_>) -> crate::Result<i128> {
    let btf = &object.kernel().btf;
    if btf.pointee(object.ty()).is_some() {
        return object.ptr().map(|to| i128::from(to.0));
    }
    if btf.integer(object.ty()).is_some_and(|info| info.signed) {
        return object.i64().map(i128::from);
    }
    object.u64().map(i128::from)
}

/// The names that C knows beside those that compilers write into BTF.
fn canonical(name: &str) -> &str {
    match name {
        "unsigned" => "unsigned int",
        "unsigned long" => "long unsigned int",
        "long" => "long int",
        "unsigned long long" => "long long unsigned int",
        "long long" => "long long int",
        "unsigned short" => "short unsigned int",
        "short" => "short int",
        "bool" => "_Bool",
        other => other,
    }
}

/// The names of a type's members, those of anonymous ones as their own.
fn member_names(btf: &crate::kernel::Btf, ty: TypeId, depth: usize, names: &mut Vec<String>) {
    if depth > 8 {
        return;
    }
    for member in btf.members(ty) {
        if names.len() >= 4096 {
            return;
        }
        if member.name.is_empty() {
            member_names(btf, member.ty, depth + 1, names);
        } else {
            names.push(member.name.to_owned());
        }
    }
}

fn rendered_member<'s>(value: &'s RenderedValue, word: &Word) -> Found<'s> {
    if let Some(found) = value.member(&word.text) {
        return Ok(Value::Rendered(found));
    }
    let mut inner = value;
    while let RenderedValue::Ptr {
        deref: Some(next), ..
    }
    | RenderedValue::Truncated { partial: next, .. } = inner
    {
        inner = next;
    }
    match inner {
        RenderedValue::Struct { members, type_name } => {
            let name = type_name.as_deref().unwrap_or("the struct");
            let error = at(&word.span, format!("{name} has no member {}", word.text));
            let names = members.iter().map(|member| member.name.as_str());
            Err(with_near(error, &word.text, names))
        }
        RenderedValue::Ptr { .. } => Err(at(&word.span, not_followed(inner))),
        other => Err(at(
            &word.span,
            format!("{} has no members", rendered_kind(other)),
        )),
    }
}

fn not_followed(value: &RenderedValue) -> String {
    match value {
        RenderedValue::Ptr { value: 0, .. } => "the pointer is NULL".to_owned(),
        RenderedValue::Ptr {
            value,
            deref_skipped_reason: Some(why),
            ..
        } => format!("the report does not follow this pointer ({value:#x}): {why}"),
        RenderedValue::Ptr { value, .. } => format!(
            "the report does not follow this pointer; if it leads to a kernel object, cast it: (struct NAME *){value:#x}"
        ),
        _ => "this is no pointer".to_owned(),
    }
}

fn json_member<'s>(json: &'s Json, word: &Word) -> Found<'s> {
    match json {
        Json::Object(members) => members.get(&word.text).map(Value::Json).ok_or_else(|| {
            let error = at(
                &word.span,
                format!(
                    "the report has no {} here; what is empty is left out",
                    word.text
                ),
            );
            with_near(error, &word.text, members.keys())
        }),
        Json::Array(_) => Err(at(
            &word.span,
            format!(
                "this is a list: give an index in brackets, or [*], before .{}",
                word.text
            ),
        )),
        other => Err(at(
            &word.span,
            format!("{} has no members", json_kind(other)),
        )),
    }
}

/// A key's numbers, signed and unsigned. Of one without a type those of its 4 or 8 bytes, as x86 has
/// them.
fn key_number(key: &Option<RenderedValue>, hex: &str) -> [Option<i128>; 2] {
    match key {
        Some(key) if !matches!(key, RenderedValue::Bytes { .. }) => {
            [key.as_i64().map(i128::from), key.as_u64().map(i128::from)]
        }
        _ => {
            let bytes = hex.split_whitespace().take(9);
            let bytes: Option<Vec<u8>> = bytes
                .map(|byte| u8::from_str_radix(byte, 16).ok())
                .collect();
            let bytes = bytes.unwrap_or_default();
            let four = <[u8; 4]>::try_from(bytes.as_slice()).map(|four| {
                let n = u32::from_le_bytes(four);
                [Some(i128::from(n)), Some(i128::from(n.cast_signed()))]
            });
            let eight = <[u8; 8]>::try_from(bytes.as_slice()).map(|eight| {
                let n = u64::from_le_bytes(eight);
                [Some(i128::from(n)), Some(i128::from(n.cast_signed()))]
            });
            four.or(eight).unwrap_or_default()
        }
    }
}

/// A key as a query takes it, and its number, if it is one.
fn listed_key(
    key: &Option<RenderedValue>,
    hex: &str,
    owner: Option<&StorageOwner>,
) -> (String, Option<i128>) {
    let number = match owner {
        Some(owner) => owner.id.map(i128::from),
        None => key_number(key, hex).into_iter().flatten().next(),
    };
    let text = match (owner.and_then(|owner| owner.id), key) {
        (Some(id), _) => {
            let name = owner.and_then(|owner| owner.name.as_deref());
            name.map_or_else(|| id.to_string(), |name| format!("{id} ({name})"))
        }
        (None, Some(key)) if !matches!(key, RenderedValue::Bytes { .. }) => key.to_string(),
        (None, _) => match number {
            Some(n) => n.to_string(),
            // Cut, it would be no key.
            None => return (format!("\"hex:{hex}\""), None),
        },
    };
    (text.chars().take(KEY_CHARS).collect(), number)
}

fn kind(value: &Value<'_>) -> String {
    match value {
        Value::Number(_) | Value::Typed(..) => "a number".to_owned(),
        Value::Text(_) => "a text".to_owned(),
        Value::Object(object) => object.type_name(),
        Value::Pointer(..) => "a pointer".to_owned(),
        Value::Symbol(name, ..) => format!("the symbol {name}"),
        Value::PerCpu(..) => "a per-CPU variable".to_owned(),
        Value::Rendered(value) => rendered_kind(value).to_owned(),
        Value::Slots(_) => "a value for each CPU".to_owned(),
        Value::Map(map) => format!("the map {}", map.name),
        Value::Json(json) => json_kind(json).to_owned(),
        Value::List(_) => "a list".to_owned(),
    }
}

const fn rendered_kind(value: &RenderedValue) -> &'static str {
    match value {
        RenderedValue::Int { .. } | RenderedValue::Uint { .. } => "an integer",
        RenderedValue::Bool { .. } => "a truth value",
        RenderedValue::Char { .. } => "a character",
        RenderedValue::Float { .. } => "a floating-point number",
        RenderedValue::Enum { .. } => "an enum",
        RenderedValue::Struct { .. } => "a struct",
        RenderedValue::Array { .. } => "an array",
        RenderedValue::CpuList { .. } => "a CPU mask",
        RenderedValue::Ptr { .. } => "a pointer",
        RenderedValue::Bytes { .. } => "a row of bytes without a type",
        RenderedValue::Truncated { .. } => "a value that was cut",
        RenderedValue::Unsupported { .. } => "a value that could not be shown",
    }
}

const fn json_kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a truth value",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}
