//! The simulation over real HTTP, as its clients see it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

mod api;
mod client;
mod eks_auth;
mod issuer;
mod outages;

use loadtest::eks::{Config, SimulatedEks};

const ROLE: &str = "arn:aws:iam::111122223333:role/shop/cart";

/// A simulation in which shop/cart has [`ROLE`].
async fn with_cart() -> SimulatedEks {
    let eks = SimulatedEks::start(Config::default()).await.unwrap();
    eks.create_association("shop", "cart", ROLE);
    eks
}
