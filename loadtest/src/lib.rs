//! What podcred is tested against.
