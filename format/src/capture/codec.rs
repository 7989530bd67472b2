//! One zstd frame at a time: compress, check and decompress, recognise zeros.

use std::io::Cursor;

use zstd_safe::{CCtx, CParameter, DCtx};

use super::FRAME_BYTES;
use crate::bytes::{le_u32, to_u64};

/// The frame that stands for [`FRAME_BYTES`] zero bytes: a frame header with checksum and content
/// size, one run-length block, the checksum. It is part of the format, so that a reader knows it
/// by its bytes. Shorter than what zstd makes of zeros, for it avoids such a first block for the
/// sake of its own command line up to version 1.4.3.
pub(super) const ZERO_FRAME: [u8; 15] = [
    0x28, 0xb5, 0x2f, 0xfd, 0x64, 0x00, 0xff, 0x03, 0x00, 0x08, 0x00, 0xa4, 0x15, 0x57, 0xf1,
];

/// [`FRAME_BYTES`] zero bytes.
pub(super) static ZEROS: [u8; FRAME_BYTES] = [0; FRAME_BYTES];

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<256>();
    // No early exit inside a block, so that it becomes vector code.
    let zero = |block: &[u8]| block.iter().fold(0, |acc, &b| acc | b) == 0;
    blocks.iter().all(|block| zero(block)) && zero(rest)
}

/// A compression context, set up once and used for many frames.
pub(super) struct Compressor(CCtx<'static>);

impl Compressor {
    pub(super) fn new(level: i32) -> Result<Self, &'static str> {
        let mut context = CCtx::try_create().ok_or("out of memory")?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::ChecksumFlag(true),
            CParameter::ContentSizeFlag(true),
        ] {
            context
                .set_parameter(parameter)
                .map_err(zstd_safe::get_error_name)?;
        }
        Ok(Self(context))
    }

    /// Appends `source` to `out` as one frame and returns the frame's length in bytes.
    pub(super) fn append(&mut self, source: &[u8], out: &mut Vec<u8>) -> Result<u32, &'static str> {
        let start = out.len();
        out.reserve(zstd_safe::compress_bound(source.len()));
        let mut cursor = Cursor::new(out);
        cursor.set_position(to_u64(start));
        let len = self
            .0
            .compress2(&mut cursor, source)
            .map_err(zstd_safe::get_error_name)?;
        u32::try_from(len).map_err(|_| "the frame is too long")
    }
}

/// The length that a frame declares for its content, if it declares one.
pub(super) fn content_bytes(frame: &[u8]) -> Option<u64> {
    zstd_safe::get_frame_content_size(frame).ok()?
}

/// Decompresses the one frame in `frame` into exactly `out`, verifying its checksum.
pub(super) fn decompress(
    context: &mut DCtx<'static>,
    frame: &[u8],
    out: &mut [u8],
) -> Result<(), &'static str> {
    if le_u32(frame, 0) != Some(0xFD2F_B528) {
        return Err("it is no zstd frame");
    }
    if frame.get(4).is_none_or(|descriptor| descriptor & 4 == 0) {
        return Err("it has no checksum");
    }
    if content_bytes(frame) != Some(to_u64(out.len())) {
        return Err("it does not declare the length that the layout expects");
    }
    match context.decompress(out, frame) {
        Ok(len) if len == out.len() => Ok(()),
        Ok(_) => Err("it is shorter than the layout expects"),
        Err(code) => Err(zstd_safe::get_error_name(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_frame_is_a_frame_of_zeros() {
        let mut back = vec![1; FRAME_BYTES];
        decompress(&mut DCtx::create(), &ZERO_FRAME, &mut back).unwrap();
        assert_eq!(back, ZEROS);
    }

    #[test]
    fn zero_is_seen_at_every_position() {
        for len in [0, 1, 255, 256, 257, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn frames_are_checked() {
        let content: Vec<u8> = (0..1000_u32).map(|i| (i % 251) as u8).collect();
        let mut frame = Vec::new();
        Compressor::new(3)
            .unwrap()
            .append(&content, &mut frame)
            .unwrap();
        let mut out = vec![0; 1000];
        let mut context = DCtx::create();
        decompress(&mut context, &frame, &mut out).unwrap();
        assert_eq!(out, content);
        let mut short = vec![0; 999];
        assert_eq!(
            decompress(&mut context, &frame, &mut short),
            Err("it does not declare the length that the layout expects")
        );
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert_eq!(
            decompress(&mut context, &frame, &mut out),
            Err("Restored data doesn't match checksum")
        );
    }
}
