//! The edges of Logster: captures and Kafka in, transactions and files out.
//!
//! [`capture`] reads NDJSON captures. [`client`] is how Kafka is reached, [`admin`] makes and checks topics,
//! [`consumer`] reads raw ones.
//! [`produce`] plays captures, merged by [`playback`], into a broker.
//! Outputs leave in [`epoch`]s, through [`writer`] to Kafka or through [`file`] to a directory;
//! [`reader`] reads committed records back.

pub mod admin;
pub mod capture;
pub mod client;
pub mod consumer;
pub mod epoch;
pub mod file;
pub mod playback;
pub mod produce;
pub mod reader;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod writer;
