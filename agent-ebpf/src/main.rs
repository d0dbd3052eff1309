#![cfg_attr(target_arch = "bpf", no_std, no_main)]
//! podcred's kernel programs.

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a kernel program; `cargo xtask build-ebpf` builds it");
}
