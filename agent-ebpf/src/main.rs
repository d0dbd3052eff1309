#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "the kernel's interface is raw pointers; its verifier checks their every use"
    )
)]
//! podcred's kernel programs: they say which pod opened a connection to the agent.
//!
//! [`connect`] runs inside connect() and writes down on the client's socket who called. [`handshake`] carries that over
//! to the agent's socket of the same connection, where [`answer`] tells it when the agent asks by file descriptor. Nothing is looked up by
//! address: whoever can borrow an address cannot borrow what the kernel wrote on a socket.

#[cfg(target_arch = "bpf")]
mod answer;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod group;
#[cfg(target_arch = "bpf")]
mod handshake;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod storage;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a kernel program; `cargo xtask build-ebpf` builds it");
}

#[cfg(target_arch = "bpf")]
mod kernel {
    // Some helpers, the log's among them, are for programs under the GPL alone; the kernel reads this as such.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // Nothing here panics. The verifier accepts no program that could reach an endless loop, so this is checked at
        // every load.
        loop {}
    }
}
