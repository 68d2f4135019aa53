//! Records on disk: nonsense is none, and what is read can be written and read again.
#![no_main]

use breakwater_registry::store::{links::Link, tags::TagRecord};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = serde_json::from_slice::<TagRecord>(bytes) {
        let written = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(serde_json::from_slice::<TagRecord>(&written).expect("and read"), record);
        record.age();
    }
    if let Ok(link) = serde_json::from_slice::<Link>(bytes) {
        let written = serde_json::to_vec(&link).expect("a link can be written");
        assert_eq!(serde_json::from_slice::<Link>(&written).expect("and read"), link);
    }
});
