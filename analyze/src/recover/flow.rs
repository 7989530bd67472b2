//! Where values come from: an abstract run of one program over its instructions.
//!
//! Every register and stack slot holds what is known of it on all ways that lead there: a number,
//! a pointer into a type, or the unchanged value of some eight bytes of the program's data
//! ([`Place`]). Loops and branches run until nothing changes; functions of the program run with
//! what their callers pass. What is then seen to happen with a place is a [`Fact`]; what follows
//! from facts is [`super::solve`]'s business.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::insn::{Alu, Atomic, Insn, Memory, Mode, Operand, REGS};
use super::live::{self, Registers};
use super::types::{Home, Leaf, Slot, Ty, Types};
use crate::bytes::to_usize;
use crate::kernel::btf::{Kind, TypeId};

/// Instructions that one program may take, all rounds together.
const MAX_STEPS: usize = 4_000_000;
/// How often the functions of one program run until their parameters stay the same.
const MAX_RUNS_PER_FUNCTION: usize = 24;
/// Slots of the stack that are kept: 512 bytes.
const MAX_STACK: usize = 64;
/// Arguments are in r1 to r5.
const ARGUMENTS: u8 = 5;
const R0: u8 = 0;
const FRAME: u8 = 10;
/// What `BPF_REG_AX` can be.
const AUXILIARY: [u8; 2] = [11, 12];

/// Where a pointer leads, as far as the program tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Into the program's arena.
    Arena,
    /// To kernel memory: the kernel's own objects, or values of maps.
    Kernel,
}

/// A function of a program: index of the program, number of the function.
pub(super) type Function = (u32, u32);

/// Something that holds eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Slot(Slot),
    /// A parameter of a function, by number.
    Param(Function, u8),
    /// What a function returns.
    Return(Function),
    /// What a call returned, by its instruction.
    Result(Function, u32),
    /// What one of several values is where ways meet: the slot, and the register, or the offset
    /// from the frame pointer.
    Meeting(Function, u32, i16),
}

impl Place {
    /// Whether it is a value on its way rather than memory: how it is used then tells of what it
    /// came from.
    pub(super) const fn is_transient(self) -> bool {
        !matches!(self, Self::Slot(_))
    }
}

/// What is seen to happen with a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Fact {
    /// A pointer is put there, to a known type or not.
    Stored(Option<Ty>, Space),
    /// The same, but the type is only what the value is used as.
    Carried(Option<Ty>, Space),
    /// Its value is used as a pointer to a type.
    Used(Ty, Space),
    /// Its value is followed.
    Followed(Space),
    /// Its value is compared with a pointer.
    Compared(Ty),
    /// The value of another place is put there.
    Copied(Place),
    /// A number is put there.
    Number,
    /// Its value is used as a number.
    Arithmetic,
}

/// A fact, and the instruction that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Evidence {
    pub(super) place: Place,
    pub(super) fact: Fact,
    /// Index of the program, slot of the instruction.
    pub(super) at: (u32, u32),
}

/// What is known of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) ty: Option<Ty>,
    pub(super) space: Space,
}

/// A map that a program uses.
#[derive(Debug, Clone)]
pub(super) struct Map {
    pub(super) kva: u64,
    /// Addresses of the values of an array.
    pub(super) values: Range<u64>,
    /// How far the values of an array are apart; 0 for other maps.
    pub(super) stride: u64,
    /// Type of a value in the program's BTF; void when there is none.
    pub(super) value: Ty,
    pub(super) value_size: u32,
    pub(super) per_cpu: bool,
}

/// The arena of a program.
#[derive(Debug, Clone)]
pub(super) struct ArenaWindow {
    pub(super) user_start: u64,
    /// The section of the variables that live in it, and the user address where it begins.
    pub(super) section: Option<(TypeId, u64)>,
}

/// One subprogram; number 0 is where the program begins.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) slots: Range<usize>,
    /// Its function in the program's BTF.
    pub(super) ty: TypeId,
}

/// One program.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) insns: Vec<Insn>,
    pub(super) functions: Vec<Body>,
    /// What the context's words are.
    pub(super) arguments: Vec<Argument>,
    pub(super) maps: Vec<Map>,
    pub(super) arena: Option<ArenaWindow>,
}

/// A word of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    Pointer(Ty),
    Number,
    Other,
}

/// A function of the kernel that programs call.
#[derive(Debug, Clone)]
pub(super) struct Callee {
    pub(super) name: String,
    /// Its function in the kernel's BTF.
    pub(super) ty: Option<TypeId>,
}

/// What programs run in.
pub(super) struct World<'a> {
    pub(super) types: &'a Types<'a>,
    /// By distance from `__bpf_call_base`.
    pub(super) callees: &'a HashMap<i32, Callee>,
    /// Address of the per-CPU variable that holds the running task.
    pub(super) current_task: Option<u64>,
    /// What earlier rounds found.
    pub(super) known: &'a HashMap<Place, Target>,
}

impl World<'_> {
    /// Whether a call is how `may_goto` asks for the time.
    fn is_time_check(&self, imm: i32) -> bool {
        let callee = self.callees.get(&imm);
        callee.is_some_and(|callee| callee.name == "arch_bpf_timed_may_goto")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pointer {
    ty: Ty,
    offset: i64,
    space: Space,
    /// Only the low half: an arena pointer in the form that accesses take.
    low: bool,
}

/// The value of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin {
    place: Place,
    /// What was added to it.
    offset: i64,
    /// And some multiple of this; 0: nothing.
    stride: u64,
    low: bool,
}

impl Origin {
    const fn new(place: Place) -> Self {
        Self {
            place,
            offset: 0,
            stride: 0,
            low: false,
        }
    }

    /// The value itself, nothing added.
    const fn is_whole(self) -> bool {
        self.offset == 0 && self.stride == 0 && !self.low
    }
}

/// What is known of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Unknown,
    Const(u64),
    /// A number that is a multiple of this.
    Number(u64),
    From(Origin),
    Pointer(Pointer),
    /// The address of a map plus something.
    Map(usize, i64),
    /// The element of a hash.
    Element(usize),
    /// Where a per-CPU map keeps its per-CPU pointer, and that pointer.
    PerCpuSlot(usize),
    PerCpuPointer(usize),
    /// This CPU's instance of a kernel variable.
    CpuVariable(u64),
    Stack(i64),
    Context(i64),
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// What a number is a multiple of; 0 is a multiple of everything.
const fn number(multiple: u64) -> Value {
    Value::Number(if multiple == 0 { 1 } else { multiple })
}

impl Value {
    /// What is known when it may be either. Of values that may be pointers, `meeting` then is
    /// the one.
    fn join_at(self, other: Self, meeting: Place) -> Self {
        let may_point = |value| match value {
            Self::Pointer(p) => !p.low,
            Self::From(o) => !o.low,
            _ => false,
        };
        let plain = |value| !matches!(value, Self::Pointer(_) | Self::From(_));
        let apart = |value| may_point(value) || plain(value);
        let met = Self::From(Origin::new(meeting));
        match self.join(other) {
            _ if self == met || other == met => met,
            Self::Unknown
                if (may_point(self) || may_point(other)) && apart(self) && apart(other) =>
            {
                met
            }
            joined => joined,
        }
    }

    /// What is known when it may be either.
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            // A null pointer.
            (Self::Const(0), p @ (Self::Pointer(_) | Self::From(_)))
            | (p @ (Self::Pointer(_) | Self::From(_)), Self::Const(0)) => p,
            (Self::Const(a) | Self::Number(a), Self::Const(b) | Self::Number(b)) => {
                number(gcd(a, b))
            }
            (Self::Pointer(a), Self::Pointer(b)) => {
                let low = a.low || b.low;
                let same = Pointer { low, ..a } == Pointer { low, ..b };
                if same {
                    Self::Pointer(Pointer { low, ..a })
                } else {
                    Self::Unknown
                }
            }
            (Self::From(a), Self::From(b)) if a.place == b.place => Self::From(Origin {
                place: a.place,
                offset: a.offset,
                // The first element or another one.
                stride: gcd(gcd(a.stride, b.stride), a.offset.abs_diff(b.offset)),
                low: a.low || b.low,
            }),
            _ => Self::Unknown,
        }
    }

    /// The low half.
    const fn low(self) -> Self {
        match self {
            Self::Const(value) => Self::Const(value & 0xffff_ffff),
            Self::Pointer(p) => Self::Pointer(Pointer { low: true, ..p }),
            Self::From(o) => Self::From(Origin { low: true, ..o }),
            Self::Number(_) | Self::Unknown => self,
            _ => Self::Number(1),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    regs: [Value; REGS],
    /// Eight bytes at an offset from the frame pointer.
    stack: BTreeMap<i64, Value>,
}

impl State {
    fn unknown() -> Self {
        let mut state = Self {
            regs: [Value::Unknown; REGS],
            stack: BTreeMap::new(),
        };
        state.set(FRAME, Value::Stack(0));
        state
    }

    fn get(&self, reg: u8) -> Value {
        self.regs
            .get(usize::from(reg))
            .copied()
            .unwrap_or(Value::Unknown)
    }

    fn set(&mut self, reg: u8, value: Value) {
        if let Some(slot) = self.regs.get_mut(usize::from(reg)) {
            *slot = value;
        }
    }

    fn operand(&self, operand: Operand) -> Value {
        match operand {
            Operand::Reg(reg) => self.get(reg),
            Operand::Imm(imm) => Value::Const(i64::from(imm).cast_unsigned()),
        }
    }

    /// Forgets registers that do not matter any more.
    fn keep(&mut self, live: Registers) {
        for (reg, value) in self.regs.iter_mut().enumerate() {
            if live >> reg & 1 == 0 {
                *value = Value::Unknown;
            }
        }
    }

    /// Joins what comes from elsewhere to `slot`, where only `live` registers matter. Whether
    /// anything changed.
    fn join(&mut self, other: &Self, live: Registers, function: Function, slot: u32) -> bool {
        let mut changed = false;
        for ((mine, theirs), reg) in self.regs.iter_mut().zip(&other.regs).zip(0..) {
            if live >> reg & 1 == 0 {
                continue;
            }
            let joined = mine.join_at(*theirs, Place::Meeting(function, slot, reg));
            changed |= joined != *mine;
            *mine = joined;
        }
        let before = self.stack.len();
        self.stack.retain(|at, _| other.stack.contains_key(at));
        changed |= self.stack.len() != before;
        for (at, mine) in &mut self.stack {
            let theirs = other.stack.get(at).copied().unwrap_or(Value::Unknown);
            let place = i16::try_from(*at).unwrap_or(i16::MIN);
            let joined = mine.join_at(theirs, Place::Meeting(function, slot, place));
            changed |= joined != *mine;
            *mine = joined;
        }
        changed
    }

    /// Forgets the stack from `at` on, `size` bytes.
    fn clobber(&mut self, at: i64, size: i64) {
        let end = at.saturating_add(size);
        self.stack.retain(|&slot, _| slot + 8 <= at || slot >= end);
    }

    fn store(&mut self, at: i64, size: u32, value: Value) {
        self.clobber(at, i64::from(size));
        if size == 8 && (-512..0).contains(&at) && self.stack.len() < MAX_STACK {
            self.stack.insert(at, value);
        }
    }
}

/// What follows an instruction.
enum Next {
    Slot(usize),
    Either(usize, usize),
    /// Nothing, or nothing that can be told.
    End,
    Unclear,
}

/// What the functions of a program pass to each other.
#[derive(Default)]
struct Summaries {
    params: BTreeMap<(u32, u8), Value>,
    returns: BTreeMap<u32, Value>,
    /// Functions that are reached, and how often each has run.
    runs: BTreeMap<u32, usize>,
    callers: BTreeMap<u32, BTreeSet<u32>>,
    /// Functions whose address is taken: the kernel calls them.
    callbacks: BTreeSet<u32>,
    /// Functions to run again.
    pending: BTreeSet<u32>,
}

/// What one program showed.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) evidence: Vec<Evidence>,
    /// What it asked to be known of places, and the answers.
    pub(super) asked: BTreeMap<Place, Option<Target>>,
}

/// All that is seen in one program. `index` is its number among the programs of its BTF.
pub(super) fn run(world: &World<'_>, program: &Program, index: u32) -> Run {
    let mut machine = Machine {
        world,
        program,
        index,
        current: 0,
        summaries: Summaries::default(),
        steps: MAX_STEPS,
        leaves: HashMap::new(),
        asked: HashMap::new(),
        evidence: None,
    };
    machine.summaries.pending.insert(0);
    let mut settled: BTreeMap<u32, BTreeMap<usize, State>> = BTreeMap::new();
    while let Some(number) = machine.summaries.pending.pop_first() {
        let runs = machine.summaries.runs.entry(number).or_default();
        *runs += 1;
        if *runs > MAX_RUNS_PER_FUNCTION {
            continue;
        }
        let states = machine.settle(number);
        settled.insert(number, states);
    }
    machine.evidence = Some(Vec::new());
    for (number, states) in settled {
        machine.show(number, states);
    }
    let mut evidence = machine.evidence.unwrap_or_default();
    evidence.sort_unstable();
    evidence.dedup();
    Run {
        evidence,
        asked: machine.asked.into_iter().collect(),
    }
}

struct Machine<'a> {
    world: &'a World<'a>,
    program: &'a Program,
    index: u32,
    /// The function that runs.
    current: u32,
    summaries: Summaries,
    steps: usize,
    /// What was found at offsets of types.
    leaves: HashMap<(Ty, i64), Leaf>,
    asked: HashMap<Place, Option<Target>>,
    /// Where to put what is seen, once all states are settled.
    evidence: Option<Vec<Evidence>>,
}

impl Machine<'_> {
    fn body(&self, number: u32) -> Option<&Body> {
        self.program.functions.get(to_usize(u64::from(number)))
    }

    /// The function that a call calls: of `imm` and `off` one is the distance to it from the slot
    /// `next`, the other its number.
    fn called(&self, next: usize, imm: i32, off: i16) -> Option<u32> {
        let next = i64::try_from(next).ok()?;
        let (imm, off) = (i64::from(imm), i64::from(off));
        for (distance, number) in [(imm, off), (off, imm)] {
            if let Ok(number) = u32::try_from(number)
                && self.function_at(next + distance) == Some(number)
            {
                return Some(number);
            }
        }
        // A distance that is too far for `off` is cut; the number alone can be believed if it is
        // one.
        let far = self.function_at(next + imm);
        far.or_else(|| u32::try_from(imm).ok().filter(|&n| self.body(n).is_some()))
    }

    /// The function that begins at a slot.
    fn function_at(&self, slot: i64) -> Option<u32> {
        let slot = usize::try_from(slot).ok()?;
        let functions = &self.program.functions;
        let found = functions.partition_point(|body| body.slots.start < slot);
        (functions.get(found)?.slots.start == slot).then(|| u32::try_from(found).ok())?
    }

    /// Slots where ways meet.
    fn leaders(&self, body: &Body) -> BTreeSet<usize> {
        let mut leaders = BTreeSet::from([body.slots.start]);
        let insns = self.program.insns.get(body.slots.clone());
        for (insn, slot) in insns.unwrap_or_default().iter().zip(body.slots.clone()) {
            let (target, falls) = match *insn {
                Insn::Jump { target } => (target, false),
                Insn::Branch { target, .. } => (target, true),
                _ => continue,
            };
            let target = usize::try_from(target).ok();
            leaders.extend(target.filter(|slot| body.slots.contains(slot)));
            if falls {
                leaders.insert(slot + 1);
            }
        }
        leaders
    }

    /// What a function begins with.
    fn entry(&self, number: u32) -> State {
        let mut state = State::unknown();
        if number == 0 {
            state.set(1, Value::Context(0));
            return state;
        }
        let Some(body) = self.body(number) else {
            return state;
        };
        let own = self.world.types.own;
        let declared: Vec<TypeId> = own.parameters(body.ty).map(|(_, ty)| ty).collect();
        // The compiler changes the parameters of static functions that are only called.
        let as_declared =
            own.is_global_function(body.ty) || self.summaries.callbacks.contains(&number);
        for param in 0..ARGUMENTS {
            let place = Place::Param((self.index, number), param);
            let opaque = Value::From(Origin::new(place));
            let value = if as_declared {
                match declared.get(usize::from(param)) {
                    Some(&ty) => match own.pointee(ty) {
                        Some(target) => self.pointer_to(Home::Program, target),
                        None => opaque,
                    },
                    None => Value::Unknown,
                }
            } else {
                match self.summaries.params.get(&(number, param)) {
                    Some(Value::Unknown | Value::From(_)) => opaque,
                    Some(value) => *value,
                    None => Value::Unknown,
                }
            };
            state.set(param + 1, value);
        }
        state
    }

    /// Runs a function until its states stay the same.
    fn settle(&mut self, number: u32) -> BTreeMap<usize, State> {
        let Some(body) = self.body(number).cloned() else {
            return BTreeMap::new();
        };
        self.current = number;
        let leaders = self.leaders(&body);
        let world = self.world;
        let is_time_check = |imm| world.is_time_check(imm);
        let live = live::live(&self.program.insns, body.slots.clone(), is_time_check);
        let live = |slot: usize| {
            let index = slot.checked_sub(body.slots.start);
            let live = index.and_then(|index| live.get(index));
            live.copied().unwrap_or(Registers::MAX)
        };
        let mut states = BTreeMap::from([(body.slots.start, self.entry(number))]);
        let mut pending = BTreeSet::from([body.slots.start]);
        while let Some(at) = pending.pop_first() {
            let Some(mut state) = states.get(&at).cloned() else {
                continue;
            };
            let function = (self.index, number);
            let mut merge = |slot: usize, state: &State| {
                let changed = match states.get_mut(&slot) {
                    Some(known) => known.join(state, live(slot), function, narrow(slot)),
                    None => {
                        let mut state = state.clone();
                        state.keep(live(slot));
                        states.insert(slot, state);
                        true
                    }
                };
                if changed {
                    pending.insert(slot);
                }
            };
            let mut slot = at;
            loop {
                let next = self.step(slot, &mut state);
                let next = match self.steps.checked_sub(1) {
                    Some(left) => {
                        self.steps = left;
                        next
                    }
                    None => Next::Unclear,
                };
                match next {
                    Next::Slot(next) if !body.slots.contains(&next) => break,
                    Next::Slot(next) if leaders.contains(&next) => {
                        merge(next, &state);
                        break;
                    }
                    Next::Slot(next) => slot = next,
                    Next::Either(a, b) => {
                        for next in [a, b] {
                            if body.slots.contains(&next) {
                                merge(next, &state);
                            }
                        }
                        break;
                    }
                    Next::End => break,
                    Next::Unclear => {
                        // From here it may go on anywhere.
                        if self.steps == 0 {
                            return leaders
                                .iter()
                                .map(|&slot| (slot, State::unknown()))
                                .collect();
                        }
                        for &leader in &leaders {
                            merge(leader, &State::unknown());
                        }
                        break;
                    }
                }
            }
        }
        states
    }

    /// Runs every part of a function once more, for what is seen there.
    fn show(&mut self, number: u32, states: BTreeMap<usize, State>) {
        let Some(body) = self.body(number).cloned() else {
            return;
        };
        self.current = number;
        let leaders = self.leaders(&body);
        for (&at, state) in &states {
            let (mut slot, mut state) = (at, state.clone());
            loop {
                let next = match self.step(slot, &mut state) {
                    Next::Slot(next) => [Some(next), None],
                    Next::Either(a, b) => [Some(a), Some(b)],
                    Next::End | Next::Unclear => break,
                };
                if let [Some(next), None] = next
                    && body.slots.contains(&next)
                    && !leaders.contains(&next)
                {
                    slot = next;
                    continue;
                }
                for next in next.into_iter().flatten() {
                    if let Some(met) = states.get(&next) {
                        self.meet(slot, &state, next, met);
                    }
                }
                break;
            }
        }
    }

    /// Notes what values meet where `slot` goes on at `next`.
    fn meet(&mut self, slot: usize, state: &State, next: usize, met: &State) {
        let function = (self.index, self.current);
        for (reg, (value, met)) in (0..).zip(state.regs.iter().zip(&met.regs)) {
            let place = Place::Meeting(function, narrow(next), reg);
            if *met == Value::From(Origin::new(place)) {
                self.put(slot, place, *value);
            }
        }
        for (&at, met) in &met.stack {
            let offset = i16::try_from(at).unwrap_or(i16::MIN);
            let place = Place::Meeting(function, narrow(next), offset);
            if *met == Value::From(Origin::new(place)) {
                let value = state.stack.get(&at).copied().unwrap_or(Value::Unknown);
                self.put(slot, place, value);
            }
        }
    }

    fn fact(&mut self, slot: usize, place: Place, fact: Fact) {
        if let Some(evidence) = &mut self.evidence {
            let at = (self.index, narrow(slot));
            evidence.push(Evidence { place, fact, at });
        }
    }

    fn space_of(&self, ty: Ty) -> Space {
        match ty.home {
            Home::Program if self.program.arena.is_some() => Space::Arena,
            _ => Space::Kernel,
        }
    }

    /// A pointer to what `id` stands for.
    fn pointer_to(&self, home: Home, id: TypeId) -> Value {
        let ty = self.world.types.standing(home, id);
        if ty.is_void() {
            return Value::Unknown;
        }
        self.pointer(ty, 0, self.space_of(ty))
    }

    const fn pointer(&self, ty: Ty, offset: i64, space: Space) -> Value {
        let low = false;
        Value::Pointer(Pointer {
            ty,
            offset,
            space,
            low,
        })
    }

    /// The value of a map's element.
    fn map_value(&self, map: usize) -> Value {
        match self.program.maps.get(map) {
            Some(map) if !map.value.is_void() => self.pointer(map.value, 0, Space::Kernel),
            _ => Value::Unknown,
        }
    }

    /// What a 64-bit constant is.
    fn constant(&self, value: u64) -> Value {
        for (i, map) in self.program.maps.iter().enumerate() {
            if map.kva == value {
                return Value::Map(i, 0);
            }
            if map.values.contains(&value) && map.stride > 0 && !map.value.is_void() {
                let offset = (value - map.values.start) % map.stride;
                let offset = i64::try_from(offset).unwrap_or(0);
                return self.pointer(map.value, offset, Space::Kernel);
            }
        }
        if let Some(arena) = &self.program.arena
            && value.wrapping_sub(arena.user_start) < 1 << 32
        {
            let section = arena.section.and_then(|(id, start)| {
                let offset = i64::try_from(value.checked_sub(start)?).ok()?;
                let home = Home::Program;
                Some(self.pointer(Ty { home, id }, offset, Space::Arena))
            });
            return section.unwrap_or(Value::Unknown);
        }
        // An object or function of the kernel.
        if value >> 47 == 0x1_ffff {
            return Value::Unknown;
        }
        Value::Const(value)
    }

    /// The pointer that a value is, from what earlier rounds found too.
    fn as_pointer(&mut self, value: Value) -> Option<Pointer> {
        match value {
            Value::Pointer(pointer) => Some(pointer),
            Value::From(origin) => {
                let known = self.world.known.get(&origin.place).copied();
                self.asked.insert(origin.place, known);
                let known = known?;
                let ty = known.ty?;
                let offset = match origin.stride {
                    0 => origin.offset,
                    stride => self.world.types.indexed(ty, origin.offset, stride)?,
                };
                Some(Pointer {
                    ty,
                    offset,
                    space: known.space,
                    low: origin.low,
                })
            }
            _ => None,
        }
    }

    fn leaf(&mut self, ty: Ty, offset: i64) -> Leaf {
        let types = self.world.types;
        let known = self.leaves.entry((ty, offset));
        *known.or_insert_with(|| types.leaf(ty, offset))
    }

    /// Notes that a value is used as a number.
    fn arithmetic(&mut self, slot: usize, value: Value) {
        if let Value::From(origin) = value {
            self.fact(slot, origin.place, Fact::Arithmetic);
        }
    }

    /// Notes that an access goes through a value.
    fn followed(&mut self, slot: usize, base: Value, mode: Mode) {
        if let Value::From(origin) = base {
            let space = match mode {
                Mode::Arena => Space::Arena,
                Mode::Plain | Mode::Probe => Space::Kernel,
            };
            self.fact(slot, origin.place, Fact::Followed(space));
        }
    }

    /// Notes that `value` is put into `place`.
    fn put(&mut self, slot: usize, place: Place, value: Value) {
        let value = match value {
            // Another element of what the value begins.
            Value::From(o) if !o.is_whole() && o.place != place => match self.as_pointer(value) {
                Some(pointer) => Value::Pointer(pointer),
                None => value,
            },
            value => value,
        };
        match value {
            Value::Pointer(p) if !p.low => {
                if let Some(ty) = self.world.types.part(p.ty, p.offset) {
                    self.fact(slot, place, Fact::Stored(Some(ty), p.space));
                }
            }
            // Counting up, or the value that was there.
            Value::From(o) if o.place == place && (o.offset != 0 || o.stride != 0) => {
                self.fact(slot, place, Fact::Number);
            }
            Value::From(o) if o.place == place => {}
            Value::From(o) if o.is_whole() => {
                self.fact(slot, place, Fact::Copied(o.place));
            }
            Value::Const(value) if value != 0 => self.fact(slot, place, Fact::Number),
            Value::Number(_) => self.fact(slot, place, Fact::Number),
            _ => {}
        }
    }

    /// Notes that `value` is used where a pointer to `ty` belongs.
    fn used(&mut self, slot: usize, value: Value, ty: Ty) {
        let size = self.world.types.size(ty);
        if let Value::From(o) = value
            && o.offset == 0
            && !o.low
            && !ty.is_void()
            // An element of an array that begins there has the type of all its elements.
            && (o.stride == 0 || (size > 0 && o.stride.is_multiple_of(size)))
        {
            let space = self.space_of(ty);
            self.fact(slot, o.place, Fact::Used(ty, space));
        }
    }

    fn load(&mut self, slot: usize, state: &State, memory: Memory) -> Value {
        let base = state.get(memory.base);
        let offset = i64::from(memory.offset);
        self.followed(slot, base, memory.mode);
        let whole = memory.size == 8;
        let unknown = if whole {
            Value::Unknown
        } else {
            Value::Number(1)
        };
        match base {
            _ if !whole => unknown,
            Value::Stack(at) => {
                let at = at.saturating_add(offset);
                state.stack.get(&at).copied().unwrap_or(unknown)
            }
            Value::Context(at) => {
                let at = usize::try_from(at.saturating_add(offset)).ok();
                let word = at.filter(|at| at.is_multiple_of(8)).map(|at| at / 8);
                match word.and_then(|word| self.program.arguments.get(word)) {
                    Some(Argument::Pointer(ty)) => self.pointer(*ty, 0, self.space_of(*ty)),
                    Some(Argument::Number) => Value::Number(1),
                    Some(Argument::Other) | None => unknown,
                }
            }
            Value::PerCpuSlot(map) => Value::PerCpuPointer(map),
            Value::CpuVariable(at) if Some(at) == self.world.current_task => {
                match self.world.types.kernel.find("struct task_struct") {
                    Ok(task) => self.pointer_to(Home::Kernel, task),
                    Err(_) => unknown,
                }
            }
            Value::Pointer(_) | Value::From(_) => {
                let Some(p) = self.as_pointer(base) else {
                    return unknown;
                };
                match self.leaf(p.ty, p.offset.saturating_add(offset)) {
                    Leaf::Pointer(ty) => self.pointer(ty, 0, self.space_of(ty)),
                    Leaf::Number(slot) => Value::From(Origin::new(Place::Slot(slot))),
                    Leaf::Plain => Value::Number(1),
                    Leaf::Other => unknown,
                }
            }
            _ => unknown,
        }
    }

    fn store(&mut self, slot: usize, state: &mut State, memory: Memory, value: Value) {
        let base = state.get(memory.base);
        let offset = i64::from(memory.offset);
        self.followed(slot, base, memory.mode);
        if let Value::Stack(at) = base {
            state.store(at.saturating_add(offset), memory.size, value);
            return;
        }
        if let Some(p) = self.as_pointer(base) {
            self.store_to(
                slot,
                p.ty,
                p.offset.saturating_add(offset),
                memory.size,
                value,
            );
        }
    }

    /// Notes that `value` is stored at `offset` of a `ty`.
    fn store_to(&mut self, slot: usize, ty: Ty, offset: i64, size: u32, value: Value) {
        match self.leaf(ty, offset) {
            Leaf::Number(place) if size == 8 => self.put(slot, Place::Slot(place), value),
            // Half of a pointer makes no sense, and neither does a byte.
            Leaf::Number(place) if value != Value::Const(0) => {
                self.fact(slot, Place::Slot(place), Fact::Number);
            }
            Leaf::Pointer(ty) if size == 8 => self.used(slot, value, ty),
            _ => {}
        }
    }

    /// One instruction.
    fn step(&mut self, slot: usize, state: &mut State) -> Next {
        let Some(&insn) = self.program.insns.get(slot) else {
            return Next::End;
        };
        let mut next = slot + 1;
        match insn {
            Insn::Load64 { dst, value } => {
                let value = self.constant(value);
                state.set(dst, value);
                next += 1;
            }
            Insn::LoadFunction { dst, slot, number } => {
                let number = self
                    .function_at(slot)
                    .or_else(|| u32::try_from(number).ok());
                if let Some(number) = number
                    && self.evidence.is_none()
                    && self.summaries.callbacks.insert(number)
                {
                    self.summaries.pending.insert(number);
                }
                state.set(dst, Value::Unknown);
                next += 1;
            }
            Insn::Half => {}
            Insn::Load {
                dst,
                memory,
                signed,
            } => {
                let value = self.load(slot, state, memory);
                state.set(dst, if signed { Value::Number(1) } else { value });
            }
            Insn::Store { memory, value } => {
                let value = state.operand(value);
                self.store(slot, state, memory, value);
            }
            Insn::Atomic { what, memory, src } => self.atomic(slot, state, what, memory, src),
            Insn::Move { dst, value, wide } => {
                let value = state.operand(value);
                state.set(dst, if wide { value } else { value.low() });
            }
            Insn::MoveSigned { dst } | Insn::Scramble { dst } => {
                state.set(dst, Value::Number(1));
            }
            Insn::ToUser { dst, src } => {
                let value = match state.get(src) {
                    Value::Pointer(p) => Value::Pointer(Pointer {
                        low: false,
                        space: Space::Arena,
                        ..p
                    }),
                    Value::From(o) => {
                        self.fact(slot, o.place, Fact::Followed(Space::Arena));
                        Value::From(Origin { low: false, ..o })
                    }
                    other => other,
                };
                state.set(dst, value);
            }
            Insn::ToKernel { dst, src } => {
                let value = state.get(src);
                if let Value::From(o) = value {
                    self.fact(slot, o.place, Fact::Followed(Space::Arena));
                }
                state.set(dst, value.low());
            }
            Insn::PerCpu { dst, src } => {
                let value = match state.get(src) {
                    Value::PerCpuPointer(map) => self.map_value(map),
                    Value::Const(at) => Value::CpuVariable(at),
                    _ => Value::Unknown,
                };
                state.set(dst, value);
            }
            Insn::Arithmetic {
                op,
                dst,
                value,
                wide,
            } => {
                let (a, b) = (state.get(dst), state.operand(value));
                let (a, b) = if wide { (a, b) } else { (a.low(), b.low()) };
                let result = self.compute(slot, op, a, b, wide);
                state.set(dst, if wide { result } else { result.low() });
            }
            Insn::Jump { target } => match usize::try_from(target) {
                Ok(target) => return Next::Slot(target),
                Err(_) => return Next::End,
            },
            Insn::Branch {
                dst,
                value,
                target,
                equality,
                wide,
            } => {
                let (a, b) = (state.get(dst), state.operand(value));
                self.compare(slot, a, b, equality && wide);
                return match usize::try_from(target) {
                    Ok(target) => Next::Either(target, next),
                    Err(_) => Next::Slot(next),
                };
            }
            // How may_goto asks for the time: all it changes is the kernel's own register.
            Insn::Call { imm, .. } if self.world.is_time_check(imm) => {
                for reg in AUXILIARY {
                    state.set(reg, Value::Unknown);
                }
            }
            Insn::Call { imm, kfunc } => {
                let result = self.call(slot, state, imm, kfunc);
                returned(state, result);
            }
            Insn::TailCall => returned(state, Value::Unknown),
            Insn::CallLocal { imm, off } => {
                let number = self.called(next, imm, off);
                let result = self.call_local(slot, state, number.unwrap_or(u32::MAX));
                returned(state, result);
            }
            Insn::Exit => {
                self.leave(slot, state.get(R0));
                return Next::End;
            }
            Insn::Unclear => return Next::Unclear,
        }
        Next::Slot(next)
    }

    fn atomic(&mut self, slot: usize, state: &mut State, what: Atomic, memory: Memory, src: u8) {
        let old = self.load(slot, state, memory);
        let value = state.get(src);
        match what {
            Atomic::LoadAcquire => state.set(src, old),
            Atomic::StoreRelease => self.store(slot, state, memory, value),
            Atomic::Exchange => {
                self.store(slot, state, memory, value);
                state.set(src, old);
            }
            Atomic::CompareExchange => {
                self.compare(slot, old, state.get(R0), memory.size == 8);
                self.store(slot, state, memory, value);
                state.set(R0, old);
            }
            Atomic::Change(fetch) => {
                self.arithmetic(slot, old);
                self.arithmetic(slot, value);
                if let Value::Stack(at) = state.get(memory.base) {
                    state.clobber(at.saturating_add(i64::from(memory.offset)), 8);
                }
                if fetch {
                    state.set(src, Value::Number(1));
                }
            }
        }
    }

    /// Two values that are compared; `same`: for equality, all 64 bits.
    fn compare(&mut self, slot: usize, a: Value, b: Value, same: bool) {
        for (a, b) in [(a, b), (b, a)] {
            let Value::From(origin) = a else { continue };
            match b {
                Value::Pointer(p) if same && origin.is_whole() => {
                    if let Some(ty) = self.world.types.part(p.ty, p.offset) {
                        self.fact(slot, origin.place, Fact::Compared(ty));
                    }
                }
                // Which of two is the larger is asked of numbers.
                Value::Number(_) | Value::From(_) if !same => self.arithmetic(slot, a),
                _ => {}
            }
        }
    }

    fn compute(&mut self, slot: usize, op: Alu, a: Value, b: Value, wide: bool) -> Value {
        use Value::{Const, From, Number, Unknown};
        match op {
            Alu::Add | Alu::Sub => self.add(slot, a, b, op == Alu::Sub, wide),
            Alu::Mul => {
                self.arithmetic(slot, a);
                self.arithmetic(slot, b);
                match (a, b) {
                    (Const(a), Const(b)) => Const(a.wrapping_mul(b)),
                    (Const(a) | Number(a), Const(b) | Number(b)) => {
                        number(a.checked_mul(b).unwrap_or(1))
                    }
                    (Const(m), From(_) | Unknown) | (From(_) | Unknown, Const(m)) => number(m),
                    _ => Number(1),
                }
            }
            Alu::Shl => {
                self.arithmetic(slot, a);
                match (a, b) {
                    (Const(a), Const(b)) if b < 64 => Const(a << b),
                    (Number(a), Const(b)) if b < 64 && a.leading_zeros() > 32 && b < 32 => {
                        number(a << b)
                    }
                    (_, Const(b)) if b < 64 => number(1 << b),
                    _ => Number(1),
                }
            }
            Alu::Other => {
                self.arithmetic(slot, a);
                self.arithmetic(slot, b);
                match a {
                    Const(_) | Number(_) | From(_) => Number(1),
                    _ => Unknown,
                }
            }
        }
    }

    /// Addition, or subtraction when `sub`.
    fn add(&mut self, slot: usize, a: Value, b: Value, sub: bool, wide: bool) -> Value {
        use Value::{
            Const, Context, CpuVariable, Element, From, Map, Number, PerCpuPointer, PerCpuSlot,
            Stack, Unknown,
        };
        let (a, b) = match (a, b) {
            // The pointer first.
            (Const(_) | Number(_), _) if !sub && !matches!(b, Const(_) | Number(_)) => (b, a),
            both => both,
        };
        let signed = |c: u64| {
            let c = if wide {
                c.cast_signed()
            } else {
                // 32-bit arithmetic on arena pointers.
                i64::from(u32::try_from(c & 0xffff_ffff).unwrap_or(0).cast_signed())
            };
            if sub { c.wrapping_neg() } else { c }
        };
        match (a, b) {
            (Const(a), Const(b)) if sub => Const(a.wrapping_sub(b)),
            (Const(a), Const(b)) => Const(a.wrapping_add(b)),
            (Const(a) | Number(a), Const(b) | Number(b)) => number(gcd(a, b)),
            (Value::Pointer(p), Const(c)) => Value::Pointer(Pointer {
                offset: p.offset.wrapping_add(signed(c)),
                ..p
            }),
            (Value::Pointer(p), Number(m)) => self.moved(p, m),
            (Value::Pointer(_), Value::Pointer(_)) if sub => Number(1),
            (From(o), Const(c)) => From(Origin {
                offset: o.offset.wrapping_add(signed(c)),
                ..o
            }),
            // An index into something that begins there, or a sum: what becomes of it will tell.
            (From(o), Number(m)) if !sub => From(Origin {
                stride: gcd(o.stride, m),
                ..o
            }),
            (From(_), From(_)) if !sub => Unknown,
            (Map(map, offset), Const(c)) => Map(map, offset.wrapping_add(signed(c))),
            // What array_map_gen_lookup() makes of a lookup.
            (Map(map, 1..), Number(_)) => match self.program.maps.get(map) {
                Some(found) if found.per_cpu => PerCpuSlot(map),
                _ => self.map_value(map),
            },
            // And htab_map_gen_lookup().
            (Element(map), Const(_)) => match self.program.maps.get(map) {
                Some(found) if found.per_cpu => PerCpuSlot(map),
                _ => self.map_value(map),
            },
            (Stack(at), Const(c)) => Stack(at.wrapping_add(signed(c))),
            (Context(at), Const(c)) => Context(at.wrapping_add(signed(c))),
            (CpuVariable(_) | PerCpuPointer(_) | PerCpuSlot(_), _) => Unknown,
            _ => {
                for value in [a, b] {
                    if matches!(value, From(o) if !o.low) {
                        self.arithmetic(slot, value);
                    }
                }
                match (a, b) {
                    (From(_) | Number(_) | Const(_), From(_) | Number(_) | Const(_)) => Number(1),
                    _ => Unknown,
                }
            }
        }
    }

    /// A pointer moved by some multiple of `stride`.
    fn moved(&self, p: Pointer, stride: u64) -> Value {
        match self.world.types.indexed(p.ty, p.offset, stride) {
            Some(offset) => Value::Pointer(Pointer { offset, ..p }),
            None => Value::Unknown,
        }
    }

    /// A function of the kernel.
    fn call(&mut self, slot: usize, state: &mut State, imm: i32, kfunc: bool) -> Value {
        let world = self.world;
        let Some(callee) = world.callees.get(&imm) else {
            forget_stack(state, None);
            return Value::Unknown;
        };
        if kfunc {
            return self.call_kfunc(slot, state, callee);
        }
        let name = callee.name.as_str();
        let map = match state.get(1) {
            Value::Map(map, 0) => Some(map),
            _ => None,
        };
        let on_map = name.contains("_elem") || name.contains("storage_get");
        if on_map {
            let writes = ["peek", "pop", "for_each"];
            if writes.iter().any(|word| name.contains(word)) {
                forget_stack(state, None);
            }
        } else {
            forget_stack(state, Some(()));
        }
        match (name, map) {
            ("__htab_map_lookup_elem", Some(map)) => Value::Element(map),
            (_, Some(map)) if name.contains("lookup") || name.contains("storage_get") => {
                self.initial(slot, state, map);
                self.map_value(map)
            }
            (_, Some(map)) if name.contains("update_elem") => {
                self.initial(slot, state, map);
                Value::Number(1)
            }
            ("bpf_get_current_task" | "bpf_get_current_task_btf", _) => {
                match world.types.kernel.find("struct task_struct") {
                    Ok(task) => self.pointer_to(Home::Kernel, task),
                    Err(_) => Value::Unknown,
                }
            }
            _ if name.starts_with("bpf_probe_read") && !name.contains("user") => {
                self.followed(slot, state.get(3), Mode::Probe);
                Value::Number(1)
            }
            _ if is_numeric(name) => Value::Number(1),
            _ => Value::Unknown,
        }
    }

    /// The value that an element gets, when it is made on the stack.
    fn initial(&mut self, slot: usize, state: &State, map: usize) {
        let program = self.program;
        let (Value::Stack(at), Some(map)) = (state.get(3), program.maps.get(map)) else {
            return;
        };
        if map.value.is_void() {
            return;
        }
        let end = at.saturating_add(i64::from(map.value_size));
        for (&offset, &value) in state.stack.range(at..end.max(at)) {
            self.store_to(slot, map.value, offset - at, 8, value);
        }
    }

    fn call_kfunc(&mut self, slot: usize, state: &mut State, callee: &Callee) -> Value {
        let types = self.world.types;
        let kernel = types.kernel;
        let Some(function) = callee.ty else {
            forget_stack(state, None);
            return Value::Unknown;
        };
        let params: Vec<TypeId> = kernel.parameters(function).map(|(_, ty)| ty).collect();
        for (param, reg) in params.iter().zip(1..=ARGUMENTS) {
            let value = state.get(reg);
            match kernel.pointee(*param) {
                Some(target) => {
                    let constant = kernel.ty(target).is_some_and(|ty| ty.kind == Kind::Const);
                    let ty = types.standing(Home::Kernel, target);
                    if let Value::Stack(at) = value
                        && !constant
                    {
                        // A buffer is followed by its size.
                        let size = match (types.size(ty), state.get(reg + 1)) {
                            (size @ (0 | 1), Value::Const(next)) => size.max(next),
                            (0, _) => 512,
                            (size, _) => size,
                        };
                        state.clobber(at, i64::try_from(size).unwrap_or(512));
                    }
                    let named = kernel
                        .ty(ty.id)
                        .is_some_and(|ty| matches!(ty.kind, Kind::Struct | Kind::Union));
                    if named {
                        self.used(slot, value, ty);
                    }
                }
                None => self.arithmetic(slot, value),
            }
        }
        let Some(returns) = kernel.return_type(function) else {
            return Value::Unknown;
        };
        match kernel.pointee(returns) {
            Some(target) => match self.pointer_to(Home::Kernel, target) {
                Value::Pointer(p)
                    if kernel
                        .ty(p.ty.id)
                        .is_some_and(|ty| matches!(ty.kind, Kind::Struct | Kind::Union)) =>
                {
                    Value::Pointer(p)
                }
                _ => Value::From(Origin::new(Place::Result(
                    (self.index, self.current),
                    narrow(slot),
                ))),
            },
            None if kernel.integer(returns).is_some() => Value::Number(1),
            None => Value::Unknown,
        }
    }

    /// A function of the program.
    fn call_local(&mut self, slot: usize, state: &mut State, number: u32) -> Value {
        let world = self.world;
        let own = world.types.own;
        let Some(ty) = self.body(number).map(|body| body.ty) else {
            forget_stack(state, None);
            return Value::Unknown;
        };
        let function = (self.index, number);
        let global = own.is_global_function(ty);
        let declared: Vec<TypeId> = own.parameters(ty).map(|(_, ty)| ty).collect();
        let mut changed = !self.summaries.runs.contains_key(&number);
        for param in 0..ARGUMENTS {
            if global && usize::from(param) >= declared.len() {
                break;
            }
            let value = state.get(param + 1);
            let target = declared
                .get(usize::from(param))
                .and_then(|ty| own.pointee(*ty));
            if global && let Some(target) = target {
                let ty = world.types.standing(Home::Program, target);
                self.used(slot, value, ty);
                continue;
            }
            self.put(slot, Place::Param(function, param), value);
            let passed = match value {
                Value::Stack(_) | Value::Context(_) => Value::Unknown,
                other => other,
            };
            let known = self.summaries.params.get(&(number, param)).copied();
            let joined = known.map_or(passed, |known| match (known, passed) {
                (Value::From(_), Value::From(_)) => Value::Unknown,
                (known, passed) => known.join(passed),
            });
            changed |= known != Some(joined);
            self.summaries.params.insert((number, param), joined);
        }
        forget_stack(state, None);
        if self.evidence.is_none() {
            let callers = self.summaries.callers.entry(number).or_default();
            callers.insert(self.current);
            if changed {
                self.summaries.pending.insert(number);
            }
        }
        match self.summaries.returns.get(&number) {
            // As long as nothing returns, nothing goes on here; but it will.
            None | Some(Value::Unknown | Value::From(_)) => {
                Value::From(Origin::new(Place::Return(function)))
            }
            Some(value) => *value,
        }
    }

    /// The end of a function.
    fn leave(&mut self, slot: usize, value: Value) {
        let number = self.current;
        if number == 0 {
            return;
        }
        self.put(slot, Place::Return((self.index, number)), value);
        if self.evidence.is_some() {
            return;
        }
        let value = match value {
            Value::Stack(_) | Value::Context(_) => Value::Unknown,
            other => other,
        };
        let known = self.summaries.returns.get(&number).copied();
        let joined = known.map_or(value, |known| match (known, value) {
            (Value::From(_), Value::From(_)) => Value::Unknown,
            (known, value) => known.join(value),
        });
        if known != Some(joined) {
            self.summaries.returns.insert(number, joined);
            let callers = self.summaries.callers.get(&number);
            self.summaries
                .pending
                .extend(callers.into_iter().flatten().copied());
        }
    }
}

/// A slot as facts name it: programs have a million at most.
fn narrow(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

/// After a call: r1 to r5 are gone.
fn returned(state: &mut State, result: Value) {
    for reg in 1..=ARGUMENTS {
        state.set(reg, Value::Unknown);
    }
    state.set(R0, result);
}

/// Forgets what a callee could have written to the stack. `sized`: where the next argument is a
/// constant, it is the size.
fn forget_stack(state: &mut State, sized: Option<()>) {
    for reg in 1..=ARGUMENTS {
        if let Value::Stack(at) = state.get(reg) {
            let size = match (sized, state.get(reg + 1)) {
                (Some(()), Value::Const(size)) if reg < ARGUMENTS => {
                    i64::try_from(size).unwrap_or(512)
                }
                _ => 512,
            };
            state.clobber(at, size);
        }
    }
}

/// Helpers that return a number.
fn is_numeric(name: &str) -> bool {
    [
        "ktime",
        "jiffies",
        "random",
        "prandom",
        "pid_tgid",
        "uid_gid",
        "processor_id",
        "cgroup_id",
        "numa_node",
        "_update_elem",
        "_delete_elem",
        "storage_delete",
        "trace_printk",
        "bpf_loop",
        "snprintf",
        "spin_lock",
        "spin_unlock",
        "timer_",
        "strncmp",
        "ringbuf_output",
        "ringbuf_query",
    ]
    .iter()
    .any(|word| name.contains(word))
}
