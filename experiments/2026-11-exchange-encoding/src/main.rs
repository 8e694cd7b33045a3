//! Three encodings of what processes exchange: bincode, columns, abomonation. See README.md.
//!
//! Each encodes batches of the observations of real captures and decodes them, once only to look at every
//! record (`view`) and once into records that one can keep (`own`). Processor
//! time of one thread, best of five interleaved rounds.

use std::hint::black_box;
use std::io::BufRead;
use std::path::PathBuf;

use abomonation::Abomonation;
use columnar::bytes::stash::Stash;
use columnar::{Borrow, Clear, Columnar, Index, Len, Push};
use logster_operators::normalize::{NormalizeConfig, Normalizer, Outcome, RawRecord};
use logster_schema::{Observation, RawTopic, TimeLimits};
use serde::{Deserialize, Serialize};

const RECORDS_A_PLATFORM: usize = 60_000;
const ROUNDS: usize = 5;
/// Least duration of a measurement.
const SECONDS: f64 = 0.2;

/// An observation with its parts in the open, as the columns and abomonation need it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Columnar)]
struct Flat {
    key: String,
    hash: u64,
    platform: u8,
    lane: u8,
    time_ms: i64,
    arrival_ms: i64,
    topic: u8,
    partition: i32,
    offset: i64,
    kind: u32,
    #[serde(with = "serde_bytes")]
    fields: Vec<u8>,
}

#[allow(deprecated, reason = "its derive macro is as old, and one more package")]
mod by_bytes {
    use super::{Abomonation, Flat};
    abomonation::unsafe_abomonate!(Flat: key, fields);
}

fn main() {
    let Some(root) = std::env::var_os("LOGSTER_CORPUS").map(PathBuf::from) else {
        println!("skipped: LOGSTER_CORPUS is not set");
        return;
    };
    for platform in ["windows", "linux"] {
        let observations = load(&root.join(platform));
        let flat: Vec<Flat> = observations.iter().map(flatten).collect();
        let text: usize = flat.iter().map(|f| f.key.len() + f.fields.len()).sum();
        println!("{platform}: {} observations, {} bytes of text each on average", flat.len(), text / flat.len());
        println!("  {:<28}{:>9} {:>12} {:>12} {:>12}", "", "bytes", "encode/s", "view/s", "own/s");
        // timely's own batches of a Vec (8 KiB of structs), and large ones, which suit columns.
        for batch in [8192 / size_of::<Flat>(), 4096] {
            measure(&observations, &flat, batch);
        }
    }
}

#[derive(Clone, Copy)]
struct Figures {
    bytes: usize,
    encode: f64,
    view: f64,
    own: f64,
}

type Run<'a> = Box<dyn Fn() -> Figures + 'a>;

fn measure(observations: &[Observation], flat: &[Flat], batch: usize) {
    let runs: [(&str, Run); 4] = [
        ("bincode, as the product", Box::new(move || bincoded(observations, batch, |o| o.time_ms))),
        ("bincode", Box::new(move || bincoded(flat, batch, |f| f.time_ms))),
        ("columns", Box::new(move || columns(flat, batch))),
        ("abomonation", Box::new(move || abomonated(flat, batch))),
    ];
    let mut best = [Figures { bytes: 0, encode: f64::MAX, view: f64::MAX, own: f64::MAX }; 4];
    for _ in 0..ROUNDS {
        for (best, (_, run)) in best.iter_mut().zip(&runs) {
            let now = run();
            *best = Figures {
                bytes: now.bytes,
                encode: best.encode.min(now.encode),
                view: best.view.min(now.view),
                own: best.own.min(now.own),
            };
        }
    }
    let records = flat.len() as f64;
    for (f, (name, _)) in best.iter().zip(&runs) {
        let per = |seconds: f64| records / seconds;
        let name = format!("{name}, by {batch}");
        let bytes = f.bytes / flat.len();
        println!("  {name:<28}{bytes:>9} {:>12.0} {:>12.0} {:>12.0}", per(f.encode), per(f.view), per(f.own));
    }
}

/// Processor seconds of this thread: neighbours on the machine do not count. Advances in steps of milliseconds.
fn processor() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("nanoseconds first") / 1e9
}

/// Seconds of one pass of `one` over the batches; as many passes as the clock's steps ask for. What `one` returns
/// is dropped within the time, as records are sooner or later.
fn timed<B, T>(batches: &mut [B], mut one: impl FnMut(&mut B) -> T) -> f64 {
    let start = processor();
    for passes in 1.. {
        batches.iter_mut().for_each(|batch| drop(black_box(one(batch))));
        let took = processor() - start;
        if took > SECONDS {
            return took / f64::from(passes);
        }
    }
    unreachable!("the processor's clock advances")
}

/// What timely does with a `Vec` of anything serializable: asks for the length, writes, and reads all of it.
fn bincoded<T>(records: &[T], batch: usize, look: fn(&T) -> i64) -> Figures
where
    T: Serialize + for<'a> Deserialize<'a> + Clone + PartialEq,
{
    let mut batches: Vec<Vec<T>> = records.chunks(batch).map(<[T]>::to_vec).collect();
    let write = |batch: &Vec<T>, bytes: &mut Vec<u8>| {
        bytes.clear();
        bytes.reserve(bincode::serialized_size(batch).expect("a size") as usize);
        bincode::serialize_into(bytes, batch).expect("encodes");
    };
    let read = |bytes: &Vec<u8>| bincode::deserialize::<Vec<T>>(bytes).expect("decodes");
    let mut buffer = Vec::new();
    let encode = timed(&mut batches, |batch| write(batch, &mut buffer));
    let mut encoded: Vec<Vec<u8>> = batches.iter().map(|b| (write(b, &mut buffer), buffer.clone()).1).collect();
    let view = timed(&mut encoded, |bytes| read(bytes).iter().map(look).fold(0, i64::wrapping_add));
    // Nothing to add: what bincode reads, one may keep.
    let own = timed(&mut encoded, |bytes| read(bytes));
    assert!(encoded.iter().map(read).eq(batches));
    Figures { bytes: encoded.iter().map(Vec::len).sum(), encode, view, own }
}

fn columns(records: &[Flat], batch: usize) -> Figures {
    type Columns = <Flat as Columnar>::Container;
    let mut batches: Vec<&[Flat]> = records.chunks(batch).collect();
    let (mut columns, mut words) = (Columns::default(), Vec::new());
    let mut write = |batch: &[Flat], words: &mut Vec<u64>| {
        words.clear();
        columns.clear();
        batch.iter().for_each(|record| columns.push(record));
        columnar::bytes::indexed::encode(words, &columns.borrow());
    };
    let encode = timed(&mut batches, |batch| write(batch, &mut words));
    let mut encoded: Vec<Vec<u64>> = batches.iter().map(|b| (write(b, &mut words), words.clone()).1).collect();
    // Checked, as it would be from a socket; aligned, so not copied.
    fn stash(words: &[u64]) -> Stash<Columns, &[u8]> {
        Stash::try_from_bytes(columnar::bytemuck::cast_slice(words)).expect("decodes")
    }
    let view = timed(&mut encoded, |words| {
        let stash = stash(words);
        let columns = stash.borrow();
        let seen = (0..columns.len()).map(|i| columns.get(i)).map(|f| *f.time_ms + f.fields.len() as i64);
        seen.fold(0, i64::wrapping_add)
    });
    let owned = |words: &Vec<u64>| {
        let stash = stash(words);
        let columns = stash.borrow();
        let record = |i| {
            let f = columns.get(i);
            // `into_owned` would collect the bytes one by one.
            Flat {
                key: String::from_utf8(f.key.to_vec()).expect("UTF-8"),
                hash: *f.hash,
                platform: *f.platform,
                lane: *f.lane,
                time_ms: *f.time_ms,
                arrival_ms: *f.arrival_ms,
                topic: *f.topic,
                partition: *f.partition,
                offset: *f.offset,
                kind: *f.kind,
                fields: f.fields.as_slice().to_vec(),
            }
        };
        (0..columns.len()).map(record).collect::<Vec<_>>()
    };
    let own = timed(&mut encoded, |words| owned(words));
    assert!(encoded.iter().flat_map(owned).eq(records.iter().cloned()));
    Figures { bytes: encoded.iter().map(|words| 8 * words.len()).sum(), encode, view, own }
}

fn abomonated(records: &[Flat], batch: usize) -> Figures {
    let mut batches: Vec<Vec<Flat>> = records.chunks(batch).map(<[Flat]>::to_vec).collect();
    let write = |batch: &Vec<Flat>, bytes: &mut Vec<u8>| {
        bytes.clear();
        bytes.reserve(abomonation::measure(batch));
        // SAFETY: none that holds. It writes structs with their padding, and reading them back trusts every
        // byte: RUSTSEC-2021-0120. Here the bytes are our own, from this very process.
        unsafe { abomonation::encode(batch, bytes) }.expect("encodes");
    };
    fn read(bytes: &mut [u8]) -> &Vec<Flat> {
        // SAFETY: as above.
        unsafe { abomonation::decode::<Vec<Flat>>(bytes) }.expect("decodes").0
    }
    let mut buffer = Vec::new();
    let encode = timed(&mut batches, |batch| write(batch, &mut buffer));
    let mut encoded: Vec<Vec<u8>> = batches.iter().map(|b| (write(b, &mut buffer), buffer.clone()).1).collect();
    let view = timed(&mut encoded, |bytes| {
        read(bytes).iter().map(|f| f.time_ms + f.fields.len() as i64).fold(0, i64::wrapping_add)
    });
    let own = timed(&mut encoded, |bytes| read(bytes).clone());
    assert!(encoded.iter_mut().map(|bytes| read(bytes).clone()).eq(batches));
    Figures { bytes: encoded.iter().map(Vec::len).sum(), encode, view, own }
}

fn flatten(o: &Observation) -> Flat {
    let mut fields = Vec::with_capacity(o.activity.fields.len_bytes());
    for (field, text) in o.activity.fields.iter() {
        fields.push(field as u8);
        fields.extend_from_slice(&(text.len() as u32).to_le_bytes());
        fields.extend_from_slice(text.as_bytes());
    }
    Flat {
        key: o.endpoint.key().to_owned(),
        hash: o.endpoint.hash64(),
        platform: o.platform as u8,
        lane: o.lane as u8,
        time_ms: o.time_ms,
        arrival_ms: o.arrival_ms,
        topic: o.position.topic as u8,
        partition: o.position.partition,
        offset: o.position.offset,
        kind: 1,
        fields,
    }
}

/// Observations of an equal share of every capture in the folder.
fn load(folder: &PathBuf) -> Vec<Observation> {
    #[derive(Deserialize)]
    struct Line<'a> {
        topic: &'a str,
        #[serde(borrow)]
        value: &'a serde_json::value::RawValue,
    }
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "zst"));
    files.sort();
    let share = RECORDS_A_PLATFORM / files.len();
    let config = NormalizeConfig { time: TimeLimits::default(), max_message_bytes: 1 << 20 };
    let mut normalizer = Normalizer::new(config);
    let mut observations = Vec::new();
    for path in files {
        let mut decoder = zstd::Decoder::new(std::fs::File::open(path).expect("file")).expect("zstd");
        decoder.window_log_max(27).expect("window");
        for (offset, line) in std::io::BufReader::new(decoder).lines().take(share).enumerate() {
            let line = line.expect("line");
            let line: Line = serde_json::from_str(&line).expect("envelope");
            let record = RawRecord {
                topic: RawTopic::from_name(line.topic).expect("topic"),
                partition: 0,
                offset: offset as i64,
                arrival_ms: 1_600_000_000_000,
                key: None,
                payload: line.value.get().as_bytes(),
            };
            if let Outcome::Event(event) = normalizer.normalize(&record) {
                observations.push(event.observation);
            }
        }
    }
    observations
}
