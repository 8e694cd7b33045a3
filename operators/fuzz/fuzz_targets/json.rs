#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| logster_fuzz::json(data));
