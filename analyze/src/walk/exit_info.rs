//! Why a scheduler ended: `struct scx_exit_info`, with the kernel's own dump.
//!
//! Mirrors `alloc_exit_info()` in kernel/sched/ext.c for the sizes, which are in `enum scx_consts`.

use scx_postmortem_format::report::{ExitInfo, Frame, Hex};

use super::sched::{Sched, exit_kind_name, named_flags};
use super::{Members, Remarks, kernel_dump};
use crate::addr::Kva;
use crate::bytes::{to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::Kernel;

/// Longest text believed.
const MAX_LEN: u64 = 64 << 20;
/// Most frames believed.
const MAX_FRAMES: u64 = 1024;

/// The size of one of the record's buffers.
fn buffer(kernel: &Kernel, name: &str) -> Result<u64> {
    let size = kernel.constant("enum scx_consts", name)?;
    Ok(size.cast_unsigned().min(MAX_LEN))
}

/// Reads the exit record. `None` while the scheduler runs without trouble.
///
/// # Errors
/// When the record cannot be reached.
pub fn read(sched: &Sched<'_>, remarks: &mut Remarks) -> Result<Option<ExitInfo>> {
    let kernel = sched.object.kernel();
    let info = sched.object.member("exit_info")?.deref()?;
    let kind = info.member("kind")?.u32()?;
    let sched_kind = sched.object.member("exit_kind")?.u32()?;
    if kind == 0 && sched_kind == 0 {
        return Ok(None);
    }
    // The claim of the exit (exit_kind) comes before the record is filled.
    let backtrace = (|| {
        let len = info.member("bt_len")?.u64()?;
        if len > buffer(kernel, "SCX_EXIT_BT_LEN")?.min(MAX_FRAMES) {
            return Err(Error::Implausible {
                what: "scx_exit_info.bt_len".into(),
                found: len.to_string(),
                why: "at most SCX_EXIT_BT_LEN",
            });
        }
        let base = info.member("bt")?.ptr()?;
        (0..len)
            .map(|i| {
                let addr = kernel.read_u64(base.add(i * 8))?;
                Ok(Frame {
                    addr: Hex(addr),
                    symbol: kernel.symbolize(Kva(addr)),
                    source: None,
                })
            })
            .collect::<Result<Vec<_>>>()
    })();
    // The text, and whether it was cut: seq_buf keeps it terminated, so a full buffer was.
    let dump = (|| {
        // A scheduler that asks for no size gets the default.
        let len = match sched.object.member("ops.exit_dump_len") {
            Ok(len) => len.u64()?.min(MAX_LEN),
            Err(e) if e.is_absent() => 0,
            Err(e) => return Err(e),
        };
        let len = match len {
            0 => buffer(kernel, "SCX_EXIT_DUMP_DFL_LEN")?,
            len => len,
        };
        let at = info.member("dump")?.ptr()?;
        if at.is_null() {
            return Ok((String::new(), false));
        }
        let text = kernel.read_cstr_bytes(at, to_usize(len))?;
        let cut = to_u64(text.len()) + 1 >= len;
        Ok((String::from_utf8_lossy(&text).into_owned(), cut))
    })();
    let optional = &mut Members::of("exit_info", info, remarks);
    let (dump, dump_truncated) = optional.ok("dump", dump).unwrap_or_default();
    let dump = Some(dump).filter(|d| !d.is_empty());
    let parsed_dump = dump.as_deref().map(kernel_dump::parse);
    Ok(Some(ExitInfo {
        kind,
        kind_name: exit_kind_name(kernel, kind),
        exit_code: optional.get("exit_code", |c| c.i64()),
        flags: optional
            .u64("flags")
            .map(|f| named_flags(kernel, "enum scx_exit_flags", "SCX_EFLAG_", f)),
        exit_cpu: optional.i32("exit_cpu"),
        reason: optional.get("reason", |r| r.string(256)).flatten(),
        msg: optional
            .get("msg", |m| {
                m.string(to_usize(buffer(kernel, "SCX_EXIT_MSG_LEN")?))
            })
            .flatten(),
        backtrace: optional.ok("bt", backtrace).unwrap_or_default(),
        dump,
        dump_truncated,
        parsed_dump,
    }))
}
