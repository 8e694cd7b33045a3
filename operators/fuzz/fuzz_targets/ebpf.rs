#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| logster_fuzz::ebpf(data));
