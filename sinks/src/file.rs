//! Writes each output topic to `DIR/<topic>.ndjson`, one `{"key","ts","value"}` a line.
//!
//! - Input: [`Epoch`]s. Checkpoints and offsets are left out: files are written by runs that begin anew.
//! - Output: a file for every output topic, also one that stays empty; an epoch is handed to the system as a
//!   whole, and to the disk at the end.
//! - State: the open files, shared by the workers of a process. Two processes need two directories.
//! - Failure: the first error ends writing. A crash can leave part of the last epoch.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use logster_schema::{OutputRecord, OutputTopic};

use crate::epoch::{Epoch, Sink, WriterError};

/// The output files of a run. A clone writes to the same ones.
#[derive(Clone)]
pub struct FileSink {
    files: Arc<Mutex<Vec<TopicFile>>>,
}

struct TopicFile {
    topic: OutputTopic,
    path: PathBuf,
    out: BufWriter<File>,
}

impl FileSink {
    /// Creates `dir` if need be and the files in it; what they held before is gone.
    pub fn create(dir: &Path) -> Result<Self, WriterError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| WriterError::File { path, source }
        };
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        let mut files = Vec::new();
        for topic in OutputTopic::ALL {
            let path = dir.join(format!("{}.ndjson", topic.name()));
            let out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed(&path))?);
            files.push(TopicFile { topic, path, out });
        }
        Ok(Self { files: Arc::new(Mutex::new(files)) })
    }

    fn each(
        &self,
        mut act: impl FnMut(OutputTopic, &mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), WriterError> {
        // Poisoned by a panic of another worker: the process is about to exit, and so are we.
        let mut files = self.files.lock().map_err(|_| WriterError::Panicked)?;
        for file in files.iter_mut() {
            act(file.topic, &mut file.out).map_err(|source| WriterError::File { path: file.path.clone(), source })?;
        }
        Ok(())
    }
}

impl Sink for FileSink {
    fn commit(&mut self, epoch: Epoch) -> Result<(), WriterError> {
        self.each(|topic, out| {
            for record in epoch.records.iter().filter(|record| record.topic == topic) {
                line(record, out)?;
            }
            out.flush()
        })
    }

    fn finish(&mut self) -> Result<(), WriterError> {
        self.each(|_, out| {
            out.flush()?;
            out.get_ref().sync_all()
        })
    }
}

fn line(record: &OutputRecord, out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"{\"key\":")?;
    serde_json::to_writer(&mut *out, &record.key)?;
    write!(out, ",\"ts\":{},\"value\":", record.ts_ms)?;
    out.write_all(&record.value)?;
    out.write_all(b"}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(topic: OutputTopic, key: Option<&str>, ts_ms: i64, value: &str) -> OutputRecord {
        OutputRecord { topic, key: key.map(Into::into), ts_ms, value: value.into() }
    }

    #[test]
    fn one_file_a_topic_shared_by_workers() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        let mut one = FileSink::create(&out).unwrap();
        let mut two = one.clone();
        let epoch = |records| Epoch { records, ..Epoch::default() };
        one.commit(epoch(vec![
            record(OutputTopic::Alerts, Some("t:\"h\""), 5, r#"{"a":1}"#),
            record(OutputTopic::DeadLetters, None, -1, "{}"),
            record(OutputTopic::Alerts, Some("t:i"), 6, "{}"),
        ]))
        .unwrap();
        two.commit(epoch(vec![record(OutputTopic::Alerts, Some("t:j"), 7, "{}")])).unwrap();
        one.finish().unwrap();
        two.finish().unwrap();
        let read = |topic: OutputTopic| std::fs::read_to_string(out.join(format!("{}.ndjson", topic.name()))).unwrap();
        assert_eq!(
            read(OutputTopic::Alerts),
            "{\"key\":\"t:\\\"h\\\"\",\"ts\":5,\"value\":{\"a\":1}}\n\
             {\"key\":\"t:i\",\"ts\":6,\"value\":{}}\n{\"key\":\"t:j\",\"ts\":7,\"value\":{}}\n"
        );
        assert_eq!(read(OutputTopic::DeadLetters), "{\"key\":null,\"ts\":-1,\"value\":{}}\n");
        assert_eq!(read(OutputTopic::Results), "");
        // A second run begins anew.
        FileSink::create(&out).unwrap();
        assert_eq!(read(OutputTopic::Alerts), "");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = FileSink::create(&file.path().join("out")).err().unwrap();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    /// Linux has a device that is always full.
    #[test]
    fn a_full_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("logster-alerts.ndjson")).unwrap();
        let mut sink = FileSink::create(dir.path()).unwrap();
        let records = vec![record(OutputTopic::Alerts, None, 0, "{}")];
        let error = sink.commit(Epoch { records, ..Epoch::default() }).unwrap_err();
        assert!(matches!(error, WriterError::File { .. }), "{error}");
    }
}
