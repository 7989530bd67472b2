//! Integers that are really pointers.
//!
//! Schedulers keep pointers into arenas and to kernel objects in integers: BPF maps cannot hold
//! them otherwise. The programs that use them are in the image, so their instructions tell what
//! such an integer leads to: a pointer of a known type is stored into it ([`flow`]), or its value
//! is passed or followed as one. [`solve`] promotes a member only when all programs that share
//! its BTF agree.
//!
//! Everything here is read from untrusted memory: instructions, steps and rounds are bounded, and
//! a program that makes no sense tells nothing.

mod flow;
mod insn;
mod live;
mod load;
mod solve;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rayon::prelude::*;
use scx_postmortem_format::report::{CastEvidence, NamedId, RecoveredPointer, RecoveredPointers};

pub use self::flow::Space;
use self::flow::{Evidence, Fact, Place, Program, World};
use self::load::Loaded;
use self::solve::{Facts, Verdict};
use self::types::Types;
pub use self::types::{Home, Slot, Ty};
use crate::addr::Kva;
use crate::bytes::to_u64;
use crate::error::Result;
use crate::kernel::{Btf, Kernel, TypeId};

/// Rounds in which what was found lets more be found.
const MAX_ROUNDS: usize = 8;
/// Instructions named for one integer.
const MAX_EVIDENCE: usize = 6;

/// What an integer points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The type; `None` when only the space is known.
    pub ty: Option<Ty>,
    /// Where the programs expect it to lead.
    pub space: Space,
}

/// What the programs of one BTF tell.
#[derive(Debug, Default)]
pub struct Recovered(HashMap<Slot, Target>);

impl Recovered {
    /// What the integer at `offset` of a struct or section points to; `None` when it is one.
    #[must_use]
    pub fn at(&self, parent: TypeId, offset: u32) -> Option<Target> {
        self.0.get(&Slot { parent, offset }).copied()
    }
}

/// What all programs tell.
#[derive(Debug, Default)]
pub struct Casts {
    by_btf: HashMap<Kva, Arc<Recovered>>,
    /// The report's account of it; `None` when nobody looked.
    pub report: Option<RecoveredPointers>,
}

impl Casts {
    /// Follows all programs whose types `btf_at` has: by the address of the `struct btf`, its id
    /// and the types.
    ///
    /// # Errors
    /// When there is no way to the programs at all.
    pub fn recover(
        kernel: &Kernel,
        btf_at: &(dyn Fn(Kva) -> Option<(u32, Arc<Btf>)> + Sync),
    ) -> Result<Self> {
        let (programs, btfs, unread) = load::programs(kernel, btf_at)?;
        let callees = load::callees(kernel, &programs);
        let current_task = ["current_task", "pcpu_hot"]
            .iter()
            .find_map(|name| Some(kernel.symbol(name).ok()?.0));
        let mut report = RecoveredPointers {
            programs: to_u64(programs.len()),
            instructions: programs.iter().map(|p| to_u64(p.program.insns.len())).sum(),
            unread_programs: unread,
            ..RecoveredPointers::default()
        };
        let mut ordered: Vec<_> = btfs.iter().map(|(&at, (id, own))| (*id, at, own)).collect();
        ordered.sort_by_key(|&(id, at, _)| (id, at));
        let mut by_btf = HashMap::new();
        for (btf_id, at, own) in ordered {
            let of: Vec<&Loaded<'_>> = programs.iter().filter(|p| p.btf == at).collect();
            if of.is_empty() {
                continue;
            }
            let types = Types::new(own, &kernel.btf);
            let (known, facts) = {
                let of: Vec<&Program> = of.iter().map(|loaded| &loaded.program).collect();
                rounds(&of, &types, &callees, current_task)
            };
            let account = Account {
                kernel,
                types: &types,
                programs: &of,
                btf_id,
            };
            account.write(&known, &facts, &mut report);
            let slots = known
                .into_iter()
                .filter_map(|(place, target)| match place {
                    Place::Slot(slot) if types.is_integer(slot) => Some((
                        slot,
                        Target {
                            ty: target.ty,
                            space: target.space,
                        },
                    )),
                    _ => None,
                })
                .collect();
            by_btf.insert(at, Arc::new(Recovered(slots)));
        }
        Ok(Self {
            by_btf,
            report: Some(report),
        })
    }

    /// What the programs with the BTF at `btf` tell.
    #[must_use]
    pub fn of(&self, btf: Kva) -> Option<Arc<Recovered>> {
        self.by_btf.get(&btf).cloned()
    }
}

type Known = HashMap<Place, flow::Target>;

/// Runs the programs of one BTF until what is known of places stays the same.
fn rounds(
    programs: &[&Program],
    types: &Types<'_>,
    callees: &HashMap<i32, flow::Callee>,
    current_task: Option<u64>,
) -> (Known, Facts) {
    let mut known = Known::new();
    // What was known in one round and not in a later one: nothing may rest on it.
    let mut banned = BTreeSet::new();
    let mut facts = Facts::new();
    let mut runs: Vec<Option<flow::Run>> = programs.iter().map(|_| None).collect();
    for round in 0..MAX_ROUNDS {
        let world = World {
            types,
            callees,
            current_task,
            known: &known,
        };
        // A program tells the same again, unless it asked for something that is now known.
        runs.par_iter_mut()
            .zip(programs)
            .zip(0u32..u32::MAX)
            .for_each(|((run, program), index)| {
                let stale = |asked: &BTreeMap<Place, Option<flow::Target>>| {
                    let mut asked = asked.iter();
                    asked.any(|(place, answer)| known.get(place) != answer.as_ref())
                };
                if run.as_ref().is_none_or(|run| stale(&run.asked)) {
                    *run = Some(flow::run(&world, program, index));
                }
            });
        let evidence: Vec<Evidence> = runs
            .iter()
            .flatten()
            .flat_map(|run| run.evidence.iter().copied())
            .collect();
        let found;
        (facts, found) = solve::decide(types, evidence, &banned);
        let lost: Vec<Place> = known
            .iter()
            .filter(|&(place, before)| match (before.ty, found.get(place)) {
                // More may become known of it, but not something else.
                (None, Some(_)) => false,
                (ty, Some(now)) => now.ty != ty,
                (_, None) => true,
            })
            .map(|(&place, _)| place)
            .collect();
        let settled = known == found;
        known = found;
        if settled {
            break;
        }
        banned.extend(lost);
        known.retain(|place, _| !banned.contains(place));
        if round + 1 == MAX_ROUNDS {
            // Never seen in practice; what is not settled is not known.
            known.clear();
        }
    }
    (known, facts)
}

/// Writes down what was found out about one BTF.
struct Account<'a> {
    kernel: &'a Kernel,
    types: &'a Types<'a>,
    programs: &'a [&'a Loaded<'a>],
    btf_id: u32,
}

impl Account<'_> {
    fn write(&self, known: &Known, facts: &Facts, report: &mut RecoveredPointers) {
        let mut lines: HashMap<u32, BTreeSet<u32>> = HashMap::new();
        let mut told = Vec::new();
        for (place, of) in facts {
            let &Place::Slot(slot) = place else { continue };
            let target = known.get(place);
            let contradicted = solve::verdict(self.types, of) == Verdict::Contradicted;
            if (target.is_none() && !contradicted) || !self.types.is_integer(slot) {
                continue;
            }
            let mut shown: BTreeMap<(u32, u32), Fact> = BTreeMap::new();
            // One instruction of each kind; a copy says more than what follows from it.
            for (&fact, &at) in of {
                if shown.len() < MAX_EVIDENCE {
                    shown.insert(at, fact);
                }
            }
            for &(program, insn) in shown.keys() {
                lines.entry(program).or_default().insert(insn);
            }
            told.push((slot, target, shown));
        }
        let sources: HashMap<u32, HashMap<u32, String>> = lines
            .iter()
            .filter_map(|(&program, slots)| {
                let loaded = self.program(program)?;
                Some((program, loaded.lines(self.kernel, self.types.own, slots)))
            })
            .collect();
        for (slot, target, shown) in told {
            let (parent, member) = self.types.slot_name(slot);
            let evidence = shown
                .into_iter()
                .filter_map(|((program, insn), fact)| {
                    let loaded = self.program(program)?;
                    let (what, subject) = self.describe(fact);
                    let source = sources.get(&program).and_then(|of| of.get(&insn));
                    Some(CastEvidence {
                        what: what.to_owned(),
                        subject,
                        prog: NamedId {
                            id: loaded.id,
                            name: loaded.name.clone(),
                        },
                        insn,
                        source: source.cloned(),
                    })
                })
                .collect();
            let pointer = RecoveredPointer {
                btf_id: self.btf_id,
                parent,
                member,
                offset: slot.offset,
                target: target.and_then(|t| t.ty).map(|ty| self.name(ty)),
                space: target.map(|t| t.space.name().to_owned()),
                evidence,
            };
            match target {
                Some(_) => report.pointers.push(pointer),
                None => report.contradicted.push(pointer),
            }
        }
    }

    fn program(&self, index: u32) -> Option<&Loaded<'_>> {
        let index = crate::bytes::to_usize(u64::from(index));
        self.programs.get(index).copied()
    }

    fn name(&self, ty: Ty) -> String {
        self.types.btf(ty.home).describe(ty.id)
    }

    fn describe(&self, fact: Fact) -> (&'static str, Option<String>) {
        match fact {
            Fact::Stored(ty, _) | Fact::Carried(ty, _) => {
                ("pointer stored", ty.map(|ty| self.name(ty)))
            }
            Fact::Used(ty, _) => ("used as", Some(self.name(ty))),
            Fact::Followed(space) => ("followed", Some(space.name().to_owned())),
            Fact::Compared(ty) => ("compared with", Some(self.name(ty))),
            Fact::Copied(Place::Slot(slot)) => {
                let (parent, member) = self.types.slot_name(slot);
                ("copied from", Some(format!("{parent}.{member}")))
            }
            Fact::Copied(place) => {
                let value = match place {
                    Place::Param(..) => "a parameter",
                    Place::Return(_) => "the result of a function of the program",
                    Place::Result(..) => "the result of a kernel function",
                    Place::Meeting(..) | Place::Slot(_) => "one of several values",
                };
                ("copied from", Some(value.to_owned()))
            }
            Fact::Number => ("number stored", None),
            Fact::Arithmetic => ("arithmetic", None),
        }
    }
}

impl Space {
    const fn name(self) -> &'static str {
        match self {
            Self::Arena => "arena",
            Self::Kernel => "kernel",
        }
    }
}
