//! Serde of records whose JSON leaves out empty fields, for formats that cannot leave anything out.
//!
//! Between processes timely writes bincode, which needs every field at its place; `skip_serializing_if`
//! would shift what follows. In such formats a record travels as its JSON, as bytes; in JSON, as itself.
//! Use as `#[serde(with = "logster_schema::wire")]` on a record that is exchanged.

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// JSON as itself in readable formats, as bytes in others.
pub fn serialize<T: Serialize, S: Serializer>(record: &T, s: S) -> Result<S::Ok, S::Error> {
    if s.is_human_readable() {
        return record.serialize(s);
    }
    serde_json::to_vec(record).map_err(S::Error::custom)?.serialize(s)
}

/// Reads what [`serialize`] wrote.
pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    if d.is_human_readable() {
        return T::deserialize(d);
    }
    serde_json::from_slice(&Vec::<u8>::deserialize(d)?).map_err(D::Error::custom)
}
