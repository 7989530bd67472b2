//! Where the bytes of a capture are: in this process, or somewhere else.

/// The bytes of a capture.
///
/// Whatever is a slice of bytes is one: a mapping, a `Vec<u8>`. Others give a range at a time, and a
/// capture asks them for no more than what it reads.
pub trait Store: Sync {
    /// Length of the file in bytes.
    fn bytes(&self) -> u64;

    /// All of the file, when it is in this process.
    fn whole(&self) -> Option<&[u8]>;

    /// Exactly `len` bytes from `offset`. Called only where there is no [`whole`](Self::whole) file,
    /// and only within its length.
    ///
    /// # Errors
    /// Why they cannot be had, for a sentence that begins with the part that was to be read. Whoever
    /// needs to know more asks the store itself: a frame that could not be fetched is otherwise
    /// reported as one that is damaged.
    fn fetch(&self, offset: u64, len: usize) -> Result<Vec<u8>, &'static str>;
}

impl<T: AsRef<[u8]> + Sync> Store for T {
    fn bytes(&self) -> u64 {
        crate::bytes::to_u64(self.as_ref().len())
    }

    fn whole(&self) -> Option<&[u8]> {
        Some(self.as_ref())
    }

    fn fetch(&self, _: u64, _: usize) -> Result<Vec<u8>, &'static str> {
        Err("it is cut off")
    }
}
