//! Who does this token say is calling, and is that true?

pub mod keys;
pub mod token;

use std::sync::Arc;

use crate::claims::{Claims, TokenHash};

/// A token that passed.
#[derive(Clone, Debug)]
pub enum Authenticated {
    /// The signature is good and every claim was checked.
    Verified(Arc<Claims>),
    /// No key set could be had at all, so nobody checked the signature. Issuer, audience and expiry fit; EKS Auth
    /// is the one to check it. These claims reach no label and no log.
    Unchecked(Arc<Claims>, TokenHash),
}
