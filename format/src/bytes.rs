//! Checked little-endian reads, writes and conversions. Everything in a capture is little-endian,
//! and so is the guest in it.

/// The `N` bytes at `offset`, if they are all there.
#[must_use]
pub fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// Two bytes at `offset`.
#[must_use]
pub fn le_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// Four bytes at `offset`.
#[must_use]
pub fn le_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// Eight bytes at `offset`.
#[must_use]
pub fn le_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// The low half of an address: what an arena pointer is known by.
#[must_use]
pub fn low32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// `u64` as an index; saturates where it does not fit, so that the bounds check that follows
/// fails instead of a wrong byte being used.
#[must_use]
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A length as `u64`; loses nothing on the hosts that Rust supports.
#[must_use]
pub fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A fixed-size record under construction.
#[derive(Debug, Default)]
pub(crate) struct Record(Vec<u8>);

impl Record {
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Zero bytes up to a length of `len`; cuts off what is longer.
    pub(crate) fn pad_to(mut self, len: usize) -> Self {
        self.0.resize(len, 0);
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}
