# SPDX-License-Identifier: GPL-2.0-only
"""Types of map values, for compare_maps.py: what `bpftool btf dump` wrote, or an object's .BTF.

Says what bpftool would print for bytes (tools/bpf/bpftool/btf_dumper.c), and where in a
value the kernel keeps what no look-up returns. Nothing of ours is in it.
"""

import re
import struct

# Fields that a look-up does not copy (kernel/bpf/btf.c: btf_parse_fields).
FIELDS = {
    "bpf_spin_lock", "bpf_res_spin_lock", "bpf_timer", "bpf_wq", "bpf_task_work", "bpf_list_head",
    "bpf_list_node", "bpf_rb_root", "bpf_rb_node", "bpf_refcount",
}
POINTER_TAGS = {"kptr", "kptr_untrusted", "percpu_kptr", "uptr"}
MODIFIERS = {"TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG", "DECL_TAG", "VAR"}
KINDS = (
    "VOID", "INT", "PTR", "ARRAY", "STRUCT", "UNION", "ENUM", "FWD", "TYPEDEF", "VOLATILE", "CONST",
    "RESTRICT", "FUNC", "FUNC_PROTO", "VAR", "DATASEC", "FLOAT", "DECL_TAG", "TYPE_TAG", "ENUM64",
)


class Member:
    def __init__(self, name, type_id, bit, bits=0):
        self.name, self.type_id, self.bit, self.bits = name, type_id, bit, bits


class Type:
    def __init__(self, kind, name):
        self.kind, self.name = kind, name
        self.size = self.target = self.count = 0
        self.signed = False
        self.encoding = ""
        self.members = []  # of structs, unions and sections
        self.names = []  # (name, value) of an enum


class Types:
    def __init__(self, types, linked=True):
        self.types = types
        # Whether the variables of sections have their offsets: the loader fills them in.
        self.linked = linked
        self.by_name = {}
        for number, each in types.items():
            if each.name:
                self.by_name.setdefault((each.kind, each.name), number)

    def strip(self, number):
        """Through typedefs and qualifiers: (type, names of the type tags on the way)."""
        tags, at = set(), self.types.get(number)
        for _ in range(64):
            if at is None or at.kind not in MODIFIERS:
                break
            if at.kind == "TYPE_TAG":
                tags.add(at.name)
            at = self.types.get(at.target)
        return at, tags

    def size(self, number):
        at, _ = self.strip(number)
        if at is None:
            return 0
        if at.kind == "PTR":
            return 8
        return at.count * self.size(at.target) if at.kind == "ARRAY" else at.size

    def of_map(self, name):
        """(key, value) type ids of the map with this name of at most 15 bytes; 0 for none."""
        section = self.by_name.get(("DATASEC", ".maps"))
        found = []
        for member in self.types[section].members if section else []:
            variable = self.types[member.type_id]
            if variable.name[:15] == name:
                members = {m.name: m for m in self.strip(variable.target)[0].members}
                found.append(tuple(
                    self.strip(members[which].type_id)[0].target if which in members else 0
                    for which in ("key", "value")
                ))
        if found:
            return found[0] if len(found) == 1 else (0, 0)
        sections = [(k[1], n) for k, n in self.by_name.items() if k[0] == "DATASEC"]
        # libbpf names the map of .bss, .data, .rodata and .kconfig after the object.
        suffix = name[name.index("."):] if "." in name else None
        exact = [n for label, n in sections if label[:15] == name or label == suffix]
        return (0, exact[0]) if len(exact) == 1 else (0, 0)

    def special(self, number, base=0):
        """Byte ranges, with their types' names, that a look-up leaves out."""
        at, _ = self.strip(number)
        if at is None:
            return
        if at.kind == "PTR":
            tags = self.strip(at.target)[1] & POINTER_TAGS
            if tags:
                yield base, base + 8, min(tags)
        elif at.kind == "STRUCT" and at.name in FIELDS:
            yield base, base + at.size, at.name
        elif at.kind in ("STRUCT", "UNION", "DATASEC"):
            for member in at.members:
                if not member.bits:
                    yield from self.special(member.type_id, base + member.bit // 8)
        elif at.kind == "ARRAY":
            each = self.size(at.target)
            for i in range(at.count):
                yield from self.special(at.target, base + i * each)

    def covered(self, number, base=0):
        """Bytes that are some member's: the others are padding."""
        at, _ = self.strip(number)
        if at is None:
            return set()
        if at.kind in ("STRUCT", "UNION", "DATASEC"):
            out = set()
            for member in at.members:
                if member.bits:
                    first, last = member.bit // 8, (member.bit + member.bits - 1) // 8
                    out |= set(range(base + first, base + last + 1))
                else:
                    out |= self.covered(member.type_id, base + member.bit // 8)
            return out
        if at.kind == "ARRAY":
            each, out = self.size(at.target), set()
            for i in range(at.count):
                out |= self.covered(at.target, base + i * each)
            return out
        return set(range(base, base + self.size(number)))

    def text(self, number, data):
        """What bpftool prints for the bytes, as JSON has it; floats as floats."""
        at, _ = self.strip(number)
        if at is None:
            return None
        if at.kind == "INT":
            return self._integer(at, data)
        if at.kind == "FLOAT":
            return struct.unpack("<f" if at.size == 4 else "<d", data[: at.size])[0]
        if at.kind in ("ENUM", "ENUM64"):
            raw = int.from_bytes(data[: at.size], "little", signed=at.signed)
            for name, value in at.names:
                if value == raw:
                    return name
            return raw
        if at.kind == "PTR":
            return int.from_bytes(data[:8], "little")
        if at.kind == "ARRAY":
            element, _ = self.strip(at.target)
            each = self.size(at.target)
            if element.kind == "INT" and element.size == 1 and (element.encoding == "CHAR" or element.name == "char"):
                end = data[: at.count].find(0)
                if end >= 0 and all(0x1F < b < 0x7F for b in data[:end]):
                    return data[:end].decode()
            return [self.text(at.target, data[i * each:(i + 1) * each]) for i in range(at.count)]
        if at.kind in ("STRUCT", "UNION"):
            out = []
            for member in at.members:
                part = data[member.bit // 8:]
                if member.bits:
                    last = (member.bit % 8 + member.bits + 7) // 8
                    value = int.from_bytes(part[:last], "little") >> member.bit % 8
                    out.append((member.name, hex(value & (1 << member.bits) - 1)))
                else:
                    out.append((member.name, self.text(member.type_id, part)))
            return Pairs(out)
        if at.kind == "DATASEC":
            return Pairs([(at.name, [
                Pairs([(self.types[m.type_id].name, self.text(m.type_id, data[m.bit // 8:]))]) for m in at.members
            ])])
        return None

    @staticmethod
    def _integer(at, data):
        value = int.from_bytes(data[: at.size], "little", signed=at.signed)
        if at.encoding == "BOOL":
            return bool(value)
        if at.encoding == "CHAR":
            return chr(value & 0xFF)
        return hex(value) if at.size == 16 else value


class Pairs(list):
    """Members of a JSON object: bpftool gives anonymous ones the same name."""


LINE = re.compile(r"\[(\d+)\] (\w+) '(.*?)'(.*)$")
MEMBER = re.compile(r"\t'(.*)' type_id=(\d+) bits_offset=(\d+)(?: bitfield_size=(\d+))?")
VALUE = re.compile(r"\t'(.*)' val=(-?\d+)")
VARIABLE = re.compile(r"\ttype_id=(\d+) offset=(\d+) size=(\d+)")


def from_text(text):
    """Types from `bpftool btf dump id N`."""
    types, at = {}, None
    for line in text.splitlines():
        if match := LINE.match(line):
            number, kind, name, rest = match.groups()
            at = types[int(number)] = Type(kind, "" if name == "(anon)" else name)
            fields = dict(re.findall(r"(\w+)=(\S+?),?(?=\s|$)", rest))
            at.size = int(fields.get("size", 0))
            at.target = int(fields.get("type_id", 0))
            at.count = int(fields.get("nr_elems", 0))
            encoding = fields.get("encoding", "")
            at.signed = encoding == "SIGNED"
            at.encoding = "" if encoding == "(none)" else encoding
        elif match := MEMBER.match(line):
            name, number, bit, bits = match.groups()
            at.members.append(Member("" if name == "(anon)" else name, int(number), int(bit), int(bits or 0)))
        elif match := VALUE.match(line):
            at.names.append((match[1], int(match[2])))
        elif match := VARIABLE.match(line):
            at.members.append(Member("", int(match[1]), int(match[2]) * 8))
    return Types(types)


def from_object(path):
    """Types from the .BTF section of an ELF object."""
    data = path.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 0x28)
    each, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * each) for i in range(count)]
    string = lambda base, at: data[base + at:data.index(b"\0", base + at)].decode()
    for section in sections:
        if string(sections[names][4], section[0]) == ".BTF":
            return from_blob(data[section[4]:section[4] + section[5]])
    raise ValueError(f"{path}: no .BTF")


def from_blob(blob):
    magic, _, _, header, types_at, types_len, strings_at, _ = struct.unpack_from("<HBBIIIII", blob)
    if magic != 0xEB9F:
        raise ValueError("no BTF")
    strings = header + strings_at
    string = lambda at: blob[strings + at:blob.index(b"\0", strings + at)].decode()
    types, number, at, end = {}, 1, header + types_at, header + types_at + types_len
    while at < end:
        name, info, size = struct.unpack_from("<III", blob, at)
        at += 12
        count, kind, flag = info & 0xFFFF, KINDS[info >> 24 & 0x1F], bool(info >> 31)
        each = types[number] = Type(kind, string(name))
        number += 1
        if kind in ("INT", "STRUCT", "UNION", "ENUM", "ENUM64", "DATASEC", "FLOAT"):
            each.size = size
        else:
            each.target = size
        if kind == "INT":
            (bits,) = struct.unpack_from("<I", blob, at)
            at += 4
            each.encoding = {1: "SIGNED", 2: "CHAR", 4: "BOOL"}.get(bits >> 24 & 15, "")
            each.signed = bits >> 24 & 1 == 1
        elif kind == "ARRAY":
            each.target, _, each.count = struct.unpack_from("<III", blob, at)
            at += 12
        elif kind in ("STRUCT", "UNION"):
            for _ in range(count):
                label, type_id, offset = struct.unpack_from("<III", blob, at)
                bits = offset >> 24 if flag else 0
                each.members.append(Member(string(label), type_id, offset & 0xFFFFFF if flag else offset, bits))
                at += 12
        elif kind in ("ENUM", "ENUM64"):
            each.signed = flag
            for _ in range(count):
                if kind == "ENUM":
                    label, value = struct.unpack_from("<Ii" if flag else "<II", blob, at)
                    at += 8
                else:
                    label, low, high = struct.unpack_from("<IIi" if flag else "<III", blob, at)
                    value = high << 32 | low
                    at += 12
                each.names.append((string(label), value))
        elif kind == "DATASEC":
            for _ in range(count):
                type_id, offset, _ = struct.unpack_from("<III", blob, at)
                each.members.append(Member("", type_id, offset * 8))
                at += 12
        elif kind == "FUNC_PROTO":
            at += 8 * count
        elif kind in ("VAR", "DECL_TAG"):
            at += 4
    return Types(types, linked=False)
