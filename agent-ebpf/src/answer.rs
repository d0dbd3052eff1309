//! What the agent asks an accepted socket: who called connect() at its other end?
//!
//! An answer to getsockopt(2) takes half the time of a look-up by bpf(2), and every connection needs one.

use agent_ebpf::{CALLER_LEVEL, CALLER_OPTION, Caller};
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;

use crate::maps::ATTRIBUTED;

/// The call goes on; what it gives back is what the context says then.
const DONE: i32 = 1;

/// Where nobody is known, and for whoever asks for less or something else, the kernel's own answer stays: that there is no
/// such option.
#[cgroup_sockopt(getsockopt)]
pub(crate) fn answer(ctx: SockoptContext) -> i32 {
    let call = ctx.sockopt;
    // SAFETY: the context is the kernel's, and this kind of program may read these fields.
    let (level, option, socket, value, end) = unsafe {
        (
            (&raw const (*call).level).read_volatile(),
            (&raw const (*call).optname).read_volatile(),
            (&raw const (*call).__bindgen_anon_1.sk).read_volatile(),
            (&raw const (*call).__bindgen_anon_2.optval).read_volatile().cast::<Caller>(),
            (&raw const (*call).__bindgen_anon_3.optval_end).read_volatile().cast::<Caller>(),
        )
    };
    if level != CALLER_LEVEL || option != CALLER_OPTION || value.wrapping_add(1) > end {
        return DONE;
    }
    let opened = ATTRIBUTED.get(socket);
    // SAFETY: not null, hence a whole `Opened`.
    if opened.is_null() || unsafe { (*opened).by.cgroup_id } == 0 {
        return DONE;
    }
    // SAFETY: `opened` is a whole `Opened`, the buffer has room for one, and these are fields that this kind of program may
    // write: each by itself, because both at once, into which the compiler would join them, are refused.
    unsafe {
        (*value).cgroup_id = (*opened).by.cgroup_id;
        (*value).group = (*opened).by.group;
        (*value).netns = (*opened).by.netns;
        (*value).tgid = (*opened).by.tgid;
        (*value).flags = (*opened).by.flags;
        (&raw mut (*call).optlen).write_volatile(size_of::<Caller>() as i32);
        (&raw mut (*call).retval).write_volatile(0);
    }
    DONE
}
