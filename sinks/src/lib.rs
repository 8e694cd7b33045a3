//! The edges of Logster: captures and Kafka in, transactions and files out.
//!
//! [`capture`] reads NDJSON captures.

pub mod capture;
