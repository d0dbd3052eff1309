//! What is kept for each group: numbers, and room in PENDING.

use core::arch::asm;

use agent_ebpf::{Counters, Lost, PENDING_FOR, PENDING_PER_GROUP};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_map_update_elem;

use crate::maps::{COUNTERS, SLOTS, Slots, ZEROES, lost};

/// Adds to a number in a map, atomically. `number` must point into one.
#[inline(always)]
pub(crate) fn add(number: *mut u64, by: u64) {
    // core has no atomic addition for this target, because kernels before 5.12 know only this form, without a result.
    // SAFETY: map values are aligned to 8 bytes and live until the program ends.
    unsafe { asm!("lock *(u64 *)({number} + 0) += {by}", number = in(reg) number, by = in(reg) by) };
}

/// The group's numbers, made where there are none; null (and counted) where there is no room.
#[inline(always)]
pub(crate) fn counters(group: u64) -> *mut Counters {
    if let Some(counters) = COUNTERS.get_ptr_mut(group) {
        return counters;
    }
    if let Some(zeroes) = ZEROES.get_ptr(0) {
        // Another CPU may have been faster; then its element is the one that is found.
        let map = core::ptr::from_ref(&COUNTERS).cast_mut().cast();
        // SAFETY: the value that is read is no larger than the zeroes, which maps.rs asserts and the verifier checks.
        unsafe { bpf_map_update_elem(map, (&raw const group).cast(), zeroes.cast(), u64::from(BPF_NOEXIST)) };
    }
    match COUNTERS.get_ptr_mut(group) {
        Some(counters) => counters,
        None => {
            lost(Lost::Counters);
            core::ptr::null_mut()
        }
    }
}

/// Adds 1 to a field of a group's counters, if it has any.
macro_rules! count {
    ($counters:expr, $field:ident) => {{
        let counters: *mut agent_ebpf::Counters = $counters;
        if !counters.is_null() {
            // SAFETY: it points to a whole element of COUNTERS.
            $crate::group::add(unsafe { &raw mut (*counters).$field }, 1);
        }
    }};
}
pub(crate) use count;

/// A free slot of the group, taken; None when all are in use.
#[inline(always)]
pub(crate) fn take_slot(group: u64, now: u64) -> Option<u64> {
    let slots = slots(group)?;
    let mut slot = 0;
    while slot < PENDING_PER_GROUP {
        // SAFETY: `slot` is below the array's length. Two CPUs may take one slot at once, and the group then has one
        // connection more than its share: to be exact would take a compare-and-swap, which 5.10 does not have.
        unsafe {
            let since = (&raw mut (*slots)[slot]).read_volatile();
            if since == 0 || now.wrapping_sub(since) > PENDING_FOR {
                (&raw mut (*slots)[slot]).write_volatile(now);
                return Some(slot as u64);
            }
        }
        slot += 1;
    }
    None
}

/// Frees a slot, if it is still the one that was taken at `since`.
#[inline(always)]
pub(crate) fn free_slot(group: u64, slot: u64, since: u64) {
    let Some(slots) = SLOTS.get_ptr_mut(group) else { return };
    let slot = slot as usize % PENDING_PER_GROUP;
    // SAFETY: `slot` is below the array's length.
    unsafe {
        let taken = &raw mut (*slots)[slot];
        if taken.read_volatile() == since {
            taken.write_volatile(0);
        }
    }
}

#[inline(always)]
fn slots(group: u64) -> Option<*mut Slots> {
    if let Some(slots) = SLOTS.get_ptr_mut(group) {
        return Some(slots);
    }
    let zeroes = ZEROES.get_ptr(0)?;
    let map = core::ptr::from_ref(&SLOTS).cast_mut().cast();
    // SAFETY: the zeroes are of the type of SLOTS' values.
    unsafe { bpf_map_update_elem(map, (&raw const group).cast(), zeroes.cast(), u64::from(BPF_NOEXIST)) };
    SLOTS.get_ptr_mut(group)
}
