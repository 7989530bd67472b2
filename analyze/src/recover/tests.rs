//! Short programs, written by hand, and what follows from them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::collections::{BTreeSet, HashMap};

use super::flow::{self, ArenaWindow, Argument, Body, Callee, Map, Program, Space, Target, World};
use super::insn::{Alu, Insn, Memory, Mode, Operand};
use super::solve::{self, Verdict};
use super::types::{Home, Slot, Ty, Types};
use super::{Place, rounds};
use crate::kernel::btf::{Btf, TypeId};

/// Writes BTF, one type after the other.
#[derive(Default)]
struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Blob {
    fn new() -> Self {
        Self {
            strings: vec![0],
            ..Self::default()
        }
    }

    fn words(&mut self, words: &[u32]) {
        self.types
            .extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: &str, kind: u32, vlen: usize, word: u32, extra: &[u32]) -> TypeId {
        let name = self.name(name);
        self.words(&[name, kind << 24 | vlen as u32, word]);
        self.words(extra);
        self.count += 1;
        TypeId(self.count)
    }

    fn int(&mut self, name: &str, size: u32) -> TypeId {
        self.add(name, 1, 0, size, &[size * 8])
    }

    fn pointer(&mut self, target: TypeId) -> TypeId {
        self.add("", 2, 0, target.0, &[])
    }

    fn array(&mut self, element: TypeId, len: u32) -> TypeId {
        self.add("", 3, 0, 0, &[element.0, element.0, len])
    }

    /// Members of eight bytes each.
    fn strukt(&mut self, name: &str, members: &[(&str, TypeId)]) -> TypeId {
        let mut extra = Vec::new();
        for (i, (name, ty)) in members.iter().enumerate() {
            extra.extend([self.name(name), ty.0, i as u32 * 64]);
        }
        self.add(name, 4, members.len(), members.len() as u32 * 8, &extra)
    }

    fn function(&mut self, name: &str, returns: TypeId, params: &[TypeId], global: bool) -> TypeId {
        let mut extra = Vec::new();
        for (i, param) in params.iter().enumerate() {
            extra.extend([self.name(&format!("arg{i}")), param.0]);
        }
        let proto = self.add("", 13, params.len(), returns.0, &extra);
        self.add(name, 12, usize::from(global), proto.0, &[])
    }

    /// Variables of eight bytes each.
    fn section(&mut self, name: &str, variables: &[(&str, TypeId)]) -> TypeId {
        let mut extra = Vec::new();
        for (i, (name, ty)) in variables.iter().enumerate() {
            let variable = self.add(name, 14, 0, ty.0, &[1]);
            extra.extend([variable.0, i as u32 * 8, 8]);
        }
        self.add(
            name,
            15,
            variables.len(),
            variables.len() as u32 * 8,
            &extra,
        )
    }

    fn btf(&self) -> Btf {
        let mut data = Vec::new();
        data.extend(0xeb9fu16.to_le_bytes());
        data.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            data.extend(u32::to_le_bytes(word));
        }
        data.extend(&self.types);
        data.extend(&self.strings);
        Btf::parse(data).unwrap()
    }
}

const MAP: u64 = 0xffff_8880_0000_1000;
const BSS: u64 = 0xffff_c900_0000_0000;
const ARENA: u64 = 0x1000_0000_0000;
const CREATE: i32 = 10;
const LOOKUP: i32 = 20;
const TAKE_TASK: i32 = 30;
const TAKE_NUMBER: i32 = 40;

/// Types and surroundings of the programs below.
struct Fixture {
    own: Btf,
    kernel: Btf,
    node: TypeId,
    base: TypeId,
    other: TypeId,
    value: TypeId,
    bss: TypeId,
    task: TypeId,
    /// `static` and global functions of the program that take a `u64`, and one that takes a node.
    number_function: TypeId,
    node_function: TypeId,
    callees: HashMap<i32, Callee>,
}

/// Offsets in `struct node`.
mod node {
    pub(super) const ID: i16 = 8;
    pub(super) const PEER: i16 = 16;
    pub(super) const NEXT: i16 = 24;
    pub(super) const TASK: i16 = 32;
}

impl Fixture {
    fn new() -> Self {
        let mut own = Blob::new();
        let number = own.int("unsigned long long", 8);
        // Its pointer to itself is the fifth type.
        let base = own.strukt("base", &[("first", number)]);
        let node_pointer = own.pointer(TypeId(5));
        let base_pointer = own.pointer(base);
        let node = own.strukt(
            "node",
            &[
                ("base", base),
                ("id", number),
                ("peer_raw", number),
                ("next", node_pointer),
                ("task_raw", number),
            ],
        );
        assert_eq!(node, TypeId(5));
        let other = own.strukt("other", &[("thing", number)]);
        let other_pointer = own.pointer(other);
        let raws = own.array(number, 4);
        let value = own.strukt("value", &[("raw", number), ("node", node_pointer)]);
        let bss = own.section(
            ".bss",
            &[
                ("head", node_pointer),
                ("head_raw", number),
                ("other", other_pointer),
                ("count", number),
                ("base", base_pointer),
            ],
        );
        own.strukt("unused", &[("raws", raws)]);
        let number_function = own.function("cast", number, &[number], false);
        let node_function = own.function("walk", number, &[node_pointer], true);

        let mut kernel = Blob::new();
        let int = kernel.int("long unsigned int", 8);
        let task = kernel.strukt("task_struct", &[("pid", int), ("tgid", int)]);
        let task_pointer = kernel.pointer(task);
        let void_pointer = kernel.pointer(TypeId(0));
        let create = kernel.function("kf_create", void_pointer, &[], true);
        let take_task = kernel.function("kf_take_task", int, &[task_pointer], true);
        let take_number = kernel.function("kf_take_number", int, &[int], true);
        let callee = |name: &str, ty| Callee {
            name: name.into(),
            ty,
        };
        Self {
            own: own.btf(),
            kernel: kernel.btf(),
            node,
            base,
            other,
            value,
            bss,
            task,
            number_function,
            node_function,
            callees: HashMap::from([
                (CREATE, callee("kf_create", Some(create))),
                (LOOKUP, callee("bpf_task_storage_get", None)),
                (TAKE_TASK, callee("kf_take_task", Some(take_task))),
                (TAKE_NUMBER, callee("kf_take_number", Some(take_number))),
            ]),
        }
    }

    /// A program whose context holds a task; its functions begin at `starts`.
    fn program(&self, insns: &[Insn], starts: &[(usize, TypeId)]) -> Program {
        let program = |id| Ty {
            home: Home::Program,
            id,
        };
        let mut ends: Vec<usize> = starts.iter().map(|&(start, _)| start).collect();
        ends.push(insns.len());
        let mut functions = vec![Body {
            slots: 0..ends[0],
            ty: TypeId(0),
        }];
        for (i, &(start, ty)) in starts.iter().enumerate() {
            functions.push(Body {
                slots: start..ends[i + 1],
                ty,
            });
        }
        Program {
            insns: insns.to_vec(),
            functions,
            arguments: vec![
                Argument::Pointer(Ty {
                    home: Home::Kernel,
                    id: self.task,
                }),
                Argument::Number,
            ],
            maps: vec![
                Map {
                    kva: MAP,
                    values: 0..0,
                    stride: 0,
                    value: program(self.value),
                    value_size: 16,
                    per_cpu: false,
                },
                Map {
                    kva: 1,
                    values: BSS..BSS + 40,
                    stride: 40,
                    value: program(self.bss),
                    value_size: 40,
                    per_cpu: false,
                },
            ],
            arena: Some(ArenaWindow {
                user_start: ARENA,
                section: None,
            }),
        }
    }

    /// What the slot at `offset` of `parent` comes to.
    fn verdict(&self, programs: &[&Program], parent: TypeId, offset: i16) -> Verdict {
        let types = Types::new(&self.own, &self.kernel);
        let (known, facts) = rounds(programs, &types, &self.callees, None);
        let place = Place::Slot(Slot {
            parent,
            offset: u32::try_from(offset).unwrap(),
        });
        let seen = facts.iter().find(|(at, _)| *at == place);
        let verdict = seen.map_or(Verdict::None, |(_, seen)| solve::verdict(&types, seen));
        if let Verdict::Pointer(target, _) = verdict {
            assert_eq!(known.get(&place), Some(&target));
        } else {
            assert_eq!(known.get(&place), None);
        }
        verdict
    }

    /// The same for one program without functions.
    fn main(&self, insns: &[Insn], parent: TypeId, offset: i16) -> Verdict {
        self.verdict(&[&self.program(insns, &[])], parent, offset)
    }

    fn arena(&self, id: TypeId) -> Target {
        Target {
            ty: Some(Ty {
                home: Home::Program,
                id,
            }),
            space: Space::Arena,
        }
    }

    fn kernel_task(&self) -> Target {
        Target {
            ty: Some(Ty {
                home: Home::Kernel,
                id: self.task,
            }),
            space: Space::Kernel,
        }
    }
}

const fn at(base: u8, offset: i16, mode: Mode) -> Memory {
    Memory {
        base,
        offset,
        size: 8,
        mode,
    }
}

fn load(dst: u8, base: u8, offset: i16) -> Insn {
    Insn::Load {
        dst,
        memory: at(base, offset, Mode::Plain),
        signed: false,
    }
}

fn load_arena(dst: u8, base: u8, offset: i16) -> Insn {
    Insn::Load {
        dst,
        memory: at(base, offset, Mode::Arena),
        signed: false,
    }
}

fn store(base: u8, offset: i16, src: u8) -> Insn {
    Insn::Store {
        memory: at(base, offset, Mode::Plain),
        value: Operand::Reg(src),
    }
}

fn store_constant(base: u8, offset: i16, value: i32) -> Insn {
    Insn::Store {
        memory: at(base, offset, Mode::Plain),
        value: Operand::Imm(value),
    }
}

fn copy(dst: u8, src: u8) -> Insn {
    Insn::Move {
        dst,
        value: Operand::Reg(src),
        wide: true,
    }
}

/// The cast to an arena's kernel side, as the verifier leaves it.
fn cast(dst: u8, src: u8) -> Insn {
    Insn::Move {
        dst,
        value: Operand::Reg(src),
        wide: false,
    }
}

fn constant(dst: u8, value: i32) -> Insn {
    Insn::Move {
        dst,
        value: Operand::Imm(value),
        wide: true,
    }
}

fn compute(op: Alu, dst: u8, value: Operand) -> Insn {
    Insn::Arithmetic {
        op,
        dst,
        value,
        wide: true,
    }
}

fn branch(dst: u8, value: Operand, target: i64) -> Insn {
    Insn::Branch {
        dst,
        value,
        target,
        equality: true,
        wide: true,
    }
}

/// `dst = &variable` at `offset` of `.bss`; two slots.
fn variable(dst: u8, offset: u64) -> [Insn; 2] {
    [
        Insn::Load64 {
            dst,
            value: BSS + offset,
        },
        Insn::Half,
    ]
}

/// r6 = the task, r7 = the map's value for it; 6 slots.
fn prologue() -> Vec<Insn> {
    vec![
        load(6, 1, 0),
        Insn::Load64 { dst: 1, value: MAP },
        Insn::Half,
        copy(2, 6),
        Insn::Call {
            imm: LOOKUP,
            kfunc: false,
        },
        copy(7, 0),
    ]
}

fn with(insns: impl IntoIterator<Item = Insn>) -> Vec<Insn> {
    let mut all = prologue();
    all.extend(insns);
    all.push(Insn::Exit);
    all
}

/// r8 = `head`, a node.
fn head() -> Vec<Insn> {
    let mut insns = variable(8, 0).to_vec();
    insns.push(load(8, 8, 0));
    insns
}

fn with_head(insns: impl IntoIterator<Item = Insn>) -> Vec<Insn> {
    with(head().into_iter().chain(insns))
}

#[test]
fn a_stored_task_makes_its_member_a_pointer() {
    let f = Fixture::new();
    let program = with([store(7, 0, 6)]);
    let verdict = f.main(&program, f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.kernel_task(), true));
    // The way over the stack changes nothing.
    let program = with([store(10, -8, 6), load(1, 10, -8), store(7, 0, 1)]);
    let verdict = f.main(&program, f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.kernel_task(), true));
}

#[test]
fn nothing_follows_from_nothing() {
    let f = Fixture::new();
    assert_eq!(f.main(&with([]), f.value, 0), Verdict::None);
    // Loaded, compared with null, copied into a register.
    let program = with([load(1, 7, 0), branch(1, Operand::Imm(0), 9), copy(2, 1)]);
    assert_eq!(f.main(&program, f.value, 0), Verdict::None);
    // A comparison alone is not enough.
    let program = with([load(1, 7, 0), branch(1, Operand::Reg(6), 8)]);
    assert_eq!(f.main(&program, f.value, 0), Verdict::None);
}

#[test]
fn a_number_in_another_program_speaks_against_it() {
    let f = Fixture::new();
    let one = f.program(&with([store(7, 0, 6)]), &[]);
    for against in [
        with([store_constant(7, 0, 5)]),
        with([load(1, 7, 0), compute(Alu::Other, 1, Operand::Imm(3))]),
        with([load(1, 7, 0), compute(Alu::Mul, 1, Operand::Imm(3))]),
        with([
            load(1, 7, 0),
            compute(Alu::Add, 1, Operand::Imm(1)),
            store(7, 0, 1),
        ]),
        with([
            load(1, 7, 0),
            Insn::Call {
                imm: TAKE_NUMBER,
                kfunc: true,
            },
        ]),
        with([Insn::Store {
            memory: Memory {
                base: 7,
                offset: 4,
                size: 4,
                mode: Mode::Plain,
            },
            value: Operand::Imm(1),
        }]),
        with([Insn::Atomic {
            what: super::insn::Atomic::Change(false),
            memory: at(7, 0, Mode::Plain),
            src: 1,
        }]),
    ] {
        let two = f.program(&against, &[]);
        let verdict = f.verdict(&[&one, &two], f.value, 0);
        assert_eq!(verdict, Verdict::Contradicted, "{against:?}");
    }
    // Zero is a null pointer.
    let two = f.program(&with([store_constant(7, 0, 0)]), &[]);
    let verdict = f.verdict(&[&one, &two], f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.kernel_task(), true));
}

#[test]
fn two_types_are_none() {
    let f = Fixture::new();
    let both = with_head([store(7, 0, 6), store(7, 0, 8)]);
    assert_eq!(f.main(&both, f.value, 0), Verdict::Contradicted);
    // A task that is compared with a node.
    let compared = with_head([
        store(7, 0, 6),
        load(1, 7, 0),
        branch(1, Operand::Reg(8), 12),
    ]);
    assert_eq!(f.main(&compared, f.value, 0), Verdict::Contradicted);
    // A task whose address is taken for one in the arena.
    let arena = with([
        store(7, 0, 6),
        load(1, 7, 0),
        cast(1, 1),
        load_arena(2, 1, 0),
    ]);
    assert_eq!(f.main(&arena, f.value, 0), Verdict::Contradicted);
}

#[test]
fn an_arena_pointer_is_recognised_by_its_cast_and_typed_by_what_is_stored() {
    let f = Fixture::new();
    let follow = with([load(1, 7, 0), cast(1, 1), load_arena(2, 1, node::ID)]);
    let verdict = f.main(&follow, f.value, 0);
    let unknown = Target {
        ty: None,
        space: Space::Arena,
    };
    assert_eq!(verdict, Verdict::Pointer(unknown, false));
    let fill = with_head([store(7, 0, 8)]);
    let programs = [&f.program(&follow, &[]), &f.program(&fill, &[])];
    let verdict = f.verdict(&programs, f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.arena(f.node), true));
}

#[test]
fn what_is_found_lets_more_be_found() {
    let f = Fixture::new();
    // raw is a node; what is stored through it goes into a member of node.
    let program = with_head([
        store(7, 0, 8),
        load(1, 7, 0),
        cast(1, 1),
        store(1, node::TASK, 6),
        load_arena(2, 1, node::PEER),
        store(1, node::NEXT, 2),
    ]);
    let verdict = f.main(&program, f.node, node::TASK);
    assert_eq!(verdict, Verdict::Pointer(f.kernel_task(), true));
    let verdict = f.main(&program, f.node, node::PEER);
    assert_eq!(verdict, Verdict::Pointer(f.arena(f.node), false));
    assert_eq!(f.main(&program, f.node, node::ID), Verdict::None);
}

#[test]
fn copies_carry_types_and_numbers_along() {
    let f = Fixture::new();
    let mut insns = vec![store(7, 0, 8)];
    insns.push(load(1, 7, 0));
    insns.extend(variable(2, 8));
    insns.push(store(2, 0, 1));
    let verdict = f.main(&with_head(insns.clone()), f.bss, 8);
    assert_eq!(verdict, Verdict::Pointer(f.arena(f.node), true));
    // What is copied from a place that holds numbers too is no pointer.
    insns.push(store_constant(7, 0, 5));
    assert_eq!(
        f.main(&with_head(insns.clone()), f.value, 0),
        Verdict::Contradicted
    );
    assert_eq!(f.main(&with_head(insns), f.bss, 8), Verdict::None);
}

#[test]
fn ways_that_meet() {
    let f = Fixture::new();
    // r1 = condition ? the task : 0
    let program = with([
        constant(1, 0),
        branch(6, Operand::Imm(0), 9),
        copy(1, 6),
        store(7, 0, 1),
    ]);
    let verdict = f.main(&program, f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.kernel_task(), true));
    // r1 = condition ? the task : 5
    let program = with([
        constant(1, 5),
        branch(6, Operand::Imm(0), 9),
        copy(1, 6),
        store(7, 0, 1),
    ]);
    assert_eq!(f.main(&program, f.value, 0), Verdict::None);
}

#[test]
fn a_loop_over_an_array_keeps_the_element_type() {
    let f = Fixture::new();
    // do { r8 += sizeof(struct node); raw = r8; } while (r6);
    let step = compute(Alu::Add, 8, Operand::Imm(40));
    let program = with_head([step, store(7, 0, 8), branch(6, Operand::Imm(0), 9)]);
    let verdict = f.main(&program, f.value, 0);
    assert!(
        matches!(verdict, Verdict::None | Verdict::Pointer(..)),
        "{verdict:?}"
    );
    // head[r0]
    let program = with_head([
        load(1, 6, 0),
        compute(Alu::Mul, 1, Operand::Imm(40)),
        compute(Alu::Add, 8, Operand::Reg(1)),
        store(7, 0, 8),
    ]);
    let verdict = f.main(&program, f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.arena(f.node), true));
    // Half an element on, it leads nowhere.
    let program = with_head([
        load(1, 6, 0),
        compute(Alu::Mul, 1, Operand::Imm(20)),
        compute(Alu::Add, 8, Operand::Reg(1)),
        store(7, 0, 8),
    ]);
    assert_eq!(f.main(&program, f.value, 0), Verdict::None);
}

#[test]
fn what_a_kfunc_returns_is_typed_by_where_it_goes() {
    let f = Fixture::new();
    let mut insns = vec![Insn::Call {
        imm: CREATE,
        kfunc: true,
    }];
    insns.extend(variable(1, 0));
    insns.push(store(1, 0, 0));
    insns.push(store(7, 0, 0));
    let verdict = f.main(&with(insns), f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.arena(f.node), false));
}

#[test]
fn arguments_of_kfuncs_have_types() {
    let f = Fixture::new();
    let call = Insn::Call {
        imm: TAKE_TASK,
        kfunc: true,
    };
    let verdict = f.main(&with([load(1, 7, 0), call]), f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.kernel_task(), false));
}

#[test]
fn a_struct_begins_with_its_first_member() {
    let f = Fixture::new();
    // Used where a base belongs, and stored as a node: a node.
    let mut insns = vec![store(7, 0, 8), load(1, 7, 0)];
    insns.extend(variable(2, 32));
    insns.push(store(2, 0, 1));
    let verdict = f.main(&with_head(insns.clone()), f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.arena(f.node), true));
    // Used where something else belongs.
    insns.extend(variable(2, 16));
    insns.push(store(2, 0, 1));
    let verdict = f.main(&with_head(insns), f.value, 0);
    assert_eq!(verdict, Verdict::Contradicted);
    let types = Types::new(&f.own, &f.kernel);
    let own = |id| Ty {
        home: Home::Program,
        id,
    };
    assert!(types.begins_with(own(f.node), own(f.base)));
    assert!(!types.begins_with(own(f.base), own(f.node)));
    assert!(!types.begins_with(own(f.node), own(f.other)));
}

#[test]
fn what_a_function_does_with_its_parameter_tells_of_the_argument() {
    let f = Fixture::new();
    // main: cast(value->raw), which follows it.
    let mut insns = with([load(1, 7, 0), Insn::CallLocal { imm: 1, off: 1 }]);
    let start = insns.len();
    assert_eq!(start, 9);
    insns.extend([cast(1, 1), load_arena(0, 1, 0), Insn::Exit]);
    let program = f.program(&insns, &[(start, f.number_function)]);
    let verdict = f.verdict(&[&program], f.value, 0);
    assert!(
        matches!(verdict, Verdict::Pointer(t, _) if t.space == Space::Arena),
        "{verdict:?}"
    );
    // A global function says what it takes.
    let mut insns = with([
        load(1, 7, 0),
        constant(3, 0),
        Insn::CallLocal { imm: 1, off: 1 },
    ]);
    let start = insns.len();
    insns.extend([constant(0, 0), Insn::Exit]);
    let program = f.program(&insns, &[(start, f.node_function)]);
    let verdict = f.verdict(&[&program], f.value, 0);
    assert_eq!(verdict, Verdict::Pointer(f.arena(f.node), false));
}

#[test]
fn a_call_finds_its_function_by_number_and_distance() {
    let f = Fixture::new();
    // Two functions behind main; each call must reach the second, whichever field is which.
    for (imm, off) in [(4, 2), (2, 4)] {
        let mut insns = with([load(1, 7, 0), Insn::CallLocal { imm, off }]);
        let first = insns.len();
        insns.extend([
            compute(Alu::Mul, 1, Operand::Imm(3)),
            constant(0, 0),
            Insn::Exit,
        ]);
        let second = insns.len();
        assert_eq!(second, 8 + 4);
        insns.extend([cast(1, 1), load_arena(0, 1, 0), Insn::Exit]);
        let functions = [(first, f.number_function), (second, f.number_function)];
        let program = f.program(&insns, &functions);
        let verdict = f.verdict(&[&program], f.value, 0);
        assert!(
            matches!(verdict, Verdict::Pointer(t, _) if t.space == Space::Arena),
            "imm {imm}, off {off}: {verdict:?}"
        );
    }
}

#[test]
fn a_function_that_computes_with_its_parameter_takes_a_number() {
    let f = Fixture::new();
    let mut insns = with_head([
        store(7, 0, 8),
        load(1, 7, 0),
        Insn::CallLocal { imm: 1, off: 1 },
    ]);
    let start = insns.len();
    insns.extend([
        compute(Alu::Mul, 1, Operand::Imm(3)),
        copy(0, 1),
        Insn::Exit,
    ]);
    let program = f.program(&insns, &[(start, f.number_function)]);
    let verdict = f.verdict(&[&program], f.value, 0);
    assert_eq!(verdict, Verdict::Contradicted);
}

/// A generator of bytes; the same ones every time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn noise_ends_and_breaks_nothing() {
    let f = Fixture::new();
    let types = Types::new(&f.own, &f.kernel);
    let mut noise = Noise(0x5cec_2d5e_ed00_0001);
    let codes = [
        0x79u64, 0x7b, 0xb9, 0xbb, 0xbf, 0xbc, 0x07, 0x0f, 0x27, 0x15, 0x1d, 0x05, 0x85, 0x95,
        0x18, 0xdb, 0x67, 0x8d, 0xe5, 0xf5, 0xb7,
    ];
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..200)
            .flat_map(|_| {
                let word = noise.next();
                // Mostly codes that exist, jumps that stay near.
                let code = codes[(noise.next() % codes.len() as u64) as usize];
                let near = (word >> 16 & 0x1f).wrapping_sub(8) & 0xffff;
                (word & !0xffff_00ff | code | near << 16).to_le_bytes()
            })
            .collect();
        let insns = super::insn::decode(&bytes);
        let starts = [(50, f.number_function), (120, f.node_function)];
        let program = f.program(&insns, &starts);
        let (known, facts) = rounds(&[&program, &program], &types, &f.callees, Some(BSS));
        assert!(known.len() <= facts.len());
    }
}

#[test]
fn the_same_programs_tell_the_same() {
    let f = Fixture::new();
    let program = f.program(&with_head([store(7, 0, 8), load(1, 7, 0)]), &[]);
    let types = Types::new(&f.own, &f.kernel);
    let known = HashMap::new();
    let world = World {
        types: &types,
        callees: &f.callees,
        current_task: None,
        known: &known,
    };
    let first = flow::run(&world, &program, 0).evidence;
    assert!(!first.is_empty());
    for _ in 0..10 {
        assert_eq!(flow::run(&world, &program, 0).evidence, first);
    }
    let (facts, _) = solve::decide(&types, first, &BTreeSet::new());
    assert!(facts.is_sorted_by_key(|(place, _)| *place));
}

/// The BTF of `unsigned long total[2][6]`, which some programs write as one array of 12.
#[test]
fn arrays_of_arrays_are_flattened_and_described_as_in_c() {
    let mut blob = Blob::new();
    let number = blob.int("unsigned long", 8);
    let inner = blob.array(number, 6);
    let outer = blob.array(inner, 2);
    let deep = (0..80).fold(outer, |of, _| blob.array(of, 1));
    let wide = (0..3).fold(number, |of, _| blob.array(of, u32::MAX));
    let btf = blob.btf();
    let flat = btf.flat_array(outer).unwrap();
    assert_eq!((flat.element, flat.len), (number, 12));
    let plain = btf.flat_array(inner).unwrap();
    assert_eq!((plain.element, plain.len), (number, 6));
    assert!(btf.flat_array(number).is_none());
    assert_eq!(btf.describe(outer), "unsigned long[2][6]");
    // Deeper than any type of C, and more elements than can be counted: no arrays to read from.
    assert!(btf.flat_array(deep).is_none());
    assert!(btf.flat_array(wide).is_none());
}
