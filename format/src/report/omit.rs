//! The tests behind "left out of the object when …".

/// Zero, for counters that are left out when they are 0.
pub(super) fn zero_u64(value: &u64) -> bool {
    *value == 0
}

/// Zero, for counters that are left out when they are 0.
pub(super) fn zero_u32(value: &u32) -> bool {
    *value == 0
}

/// False, for marks that are written only when set.
pub(super) fn is_false(value: &bool) -> bool {
    !*value
}
