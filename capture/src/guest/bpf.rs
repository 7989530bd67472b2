//! The three bpf(2) calls that aya does not offer: types, a map that has them, a pin.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_F_RDONLY_PROG`.
pub(super) const F_RDONLY_PROG: u32 = 1 << 7;
/// `BPF_F_MMAPABLE`.
pub(super) const F_MMAPABLE: u32 = 1 << 10;

const MAP_CREATE: libc::c_int = 0;
const OBJ_PIN: libc::c_int = 6;
const BTF_LOAD: libc::c_int = 18;
const TYPE_ARRAY: u32 = 2;
/// `BPF_OBJ_NAME_LEN`.
const NAME_LEN: usize = 16;

/// The parts of `union bpf_attr` (include/uapi/linux/bpf.h) that the calls take; the kernel counts
/// what is behind them as zero.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; NAME_LEN],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}

#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct BtfLoad {
    btf: u64,
    log_buf: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
}

fn call<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the structs above, so the kernel reads as many bytes as it has, and
    // the pointers in it are of buffers that their callers hold until this returns. None of the
    // three commands writes to user memory. There is no safe wrapper of bpf(2) for them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A buffer's address as the kernel takes it.
fn address(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.as_ptr().addr()).unwrap_or(0)
}

/// Gives the kernel types, as in an object's `.BTF`.
pub(super) fn load_btf(types: &[u8]) -> io::Result<OwnedFd> {
    let attr = BtfLoad {
        btf: address(types),
        log_buf: 0,
        btf_size: u32::try_from(types.len()).map_err(io::Error::other)?,
        log_size: 0,
        log_level: 0,
    };
    owned(call(BTF_LOAD, &attr)?)
}

/// Makes an array of one value, whose type is a section of variables.
pub(super) fn create_array(
    name: &str,
    value_size: u32,
    map_flags: u32,
    types: &OwnedFd,
    section: u32,
) -> io::Result<OwnedFd> {
    let mut map_name = [0; NAME_LEN];
    for (to, from) in map_name.iter_mut().take(NAME_LEN - 1).zip(name.bytes()) {
        *to = from;
    }
    let attr = MapCreate {
        map_type: TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: 1,
        map_flags,
        map_name,
        btf_fd: raw(types),
        btf_value_type_id: section,
        ..MapCreate::default()
    };
    owned(call(MAP_CREATE, &attr)?)
}

/// Pins a map.
pub(super) fn pin(map: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjPin {
        pathname: address(path.as_bytes_with_nul()),
        bpf_fd: raw(map),
        file_flags: 0,
    };
    call(OBJ_PIN, &attr).map(|_| ())
}
