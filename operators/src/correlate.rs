//! (to come)

pub mod contact;
