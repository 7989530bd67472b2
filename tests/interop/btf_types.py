# SPDX-License-Identifier: GPL-2.0-only
"""Types for drgn from a kernel's BTF.

drgn 0.3.0 takes types from DWARF only, and Debian keeps the debug packages of few
kernels. A kernel carries its own types as BTF, and kallsyms has its symbols: with both,
drgn reads any core of a kernel that has them.

Written from Documentation/bpf/btf.rst. It shares nothing with the analyzer's reader.
"""

import functools
import struct

import drgn
from drgn import Object, Qualifiers, TypeEnumerator, TypeKind, TypeMember

(
    INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT,
    FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64,
) = range(1, 20)

FINDABLE = {
    INT: TypeKind.INT,
    STRUCT: TypeKind.STRUCT,
    UNION: TypeKind.UNION,
    ENUM: TypeKind.ENUM,
    ENUM64: TypeKind.ENUM,
    TYPEDEF: TypeKind.TYPEDEF,
    FLOAT: TypeKind.FLOAT,
}


class Btf:
    """A `.BTF` blob, its types made into drgn's when asked for."""

    def __init__(self, prog, data):
        magic, _, _, header, type_off, type_len, str_off, str_len = struct.unpack_from(
            "<HBBIIIII", data
        )
        if magic != 0xEB9F:
            raise ValueError(f"not BTF: it begins with {data[:2].hex()}")
        self.prog = prog
        self.types = data[header + type_off : header + type_off + type_len]
        self.strings = data[header + str_off : header + str_off + str_len]
        self.offsets = [None]  # id 0 is void
        self.by_name = {}
        self.variables = {}
        self.enumerators = {}
        self._index()
        self.type = functools.lru_cache(maxsize=None)(self._type)

    def _string(self, offset):
        return self.strings[offset : self.strings.index(b"\0", offset)].decode()

    def _index(self):
        data, at = self.types, 0
        unpack = struct.Struct("<III").unpack_from
        while at < len(data):
            name, info, size = unpack(data, at)
            kind, vlen = info >> 24 & 31, info & 0xFFFF
            ident = len(self.offsets)
            self.offsets.append(at)
            if name and kind in FINDABLE:
                self.by_name.setdefault((FINDABLE[kind], self._string(name)), ident)
            if kind in (ENUM, ENUM64):
                step = 8 if kind == ENUM else 12
                for i in range(vlen):
                    (string,) = struct.unpack_from("<I", data, at + 12 + i * step)
                    self.enumerators.setdefault(self._string(string), ident)
            elif kind == VAR:
                self.variables[self._string(name)] = size
            at += 12 + {
                INT: 4, ARRAY: 12, STRUCT: 12 * vlen, UNION: 12 * vlen, ENUM: 8 * vlen,
                FUNC_PROTO: 8 * vlen, VAR: 4, DATASEC: 12 * vlen, DECL_TAG: 4, ENUM64: 12 * vlen,
            }.get(kind, 0)

    def find(self, kinds, name):
        for kind in kinds:
            ident = self.by_name.get((kind, name))
            if ident is not None:
                return self.type(ident)
        return None

    def _member(self, ident, bits):
        if bits:
            return lambda: Object(self.prog, self.type(ident), bit_field_size=bits)
        return lambda: self.type(ident)

    def _type(self, ident):
        prog = self.prog
        if ident == 0:
            return prog.void_type()
        at = self.offsets[ident]
        name_off, info, size = struct.unpack_from("<III", self.types, at)
        kind, vlen, flag = info >> 24 & 31, info & 0xFFFF, info >> 31
        name = self._string(name_off) if name_off else None
        at += 12
        if kind == INT:
            (word,) = struct.unpack_from("<I", self.types, at)
            if word >> 24 & 4:
                return prog.bool_type(name, size)
            return prog.int_type(name, size, bool(word >> 24 & 1))
        if kind == FLOAT:
            return prog.float_type(name, size)
        if kind == PTR:
            return prog.pointer_type(self.type(size))
        if kind == ARRAY:
            element, _, count = struct.unpack_from("<III", self.types, at)
            return prog.array_type(self.type(element), count)
        if kind in (STRUCT, UNION):
            members = []
            for i in range(vlen):
                member, of, offset = struct.unpack_from("<III", self.types, at + 12 * i)
                bits, offset = (offset >> 24, offset & 0xFFFFFF) if flag else (0, offset)
                label = self._string(member) if member else None
                members.append(TypeMember(self._member(of, bits), label, offset))
            make = prog.struct_type if kind == STRUCT else prog.union_type
            return make(name, size, members)
        if kind in (ENUM, ENUM64):
            values = []
            for i in range(vlen):
                if kind == ENUM:
                    string, value = struct.unpack_from("<Ii" if flag else "<II", self.types, at + 8 * i)
                else:
                    string, low, high = struct.unpack_from("<III", self.types, at + 12 * i)
                    value = high << 32 | low
                    if flag and value >> 63:
                        value -= 1 << 64
                values.append(TypeEnumerator(self._string(string), value))
            compatible = prog.int_type("int" if flag else "unsigned int", size, bool(flag))
            return prog.enum_type(name, compatible, values)
        if kind == FWD:
            return (prog.union_type if flag else prog.struct_type)(name)
        if kind == TYPEDEF:
            return prog.typedef_type(name, self.type(size))
        if kind in (VOLATILE, CONST, RESTRICT):
            more = {
                VOLATILE: Qualifiers.VOLATILE, CONST: Qualifiers.CONST, RESTRICT: Qualifiers.RESTRICT,
            }[kind]
            of = self.type(size)
            return of.qualified(of.qualifiers | more)
        if kind == FUNC_PROTO:
            # Nothing here calls or prints a function.
            return prog.function_type(prog.void_type(), (), is_variadic=True)
        if kind in (FUNC, TYPE_TAG):
            return self.type(size)
        raise ValueError(f"BTF type {ident} is of kind {kind}")


def install(prog, data, globals_):
    """Makes drgn take types from `data`, and globals from kallsyms with these types.

    Only per-CPU variables have a type in BTF; `globals_` names those of others in C.
    """
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    btf = Btf(prog, data)
    symbols = load_vmlinux_kallsyms(prog)
    prog.register_symbol_finder("kallsyms", symbols, enable_index=0)
    prog.register_type_finder(
        "btf", lambda prog, kinds, name, filename: btf.find(kinds, name), enable_index=0
    )

    def find_object(prog, name, flags, filename):
        if flags & drgn.FindObjectFlags.CONSTANT and name in btf.enumerators:
            of = btf.type(btf.enumerators[name])
            value = next(e.value for e in of.enumerators if e.name == name)
            return Object(prog, of, value)
        if flags & drgn.FindObjectFlags.VARIABLE:
            if name in btf.variables:
                of = btf.type(btf.variables[name])
            elif name in globals_:
                of = globals_[name]
                of = prog.type(of) if isinstance(of, str) else of(prog)
            else:
                return None
            found = symbols(prog, name, None, True)
            if found:
                return Object(prog, of, address=found[0].address)
        return None

    prog.register_object_finder("btf", find_object, enable_index=0)
    return btf
