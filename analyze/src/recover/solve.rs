//! From facts to decisions: which places hold pointers, and to what.
//!
//! A place is decided for only when nothing speaks against it: no number is ever put there, its
//! value never takes part in arithmetic, and all types agree. A copied value carries what is
//! known of it; a value on its way (a parameter, a result) also carries back how it is used.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::flow::{Evidence, Fact, Place, Space, Target};
use super::types::{Home, Ty, Types};

/// Rounds in which facts spread along copies: chains are that long at most.
const MAX_ROUNDS: usize = 16;

/// What is seen of one place, with one instruction that shows each.
pub(super) type Seen = BTreeMap<Fact, (u32, u32)>;

/// All places, ascending, and what is seen of each.
pub(super) type Facts = Vec<(Place, Seen)>;

/// What the facts about one place come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing says that it is a pointer.
    None,
    /// With what is known of it, and whether its type is one that was stored.
    Pointer(Target, bool),
    /// Something says so, something else speaks against it.
    Contradicted,
}

/// The facts, with those that follow from copies. `banned`: places that were contradicted once
/// tell nothing about others any more.
fn spread(types: &Types<'_>, mut evidence: Vec<Evidence>, banned: &BTreeSet<Place>) -> Facts {
    evidence.sort_unstable();
    let mut facts = Facts::new();
    for Evidence { place, fact, at } in evidence {
        // A place that is only copied from has nothing of its own; it takes what comes back.
        match facts.last_mut() {
            Some((last, seen)) if *last == place => {
                seen.entry(fact).or_insert(at);
            }
            _ => facts.push((place, Seen::from([(fact, at)]))),
        }
    }
    let mut sources: Vec<Place> = facts
        .iter()
        .flat_map(|(_, seen)| seen.keys())
        .filter_map(|fact| match fact {
            Fact::Copied(from) => Some(*from),
            _ => None,
        })
        .collect();
    sources.sort_unstable();
    sources.dedup();
    sources.retain(|from| {
        facts
            .binary_search_by_key(from, |(place, _)| *place)
            .is_err()
    });
    facts.extend(sources.into_iter().map(|place| (place, Seen::new())));
    facts.sort_unstable_by_key(|(place, _)| *place);

    // From where to where, by index, and the instruction.
    let mut copies: Vec<(usize, usize, (u32, u32))> = Vec::new();
    for (to, (_, seen)) in facts.iter().enumerate() {
        for (fact, &at) in seen {
            if let Fact::Copied(from) = fact
                && let Ok(from) = facts.binary_search_by_key(from, |(place, _)| *place)
            {
                copies.push((from, to, at));
            }
        }
    }
    let mut changed = vec![true; facts.len()];
    for _ in 0..MAX_ROUNDS {
        let is_new = |index: usize| changed.get(index).copied().unwrap_or(false);
        let mut found: Vec<(usize, Fact, (u32, u32))> = Vec::new();
        for &(from, to, at) in &copies {
            let (Some((source, theirs)), Some((place, mine))) = (facts.get(from), facts.get(to))
            else {
                continue;
            };
            if is_new(from) {
                match verdict(types, theirs) {
                    Verdict::Pointer(target, stored) if !banned.contains(source) => {
                        let fact = if stored { Fact::Stored } else { Fact::Carried };
                        found.push((to, fact(target.ty, target.space), at));
                    }
                    Verdict::Contradicted => found.push((to, Fact::Number, at)),
                    _ if theirs.contains_key(&Fact::Number)
                        || theirs.contains_key(&Fact::Arithmetic) =>
                    {
                        found.push((to, Fact::Number, at));
                    }
                    _ => {}
                }
            }
            if is_new(to) && place.is_transient() {
                found.extend(uses(mine).map(|(fact, at)| (from, fact, at)));
            }
        }
        changed.fill(false);
        let mut any = false;
        for (index, fact, at) in found {
            if let Some((_, seen)) = facts.get_mut(index)
                && let std::collections::btree_map::Entry::Vacant(entry) = seen.entry(fact)
            {
                entry.insert(at);
                any = true;
                if let Some(changed) = changed.get_mut(index) {
                    *changed = true;
                }
            }
        }
        if !any {
            break;
        }
    }
    facts
}

/// How a value is used, wherever it came from.
fn uses(seen: &Seen) -> impl Iterator<Item = (Fact, (u32, u32))> {
    let used = seen.iter().filter(|(fact, _)| {
        matches!(
            fact,
            Fact::Used(..) | Fact::Followed(_) | Fact::Arithmetic | Fact::Compared(_)
        )
    });
    used.map(|(&fact, &at)| (fact, at))
}

/// What the facts about one place come to.
pub(super) fn verdict(types: &Types<'_>, facts: &Seen) -> Verdict {
    let mut stored: BTreeSet<Ty> = BTreeSet::new();
    let mut used: BTreeSet<Ty> = BTreeSet::new();
    let mut compared: BTreeSet<Ty> = BTreeSet::new();
    let (mut arena, mut kernel) = (false, false);
    let mut against = false;
    for fact in facts.keys() {
        let space = match *fact {
            Fact::Stored(ty, space) => {
                stored.extend(ty);
                Some(space)
            }
            Fact::Carried(ty, space) => {
                used.extend(ty);
                Some(space)
            }
            Fact::Used(ty, space) => {
                used.insert(ty);
                Some(space)
            }
            Fact::Followed(space) => Some(space),
            Fact::Compared(ty) => {
                compared.insert(ty);
                None
            }
            Fact::Number | Fact::Arithmetic => {
                against = true;
                None
            }
            Fact::Copied(_) => None,
        };
        arena |= space == Some(Space::Arena);
        kernel |= space == Some(Space::Kernel);
    }
    if !arena && !kernel {
        return Verdict::None;
    }
    let several = stored.len() > 1;
    // A function that takes the first member of a struct takes the struct as well, so of types
    // that begin each other the largest is meant. What is stored is what it is.
    let ty = stored.first().copied().or_else(|| {
        let all = |outer: &&Ty| used.iter().all(|inner| types.begins_with(**outer, *inner));
        used.iter().find(all).copied()
    });
    let fits = |inner: &Ty| ty.is_some_and(|outer| types.begins_with(outer, *inner));
    // A comparison alone decides nothing, but it must not tell of another type.
    let agreed = used.iter().all(fits) && (ty.is_none() || compared.iter().all(fits)) && !several;
    // The kernel's own objects are not in arenas.
    let nowhere = arena && ty.is_some_and(|ty| ty.home == Home::Kernel);
    if against || !agreed || nowhere {
        return Verdict::Contradicted;
    }
    match (ty, arena) {
        // Kernel memory of an unknown type: nothing can be shown.
        (None, false) => Verdict::None,
        (ty, _) => Verdict::Pointer(
            Target {
                ty,
                space: if arena { Space::Arena } else { Space::Kernel },
            },
            !stored.is_empty(),
        ),
    }
}

/// All facts, and what is decided. `banned`: places that must not be decided for.
pub(super) fn decide(
    types: &Types<'_>,
    evidence: Vec<Evidence>,
    banned: &BTreeSet<Place>,
) -> (Facts, HashMap<Place, Target>) {
    let facts = spread(types, evidence, banned);
    let known = facts
        .iter()
        .filter(|(place, _)| !banned.contains(place))
        .filter_map(|(place, of)| match verdict(types, of) {
            Verdict::Pointer(target, _) => Some((*place, target)),
            _ => None,
        })
        .collect();
    (facts, known)
}
