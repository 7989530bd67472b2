//! Who owns an element of a local storage, and what a socket is.
//!
//! Reads identifying members of `struct task_struct`, `struct cgroup`, `struct inode` and
//! `struct sock_common`.

use scx_postmortem_format::report::{Hex, StorageOwner};

use crate::addr::Kva;
use crate::error::Result;
use crate::kernel::Kernel;

/// What an object is: its id, and its name.
pub(super) type Identity = Result<(Option<u64>, String)>;

/// The owner at `kva` in a map of this type.
pub(super) fn owner(kernel: &Kernel, map_type: u32, kva: Kva) -> StorageOwner {
    let (kind, read): (_, fn(&Kernel, Kva) -> Identity) = match map_type {
        24 => ("sock", socket),
        28 => ("inode", inode),
        29 => ("task", task),
        _ => ("cgroup", cgroup),
    };
    let mut owner = StorageOwner {
        kva: Hex(kva.0),
        kind: kind.to_owned(),
        ..StorageOwner::default()
    };
    if kva.is_null() {
        owner.error = Some("the element has no owner any more: it is being freed".into());
        return owner;
    }
    match read(kernel, kva) {
        Ok((id, name)) => {
            owner.id = id;
            owner.name = Some(name);
        }
        Err(error) => owner.error = Some(error.to_string()),
    }
    owner
}

fn task(kernel: &Kernel, kva: Kva) -> Identity {
    let task = kernel.object("struct task_struct", kva)?;
    let pid = task.member("pid")?.i32()?;
    Ok((u64::try_from(pid).ok(), task.member("comm")?.text()?))
}

/// A cgroup's id, which is that of its kernfs node, and its path.
pub(super) fn cgroup(kernel: &Kernel, kva: Kva) -> Identity {
    let cgroup = kernel.object("struct cgroup", kva)?;
    let id = cgroup.member("kn")?.deref()?.member("id")?.u64()?;
    Ok((Some(id), kernel.cgroup_path(&cgroup)?))
}

/// An inode's number; its filesystem, device and one of its names.
fn inode(kernel: &Kernel, kva: Kva) -> Identity {
    let inode = kernel.object("struct inode", kva)?;
    let number = inode.member("i_ino")?.u64()?;
    let superblock = inode.member("i_sb")?.deref()?;
    let filesystem = superblock.member("s_type")?.deref()?.member("name")?;
    let mut name = filesystem.string(64)?.unwrap_or_default();
    let device = superblock.member("s_id")?.text()?;
    if device != name {
        name = format!("{name} {device}");
    }
    let first = kernel.read_ptr(inode.member("i_dentry")?.address())?;
    if !first.is_null() {
        // 7.1 took the name from the union.
        let dentry = kernel
            .entry("struct dentry", "d_alias", first)
            .or_else(|_| kernel.entry("struct dentry", "d_u.d_alias", first))?;
        let file = dentry.first_of(&["d_name.name", "d_shortname.string"])?;
        name = format!("{name} {}", file.string(256)?.unwrap_or_default());
    }
    Ok((Some(number), name))
}

/// A socket's cookie, where someone has asked for it; its family, state and ports.
pub(super) fn socket(kernel: &Kernel, kva: Kva) -> Identity {
    let common = kernel.object("struct sock", kva)?.member("__sk_common")?;
    let cookie = common.member("skc_cookie.counter")?.u64()?;
    let cookie = (cookie != 0).then_some(cookie);
    let family = common.member("skc_family")?.u32()?;
    let state = common.member("skc_state")?.u32()?;
    let name = match family {
        1 => "AF_UNIX".to_owned(),
        2 => "AF_INET".to_owned(),
        10 => "AF_INET6".to_owned(),
        16 => "AF_NETLINK".to_owned(),
        17 => "AF_PACKET".to_owned(),
        44 => "AF_XDP".to_owned(),
        other => format!("family {other}"),
    };
    if !matches!(family, 2 | 10) {
        return Ok((cookie, format!("{name} state {state}")));
    }
    // The local port is in host order, the remote one in network order.
    let local = common.member("skc_num")?.u32()?;
    let [high, low, ..] = common.member("skc_dport")?.u32()?.to_le_bytes();
    let remote = u16::from_be_bytes([high, low]);
    Ok((
        cookie,
        format!("{name} local port {local} remote port {remote} state {state}"),
    ))
}
