//! The edges of Logster: captures and Kafka in, transactions and files out.
//!
//! [`capture`] reads NDJSON captures. [`client`] is how Kafka is reached, [`admin`] makes and checks topics.
//! Outputs leave in [`epoch`]s, through [`writer`] to Kafka or through [`file`] to a directory.

pub mod admin;
pub mod capture;
pub mod client;
pub mod epoch;
pub mod file;
pub mod playback;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod writer;
