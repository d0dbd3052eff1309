//! Its own process, because what it does cannot be undone.

use podcred::logging::harden_process;
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

#[test]
fn a_hardened_process_cannot_dump_core() {
    harden_process().unwrap();
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    harden_process().expect("a second time is fine");
}
