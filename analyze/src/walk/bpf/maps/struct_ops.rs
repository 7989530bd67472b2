//! STRUCT_OPS: the ops that a scheduler registered.
//!
//! Reads `struct bpf_struct_ops_map` (kernel/bpf/bpf_struct_ops.c): `kvalue.data` is the kernel's
//! copy of the ops, whose function pointers lead to trampolines; `links` has the program of each
//! of its members.

use std::sync::Arc;

use scx_postmortem_format::report::{Callback, NamedId, reasons};

use super::{Found, Map};
use crate::bytes::to_usize;
use crate::error::{Error, Result};
use crate::kernel::TypeId;
use crate::object::Object;
use crate::walk::bpf::btfs;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let ops_map = map.cast("struct bpf_struct_ops_map")?;
    let state = ops_map.member("kvalue.common.state")?;
    found.own.struct_ops_state = state
        .enum_name()?
        .map(|name| name.trim_start_matches("BPF_STRUCT_OPS_STATE_").to_owned());
    let wrapper = TypeId(map.object.member("btf_vmlinux_value_type_id")?.u32()?);
    // Ops of a kernel module have their types in that module's BTF.
    let types = btfs::load(map.kernel, ops_map.member("btf")?.ptr()?)?.types;
    let wrapper_data = types.field(wrapper, "data")?;
    let ty = wrapper_data.ty;
    let size = types
        .size_of(ty)
        .ok_or_else(|| Error::NoType("ops with a size".into()))?;
    let data = ops_map.member("kvalue.data")?.address();
    match map.kernel.read_bytes(data, size) {
        Ok(bytes) => {
            let scope = map.scope.with_types(Arc::clone(&types));
            found.shared.value = Some(scope.render_at(ty, &bytes, data.0));
        }
        Err(error) => found.error(format!("{} ({error})", reasons::map::STRUCT_OPS_UNMAPPED)),
    }
    found.own.entries = Some(1);
    match callbacks(&ops_map, &types, ty) {
        Ok(callbacks) => found.own.callbacks = callbacks,
        Err(error) => found.error(format!("its programs cannot be told: {error}")),
    }
    Ok(())
}

/// Which program implements which member. `links` has the link of each program, without gaps; a
/// struct_ops program's `expected_attach_type` is the number of its member.
fn callbacks(
    ops_map: &Object<'_>,
    types: &crate::kernel::Btf,
    ty: TypeId,
) -> Result<Vec<Callback>> {
    let kernel = ops_map.kernel();
    let members: Vec<_> = types.members(ty).collect();
    let links = ops_map.member("links")?.ptr()?;
    let count = ops_map.member("funcs_cnt")?.u32()?;
    let mut callbacks = Vec::new();
    for index in (0..u64::from(count)).take(members.len()) {
        let link = kernel.read_ptr(links.add(index * 8))?;
        if link.is_null() {
            break;
        }
        let prog = kernel.object("struct bpf_link", link)?.member("prog")?;
        let prog = prog.deref()?;
        let number = prog.member("expected_attach_type")?.u32()?;
        let member = members.get(to_usize(u64::from(number)));
        let aux = prog.member("aux")?.deref()?;
        callbacks.push(Callback {
            member: member.map_or_else(|| number.to_string(), |m| m.name.to_owned()),
            prog: NamedId {
                id: aux.member("id")?.u32()?,
                name: aux.member("name")?.text()?,
            },
            source: None,
        });
    }
    Ok(callbacks)
}
