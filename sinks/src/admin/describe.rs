//! Ids and partitions of topics: the one request that rdkafka's Rust binding lacks.
//!
//! A topic that is deleted and made anew has another id, whatever its offsets say.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings::*;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

/// A topic as the broker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The topic's id, in base 64; all of one id is one topic.
    pub id: String,
    /// Partitions.
    pub partitions: u32,
}

/// Asks a broker for those of `names` that exist, and waits for the answer.
pub(super) fn describe<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    timeout: Duration,
) -> Result<BTreeMap<String, Described>, KafkaError> {
    let names: Vec<CString> = names.iter().map(|n| CString::new(*n).expect("topics have no NUL in names")).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let rk = client.native_ptr();
    // SAFETY: `rk` lives as long as `client`, which is borrowed. The collection copies the names. Every object made
    // here is destroyed once, at the end, the event last of those that results point into; results are read before.
    unsafe {
        let topics = rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let queue = rd_kafka_queue_new(rk);
        let options = rd_kafka_AdminOptions_new(rk, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
        rd_kafka_DescribeTopics(rk, topics, options, queue);
        // The request ends by its own time-out; the queue is given a little longer to say so.
        let event = rd_kafka_queue_poll(queue, timeout_ms.saturating_add(1_000));
        let answer =
            if event.is_null() { Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut)) } else { read(event) };
        if !event.is_null() {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_AdminOptions_destroy(options);
        rd_kafka_queue_destroy(queue);
        rd_kafka_TopicCollection_destroy(topics);
        answer
    }
}

/// Copies what the answer holds.
///
/// # Safety
/// `event` is the result of a `DescribeTopics` request and not destroyed yet.
unsafe fn read(event: *mut rd_kafka_event_t) -> Result<BTreeMap<String, Described>, KafkaError> {
    let mut found = BTreeMap::new();
    // SAFETY: by the caller. Arrays are as long as the counts say, their entries and strings live with the event.
    unsafe {
        let error = rd_kafka_event_error(event);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::AdminOp(error.into()));
        }
        let result = rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::Fail));
        }
        let mut count = 0;
        let topics = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        for n in 0..count {
            let topic = *topics.add(n);
            let error = rd_kafka_error_code(rd_kafka_TopicDescription_error(topic));
            if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART {
                continue;
            }
            if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(KafkaError::AdminOp(error.into()));
            }
            let name = CStr::from_ptr(rd_kafka_TopicDescription_name(topic)).to_string_lossy().into_owned();
            let id = rd_kafka_Uuid_base64str(rd_kafka_TopicDescription_topic_id(topic));
            let id = CStr::from_ptr(id).to_string_lossy().into_owned();
            let mut partitions = 0;
            rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
            found.insert(name, Described { id, partitions: partitions as u32 });
        }
    }
    Ok(found)
}
